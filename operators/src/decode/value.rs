//! One value of a reading before it has a type, and the coercions that lose nothing.

/// A value as the payload, the topic or the message gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Value<'a> {
    /// The member is not there.
    #[default]
    Missing,
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number as written.
    Number(Number<'a>),
    /// Text: UTF-8.
    Text(&'a [u8]),
    /// The inside of a JSON string with escapes: UTF-8, its escapes well-formed.
    Escaped(&'a [u8]),
    /// Text of a line of InfluxDB's protocol, UTF-8, in which backslashes hide some characters.
    Slashed(&'a [u8], Slashes),
    /// An array.
    Array,
    /// An object.
    Object,
    /// A point in time that Tidegate knows itself, microseconds since the Unix epoch.
    Instant(i64),
    /// An integer that Tidegate knows itself.
    Integer(i64),
    /// Text from outside the payload that is not UTF-8.
    NotUtf8,
    /// Bytes from outside the payload that are shown in hexadecimal.
    Binary(&'a [u8]),
}

/// Which characters a backslash stands before in a line of InfluxDB's protocol; before any other
/// it means itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slashes {
    /// Comma and space.
    Measurement,
    /// Comma, space and equals sign: keys, and values of tags.
    Key,
    /// Quote and backslash: the inside of a string.
    String,
}

/// A number that follows the grammar of JSON, or of a line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Number<'a> {
    /// As written.
    pub(super) text: &'a [u8],
    /// Its digits without the point; meaningful if `plain`.
    pub(super) mantissa: u64,
    /// Digits after the point; meaningful if `plain`.
    pub(super) decimals: u8,
    /// Written with a minus sign.
    pub(super) negative: bool,
    /// No exponent and few enough digits for `mantissa`.
    pub(super) plain: bool,
}

impl Value<'_> {
    /// Most bytes of its text in a column of text, if that is not a short one.
    pub(super) fn text_bytes(&self) -> usize {
        match self {
            Self::Number(number) => number.text.len(),
            Self::Text(text) | Self::Escaped(text) | Self::Slashed(text, _) => text.len(),
            // Two digits for each.
            Self::Binary(bytes) => 2 * bytes.len(),
            Self::Missing
            | Self::Null
            | Self::Bool(_)
            | Self::Array
            | Self::Object
            | Self::Instant(_)
            | Self::Integer(_)
            | Self::NotUtf8 => 0,
        }
    }
}

/// Powers of ten that a `f64` holds exactly and that a plain number can need.
const TENS: [f64; 19] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18,
];

/// Integers below this are exact as `f64`.
const EXACT: u64 = 1 << 53;

impl<'a> Number<'a> {
    /// Reads a text that is a JSON number from its first to its last byte.
    pub(super) fn parse(text: &'a [u8]) -> Option<Self> {
        match super::scan::number(text, 0) {
            Ok((number, end)) if end == text.len() => Some(number),
            _ => None,
        }
    }

    /// The nearest `f64`; none if it is beyond the largest one.
    #[inline]
    pub(super) fn to_f64(self) -> Option<f64> {
        if self.plain && self.mantissa < EXACT {
            // Clinger: both operands are exact, so one correctly rounded division is the answer.
            let value = self.mantissa as f64 / TENS[usize::from(self.decimals)];
            return Some(if self.negative { -value } else { value });
        }
        let value: f64 = self.as_str().parse().ok()?;
        value.is_finite().then_some(value)
    }

    /// The integer, if it is one.
    #[inline]
    pub(super) fn to_i64(self) -> Option<i64> {
        if self.plain {
            let mut value = self.mantissa;
            if self.decimals > 0 {
                let ten = 10u64.pow(u32::from(self.decimals));
                if !value.is_multiple_of(ten) {
                    return None;
                }
                value /= ten;
            }
            let value = i128::from(value);
            return i64::try_from(if self.negative { -value } else { value }).ok();
        }
        if let Ok(value) = self.as_str().parse() {
            return Some(value);
        }
        let value = self.to_f64()?;
        (value.fract() == 0.0 && value.abs() < EXACT as f64).then_some(value as i64)
    }

    pub(super) fn as_str(&self) -> &'a str {
        std::str::from_utf8(self.text).expect("a number is ASCII")
    }
}

/// Appends the text that the inside of a JSON string stands for. False, and nothing appended, if
/// an escape names half of a surrogate pair, which no text can hold.
pub(super) fn unescape(body: &[u8], out: &mut Vec<u8>) -> bool {
    let before = out.len();
    let mut rest = body;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        let kind = rest[at + 1];
        rest = &rest[at + 2..];
        let simple = match kind {
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let Some((character, tail)) = unicode(rest) else {
                    out.truncate(before);
                    return false;
                };
                rest = tail;
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            other => other,
        };
        out.push(simple);
    }
    out.extend_from_slice(rest);
    true
}

/// Appends the text that `body` stands for.
pub(super) fn unslash(body: &[u8], slashes: Slashes, out: &mut Vec<u8>) {
    let hidden: &[u8] = match slashes {
        Slashes::Measurement => b", ",
        Slashes::Key => b", =",
        Slashes::String => b"\"\\",
    };
    let mut rest = body;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        match rest.get(at + 1) {
            Some(next) if hidden.contains(next) => {
                out.push(*next);
                rest = &rest[at + 2..];
            }
            _ => {
                out.push(b'\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.extend_from_slice(rest);
}

/// The character of the four digits (and, for a pair, the second escape) at the start of `rest`.
fn unicode(rest: &[u8]) -> Option<(char, &[u8])> {
    let unit = |text: &[u8]| {
        text.iter().fold(0u32, |n, c| n * 16 + char::from(*c).to_digit(16).unwrap_or(0))
    };
    let (first, rest) = (unit(&rest[..4]), &rest[4..]);
    if !(0xd800..0xdc00).contains(&first) {
        return char::from_u32(first).map(|c| (c, rest));
    }
    let second = unit(rest.strip_prefix(b"\\u")?.get(..4)?);
    if !(0xdc00..0xe000).contains(&second) {
        return None;
    }
    let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
    char::from_u32(code).map(|c| (c, &rest[6..]))
}
