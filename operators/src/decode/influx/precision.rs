//! The unit of a line's timestamp. A write request says it once for all of its lines; it travels
//! with each message as the MQTT 5 user property `precision`, so that the payload stays what was
//! sent. A device that publishes lines over MQTT 5 can set the same property.

/// Unit of timestamps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Nanoseconds, which is what lines have if nothing is said.
    #[default]
    Nanoseconds,
    /// Microseconds.
    Microseconds,
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Minutes (version 1 of the API).
    Minutes,
    /// Hours (version 1 of the API).
    Hours,
}

/// Name of the user property.
const NAME: &[u8] = b"precision";
/// Identifier of user properties in MQTT 5.
const USER_PROPERTY: u8 = 0x26;

impl Precision {
    /// What versions 1 and 2 of the write API call it; none if neither knows it.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "" | "n" | "ns" => Self::Nanoseconds,
            "u" | "us" | "µ" | "µs" => Self::Microseconds,
            "ms" => Self::Milliseconds,
            "s" => Self::Seconds,
            "m" => Self::Minutes,
            "h" => Self::Hours,
            _ => return None,
        })
    }

    /// The MQTT 5 properties that tell it; empty for the default.
    pub fn properties(self) -> Vec<u8> {
        let text: &[u8] = match self {
            Self::Nanoseconds => return Vec::new(),
            Self::Microseconds => b"us",
            Self::Milliseconds => b"ms",
            Self::Seconds => b"s",
            Self::Minutes => b"m",
            Self::Hours => b"h",
        };
        let mut out = vec![USER_PROPERTY, 0, NAME.len() as u8];
        out.extend_from_slice(NAME);
        out.extend_from_slice(&[0, text.len() as u8]);
        out.extend_from_slice(text);
        out
    }

    /// What MQTT 5 properties tell; the default if they say nothing of it, none if what they say
    /// is no precision.
    pub fn of(properties: &[u8]) -> Option<Self> {
        let mut rest = properties;
        while let Some((id, body)) = rest.split_first() {
            rest = if *id == USER_PROPERTY {
                let Some((name, body)) = text(body) else { return Some(Self::default()) };
                let Some((value, body)) = text(body) else { return Some(Self::default()) };
                if name == NAME {
                    return std::str::from_utf8(value).ok().and_then(Self::parse);
                }
                body
            } else {
                match skip(*id, body) {
                    Some(body) => body,
                    None => return Some(Self::default()),
                }
            };
        }
        Some(Self::default())
    }

    /// A count of this unit in microseconds, if it fits.
    pub(super) fn to_us(self, count: i64) -> Option<i64> {
        match self {
            Self::Nanoseconds => Some(count.div_euclid(1_000)),
            Self::Microseconds => Some(count),
            Self::Milliseconds => count.checked_mul(1_000),
            Self::Seconds => count.checked_mul(1_000_000),
            Self::Minutes => count.checked_mul(60_000_000),
            Self::Hours => count.checked_mul(3_600_000_000),
        }
    }
}

/// A text with its length before it, and what follows.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

/// What follows a property that a PUBLISH can have; none if it is no such property.
fn skip(id: u8, bytes: &[u8]) -> Option<&[u8]> {
    match id {
        0x01 => bytes.get(1..),
        0x02 => bytes.get(4..),
        0x23 => bytes.get(2..),
        0x03 | 0x08 | 0x09 => text(bytes).map(|(_, rest)| rest),
        0x0b => bytes.get(bytes.iter().take(4).position(|b| *b < 0x80)? + 1..),
        _ => None,
    }
}
