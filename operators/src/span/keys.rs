//! Per-key state of a span operator: the key's clock, its readings in order, what was emitted.

use std::collections::VecDeque;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::owed::{Owed, Resets};
use super::rule::Found;
use crate::batch::Tick;

/// What the expressions of a shape say about a reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks(pub(super) u8);

impl Marks {
    pub(super) const BEGIN: u8 = 1;
    pub(super) const UNTIL: u8 = 2;
    pub(super) const ABORT: u8 = 4;
    /// A window is to be around it.
    pub(super) const AT: u8 = 8;

    pub(super) fn has(self, mark: u8) -> bool {
        self.0 & mark != 0
    }
}

/// A reading, or several that follow each other and are in the same windows for ever.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// Event time of its first reading, µs.
    pub(super) first_us: i64,
    /// Event time of its last reading, µs.
    pub(super) last_us: i64,
    pub(super) rows: i64,
    /// Stands for the set of its readings, see [`member`].
    pub(super) members: u64,
    /// Of its first reading.
    pub(super) marks: Marks,
    /// Where its partial aggregates lie, see [`super::places`].
    pub(super) place: u32,
}

/// A number that stands for a reading of a key, by its place in the order of arrival. The sum of
/// such numbers stands for a set of readings: a window whose sum and number of readings are as they
/// were has the same readings (up to one chance in 2^64).
pub(super) fn member(number: u64) -> u64 {
    xxh3_64(&number.to_le_bytes())
}

/// What a row said of a window, and what those know who get the final rows only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Told {
    /// That it is over; everybody knows.
    #[default]
    Final,
    /// What it had so far; the others know nothing of it.
    Early,
    /// What it had so far; the others know it as it was before a late reading prolonged it.
    EarlyAgain,
}

/// A window as it was last emitted; kept as long as it can be revised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// What tells it from the key's others: its start, or its number.
    pub(super) id: i64,
    pub(super) start_us: i64,
    pub(super) end_us: i64,
    /// 0: it was withdrawn.
    pub(super) rows: i64,
    pub(super) members: u64,
    pub(super) revision: i64,
    pub(super) told: Told,
    /// It was said that messages may have been lost.
    pub(super) incomplete: bool,
}

impl Record {
    /// A window that was found, as its row of this revision.
    pub(super) fn of(window: &Found, revision: i64, told: Told) -> Self {
        Self {
            id: window.id,
            start_us: window.start_us,
            end_us: window.end_us,
            rows: window.rows,
            members: window.members,
            revision,
            told,
            incomplete: false,
        }
    }

    /// Whether these are the same readings between the same bounds.
    pub(super) fn is_as(&self, window: &Found) -> bool {
        let new = Self::of(window, self.revision, self.told);
        *self == Self { incomplete: self.incomplete, ..new }
    }
}

/// How far the entries of a key were gone through. It follows from the rest of the state.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    /// The next entry to look at.
    pub(super) at: usize,
    /// First entry of the window that is open.
    pub(super) open: Option<usize>,
    /// Readings of the key before `at`, of all times.
    pub(super) passed: i64,
    /// The entries that may be in the next sliding window, and their sums.
    pub(super) low: usize,
    pub(super) high: usize,
    pub(super) rows: i64,
    pub(super) members: u64,
    /// Time of the last sliding window's reading.
    pub(super) around_us: Option<i64>,
}

/// One key.
#[derive(Clone, Debug)]
pub(super) struct KeyState {
    /// Newest event time seen, µs.
    pub(super) clock_us: i64,
    /// Tick time of the last epoch with a reading of this key, µs.
    pub(super) last_tick_us: i64,
    /// What is older than this is in order and in its windows: every window that this time ends has
    /// been emitted, µs.
    pub(super) settled_us: i64,
    /// Newest of the readings before the first entry, of the ends of states before it, and of what
    /// was too late; the largest time if it is not known, µs.
    pub(super) gone_us: i64,
    /// Which readings ended whatever state was open, as far as that is known.
    pub(super) resets: Resets,
    /// What is too late, and is put off.
    pub(super) owed: Option<Box<Owed>>,
    /// Readings before the first entry.
    pub(super) passed: i64,
    /// Readings taken so far.
    pub(super) readings: u64,
    /// By time; of the same time by arrival.
    pub(super) entries: Arc<VecDeque<Entry>>,
    /// By [`Record::id`].
    pub(super) records: Arc<VecDeque<Record>>,
    /// Partial aggregates of whole panes that sliding windows share, by number of the pane. Made
    /// when needed.
    pub(super) panes: Arc<VecDeque<(i64, u32)>>,
    /// Entries that were left when it was last looked what can be folded.
    pub(super) folded: usize,
    /// The last epoch in which it was folded.
    pub(super) fold_epoch: u64,
    /// It was folded when nothing of it could come any more.
    pub(super) is_final: bool,
    /// None if the entries must be gone through from the first.
    pub(super) cursor: Option<Cursor>,
    /// With no further reading the next window is emitted when `settled_us` reaches this.
    pub(super) next_us: i64,
    /// Tick time at which to look at this key if it stays silent; what is on the list for other
    /// times is out of date.
    pub(super) wake_us: i64,
    /// Tick time at which what it has open is looked at for early results; the largest if that is
    /// as it was.
    pub(super) early_us: i64,
    /// The last epoch with a reading of this key.
    pub(super) epoch: u64,
}

