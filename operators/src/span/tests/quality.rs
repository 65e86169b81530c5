//! What windows say of how good they are, against plain loops over all readings with the times at
//! which they came in: shuffled, late, with outages that become known later, restarted, on several
//! workers.

use std::collections::BTreeSet;

use arrow::compute::concat_batches;
use proptest::sample::Index;

use super::*;
use crate::quality::testing::{Log, Told, is_complete, log_rows, logs, repeats, said};
use crate::quality::{Hears as _, testing};
use crate::spec::QualitySpec;

fn with_quality(spec: WindowSpec, every_us: Option<i64>, keeps: bool) -> WindowSpec {
    WindowSpec { quality: Some(QualitySpec { every_us, keeps, repeated: true }), ..spec }
}

/// What was said last, and in which epoch, by device and id.
type Said = BTreeMap<(String, i64), (Row, Option<testing::Said>, usize)>;

/// Takes rows; each revision says something new.
fn take(emit: &Emit, epoch: usize, all: &mut Said) {
    let mut told = rows(emit).into_iter();
    for batch in &emit.rows {
        for i in 0..batch.num_rows() {
            let (key, row) = told.next().unwrap();
            let new = (row, said(batch, i), epoch);
            let before = all.insert(key.clone(), new.clone());
            assert_eq!(new.0.revision, before.as_ref().map_or(0, |b| b.0.revision + 1), "{key:?}");
            assert_eq!(new.0.rows > 0, new.1.is_some(), "only what is there says something");
            let same = |b: &(Row, Option<testing::Said>, usize)| {
                let row = Row { revision: new.0.revision, ..b.0.clone() };
                // That something came again is no reason for a row.
                let duplicates = new.1.as_ref().and_then(|said| said.duplicates);
                let said = b.1.clone().map(|said| testing::Said { duplicates, ..said });
                (row, said) == (new.0.clone(), new.1.clone())
            };
            assert!(!before.as_ref().is_some_and(same), "{key:?}: {new:?}");
        }
    }
}

/// By device and time of a reading (no two are the same): when it came in, and whether that was
/// late.
type Arrived = BTreeMap<(u8, i64), (i64, bool)>;

/// What came again: device, time and epoch.
type Again = Vec<(u8, i64, usize)>;

fn check_all(
    spec: &WindowSpec,
    all: &Said,
    readings: &BTreeSet<Reading>,
    (arrived, again): (&Arrived, &Again),
    (log, ended): (&Log, bool),
) {
    let quality = spec.quality.unwrap();
    for device in 0..4 {
        let own = readings.iter().filter(|r| r.0 == device);
        let own: Vec<oracle::Reading> = own.map(|r| (r.1, r.2)).collect();
        for window in oracle::windows(&spec.shape, &own) {
            let told = all.get(&(format!("d{device}"), window.id));
            let Some((row, said, epoch)) = told else { continue };
            // One that late readings have opened again is told anew when it ends.
            if row.rows as usize != window.readings.len() {
                assert!(!ended, "{row:?} {window:?}");
                continue;
            }
            let of = |r: &oracle::Reading| (r.0, arrived[&(device, r.0)]);
            let inside: Vec<_> = window.readings.iter().map(of).collect();
            let times: Vec<(i64, i64)> =
                inside.iter().map(|(at, (came, _))| (*at, *came)).collect();
            let bounds_us = (row.start_us, row.end_us);
            let expected = quality.expected(&spec.shape, bounds_us);
            let late = inside.iter().filter(|(_, (_, late))| *late).count() as i64;
            // What was lost near a session could have been in it, and what was lost shortly before
            // a state or a count its first reading.
            let near_us = match spec.shape {
                Shape::Session { gap_us, .. } => (gap_us, gap_us),
                Shape::Count { .. } | Shape::State { .. } => (quality.every_us.unwrap_or(0), 0),
                _ => (0, 0),
            };
            let around_us = (row.start_us - near_us.0, row.end_us + near_us.1);
            let complete = is_complete(quality.keeps, log, around_us, &times);
            let is_again = |(of, at_us, came): &&(u8, i64, usize)| {
                *of == device && times.iter().any(|time| time.0 == *at_us) && came <= epoch
            };
            let duplicates = Some(again.iter().filter(is_again).count() as i64);
            let expected = testing::Said { expected, late, duplicates, complete };
            assert_eq!(*said, Some(expected), "{:?} {row:?} {times:?}", spec.shape);
        }
    }
}

