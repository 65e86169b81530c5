//! Joins within an interval against a plain model of the definition: shuffled, late, silent,
//! restarted, on several workers.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::Array;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use proptest::prelude::*;

use super::super::testing::{
    self, Both, EpochIn, both_schema, devices, late_rows, numbers, rejected, times,
};
use super::*;
use crate::operator::KeyedOperator;
use crate::snapshot::check;
use crate::spec::{KeyLimits, time_type};

mod large;
mod outages;

/// Longer than any of these tests.
const FOR_EVER: i64 = 1_000_000_000;

/// Whether it is of the right edge, device, time, value.
type In = (bool, u8, i64, i64);

/// Device, time, the left value, time and value of the right one.
type Row = (u8, i64, i64, Option<(i64, i64)>);

fn edge() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("time", time_type(), false),
        Field::new("v", DataType::Int64, true),
    ]))
}

#[derive(Clone, Copy, Debug)]
struct Case {
    outer: bool,
    nearest: bool,
    before_us: i64,
    after_us: i64,
    disorder_us: i64,
    idle_close_us: i64,
    forget_after_us: i64,
    rows_max: usize,
}

impl Case {
    /// How long a key is silent before its rows wait no longer.
    fn silent_us(self) -> i64 {
        self.idle_close_us.max(self.after_us + self.disorder_us)
    }
}

fn spec(case: Case) -> JoinSpec {
    JoinSpec {
        pipeline: "p".into(),
        name: "near".into(),
        with: "other".into(),
        left: edge(),
        right: edge(),
        left_keys: vec![0],
        right_keys: vec![0],
        columns: vec![(1, "other_time".into()), (2, "other_v".into())],
        outer: case.outer,
        partners: Partners::Interval {
            left: 1,
            right: 1,
            before_us: case.before_us,
            after_us: case.after_us,
            nearest: case.nearest,
            matches_max: 1_000,
            rows_max: case.rows_max,
            forget_after_us: case.forget_after_us,
        },
        disorder_us: case.disorder_us,
        idle_close_us: case.idle_close_us,
        live: true,
        limits: KeyLimits::default(),
    }
}

fn make(case: Case) -> Box<dyn JoinOperator> {
    Box::new(IntervalJoin::new(spec(case)).unwrap())
}

fn batch(rows: &[In]) -> RecordBatch {
    let columns = vec![
        devices(rows.iter().map(|r| r.1)),
        numbers(rows.iter().map(|r| i64::from(r.0))),
        times(rows.iter().map(|r| r.2)),
        numbers(rows.iter().map(|r| r.3)),
    ];
    RecordBatch::try_new(both_schema(&edge()), columns).unwrap()
}

fn rows(emit: &Emit) -> Vec<Row> {
    let mut all = Vec::new();
    for rows in &emit.rows {
        let time = |c: usize| rows.column(c).as_primitive::<TimestampMicrosecondType>();
        let number = |c: usize| rows.column(c).as_primitive::<Int64Type>();
        let device = |i: usize| rows.column(0).as_string::<i32>().value(i)[1..].parse().unwrap();
        all.extend((0..rows.num_rows()).map(|i| {
            let other = time(3).is_valid(i).then(|| (time(3).value(i), number(4).value(i)));
            (device(i), time(1).value(i), number(2).value(i), other)
        }));
        let ordered = time(1).values();
        assert!(ordered.is_sorted(), "rows come in the order of their times");
    }
    all.sort_unstable();
    all
}

/// What is to come of an epoch: the rows, how many rows are late, and how many too many.
type Told = (Vec<Row>, usize, usize);

/// What is known of a device, as plainly as it can be written.
#[derive(Default)]
struct Model {
    clock_us: Option<i64>,
    settled_us: Option<i64>,
    /// Up to here right rows are too late for what was told because of silence.
    told_us: Option<i64>,
    seen_us: i64,
    /// Times and values of what came in time, in the order of arrival, and in which epoch.
    left: Vec<(i64, i64, i64)>,
    right: Vec<(i64, i64, i64)>,
}

impl Model {
    fn is_settled(&self, time_us: i64) -> bool {
        self.settled_us.is_some_and(|settled_us| time_us < settled_us)
    }

