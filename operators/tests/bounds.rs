//! The state of every operator as an allocator counts it, beside the bound that is known before:
//! a key that is used to the full takes no more, and not much less.
//!
//! Keys are as many as leave a hash table at its worst: one more than fit into a smaller one. What
//! an operator has before its first row does not count, nor what an epoch needs while it runs.
#![allow(clippy::unwrap_used)]

#[path = "bounds/aggregates.rs"]
mod aggregates;
#[path = "bounds/joins.rs"]
mod joins;
#[path = "bounds/long.rs"]
mod long;

use std::alloc::System;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion_expr::{AggregateUDF, Operator as Compare};
use datafusion_functions_aggregate::average::avg_udaf;
use datafusion_functions_aggregate::count::count_udaf;
use datafusion_functions_aggregate::min_max::{max_udaf, min_udaf};
use datafusion_functions_aggregate::stddev::stddev_pop_udaf;
use datafusion_physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use datafusion_physical_expr::expressions::{binary, col, lit};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tidegate_operators::absence::AbsenceOperator;
use tidegate_operators::aggregate::time_series;
use tidegate_operators::alert::AlertRule;
use tidegate_operators::bound::{Bounded, Load, StateBound};
use tidegate_operators::dedup::Dedup;
use tidegate_operators::detect::Detector;
use tidegate_operators::enrich::Enrich;
use tidegate_operators::latest::LatestOperator;
use tidegate_operators::outage::outages_schema;
use tidegate_operators::registry::Versions;
use tidegate_operators::sequence::SequenceOperator;
use tidegate_operators::skew::{ClockSkew, clocks_schema};
use tidegate_operators::span::SpanOperator;
use tidegate_operators::spec::{
    AbsenceSpec, AlertSpec, Cadence, CalendarSpec, Clock, ColumnSpec, ColumnType, DedupSpec,
    DetectMethod, DetectOrder, DetectSpec, EnrichSpec, Expr, KeyLimits, LatePolicy, LatestSpec,
    Missing, OnInvalid, Origin, Pattern, Period, QualitySpec, RegistrySpec, ReviseSpec, Rules,
    SequenceSpec, Shape, Shift, SkewSpec, WindowSpec, ZoneOf, time_type,
};
use tidegate_operators::window::WindowOperator;
use tidegate_operators::zone::Zone;
use tidegate_operators::{Emit, JoinOperator, KeyedOperator, Tick};
use xxhash_rust::xxh3::xxh3_64;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const SECOND: i64 = 1_000_000;
const START_US: i64 = 1_767_225_600_000_000;
const LOAD: Load = Load { every_us: Some(SECOND), burst_us: 0, text_bytes: 32 };

const QUALITY: QualitySpec = QualitySpec { every_us: Some(SECOND), keeps: true, repeated: true };

/// How much larger than what is used a bound may be.
const SLACK: f64 = 1.5;

fn live_bytes() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// A key of a table that has just grown for it, as a text of 32 bytes.
fn keys(exponent: u32) -> usize {
    (1 << exponent) * 7 / 8 + 1
}

fn name(key: usize) -> String {
    format!("device-with-some-name-{key:010}")
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("time", time_type(), false),
        Field::new("x", DataType::Float64, true),
        Field::new("revision", DataType::Int64, false),
    ]))
}

/// Rows of a key, a time and a value each.
fn batch(rows: &[(usize, i64, f64)]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| name(r.0)))),
        times(rows.iter().map(|r| r.1)),
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|r| r.2))),
        Arc::new(Int64Array::from_value(0, rows.len())),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

fn times(all: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(all).with_timezone("UTC"))
}

/// An operator at work, and what it held at most between two epochs.
struct Measured<O> {
    operator: O,
    empty_bytes: usize,
    most_bytes: usize,
    epoch: u64,
}

impl<O> Measured<O> {
    fn new(make: impl FnOnce() -> O) -> Self {
        let operator = make();
        Self { operator, empty_bytes: live_bytes(), most_bytes: 0, epoch: 0 }
    }

