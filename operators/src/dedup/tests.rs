//! Against a plain list of everything that came in, on any number of workers, restarted anywhere.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use arrow::array::{Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema};
use proptest::prelude::*;

use super::*;
use crate::key::{owner, stable_hashes};
use crate::snapshot::check;
use crate::spec::{KeyLimits, time_type};
use crate::system::duplicates_schema;

const DEVICES: [&str; 4] = ["a", "b", "", "d-with-a-long-name"];

/// Device, event time, number.
type Reading = (usize, i64, Option<i64>);

fn spec(horizon_us: i64, keys_max: usize) -> DedupSpec {
    let input = Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("time", time_type(), false),
        Field::new("seq", DataType::Int64, true),
        Field::new("journal_offset", DataType::Int64, false),
    ]));
    DedupSpec {
        pipeline: "p".into(),
        input,
        device: 0,
        time: 1,
        offset: 3,
        key: vec![0, 1, 2],
        output: vec![0, 3],
        order: vec![3],
        marks: false,
        horizon_us,
        keys_max,
        fleet_max: 1_000_000,
        limits: KeyLimits::default(),
    }
}

fn batch(spec: &DedupSpec, readings: &[Reading], first_offset: i64) -> RecordBatch {
    let times = readings.iter().map(|r| r.1);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(readings.iter().map(|r| DEVICES[r.0]))),
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
        Arc::new(Int64Array::from_iter(readings.iter().map(|r| r.2))),
        Arc::new(Int64Array::from_iter_values(first_offset..first_offset + readings.len() as i64)),
    ];
    RecordBatch::try_new(Arc::clone(&spec.input), columns).unwrap()
}

/// The rows of those devices that belong to worker `index` of `workers`.
fn owned(rows: &RecordBatch, (index, workers): (usize, usize)) -> RecordBatch {
    let mut hashes = Vec::new();
    stable_hashes(&rows.columns()[..1], rows.num_rows(), &mut hashes);
    let mine: BooleanArray = hashes.iter().map(|h| Some(owner(*h, workers) == index)).collect();
    filter_record_batch(rows, &mine).unwrap()
}

/// What came out: offsets of kept readings, and rows of `system.duplicates`.
type Outcome = (Vec<i64>, Vec<(String, String, i64, i64, i64)>);

fn note(emit: Emit, out: &mut Outcome) {
    for rows in emit.rows {
        let kept = rows.column(1).as_primitive::<Int64Type>();
        out.0.extend(kept.values().iter());
    }
    for rows in emit.late {
        assert_eq!(rows.schema(), duplicates_schema());
        let text = |c: usize, row| rows.column(c).as_string::<i32>().value(row).to_owned();
        let number = |c: usize, row| rows.column(c).as_primitive::<Int64Type>().value(row);
        out.1.extend((0..rows.num_rows()).map(|row| {
            (text(2, row), text(3, row), number(4, row), number(5, row), number(6, row))
        }));
    }
}

/// Epochs, each with its tick, on as many workers as `workers` says, one after the other.
fn run(spec: &DedupSpec, epochs: &[(i64, Vec<Reading>)], workers: &[usize]) -> Outcome {
    let mut out = Outcome::default();
    let (mut offset, mut states) = (0, Vec::new());
    let parts = epochs.chunks(epochs.len().div_ceil(workers.len()).max(1));
    for (part, count) in parts.zip(workers) {
        let mut all: Vec<Dedup> = (0..*count).map(|_| Dedup::new(spec.clone())).collect();
        for (index, dedup) in all.iter_mut().enumerate() {
            for state in &states {
                dedup.load(&owned(state, (index, *count))).unwrap();
            }
        }
        for (tick_us, readings) in part {
            let rows = batch(spec, readings, offset);
            offset += readings.len() as i64;
            for (index, dedup) in all.iter_mut().enumerate() {
                let mut emit = Emit::default();
                let tick = Tick { epoch: 1, time_us: *tick_us };
                dedup.epoch(&owned(&rows, (index, *count)), tick, &mut emit).unwrap();
                note(emit, &mut out);
            }
        }
        states = all.iter_mut().map(|dedup| dedup.save().unwrap()).collect();
    }
    out.0.sort_unstable();
    out.1.sort_unstable_by(|a, b| (a.3, a.4, a).cmp(&(b.3, b.4, b)));
    out
}

/// The definition, as plainly as it can be written: offsets of kept readings, number of dropped
/// readings, number of readings that were forgotten early.
fn brute_force(spec: &DedupSpec, epochs: &[(i64, Vec<Reading>)]) -> (Vec<i64>, i64, i64) {
    let mut memory: Vec<(i64, Reading)> = Vec::new();
    let (mut kept, mut dropped, mut forgotten, mut offset) = (Vec::new(), 0, 0, 0);
    for (tick_us, readings) in epochs {
        for reading in readings {
            memory.retain(|(seen_us, _)| seen_us + spec.horizon_us > *tick_us);
            if reading.2.is_some() && memory.iter().any(|(_, known)| known == reading) {
                dropped += 1;
            } else {
                kept.push(offset);
                if reading.2.is_some() {
                    memory.push((*tick_us, *reading));
                    let own = memory.iter().filter(|(_, known)| known.0 == reading.0);
                    if own.count() > spec.keys_max {
                        let oldest = memory.iter().position(|(_, known)| known.0 == reading.0);
                        memory.remove(oldest.unwrap());
                        forgotten += 1;
                    }
                }
            }
            offset += 1;
        }
    }
    (kept, dropped, forgotten)
}

