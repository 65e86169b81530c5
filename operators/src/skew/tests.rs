//! Devices of every kind, and against the definition over all that came in, on any number of
//! workers, restarted anywhere.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use arrow::compute::filter_record_batch;
use arrow::datatypes::TimestampMicrosecondType;
use proptest::prelude::*;

use super::*;
use crate::key::{owner, stable_hashes};
use crate::snapshot::check;
use crate::spec::KeyLimits;

const S: i64 = 1_000_000;
const HOUR: i64 = 3_600 * S;
const DAY: i64 = 24 * HOUR;

const DEVICES: [&str; 4] = ["a", "b", "", "d-with-a-long-name"];

/// Device and lag.
type Lag = (usize, i64);

/// Device, offset, off, since.
type Row = (String, i64, bool, i64);

fn spec(keys_max: u64) -> SkewSpec {
    let limits = KeyLimits { keys_max, ..KeyLimits::default() };
    SkewSpec { pipeline: "p".into(), bound_us: HOUR, forget_after_us: 7 * DAY, limits }
}

fn batch(lags: &[Lag]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(lags.iter().map(|l| DEVICES[l.0]))),
        Arc::new(Int64Array::from_iter_values(lags.iter().map(|l| l.1))),
        Arc::new(Int64Array::from_value(1, lags.len())),
    ];
    RecordBatch::try_new(clocks_schema(), columns).unwrap()
}

/// The rows of those devices that belong to worker `index` of `workers`.
fn owned(rows: &RecordBatch, (index, workers): (usize, usize)) -> RecordBatch {
    let mut hashes = Vec::new();
    stable_hashes(&rows.columns()[..1], rows.num_rows(), &mut hashes);
    let mine: BooleanArray = hashes.iter().map(|h| Some(owner(*h, workers) == index)).collect();
    filter_record_batch(rows, &mine).unwrap()
}

fn note(emit: &Emit, out: &mut Vec<Row>) {
    for rows in &emit.rows {
        assert_eq!(rows.schema(), clock_skew_schema());
        let since = rows.column(5).as_primitive::<TimestampMicrosecondType>();
        let offsets = rows.column(3).as_primitive::<Int64Type>();
        out.extend((0..rows.num_rows()).map(|row| {
            let device = rows.column(2).as_string::<i32>().value(row).to_owned();
            let off = rows.column(4).as_boolean().value(row);
            (device, offsets.value(row), off, since.value(row))
        }));
    }
}

/// Epochs, each with its tick, on as many workers as `workers` says, one after the other; the rows
/// by tick time, which several epochs can have.
fn run(spec: &SkewSpec, epochs: &[(i64, Vec<Lag>)], workers: &[usize]) -> Vec<Row> {
    let (mut out, mut states) = (BTreeMap::<i64, Vec<Row>>::new(), Vec::new());
    let parts = epochs.chunks(epochs.len().div_ceil(workers.len()).max(1));
    for (part, count) in parts.zip(workers) {
        let new = || ClockSkew::new(spec.clone()).unwrap();
        let mut all: Vec<ClockSkew> = (0..*count).map(|_| new()).collect();
        for (index, one) in all.iter_mut().enumerate() {
            for state in &states {
                one.load(&owned(state, (index, *count))).unwrap();
            }
        }
        for (time_us, lags) in part {
            let of_tick = out.entry(*time_us).or_default();
            for (index, one) in all.iter_mut().enumerate() {
                let mut emit = Emit::default();
                let tick = Tick { epoch: 1, time_us: *time_us };
                one.epoch(&owned(&batch(lags), (index, *count)), tick, &mut emit).unwrap();
                note(&emit, of_tick);
            }
            of_tick.sort();
        }
        states = all.iter_mut().map(|one| one.save().unwrap()).collect();
    }
    out.into_values().flatten().collect()
}