    /// What is to come in an epoch of one device.
    fn epoch(&mut self, case: Case, now_us: i64, came: &[In]) -> Told {
        let mut late = 0;
        let settled_us = self.settled_us;
        for (right, _, time_us, value) in came {
            self.seen_us = now_us;
            if settled_us.is_some_and(|settled_us| *time_us < settled_us) {
                late += 1;
                continue;
            }
            late += usize::from(*right && self.told_us.is_some_and(|told_us| *time_us <= told_us));
            self.clock_us = self.clock_us.max(Some(*time_us));
            let side = if *right { &mut self.right } else { &mut self.left };
            side.push((*time_us, *value, now_us));
        }
        self.settled_us = self.settled_us.max(self.clock_us.map(|c| c - case.disorder_us));
        let silent_us = now_us - self.seen_us;
        let mut out = self.show(case);
        if silent_us >= case.silent_us() {
            out.extend(self.show_all(case));
        }
        let mut over = shorten(&mut self.left, case, now_us);
        let first_us = self.left.iter().map(|l| l.0).min().into_iter().chain(self.settled_us).min();
        self.right.retain(|r| first_us.is_some_and(|first_us| r.0 >= first_us - case.before_us));
        over += shorten(&mut self.right, case, now_us);
        let reach_us = case.before_us + case.after_us + case.disorder_us;
        if silent_us >= case.forget_after_us.max(case.silent_us()).max(reach_us) {
            self.right.clear();
            self.told_us = None;
        }
        (out, late, over)
    }

    /// Takes all left rows.
    fn show_all(&mut self, case: Case) -> Vec<Row> {
        if self.left.is_empty() {
            return Vec::new();
        }
        let clock_us = self.settled_us.max(self.clock_us);
        self.told_us = self.told_us.max(self.left.iter().map(|l| l.0 + case.after_us).max());
        self.settled_us = Some(i64::MAX);
        let out = self.show(case);
        self.settled_us = clock_us;
        out
    }

    /// Takes the left rows whose interval is settled.
    fn show(&mut self, case: Case) -> Vec<Row> {
        let (done, waiting): (Vec<_>, Vec<_>) =
            self.left.iter().partition(|l| self.is_settled(l.0 + case.after_us));
        self.left = waiting;
        let mut out = Vec::new();
        for (time_us, value, _) in done {
            let near = time_us - case.before_us..=time_us + case.after_us;
            let near = self.right.iter().filter(|r| near.contains(&r.0));
            let mut partners: Vec<(i64, i64)> = near.map(|r| (r.0, r.1)).collect();
            if case.nearest {
                // Stable: of one time the last that came is last.
                partners.sort_by_key(|r| (-(r.0 - time_us).abs(), -r.0));
                partners = partners.pop().into_iter().collect();
            }
            if partners.is_empty() && case.outer {
                out.push((0, time_us, value, None));
            }
            out.extend(partners.into_iter().map(|r| (0, time_us, value, Some(r))));
        }
        out
    }
}

/// Takes the newest of those that came now as long as there are too many; how many those are.
fn shorten(waiting: &mut Vec<(i64, i64, i64)>, case: Case, now_us: i64) -> usize {
    let mut over = 0;
    while waiting.len() > case.rows_max {
        let new = waiting.iter().enumerate().filter(|w| w.1.2 == now_us);
        let (at, _) = new.max_by_key(|(at, w)| (w.0, *at)).unwrap();
        waiting.remove(at);
        over += 1;
    }
    over
}

/// What is to come of each epoch and of the end.
fn expected(case: Case, epochs: &[(i64, Vec<In>)]) -> Vec<Told> {
    let mut models: BTreeMap<u8, Model> = BTreeMap::new();
    let mut out = Vec::new();
    let of = |device: u8, rows: Vec<Row>| rows.into_iter().map(move |r| (device, r.1, r.2, r.3));
    for (now_us, came) in epochs {
        for row in came {
            models.entry(row.1).or_default();
        }
        let (mut rows, mut late, mut over) = (Vec::new(), 0, 0);
        for (device, model) in &mut models {
            let own: Vec<In> = came.iter().filter(|r| r.1 == *device).copied().collect();
            let (own, own_late, own_over) = model.epoch(case, *now_us, &own);
            rows.extend(of(*device, own));
            late += own_late;
            over += own_over;
        }
        rows.sort_unstable();
        out.push((rows, late, over));
    }
    let mut rows = Vec::new();
    for (device, model) in &mut models {
        rows.extend(of(*device, model.show_all(case)));
    }
    rows.sort_unstable();
    out.push((rows, 0, 0));
    out
}

