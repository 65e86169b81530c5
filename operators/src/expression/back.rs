//! Rows that come again, and take back what was before.
//!
//! A window that comes again may not pass a filter any more that it passed before, or go into
//! another branch. Nobody remembers what passed, since nothing bounds for how long a window can
//! come again (windows are computed again from stored readings): a row that is not the first of its
//! window (`revision` > 0) and does not pass comes all the same, but says that its window is none
//! (`rows` = 0). Where nothing had passed it takes nothing back. So what stands behind a filter are
//! the windows whose newest row passes.

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch};
use arrow::compute::kernels::nullif::nullif;
use arrow::compute::kernels::zip::zip;
use arrow::compute::{filter, is_not_null, not};
use arrow::datatypes::Int64Type;
use datafusion_common::ScalarValue;

use super::kept;
use crate::operator::OperatorError;
use crate::spec::TakesBack;

/// The rows that are kept, and of the others those that are not the first of their windows, saying
/// that these are none.
pub(super) fn standing(
    rows: &RecordBatch,
    keeps: &BooleanArray,
    columns: &TakesBack,
) -> Result<RecordBatch, OperatorError> {
    let revisions = rows.column(columns.revision).as_primitive::<Int64Type>();
    let told = revisions.values().iter().map(|revision| *revision > 0);
    let comes = keeps.values().iter().zip(told).map(|(kept, told)| Some(kept || told));
    let comes = BooleanArray::from_iter(comes);
    let keeps = filter(keeps, &comes)?;
    taken_back(&kept(rows, &comes)?, keeps.as_boolean(), columns)
}

/// The rows, where those that are not kept say that their windows are none.
pub(crate) fn taken_back(
    rows: &RecordBatch,
    keeps: &BooleanArray,
    columns: &TakesBack,
) -> Result<RecordBatch, OperatorError> {
    if keeps.true_count() == rows.num_rows() {
        return Ok(rows.clone());
    }
    let mut made = rows.columns().to_vec();
    let nothing = Int64Array::new_scalar(0);
    made[columns.rows] = zip(keeps, rows.column(columns.rows), &nothing)?;
    if let Some(column) = columns.is_final {
        let never = BooleanArray::new_scalar(false);
        made[column] = zip(keeps, rows.column(column), &never)?;
    }
    let gone = not(keeps)?;
    for column in &columns.clears {
        made[*column] = nullif(rows.column(*column), &gone)?;
    }
    Ok(RecordBatch::try_new(rows.schema(), made)?)
}

/// Which rows say that their windows are none, if any does; `column` has the number of readings.
pub(crate) fn withdrawn(rows: &RecordBatch, column: Option<usize>) -> Option<BooleanArray> {
    let counts = rows.column(column?).as_primitive_opt::<Int64Type>()?;
    let is_none = |count: Option<i64>| Some(count == Some(0));
    let gone: BooleanArray = counts.iter().map(is_none).collect();
    (gone.true_count() > 0).then_some(gone)
}

/// A column without nulls: what stands there means nothing.
pub(super) fn filled(column: &ArrayRef) -> Result<ArrayRef, OperatorError> {
    let anything = ScalarValue::new_default(column.data_type())?.to_scalar()?;
    Ok(zip(&is_not_null(column)?, column, &anything)?)
}
