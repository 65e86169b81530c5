//! Detectors: findings about single readings, judged against what their key did before.
//!
//! A detector keeps one state per key, dense by key id. What a state is and how a reading is judged
//! is a [`Method`]; this file gives it readings in the order that the step asks for, and makes rows
//! of its verdicts. In event-time order, which readings are found does not depend on how they were
//! shuffled on their way, as long as none is later than `disorder_us`.

mod bound;
mod ewma;
mod method;
mod save;

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Float64Type, SchemaRef, TimestampMicrosecondType};

use crate::batch::Tick;
use crate::expression::{Failed, evaluate, expression_failed};
use crate::intern::KeyInterner;
use crate::keys::{KeyedStep, Pushed, Ready, Reorder, Silence};
use crate::operator::{Emit, KeyedOperator, OperatorError};
use crate::snapshot::{GroupSet, Snapshot};
use crate::spec::{DetectOrder, DetectSpec};
use crate::system::step_rejects;
use method::{Method, Verdict, method};

/// What a detector did that no row tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DetectCounts {
    /// Readings judged.
    pub judged: u64,
    /// Readings older than one of their key that was judged already; judged as they came.
    pub late: u64,
    /// Readings judged before their time because the buffer of their key was full.
    pub forced: u64,
}

/// An anomaly detector.
pub struct Detector {
    spec: DetectSpec,
    schema: SchemaRef,
    interner: KeyInterner,
    method: Box<dyn Method>,
    /// Present in event-time order only.
    reorder: Option<Reorder<f64>>,
    silence: Silence,
    counts: DetectCounts,
    ids: Vec<u32>,
    verdicts: Vec<Verdict>,
    /// Key groups that changed since the last cut.
    changed: GroupSet,
}

impl Detector {
    /// A detector without state.
    ///
    /// # Errors
    /// The key columns have types that cannot be keys; planning rules that out.
    pub fn new(spec: DetectSpec) -> Result<Self, OperatorError> {
        let types: Vec<DataType> =
            spec.keys.iter().map(|k| spec.input.field(*k).data_type().clone()).collect();
        let reorder = match spec.order {
            DetectOrder::EventTime => Some(Reorder::new(spec.disorder_us, spec.idle_close_us)),
            DetectOrder::Arrival => None,
        };
        Ok(Self {
            schema: spec.schema(),
            interner: KeyInterner::new(&types)?,
            method: method(&spec.method),
            reorder,
            silence: Silence::new(spec.forget_after_us.max(spec.idle_close_us)),
            counts: DetectCounts::default(),
            ids: Vec::new(),
            verdicts: Vec::new(),
            changed: GroupSet::default(),
            spec,
        })
    }

    /// Counters since this instance was made.
    pub fn counts(&self) -> DetectCounts {
        self.counts
    }

