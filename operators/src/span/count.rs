//! Windows of a fixed number of readings, in the order of their times.
//!
//! Window `k` of a key has its readings `k * hop` to `k * hop + size - 1`, counted from 0 since the
//! key was first seen. Readings of a block of `gcd(size, hop)` are in the same windows, so a block
//! becomes one entry when no reading can come between. Only whole windows are emitted.

use super::keys::{Cursor, KeyState};
use super::rule::{Folding, Found, Horizon};

/// Readings that are in the same windows: the greatest common divisor.
pub(super) fn block(size: u64, hop: u64) -> u64 {
    let (mut a, mut b) = (size, hop);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Count {
    pub(super) size: i64,
    pub(super) hop: i64,
}

impl Count {
    fn block(&self) -> i64 {
        block(self.size.unsigned_abs(), self.hop.unsigned_abs()) as i64
    }

    /// How many readings of a key there are before this time, with all of the block in which it is.
    pub(super) fn passed(&self, key: &KeyState, until_us: i64) -> i64 {
        let older = key.entries.iter().take_while(|e| e.first_us < until_us);
        key.passed + older.map(|e| e.rows).sum::<i64>()
    }

    /// The first window of which not all readings are among the first `complete`.
    pub(super) fn first_open(&self, complete: i64) -> i64 {
        match complete < self.size {
            true => 0,
            false => (complete - self.size) / self.hop + 1,
        }
    }

    /// With so many readings final, what comes after this many of them changes only what is open;
    /// and none of them are put together that it could divide.
    pub(super) fn open_from(&self, complete: i64) -> i64 {
        let whole = complete - complete % self.block();
        whole.max(complete.min(self.first_open(complete) * self.hop))
    }

    pub(super) fn scan(
        &self,
        key: &KeyState,
        cursor: &mut Cursor,
        horizon: Horizon,
        found: &mut Vec<Found>,
    ) -> i64 {
        let entries = &key.entries;
        while let Some(last) = entries.get(cursor.at) {
            if last.first_us >= horizon.us {
                return last.first_us.saturating_add(1);
            }
            cursor.at += 1;
            cursor.passed += last.rows;
            let start = cursor.passed - self.size;
            // Windows that begin before the first entry are final.
            if start < key.passed || start % self.hop != 0 {
                continue;
            }
            let (mut from, mut rows, mut end_us) = (cursor.at, 0, last.last_us);
            while rows < self.size {
                from -= 1;
                rows += entries[from].rows;
                // A reading can have come in the middle of what became one entry.
                end_us = end_us.max(entries[from].last_us);
            }
            let bounds = (entries[from].first_us, end_us);
            found.push(Found::of(entries, (from, cursor.at), start / self.hop, bounds));
        }
        i64::MAX
    }

    /// Appends the windows that have begun and do not have all of their readings.
    pub(super) fn scan_open(&self, key: &KeyState, found: &mut Vec<Found>) {
        let entries = &key.entries;
        let all = key.passed + entries.iter().map(|e| e.rows).sum::<i64>();
        let first = ((all - self.size).div_euclid(self.hop) + 1).max(0);
        let (mut from, mut passed) = (0, key.passed);
        for number in (first..).take_while(|number| number * self.hop < all) {
            while passed < number * self.hop {
                passed += entries[from].rows;
                from += 1;
            }
            // Windows that begin before the first entry are final.
            if passed == number * self.hop
                && let Some(first) = entries.get(from)
            {
                let end_us = entries.range(from..).map(|e| e.last_us).max();
                let bounds = (first.first_us, end_us.unwrap_or(first.last_us));
                found.push(Found::of(entries, (from, entries.len()), number, bounds));
            }
        }
    }

    pub(super) fn fold(&self, key: &KeyState, final_us: i64) -> Folding {
        let mut complete = key.passed;
        let mut to = 0;
        for entry in key.entries.iter().take_while(|e| e.first_us < final_us) {
            complete += entry.rows;
            to += 1;
        }
        // The first window of which not all readings are there.
        let first_id = self.first_open(complete);
        let mut folding = Folding { first_id, ..Folding::default() };
        let block = self.block();
        let mut passed = key.passed;
        let mut from = 0;
        for at in 0..to {
            let number = passed / block;
            passed += key.entries[at].rows;
            if passed <= first_id * self.hop {
                folding.drop = at + 1;
                from = at + 1;
                continue;
            }
            if at + 1 == to || passed / block != number {
                if at > from {
                    folding.ranges.push((from, at + 1));
                }
                from = at + 1;
            }
        }
        folding
    }
}
