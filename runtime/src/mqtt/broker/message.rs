//! A message as the broker keeps it, shared by all that have to deliver it.

use std::sync::atomic::{AtomicU32, Ordering};

use super::types::Publication;

/// What a message costs beside its bytes, wherever it waits: queue entry, counts, allocations.
pub(super) const OVERHEAD_BYTES: usize = 128;

/// One allocation of exactly the size, because what was given may be a small part of a large read
/// buffer, which must not stay in memory for it.
#[derive(Debug)]
pub(crate) struct Message {
    /// Topic, properties, payload.
    data: Box<[u8]>,
    topic_len: u32,
    payload_start: u32,
    pub(super) qos: u8,
    pub(super) retain: bool,
    pub(super) expires_at_ms: Option<u64>,
    /// Names it in the store.
    pub(super) id: u64,
    /// Queue entries in the store that refer to it.
    stored: AtomicU32,
}

impl Message {
    pub(super) fn new(publication: &Publication, id: u64) -> Self {
        let Publication { topic, payload, properties, qos, retain, expires_at_ms } = publication;
        let mut data = Vec::with_capacity(topic.len() + properties.len() + payload.len());
        data.extend_from_slice(topic);
        data.extend_from_slice(properties);
        data.extend_from_slice(payload);
        Self {
            data: data.into_boxed_slice(),
            // A packet is at most 256 MiB (2.1.4).
            topic_len: u32::try_from(topic.len()).expect("a topic is below 64 KiB"),
            payload_start: u32::try_from(topic.len() + properties.len())
                .expect("properties are below 256 MiB"),
            qos: *qos,
            retain: *retain,
            expires_at_ms: *expires_at_ms,
            id,
            stored: AtomicU32::new(0),
        }
    }

    pub(super) fn topic(&self) -> &[u8] {
        &self.data[..self.topic_len as usize]
    }

    pub(super) fn properties(&self) -> &[u8] {
        &self.data[self.topic_len as usize..self.payload_start as usize]
    }

    pub(super) fn payload(&self) -> &[u8] {
        &self.data[self.payload_start as usize..]
    }

    pub(super) fn cost(&self) -> usize {
        OVERHEAD_BYTES + self.data.len()
    }

    pub(super) fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_at_ms.is_some_and(|at| at <= now_ms)
    }

    /// Counts a reference from the store; whether it is the first. Only under the broker's lock.
    pub(super) fn store_ref(&self) -> bool {
        self.stored.fetch_add(1, Ordering::Relaxed) == 0
    }

    /// Gives a reference from the store back; whether it was the last.
    pub(super) fn store_unref(&self) -> bool {
        self.stored.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

/// Subscription identifiers to send along.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Ids {
    #[default]
    None,
    One(u32),
    Many(Box<[u32]>),
}

impl Ids {
    pub(super) fn as_slice(&self) -> &[u32] {
        match self {
            Self::None => &[],
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
        }
    }

    pub(super) fn new(ids: &[u32]) -> Self {
        match ids {
            [] => Self::None,
            [id] => Self::One(*id),
            ids => Self::Many(ids.into()),
        }
    }
}
