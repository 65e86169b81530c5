//! Last-known values: what several topics and fields of a device say, joined into one row.
//!
//! Definition: the row of a key at time t has for each column the value of the newest reading of
//! that key, not younger than t, that said something of it; of equally new ones, the one that came
//! last. A value older than t - `max_age` is not known any more. There is a row for each time at
//! which the key has a reading (that meets `at`), and with `on_change` only if it differs from the
//! row before.
//!
//! Readings are put into the order of their times first, and those of one time wait as one, until
//! the key's clock is more than `disorder` past it: so any order of arrival within `disorder` gives
//! the same rows. A reading that comes when its time, or a newer one of its key, was told already
//! is a row of `system.late` and changes nothing: what was said as of a time stays said.
//!
//! A key that was silent for `idle_close` is told at once, one that was silent for `forget_after`
//! is forgotten. A time in which the source was away, or Tidegate did not run, is no silence
//! ([`crate::outage`]): after it every key has its whole `idle_close` anew. Neither happens to what
//! comes from files, whose ticks say nothing of devices.
//!
//! State per key: what waits for its turn, the last value of each column, and the last row.

mod bound;
mod packed;
mod save;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, TimestampMicrosecondArray,
};
use arrow::buffer::NullBuffer;
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, SchemaRef, TimestampMicrosecondType};
use arrow::row::Rows;

use self::packed::Packed;
use crate::batch::Tick;
use crate::expression::{Failed, condition, evaluate, expression_failed};
use crate::grouped::{EPOCH_BYTES_MAX, REASON_BYTES_MAX, RowCodec, runs};
use crate::intern::KeyInterner;
use crate::keys::{KeyedStep, Pushed, Quiet, Ready, Reorder, gone_us};
use crate::late::LateRows;
use crate::operator::{Emit, JoinOperator, OperatorError};
use crate::outage::Outages;
use crate::slabs::Slabs;
use crate::snapshot::{GroupSet, Snapshot};
use crate::spec::LatestSpec;
use crate::system::step_rejects;

/// A reading that waits for its turn.
#[derive(Clone, Debug)]
struct Reading {
    values: Packed,
    /// Whether its time is to have a row.
    is_wanted: bool,
}

/// The newest reading that said something of a column.
#[derive(Clone, Debug)]
struct Held {
    time_us: i64,
    values: Packed,
}

impl Reading {
    /// Another reading of the same time, which came later.
    fn join(&mut self, later: &Self, room: &mut Vec<u8>) {
        let both = later.values.values().zip(self.values.values());
        self.values = Packed::new(both.map(|(later, this)| later.or(this)), room);
        self.is_wanted |= later.is_wanted;
    }
}

#[derive(Clone, Debug, Default)]
struct KeyState {
    /// One per column, once there was a reading.
    held: Vec<Option<Held>>,
    /// Time and values of the last row.
    told: Option<(i64, Told)>,
}

/// The values of a row: what holds each, shared with the key, for a large one may be in many rows.
#[derive(Clone, Debug)]
struct Told(Arc<[Option<Packed>]>);

impl Told {
    fn value(&self, column: usize) -> Option<&[u8]> {
        self.0[column].as_ref()?.value(column)
    }

    fn values(&self) -> impl Iterator<Item = Option<&[u8]>> {
        (0..self.0.len()).map(|column| self.value(column))
    }

    fn bytes(&self) -> usize {
        self.values().flatten().map(<[u8]>::len).sum()
    }
}

/// Rows to be emitted.
#[derive(Default)]
struct Out(Vec<(u32, i64, Told)>);

/// The operator.
pub struct LatestOperator {
    spec: LatestSpec,
    schema: SchemaRef,
    interner: KeyInterner,
    /// One per column.
    codecs: Arc<Vec<RowCodec>>,
    reorder: Reorder<Reading>,
    keys: Slabs<KeyState>,
    silence: Quiet,
    outages: Outages,
    /// How long a key is silent before it is told, and before it is forgotten; microseconds.
    silent_us: (i64, i64),
    late: LateRows,
    ids: Vec<u32>,
    /// Bytes of a row that is being packed.
    room: Vec<u8>,
    /// Most bytes of the rows of a key in an epoch.
    bytes_max: usize,
    /// Key groups that changed since the last cut.
    changed: GroupSet,
}

