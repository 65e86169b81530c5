//! How good the windows of a step are: what is kept of each entry for it, and which windows come
//! again because an outage became known.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, new_null_array};
use arrow::datatypes::{DataType, Field, Int64Type};

use super::SpanOperator;
use super::due::Due;
use super::keys::{KeyState, Record, Told};
use super::rule::{Found, Horizon};
use crate::batch::Tick;
use crate::operator::OperatorError;
use crate::quality::{Delays, Hears, Losses, Quality, Repeated, columns};
use crate::slabs::Slabs;
use crate::spec::{QualitySpec, Shape, WindowSpec};

/// What is kept of the readings of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Note {
    delays: Delays,
    /// How many of them came when their time was settled.
    late: i64,
    /// How many came again and were dropped.
    repeated: i64,
}

impl Note {
    fn and(self, other: Self) -> Self {
        Self {
            delays: self.delays.and(other.delays),
            late: self.late + other.late,
            repeated: self.repeated + other.repeated,
        }
    }
}

/// Bytes of an entry.
pub(super) const NOTE_BYTES: usize = size_of::<Note>();

/// What is known of how good windows are, if it is asked for.
pub(super) struct Qualities {
    spec: Option<QualitySpec>,
    /// A reading that was lost so shortly before a window, or after it, could have been in it.
    near_us: (i64, i64),
    losses: Losses,
    /// Readings of the current epoch that were dropped because they had come before.
    repeated: Repeated,
    notes: Notes,
}

/// Of entries, by their places.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes(Slabs<Note>);

impl Qualities {
    pub(super) fn new(window: &WindowSpec) -> Self {
        let spec = window.quality;
        let near_us = match window.shape {
            Shape::Session { gap_us, .. } => (gap_us, gap_us),
            // It could have been the first one. The next one begins the next window.
            Shape::Count { .. } | Shape::State { .. } => {
                (spec.and_then(|quality| quality.every_us).unwrap_or(0), 0)
            }
            // Their bounds do not come from what is in them.
            Shape::Sliding { .. } | Shape::Grid { .. } | Shape::Calendar(_) => (0, 0),
        };
        let (repeated, notes) = (Repeated::default(), Notes::default());
        Self { spec, near_us, losses: Losses::new(spec), repeated, notes }
    }

    pub(super) fn hear(&mut self, log: &RecordBatch) {
        self.losses.hear(log);
    }

    /// A reading of a key becomes an entry at a place.
    pub(super) fn take(&mut self, key: &KeyState, time_us: i64, tick: Tick, place: u32) {
        if self.spec.is_some() {
            let late = i64::from(time_us < key.settled_us);
            let note = Note { delays: Delays::of(time_us, tick), late, repeated: 0 };
            self.notes.0.put(place as usize, note);
        }
    }

    /// Entries at these places are folded into one.
    pub(super) fn fold(&mut self, parts: impl Iterator<Item = u32>, into: u32) {
        if self.spec.is_some() {
            let note = self.of(parts);
            self.notes.0.put(into as usize, note);
        }
    }

    fn of(&self, places: impl Iterator<Item = u32>) -> Note {
        places.fold(Note::default(), |all, place| all.and(self.notes.0[place as usize]))
    }

    /// What a window of a key is worth; nothing is kept of it if it is not asked for.
    pub(super) fn of_window(&self, key: &KeyState, window: &Found) -> Quality {
        if self.spec.is_none() {
            return Quality { late: 0, repeated: 0, complete: true };
        }
        let places = key.entries.range(window.from..window.to).map(|entry| entry.place);
        let note = self.of(places);
        let bounds_us = (
            window.start_us.saturating_sub(self.near_us.0),
            window.end_us.saturating_add(self.near_us.1),
        );
        let complete = self.losses.none_in(bounds_us, note.delays);
        Quality { late: note.late, repeated: note.repeated, complete }
    }

    /// The columns of windows.
    pub(super) fn columns(&self, spec: &WindowSpec, due: &[Due]) -> Vec<ArrayRef> {
        let Some(quality) = &self.spec else { return Vec::new() };
        let window = |d: &Due| {
            let (late, repeated, complete) = (d.late, d.repeated, !d.record.incomplete);
            ((d.record.start_us, d.record.end_us), Quality { late, repeated, complete })
        };
        let windows: Vec<_> = due.iter().map(window).collect();
        columns(quality, &spec.shape, &windows).to_vec()
    }

