//! Both joins of two edges.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema, SchemaRef};
use tidegate_operators::bound::Bounded;
use tidegate_operators::join::{IntervalJoin, WindowJoin};
use tidegate_operators::spec::{JoinSpec, KeyLimits, Partners, time_type};
use tidegate_operators::{JoinOperator, Tick};

use super::{LOAD, Measured, Report, SECOND, START_US, batch, keys, schema, times};

/// Rows with the end of a window, which is a second long.
fn edge() -> SchemaRef {
    let mut fields = schema().fields().to_vec();
    fields.push(Arc::new(Field::new("window_end", time_type(), false)));
    Arc::new(Schema::new(fields))
}

fn rows(keys: usize, at_us: i64) -> RecordBatch {
    let rows = batch(&(0..keys).map(|key| (key, at_us, 1.0)).collect::<Vec<_>>());
    let mut columns = rows.columns().to_vec();
    columns.push(times((0..keys).map(|_| at_us + SECOND)));
    RecordBatch::try_new(edge(), columns).unwrap()
}

fn spec(partners: Partners) -> JoinSpec {
    JoinSpec {
        pipeline: "p".into(),
        name: "both".into(),
        with: "others".into(),
        left: edge(),
        right: edge(),
        left_keys: vec![0],
        right_keys: vec![0],
        columns: vec![(1, "others_time".into()), (2, "others_x".into())],
        outer: true,
        partners,
        disorder_us: 8 * SECOND,
        idle_close_us: 3_600 * SECOND,
        live: true,
        limits: KeyLimits::default(),
    }
}

/// A row of each key on both edges every second.
fn compare<O: JoinOperator>(
    report: &mut Report,
    what: &str,
    spec: &JoinSpec,
    make: impl FnOnce(JoinSpec) -> O,
) {
    let (bound, keys) = (spec.state_bound(&LOAD).unwrap(), keys(9));
    let mut measured = Measured::new(|| make(spec.clone()));
    for second in 0..80 {
        let at_us = START_US + second * SECOND;
        let (left, right) = (rows(keys, at_us), rows(keys, at_us));
        measured.run(at_us, move |o: &mut O, tick: Tick, emit| {
            o.epoch(&left, &right, tick, emit).unwrap();
        });
    }
    report.compare(what, bound.per_key(), keys, &measured);
}

pub(super) fn windows(report: &mut Report) {
    let columns = [1, 4, 3];
    let spec = spec(Partners::Window {
        left: columns,
        right: columns,
        rows: [None; 2],
        takes_back: None,
        keep_us: 30 * SECOND,
    });
    compare(report, "join of windows", &spec, |s| WindowJoin::new(s).unwrap());
}

pub(super) fn intervals(report: &mut Report) {
    for (before_us, after_us) in [(0, 30 * SECOND), (30 * SECOND, 0), (15 * SECOND, 15 * SECOND)] {
        let spec = spec(Partners::Interval {
            left: 1,
            right: 1,
            before_us,
            after_us,
            nearest: true,
            matches_max: 1_000,
            rows_max: 1_000,
            forget_after_us: 3_600 * SECOND,
        });
        let what = format!("join of rows {before_us} us before and {after_us} us after");
        compare(report, &what, &spec, |s| IntervalJoin::new(s).unwrap());
    }
}
