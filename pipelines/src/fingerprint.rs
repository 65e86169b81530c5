//! A number that changes when what a pipeline computes changes.
//!
//! It is the hash of a text in which columns go by name: neither the order of the pipelines, nor
//! which columns others need, nor a secret, nor where messages come from is in it.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::physical_expr::ScalarFunctionExpr;
use datafusion::physical_expr::expressions::{Column, Literal, UnKnownColumn};
use tidegate_operators::spec::{
    AbsenceSpec, AlertSpec, CalendarSpec, DecodeSpec, DedupSpec, DetectMethod, DetectSpec,
    EnrichSpec, Expr, JoinSpec, LatestSpec, Partners, Period, PipelineSpec, RegistrySpec,
    SequenceSpec, Shape, StepKind, WindowSpec,
};
use xxhash_rust::xxh3::xxh3_64;

/// Version of the state of windows whose bounds come from the readings: saved state of another
/// version is that of another operator.
const SPANS: u32 = 2;

/// Likewise of absences, and of sequences. Both keep values as bytes of Arrow's row format.
const ABSENCES: u32 = 2;
const SEQUENCES: u32 = 2;

/// Likewise of alerts.
const ALERTS: u32 = 2;

/// The fingerprint of a pipeline.
pub fn fingerprint(pipeline: &PipelineSpec) -> u64 {
    xxh3_64(canonical(pipeline).as_bytes())
}

/// An expression as people read it: columns by name, without their positions, which depend on the
/// others.
pub(crate) fn shown(e: &Expr) -> String {
    let by_name = Arc::clone(e).transform(|node| {
        Ok(match node.downcast_ref::<Column>() {
            Some(column) => Transformed::yes(Arc::new(UnKnownColumn::new(column.name())) as Expr),
            None => Transformed::no(node),
        })
    });
    // A node takes as many children as it had: there is no other reason to refuse them.
    by_name.map_or_else(|_| e.to_string(), |by_name| by_name.data.to_string())
}

/// An expression, to be compared: what people read, and its constants with their types, because
/// a text may read like anything else.
pub(crate) fn expr(e: &Expr) -> String {
    let mut constants: Vec<ScalarValue> = Vec::new();
    // The closure does not fail.
    let _ = e.apply(|node| {
        constants.extend(node.downcast_ref::<Literal>().map(|l| l.value().clone()));
        Ok(TreeNodeRecursion::Continue)
    });
    let fractions = if has_fractions(e) { " in fractions" } else { "" };
    match constants.is_empty() {
        true => shown(e),
        false => format!("{} with {constants:?}{fractions}", shown(e)),
    }
}

/// Whether seconds or milliseconds of a length of time are in it: they were whole ones once, in
/// columns of another type.
fn has_fractions(e: &Expr) -> bool {
    let found = e.exists(|node| {
        let Some(call) = node.downcast_ref::<ScalarFunctionExpr>() else { return Ok(false) };
        let part = call.args().first().and_then(|part| part.downcast_ref::<Literal>());
        let part = part.and_then(|part| part.value().try_as_str().flatten());
        let is_epoch = part.is_none_or(|part| part.eq_ignore_ascii_case("epoch"));
        Ok(call.name() == "date_part" && *call.return_type() == DataType::Float64 && !is_epoch)
    });
    // The closure does not fail.
    found.unwrap_or_default()
}

pub(crate) fn exprs<N: std::fmt::Display>(list: &[(N, Expr)]) -> String {
    list.iter().map(|(name, e)| format!("{name}={};", expr(e))).collect()
}

fn names(schema: &arrow::datatypes::SchemaRef, keys: &[usize]) -> Vec<String> {
    keys.iter().map(|k| schema.field(*k).name().clone()).collect()
}