    fn run(&mut self, now_us: i64, epoch: impl FnOnce(&mut O, Tick, &mut Emit)) {
        self.epoch += 1;
        let mut emit = Emit::default();
        epoch(&mut self.operator, Tick { epoch: self.epoch, time_us: now_us }, &mut emit);
        drop(emit);
        let bytes = live_bytes().saturating_sub(self.empty_bytes);
        self.most_bytes = self.most_bytes.max(bytes);
    }

    /// One row of each key every second, an eighth of the keys at a time, never the same ones.
    fn steady_by(
        &mut self,
        keys: usize,
        seconds: i64,
        value: impl Fn(i64) -> f64,
        epoch: impl Fn(&mut O, &RecordBatch, Tick, &mut Emit),
    ) {
        for second in 0..seconds {
            for part in 0..8u64 {
                let now_us = START_US + second * SECOND + part as i64 * SECOND / 8;
                let is_in = |key: &usize| xxh3_64(format!("{key} {second}").as_bytes()) % 8 == part;
                let rows = (0..keys).filter(is_in);
                let rows = rows.map(|key| (key, START_US + second * SECOND, value(second)));
                let rows = batch(&rows.collect::<Vec<_>>());
                self.run(now_us, |operator, tick, emit| {
                    epoch(operator, &rows, tick, emit);
                    drop(rows);
                });
            }
        }
    }
}

impl<O: KeyedOperator> Measured<O> {
    fn rows(&mut self, now_us: i64, rows: &[(usize, i64, f64)]) {
        let rows = batch(rows);
        self.run(now_us, move |operator, tick, emit| operator.epoch(&rows, tick, emit).unwrap());
    }

    fn steady(&mut self, keys: usize, seconds: i64, value: impl Fn(i64) -> f64) {
        self.steady_by(keys, seconds, value, |o, rows, tick, emit| {
            o.epoch(rows, tick, emit).unwrap();
        });
    }
}

/// What does not hold is collected, so that one run shows all of it.
#[derive(Default)]
struct Report(Vec<String>);

impl Report {
    fn compare<O>(&mut self, what: &str, bound: u64, keys: usize, measured: &Measured<O>) {
        let each = measured.most_bytes as f64 / keys as f64;
        let ratio = bound as f64 / each;
        let line = format!("{what}: {each:.0} bytes per key, at most {bound}: {ratio:.2} times");
        println!("{line}");
        if !(1.0..=SLACK).contains(&ratio) {
            self.0.push(line);
        }
    }
}

fn aggregate(udf: Arc<AggregateUDF>, arguments: &[&str]) -> Arc<AggregateFunctionExpr> {
    let exprs = arguments.iter().map(|a| col(a, &schema()).unwrap()).collect();
    let builder = AggregateExprBuilder::new(udf, exprs).schema(schema()).alias("a");
    Arc::new(builder.build().unwrap())
}

fn fixed_width() -> Vec<Arc<AggregateFunctionExpr>> {
    let of_x = |udf| aggregate(udf, &["x"]);
    [count_udaf(), avg_udaf(), min_udaf(), max_udaf(), stddev_pop_udaf()].map(of_x).to_vec()
}

fn ours(name: &str) -> Arc<AggregateFunctionExpr> {
    let udf = time_series().into_iter().find(|f| f.name() == name).unwrap();
    aggregate(udf, &["x", "time"])
}

fn window(
    shape: Shape,
    (disorder_s, keep_s): (i64, i64),
    aggregates: Vec<Arc<AggregateFunctionExpr>>,
) -> WindowSpec {
    WindowSpec {
        pipeline: "p".into(),
        name: "w".into(),
        input: schema(),
        keys: vec![0],
        time: 1,
        shape,
        filters: aggregates.iter().map(|_| None).collect(),
        aggregates,
        select: Vec::new(),
        disorder_us: disorder_s * SECOND,
        idle_close_us: 3_600 * SECOND,
        clock: Clock::Device,
        late: match keep_s {
            0 => LatePolicy::Table,
            keep_s => LatePolicy::Revise { keep_us: keep_s * SECOND },
        },
        puts_off: false,
        early_us: None,
        quality: None,
        limits: KeyLimits::default(),
    }
}

fn x_is(compare: Compare, value: f64) -> Expr {
    binary(col("x", &schema()).unwrap(), compare, lit(value), &schema()).unwrap()
}

