//! What windows say of how good they are, against plain loops over all readings with the times at
//! which they came in: shuffled, late, doubled, with outages that become known later, restarted,
//! on several workers.

use arrow::compute::concat_batches;
use proptest::sample::Index;

use super::calendar::calendar;
use super::*;
use crate::quality::Hears as _;
use crate::quality::testing::{Log, Told, is_complete, log_rows, logs, repeats, said};
use crate::spec::{Period, QualitySpec, ZoneOf};
use crate::zone::Zone;

const DISORDER_US: i64 = 30;

fn with_quality(spec: WindowSpec, keeps: bool) -> WindowSpec {
    WindowSpec { quality: Some(QualitySpec { every_us: Some(7), keeps, repeated: true }), ..spec }
}

fn tick_of(epoch: usize) -> Tick {
    Tick { epoch: epoch as u64 + 1, time_us: epoch as i64 * 40 }
}

/// A window as it was emitted last.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    end_us: i64,
    rows: i64,
    revision: i64,
    expected: i64,
    late: i64,
    duplicates: i64,
    complete: bool,
    /// In which it was emitted.
    epoch: usize,
}

type Windows = BTreeMap<(String, i64), Row>;

/// Takes rows; each revision says something new.
fn take(emit: &Emit, epoch: usize, windows: &mut Windows) {
    for rows in &emit.rows {
        let time = |i: usize| rows.column(i).as_primitive::<TimestampMicrosecondType>().clone();
        let number = |name: &str| rows[name].as_primitive::<Int64Type>().clone();
        for i in 0..rows.num_rows() {
            let key = (rows.column(0).as_string::<i32>().value(i).to_owned(), time(1).value(i));
            let said = said(rows, i).unwrap();
            let row = Row {
                end_us: time(2).value(i),
                rows: number("rows").value(i),
                revision: number("revision").value(i),
                expected: said.expected.unwrap(),
                late: said.late,
                duplicates: said.duplicates.unwrap(),
                complete: said.complete,
                epoch,
            };
            let before = windows.insert(key.clone(), row.clone());
            assert_eq!(row.revision, before.as_ref().map_or(0, |b| b.revision + 1), "{key:?}");
            let is_new = |b: &Row| (b.rows, b.complete) != (row.rows, row.complete);
            assert!(before.as_ref().is_none_or(is_new), "{key:?}: {before:?} {row:?}");
        }
    }
}

/// A reading with when it came in, and the clock of its device before that epoch.
struct Arrived {
    device: String,
    time_us: i64,
    in_us: i64,
    clock_us: i64,
}

/// What came again: device, time and epoch.
type Again = Vec<(String, i64, usize)>;

/// Compares what windows said last with all that has come.
fn check_all(
    windows: &Windows,
    (arrived, again): (&[Arrived], &Again),
    (keeps, log): (bool, &Log),
) {
    for ((device, start_us), row) in windows {
        let bounds_us = (*start_us, row.end_us);
        let inside = arrived
            .iter()
            .filter(|a| a.device == *device && a.time_us >= *start_us && a.time_us < row.end_us);
        let own: Vec<&Arrived> = inside.collect();
        let times: Vec<(i64, i64)> = own.iter().map(|a| (a.time_us, a.in_us)).collect();
        let is_late = |a: &&&Arrived| a.clock_us.saturating_sub(DISORDER_US) >= row.end_us;
        let is_again = |(of, at_us, epoch): &&(String, i64, usize)| {
            of == device && (*start_us..row.end_us).contains(at_us) && *epoch <= row.epoch
        };
        let expected = Row {
            rows: own.len() as i64,
            expected: (row.end_us - start_us) / 7,
            late: own.iter().filter(is_late).count() as i64,
            duplicates: again.iter().filter(is_again).count() as i64,
            complete: is_complete(keeps, log, bounds_us, &times),
            ..*row
        };
        assert_eq!(*row, expected, "{device} {start_us}: {times:?} {log:?}");
    }
}

