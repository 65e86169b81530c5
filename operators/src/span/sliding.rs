//! One window around each reading: `[t - before, t + after]`, both ends included.
//!
//! Windows overlap as much as readings are dense, so their parts are shared: time is divided into
//! panes, a pane with several readings is merged once, and a window is put together from the panes
//! that lie wholly in it and the single readings at its two ends. Which parts those are follows
//! from the readings alone, so the same windows have the same bits.

use super::keys::{Cursor, Marks};
use super::rule::{Entries, Folding, Found, Horizon};

/// Panes of a window: a window of n readings is put together from about this many panes and
/// `2 n / PANES` readings.
const PANES: i64 = 32;
/// Readings of a pane that are worth a partial aggregate of their own.
const SHARED_MIN: usize = 4;

#[derive(Clone, Copy, Debug)]
pub(super) struct Sliding {
    pub(super) before_us: i64,
    pub(super) after_us: i64,
}

/// A piece of a window: entries in `from..to`, of the pane of this number if they are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) pane: Option<i64>,
}

/// Most panes of a key with so many entries that are kept as partial aggregates of their own.
pub(super) fn panes_max(before_us: i64, after_us: i64, tail_us: i64, entries: u64) -> u64 {
    let rule = Sliding { before_us, after_us };
    let span_us = before_us.saturating_add(after_us).saturating_add(tail_us);
    let panes = (span_us / rule.pane_us()).unsigned_abs().saturating_add(2);
    panes.min(entries / SHARED_MIN as u64)
}

impl Sliding {
    pub(super) fn scan(
        &self,
        entries: &Entries,
        cursor: &mut Cursor,
        horizon: Horizon,
        found: &mut Vec<Found>,
    ) -> i64 {
        while let Some(entry) = entries.get(cursor.at) {
            let time_us = entry.first_us;
            let end_us = time_us.saturating_add(self.after_us);
            let another = cursor.around_us != Some(time_us);
            if time_us >= horizon.us {
                return end_us.saturating_add(1);
            }
            if !entry.marks.has(Marks::AT) || end_us < horizon.final_us || !another {
                cursor.at += 1;
                continue;
            }
            if end_us >= horizon.us {
                return end_us.saturating_add(1);
            }
            let start_us = time_us.saturating_sub(self.before_us);
            while let Some(e) = entries.get(cursor.high).filter(|e| e.first_us <= end_us) {
                cursor.rows += e.rows;
                cursor.members = cursor.members.wrapping_add(e.members);
                cursor.high += 1;
            }
            while entries[cursor.low].first_us < start_us {
                cursor.rows -= entries[cursor.low].rows;
                cursor.members = cursor.members.wrapping_sub(entries[cursor.low].members);
                cursor.low += 1;
            }
            found.push(Found {
                id: start_us,
                start_us,
                end_us,
                from: cursor.low,
                to: cursor.high,
                rows: cursor.rows,
                members: cursor.members,
            });
            cursor.around_us = Some(time_us);
            cursor.at += 1;
        }
        i64::MAX
    }

    pub(super) fn fold(&self, entries: &Entries, final_us: i64) -> Folding {
        let first_us = final_us.saturating_sub(self.after_us).saturating_sub(self.before_us);
        let drop = entries.partition_point(|e| e.first_us < first_us);
        Folding { drop, first_id: first_us, ..Folding::default() }
    }

    fn pane_us(&self) -> i64 {
        (self.before_us.saturating_add(self.after_us) / PANES).max(1)
    }

    /// The pane of a time.
    pub(super) fn pane(&self, time_us: i64) -> i64 {
        time_us.div_euclid(self.pane_us())
    }

    /// The pieces of a window, in the order of time.
    pub(super) fn pieces(&self, entries: &Entries, window: &Found) -> Vec<Piece> {
        let pane_us = self.pane_us();
        let first = -(window.start_us.saturating_neg().div_euclid(pane_us));
        let last = window.end_us.saturating_add(1).div_euclid(pane_us) - 1;
        let mut pieces = Vec::new();
        let mut from = window.from;
        while from < window.to {
            let pane = self.pane(entries[from].first_us);
            let mut to = from + 1;
            let mut shared = None;
            if first <= pane && pane <= last {
                let after_us = (pane + 1).saturating_mul(pane_us);
                let inside = entries.range(to..window.to);
                to += inside.take_while(|e| e.first_us < after_us).count();
                shared = (to - from >= SHARED_MIN).then_some(pane);
            }
            pieces.push(Piece { from, to, pane: shared });
            from = to;
        }
        pieces
    }
}