fn fleet() -> impl Strategy<Value = Vec<(i64, Vec<Reading>)>> {
    let reading = (0..DEVICES.len(), 0..3_i64, prop::option::weighted(0.9, 0..6_i64));
    let epoch = (1..30_i64, prop::collection::vec(reading, 0..12));
    prop::collection::vec(epoch, 1..25).prop_map(|epochs| {
        let mut now_us = 0;
        let timed = |(step, readings)| {
            now_us += step;
            (now_us, readings)
        };
        epochs.into_iter().map(timed).collect()
    })
}

fn sums(outcome: &Outcome, reason: &str) -> i64 {
    outcome.1.iter().filter(|row| row.1 == reason).map(|row| row.2).sum()
}

proptest! {
    #[test]
    fn it_equals_a_plain_list(
        epochs in fleet(), horizon_us in 1..120_i64, keys_max in 1..8_usize
    ) {
        let spec = spec(horizon_us, keys_max);
        let found = run(&spec, &epochs, &[1]);
        let (kept, dropped, forgotten) = brute_force(&spec, &epochs);
        prop_assert_eq!(&found.0, &kept);
        prop_assert_eq!(sums(&found, REPEATED), dropped);
        prop_assert_eq!(sums(&found, FORGOTTEN), forgotten);
        for workers in [&[2][..], &[4], &[1, 4], &[2, 1, 3, 2]] {
            prop_assert_eq!(run(&spec, &epochs, workers), found.clone());
        }
    }

    /// A group that has no room left forgets its oldest ticks, the same on any workers.
    #[test]
    fn the_memory_of_a_fleet_has_an_end(epochs in fleet(), fleet_max in 1..12_u64) {
        let spec = DedupSpec { fleet_max, ..spec(1_000, 1_000) };
        let found = run(&spec, &epochs, &[1]);
        let new: usize = found.0.len() - nulls(&epochs);
        let held = new as i64 - sums(&found, FORGOTTEN);
        prop_assert!(held <= DEVICES.len() as i64 * fleet_max as i64);
        for workers in [&[3][..], &[2, 1, 3, 2]] {
            prop_assert_eq!(run(&spec, &epochs, workers), found.clone());
        }
    }

    #[test]
    fn the_order_of_arrival_does_not_change_what_is_kept(
        (readings, shuffled) in prop::collection::vec(
            (0..DEVICES.len(), 0..3_i64, (0..6_i64).prop_map(Some)), 1..100
        ).prop_flat_map(|readings| (Just(readings.clone()), Just(readings).prop_shuffle()))
    ) {
        let spec = spec(1_000_000, 1_000);
        let kept = |readings: &[Reading]| -> BTreeSet<Reading> {
            let epochs: Vec<(i64, Vec<Reading>)> =
                readings.chunks(7).enumerate().map(|(i, c)| (i as i64, c.to_vec())).collect();
            let (offsets, _) = run(&spec, &epochs, &[2, 3]);
            let all: BTreeSet<Reading> = offsets.iter().map(|o| readings[*o as usize]).collect();
            assert_eq!(all.len(), offsets.len(), "nothing comes twice");
            all
        };
        prop_assert_eq!(kept(&shuffled), kept(&readings));
    }
}

fn nulls(epochs: &[(i64, Vec<Reading>)]) -> usize {
    epochs.iter().flat_map(|e| &e.1).filter(|r| r.2.is_none()).count()
}

#[test]
fn readings_of_a_device_without_a_place_are_rejected() {
    let limits = KeyLimits { keys_max: 1, ..KeyLimits::default() };
    let spec = DedupSpec { limits, ..spec(100, 10) };
    let names: Vec<String> = (0..600).map(|i| format!("device-{i}")).collect();
    let rows = |offset: i64| {
        let times = TimestampMicrosecondArray::from(vec![1; 600]).with_timezone("UTC");
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(names.clone())),
            Arc::new(times),
            Arc::new(Int64Array::from(vec![1; 600])),
            Arc::new(Int64Array::from_iter_values(offset..offset + 600)),
        ];
        RecordBatch::try_new(Arc::clone(&spec.input), columns).unwrap()
    };
    let mut dedup = Dedup::new(spec.clone());
    let mut outcomes = Vec::new();
    for (epoch, time_us) in [(1, 0), (2, 50), (3, 100)] {
        let mut emit = Emit::default();
        dedup.epoch(&rows(epoch as i64 * 600), Tick { epoch, time_us }, &mut emit).unwrap();
        let refused: usize = emit.rejects.iter().map(RecordBatch::num_rows).sum();
        let reasons = emit.rejects[0]["reason"].as_string::<i32>();
        assert!(reasons.iter().all(|r| r == Some("keys_max")));
        outcomes.push((emit.rows[0].num_rows(), refused));
    }
    let devices = outcomes[0].0;
    // While memory is used up, who is known goes on, and then everybody is forgotten and so new.
    for (epoch, time_us, refused) in [(4, 150, 600 - devices), (5, 250, 600)] {
        let mut emit = Emit { closed: true, ..Emit::default() };
        dedup.epoch(&rows(epoch as i64 * 600), Tick { epoch, time_us }, &mut emit).unwrap();
        let reasons = emit.rejects[0]["reason"].as_string::<i32>();
        assert!(reasons.iter().all(|r| r == Some("memory_max")));
        assert_eq!((emit.rows[0].num_rows(), reasons.len()), (0, refused));
    }
    assert!(devices > 100 && devices <= 256, "one of each group: {devices}");
    // Those that are known are known again, the others still have no place; then it is forgotten.
    assert_eq!(outcomes, [(devices, 600 - devices), (0, 600 - devices), (devices, 600 - devices)]);
}