    /// The columns of windows that are none any more.
    pub(super) fn nothing(&self, rows: usize) -> Vec<ArrayRef> {
        let fields = self.spec.iter().flat_map(|_| QualitySpec::fields());
        fields.map(|field| new_null_array(field.data_type(), rows)).collect()
    }

    /// As it is now, for a cut.
    pub(super) fn snapshot(&self) -> Option<Notes> {
        self.spec.map(|_| self.notes.clone())
    }

    /// Columns of a saved state, one row per entry.
    pub(super) fn saved_fields(&self) -> Vec<Field> {
        let names = self.spec.iter().flat_map(|_| ["least_us", "most_us", "late", "repeated"]);
        names.map(|name| Field::new(name, DataType::Int64, true)).collect()
    }

    /// Takes a row of these columns.
    pub(super) fn load(&mut self, columns: &[ArrayRef], row: usize, place: u32) {
        if let [least, most, late, repeated] = columns {
            let [least_us, most_us, late, repeated] =
                [least, most, late, repeated].map(|c| c.as_primitive::<Int64Type>().value(row));
            let note = Note { delays: Delays { least_us, most_us }, late, repeated };
            self.notes.0.put(place as usize, note);
        }
    }
}

impl Notes {
    /// The columns of [`Qualities::saved_fields`], of the entries at these places.
    pub(super) fn columns(&self, places: &[Option<u32>]) -> Vec<ArrayRef> {
        let column = |of: &dyn Fn(Note) -> i64| -> ArrayRef {
            let notes = places.iter().map(|place| place.map(|place| of(self.0[place as usize])));
            Arc::new(Int64Array::from_iter(notes))
        };
        vec![
            column(&|note| note.delays.least_us),
            column(&|note| note.delays.most_us),
            column(&|note| note.late),
            column(&|note| note.repeated),
        ]
    }
}

impl SpanOperator {
    /// Counts the readings that came again and were dropped.
    pub(super) fn count_repeated(&mut self) -> Result<(), OperatorError> {
        let columns = (&self.spec.keys[..], self.spec.time);
        for (id, time_us) in self.qualities.repeated.take(&mut self.interner, columns)? {
            let entries = &self.keys[id as usize].entries;
            if let Some(entry) = self.rule.entry_at(entries, time_us) {
                self.qualities.notes.0[entry.place as usize].repeated += 1;
                self.changed.insert(self.interner.group(id));
            }
        }
        Ok(())
    }

    /// The windows that were told and are judged otherwise now are due again. What was final before
    /// this epoch is not: it may have a revision that was computed from stored readings. Nothing
    /// else of a key changes by it, so that a start, at which all of the log is told again, changes
    /// nothing.
    pub(super) fn judge_again(&mut self) {
        if self.qualities.losses.changed().is_none() {
            return;
        }
        let ids: Vec<u32> = self.interner.ids().collect();
        for id in ids {
            let key = &self.keys[id as usize];
            if key.records.is_empty() {
                continue;
            }
            let (mut cursor, mut found) = (self.rule.start(key), Vec::new());
            let final_us = self.final_us(key.settled_us);
            let horizon = Horizon { us: key.settled_us, final_us, end: false };
            self.rule.scan(key, &mut cursor, horizon, &mut found);
            let first_id = self.rule.fold(key, final_us).first_id;
            for window in found.iter().filter(|window| first_id <= window.id) {
                self.judge_window_again(id, window);
            }
        }
    }

    fn judge_window_again(&mut self, id: u32, window: &Found) {
        let key = &self.keys[id as usize];
        let Ok(at) = key.records.binary_search_by_key(&window.id, |r| r.id) else { return };
        let before = key.records[at];
        let incomplete = !self.qualities.of_window(key, window).complete;
        let is_told = before.told == Told::Final && before.is_as(window);
        if before.incomplete == incomplete || !is_told {
            return;
        }
        let record = Record { incomplete, revision: before.revision + 1, ..before };
        Arc::make_mut(&mut self.keys[id as usize].records)[at] = record;
        self.note_due(id, window, record);
        self.changed.insert(self.interner.group(id));
    }
}

impl Hears for SpanOperator {
    fn hear(&mut self, log: &RecordBatch) {
        self.qualities.hear(log);
    }

    fn repeat(&mut self, rows: &RecordBatch) {
        self.qualities.repeated.put(rows);
    }
}
