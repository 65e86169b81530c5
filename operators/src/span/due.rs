//! Which windows are due, and what is folded, key by key; the merging itself is done for all keys
//! at once at the end of the epoch.

use std::ops::Range;
use std::sync::Arc;

use super::SpanOperator;
use super::keys::{Record, Told};
use super::places::owners;
use super::rule::{Folding, Found, Horizon, Rule};
use crate::operator::OperatorError;
use crate::quality::Quality;
use crate::spec::LatePolicy;

/// Entries that a key may have gained before it is looked what can be folded: folding costs the
/// same for one as for several.
pub(super) const FOLD_EVERY: usize = 8;

/// A window to emit.
#[derive(Clone, Debug)]
pub(super) struct Due {
    pub(super) key: u32,
    pub(super) record: Record,
    /// How many of its readings came late, and how many again, if that is asked for.
    pub(super) late: i64,
    pub(super) repeated: i64,
    /// Its parts: a range of [`Work::parts`].
    pub(super) parts: (usize, usize),
    /// Those who get the final rows only get it.
    pub(super) is_final: bool,
}

/// What is to be done at the end of an epoch.
#[derive(Default)]
pub(super) struct Work {
    pub(super) due: Vec<Due>,
    /// Where the states lie that due windows are put together from.
    pub(super) parts: Vec<u32>,
    /// Where the state of each merge is to lie.
    merges: Vec<u32>,
    /// What is merged, and by which merge.
    merged: Vec<u32>,
    merge_of: Vec<usize>,
    /// What is no longer needed after that.
    pub(super) released: Vec<u32>,
    found: Vec<Found>,
}

impl Work {
    /// Orders a merge, whose state is to lie at `place`.
    fn merge(&mut self, place: u32, parts: impl Iterator<Item = u32>) {
        for part in parts {
            self.merged.push(part);
            self.merge_of.push(self.merges.len());
        }
        self.merges.push(place);
    }
}

impl SpanOperator {
    /// Steps 2 and 3 for one key: it is complete up to `horizon_us`.
    pub(super) fn settle(&mut self, id: u32, horizon_us: i64, end: bool) {
        self.settle_windows(id, horizon_us, end);
        self.tell_decided(id);
    }

    fn settle_windows(&mut self, id: u32, horizon_us: i64, end: bool) {
        let final_before_us = self.final_us(self.keys[id as usize].settled_us);
        let key = &mut self.keys[id as usize];
        let us = horizon_us.max(key.settled_us);
        if us == key.settled_us
            && let Some(mut cursor) = key.cursor.filter(|_| !end)
        {
            // Nothing is complete that was not before, but something may be sooner than what was
            // to be next.
            let horizon = Horizon { us, final_us: final_before_us, end };
            key.next_us = self.rule.scan(key, &mut cursor, horizon, &mut Vec::new());
            // Sessions still grow together.
            if let Rule::Session(_) = self.rule {
                self.fold_some(id);
            }
            return;
        }
        let whole = key.cursor.is_none();
        let mut cursor = key.cursor.take().unwrap_or_else(|| self.rule.start(key));
        let mut found = std::mem::take(&mut self.work.found);
        found.clear();
        let was_open = cursor.open.map(|open| key.entries[open].first_us);
        let horizon = Horizon { us, final_us: final_before_us, end };
        key.next_us = self.rule.scan(key, &mut cursor, horizon, &mut found);
        key.settled_us = us;
        let open_id = cursor.open.map(|open| key.entries[open].first_us);
        key.cursor = Some(cursor);
        for window in &found {
            self.note_found(id, window);
        }
        if self.spec.shape.withdraws() {
            let gone_through = self.gone_through(id, whole, was_open);
            self.note_withdrawn(id, gone_through, &found, open_id);
        }
        self.work.found = found;
        if end {
            self.withdraw_early(id, &[]);
            self.fold(id);
            self.forget_provisional(id);
        } else {
            self.fold_some(id);
        }
    }

