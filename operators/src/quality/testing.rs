//! Logs of outages for tests, and by plain loops what they mean.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::batch::Tick;
use crate::operator::{Emit, KeyedOperator, OperatorError};
use crate::outage::outages_schema;
use crate::quality::Hears;
use crate::snapshot::Snapshot;

/// Outages: from, until, kind.
pub(crate) type Log = Vec<(i64, i64, &'static str)>;

pub(crate) fn log_rows(log: &Log) -> RecordBatch {
    let kinds = StringArray::from_iter_values(log.iter().map(|o| o.2));
    let [from, to] = [log.iter().map(|o| o.0).collect(), log.iter().map(|o| o.1).collect()]
        .map(|times: Vec<i64>| Arc::new(Int64Array::from(times)) as _);
    RecordBatch::try_new(outages_schema(), vec![from, to, Arc::new(kinds)]).unwrap()
}

/// Whether nothing can have been lost, given the readings of a window, each with its time and when
/// it came in.
pub(crate) fn is_complete(
    keeps: bool,
    log: &Log,
    (start_us, end_us): (i64, i64),
    readings: &[(i64, i64)],
) -> bool {
    let delays = || readings.iter().map(|(time_us, in_us)| in_us - time_us);
    let from_us = start_us + delays().min().unwrap();
    let to_us = end_us + delays().max().unwrap();
    let is_loss = |kind: &str, until_us: i64| !keeps || kind == "gap" || until_us == i64::MAX;
    !log.iter()
        .any(|(o_from, o_to, kind)| is_loss(kind, *o_to) && *o_from < to_us && from_us <= *o_to)
}

/// By epoch what is told of the log, if anything is.
pub(crate) fn logs(until_us: i64) -> impl Strategy<Value = Vec<Option<Log>>> {
    let kind = prop::sample::select(vec!["away", "gap", "stopped", "blocked"]);
    let outage = (0..until_us, 0i64..60, kind, prop::bool::weighted(0.2));
    let outage = outage.prop_map(|(from_us, long_us, kind, lasts)| {
        let to_us = if lasts && kind == "away" { i64::MAX } else { from_us + long_us };
        (from_us, to_us, kind)
    });
    let log = prop::collection::vec(outage, 1..4);
    prop::collection::vec(prop::option::weighted(0.3, log), 30)
}

/// By epoch which of the readings that have come by then come again.
pub(crate) fn repeats() -> impl Strategy<Value = Vec<Vec<Index>>> {
    prop::collection::vec(prop::collection::vec(any::<Index>(), 0..4), 30)
}

/// An operator that hears a log of its own as its epochs come, and what came again.
pub(crate) struct Told<O>(pub(crate) O, pub(crate) Vec<Option<Log>>, pub(crate) Vec<RecordBatch>);

impl<O: Hears> KeyedOperator for Told<O> {
    fn epoch(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        if let Some(Some(log)) = self.1.get(tick.epoch as usize - 1) {
            self.0.hear(&log_rows(log));
        }
        // With the last call of an epoch: all its readings are known then.
        if let Some(rows) = self.2.get(tick.epoch as usize - 1).filter(|_| !emit.more) {
            self.0.repeat(rows);
        }
        self.0.epoch(rows, tick, emit)
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

/// What a row says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Said {
    pub(crate) expected: Option<i64>,
    pub(crate) late: i64,
    pub(crate) duplicates: Option<i64>,
    pub(crate) complete: bool,
}

/// What a row says; nothing of a window that is withdrawn.
pub(crate) fn said(rows: &RecordBatch, row: usize) -> Option<Said> {
    let number = |name: &str| {
        let column = rows[name].as_primitive::<Int64Type>();
        column.is_valid(row).then(|| column.value(row))
    };
    let complete = rows["complete"].as_boolean();
    let said = || Said {
        expected: number("expected"),
        late: number("late").unwrap(),
        duplicates: number("duplicates"),
        complete: complete.value(row),
    };
    complete.is_valid(row).then(said)
}
