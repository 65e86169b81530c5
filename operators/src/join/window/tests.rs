//! Joined windows against a plain model of the definition: revised, shuffled, late, silent,
//! restarted, on several workers.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, Int64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use proptest::prelude::*;

use super::super::testing::{self, Both, EpochIn, both_schema, devices, late_rows, numbers, times};
use super::*;
use crate::operator::KeyedOperator;
use crate::outage::testing::outage_rows;
use crate::snapshot::check;
use crate::spec::{KeyLimits, time_type};

/// Length of a window.
const SIZE_US: i64 = 10;

/// Longer than any of these tests.
const FOR_EVER: i64 = 1_000_000_000;

/// Whether it is of the right edge, device, number of the window, value, revision.
type In = (bool, u8, i64, i64, i64);

/// The value of a window that is withdrawn.
const GONE: i64 = -1;

/// Device, start, the left value, the right one, revision.
type Row = (u8, i64, i64, Option<i64>, i64);

fn edge() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("window_start", time_type(), false),
        Field::new("window_end", time_type(), false),
        Field::new("v", DataType::Int64, true),
        Field::new("revision", DataType::Int64, false),
        Field::new("rows", DataType::Int64, false),
    ]))
}

#[derive(Clone, Copy, Debug)]
struct Case {
    outer: bool,
    disorder_us: i64,
    keep_us: i64,
    idle_close_us: i64,
}

fn spec(case: Case) -> JoinSpec {
    JoinSpec {
        pipeline: "p".into(),
        name: "both".into(),
        with: "other".into(),
        left: edge(),
        right: edge(),
        left_keys: vec![0],
        right_keys: vec![0],
        columns: vec![(3, "other_v".into())],
        outer: case.outer,
        partners: Partners::Window {
            left: [1, 2, 4],
            right: [1, 2, 4],
            rows: [Some(5); 2],
            takes_back: Some(TakesBack {
                rows: 5,
                revision: 4,
                is_final: None,
                clears: vec![3, 6],
            }),
            keep_us: case.keep_us,
        },
        disorder_us: case.disorder_us,
        idle_close_us: case.idle_close_us,
        live: true,
        limits: KeyLimits::default(),
    }
}

fn make(case: Case) -> Box<dyn JoinOperator> {
    Box::new(WindowJoin::new(spec(case)).unwrap())
}

fn batch(rows: &[In]) -> RecordBatch {
    let columns = vec![
        devices(rows.iter().map(|r| r.1)),
        numbers(rows.iter().map(|r| i64::from(r.0))),
        times(rows.iter().map(|r| r.2 * SIZE_US)),
        times(rows.iter().map(|r| (r.2 + 1) * SIZE_US)),
        Arc::new(rows.iter().map(|r| Some(r.3).filter(|v| *v != GONE)).collect::<Int64Array>()),
        numbers(rows.iter().map(|r| r.4)),
        numbers(rows.iter().map(|r| i64::from(r.3 != GONE))),
    ];
    RecordBatch::try_new(both_schema(&edge()), columns).unwrap()
}

fn epochs_in(epochs: &[(i64, Vec<In>)]) -> Vec<EpochIn> {
    epochs.iter().map(|(time_us, rows)| (*time_us, batch(rows))).collect()
}

fn rows(emit: &Emit) -> Vec<Row> {
    let mut all = Vec::new();
    for rows in &emit.rows {
        let starts = rows.column(1).as_primitive::<TimestampMicrosecondType>();
        let number = |c: usize| rows.column(c).as_primitive::<Int64Type>();
        let device = |i: usize| rows.column(0).as_string::<i32>().value(i)[1..].parse().unwrap();
        all.extend((0..rows.num_rows()).map(|i| {
            let value = |c: usize| number(c).is_valid(i).then(|| number(c).value(i));
            let left = if number(5).value(i) > 0 { value(3).unwrap() } else { GONE };
            assert!(left != GONE || value(3).is_none());
            (device(i), starts.value(i), left, value(6), number(4).value(i))
        }));
    }
    all.sort_unstable();
    all
}

/// Of each edge the newest revision and its value.
type Pair = [Option<(i64, i64)>; 2];