    /// A window that has ended: due if it was not emitted as it is.
    fn note_found(&mut self, id: u32, window: &Found) {
        let complete = self.qualities.of_window(&self.keys[id as usize], window).complete;
        let key = &mut self.keys[id as usize];
        let record = Record::of(window, 0, Told::Final);
        let mut record = Record { incomplete: !complete, ..record };
        match key.records.binary_search_by_key(&window.id, |r| r.id) {
            Ok(at) => {
                let before = key.records[at];
                // How good it is was judged before.
                if before.told == Told::Final && before.is_as(window) {
                    return;
                }
                record.revision = before.revision + 1;
                Arc::make_mut(&mut key.records)[at] = record;
            }
            Err(at) => Arc::make_mut(&mut key.records).insert(at, record),
        }
        self.note_due(id, window, record);
    }

    /// The window is emitted.
    pub(super) fn note_due(&mut self, id: u32, window: &Found, record: Record) {
        let first = self.work.parts.len();
        self.note_parts(id, window);
        let parts = (first, self.work.parts.len());
        let quality = self.qualities.of_window(&self.keys[id as usize], window);
        let Quality { late, repeated, .. } = quality;
        let is_final = record.told == Told::Final;
        self.work.due.push(Due { key: id, record, late, repeated, parts, is_final });
    }

    /// The parts of a window, in the order of time.
    pub(super) fn note_parts(&mut self, id: u32, window: &Found) {
        let Rule::Sliding(rule) = self.rule else {
            let entries = self.keys[id as usize].entries.range(window.from..window.to);
            self.work.parts.extend(entries.map(|e| e.place));
            return;
        };
        for piece in rule.pieces(&self.keys[id as usize].entries, window) {
            let key = &mut self.keys[id as usize];
            let parts = key.entries.range(piece.from..piece.to).map(|e| e.place);
            let Some(number) = piece.pane else {
                self.work.parts.extend(parts);
                continue;
            };
            let place = match key.pane(number) {
                Ok(at) => key.panes[at].1,
                Err(at) => {
                    let place = self.places.take();
                    self.work.merge(place, parts);
                    Arc::make_mut(&mut key.panes).insert(at, (number, place));
                    place
                }
            };
            self.work.parts.push(place);
        }
    }

    /// The records of windows whose entries were gone through: all, or what was open, of which an
    /// end of the input may have told as if no more came.
    fn gone_through(&self, id: u32, whole: bool, was_open: Option<i64>) -> Range<usize> {
        let records = &self.keys[id as usize].records;
        if whole {
            return 0..records.len();
        }
        let at = was_open.and_then(|open| records.binary_search_by_key(&open, |r| r.id).ok());
        at.map_or(0..0, |at| at..at + 1)
    }

    /// The entries of these windows were gone through: what was emitted and is neither there nor
    /// open is no window.
    fn note_withdrawn(
        &mut self,
        id: u32,
        gone_through: Range<usize>,
        found: &[Found],
        open_id: Option<i64>,
    ) {
        let records = Arc::clone(&self.keys[id as usize].records);
        for (at, record) in records.range(gone_through.clone()).enumerate() {
            let at = gone_through.start + at;
            let is_there = found.binary_search_by_key(&record.id, |w| w.id).is_ok();
            // What was only told early is looked at when it is time for that.
            let is_early = self.early.is_on() && record.told == Told::Early;
            if is_there || is_early || record.rows == 0 || open_id == Some(record.id) {
                continue;
            }
            self.withdraw(id, at);
        }
    }

    /// The window of a record is none any more.
    pub(super) fn withdraw(&mut self, id: u32, at: usize) {
        let record = &mut Arc::make_mut(&mut self.keys[id as usize].records)[at];
        let is_final = record.told != Told::Early;
        (record.rows, record.members, record.revision) = (0, 0, record.revision + 1);
        record.incomplete = false;
        if is_final {
            record.told = Told::Final;
        }
        let (record, parts) = (*record, (0, 0));
        self.work.due.push(Due { key: id, record, late: 0, repeated: 0, parts, is_final });
    }

