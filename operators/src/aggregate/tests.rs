//! Aggregates for time series against plain loops: shuffled, dealt out, saved, merged.
//!
//! Whatever happens to the readings on the way, the result has the same bits.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, SchemaRef};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::util::display::array_value_to_string;
use datafusion_common::ScalarValue;
use datafusion_expr::{AggregateUDF, EmitTo};
use datafusion_physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use datafusion_physical_expr::expressions::{Literal, col};
use proptest::prelude::*;

use super::{aggregate_inputs, create_groups_accumulator, functions, takes_time, time_series};
use crate::spec::{Expr, time_type};

mod ranged;

/// A reading: group, time, and a value from which all columns are made.
type Reading = (usize, i64, Option<f64>);

const GROUPS: usize = 3;
/// Later than every reading.
const UNTIL_US: i64 = 5_000_000;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("time", time_type(), true),
        Field::new("v", DataType::Float64, true),
        Field::new("b", DataType::Boolean, true),
        Field::new("s", DataType::Utf8, true),
    ]))
}

/// Coarse values, so that equal ones are frequent.
fn text(v: f64) -> String {
    format!("s{}", (v / 40.0) as i64)
}

fn batch(readings: &[Reading]) -> RecordBatch {
    let times = TimestampMicrosecondArray::from_iter_values(readings.iter().map(|r| r.1));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(times.with_timezone("UTC")),
        Arc::new(readings.iter().map(|r| r.2).collect::<Float64Array>()),
        Arc::new(readings.iter().map(|r| r.2.map(|v| v > 0.0)).collect::<BooleanArray>()),
        Arc::new(readings.iter().map(|r| r.2.map(text)).collect::<StringArray>()),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

fn udaf(name: &str) -> Arc<AggregateUDF> {
    time_series().into_iter().find(|f| f.name() == name).unwrap()
}

fn call(name: &str, column: &str, literals: &[ScalarValue]) -> AggregateFunctionExpr {
    call_of(udaf(name), column, literals)
}

fn call_of(
    function: Arc<AggregateUDF>,
    column: &str,
    literals: &[ScalarValue],
) -> AggregateFunctionExpr {
    let schema = schema();
    let mut arguments: Vec<Expr> = vec![col(column, &schema).unwrap()];
    if takes_time(function.name()) {
        arguments.push(col("time", &schema).unwrap());
    }
    arguments.extend(literals.iter().map(|l| Arc::new(Literal::new(l.clone())) as Expr));
    AggregateExprBuilder::new(function, arguments).schema(schema).alias("x").build().unwrap()
}

fn time(us: i64) -> ScalarValue {
    ScalarValue::TimestampMicrosecond(Some(us), Some("UTC".into()))
}

fn interval(us: i64) -> ScalarValue {
    ScalarValue::new_interval_mdn(0, 0, us * 1_000)
}

/// One call of every function, and of every type of value.
fn calls() -> Vec<AggregateFunctionExpr> {
    let until = ScalarValue::TimestampMicrosecond(Some(UNTIL_US), Some("UTC".into()));
    let until = std::slice::from_ref(&until);
    let mut calls = Vec::new();
    for name in ["first", "last", "changes"] {
        calls.extend(["v", "b", "s", "time"].map(|column| call(name, column, &[])));
    }
    for name in ["delta", "increase", "rate"] {
        calls.push(call(name, "v", &[]));
    }
    for name in ["twa", "twa_linear", "integral", "integral_linear"] {
        calls.extend([call(name, "v", &[]), call(name, "v", until)]);
    }
    calls.extend([call("duration_in", "b", &[]), call("duration_in", "b", until)]);
    calls.push(call("filled_slots", "v", &[interval(300_000)]));
    let range = [-700_000, 2_000_001].map(time);
    for name in ["resample", "resample_linear"] {
        calls.push(call(name, "v", &[interval(250_000)]));
        calls.push(call(name, "v", &[&[interval(250_000)], &range[..]].concat()));
    }
    for column in ["v", "b", "s"] {
        let arguments = [&[interval(100_000)], &range[..]].concat();
        calls.push(call("expected_ratio", column, &arguments));
    }
    calls.push(call("quantile", "v", &[ScalarValue::from(0.9)]));
    for name in ["histogram", "buckets"] {
        calls.push(call(name, "v", &[ScalarValue::from(-20.0), ScalarValue::from(40.0)]));
    }
    calls
}

fn inputs(aggregate: &AggregateFunctionExpr, rows: &RecordBatch) -> Vec<ArrayRef> {
    let value = |e: &Expr| e.evaluate(rows).unwrap().into_array(rows.num_rows()).unwrap();
    aggregate_inputs(aggregate).iter().map(value).collect()
}

/// The result of every group, as text in which every bit counts.
fn shown(column: &ArrayRef) -> Vec<String> {
    let floats = column.as_primitive_opt::<Float64Type>();
    let cell = |row: usize| match floats {
        Some(floats) if floats.is_valid(row) => {
            let value = floats.value(row);
            format!("{value} {:016x}", value.to_bits())
        }
        _ => array_value_to_string(column, row).unwrap(),
    };
    (0..column.len()).map(cell).collect()
}

/// All readings in one batch, as they are.
fn at_once(aggregate: &AggregateFunctionExpr, readings: &[Reading]) -> ArrayRef {
    let groups: Vec<usize> = readings.iter().map(|r| r.0).collect();
    let mut accumulator = create_groups_accumulator(aggregate).unwrap();
    let values = inputs(aggregate, &batch(readings));
    accumulator.update_batch(&values, &groups, None, GROUPS).unwrap();
    accumulator.evaluate(EmitTo::All).unwrap()
}

/// Through the bytes of a checkpoint.
fn stored(aggregate: &AggregateFunctionExpr, state: Vec<ArrayRef>) -> Vec<ArrayRef> {
    let fields: Vec<Field> = aggregate
        .state_fields()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(i, f)| Field::new(format!("state{i}"), f.data_type().clone(), true))
        .collect();
    let rows = RecordBatch::try_new(Arc::new(Schema::new(fields)), state).unwrap();
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new(&mut bytes, &rows.schema()).unwrap();
    writer.write(&rows).unwrap();
    writer.finish().unwrap();
    drop(writer);
    StreamReader::try_new(bytes.as_slice(), None).unwrap().next().unwrap().unwrap().columns().into()
}

