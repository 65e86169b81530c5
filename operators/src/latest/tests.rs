//! Last-known values against their definition: shuffled, late, repeated, silent, restarted, on
//! several workers.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use arrow::array::{Int64Array, StringArray};
use arrow::datatypes::{Field, Int64Type, Schema};
use datafusion_expr::{Expr as Logical, col, lit};
use datafusion_physical_expr::planner::logical2physical;
use proptest::prelude::*;

use super::*;
use crate::key::{owner, stable_hashes};
use crate::operator::KeyedOperator;
use crate::outage::testing::Alone;
use crate::snapshot::check;
use crate::spec::{KeyLimits, time_type};

mod outages;

/// Device, event time, a number, a text.
type Reading = (u8, i64, Option<i64>, Option<i64>);

/// Device, time, the number, the text.
type Row = (String, i64, Option<i64>, Option<String>);

fn input() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("time", time_type(), false),
        Field::new("number", DataType::Int64, true),
        Field::new("text", DataType::Utf8, true),
    ]))
}

fn planned(expr: &Logical) -> crate::spec::Expr {
    logical2physical(expr, &input())
}

fn spec(disorder_us: i64) -> LatestSpec {
    let select = ["number", "text"].iter().map(|name| {
        let field = Arc::new(input().field_with_name(name).unwrap().clone());
        (field, planned(&col(*name)))
    });
    LatestSpec {
        pipeline: "p".into(),
        name: "known".into(),
        input: input(),
        keys: vec![0],
        time: 1,
        select: select.collect(),
        at: None,
        on_change: false,
        max_age_us: None,
        disorder_us,
        idle_close_us: 1_000_000_000,
        forget_after_us: 1_000_000_000,
        live: true,
        limits: KeyLimits::default(),
    }
}

fn alone(spec: LatestSpec) -> Alone<LatestOperator> {
    Alone(LatestOperator::new(spec).unwrap())
}

fn batch(readings: &[Reading]) -> RecordBatch {
    let times = readings.iter().map(|r| r.1);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(readings.iter().map(|r| format!("d{}", r.0)))),
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
        Arc::new(readings.iter().map(|r| r.2).collect::<Int64Array>()),
        Arc::new(readings.iter().map(|r| r.3.map(|v| format!("t{v}"))).collect::<StringArray>()),
    ];
    RecordBatch::try_new(input(), columns).unwrap()
}

fn rows(emit: &Emit) -> Vec<Row> {
    let mut all = Vec::new();
    for rows in &emit.rows {
        let times = rows.column(1).as_primitive::<TimestampMicrosecondType>();
        let numbers = rows.column(2).as_primitive::<Int64Type>();
        let texts = rows.column(3).as_string::<i32>();
        all.extend((0..rows.num_rows()).map(|i| {
            let number = numbers.is_valid(i).then(|| numbers.value(i));
            let text = texts.is_valid(i).then(|| texts.value(i).to_owned());
            (rows.column(0).as_string::<i32>().value(i).to_owned(), times.value(i), number, text)
        }));
    }
    all
}

fn late_rows(emits: &[Emit]) -> usize {
    emits.iter().flat_map(|e| &e.late).map(RecordBatch::num_rows).sum()
}

/// The rows of those devices that belong to worker `index` of `workers`.
fn owned(rows: &RecordBatch, (index, workers): (usize, usize)) -> RecordBatch {
    let mut hashes = Vec::new();
    stable_hashes(&rows.columns()[..1], rows.num_rows(), &mut hashes);
    let mine: BooleanArray = hashes.iter().map(|h| Some(owner(*h, workers) == index)).collect();
    filter_record_batch(rows, &mine).unwrap()
}

/// Epochs, a tick of 40 µs each, on as many workers as `workers` says, one after the other. What
/// each epoch emits, and the end.
fn run(spec: &LatestSpec, epochs: &[Vec<Reading>], workers: &[usize]) -> Vec<Emit> {
    run_at(40, spec, epochs, workers)
}

