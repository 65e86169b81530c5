//! Which number the first reading of a stretch of a key's time has, of those that were not late.
//!
//! The step has numbered them, and window `k` begins with number `k * hop` and ends with `k * hop +
//! size - 1`, of which the table tells the times. How many readings there are before and until each
//! of these times leaves some numbers for the first reading of the stretch; the only one, unless
//! there are several readings of one time at all of these. So readings are counted, not held.

use std::collections::BTreeMap;

use super::affected::Bounds;
use super::number::Numbered;

/// `count` and `hop` of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) size: i64,
    pub(super) hop: i64,
}

/// The numbers that a reading can have: the least, and the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Between(i64, i64);

impl Between {
    /// Nothing is known.
    pub(super) const ANY: Self = Self(0, i64::MAX);

    /// The number, if it is the only one.
    pub(super) fn only(self) -> Option<i64> {
        (self.0 == self.1).then_some(self.0)
    }

    /// There are several, so that knowing more can help.
    pub(super) fn is_open(self) -> bool {
        self.0 < self.1
    }

    /// Those of a reading that comes so many later.
    fn later(self, count: i64) -> Self {
        Self(self.0.saturating_add(count), self.1.saturating_add(count))
    }

    /// Those that both have.
    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0.max(other.0), self.1.min(other.1))
    }
}

/// How many readings that were not late there are before, at and between some times.
#[derive(Debug)]
pub(super) struct Tally {
    /// Both included.
    range_us: Bounds,
    times_us: Vec<i64>,
    /// Before the first time, at it, between it and the second one, and so on.
    counts: Vec<i64>,
}

impl Tally {
    /// Without readings; in `range_us`, both included, at these times and at the bounds of windows.
    pub(super) fn new(
        range_us: Bounds,
        times_us: impl Iterator<Item = i64>,
        windows: &BTreeMap<i64, Numbered>,
    ) -> Self {
        let bounds = windows.values().flat_map(|w| [w.start_us, w.end_us, w.own_us.0, w.own_us.1]);
        let mut times_us: Vec<i64> = times_us.chain(bounds).collect();
        times_us.retain(|us| (range_us.0..=range_us.1).contains(us));
        times_us.sort_unstable();
        times_us.dedup();
        let counts = vec![0; 2 * times_us.len() + 1];
        Self { range_us, times_us, counts }
    }

    /// From the first to the last time, both included.
    pub(super) fn range_us(&self) -> Bounds {
        self.range_us
    }

    /// Counts readings of a time, or takes them back.
    pub(super) fn add(&mut self, us: i64, count: i64) {
        if (self.range_us.0..=self.range_us.1).contains(&us) {
            let place = match self.times_us.binary_search(&us) {
                Ok(at) => 2 * at + 1,
                Err(at) => 2 * at,
            };
            self.counts[place] += count;
        }
    }

    /// The numbers that the first reading at or after each of these times can have; they are among
    /// those of [`Tally::new`].
    pub(super) fn numbers(
        &self,
        (step, final_us): (Step, i64),
        windows: &BTreeMap<i64, Numbered>,
        times_us: impl Iterator<Item = i64>,
    ) -> Vec<Between> {
        let mut passed = 0;
        let sums: Vec<i64> = std::iter::once(0)
            .chain(self.counts.iter().map(|count| {
                passed += count;
                passed
            }))
            .collect();
        // How many are before a time, and how many until it.
        let before = |us: i64| match self.times_us.binary_search(&us) {
            Ok(at) => sums[2 * at + 1],
            Err(at) => sums[2 * at],
        };
        let until = |us: i64| match self.times_us.binary_search(&us) {
            Ok(at) => sums[2 * at + 2],
            Err(at) => sums[2 * at],
        };
        let mut first = Between::ANY;
        for known in windows.values() {
            for (number, (least_us, most_us)) in known.places(step, final_us) {
                // It has this time or a later one, so all before that have smaller numbers.
                if let Some(us) = least_us.filter(|us| self.range_us.0 <= *us) {
                    let is_over = self.range_us.1 < us;
                    let count = if is_over { passed } else { before(us) };
                    first = first.and(Between(0, number - count));
                }
                // It has this time or an earlier one, so all later ones have larger numbers.
                if let Some(us) = most_us.filter(|us| *us <= self.range_us.1) {
                    let count = if us < self.range_us.0 { 0 } else { until(us) };
                    first = first.and(Between(number - count + 1, i64::MAX));
                }
            }
        }
        times_us.map(|us| first.later(before(us))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(step: Step, times: &[i64], numbers: &[i64]) -> BTreeMap<i64, Numbered> {
        let known = |number: &i64| {
            let first = (number * step.hop) as usize;
            let own_us = (times[first], times[first + step.size as usize - 1]);
            let (start_us, end_us) = own_us;
            let (number, rows, revision, is_own) = (*number, step.size, 0, true);
            (number, Numbered { start_us, end_us, own_us, is_own, number, rows, revision })
        };
        numbers.iter().map(known).collect()
    }

    #[test]
    fn numbers_are_those_that_all_windows_leave() {
        let step = Step { size: 5, hop: 2 };
        // Always two of one time, but for one.
        let times: Vec<i64> = (0..40).map(|i| if i < 31 { i / 2 } else { (i + 1) / 2 }).collect();
        let of = |range_us: Bounds, numbers: &[i64]| {
            let windows = windows(step, &times, numbers);
            let mut tally = Tally::new(range_us, [range_us.0].into_iter(), &windows);
            times.iter().for_each(|us| tally.add(*us, 1));
            tally.numbers((step, i64::MAX), &windows, [range_us.0].into_iter())[0]
        };
        assert_eq!(of((3, 5), &[3]), Between(5, 6), "from the first or the second of one time");
        assert!(of((3, 5), &[3]).is_open());
        assert_eq!(of((3, 8), &[3, 4, 5]), Between(5, 6), "the others say no more");
        assert_eq!(of((0, 5), &[0, 1, 3]).only(), Some(0), "all is counted");
        assert_eq!(of((3, 18), &[3, 13]).only(), Some(6), "one is alone");
        let wrong = of((3, 5), &[3, 9]).and(Between(9, 9));
        assert_eq!((wrong.only(), wrong.is_open()), (None, false));
    }
}