fn canonical(p: &PipelineSpec) -> String {
    let mut out = format!("tidegate plan 3\n{}\n{}", p.name, decode_text(&p.decode));
    if let Some(d) = &p.dedup {
        let _ = writeln!(out, "{}{:?}", dedup_text(d), d.limits);
    }
    if let Some(s) = &p.skew {
        let _ = writeln!(out, "clock skew {} {} {:?}", s.bound_us, s.forget_after_us, s.limits);
    }
    for registry in &p.registries {
        out += &registry_text(registry);
    }
    for step in &p.steps {
        let (state, shown) = (waiting_text(&step.kind), shown_text(&step.kind));
        let text = format!("{state}{} {shown}", kept_text(&step.kind));
        let with = match &step.kind {
            StepKind::Join(join) => format!(" with {}", join.with),
            _ => String::new(),
        };
        let _ = writeln!(out, "step {} from {}{with}: {text}", step.name, step.from);
        if let StepKind::Window(WindowSpec { early_us: Some(every_us), .. }) = &step.kind {
            // Not in the state: it goes on from state without early results, and the other way.
            let _ = writeln!(out, "early {every_us}");
        }
        if let StepKind::Window(WindowSpec { limits, .. })
        | StepKind::Detect(DetectSpec { limits, .. })
        | StepKind::Latest(LatestSpec { limits, .. })
        | StepKind::Absence(AbsenceSpec { limits, .. })
        | StepKind::Sequence(SequenceSpec { limits, .. })
        | StepKind::Join(JoinSpec { limits, .. }) = &step.kind
        {
            let _ = writeln!(out, "{limits:?}");
        }
    }
    for (from, a) in &p.alerts {
        let condition = alert_condition(a);
        let _ = writeln!(
            out,
            "alert {} from {from} {condition} {} {} {:?} {} {:?}",
            a.name, a.severity, a.summary, a.notify, a.max_age_us, a.limits
        );
    }
    for t in &p.tables {
        let _ = writeln!(out, "table {} from {} {:?}", t.name, t.from, t.partition);
    }
    out
}

/// What decides which readings there are and what is in them.
pub(crate) fn decode_text(d: &DecodeSpec) -> String {
    let topics: Vec<String> = d.topics.iter().map(ToString::to_string).collect();
    let mut out = format!(
        "{topics:?} {:?} {:?} {} {}{}\n",
        d.format,
        d.explode,
        d.future_bound_us,
        d.payload_bytes_max,
        d.past_bound_us.map(|bound_us| format!(" past {bound_us}")).unwrap_or_default()
    );
    // Columns that are always available change nothing for the others, and any order is as good.
    let columns = d.columns.iter().filter(|c| !crate::resolve::is_builtin(&c.name));
    let mut columns: Vec<String> = columns
        .map(|c| {
            format!("{} {:?} {:?} {:?} {:?}\n", c.name, c.origin, c.kind, c.rules, c.on_invalid)
        })
        .collect();
    columns.sort_unstable();
    out.extend(columns);
    out
}

/// What decides which readings are repetitions.
pub(crate) fn dedup_text(d: &DedupSpec) -> String {
    let key = names(&d.input, &d.key);
    format!("dedup {key:?} {} {} {}\n", d.horizon_us, d.keys_max, d.fleet_max)
}

/// What decides the phase of an alert.
pub(crate) fn alert_condition(a: &AlertSpec) -> String {
    let keys = names(&a.input, &a.keys);
    let early = if a.early { " early" } else { "" };
    let others = match a.others[..] {
        [] => String::new(),
        _ => format!(" of {:?}", names(&a.input, &a.others)),
    };
    let (fire, clear) = (expr(&a.fire), expr(&a.clear));
    format!("{ALERTS} {keys:?} {fire} {clear} {}{early}{others}", a.for_us)
}

/// What decides the state of a step; of one without state, all that it does. Not how long it waits
/// for what is late and for who is silent: a state says how far it came, and goes on from there.
pub(crate) fn state_text(kind: &StepKind) -> String {
    let mut kind = kind.clone();
    waits(&mut kind).into_iter().for_each(|us| *us = 0);
    waiting_text(&kind)
}

/// `disorder` and `idle_close` of a step that has them.
pub(crate) fn waits(kind: &mut StepKind) -> Vec<&mut i64> {
    match kind {
        StepKind::Window(WindowSpec { disorder_us, idle_close_us, .. })
        | StepKind::Detect(DetectSpec { disorder_us, idle_close_us, .. })
        | StepKind::Latest(LatestSpec { disorder_us, idle_close_us, .. })
        | StepKind::Sequence(SequenceSpec { disorder_us, idle_close_us, .. })
        | StepKind::Join(JoinSpec { disorder_us, idle_close_us, .. }) => {
            vec![disorder_us, idle_close_us]
        }
        StepKind::Absence(absence) => vec![&mut absence.disorder_us],
        StepKind::Filter(_) | StepKind::Project(_) | StepKind::Route(_) | StepKind::Enrich(_) => {
            Vec::new()
        }
    }
}

