//! Spans against a brute-force oracle: random readings with disorder, duplicates, late ones and
//! silence, cut into random epochs, restarted in the middle, dealt out to several workers.

#![allow(clippy::unwrap_used)]

mod early;
mod oracle;
mod owed;
mod quality;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimestampMicrosecondType};
use datafusion_expr::{AggregateUDF, Operator};
use datafusion_functions_aggregate::count::count_udaf;
use datafusion_functions_aggregate::min_max::{max_udaf, min_udaf};
use datafusion_functions_aggregate::sum::sum_udaf;
use datafusion_physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use datafusion_physical_expr::expressions::{binary, col, lit};
use proptest::prelude::*;

use super::SpanOperator;
use crate::batch::Tick;
use crate::operator::{Emit, KeyedOperator};
use crate::snapshot::{GroupSet, check};
use crate::spec::{Clock, Expr, KeyLimits, LatePolicy, Shape, WindowSpec, time_type};

/// Device, time, value.
type Reading = (u8, i64, i64);

const FOR_EVER: LatePolicy = LatePolicy::Revise { keep_us: 1_000_000 };

fn input() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("time", time_type(), false),
        Field::new("v", DataType::Int64, true),
    ]))
}

fn v(operator: Operator, value: i64) -> Expr {
    binary(col("v", &input()).unwrap(), operator, lit(value), &input()).unwrap()
}

fn either(a: Expr, b: Expr) -> Expr {
    binary(a, Operator::Or, b, &input()).unwrap()
}

/// See [`oracle::begins`] and the others for what the expressions say.
fn shapes() -> Vec<Shape> {
    let state = |until: bool, abort: bool, min_us, max_us| Shape::State {
        begin: v(Operator::GtEq, 8),
        until: until.then(|| either(v(Operator::LtEq, 1), v(Operator::Eq, 9))),
        abort: abort.then(|| v(Operator::Eq, 5)),
        min_us,
        max_us,
    };
    let sliding = |before_us, after_us, some: bool| Shape::Sliding {
        before_us,
        after_us,
        at: some.then(|| v(Operator::GtEq, 7)),
    };
    vec![
        Shape::Session { gap_us: 30, max_us: None },
        Shape::Session { gap_us: 30, max_us: Some(100) },
        Shape::Session { gap_us: 10, max_us: Some(10) },
        Shape::Count { size: 4, hop: 4 },
        Shape::Count { size: 5, hop: 2 },
        Shape::Count { size: 6, hop: 4 },
        Shape::Count { size: 1, hop: 1 },
        state(false, false, 0, None),
        state(false, true, 5, Some(60)),
        state(true, false, 0, None),
        state(true, true, 20, Some(90)),
        state(true, false, 0, Some(40)),
        sliding(50, 0, false),
        sliding(200, 30, true),
        sliding(0, 0, false),
        sliding(3, 80, false),
    ]
}

fn spec(shape: Shape, disorder_us: i64, late: LatePolicy) -> WindowSpec {
    let schema = input();
    let aggregate = |udf: Arc<AggregateUDF>, name: &str| -> Arc<AggregateFunctionExpr> {
        let builder = AggregateExprBuilder::new(udf, vec![col("v", &schema).unwrap()]);
        Arc::new(builder.schema(Arc::clone(&schema)).alias(name).build().unwrap())
    };
    let aggregates = vec![
        aggregate(count_udaf(), "n"),
        aggregate(sum_udaf(), "sum"),
        aggregate(min_udaf(), "min"),
        aggregate(max_udaf(), "max"),
    ];
    let mut spec = WindowSpec {
        pipeline: "p".into(),
        name: "w".into(),
        input: Arc::clone(&schema),
        keys: vec![0],
        time: 1,
        shape,
        filters: aggregates.iter().map(|_| None).collect(),
        aggregates,
        select: Vec::new(),
        disorder_us,
        idle_close_us: 1_000_000_000,
        clock: Clock::Device,
        late,
        puts_off: false,
        early_us: None,
        quality: None,
        limits: KeyLimits::default(),
    };
    let aggregated = spec.aggregated_schema();
    let select = ["n", "sum", "min", "max"].iter().enumerate();
    spec.select = select
        .map(|(i, name)| ((*name).to_owned(), col(&format!("agg{i}"), &aggregated).unwrap()))
        .collect();
    spec
}