/// What is known of a device, as plainly as it can be written.
#[derive(Default)]
struct Model {
    clock_us: Option<i64>,
    settled_us: Option<i64>,
    dropped_us: Option<i64>,
    seen_us: i64,
    /// By window.
    known: BTreeMap<i64, Pair>,
    /// What is known of a window that was emitted, with the revision of that.
    shown: BTreeMap<i64, (Pair, i64)>,
}

impl Model {
    /// The rows that are to come in an epoch, and how many of those that came are late.
    fn epoch(&mut self, case: Case, now_us: i64, came: &[In]) -> (Vec<Row>, usize) {
        let mut late = 0;
        for (right, _, window, value, revision) in came {
            let end_us = (window + 1) * SIZE_US;
            self.seen_us = now_us;
            if self.dropped_us.is_some_and(|dropped_us| end_us <= dropped_us) {
                late += 1;
                continue;
            }
            let known = &mut self.known.entry(*window).or_default()[usize::from(*right)];
            *known = (*known).max(Some((*revision, *value)));
        }
        let newest_us = came.iter().map(|r| (r.2 + 1) * SIZE_US).max();
        self.clock_us = self.clock_us.max(newest_us);
        if newest_us.is_some() {
            self.settled_us = self.settled_us.max(self.clock_us.map(|c| c - case.disorder_us));
        }
        let silent_us = now_us - self.seen_us;
        if silent_us >= case.idle_close_us {
            self.settled_us = self.settled_us.max(self.clock_us);
        }
        let out = self.show(case);
        if newest_us.is_some() {
            let kept_us = self.clock_us.map(|c| c - case.disorder_us - case.keep_us);
            self.dropped_us = self.dropped_us.max(kept_us);
        }
        // The next window of a key whose newest one is kept may be as long in coming as it is.
        let next_us = if self.dropped_us < self.clock_us { SIZE_US } else { 0 };
        if silent_us >= case.idle_close_us + case.keep_us + next_us {
            self.dropped_us = self.clock_us;
        }
        (out, late)
    }

    fn show(&mut self, case: Case) -> Vec<Row> {
        let mut out = Vec::new();
        for (window, known) in &self.known {
            let Some((_, left)) = known[0] else { continue };
            let right = known[1].map(|r| r.1).filter(|value| *value != GONE);
            let before = self.shown.get(window).copied();
            let end_us = (window + 1) * SIZE_US;
            let settled = self.settled_us.is_some_and(|settled_us| end_us <= settled_us);
            let is_gone = left == GONE || (right.is_none() && !case.outer);
            let waits = right.is_none() && !settled;
            if before.is_none() && (is_gone || waits) || before.is_some_and(|b| b.0 == *known) {
                continue;
            }
            let revision = before.map_or(0, |b| b.1 + 1);
            self.shown.insert(*window, (*known, revision));
            let (left, right) = if is_gone { (GONE, None) } else { (left, right) };
            out.push((0, window * SIZE_US, left, right, revision));
        }
        out
    }
}

/// What is to come of each epoch and of the end, and how many rows are late.
fn expected(case: Case, epochs: &[(i64, Vec<In>)]) -> Vec<(Vec<Row>, usize)> {
    let all: BTreeSet<u8> = epochs.iter().flat_map(|e| e.1.iter().map(|r| r.1)).collect();
    let mut models: BTreeMap<u8, Model> = BTreeMap::new();
    let mut out = Vec::new();
    for (now_us, came) in epochs {
        let (mut rows, mut late) = (Vec::new(), 0);
        for device in &all {
            let mut own: Vec<In> = came.iter().filter(|r| r.1 == *device).copied().collect();
            if !models.contains_key(device) {
                // What only takes back makes no key: first comes the left edge, then the right.
                let is_there = |right: bool| own.iter().any(|r| r.0 == right && r.3 != GONE);
                let (left, right) = (is_there(false), is_there(true));
                own.retain(|r| r.3 != GONE || left || (right && r.0));
            }
            if own.is_empty() && !models.contains_key(device) {
                continue;
            }
            let (own, own_late) = models.entry(*device).or_default().epoch(case, *now_us, &own);
            rows.extend(own.into_iter().map(|r| (*device, r.1, r.2, r.3, r.4)));
            late += own_late;
        }
        rows.sort_unstable();
        out.push((rows, late));
    }
    let mut rows = Vec::new();
    for (device, model) in &mut models {
        model.settled_us = model.settled_us.max(model.clock_us);
        rows.extend(model.show(case).into_iter().map(|r| (*device, r.1, r.2, r.3, r.4)));
    }
    rows.sort_unstable();
    out.push((rows, 0));
    out
}

