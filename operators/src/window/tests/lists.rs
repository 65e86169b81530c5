//! Windows whose values are lists: few of them at once, the same after a restart, revised.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use datafusion_common::ScalarValue;
use datafusion_physical_expr::expressions::Literal;

use super::*;
use crate::aggregate::time_series;
use crate::spec::Expr;

/// Bounds of the histogram: so many that three windows have more elements than are made at once.
const BOUNDS: i64 = 400;

fn with_histogram() -> WindowSpec {
    let mut spec = spec(20, 10, 5, LatePolicy::Revise { keep_us: 1_000 });
    let schema = input();
    let mut arguments: Vec<Expr> = vec![col("v", &schema).unwrap()];
    let bounds = (0..BOUNDS).map(|b| Arc::new(Literal::new(ScalarValue::from(b as f64))) as Expr);
    arguments.extend(bounds);
    let histogram = time_series().into_iter().find(|f| f.name() == "histogram").unwrap();
    let histogram = AggregateExprBuilder::new(histogram, arguments).schema(schema).alias("h");
    spec.aggregates = vec![Arc::new(histogram.build().unwrap())];
    spec.filters = vec![None];
    let aggregated = spec.aggregated_schema();
    spec.select = vec![("h".into(), col("agg0", &aggregated).unwrap())];
    spec
}

#[test]
fn lists_are_made_of_few_windows_at_once() {
    let spec = with_histogram();
    let device = |i: i64| (i % 6) as u8;
    let mut epochs: Vec<Vec<Reading>> = (0..12)
        .map(|e| (0..18).map(|i| (device(i), e * 10 + i % 10, ((e * i) % 397) as f64)).collect())
        .collect();
    // Late, and for windows that were emitted.
    epochs.push((0..6).map(|i| (device(i), 15, 399.5)).collect());
    let (whole, _) = run(&spec, &epochs, None);
    let mut newest: BTreeMap<(String, i64), (i64, Vec<i64>)> = BTreeMap::new();
    let (mut batches, mut revised) = (0, 0);
    for rows in whole.iter().flat_map(|emit| &emit.rows) {
        assert!(rows.num_rows() <= 2, "{} windows at once", rows.num_rows());
        batches += 1;
        let (devices, lists) = (rows.column(0).as_string::<i32>(), rows.column(3).as_list::<i32>());
        let starts = rows.column(1).as_primitive::<TimestampMicrosecondType>();
        let revisions = rows.column_by_name("revision").unwrap().as_primitive::<Int64Type>();
        for row in 0..rows.num_rows() {
            let list = lists.value(row);
            let counts = list.as_primitive::<Int64Type>().values().to_vec();
            assert_eq!(counts.len() as i64, BOUNDS + 1);
            revised += i64::from(revisions.value(row) > 0);
            let key = (devices.value(row).to_owned(), starts.value(row));
            newest.insert(key, (revisions.value(row), counts));
        }
    }
    assert!(batches > 20 && revised >= 12, "{batches} batches, {revised} revisions");
    let all: Vec<Reading> = epochs.iter().flatten().copied().collect();
    for (key, values) in oracle(&spec, &all) {
        let (_, counts) = &newest[&key];
        for (bound, count) in counts.iter().enumerate() {
            let (low, high) = (bound as f64 - 1.0, bound as f64);
            let expected = values
                .iter()
                .filter(|v| (**v > low || bound == 0) && (**v <= high || bound as i64 == BOUNDS));
            assert_eq!(*count, expected.count() as i64, "{key:?}: up to {high}");
        }
    }
    for restart in [3, 7, 12] {
        let (again, _) = run(&spec, &epochs, Some(restart));
        for (again, whole) in again.iter().zip(&whole) {
            assert_eq!(again.rows, whole.rows, "restarted before {restart}");
        }
    }
}