/// The definition: of each device, the least lag of each stretch of ticks; of two that follow each
/// other and agree, the smaller one, once there is a third.
fn brute_force(spec: &SkewSpec, epochs: &[(i64, Vec<Lag>)]) -> Vec<Row> {
    let mut out = Vec::new();
    for (device, name) in DEVICES.iter().enumerate() {
        let mut stretches: BTreeMap<i64, (i64, i64, i64)> = BTreeMap::new();
        for (tick_us, lags) in epochs {
            for (_, lag_us) in lags.iter().filter(|l| l.0 == device) {
                let of = stretches.entry(tick_us / STRETCH_US).or_insert((*tick_us, *lag_us, 0));
                *of = (of.0, of.1.min(*lag_us), of.2 + 1);
            }
        }
        let stretches: Vec<(i64, i64, i64)> = stretches.into_values().collect();
        let (mut told, mut off) = (0i64, false);
        for three in stretches.windows(3) {
            let [(since_us, a, some), (_, b, more), (at_us, ..)] = [three[0], three[1], three[2]];
            if (a - b).abs() > AGREE_US {
                continue;
            }
            let offset = -a.min(b);
            let bound = if off { spec.bound_us / 10 * 9 } else { spec.bound_us };
            let is_off = offset.abs() > bound;
            let least = if some.min(more) < READINGS_MIN { AGREE_US } else { TOLD_US };
            if is_off != off || (offset - told).abs() > least.max(told.abs() / 10) {
                (told, off) = (offset, is_off);
                out.push((at_us, (name.to_string(), offset, off, since_us)));
            }
        }
    }
    out.sort();
    out.into_iter().map(|(_, row)| row).collect()
}

/// One device at work for `minutes`, a message every ten seconds; `lag` by second.
fn device(minutes: i64, lag: impl Fn(i64) -> Option<i64>) -> Vec<(i64, Vec<Lag>)> {
    let seconds = (0..minutes * 60).step_by(10);
    seconds.map(|s| (DAY + s * S, lag(s).map(|lag| (0, lag)).into_iter().collect())).collect()
}

/// Offsets in seconds and whether they are off, of one device.
fn told(epochs: &[(i64, Vec<Lag>)]) -> Vec<(i64, bool)> {
    let rows = run(&spec(1_000_000), epochs, &[1]);
    rows.into_iter().map(|row| (row.1 / S, row.2)).collect()
}

/// The delay of a network: now and then next to nothing, up to four seconds.
fn delay(s: i64) -> i64 {
    (s * 7919 % 41) * S / 10
}

#[test]
fn a_clock_that_is_off_is_told_within_a_quarter_of_an_hour_and_when_it_is_right_again() {
    assert_eq!(told(&device(60, |s| Some(delay(s)))), [], "it is right");
    let ahead = device(16, |s| Some(delay(s) - 2 * HOUR));
    assert_eq!(told(&ahead), [(7200, true)]);
    let behind = device(16, |s| Some(delay(s) + 3 * DAY));
    assert_eq!(told(&behind), [(-3 * 86_400, true)]);
    let mended = device(40, |s| Some(delay(s) + if s < 1200 { 2 * HOUR } else { 0 }));
    assert_eq!(told(&mended), [(-7200, true), (0, false)]);
    let small = device(30, |s| Some(delay(s) - 300 * S));
    assert_eq!(told(&small), [(300, false)], "an estimate, and no event");
}

#[test]
fn a_device_that_sends_what_it_has_buffered_is_not_behind() {
    // A day of readings, sent at once, ten times as fast as they were made, and 5 % faster (which
    // takes 20 days), before it is live again; all of it while the device was not known before.
    for faster in [86_400, 9] {
        let caught_up = 86_400 / faster;
        let lag = |s: i64| Some(delay(s) + (DAY - s.min(caught_up) * faster * S).max(0));
        assert_eq!(told(&device(caught_up / 60 + 60, lag)), [], "{faster} times");
    }
    let slowly = |s: i64| Some(delay(s) + DAY - s * S / 20);
    assert_eq!(told(&device(24 * 60, slowly)), []);
    // It was live, was away for a day, and has the day to tell.
    let away = |s: i64| match s {
        0..3600 => Some(delay(s)),
        3600..90_000 => None,
        _ => Some((DAY - (s - 90_000) * 20 * S).max(0)),
    };
    assert_eq!(told(&device(90_000 / 60 + 120, away)), []);
    // The newest of it first.
    let newest_first = |s: i64| Some(if s < 1800 { s * 40 * S } else { delay(s) });
    assert_eq!(told(&device(120, newest_first)), []);
}