fn found(case: Case, epochs: &[(i64, Vec<In>)], workers: &[usize]) -> Vec<(Vec<Row>, usize)> {
    let emits = testing::run(&|| make(case), &edge(), &epochs_in(epochs), workers);
    emits.iter().map(|emit| (rows(emit), late_rows(emit))).collect()
}

/// Time to the next epoch, and of each window its edge, device, place and by how much its revision
/// is higher.
type Drawn = (i64, Vec<(bool, u8, i64, i64)>);

/// Windows of both edges in any order, some again with the next revision; sometimes long silence.
fn epochs() -> impl Strategy<Value = Vec<(i64, Vec<In>)>> {
    let row = (any::<bool>(), 0..4_u8, -2..3_i64, 1..3_i64);
    let step = prop_oneof![6 => 1..40_i64, 1 => 200..900_i64];
    let epoch = (step, prop::collection::vec(row, 0..6));
    prop::collection::vec(epoch, 1..25).prop_map(|epochs| {
        let (mut now_us, mut value, mut revisions) = (0, 0, BTreeMap::new());
        let timed = |(i, (step, rows)): (usize, Drawn)| {
            now_us += step;
            let mut seen = BTreeSet::new();
            let mut out: Vec<In> = Vec::new();
            for (right, device, near, more) in rows {
                let window = i as i64 / 2 + near;
                // A window comes at most once in an epoch.
                if !seen.insert((right, device, window)) {
                    continue;
                }
                let revision = revisions.entry((right, device, window)).or_insert(-1);
                *revision += more;
                value += 1;
                let is_gone = *revision > 0 && value % 3 == 0;
                out.push((right, device, window, if is_gone { GONE } else { value }, *revision));
            }
            (now_us, out)
        };
        epochs.into_iter().enumerate().map(timed).collect()
    })
}

