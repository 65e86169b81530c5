//! The packets that make up nearly all traffic, decoded in place: frames, PUBLISH and
//! acknowledgements. Everything rarer goes through the codec crates.
//!
//! No function here copies, allocates or panics on any input, and nothing is decoded before the
//! length in the fixed header was found to be within the limit.

use rumqttc_v5::mqttbytes::v5::DisconnectReasonCode as Reason;
use tidegate_operators::MessageMeta;

use super::limits::{TOPIC_BYTES_MAX, TOPIC_LEVELS_MAX};
use super::properties::{self, Properties};

/// Protocol version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// 3.1.1, protocol level 4.
    V3,
    /// 5.
    V5,
}

/// Packet types: the upper half of the first byte.
pub(crate) mod kind {
    pub(crate) const CONNECT: u8 = 1;
    pub(crate) const CONNACK: u8 = 2;
    pub(crate) const PUBLISH: u8 = 3;
    pub(crate) const PUBACK: u8 = 4;
    pub(crate) const PUBREC: u8 = 5;
    pub(crate) const PUBREL: u8 = 6;
    pub(crate) const PUBCOMP: u8 = 7;
    pub(crate) const SUBSCRIBE: u8 = 8;
    pub(crate) const SUBACK: u8 = 9;
    pub(crate) const UNSUBSCRIBE: u8 = 10;
    pub(crate) const UNSUBACK: u8 = 11;
    pub(crate) const PINGREQ: u8 = 12;
    pub(crate) const PINGRESP: u8 = 13;
    pub(crate) const DISCONNECT: u8 = 14;
    pub(crate) const AUTH: u8 = 15;
}

pub(crate) const PINGREQ: [u8; 2] = [0xC0, 0];
pub(crate) const PINGRESP: [u8; 2] = [0xD0, 0];
pub(crate) const PUBACK: u8 = 0x40;
pub(crate) const PUBREC: u8 = 0x50;
pub(crate) const PUBREL: u8 = 0x62;
pub(crate) const PUBCOMP: u8 = 0x70;

/// What the other side did wrong; its connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Violation {
    /// Reason code for a version 5 DISCONNECT.
    pub(crate) reason: Reason,
    /// For our log.
    pub(crate) text: &'static str,
}

/// A [`Violation`] in one word, for `return Err(...)`.
pub(crate) fn violation<T>(reason: Reason, text: &'static str) -> Result<T, Violation> {
    Err(Violation { reason, text })
}

/// Where one packet lies at the start of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// First byte: type and flags.
    pub(crate) byte1: u8,
    /// Bytes before the body.
    pub(crate) header_len: usize,
    /// Bytes of the whole packet.
    pub(crate) total_len: usize,
}

impl Frame {
    pub(crate) fn kind(self) -> u8 {
        self.byte1 >> 4
    }

    pub(crate) fn flags(self) -> u8 {
        self.byte1 & 0x0F
    }

    /// Whether its length is written in more bytes than need be: wrong in MQTT 5 (1.5.5-1).
    pub(crate) fn is_padded(self) -> bool {
        let length_len = self.header_len - 1;
        length_len > 1 && self.total_len - self.header_len < 1 << (7 * (length_len - 1))
    }
}

/// Looks for a packet at the start of `bytes`; `None` if more must be read first. The announced
/// length is checked as soon as it is known.
pub(crate) fn frame(bytes: &[u8], packet_bytes_max: usize) -> Result<Option<Frame>, Violation> {
    let Some(frame) = header(bytes)? else { return Ok(None) };
    if frame.total_len > packet_bytes_max {
        return violation(Reason::PacketTooLarge, "a packet is larger than allowed");
    }
    Ok((bytes.len() >= frame.total_len).then_some(frame))
}

/// What the fixed header at the start of `bytes` announces, however much of it is there.
pub(crate) fn header(bytes: &[u8]) -> Result<Option<Frame>, Violation> {
    let Some((&byte1, rest)) = bytes.split_first() else { return Ok(None) };
    let Some((body_len, length_len)) = var_int(rest)? else { return Ok(None) };
    let header_len = 1 + length_len;
    Ok(Some(Frame { byte1, header_len, total_len: header_len + body_len }))
}

/// A variable byte integer and its length; `None` if bytes are missing.
fn var_int(bytes: &[u8]) -> Result<Option<(usize, usize)>, Violation> {
    let mut value = 0;
    for (i, &byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok(Some((value, i + 1)));
        }
    }
    if bytes.len() >= 4 {
        return violation(Reason::MalformedPacket, "a length of more than four bytes");
    }
    Ok(None)
}

/// [`var_int`] in its shortest form, which MQTT 5 demands (1.5.5-1).
pub(crate) fn strict_var_int(bytes: &[u8]) -> Result<Option<(usize, usize)>, Violation> {
    let found = var_int(bytes)?;
    if let Some((_, len)) = found
        && len > 1
        && bytes[len - 1] == 0
    {
        return violation(Reason::MalformedPacket, "a length that is longer than need be");
    }
    Ok(found)
}

/// A PUBLISH inside the read buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Publish<'a> {
    /// Empty if only the alias says it.
    pub(crate) topic: &'a [u8],
    pub(crate) payload: &'a [u8],
    /// MQTT 5, as they were sent.
    pub(crate) properties: &'a [u8],
    /// 0 at QoS 0.
    pub(crate) packet_id: u16,
    /// 0 is none.
    pub(crate) alias: u16,
    /// Of the message, seconds.
    pub(crate) expiry_s: Option<u32>,
    pub(crate) user_properties: usize,
    /// Only a broker may name the subscription.
    pub(crate) has_subscription_id: bool,
    pub(crate) qos: u8,
    pub(crate) duplicate: bool,
    pub(crate) retain: bool,
}