/// A meter that reports every quarter of an hour, over a network that takes up to ten seconds.
#[test]
fn the_delays_of_few_readings_are_not_told() {
    let delay = |s: i64| (s / 900 * 7919 % 100) * S / 10;
    let lag = |s: i64| (s % 900 == 0).then(|| delay(s));
    assert_eq!(told(&device(7 * 24 * 60, lag)), []);
    let behind = |s: i64| (s % 900 == 0).then(|| delay(s) + 2 * HOUR);
    assert_eq!(told(&device(24 * 60, behind)).len(), 1);
}

/// What was told of a device that nobody has heard of for long is taken back.
#[test]
fn a_device_that_is_forgotten_is_not_off_any_more() {
    let mut epochs = device(30, |s| Some(delay(s) - 2 * HOUR));
    epochs.push((DAY * 20, vec![]));
    assert_eq!(told(&epochs), [(7200, true), (7200, false)]);
}

#[test]
fn a_single_wrong_time_is_no_clock() {
    for wrong in [-HOUR * 50, -DAY * 20_000, DAY * 20_000] {
        let lag = |s: i64| Some(if s == 1000 { wrong } else { delay(s) });
        assert_eq!(told(&device(60, lag)), [], "{wrong}");
    }
}

#[test]
fn memory_is_bounded_by_keys_and_silent_devices_are_forgotten() {
    let keys = |from: usize| -> RecordBatch {
        let names = (from..from + 20_000).map(|i| format!("device-{i}"));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(names)),
            Arc::new(Int64Array::from_value(0, 20_000)),
            Arc::new(Int64Array::from_value(1, 20_000)),
        ];
        RecordBatch::try_new(clocks_schema(), columns).unwrap()
    };
    let spec = spec(1_000);
    let mut one = ClockSkew::new(spec.clone()).unwrap();
    for (epoch, time_us) in [0, 6 * DAY, 8 * DAY].into_iter().enumerate() {
        let tick = Tick { epoch: epoch as u64, time_us };
        one.epoch(&keys(epoch * 20_000), tick, &mut Emit::default()).unwrap();
        let most = spec.limits.most_keys() as usize;
        assert!(one.interner.len() <= most, "{} of {most}", one.interner.len());
    }
    let tick = Tick { epoch: 9, time_us: 16 * DAY };
    one.epoch(&keys(0).slice(0, 0), tick, &mut Emit::default()).unwrap();
    assert_eq!((one.interner.len(), one.save().unwrap().num_rows()), (0, 0));
}

fn lags() -> impl Strategy<Value = Vec<(i64, Vec<Lag>)>> {
    let lag = prop_oneof![
        -2 * S..2 * S,
        Just(2 * HOUR),
        (2 * HOUR)..(2 * HOUR + 30 * S),
        Just(-DAY),
        (HOUR - 10 * S)..(HOUR + 10 * S),
    ];
    let readings = prop::collection::vec((0..DEVICES.len(), lag), 0..6);
    prop::collection::vec((0i64..400, readings), 1..60).prop_map(|epochs| {
        let mut now_us = DAY;
        let step = |(seconds, readings)| {
            now_us += seconds * S;
            (now_us, readings)
        };
        epochs.into_iter().map(step).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn it_equals_the_definition(
        epochs in lags(),
        workers in prop::collection::vec(1usize..5, 1..4),
    ) {
        let spec = spec(1_000_000);
        let expected = brute_force(&spec, &epochs);
        prop_assert_eq!(&run(&spec, &epochs, &[1]), &expected);
        prop_assert_eq!(&run(&spec, &epochs, &workers), &expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn cuts_add_up_to_the_state(epochs in lags()) {
        let make = || -> Box<dyn KeyedOperator> { Box::new(ClockSkew::new(spec(100)).unwrap()) };
        let epochs: Vec<_> = epochs.iter().map(|(us, lags)| (*us, batch(lags))).collect();
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
    }
}
