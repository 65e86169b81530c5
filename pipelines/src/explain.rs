//! A plan in words, for people who want to see what they wrote.

mod absence;
mod join;
mod latest;
mod registry;
mod sequence;
mod shape;

use std::fmt::Write as _;

use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use tidegate_operators::properties::Property;
use tidegate_operators::spec::{
    AlertSpec, ColumnSpec, ColumnType, DecodeSpec, DedupSpec, DetectMethod, DetectOrder,
    DetectSpec, Format, LatePolicy, OnInvalid, Origin, PipelineSpec, StepKind, StepSpec, TableSpec,
    WindowSpec,
};

use crate::bounds::{What, bounds, told};
use crate::config::units::{show_duration, show_size};
use crate::fingerprint::shown;
use crate::plan::{NotifySpec, Plan};
use crate::recompute::{has_places, made_of, missing, stored_as};
use crate::resolve::early::{is_of, is_of_finals};

pub(crate) use self::shape::bounds as shape_in_words;

/// What a plan does, pipeline by pipeline.
pub fn explain(plan: &Plan) -> String {
    let mut out = String::new();
    for pipeline in &plan.pipelines {
        if !out.is_empty() {
            out.push('\n');
        }
        one_pipeline(plan, pipeline, &mut out);
    }
    out
}

fn one_pipeline(plan: &Plan, p: &PipelineSpec, out: &mut String) {
    let _ = writeln!(out, "pipeline {} (SQL schema {})", p.name, p.sql_name);
    let source = &plan.sources[usize::from(p.decode.source)];
    let topics: Vec<String> = p.decode.topics.iter().map(ToString::to_string).collect();
    let _ = writeln!(out, "  source {}: {}", source.name, topics.join(", "));
    readings(&p.decode, out);
    let bounds = bounds(p);
    let bound = |what: What, name: &str, out: &mut String| {
        if let Some(state) = bounds.iter().find(|s| s.what == what && s.name == name) {
            line(out, "memory", &told(state));
        }
    };
    if let Some(d) = &p.dedup {
        dedup(d, out);
        bound(What::Dedup, "reading.dedup", out);
    }
    if let Some(skew) = &p.skew {
        let most = show_duration(skew.bound_us);
        let text = format!("estimated per device; told (clock_skew) if off by more than {most}");
        line(out, "clocks", &text);
        bound(What::Skew, "clock_skew", out);
    }
    for spec in &p.registries {
        registry::registry(spec, plan, out);
        bound(What::Registry, &spec.name, out);
    }
    for step in &p.steps {
        one_step(p, step, out);
        bound(What::Step, &step.name, out);
    }
    for (from, alert) in &p.alerts {
        one_alert(from, alert, out);
        bound(What::Alert, &alert.name, out);
    }
    for table in &p.tables {
        one_table(table, out);
    }
    for notify in plan.notifications.iter().filter(|n| n.pipeline == p.name) {
        one_notification(notify, out);
    }
}

fn line(out: &mut String, label: &str, text: &str) {
    let _ = writeln!(out, "    {label:<8} {text}");
}

fn readings(d: &DecodeSpec, out: &mut String) {
    let each = match &d.explode {
        Some(path) => format!("one per element of `{}`", path.join(".")),
        None => "one per message".to_owned(),
    };
    let format = match d.format {
        Format::Json => "json",
        Format::Influx => "influx",
    };
    let _ = writeln!(out, "  readings: {format}, {each}");
    let wide = d.columns.iter().map(|c| c.name.chars().count()).max().unwrap_or(0);
    for c in &d.columns {
        let pad = " ".repeat(wide - c.name.chars().count());
        line(out, "column", &format!("{}{pad}  {:<7}  {}", c.name, type_of(&c.kind), about(c)));
    }
    let behind = |bound_us| format!(", or {} behind", show_duration(bound_us));
    let bounds = format!(
        "payloads over {}, and readings more than {} ahead of their arrival{}",
        show_size(d.payload_bytes_max as u64),
        show_duration(d.future_bound_us),
        d.past_bound_us.map(behind).unwrap_or_default()
    );
    line(out, "rejects", &bounds);
}

fn type_of(kind: &ColumnType) -> &'static str {
    match kind {
        ColumnType::Bool => "bool",
        ColumnType::Int64 => "int64",
        ColumnType::Float64 => "float64",
        ColumnType::Utf8 => "string",
        ColumnType::Time(_) => "time",
    }
}

