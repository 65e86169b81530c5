//! Early results: what the windows of a key would be if no reading came any more, see
//! [`crate::early`].
//!
//! The rule goes on from the key's cursor, on a copy of it, as it does at the end of the input. A
//! window that it finds is emitted if it is not as in its last row; one that was emitted early and
//! is not found any more is withdrawn. Who gets the final rows only is told of that if a final row
//! was ever there: they get what they would get without early results.

use std::sync::Arc;

use super::SpanOperator;
use super::keys::{KeyState, Record, Told};
use super::rule::{Found, Horizon, Rule};
use crate::batch::Tick;

impl SpanOperator {
    /// What is open is due, if its time has come and it changed; and keys that had readings in this
    /// epoch wait.
    pub(super) fn emit_early(&mut self, tick: Tick) {
        if !self.early.is_on() {
            return;
        }
        let had: Vec<u32> = self.touched.clone();
        while let Some((listed_us, ids)) = self.early.due(tick.time_us) {
            for id in ids {
                if self.keys[id as usize].early_us == listed_us {
                    self.take_early(id);
                }
            }
        }
        for id in had {
            let key = &mut self.keys[id as usize];
            if key.epoch == tick.epoch && key.early_us == i64::MAX {
                key.early_us = self.early.list(id, tick.time_us);
            }
        }
    }

    fn take_early(&mut self, id: u32) {
        self.keys[id as usize].early_us = i64::MAX;
        let found = self.provisional(id);
        for window in &found {
            self.note_early(id, window);
        }
        self.withdraw_early(id, &found);
        // It does not wait any more, and what is known of its rows may be another thing now.
        self.touched.push(id);
    }

    /// The windows that have not ended, in the order of their ids.
    fn provisional(&self, id: u32) -> Vec<Found> {
        let key = &self.keys[id as usize];
        let mut cursor = key.cursor.unwrap_or_else(|| self.rule.start(key));
        let end_us = key.clock_us.saturating_add(self.rule.end_us()).saturating_add(1);
        let final_us = self.final_us(key.settled_us);
        let horizon = Horizon { us: end_us.max(key.settled_us), final_us, end: true };
        let mut found = Vec::new();
        self.rule.scan(key, &mut cursor, horizon, &mut found);
        if let Rule::Count(rule) = self.rule {
            rule.scan_open(key, &mut found);
        }
        found
    }

    /// A window that has not ended: due if it is not as in its last row.
    fn note_early(&mut self, id: u32, window: &Found) {
        let incomplete = !self.qualities.of_window(&self.keys[id as usize], window).complete;
        let of = |revision, told| Record { incomplete, ..Record::of(window, revision, told) };
        let records = &mut self.keys[id as usize].records;
        let record = match records.binary_search_by_key(&window.id, |r| r.id) {
            Ok(at) => {
                let before = records[at];
                if before.is_as(window) {
                    return;
                }
                let told = match before.told {
                    Told::Final if before.rows > 0 => Told::EarlyAgain,
                    Told::EarlyAgain => Told::EarlyAgain,
                    _ => Told::Early,
                };
                let record = of(before.revision + 1, told);
                Arc::make_mut(records)[at] = record;
                record
            }
            Err(at) => {
                let record = of(0, Told::Early);
                Arc::make_mut(records).insert(at, record);
                record
            }
        };
        self.note_due(id, window, record);
    }

    /// Withdraws what was emitted early and is none of these windows.
    pub(super) fn withdraw_early(&mut self, id: u32, found: &[Found]) {
        if !self.early.is_on() || !self.spec.shape.withdraws() {
            return;
        }
        let gone = gone(&self.keys[id as usize], found);
        gone.into_iter().for_each(|at| self.withdraw(id, at));
    }

    /// Withdraws what was emitted early and cannot come any more: windows before this id are final.
    pub(super) fn withdraw_gone(&mut self, id: u32, first_id: i64) {
        if !self.early.is_on() || !self.spec.shape.withdraws() {
            return;
        }
        for at in gone(&self.keys[id as usize], &[]) {
            if self.keys[id as usize].records[at].id < first_id {
                self.withdraw(id, at);
            }
        }
    }

    /// Puts a key on the list if it waits: after state was loaded.
    pub(super) fn list_early(&mut self, id: u32) {
        let key = &mut self.keys[id as usize];
        match self.early.is_on() {
            true if key.early_us < i64::MAX => self.early.list_until(id, key.early_us),
            true => {}
            false => key.early_us = i64::MAX,
        }
    }
}

/// The records of windows that were emitted early, are not over, and are none of these.
fn gone(key: &KeyState, found: &[Found]) -> Vec<usize> {
    let is_gone = |record: &Record| {
        record.told != Told::Final
            && record.rows > 0
            && found.binary_search_by_key(&record.id, |w| w.id).is_err()
    };
    (0..key.records.len()).filter(|at| is_gone(&key.records[*at])).collect()
}