/// Runs readings and logs by epoch, restarted before an epoch, and checks after each.
fn run_checked(
    spec: &WindowSpec,
    epochs: &[Vec<Reading>],
    (logs, repeats): (&[Option<Log>], &[Vec<Index>]),
    restart: Option<usize>,
) -> Vec<Vec<RecordBatch>> {
    let keeps = spec.quality.unwrap().keeps;
    let mut operator = WindowOperator::new(spec.clone()).unwrap();
    let (mut windows, mut arrived, mut log) = (Windows::new(), Vec::new(), Log::new());
    let (mut come, mut again) = (Vec::<Reading>::new(), Again::new());
    let (mut clocks, mut all) = (BTreeMap::<u8, i64>::new(), Vec::new());
    for (i, readings) in epochs.iter().enumerate() {
        let mut told = logs[i].clone();
        if let Some(told) = &told {
            log.clone_from(told);
        }
        if restart == Some(i) {
            let state = operator.save().unwrap();
            operator = WindowOperator::new(spec.clone()).unwrap();
            operator.load(&state).unwrap();
            assert_eq!(operator.save().unwrap(), state);
            // After a start all of it is told.
            told = Some(log.clone());
        }
        let before = clocks.clone();
        for (device, time_us, _) in readings {
            let clock_us = clocks.entry(*device).or_insert(i64::MIN);
            *clock_us = (*clock_us).max(*time_us);
            arrived.push(Arrived {
                device: format!("d{device}"),
                time_us: *time_us,
                in_us: tick_of(i).time_us,
                clock_us: before.get(device).copied().unwrap_or(i64::MIN),
            });
        }
        come.extend(readings);
        let mut repeated: Vec<Reading> = Vec::new();
        if !come.is_empty() {
            repeated.extend(repeats[i].iter().map(|at| *at.get(&come)));
        }
        again.extend(repeated.iter().map(|r| (format!("d{}", r.0), r.1, i)));
        // Of this device nothing ever stayed.
        repeated.push((99, i as i64, 1.0));
        let mut emit = Emit::default();
        operator.hear(&log_rows(&told.unwrap_or_default()));
        operator.repeat(&batch(&repeated));
        operator.epoch(&batch(readings), tick_of(i), &mut emit).unwrap();
        take(&emit, i, &mut windows);
        check_all(&windows, (&arrived, &again), (keeps, &log));
        all.push(emit.rows);
    }
    let mut emit = Emit::default();
    operator.end(&mut emit).unwrap();
    take(&emit, epochs.len(), &mut windows);
    check_all(&windows, (&arrived, &again), (keeps, &log));
    assert_eq!(windows.keys().any(|_| true), !arrived.is_empty());
    all.push(emit.rows);
    all
}