fn windows(report: &mut Report) {
    let grid = |size_s: i64, slide_s: i64| Shape::Grid {
        size_us: size_s * SECOND,
        slide_us: slide_s * SECOND,
        offset_us: 0,
    };
    let shifts = || {
        let shift = |hour: i64| Shift { name: String::new(), from_us: hour * 3_600 * SECOND };
        let period = Period::Shifts((0..24).map(shift).collect());
        Shape::Calendar(CalendarSpec { period, zone: ZoneOf::All(Zone::UTC), offset_us: 0 })
    };
    let cases = [
        ("tumbling windows", grid(2, 2), (1, 8), fixed_width()),
        ("hopping windows", grid(12, 4), (2, 8), fixed_width()),
        ("tumbling windows with quality", grid(2, 2), (1, 8), fixed_width()),
        ("hopping windows with quality", grid(12, 4), (2, 8), fixed_width()),
        ("windows that keep readings", grid(20, 20), (5, 0), vec![ours("twa"), ours("increase")]),
    ];
    calendars(report, shifts());
    let with_early = |(what, shape, times, aggregates)| {
        let what: &str = what;
        let quality = what.contains("quality").then_some(QUALITY);
        (what, WindowSpec { quality, ..window(shape, times, aggregates) })
    };
    let early = WindowSpec { early_us: Some(SECOND), ..window(grid(12, 4), (2, 8), fixed_width()) };
    let cases = cases.map(with_early).into_iter().chain([("early results", early)]);
    for (what, spec) in cases {
        let keys = keys(11);
        let bound = spec.state_bound(&LOAD).unwrap();
        let mut measured = Measured::new(|| WindowOperator::new(spec).unwrap());
        measured.steady(keys, 60, |second| second as f64);
        // Each window that is kept is revised.
        for back_s in 2..10 {
            let late_us = START_US + (59 - back_s) * SECOND;
            let late: Vec<_> = (0..keys).map(|key| (key, late_us, 1.0)).collect();
            measured.rows(START_US + 60 * SECOND, &late);
        }
        report.compare(what, bound.per_key(), keys, &measured);
    }
}

/// Windows by the clock, an hour each, of a day.
fn calendars(report: &mut Report, shifts: Shape) {
    let hour = 3_600 * SECOND;
    let (spec, keys) = (window(shifts, (1_800, 24 * 3_600), fixed_width()), keys(11));
    let bound = spec.state_bound(&LOAD).unwrap();
    let mut measured = Measured::new(|| WindowOperator::new(spec).unwrap());
    for number in 0..36 {
        let at_us = START_US + number * hour;
        // Each is revised while the next one is open.
        for back_us in [0, hour] {
            let rows: Vec<_> = (0..keys).map(|key| (key, at_us - back_us, 1.0)).collect();
            measured.rows(at_us, &rows);
        }
    }
    report.compare("shifts", bound.per_key(), keys, &measured);
}

