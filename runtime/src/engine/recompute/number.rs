//! Counts of a key that the table has, and which of its readings are in them; see
//! [`super::counts`].

use std::collections::{BTreeMap, BTreeSet};

use super::affected::Bounds;
use super::late::Late;
use super::revise::Place;

/// A window that the table has, as its newest revision says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbered {
    pub(super) start_us: i64,
    pub(super) end_us: i64,
    pub(super) number: i64,
    pub(super) rows: i64,
    pub(super) revision: i64,
}

/// A stored reading.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    /// Its time and its place in the journal.
    pub(super) at: (i64, i64),
    /// It was too late, in this group or before.
    is_late: bool,
    /// It is a late one of this group.
    pub(super) is_new: bool,
    pub(super) place: Place,
}

/// A window that may have late readings.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) known: Numbered,
    /// Its readings are between these times, both included; others may be, too.
    range_us: Bounds,
    /// Of the readings that were not late, of its first time the last ones are in it, of its last
    /// time the first ones; none if that is not known.
    ties: Option<Ties>,
    readings: Vec<Reading>,
}

/// Which readings are in a window, if there are more than its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ties {
    /// The window before has the first ones.
    First,
    /// The window after has the last ones.
    Last,
}

impl Window {
    /// How many late readings of the group are in its time.
    pub(super) fn late(&self) -> i64 {
        self.readings.iter().filter(|r| r.is_new).count() as i64
    }

    /// The readings of the window, if they can be told.
    pub(super) fn members(&self, size: i64) -> Option<&[Reading]> {
        let size = usize::try_from(size).ok()?;
        let known = &self.known;
        // Where those are that were not late.
        let own: Vec<usize> =
            (0..self.readings.len()).filter(|at| !self.readings[*at].is_late).collect();
        let time_us = |i: usize| self.readings[own[i]].at.0;
        let inside = own.partition_point(|at| self.readings[*at].at.0 <= known.end_us);
        let more = inside.checked_sub(size)?;
        let first = match self.ties {
            _ if more == 0 => 0,
            Some(Ties::Last) if time_us(size - 1) == time_us(inside - 1) => 0,
            Some(Ties::First) if time_us(0) == time_us(more) => more,
            _ => return None,
        };
        let next = own.get(first + size).copied().unwrap_or(self.readings.len());
        // What is older than all is in the first window.
        let from = if known.number == 0 { 0 } else { own[first] };
        let is_there = known.number == 0 || time_us(first) == known.start_us;
        self.readings.get(from..next).filter(|_| is_there)
    }
}

/// The late readings of a key.
pub(super) struct OfKey {
    late: Vec<Late>,
    /// What is older is final.
    pub(super) final_us: i64,
    /// Windows that are final, by their numbers.
    known: BTreeMap<i64, Numbered>,
    /// By the times in which they are.
    windows: Vec<Window>,
    /// How many of them have begun, and those that may have more readings.
    begun: usize,
    open: Vec<usize>,
    /// Times and places in the journal of those that were late, of this group and before.
    late_before: BTreeSet<(i64, i64)>,
}

impl OfKey {
    /// By time.
    pub(super) fn new(late: Vec<Late>) -> Self {
        let final_us = late.iter().map(|l| l.final_us).max().unwrap_or_default();
        let late_before = late.iter().map(|l| (l.time_us, l.offset)).collect();
        let (known, windows, open) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { late, final_us, known, windows, begun: 0, open, late_before }
    }

    /// Forgets what is known of windows: it comes now.
    pub(super) fn begin(&mut self) {
        self.known.clear();
    }

    /// The first and the last late reading.
    pub(super) fn range_us(&self) -> Bounds {
        let us = |late: Option<&Late>| late.map_or(0, |l| l.time_us);
        (us(self.late.first()), us(self.late.last()))
    }

    /// Takes a window of the table.
    pub(super) fn know(&mut self, known: Numbered) {
        // What the step can still change is its own matter.
        if known.end_us < self.final_us && known.rows > 0 {
            self.known.insert(known.number, known);
        }
    }

    /// Whether there are windows enough before the first late reading, or none.
    pub(super) fn has_before(&self) -> bool {
        let first_us = self.range_us().0;
        self.known.contains_key(&0)
            || self.known.values().filter(|known| known.end_us < first_us).count() > 1
    }

