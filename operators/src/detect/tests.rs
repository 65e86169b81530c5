//! The detector against a plain loop: order, warm-up, save and restore.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use arrow::array::StringArray;
use arrow::compute::concat_batches;
use arrow::datatypes::{Field, Schema};
use datafusion_expr::{Expr as Logical, col};
use datafusion_physical_expr::planner::logical2physical;
use proptest::prelude::*;

use super::*;
use crate::snapshot::check;
use crate::spec::{DetectMethod, KeyLimits, time_type};
use crate::system::{findings_from, findings_schema};

mod forget;

/// Device, event time, value.
type Reading = (&'static str, i64, Option<f64>);

const DEVICES: [&str; 3] = ["a", "b", "c"];

fn input() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("time", time_type(), false),
        Field::new("x", DataType::Float64, true),
    ]))
}

fn spec(order: DetectOrder, disorder_us: i64, on: Logical) -> DetectSpec {
    DetectSpec {
        pipeline: "p".into(),
        name: "odd".into(),
        input: input(),
        keys: vec![0],
        time: 1,
        on: logical2physical(&on, &input()),
        on_text: "x".into(),
        method: DetectMethod::EwmaZ { alpha: 0.05, warmup: 5, threshold: 2.0 },
        order,
        disorder_us,
        idle_close_us: 1_000,
        forget_after_us: 5_000,
        limits: KeyLimits::default(),
    }
}

fn detector(order: DetectOrder, disorder_us: i64) -> Detector {
    Detector::new(spec(order, disorder_us, col("x"))).unwrap()
}

fn batch(readings: &[Reading]) -> RecordBatch {
    let times = readings.iter().map(|r| r.1);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(readings.iter().map(|r| r.0))),
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
        Arc::new(Float64Array::from_iter(readings.iter().map(|r| r.2))),
    ];
    RecordBatch::try_new(input(), columns).unwrap()
}

fn tick(epoch: u64, time_us: i64) -> Tick {
    Tick { epoch, time_us }
}

/// Feeds readings in epochs of `size`, one tick per 10 µs, then ends. Per epoch what came out.
fn run(mut detector: Detector, readings: &[Reading], size: usize) -> Vec<Vec<RecordBatch>> {
    let mut out = Vec::new();
    for (i, part) in readings.chunks(size).enumerate() {
        let mut emit = Emit::default();
        detector.epoch(&batch(part), tick(i as u64 + 1, i as i64 * 10), &mut emit).unwrap();
        out.push(emit.rows);
    }
    let mut emit = Emit::default();
    detector.end(&mut emit).unwrap();
    out.push(emit.rows);
    out
}

/// Findings in the order of (time, device), as (time, device, value bits, score bits).
fn findings(out: &[Vec<RecordBatch>]) -> Vec<(i64, String, u64, u64)> {
    let mut all = Vec::new();
    for rows in out.iter().flatten() {
        let times = rows.column(1).as_primitive::<TimestampMicrosecondType>();
        for row in 0..rows.num_rows() {
            let number = |c: usize| rows.column(c).as_primitive::<Float64Type>().value(row);
            let device = rows.column(0).as_string::<i32>().value(row).to_owned();
            all.push((times.value(row), device, number(2).to_bits(), number(3).to_bits()));
        }
    }
    all.sort();
    all
}

/// The definition, as plainly as it can be written.
fn brute_force(readings: &[Reading]) -> Vec<(i64, String, u64, u64)> {
    let mut states: BTreeMap<&str, (u32, f64, f64)> = BTreeMap::new();
    let mut all = Vec::new();
    for (device, time, value) in readings {
        let Some(value) = value else { continue };
        let (n, mean, variance) = states.entry(device).or_insert((0, 0.0, 0.0));
        if *n >= 5 && *variance > 0.0 {
            let z = (value - *mean) / variance.sqrt();
            if z.abs() > 2.0 {
                all.push((*time, (*device).to_owned(), value.to_bits(), z.to_bits()));
            }
        }
        if *n == 0 {
            *mean = *value;
        } else {
            let d = value - *mean;
            *mean += 0.05 * d;
            *variance = 0.95 * (*variance + 0.05 * d * d);
        }
        *n += 1;
    }
    all.sort();
    all
}