fn spans(report: &mut Report) {
    let session = |max_us| Shape::Session { gap_us: SECOND / 2, max_us };
    let long = |max_us| Shape::Session { gap_us: 2 * SECOND, max_us };
    let sliding = |before_s: i64, after_s: i64| Shape::Sliding {
        before_us: before_s * SECOND,
        after_us: after_s * SECOND,
        at: None,
    };
    let state = |begin: Expr, until| Shape::State {
        begin,
        until,
        abort: None,
        min_us: 0,
        max_us: Some(10 * SECOND),
    };
    let cases = [
        ("sessions", session(None), (4, 25), fixed_width()),
        ("sessions that are cut", session(Some(SECOND)), (4, 25), fixed_width()),
        ("sessions that keep readings", long(Some(20 * SECOND)), (2, 6), vec![ours("twa")]),
        ("counts", Shape::Count { size: 8, hop: 4 }, (4, 25), fixed_width()),
        ("states", state(x_is(Compare::Gt, 0.0), None), (4, 25), fixed_width()),
        (
            "states with an end of their own",
            state(x_is(Compare::Gt, 0.0), Some(x_is(Compare::GtEq, 0.0))),
            (4, 25),
            fixed_width(),
        ),
        ("sliding windows", sliding(10, 5), (4, 8), fixed_width()),
        ("counts with quality", Shape::Count { size: 8, hop: 4 }, (4, 25), fixed_width()),
        ("sliding windows with quality", sliding(10, 5), (4, 8), fixed_width()),
        ("sliding windows with shared panes", sliding(190, 0), (4, 4), fixed_width()),
        ("early results of counts", Shape::Count { size: 8, hop: 4 }, (4, 25), fixed_width()),
        ("early results around readings", sliding(10, 5), (4, 8), fixed_width()),
    ];
    for (what, shape, times, aggregates) in cases {
        let keys = if what.contains("shared") { keys(8) } else { keys(9) };
        let early_us = what.starts_with("early").then_some(SECOND);
        let quality = what.contains("quality").then_some(QUALITY);
        let spec = WindowSpec { early_us, quality, ..window(shape, times, aggregates) };
        let bound = spec.state_bound(&LOAD).unwrap();
        let mut measured = Measured::new(|| SpanOperator::new(spec).unwrap());
        let seconds = if what.contains("shared") { 230 } else { 60 };
        measured.steady(keys, seconds, |second| (second % 2) as f64);
        report.compare(what, bound.per_key(), keys, &measured);
    }
}

fn detectors(report: &mut Report) {
    let cases = [("detector by time", DetectOrder::EventTime), ("at once", DetectOrder::Arrival)];
    for (what, order) in cases {
        let spec = DetectSpec {
            pipeline: "p".into(),
            name: "odd".into(),
            input: schema(),
            keys: vec![0],
            time: 1,
            on: col("x", &schema()).unwrap(),
            on_text: "x".into(),
            method: DetectMethod::EwmaZ { alpha: 0.1, warmup: 100, threshold: 3.0 },
            order,
            disorder_us: 14 * SECOND,
            idle_close_us: 3_600 * SECOND,
            forget_after_us: 3_600 * SECOND,
            limits: KeyLimits::default(),
        };
        let (bound, keys) = (spec.state_bound(&LOAD).unwrap(), keys(10));
        let mut measured = Measured::new(|| Detector::new(spec).unwrap());
        // Each key comes alone, so that lists of keys by time have one each.
        for second in 0..20 {
            for key in 0..keys {
                let now_us = START_US + second * SECOND + key as i64 * 100;
                measured.rows(now_us, &[(key, START_US + second * SECOND, 1.0)]);
            }
        }
        report.compare(what, bound.per_key(), keys, &measured);
    }
}

fn alert() -> AlertSpec {
    AlertSpec {
        pipeline: "p".into(),
        name: "high".into(),
        input: schema(),
        keys: vec![0],
        others: Vec::new(),
        time: 1,
        fire: x_is(Compare::Gt, 5.0),
        clear: x_is(Compare::LtEq, 5.0),
        for_us: 0,
        severity: "warning".into(),
        summary: String::new(),
        notify: Vec::new(),
        max_age_us: 0,
        early: false,
        limits: KeyLimits::default(),
    }
}

fn alerts(report: &mut Report) {
    let spec = alert();
    let (bound, keys) = (spec.state_bound(&LOAD).unwrap(), keys(13));
    let mut measured = Measured::new(|| AlertRule::new(spec).unwrap());
    for key in 0..keys {
        let now_us = START_US + key as i64 * 100;
        measured.rows(now_us, &[(key, now_us, 1.0)]);
    }
    report.compare("alert", bound.per_key(), keys, &measured);
    // After an hour of silence all of them are put away.
    measured.rows(START_US + 2 * 3_600 * SECOND, &[]);
    measured.most_bytes = 0;
    measured.rows(START_US + 2 * 3_600 * SECOND, &[]);
    report.compare("alert, keys put away", bound.forgotten_bytes, keys, &measured);
}