fn epochs_in(epochs: &[(i64, Vec<In>)]) -> Vec<EpochIn> {
    epochs.iter().map(|(time_us, rows)| (*time_us, batch(rows))).collect()
}

fn found(case: Case, epochs: &[(i64, Vec<In>)], workers: &[usize]) -> Vec<Told> {
    let emits = testing::run(&|| make(case), &edge(), &epochs_in(epochs), workers);
    emits.iter().map(|emit| (rows(emit), late_rows(emit), rejected(emit).len())).collect()
}

/// Rows of both edges with disorder and equal times; sometimes long silence.
fn epochs() -> impl Strategy<Value = Vec<(i64, Vec<In>)>> {
    let row = (any::<bool>(), 0..4_u8, -30..30_i64, 0..9_i64);
    let step = prop_oneof![6 => 1..40_i64, 1 => 200..900_i64];
    let epoch = (step, prop::collection::vec(row, 0..8));
    prop::collection::vec(epoch, 1..25).prop_map(|epochs| {
        let mut now_us = 0;
        let timed = |(i, (step, rows)): (usize, (i64, Vec<In>))| {
            now_us += step;
            let own = |r: In| (r.0, r.1, i as i64 * 12 + r.2, r.3);
            (now_us, rows.into_iter().map(own).collect())
        };
        epochs.into_iter().enumerate().map(timed).collect()
    })
}