fn batch(readings: &[Reading]) -> RecordBatch {
    let devices: ArrayRef =
        Arc::new(StringArray::from_iter_values(readings.iter().map(|r| format!("d{}", r.0))));
    let times = TimestampMicrosecondArray::from_iter_values(readings.iter().map(|r| r.1));
    let values: ArrayRef = Arc::new(Int64Array::from_iter_values(readings.iter().map(|r| r.2)));
    let columns = vec![devices, Arc::new(times.with_timezone("UTC")) as ArrayRef, values];
    RecordBatch::try_new(input(), columns).unwrap()
}

/// A window row: start, end, rows, revision, then what was selected.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    start_us: i64,
    end_us: i64,
    rows: i64,
    revision: i64,
    selected: Vec<Option<i64>>,
}

/// By device and id.
type Windows = BTreeMap<(String, i64), Row>;

fn rows(emit: &Emit) -> Vec<((String, i64), Row)> {
    let mut out = Vec::new();
    for batch in &emit.rows {
        let int = |name: &str, row: usize| -> Option<i64> {
            let column = batch.column_by_name(name).unwrap().as_primitive::<Int64Type>();
            column.is_valid(row).then(|| column.value(row))
        };
        let time = |i: usize, row: usize| {
            batch.column(i).as_primitive::<TimestampMicrosecondType>().value(row)
        };
        let numbered = batch.column_by_name("window_number").is_some();
        for i in 0..batch.num_rows() {
            let device = batch.column(0).as_string::<i32>().value(i).to_owned();
            let id = if numbered { int("window_number", i).unwrap() } else { time(1, i) };
            let row = Row {
                start_us: time(1, i),
                end_us: time(2, i),
                rows: int("rows", i).unwrap(),
                revision: int("revision", i).unwrap(),
                selected: ["n", "sum", "min", "max"].map(|name| int(name, i)).to_vec(),
            };
            out.push(((device, id), row));
        }
    }
    out
}

fn collect(emits: &[Emit]) -> Windows {
    let mut latest = Windows::new();
    for (key, row) in emits.iter().flat_map(rows) {
        let before = latest.get(&key);
        let expected = before.map_or(0, |r| r.revision + 1);
        assert_eq!(row.revision, expected, "revisions count up from 0: {key:?}");
        if row.rows == 0 {
            assert!(before.is_some_and(|r| r.rows > 0), "only what is there is withdrawn: {key:?}");
            assert!(row.selected.iter().all(Option::is_none));
        }
        latest.insert(key, row);
    }
    latest.retain(|_, row| row.rows > 0);
    latest
}

/// Compares with the oracle over these readings, in order of arrival.
fn check(windows: &Windows, shape: &Shape, readings: &[Reading]) {
    let mut expected = BTreeMap::new();
    for device in 0..4 {
        let own = readings.iter().filter(|r| r.0 == device);
        let mut own: Vec<oracle::Reading> = own.map(|r| (r.1, r.2)).collect();
        own.sort_by_key(|r| r.0);
        for window in oracle::windows(shape, &own) {
            let key = (format!("d{device}"), window.id);
            if !window.optional || windows.contains_key(&key) {
                expected.insert(key, window);
            }
        }
    }
    let ids = |keys: Vec<&(String, i64)>| format!("{keys:?}");
    assert_eq!(
        ids(windows.keys().collect()),
        ids(expected.keys().collect()),
        "{shape:?} {readings:?}"
    );
    for (key, window) in &expected {
        let row = &windows[key];
        let values: Vec<i64> = window.readings.iter().map(|r| r.1).collect();
        assert_eq!(row.start_us, window.start_us, "{key:?}");
        assert!(
            [window.end_us.0, window.end_us.1].contains(&row.end_us),
            "{key:?} {row:?} {window:?}"
        );
        let selected = [
            Some(values.len() as i64),
            Some(values.iter().sum()),
            values.iter().min().copied(),
            values.iter().max().copied(),
        ];
        assert_eq!((row.rows, &row.selected[..]), (values.len() as i64, &selected[..]), "{key:?}");
    }
}

fn tick(epoch: usize) -> Tick {
    Tick { epoch: epoch as u64 + 1, time_us: epoch as i64 * 40 }
}

