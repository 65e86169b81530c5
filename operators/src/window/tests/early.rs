//! Early results against the definition: which windows are emitted at which tick.

use arrow::array::BooleanArray;
use datafusion_expr::Operator;
use datafusion_physical_expr::expressions::{binary, lit};

use super::*;
use crate::partial::GATHERED_MAX;

const IDLE_US: i64 = 400;

/// A row: device, start, end, rows, revision, whether it is final.
type Row = (String, i64, i64, i64, i64, bool);

fn rows(emit: &Emit) -> Vec<Row> {
    let mut out = Vec::new();
    for rows in &emit.rows {
        let int = |i: usize| rows.column(i).as_primitive::<Int64Type>().clone();
        let time = |i: usize| rows.column(i).as_primitive::<TimestampMicrosecondType>().clone();
        let last = rows.num_columns() - 1;
        let is_final: &BooleanArray = rows.column(last).as_boolean();
        for i in 0..rows.num_rows() {
            out.push((
                rows.column(0).as_string::<i32>().value(i).to_owned(),
                time(1).value(i),
                time(2).value(i),
                int(last - 2).value(i),
                int(last - 1).value(i),
                is_final.value(i),
            ));
        }
    }
    out
}

/// The same with early results.
fn early(spec: WindowSpec, early_us: i64) -> WindowSpec {
    WindowSpec { early_us: Some(early_us), ..spec }
}

/// Per epoch: how long after the one before it, and its readings: device and age.
type Steps = Vec<(i64, Vec<(u8, i64)>)>;

fn steps() -> impl Strategy<Value = Steps> {
    let gap = prop_oneof![4 => 1i64..60, 1 => Just(100i64), 1 => 300i64..2_000];
    // Some are late, and some so late that their windows are closed.
    let age = prop_oneof![3 => 0i64..40, 1 => 0i64..400];
    prop::collection::vec((gap, prop::collection::vec((0u8..4, age), 0..4)), 1..50)
}

/// Ticks and readings of the steps.
fn epochs(steps: &Steps) -> Vec<(i64, Vec<Reading>)> {
    let mut time_us = 1_000;
    let mut out = Vec::new();
    for (i, (gap_us, readings)) in steps.iter().enumerate() {
        time_us += gap_us;
        let reading = |(device, age): &(u8, i64)| (*device, time_us - age, i as f64);
        out.push((time_us, readings.iter().map(reading).collect()));
    }
    out
}

/// The rows of each epoch; the state is saved and loaded before `restart`.
fn run_all(spec: &WindowSpec, epochs: &[(i64, Vec<Reading>)], restart: Option<usize>) -> Vec<Emit> {
    let mut operator = WindowOperator::new(spec.clone()).unwrap();
    let mut emits = Vec::new();
    for (i, (time_us, readings)) in epochs.iter().enumerate() {
        if restart == Some(i) {
            let saved = operator.save().unwrap();
            operator = WindowOperator::new(spec.clone()).unwrap();
            operator.load(&saved).unwrap();
        }
        let mut emit = Emit::default();
        let tick = Tick { epoch: i as u64 + 1, time_us: *time_us };
        operator.epoch(&batch(readings), tick, &mut emit).unwrap();
        emits.push(emit);
    }
    let mut emit = Emit::default();
    operator.end(&mut emit).unwrap();
    emits.push(emit);
    emits
}