    /// The rows that can be judged; those that cannot are rejected, nulls are skipped.
    fn usable<'a>(
        &self,
        rows: &'a RecordBatch,
        emit: &mut Emit,
    ) -> Result<(Cow<'a, RecordBatch>, Float64Array), OperatorError> {
        let (values, errors) = evaluate(&self.spec.on, rows)?;
        let values = values.as_primitive::<Float64Type>();
        let finite = values.values().iter().all(|v| v.is_finite());
        if errors.is_empty() && finite && values.null_count() == 0 {
            return Ok((Cow::Borrowed(rows), values.clone()));
        }
        let mut failed: Vec<Failed> = errors.into_iter().map(expression_failed).collect();
        let mut keep = Vec::with_capacity(rows.num_rows());
        for (row, value) in values.iter().enumerate() {
            keep.push(value.is_some_and(f64::is_finite));
            if let Some(value) = value.filter(|v| !v.is_finite()) {
                let detail = format!("`{}` is {value}, which cannot be judged", self.spec.on_text);
                failed.push(expression_failed((row, detail)));
            }
        }
        if !failed.is_empty() {
            failed.sort_by_key(|f| f.row);
            let (pipeline, step) = (&self.spec.pipeline, &self.spec.name);
            emit.rejects.extend(step_rejects(pipeline, step, rows, &failed)?);
        }
        let keep = keep.into();
        let values = arrow::compute::filter(values, &keep)?;
        let rows = arrow::compute::filter_record_batch(rows, &keep)?;
        Ok((Cow::Owned(rows), values.as_primitive::<Float64Type>().clone()))
    }

    /// The rows that can be judged and whose keys have a place, with the ids of these.
    fn admitted<'a>(
        &mut self,
        rows: &'a RecordBatch,
        ids: &mut Vec<u32>,
        emit: &mut Emit,
    ) -> Result<(Cow<'a, RecordBatch>, Float64Array), OperatorError> {
        let (rows, values) = self.usable(rows, emit)?;
        let DetectSpec { pipeline, name, keys, limits, .. } = &self.spec;
        let step = KeyedStep { pipeline, name, limits: *limits };
        let keep = step.admit(&mut self.interner, keys, &rows, ids, emit)?;
        for key in self.interner.fresh() {
            self.method.start(key.id);
            self.silence.start(key.id, i64::MIN);
            if let Some(reorder) = &mut self.reorder {
                reorder.start(key.id);
            }
        }
        let Some(keep) = keep else { return Ok((rows, values)) };
        let values = arrow::compute::filter(&values, &keep)?;
        let rows = arrow::compute::filter_record_batch(&rows, &keep)?;
        Ok((Cow::Owned(rows), values.as_primitive::<Float64Type>().clone()))
    }

    /// Forgets keys that were silent for long enough. Nothing of them waits: the tick that ends
    /// their silence has released it.
    fn forget_silent(&mut self, tick: Tick) {
        for id in self.silence.silent(tick.time_us) {
            self.changed.insert(self.interner.group(id));
            let is_last = self.interner.forget(id);
            self.method.forget(id, is_last);
            self.silence.forget(id, is_last);
            if let Some(reorder) = &mut self.reorder {
                reorder.forget(id, is_last);
            }
        }
    }

    /// Bytes held.
    pub fn size_bytes(&self) -> usize {
        let waiting = self.reorder.as_ref().map_or(0, |r| r.size_bytes(self.interner.ids()));
        self.interner.size_bytes() + self.method.size_bytes() + self.silence.size_bytes() + waiting
    }

    fn judge(
        &mut self,
        ids: &[u32],
        times_us: &[i64],
        values: &[f64],
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        self.counts.judged += ids.len() as u64;
        self.changed.extend(ids.iter().map(|id| self.interner.group(*id)));
        self.verdicts.clear();
        self.method.judge(ids, values, &mut self.verdicts);
        if self.verdicts.is_empty() {
            return Ok(());
        }
        // Stable: findings of equal time and key stay in the order in which they were judged.
        let interner = &self.interner;
        self.verdicts.sort_by(|a, b| {
            let by_key = || interner.bytes(ids[a.at]).cmp(interner.bytes(ids[b.at]));
            times_us[a.at].cmp(&times_us[b.at]).then_with(by_key)
        });
        let found: Vec<u32> = self.verdicts.iter().map(|v| ids[v.at]).collect();
        let number = |f: &dyn Fn(&Verdict) -> f64| -> ArrayRef {
            Arc::new(Float64Array::from_iter_values(self.verdicts.iter().map(f)))
        };
        let times = self.verdicts.iter().map(|v| times_us[v.at]);
        let name = self.method.name();
        let mut columns = self.interner.keys(&found)?;
        columns.extend([
            Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")) as _,
            number(&|v| values[v.at]),
            number(&|v| v.score),
            number(&|v| v.expected),
            number(&|v| v.deviation),
            Arc::new(StringArray::from_iter_values(found.iter().map(|_| name))),
        ]);
        emit.rows.push(RecordBatch::try_new(Arc::clone(&self.schema), columns)?);
        Ok(())
    }

    fn judge_ready(&mut self, ready: &Ready<f64>, emit: &mut Emit) -> Result<(), OperatorError> {
        self.judge(&ready.ids, &ready.times_us, &ready.values, emit)
    }
}

impl KeyedOperator for Detector {
    fn epoch(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let mut ids = std::mem::take(&mut self.ids);
        let (rows, values) = self.admitted(rows, &mut ids, emit)?;
        ids.iter().for_each(|id| self.silence.heard(*id, tick.time_us));
        let times = rows.column(self.spec.time).as_primitive::<TimestampMicrosecondType>();
        match &mut self.reorder {
            None => self.judge(&ids, times.values(), values.values(), emit)?,
            Some(reorder) => {
                let mut ready = Ready::default();
                self.changed.extend(ids.iter().map(|id| self.interner.group(*id)));
                let readings = times.values().iter().copied().zip(values.values().iter().copied());
                for (id, reading) in ids.iter().zip(readings) {
                    match reorder.push(*id, reading, tick.time_us, &mut ready) {
                        Pushed::InOrder => {}
                        Pushed::Forced => self.counts.forced += 1,
                        Pushed::Late(value) => {
                            self.counts.late += 1;
                            ready.push(*id, reading.0, value);
                        }
                    }
                }
                if !emit.more {
                    reorder.release_idle(tick.time_us, &mut ready);
                }
                self.judge_ready(&ready, emit)?;
            }
        }
        self.ids = ids;
        if !emit.more {
            self.forget_silent(tick);
        }
        Ok(())
    }

    fn end(&mut self, emit: &mut Emit) -> Result<(), OperatorError> {
        let Some(reorder) = &mut self.reorder else { return Ok(()) };
        let mut ready = Ready::default();
        reorder.release_all(self.interner.ids(), &mut ready);
        self.judge_ready(&ready, emit)
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
