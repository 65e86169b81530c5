//! How good the windows of a step are: what is kept of each pane and of each window for it, and
//! which windows come again because an outage became known.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, TimestampMicrosecondType};

use super::close::Due;
use super::keys::KeyState;
use super::{Groups, WindowOperator};
use crate::batch::Tick;
use crate::operator::OperatorError;
use crate::quality::{Delays, Hears, Quality, columns};

/// What is kept of a key.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyQuality {
    /// Of each pane with readings, by its number.
    notes: Vec<(i64, Note)>,
    /// Of each window that was closed and emitted, by its number, until it cannot be revised.
    told: Vec<Told>,
}

/// What is kept of the readings of a pane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Note {
    delays: Delays,
    /// How many came again and were dropped.
    repeated: i64,
}

impl Note {
    fn and(self, other: Self) -> Self {
        let repeated = self.repeated + other.repeated;
        Self { delays: self.delays.and(other.delays), repeated }
    }
}

/// A window that was emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    window: i64,
    /// Readings that it had when it was closed.
    rows: i64,
    complete: bool,
}

/// Bytes of a pane and of a window of a key.
pub(super) const PANE_BYTES: usize = size_of::<(i64, Note)>();
pub(super) const TOLD_BYTES: usize = size_of::<Told>();

impl KeyQuality {
    fn note(&mut self, pane: i64, note: Note) {
        match self.notes.binary_search_by_key(&pane, |n| n.0) {
            Ok(at) => self.notes[at].1 = self.notes[at].1.and(note),
            Err(at) => self.notes.insert(at, (pane, note)),
        }
    }

    /// A reading of a pane came again; whether it has readings.
    fn repeat(&mut self, pane: i64) -> bool {
        let found = self.notes.binary_search_by_key(&pane, |n| n.0);
        found.map(|at| self.notes[at].1.repeated += 1).is_ok()
    }

    /// Of the panes from one to another.
    fn note_in(&self, (from, to): (i64, i64)) -> Note {
        let first = self.notes.partition_point(|n| n.0 < from);
        let panes = self.notes[first..].iter().take_while(|n| n.0 <= to);
        panes.fold(Note::default(), |all, pane| all.and(pane.1))
    }

    /// A window is emitted that was closed, now or before; how many of its readings came after it
    /// had been closed.
    fn tell(&mut self, due: &Due, rows: i64, complete: bool) -> i64 {
        match self.told.binary_search_by_key(&due.window, |t| t.window) {
            Ok(at) => {
                self.told[at].complete = complete;
                rows - self.told[at].rows
            }
            Err(at) => {
                // It had no readings when it was closed.
                let late = if due.again { rows } else { 0 };
                self.told.insert(at, Told { window: due.window, rows: rows - late, complete });
                late
            }
        }
    }

    /// Bytes held, with itself.
    pub(super) fn size_bytes(&self) -> usize {
        size_of::<Self>() + self.notes.capacity() * PANE_BYTES + self.told.capacity() * TOLD_BYTES
    }
}

impl KeyState {
    /// Panes before this one are dropped, and windows up to `dropped`.
    pub(super) fn drop_quality(&mut self, dropped: i64, room: usize) {
        let first = self.panes.first().map_or(i64::MAX, |pane| pane.number);
        let Some(quality) = &mut self.quality else { return };
        let gone = quality.notes.partition_point(|n| n.0 < first);
        quality.notes.drain(..gone);
        let gone = quality.told.partition_point(|t| t.window <= dropped);
        quality.told.drain(..gone);
        quality.notes.shrink_to(room);
    }
}

impl WindowOperator {
    /// Notes how long after their own times the readings of an epoch came in.
    pub(super) fn note_delays(&mut self, rows: &RecordBatch, groups: &Groups, tick: Tick) {
        if self.spec.quality.is_none() {
            return;
        }
        let mut delays = vec![Delays::default(); groups.owners.len()];
        let times = rows.column(self.spec.time).as_primitive::<TimestampMicrosecondType>();
        let mut excluded = groups.excluded.iter().peekable();
        let included = times.values().iter().zip(0u32..);
        let included = included.filter(|(_, row)| excluded.next_if(|e| *e == row).is_none());
        for ((time_us, _), group) in included.zip(&groups.of_row) {
            delays[*group] = delays[*group].and(Delays::of(*time_us, tick));
        }
        for ((id, pane), delays) in groups.owners.iter().zip(delays) {
            let quality = &mut self.keys[*id as usize].quality;
            quality.get_or_insert_default().note(*pane, Note { delays, repeated: 0 });
        }
    }

    /// Counts the readings that came again and were dropped.
    pub(super) fn count_repeated(&mut self) -> Result<(), OperatorError> {
        let columns = (&self.spec.keys[..], self.spec.time);
        for (id, time_us) in self.repeated.take(&mut self.interner, columns)? {
            let zone = self.keys[id as usize].zone;
            let pane = self.bounds.pane_at(time_us, zone).number;
            let quality = &mut self.keys[id as usize].quality;
            if quality.as_mut().is_some_and(|quality| quality.repeat(pane)) {
                self.changed.insert(self.interner.group(id));
            }
        }
        Ok(())
    }