/// A rule with as many open windows of each key as count.
fn early_alerts(report: &mut Report) {
    let mut fields = schema().fields().to_vec();
    fields.push(Arc::new(Field::new("window_start", time_type(), false)));
    fields.push(Arc::new(Field::new("is_final", DataType::Boolean, false)));
    let input = Arc::new(Schema::new(fields));
    let spec = AlertSpec { input: Arc::clone(&input), early: true, ..alert() };
    let (bound, keys) = (spec.state_bound(&LOAD).unwrap(), keys(11));
    let mut measured = Measured::new(|| AlertRule::new(spec).unwrap());
    for window in 0..20 {
        let at_us = START_US + window * SECOND;
        let rows = batch(&(0..keys).map(|key| (key, at_us, 1.0)).collect::<Vec<_>>());
        let mut columns = rows.columns().to_vec();
        columns.push(times((0..keys).map(|_| at_us)));
        columns.push(Arc::new(BooleanArray::from(vec![false; keys])));
        let rows = RecordBatch::try_new(Arc::clone(&input), columns).unwrap();
        measured.run(START_US, move |o, tick, emit| o.epoch(&rows, tick, emit).unwrap());
    }
    report.compare("alert on open windows", bound.per_key(), keys, &measured);
}

fn absences(report: &mut Report) {
    // Each reading comes after an absence; or each twelfth, where the cadence is learnt.
    let every = Cadence::Every(SECOND / 4);
    absences_of(report, "absences", every, (0..90).collect());
    let learnt = Cadence::Learnt { least_us: SECOND / 4 };
    let seconds = (0..900).map(|n| n + n / 12 * 10);
    absences_of(report, "absences, learnt", learnt, seconds.collect());
}

fn absences_of(report: &mut Report, what: &str, cadence: Cadence, seconds: Vec<i64>) {
    let spec = AbsenceSpec {
        pipeline: "p".into(),
        name: "gone".into(),
        input: schema(),
        keys: vec![0],
        time: 1,
        cadence,
        missed: 3,
        select: vec![("x".into(), col("x", &schema()).unwrap())],
        disorder_us: 14 * SECOND,
        keep_us: 3_600 * SECOND,
        live: true,
        known_after_us: 0,
        forget_after_us: 3_600 * SECOND,
        limits: KeyLimits::default(),
    };
    let (bound, keys) = (spec.state_bound(&LOAD).unwrap(), keys(9));
    let mut measured = Measured::new(|| AbsenceOperator::new(spec).unwrap());
    let nothing = RecordBatch::new_empty(outages_schema());
    for second in seconds {
        let at_us = START_US + second * SECOND;
        let rows = batch(&(0..keys).map(|k| (k, at_us, 0.0)).collect::<Vec<_>>());
        let nothing = nothing.clone();
        measured.run(at_us, move |o, tick, emit| o.epoch(&rows, &nothing, tick, emit).unwrap());
    }
    report.compare(what, bound.per_key(), keys, &measured);
}

/// Readings that begin and end matches as often as can be: one that is waited for in vain may begin
/// with the reading that ends the one before.
fn sequences(report: &mut Report) {
    let within_us = 10 * SECOND;
    sequences_of(report, "sequences", Pattern::Then { within_us });
    sequences_of(report, "sequences, without", Pattern::Without { within_us: SECOND / 2 });
    sequences_of(report, "sequences, among", Pattern::Among { times: 1, of: 1 });
    let times = Pattern::Times { times: 1, within_us: SECOND };
    sequences_of(report, "sequences, times", times);
}

fn sequences_of(report: &mut Report, what: &str, pattern: Pattern) {
    let is_without = matches!(pattern, Pattern::Without { .. });
    let begins = is_without || matches!(pattern, Pattern::Then { .. });
    let spec = SequenceSpec {
        pipeline: "p".into(),
        name: "pairs".into(),
        input: schema(),
        keys: vec![0],
        time: 1,
        pattern,
        first: begins.then(|| x_is(Compare::Gt, if is_without { -1.0 } else { 0.0 })),
        last: x_is(Compare::LtEq, 0.0),
        select_first: vec![("x".into(), col("x", &schema()).unwrap())],
        select: vec![("y".into(), col("x", &schema()).unwrap())],
        disorder_us: 5 * SECOND,
        idle_close_us: 3_600 * SECOND,
        keep_us: 50 * SECOND,
        live: true,
        known_after_us: 0,
        forget_after_us: 3_600 * SECOND,
        limits: KeyLimits::default(),
    };
    let (bound, keys) = (spec.state_bound(&LOAD).unwrap(), keys(9));
    let mut measured = Measured::new(|| SequenceOperator::new(spec).unwrap());
    let nothing = RecordBatch::new_empty(outages_schema());
    let epoch = |o: &mut SequenceOperator, rows: &RecordBatch, tick, emit: &mut Emit| {
        o.epoch(rows, &nothing, tick, emit).unwrap();
    };
    let value = |second: i64| if is_without { 0.0 } else { (second % 2) as f64 };
    measured.steady_by(keys, 80, value, epoch);
    report.compare(what, bound.per_key(), keys, &measured);
}

