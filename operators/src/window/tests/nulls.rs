//! Every aggregate over readings without values, with and without `FILTER`, against the same
//! aggregate over all readings of one window at once.

use arrow::util::display::array_value_to_string;
use datafusion_common::ScalarValue;
use datafusion_expr::{EmitTo, Operator};
use datafusion_functions_aggregate::approx_distinct::approx_distinct_udaf;
use datafusion_functions_aggregate::array_agg::array_agg_udaf;
use datafusion_functions_aggregate::bit_and_or_xor::{bit_and_udaf, bit_or_udaf, bit_xor_udaf};
use datafusion_functions_aggregate::bool_and_or::{bool_and_udaf, bool_or_udaf};
use datafusion_functions_aggregate::median::median_udaf;
use datafusion_functions_aggregate::regr::regr_count_udaf;
use datafusion_functions_aggregate::string_agg::string_agg_udaf;
use datafusion_functions_aggregate::sum::sum_udaf;
use datafusion_functions_aggregate::variance::{var_pop_udaf, var_samp_udaf};
use datafusion_physical_expr::expressions::{binary, cast, lit};

use super::*;
use crate::aggregate::{aggregate_inputs, create_groups_accumulator, time_series};
use crate::spec::Expr;

/// A function and its arguments.
type Call = (Arc<AggregateUDF>, Vec<Expr>);

fn calls() -> Vec<Call> {
    let schema = input();
    let v = || col("v", &schema).unwrap();
    let as_type = |kind| cast(v(), &schema, kind).unwrap();
    let (int, text) = (|| as_type(DataType::Int64), || as_type(DataType::Utf8));
    let flag = || binary(v(), Operator::Gt, lit(100.0), &schema).unwrap();
    let one = |udfs: Vec<Arc<AggregateUDF>>, argument: &dyn Fn() -> Expr| -> Vec<Call> {
        udfs.into_iter().map(|udf| (udf, vec![argument()])).collect()
    };
    let any = || vec![count_udaf(), min_udaf(), max_udaf(), array_agg_udaf()];
    let sums = || vec![sum_udaf(), median_udaf()];
    let mut calls = one([any(), sums(), vec![avg_udaf()]].concat(), &v);
    calls.extend(one(vec![stddev_pop_udaf(), var_pop_udaf(), var_samp_udaf()], &v));
    calls.extend(one([any(), sums(), vec![approx_distinct_udaf()]].concat(), &int));
    calls.extend(one(vec![bit_and_udaf(), bit_or_udaf(), bit_xor_udaf()], &int));
    calls.extend(one([any(), vec![bool_and_udaf(), bool_or_udaf()]].concat(), &flag));
    calls.extend(one(any(), &text));
    calls.push((string_agg_udaf(), vec![text(), lit(",")]));
    calls.push((regr_count_udaf(), vec![v(), v()]));
    let ours = time_series();
    let ours = |name: &str| Arc::clone(ours.iter().find(|f| f.name() == name).unwrap());
    let time = || col("time", &schema).unwrap();
    for name in ["first", "last", "delta", "twa", "integral_linear", "increase", "changes"] {
        calls.push((ours(name), vec![v(), time()]));
    }
    for name in ["first", "last", "changes"] {
        calls.push((ours(name), vec![text(), time()]));
    }
    calls.push((ours("duration_in"), vec![flag(), time()]));
    calls.push((ours("quantile"), vec![v(), lit(0.9)]));
    calls.push((ours("histogram"), vec![v(), lit(-10.0), lit(10.0)]));
    calls
}

/// Each aggregate twice: of all readings, and of those whose value is above zero.
fn every_aggregate(size_us: i64, slide_us: i64) -> WindowSpec {
    let schema = input();
    let v = col("v", &schema).unwrap();
    let mut aggregates: Vec<Arc<AggregateFunctionExpr>> = Vec::new();
    for (udf, arguments) in calls() {
        let builder = AggregateExprBuilder::new(udf, arguments).schema(Arc::clone(&schema));
        aggregates.push(Arc::new(builder.alias("plain").build().unwrap()));
    }
    for udf in [count_udaf(), sum_udaf()] {
        let builder = AggregateExprBuilder::new(udf, vec![Arc::clone(&v)]).distinct();
        let set = builder.schema(Arc::clone(&schema)).alias("set").build().unwrap();
        aggregates.push(in_one_order(Arc::new(set), &schema).unwrap());
    }
    let above = binary(v, Operator::Gt, lit(0.0), &schema).unwrap();
    let each = aggregates.len();
    let late = LatePolicy::Revise { keep_us: 1_000_000 };
    let mut spec = WindowSpec {
        filters: [vec![None; each], vec![Some(above); each]].concat(),
        aggregates: [aggregates.clone(), aggregates].concat(),
        ..spec(size_us, slide_us, 20, late)
    };
    spec.select = Vec::new();
    let aggregated = spec.aggregated_schema();
    let selected = |i: usize| (format!("a{i}"), col(&format!("agg{i}"), &aggregated).unwrap());
    spec.select = (0..2 * each).map(selected).collect();
    spec
}

/// What the aggregates of a step say of these readings alone.
fn alone(spec: &WindowSpec, readings: &[Reading]) -> Vec<ArrayRef> {
    let rows = batch(readings);
    let values = |e: &Expr| e.evaluate(&rows).unwrap().into_array(rows.num_rows()).unwrap();
    let value = |(aggregate, filter): (&Arc<AggregateFunctionExpr>, &Option<Expr>)| {
        let mut one = create_groups_accumulator(aggregate).unwrap();
        let inputs: Vec<ArrayRef> = aggregate_inputs(aggregate).iter().map(values).collect();
        let filter = filter.as_ref().map(values);
        let filter = filter.as_ref().map(|f| f.as_boolean());
        one.update_batch(&inputs, &vec![0; rows.num_rows()], filter, 1).unwrap();
        one.evaluate(EmitTo::All).unwrap()
    };
    spec.aggregates.iter().zip(&spec.filters).map(value).collect()
}