/// Runs the readings cut into epochs; `restart` saves and loads before that epoch.
fn run(spec: &WindowSpec, epochs: &[Vec<Reading>], restart: Option<usize>) -> Vec<Emit> {
    run_at(tick, spec, epochs, restart)
}

/// The same, with the ticks of epochs as this says.
fn run_at(
    tick: fn(usize) -> Tick,
    spec: &WindowSpec,
    epochs: &[Vec<Reading>],
    restart: Option<usize>,
) -> Vec<Emit> {
    let mut operator = SpanOperator::new(spec.clone()).unwrap();
    let mut emits = Vec::new();
    for (i, readings) in epochs.iter().enumerate() {
        if restart == Some(i) {
            let state = operator.save().unwrap();
            operator = SpanOperator::new(spec.clone()).unwrap();
            operator.load(&state).unwrap();
            assert_eq!(operator.save().unwrap(), state);
        }
        let mut emit = Emit::default();
        operator.epoch(&batch(readings), tick(i), &mut emit).unwrap();
        emits.push(emit);
    }
    let mut emit = Emit::default();
    operator.end(&mut emit).unwrap();
    emits.push(emit);
    emits
}

/// A reading that is too late, and the time before which all was final when it came.
type Late = (Reading, i64);

/// Readings that are not too late, if no device is ever silent, and those that are.
fn in_time(spec: &WindowSpec, epochs: &[Vec<Reading>]) -> (Vec<Reading>, Vec<Late>) {
    let keep_us = match spec.late {
        LatePolicy::Revise { keep_us } => Some(keep_us),
        LatePolicy::Table => None,
    };
    let mut clocks = BTreeMap::new();
    let (mut taken, mut late): (Vec<Reading>, Vec<Late>) = (Vec::new(), Vec::new());
    for epoch in epochs {
        let before = clocks.clone();
        for reading in epoch {
            let (device, time_us, value) = *reading;
            let clock = clocks.entry(device).or_insert(time_us);
            *clock = time_us.max(*clock);
            let final_us = |clock: &i64| clock - spec.disorder_us - keep_us.unwrap_or(0);
            let final_us = before.get(&device).map(final_us).filter(|us| time_us < *us);
            let is_taken = final_us.is_none_or(|final_us| {
                let own = taken.iter().filter(|r| r.0 == device && r.1 < final_us);
                let mut older: Vec<oracle::Reading> = own.map(|r| (r.1, r.2)).collect();
                older.sort_by_key(|r| r.0);
                let own = late.iter().filter(|l| l.0.0 == device);
                let times: Vec<i64> = own.map(|l| l.0.1).collect();
                keep_us.is_some()
                    && oracle::takes(&spec.shape, &older, &times, final_us, (time_us, value))
            });
            match final_us.filter(|_| !is_taken) {
                Some(final_us) => late.push((*reading, final_us)),
                None => taken.push(*reading),
            }
        }
    }
    (taken, late)
}

/// Windows around readings of which some came when others were final, by a plain loop: those that
/// were not over yet have them.
fn check_around(windows: &Windows, shape: &Shape, taken: &[Reading], late: &[Late]) {
    let Shape::Sliding { before_us, after_us, at } = shape else { unreachable!("its callers") };
    let all = || taken.iter().map(|r| (*r, i64::MIN)).chain(late.iter().copied());
    let mut expected = BTreeMap::new();
    for ((device, time_us, value), final_us) in all() {
        let (start_us, end_us) = (time_us - before_us, time_us + after_us);
        if end_us < final_us || (at.is_some() && !oracle::around(value)) {
            continue;
        }
        let inside = all().filter(|((other, time_us, _), final_us)| {
            *other == device && start_us <= *time_us && *time_us <= end_us && *final_us <= end_us
        });
        let values: Vec<i64> = inside.map(|((_, _, value), _)| value).collect();
        let count = values.len() as i64;
        let (least, most) = (values.iter().min().copied(), values.iter().max().copied());
        let selected = vec![Some(count), Some(values.iter().sum()), least, most];
        expected.insert((format!("d{device}"), start_us), (end_us, count, selected));
    }
    let found: BTreeMap<_, _> = windows
        .iter()
        .map(|(key, row)| (key.clone(), (row.end_us, row.rows, row.selected.clone())))
        .collect();
    assert_eq!(found, expected, "{shape:?} {taken:?} {late:?}");
}

