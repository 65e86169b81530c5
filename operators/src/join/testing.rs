//! What the tests of both joins need: two edges of one schema, fed as one, on several workers.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};

use crate::batch::Tick;
use crate::key::{owner, stable_hashes};
use crate::operator::{Emit, JoinOperator, KeyedOperator, OperatorError};
use crate::snapshot::Snapshot;

/// An epoch: the time of its tick, and the rows of both edges ([`both_schema`]).
pub(super) type EpochIn = (i64, RecordBatch);

/// Makes an operator without state.
pub(super) type Make<'a> = &'a dyn Fn() -> Box<dyn JoinOperator>;

/// The schema of an edge, and after the device which edge it is: 0 is the left one.
pub(super) fn both_schema(edge: &SchemaRef) -> SchemaRef {
    let mut fields = edge.fields().to_vec();
    fields.insert(1, Arc::new(Field::new("side", DataType::Int64, false)));
    Arc::new(Schema::new(fields))
}

pub(super) fn devices(all: impl Iterator<Item = u8>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(all.map(|d| format!("d{d}"))))
}

pub(super) fn numbers(all: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(all))
}

pub(super) fn times(all: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(all).with_timezone("UTC"))
}

/// An operator with two inputs as one with a single input, so that what checks those can check it.
pub(super) struct Both {
    pub(super) join: Box<dyn JoinOperator>,
    pub(super) edge: SchemaRef,
}

impl KeyedOperator for Both {
    fn epoch(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let side = |wanted: i64| -> Result<RecordBatch, OperatorError> {
            let sides = rows.column(1).as_primitive::<Int64Type>();
            let mask: BooleanArray = sides.iter().map(|s| Some(s == Some(wanted))).collect();
            let mut columns = filter_record_batch(rows, &mask)?.columns().to_vec();
            columns.remove(1);
            Ok(RecordBatch::try_new(Arc::clone(&self.edge), columns)?)
        };
        self.join.epoch(&side(0)?, &side(1)?, tick, emit)
    }

    fn end(&mut self, emit: &mut Emit) -> Result<(), OperatorError> {
        self.join.end(emit)
    }

    fn cut(&mut self, whole: bool) -> Snapshot {
        self.join.cut(whole)
    }

    fn load(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        self.join.load(state)
    }
}

/// The rows of those devices that belong to worker `index` of `workers`.
fn owned(rows: &RecordBatch, (index, workers): (usize, usize)) -> RecordBatch {
    let mut hashes = Vec::new();
    stable_hashes(&rows.columns()[..1], rows.num_rows(), &mut hashes);
    let mine: BooleanArray = hashes.iter().map(|h| Some(owner(*h, workers) == index)).collect();
    filter_record_batch(rows, &mine).unwrap()
}

/// Epochs on as many workers as `workers` says, one number after the other; what each epoch emits,
/// and the end.
pub(super) fn run(
    make: Make<'_>,
    edge: &SchemaRef,
    epochs: &[EpochIn],
    workers: &[usize],
) -> Vec<Emit> {
    let (mut emits, mut states, mut number) = (Vec::new(), Vec::new(), 0);
    let parts: Vec<&[EpochIn]> =
        epochs.chunks(epochs.len().div_ceil(workers.len()).max(1)).collect();
    for (i, (part, count)) in parts.iter().zip(workers).enumerate() {
        let new = || Both { join: make(), edge: Arc::clone(edge) };
        let mut all: Vec<Both> = (0..*count).map(|_| new()).collect();
        for (index, operator) in all.iter_mut().enumerate() {
            for state in &states {
                operator.load(&owned(state, (index, *count))).unwrap();
            }
        }
        for (time_us, rows) in *part {
            number += 1;
            let mut emit = Emit::default();
            for (index, operator) in all.iter_mut().enumerate() {
                let tick = Tick { epoch: number, time_us: *time_us };
                operator.epoch(&owned(rows, (index, *count)), tick, &mut emit).unwrap();
            }
            emits.push(emit);
        }
        if i + 1 == parts.len() {
            let mut emit = Emit::default();
            all.iter_mut().for_each(|operator| operator.end(&mut emit).unwrap());
            emits.push(emit);
        }
        states = all.iter_mut().map(|operator| operator.save().unwrap()).collect();
    }
    emits
}

pub(super) fn late_rows(emit: &Emit) -> usize {
    emit.late.iter().map(RecordBatch::num_rows).sum()
}

pub(super) fn rejected(emit: &Emit) -> Vec<String> {
    let reasons = emit.rejects.iter().map(|rows| rows["reason"].as_string::<i32>().clone());
    reasons.flat_map(|r| r.iter().map(|r| r.unwrap().to_owned()).collect::<Vec<_>>()).collect()
}

/// Epochs in which each key group forgets more keys than it may remember, and then has rows of
/// keys that it does not know any more; `rows` makes those of some devices at a time.
pub(super) fn below_floors(rows: &dyn Fn(i64, &[u8]) -> RecordBatch) -> Vec<EpochIn> {
    let all: Vec<u8> = (0..=255).collect();
    let turned: Vec<u8> = all.iter().rev().copied().collect();
    vec![
        (0, rows(1_000, &all)),
        (1_000, rows(0, &[])),
        (2_000, rows(1_000, &turned)),
        (3_000, rows(0, &[])),
        (4_000, rows(10, &all)),
    ]
}

/// The least time that a late row is behind.
pub(super) fn least_behind(emits: &[Emit]) -> Option<i64> {
    let late = emits.iter().flat_map(|emit| &emit.late);
    late.flat_map(|rows| rows["received_late_us"].as_primitive::<Int64Type>().values().to_vec())
        .min()
}

/// What comes does not depend on the ticks, which is how it is to be of files.
pub(super) fn ticks_do_not_count(make: Make<'_>, edge: &SchemaRef, epochs: &[EpochIn]) {
    let all = |apart_us: i64| -> Vec<(Vec<RecordBatch>, Vec<RecordBatch>)> {
        let timed = epochs.iter().enumerate().map(|(i, e)| (i as i64 * apart_us, e.1.clone()));
        let emits = run(make, edge, &timed.collect::<Vec<EpochIn>>(), &[1]);
        emits.into_iter().map(|emit| (emit.rows, emit.late)).collect()
    };
    assert_eq!(all(1), all(1_000_000_000));
}
