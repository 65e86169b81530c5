//! Early results: after each of them what is shown of a key is what its readings make so far; and
//! the final rows are those of the same step without early results.

use std::collections::BTreeSet;

use super::*;
use crate::partial::GATHERED_MAX;

/// Which rows of an emission are final, in order.
fn flags(emit: &Emit) -> Vec<bool> {
    let column = |rows: &RecordBatch| rows["is_final"].as_boolean().clone();
    let flags = emit.rows.iter().map(column);
    flags.flat_map(|f| (0..f.len()).map(move |i| f.value(i)).collect::<Vec<_>>()).collect()
}

/// The final rows, without the revisions: those count early ones, too; and of withdrawn ones
/// without the end, which is as it was told last.
fn finals(emit: &Emit) -> Vec<String> {
    let is_final = match emit.rows.iter().all(|rows| rows.column_by_name("is_final").is_some()) {
        true => flags(emit),
        false => rows(emit).iter().map(|_| true).collect(),
    };
    let all = rows(emit).into_iter().zip(is_final).filter(|(_, is_final)| *is_final);
    let same = |row: Row| {
        let end_us = if row.rows > 0 { row.end_us } else { row.start_us };
        Row { revision: 0, end_us, ..row }
    };
    all.map(|((key, row), _)| format!("{key:?} {:?}", same(row))).collect()
}

/// Windows of a count that do not have all of their readings.
fn begun(size: i64, hop: i64, own: &[oracle::Reading]) -> Vec<(i64, Vec<i64>)> {
    let all = own.len() as i64;
    let begins = (0..).take_while(|k| k * hop < all).filter(|k| k * hop + size > all);
    begins.map(|k| (k, own[(k * hop) as usize..].iter().map(|r| r.1).collect())).collect()
}

/// Compares what is shown of a device with what its readings make so far.
fn check_device(shown: &Windows, shape: &Shape, readings: &[Reading], device: u8) {
    let name = format!("d{device}");
    let mut own: Windows = shown.clone();
    own.retain(|(d, _), row| *d == name && row.rows > 0);
    let readings: Vec<Reading> = readings.iter().filter(|r| r.0 == device).copied().collect();
    if let Shape::Count { size, hop } = shape {
        let mut ordered: Vec<oracle::Reading> = readings.iter().map(|r| (r.1, r.2)).collect();
        ordered.sort_by_key(|r| r.0);
        for (k, values) in begun(*size, *hop, &ordered) {
            let row = own.remove(&(name.clone(), k)).unwrap_or_else(|| panic!("{k} of {shown:?}"));
            let sum: i64 = values.iter().sum();
            assert_eq!((row.rows, row.selected[1]), (values.len() as i64, Some(sum)));
            assert_eq!(row.start_us, ordered[(k * hop) as usize].0);
            assert_eq!(row.end_us, ordered[ordered.len() - 1].0);
        }
    }
    check(&own, shape, &readings);
}

/// Takes the rows of an epoch in.
fn show(shown: &mut Windows, emit: &Emit) {
    for (key, row) in rows(emit) {
        let before = shown.get(&key);
        assert_eq!(row.revision, before.map_or(0, |r| r.revision + 1), "{key:?}");
        assert!(row.rows > 0 || before.is_some_and(|r| r.rows > 0), "{key:?}");
        shown.insert(key, row);
    }
}

/// Runs with a tick every 40 µs, each fifth of them 200 µs later.
fn run_early(spec: &WindowSpec, epochs: &[Vec<Reading>], restart: Option<usize>) -> Vec<Emit> {
    run_at(at, spec, epochs, restart)
}

