//! What the store holds: one key and one value for each thing that must survive.

use std::sync::Arc;

use super::message::{Ids, Message};
use super::session::{Queued, Session};
use super::subscriptions::{Entry, Options};
use super::types::Publication;

/// Changes when a file of this version can no longer be read by an older program, or the reverse.
pub(super) const FORMAT: u64 = 1;

/// The first byte of a key says what it is for. Messages sort before what refers to them.
mod tag {
    pub(super) const MESSAGE: u8 = b'a';
    pub(super) const SESSION: u8 = b'b';
    pub(super) const FILTER: u8 = b'c';
    pub(super) const QUEUED: u8 = b'd';
    pub(super) const RELEASE: u8 = b'e';
    pub(super) const SENT: u8 = b'f';
    pub(super) const RECEIVED: u8 = b'g';
    pub(super) const RETAINED: u8 = b'h';
}

pub(super) type Key = Box<[u8]>;

fn key(tag: u8, number: u64, rest: &[u8]) -> Key {
    [&[tag], &number.to_be_bytes()[..], rest].concat().into()
}

pub(super) fn message_key(id: u64) -> Key {
    key(tag::MESSAGE, id, &[])
}

pub(super) fn session_key(session: u64) -> Key {
    key(tag::SESSION, session, &[])
}

pub(super) fn filter_key(session: u64, filter: &str) -> Key {
    key(tag::FILTER, session, filter.as_bytes())
}

pub(super) fn queued_key(session: u64, seq: u64) -> Key {
    key(tag::QUEUED, session, &seq.to_be_bytes())
}

pub(super) fn release_key(session: u64, seq: u64) -> Key {
    key(tag::RELEASE, session, &seq.to_be_bytes())
}

pub(super) fn sent_key(session: u64) -> Key {
    key(tag::SENT, session, &[])
}

pub(super) fn received_key(session: u64, packet_id: u16) -> Key {
    key(tag::RECEIVED, session, &packet_id.to_be_bytes())
}

pub(super) fn retained_key(topic: &[u8]) -> Key {
    [&[tag::RETAINED], topic].concat().into()
}

/// The value of a session; `left_at_ms` is 0 while it is connected.
pub(super) fn session_value(session: &Session, left_at_ms: u64) -> Vec<u8> {
    let mut out = session.expiry_s.to_be_bytes().to_vec();
    out.extend_from_slice(&left_at_ms.to_be_bytes());
    out.extend_from_slice(&(session.user.len() as u32).to_be_bytes());
    out.extend_from_slice(session.user.as_bytes());
    out.extend_from_slice(session.client_id.as_bytes());
    out
}

pub(super) fn filter_value(entry: Entry) -> Vec<u8> {
    let mut out = entry.identifier.to_be_bytes().to_vec();
    out.push(entry.options.0);
    out
}

pub(super) fn queued_value(queued: &Queued) -> Vec<u8> {
    let mut out = queued.message.id.to_be_bytes().to_vec();
    out.push(queued.qos | u8::from(queued.retain) << 2);
    out.extend_from_slice(&queued.cost.to_be_bytes());
    for id in queued.ids.as_slice() {
        out.extend_from_slice(&id.to_be_bytes());
    }
    out
}

pub(super) fn message_value(message: &Message) -> Vec<u8> {
    let (topic, properties) = (message.topic(), message.properties());
    let mut out = vec![message.qos | u8::from(message.retain) << 2];
    out.extend_from_slice(&message.expires_at_ms.unwrap_or(u64::MAX).to_be_bytes());
    for part in [topic, properties] {
        out.extend_from_slice(&(part.len() as u32).to_be_bytes());
        out.extend_from_slice(part);
    }
    out.extend_from_slice(message.payload());
    out
}

/// A record that was read back.
#[derive(Debug)]
pub(super) enum Record {
    Message(Arc<Message>),
    Session { key: u64, client_id: String, user: String, expiry_s: u32, left_at_ms: u64 },
    Filter { key: u64, filter: String, identifier: u32, options: Options },
    Queued { key: u64, seq: u64, message: u64, qos: u8, retain: bool, cost: u32, ids: Ids },
    Release { key: u64, seq: u64 },
    Sent { key: u64, seq: u64 },
    Received { key: u64, packet_id: u16 },
    Retained(Message),
}

/// Reads a record; `None` if it makes no sense.
pub(super) fn read(key: &[u8], value: &[u8]) -> Option<Record> {
    let mut k = Reader(key);
    let mut v = Reader(value);
    let tag = k.u8()?;
    if tag == tag::RETAINED {
        return Some(Record::Retained(read_message(0, v)?));
    }
    let key = k.u64()?;
    let record = match tag {
        tag::MESSAGE => Record::Message(Arc::new(read_message(key, v)?)),
        tag::SESSION => {
            let (expiry_s, left_at_ms) = (v.u32()?, v.u64()?);
            let user_len = v.u32()? as usize;
            let user = String::from_utf8(v.take(user_len)?.to_vec()).ok()?;
            let client_id = String::from_utf8(v.0.to_vec()).ok()?;
            Record::Session { key, client_id, user, expiry_s, left_at_ms }
        }
        tag::FILTER => {
            let filter = String::from_utf8(k.0.to_vec()).ok()?;
            let valid = super::filter::is_valid_filter(&filter);
            let (identifier, options) = (v.u32()?, Options(v.u8()?));
            valid.then_some(Record::Filter { key, filter, identifier, options })?
        }
        tag::QUEUED => {
            let (seq, message, flags, cost) = (k.u64()?, v.u64()?, v.u8()?, v.u32()?);
            let mut ids = Vec::new();
            while !v.0.is_empty() {
                ids.push(v.u32()?);
            }
            let (qos, retain, ids) = (flags & 3, flags & 4 != 0, Ids::new(&ids));
            Record::Queued { key, seq, message, qos, retain, cost, ids }
        }
        tag::RELEASE => Record::Release { key, seq: k.u64()? },
        tag::SENT => Record::Sent { key, seq: v.u64()? },
        tag::RECEIVED => {
            let packet_id = u16::from_be_bytes(k.0.try_into().ok()?);
            Record::Received { key, packet_id }
        }
        _ => return None,
    };
    Some(record)
}

fn read_message(id: u64, mut v: Reader<'_>) -> Option<Message> {
    let (flags, expires_at_ms) = (v.u8()?, v.u64()?);
    let topic_len = v.u32()? as usize;
    let topic = v.take(topic_len)?;
    let properties_len = v.u32()? as usize;
    let properties = v.take(properties_len)?;
    if topic.len() > usize::from(u16::MAX) || properties.len() + v.0.len() > 1 << 28 {
        return None;
    }
    let publication = Publication {
        topic: topic.to_vec().into(),
        properties: properties.to_vec().into(),
        payload: v.0.to_vec().into(),
        qos: flags & 3,
        retain: flags & 4 != 0,
        expires_at_ms: (expires_at_ms != u64::MAX).then_some(expires_at_ms),
    };
    Some(Message::new(&publication, id))
}

#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }
}