/// In parts, each an accumulator of its own, merged through stored state one after the other.
fn in_parts(aggregate: &AggregateFunctionExpr, readings: &[Reading], parts: &[usize]) -> ArrayRef {
    let mut dealt: BTreeMap<usize, Vec<Reading>> = BTreeMap::new();
    for (i, reading) in readings.iter().enumerate() {
        dealt.entry(parts[i % parts.len()]).or_default().push(*reading);
    }
    let all: Vec<usize> = (0..GROUPS).collect();
    let mut merged = create_groups_accumulator(aggregate).unwrap();
    for (part, readings) in dealt {
        let values = inputs(aggregate, &batch(&readings));
        let groups: Vec<usize> = readings.iter().map(|r| r.0).collect();
        let mut one = create_groups_accumulator(aggregate).unwrap();
        if part % 2 == 0 {
            one.update_batch(&values, &groups, None, GROUPS).unwrap();
            let state = stored(aggregate, one.state(EmitTo::All).unwrap());
            merged.merge_batch(&state, &all, GROUPS).unwrap();
        } else {
            // A query that gives up grouping early makes a state of every row.
            let state = one.convert_to_state(&values, None).unwrap();
            merged.merge_batch(&stored(aggregate, state), &groups, GROUPS).unwrap();
        }
        // What is saved is the same for the same readings, and can be gone on from.
        let state = merged.state(EmitTo::All).unwrap();
        merged.merge_batch(&stored(aggregate, state), &all, GROUPS).unwrap();
    }
    merged.evaluate(EmitTo::All).unwrap()
}

/// With the form for one group, asked in between as running windows of a query do.
fn one_by_one(aggregate: &AggregateFunctionExpr, readings: &[Reading]) -> Vec<String> {
    let group = |group: usize| {
        let mut accumulator = aggregate.create_accumulator().unwrap();
        for reading in readings.iter().filter(|r| r.0 == group) {
            accumulator.update_batch(&inputs(aggregate, &batch(&[*reading]))).unwrap();
            accumulator.evaluate().unwrap();
        }
        let mut merged = aggregate.create_accumulator().unwrap();
        let state = accumulator.state().unwrap();
        let state: Vec<ArrayRef> = state.iter().map(|s| s.to_array().unwrap()).collect();
        merged.merge_batch(&state).unwrap();
        assert!(merged.size() > 0);
        shown(&merged.evaluate().unwrap().to_array().unwrap()).remove(0)
    };
    (0..GROUPS).map(group).collect()
}

