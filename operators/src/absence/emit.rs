//! Rows of the output edge, made of what was told in an epoch.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};

use super::key::{Absence, Told};
use super::{AbsenceOperator, Status};
use crate::batch::Tick;
use crate::grouped::runs;
use crate::operator::{Emit, OperatorError};

impl Told {
    /// When the absence ended, or, while it lasts, was certain.
    fn end_us(&self) -> i64 {
        match self.absence.end_us {
            i64::MAX => self.absence.start_us.saturating_add(self.absence.after_us),
            end_us => end_us,
        }
    }

    /// How many readings are missing.
    fn missed(&self) -> i64 {
        let Absence { start_us, end_us, expected, .. } = self.absence;
        // Of an absence that lasts, what made it one.
        let lasted_us = match end_us {
            i64::MAX => expected.limit_us,
            end_us => end_us.saturating_sub(start_us).saturating_sub(1),
        };
        lasted_us / expected.cadence_us.max(1)
    }
}

impl AbsenceOperator {
    /// The end of an epoch.
    pub(super) fn finish(&mut self, tick: Tick, emit: &mut Emit) -> Result<(), OperatorError> {
        let silent = match self.spec.live && !emit.more {
            true => self.gone(tick.time_us),
            false => Vec::new(),
        };
        self.forgotten(&silent);
        self.give(emit)?;
        self.late.finish_of(&self.interner, (&self.spec.keys, &self.spec.input), emit)?;
        for id in silent {
            self.changed.insert(self.interner.group(id));
            self.waiting.remove(&id);
            let is_last = self.interner.forget(id);
            self.keys.forget(id as usize, is_last);
            self.reorder.forget(id, is_last);
            self.silence.forget(id, is_last);
        }
        Ok(())
    }

    /// Emits what was told, ordered by time, then key.
    pub(super) fn give(&mut self, emit: &mut Emit) -> Result<(), OperatorError> {
        if self.told.is_empty() {
            return Ok(());
        }
        let mut told = std::mem::take(&mut self.told);
        let interner = &self.interner;
        told.sort_by(|a, b| {
            let by_key = || interner.bytes(a.id).cmp(interner.bytes(b.id));
            let which = |t: &Told| (t.absence.start_us, t.absence.revision);
            let by_which = || which(a).cmp(&which(b));
            a.end_us().cmp(&b.end_us()).then_with(by_key).then_with(by_which)
        });
        let bytes = |t: &Told| t.absence.values.len() + interner.bytes(t.id).len();
        for run in runs(told.iter().map(bytes)) {
            emit.rows.push(self.batch(&told[run])?);
        }
        Ok(())
    }

    fn batch(&self, told: &[Told]) -> Result<RecordBatch, OperatorError> {
        let ids: Vec<u32> = told.iter().map(|t| t.id).collect();
        let time = |f: &dyn Fn(&Told) -> i64| -> ArrayRef {
            let times = TimestampMicrosecondArray::from_iter_values(told.iter().map(f));
            Arc::new(times.with_timezone("UTC"))
        };
        let number = |f: &dyn Fn(&Told) -> i64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(told.iter().map(f)))
        };
        let cadences = told.iter().map(|t| t.absence.expected.cadence_us as f64 / 1e6);
        let inhibited: Vec<bool> = told.iter().map(|t| t.absence.inhibited).collect();
        let withdrawn = |t: &Told| t.status == Status::Withdrawn;
        let mut columns = self.interner.keys(&ids)?;
        columns.extend([
            time(&|t| t.absence.start_us),
            time(&|t| t.end_us()),
            Arc::new(StringArray::from_iter_values(told.iter().map(|t| t.status.text()))) as _,
            number(&|t| if withdrawn(t) { 0 } else { t.missed() }),
            Arc::new(Float64Array::from_iter_values(cadences)),
            Arc::new(BooleanArray::from(inhibited)),
        ]);
        let values = told.iter().map(|t| (!withdrawn(t)).then_some(&t.absence.values));
        columns.extend(self.picker.columns(values)?);
        columns.push(number(&|t| i64::from(!withdrawn(t))));
        columns.push(number(&|t| t.absence.revision));
        Ok(RecordBatch::try_new(Arc::clone(&self.output), columns)?)
    }
}
