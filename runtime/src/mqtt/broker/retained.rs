//! Retained messages: the last of each topic.
//!
//! They are sorted by topic, so a filter looks only at topics that begin like it, and a whole
//! branch that cannot match is stepped over with one search.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use super::filter::matches;
use super::message::Message;

#[derive(Debug, Default)]
pub(super) struct Retained {
    by_topic: BTreeMap<Box<[u8]>, Arc<Message>>,
    /// Those that expire, by time.
    expiring: BTreeSet<(u64, Box<[u8]>)>,
    bytes: usize,
}

impl Retained {
    /// Replaces the message of a topic, if the bounds allow; whether they did. What was there is
    /// gone in any case: no state is better than an old one that looks current.
    pub(super) fn put(
        &mut self,
        message: Arc<Message>,
        count_max: usize,
        bytes_max: usize,
    ) -> bool {
        self.remove(message.topic());
        if self.by_topic.len() >= count_max || self.bytes + message.cost() > bytes_max {
            return false;
        }
        self.bytes += message.cost();
        let topic: Box<[u8]> = message.topic().into();
        if let Some(at) = message.expires_at_ms {
            self.expiring.insert((at, topic.clone()));
        }
        self.by_topic.insert(topic, message);
        true
    }

    /// Deletes the message of a topic; whether there was one.
    pub(super) fn remove(&mut self, topic: &[u8]) -> bool {
        let Some((topic, message)) = self.by_topic.remove_entry(topic) else { return false };
        self.bytes -= message.cost();
        if let Some(at) = message.expires_at_ms {
            self.expiring.remove(&(at, topic));
        }
        true
    }

    /// Takes out one message that has expired; its topic.
    pub(super) fn expire(&mut self, now_ms: u64) -> Option<Box<[u8]>> {
        let (at, topic) = self.expiring.first()?;
        if *at > now_ms {
            return None;
        }
        let topic = topic.clone();
        self.remove(&topic);
        Some(topic)
    }

    /// When the next one expires.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.expiring.first().map(|(at, _)| *at)
    }

    pub(super) fn len(&self) -> usize {
        self.by_topic.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Calls `visit` with all messages that match a valid filter, by topic.
    pub(super) fn matching(&self, filter: &str, mut visit: impl FnMut(&Arc<Message>)) {
        let filter = filter.as_bytes();
        let Some(wildcard) = filter.iter().position(|b| matches!(b, b'+' | b'#')) else {
            if let Some(message) = self.by_topic.get(filter) {
                visit(message);
            }
            return;
        };
        if filter.ends_with(b"/#") && wildcard + 1 == filter.len() {
            // `a/#` matches `a` as well, which does not begin with `a/`.
            if let Some(message) = self.by_topic.get(&filter[..wildcard - 1]) {
                visit(message);
            }
        }
        let prefix = &filter[..wildcard];
        let mut from: Box<[u8]> = prefix.into();
        loop {
            let range = (Bound::Included(&from[..]), Bound::Unbounded);
            let mut skip = None;
            for (topic, message) in self.by_topic.range::<[u8], _>(range) {
                if !topic.starts_with(prefix) {
                    return;
                }
                if matches(filter, topic) {
                    visit(message);
                } else if let Some(next) = next_candidate(filter, topic) {
                    skip = Some(next);
                    break;
                }
            }
            match skip {
                Some(next) => from = next,
                None => return,
            }
        }
    }
}

/// A topic that is not larger than the next match after `topic`, if it pays to search for it: the
/// place of the first literal level that `topic` has wrong.
fn next_candidate(filter: &[u8], topic: &[u8]) -> Option<Box<[u8]>> {
    let (mut start, mut levels) = (0, topic.split(|b| *b == b'/'));
    for wanted in filter.split(|b| *b == b'/') {
        let level = levels.next()?;
        if wanted == b"#" {
            return None;
        }
        if wanted == b"+" || wanted == level {
            start += level.len() + 1;
            continue;
        }
        // Matches are `parent/wanted` and what begins with `parent/wanted/`; others may lie
        // between the two.
        let parent = topic.get(..start)?;
        let mut next = [parent, wanted].concat();
        if next[..] > *topic {
            return Some(next.into());
        }
        next.push(b'/');
        if next[..] > *topic {
            return Some(next.into());
        }
        // All after this in the parent's branch is larger still: step over the branch. `0` is the
        // byte after `/`.
        let parent = parent.strip_suffix(b"/")?;
        return Some([parent, b"0"].concat().into());
    }
    None
}