/// The same with how long it waits, as it was in content ids once.
pub(crate) fn waiting_text(kind: &StepKind) -> String {
    match kind {
        StepKind::Filter(f) => format!("filter {}", expr(&f.keep)),
        // What only passes through depends on what others need.
        StepKind::Project(list) => {
            let made: Vec<(String, Expr)> =
                list.iter().filter(|(name, e)| expr(e) != *name).cloned().collect();
            format!("project {}", exprs(&made))
        }
        StepKind::Route(route) => format!("route {}", exprs(&route.branches)),
        StepKind::Window(w) => window_text(w),
        StepKind::Enrich(e) => enrich_text(e),
        StepKind::Latest(l) => latest_text(l),
        StepKind::Absence(a) => absence_text(a),
        StepKind::Sequence(s) => sequence_text(s),
        StepKind::Join(j) => join_text(j),
        StepKind::Detect(d) => {
            let DetectMethod::EwmaZ { alpha, .. } = d.method;
            format!(
                "detect {:?} {} ewma_z {alpha} {:?} {} {} {}",
                names(&d.input, &d.keys),
                expr(&d.on),
                d.order,
                d.disorder_us,
                d.idle_close_us,
                d.forget_after_us
            )
        }
    }
}

/// What a step makes of its state.
pub(crate) fn shown_text(kind: &StepKind) -> String {
    match kind {
        StepKind::Window(w) => {
            let expected = w.quality.and_then(|q| q.every_us);
            let expected = expected.map(|us| format!(" expected {us}")).unwrap_or_default();
            match &w.shape {
                Shape::Calendar(CalendarSpec { period: Period::Shifts(shifts), .. }) => {
                    let names: Vec<&str> = shifts.iter().map(|s| s.name.as_str()).collect();
                    format!("{names:?} {}{expected}", exprs(&w.select))
                }
                _ => exprs(&w.select) + &expected,
            }
        }
        StepKind::Detect(d) => format!("{:?}", d.method),
        StepKind::Enrich(e) => {
            let values = e.registry.value_fields();
            let added = e.columns.iter().zip(&e.defaults);
            let added: Vec<String> = added
                .map(|(c, d)| format!("{} {:?}", values[*c].name(), d.as_ref().map(expr)))
                .collect();
            format!("{added:?} {:?}", e.missing)
        }
        // What was told is part of the state, and whole rows are of a join.
        StepKind::Filter(_)
        | StepKind::Project(_)
        | StepKind::Route(_)
        | StepKind::Latest(_)
        | StepKind::Absence(_)
        | StepKind::Sequence(_)
        | StepKind::Join(_) => String::new(),
    }
}

/// What decides the history of a registry.
pub(crate) fn registry_text(r: &RegistrySpec) -> String {
    let mut out = format!("registry {} {} {:?}\n", r.name, r.keys, r.versions_max);
    for c in r.columns.iter().chain(&r.valid_from) {
        let _ = writeln!(
            out,
            "{} {:?} {:?} {:?} {:?}",
            c.name, c.origin, c.kind, c.rules, c.on_invalid
        );
    }
    // A file says what it has not any more, a topic does not: another one begins anew.
    if let Some(topic) = &r.entries {
        let _ = writeln!(out, "entries {topic}");
    }
    out
}

fn enrich_text(e: &EnrichSpec) -> String {
    let revise = e.revise.as_ref().map(|r| r.keep_us);
    // Rows that are kept are whole ones: which columns they have is part of the state.
    let kept: Vec<&String> = match revise {
        Some(_) => e.input.fields().iter().map(|f| f.name()).collect(),
        None => Vec::new(),
    };
    format!(
        "enrich {:?} {} {revise:?} {kept:?} {}",
        names(&e.input, &e.on),
        e.input.field(e.time).name(),
        registry_text(&e.registry)
    )
}

fn join_text(j: &JoinSpec) -> String {
    let left: Vec<&String> = j.left.fields().iter().map(|f| f.name()).collect();
    let columns = j.columns.iter().map(|(c, name)| (j.right.field(*c).name(), name));
    let partners = match &j.partners {
        Partners::Window { keep_us, .. } => format!("windows {keep_us}"),
        Partners::Interval { left, right, before_us, after_us, nearest, .. } => format!(
            "told {} {} {before_us} {after_us} {nearest}",
            j.left.field(*left).name(),
            j.right.field(*right).name()
        ),
    };
    // How much is kept, and what becomes of what is too much.
    let bounds = match &j.partners {
        Partners::Window { .. } => String::new(),
        Partners::Interval { matches_max, rows_max, forget_after_us, .. } => {
            format!("{matches_max} {rows_max} {forget_after_us}")
        }
    };
    format!(
        "join {:?} {:?} {left:?} {:?} {} {partners} {bounds} {} {} {}",
        names(&j.left, &j.left_keys),
        names(&j.right, &j.right_keys),
        columns.collect::<Vec<_>>(),
        j.outer,
        j.disorder_us,
        j.idle_close_us,
        j.live
    )
}

