//! What tests of those who read the log need.

#![allow(clippy::unwrap_used)]

use arrow::array::{Int64Array, StringArray};

use super::*;
use crate::batch::Tick;
use crate::operator::{Emit, JoinOperator, KeyedOperator, OperatorError};
use crate::snapshot::Snapshot;

/// An operator that reads the log as one with one input, without outages.
pub(crate) struct Alone<O>(pub(crate) O);

impl<O: JoinOperator> KeyedOperator for Alone<O> {
    fn epoch(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        self.0.epoch(rows, &outage_rows(&[]), tick, emit)
    }

    fn end(&mut self, emit: &mut Emit) -> Result<(), OperatorError> {
        self.0.end(emit)
    }

    fn cut(&mut self, whole: bool) -> Snapshot {
        self.0.cut(whole)
    }

    fn load(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        self.0.load(state)
    }
}

/// The log as its readers get it, of these outages.
pub(crate) fn outage_rows(outages: &[(i64, i64)]) -> RecordBatch {
    let number = |f: &dyn Fn(&(i64, i64)) -> i64| {
        Arc::new(Int64Array::from_iter_values(outages.iter().map(f)))
    };
    let kinds = Arc::new(StringArray::from_iter_values(outages.iter().map(|_| "away")));
    RecordBatch::try_new(outages_schema(), vec![number(&|o| o.0), number(&|o| o.1), kinds]).unwrap()
}