fn at(epoch: usize) -> Tick {
    let time_us = epoch as i64 * 40 + epoch as i64 / 5 * 200;
    Tick { epoch: epoch as u64 + 1, time_us }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_shown_is_what_there_is_so_far(
        epochs in readings(),
        shape in shape(),
        disorder in 0i64..80,
        every_us in prop::sample::select(vec![7i64, 100, 300]),
        fleet in any::<bool>(),
        restart in prop::option::of(0usize..30),
    ) {
        let clock = if fleet { Clock::Fleet } else { Clock::Device };
        let spec = spec(shape, disorder, FOR_EVER);
        let spec = WindowSpec { early_us: Some(every_us), clock, ..spec };
        let emits = run_early(&spec, &epochs, restart);
        let (mut shown, mut so_far) = (Windows::new(), Vec::new());
        let mut due: BTreeMap<u8, i64> = BTreeMap::new();
        for (i, (readings, emit)) in epochs.iter().zip(&emits).enumerate() {
            show(&mut shown, emit);
            so_far.extend(readings.iter().copied());
            let now_us = at(i).time_us;
            let ready: BTreeSet<u8> =
                due.iter().filter(|d| *d.1 <= now_us).map(|d| *d.0).collect();
            for device in &ready {
                due.remove(device);
                check_device(&shown, &spec.shape, &so_far, *device);
            }
            for ((device, _), _) in rows(emit).iter().zip(flags(emit)).filter(|r| !r.1) {
                let is_ready = ready.iter().any(|d| *device.0 == format!("d{d}"));
                prop_assert!(is_ready, "{:?} came too early", device);
            }
            for reading in readings {
                let next_us = (now_us.div_euclid(every_us) + 1) * every_us;
                due.entry(reading.0).or_insert(next_us);
            }
        }
        let straight = run_early(&spec, &epochs, None);
        prop_assert_eq!(text(&emits, None), text(&straight, None), "a restart does not show");
        prop_assert!(emits.iter().zip(&straight).all(|(a, b)| a.rows == b.rows));
    }

    #[test]
    fn final_rows_are_as_without(
        epochs in readings(),
        shape in shape(),
        disorder in 0i64..60,
        keep in prop::option::of(0i64..150),
        idle in prop::sample::select(vec![50i64, 1_000_000]),
    ) {
        let late = keep.map_or(LatePolicy::Table, |keep_us| LatePolicy::Revise { keep_us });
        let plain = WindowSpec { idle_close_us: idle, ..spec(shape, disorder, late) };
        let with = WindowSpec { early_us: Some(90), ..plain.clone() };
        let (without, with) = (run_early(&plain, &epochs, None), run_early(&with, &epochs, None));
        let mut shown = Windows::new();
        with.iter().for_each(|emit| show(&mut shown, emit));
        for (a, b) in without.iter().zip(&with) {
            prop_assert_eq!(finals(a), finals(b));
            prop_assert_eq!(&a.late, &b.late);
        }
        // At the end nothing is left that was only told early, but for counts that are not whole.
        let is_count = matches!(plain.shape, Shape::Count { .. });
        let plain = without.iter().flat_map(rows).map(|(key, _)| key).collect::<BTreeSet<_>>();
        let left = shown.iter().filter(|(key, row)| row.rows > 0 && !plain.contains(key)).count();
        prop_assert!(is_count || left == 0, "{:?}", shown);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn early_results_on_any_number_of_workers(
        epochs in readings(), shape in shape(), keep in prop::option::of(0i64..300),
    ) {
        let late = keep.map_or(LatePolicy::Table, |keep_us| LatePolicy::Revise { keep_us });
        let spec = WindowSpec { idle_close_us: 500, early_us: Some(700), ..spec(shape, 20, late) };
        let spread = |i: usize, r: &Reading| (r.0 + 4 * (i % 9) as u8, r.1, r.2);
        let epochs: Vec<(i64, RecordBatch)> = epochs
            .iter()
            .enumerate()
            .map(|(i, readings)| {
                let readings: Vec<Reading> = readings.iter().map(|r| spread(i, r)).collect();
                (i as i64 * 300, batch(&readings))
            })
            .collect();
        let new = || SpanOperator::new(spec.clone()).unwrap();
        let make = || Box::new(new()) as Box<dyn KeyedOperator>;
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
    }
}

/// A session that turns out to have begun sooner is another one: what was told early goes.
#[test]
fn what_was_told_early_is_withdrawn() {
    let shape = Shape::Session { gap_us: 50, max_us: None };
    let spec = WindowSpec { early_us: Some(100), ..spec(shape, 40, FOR_EVER) };
    let mut operator = SpanOperator::new(spec).unwrap();
    let mut epoch = 0;
    let mut told = |time_us, readings: &[Reading]| -> Vec<(i64, i64, i64, bool)> {
        let mut emit = Emit::default();
        epoch += 1;
        operator.epoch(&batch(readings), Tick { epoch, time_us }, &mut emit).unwrap();
        let all = rows(&emit).into_iter().zip(flags(&emit));
        all.map(|((_, r), is_final)| (r.start_us, r.rows, r.revision, is_final)).collect()
    };
    assert_eq!(told(10, &[(0, 1_000, 1)]), []);
    assert_eq!(told(100, &[]), [(1_000, 1, 0, false)]);
    assert_eq!(told(110, &[(0, 980, 1)]), []);
    assert_eq!(told(200, &[]), [(980, 2, 0, false), (1_000, 0, 1, false)]);
    assert_eq!(told(300, &[]), [], "nothing changed");
    assert_eq!(told(310, &[(0, 1_200, 1)]), [(980, 2, 1, true)]);
}

/// Windows that overlap share their readings: all that are due at once would be many times the
/// state.
#[test]
fn many_due_windows_are_put_together_in_parts_and_come_in_one_order() {
    let spec = spec(Shape::Count { size: 40, hop: 1 }, 0, FOR_EVER);
    let mut operator = SpanOperator::new(WindowSpec { early_us: Some(50), ..spec }).unwrap();
    let all: Vec<Reading> = (0..100).flat_map(|i| [1, 2].map(|device| (device, i, i))).collect();
    for (epoch, readings, due) in [(0, &all[..], 120), (2, &[], 80)] {
        let mut emit = Emit::default();
        operator.epoch(&batch(readings), tick(epoch), &mut emit).unwrap();
        for part in &emit.rows {
            let parts: i64 = part["rows"].as_primitive::<Int64Type>().values().iter().sum();
            assert!(part.num_rows() == 1 || parts <= GATHERED_MAX as i64, "{parts}");
        }
        let found = rows(&emit);
        assert_eq!(found.len(), due);
        let in_order = |(key, row): &((String, i64), Row)| (row.end_us, row.start_us, key.clone());
        assert!(found.is_sorted_by_key(in_order), "{found:?}");
        for ((_, id), row) in &found {
            let sum: i64 = (*id..*id + row.rows).sum();
            assert_eq!((row.rows, row.selected[1]), ((100 - id).min(40), Some(sum)), "{id}");
        }
    }
}

/// What cannot be computed of few readings is told once, if it still cannot of all of them.
#[test]
fn what_cannot_be_computed_is_a_reject_when_the_window_is_over() {
    let spec = spec(Shape::Session { gap_us: 100, max_us: None }, 0, LatePolicy::Table);
    let mut spec = WindowSpec { early_us: Some(10), ..spec };
    let aggregated = spec.aggregated_schema();
    let binary = |a, operator, b| binary(a, operator, b, &aggregated).unwrap();
    let less = binary(col("agg0", &aggregated).unwrap(), Operator::Minus, lit(2i64));
    spec.select.push(("ratio".into(), binary(lit(10i64), Operator::Divide, less)));
    let mut operator = SpanOperator::new(spec).unwrap();
    let mut run = |epoch, time_us, readings: &[Reading]| {
        let mut emit = Emit::default();
        operator.epoch(&batch(readings), Tick { epoch, time_us }, &mut emit).unwrap();
        let count = |all: &[RecordBatch]| all.iter().map(RecordBatch::num_rows).sum::<usize>();
        (count(&emit.rows), count(&emit.rejects))
    };
    let twice = |device, at_us| vec![(device, at_us, 1), (device, at_us + 1, 2)];
    assert_eq!(run(1, 10, &[twice(1, 10), twice(2, 10)].concat()), (0, 0));
    assert_eq!(run(2, 20, &[]), (2, 0), "both have two readings so far");
    assert_eq!(run(3, 30, &[(1, 30, 1)]), (0, 0));
    assert_eq!(run(4, 40, &[]), (1, 0));
    assert_eq!(run(5, 300, &[(1, 300, 1), (2, 300, 1)]), (2, 1), "one has no more than two");
}
