//! Filters and branches behind windows that come again: after every epoch, what stands there are
//! the windows whose newest row passes, and in the end those of all readings.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::StringArray;
use arrow::datatypes::SchemaRef;
use datafusion_functions_aggregate::count::count_udaf;
use datafusion_functions_aggregate::sum::sum_udaf;
use datafusion_physical_expr::aggregate::AggregateExprBuilder;
use datafusion_physical_expr::expressions::col as column;

use super::*;
use crate::batch::Tick;
use crate::operator::{Emit, KeyedOperator};
use crate::span::SpanOperator;
use crate::spec::{
    Clock, KeyLimits, LatePolicy, RouteSpec, Shape, TakesBack, WindowSpec, time_type,
};
use crate::window::WindowOperator;

/// Device, time, value.
type Reading = (u8, i64, i64);

/// By device and start: revision, readings, sum.
type Standing = BTreeMap<(String, i64), (i64, i64, i64)>;

const SIZE_US: i64 = 40;
const GAP_US: i64 = 15;

fn input() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("time", time_type(), false),
        Field::new("v", DataType::Int64, true),
    ]))
}

/// Windows that are over at once, and come again for ever.
fn spec(sessions: bool) -> WindowSpec {
    let input = input();
    let aggregate = |udf, name: &str| {
        let of = vec![column("v", &input).unwrap()];
        let builder = AggregateExprBuilder::new(udf, of).schema(Arc::clone(&input));
        Arc::new(builder.alias(name).build().unwrap())
    };
    let mut spec = WindowSpec {
        pipeline: "p".into(),
        name: "w".into(),
        input: Arc::clone(&input),
        keys: vec![0],
        time: 1,
        shape: match sessions {
            true => Shape::Session { gap_us: GAP_US, max_us: None },
            false => Shape::Grid { size_us: SIZE_US, slide_us: SIZE_US, offset_us: 0 },
        },
        aggregates: vec![aggregate(count_udaf(), "n"), aggregate(sum_udaf(), "sum")],
        filters: vec![None, None],
        select: Vec::new(),
        disorder_us: 0,
        idle_close_us: 1_000_000,
        clock: Clock::Device,
        late: LatePolicy::Revise { keep_us: 1_000_000 },
        puts_off: false,
        early_us: None,
        quality: None,
        limits: KeyLimits::default(),
    };
    let aggregated = spec.aggregated_schema();
    let selected = |(i, name): (usize, &str)| {
        (name.to_owned(), column(&format!("agg{i}"), &aggregated).unwrap())
    };
    spec.select = ["n", "sum"].into_iter().enumerate().map(selected).collect();
    spec
}

fn operator(spec: &WindowSpec) -> Box<dyn KeyedOperator> {
    match spec.shape.has_fixed_bounds() {
        true => Box::new(WindowOperator::new(spec.clone()).unwrap()),
        false => Box::new(SpanOperator::new(spec.clone()).unwrap()),
    }
}

/// What comes out of the windows in each epoch and at the end: keys are dealt out to workers, who
/// start again before the epoch `restart`.
fn windows(
    spec: &WindowSpec,
    epochs: &[Vec<Reading>],
    (workers, restart): (u8, usize),
) -> Vec<Vec<RecordBatch>> {
    let mut out = vec![Vec::new(); epochs.len() + 1];
    for worker in 0..workers {
        let mut own = operator(spec);
        for (i, readings) in epochs.iter().enumerate() {
            if i == restart {
                let state = own.save().unwrap();
                own = operator(spec);
                own.load(&state).unwrap();
            }
            let readings: Vec<&Reading> =
                readings.iter().filter(|r| r.0 % workers == worker).collect();
            let times = readings.iter().map(|r| r.1);
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from_iter_values(readings.iter().map(|r| r.0.to_string()))),
                Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
                Arc::new(Int64Array::from_iter_values(readings.iter().map(|r| r.2))),
            ];
            let rows = RecordBatch::try_new(input(), columns).unwrap();
            let (mut emit, epoch) = (Emit::default(), i as u64 + 1);
            own.epoch(&rows, Tick { epoch, time_us: epoch as i64 }, &mut emit).unwrap();
            assert!(emit.late.is_empty());
            out[i].extend(emit.rows);
        }
        let mut emit = Emit::default();
        own.end(&mut emit).unwrap();
        out[epochs.len()].extend(emit.rows);
    }
    out
}

/// The windows of all readings.
fn all_at_once(sessions: bool, epochs: &[Vec<Reading>]) -> BTreeMap<(String, i64), (i64, i64)> {
    let mut readings: Vec<Reading> = epochs.concat();
    readings.sort_unstable();
    let mut all: BTreeMap<(String, i64), (i64, i64)> = BTreeMap::new();
    let mut before: Option<(u8, i64, i64)> = None;
    for (device, time_us, value) in readings {
        let goes_on = before.filter(|b| b.0 == device && time_us - b.1 <= GAP_US);
        let start_us = match sessions {
            true => goes_on.map_or(time_us, |b| b.2),
            false => time_us.div_euclid(SIZE_US) * SIZE_US,
        };
        before = Some((device, time_us, start_us));
        let of = all.entry((device.to_string(), start_us)).or_default();
        *of = (of.0 + 1, of.1 + value);
    }
    all
}

