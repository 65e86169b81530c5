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
    delays: Vec<(i64, Delays)>,
    /// Of each window that was closed and emitted, by its number, until it cannot be revised.
    told: Vec<Told>,
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
pub(super) const PANE_BYTES: usize = size_of::<(i64, Delays)>();
pub(super) const TOLD_BYTES: usize = size_of::<Told>();

impl KeyQuality {
    fn note(&mut self, pane: i64, delays: Delays) {
        match self.delays.binary_search_by_key(&pane, |d| d.0) {
            Ok(at) => self.delays[at].1 = self.delays[at].1.and(delays),
            Err(at) => self.delays.insert(at, (pane, delays)),
        }
    }

    /// Of the panes from one to another.
    fn delays_in(&self, (from, to): (i64, i64)) -> Delays {
        let first = self.delays.partition_point(|d| d.0 < from);
        let panes = self.delays[first..].iter().take_while(|d| d.0 <= to);
        panes.fold(Delays::default(), |all, pane| all.and(pane.1))
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
        size_of::<Self>() + self.delays.capacity() * PANE_BYTES + self.told.capacity() * TOLD_BYTES
    }
}

impl KeyState {
    /// Panes before this one are dropped, and windows up to `dropped`.
    pub(super) fn drop_quality(&mut self, dropped: i64, room: usize) {
        let first = self.panes.first().map_or(i64::MAX, |pane| pane.number);
        let Some(quality) = &mut self.quality else { return };
        let gone = quality.delays.partition_point(|d| d.0 < first);
        quality.delays.drain(..gone);
        let gone = quality.told.partition_point(|t| t.window <= dropped);
        quality.told.drain(..gone);
        quality.delays.shrink_to(room);
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
            quality.get_or_insert_default().note(*pane, delays);
        }
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
                let delays = quality.delays_in(self.bounds.panes_of(told.window));
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
            let delays = quality.delays_in(self.bounds.panes_of(due.window));
            let complete = self.losses.none_in(bounds_us, delays);
            let late = if is_closed { quality.tell(due, *rows, complete) } else { 0 };
            windows.push((bounds_us, Quality { late, complete }));
        }
        columns(spec, &self.spec.shape, &windows).to_vec()
    }
}

impl Hears for WindowOperator {
    fn hear(&mut self, log: &RecordBatch) {
        self.losses.hear(log);
    }
}

/// What is saved: the delays of a pane, and, in the first row of a key, what was told.
const DELAYS: [&str; 2] = ["least_us", "most_us"];
const TOLD: &str = "told";
/// Bytes of a told window: three numbers, little-endian.
const SAVED_BYTES: usize = 24;

/// Columns of a saved state.
pub(super) fn saved_fields() -> Vec<Field> {
    let mut fields = DELAYS.map(|name| Field::new(name, DataType::Int64, true)).to_vec();
    fields.push(Field::new(TOLD, DataType::Binary, true));
    fields
}

/// The columns of rows that are panes of keys, or keys without panes; the first of each key is
/// marked.
#[derive(Default)]
pub(super) struct Saving {
    delays: [Vec<Option<i64>>; 2],
    told: Vec<Option<Vec<u8>>>,
}

impl Saving {
    pub(super) fn push(&mut self, key: &KeyState, pane: Option<i64>, is_first: bool) {
        let Some(quality) = &key.quality else {
            self.delays.iter_mut().for_each(|column| column.push(None));
            self.told.push(None);
            return;
        };
        let delays = pane.map(|pane| quality.delays_in((pane, pane)));
        self.delays[0].push(delays.map(|d| d.least_us));
        self.delays[1].push(delays.map(|d| d.most_us));
        let numbers = |t: &Told| [t.window, t.rows, i64::from(t.complete)];
        let told = || quality.told.iter().flat_map(numbers).flat_map(i64::to_le_bytes).collect();
        self.told.push((is_first && !quality.told.is_empty()).then(told));
    }

    pub(super) fn finish(self) -> Vec<ArrayRef> {
        let delays = self.delays.map(|column| Arc::new(Int64Array::from(column)) as ArrayRef);
        let mut columns = delays.to_vec();
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
    let [least, most] = [0, 1].map(|i| columns[i].as_primitive::<Int64Type>());
    if let (Some(pane), true) = (pane, least.is_valid(row)) {
        let delays = Delays { least_us: least.value(row), most_us: most.value(row) };
        key.quality.get_or_insert_default().note(pane, delays);
    }
    let told = columns[2].as_binary::<i32>();
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