impl Default for KeyState {
    fn default() -> Self {
        Self {
            clock_us: i64::MIN,
            last_tick_us: i64::MIN,
            settled_us: i64::MIN,
            gone_us: i64::MIN,
            resets: Resets::default(),
            owed: None,
            passed: 0,
            readings: 0,
            entries: Arc::default(),
            records: Arc::default(),
            panes: Arc::default(),
            folded: 0,
            fold_epoch: 0,
            is_final: false,
            cursor: Some(Cursor::default()),
            next_us: i64::MAX,
            wake_us: i64::MAX,
            early_us: i64::MAX,
            epoch: 0,
        }
    }
}

impl KeyState {
    /// A reading of this time comes in this epoch; whether it is the first one in it.
    pub(super) fn comes(&mut self, tick: Tick, time_us: i64) -> bool {
        self.clock_us = self.clock_us.max(time_us);
        let is_first = self.epoch != tick.epoch;
        (self.epoch, self.last_tick_us) = (tick.epoch, tick.time_us);
        is_first
    }

    /// Takes a reading in; its place is behind those of the same time.
    pub(super) fn insert(&mut self, time_us: i64, marks: Marks, place: u32) {
        let members = member(self.readings);
        self.readings += 1;
        self.is_final = false;
        if time_us < self.settled_us {
            self.cursor = None;
        }
        let entry = Entry { first_us: time_us, last_us: time_us, rows: 1, members, marks, place };
        let entries = Arc::make_mut(&mut self.entries);
        match entries.back() {
            Some(last) if last.first_us > time_us => {
                let at = entries.partition_point(|e| e.first_us <= time_us);
                entries.insert(at, entry);
            }
            _ => entries.push_back(entry),
        }
    }

    /// The pane of this number has another reading: what it was merged to is out of date.
    pub(super) fn forget_pane(&mut self, number: i64) -> Option<u32> {
        let at = self.pane(number).ok()?;
        Arc::make_mut(&mut self.panes).remove(at).map(|(_, place)| place)
    }

    /// Where the pane of this number is in `panes`, or would have to be.
    pub(super) fn pane(&self, number: i64) -> Result<usize, usize> {
        self.panes.binary_search_by_key(&number, |p| p.0)
    }

    /// Removes entries so that `cursor` still means the same: the first `dropped`, and of each
    /// range, of which the first stands for all, the others.
    pub(super) fn fold(&mut self, dropped: usize, ranges: &[(usize, usize)]) {
        if dropped == 0 && ranges.is_empty() {
            return;
        }
        if let Some(cursor) = &mut self.cursor {
            while cursor.low < dropped.min(cursor.high) {
                let entry = &self.entries[cursor.low];
                cursor.rows -= entry.rows;
                cursor.members = cursor.members.wrapping_sub(entry.members);
                cursor.low += 1;
            }
            let gone = |at: usize| -> usize {
                let of_range = |(from, to): &(usize, usize)| at.min(*to).saturating_sub(from + 1);
                dropped.min(at) + ranges.iter().map(of_range).sum::<usize>()
            };
            for at in [&mut cursor.at, &mut cursor.low, &mut cursor.high] {
                *at -= gone(*at);
            }
            cursor.open = cursor.open.map(|at| at - gone(at));
        }
        let entries = Arc::make_mut(&mut self.entries);
        for (from, to) in ranges.iter().rev() {
            entries.drain(from + 1..*to);
        }
        entries.drain(..dropped);
    }
}
