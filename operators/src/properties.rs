//! The MQTT 5 properties of a PUBLISH, as far as they can be columns of a reading.
//!
//! Sources keep the bytes as they came. They are read here, after the journal, so a broken block
//! can cost nothing but its own values: whatever is malformed counts as not there.

use std::fmt;

/// What of the properties can be a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Property {
    /// The first user property of this name.
    User(String),
    /// The content type.
    ContentType,
    /// The response topic.
    ResponseTopic,
    /// The correlation data: bytes, shown as hexadecimal text.
    CorrelationData,
}

/// Before the name of a user property.
const USER: &str = "user:";

/// The properties that have a name in the standard, as they are written in a configuration.
const NAMED: [(&str, Property, u8); 3] = [
    ("mqtt:content_type", Property::ContentType, CONTENT_TYPE),
    ("mqtt:response_topic", Property::ResponseTopic, RESPONSE_TOPIC),
    ("mqtt:correlation_data", Property::CorrelationData, CORRELATION_DATA),
];

const PAYLOAD_FORMAT: u8 = 0x01;
const MESSAGE_EXPIRY: u8 = 0x02;
const CONTENT_TYPE: u8 = 0x03;
const RESPONSE_TOPIC: u8 = 0x08;
const CORRELATION_DATA: u8 = 0x09;
const SUBSCRIPTION_ID: u8 = 0x0b;
const TOPIC_ALIAS: u8 = 0x23;
const USER_PROPERTY: u8 = 0x26;

impl Property {
    /// Reads `user:NAME` or one of the names of the standard (`mqtt:content_type`, ...).
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(name) = text.strip_prefix(USER) {
            return (!name.is_empty()).then(|| Self::User(name.to_owned()));
        }
        NAMED.iter().find(|(name, ..)| *name == text).map(|(_, property, _)| property.clone())
    }

    /// The names that are fixed.
    pub fn names() -> impl Iterator<Item = &'static str> + Clone {
        NAMED.iter().map(|(name, ..)| *name)
    }

    /// Whether its value is bytes and not text.
    pub fn is_binary(&self) -> bool {
        matches!(self, Self::CorrelationData)
    }

    fn is(&self, item: &Item<'_>) -> bool {
        match self {
            Self::User(name) => item.id == USER_PROPERTY && item.name == name.as_bytes(),
            other => NAMED.iter().any(|(_, p, id)| p == other && *id == item.id),
        }
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(name) => write!(f, "{USER}{name}"),
            other => {
                let named = NAMED.iter().find(|(_, property, _)| property == other);
                f.write_str(named.map_or("", |(name, ..)| name))
            }
        }
    }
}

/// One property with a value that is wanted somewhere.
struct Item<'a> {
    id: u8,
    /// Of a user property.
    name: &'a [u8],
    value: &'a [u8],
}

/// Looks up `wanted` in a block of properties; the value of each that is there, in their order.
/// A block that is malformed anywhere has none.
pub fn find<'a>(block: &'a [u8], wanted: &[Property], found: &mut [Option<&'a [u8]>]) {
    found.fill(None);
    let mut rest = block;
    while !rest.is_empty() {
        let Some(item) = next(&mut rest) else {
            found.fill(None);
            return;
        };
        for (property, place) in wanted.iter().zip(found.iter_mut()) {
            if place.is_none() && property.is(&item) {
                *place = Some(item.value);
            }
        }
    }
}

/// Takes the next property; `None` if it is malformed.
fn next<'a>(rest: &mut &'a [u8]) -> Option<Item<'a>> {
    let id = take(rest, 1)?[0];
    let (name, value): (&[u8], &[u8]) = match id {
        PAYLOAD_FORMAT => (&[], take(rest, 1)?),
        MESSAGE_EXPIRY => (&[], take(rest, 4)?),
        TOPIC_ALIAS => (&[], take(rest, 2)?),
        SUBSCRIPTION_ID => {
            let more = rest.iter().take(4).position(|byte| byte & 0x80 == 0)?;
            (&[], take(rest, more + 1)?)
        }
        CORRELATION_DATA => (&[], counted(rest)?),
        CONTENT_TYPE | RESPONSE_TOPIC => (&[], text(rest)?),
        USER_PROPERTY => (text(rest)?, text(rest)?),
        _ => return None,
    };
    Some(Item { id, name, value })
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(count)?;
    *rest = after;
    Some(taken)
}