/// What must come, epoch by epoch. Which rows are final is taken from the same windows without
/// early results; what is early is worked out from nothing but the readings.
fn expected(
    spec: &WindowSpec,
    epochs: &[(i64, Vec<Reading>)],
    (finals, lates): (&[Vec<Row>], &[usize]),
) -> Vec<Vec<Row>> {
    let Shape::Grid { size_us, slide_us, .. } = spec.shape else { unreachable!() };
    let every_us = spec.early_us.unwrap();
    // Windows that were emitted as final, the readings of each, what its last row said.
    let mut closed: BTreeMap<(String, i64), ()> = BTreeMap::new();
    let mut count: BTreeMap<(String, i64), i64> = BTreeMap::new();
    let mut told: BTreeMap<(String, i64), (i64, i64)> = BTreeMap::new();
    let mut due: BTreeMap<String, i64> = BTreeMap::new();
    let mut out = Vec::new();
    for (i, finals) in finals.iter().enumerate() {
        let mut rows: Vec<Row> = Vec::new();
        let empty = (i64::MAX, Vec::new());
        let (time_us, readings) = epochs.get(i).unwrap_or(&empty);
        let mut had = Vec::new();
        for (device, at_us, _) in readings {
            let device = format!("d{device}");
            had.push(device.clone());
            let mut window = (at_us - OFFSET).div_euclid(slide_us);
            while OFFSET + window * slide_us + size_us > *at_us {
                *count.entry((device.clone(), OFFSET + window * slide_us)).or_default() += 1;
                window -= 1;
            }
        }
        for (device, start, end, n, _, _) in finals {
            let key = (device.clone(), *start);
            closed.insert(key.clone(), ());
            let revision = told.get(&key).map_or(0, |t| t.1 + 1);
            told.insert(key, (*n, revision));
            rows.push((device.clone(), *start, *end, *n, revision, true));
        }
        let ready: Vec<String> =
            due.iter().filter(|d| d.1 <= time_us).map(|d| d.0.clone()).collect();
        for device in ready.iter().filter(|_| i < epochs.len()) {
            due.remove(device);
            for (key, n) in count.iter().filter(|c| c.0.0 == *device) {
                let last = told.get(key).copied();
                if closed.contains_key(key) || last.is_some_and(|l| l.0 == *n) {
                    continue;
                }
                let revision = last.map_or(0, |l| l.1 + 1);
                told.insert(key.clone(), (*n, revision));
                rows.push((key.0.clone(), key.1, key.1 + size_us, *n, revision, false));
            }
        }
        for device in had {
            due.entry(device).or_insert((time_us.div_euclid(every_us) + 1) * every_us);
        }
        rows.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
        out.push(rows);
    }
    assert!(lates.iter().all(|n| *n == 0), "no reading is without a window here");
    out
}

/// Rows of windows without early results.
fn plain_rows(emit: &Emit) -> Vec<Row> {
    let mut out = Vec::new();
    for rows in &emit.rows {
        let int = |i: usize| rows.column(i).as_primitive::<Int64Type>().clone();
        let time = |i: usize| rows.column(i).as_primitive::<TimestampMicrosecondType>().clone();
        for i in 0..rows.num_rows() {
            let device = rows.column(0).as_string::<i32>().value(i).to_owned();
            let times = (time(1).value(i), time(2).value(i));
            out.push((device, times.0, times.1, int(8).value(i), int(9).value(i), true));
        }
    }
    out
}

