//! Expressions on hand-made batches: filters, derived columns, rows that fail.
#![allow(clippy::unwrap_used)]

mod windows;

use std::sync::Arc;

use arrow::array::{BinaryArray, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use datafusion_expr::{Expr as Logical, cast, col, lit};
use datafusion_physical_expr::planner::logical2physical;
use proptest::prelude::*;

use super::*;
use crate::spec::{TakesBack, time_type};
use crate::system::step_rejects;

fn rows(x: &[Option<i64>], y: &[i64]) -> RecordBatch {
    let schema = Arc::new(Schema::new(vec![
        Field::new("time", time_type(), false),
        Field::new("x", DataType::Int64, true),
        Field::new("y", DataType::Int64, false),
    ]));
    let times = TimestampMicrosecondArray::from_iter_values(0..x.len() as i64).with_timezone("UTC");
    let columns: Vec<ArrayRef> = vec![
        Arc::new(times),
        Arc::new(Int64Array::from(x.to_vec())),
        Arc::new(Int64Array::from(y.to_vec())),
    ];
    RecordBatch::try_new(schema, columns).unwrap()
}

fn expr(logical: Logical, rows: &RecordBatch) -> Expr {
    logical2physical(&logical, rows.schema_ref())
}

fn numbers(rows: &RecordBatch, column: &str) -> Vec<Option<i64>> {
    rows.column_by_name(column).unwrap().as_primitive::<Int64Type>().iter().collect()
}

#[test]
fn a_filter_keeps_what_is_true_and_reports_what_fails() {
    let rows = rows(&[Some(8), Some(9), None, Some(1), Some(6)], &[2, 0, 1, 1, 0]);
    let keep = expr((col("x") / col("y")).gt(lit(2_i64)), &rows);
    let step = StatelessStep::new(&StepKind::Filter(keep.into()), rows.schema(), rows.schema());
    let step = step.unwrap();
    let out = step.apply(&rows).unwrap();
    assert_eq!(numbers(&out.branches[0], "x"), [Some(8)]);
    let failed: Vec<_> = out.failed.iter().map(|f| (f.row, f.reason)).collect();
    assert_eq!(failed, [(1, REASON_EXPRESSION), (4, REASON_EXPRESSION)]);
    assert_eq!(out.failed[0].detail, "Divide by zero error");
    let empty = step.apply(&rows.slice(0, 0)).unwrap();
    assert_eq!((empty.branches[0].num_rows(), empty.failed.len()), (0, 0));
}

#[test]
fn a_projection_drops_failing_rows_from_all_columns() {
    let rows = rows(&[Some(8), Some(i64::MAX), Some(3)], &[2, 2, 0]);
    let columns = vec![
        ("time".to_owned(), expr(col("time"), &rows)),
        ("ratio".to_owned(), expr(col("x") / col("y"), &rows)),
        ("more".to_owned(), expr(col("x") + lit(1_i64), &rows)),
    ];
    let output = Arc::new(Schema::new(vec![
        Field::new("time", time_type(), false),
        Field::new("ratio", DataType::Int64, true),
        Field::new("more", DataType::Int64, true),
    ]));
    // Plain `+` wraps around; only the division fails.
    let step = StatelessStep::new(&StepKind::Project(columns), rows.schema(), output).unwrap();
    let out = step.apply(&rows).unwrap();
    assert_eq!(numbers(&out.branches[0], "ratio"), [Some(4), Some(i64::MAX / 2)]);
    assert_eq!(out.failed.len(), 1);
    assert_eq!(out.failed[0].detail, "`ratio`: Divide by zero error");
    let rejects = step_rejects("p", "s", &rows, &out.failed).unwrap().swap_remove(0);
    let text =
        |name: &str| rejects.column_by_name(name).unwrap().as_string::<i32>().value(0).to_owned();
    assert_eq!(text("reason"), "expression");
    assert_eq!(text("detail"), "step `s`: `ratio`: Divide by zero error");
    let payload = rejects.column_by_name("payload").unwrap();
    let payload = payload.as_any().downcast_ref::<BinaryArray>().unwrap().value(0);
    assert_eq!(payload, br#"{"time":"1970-01-01T00:00:00.000002Z","x":3,"y":0}"#);
}

#[test]
fn a_bad_cast_is_a_row_and_not_the_batch() {
    let schema = Arc::new(Schema::new(vec![Field::new("s", DataType::Utf8, true)]));
    let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("1"), Some("x"), None, Some("3")]));
    let rows = RecordBatch::try_new(schema, vec![texts]).unwrap();
    let (values, failed) = evaluate(&expr(cast(col("s"), DataType::Int64), &rows), &rows).unwrap();
    let values: Vec<_> = values.as_primitive::<Int64Type>().iter().collect();
    assert_eq!(values, [Some(1), None, None, Some(3)]);
    assert_eq!(failed.iter().map(|f| f.0).collect::<Vec<_>>(), [1]);
    assert!(failed[0].1.contains("'x'"), "{}", failed[0].1);
}