/// Bytes after their length in two bytes.
fn counted<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take(rest, 2)?;
    take(rest, usize::from(u16::from_be_bytes([length[0], length[1]])))
}

fn text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    counted(rest).filter(|bytes| std::str::from_utf8(bytes).is_ok())
}

/// The block that has these values; a value of more than 65,535 bytes is cut, for no PUBLISH can
/// carry it.
pub fn encode<'a>(values: impl IntoIterator<Item = (&'a Property, &'a [u8])>) -> Vec<u8> {
    fn put(out: &mut Vec<u8>, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(usize::from(u16::MAX))];
        out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
        out.extend_from_slice(bytes);
    }
    let mut out = Vec::new();
    for (property, value) in values {
        let named = NAMED.iter().find(|(_, p, _)| p == property);
        out.push(named.map_or(USER_PROPERTY, |(_, _, id)| *id));
        if let Property::User(name) = property {
            put(&mut out, name.as_bytes());
        }
        put(&mut out, value);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user(name: &str) -> Property {
        Property::User(name.to_owned())
    }

    fn all(block: &[u8]) -> Vec<Option<Vec<u8>>> {
        let wanted = [
            user("a"),
            Property::ContentType,
            Property::ResponseTopic,
            Property::CorrelationData,
            user("none"),
        ];
        let mut found = vec![None; wanted.len()];
        find(block, &wanted, &mut found);
        found.into_iter().map(|value| value.map(<[u8]>::to_vec)).collect()
    }

    /// Written by hand from section 3.3.2.3 of the standard: all properties of a PUBLISH.
    const BLOCK: &[u8] = b"\x01\x01\x02\0\0\0\x3c\x23\0\x05\x08\0\x03r/t\x09\0\x02\xff\0\
        \x26\0\x01b\0\x01x\x26\0\x01a\0\x02\xc3\xa9\x26\0\x01a\0\x01y\x0b\x80\x80\x01\x03\0\x01j";

    #[test]
    fn every_property_is_found_and_the_first_of_a_name_counts() {
        let text = |text: &str| Some(text.as_bytes().to_vec());
        let correlation = Some(vec![0xff, 0]);
        assert_eq!(all(BLOCK), [text("é"), text("j"), text("r/t"), correlation, None]);
        assert_eq!(all(&[]), vec![None; 5]);
    }

    #[test]
    fn a_malformed_block_has_no_properties() {
        let none = vec![None; 5];
        let whole: Vec<usize> = vec![0, 2, 7, 10, 16, 21, 28, 36, 43, 47, BLOCK.len()];
        for end in 0..BLOCK.len() {
            let cut = all(&BLOCK[..end]);
            assert!(cut == none || whole.contains(&end), "{end}: {cut:?}");
        }
        for odd in [
            &b"\x03\0\x01j\x7f"[..],
            b"\x03\0\x01\xff",
            b"\x26\0\x01a\0\x01\xff\x03\0\x01j",
            b"\x0b\xff\xff\xff\xff\x01\x03\0\x01j",
        ] {
            assert_eq!(all(odd), none, "{odd:?}");
        }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in ["user:serial", "user:a b:c", "mqtt:content_type", "mqtt:correlation_data"] {
            assert_eq!(Property::parse(text).map(|p| p.to_string()).as_deref(), Some(text));
        }
        for text in ["user:", "mqtt:nothing", "serial", ""] {
            assert_eq!(Property::parse(text), None, "{text}");
        }
        assert_eq!(Property::names().count(), 3);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            all(&bytes);
        }

        #[test]
        fn what_was_encoded_is_found(
            value in ".{0,20}", topic in ".{0,20}",
            bytes in prop::collection::vec(any::<u8>(), 0..20)
        ) {
            let list = [
                (&user("z"), value.as_bytes()),
                (&user("a"), value.as_bytes()),
                (&Property::ResponseTopic, topic.as_bytes()),
                (&Property::CorrelationData, &bytes[..]),
            ];
            let found = all(&encode(list));
            let bytes_of = |text: &str| Some(text.as_bytes().to_vec());
            prop_assert_eq!(found, [bytes_of(&value), None, bytes_of(&topic), Some(bytes), None]);
        }
    }
}