    /// The windows that were told and are judged otherwise now are due again.
    pub(super) fn judge_again(&mut self) {
        let Some(changed) = self.losses.changed() else { return };
        for id in self.interner.ids() {
            let key = &self.keys[id as usize];
            let Some(quality) = &key.quality else { continue };
            for told in quality.told.iter().filter(|told| told.window > key.dropped) {
                let start_us = self.bounds.start(told.window, key.zone);
                let bounds_us = (start_us, self.bounds.end(told.window, key.zone));
                let delays = quality.note_in(self.bounds.panes_of(told.window)).delays;
                if changed.touches(bounds_us, delays)
                    && self.losses.none_in(bounds_us, delays) != told.complete
                {
                    self.due.push(Due::again(id, told.window, true));
                    self.changed.insert(self.interner.group(id));
                }
            }
        }
    }

    /// The columns of windows with so many readings, if they are asked for.
    pub(super) fn quality_columns(&mut self, due: &[Due], rows: &[i64]) -> Vec<ArrayRef> {
        let Some(spec) = &self.spec.quality else { return Vec::new() };
        let mut windows = Vec::with_capacity(due.len());
        for (due, rows) in due.iter().zip(rows) {
            let key = &mut self.keys[due.id as usize];
            let bounds_us = (due.start_us, self.bounds.end(due.window, key.zone));
            let is_closed = due.window <= key.closed;
            let quality = key.quality.get_or_insert_default();
            let Note { delays, repeated } = quality.note_in(self.bounds.panes_of(due.window));
            let complete = self.losses.none_in(bounds_us, delays);
            let late = if is_closed { quality.tell(due, *rows, complete) } else { 0 };
            windows.push((bounds_us, Quality { late, repeated, complete }));
        }
        columns(spec, &self.spec.shape, &windows).to_vec()
    }
}

impl Hears for WindowOperator {
    fn hear(&mut self, log: &RecordBatch) {
        self.losses.hear(log);
    }

    fn repeat(&mut self, rows: &RecordBatch) {
        self.repeated.put(rows);
    }
}

/// What is saved: the note of a pane, and, in the first row of a key, what was told.
const NOTE: [&str; 3] = ["least_us", "most_us", "repeated"];
const TOLD: &str = "told";
/// Bytes of a told window: three numbers, little-endian.
const SAVED_BYTES: usize = 24;

/// Columns of a saved state.
pub(super) fn saved_fields() -> Vec<Field> {
    let mut fields = NOTE.map(|name| Field::new(name, DataType::Int64, true)).to_vec();
    fields.push(Field::new(TOLD, DataType::Binary, true));
    fields
}

/// The columns of rows that are panes of keys, or keys without panes; the first of each key is
/// marked.
#[derive(Default)]
pub(super) struct Saving {
    notes: [Vec<Option<i64>>; NOTE.len()],
    told: Vec<Option<Vec<u8>>>,
}

impl Saving {
    pub(super) fn push(&mut self, key: &KeyState, pane: Option<i64>, is_first: bool) {
        let Some(quality) = &key.quality else {
            self.notes.iter_mut().for_each(|column| column.push(None));
            self.told.push(None);
            return;
        };
        let note = pane.map(|pane| quality.note_in((pane, pane)));
        let values = note.map(|n| [n.delays.least_us, n.delays.most_us, n.repeated]);
        for (i, column) in self.notes.iter_mut().enumerate() {
            column.push(values.map(|values| values[i]));
        }
        let numbers = |t: &Told| [t.window, t.rows, i64::from(t.complete)];
        let told = || quality.told.iter().flat_map(numbers).flat_map(i64::to_le_bytes).collect();
        self.told.push((is_first && !quality.told.is_empty()).then(told));
    }

    pub(super) fn finish(self) -> Vec<ArrayRef> {
        let notes = self.notes.map(|column| Arc::new(Int64Array::from(column)) as ArrayRef);
        let mut columns = notes.to_vec();
        columns.push(Arc::new(BinaryArray::from_iter(self.told)));
        columns
    }
}

/// Takes a row of the columns of [`saved_fields`], of this pane.
pub(super) fn load(
    key: &mut KeyState,
    columns: &[ArrayRef],
    row: usize,
    pane: Option<i64>,
) -> Result<(), OperatorError> {
    let [least, most, repeated] = [0, 1, 2].map(|i| columns[i].as_primitive::<Int64Type>());
    if let (Some(pane), true) = (pane, least.is_valid(row)) {
        let delays = Delays { least_us: least.value(row), most_us: most.value(row) };
        let note = Note { delays, repeated: repeated.value(row) };
        key.quality.get_or_insert_default().note(pane, note);
    }
    let told = columns[NOTE.len()].as_binary::<i32>();
    if !told.is_valid(row) {
        return Ok(());
    }
    let (chunks, rest) = told.value(row).as_chunks::<SAVED_BYTES>();
    if !rest.is_empty() {
        return Err(OperatorError::State("the quality of windows is damaged".into()));
    }
    let number = |chunk: &[u8; SAVED_BYTES], i: usize| {
        let (numbers, _) = chunk.as_chunks::<8>();
        i64::from_le_bytes(numbers[i])
    };
    let told = chunks.iter().map(|chunk| Told {
        window: number(chunk, 0),
        rows: number(chunk, 1),
        complete: number(chunk, 2) != 0,
    });
    key.quality.get_or_insert_default().told = told.collect();
    Ok(())
}
