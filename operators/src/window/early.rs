//! Early results: open windows as they are, see [`crate::early`]. Readings only come, so a window
//! with another number of them than in its last row has other ones.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray};

use super::WindowOperator;
use super::bounds::Bounds;
use super::close::Due;
use super::keys::{Emitted, KeyState, Pane};
use crate::batch::Tick;

/// The open windows of a key that have other readings than in their last row.
fn changed(key: &KeyState, bounds: &Bounds) -> Vec<i64> {
    let mut next = key.closed.saturating_add(1);
    let panes = match key.closed {
        i64::MIN => &key.panes[..],
        _ => key.panes_from(bounds.panes_of(next).0),
    };
    let rows_before = rows_before(&key.panes);
    let rows_in = |(from, to): (i64, i64)| {
        let at = |number: i64| key.panes.partition_point(|pane| pane.number < number);
        rows_before[at(to.saturating_add(1))] - rows_before[at(from)]
    };
    let mut changed = Vec::new();
    for pane in panes {
        let (first, last) = bounds.windows_of(pane.number);
        for window in first.max(next)..=last {
            let told = key.emitted_at(window).ok().map(|at| key.emitted[at].rows);
            if told != Some(rows_in(bounds.panes_of(window))) {
                changed.push(window);
            }
        }
        next = next.max(last.saturating_add(1));
    }
    changed
}

/// How many readings the panes before each one have, and all of them.
fn rows_before(panes: &[Pane]) -> Vec<i64> {
    let mut rows = 0;
    let sums = panes.iter().map(|pane| {
        rows += pane.rows;
        rows
    });
    std::iter::once(0).chain(sums).collect()
}

impl WindowOperator {
    /// Step 3: open windows that changed are due, if their time has come; and keys that had
    /// readings in this epoch wait.
    pub(super) fn emit_early(&mut self, tick: Tick) {
        if !self.early.is_on() {
            return;
        }
        let had: Vec<u32> = self.touched.clone();
        while let Some((listed_us, ids)) = self.early.due(tick.time_us) {
            for id in ids {
                let waits = self.keys.get(id as usize).is_some_and(|k| k.early_us == listed_us);
                if waits {
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
        let key = &mut self.keys[id as usize];
        key.early_us = i64::MAX;
        let changed = changed(key, &self.bounds);
        self.due.extend(changed.into_iter().map(|window| Due::early(id, window)));
        // It does not wait any more, and what is known of its rows may be another thing now.
        self.touched.push(id);
    }

    /// The number of a row, which has so many readings.
    pub(super) fn revision(&mut self, due: Due, rows: i64) -> i64 {
        let key = &mut self.keys[due.id as usize];
        match key.emitted_at(due.window) {
            Ok(at) => {
                let emitted = &mut key.emitted[at];
                (emitted.revision, emitted.rows) = (emitted.revision + 1, rows);
                emitted.revision
            }
            Err(at) => {
                let revision = i64::from(due.revise);
                if due.revise || self.early.is_on() {
                    key.emitted.insert(at, Emitted { window: due.window, revision, rows });
                }
                revision
            }
        }
    }

    /// The column that says which rows are of windows that are over.
    pub(super) fn finality(&self, due: &[Due]) -> Option<ArrayRef> {
        let flags = || BooleanArray::from_iter(due.iter().map(|d| Some(!d.early)));
        self.early.is_on().then(|| Arc::new(flags()) as ArrayRef)
    }

    /// Puts the keys on the list that wait: after state was loaded.
    pub(super) fn list_early(&mut self) {
        self.early.clear();
        for id in self.interner.ids() {
            let key = &mut self.keys[id as usize];
            match self.early.is_on() {
                true if key.early_us < i64::MAX => self.early.list_until(id, key.early_us),
                true => {}
                false => key.early_us = i64::MAX,
            }
        }
    }
}
