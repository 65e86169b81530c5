//! Rows of `system.late`: readings that came after the state of their window was gone.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::SchemaRef;

use crate::intern::KeyInterner;
use crate::operator::{Emit, OperatorError};
use crate::spec::WindowSpec;
use crate::system::{keys_json, late_schema};
use crate::text::runs;

/// Bytes of late rows that become one batch.
const LATE_BYTES: u64 = if cfg!(test) { 64 << 10 } else { 64 << 20 };

struct Late {
    id: u32,
    time_us: i64,
    window_us: (i64, i64),
    behind_us: i64,
    offset: Option<i64>,
    first_offset: Option<i64>,
}

/// Collects the late readings of one step in one epoch.
pub(crate) struct LateRows {
    pipeline: String,
    step: String,
    /// Place in the journal of the readings that are pushed next, where it is known.
    pub(crate) offset: Option<i64>,
    rows: Vec<Late>,
}

impl LateRows {
    pub(crate) fn new(pipeline: &str, step: &str) -> Self {
        Self {
            pipeline: pipeline.to_owned(),
            step: step.to_owned(),
            offset: None,
            rows: Vec::new(),
        }
    }

    /// A reading of key `id` at `time_us`, `behind_us` behind its key's clock, that the windows
    /// `window_us` (start of the first, end of the last) no longer take.
    pub(crate) fn push(&mut self, id: u32, time_us: i64, window_us: (i64, i64), behind_us: i64) {
        let (offset, first_offset) = (self.offset, None);
        self.rows.push(Late { id, time_us, window_us, behind_us, offset, first_offset });
    }

    /// That readings of key `id` that were put off can be done: those that came between these
    /// places in the journal, the first of them of `first_us`, as what is older than `final_us` is
    /// final.
    pub(crate) fn tell(
        &mut self,
        id: u32,
        (first_offset, offset): (i64, i64),
        (first_us, final_us): (i64, i64),
        behind_us: i64,
    ) {
        let (offset, first_offset) = (Some(offset), Some(first_offset));
        let (time_us, window_us) = (final_us, (first_us, final_us));
        self.rows.push(Late { id, time_us, window_us, behind_us, offset, first_offset });
    }

    /// Of a key, the times of the readings that were pushed last and have the place in the journal
    /// that is set, each with the end of the last window that no longer takes it.
    pub(crate) fn of_place(&mut self, id: u32) -> impl Iterator<Item = (i64, &mut i64)> {
        let offset = self.offset;
        let of_place = self.rows.iter_mut().rev().take_while(move |late| late.offset == offset);
        let of_key = of_place.filter(move |late| late.id == id);
        of_key.map(|late| (late.time_us, &mut late.window_us.1))
    }

    /// Emits what was collected of a window step, ordered by time, then key.
    pub(crate) fn finish(
        &mut self,
        interner: &KeyInterner,
        spec: &WindowSpec,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        self.finish_of(interner, (&spec.keys, &spec.input), emit)
    }

    /// The same of any step, with its key columns and the schema that they are in.
    pub(crate) fn finish_of(
        &mut self,
        interner: &KeyInterner,
        (key_columns, input): (&[usize], &SchemaRef),
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let mut rows = std::mem::take(&mut self.rows);
        rows.sort_by(|a, b| {
            let by_key = || interner.bytes(a.id).cmp(interner.bytes(b.id));
            a.time_us.cmp(&b.time_us).then_with(by_key)
        });
        let names: Vec<&str> =
            key_columns.iter().map(|k| input.field(*k).name().as_str()).collect();
        let around = names.iter().map(|name| name.len() + 8).sum::<usize>();
        let around = (around + self.pipeline.len() + self.step.len()) as u64;
        // JSON makes at most six bytes of one.
        let bytes = |late: &Late| 6 * interner.bytes(late.id).len() as u64 + around;
        for run in runs(rows.iter().map(bytes), LATE_BYTES) {
            emit.late.push(self.batch(&rows[run], &names, interner)?);
        }
        Ok(())
    }

    fn batch(
        &self,
        rows: &[Late],
        names: &[&str],
        interner: &KeyInterner,
    ) -> Result<RecordBatch, OperatorError> {
        let ids: Vec<u32> = rows.iter().map(|r| r.id).collect();
        let keys = interner.keys(&ids)?;
        let times = |f: &dyn Fn(&Late) -> i64| -> ArrayRef {
            let values = rows.iter().map(f);
            Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
        };
        let text = |value: &str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(rows.iter().map(|_| value)))
        };
        let keys_text = (0..rows.len()).map(|i| keys_json(names, &keys, i));
        Ok(RecordBatch::try_new(
            late_schema(),
            vec![
                times(&|r| r.time_us),
                text(&self.pipeline),
                text(&self.step),
                Arc::new(StringArray::from_iter_values(keys_text)),
                times(&|r| r.window_us.0),
                times(&|r| r.window_us.1),
                Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.behind_us))),
                Arc::new(Int64Array::from_iter(rows.iter().map(|r| r.offset))),
                Arc::new(Int64Array::from_iter(rows.iter().map(|r| r.first_offset))),
            ],
        )?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use arrow::array::AsArray;
    use arrow::datatypes::{DataType, Field, Schema, TimestampMicrosecondType};

    use super::*;

    #[test]
    fn many_late_rows_come_in_several_batches() {
        let mut interner = KeyInterner::new(&[DataType::Utf8]).unwrap();
        let keys: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
        interner.intern(&[keys], 2, &mut Vec::new()).unwrap();
        let mut late = LateRows::new("p", "s");
        (0..4_000).rev().for_each(|us| late.push((us % 2) as u32, us, (us, us), 1));
        let schema = Arc::new(Schema::new(vec![Field::new("device", DataType::Utf8, false)]));
        let mut emit = Emit::default();
        late.finish_of(&interner, (&[0], &schema), &mut emit).unwrap();
        assert!(emit.late.len() > 1);
        let times = |b: &RecordBatch| {
            b.column(0).as_primitive::<TimestampMicrosecondType>().values().to_vec()
        };
        assert!(emit.late.iter().flat_map(times).eq(0..4_000));
    }
}
