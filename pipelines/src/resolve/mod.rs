//! From checked trees to a [`Plan`].
//!
//! Every pipeline is resolved twice. First with every column that could be there, which gives the
//! best messages; then, if nothing is wrong, with only the columns that the plan uses, which gives
//! the plan. Both go through the same code, so what was checked is what runs.

mod absence;
mod bounds;
mod calendar;
pub(crate) mod cases;
mod dedup;
pub(crate) mod early;
pub(crate) mod edges;
mod endless;
mod hanging;
mod join;
pub(crate) mod late;
mod latest;
mod limits;
mod mixed;
mod names;
mod nested;
mod outputs;
mod quality;
mod reading;
mod registry;
mod sequence;
mod shapes;
mod skew;
mod source;
mod steps;
mod syntax;
mod usage;
mod windows;
pub(crate) mod withdrawn;
mod words;

use arrow::datatypes::{DataType, SchemaRef};
use tidegate_operators::outage::{OutageSpec, STOPPED_AFTER_US};
use tidegate_operators::spec::{DedupSpec, Expr, PipelineSpec};

use crate::config::keys::PIPELINE;
use crate::config::problem::{At, Reporter, nearest};
use crate::config::references::Resolver;
use crate::config::section::Section;
use crate::config::tree::Node;
use crate::plan::Plan;
use crate::planner::{PlanProblem, columns_read, plan_scalar};
use crate::repeated;

/// Schemas that are not for pipelines.
const SCHEMAS_RESERVED: [&str; 4] = ["system", "information_schema", "public", "tidegate"];

/// Most pipelines and sources of a plan: sources are numbered with 16 bits in the journal.
const PIPELINES_MAX: usize = 1_000;