fn run_checked(
    spec: &WindowSpec,
    epochs: &[Vec<Reading>],
    (logs, repeats): (&[Option<Log>], &[Vec<Index>]),
    restart: Option<usize>,
) -> Vec<Vec<RecordBatch>> {
    let mut operator = SpanOperator::new(spec.clone()).unwrap();
    let (mut all, mut log, mut readings) = (Said::new(), Log::new(), BTreeSet::new());
    let (mut arrived, mut clocks) = (Arrived::new(), BTreeMap::<u8, i64>::new());
    let (mut come, mut again) = (Vec::<Reading>::new(), Again::new());
    let mut out = Vec::new();
    for (i, new) in epochs.iter().enumerate() {
        let mut told = logs[i].clone();
        if let Some(told) = &told {
            log.clone_from(told);
        }
        if restart == Some(i) {
            let state = operator.save().unwrap();
            operator = SpanOperator::new(spec.clone()).unwrap();
            operator.load(&state).unwrap();
            assert_eq!(operator.save().unwrap(), state);
            told = Some(log.clone());
        }
        let before = clocks.clone();
        for (device, time_us, _) in new {
            let clock_us = clocks.entry(*device).or_insert(i64::MIN);
            *clock_us = (*clock_us).max(*time_us);
            let settled_us = before.get(device).map(|us| us - spec.disorder_us);
            let late = settled_us.is_some_and(|us| *time_us < us);
            arrived.insert((*device, *time_us), (tick(i).time_us, late));
        }
        readings.extend(new);
        come.extend(new);
        let mut repeated: Vec<Reading> = Vec::new();
        if !come.is_empty() {
            repeated.extend(repeats[i].iter().map(|at| *at.get(&come)));
        }
        again.extend(repeated.iter().map(|r| (r.0, r.1, i)));
        // Of this device nothing ever stayed.
        repeated.push((99, i as i64, 1));
        let mut emit = Emit::default();
        operator.hear(&log_rows(&told.unwrap_or_default()));
        operator.repeat(&batch(&repeated));
        operator.epoch(&batch(new), tick(i), &mut emit).unwrap();
        take(&emit, i, &mut all);
        check_all(spec, &all, &readings, (&arrived, &again), (&log, false));
        out.push(emit.rows);
    }
    let state = operator.save().unwrap();
    let mut emit = Emit::default();
    operator.end(&mut emit).unwrap();
    take(&emit, epochs.len(), &mut all);
    check_all(spec, &all, &readings, (&arrived, &again), (&log, true));
    out.push(emit.rows);
    out.push(vec![state]);
    out
}