/// Readings in event-time order with distinct times per device, and a delay of each.
fn fleet() -> impl Strategy<Value = Vec<(Reading, i64)>> {
    let value = prop_oneof![8 => -1.0..1.0_f64, 1 => Just(50.0), 1 => Just(-30.0)];
    let reading = (0..3_usize, prop::option::weighted(0.95, value), 0..40_i64);
    prop::collection::vec(reading, 1..150).prop_map(|readings| {
        let place = |(i, (device, value, delay)): (usize, (usize, Option<f64>, i64))| {
            ((DEVICES[device], i as i64 * 3, value), delay)
        };
        readings.into_iter().enumerate().map(place).collect()
    })
}

/// In order of arrival: a reading arrives at its time plus its delay.
fn shuffled(fleet: &[(Reading, i64)]) -> Vec<Reading> {
    let mut arrivals: Vec<_> = fleet.to_vec();
    arrivals.sort_by_key(|(reading, delay)| reading.1 + delay);
    arrivals.into_iter().map(|(reading, _)| reading).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn arrival_order_equals_the_definition(fleet in fleet(), size in 1..20_usize) {
        let readings = shuffled(&fleet);
        let out = run(detector(DetectOrder::Arrival, 0), &readings, size);
        prop_assert_eq!(findings(&out), brute_force(&readings));
    }

    #[test]
    fn event_time_does_not_see_the_shuffle(fleet in fleet(), size in 1..20_usize) {
        let in_order: Vec<Reading> = fleet.iter().map(|f| f.0).collect();
        let late = shuffled(&fleet);
        let mut counted = detector(DetectOrder::EventTime, 40);
        for (i, part) in late.chunks(size).enumerate() {
            counted.epoch(&batch(part), tick(i as u64 + 1, 0), &mut Emit::default()).unwrap();
        }
        prop_assert_eq!(counted.counts().late, 0);
        let out = run(detector(DetectOrder::EventTime, 40), &late, size);
        prop_assert_eq!(findings(&out), brute_force(&in_order));
    }

    /// Stopped after any epoch and resumed in a fresh instance: the same batches, byte for byte.
    #[test]
    fn a_resumed_run_equals_a_straight_one(
        fleet in fleet(),
        cut in 0..20_usize,
        arrival in any::<bool>(),
    ) {
        let order = if arrival { DetectOrder::Arrival } else { DetectOrder::EventTime };
        let readings = shuffled(&fleet);
        let straight = run(detector(order, 30), &readings, 7);
        let mut resumed = Vec::new();
        let mut running = detector(order, 30);
        for (i, part) in readings.chunks(7).enumerate() {
            if i == cut {
                let saved = running.save().unwrap();
                // Dealt out in two parts, in another order.
                let middle = saved.num_rows() / 2;
                running = detector(order, 30);
                running.load(&saved.slice(middle, saved.num_rows() - middle)).unwrap();
                running.load(&saved.slice(0, middle)).unwrap();
            }
            let mut emit = Emit::default();
            running.epoch(&batch(part), tick(i as u64 + 1, i as i64 * 10), &mut emit).unwrap();
            resumed.push(emit.rows);
        }
        let mut emit = Emit::default();
        running.end(&mut emit).unwrap();
        resumed.push(emit.rows);
        prop_assert_eq!(straight, resumed);
    }
}

/// Ten readings that settle, then a spike at time `at`.
fn quiet_then_spike(at: i64) -> Vec<Reading> {
    let settling = |i| match i {
        1 => 2.0,
        _ => 1.0,
    };
    let mut readings: Vec<Reading> = (0..10).map(|i| ("a", i, Some(settling(i)))).collect();
    readings.push(("a", at, Some(9.0)));
    readings
}

