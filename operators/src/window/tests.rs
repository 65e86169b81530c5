//! Windows against a brute-force oracle: random readings with disorder, duplicates and late rows,
//! cut into random epochs, restarted in the middle, dealt out to several workers.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{
    DataType, Field, Float64Type, Int64Type, Schema, SchemaRef, TimestampMicrosecondType,
};
use datafusion_expr::AggregateUDF;
use datafusion_functions_aggregate::average::avg_udaf;
use datafusion_functions_aggregate::count::count_udaf;
use datafusion_functions_aggregate::min_max::{max_udaf, min_udaf};
use datafusion_functions_aggregate::stddev::stddev_pop_udaf;
use datafusion_physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use datafusion_physical_expr::expressions::col;
use proptest::prelude::*;

use super::WindowOperator;
use crate::batch::Tick;
use crate::distinct::in_one_order;
use crate::operator::{Emit, KeyedOperator};
use crate::snapshot::{GroupSet, check};
use crate::spec::{AtKeysMax, Clock, KeyLimits, LatePolicy, Shape, WindowSpec, time_type};

mod calendar;
mod early;
mod forget;
mod heir;
mod keep;
mod nulls;
mod quality;
mod silence;

const OFFSET: i64 = 3;

fn input() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("time", time_type(), false),
        Field::new("v", DataType::Float64, true),
    ]))
}

fn spec(size_us: i64, slide_us: i64, disorder_us: i64, late: LatePolicy) -> WindowSpec {
    let schema = input();
    let v = col("v", &schema).unwrap();
    let aggregate = |udf: Arc<AggregateUDF>, name: &str| -> Arc<AggregateFunctionExpr> {
        let builder = AggregateExprBuilder::new(udf, vec![Arc::clone(&v)]);
        Arc::new(builder.schema(Arc::clone(&schema)).alias(name).build().unwrap())
    };
    let aggregates = vec![
        aggregate(count_udaf(), "n"),
        aggregate(avg_udaf(), "avg"),
        aggregate(min_udaf(), "min"),
        aggregate(max_udaf(), "max"),
        aggregate(stddev_pop_udaf(), "sd"),
    ];
    let mut spec = WindowSpec {
        pipeline: "p".into(),
        name: "w".into(),
        input: schema,
        keys: vec![0],
        time: 1,
        shape: Shape::Grid { size_us, slide_us, offset_us: OFFSET },
        filters: aggregates.iter().map(|_| None).collect(),
        aggregates,
        select: Vec::new(),
        disorder_us,
        idle_close_us: 1_000,
        clock: Clock::Device,
        late,
        puts_off: false,
        early_us: None,
        quality: None,
        limits: KeyLimits::default(),
    };
    let aggregated = spec.aggregated_schema();
    spec.select = ["n", "avg", "min", "max", "sd"]
        .iter()
        .enumerate()
        .map(|(i, name)| ((*name).to_owned(), col(&format!("agg{i}"), &aggregated).unwrap()))
        .collect();
    spec
}

type Reading = (u8, i64, f64);

/// Stands for a value that is missing, in readings and in results: it is equal to itself.
const NULL: f64 = f64::INFINITY;

fn batch(readings: &[Reading]) -> RecordBatch {
    let devices: ArrayRef =
        Arc::new(StringArray::from_iter_values(readings.iter().map(|r| format!("d{}", r.0))));
    let times = TimestampMicrosecondArray::from_iter_values(readings.iter().map(|r| r.1));
    let values = readings.iter().map(|r| (r.2 != NULL).then_some(r.2));
    let values: ArrayRef = Arc::new(Float64Array::from_iter(values));
    RecordBatch::try_new(input(), vec![devices, Arc::new(times.with_timezone("UTC")), values])
        .unwrap()
}

/// (device, window start) -> (revision, rows, n, avg, min, max, sd) of the latest revision.
type Result = BTreeMap<(String, i64), (i64, i64, i64, f64, f64, f64, f64)>;

fn collect(emit: &Emit, into: &mut Result) {
    for rows in &emit.rows {
        let float = |i: usize| rows.column(i).as_primitive::<Float64Type>().clone();
        let int = |i: usize| rows.column(i).as_primitive::<Int64Type>().clone();
        let starts = rows.column(1).as_primitive::<TimestampMicrosecondType>();
        for i in 0..rows.num_rows() {
            let key = (rows.column(0).as_string::<i32>().value(i).to_owned(), starts.value(i));
            let revision = int(9).value(i);
            let expected = into.get(&key).map_or(0, |r| r.0 + 1);
            assert_eq!(revision, expected, "revisions count up from 0: {key:?}");
            let value = |column: usize| float(column).iter().nth(i).flatten().unwrap_or(NULL);
            let counts = (int(8).value(i), int(3).value(i));
            let row = (revision, counts.0, counts.1, value(4), value(5), value(6), value(7));
            into.insert(key, row);
        }
    }
}