/// Resolves checked trees. `None`, and problems in `report`, if that is not possible.
pub(crate) fn plan(
    trees: &[Node],
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Option<Plan> {
    let files: Vec<Section<'_>> =
        trees.iter().map(|tree| Section::new(&PIPELINE, tree, tree.at)).collect();
    if let Some(beyond) = files.get(PIPELINES_MAX) {
        let message = format!("a plan can have {PIPELINES_MAX} pipelines");
        report.error(beyond.at, message, None);
        return None;
    }
    unique_names(&files, report);
    let mut sources = source::Sources::default();
    let numbers: Vec<Option<u16>> =
        files.iter().map(|file| sources.add(file, resolve, report)).collect();
    let mut plan = Plan::default();
    for (index, file) in files.iter().enumerate() {
        let source = numbers[index].unwrap_or_default();
        let Some(whole) = pipeline(file, source, None, report) else { continue };
        plan.notifications.extend(outputs::notifications(file, resolve, report));
        plan.registries.extend(registry::sources(file, &whole.spec.registries, resolve, report));
        plan.tests.extend(cases::tests(file, index, &whole.edges, report));
        plan.pipelines.push(whole.spec);
    }
    if report.failed() {
        return None;
    }
    plan.sources = sources.finish();
    for (index, file) in files.iter().enumerate() {
        let needs = usage::of_readings(file);
        let pruned = pipeline(file, numbers[index]?, Some(&needs), report)?;
        plan.pipelines[index] = pruned.spec;
    }
    (!report.failed()).then_some(plan)
}

/// Whether a column is there where it is used, without being declared.
pub(crate) fn is_builtin(name: &str) -> bool {
    reading::BUILTIN.contains(&name)
}

/// Name of a pipeline as a SQL schema.
fn sql_name(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
        .collect()
}

fn unique_names(files: &[Section<'_>], report: &mut Reporter<'_>) {
    let names: Vec<String> =
        files.iter().map(|f| sql_name(f.text("name").unwrap_or_default())).collect();
    for (index, name) in names.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
        let at = files[index].at("name");
        if SCHEMAS_RESERVED.contains(&name.as_str()) {
            report.error(
                at,
                format!("the SQL schema `{name}` is not for pipelines"),
                "choose another name".to_owned(),
            );
        }
        if let Some(first) = names[..index].iter().position(|n| n == name) {
            let (file, line) = report.place(files[first].at("name"));
            let place = format!("{}:{line}", file.display());
            report.error(
                at,
                format!("another pipeline already has the SQL schema `{name}`"),
                format!("it is at {place}"),
            );
        }
    }
}

/// A pipeline and its edges, for what comes after it.
struct Resolved {
    spec: PipelineSpec,
    edges: edges::Edges,
}

fn pipeline(
    file: &Section<'_>,
    source: u16,
    needs: Option<&usage::Needs>,
    report: &mut Reporter<'_>,
) -> Option<Resolved> {
    let name = file.text("name").unwrap_or_default();
    let reading = file.section("reading")?;
    let topics = source::templates(file);
    say_what_is_unsure(file, &reading, report);
    let mut decode = reading::decode(name, source, &reading, &topics, needs, report);
    let devices = limits::of_pipeline(&limits::table(file));
    skew::check(&reading, report);
    let skew = skew::skew(file, &reading, &decode, devices);
    decode.clocks = skew.is_some();
    let dedup = dedup::dedup(name, &reading, &decode, needs, devices, report);
    let readings = dedup.as_ref().map_or_else(|| decode.schema(), DedupSpec::schema);
    let registries = registry::registries(file, report);
    let mut edges = edges::Edges::of_readings(readings);
    registry::add_edges(&registries, &mut edges);
    let outages = outages(file);
    let mut resolved = steps::Steps::new(name, reading, limits::table(file), edges);
    resolved.registries.clone_from(&registries);
    resolved.live = outages.stopped_after_us.is_some();
    resolved.known_after_us = outages.known_after_us();
    resolved.keeps = keeps(file);
    resolved.bad_registries = registry::with_mistakes(file, &registries);
    resolved.all(file, report);
    let (mut steps, edges, roots) = resolved.finish();
    let mut alerts = outputs::alerts(file, &edges, report);
    limits::spare_known_keys(&mut steps, &mut alerts);
    let mut tables = outputs::tables(file, &sql_name(name), &edges, report);
    registry::add_tables(&registries, &sql_name(name), &mut tables);
    names::check(file, &tables, needs.is_none(), report);
    if needs.is_none() {
        syntax::check(file, &edges, report);
        outputs::unread_steps(file, report);
        hanging::note(file, &roots, report);
    }
    let used = !steps.is_empty() || !alerts.is_empty() || !tables.is_empty();
    if !used && needs.is_none() && !report.failed() {
        report.warning(
            file.at("name"),
            "nothing uses the readings of this pipeline",
            "keep them with [[table]] from = \"readings\"".to_owned(),
        );
    }
    let mut spec = PipelineSpec {
        name: name.to_owned(),
        sql_name: sql_name(name),
        declared: limits::declared(&limits::table(file)),
        decode,
        outages,
        dedup,
        skew,
        registries,
        steps,
        alerts,
        tables,
    };
    repeated::note(&mut spec);
    crate::recompute::note(&mut spec);
    if needs.is_none() {
        look_at(&spec, &edges, file, report);
    }
    Some(Resolved { spec, edges })
}

/// Columns of which nothing can be said because of mistakes that were reported.
fn say_what_is_unsure(file: &Section<'_>, reading: &Section<'_>, report: &mut Reporter<'_>) {
    let mut unsure = reading::of_unknown_type(reading);
    unsure.extend(source::unreadable_captures(file));
    report.set_unsure(unsure);
    let of_payload = || reading::without_captures(reading);
    report.set_without_captures(source::is_unknown(file).then(of_payload));
}

/// What can only be said of a pipeline as a whole.
fn look_at(
    spec: &PipelineSpec,
    edges: &edges::Edges,
    file: &Section<'_>,
    report: &mut Reporter<'_>,
) {
    words::check(file, spec, report);
    mixed::check(file, edges, report);
    bounds::refuse(file, spec, report);
    if !report.failed() {
        late::warn(file, spec, report);
    }
}

/// How the source of a pipeline is watched.
fn outages(file: &Section<'_>) -> OutageSpec {
    let Some(source) = file.section("source") else { return OutageSpec::default() };
    // What is no number was reported.
    let connections = || source.int("connections").and_then(|n| u16::try_from(n).ok());
    OutageSpec {
        stopped_after_us: (source.component.tag != Some("file")).then_some(STOPPED_AFTER_US),
        sessions: match source.component.tag {
            Some("mqtt") => connections().unwrap_or(1),
            _ => 0,
        },
    }
}

/// Whether a broker keeps for the source of a pipeline what that cannot hear.
fn keeps(file: &Section<'_>) -> bool {
    let source = file.section("source").filter(|source| source.component.tag == Some("mqtt"));
    source.and_then(|source| source.int("qos")).is_some_and(|qos| qos > 0)
}

/// Whether an expression reads a column whose declaration was reported.
fn is_consequence(text: &str, report: &Reporter<'_>) -> bool {
    columns_read(text).is_ok_and(|names| report.is_unsure(&names))
}

/// Plans an expression; a problem points at its text.
fn sql(
    text: &str,
    at: At,
    schema: &SchemaRef,
    want: Option<&DataType>,
    report: &mut Reporter<'_>,
) -> Option<Expr> {
    // Empty ones were reported when the file was checked.
    if text.trim().is_empty() {
        return None;
    }
    match plan_scalar(text, schema, want) {
        Ok(expr) => Some(expr),
        Err(_) if is_consequence(text, report) => None,
        Err(PlanProblem { message, hint }) => {
            report.error(at, message, as_text(text, schema, want).or(hint));
            None
        }
    }
}

/// How a text is written where one is wanted, if that is probably what was meant: something
/// without quotes and calls that is like no column.
fn as_text(text: &str, schema: &SchemaRef, want: Option<&DataType>) -> Option<String> {
    let is_plain = want == Some(&DataType::Utf8) && !text.contains(['\'', '"', '(']);
    let names = columns_read(text).ok().filter(|_| is_plain)?;
    let known = || schema.fields().iter().map(|f| f.name().as_str());
    let is_strange = |name: &String| nearest(name, known()).is_none();
    let is_text = !names.is_empty() && names.iter().all(is_strange);
    is_text.then(|| format!("a text is in single quotes: \"'{text}'\""))
}