/// Windows that never lose their state, and close by the clocks of devices alone.
fn lasting(shape: (i64, i64), keeps: bool) -> WindowSpec {
    let late = LatePolicy::Revise { keep_us: 1_000_000_000_000 };
    let spec = match shape {
        (0, 0) => {
            let day = calendar(Period::Day, ZoneOf::All(Zone::UTC), 0);
            WindowSpec { late, disorder_us: DISORDER_US, ..day }
        }
        (size_us, slide_us) => spec(size_us, slide_us, DISORDER_US, late),
    };
    with_quality(WindowSpec { idle_close_us: 1_000_000_000_000, ..spec }, keeps)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn windows_say_what_a_plain_loop_says(
        epochs in readings(),
        logs in logs(1_300),
        repeats in repeats(),
        shape in prop::sample::select(vec![(100, 100), (60, 20), (60, 40), (7, 7), (0, 0)]),
        keeps in prop::bool::ANY,
        restart in prop::option::of(0usize..30),
    ) {
        let spec = lasting(shape, keeps);
        let restarted = run_checked(&spec, &epochs, (&logs, &repeats), restart);
        let straight = run_checked(&spec, &epochs, (&logs, &repeats), None);
        prop_assert_eq!(restarted, straight, "a restart must not show");
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// However shortly windows can be revised, and whoever falls silent: the same on any number of
    /// workers, and what is cut adds up.
    #[test]
    fn cuts_with_quality_add_up_on_any_number_of_workers(
        epochs in readings(),
        logs in logs(9_000),
        shape in prop::sample::select(vec![(100, 100), (60, 20), (3_000, 500)]),
        keep in prop::option::of(0i64..300),
    ) {
        let late = keep.map_or(LatePolicy::Table, |keep_us| LatePolicy::Revise { keep_us });
        let spec = with_quality(spec(shape.0, shape.1, 20, late), true);
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
        let new = || Told(WindowOperator::new(spec.clone()).unwrap(), logs.clone(), again.clone());
        let make = || Box::new(new()) as Box<dyn KeyedOperator>;
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
    }
}

/// One device with a reading every 10 µs, and outages.
fn told_of(keeps: bool, late: LatePolicy, steps: &[(i64, &[i64], Log)]) -> Vec<(i64, i64, bool)> {
    let mut operator = WindowOperator::new(with_quality(spec(50, 50, 0, late), keeps)).unwrap();
    let mut told = Vec::new();
    for (epoch, (time_us, readings, log)) in steps.iter().enumerate() {
        let rows: Vec<Reading> = readings.iter().map(|r| (1, OFFSET + r, 1.0)).collect();
        let mut emit = Emit::default();
        operator.hear(&log_rows(log));
        let tick = Tick { epoch: epoch as u64 + 1, time_us: OFFSET + time_us };
        operator.epoch(&batch(&rows), tick, &mut emit).unwrap();
        for rows in &emit.rows {
            let starts = rows.column(1).as_primitive::<TimestampMicrosecondType>();
            let revisions = rows["revision"].as_primitive::<Int64Type>();
            for i in 0..rows.num_rows() {
                let start_us = starts.value(i) - OFFSET;
                told.push((start_us, revisions.value(i), said(rows, i).unwrap().complete));
            }
        }
    }
    told
}

#[test]
fn a_session_that_went_on_lost_nothing_and_a_gap_did() {
    let late = LatePolicy::Revise { keep_us: 1_000 };
    let at = |us: i64| OFFSET + us;
    let away = || vec![(at(70), i64::MAX, "away")];
    let lost = |kind: &'static str| {
        let steps: &[(i64, &[i64], Log)] = &[
            (30, &[10, 20, 30], vec![]),
            (60, &[40, 50, 60], vec![]),
            (80, &[], away()),
            (1_070, &[], away()),
            (1_080, &[], vec![(at(70), at(75), kind)]),
        ];
        told_of(true, late, steps)
    };
    // The first window had closed when it went away, the second closed by silence meanwhile.
    let told = vec![(0, 0, true), (50, 0, false), (50, 1, true)];
    assert_eq!(lost("away"), told);
    assert_eq!(lost("gap"), told[..2]);
}

#[test]
fn a_gap_that_becomes_known_too_late_changes_nothing_any_more() {
    let gap = || vec![(OFFSET + 20, OFFSET + 25, "gap")];
    for (late, revised) in [
        (LatePolicy::Revise { keep_us: 1_000 }, true),
        (LatePolicy::Revise { keep_us: 10 }, false),
        (LatePolicy::Table, false),
    ] {
        let steps: &[(i64, &[i64], Log)] =
            &[(30, &[10, 30], vec![]), (110, &[110], vec![]), (120, &[], gap())];
        let mut expected = vec![(0, 0, true)];
        expected.extend(revised.then_some((0, 1, false)));
        assert_eq!(told_of(true, late, steps), expected);
    }
}