fn about(c: &ColumnSpec) -> String {
    let mut parts = vec![match &c.origin {
        Origin::Path(path) => path.join("."),
        Origin::Root(path) => format!("$.{}", path.join(".")),
        Origin::Capture(name) => format!("{{{name}}} of the topic"),
        Origin::Topic => "the topic".to_owned(),
        Origin::Client => "the sender".to_owned(),
        Origin::ReceivedTime => "when it was received".to_owned(),
        Origin::Offset => "place in the journal".to_owned(),
        Origin::Property(Property::User(name)) => format!("the user property {name}"),
        Origin::Property(property) => format!("the property {property}"),
        Origin::PayloadHash => "hash of the topic and the reading".to_owned(),
        Origin::Element => "place in the array".to_owned(),
    }];
    parts.extend(c.unit.iter().map(|unit| format!("in {unit}")));
    let r = &c.rules;
    match (r.min, r.max) {
        (Some(min), Some(max)) => parts.push(format!("from {min} to {max}")),
        (Some(min), None) => parts.push(format!("from {min}")),
        (None, Some(max)) => parts.push(format!("up to {max}")),
        (None, None) => {}
    }
    parts.extend(r.one_of.iter().map(|words| format!("one of {}", words.join(", "))));
    parts.extend(r.matches.iter().map(|pattern| format!("matches {pattern}")));
    if r.required {
        parts.push("required".to_owned());
    }
    if c.on_invalid == OnInvalid::Null {
        parts.push("null if invalid".to_owned());
    }
    if !c.output {
        parts.push("only checked, nothing uses it".to_owned());
    }
    parts.join(", ")
}

fn dedup(d: &DedupSpec, out: &mut String) {
    let drops = format!(
        "readings whose {} came in within {} before; system.duplicates counts them",
        key_names(&d.input, &d.key),
        show_duration(d.horizon_us)
    );
    line(out, "drops", &drops);
    let state = format!("per device at most {} readings to compare with", d.keys_max);
    line(out, "state", &state);
}

fn one_step(p: &PipelineSpec, step: &StepSpec, out: &mut String) {
    if is_of_finals(&step.name) {
        let _ = writeln!(out, "  step {}: the final rows of {}", step.name, step.from);
        return;
    }
    let _ = writeln!(out, "  step {}: {} of {}", step.name, kind_of(&step.kind), step.from);
    match &step.kind {
        StepKind::Filter(filter) => {
            line(out, "where", &shown(&filter.keep));
            line(out, "emits", "each row that passes, at once");
            if filter.takes_back.is_some() {
                line(
                    out,
                    "again",
                    "what came before and does not pass any more comes with rows = 0",
                );
            }
            line(out, "state", "none");
            return;
        }
        StepKind::Project(_) => {
            line(out, "emits", "each row with its new columns, at once");
            line(out, "state", "none");
        }
        StepKind::Route(route) => {
            let names: Vec<&str> = route.branches.iter().map(|(name, _)| name.as_str()).collect();
            line(
                out,
                "branches",
                &format!("{}; a row goes to the first that takes it", names.join(", ")),
            );
            line(out, "emits", "each row in its branch, at once; without one in system.rejects");
            if route.takes_back.is_some() {
                let text =
                    "what came before and goes elsewhere now comes with rows = 0 in the others";
                line(out, "again", text);
            }
            line(out, "state", "none");
            return;
        }
        StepKind::Window(w) => window(p, step, w, out),
        StepKind::Detect(d) => detect(d, out),
        StepKind::Enrich(e) => registry::enrich(e, out),
        StepKind::Latest(l) => latest::latest(l, out),
        StepKind::Absence(a) => absence::absence(a, out),
        StepKind::Sequence(s) => sequence::sequence(s, out),
        StepKind::Join(j) => join::join(j, out),
    }
    line(out, "columns", &columns(&step.output));
}

fn kind_of(kind: &StepKind) -> &'static str {
    match kind {
        StepKind::Filter(_) => "some rows",
        StepKind::Project(_) => "columns",
        StepKind::Route(_) => "branches",
        StepKind::Window(_) => "windows",
        StepKind::Detect(_) => "unusual values",
        StepKind::Enrich(_) => "columns of a registry",
        StepKind::Latest(_) => "last-known values",
        StepKind::Absence(_) => "absences of readings",
        StepKind::Sequence(_) => "sequences of readings",
        StepKind::Join(_) => "a join",
    }
}

fn key_names(schema: &SchemaRef, keys: &[usize]) -> String {
    let names: Vec<&str> = keys.iter().map(|k| schema.field(*k).name().as_str()).collect();
    if names.is_empty() { "one for all rows".to_owned() } else { names.join(", ") }
}