#[test]
fn a_route_gives_each_row_to_the_first_branch() {
    let rows = rows(&[Some(1), Some(20), Some(5), None, Some(7)], &[1, 1, 0, 1, 1]);
    let branches = vec![
        ("big".to_owned(), expr(col("x").gt(lit(10_i64)), &rows)),
        ("ratio".to_owned(), expr((col("x") / col("y")).gt(lit(3_i64)), &rows)),
        ("small".to_owned(), expr(col("x").lt(lit(100_i64)), &rows)),
    ];
    let step = StatelessStep::new(&StepKind::Route(branches.into()), rows.schema(), rows.schema())
        .unwrap();
    let out = step.apply(&rows).unwrap();
    assert_eq!(step.branches(), 3);
    assert_eq!(numbers(&out.branches[0], "x"), [Some(20)]);
    assert_eq!(numbers(&out.branches[1], "x"), [Some(7)]);
    assert_eq!(numbers(&out.branches[2], "x"), [Some(1)]);
    let failed: Vec<_> = out.failed.iter().map(|f| (f.row, f.reason)).collect();
    assert_eq!(failed, [(2, REASON_EXPRESSION), (3, REASON_NO_BRANCH)]);
}

proptest! {
    /// Row by row and as a batch give the same values and the same failures.
    #[test]
    fn isolation_equals_row_by_row(
        pairs in prop::collection::vec((prop::option::of(-50_i64..50), -2_i64..3), 0..40),
    ) {
        let (x, y): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let rows = rows(&x, &y);
        let (values, failed) = evaluate(&expr(col("x") / col("y"), &rows), &rows).unwrap();
        let got: Vec<_> = values.as_primitive::<Int64Type>().iter().collect();
        let want: Vec<_> =
            x.iter().zip(&y).map(|(x, y)| x.and_then(|x| x.checked_div(*y))).collect();
        prop_assert_eq!(got, want);
        let bad: Vec<usize> =
            (0..x.len()).filter(|i| x[*i].is_some() && y[*i] == 0).collect();
        prop_assert_eq!(failed.into_iter().map(|f| f.0).collect::<Vec<_>>(), bad);
    }
}

/// Rows of windows that are still open come again: what fails of them is nothing, and no reject.
#[test]
fn only_final_rows_are_rejects_where_others_come_again() {
    let rows = rows(&[Some(8), Some(9), Some(6)], &[0, 0, 2]);
    let schema = rows.schema();
    let mut fields: Vec<_> = schema.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("is_final", DataType::Boolean, false)));
    let mut columns = rows.columns().to_vec();
    columns.push(Arc::new(BooleanArray::from(vec![false, true, false])));
    let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    let step = || {
        let columns = vec![("ratio".to_owned(), expr(col("x") / col("y"), &rows))];
        let output = Schema::new(vec![Field::new("ratio", DataType::Int64, true)]);
        StatelessStep::new(&StepKind::Project(columns), rows.schema(), Arc::new(output)).unwrap()
    };
    for (step, told) in [(step(), vec![0, 1]), (step().of_early(Some(3)), vec![1])] {
        let out = step.apply(&rows).unwrap();
        assert_eq!(numbers(&out.branches[0], "ratio"), [Some(3)]);
        assert_eq!(out.failed.iter().map(|f| f.row).collect::<Vec<_>>(), told);
    }
}

/// Window, revision, readings, value, whether it is final.
type Row = (i64, i64, i64, i64, bool);

fn windows(rows: &[Row]) -> RecordBatch {
    let number = |name: &str| Field::new(name, DataType::Int64, false);
    let mut fields = vec![number("window"), number("revision"), number("rows")];
    fields.push(Field::new("x", DataType::Int64, true));
    fields.push(Field::new("is_final", DataType::Boolean, false));
    let numbers = |f: &dyn Fn(&Row) -> i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(rows.iter().map(f)))
    };
    let finals = BooleanArray::from_iter(rows.iter().map(|r| Some(r.4)));
    let columns: Vec<ArrayRef> = vec![
        numbers(&|r| r.0),
        numbers(&|r| r.1),
        numbers(&|r| r.2),
        numbers(&|r| r.3),
        Arc::new(finals),
    ];
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