/// The same with ticks that are so far apart.
fn run_at(
    apart_us: i64,
    spec: &LatestSpec,
    epochs: &[Vec<Reading>],
    workers: &[usize],
) -> Vec<Emit> {
    let (mut emits, mut states, mut number) = (Vec::new(), Vec::new(), 0);
    let parts: Vec<&[Vec<Reading>]> =
        epochs.chunks(epochs.len().div_ceil(workers.len()).max(1)).collect();
    for (i, (part, count)) in parts.iter().zip(workers).enumerate() {
        let make = || alone(spec.clone());
        let mut all: Vec<Alone<LatestOperator>> = (0..*count).map(|_| make()).collect();
        for (index, operator) in all.iter_mut().enumerate() {
            for state in &states {
                operator.load(&owned(state, (index, *count))).unwrap();
            }
        }
        for readings in *part {
            let mut emit = Emit::default();
            for (index, operator) in all.iter_mut().enumerate() {
                let tick = Tick { epoch: number + 1, time_us: number as i64 * apart_us };
                let own = owned(&batch(readings), (index, *count));
                operator.epoch(&own, tick, &mut emit).unwrap();
            }
            number += 1;
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

/// Rows by epoch, each epoch in one order however many workers there were.
fn by_epoch(emits: &[Emit]) -> Vec<Vec<Row>> {
    let sorted = |emit: &Emit| {
        let mut rows = rows(emit);
        rows.sort();
        rows
    };
    emits.iter().map(sorted).collect()
}

fn all_rows(emits: &[Emit]) -> Vec<Row> {
    let mut all: Vec<Row> = emits.iter().flat_map(rows).collect();
    all.sort();
    all
}

/// Whether a reading is wanted by the `at` of these tests.
fn meets(reading: &Reading) -> bool {
    reading.2.is_some_and(|v| v >= 3)
}

/// The definition, as plainly as it can be written, of readings in the order of their arrival.
fn definition(spec: &LatestSpec, readings: &[Reading]) -> Vec<Row> {
    let mut rows = Vec::new();
    for device in 0..4 {
        let own: Vec<&Reading> = readings.iter().filter(|r| r.0 == device).collect();
        let wanted = |r: &&&Reading| spec.at.is_none() || meets(r);
        let mut times: Vec<i64> = own.iter().filter(wanted).map(|r| r.1).collect();
        times.sort_unstable();
        times.dedup();
        let mut before = None;
        for time_us in times {
            let from_us = spec.max_age_us.map_or(i64::MIN, |age| time_us - age);
            let newest = |said: &dyn Fn(&Reading) -> Option<i64>| {
                let mut all: Vec<&&Reading> =
                    own.iter().filter(|r| r.1 <= time_us && said(r).is_some()).collect();
                all.sort_by_key(|r| r.1);
                all.last().filter(|r| r.1 >= from_us).and_then(|r| said(r))
            };
            let values = (newest(&|r| r.2), newest(&|r| r.3).map(|v| format!("t{v}")));
            if spec.on_change && before.as_ref() == Some(&values) {
                continue;
            }
            rows.push((format!("d{device}"), time_us, values.0, values.1.clone()));
            before = Some(values);
        }
    }
    rows.sort();
    rows
}

/// The readings that are taken, in order of arrival, and how many come too late, as long as nobody
/// is silent.
fn in_time(disorder_us: i64, readings: &[Reading]) -> (Vec<Reading>, usize) {
    let mut taken: Vec<Reading> = Vec::new();
    let mut late = 0;
    for reading in readings {
        let own = || taken.iter().filter(|r| r.0 == reading.0).map(|r| r.1);
        let passed_us = own().max().unwrap_or(i64::MIN).saturating_sub(disorder_us);
        let through_us = own().filter(|t| *t < passed_us).max();
        match through_us.is_some_and(|through_us| reading.1 <= through_us) {
            true => late += 1,
            false => taken.push(*reading),
        }
    }
    (taken, late)
}

/// Readings in the order of their times with a delay each, some of equal times.
fn sent() -> impl Strategy<Value = Vec<(Reading, i64)>> {
    let value = || prop::option::weighted(0.5, 0..6_i64);
    // A delay as long as `disorder` is within it.
    let reading = (0..4_u8, 0..3_i64, value(), value(), 0..=50_i64);
    prop::collection::vec(reading, 1..120).prop_map(|readings| {
        let mut time_us = 0;
        let timed = readings.into_iter().map(|(device, step, number, text, delay)| {
            time_us += step * 7;
            ((device, time_us, number, text), delay)
        });
        timed.collect()
    })
}

fn specs() -> impl Strategy<Value = LatestSpec> {
    (any::<bool>(), any::<bool>(), prop::option::of(0..90_i64)).prop_map(|(at, change, age)| {
        LatestSpec {
            at: at.then(|| planned(&col("number").gt_eq(lit(3_i64)))),
            on_change: change,
            max_age_us: age,
            ..spec(50)
        }
    })
}

fn epochs(readings: &[Reading], size: usize) -> Vec<Vec<Reading>> {
    readings.chunks(size).map(<[Reading]>::to_vec).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Equal times are in the order of arrival: which of two values of a time holds depends on it.
    #[test]
    fn any_order_within_the_bound_gives_the_defined_rows(
        mut sent in sent(), spec in specs(), size in 1..20_usize,
    ) {
        sent.sort_by_key(|(reading, delay)| reading.1 + delay);
        let arrived: Vec<Reading> = sent.iter().map(|s| s.0).collect();
        let emits = run(&spec, &epochs(&arrived, size), &[1]);
        prop_assert_eq!(late_rows(&emits), 0);
        prop_assert_eq!(all_rows(&emits), definition(&spec, &arrived));
    }

    /// Later than that, and again: what was told stays, what is late is counted.
    #[test]
    fn what_is_late_is_told_and_changes_nothing(
        sent in sent(),
        spec in specs(),
        disorder in 0..40_i64,
        again in prop::collection::vec((0..120_usize, 0..200_i64), 0..20),
    ) {
        let mut arrived: Vec<(i64, Reading)> =
            sent.iter().map(|(reading, delay)| (reading.1 + delay, *reading)).collect();
        for (place, delay) in again {
            let (at, reading) = arrived[place % sent.len()];
            arrived.push((at + delay, reading));
        }
        arrived.sort_by_key(|a| a.0);
        let arrived: Vec<Reading> = arrived.iter().map(|a| a.1).collect();
        let spec = LatestSpec { disorder_us: disorder, ..spec };
        let emits = run(&spec, &epochs(&arrived, 5), &[1]);
        let (taken, late) = in_time(disorder, &arrived);
        prop_assert_eq!(late_rows(&emits), late);
        prop_assert_eq!(all_rows(&emits), definition(&spec, &taken));
    }

    /// With silence, too: ticks go on, keys are released and forgotten.
    #[test]
    fn workers_and_restarts_do_not_show(
        mut sent in sent(), spec in specs(), idle in 1..300_i64, forget in 1..600_i64,
    ) {
        sent.sort_by_key(|(reading, delay)| reading.1 + 2 * delay);
        let arrived: Vec<Reading> = sent.iter().map(|s| s.0).collect();
        let spec = LatestSpec { idle_close_us: idle, forget_after_us: forget, ..spec };
        let epochs = epochs(&arrived, 4);
        let straight = run(&spec, &epochs, &[1]);
        for workers in [&[2][..], &[3], &[1, 1, 1], &[1, 3], &[2, 1, 3, 2]] {
            let other = run(&spec, &epochs, workers);
            prop_assert_eq!(by_epoch(&other), by_epoch(&straight), "{:?}", workers);
            prop_assert_eq!(late_rows(&other), late_rows(&straight), "{:?}", workers);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Files come with the times at which they were changed last, which say nothing of devices.
    #[test]
    fn of_files_the_ticks_do_not_count(mut sent in sent(), spec in specs(), size in 1..20_usize) {
        sent.sort_by_key(|(reading, delay)| reading.1 + 2 * delay);
        let arrived: Vec<Reading> = sent.iter().map(|s| s.0).collect();
        let spec = LatestSpec { idle_close_us: 50, forget_after_us: 90, live: false, ..spec };
        let epochs = epochs(&arrived, size);
        let all = |apart_us: i64| {
            let emits = run_at(apart_us, &spec, &epochs, &[1]);
            (by_epoch(&emits), late_rows(&emits))
        };
        prop_assert_eq!(all(1), all(1_000_000));
    }

    #[test]
    fn cuts_add_up_on_any_number_of_workers(sent in sent(), spec in specs()) {
        let spec = LatestSpec { idle_close_us: 500, forget_after_us: 2_000, ..spec };
        let spread = |i: usize, r: &Reading| (r.0 + 4 * (i % 9) as u8, r.1, r.2, r.3);
        let arrived: Vec<Reading> = sent.iter().map(|s| s.0).collect();
        let epochs: Vec<(i64, RecordBatch)> = epochs(&arrived, 6)
            .iter()
            .enumerate()
            .map(|(i, part)| {
                let part: Vec<Reading> = part.iter().map(|r| spread(i, r)).collect();
                (i as i64 * 300, batch(&part))
            })
            .collect();
        let make = || {
            Box::new(alone(spec.clone())) as Box<dyn KeyedOperator>
        };
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
    }
}

#[test]
fn a_silent_key_is_told_by_the_tick_and_forgotten_later() {
    let spec = LatestSpec { idle_close_us: 100, forget_after_us: 500, ..spec(50) };
    let mut operator = alone(spec);
    let mut at = |time_us: i64, readings: &[Reading]| {
        let mut emit = Emit::default();
        let tick = Tick { epoch: time_us as u64 + 1, time_us };
        operator.epoch(&batch(readings), tick, &mut emit).unwrap();
        assert!(emit.late.is_empty());
        (rows(&emit), operator.0.interner.len())
    };
    let row = |time_us, number| ("d1".to_owned(), time_us, number, Some("t9".to_owned()));
    assert_eq!(at(0, &[(1, 10, None, Some(9))]), (vec![], 1));
    assert_eq!(at(99, &[]), (vec![], 1));
    assert_eq!(at(100, &[]), (vec![row(10, None)], 1));
    assert_eq!(at(200, &[(1, 20, Some(1), None)]), (vec![], 1));
    assert_eq!(at(300, &[]), (vec![row(20, Some(1))], 1));
    assert_eq!(at(700, &[]), (vec![], 0));
    // It is new: what was known is not, and an older time is as good as any.
    assert_eq!(at(800, &[(1, 5, Some(2), None)]), (vec![], 1));
    assert_eq!(at(900, &[]), (vec![("d1".to_owned(), 5, Some(2), None)], 1));
}

#[test]
fn what_cannot_be_evaluated_is_a_reject_and_says_nothing() {
    let mut spec = spec(0);
    spec.select[0].1 = planned(&(lit(10_i64) / col("number")));
    let mut operator = alone(spec);
    let mut emit = Emit::default();
    let readings = [(1, 1, Some(5), None), (1, 2, Some(0), Some(7)), (1, 3, None, Some(8))];
    operator.epoch(&batch(&readings), Tick { epoch: 1, time_us: 0 }, &mut emit).unwrap();
    operator.end(&mut emit).unwrap();
    let expected =
        [("d1".to_owned(), 1, Some(2), None), ("d1".to_owned(), 3, Some(2), Some("t8".to_owned()))];
    assert_eq!(rows(&emit), expected);
    let detail = emit.rejects[0]["detail"].as_string::<i32>().value(0).to_owned();
    assert!(detail.starts_with("step `known`: `number`: "), "{detail}");
}

#[test]
fn a_new_key_beyond_the_budget_is_a_reject() {
    let spec = LatestSpec { limits: KeyLimits { keys_max: 1, ..KeyLimits::default() }, ..spec(0) };
    let mut operator = alone(spec);
    let mut emit = Emit::default();
    let devices = BTreeMap::from_iter((0..=255_u8).map(|d| (d, (d, 1, Some(1), None))));
    let readings: Vec<Reading> = devices.into_values().collect();
    operator.epoch(&batch(&readings), Tick { epoch: 1, time_us: 0 }, &mut emit).unwrap();
    operator.end(&mut emit).unwrap();
    let refused: usize = emit.rejects.iter().map(RecordBatch::num_rows).sum();
    assert!(refused > 0 && rows(&emit).len() + refused == 256, "{refused}");
}

/// A clock that stands still, and large texts: what waits for a key is bounded.
#[test]
fn what_waits_for_a_key_is_bounded() {
    let mut operator = alone(spec(1_000_000_000));
    let mut emit = Emit::default();
    for epoch in 0..2_000 {
        let tick = Tick { epoch: epoch + 1, time_us: epoch as i64 };
        let still = (0, 5, Some(epoch as i64), None);
        operator.epoch(&batch(&[still]), tick, &mut emit).unwrap();
    }
    assert_eq!(operator.0.reorder.keys[0].readings.len(), 1, "one reading per time");
    let text = "x".repeat(100_000);
    for time_us in 10..40 {
        let rows = batch(&[(0, time_us, None, None)]);
        let mut columns = rows.columns().to_vec();
        columns[3] = Arc::new(StringArray::from(vec![text.as_str()]));
        let rows = RecordBatch::try_new(input(), columns).unwrap();
        operator.epoch(&rows, Tick { epoch: 5_000, time_us: 5_000 }, &mut emit).unwrap();
        assert!(operator.0.reorder.keys[0].readings.len() <= 12);
    }
    assert!(emit.late.is_empty() && !emit.rows.is_empty(), "the oldest went early");
}

/// Small readings first, and then large ones of the same times.
#[test]
fn what_comes_again_for_a_time_is_bounded_as_well() {
    let mut operator = alone(spec(1_000_000_000));
    let mut emit = Emit::default();
    let small: Vec<Reading> = (0..100).map(|time_us| (0, time_us, Some(1), None)).collect();
    operator.epoch(&batch(&small), Tick { epoch: 1, time_us: 1 }, &mut emit).unwrap();
    let text = "x".repeat(100_000);
    // The newest first: those that go early are older.
    for time_us in (0..100).rev() {
        let rows = batch(&[(0, time_us, None, None)]);
        let mut columns = rows.columns().to_vec();
        columns[3] = Arc::new(StringArray::from(vec![text.as_str()]));
        let rows = RecordBatch::try_new(input(), columns).unwrap();
        operator.epoch(&rows, Tick { epoch: 2, time_us: 2 }, &mut emit).unwrap();
        let waiting = &operator.0.reorder.keys[0].readings;
        let bytes: usize = waiting.iter().map(|r| r.1.values.bytes()).sum();
        assert!(bytes <= 1 << 20, "{bytes} at {time_us}");
    }
    assert!(!emit.late.is_empty() && !emit.rows.is_empty(), "the oldest went early");
}

/// An epoch of one device that says a text of `bytes` and then `count` numbers.
fn large(bytes: usize, count: i64) -> RecordBatch {
    let readings: Vec<Reading> = (0..=count).map(|i| (1, i, Some(i), None)).collect();
    let rows = batch(&readings);
    let mut columns = rows.columns().to_vec();
    let texts = (0..=count).map(|i| (i == 0).then(|| "x".repeat(bytes)));
    columns[3] = Arc::new(texts.collect::<StringArray>());
    RecordBatch::try_new(input(), columns).unwrap()
}

/// A large text that is known for long is in every row, but neither in one batch nor in memory.
#[test]
fn rows_with_a_large_text_are_several_batches_and_share_it() {
    let mut operator = alone(spec(0));
    let mut emit = Emit::default();
    operator.epoch(&large(400, 99), Tick { epoch: 1, time_us: 0 }, &mut emit).unwrap();
    operator.end(&mut emit).unwrap();
    let text = Some("x".repeat(400));
    let expected = (0..100).map(|i| ("d1".to_owned(), i, Some(i), text.clone()));
    assert_eq!(rows(&emit), expected.collect::<Vec<Row>>());
    let most = crate::grouped::BATCH_BYTES / 400;
    assert!(emit.rows.iter().all(|batch| batch.num_rows() <= most), "{}", emit.rows.len());
    let key = &operator.0.keys[0];
    let (told, held) = (key.told.as_ref().unwrap(), key.held[1].as_ref().unwrap());
    assert_eq!(told.1.value(1).unwrap().as_ptr(), held.values.value(1).unwrap().as_ptr());
}

#[test]
fn a_key_has_so_many_bytes_in_an_epoch_and_no_more() {
    let mut operator = alone(spec(0));
    operator.0.bytes_max = 10_000;
    let mut emit = Emit::default();
    operator.epoch(&large(400, 99), Tick { epoch: 1, time_us: 0 }, &mut emit).unwrap();
    // The newest is told by the next epoch.
    let refused: usize = emit.rejects.iter().map(RecordBatch::num_rows).sum();
    let told = rows(&emit);
    assert!(told.len() > 10 && refused > 10 && told.len() + refused == 99, "{}", told.len());
    assert_eq!(told.last().unwrap().1, told.len() as i64 - 1, "the oldest are told");
    assert!(emit.rejects.iter().all(|r| r["reason"].as_string::<i32>().value(0) == "bytes_max"));
    let payload = emit.rejects[0]["payload"].as_binary::<i32>().value(0).len();
    assert!(payload < 100, "without what is too much: {payload}");
    let mut emit = Emit::default();
    operator
        .epoch(&batch(&[(1, 200, None, None)]), Tick { epoch: 2, time_us: 1 }, &mut emit)
        .unwrap();
    assert_eq!((rows(&emit).len(), emit.rejects.len()), (1, 0), "the next epoch begins anew");
}

/// As many parts as the state needs, which are loaded one by one.
#[test]
fn a_large_state_is_saved_in_parts() {
    let mut operator = alone(spec(0));
    let readings: Vec<Reading> = (0..100).map(|d| (d, 1, Some(1), Some(7))).collect();
    let tick = Tick { epoch: 1, time_us: 0 };
    operator.epoch(&batch(&readings), tick, &mut Emit::default()).unwrap();
    let parts = operator.cut(true).parts().unwrap();
    assert!(parts.len() > 3, "{}", parts.len());
    let mut other = alone(spec(0));
    for part in parts {
        other.load(&part.rows).unwrap();
    }
    assert_eq!(other.save().unwrap(), operator.save().unwrap());
}

#[test]
fn foreign_state_is_refused() {
    let saved = alone(spec(0)).save().unwrap();
    let mut other = spec(0);
    other.select.truncate(1);
    let error = alone(other).load(&saved).unwrap_err();
    assert!(matches!(error, OperatorError::State(_)), "{error}");
}
