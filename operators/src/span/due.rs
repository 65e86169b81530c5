//! Which windows are due, and what is folded, key by key; the merging itself is done for all keys
//! at once at the end of the epoch.

use std::sync::Arc;

use super::SpanOperator;
use super::keys::{KeyState, Record};
use super::rule::{Folding, Found, Horizon, Rule};
use crate::operator::OperatorError;
use crate::partial::Slot;
use crate::spec::LatePolicy;

/// The chunk of a slot whose state is still to be merged; its row is the number of the merge.
const PENDING: u32 = u32::MAX;

/// A window to emit.
#[derive(Clone, Debug)]
pub(super) struct Due {
    pub(super) key: u32,
    pub(super) record: Record,
    /// Its parts: a range of [`Work::parts`].
    pub(super) parts: (usize, usize),
}

/// States to be merged into one.
#[derive(Clone, Copy, Debug)]
struct Merge {
    key: u32,
    /// First time of the entry, or number of the pane.
    number: i64,
    of_pane: bool,
}

/// What is to be done at the end of an epoch.
#[derive(Default)]
pub(super) struct Work {
    pub(super) due: Vec<Due>,
    /// Where the states lie that due windows are put together from.
    pub(super) parts: Vec<Slot>,
    merges: Vec<Merge>,
    /// What is merged, and by which merge.
    merged: Vec<Slot>,
    merge_of: Vec<usize>,
    /// What is no longer needed after that.
    pub(super) released: Vec<Slot>,
    found: Vec<Found>,
}

impl Work {
    /// Orders a merge; what it makes is known by the slot that this returns.
    fn merge(&mut self, merge: Merge, slots: impl Iterator<Item = Slot>) -> Slot {
        let row = self.merges.len();
        self.merges.push(merge);
        for slot in slots {
            self.merged.push(slot);
            self.merge_of.push(row);
        }
        Slot { chunk: PENDING, row: row as u32 }
    }
}

impl SpanOperator {
    /// Steps 2 and 3 for one key: it is complete up to `horizon_us`.
    pub(super) fn settle(&mut self, id: u32, horizon_us: i64, end: bool) {
        let final_before_us = self.final_us(self.keys[id as usize].settled_us);
        let key = &mut self.keys[id as usize];
        let us = horizon_us.max(key.settled_us);
        if us == key.settled_us && key.cursor.is_some() && !end {
            // Nothing is complete that was not before. Sessions still grow together.
            if let Rule::Session(_) = self.rule {
                self.fold(id);
            }
            return;
        }
        let whole = key.cursor.is_none();
        let mut cursor = key.cursor.take().unwrap_or_else(|| self.rule.start(key));
        let mut found = std::mem::take(&mut self.work.found);
        found.clear();
        let horizon = Horizon { us, final_us: final_before_us, end };
        key.next_us = self.rule.scan(key, &mut cursor, horizon, &mut found);
        key.settled_us = us;
        let open_id = cursor.open.map(|open| key.entries[open].first_us);
        key.cursor = Some(cursor);
        for window in &found {
            self.note_found(id, window);
        }
        if whole && self.spec.shape.withdraws() {
            self.note_withdrawn(id, &found, open_id);
        }
        self.work.found = found;
        self.fold(id);
        if end {
            self.forget_provisional(id);
        }
    }

    /// A window that has ended: due if it was not emitted as it is.
    fn note_found(&mut self, id: u32, window: &Found) {
        let key = &mut self.keys[id as usize];
        let mut record = Record {
            id: window.id,
            start_us: window.start_us,
            end_us: window.end_us,
            rows: window.rows,
            members: window.members,
            revision: 0,
        };
        match key.records.binary_search_by_key(&window.id, |r| r.id) {
            Ok(at) => {
                let before = key.records[at];
                record.revision = before.revision;
                if record == before {
                    return;
                }
                record.revision += 1;
                Arc::make_mut(&mut key.records)[at] = record;
            }
            Err(at) => Arc::make_mut(&mut key.records).insert(at, record),
        }
        let first = self.work.parts.len();
        self.note_parts(id, window);
        let parts = (first, self.work.parts.len());
        self.work.due.push(Due { key: id, record, parts });
    }

    /// The parts of a window, in the order of time.
    fn note_parts(&mut self, id: u32, window: &Found) {
        let Rule::Sliding(rule) = self.rule else {
            let entries = self.keys[id as usize].entries.range(window.from..window.to);
            self.work.parts.extend(entries.map(|e| e.slot));
            return;
        };
        for piece in rule.pieces(&self.keys[id as usize].entries, window) {
            let key = &mut self.keys[id as usize];
            let slots = key.entries.range(piece.from..piece.to).map(|e| e.slot);
            let Some(number) = piece.pane else {
                self.work.parts.extend(slots);
                continue;
            };
            let slot = match key.pane(number) {
                Ok(at) => key.panes[at].1,
                Err(at) => {
                    let merge = Merge { key: id, number, of_pane: true };
                    let slot = self.work.merge(merge, slots);
                    Arc::make_mut(&mut key.panes).insert(at, (number, slot));
                    slot
                }
            };
            self.work.parts.push(slot);
        }
    }

    /// All entries were gone through: what was emitted and is neither there nor open is no window.
    fn note_withdrawn(&mut self, id: u32, found: &[Found], open_id: Option<i64>) {
        let records = Arc::clone(&self.keys[id as usize].records);
        for (at, record) in records.iter().enumerate() {
            let is_there = found.binary_search_by_key(&record.id, |w| w.id).is_ok();
            if is_there || record.rows == 0 || open_id == Some(record.id) {
                continue;
            }
            let revision = record.revision + 1;
            let record = Record { rows: 0, members: 0, revision, ..*record };
            Arc::make_mut(&mut self.keys[id as usize].records)[at] = record;
            self.work.due.push(Due { key: id, record, parts: (0, 0) });
        }
    }