fn rows_of(batch: &RecordBatch) -> Vec<Row> {
    let number = |name: &str| batch.column_by_name(name).unwrap().as_primitive::<Int64Type>();
    let finals = batch.column_by_name("is_final").unwrap().as_boolean();
    let row = |i: usize| {
        let [window, revision, rows, x] =
            ["window", "revision", "rows", "x"].map(|name| number(name).value(i));
        (window, revision, rows, x, finals.value(i))
    };
    (0..batch.num_rows()).map(row).collect()
}

/// What stands of some windows: the newest row of each, but of those that are withdrawn.
fn standing(rows: impl Iterator<Item = Row>) -> Vec<Row> {
    let mut newest = std::collections::BTreeMap::new();
    for row in rows {
        let known = newest.entry(row.0).or_insert(row);
        *known = if row.1 > known.1 { row } else { *known };
    }
    newest.into_values().filter(|row| row.2 > 0).collect()
}

/// Windows that come early, some of them finally, and again, if final rows are `revised`. A value
/// of 0 cannot be evaluated.
fn coming(revised: bool) -> impl Strategy<Value = Vec<Vec<Row>>> {
    let row = (0..4_i64, 0..5_i64, 0..10_i64, prop::bool::weighted(0.3));
    let batches = prop::collection::vec(prop::collection::vec(row, 0..6), 1..8);
    batches.prop_map(move |batches| {
        let mut known = std::collections::BTreeMap::new();
        let mut each = |(window, rows, x, is_final): (i64, i64, i64, bool)| {
            let before = known.get(&window).copied();
            let (revision, over) = before.map_or((0, false), |(r, over)| (r + 1, over));
            if over && !revised {
                return None;
            }
            let rows = if revision == 0 || (is_final && !over) { 1 } else { rows };
            // Who takes the final rows only hears of what is none any more if it was over once.
            let (x, is_final) = if rows == 0 { (1, over) } else { (x, is_final) };
            known.insert(window, (revision, is_final || over));
            Some((window, revision, rows, x, is_final))
        };
        batches.into_iter().map(|rows| rows.into_iter().filter_map(&mut each).collect()).collect()
    })
}

fn comings() -> impl Strategy<Value = (bool, Vec<Vec<Row>>)> {
    any::<bool>().prop_flat_map(|revised| (Just(revised), coming(revised)))
}

proptest! {
    /// After each batch, what stands behind a filter of early rows are the windows whose newest row
    /// passes; for those who take the final rows only, those whose newest final row does.
    #[test]
    fn a_filter_takes_back_what_does_not_pass_any_more((revised, batches) in comings()) {
        let schema = windows(&[]).schema();
        let text = (lit(20_i64) / col("x")).lt(lit(5_i64)).or(col("rows").eq(lit(0_i64)));
        let is_final = (!revised).then_some(4);
        let takes_back = TakesBack { rows: 2, revision: 1, is_final, clears: vec![3] };
        let keep = logical2physical(&text, &schema);
        let filter = FilterSpec { keep, takes_back: Some(takes_back) };
        let step = StatelessStep::new(&StepKind::Filter(filter), schema.clone(), schema).unwrap();
        let step = step.of_early(Some(4));
        let passes = |row: &Row| row.2 == 0 || (row.3 > 0 && 20 / row.3 < 5);
        let (mut came, mut out) = (Vec::new(), Vec::new());
        for batch in &batches {
            let made = step.apply(&windows(batch)).unwrap();
            out.extend(rows_of(&made.branches[0]));
            came.extend(batch.iter().copied());
            for finals in [false, true] {
                let of = |rows: &[Row]| {
                    let some = rows.iter().filter(|row| row.4 || !finals);
                    standing(some.copied())
                };
                let expected: Vec<Row> = of(&came).into_iter().filter(passes).collect();
                prop_assert_eq!(of(&out), expected, "finals: {}", finals);
            }
            for (i, row) in rows_of(&made.branches[0]).iter().enumerate() {
                let is_said = made.branches[0].column(3).is_valid(i);
                let was_there = batch.iter().any(|b| (b.0, b.1, b.2) == (row.0, row.1, row.2));
                prop_assert_eq!(is_said, was_there, "{:?}", row);
            }
            let failed: Vec<usize> = made.failed.iter().map(|f| f.row).collect();
            let wrong = |(i, row): (usize, &Row)| (row.3 == 0 && row.4).then_some(i);
            prop_assert_eq!(failed, batch.iter().enumerate().filter_map(wrong).collect::<Vec<_>>());
        }
        if !revised {
            // What is final is counted: each window once at most, and none that is withdrawn.
            let finals: Vec<Row> = out.iter().filter(|row| row.4).copied().collect();
            let expected: Vec<Row> = came.iter().filter(|r| r.4 && passes(r)).copied().collect();
            prop_assert_eq!(finals, expected);
        }
    }
}