/// What is refused is no repetition, and neither is what has a null in its key.
#[test]
fn repetitions_come_out_marked_where_somebody_counts_them() {
    let plain = spec(100, 10);
    let marks = DedupSpec { marks: true, ..plain.clone() };
    let epochs: [&[Reading]; 3] = [
        &[(0, 1, Some(1)), (0, 1, None), (0, 1, Some(1)), (1, 1, Some(1))],
        &[(0, 1, Some(1)), (0, 1, None), (2, 1, Some(1)), (1, 1, Some(1))],
        &[(0, 1, None)],
    ];
    let (mut repeated, mut refused) = (Vec::new(), 0);
    let [mut unmarked, mut marked] = [plain, marks.clone()].map(Dedup::new);
    for (epoch, readings) in (1..).zip(epochs) {
        let rows = batch(&marks, readings, epoch as i64 * 10);
        let [mut before, mut emit] =
            [(); 2].map(|()| Emit { closed: epoch == 2, ..Emit::default() });
        unmarked.epoch(&rows, Tick { epoch, time_us: 0 }, &mut before).unwrap();
        marked.epoch(&rows, Tick { epoch, time_us: 0 }, &mut emit).unwrap();
        let whole = concat_batches(&emit.rows[0].schema(), &emit.rows).unwrap();
        // In one piece or in several.
        let parts = emit.rows.iter().chain([&whole]).map(|rows| parted(rows).unwrap());
        let parts: Vec<[RecordBatch; 2]> = parts.collect();
        assert!(parts.iter().flatten().all(|rows| rows.schema() == marks.schema()));
        repeated.push(parts.iter().map(|rows| rows[1].num_rows()).collect::<Vec<_>>());
        assert_eq!(parts.last().map(|rows| &rows[0]), before.rows.first());
        refused += emit.rejects.iter().map(RecordBatch::num_rows).sum::<usize>();
        assert_eq!((emit.late, emit.rejects), (before.late, before.rejects));
    }
    assert_eq!((repeated, refused), (vec![vec![0, 1, 1], vec![0, 2, 2], vec![0, 0]], 1));
    assert!(parted(&batch(&marks, &[], 0)).is_err(), "no marks");
}

#[test]
fn what_is_forgotten_leaves_no_memory_behind() {
    let spec = spec(100, 1_000);
    let mut dedup = Dedup::new(spec.clone());
    for epoch in 0..50 {
        let readings: Vec<Reading> = (0..20).map(|i| (i % 4, epoch, Some(i as i64))).collect();
        let tick = Tick { epoch: 1, time_us: epoch * 10 };
        dedup.epoch(&batch(&spec, &readings, 0), tick, &mut Emit::default()).unwrap();
        assert!(dedup.remembered() <= 20 * 10);
    }
    let empty = batch(&spec, &[], 0);
    dedup.epoch(&empty, Tick { epoch: 2, time_us: 10_000 }, &mut Emit::default()).unwrap();
    assert_eq!(
        (
            dedup.remembered(),
            dedup.devices.iter().map(|d| d.len()).sum::<usize>(),
            dedup.oldest.iter().map(BTreeMap::len).sum::<usize>()
        ),
        (0, 0, 0)
    );
    assert_eq!(dedup.save().unwrap().num_rows(), 0);
}

#[test]
fn a_state_of_another_kind_is_refused() {
    let spec = spec(100, 10);
    let error = Dedup::new(spec.clone()).load(&batch(&spec, &[], 0)).unwrap_err();
    assert!(error.to_string().contains("memory of readings"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn cuts_add_up_on_any_number_of_workers(
        epochs in fleet(), horizon_us in 1..120_i64, keys_max in 1..8_usize
    ) {
        let spec = spec(horizon_us, keys_max);
        let epochs: Vec<(i64, RecordBatch)> =
            epochs.iter().map(|(at_us, readings)| (*at_us, batch(&spec, readings, 0))).collect();
        let make = || Box::new(Dedup::new(spec.clone())) as Box<dyn KeyedOperator>;
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
    }
}
