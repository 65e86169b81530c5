//! Whether anybody might want a topic, without the broker's lock: publishers ask for each message,
//! and nearly always the answer is no, because devices subscribe to commands and not to readings.

use std::sync::atomic::{AtomicU32, Ordering};

/// First levels share a counter only by chance; a shared one costs a look-up, no message.
const COUNTERS: usize = 1024;

/// Subscriptions by the first level of their filter.
#[derive(Debug)]
pub(super) struct Interest {
    /// Filters that begin with a wildcard.
    wild: AtomicU32,
    by_level: Box<[AtomicU32]>,
}

impl Default for Interest {
    fn default() -> Self {
        let by_level = (0..COUNTERS).map(|_| AtomicU32::new(0)).collect();
        Self { wild: AtomicU32::new(0), by_level }
    }
}

impl Interest {
    fn counter(&self, topic: &[u8]) -> &AtomicU32 {
        let end = memchr::memchr(b'/', topic).unwrap_or(topic.len());
        &self.by_level[xxhash_rust::xxh3::xxh3_64(&topic[..end]) as usize % COUNTERS]
    }

    fn of_filter(&self, filter: &str) -> &AtomicU32 {
        match filter.as_bytes() {
            [b'+' | b'#', ..] => &self.wild,
            filter => self.counter(filter),
        }
    }

    /// A filter (without group) has one subscriber more.
    pub(super) fn add(&self, filter: &str) {
        self.of_filter(filter).fetch_add(1, Ordering::Relaxed);
    }

    /// A filter (without group) has one subscriber less.
    pub(super) fn remove(&self, filter: &str) {
        self.of_filter(filter).fetch_sub(1, Ordering::Relaxed);
    }

    /// False only if no filter matches.
    pub(super) fn may_match(&self, topic: &[u8]) -> bool {
        self.wild.load(Ordering::Relaxed) > 0 || self.counter(topic).load(Ordering::Relaxed) > 0
    }
}