fn latest_text(l: &LatestSpec) -> String {
    let select: Vec<(&str, Expr)> =
        l.select.iter().map(|(field, e)| (field.name().as_str(), Arc::clone(e))).collect();
    format!(
        "latest {:?} {} {} {:?} {} {:?} {} {} {} {}",
        names(&l.input, &l.keys),
        l.input.field(l.time).name(),
        exprs(&select),
        l.at.as_ref().map(expr),
        l.on_change,
        l.max_age_us,
        l.disorder_us,
        l.idle_close_us,
        l.live,
        l.forget_after_us
    )
}

fn absence_text(a: &AbsenceSpec) -> String {
    // What is selected is kept as bytes, so it is part of the state.
    format!(
        "absence{ABSENCES} {:?} {} {:?} {} {} {} {} {} {}",
        names(&a.input, &a.keys),
        a.input.field(a.time).name(),
        a.cadence,
        a.missed,
        exprs(&a.select),
        a.disorder_us,
        a.keep_us,
        a.live,
        a.forget_after_us
    )
}

fn sequence_text(s: &SequenceSpec) -> String {
    format!(
        "sequence{SEQUENCES} {:?} {} {:?} {:?} {} {} / {} {} {} {} {} {}",
        names(&s.input, &s.keys),
        s.input.field(s.time).name(),
        s.pattern,
        s.first.as_ref().map(expr),
        expr(&s.last),
        exprs(&s.select_first),
        exprs(&s.select),
        s.disorder_us,
        s.idle_close_us,
        s.keep_us,
        s.live,
        s.forget_after_us
    )
}

/// What decides when state goes, and not what it is: how long windows of fixed bounds are kept.
/// What is gone stays gone when that becomes longer, so that no window that was computed again from
/// tables gets the same revision a second time.
fn kept_text(kind: &StepKind) -> String {
    match kind {
        StepKind::Window(w) if w.shape.has_fixed_bounds() => format!(" {:?}", w.late),
        _ => String::new(),
    }
}

fn window_text(w: &WindowSpec) -> String {
    let calls: Vec<String> = w
        .aggregates
        .iter()
        .zip(&w.filters)
        .map(|(a, f)| {
            let arguments: Vec<String> = a.expressions().iter().map(expr).collect();
            format!(
                "{} {arguments:?} {} {} {:?} {:?}",
                a.fun().name(),
                a.is_distinct(),
                a.ignore_nulls(),
                a.order_bys()
                    .iter()
                    .map(|o| format!("{} {:?}", expr(&o.expr), o.options))
                    .collect::<Vec<_>>(),
                f.as_ref().map(expr)
            )
        })
        .collect();
    let quality = w.quality.map(|_| " quality 2").unwrap_or_default();
    let late = match w.shape.has_fixed_bounds() {
        true => String::new(),
        false => format!(" {:?}", w.late),
    };
    format!(
        "window {:?} {} {calls:?} {} {} {:?}{late}{quality}",
        names(&w.input, &w.keys),
        shape_text(&w.shape),
        w.disorder_us,
        w.idle_close_us,
        w.clock,
    )
}

fn calendar_text(calendar: &CalendarSpec) -> String {
    let period = match &calendar.period {
        // The names of shifts are only shown.
        Period::Shifts(shifts) => {
            format!("shifts {:?}", shifts.iter().map(|s| s.from_us).collect::<Vec<_>>())
        }
        period => format!("{period:?}"),
    };
    format!("calendar {period} {:?} {}", calendar.zone, calendar.offset_us)
}

/// What decides which windows there are.
pub(crate) fn shape_text(shape: &Shape) -> String {
    let maybe = |e: &Option<Expr>| e.as_ref().map(expr);
    match shape {
        Shape::Grid { size_us, slide_us, offset_us } => format!("{size_us} {slide_us} {offset_us}"),
        Shape::Calendar(calendar) => calendar_text(calendar),
        Shape::Session { gap_us, max_us } => format!("session{SPANS} {gap_us} {max_us:?}"),
        Shape::Count { size, hop } => format!("count{SPANS} {size} {hop}"),
        Shape::State { begin, until, abort, min_us, max_us } => format!(
            "state{SPANS} {} {:?} {:?} {min_us} {max_us:?}",
            expr(begin),
            maybe(until),
            maybe(abort)
        ),
        Shape::Sliding { before_us, after_us, at } => {
            format!("sliding{SPANS} {before_us} {after_us} {:?}", maybe(at))
        }
    }
}