fn window(p: &PipelineSpec, step: &StepSpec, w: &WindowSpec, out: &mut String) {
    line(out, "windows", &shape::bounds(&w.shape));
    line(out, "key", &key_names(&w.input, &w.keys));
    line(out, "closes", &shape::closes(w));
    if let Some(every_us) = w.early_us {
        let text = format!(
            "open windows that changed come every {} of arrival, with is_final = false",
            show_duration(every_us)
        );
        line(out, "early", &text);
    }
    let (late, is_computed_again) = late(p, step, w);
    line(out, "late", &late);
    if is_computed_again {
        behind(p, step, out);
    }
    let keep_us = match w.late {
        LatePolicy::Revise { keep_us } => keep_us,
        LatePolicy::Table => 0,
    };
    line(out, "state", &shape::state(w, keep_us));
    if let Some(lists) = shape::lists(w) {
        line(out, "lists", &lists);
    }
    if let Some(quality) = &w.quality {
        line(out, "quality", &shape::quality(quality));
    }
}

/// What happens to late readings, and whether windows are computed again because of them.
fn late(p: &PipelineSpec, step: &StepSpec, w: &WindowSpec) -> (String, bool) {
    let LatePolicy::Revise { keep_us } = w.late else {
        return ("system.late".to_owned(), false);
    };
    let first = format!("the window comes again for {}; after that ", show_duration(keep_us));
    let after = match stored_as(p, &step.from) {
        _ if !p.tables.iter().any(|t| is_of(&t.from, &step.name)) => "system.late".to_owned(),
        Some(_) if !has_places(w) => {
            "system.late, without effect: with `journal_offset` kept by the \
             steps before it, it could be computed again"
                .to_owned()
        }
        Some(table) => {
            let again = format!("it is computed again from {}", full_name(table));
            return (first + &again, true);
        }
        None => format!("system.late, without effect: {}", missing(p, &step.from)),
    };
    (first + &after, false)
}

/// Which tables get what is made of windows that are computed again.
fn behind(p: &PipelineSpec, step: &StepSpec, out: &mut String) {
    let (get, not): (Vec<_>, Vec<_>) =
        made_of(p, &step.name).into_iter().partition(|(_, why_not)| why_not.is_none());
    let names: Vec<String> = get.into_iter().map(|(table, _)| full_name(table)).collect();
    if !names.is_empty() {
        line(out, "behind", &format!("what is made of it then is in {}", names.join(", ")));
    }
    for (table, why_not) in not {
        let why = why_not.unwrap_or_default();
        line(out, "behind", &format!("{} does not see that: {why}", full_name(table)));
    }
}

fn full_name(table: &TableSpec) -> String {
    format!("{}.{}", table.namespace, table.name)
}

fn detect(d: &DetectSpec, out: &mut String) {
    let DetectMethod::EwmaZ { alpha, warmup, threshold } = d.method;
    let text = format!(
        "`{}` further than {threshold} deviations from its weighted mean (alpha {alpha}), after \
         {warmup} readings",
        d.on_text
    );
    line(out, "finds", &text);
    line(out, "emits", "a row for each reading that is found, as soon as it is judged");
    line(out, "key", &key_names(&d.input, &d.keys));
    let (order, state) = match d.order {
        DetectOrder::EventTime => (
            format!(
                "by time: a reading waits for {}, or until its key is silent for {}",
                show_duration(d.disorder_us),
                show_duration(d.idle_close_us)
            ),
            format!("per key three numbers and the readings of {}", show_duration(d.disorder_us)),
        ),
        DetectOrder::Arrival => {
            ("as readings arrive, at once".to_owned(), "per key three numbers".to_owned())
        }
    };
    line(out, "order", &order);
    line(out, "state", &state);
}

fn columns(schema: &SchemaRef) -> String {
    let columns: Vec<String> = schema
        .fields()
        .iter()
        .map(|f| {
            let unit = f.metadata().get("unit").map(|u| format!(" in {u}")).unwrap_or_default();
            format!("{} {}{unit}", f.name(), sql_type(f.data_type()))
        })
        .collect();
    columns.join(", ")
}

fn sql_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "bool".into(),
        DataType::Int64 => "int64".into(),
        DataType::Float64 => "float64".into(),
        DataType::Utf8 => "string".into(),
        DataType::Timestamp(..) => "time".into(),
        DataType::List(item) => format!("list of {}", sql_type(item.data_type())),
        DataType::Struct(parts) => {
            let part = |f: &FieldRef| format!("{} {}", f.name(), sql_type(f.data_type()));
            format!("({})", parts.iter().map(part).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string().to_lowercase(),
    }
}

fn one_alert(from: &str, a: &AlertSpec, out: &mut String) {
    let _ = writeln!(out, "  alert {}: on {from}, {}", a.name, a.severity);
    line(out, "key", &key_names(&a.input, &a.keys));
    let wait = match a.for_us {
        0 => "at the first row".to_owned(),
        us => format!("after {}", show_duration(us)),
    };
    line(out, "fires", &format!("{wait} of {}", shown(&a.fire)));
    line(out, "clears", &shown(&a.clear));
    if a.early {
        let text = "windows that are still open count, until their final row says otherwise";
        line(out, "early", text);
    }
    let age = show_duration(a.max_age_us);
    let whom = match a.notify.is_empty() {
        true => "nobody: its changes are rows of system.alerts".to_owned(),
        false => format!("{}, unless the change is older than {age}", a.notify.join(", ")),
    };
    line(out, "tells", &whom);
    line(out, "state", "per key one alert");
}