fn shapes() -> impl Strategy<Value = (i64, i64)> {
    prop::sample::select(vec![(100, 100), (60, 20), (60, 40), (1_000, 1_000), (3_000, 500)])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Open windows that changed, at the first tick after the next multiple; final rows as without.
    #[test]
    fn what_changed_is_emitted_at_the_next_multiple(
        steps in steps(),
        shape in shapes(),
        disorder in 0i64..80,
        every_us in prop::sample::select(vec![7i64, 50, 100, 1_000]),
        fleet in any::<bool>(),
        restart in prop::option::of(0usize..50),
    ) {
        let late = LatePolicy::Revise { keep_us: 1_000_000 };
        let clock = if fleet { Clock::Fleet } else { Clock::Device };
        let plain = spec(shape.0, shape.1, disorder, late);
        let plain = WindowSpec { idle_close_us: IDLE_US, clock, ..plain };
        let early = early(plain.clone(), every_us);
        let epochs = epochs(&steps);
        let without = run_all(&plain, &epochs, None);
        let finals: Vec<Vec<Row>> = without.iter().map(plain_rows).collect();
        let lates: Vec<usize> = without.iter().map(|e| e.late.len()).collect();
        let emits = run_all(&early, &epochs, restart);
        let found: Vec<Vec<Row>> = emits.iter().map(rows).collect();
        prop_assert_eq!(found, expected(&early, &epochs, (&finals, &lates)));
        let straight = run_all(&early, &epochs, None);
        for (a, b) in emits.iter().zip(&straight) {
            prop_assert_eq!(&a.rows, &b.rows, "a restart must not show in any byte or order");
        }
    }

    /// The final rows are those of the same windows without early results, in every bit but the
    /// revision, also where readings are too late.
    #[test]
    fn final_rows_are_as_without(
        steps in steps(),
        shape in shapes(),
        keep in prop::option::of(0i64..300),
    ) {
        let late = keep.map_or(LatePolicy::Table, |keep_us| LatePolicy::Revise { keep_us });
        let plain = WindowSpec { idle_close_us: IDLE_US, ..spec(shape.0, shape.1, 20, late) };
        let epochs = epochs(&steps);
        let without = run_all(&plain, &epochs, None);
        let with = run_all(&early(plain, 50), &epochs, None);
        for (a, b) in without.iter().zip(&with) {
            prop_assert_eq!(&a.late, &b.late);
            let texts = |emit: &Emit| -> Vec<String> {
                let rows = emit.rows.iter().flat_map(|rows| {
                    let flags = rows.column_by_name("is_final").map(|c| c.as_boolean().clone());
                    let is_final = move |i: usize| flags.as_ref().is_none_or(|f| f.value(i));
                    let text = |i: usize| format!("{:?}", rows.slice(i, 1).columns()[..9].to_vec());
                    (0..rows.num_rows()).filter(|i| is_final(*i)).map(text).collect::<Vec<_>>()
                });
                rows.collect()
            };
            prop_assert_eq!(texts(a), texts(b));
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn early_results_on_any_number_of_workers(
        steps in steps(), shape in shapes(), every_us in prop::sample::select(vec![20i64, 300]),
    ) {
        let late = LatePolicy::Revise { keep_us: 200 };
        let spec = early(spec(shape.0, shape.1, 20, late), every_us);
        let spec = WindowSpec { idle_close_us: IDLE_US, ..spec };
        let spread = |i: usize, r: &Reading| (r.0 + 4 * (i % 9) as u8, r.1, r.2);
        let epochs: Vec<(i64, RecordBatch)> = epochs(&steps)
            .iter()
            .enumerate()
            .map(|(i, (at_us, readings))| {
                let readings: Vec<Reading> = readings.iter().map(|r| spread(i, r)).collect();
                (*at_us, batch(&readings))
            })
            .collect();
        let new = || WindowOperator::new(spec.clone()).unwrap();
        let make = || Box::new(new()) as Box<dyn KeyedOperator>;
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
    }
}

/// State goes from a step without early results to one with, and back: revisions go on.
#[test]
fn early_results_can_be_switched_on_and_off() {
    let plain = spec(1_000, 1_000, 0, LatePolicy::Revise { keep_us: 5_000 });
    let early = early(plain.clone(), 100);
    let mut operator = WindowOperator::new(plain.clone()).unwrap();
    let at = |epoch, time_us| Tick { epoch, time_us };
    let mut emit = Emit::default();
    operator.epoch(&batch(&[(1, 110, 1.0)]), at(1, 1_010), &mut emit).unwrap();
    assert!(emit.rows.is_empty());
    let saved = operator.save().unwrap();
    let mut operator = WindowOperator::new(early).unwrap();
    operator.load(&saved).unwrap();
    operator.epoch(&batch(&[(1, 120, 1.0)]), at(2, 1_090), &mut emit).unwrap();
    operator.epoch(&batch(&[]), at(3, 1_110), &mut emit).unwrap();
    assert_eq!(rows(&emit), [("d1".to_owned(), 3, 1_003, 2, 0, false)]);
    let saved = operator.save().unwrap();
    let mut operator = WindowOperator::new(plain).unwrap();
    operator.load(&saved).unwrap();
    let mut emit = Emit::default();
    operator.epoch(&batch(&[(1, 1_500, 1.0)]), at(4, 1_300), &mut emit).unwrap();
    assert_eq!(plain_rows(&emit), [("d1".to_owned(), 3, 1_003, 2, 1, true)]);
}

/// What is emitted, and looked at, is what changed: not what is open.
#[test]
fn what_did_not_change_costs_nothing() {
    let spec = early(spec(1_000, 1_000, 0, LatePolicy::Table), 100);
    let spec = WindowSpec { idle_close_us: 1_000_000, ..spec };
    let mut operator = WindowOperator::new(spec).unwrap();
    let all: Vec<Reading> = (0..200).map(|device| (device, 10, 1.0)).collect();
    let mut run = |epoch, time_us, readings: &[Reading]| {
        let mut emit = Emit::default();
        operator.epoch(&batch(readings), Tick { epoch, time_us }, &mut emit).unwrap();
        (rows(&emit).len(), operator.early.len())
    };
    assert_eq!(run(1, 10, &all), (0, 200));
    assert_eq!(run(2, 100, &[]), (200, 0));
    assert_eq!(run(3, 110, &[(7, 20, 1.0)]), (0, 1));
    assert_eq!(run(4, 205, &[]), (1, 0));
    assert_eq!(run(5, 300, &[]), (0, 0));
}

/// Windows that overlap share their panes: all that are due at once would be many times the state.
#[test]
fn many_due_windows_are_put_together_in_parts_and_come_in_one_order() {
    let spec = early(spec(600, 10, 0, LatePolicy::Table), 50);
    let mut operator = WindowOperator::new(spec).unwrap();
    let in_pane = |pane: i64| [1, 2].map(|device| (device, OFFSET + pane * 10, 1.0));
    let all: Vec<Reading> = (0..60).flat_map(in_pane).collect();
    for (epoch, time_us, readings, due) in [(1, 10, &all[..], 118), (2, 100, &[], 120)] {
        let mut emit = Emit::default();
        operator.epoch(&batch(readings), Tick { epoch, time_us }, &mut emit).unwrap();
        for part in &emit.rows {
            // There is one reading in each pane.
            let panes: i64 = part["rows"].as_primitive::<Int64Type>().values().iter().sum();
            assert!(part.num_rows() == 1 || panes <= GATHERED_MAX as i64, "{panes}");
        }
        let found = rows(&emit);
        assert_eq!(found.len(), due);
        assert!(found.is_sorted_by_key(|row| (row.1, row.0.clone())), "{found:?}");
        assert!(found.iter().all(|row| row.4 == 0 && row.5 == (epoch == 1)), "{found:?}");
    }
}

/// Panes of a window that is dropped stay as long as they are in others.
#[test]
fn of_dropped_windows_nothing_is_kept() {
    let spec = early(spec(600, 10, 0, LatePolicy::Table), 5);
    let mut operator = WindowOperator::new(spec).unwrap();
    for i in 0..200i64 {
        let (tick, mut emit) = (Tick { epoch: i as u64 + 1, time_us: i * 10 }, Emit::default());
        operator.epoch(&batch(&[(1, i * 10, 1.0)]), tick, &mut emit).unwrap();
        let key = &operator.keys[operator.interner.ids().next().unwrap() as usize];
        let kept: Vec<i64> = key.emitted.iter().map(|e| e.window).collect();
        assert!(kept.iter().all(|window| *window > key.dropped), "{} {kept:?}", key.dropped);
        assert!(kept.is_sorted(), "{kept:?}");
    }
}

/// What cannot be computed of few readings is told once, if it still cannot of all of them.
#[test]
fn what_cannot_be_computed_is_a_reject_when_the_window_is_over() {
    let mut spec = early(spec(100, 100, 0, LatePolicy::Table), 10);
    let aggregated = spec.aggregated_schema();
    let binary = |a, operator, b| binary(a, operator, b, &aggregated).unwrap();
    let less = binary(col("agg0", &aggregated).unwrap(), Operator::Minus, lit(2i64));
    spec.select.push(("ratio".into(), binary(lit(10i64), Operator::Divide, less)));
    let mut operator = WindowOperator::new(spec).unwrap();
    let mut run = |epoch, time_us, readings: &[Reading]| {
        let mut emit = Emit::default();
        operator.epoch(&batch(readings), Tick { epoch, time_us }, &mut emit).unwrap();
        let count = |all: &[RecordBatch]| all.iter().map(RecordBatch::num_rows).sum::<usize>();
        (count(&emit.rows), count(&emit.rejects))
    };
    let twice = |device, at_us| vec![(device, at_us, 1.0), (device, at_us, 2.0)];
    assert_eq!(run(1, 10, &[twice(1, 10), twice(2, 10)].concat()), (0, 0));
    assert_eq!(run(2, 20, &[]), (2, 0), "both have two readings so far");
    assert_eq!(run(3, 30, &[(1, 30, 1.0)]), (0, 0));
    assert_eq!(run(4, 40, &[]), (1, 0));
    assert_eq!(run(5, 200, &[(1, 200, 1.0), (2, 200, 1.0)]), (2, 1), "one has no more than two");
}
