//! A PUBLISH that cannot be taken: larger than our limit, or malformed. It is a row of
//! `system.rejects`.
//!
//! A broker sends what was not acknowledged again on every connection, so leaving because of it
//! would be leaving for ever. As long as its packet id can be read, it is acknowledged once an
//! event about it is in the journal; its bytes are passed over, and of them only some are kept. A
//! device, which sends what it likes, is shown the door.

use tidegate_operators::event::Untaken;

use crate::mqtt::subscriber::packets::shortened;
use crate::mqtt::wire::{PUBACK, PUBREC, Violation, header, kind};

/// As much of what follows the topic is kept: enough to see what it is.
const START_BYTES_MAX: usize = 1024;

/// What can be said of such a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable {
    /// First byte of the acknowledgement, and packet id; `None` at QoS 0.
    pub(crate) ack: Option<(u8, u16)>,
    /// The start of the topic, or of what stands in its place.
    pub(crate) topic: String,
    /// Bytes that follow it, as far as they were there.
    start: Vec<u8>,
}

impl Unreadable {
    /// What is told of it, for a packet of so many bytes.
    pub(crate) fn told(&self, packet_bytes: usize, malformed: bool, why: &str) -> Untaken {
        Untaken {
            topic: self.topic.clone(),
            client_id: String::new(),
            malformed,
            detail: why.to_owned(),
            start: self.start.clone(),
            packet_bytes: packet_bytes as u64,
        }
    }
}

/// What is told of a packet that is larger than allowed, as far as it is there: nothing if it is no
/// message.
pub(crate) fn too_large(bytes: &[u8], packet_bytes_max: usize) -> Option<Untaken> {
    let frame = header(bytes).ok()??;
    if frame.kind() != kind::PUBLISH {
        return None;
    }
    let known = Skip::begin(bytes).ok().flatten().map(|skip| skip.packet);
    let packet = known.unwrap_or(Unreadable { ack: None, topic: String::new(), start: vec![] });
    let why = format!("larger than {packet_bytes_max} bytes");
    Some(packet.told(frame.total_len, false, &why))
}

/// A packet that is being passed over.
#[derive(Debug)]
pub(crate) struct Skip {
    /// Bytes to come.
    pub(crate) left: usize,
    /// Bytes of the whole packet.
    pub(crate) total: usize,
    pub(crate) packet: Unreadable,
}

impl Skip {
    /// Begins with the packet at the start of `bytes`, of which only a part is there; `None` if
    /// more must be read first.
    pub(crate) fn begin(bytes: &[u8]) -> Result<Option<Self>, &'static str> {
        let frame = header(bytes).map_err(|violation: Violation| violation.text)?;
        let Some(frame) = frame else { return Ok(None) };
        if frame.kind() != kind::PUBLISH {
            return Err("a packet that is no PUBLISH is larger than allowed");
        }
        let there = bytes.len().min(frame.total_len);
        let body = bytes.get(frame.header_len..there).unwrap_or_default();
        let packet = unreadable(frame.flags(), body, frame.total_len - frame.header_len)?;
        Ok(packet.map(|packet| Self { left: frame.total_len, total: frame.total_len, packet }))
    }
}

/// Reads topic and packet id of a PUBLISH whose body has `body_len` bytes, of which `body` are
/// there; `None` if more must be read first.
pub(crate) fn unreadable(
    flags: u8,
    body: &[u8],
    body_len: usize,
) -> Result<Option<Unreadable>, &'static str> {
    let first = match (flags >> 1) & 3 {
        0 => None,
        1 => Some(PUBACK),
        2 => Some(PUBREC),
        _ => return Err("PUBLISH with QoS 3"),
    };
    let Some(&[high, low]) = body.get(..2) else {
        return if body_len < 2 { Err("a packet ends too early") } else { Ok(None) };
    };
    let topic_end = 2 + usize::from(u16::from_be_bytes([high, low]));
    let end = topic_end + if first.is_some() { 2 } else { 0 };
    if end > body_len {
        return Err("a packet ends too early");
    }
    let Some(start) = body.get(..end) else { return Ok(None) };
    let ack = match (first, &start[topic_end..]) {
        (Some(first), &[high, low]) => match u16::from_be_bytes([high, low]) {
            0 => return Err("packet id 0"),
            id => Some((first, id)),
        },
        _ => None,
    };
    let topic = shortened(&String::from_utf8_lossy(&start[2..topic_end]));
    let rest = &body[end..body.len().min(end + START_BYTES_MAX)];
    Ok(Some(Unreadable { ack, topic, start: rest.to_vec() }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_packet_id_is_found_as_soon_as_it_is_there() {
        // 1,000,000 bytes, QoS 1, topic "ab", id 0x0102.
        let packet = [0x32, 0xC0, 0x84, 0x3D, 0, 2, b'a', b'b', 1, 2, 9, 9];
        for n in 0..10 {
            assert!(Skip::begin(&packet[..n]).is_ok_and(|s| s.is_none()), "{n}");
        }
        let skip = Skip::begin(&packet).unwrap().unwrap();
        assert_eq!((skip.left, skip.packet.ack), (1_000_004, Some((PUBACK, 0x0102))));
        assert_eq!((skip.packet.topic.as_str(), &*skip.packet.start), ("ab", &[9, 9][..]));
        let told = too_large(&packet, 77).unwrap();
        assert_eq!((told.topic.as_str(), told.packet_bytes), ("ab", 1_000_004));
        assert!(told.detail.contains("77 bytes"), "{told:?}");
        // Of the header alone it is known that it is a message, and how long.
        let told = too_large(&packet[..4], 77).unwrap();
        assert_eq!((told.topic.as_str(), told.packet_bytes), ("", 1_000_004));
        assert_eq!(too_large(&[0x82, 0xC0, 0x84, 0x3D], 77), None, "a SUBSCRIBE");
    }

    #[test]
    fn what_cannot_be_acknowledged_is_an_error() {
        assert!(unreadable(6, &[0, 1, b'a'], 3).is_err(), "QoS 3");
        assert!(unreadable(2, &[0, 1, b'a', 0, 0], 5).is_err(), "id 0");
        assert!(unreadable(2, &[0, 9, b'a', 0, 1], 5).is_err(), "the topic is too long");
        assert!(unreadable(0, &[], 0).is_err());
        assert!(Skip::begin(&[0x82, 0xFF, 0xFF, 0xFF, 0x7F]).is_err(), "a huge SUBSCRIBE");
        assert!(Skip::begin(&[0x32, 0xFF, 0xFF, 0xFF, 0xFF]).is_err(), "a length of five bytes");
        let bad = unreadable(4, &[0, 2, 0xFF, 0xFE, 0, 7], 6).unwrap().unwrap();
        assert_eq!(bad.ack, Some((PUBREC, 7)));
    }
}