    /// Step 3: drops and folds what is final.
    fn fold(&mut self, id: u32) {
        let final_us = self.final_us(self.keys[id as usize].settled_us);
        let key = &mut self.keys[id as usize];
        let Folding { drop, ranges, first_id } = self.rule.fold(key, final_us);
        if key.records.front().is_some_and(|r| r.id < first_id) {
            let records = Arc::make_mut(&mut key.records);
            let gone = records.partition_point(|r| r.id < first_id);
            records.drain(..gone);
        }
        if let Rule::Sliding(rule) = self.rule {
            let first = rule.pane(first_id);
            if key.panes.front().is_some_and(|(number, _)| *number < first) {
                let panes = Arc::make_mut(&mut key.panes);
                let gone = panes.partition_point(|(number, _)| *number < first);
                self.work.released.extend(panes.drain(..gone).map(|(_, slot)| slot));
            }
        }
        for entry in key.entries.range(..drop) {
            key.passed += entry.rows;
            self.work.released.push(entry.slot);
        }
        for (from, to) in &ranges {
            let parts: Vec<Slot> = key.entries.range(*from..*to).map(|e| e.slot).collect();
            self.work.released.extend(&parts);
            let mut whole = key.entries[*from];
            for part in key.entries.range(from + 1..*to) {
                whole.last_us = whole.last_us.max(part.last_us);
                whole.rows += part.rows;
                whole.members = whole.members.wrapping_add(part.members);
            }
            let merge = Merge { key: id, number: whole.first_us, of_pane: false };
            whole.slot = self.work.merge(merge, parts.into_iter());
            Arc::make_mut(&mut key.entries)[*from] = whole;
        }
        key.fold(drop, &ranges);
    }

    /// The input has ended: where nothing is revised, what was emitted now must not come again.
    fn forget_provisional(&mut self, id: u32) {
        let LatePolicy::Table = self.spec.late else { return };
        let Rule::State(_) = self.rule else { return };
        let key = &mut self.keys[id as usize];
        let count = key.entries.len();
        self.work.released.extend(key.entries.iter().map(|e| e.slot));
        key.fold(count, &[]);
        key.cursor = Some(self.rule.start(key));
        key.records = Arc::default();
    }

    /// A reading came into a pane whose readings were merged already.
    pub(super) fn forget_pane(&mut self, id: u32, time_us: i64) {
        let Rule::Sliding(rule) = self.rule else { return };
        let key = &mut self.keys[id as usize];
        if let Ok(at) = key.pane(rule.pane(time_us))
            && let Some((_, slot)) = Arc::make_mut(&mut key.panes).remove(at)
        {
            self.store.release(slot);
        }
    }

    /// Step 4a: the merges of all keys.
    pub(super) fn merge_all(&mut self) -> Result<(), OperatorError> {
        let merges = std::mem::take(&mut self.work.merges);
        if merges.is_empty() {
            return Ok(());
        }
        // A merge can take what another one makes only from an earlier epoch, or the order of
        // merges would matter: within an epoch a key is settled, and so folded, once.
        let state = self.store.gather(&self.work.merged)?;
        let merged = self.aggregation.merged(&state, &self.work.merge_of, merges.len())?;
        let owners = merges.iter().map(|m| (m.key, m.number)).collect();
        let chunk = self.store.add(merged, owners);
        for (row, merge) in merges.iter().enumerate() {
            let (pending, slot) = (pending(row), Slot { chunk, row: row as u32 });
            let key = &mut self.keys[merge.key as usize];
            if !place(key, merge.number, merge.of_pane, pending, slot) {
                // Dropped in the same epoch.
                self.work.released.push(slot);
            }
        }
        for part in self.work.parts.iter_mut().filter(|p| p.chunk == PENDING) {
            part.chunk = chunk;
        }
        self.work.released.retain(|slot| slot.chunk != PENDING);
        self.work.merged.clear();
        self.work.merge_of.clear();
        Ok(())
    }

    /// Merges chunks of the store where there are many.
    pub(super) fn compact(&mut self) -> Result<(), OperatorError> {
        let keys = std::cell::RefCell::new(&mut self.keys);
        self.store.compact(
            |(id, number), slot| {
                let keys = keys.borrow();
                let key = &keys[id as usize];
                key.position(number, slot).is_some()
                    || key.pane(number).is_ok_and(|at| key.panes[at].1 == slot)
            },
            |(id, number), old, new| {
                let mut keys = keys.borrow_mut();
                let key = &mut keys[id as usize];
                if !place(key, number, false, old, new) {
                    place(key, number, true, old, new);
                }
            },
        )?;
        Ok(())
    }
}

fn pending(row: usize) -> Slot {
    Slot { chunk: PENDING, row: row as u32 }
}

/// Tells an entry or a pane where its state lies now; false if there is none of it at `old`.
fn place(key: &mut KeyState, number: i64, of_pane: bool, old: Slot, new: Slot) -> bool {
    if of_pane {
        let found = key.pane(number).ok().filter(|at| key.panes[*at].1 == old);
        if let Some(at) = found {
            Arc::make_mut(&mut key.panes)[at].1 = new;
        }
        return found.is_some();
    }
    let found = key.position(number, old);
    if let Some(at) = found {
        Arc::make_mut(&mut key.entries)[at].slot = new;
    }
    found.is_some()
}
