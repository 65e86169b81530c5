//! Sessions: readings without a longer pause between them, cut at a true maximum.
//!
//! A session begins with a reading that is in none. A reading belongs to it if it is not more than
//! `gap` after the one before and less than `max` after the first. So the sessions are a function
//! of the times alone. Without a maximum, two readings that are near enough are in one session
//! whatever else comes, so a session is one entry; with one, a late reading may move every cut that
//! follows, so entries stay apart until no such reading can come.

use super::keys::Cursor;
use super::rule::{Entries, Folding, Found, Horizon, fold_open};

#[derive(Clone, Copy, Debug)]
pub(super) struct Session {
    pub(super) gap_us: i64,
    pub(super) max_us: Option<i64>,
}

impl Session {
    fn cut_us(&self, start_us: i64) -> i64 {
        self.max_us.map_or(i64::MAX, |max_us| start_us.saturating_add(max_us))
    }

    /// Where the last one of these begins that is cut whatever comes, as it is final.
    pub(super) fn last_cut_us(&self, closed: &[Found], final_us: i64) -> Option<i64> {
        let is_cut = |f: &&Found| self.max_us.is_some() && self.cut_us(f.start_us) <= final_us;
        closed.iter().rev().find(is_cut).map(|f| f.start_us)
    }

    pub(super) fn scan(
        &self,
        entries: &Entries,
        cursor: &mut Cursor,
        horizon: Horizon,
        found: &mut Vec<Found>,
    ) -> i64 {
        // Without a maximum, what is in the session may have grown since. With one, only its first
        // entry has more than one reading, of which some can be later than the last that was taken.
        let from = match (cursor.open, self.max_us) {
            (Some(open), None) => open,
            _ => cursor.at.saturating_sub(1),
        };
        let open = cursor.open.into_iter().chain(from..cursor.at);
        let mut last_us = open.map(|at| entries[at].last_us).max().unwrap_or(i64::MIN);
        loop {
            let next = entries.get(cursor.at);
            let settles_us = next.map_or(i64::MAX, |e| e.first_us.saturating_add(1));
            let next = next.filter(|e| e.first_us < horizon.us);
            let Some(open) = cursor.open else {
                let Some(next) = next else { return settles_us };
                cursor.open = Some(cursor.at);
                last_us = next.last_us;
                cursor.at += 1;
                continue;
            };
            let start_us = entries[open].first_us;
            let pause_us = last_us.saturating_add(self.gap_us);
            let cut_us = self.cut_us(start_us);
            if let Some(next) = next.filter(|e| e.first_us <= pause_us && e.first_us < cut_us) {
                last_us = last_us.max(next.last_us);
                cursor.at += 1;
                continue;
            }
            let ends_us = pause_us.saturating_add(1).min(cut_us);
            if next.is_none() && horizon.us < ends_us {
                return ends_us.min(settles_us);
            }
            let bounds = (start_us, last_us);
            found.push(Found::of(entries, (open, cursor.at), start_us, bounds));
            cursor.open = None;
        }
    }

    pub(super) fn fold(&self, entries: &Entries, final_us: i64) -> Folding {
        let horizon = Horizon { us: final_us, final_us: i64::MIN, end: false };
        let (mut cursor, mut closed) = (Cursor::default(), Vec::new());
        self.scan(entries, &mut cursor, horizon, &mut closed);
        let mut folding = fold_open(entries, &cursor, final_us);
        folding.cut_us = self.last_cut_us(&closed, final_us);
        if self.max_us.is_none() {
            folding.ranges = self.together(entries, folding.drop);
        }
        folding
    }

    /// The ranges of entries, from `from` on, between which no pause is long enough.
    fn together(&self, entries: &Entries, first: usize) -> Vec<(usize, usize)> {
        let mut ranges = Vec::new();
        let (mut from, mut last_us) = (first, i64::MIN);
        for at in first..=entries.len() {
            let next = entries.get(at);
            let near = next.is_some_and(|e| e.first_us <= last_us.saturating_add(self.gap_us));
            if !near && at > from + 1 {
                ranges.push((from, at));
            }
            if !near {
                (from, last_us) = (at, i64::MIN);
            }
            last_us = next.map_or(last_us, |e| e.last_us.max(last_us));
        }
        ranges
    }
}
