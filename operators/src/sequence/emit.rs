//! Rows of the output edge, made of what was told in an epoch.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, TimestampMicrosecondArray};

use super::SequenceOperator;
use super::key::{Say, Told};
use crate::grouped::runs;
use crate::operator::{Emit, OperatorError};

impl Told {
    /// When the match was complete, or over.
    fn end_us(&self) -> i64 {
        match self.found.over_us {
            i64::MAX => self.found.completed_us,
            over_us => over_us,
        }
    }
}

impl SequenceOperator {
    /// Emits what was told, ordered by time, then key.
    pub(super) fn give(&mut self, emit: &mut Emit) -> Result<(), OperatorError> {
        if self.told.is_empty() {
            return Ok(());
        }
        let mut told = std::mem::take(&mut self.told);
        let interner = &self.interner;
        told.sort_by(|a, b| {
            let by_key = || interner.bytes(a.id).cmp(interner.bytes(b.id));
            let by_which = || (a.found.start_us, a.revision).cmp(&(b.found.start_us, b.revision));
            a.end_us().cmp(&b.end_us()).then_with(by_key).then_with(by_which)
        });
        let values = |t: &Told| t.found.first.len() + t.found.last.len();
        for run in runs(told.iter().map(|t| values(t) + interner.bytes(t.id).len())) {
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
        let stands = |t: &Told| t.say == Say::Stands;
        let active: Vec<bool> =
            told.iter().map(|t| stands(t) && t.found.over_us == i64::MAX).collect();
        let mut columns = self.interner.keys(&ids)?;
        columns.extend([
            time(&|t| t.found.start_us),
            time(&|t| t.end_us()),
            Arc::new(BooleanArray::from(active)) as _,
            time(&|t| t.found.completed_us),
            number(&|t| if stands(t) { t.found.matched } else { 0 }),
        ]);
        let first = told.iter().map(|t| stands(t).then_some(&t.found.first));
        let last = told.iter().map(|t| stands(t).then_some(&t.found.last));
        let of_first = self.spec.select_first.len();
        columns.extend(self.picker.columns(first)?.into_iter().take(of_first));
        columns.extend(self.picker.columns(last)?.into_iter().skip(of_first));
        columns.push(number(&|t| i64::from(stands(t))));
        columns.push(number(&|t| t.revision));
        Ok(RecordBatch::try_new(Arc::clone(&self.output), columns)?)
    }
}