fn oracle(spec: &WindowSpec, readings: &[Reading]) -> BTreeMap<(String, i64), Vec<f64>> {
    let mut out: BTreeMap<(String, i64), Vec<f64>> = BTreeMap::new();
    let Shape::Grid { size_us, slide_us, .. } = spec.shape else { unreachable!() };
    for (device, time, value) in readings {
        let newest = (time - OFFSET).div_euclid(slide_us);
        let mut window = newest;
        while OFFSET + window * slide_us + size_us > *time {
            let start = OFFSET + window * slide_us;
            out.entry((format!("d{device}"), start)).or_default().push(*value);
            window -= 1;
        }
    }
    out
}

fn check(result: &Result, oracle: &BTreeMap<(String, i64), Vec<f64>>) {
    assert_eq!(result.keys().collect::<Vec<_>>(), oracle.keys().collect::<Vec<_>>());
    for (key, values) in oracle {
        let (_, rows, n, avg, min, max, sd) = result[key];
        let all = values.len() as i64;
        let values: Vec<f64> = values.iter().copied().filter(|v| *v != NULL).collect();
        assert_eq!((rows, n), (all, values.len() as i64), "{key:?}");
        if values.is_empty() {
            assert_eq!([avg, min, max, sd], [NULL; 4], "{key:?}");
            continue;
        }
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let var = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
        assert!((avg - mean).abs() < 1e-9, "{key:?}: {avg} is not {mean}");
        assert!((sd - var.sqrt()).abs() < 1e-6, "{key:?}: {sd} is not {}", var.sqrt());
        assert_eq!(min, values.iter().copied().fold(f64::INFINITY, f64::min));
        assert_eq!(max, values.iter().copied().fold(f64::NEG_INFINITY, f64::max));
    }
}

fn tick(epoch: u64) -> Tick {
    Tick { epoch, time_us: epoch as i64 * 10 }
}

/// Runs the readings cut into epochs; `restart` saves and loads before that epoch.
fn run(spec: &WindowSpec, epochs: &[Vec<Reading>], restart: Option<usize>) -> (Vec<Emit>, usize) {
    run_at(spec, epochs, restart, 10)
}

/// [`run`] with a tick every `every_us`, and each fourth of them after a pause of ten.
fn run_at(
    spec: &WindowSpec,
    epochs: &[Vec<Reading>],
    restart: Option<usize>,
    every_us: i64,
) -> (Vec<Emit>, usize) {
    let mut time_us = 0;
    let mut operator = WindowOperator::new(spec.clone()).unwrap();
    let mut emits = Vec::new();
    for (i, readings) in epochs.iter().enumerate() {
        if restart == Some(i) {
            let state = operator.save().unwrap();
            operator = WindowOperator::new(spec.clone()).unwrap();
            operator.load(&state).unwrap();
        }
        let mut emit = Emit::default();
        time_us += if i % 4 == 3 { 10 * every_us } else { every_us };
        let tick = Tick { epoch: i as u64 + 1, time_us };
        operator.epoch(&batch(readings), tick, &mut emit).unwrap();
        emits.push(emit);
    }
    let mut emit = Emit::default();
    operator.end(&mut emit).unwrap();
    emits.push(emit);
    let late = emits.iter().flat_map(|e| &e.late).map(RecordBatch::num_rows).sum();
    (emits, late)
}