/// Takes rows in; each revision of a window is there once.
fn take(standing: &mut Standing, seen: &mut BTreeSet<(String, i64, i64)>, rows: &RecordBatch) {
    let number = |name: &str, row: usize| {
        let column = rows.column_by_name(name).unwrap().as_primitive::<Int64Type>();
        column.is_valid(row).then(|| column.value(row))
    };
    let starts = rows.column_by_name("window_start").unwrap();
    let starts = starts.as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
    for row in 0..rows.num_rows() {
        let device = rows.column(0).as_string::<i32>().value(row).to_owned();
        let [count, revision] = ["rows", "revision"].map(|name| number(name, row).unwrap());
        assert!(seen.insert((device.clone(), starts.value(row), revision)), "twice");
        let sum = number("sum", row);
        assert_eq!(sum.is_some(), count > 0, "what is none says nothing");
        let new = (revision, count, sum.unwrap_or_default());
        let known = standing.entry((device, starts.value(row))).or_insert(new);
        *known = new.max(*known);
    }
}

/// What is to be seen of windows: those that are not withdrawn.
fn shown(standing: &Standing, passes: impl Fn(i64, i64) -> bool) -> Standing {
    let passing = standing.iter().filter(|(_, w)| w.1 > 0 && passes(w.1, w.2));
    passing.map(|(id, w)| (id.clone(), *w)).collect()
}

fn takes_back(schema: &SchemaRef) -> TakesBack {
    let at = |name: &str| schema.index_of(name).unwrap();
    let said = ["n", "sum"].map(at);
    let clears = said.into_iter().filter(|c| schema.field(*c).is_nullable()).collect();
    TakesBack { rows: at("rows"), revision: at("revision"), is_final: None, clears }
}

/// A filter, what is behind it, and the branches of a route. The step behind the filter fails on
/// windows that it does not let pass.
fn steps(schema: &SchemaRef) -> [StatelessStep; 3] {
    let planned = |logical: Logical| logical2physical(&logical, schema);
    let back = Some(takes_back(schema));
    let keep = planned(col("n").lt(lit(3_i64)));
    let filter = StepKind::Filter(FilterSpec { keep, takes_back: back.clone() });
    let pass = |field: &Arc<Field>| (field.name().clone(), planned(col(field.name())));
    let mut columns: Vec<(String, Expr)> = schema.fields().iter().map(pass).collect();
    columns.push(("share".into(), planned(lit(12_i64) / (col("n") - lit(3_i64)))));
    let mut fields: Vec<Arc<Field>> = schema.fields().iter().cloned().collect();
    let is_nullable = schema.field_with_name("n").unwrap().is_nullable();
    fields.push(Arc::new(Field::new("share", DataType::Int64, is_nullable)));
    let branches = vec![
        ("small".to_owned(), planned(col("sum").lt(lit(4_i64)))),
        ("large".to_owned(), planned(col("sum").gt(lit(7_i64)))),
    ];
    let route = StepKind::Route(RouteSpec { branches, takes_back: back });
    let rows = schema.index_of("rows").ok();
    let step = |kind: &StepKind, output: SchemaRef| {
        StatelessStep::new(kind, schema.clone(), output).unwrap().of_withdrawn(rows)
    };
    [
        step(&filter, schema.clone()),
        step(&StepKind::Project(columns), Arc::new(Schema::new(fields))),
        step(&route, schema.clone()),
    ]
}

fn epochs() -> impl Strategy<Value = Vec<Vec<Reading>>> {
    let reading = (0_u8..3, 0_i64..200, -3_i64..6);
    prop::collection::vec(prop::collection::vec(reading, 0..5), 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn filters_and_branches_take_back_what_windows_are_not_any_more(
        epochs in epochs(), sessions in any::<bool>(), workers in 1_u8..4, restart in 0_usize..20,
    ) {
        let spec = spec(sessions);
        let [filter, derive, route] = steps(&spec.schema());
        let came = windows(&spec, &epochs, (workers, restart));
        let mut all: [Standing; 5] = Default::default();
        let mut seen: [BTreeSet<(String, i64, i64)>; 5] = Default::default();
        type Passes = fn(i64, i64) -> bool;
        let passing: [(usize, Passes); 4] = [
            (1, |n, _| n < 3),
            (2, |n, _| n < 3),
            (3, |_, sum| sum < 4),
            (4, |_, sum| sum > 7),
        ];
        for batches in &came {
            for rows in batches {
                let passed = filter.apply(rows).unwrap();
                let derived = derive.apply(&passed.branches[0]).unwrap();
                let routed = route.apply(rows).unwrap();
                prop_assert!(passed.failed.is_empty() && derived.failed.is_empty());
                let edges = [rows, &passed.branches[0], &derived.branches[0]];
                let edges = edges.into_iter().chain(&routed.branches).enumerate();
                edges.for_each(|(i, rows)| take(&mut all[i], &mut seen[i], rows));
                // Each row that is one goes into a branch, or is told.
                let counts = rows.column_by_name("rows").unwrap().as_primitive::<Int64Type>();
                prop_assert!(routed.failed.iter().all(|f| counts.value(f.row) > 0));
            }
            for (i, passes) in passing {
                prop_assert_eq!(shown(&all[i], |_, _| true), shown(&all[0], passes), "edge {}", i);
            }
        }
        let of_all = all_at_once(sessions, &epochs);
        for (i, passes) in passing {
            let stands = shown(&all[i], |_, _| true).into_iter();
            let stands: BTreeMap<_, _> = stands.map(|(id, w)| (id, (w.1, w.2))).collect();
            let ends = of_all.clone().into_iter().filter(|(_, w)| passes(w.0, w.1));
            prop_assert_eq!(stands, ends.collect::<BTreeMap<_, _>>(), "edge {}", i);
        }
    }
}