/// What the expressions say of rows.
struct Said {
    /// Per column its values as bytes, and which are there.
    values: Vec<(Rows, Option<NullBuffer>)>,
    wanted: BooleanArray,
}

impl LatestOperator {
    /// An operator without state.
    ///
    /// # Errors
    /// Keys or values of types that cannot be kept; planning rules that out.
    pub fn new(spec: LatestSpec) -> Result<Self, OperatorError> {
        let types: Vec<DataType> =
            spec.keys.iter().map(|k| spec.input.field(*k).data_type().clone()).collect();
        let codecs: Result<Vec<_>, _> =
            spec.value_types().into_iter().map(|t| RowCodec::new(&[t])).collect();
        let idle_us = if spec.live { spec.idle_close_us } else { i64::MAX };
        let silent_us = (idle_us, spec.forget_after_us.max(idle_us));
        Ok(Self {
            schema: spec.schema(),
            interner: KeyInterner::new(&types)?,
            codecs: Arc::new(codecs?),
            reorder: Reorder::new(spec.disorder_us, idle_us)
                .whole_times(|reading: &Reading| reading.values.bytes()),
            keys: Slabs::default(),
            silence: Quiet::new(silent_us.1),
            outages: Outages::default(),
            silent_us,
            late: LateRows::new(&spec.pipeline, &spec.name),
            ids: Vec::new(),
            room: Vec::new(),
            bytes_max: EPOCH_BYTES_MAX,
            changed: GroupSet::default(),
            spec,
        })
    }

    /// The rows on which all expressions can be evaluated and whose keys have a place, and what
    /// the expressions say; sets `ids`.
    fn admit(
        &mut self,
        rows: &RecordBatch,
        emit: &mut Emit,
    ) -> Result<(RecordBatch, Said), OperatorError> {
        let mut failed: Vec<Failed> = Vec::new();
        let mut columns: Vec<ArrayRef> = Vec::new();
        for (field, expr) in &self.spec.select {
            let (values, errors) = evaluate(expr, rows)?;
            let named = |(row, text): (usize, String)| (row, format!("`{}`: {text}", field.name()));
            failed.extend(errors.into_iter().map(named).map(expression_failed));
            columns.push(values);
        }
        let mut wanted = BooleanArray::from(vec![true; rows.num_rows()]);
        if let Some(at) = &self.spec.at {
            let (met, errors) = condition(at, rows)?;
            failed.extend(
                errors
                    .into_iter()
                    .map(|(row, text)| (row, format!("`at`: {text}")))
                    .map(expression_failed),
            );
            wanted = met;
        }
        let mut rows = rows.clone();
        if !failed.is_empty() {
            failed.sort_by_key(|f| f.row);
            failed.dedup_by_key(|f| f.row);
            let (pipeline, step) = (&self.spec.pipeline, &self.spec.name);
            emit.rejects.extend(step_rejects(pipeline, step, &rows, &failed)?);
            let bad: Vec<usize> = failed.iter().map(|f| f.row).collect();
            let good: BooleanArray =
                (0..rows.num_rows()).map(|row| Some(bad.binary_search(&row).is_err())).collect();
            (rows, columns, wanted) = kept(&rows, &columns, &wanted, &good)?;
        }
        let LatestSpec { pipeline, name, keys, limits, .. } = &self.spec;
        let step = KeyedStep { pipeline, name, limits: *limits };
        let mut ids = std::mem::take(&mut self.ids);
        let keep = step.admit(&mut self.interner, keys, &rows, &mut ids, emit)?;
        self.ids = ids;
        for key in self.interner.fresh() {
            self.keys.put(key.id as usize, KeyState::default());
            self.reorder.start(key.id);
            self.silence.start(key.id, i64::MIN);
        }
        if let Some(keep) = keep {
            (rows, columns, wanted) = kept(&rows, &columns, &wanted, &keep)?;
        }
        let mut values = Vec::with_capacity(columns.len());
        for (codec, column) in self.codecs.iter().zip(columns) {
            let nulls = column.logical_nulls();
            values.push((codec.encode(&[column])?, nulls));
        }
        Ok((rows, Said { values, wanted }))
    }