fn cases() -> impl Strategy<Value = Case> {
    let rows_max = prop_oneof![3 => Just(1_000_usize), 1 => 1..5_usize];
    let kinds = (any::<bool>(), any::<bool>(), rows_max);
    (kinds, 0..40_i64, 0..40_i64, 0..70_i64, 1..300_i64, 1..600_i64).prop_map(
        |(
            (outer, nearest, rows_max),
            before_us,
            after_us,
            disorder_us,
            idle_close_us,
            forget_after_us,
        )| {
            Case {
                outer,
                nearest,
                before_us,
                after_us,
                disorder_us,
                idle_close_us,
                forget_after_us,
                rows_max,
            }
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

    /// In any order within the bound the same rows come.
    #[test]
    fn disorder_within_the_bound_does_not_show(
        sent in prop::collection::vec((any::<bool>(), 0..4_u8, 1..12_i64, 0..50_i64), 1..120),
        case in cases(),
    ) {
        let case = Case {
            disorder_us: 50,
            idle_close_us: FOR_EVER,
            forget_after_us: FOR_EVER,
            rows_max: 1_000,
            ..case
        };
        let mut time_us = 0;
        let timed = sent.into_iter().enumerate().map(|(i, (right, device, step, delay))| {
            time_us += step;
            (time_us + delay, (right, device, time_us, i as i64))
        });
        let mut sent: Vec<(i64, In)> = timed.collect();
        let all = |sent: &[(i64, In)]| -> Vec<Row> {
            let part = |(i, part): (usize, &[(i64, In)])| {
                (i as i64, part.iter().map(|s| s.1).collect::<Vec<In>>())
            };
            let epochs: Vec<(i64, Vec<In>)> = sent.chunks(5).enumerate().map(part).collect();
            let found = found(case, &epochs, &[1]);
            assert!(found.iter().all(|e| e.1 == 0), "nothing is late");
            let mut rows: Vec<Row> = found.into_iter().flat_map(|e| e.0).collect();
            rows.sort_unstable();
            rows
        };
        let in_order = all(&sent);
        sent.sort_by_key(|s| s.0);
        prop_assert_eq!(all(&sent), in_order);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Files come with the times at which they were changed last, which say nothing of devices.
    #[test]
    fn of_files_the_ticks_do_not_count(epochs in epochs(), case in cases()) {
        let of_files = JoinSpec { live: false, ..spec(case) };
        let new = || IntervalJoin::new(of_files.clone()).unwrap();
        let make = || Box::new(new()) as Box<dyn JoinOperator>;
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

/// Alerts within ten of a reading, no disorder.
fn plain() -> Case {
    Case {
        outer: true,
        nearest: false,
        before_us: 10,
        after_us: 10,
        disorder_us: 0,
        idle_close_us: 60,
        forget_after_us: 500,
        rows_max: 1_000,
    }
}

#[test]
fn an_unmatched_row_waits_for_the_clock_or_for_silence() {
    let epochs = [
        (0, vec![(false, 1, 100, 7), (true, 1, 90, 1), (true, 1, 110, 2), (true, 1, 89, 3)]),
        (1, vec![(false, 1, 111, 8)]),
        (60, vec![]),
        (61, vec![]),
        (62, vec![(true, 1, 121, 9), (true, 1, 122, 9)]),
    ];
    let found = found(plain(), &epochs, &[1]);
    assert_eq!(found[0], (vec![], 0, 0));
    assert_eq!(found[1].0, [(1, 100, 7, Some((90, 1))), (1, 100, 7, Some((110, 2)))]);
    assert_eq!(found[2], (vec![], 0, 0));
    assert_eq!(found[3].0, [(1, 111, 8, Some((110, 2)))]);
    // What would have been a partner comes too late, what would not is in time.
    assert_eq!(found[4], (vec![], 1, 0));
}

/// A partner that is on time may take as long as `after`, however short `idle_close` is.
#[test]
fn a_pause_within_the_interval_is_no_silence() {
    let case = Case { before_us: 0, after_us: 100, idle_close_us: 20, ..plain() };
    let epochs = [
        (0, vec![(false, 1, 0, 7)]),
        (20, vec![]),
        (60, vec![(true, 1, 60, 1), (false, 1, 70, 8)]),
    ];
    let found = found(case, &epochs, &[1]);
    assert!(found[..3].iter().all(|e| *e == (vec![], 0, 0)), "{found:?}");
    assert_eq!(found[3].0, [(1, 0, 7, Some((60, 1))), (1, 70, 8, None)]);
}

/// A row can have a partner that is older than the time after which a key is forgotten.
#[test]
fn a_key_is_not_forgotten_while_its_rows_can_have_partners() {
    let case = Case { before_us: 1_000, after_us: 0, idle_close_us: 20, ..plain() };
    let epochs = [
        (0, vec![(true, 1, 0, 1)]),
        (600, vec![]),
        (800, vec![(false, 1, 800, 7)]),
        (2_000, vec![]),
    ];
    let found = found(Case { forget_after_us: 500, ..case }, &epochs, &[1, 2]);
    assert_eq!(found[3].0, [(1, 800, 7, Some((0, 1)))]);
}

/// A device sends a reading a second, once a minute: each pause is longer than `idle_close`.
#[test]
fn a_pause_makes_no_left_row_late() {
    let case = Case { before_us: 30, after_us: 5, idle_close_us: 30, ..plain() };
    let mut epochs: Vec<(i64, Vec<In>)> = Vec::new();
    for minute in 0..4 {
        let own = minute * 60..minute * 60 + 60;
        let readings = own.flat_map(|s| [(false, 1, s, s), (true, 1, s, -s)]);
        epochs.push((minute * 60 + 60, readings.collect()));
        epochs.push((minute * 60 + 95, vec![]));
    }
    let found = found(case, &epochs, &[1]);
    let left: Vec<i64> = found.iter().flat_map(|e| &e.0).map(|r| r.1).collect();
    let all: Vec<i64> = (0..240).collect();
    assert_eq!(left.iter().copied().collect::<BTreeSet<i64>>(), BTreeSet::from_iter(all));
    // The first five right rows of a minute come after the last left rows of the one before.
    let late: Vec<usize> = found.iter().map(|e| e.1).collect();
    assert_eq!(late, [0, 0, 5, 0, 5, 0, 5, 0, 0]);
    // They are partners of those that come with them: a row before has all but what was missed.
    let of = |time_us: i64| found.iter().flat_map(|e| &e.0).filter(|r| r.1 == time_us).count();
    assert_eq!((of(100), of(120), of(119)), (36, 36, 31));
}

/// What an epoch settles need not wait: a file has many rows in an epoch, a device few.
#[test]
fn many_rows_of_a_key_in_an_epoch_are_as_many_epochs() {
    let case = Case { before_us: 1, after_us: 1, rows_max: 4, ..plain() };
    let both = |i: i64| [(false, 1, i * 10, i), (true, 1, i * 10 + 1, -i)];
    let one = [(0, (0..100).flat_map(both).collect::<Vec<In>>())];
    let many: Vec<(i64, Vec<In>)> = (0..100).map(|i| (i, both(i).to_vec())).collect();
    let all = |epochs: &[(i64, Vec<In>)]| -> Vec<Row> {
        let found = found(case, epochs, &[1]);
        assert!(found.iter().all(|e| (e.1, e.2) == (0, 0)), "nothing is late or too much");
        found.into_iter().flat_map(|e| e.0).collect()
    };
    let expected: Vec<Row> = (0..100).map(|i| (1, i * 10, i, Some((i * 10 + 1, -i)))).collect();
    assert_eq!(all(&one), expected);
    assert_eq!(all(&many), expected);
}

#[test]
fn below_the_floor_of_a_group_no_clock_is_known() {
    let mut spec = spec(Case { forget_after_us: 60, ..plain() });
    spec.limits.keys_max = 1;
    let make = || Box::new(IntervalJoin::new(spec.clone()).unwrap()) as Box<dyn JoinOperator>;
    let at = |time_us: i64| move |device: u8| (false, device, time_us, 0);
    let epochs = testing::below_floors(&|time_us, devices| {
        batch(&devices.iter().copied().map(at(time_us)).collect::<Vec<In>>())
    });
    let emits = testing::run(&make, &edge(), &epochs, &[1]);
    assert_eq!(testing::least_behind(&emits), Some(0));
}

#[test]
fn state_is_bounded_and_what_is_beyond_is_a_reject() {
    let mut spec = spec(plain());
    if let Partners::Interval { rows_max, matches_max, .. } = &mut spec.partners {
        (*rows_max, *matches_max) = (4, 3);
    }
    let mut join = Both { join: Box::new(IntervalJoin::new(spec).unwrap()), edge: edge() };
    let mut at = |now_us: i64, rows: &[In]| {
        let mut emit = Emit::default();
        let tick = Tick { epoch: now_us as u64 + 1, time_us: now_us };
        join.epoch(&batch(rows), tick, &mut emit).unwrap();
        (self::rows(&emit), rejected(&emit), join.save().unwrap().num_rows())
    };
    let crowd: Vec<In> = (0..6).map(|i| (true, 1, 100 + i, i)).collect();
    let (_, rejects, kept) = at(0, &crowd);
    assert_eq!((rejects, kept), (vec![REASON_ROWS_MAX.to_owned(); 2], 4));
    let (rows, rejects, _) = at(1, &[(false, 1, 105, 7), (false, 1, 112, 8), (false, 1, 130, 9)]);
    assert_eq!(rejects, [REASON_MATCHES_MAX]);
    assert_eq!(rows, [(1, 112, 8, Some((102, 2))), (1, 112, 8, Some((103, 3)))]);
    // Nothing of it can have a partner any more, and silence leaves nothing but how far it came.
    let (_, _, kept) = at(2, &[(true, 1, 1_000, 0)]);
    assert_eq!(kept, 1);
    let (_, _, kept) = at(1_000, &[]);
    assert_eq!(kept, 1);
}

#[test]
fn foreign_state_and_the_wrong_kind_are_refused() {
    let saved = Both { join: make(plain()), edge: edge() }.save().unwrap();
    let mut other = spec(plain());
    other.columns.truncate(1);
    let error = IntervalJoin::new(other).unwrap().load(&saved).unwrap_err();
    assert!(matches!(error, OperatorError::State(_)), "{error}");
    assert!(super::super::WindowJoin::new(spec(plain())).is_err());
}