/// Some are dense, with many equal times, and some are sparse.
fn readings() -> impl Strategy<Value = Vec<Vec<Reading>>> {
    let reading = (0u8..4, -60i64..60, 0i64..10);
    let epoch = prop::collection::vec(reading, 0..10);
    let epochs = prop::collection::vec(epoch, 1..30);
    (epochs, prop::sample::select(vec![3i64, 20, 70])).prop_map(|(mut epochs, step)| {
        // Time moves on, with disorder, late ones, and a duplicate in every third epoch. The clock
        // of one device is far ahead of the others.
        for (i, epoch) in epochs.iter_mut().enumerate() {
            for reading in epoch.iter_mut() {
                reading.1 += i as i64 * step + if reading.0 == 3 { 7_200 } else { 0 };
            }
            if i % 3 == 0 && !epoch.is_empty() {
                let again = epoch[0];
                epoch.push(again);
            }
        }
        epochs
    })
}

fn shape() -> impl Strategy<Value = Shape> {
    prop::sample::select(shapes())
}

/// Text in which every bit shows.
fn text(emits: &[Emit], device: Option<&str>) -> Vec<Vec<String>> {
    let of = |emit: &Emit| {
        let all = rows(emit).into_iter();
        all.filter(|((d, _), _)| device.is_none_or(|device| d == device))
            .map(|row| format!("{row:?}"))
            .collect()
    };
    emits.iter().map(of).collect()
}

