//! Early results of open windows: which keys wait for them.
//!
//! Definition: a key that had readings in an epoch with a tick at `t` has its open windows looked
//! at in the first epoch whose tick is at or after the next multiple of `early` behind `t`; those
//! that are not as in their last row are emitted. So it depends on the key's own readings and on
//! ticks, and costs what changed, however many windows are open. Until when a key waits is part of
//! its state.

use std::collections::BTreeMap;

/// Bytes of a key on the list: in a vector that doubles.
pub(crate) const EARLY_BYTES: u64 = 2 * size_of::<u32>() as u64;

/// Keys by the tick time at which their open windows are looked at.
#[derive(Debug)]
pub(crate) struct Early {
    every_us: Option<i64>,
    /// Keys that were looked at or forgotten since may still be there. All that came while this
    /// operator runs wait for the same time.
    listed: BTreeMap<i64, Vec<u32>>,
}

impl Early {
    /// Early results so often; none: never.
    pub(crate) fn new(every_us: Option<i64>) -> Self {
        Self { every_us, listed: BTreeMap::new() }
    }

    /// Whether there are early results.
    pub(crate) fn is_on(&self) -> bool {
        self.every_us.is_some()
    }

    /// Puts a key on the list that had a reading at this tick time; the time that it waits for.
    pub(crate) fn list(&mut self, id: u32, tick_us: i64) -> i64 {
        let Some(every_us) = self.every_us else { return i64::MAX };
        let due_us = next_us(tick_us, every_us);
        self.list_until(id, due_us);
        due_us
    }

    /// Puts a key on the list that waits for this tick time.
    pub(crate) fn list_until(&mut self, id: u32, due_us: i64) {
        self.listed.entry(due_us).or_default().push(id);
    }

    /// Takes the keys that wait for a time that has come, with that time.
    pub(crate) fn due(&mut self, tick_us: i64) -> Option<(i64, Vec<u32>)> {
        let entry = self.listed.first_entry()?;
        (*entry.key() <= tick_us).then(|| entry.remove_entry())
    }

    /// Nobody waits any more.
    pub(crate) fn clear(&mut self) {
        self.listed.clear();
    }

    /// Keys on the list.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.listed.values().map(Vec::len).sum()
    }

    /// Bytes held.
    pub(crate) fn size_bytes(&self) -> usize {
        self.listed.values().map(|ids| ids.capacity() * size_of::<u32>()).sum()
    }
}

/// The next multiple of a time behind another one.
fn next_us(time_us: i64, every_us: i64) -> i64 {
    let every_us = every_us.max(1);
    time_us.div_euclid(every_us).saturating_add(1).saturating_mul(every_us)
}