impl Publish<'_> {
    /// The meta data to journal; positions are filled in by the builder.
    pub(crate) fn meta(&self, received_us: i64) -> MessageMeta {
        MessageMeta {
            received_us,
            packet_id: self.packet_id,
            qos: self.qos,
            duplicate: self.duplicate,
            retain: self.retain,
            ..MessageMeta::default()
        }
    }
}

/// Decodes the body of a PUBLISH to someone who has allowed no topic aliases.
pub(crate) fn publish(version: Version, flags: u8, body: &[u8]) -> Result<Publish<'_>, Violation> {
    let publish = publish_with_alias(version, flags, body)?;
    if publish.alias != 0 {
        return violation(Reason::TopicAliasInvalid, "PUBLISH with a topic alias; none is allowed");
    }
    Ok(publish)
}

/// Decodes the body of a PUBLISH. The topic is checked, unless it is left to the alias.
pub(crate) fn publish_with_alias(
    version: Version,
    flags: u8,
    body: &[u8],
) -> Result<Publish<'_>, Violation> {
    let qos = (flags >> 1) & 3;
    let duplicate = flags & 8 != 0;
    if qos == 3 {
        return violation(Reason::MalformedPacket, "PUBLISH with QoS 3");
    }
    if qos == 0 && duplicate {
        return violation(Reason::MalformedPacket, "PUBLISH with QoS 0 and DUP");
    }
    let (topic, mut rest) = string(body)?;
    let mut packet_id = 0;
    if qos > 0 {
        packet_id = self::packet_id(rest)?;
        rest = &rest[2..];
    }
    let mut publish = Publish {
        topic,
        payload: rest,
        properties: &[],
        packet_id,
        alias: 0,
        expiry_s: None,
        user_properties: 0,
        has_subscription_id: false,
        qos,
        duplicate,
        retain: flags & 1 != 0,
    };
    if version == Version::V5 {
        (publish.properties, publish.payload) = properties::split(rest)?;
        publish.read_properties()?;
    }
    if publish.alias == 0 || !topic.is_empty() {
        check_topic(topic)?;
    }
    Ok(publish)
}

impl Publish<'_> {
    fn read_properties(&mut self) -> Result<(), Violation> {
        let mut properties = Properties::new(self.properties, properties::PUBLISH);
        while let Some((id, value)) = properties.next()? {
            match id {
                properties::id::TOPIC_ALIAS => self.alias = value.number() as u16,
                properties::id::MESSAGE_EXPIRY => self.expiry_s = Some(value.number()),
                properties::id::SUBSCRIPTION_ID => self.has_subscription_id = true,
                _ => {}
            }
        }
        self.user_properties = properties.user_properties();
        Ok(())
    }
}

/// The packet id at the start of a body.
pub(crate) fn packet_id(body: &[u8]) -> Result<u16, Violation> {
    let Some(&[high, low]) = body.get(..2) else { return short() };
    match u16::from_be_bytes([high, low]) {
        0 => violation(Reason::ProtocolError, "packet id 0"),
        id => Ok(id),
    }
}

/// Appends an acknowledgement with success; both versions have this form.
pub(crate) fn put_ack(out: &mut Vec<u8>, byte1: u8, packet_id: u16) {
    let [high, low] = packet_id.to_be_bytes();
    out.extend_from_slice(&[byte1, 2, high, low]);
}

/// Appends a remaining length.
pub(crate) fn put_length(out: &mut Vec<u8>, mut len: usize) {
    while len >= 0x80 {
        out.push((len & 0x7F) as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
}

/// Appends a length-prefixed text of at most 65,535 bytes.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    debug_assert!(text.len() <= usize::from(u16::MAX));
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Bounds of our own on a topic that is valid MQTT.
pub(crate) fn check_topic_limits(topic: &[u8]) -> Result<(), Violation> {
    if topic.len() > TOPIC_BYTES_MAX {
        return violation(Reason::TopicNameInvalid, "a topic is longer than allowed");
    }
    if topic.iter().filter(|&&b| b == b'/').count() >= TOPIC_LEVELS_MAX {
        return violation(Reason::TopicNameInvalid, "a topic has more levels than allowed");
    }
    Ok(())
}

pub(crate) fn check_topic(topic: &[u8]) -> Result<(), Violation> {
    if topic.is_empty() {
        return violation(Reason::ProtocolError, "an empty topic");
    }
    if topic.iter().any(|b| matches!(b, b'+' | b'#')) {
        return violation(Reason::TopicNameInvalid, "a topic with a wildcard");
    }
    check_text(topic)
}

pub(crate) fn check_text(text: &[u8]) -> Result<(), Violation> {
    if text.contains(&0) || std::str::from_utf8(text).is_err() {
        return violation(Reason::MalformedPacket, "a text is not UTF-8 without NUL");
    }
    Ok(())
}

/// A length-prefixed run of bytes and what follows.
pub(crate) fn string(bytes: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    let Some(&[high, low]) = bytes.get(..2) else { return short() };
    let len = usize::from(u16::from_be_bytes([high, low]));
    match bytes[2..].split_at_checked(len) {
        Some(parts) => Ok(parts),
        None => short(),
    }
}

pub(crate) fn short<T>() -> Result<T, Violation> {
    violation(Reason::MalformedPacket, "a packet ends too early")
}

#[cfg(test)]
mod tests;
