//! Which retained messages are known already.
//!
//! A broker sends all retained messages again on each new subscription. With the policy `state`
//! one is journaled unless it says what was last journaled of its topic. Only topics that had a
//! retained message are remembered, a bounded number of them; what is forgotten may be counted once
//! more.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};

use crate::mqtt::limits::RETAINED_TOPICS_MAX;

/// Bytes of one topic in a file.
const ENTRY_BYTES: usize = 16;

#[derive(Debug, Default)]
pub(super) struct RetainedTopics {
    known: HashMap<u64, Known>,
    /// Something is not in the file yet.
    changed: bool,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    content: u64,
    /// The batch that takes the message; 0 if it is durable for sure.
    batch: u64,
}

fn hash(bytes: &[u8]) -> u64 {
    // Without a secret key, so that it is the same after a restart; whoever can make two equal
    // hashes can already publish what he likes to that topic.
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

impl RetainedTopics {
    /// Takes note of a retained message that batch `batch` would take; whether it is new.
    pub(super) fn is_new(&mut self, topic: &[u8], payload: &[u8], batch: u64) -> bool {
        let (topic, content) = (hash(topic), hash(payload));
        if self.known.get(&topic).is_some_and(|k| k.content == content) {
            return false;
        }
        if self.known.len() < RETAINED_TOPICS_MAX || self.known.contains_key(&topic) {
            self.known.insert(topic, Known { content, batch });
            self.changed = true;
        }
        true
    }

    /// Takes note of another message of a topic.
    pub(super) fn update(&mut self, topic: &[u8], payload: &[u8], batch: u64) {
        if self.known.is_empty() {
            return;
        }
        if let Some(known) = self.known.get_mut(&hash(topic)) {
            *known = Known { content: hash(payload), batch };
            self.changed = true;
        }
    }

    /// All that was noted is durable now.
    pub(super) fn all_durable(&mut self) {
        self.known.values_mut().for_each(|k| k.batch = 0);
    }

    /// Messages of batches after `durable` were not journaled.
    pub(super) fn forget_after(&mut self, durable: u64) {
        self.known.retain(|_, k| k.batch <= durable);
        self.changed = true;
    }

    /// What to write to disk if something changed: what is durable up to batch `durable`. A message
    /// that is not must be taken when it comes again.
    pub(super) fn take_changes(&mut self, durable: u64) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let mut out = Vec::with_capacity(self.known.len() * ENTRY_BYTES);
        for (topic, known) in &self.known {
            if known.batch <= durable {
                out.extend_from_slice(&topic.to_be_bytes());
                out.extend_from_slice(&known.content.to_be_bytes());
            } else {
                // Once more when it is.
                self.changed = true;
            }
        }
        Some(out)
    }

    /// Reads what [`RetainedTopics::take_changes`] gave.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let number = |b: &[u8]| b.iter().fold(0, |n, b| n << 8 | u64::from(*b));
        let entries = bytes.chunks_exact(ENTRY_BYTES).take(RETAINED_TOPICS_MAX);
        let known = entries
            .map(|e| (number(&e[..8]), Known { content: number(&e[8..]), batch: 0 }))
            .collect();
        Self { known, changed: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_not_durable_is_not_remembered_over_a_restart() {
        let mut seen = RetainedTopics::default();
        assert!(seen.is_new(b"a", b"1", 1));
        assert!(!seen.is_new(b"a", b"1", 1));
        assert!(seen.is_new(b"b", b"1", 2));
        let file = seen.take_changes(1).expect("there are changes");
        let mut after = RetainedTopics::from_bytes(&file);
        assert!(!after.is_new(b"a", b"1", 1));
        assert!(after.is_new(b"b", b"1", 1), "it was in batch 2, which was not durable");
        let file = seen.take_changes(2).expect("batch 2 was not written yet");
        assert!(!RetainedTopics::from_bytes(&file).is_new(b"b", b"1", 1));
        assert_eq!(seen.take_changes(2), None);
    }

    #[test]
    fn a_live_message_is_the_last_known_of_its_topic() {
        let mut seen = RetainedTopics::default();
        assert!(seen.is_new(b"a", b"1", 1));
        seen.update(b"a", b"2", 1);
        assert!(!seen.is_new(b"a", b"2", 1));
        assert!(seen.is_new(b"a", b"1", 1), "an old state that comes back is a new one");
    }

    #[test]
    fn the_number_of_topics_has_a_bound_and_nothing_is_lost_beyond_it() {
        let mut seen = RetainedTopics::default();
        for i in 0..RETAINED_TOPICS_MAX as u32 + 10 {
            assert!(seen.is_new(&i.to_be_bytes(), b"", 1));
        }
        assert_eq!(seen.known.len(), RETAINED_TOPICS_MAX);
    }
}
