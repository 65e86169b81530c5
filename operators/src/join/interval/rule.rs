//! Which rows are partners, and what is too much.

use super::super::sides::Row;
use super::{REASON_MATCHES_MAX, Waiting};
use crate::expression::Failed;
use crate::grouped::REASON_BYTES_MAX;

/// Which rows are partners, see [`crate::spec::Partners::Interval`].
#[derive(Clone, Copy)]
pub(super) struct Rule {
    /// Columns with the time.
    pub(super) times: [usize; 2],
    pub(super) before_us: i64,
    pub(super) after_us: i64,
    pub(super) nearest: bool,
    pub(super) matches_max: usize,
    pub(super) rows_max: usize,
    /// Most bytes of the joined rows of a key in an epoch.
    pub(super) bytes_max: usize,
}

/// Why a left row is refused.
#[derive(Clone, Copy)]
pub(super) enum Refused {
    /// It has so many partners.
    Matches(usize),
    /// The rows of its key in the epoch have too many bytes with it.
    Bytes,
}

impl Rule {
    /// The reject of a left row, in place `row` of the refused ones.
    pub(super) fn failed(&self, row: usize, why: Refused) -> Failed {
        let (reason, detail) = match why {
            Refused::Matches(count) => {
                let most = self.matches_max;
                let text = format!("it has {count} partners, and matches_max is {most}");
                (REASON_MATCHES_MAX, text)
            }
            Refused::Bytes => {
                let most = self.bytes_max;
                let text = format!("the rows of its key in one epoch have more than {most} bytes");
                (REASON_BYTES_MAX, text)
            }
        };
        Failed { row, reason, detail }
    }

    /// Which of the right rows are the partners of a left row at this time.
    pub(super) fn partners(&self, time_us: i64, right: &Waiting) -> std::ops::Range<usize> {
        let from_us = time_us.saturating_sub(self.before_us);
        let to_us = time_us.saturating_add(self.after_us);
        let from = right.partition_point(|(t, _)| *t < from_us);
        let to = right.partition_point(|(t, _)| *t <= to_us);
        if !self.nearest || to - from < 2 {
            return from..to;
        }
        // The last one up to the time, or the first of the next time, whichever is nearer; of
        // equally near ones the older, of one time the last that came.
        let next = right.partition_point(|(t, _)| *t <= time_us).clamp(from, to);
        let distance = |at: usize| right[at].0.abs_diff(time_us);
        let last_of = |at: usize| right.partition_point(|(t, _)| *t <= right[at].0) - 1;
        let nearest = match (next > from, next < to) {
            (true, true) if distance(next) < distance(next - 1) => last_of(next),
            (true, _) => next - 1,
            (false, _) => last_of(next),
        };
        nearest..nearest + 1
    }
}

/// Puts new rows, in the order of their times, among those that wait; `first_us` is the first of
/// these times.
pub(super) fn insert(waiting: &mut Waiting, first_us: i64, new: impl Iterator<Item = (i64, Row)>) {
    let at = waiting.partition_point(|(time_us, _)| *time_us <= first_us);
    let mut later = waiting.split_off(at).into_iter().peekable();
    for (time_us, row) in new {
        while let Some(before) = later.next_if(|l| l.0 <= time_us) {
            waiting.push_back(before);
        }
        waiting.push_back((time_us, row));
    }
    waiting.extend(later);
}