fn late_rows(emits: &[Emit]) -> usize {
    emits.iter().flat_map(|e| &e.late).map(RecordBatch::num_rows).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn revised_spans_equal_the_oracle(
        epochs in readings(),
        shape in shape(),
        disorder in 0i64..80,
        restart in prop::option::of(0usize..30),
    ) {
        let spec = spec(shape, disorder, FOR_EVER);
        let emits = run(&spec, &epochs, restart);
        prop_assert_eq!(late_rows(&emits), 0);
        check(&collect(&emits), &spec.shape, &epochs.concat());
        let straight = run(&spec, &epochs, None);
        prop_assert_eq!(text(&emits, None), text(&straight, None), "a restart does not show");
    }

    #[test]
    fn what_is_too_late_is_counted_and_changes_nothing_that_is_final(
        epochs in readings(),
        shape in shape(),
        disorder in 0i64..40,
        keep in 0i64..150,
        restart in prop::option::of(0usize..30),
    ) {
        let spec = spec(shape, disorder, LatePolicy::Revise { keep_us: keep });
        let emits = run(&spec, &epochs, restart);
        let (taken, late) = in_time(&spec, &epochs);
        prop_assert_eq!(late_rows(&emits), late.len());
        match spec.shape {
            Shape::Sliding { .. } => check_around(&collect(&emits), &spec.shape, &taken, &late),
            _ => check(&collect(&emits), &spec.shape, &taken),
        }
        let straight = run(&spec, &epochs, None);
        prop_assert_eq!(text(&emits, None), text(&straight, None), "a restart does not show");
    }

    #[test]
    fn without_revisions_every_window_comes_once(
        epochs in readings(),
        shape in shape(),
        disorder in 0i64..80,
        restart in prop::option::of(0usize..30),
    ) {
        let spec = spec(shape, disorder, LatePolicy::Table);
        let emits = run(&spec, &epochs, restart);
        let (taken, late) = in_time(&spec, &epochs);
        prop_assert_eq!(late_rows(&emits), late.len());
        let windows = collect(&emits);
        prop_assert!(windows.values().all(|row| row.revision == 0));
        check(&windows, &spec.shape, &taken);
    }

    #[test]
    fn other_keys_do_not_matter(epochs in readings(), shape in shape(), disorder in 0i64..80) {
        let spec = spec(shape, disorder, LatePolicy::Revise { keep_us: 100 });
        let all = run(&spec, &epochs, None);
        for device in 0..4u8 {
            let own = |e: &Vec<Reading>| e.iter().filter(|r| r.0 == device).copied().collect();
            let own: Vec<Vec<Reading>> = epochs.iter().map(own).collect();
            let alone = run(&spec, &own, None);
            let name = format!("d{device}");
            prop_assert_eq!(text(&all, Some(&name)), text(&alone, None));
        }
    }

    /// In any order within the bound the same rows come, and none twice.
    #[test]
    fn disorder_within_the_bound_does_not_show(
        readings in prop::collection::vec((0u8..4, 0i64..12, 0i64..10, 0i64..50), 1..120),
        shape in shape(),
    ) {
        let mut time_us = 0;
        let mut sent = Vec::new();
        for (device, step, value, delay) in readings {
            // Equal times are in order of arrival, which is what is shuffled here.
            time_us += step + 1;
            sent.push((time_us + delay, (device, time_us, value)));
        }
        let epochs = |sent: &[(i64, Reading)]| -> Vec<Vec<Reading>> {
            sent.chunks(7).map(|c| c.iter().map(|s| s.1).collect()).collect()
        };
        let spec = spec(shape, 50, LatePolicy::Table);
        let in_order = collect(&run(&spec, &epochs(&sent), None));
        sent.sort_by_key(|s| s.0);
        let emits = run(&spec, &epochs(&sent), None);
        prop_assert_eq!(late_rows(&emits), 0);
        prop_assert_eq!(collect(&emits), in_order);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Input that ends and goes on, as a folder that grows: at each end there is what there would
    /// be if all had come at once.
    #[test]
    fn an_end_that_was_none_leaves_nothing_behind(
        epochs in readings(),
        shape in shape(),
        disorder in 0i64..80,
        every in 1usize..6,
        reloads in any::<bool>(),
    ) {
        let spec = spec(shape, disorder, FOR_EVER);
        let mut operator = SpanOperator::new(spec.clone()).unwrap();
        let (mut emits, mut readings) = (Vec::new(), Vec::new());
        for (i, epoch) in epochs.iter().enumerate() {
            let mut emit = Emit::default();
            operator.epoch(&batch(epoch), tick(i), &mut emit).unwrap();
            emits.push(emit);
            readings.extend_from_slice(epoch);
            if i % every > 0 && i + 1 < epochs.len() {
                continue;
            }
            let mut emit = Emit::default();
            operator.end(&mut emit).unwrap();
            emits.push(emit);
            check(&collect(&emits), &spec.shape, &readings);
            if reloads {
                let state = operator.save().unwrap();
                operator = SpanOperator::new(spec.clone()).unwrap();
                operator.load(&state).unwrap();
            }
        }
        prop_assert_eq!(late_rows(&emits), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Many devices, and ticks far enough apart that some of them fall silent.
    #[test]
    fn cuts_add_up_on_any_number_of_workers(
        epochs in readings(),
        shape in shape(),
        keep in prop::option::of(0i64..300),
    ) {
        let late = keep.map_or(LatePolicy::Table, |keep_us| LatePolicy::Revise { keep_us });
        let spec = WindowSpec { idle_close_us: 500, puts_off: true, ..spec(shape, 20, late) };
        let spread = |i: usize, r: &Reading| (r.0 + 4 * (i % 9) as u8, r.1, r.2);
        let epochs: Vec<(i64, RecordBatch)> = epochs
            .iter()
            .enumerate()
            .map(|(i, readings)| {
                let readings: Vec<Reading> = readings.iter().map(|r| spread(i, r)).collect();
                (i as i64 * 300, batch(&readings))
            })
            .collect();
        let new = |spec| Box::new(SpanOperator::new(spec).unwrap()) as Box<dyn KeyedOperator>;
        let make = || new(spec.clone());
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
        // With one clock all keys are on one worker, and come in turns all the same.
        let make = || new(WindowSpec { clock: Clock::Fleet, ..spec.clone() });
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check_turns();
    }

    /// Silence settles early what later turns out to go on; the end is the same.
    #[test]
    fn silent_devices_come_back(
        epochs in readings(),
        shape in shape(),
        idle in 0i64..200,
        restart in prop::option::of(0usize..30),
    ) {
        let spec = WindowSpec { idle_close_us: idle, ..spec(shape, 10, FOR_EVER) };
        let emits = run(&spec, &epochs, restart);
        prop_assert_eq!(late_rows(&emits), 0);
        check(&collect(&emits), &spec.shape, &epochs.concat());
        let straight = run(&spec, &epochs, None);
        prop_assert_eq!(text(&emits, None), text(&straight, None), "a restart does not show");
    }

    #[test]
    fn a_fleet_with_one_clock_has_the_same_windows(
        epochs in readings(), shape in shape(), restart in prop::option::of(0usize..30),
    ) {
        let spec = WindowSpec { clock: Clock::Fleet, ..spec(shape, 20, FOR_EVER) };
        let emits = run(&spec, &epochs, restart);
        prop_assert_eq!(late_rows(&emits), 0);
        check(&collect(&emits), &spec.shape, &epochs.concat());
        let straight = run(&spec, &epochs, None);
        prop_assert_eq!(text(&emits, None), text(&straight, None), "a restart does not show");
    }
}

/// A state that is open when the input ends is told as it is; one that more input aborts was none.
#[test]
fn a_state_that_an_end_told_and_that_is_aborted_is_withdrawn() {
    let shape = Shape::State {
        begin: v(Operator::GtEq, 8),
        until: Some(v(Operator::LtEq, 1)),
        abort: Some(v(Operator::Eq, 5)),
        min_us: 0,
        max_us: None,
    };
    for (early_us, reloaded) in [(None, false), (None, true), (Some(1_000_000), false)] {
        let spec = WindowSpec { early_us, ..spec(shape.clone(), 0, FOR_EVER) };
        let mut operator = SpanOperator::new(spec.clone()).unwrap();
        let mut emits = [(); 3].map(|()| Emit::default());
        operator.epoch(&batch(&[(1, 10, 8), (1, 20, 8)]), tick(0), &mut emits[0]).unwrap();
        operator.end(&mut emits[1]).unwrap();
        assert_eq!(collect(&emits).len(), 1);
        if reloaded {
            let state = operator.save().unwrap();
            operator = SpanOperator::new(spec).unwrap();
            operator.load(&state).unwrap();
        }
        operator.epoch(&batch(&[(1, 30, 5), (1, 99, 3)]), tick(1), &mut emits[2]).unwrap();
        assert!(collect(&emits).is_empty(), "{early_us:?} {reloaded}");
        let rest = rows(&emits[2]);
        assert_eq!((rest.len(), rest[0].1.revision, rest[0].1.rows), (1, 1, 0));
    }
}

#[test]
fn a_fleet_with_one_clock_is_cut_as_a_whole() {
    let spec = spec(Shape::Session { gap_us: 10, max_us: None }, 0, FOR_EVER);
    let mut operator = SpanOperator::new(WindowSpec { clock: Clock::Fleet, ..spec }).unwrap();
    let mut emit = Emit::default();
    operator.epoch(&batch(&[(1, 10, 1), (2, 20, 2)]), tick(1), &mut emit).unwrap();
    assert_eq!(*operator.cut(false).groups(), GroupSet::ALL);
    assert!(operator.cut(false).groups().is_empty());
}

/// Of a key that has fallen silent only what is open and incomplete stays.
#[test]
fn what_is_final_of_a_silent_key_goes() {
    for (shape, clock) in
        shapes().into_iter().flat_map(|s| [(s.clone(), Clock::Device), (s, Clock::Fleet)])
    {
        let late = LatePolicy::Revise { keep_us: 10_000 };
        let spec = WindowSpec { idle_close_us: 100, clock, ..spec(shape, 20, late) };
        let mut operator = SpanOperator::new(spec.clone()).unwrap();
        let mut emit = Emit::default();
        for epoch in 0..60 {
            let tick = Tick { epoch: epoch as u64 + 1, time_us: epoch * 10 };
            let readings = [(0, epoch * 10, epoch * 7 % 10), (0, epoch * 10 + 3, epoch * 3 % 10)];
            operator.epoch(&batch(&readings), tick, &mut emit).unwrap();
        }
        let held = operator.keys[0].entries.len();
        for epoch in 60..70 {
            let tick = Tick { epoch: epoch as u64 + 1, time_us: epoch * 100_000 };
            operator.epoch(&batch(&[]), tick, &mut emit).unwrap();
        }
        let key = &operator.keys[0];
        let left = (key.entries.len(), key.records.len(), key.panes.len());
        assert!(left.0 <= 6 && left.1 <= 2 && left.2 == 0, "{spec:?}: {left:?} of {held}");
    }
}
