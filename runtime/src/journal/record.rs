//! What journal frames say: runs of messages, ticks, and the names of the sources.
//!
//! Invariant: `decode(encode(x)) == x` for every run whose positions lie inside its buffer. The
//! index is packed (a few bytes per message, positions only where they do not simply follow each
//! other) and the buffer is stored as it is, so that decoding shares it and copies nothing.

use bytes::Bytes;
use tidegate_operators::{MessageMeta, Messages, Tick};

use super::bytes::{Reader, put_bytes, put_signed, put_varint};

/// Upper bound of the packed index entry of one message, bytes: flags, eight 32-bit varints, packet
/// id, time difference, more flags and session.
pub(crate) const INDEX_ENTRY_BYTES_MAX: usize = 1 + 8 * 5 + 3 + 10 + 1 + 3;
/// Upper bound of what a message body has besides index and data.
pub(crate) const MESSAGES_FIXED_BYTES_MAX: usize = 40;

const QOS_MASK: u8 = 0b11;
const DUPLICATE: u8 = 1 << 2;
const RETAIN: u8 = 1 << 3;
const PACKET_ID: u8 = 1 << 4;
/// Topic, payload and client id lie behind each other, behind those of the message before.
const FOLLOWS: u8 = 1 << 5;
/// There are MQTT 5 properties.
const PROPERTIES: u8 = 1 << 6;
/// A byte of further flags and the session follow.
const MORE: u8 = 1 << 7;
/// Further flags: what a source says of its sessions; what cannot be a message.
const EVENT: u8 = 1;
const REFUSED: u8 = 2;

/// The seal of an epoch, with what is needed to prove that a replay saw the same messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) tick: Tick,
    pub(crate) messages: u64,
    /// xxh3 over the bodies of the epoch's message frames.
    pub(crate) hash: u64,
}

pub(crate) fn put_messages(out: &mut Vec<u8>, messages: &Messages) {
    put_varint(out, messages.source.into());
    put_varint(out, messages.first_offset);
    put_varint(out, messages.index.len() as u64);
    let (mut next_start, mut last_us) = (0, 0i64);
    for meta in &messages.index {
        let follows = follows(meta, next_start);
        let mut flags = meta.qos & QOS_MASK;
        flags |= if meta.duplicate { DUPLICATE } else { 0 };
        flags |= if meta.retain { RETAIN } else { 0 };
        flags |= if meta.packet_id != 0 { PACKET_ID } else { 0 };
        flags |= if follows { FOLLOWS } else { 0 };
        flags |= if meta.properties_len != 0 { PROPERTIES } else { 0 };
        let more = meta.event || meta.refused || meta.session != 0;
        flags |= if more { MORE } else { 0 };
        out.push(flags);
        if more {
            let refused = if meta.refused { REFUSED } else { 0 };
            out.push(if meta.event { EVENT } else { 0 } | refused);
            put_varint(out, meta.session.into());
        }
        for len in [meta.topic_len, meta.payload_len, meta.client_len] {
            put_varint(out, len.into());
        }
        if meta.properties_len != 0 {
            put_varint(out, meta.properties_len.into());
        }
        if !follows {
            for start in [meta.topic_start, meta.payload_start, meta.client_start] {
                put_varint(out, start.into());
            }
            if meta.properties_len != 0 {
                put_varint(out, meta.properties_start.into());
            }
        }
        if meta.packet_id != 0 {
            put_varint(out, meta.packet_id.into());
        }
        put_signed(out, meta.received_us.wrapping_sub(last_us));
        last_us = meta.received_us;
        next_start = end_of(meta);
    }
    put_bytes(out, &messages.data);
}

fn follows(meta: &MessageMeta, start: u32) -> bool {
    meta.topic_start == start
        && meta.payload_start == start.wrapping_add(meta.topic_len)
        && meta.client_start == meta.payload_start.wrapping_add(meta.payload_len)
        && (meta.properties_len == 0
            || meta.properties_start == meta.client_start.wrapping_add(meta.client_len))
}

/// Where the next message begins if it follows.
fn end_of(meta: &MessageMeta) -> u32 {
    meta.client_start.wrapping_add(meta.client_len).wrapping_add(meta.properties_len)
}