fn last_known(report: &mut Report) {
    let value = |name: &str, kind: DataType, from: &str| -> (Arc<Field>, Expr) {
        (Arc::new(Field::new(name, kind, true)), col(from, &schema()).unwrap())
    };
    let spec = LatestSpec {
        pipeline: "p".into(),
        name: "known".into(),
        input: schema(),
        keys: vec![0],
        time: 1,
        select: vec![
            value("x", DataType::Float64, "x"),
            value("who", DataType::Utf8, "device"),
            value("n", DataType::Int64, "revision"),
        ],
        at: None,
        on_change: false,
        max_age_us: None,
        disorder_us: 14 * SECOND,
        idle_close_us: 3_600 * SECOND,
        forget_after_us: 3_600 * SECOND,
        live: true,
        limits: KeyLimits::default(),
    };
    let (bound, keys) = (spec.state_bound(&LOAD).unwrap(), keys(10));
    let mut measured = Measured::new(|| LatestOperator::new(spec).unwrap());
    let nothing = RecordBatch::new_empty(outages_schema());
    measured.steady_by(
        keys,
        20,
        |second| second as f64,
        |o, rows, tick, emit| {
            o.epoch(rows, &nothing, tick, emit).unwrap();
        },
    );
    report.compare("last-known values", bound.per_key(), keys, &measured);
}

fn clocks(report: &mut Report) {
    let spec = SkewSpec {
        pipeline: "p".into(),
        bound_us: SECOND,
        forget_after_us: 3_600 * SECOND,
        limits: KeyLimits::default(),
    };
    let (bound, keys) = (spec.state_bound(&LOAD).unwrap(), keys(10));
    let mut measured = Measured::new(|| ClockSkew::new(spec).unwrap());
    for key in 0..keys {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values([name(key)])),
            Arc::new(Int64Array::from_value(0, 1)),
            Arc::new(Int64Array::from_value(1, 1)),
        ];
        let rows = RecordBatch::try_new(clocks_schema(), columns).unwrap();
        let now_us = START_US + key as i64 * 100;
        measured.run(now_us, move |o, tick, emit| o.epoch(&rows, tick, emit).unwrap());
    }
    report.compare("clocks", bound.per_key(), keys, &measured);
}

fn dedups(report: &mut Report) {
    let input = Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("time", time_type(), false),
        Field::new("x", DataType::Float64, true),
        Field::new("journal_offset", DataType::Int64, false),
    ]));
    let spec = DedupSpec {
        pipeline: "p".into(),
        input: Arc::clone(&input),
        device: 0,
        time: 1,
        offset: 3,
        key: vec![0, 1],
        output: vec![0, 1, 3],
        order: vec![2],
        marks: false,
        horizon_us: 29 * SECOND,
        keys_max: 10_000,
        fleet_max: 10_000_000,
        limits: KeyLimits::default(),
    };
    let (bound, keys) = (spec.state_bound(&LOAD).unwrap(), keys(11));
    let mut measured = Measured::new(|| Dedup::new(spec));
    for second in 0..40 {
        let at_us = START_US + second * SECOND;
        let columns = batch(&(0..keys).map(|k| (k, at_us, 0.0)).collect::<Vec<_>>());
        let columns = columns.columns().to_vec();
        let rows = RecordBatch::try_new(Arc::clone(&input), columns).unwrap();
        measured.run(at_us, move |operator, tick, emit| operator.epoch(&rows, tick, emit).unwrap());
    }
    report.compare("repetitions", bound.per_key(), keys, &measured);
}

