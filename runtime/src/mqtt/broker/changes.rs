//! Changes that must survive, on their way from the broker's state to the store.
//!
//! They are numbered: the changes of one call to the broker share a number, and once the store
//! has committed that number, they are on disk. Methods do nothing for a session with the key 0,
//! which is not stored, and without a store.

use std::sync::Arc;

use tokio::sync::Notify;

use super::message::Message;
use super::records::{
    Key, filter_key, filter_value, message_key, message_value, queued_key, queued_value,
    received_key, release_key, retained_key, sent_key, session_key, session_value,
};
use super::session::{Queued, Session};
use super::subscriptions::Entry;

#[derive(Debug)]
pub(super) enum Value {
    Bytes(Vec<u8>),
    /// Encoded by the store's thread.
    Message(Arc<Message>),
}

impl Value {
    pub(super) fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Message(message) => message_value(&message),
        }
    }
}

#[derive(Debug)]
pub(super) enum Change {
    /// `fresh`: the key is used for the first time, so that taking it away before the commit
    /// leaves nothing to write.
    Put {
        value: Value,
        fresh: bool,
    },
    Remove,
}

impl Change {
    /// The value that there is then, if there is one.
    pub(super) fn into_bytes(self) -> Option<Vec<u8>> {
        match self {
            Self::Put { value, .. } => Some(value.into_bytes()),
            Self::Remove => None,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) enabled: bool,
    pub(super) list: Vec<(Key, Change)>,
    /// To tell after the commit.
    pub(super) wakes: Vec<Arc<Notify>>,
    /// Whether somebody waits for the commit.
    pub(super) urgent: bool,
    /// The number of the last changes that were handed over.
    pub(super) number: u64,
    /// The newest epoch whose alerts are among these changes.
    pub(super) alerts_through: Option<u64>,
}

impl Changes {
    /// The number that the changes in the making will have.
    pub(super) fn next_number(&self) -> u64 {
        self.number + 1
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty() && self.wakes.is_empty() && self.alerts_through.is_none()
    }

    pub(super) fn wake(&mut self, wake: &Arc<Notify>) {
        self.wakes.push(Arc::clone(wake));
        self.urgent = true;
    }

    pub(super) fn put_session(&mut self, session: &Session, left_at_ms: u64) {
        let value = || Value::Bytes(session_value(session, left_at_ms));
        self.put(session.key, session_key, value, false);
    }

    pub(super) fn remove_session(&mut self, key: u64) {
        self.remove(key, session_key);
        self.remove(key, sent_key);
    }

    pub(super) fn put_filter(&mut self, key: u64, filter: &str, entry: Entry) {
        let value = || Value::Bytes(filter_value(entry));
        self.put(key, |key| filter_key(key, filter), value, false);
    }

    pub(super) fn remove_filter(&mut self, key: u64, filter: &str) {
        self.remove(key, |key| filter_key(key, filter));
    }

    pub(super) fn put_queued(&mut self, key: u64, queued: &Queued) {
        if !self.applies(key) || queued.qos == 0 {
            return;
        }
        let message = &queued.message;
        if message.store_ref() {
            let value = || Value::Message(Arc::clone(message));
            self.put(key, |_| message_key(message.id), value, true);
        }
        let value = || Value::Bytes(queued_value(queued));
        self.put(key, |key| queued_key(key, queued.seq), value, true);
    }

    pub(super) fn remove_queued(&mut self, key: u64, queued: &Queued) {
        if !self.applies(key) || queued.qos == 0 {
            return;
        }
        self.remove(key, |key| queued_key(key, queued.seq));
        if queued.message.store_unref() {
            self.remove(key, |_| message_key(queued.message.id));
        }
    }

    pub(super) fn put_release(&mut self, key: u64, seq: u64) {
        self.put(key, |key| release_key(key, seq), || Value::Bytes(Vec::new()), true);
    }

    pub(super) fn remove_release(&mut self, key: u64, seq: u64) {
        self.remove(key, |key| release_key(key, seq));
    }

    pub(super) fn put_sent(&mut self, key: u64, seq: u64) {
        self.put(key, sent_key, || Value::Bytes(seq.to_be_bytes().to_vec()), false);
    }

    pub(super) fn put_received(&mut self, key: u64, packet_id: u16) {
        let value = || Value::Bytes(Vec::new());
        self.put(key, |key| received_key(key, packet_id), value, false);
    }

    pub(super) fn remove_received(&mut self, key: u64, packet_id: u16) {
        self.remove(key, |key| received_key(key, packet_id));
    }

    pub(super) fn put_retained(&mut self, message: &Arc<Message>) {
        let value = || Value::Message(Arc::clone(message));
        self.put(u64::MAX, |_| retained_key(message.topic()), value, false);
    }

    pub(super) fn remove_retained(&mut self, topic: &[u8]) {
        self.remove(u64::MAX, |_| retained_key(topic));
    }

    /// Takes a message away to which no queue refers any more.
    pub(super) fn remove_message(&mut self, id: u64) {
        self.remove(u64::MAX, |_| message_key(id));
    }

    /// Whether a session is stored.
    pub(super) fn applies(&self, key: u64) -> bool {
        self.enabled && key != 0
    }

    fn put(&mut self, key: u64, name: impl Fn(u64) -> Key, value: impl Fn() -> Value, fresh: bool) {
        if self.applies(key) {
            self.list.push((name(key), Change::Put { value: value(), fresh }));
        }
    }

    fn remove(&mut self, key: u64, name: impl Fn(u64) -> Key) {
        if self.applies(key) {
            self.list.push((name(key), Change::Remove));
        }
    }
}