/// Values that come again, and what is to be skipped.
fn value() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![
        8 => (-500i64..500).prop_map(|v| Some(v as f64 / 7.0)),
        1 => Just(Some(0.0)),
        1 => Just(Some(-0.0)),
        1 => Just(None),
        1 => prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-f64::INFINITY)].prop_map(Some),
    ]
}

fn readings() -> impl Strategy<Value = Vec<Reading>> {
    // Few times, so that several readings have the same.
    prop::collection::vec(
        (0..GROUPS, (0..40i64).prop_map(|t| t * 100_000 - 1_000_000), value()),
        1..60,
    )
}

/// Points as they are defined: sorted, without what is skipped, the greatest of one time.
fn points(readings: &[Reading], group: usize) -> Vec<(i64, f64)> {
    let mut points: BTreeMap<i64, f64> = BTreeMap::new();
    for (_, time, value) in readings.iter().filter(|r| r.0 == group) {
        if let Some(v) = value.filter(|v| v.is_finite()) {
            points.entry(*time).and_modify(|old| *old = old.max(v)).or_insert(v);
        }
    }
    points.into_iter().collect()
}

/// Area below the points, value times seconds.
fn area(points: &[(i64, f64)], end: i64, straight: bool) -> f64 {
    let mut sum = 0.0;
    for (i, (time, value)) in points.iter().enumerate() {
        let next = points.get(i + 1).copied().unwrap_or((end.max(*time), *value));
        let seconds = (next.0 - time) as f64 / 1e6;
        sum += if straight { (value + next.1) / 2.0 } else { *value } * seconds;
    }
    sum
}

fn expected(points: &[(i64, f64)], name: &str, until: Option<i64>) -> Option<f64> {
    let (first, last) = (points.first().copied(), points.last().copied());
    let (first, last) = (first?, last?);
    let end = until.unwrap_or(last.0).max(last.0);
    let covered = (end - first.0) as f64 / 1e6;
    let straight = name.ends_with("linear");
    let grown: f64 =
        points.windows(2).map(|p| if p[1].1 < p[0].1 { p[1].1 } else { p[1].1 - p[0].1 }).sum();
    match name {
        "first" => Some(first.1),
        "last" => Some(last.1),
        "delta" => (first.0 < last.0).then_some(last.1 - first.1),
        "twa" | "twa_linear" if covered == 0.0 => Some(first.1),
        "twa" | "twa_linear" => Some(area(points, end, straight) / covered),
        "integral" | "integral_linear" => Some(area(points, end, straight)),
        "increase" => (points.len() > 1).then_some(grown),
        "rate" => (points.len() > 1).then(|| grown / covered),
        other => panic!("{other}"),
    }
}