fn registry(versions_max: usize) -> RegistrySpec {
    let column = |name: &str, kind: ColumnType| ColumnSpec {
        name: name.into(),
        origin: Origin::Path(vec![name.into()]),
        kind,
        rules: Rules::default(),
        on_invalid: OnInvalid::Reject,
        unit: None,
        output: true,
    };
    RegistrySpec {
        pipeline: "p".into(),
        name: "limits".into(),
        columns: vec![
            column("device", ColumnType::Utf8),
            column("high", ColumnType::Float64),
            column("note", ColumnType::Utf8),
        ],
        keys: 1,
        valid_from: None,
        versions_max,
        entries: None,
    }
}

/// A new version of each key.
fn changes(registry: &RegistrySpec, keys: usize, at_us: i64) -> RecordBatch {
    let number = (at_us % 1_000_000_007) as f64;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values((0..keys).map(name))),
        Arc::new(Float64Array::from_value(number, keys)),
        Arc::new(StringArray::from_iter_values((0..keys).map(name))),
        times((0..keys).map(|_| at_us)),
        Arc::new(StringArray::from_iter_values((0..keys).map(|_| "set"))),
        times((0..keys).map(|_| at_us)),
    ];
    RecordBatch::try_new(registry.changes_schema(), columns).unwrap()
}

fn registries(report: &mut Report) {
    let (registry, keys) = (registry(6), keys(11));
    let bound = registry.state_bound(&LOAD).unwrap();
    let mut measured = Measured::new(|| Versions::new(registry.clone()).unwrap());
    for second in 0..8 {
        let rows = changes(&registry, keys, START_US + second * SECOND);
        let tick_us = START_US + second * SECOND;
        measured
            .run(tick_us, move |o, tick, emit| KeyedOperator::epoch(o, &rows, tick, emit).unwrap());
    }
    report.compare("registry", bound.per_key(), keys, &measured);
    for revised in [(None, false), (Some(10), false), (Some(10), true)] {
        join(report, &registry, keys, revised);
    }
}

fn join(
    report: &mut Report,
    registry: &RegistrySpec,
    keys: usize,
    (keep_s, moves): (Option<i64>, bool),
) {
    let revise = |s: i64| ReviseSpec {
        keep_us: s * SECOND,
        identity: vec![0, 1],
        revision: 3,
        end: 1,
        moves,
        rows: None,
    };
    let spec = EnrichSpec {
        pipeline: "p".into(),
        name: "e".into(),
        input: schema(),
        on: vec![0],
        time: 1,
        registry: registry.clone(),
        columns: vec![0],
        defaults: vec![None],
        missing: Missing::Null,
        revise: keep_s.map(revise),
        is_final: None,
        rows: None,
    };
    let bound: StateBound = spec.state_bound(&LOAD).unwrap();
    let mut measured = Measured::new(|| Enrich::new(spec).unwrap());
    for second in 0..16 {
        let at_us = START_US + second * SECOND;
        let change = changes(registry, keys, at_us);
        let rows = batch(&(0..keys).map(|k| (k, at_us, 0.0)).collect::<Vec<_>>());
        measured.run(at_us, move |o, tick, emit| o.epoch(&rows, &change, tick, emit).unwrap());
    }
    let what = format!("join with a registry, revised for {keep_s:?} s, moves: {moves}");
    report.compare(&what, bound.per_key(), keys, &measured);
}

#[test]
fn no_key_takes_more_than_its_bound_and_a_full_one_not_much_less() {
    let mut report = Report::default();
    windows(&mut report);
    spans(&mut report);
    long::spans(&mut report);
    detectors(&mut report);
    alerts(&mut report);
    early_alerts(&mut report);
    absences(&mut report);
    sequences(&mut report);
    last_known(&mut report);
    clocks(&mut report);
    dedups(&mut report);
    registries(&mut report);
    joins::windows(&mut report);
    joins::intervals(&mut report);
    aggregates::of_all_widths(&mut report);
    aggregates::over_another_step(&mut report);
    assert!(report.0.is_empty(), "{:#?}", report.0);
}