fn cases() -> impl Strategy<Value = Case> {
    let keep = prop_oneof![1 => Just(FOR_EVER), 3 => 0..80_i64];
    (any::<bool>(), 0..25_i64, keep, 1..300_i64).prop_map(
        |(outer, disorder_us, keep_us, idle_close_us)| Case {
            outer,
            disorder_us,
            keep_us,
            idle_close_us,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_row_is_as_the_definition_says(epochs in epochs(), case in cases()) {
        let expected = expected(case, &epochs);
        for workers in [&[1][..], &[2], &[3], &[1, 1, 1], &[1, 3], &[2, 1, 3, 2]] {
            prop_assert_eq!(found(case, &epochs, workers), expected.clone(), "{:?}", workers);
        }
    }

    /// What is told last does not depend on the order in which windows and revisions came.
    #[test]
    fn the_last_rows_do_not_depend_on_the_order(
        epochs in epochs(), outer in any::<bool>(), seed in any::<u64>(),
    ) {
        let case =
            Case { outer, disorder_us: 5, keep_us: FOR_EVER, idle_close_us: FOR_EVER };
        let last = |epochs: &[(i64, Vec<In>)]| -> BTreeMap<(u8, i64), (i64, Option<i64>)> {
            let all = found(case, epochs, &[1]).into_iter();
            let all = all.inspect(|e| assert_eq!(e.1, 0)).flat_map(|e| e.0);
            let mut last: BTreeMap<_, _> = all.map(|r| ((r.0, r.1), (r.2, r.3))).collect();
            // One that was never told is as good as one that is none.
            last.retain(|_, row| row.0 != GONE);
            last
        };
        // All keys are known, so that nothing is taken for a row of nobody.
        let first: Vec<In> = (0..4).map(|device| (false, device, -50, 0, 0)).collect();
        let mut all: Vec<In> = epochs.iter().flat_map(|e| e.1.iter().copied()).collect();
        let with_first = |epochs: &[(i64, Vec<In>)]| [&[(0, first.clone())], epochs].concat();
        let in_order = last(&with_first(&epochs));
        all.sort_by_key(|r| (r.2 * 64 + r.4 * 8 + i64::from(r.1)) as u64 ^ seed);
        all.sort_by_key(|r| ((r.3 + 2 * r.4) as u64 + 1).wrapping_mul(seed | 1));
        let other: Vec<(i64, Vec<In>)> =
            all.chunks(3).enumerate().map(|(i, part)| (i as i64, part.to_vec())).collect();
        prop_assert_eq!(last(&with_first(&other)), in_order);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Files come with the times at which they were changed last, which say nothing of devices.
    #[test]
    fn of_files_the_ticks_do_not_count(epochs in epochs(), case in cases()) {
        let of_files = JoinSpec { live: false, ..spec(case) };
        let make = || Box::new(WindowJoin::new(of_files.clone()).unwrap()) as Box<dyn JoinOperator>;
        testing::ticks_do_not_count(&make, &edge(), &epochs_in(&epochs));
    }

    #[test]
    fn cuts_add_up_on_any_number_of_workers(epochs in epochs(), case in cases()) {
        let edge = edge();
        let new = || Both { join: make(case), edge: Arc::clone(&edge) };
        let make = || Box::new(new()) as Box<dyn KeyedOperator>;
        let epochs = epochs_in(&epochs);
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
    }
}

#[test]
fn an_unmatched_window_waits_for_the_clock_or_for_silence() {
    let case = Case { outer: true, disorder_us: 5, keep_us: 100, idle_close_us: 60 };
    let at = |now_us, rows: &[In]| (now_us, rows.to_vec());
    let epochs = [
        at(0, &[(false, 1, 0, 7, 0)]),
        at(59, &[]),
        at(60, &[]),
        at(70, &[(true, 1, 0, 8, 0), (false, 1, 1, 9, 0)]),
        at(80, &[(false, 1, 2, 1, 0)]),
    ];
    let found: Vec<Vec<Row>> = found(case, &epochs, &[1]).into_iter().map(|e| e.0).collect();
    assert_eq!(found[..2], [vec![], vec![]]);
    assert_eq!(found[2], [(1, 0, 7, None, 0)]);
    assert_eq!(found[3], [(1, 0, 7, Some(8), 1)]);
    assert_eq!(found[4], [(1, 10, 9, None, 0)]);
    assert_eq!(found[5], [(1, 20, 1, None, 0)]);
}

#[test]
fn a_forgotten_key_is_late_where_it_was_final() {
    let case = Case { outer: true, disorder_us: 0, keep_us: 100, idle_close_us: 60 };
    let mut join = Both { join: make(case), edge: edge() };
    let mut at = |now_us: i64, rows: &[In]| {
        let mut emit = Emit::default();
        let tick = Tick { epoch: now_us as u64 + 1, time_us: now_us };
        join.epoch(&batch(rows), tick, &mut emit).unwrap();
        (self::rows(&emit), late_rows(&emit), join.save().unwrap())
    };
    at(0, &[(false, 1, 5, 7, 0)]);
    let (_, _, state) = at(169, &[]);
    assert!(state["left0"].is_valid(0), "a window longer: it may be that the next one comes");
    let (_, _, state) = at(170, &[]);
    assert!(state["left0"].is_null(0) && state.num_rows() == 1, "only how far it came is left");
    let (rows, late, _) = at(180, &[(true, 1, 5, 8, 0), (false, 1, 6, 9, 0)]);
    assert_eq!((rows, late), (vec![(1, 60, 9, None, 0)], 1));
}

/// Long windows come far apart: a key of which the next one is to come is not forgotten.
#[test]
fn a_key_is_kept_from_one_window_to_the_next() {
    let case = Case { outer: false, disorder_us: 0, keep_us: 2, idle_close_us: 1 };
    let epochs = [
        (0, vec![(false, 1, 5, 7, 0)]),
        (3, vec![]),
        (4, vec![(true, 1, 5, 8, 0)]),
        (10, vec![(false, 1, 6, 9, 0)]),
        // A restart starts to count again at the same tick.
        (13, vec![]),
        (14, vec![(true, 1, 6, 1, 0)]),
    ];
    for workers in [&[1][..], &[1; 3], &[1; 6]] {
        let found = found(case, &epochs, workers);
        assert!(found.iter().all(|e| e.1 == 0), "{found:?}");
        let rows: Vec<Row> = found.into_iter().flat_map(|e| e.0).collect();
        assert_eq!(rows, [(1, 50, 7, Some(8), 0), (1, 60, 9, Some(1), 0)]);
    }
}

#[test]
fn below_the_floor_of_a_group_no_clock_is_known() {
    let mut spec = spec(Case { outer: true, disorder_us: 0, keep_us: 100, idle_close_us: 60 });
    spec.limits.keys_max = 1;
    let make = || Box::new(WindowJoin::new(spec.clone()).unwrap()) as Box<dyn JoinOperator>;
    let at = |time_us: i64| move |device: u8| (false, device, time_us / SIZE_US, 0, 0);
    let epochs = testing::below_floors(&|time_us, devices| {
        batch(&devices.iter().copied().map(at(time_us)).collect::<Vec<In>>())
    });
    let emits = testing::run(&make, &edge(), &epochs, &[1]);
    assert_eq!(testing::least_behind(&emits), Some(0));
}

#[test]
fn foreign_state_and_the_wrong_kind_are_refused() {
    let case = Case { outer: false, disorder_us: 0, keep_us: 0, idle_close_us: 1 };
    let saved = Both { join: make(case), edge: edge() }.save().unwrap();
    let mut other = spec(case);
    other.columns.push((4, "other_revision".into()));
    let error = WindowJoin::new(other).unwrap().load(&saved).unwrap_err();
    assert!(matches!(error, OperatorError::State(_)), "{error}");
    assert!(super::super::IntervalJoin::new(spec(case)).is_err());
}

/// While the source is away no window comes alone, and no key is forgotten.
#[test]
fn silence_in_an_outage_says_nothing() {
    let case = Case { outer: true, disorder_us: 5, keep_us: 100, idle_close_us: 20 };
    let mut join = WindowJoin::new(spec(case)).unwrap();
    let mut at = |time_us: i64, came: &[In], log: &[(i64, i64)]| {
        let side = |right: bool| {
            let own: Vec<In> = came.iter().filter(|r| r.0 == right).copied().collect();
            let mut columns = batch(&own).columns().to_vec();
            columns.remove(1);
            RecordBatch::try_new(edge(), columns).unwrap()
        };
        let saved = join.cut(true).rows().unwrap().rows;
        join = WindowJoin::new(spec(case)).unwrap();
        join.load(&saved).unwrap();
        join.aside(&outage_rows(log));
        let mut emit = Emit::default();
        let tick = Tick { epoch: time_us as u64 + 1, time_us };
        join.epoch(&side(false), &side(true), tick, &mut emit).unwrap();
        assert_eq!(late_rows(&emit), 0);
        (rows(&emit), join.sides.interner.len())
    };
    assert_eq!(at(10, &[(false, 1, 0, 7, 0)], &[]), (vec![], 1));
    let away = [(15, i64::MAX)];
    assert_eq!(at(20, &[], &away), (vec![], 1));
    assert_eq!(at(900, &[], &away), (vec![], 1), "the source is away");
    let back = [(15, 1_000)];
    assert_eq!(at(1_000, &[], &back), (vec![], 1));
    assert_eq!(at(1_019, &[], &back), (vec![], 1), "the whole time anew");
    assert_eq!(at(1_019, &[(true, 1, 0, 3, 0)], &back), (vec![(1, 0, 7, Some(3), 0)], 1));
    assert_eq!(at(1_040, &[(false, 1, 1, 8, 0)], &back), (vec![], 1));
    assert_eq!(at(1_060, &[], &back), (vec![(1, 10, 8, None, 0)], 1));
    // As long as windows are kept, and a window longer.
    assert_eq!(at(1_169, &[], &back).1, 1);
    assert_eq!(at(1_170, &[], &back).1, 0);
}
