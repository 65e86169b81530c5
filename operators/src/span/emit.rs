//! Step 4: the due windows of an epoch are put together from their parts and emitted.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Int64Array, RecordBatch, TimestampMicrosecondArray, new_null_array,
};

use super::SpanOperator;
use super::due::Due;
use super::keys::Record;
use crate::operator::{Emit, OperatorError};
use crate::partial::GATHERED_MAX;
use crate::spec::Shape;

impl SpanOperator {
    /// Does all the work of an epoch.
    pub(super) fn finish(&mut self, emit: &mut Emit) -> Result<(), OperatorError> {
        self.merge_all()?;
        let mut due = std::mem::take(&mut self.work.due);
        let interner = &self.interner;
        due.sort_by(|a, b| {
            let times = |d: &Due| (d.record.end_us, d.record.start_us);
            let by_key = || interner.bytes(a.key).cmp(interner.bytes(b.key));
            times(a).cmp(&times(b)).then_with(by_key).then(a.record.id.cmp(&b.record.id))
        });
        let (there, withdrawn): (Vec<Due>, Vec<Due>) =
            due.into_iter().partition(|d| d.record.rows > 0);
        let mut rest = &there[..];
        while !rest.is_empty() {
            let (some, others) = rest.split_at(gathered(rest).min(self.aggregation.windows_max()));
            self.emit_windows(some, emit)?;
            rest = others;
        }
        if !withdrawn.is_empty() {
            self.emit_withdrawn(&withdrawn, emit)?;
        }
        self.work.parts.clear();
        for place in self.work.released.drain(..) {
            self.store.release(self.places.release(place));
        }
        Ok(())
    }

    fn emit_windows(&mut self, due: &[Due], emit: &mut Emit) -> Result<(), OperatorError> {
        let (mut slots, mut groups) = (Vec::new(), Vec::new());
        for (group, window) in due.iter().enumerate() {
            let parts = &self.work.parts[window.parts.0..window.parts.1];
            slots.extend(parts.iter().map(|place| self.places.slot(*place)));
            groups.extend(parts.iter().map(|_| group));
        }
        let state = self.store.gather(&slots)?;
        let values = self.aggregation.values(&state, &groups, due.len())?;
        let columns = self.keys_and_bounds(due)?;
        let mut selected =
            self.aggregation.selected(columns, values, |row| due[row].is_final, emit)?;
        selected.extend(self.qualities.columns(&self.spec, due));
        self.push_rows(due, selected, emit)
    }

    /// A window that is none any more: its key and bounds as they were, and nothing else.
    fn emit_withdrawn(&mut self, due: &[Due], emit: &mut Emit) -> Result<(), OperatorError> {
        let mut columns = self.keys_and_bounds(due)?;
        for (name, _) in &self.spec.select {
            let field = self.output.field_with_name(name)?;
            columns.push(new_null_array(field.data_type(), due.len()));
        }
        columns.extend(self.qualities.nothing(due.len()));
        self.push_rows(due, columns, emit)
    }

    fn keys_and_bounds(&self, due: &[Due]) -> Result<Vec<ArrayRef>, OperatorError> {
        let ids: Vec<u32> = due.iter().map(|d| d.key).collect();
        let times = |f: &dyn Fn(&Record) -> i64| -> ArrayRef {
            let values = due.iter().map(|d| f(&d.record));
            Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
        };
        let mut columns = self.interner.keys(&ids)?;
        columns.push(times(&|r| r.start_us));
        columns.push(times(&|r| r.end_us));
        Ok(columns)
    }

    /// Adds what is not selected and emits the rows.
    fn push_rows(
        &self,
        due: &[Due],
        mut columns: Vec<ArrayRef>,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let numbers = |f: &dyn Fn(&Record) -> i64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(due.iter().map(|d| f(&d.record))))
        };
        if let Shape::Count { .. } = self.spec.shape {
            columns.insert(self.spec.keys.len() + 2, numbers(&|r| r.id));
        }
        columns.push(numbers(&|r| r.rows));
        columns.push(numbers(&|r| r.revision));
        if self.early.is_on() {
            let flags = BooleanArray::from_iter(due.iter().map(|d| Some(d.is_final)));
            columns.push(Arc::new(flags));
        }
        emit.rows.push(RecordBatch::try_new(Arc::clone(&self.output), columns)?);
        Ok(())
    }
}

/// How many of these windows, the first ones, are put together at once: one at least.
fn gathered(due: &[Due]) -> usize {
    let mut parts = 0;
    let fits = |window: &&Due| {
        parts += window.parts.1 - window.parts.0;
        parts <= GATHERED_MAX
    };
    due.iter().take_while(fits).count().max(1)
}
