//! Windows from a reading that meets a condition to one that meets another.
//!
//! Outside of a window, a reading that meets `begin` (and not `abort`) begins one. Inside, in this
//! order: a reading `max` after the first or later finds the window cut there and is itself
//! outside; one that meets `abort` ends it without a row; one that meets `until`, later than the
//! first, ends it, belongs to it, and begins the next one if it meets `begin`. Without `until` the
//! first that does not meet `begin` ends it and is outside. A window lasts from its first reading
//! to the time of what ended it; one that lasted no time is none, so no two have the same start.

use super::keys::{Cursor, Marks};
use super::rule::{Entries, Folding, Found, Horizon, fold_open};

#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    /// Whether something other than the end of `begin` ends a window.
    pub(super) until: bool,
    pub(super) min_us: i64,
    pub(super) max_us: Option<i64>,
}

impl State {
    pub(super) fn scan(
        &self,
        entries: &Entries,
        cursor: &mut Cursor,
        horizon: Horizon,
        found: &mut Vec<Found>,
    ) -> i64 {
        loop {
            let next = entries.get(cursor.at);
            let settles_us = next.map_or(i64::MAX, |e| e.first_us.saturating_add(1));
            let next = next.filter(|e| e.first_us < horizon.us);
            let Some(open) = cursor.open else {
                let Some(entry) = next else { return settles_us };
                if begins(entry.marks) {
                    cursor.open = Some(cursor.at);
                }
                cursor.at += 1;
                continue;
            };
            let start_us = entries[open].first_us;
            let cut_us = self.max_us.map_or(i64::MAX, |max_us| start_us.saturating_add(max_us));
            let mut close = |to: usize, end_us: i64| {
                if end_us > start_us && end_us - start_us >= self.min_us {
                    let bounds = (start_us, end_us);
                    found.push(Found::of(entries, (open, to), start_us, bounds));
                }
            };
            match next {
                None if horizon.us < cut_us => {
                    if horizon.end {
                        // A reading can have come in the middle of what became one entry.
                        let last_us = entries[cursor.at - 1].last_us.max(entries[open].last_us);
                        close(cursor.at, last_us);
                    }
                    return cut_us.min(settles_us);
                }
                Some(entry) if entry.first_us < cut_us => {
                    self.inside(cursor, start_us, (entry.first_us, entry.marks), close);
                }
                // Cut; what comes next is outside.
                _ => {
                    close(cursor.at, cut_us);
                    cursor.open = None;
                }
            }
        }
    }

    /// Goes on by a reading (its time and marks) before the cut of the open window.
    fn inside(
        &self,
        cursor: &mut Cursor,
        start_us: i64,
        (time_us, marks): (i64, Marks),
        mut close: impl FnMut(usize, i64),
    ) {
        if marks.has(Marks::ABORT) {
            cursor.open = None;
        } else if !self.until && !marks.has(Marks::BEGIN) {
            close(cursor.at, time_us);
            cursor.open = None;
        } else if self.until && marks.has(Marks::UNTIL) && time_us > start_us {
            close(cursor.at + 1, time_us);
            cursor.open = begins(marks).then_some(cursor.at);
        }
        cursor.at += 1;
    }

    /// Whether a reading ends whatever is open (but for what begins at its own time).
    pub(super) fn resets(&self, marks: Marks) -> bool {
        let ends = if self.until { marks.has(Marks::UNTIL) } else { !marks.has(Marks::BEGIN) };
        ends || marks.has(Marks::ABORT)
    }

    pub(super) fn fold(&self, entries: &Entries, final_us: i64) -> Folding {
        let horizon = Horizon { us: final_us, final_us: i64::MIN, end: false };
        let (mut cursor, mut closed) = (Cursor::default(), Vec::new());
        self.scan(entries, &mut cursor, horizon, &mut closed);
        let ended_us = closed.last().map(|c| c.end_us);
        Folding { ended_us, ..fold_open(entries, &cursor, final_us) }
    }
}

fn begins(marks: Marks) -> bool {
    marks.has(Marks::BEGIN) && !marks.has(Marks::ABORT)
}
