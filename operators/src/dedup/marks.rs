//! Rows that say in a last column of their own whether they came before: who counts the repetitions
//! gets them, and nobody else.

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::{filter_record_batch, not};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;

/// Rows with their mark.
pub(super) fn marked(rows: &RecordBatch, is_repeated: bool) -> Result<RecordBatch, ArrowError> {
    let mut fields: Vec<_> = rows.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("repeated", DataType::Boolean, false)));
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(BooleanArray::from(vec![is_repeated; rows.num_rows()])));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// Marked rows without their marks: those that stay, and those that came before.
///
/// # Errors
/// The rows have no marks.
pub fn parted(rows: &RecordBatch) -> Result<[RecordBatch; 2], ArrowError> {
    let last = rows.num_columns().saturating_sub(1);
    let own = rows.project(&(0..last).collect::<Vec<_>>())?;
    let marks = rows.columns().get(last).and_then(|marks| marks.as_boolean_opt());
    let marks = marks.ok_or_else(|| ArrowError::SchemaError("rows without marks".into()))?;
    match marks.true_count() {
        0 => Ok([own.clone(), own.slice(0, 0)]),
        all if all == marks.len() => Ok([own.slice(0, 0), own]),
        _ => Ok([filter_record_batch(&own, &not(marks)?)?, filter_record_batch(&own, marks)?]),
    }
}