#[test]
fn a_silent_key_is_judged_by_the_tick() {
    let mut detector = detector(DetectOrder::EventTime, 100);
    let mut emit = Emit::default();
    detector.epoch(&batch(&quiet_then_spike(20)), tick(1, 5_000), &mut emit).unwrap();
    assert!(emit.rows.is_empty());
    detector.epoch(&batch(&[]), tick(2, 5_999), &mut emit).unwrap();
    assert!(emit.rows.is_empty());
    // The saved state knows when the key was heard last.
    let saved = detector.save().unwrap();
    let mut resumed = Detector::new(detector.spec).unwrap();
    resumed.load(&saved).unwrap();
    resumed.epoch(&batch(&[]), tick(3, 6_000), &mut emit).unwrap();
    assert_eq!(emit.rows[0].num_rows(), 1);
    // What comes after that and is older is judged at once, and counted.
    resumed.epoch(&batch(&[("a", 15, Some(-9.0))]), tick(4, 6_100), &mut emit).unwrap();
    assert_eq!(emit.rows[1].num_rows(), 1);
    assert_eq!(resumed.counts(), DetectCounts { judged: 12, late: 1, forced: 0 });
}

#[test]
fn findings_have_their_rows_in_the_system_table() {
    let mut detector = detector(DetectOrder::Arrival, 0);
    let mut emit = Emit::default();
    let mut readings = quiet_then_spike(20);
    readings.extend(quiet_then_spike(10).into_iter().map(|(_, t, v)| ("b", t, v)));
    detector.epoch(&batch(&readings), tick(1, 0), &mut emit).unwrap();
    let rows = concat_batches(&detector.schema, &emit.rows).unwrap();
    let out = findings_from(&detector.spec, &rows).unwrap();
    assert_eq!(out.schema(), findings_schema());
    let keys: Vec<_> = out.column_by_name("keys").unwrap().as_string::<i32>().iter().collect();
    // Ordered by time, then key: b's spike is older.
    assert_eq!(keys, [Some(r#"{"device":"b"}"#), Some(r#"{"device":"a"}"#)]);
    let method = out.column_by_name("method").unwrap().as_string::<i32>().value(0).to_owned();
    assert_eq!(method, "ewma_z");
}

#[test]
fn values_that_are_no_numbers_are_rejected_and_do_not_poison() {
    let mut detector = Detector::new(spec(DetectOrder::Arrival, 0, col("x") / col("x"))).unwrap();
    let mut emit = Emit::default();
    let readings = [("a", 1, Some(0.0)), ("a", 2, Some(3.0)), ("a", 3, None)];
    detector.epoch(&batch(&readings), tick(1, 0), &mut emit).unwrap();
    assert_eq!(detector.counts().judged, 1);
    let rejects = &emit.rejects[0];
    assert_eq!(rejects.num_rows(), 1);
    let detail = rejects.column_by_name("detail").unwrap().as_string::<i32>().value(0).to_owned();
    assert_eq!(detail, "step `odd`: `x` is NaN, which cannot be judged");
}

#[test]
fn a_full_buffer_judges_the_oldest_first() {
    let mut detector = detector(DetectOrder::EventTime, i64::MAX);
    let many = crate::keys::READINGS_PER_KEY_MAX as i64 + 3;
    let readings: Vec<Reading> = (0..many).map(|i| ("a", i, Some(1.0))).collect();
    detector.epoch(&batch(&readings), tick(1, 0), &mut Emit::default()).unwrap();
    assert_eq!(detector.counts(), DetectCounts { judged: 3, late: 0, forced: 3 });
}

#[test]
fn foreign_state_is_refused() {
    let saved = detector(DetectOrder::Arrival, 0).save().unwrap();
    let error = detector(DetectOrder::EventTime, 0).load(&saved).unwrap_err();
    assert!(matches!(error, OperatorError::State(_)), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn cuts_add_up_on_any_number_of_workers(fleet in fleet(), arrival in any::<bool>()) {
        let order = if arrival { DetectOrder::Arrival } else { DetectOrder::EventTime };
        let readings = shuffled(&fleet);
        let parts = readings.chunks(7).enumerate();
        // Ticks far enough apart that some keys fall silent between them.
        let epochs: Vec<(i64, RecordBatch)> =
            parts.map(|(i, part)| (i as i64 * 300, batch(part))).collect();
        let make = || Box::new(detector(order, 30)) as Box<dyn KeyedOperator>;
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
    }
}