fn readings() -> impl Strategy<Value = Vec<Vec<Reading>>> {
    // Each third reading has no value, so that there are panes without any.
    let value = prop_oneof![2 => -1e3f64..1e3, 1 => Just(NULL)];
    let reading = (0u8..4, -200i64..600, value);
    let epoch = prop::collection::vec(reading, 0..12);
    prop::collection::vec(epoch, 1..30).prop_map(|mut epochs| {
        // Time moves on, with disorder, a few late ones, and a duplicate in every third epoch. The
        // clock of one device is far ahead.
        for (i, epoch) in epochs.iter_mut().enumerate() {
            for reading in epoch.iter_mut() {
                reading.1 += i as i64 * 40 + if reading.0 == 3 { 50_000 } else { 0 };
            }
            if i % 3 == 0 && !epoch.is_empty() {
                let again = epoch[0];
                epoch.push(again);
            }
        }
        epochs
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn revised_windows_equal_the_oracle(
        epochs in readings(),
        shape in prop::sample::select(vec![(100, 100), (60, 20), (60, 40), (7, 7), (3_000, 500)]),
        disorder in 0i64..80,
        restart in prop::option::of(0usize..30),
        // Also so far apart that keys fall silent, come back and fall silent again.
        every_us in prop::sample::select(vec![10, 150, 400]),
    ) {
        let spec = spec(shape.0, shape.1, disorder, LatePolicy::Revise { keep_us: 1_000_000 });
        let (emits, late) = run_at(&spec, &epochs, restart, every_us);
        prop_assert_eq!(late, 0);
        let mut result = Result::new();
        emits.iter().for_each(|e| collect(e, &mut result));
        check(&result, &oracle(&spec, &epochs.concat()));
        let (straight, _) = run_at(&spec, &epochs, None, every_us);
        for (a, b) in emits.iter().zip(&straight) {
            prop_assert_eq!(&a.rows, &b.rows, "a restart must not show in any byte or order");
        }
    }

    #[test]
    fn nothing_is_dropped_in_silence(
        epochs in readings(), disorder in 0i64..40, keep in prop::option::of(0i64..300),
    ) {
        let late = keep.map_or(LatePolicy::Table, |keep_us| LatePolicy::Revise { keep_us });
        let spec = spec(50, 50, disorder, late);
        let (emits, late) = run(&spec, &epochs, None);
        let mut result = Result::new();
        emits.iter().for_each(|e| collect(e, &mut result));
        let in_windows: i64 = result.values().map(|r| r.1).sum();
        prop_assert_eq!(in_windows as usize + late, epochs.concat().len());
    }

    #[test]
    fn other_keys_do_not_matter(epochs in readings(), disorder in 0i64..80) {
        let spec = spec(60, 20, disorder, LatePolicy::Revise { keep_us: 100 });
        let (all, _) = run(&spec, &epochs, None);
        for device in 0..4u8 {
            let own: Vec<Vec<Reading>> = epochs
                .iter()
                .map(|e| e.iter().filter(|r| r.0 == device).copied().collect())
                .collect();
            let (alone, _) = run(&spec, &own, None);
            let name = format!("d{device}");
            for (a, b) in all.iter().zip(&alone) {
                prop_assert_eq!(rows_of(&a.rows, &name), rows_of(&b.rows, &name));
                prop_assert_eq!(a.late.len() >= b.late.len(), true);
            }
        }
    }
}

/// Debug text of a device's rows: every bit of every float shows in it.
fn rows_of(batches: &[RecordBatch], device: &str) -> Vec<String> {
    let mut out = Vec::new();
    for rows in batches {
        for i in 0..rows.num_rows() {
            if rows.column(0).as_string::<i32>().value(i) == device {
                out.push(format!("{:?}", rows.slice(i, 1).columns()));
            }
        }
    }
    out
}

#[test]
fn a_silent_key_is_closed_and_may_come_back() {
    let spec = spec(100, 100, 50, LatePolicy::Revise { keep_us: 5_000 });
    let mut operator = WindowOperator::new(spec).unwrap();
    let mut emit = Emit::default();
    let at = |epoch, time_us| Tick { epoch, time_us };
    operator.epoch(&batch(&[(1, 10, 1.0)]), at(1, 0), &mut emit).unwrap();
    operator.epoch(&batch(&[]), at(2, 999), &mut emit).unwrap();
    assert!(emit.rows.is_empty(), "not yet idle");
    operator.epoch(&batch(&[]), at(3, 1_000), &mut emit).unwrap();
    assert_eq!(emit.rows.len(), 1, "idle for a thousand microseconds of tick time");
    operator.epoch(&batch(&[(1, 20, 3.0)]), at(4, 2_000), &mut emit).unwrap();
    let mut result = Result::new();
    collect(&emit, &mut result);
    assert_eq!(result[&("d1".to_owned(), 3)], (1, 2, 2, 2.0, 1.0, 3.0, 1.0));
}

#[test]
fn a_key_that_was_silent_once_is_closed_by_its_next_silence_too() {
    let spec = spec(100, 100, 50, LatePolicy::Revise { keep_us: 1_000_000 });
    let mut operator = WindowOperator::new(spec).unwrap();
    let at = |epoch, time_us| Tick { epoch, time_us };
    for (silence, begin_us) in [0, 10_000, 20_000].into_iter().enumerate() {
        let (epoch, mut emit) = (silence as u64 * 2 + 1, Emit::default());
        let reading = batch(&[(1, silence as i64 * 500, 1.0)]);
        operator.epoch(&reading, at(epoch, begin_us), &mut emit).unwrap();
        assert!(emit.rows.is_empty(), "not yet idle");
        operator.epoch(&batch(&[]), at(epoch + 1, begin_us + 1_000), &mut emit).unwrap();
        assert_eq!(emit.rows.len(), 1, "silence {silence}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn cuts_add_up_on_any_number_of_workers(
        epochs in readings(),
        shape in prop::sample::select(vec![(100, 100), (60, 20), (7, 7), (3_000, 500)]),
        keep in prop::option::of(0i64..300),
    ) {
        let late = keep.map_or(LatePolicy::Table, |keep_us| LatePolicy::Revise { keep_us });
        let mut spec = spec(shape.0, shape.1, 20, late);
        // A set of values, which has no order of its own.
        let v = col("v", &spec.input).unwrap();
        let set = AggregateExprBuilder::new(count_udaf(), vec![v]).distinct().alias("set");
        let set = Arc::new(set.schema(Arc::clone(&spec.input)).build().unwrap());
        spec.aggregates.push(in_one_order(set, &spec.input).unwrap());
        spec.filters.push(None);
        // Many devices, and ticks far enough apart that some of them fall silent.
        let spread = |i: usize, r: &Reading| (r.0 + 4 * (i % 9) as u8, r.1, r.2);
        let epochs: Vec<(i64, RecordBatch)> = epochs
            .iter()
            .enumerate()
            .map(|(i, readings)| {
                let readings: Vec<Reading> = readings.iter().map(|r| spread(i, r)).collect();
                (i as i64 * 300, batch(&readings))
            })
            .collect();
        let new = |spec| Box::new(WindowOperator::new(spec).unwrap()) as Box<dyn KeyedOperator>;
        let make = || new(spec.clone());
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
        // With one clock all keys are on one worker, and come in turns all the same.
        let make = || new(WindowSpec { clock: Clock::Fleet, ..spec.clone() });
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check_turns();
    }
}

/// As many parts as the state needs, texts of aggregates included, which are loaded one by one.
#[test]
fn a_large_state_is_saved_in_parts() {
    let mut spec = spec(100, 100, 20, LatePolicy::Revise { keep_us: 10_000 });
    let device = col("device", &spec.input).unwrap();
    let newest = AggregateExprBuilder::new(max_udaf(), vec![device]).alias("newest");
    spec.aggregates.push(Arc::new(newest.schema(Arc::clone(&spec.input)).build().unwrap()));
    spec.filters.push(None);
    let mut operator = WindowOperator::new(spec.clone()).unwrap();
    let readings: Vec<Reading> =
        (100..200).flat_map(|d| [(d, 5, 1.0), (d, 205, 1.0), (d, 305, 1.0)]).collect();
    operator.epoch(&batch(&readings), tick(1), &mut Emit::default()).unwrap();
    let parts = operator.cut(true).parts().unwrap();
    // Each device has 4 bytes of name, in each of three panes twice, and 256 make a part.
    assert!(parts.len() >= 300 * 8 / 256, "{}", parts.len());
    let mut other = WindowOperator::new(spec).unwrap();
    for part in parts {
        other.load(&part.rows).unwrap();
    }
    assert_eq!(other.save().unwrap(), operator.save().unwrap());
}

/// With one clock for the fleet all keys are on one worker, and what one key does is part of the
/// state of all.
#[test]
fn a_fleet_with_one_clock_is_cut_as_a_whole() {
    let fleet = || {
        let spec = spec(100, 100, 50, LatePolicy::Revise { keep_us: 5_000 });
        WindowOperator::new(WindowSpec { clock: Clock::Fleet, ..spec }).unwrap()
    };
    let mut operator = fleet();
    let mut emit = Emit::default();
    operator.epoch(&batch(&[(1, 10, 1.0), (2, 20, 2.0)]), tick(1), &mut emit).unwrap();
    assert_eq!(*operator.cut(false).groups(), GroupSet::ALL);
    operator.epoch(&batch(&[]), tick(2), &mut emit).unwrap();
    assert!(operator.cut(false).groups().is_empty());
    operator.epoch(&batch(&[(1, 400, 3.0)]), tick(3), &mut emit).unwrap();
    assert_eq!(*operator.cut(false).groups(), GroupSet::ALL);
    let saved = operator.save().unwrap();
    let mut again = fleet();
    again.load(&saved).unwrap();
    assert_eq!(again.save().unwrap(), saved);
}