/// Reads a message body; the result shares `body`. `None` where the body is not valid.
pub(crate) fn get_messages(body: &Bytes) -> Option<Messages> {
    let mut reader = Reader::new(body);
    let source = u16::try_from(reader.varint()?).ok()?;
    let first_offset = reader.varint()?;
    let count = usize::try_from(reader.varint()?).ok()?;
    // Each entry takes five bytes at least: a wrong count cannot make us allocate more than that.
    let mut index = Vec::with_capacity(count.min(reader.remaining() / 5));
    let (mut next_start, mut last_us) = (0u32, 0i64);
    for _ in 0..count {
        let meta = get_meta(&mut reader, next_start, last_us)?;
        last_us = meta.received_us;
        next_start = end_of(&meta);
        index.push(meta);
    }
    let data = reader.bytes()?;
    let inside = |start: u32, len: u32| u64::from(start) + u64::from(len) <= data.len() as u64;
    let valid = reader.remaining() == 0
        && index.iter().all(|m| {
            inside(m.topic_start, m.topic_len)
                && inside(m.payload_start, m.payload_len)
                && inside(m.client_start, m.client_len)
                && inside(m.properties_start, m.properties_len)
        });
    let data = body.slice(body.len() - data.len()..);
    valid.then_some(Messages { source, first_offset, data, index })
}

fn get_meta(reader: &mut Reader<'_>, next_start: u32, last_us: i64) -> Option<MessageMeta> {
    let flags = reader.byte()?;
    let (more, session) = match flags & MORE != 0 {
        true => (reader.byte()?, u16::try_from(reader.varint()?).ok()?),
        false => (0, 0),
    };
    let (topic_len, payload_len, client_len) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let properties_len = if flags & PROPERTIES != 0 { reader.u32()? } else { 0 };
    let (topic_start, payload_start, client_start) = if flags & FOLLOWS != 0 {
        let payload_start = next_start.checked_add(topic_len)?;
        (next_start, payload_start, payload_start.checked_add(payload_len)?)
    } else {
        (reader.u32()?, reader.u32()?, reader.u32()?)
    };
    let properties_start = match flags & (PROPERTIES | FOLLOWS) == PROPERTIES {
        true => reader.u32()?,
        false => client_start.checked_add(client_len)?,
    };
    let packet_id = if flags & PACKET_ID != 0 { u16::try_from(reader.varint()?).ok()? } else { 0 };
    Some(MessageMeta {
        topic_start,
        topic_len,
        payload_start,
        payload_len,
        client_start,
        client_len,
        properties_start,
        properties_len,
        received_us: last_us.wrapping_add(reader.signed()?),
        packet_id,
        qos: flags & QOS_MASK,
        duplicate: flags & DUPLICATE != 0,
        known: false,
        retain: flags & RETAIN != 0,
        event: more & EVENT != 0,
        refused: more & REFUSED != 0,
        session,
    })
}

/// The epoch is in the frame header.
pub(crate) fn put_seal(out: &mut Vec<u8>, seal: &Seal) {
    put_signed(out, seal.tick.time_us);
    put_varint(out, seal.messages);
    out.extend_from_slice(&seal.hash.to_le_bytes());
}

pub(crate) fn get_seal(epoch: u64, body: &[u8]) -> Option<Seal> {
    let (rest, hash) = body.split_last_chunk::<8>()?;
    let mut reader = Reader::new(rest);
    let time_us = reader.signed()?;
    let messages = reader.varint()?;
    (reader.remaining() == 0).then_some(Seal {
        tick: Tick { epoch, time_us },
        messages,
        hash: u64::from_le_bytes(*hash),
    })
}

pub(crate) fn put_sources(out: &mut Vec<u8>, names: &[String]) {
    put_varint(out, names.len() as u64);
    for name in names {
        put_bytes(out, name.as_bytes());
    }
}