proptest! {
    // Each case is all calls in all ways.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn results_do_not_depend_on_order_or_parts(
        readings in readings(),
        shuffled in any::<prop::sample::Index>(),
        parts in prop::collection::vec(0usize..5, 1..20),
    ) {
        let mut other = readings.clone();
        other.reverse();
        other.rotate_left(shuffled.index(readings.len() + 1) % (readings.len().max(1)));
        for aggregate in calls() {
            let name = aggregate.fun().name().to_owned();
            let whole = at_once(&aggregate, &readings);
            let field = aggregate.field();
            prop_assert_eq!(whole.data_type(), field.data_type(), "{}", name);
            let whole = shown(&whole);
            prop_assert_eq!(&shown(&at_once(&aggregate, &other)), &whole, "{}", name);
            prop_assert_eq!(&shown(&in_parts(&aggregate, &other, &parts)), &whole, "{}", name);
            prop_assert_eq!(&one_by_one(&aggregate, &other), &whole, "{}", name);
        }
    }

    #[test]
    fn numbers_are_those_of_a_plain_loop(readings in readings()) {
        let until = ScalarValue::TimestampMicrosecond(Some(UNTIL_US), Some("UTC".into()));
        let plain = ["first", "last", "delta", "increase", "rate"].map(|n| (n, None));
        let holding = ["twa", "twa_linear", "integral", "integral_linear"];
        let calls = holding.into_iter().flat_map(|n| [(n, None), (n, Some(UNTIL_US))]).chain(plain);
        for (name, until_us) in calls {
            let literals: Vec<ScalarValue> = until_us.iter().map(|_| until.clone()).collect();
            let found = at_once(&call(name, "v", &literals), &readings);
            for group in 0..GROUPS {
                let found = found.as_primitive::<Float64Type>();
                let found = found.is_valid(group).then(|| found.value(group));
                let expected = expected(&points(&readings, group), name, until_us);
                prop_assert_eq!(found.is_some(), expected.is_some(), "{} {}", name, group);
                if let (Some(found), Some(expected)) = (found, expected) {
                    let near = (found - expected).abs() <= 1e-9 * expected.abs().max(1e3);
                    prop_assert!(near, "{name}: {found} is not {expected}");
                }
            }
        }
    }

    #[test]
    fn counts_are_those_of_a_plain_loop(readings in readings()) {
        let count = |aggregate: AggregateFunctionExpr, group: usize| {
            at_once(&aggregate, &readings).as_primitive::<Int64Type>().value(group)
        };
        for group in 0..GROUPS {
            let points = points(&readings, group);
            let values: Vec<f64> = points.iter().map(|p| p.1).collect();
            let changed = values.windows(2).filter(|v| v[0] != v[1]).count() as i64;
            prop_assert_eq!(count(call("changes", "v", &[]), group), changed);
            let mut slots: Vec<i64> = points.iter().map(|p| p.0.div_euclid(300_000)).collect();
            slots.dedup();
            let found = count(call("filled_slots", "v", &[interval(300_000)]), group);
            prop_assert_eq!(found, slots.len() as i64);
        }
    }

    #[test]
    fn distributions_are_those_of_a_plain_loop(readings in readings()) {
        let bounds = [-20.0, 40.0].map(ScalarValue::from);
        let counts = at_once(&call("histogram", "v", &bounds), &readings);
        let quantiles = at_once(&call("quantile", "v", &[ScalarValue::from(0.9)]), &readings);
        let quantiles = quantiles.as_primitive::<Float64Type>();
        for group in 0..GROUPS {
            // No rule of time: repetitions count.
            let of_group = readings.iter().filter(|r| r.0 == group).filter_map(|r| r.2);
            let mut values: Vec<f64> = of_group.filter(|v| v.is_finite()).collect();
            let below = |bound: f64| values.iter().filter(|v| **v <= bound).count() as i64;
            let (low, middle, all) = (below(-20.0), below(40.0), values.len() as i64);
            let expected = [low, middle - low, all - middle];
            let found = counts.as_list::<i32>().value(group);
            prop_assert_eq!(found.as_primitive::<Int64Type>().values().as_ref(), &expected);
            values.sort_by(f64::total_cmp);
            prop_assert_eq!(quantiles.is_valid(group), !values.is_empty());
            if !values.is_empty() {
                let exact = values[(0.9 * (values.len() - 1) as f64) as usize];
                prop_assert!((quantiles.value(group) - exact).abs() <= exact.abs() * 0.010001);
            }
        }
    }
}

/// One group of readings (seconds, value).
fn one(readings: &[(f64, f64)]) -> Vec<Reading> {
    readings.iter().map(|(s, v)| (0, (s * 1e6) as i64, Some(*v))).collect()
}

fn result(aggregate: &AggregateFunctionExpr, readings: &[(f64, f64)]) -> String {
    array_value_to_string(&at_once(aggregate, &one(readings)), 0).unwrap()
}

#[test]
fn conditions_last_until_the_next_reading() {
    let on_off = [(0.0, 1.0), (1.5, 1.0), (2.0, -1.0), (3.0, 1.0), (3.25, 1.0)];
    assert_eq!(result(&call("duration_in", "b", &[]), &on_off), "2.25");
    let until = ScalarValue::TimestampMicrosecond(Some(UNTIL_US), Some("UTC".into()));
    assert_eq!(result(&call("duration_in", "b", std::slice::from_ref(&until)), &on_off), "4.0");
    assert_eq!(result(&call("duration_in", "b", &[]), &on_off[..1]), "0.0");
    assert_eq!(result(&call("duration_in", "b", &[]), &[]), "");
}

