//! Which of a key's entries are windows: one rule per shape.
//!
//! A rule is a pure function of the entries in order and of a horizon: what is older than the
//! horizon is complete. It goes through the entries from a [`Cursor`] and finds the windows that
//! the horizon ends, in the order of their ids. What it finds from the first entry on and what it
//! finds bit by bit is the same.

use std::collections::VecDeque;

use super::count::Count;
use super::keys::{Cursor, Entry, KeyState};
use super::session::Session;
use super::sliding::Sliding;
use super::state::State;
use crate::spec::Shape;

pub(super) type Entries = VecDeque<Entry>;

/// A window that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) id: i64,
    pub(super) start_us: i64,
    pub(super) end_us: i64,
    /// Its entries: from, and the one after the last.
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) rows: i64,
    pub(super) members: u64,
}

impl Found {
    /// The window of the entries in `from..to`.
    pub(super) fn of(
        entries: &Entries,
        (from, to): (usize, usize),
        id: i64,
        (start_us, end_us): (i64, i64),
    ) -> Self {
        let (mut rows, mut members) = (0, 0u64);
        for entry in entries.range(from..to) {
            rows += entry.rows;
            members = members.wrapping_add(entry.members);
        }
        Self { id, start_us, end_us, from, to, rows, members }
    }
}

/// How far to go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Horizon {
    /// What is older is complete, µs.
    pub(super) us: i64,
    /// What is older was complete before, and no window that this time ends is to be found, µs.
    pub(super) final_us: i64,
    /// There will be no more: windows that nothing else ends are found, and stay open.
    pub(super) end: bool,
}

/// What is no longer needed of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Folding {
    /// Entries from the first on that no window needs any more.
    pub(super) drop: usize,
    /// Ranges of entries that will be in the same windows for ever: more than one each, behind the
    /// dropped ones, in order.
    pub(super) ranges: Vec<(usize, usize)>,
    /// Windows with a smaller id are final.
    pub(super) first_id: i64,
    /// The end of the last of them, if it can be later than its last reading.
    pub(super) ended_us: Option<i64>,
    /// Where the last of them begins that a maximum cut, whatever comes.
    pub(super) cut_us: Option<i64>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Rule {
    Session(Session),
    Count(Count),
    State(State),
    Sliding(Sliding),
}

impl Rule {
    /// The rule of a shape; none for windows that time alone determines.
    pub(super) fn new(shape: &Shape) -> Option<Self> {
        Some(match shape {
            Shape::Grid { .. } | Shape::Calendar(_) => return None,
            Shape::Session { gap_us, max_us } => {
                Self::Session(Session { gap_us: *gap_us, max_us: *max_us })
            }
            Shape::Count { size, hop } => Self::Count(Count { size: *size, hop: *hop }),
            Shape::State { until, min_us, max_us, .. } => {
                Self::State(State { until: until.is_some(), min_us: *min_us, max_us: *max_us })
            }
            Shape::Sliding { before_us, after_us, .. } => {
                Self::Sliding(Sliding { before_us: *before_us, after_us: *after_us })
            }
        })
    }

    /// Where to start going through all entries of a key.
    pub(super) fn start(&self, key: &KeyState) -> Cursor {
        Cursor { passed: key.passed, ..Cursor::default() }
    }

    /// Appends the windows that end at or before the horizon and returns the horizon at which,
    /// without another reading, there is more to find.
    pub(super) fn scan(
        &self,
        key: &KeyState,
        cursor: &mut Cursor,
        horizon: Horizon,
        found: &mut Vec<Found>,
    ) -> i64 {
        match self {
            Self::Session(rule) => rule.scan(&key.entries, cursor, horizon, found),
            Self::Count(rule) => rule.scan(key, cursor, horizon, found),
            Self::State(rule) => rule.scan(&key.entries, cursor, horizon, found),
            Self::Sliding(rule) => rule.scan(&key.entries, cursor, horizon, found),
        }
    }

    /// The first entry of what is open of a key before `final_us`, and what has ended.
    pub(super) fn gone_through(
        &self,
        key: &KeyState,
        final_us: i64,
    ) -> (Option<usize>, Vec<Found>) {
        let (mut cursor, mut closed) = (Cursor::default(), Vec::new());
        let horizon = Horizon { us: final_us, final_us: i64::MIN, end: false };
        self.scan(key, &mut cursor, horizon, &mut closed);
        (cursor.open, closed)
    }

    /// What is not needed any more when no reading older than `final_us` can come.
    pub(super) fn fold(&self, key: &KeyState, final_us: i64) -> Folding {
        match self {
            Self::Session(rule) => rule.fold(&key.entries, final_us),
            Self::Count(rule) => rule.fold(key, final_us),
            Self::State(rule) => rule.fold(&key.entries, final_us),
            Self::Sliding(rule) => rule.fold(&key.entries, final_us),
        }
    }

    /// The entry whose readings a time is among; of several that of the reading that came last.
    pub(super) fn entry_at<'e>(&self, entries: &'e Entries, time_us: i64) -> Option<&'e Entry> {
        let to = entries.partition_point(|e| e.first_us <= time_us);
        let from = match self {
            // Readings can come in the middle of one that has grown together.
            Self::Session(Session { max_us: None, .. }) => 0,
            _ => to.saturating_sub(1),
        };
        entries.range(from..to).rev().find(|e| e.last_us >= time_us)
    }

    /// How long after its newest reading a silent key can still have something to do, µs.
    pub(super) fn reach_us(&self) -> i64 {
        match self {
            Self::Session(rule) => rule.gap_us,
            Self::Count(_) => 0,
            Self::State(rule) => rule.max_us.unwrap_or(0),
            Self::Sliding(rule) => rule.before_us.saturating_add(rule.after_us),
        }
    }

    /// How long after its newest reading everything has ended that silence ends, µs.
    pub(super) fn end_us(&self) -> i64 {
        match self {
            Self::Session(rule) => rule.gap_us,
            Self::Count(_) | Self::State(_) => 0,
            Self::Sliding(rule) => rule.after_us,
        }
    }
}

/// The folding of windows that follow each other, given a cursor that went through all that is
/// final: the open window is one entry, what is before it goes.
pub(super) fn fold_open(entries: &Entries, cursor: &Cursor, final_us: i64) -> Folding {
    let drop = cursor.open.unwrap_or(cursor.at);
    let ranges = if cursor.at > drop + 1 { vec![(drop, cursor.at)] } else { Vec::new() };
    let first_id = cursor.open.map_or(final_us, |open| entries[open].first_us);
    Folding { drop, ranges, first_id, ..Folding::default() }
}