fn one_table(t: &TableSpec, out: &mut String) {
    let mut parts = vec![format!("day of {}", t.time)];
    parts.extend(t.partition.iter().cloned());
    let _ = writeln!(out, "  table {}.{}: from {}", t.namespace, t.name, t.from);
    line(out, "files", &format!("by {}; sorted by {}", parts.join(", "), sorted(t)));
    if !t.identity.is_empty() {
        let row = t.identity.join(", ");
        line(out, "shows", &format!("the latest revision of each {row}"));
    }
    line(out, "fresh", &format!("after about {}", show_duration(t.freshness_us)));
    line(out, "columns", &columns(&t.schema));
}

fn sorted(t: &TableSpec) -> String {
    t.sort.iter().cloned().chain([t.time.clone()]).collect::<Vec<_>>().join(", ")
}

fn one_notification(n: &NotifySpec, out: &mut String) {
    let signed = if n.secret.is_some() { "signed" } else { "not signed" };
    let _ = writeln!(
        out,
        "  notify {}: webhook, {signed}, {} per try, given up after {}",
        n.name,
        show_duration(n.timeout_us),
        show_duration(n.max_age_us)
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::COOKBOOK;
    use crate::testing::{HEAD, plan};

    #[test]
    fn what_is_missing_for_late_readings_is_told() {
        let text = |steps: &[&str], tables: &[&str]| {
            let mut text = format!("{HEAD}{LIMITS}");
            let mut from = "readings".to_owned();
            for step in steps.iter().chain(&[WINDOW]) {
                let name = step.split('"').nth(1).unwrap_or_default();
                text += &format!("[[step]]\nfrom = \"{from}\"\n{step}\n");
                name.clone_into(&mut from);
            }
            text.extend(tables.iter().map(|from| format!("[[table]]\nfrom = \"{from}\"\n")));
            explain(&plan(text).expect("it is good"))
        };
        let join = "name = \"placed\"\ntype = \"enrich\"\nregistry = \"limits\"";
        let placed = &[join, "name = \"high_ones\"\ntype = \"filter\"\nwhere = \"v > high\""];
        let wanted = "without effect: a table of `placed` would let it be computed again";
        let why = "; p.readings does not do, because what the registry `limits` said of a reading \
                   when it came is not in it\n";
        let told = text(placed, &["w", "readings"]);
        assert!(told.contains(&format!("{wanted}{why}")), "{told}");
        let told = text(placed, &["w"]);
        assert!(told.contains(&format!("{wanted}\n")), "{told}");
        let told = text(placed, &["w", "readings", "placed"]);
        assert!(told.contains("after that it is computed again from p.placed\n"), "{told}");
        let last = "name = \"last\"\ntype = \"latest\"\nselect = { v = \"v\" }";
        let told = text(&[last], &["w", "readings"]);
        assert!(told.contains("rows of `last` do not say where in the journal they"), "{told}");
        let picked = "name = \"picked\"\ntype = \"select\"\ncolumns = { v = \"v\" }";
        let told = text(&[picked, join], &["w", "readings"]);
        assert!(told.contains("rows of `placed` do not say where in the journal they"), "{told}");
    }

    const LIMITS: &str = "[[registry]]\nname = \"limits\"\npath = \"l.csv\"\nkey = [\"device\"]\n\
                          columns = { device = \"string\", high = \"float64\" }\n";
    const WINDOW: &str = "name = \"w\"\ntype = \"window\"\nevery = \"1m\"\n\
                          select = { n = \"count(*)\" }";

    #[test]
    fn state_that_grows_with_readings_is_told() {
        let explained = |name: &str| {
            let (name, text) = COOKBOOK.iter().find(|(n, _)| *n == name).expect("an example");
            let file = (name.into(), (*text).to_owned());
            explain(&crate::load(&[file], &|_, n| Err(n.into())).expect("examples are good"))
        };
        // Two areas over time, and slots of 8 bytes.
        let tank = explained("cookbook-tank.toml");
        assert!(tank.contains("of 5 aggregates, and 40 bytes for each reading in them"), "{tank}");
        assert!(!explained("cookbook-latency.toml").contains("for each reading"));
        let profile = explained("cookbook-profile.toml");
        assert!(profile.contains("at most 7 points in a window"), "{profile}");
        let columns = "temps list of (up_to float64, count int64), load list of (time time, value";
        assert!(profile.contains(columns), "{profile}");
    }
}