    /// Step 3 if it is worth it: there is more to fold, or all that there is has become final.
    fn fold_some(&mut self, id: u32) {
        let all_us = self.all_final_us(id);
        let key = &mut self.keys[id as usize];
        let is_final = !key.is_final && key.settled_us >= all_us;
        if is_final || key.entries.len() >= key.folded + FOLD_EVERY {
            key.is_final = is_final;
            self.fold(id);
        }
    }

    /// Step 3: drops and folds what is final.
    fn fold(&mut self, id: u32) {
        let final_us = self.final_us(self.keys[id as usize].settled_us);
        let folding = self.rule.fold(&self.keys[id as usize], final_us);
        self.note_resets(id, final_us, &folding);
        let key = &mut self.keys[id as usize];
        let Folding { drop, mut ranges, first_id, ended_us, cut_us: _ } = folding;
        key.gone_us = key.gone_us.max(ended_us.unwrap_or(i64::MIN));
        self.withdraw_gone(id, first_id);
        let key = &mut self.keys[id as usize];
        if key.fold_epoch == self.epoch {
            // What it was merged to in this epoch is not there yet.
            ranges.clear();
        }
        key.fold_epoch = self.epoch;
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
                self.work.released.extend(panes.drain(..gone).map(|(_, place)| place));
            }
        }
        for entry in key.entries.range(..drop) {
            key.passed += entry.rows;
            key.gone_us = key.gone_us.max(entry.last_us);
            self.work.released.push(entry.place);
        }
        for (from, to) in &ranges {
            let parts = key.entries.range(*from..*to).map(|e| e.place);
            self.work.released.extend(parts.clone());
            let mut whole = key.entries[*from];
            for part in key.entries.range(from + 1..*to) {
                whole.last_us = whole.last_us.max(part.last_us);
                whole.rows += part.rows;
                whole.members = whole.members.wrapping_add(part.members);
            }
            whole.place = self.places.take();
            self.qualities.fold(parts.clone(), whole.place);
            self.work.merge(whole.place, parts);
            Arc::make_mut(&mut key.entries)[*from] = whole;
        }
        key.fold(drop, &ranges);
        key.folded = key.entries.len();
    }

    /// The input has ended: where nothing is revised, what was emitted now must not come again.
    fn forget_provisional(&mut self, id: u32) {
        let LatePolicy::Table = self.spec.late else { return };
        let Rule::State(_) = self.rule else { return };
        let key = &mut self.keys[id as usize];
        let count = key.entries.len();
        key.gone_us = key.entries.iter().fold(key.gone_us, |us, e| us.max(e.last_us));
        self.work.released.extend(key.entries.iter().map(|e| e.place));
        key.fold(count, &[]);
        key.folded = 0;
        key.cursor = Some(self.rule.start(key));
        key.records = Arc::default();
    }

    /// Step 4a: the merges of all keys.
    pub(super) fn merge_all(&mut self) -> Result<(), OperatorError> {
        let merges = std::mem::take(&mut self.work.merges);
        if merges.is_empty() {
            return Ok(());
        }
        // A merge can take what another one makes only from an earlier epoch, or the order of
        // merges would matter: within an epoch a key is settled, and so folded, once.
        let slots = self.places.slots(&self.work.merged);
        let state = self.store.gather(&slots)?;
        let merged = self.aggregation.merged(&state, &self.work.merge_of, merges.len())?;
        let chunk = self.store.add(merged, owners(&merges));
        self.places.settle(&merges, chunk);
        self.work.merged.clear();
        self.work.merge_of.clear();
        Ok(())
    }

    /// Merges chunks of the store where there are many.
    pub(super) fn compact(&mut self) -> Result<(), OperatorError> {
        let places = std::cell::RefCell::new(&mut self.places);
        self.store.compact(
            |(place, _), slot| places.borrow().slot(place) == slot,
            |(place, _), _, new| places.borrow_mut().set(place, new),
        )?;
        Ok(())
    }
}