    fn take(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        out: &mut Out,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let (rows, said) = self.admit(rows, emit)?;
        let times = rows.column(self.spec.time).as_primitive::<TimestampMicrosecondType>();
        let ids = std::mem::take(&mut self.ids);
        let mut ready = Ready::default();
        for (row, (id, time_us)) in ids.iter().zip(times.values()).enumerate() {
            self.silence.heard(*id, tick.time_us);
            self.changed.insert(self.interner.group(*id));
            let values = said.values.iter().map(|(bytes, nulls)| {
                let is_there = nulls.as_ref().is_none_or(|n| n.is_valid(row));
                is_there.then(|| bytes.row(row).data())
            });
            let values = Packed::new(values, &mut self.room);
            let reading = Reading { values, is_wanted: said.wanted.value(row) };
            let (room, at) = (&mut self.room, (*time_us, tick.time_us));
            let join = |waiting: &mut Reading| waiting.join(&reading, room);
            if self.reorder.merge(*id, at, join, &mut ready) {
                self.absorb(&mut ready, out);
                continue;
            }
            let pushed = self.reorder.push(*id, (*time_us, reading), tick.time_us, &mut ready);
            if let Pushed::Late(_) = pushed {
                let clock_us = self.reorder.keys[*id as usize].clock_us;
                self.late.push(*id, *time_us, (*time_us, *time_us), clock_us - *time_us);
            }
            self.absorb(&mut ready, out);
        }
        self.ids = ids;
        Ok(())
    }

    /// Takes readings in the order of their times, one of a time.
    fn absorb(&mut self, ready: &mut Ready<Reading>, out: &mut Out) {
        let Ready { ids, times_us, values } = ready;
        let all = ids.drain(..).zip(times_us.drain(..)).zip(values.drain(..));
        for ((id, time_us), reading) in all {
            self.changed.insert(self.interner.group(id));
            let key = &mut self.keys[id as usize];
            key.held.resize(self.codecs.len(), None);
            for (column, held) in key.held.iter_mut().enumerate() {
                if let Some(values) = reading.values.only(column, &mut self.room) {
                    *held = Some(Held { time_us, values });
                }
            }
            if reading.is_wanted {
                self.tell(id, time_us, out);
            }
        }
    }

    /// The row of a key at a time, unless it says nothing new.
    fn tell(&mut self, id: u32, time_us: i64, out: &mut Out) {
        let from_us = self.spec.max_age_us.map_or(i64::MIN, |age| time_us.saturating_sub(age));
        let key = &mut self.keys[id as usize];
        let held = key.held.iter().map(|held| {
            let held = held.as_ref().filter(|held| held.time_us >= from_us)?;
            Some(held.values.clone())
        });
        let values = Told(held.collect());
        let is_same = |told: &Told| told.values().eq(values.values());
        if self.spec.on_change && key.told.as_ref().is_some_and(|(_, told)| is_same(told)) {
            return;
        }
        key.told = Some((time_us, values.clone()));
        out.0.push((id, time_us, values));
    }

    /// Forgets keys that were silent for long enough. Nothing of them waits: the tick that ends
    /// their silence has released it.
    fn forget_silent(&mut self, tick: Tick) {
        let (silent_us, outages) = (self.silent_us, &self.outages);
        let at_us = |_: u32, seen_us: i64| gone_us(outages, seen_us, silent_us);
        for id in self.silence.silent(tick.time_us, at_us) {
            self.changed.insert(self.interner.group(id));
            let is_last = self.interner.forget(id);
            self.keys.forget(id as usize, is_last);
            self.reorder.forget(id, is_last);
            self.silence.forget(id, is_last);
        }
    }

    fn give(&self, out: Out, emit: &mut Emit) -> Result<(), OperatorError> {
        let Out(mut rows) = out;
        if rows.is_empty() {
            return Ok(());
        }
        // Stable: rows of equal time and key stay in the order in which they were made.
        rows.sort_by(|a, b| {
            let by_key = || self.interner.bytes(a.0).cmp(self.interner.bytes(b.0));
            a.1.cmp(&b.1).then_with(by_key)
        });
        let all: usize = rows.iter().map(|r| r.2.bytes()).sum();
        if all > self.bytes_max {
            self.refuse(&mut rows, emit)?;
        }
        for run in runs(rows.iter().map(|r| r.2.bytes())) {
            emit.rows.push(self.batch(&rows[run])?);
        }
        Ok(())
    }