/// Of readings of one device and time the first.
fn distinct(mut epochs: Vec<Vec<Reading>>) -> Vec<Vec<Reading>> {
    let mut seen = BTreeSet::new();
    epochs.iter_mut().for_each(|epoch| epoch.retain(|r| seen.insert((r.0, r.1))));
    epochs
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn spans_say_what_a_plain_loop_says(
        epochs in readings(),
        logs in logs(1_300),
        repeats in repeats(),
        shape in shape(),
        disorder in 0i64..60,
        (every, keeps) in (prop::option::of(7i64..40), prop::bool::ANY),
        restart in prop::option::of(0usize..30),
    ) {
        let (spec, epochs) = (spec(shape, disorder, FOR_EVER), distinct(epochs));
        let spec = with_quality(spec, every, keeps);
        let restarted = run_checked(&spec, &epochs, (&logs, &repeats), restart);
        let straight = run_checked(&spec, &epochs, (&logs, &repeats), None);
        prop_assert_eq!(restarted, straight, "a restart must not show, nor in the state");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn cuts_with_quality_add_up_on_any_number_of_workers(
        epochs in readings(),
        logs in logs(9_000),
        shape in shape(),
        keep in prop::option::of(0i64..300),
    ) {
        let late = keep.map_or(LatePolicy::Table, |keep_us| LatePolicy::Revise { keep_us });
        let spec = WindowSpec { idle_close_us: 500, ..spec(shape, 20, late) };
        let spec = with_quality(spec, Some(7), true);
        let spread = |i: usize, r: &Reading| (r.0 + 4 * (i % 9) as u8, r.1, r.2);
        let epochs: Vec<(i64, RecordBatch)> = epochs
            .iter()
            .enumerate()
            .map(|(i, readings)| {
                let readings: Vec<Reading> = readings.iter().map(|r| spread(i, r)).collect();
                (i as i64 * 300, batch(&readings))
            })
            .collect();
        // What comes in an epoch comes again in it, and in the one after the next.
        let earlier = |i: usize| epochs[i.saturating_sub(2)].1.clone();
        let again: Vec<RecordBatch> = (0..epochs.len())
            .map(|i| concat_batches(&input(), [&epochs[i].1, &earlier(i)]).unwrap())
            .collect();
        let new = || Told(SpanOperator::new(spec.clone()).unwrap(), logs.clone(), again.clone());
        let make = || Box::new(new()) as Box<dyn KeyedOperator>;
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
    }
}

#[test]
fn readings_to_expect_are_those_between_the_first_and_the_last() {
    let quality = QualitySpec { every_us: Some(10), keeps: true, repeated: false };
    let state = |until: bool| Shape::State {
        begin: v(Operator::GtEq, 8),
        until: until.then(|| v(Operator::Eq, 9)),
        abort: None,
        min_us: 0,
        max_us: Some(60),
    };
    let session = Shape::Session { gap_us: 30, max_us: None };
    let around = |before_us, after_us| Shape::Sliding { before_us, after_us, at: None };
    for (shape, end_us, expected) in [
        (Shape::Grid { size_us: 60, slide_us: 60, offset_us: 0 }, 60, 6),
        (session.clone(), 50, 6),
        (session, 0, 1),
        // The reading that ends it is not in it, or it is, or there is none because it was cut.
        (state(false), 50, 5),
        (state(true), 50, 6),
        (state(true), 60, 6),
        // None of 9 before and none of 5 after must be there, though 14 is more than the distance.
        (around(9, 5), 14, 1),
        (around(25, 0), 25, 3),
        (around(25, 15), 40, 4),
    ] {
        assert_eq!(quality.expected(&shape, (0, end_us)), Some(expected), "{shape:?} {end_us}");
    }
    let unknown = QualitySpec { every_us: None, keeps: true, repeated: false };
    assert_eq!(unknown.expected(&state(true), (0, 50)), None);
}

/// The reading that was lost could have begun the window, or been in it: how near it must be for
/// that, the distance of readings says.
#[test]
fn what_was_lost_shortly_before_a_state_or_a_count_could_have_been_its_first_reading() {
    let state = || Shape::State {
        begin: v(Operator::GtEq, 8),
        until: None,
        abort: None,
        min_us: 0,
        max_us: None,
    };
    // An outage until 15 before the first reading, at 100.
    let log = vec![(80, 85, "gap")];
    for (shape, every_us, complete) in [
        (state(), Some(20), false),
        (state(), Some(10), true),
        (state(), None, true),
        (Shape::Count { size: 2, hop: 2 }, Some(20), false),
        (Shape::Count { size: 2, hop: 2 }, Some(10), true),
        (Shape::Sliding { before_us: 5, after_us: 0, at: None }, Some(20), true),
    ] {
        let spec = with_quality(spec(shape.clone(), 0, FOR_EVER), every_us, false);
        let mut operator = SpanOperator::new(spec).unwrap();
        let mut emit = Emit::default();
        operator.hear(&log_rows(&log));
        for (epoch, reading) in [(100, 9), (110, 9), (120, 1), (130, 1)].into_iter().enumerate() {
            let tick = Tick { epoch: epoch as u64 + 1, time_us: reading.0 };
            operator.epoch(&batch(&[(0, reading.0, reading.1)]), tick, &mut emit).unwrap();
        }
        let first = said(&emit.rows[0], 0).unwrap();
        assert_eq!(first.complete, complete, "{shape:?} {every_us:?}");
    }
}

/// What is final may have a next revision that was computed from stored readings, so it is not told
/// again, also where nothing of it has gone yet, and all is gone through anew.
#[test]
fn what_becomes_known_when_a_window_is_final_lets_it_not_come_again() {
    let state = Shape::State {
        begin: v(Operator::GtEq, 8),
        until: None,
        abort: None,
        min_us: 0,
        max_us: None,
    };
    let (mut some, readings) =
        (false, [(100, 9), (110, 9), (120, 1), (150, 9), (158, 9), (160, 1), (159, 9)]);
    for shape in [
        Shape::Count { size: 2, hop: 2 },
        Shape::Session { gap_us: 15, max_us: None },
        Shape::Session { gap_us: 15, max_us: Some(15) },
        state,
        Shape::Sliding { before_us: 5, after_us: 0, at: None },
    ] {
        let spec = spec(shape.clone(), 0, LatePolicy::Revise { keep_us: 20 });
        let mut operator = SpanOperator::new(with_quality(spec, None, false)).unwrap();
        let mut emit = Emit::default();
        for (i, (time_us, value)) in readings.into_iter().enumerate() {
            // Before the last but one it becomes known that much was lost.
            let log = if i == 5 { vec![(90, 159, "gap")] } else { Log::new() };
            operator.hear(&log_rows(&log));
            let tick = Tick { epoch: i as u64 + 1, time_us };
            operator.epoch(&batch(&[(0, time_us, value)]), tick, &mut emit).unwrap();
        }
        let revised: Vec<Row> =
            rows(&emit).into_iter().map(|(_, row)| row).filter(|row| row.revision > 0).collect();
        assert!(revised.iter().all(|row| row.end_us > 130), "{shape:?} {revised:?}");
        some |= !revised.is_empty();
    }
    assert!(some, "what is not final comes again");
}