#[test]
fn a_counter_that_is_reset_twice_has_grown_by_what_was_seen() {
    let counter = [(0.0, 90.0), (10.0, 100.0), (20.0, 5.0), (30.0, 7.0), (40.0, 0.0), (50.0, 1.0)];
    assert_eq!(result(&call("increase", "v", &[]), &counter), "18.0");
    assert_eq!(result(&call("rate", "v", &[]), &counter), "0.36");
    assert_eq!(result(&call("delta", "v", &[]), &counter), "-89.0");
}

#[test]
fn gaps_are_filled_at_regular_times_between_the_readings() {
    let readings = [(0.9, 1.0), (1.0, 2.0), (2.5, 5.0), (4.0, 8.0)];
    let show = |name: &str| {
        let lists = at_once(&call(name, "v", &[interval(1_000_000)]), &one(&readings));
        let list = lists.as_list::<i32>().value(0);
        let values = list.as_struct().column(1).as_primitive::<Float64Type>().values().to_vec();
        let first = array_value_to_string(list.as_struct().column(0), 0).unwrap();
        (first, values)
    };
    assert_eq!(show("resample"), ("1970-01-01T00:00:01Z".into(), vec![2.0, 2.0, 5.0, 8.0]));
    assert_eq!(show("resample_linear").1, [2.0, 4.0, 6.0, 8.0]);
    let year = [(0.0, 1.0), (31_000_000.0, 1.0)];
    let mut accumulator =
        create_groups_accumulator(&call("resample", "v", &[interval(1_000_000)])).unwrap();
    let aggregate = call("resample", "v", &[interval(1_000_000)]);
    let values = inputs(&aggregate, &batch(&one(&year)));
    accumulator.update_batch(&values, &[0, 0], None, 1).unwrap();
    let error = accumulator.evaluate(EmitTo::All).unwrap_err().to_string();
    assert!(error.contains("take a longer interval"), "{error}");
}

#[test]
fn a_constant_has_itself_as_mean() {
    let constant: Vec<(f64, f64)> = (0..50).map(|i| (f64::from(i * i), 0.1)).collect();
    for name in ["twa", "twa_linear"] {
        assert_eq!(result(&call(name, "v", &[]), &constant), "0.1");
    }
}

#[test]
fn the_first_groups_can_be_taken_before_the_rest() {
    let readings: Vec<Reading> = (0..GROUPS).map(|g| (g, g as i64, Some(g as f64))).collect();
    for aggregate in calls() {
        let groups: Vec<usize> = readings.iter().map(|r| r.0).collect();
        let mut accumulator = create_groups_accumulator(&aggregate).unwrap();
        let values = inputs(&aggregate, &batch(&readings));
        let keep = BooleanArray::from(vec![Some(true), Some(true), Some(true)]);
        accumulator.update_batch(&values, &groups, Some(&keep), GROUPS).unwrap();
        assert!(accumulator.size() > 0);
        let mut parts = shown(&accumulator.evaluate(EmitTo::First(1)).unwrap());
        parts.extend(shown(&accumulator.evaluate(EmitTo::All).unwrap()));
        assert_eq!(parts, shown(&at_once(&aggregate, &readings)));
    }
}

#[test]
fn every_function_is_tested_here_and_has_a_name_of_its_own() {
    let tested: Vec<String> = calls().iter().map(|c| c.fun().name().to_owned()).collect();
    let ours: Vec<&str> = functions().flat_map(|f| [&[f.name], f.aliases].concat()).collect();
    for function in functions() {
        assert!(tested.iter().any(|t| t == function.name), "{} is not tested", function.name);
    }
    let theirs = datafusion_functions_aggregate::all_default_aggregate_functions();
    for name in &ours {
        assert_eq!(ours.iter().filter(|n| *n == name).count(), 1, "{name}");
        let taken =
            theirs.iter().find(|f| f.name() == *name || f.aliases().contains(&(*name).into()));
        assert!(taken.is_none(), "DataFusion has a `{name}`");
    }
}