    fn batch(&self, rows: &[(u32, i64, Told)]) -> Result<RecordBatch, OperatorError> {
        let ids: Vec<u32> = rows.iter().map(|r| r.0).collect();
        let mut columns = self.interner.keys(&ids)?;
        let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.1));
        columns.push(Arc::new(times.with_timezone("UTC")));
        for (column, codec) in self.codecs.iter().enumerate() {
            let values = rows.iter().map(|r| r.2.value(column));
            columns.push(decoded(codec, values)?);
        }
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }

    /// Rejects of the rows of a key, the newest, that are more than it may have in an epoch. They
    /// say key and time only: the values are what is too much.
    fn refuse(
        &self,
        rows: &mut Vec<(u32, i64, Told)>,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let mut bytes: BTreeMap<u32, usize> = BTreeMap::new();
        let nothing = Told(vec![None; self.codecs.len()].into());
        let mut refused = Vec::new();
        rows.retain(|(id, time_us, told)| {
            let bytes = bytes.entry(*id).or_default();
            *bytes = bytes.saturating_add(told.bytes());
            if *bytes > self.bytes_max {
                refused.push((*id, *time_us, nothing.clone()));
            }
            *bytes <= self.bytes_max
        });
        if !refused.is_empty() {
            let most = self.bytes_max;
            let detail = format!("the rows of its key in one epoch have more than {most} bytes");
            let reason = REASON_BYTES_MAX;
            let of_row = |row| Failed { row, reason, detail: detail.clone() };
            let failed: Vec<Failed> = (0..refused.len()).map(of_row).collect();
            let LatestSpec { pipeline, name, .. } = &self.spec;
            let rows = self.batch(&refused)?;
            emit.rejects.extend(step_rejects(pipeline, name, &rows, &failed)?);
        }
        Ok(())
    }
}

/// The rows that stay, with what was said of them.
fn kept(
    rows: &RecordBatch,
    columns: &[ArrayRef],
    wanted: &BooleanArray,
    keep: &BooleanArray,
) -> Result<(RecordBatch, Vec<ArrayRef>, BooleanArray), OperatorError> {
    let columns: Result<Vec<ArrayRef>, _> =
        columns.iter().map(|c| arrow::compute::filter(c, keep)).collect();
    let wanted = arrow::compute::filter(wanted, keep)?.as_boolean().clone();
    Ok((filter_record_batch(rows, keep)?, columns?, wanted))
}

/// A column of values, null where there is none.
fn decoded<'v>(
    codec: &RowCodec,
    values: impl Iterator<Item = Option<&'v [u8]>>,
) -> Result<ArrayRef, OperatorError> {
    let nothing = codec.nulls()?;
    let values: Vec<&[u8]> = values.map(|v| v.unwrap_or(&nothing)).collect();
    Ok(codec.decode(values)?.swap_remove(0))
}

impl JoinOperator for LatestOperator {
    /// Readings, and the log of outages.
    fn epoch(
        &mut self,
        rows: &RecordBatch,
        outages: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        if outages.num_rows() > 0 {
            self.outages.take(outages);
            self.reorder.outages_changed();
            self.silence.changed();
        }
        let mut out = Out::default();
        if rows.num_rows() > 0 {
            self.take(rows, tick, &mut out, emit)?;
        }
        let mut ready = Ready::default();
        if !emit.more {
            self.reorder.release_quiet(&self.outages, tick.time_us, &mut ready);
        }
        self.absorb(&mut ready, &mut out);
        self.give(out, emit)?;
        self.late.finish_of(&self.interner, (&self.spec.keys, &self.spec.input), emit)?;
        if !emit.more {
            self.forget_silent(tick);
        }
        Ok(())
    }

    fn end(&mut self, emit: &mut Emit) -> Result<(), OperatorError> {
        let (mut ready, mut out) = (Ready::default(), Out::default());
        self.reorder.release_all(self.interner.ids(), &mut ready);
        self.absorb(&mut ready, &mut out);
        self.give(out, emit)
    }

    fn cut(&mut self, whole: bool) -> Snapshot {
        let changed = std::mem::take(&mut self.changed);
        self.cut_state(if whole { GroupSet::ALL } else { changed })
    }

    fn load(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        self.load_state(state)
    }
}

#[cfg(test)]
mod tests;