/// A device that sends later, or whose clock is wrong: what counts is when its readings came in.
#[test]
fn each_device_has_its_own_clock_in_an_outage() {
    let late = LatePolicy::Table;
    let gap = || vec![(OFFSET + 1_010, OFFSET + 1_015, "gap")];
    for (behind_us, complete) in [(0, true), (1_000, false), (1_100, true), (-1_000, true)] {
        let readings = [0i64, 40, 50].map(|us| (us + behind_us, vec![us]));
        let steps: Vec<(i64, &[i64], Log)> =
            readings.iter().map(|(at, readings)| (*at, &readings[..], gap())).collect();
        assert_eq!(told_of(true, late, &steps), [(0, 0, complete)], "{behind_us} behind");
    }
}

/// Windows of 50 µs; what they say of duplicates, with their starts and revisions.
fn duplicates(emit: &Emit) -> Vec<(i64, i64, Option<i64>)> {
    let mut all = Vec::new();
    for rows in &emit.rows {
        let starts = rows.column(1).as_primitive::<TimestampMicrosecondType>();
        let revisions = rows["revision"].as_primitive::<Int64Type>();
        let of = |i: usize| {
            (starts.value(i) - OFFSET, revisions.value(i), said(rows, i).unwrap().duplicates)
        };
        all.extend((0..rows.num_rows()).map(of));
    }
    all
}

#[test]
fn a_repetition_counts_where_readings_are_kept_and_moves_nothing() {
    let spec = with_quality(spec(50, 50, 0, LatePolicy::Revise { keep_us: 100 }), true);
    let mut operator = WindowOperator::new(spec.clone()).unwrap();
    let mut epochs = 0;
    let mut run = |operator: &mut WindowOperator, readings: &[i64], again: &[(u8, i64)]| {
        epochs += 1;
        let rows: Vec<Reading> = readings.iter().map(|us| (1, OFFSET + us, 1.0)).collect();
        let again: Vec<Reading> = again.iter().map(|(of, us)| (*of, OFFSET + us, 1.0)).collect();
        let mut emit = Emit::default();
        operator.repeat(&batch(&again));
        let tick = Tick { epoch: epochs, time_us: OFFSET + epochs as i64 };
        operator.epoch(&batch(&rows), tick, &mut emit).unwrap();
        assert!(emit.rejects.is_empty() && emit.late.is_empty());
        (duplicates(&emit), operator.cut(false).groups().iter().count())
    };
    // The first copy may be of the same epoch; of a window without readings nobody can say it.
    assert_eq!(run(&mut operator, &[10, 30], &[(1, 10), (1, 10), (1, 70), (2, 10)]), (vec![], 1));
    assert_eq!(operator.save().unwrap().num_rows(), 1, "no key is made");
    // They are not what is newest of their device, so nothing closes.
    assert_eq!(run(&mut operator, &[], &[(1, 120), (2, 10)]), (vec![], 0), "nothing is changed");
    assert_eq!(run(&mut operator, &[60], &[]), (vec![(0, 0, Some(2))], 1));
    // A window that was told says it when it comes again.
    assert_eq!(run(&mut operator, &[], &[(1, 30)]), (vec![], 1), "it is to be saved");
    assert_eq!(run(&mut operator, &[40], &[]), (vec![(0, 1, Some(3))], 1));
    // What cannot be revised any more counts nothing.
    assert_eq!(run(&mut operator, &[160], &[]), (vec![(50, 0, Some(0))], 1));
    assert_eq!(run(&mut operator, &[], &[(1, 30)]), (vec![], 0));
    assert_eq!(run(&mut operator, &[], &[(1, 60)]), (vec![], 1));
    let unknown = QualitySpec { repeated: false, ..spec.quality.unwrap() };
    let spec = WindowSpec { quality: Some(unknown), ..spec };
    let mut operator = WindowOperator::new(spec).unwrap();
    run(&mut operator, &[10], &[]);
    assert_eq!(run(&mut operator, &[60], &[]).0, [(0, 0, None)]);
}