/// Whether these are the same but for the order in which floats were added.
fn is_same(a: &ArrayRef, b: &ArrayRef) -> bool {
    let [a, b] = [a, b].map(|column| ScalarValue::try_from_array(column, 0).unwrap());
    match (&a, &b) {
        (ScalarValue::Float64(Some(a)), ScalarValue::Float64(Some(b))) => {
            (a - b).abs() <= 1e-7 * (1.0 + a.abs())
        }
        _ => a == b,
    }
}

fn text(columns: &[ArrayRef]) -> Vec<String> {
    columns.iter().map(|c| array_value_to_string(c, 0).unwrap()).collect()
}

/// The readings of each window, in the order in which they came.
fn windows(spec: &WindowSpec, readings: &[Reading]) -> BTreeMap<(String, i64), Vec<Reading>> {
    let mut windows: BTreeMap<_, Vec<Reading>> = BTreeMap::new();
    for reading in readings {
        for (key, _) in oracle(spec, &[*reading]) {
            windows.entry(key).or_default().push(*reading);
        }
    }
    windows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn every_aggregate_is_as_over_all_readings_at_once(
        epochs in readings(),
        shape in prop::sample::select(vec![(100, 100), (60, 20), (7, 7), (3_000, 500)]),
        restart in prop::option::of(0usize..30),
    ) {
        // Some of them are of what came first or last, so panes must come in that order.
        let mut readings = epochs.concat();
        readings.sort_by_key(|r| r.1);
        let mut rest = readings.into_iter();
        let in_time: Vec<Vec<Reading>> =
            epochs.iter().map(|epoch| rest.by_ref().take(epoch.len()).collect()).collect();
        let spec = every_aggregate(shape.0, shape.1);
        let (emits, _) = run(&spec, &in_time, restart);
        let mut found: BTreeMap<(String, i64), Vec<ArrayRef>> = BTreeMap::new();
        for rows in emits.iter().flat_map(|e| &e.rows) {
            let starts = rows.column(1).as_primitive::<TimestampMicrosecondType>();
            for i in 0..rows.num_rows() {
                let device = rows.column(0).as_string::<i32>().value(i).to_owned();
                let values = rows.slice(i, 1).columns()[3..][..spec.select.len()].to_vec();
                found.insert((device, starts.value(i)), values);
            }
        }
        let expected = windows(&spec, &in_time.concat());
        prop_assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (key, readings) in expected {
            let expected = alone(&spec, &readings);
            for (i, (a, b)) in found[&key].iter().zip(&expected).enumerate() {
                let name = spec.aggregates[i].fun().name();
                let is_filtered = spec.filters[i].is_some();
                prop_assert!(
                    is_same(a, b),
                    "{name} (filter: {is_filtered}) of {key:?} {readings:?}: {a:?} is not {b:?}",
                );
            }
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn every_aggregate_on_any_number_of_workers(
        epochs in readings(), shape in prop::sample::select(vec![(100, 100), (60, 20)]),
    ) {
        let spec = every_aggregate(shape.0, shape.1);
        let spread = |i: usize, r: &Reading| (r.0 + 4 * (i % 9) as u8, r.1, r.2);
        let epochs: Vec<(i64, RecordBatch)> = epochs
            .iter()
            .enumerate()
            .map(|(i, readings)| {
                let readings: Vec<Reading> = readings.iter().map(|r| spread(i, r)).collect();
                (i as i64 * 300, batch(&readings))
            })
            .collect();
        let make = || {
            Box::new(WindowOperator::new(spec.clone()).unwrap()) as Box<dyn KeyedOperator>
        };
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
    }
}

/// The values of a device that comes in an epoch in which another one goes on, by name.
fn beside_another(value: f64) -> BTreeMap<String, Vec<String>> {
    let spec = every_aggregate(100, 100);
    let epochs = [vec![(1, 10, 1.0)], vec![(1, 20, 2.0), (2, 20, value)]];
    let (emits, _) = run(&spec, &epochs, None);
    let rows = emits.iter().flat_map(|e| &e.rows).last().unwrap();
    assert_eq!(rows.column(0).as_string::<i32>().value(1), "d2");
    let of_d2 = text(&rows.slice(1, 1).columns()[3..][..spec.select.len()]);
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (aggregate, value) in spec.aggregates.iter().zip(of_d2) {
        found.entry(aggregate.fun().name().to_owned()).or_default().push(value);
    }
    found
}

/// Of nothing there is no sum, no least and no mean, whatever other panes of the epoch had before.
#[test]
fn a_pane_without_values_has_none_beside_one_with_earlier_state() {
    for value in [NULL, -1.0] {
        let found = beside_another(value);
        for name in ["sum", "avg", "min", "max", "bool_and", "bool_or", "bit_and", "bit_or"] {
            let values = &found[name];
            // The second half is of values above zero, and there is none.
            let from = if value == NULL { 0 } else { values.len() / 2 };
            assert!(values[from..].iter().all(String::is_empty), "{name} of {value}: {values:?}");
        }
        assert_eq!(found["count"].last().map(String::as_str), Some("0"));
    }
}
