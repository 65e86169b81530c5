//! What tests of those who read the log need.

#![allow(clippy::unwrap_used)]

use super::*;
use arrow::array::{Int64Array, StringArray};

/// The log as its readers get it, of these outages.
pub(crate) fn outage_rows(outages: &[(i64, i64)]) -> RecordBatch {
    let number = |f: &dyn Fn(&(i64, i64)) -> i64| {
        Arc::new(Int64Array::from_iter_values(outages.iter().map(f)))
    };
    let kinds = Arc::new(StringArray::from_iter_values(outages.iter().map(|_| "away")));
    RecordBatch::try_new(outages_schema(), vec![number(&|o| o.0), number(&|o| o.1), kinds]).unwrap()
}