pub(crate) fn get_sources(body: &[u8]) -> Option<Vec<String>> {
    let mut reader = Reader::new(body);
    let count = reader.varint()?;
    if count > u64::from(u16::MAX) + 1 {
        return None;
    }
    let names = (0..count).map(|_| reader.text()).collect::<Option<Vec<_>>>()?;
    (reader.remaining() == 0).then_some(names)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn any_messages() -> impl Strategy<Value = Messages> {
        let data = proptest::collection::vec(any::<u8>(), 0..300);
        let session = prop_oneof![Just(0u16), any::<u16>()];
        let meta = (
            any::<[u32; 8]>(),
            any::<i64>(),
            any::<[u16; 1]>(),
            session,
            0..4u8,
            any::<[bool; 5]>(),
        );
        (data, any::<u16>(), any::<u64>(), proptest::collection::vec(meta, 0..20)).prop_map(
            |(data, source, first_offset, metas)| {
                let len = data.len() as u32;
                let mut next = 0;
                let mut index = Vec::new();
                for (places, received_us, [packet_id], session, qos, flags) in metas {
                    let [duplicate, retain, follow, event, refused] = flags;
                    let place = |at: usize| {
                        let start = places[at] % (len + 1);
                        (start, places[at + 1] % (len - start + 1))
                    };
                    let (mut topic_start, mut topic_len) = place(0);
                    let (mut payload_start, mut payload_len) = place(2);
                    let (mut client_start, mut client_len) = place(4);
                    let (mut properties_start, mut properties_len) = place(6);
                    if follow {
                        let mut put = |want: u32| {
                            let take = (want % 9).min(len - next);
                            next += take;
                            (next - take, take)
                        };
                        (topic_start, topic_len) = put(places[0]);
                        (payload_start, payload_len) = put(places[1]);
                        (client_start, client_len) = put(places[2]);
                        (properties_start, properties_len) = put(places[3]);
                    }
                    if properties_len == 0 {
                        properties_start = client_start + client_len;
                    }
                    index.push(MessageMeta {
                        topic_start,
                        topic_len,
                        payload_start,
                        payload_len,
                        client_start,
                        client_len,
                        properties_start,
                        properties_len,
                        received_us,
                        packet_id,
                        qos,
                        duplicate,
                        known: false,
                        retain,
                        event,
                        refused,
                        session,
                    });
                }
                Messages { source, first_offset, data: Bytes::from(data), index }
            },
        )
    }

    proptest! {
        #[test]
        fn messages_come_back(messages in any_messages()) {
            let mut out = Vec::new();
            put_messages(&mut out, &messages);
            let bound = messages.data.len() + messages.len() * INDEX_ENTRY_BYTES_MAX
                + MESSAGES_FIXED_BYTES_MAX;
            prop_assert!(out.len() <= bound);
            prop_assert_eq!(get_messages(&Bytes::from(out)), Some(messages));
        }

        #[test]
        fn seals_and_names_come_back(epoch: u64, time_us: i64, messages: u64, hash: u64,
            names in proptest::collection::vec(".{0,12}", 0..5),
        ) {
            let seal = Seal { tick: Tick { epoch, time_us }, messages, hash };
            let mut out = Vec::new();
            put_seal(&mut out, &seal);
            prop_assert_eq!(get_seal(epoch, &out), Some(seal));
            out.clear();
            put_sources(&mut out, &names);
            prop_assert_eq!(get_sources(&out), Some(names));
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(
            body in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let _ = get_seal(1, &body);
            let _ = get_sources(&body);
            if let Some(messages) = get_messages(&Bytes::from(body)) {
                for i in 0..messages.len() {
                    let _ = (messages.topic(i), messages.payload(i), messages.client(i));
                }
            }
        }
    }

    #[test]
    fn a_usual_message_costs_ten_bytes_of_index_at_most() {
        let mut builder = tidegate_operators::MessagesBuilder::default();
        for i in 0..100 {
            let meta = MessageMeta {
                received_us: 1_700_000_000_000_000 + i * 500,
                packet_id: 300,
                qos: 1,
                ..MessageMeta::default()
            };
            builder.push(b"plant/a/b", &[b'x'; 150], b"gateway-1", meta);
        }
        let messages = builder.finish(1, 5);
        let mut out = Vec::new();
        put_messages(&mut out, &messages);
        assert!(out.len() <= messages.data.len() + 1000 + MESSAGES_FIXED_BYTES_MAX);
    }
}