    /// Whether there is a window after the last late reading.
    pub(super) fn has_after(&self) -> bool {
        let last_us = self.range_us().1;
        self.known.values().any(|known| last_us < known.start_us)
    }

    /// Chooses the windows that may have late readings. Without overlaps and gaps (`are_adjacent`),
    /// neighbours tell which of several readings of one time are in a window.
    pub(super) fn choose(&mut self, are_adjacent: bool) {
        let mut chosen: BTreeMap<i64, Bounds> = BTreeMap::new();
        let known: Vec<&Numbered> = self.known.values().collect();
        for us in self.late.iter().map(|l| l.time_us) {
            // Both their starts and their ends grow.
            let begun = &known[..known.partition_point(|k| k.start_us <= us)];
            let over = begun.partition_point(|k| k.end_us < us);
            let last_us = begun[..over].last().map(|k| k.end_us);
            let last = begun[..over].iter().rev().take_while(|k| Some(k.end_us) == last_us);
            let first = known.first().filter(|k| k.number == 0 && us < k.start_us);
            for known in begun[over..].iter().chain(last).chain(first) {
                let new = || (known.start_us.min(us), known.end_us.max(us));
                let range = chosen.entry(known.number).or_insert_with(new);
                *range = (range.0.min(us), range.1.max(us));
            }
        }
        let ties = |number: i64, known: &Numbered| {
            let before = self.known.get(&(number - 1)).map(|k| k.end_us);
            let after = self.known.get(&(number + 1)).map(|k| k.start_us);
            let begins_alone = number == 0 || before.is_some_and(|us| us < known.start_us);
            let ends_alone = after.is_some_and(|us| known.end_us < us);
            match (begins_alone, ends_alone) {
                _ if !are_adjacent => None,
                (true, _) => Some(Ties::Last),
                (false, true) => before.map(|_| Ties::First),
                (false, false) => None,
            }
        };
        let window = |(number, range_us): (i64, Bounds)| {
            let known = *self.known.get(&number)?;
            Some(Window { known, range_us, ties: ties(number, &known), readings: Vec::new() })
        };
        self.windows = chosen.into_iter().filter_map(window).collect();
        self.windows.sort_by_key(|w| w.range_us);
    }

    /// Notes that a reading was late.
    pub(super) fn was_late(&mut self, at: (i64, i64)) {
        self.late_before.insert(at);
    }

    /// The times of the windows that were chosen; by their starts.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Bounds> {
        self.windows.iter().map(|w| w.range_us)
    }

    /// From the first to the last of these times.
    pub(super) fn windows_us(&self) -> Option<Bounds> {
        let from_us = self.windows.iter().map(|w| w.range_us.0).min()?;
        Some((from_us, self.windows.iter().map(|w| w.range_us.1).max()?))
    }

    /// Takes a stored reading, by time.
    pub(super) fn read(&mut self, at: (i64, i64), place: Place) {
        let is_new = self.late.binary_search_by_key(&at, |l| (l.time_us, l.offset)).is_ok();
        let is_late = is_new || self.late_before.contains(&at);
        let reading = Reading { at, is_late, is_new, place };
        while self.windows.get(self.begun).is_some_and(|w| w.range_us.0 <= at.0) {
            self.open.push(self.begun);
            self.begun += 1;
        }
        self.open.retain(|i| at.0 <= self.windows[*i].range_us.1);
        for i in &self.open {
            self.windows[*i].readings.push(reading);
        }
    }

    /// The windows that were chosen, with their readings.
    pub(super) fn chosen(&self) -> &[Window] {
        &self.windows
    }

    /// Times of late readings that no window has, with how many there are.
    pub(super) fn nowhere(&self, size: i64) -> impl Iterator<Item = (i64, i64)> {
        // Of a window that cannot be told, all readings in its time stay with it.
        let of = |w: &Window| -> Vec<(i64, i64)> {
            let readings = w.members(size).unwrap_or(&w.readings);
            readings.iter().filter(|r| r.is_new).map(|r| r.at).collect()
        };
        let somewhere: BTreeSet<(i64, i64)> = self.windows.iter().flat_map(of).collect();
        let is_nowhere = move |l: &&Late| !somewhere.contains(&(l.time_us, l.offset));
        self.late.iter().filter(is_nowhere).map(|l| (l.time_us, l.count))
    }
}
