//! `[[registry]]` and the step `enrich`.

mod place;

use std::collections::BTreeSet;

use arrow::datatypes::DataType;
use tidegate_operators::key::is_key_type;
use tidegate_operators::registry::Change;
use tidegate_operators::spec::{
    ColumnSpec, ColumnType, EnrichSpec, Expr, INGEST_TIME, IS_FINAL, Missing, OnInvalid, Origin,
    REGISTRY_COLUMNS, RegistrySpec, ReviseSpec, Rules, StepKind, TableSpec, TimeFormat, VALID_FROM,
    registry_topic,
};

use self::place::check_topic;
pub(super) use self::place::{filters, sources, topic};
use super::edges::{Edge, Edges, RowKind};
use super::steps::Steps;
use super::{early, reading, sql};
use crate::config::problem::{Reporter, hint_of, nearest};
use crate::config::section::Section;
use crate::graph::versions_edge;
use crate::plan::{TestChange, TestInput};

/// Rows of versions can be read after about this long, if no table of the pipeline is faster.
const FRESHNESS_US: i64 = 10_000_000;

/// The registries of a pipeline.
pub(super) fn registries(file: &Section<'_>, report: &mut Reporter<'_>) -> Vec<RegistrySpec> {
    let mut taken: BTreeSet<&str> = BTreeSet::new();
    let mut found = Vec::new();
    for section in file.sections("registry") {
        let Some(name) = section.text("name") else { continue };
        if !taken.insert(name) {
            report.error(section.at("name"), format!("there is already a registry `{name}`"), None);
            continue;
        }
        let edge = versions_edge(name);
        let steps = file.sections("step");
        if steps.iter().any(|s| s.text("name") == Some(edge.as_str()) || has_branch(s, &edge)) {
            let message = format!("there is a step or branch `{edge}`, which is its history");
            report.error(section.at("name"), message, "choose another name".to_owned());
            continue;
        }
        found.extend(registry(file, &section, name, report));
    }
    found
}

/// Names of those that are written and are not among the `good` ones, which was reported.
pub(super) fn with_mistakes(file: &Section<'_>, good: &[RegistrySpec]) -> Vec<String> {
    let declared = file.sections("registry").into_iter().filter_map(|r| r.text("name"));
    let bad = declared.filter(|name| good.iter().all(|r| r.name != *name));
    bad.map(str::to_owned).collect()
}

fn has_branch(step: &Section<'_>, name: &str) -> bool {
    step.knows("branches") && step.entries("branches").iter().any(|e| e.key == name)
}

fn registry(
    file: &Section<'_>,
    section: &Section<'_>,
    name: &str,
    report: &mut Reporter<'_>,
) -> Option<RegistrySpec> {
    let mut good = section.entry("topic").is_none() || check_topic(file, section, report).is_some();
    let entries = topic(section);
    let mut declared = reading::declared(section, "columns", entries.as_slice(), report);
    for entry in section.entries("columns") {
        if REGISTRY_COLUMNS.contains(&entry.key.as_str()) {
            good = false;
            let message = format!("every registry has `{}` anyway", entry.key);
            let hint = "choose another name, with `field = \"...\"`".to_owned();
            report.error(entry.key_at, message, hint);
        }
    }
    let mut columns: Vec<ColumnSpec> = Vec::new();
    for (key, at) in section.texts("key").unwrap_or_default() {
        let Some(place) = declared.iter().position(|c| c.name == key) else {
            good = false;
            let twice = columns.iter().any(|c: &ColumnSpec| c.name == key);
            let names = declared.iter().map(|c| c.name.as_str());
            let hint = hint_of(key, names.collect::<Vec<_>>());
            let message = match twice {
                true => format!("`{key}` is named twice"),
                false => format!("`{key}` is not among the columns"),
            };
            report.error(at, message, hint.filter(|_| !twice));
            continue;
        };
        let mut column = declared.remove(place);
        if !is_key_type(&column.kind.data_type()) {
            good = false;
            report.error(at, format!("`{key}` cannot be part of a key"), None);
        }
        column.rules.required = true;
        column.on_invalid = OnInvalid::Reject;
        columns.push(column);
    }
    let keys = columns.len();
    if keys == 0 && good {
        good = false;
        report.error(section.at("key"), "a row is about something: name its key", None);
    }
    if declared.is_empty() && good {
        good = false;
        let hint = "declare a column that is not of the key".to_owned();
        report.error(section.at("columns"), "this registry says nothing of its keys", hint);
    }
    columns.extend(declared);
    good.then(|| RegistrySpec {
        pipeline: file.text("name").unwrap_or_default().to_owned(),
        name: name.to_owned(),
        columns,
        keys,
        valid_from: section.text("valid_from").map(valid_from),
        versions_max: section
            .int("versions_max")
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(1),
        entries: entries.map(|(topic, _)| topic),
    })
}

fn valid_from(member: &str) -> ColumnSpec {
    ColumnSpec {
        name: VALID_FROM.to_owned(),
        origin: Origin::Path(vec![member.to_owned()]),
        kind: ColumnType::Time(TimeFormat::Auto),
        rules: Rules::default(),
        on_invalid: OnInvalid::Reject,
        unit: None,
        output: true,
    }
}

fn key_names(registry: &RegistrySpec) -> Vec<String> {
    registry.columns[..registry.keys].iter().map(|c| c.name.clone()).collect()
}

/// Their histories as edges.
pub(super) fn add_edges(registries: &[RegistrySpec], edges: &mut Edges) {
    for registry in registries {
        let rows = RowKind::Versions { keys: key_names(registry) };
        let edge = Edge { schema: registry.versions_schema(), rows };
        edges.add(&versions_edge(&registry.name), Some(edge));
    }
}

/// Their histories as tables, whether anybody asks for them or not.
pub(super) fn add_tables(
    registries: &[RegistrySpec],
    namespace: &str,
    tables: &mut Vec<TableSpec>,
) {
    let freshness_us = tables.iter().map(|t| t.freshness_us).min().unwrap_or(FRESHNESS_US);
    for registry in registries {
        let name = versions_edge(&registry.name);
        if tables.iter().any(|t| t.name == name) {
            continue;
        }
        let mut identity = key_names(registry);
        identity.push(VALID_FROM.to_owned());
        tables.push(TableSpec {
            namespace: namespace.to_owned(),
            from: name.clone(),
            name,
            schema: registry.versions_schema(),
            time: INGEST_TIME.to_owned(),
            partition: Vec::new(),
            sort: key_names(registry),
            identity,
            rows: None,
            freshness_us: freshness_us.min(FRESHNESS_US),
        });
    }
}

/// What a test says of registries, as inputs. What has no time comes before the first message.
pub(super) fn test_inputs(
    file: &Section<'_>,
    test: &Section<'_>,
    messages: &[TestInput],
    report: &mut Reporter<'_>,
) -> Vec<TestInput> {
    let first_us = messages.first().map_or(0, |m| m.at_us);
    let pipeline = file.text("name").unwrap_or_default();
    let registries = file.sections("registry");
    let known: Vec<&str> = registries.iter().filter_map(|r| r.text("name")).collect();
    let mut inputs = Vec::new();
    for section in test.sections("registry") {
        let (Some(name), Some(row)) = (section.text("name"), section.text("row")) else { continue };
        if !known.contains(&name) {
            let hint = hint_of(name, known.clone());
            report.error(section.at("name"), format!("there is no registry `{name}`"), hint);
        }
        let at = section.text("at").and_then(|t| chrono::DateTime::parse_from_rfc3339(t).ok());
        let since_us = at.map(|t| t.timestamp_micros());
        let named = registries.iter().find(|r| r.text("name") == Some(name));
        let own_times = named.is_some_and(|r| r.text("valid_from").is_some());
        let change = match (section.bool("remove"), own_times) {
            (false, _) => Change::Set,
            (true, false) => Change::Remove,
            (true, true) => Change::Withdraw,
        };
        inputs.push(TestInput {
            topic: registry_topic(pipeline, name),
            at_us: since_us.unwrap_or(first_us),
            payload: row.as_bytes().to_vec(),
            properties: Vec::new(),
            change: Some(TestChange { change, since_us }),
            event: None,
        });
    }
    inputs
}

/// Resolves a step that joins a registry.
pub(super) fn enrich(
    steps: &Steps<'_>,
    step: &Section<'_>,
    name: &str,
    input: &Edge,
    report: &mut Reporter<'_>,
) -> Option<(StepKind, Edge)> {
    let wanted = step.text("registry")?;
    let found = steps.registries.iter().find(|r| r.name == wanted);
    let registry = found.or_else(|| probably_meant(steps, step, wanted, report))?;
    let on = on(step, registry, input, report);
    let columns = added(step, registry, input, report);
    let revise = revise(step, input, report);
    let (on, columns, revise) = (on?, columns?, revise?);
    let defaults = defaults(step, registry, &columns, input, report)?;
    let spec = EnrichSpec {
        pipeline: steps.pipeline.clone(),
        name: name.to_owned(),
        input: input.schema.clone(),
        on,
        time: input.index(input.start()),
        registry: registry.clone(),
        columns,
        defaults,
        missing: match step.text("missing") {
            Some("reject") => Missing::Reject,
            _ => Missing::Null,
        },
        revise,
        is_final: early::has_early(input).then(|| input.index(IS_FINAL)),
        rows: input.withdrawn_column(),
    };
    let rows = match (&input.rows, &spec.revise) {
        (RowKind::Windows { keys, id, withdrawn, taken_back, early, .. }, Some(_)) => {
            RowKind::Windows {
                keys: keys.clone(),
                id,
                revised: true,
                withdrawn: *withdrawn,
                taken_back: *taken_back,
                early: early.map(|_| true),
            }
        }
        (rows, _) => rows.clone(),
    };
    let edge = Edge { schema: spec.schema(), rows };
    Some((StepKind::Enrich(Box::new(spec)), edge))
}

/// Reports a registry that is not there. The one that was probably meant is there, so that what
/// comes after the step is checked, too.
fn probably_meant<'s>(
    steps: &'s Steps<'_>,
    step: &Section<'_>,
    wanted: &str,
    report: &mut Reporter<'_>,
) -> Option<&'s RegistrySpec> {
    if steps.bad_registries.iter().any(|name| name == wanted) {
        return None;
    }
    let names: Vec<&str> = steps.registries.iter().map(|r| r.name.as_str()).collect();
    let message = format!("there is no registry `{wanted}`");
    let nearest = nearest(wanted, names.iter().copied());
    report.error(step.at("registry"), message, hint_of(wanted, names.clone()));
    steps.registries.iter().find(|r| Some(r.name.as_str()) == nearest)
}

/// The columns of the edge that make the registry's key.
fn on(
    step: &Section<'_>,
    registry: &RegistrySpec,
    input: &Edge,
    report: &mut Reporter<'_>,
) -> Option<Vec<usize>> {
    let keys = &registry.columns[..registry.keys];
    let own = || keys.iter().map(|c| (c.name.as_str(), step.at("registry"))).collect();
    let named = step.texts("on").unwrap_or_else(own);
    if named.len() != keys.len() {
        let key: Vec<&str> = keys.iter().map(|c| c.name.as_str()).collect();
        let message = format!("the key of `{}` is `{}`", registry.name, key.join("`, `"));
        report.error(step.at("on"), message, "name as many columns".to_owned());
        return None;
    }
    let mut on = Vec::new();
    for ((name, at), key) in named.into_iter().zip(keys) {
        let Some(place) = input.column(name, at, report) else { continue };
        let (has, wants) = (input.schema.field(place).data_type(), key.kind.data_type());
        if *has != wants {
            let message = format!(
                "`{name}` is {has} and `{}` of the registry is {wants}: they are never equal",
                key.name
            );
            report.error(at, message, "declare them with the same type".to_owned());
            continue;
        }
        on.push(place);
    }
    (on.len() == keys.len()).then_some(on)
}

/// The columns that are added, as places among the registry's values.
fn added(
    step: &Section<'_>,
    registry: &RegistrySpec,
    input: &Edge,
    report: &mut Reporter<'_>,
) -> Option<Vec<usize>> {
    let values = &registry.columns[registry.keys..];
    let all = || values.iter().map(|c| (c.name.as_str(), step.at("registry"))).collect();
    let mut columns = Vec::new();
    let mut good = true;
    for (name, at) in step.texts("columns").unwrap_or_else(all) {
        let mut refuse = |message: String, hint: Option<String>| {
            good = false;
            report.error(at, message, hint);
        };
        match values.iter().position(|c| c.name == name) {
            None => {
                let names: Vec<&str> = values.iter().map(|c| c.name.as_str()).collect();
                let message = format!("the registry `{}` has no column `{name}`", registry.name);
                refuse(message, hint_of(name, names));
            }
            Some(_) if input.schema.index_of(name).is_ok() => {
                let hint = "name the columns to add with `columns`, or rename one of the two";
                refuse(format!("the rows have a column `{name}` already"), Some(hint.to_owned()));
            }
            Some(place) if columns.contains(&place) => {
                refuse(format!("`{name}` is named twice"), None);
            }
            Some(place) => columns.push(place),
        }
    }
    good.then_some(columns)
}

fn defaults(
    step: &Section<'_>,
    registry: &RegistrySpec,
    columns: &[usize],
    input: &Edge,
    report: &mut Reporter<'_>,
) -> Option<Vec<Option<Expr>>> {
    let values = registry.value_fields();
    let mut found: Vec<Option<Expr>> = vec![None; columns.len()];
    for entry in step.entries("default") {
        let place = columns.iter().position(|c| *values[*c].name() == entry.key);
        let Some(place) = place else {
            let names: Vec<&str> = columns.iter().map(|c| values[*c].name().as_str()).collect();
            let message = format!("`{}` is not added here", entry.key);
            report.error(entry.key_at, message, hint_of(&entry.key, names));
            return None;
        };
        let want: &DataType = values[columns[place]].data_type();
        let text = entry.node.text()?;
        found[place] = Some(sql(text, entry.node.at, &input.schema, Some(want), report)?);
    }
    Some(found)
}

/// Whether rows are revised; `None` if that cannot be.
fn revise(
    step: &Section<'_>,
    input: &Edge,
    report: &mut Reporter<'_>,
) -> Option<Option<ReviseSpec>> {
    if !step.bool("revise") {
        if let Some(entry) = step.entry("revise_for") {
            let hint = "write `revise = true`".to_owned();
            report.error(entry.key_at, "`revise_for` has no effect here", hint);
        }
        return Some(None);
    }
    let RowKind::Windows { keys, id, withdrawn, .. } = &input.rows else {
        let message = "only windows can be revised: a reading that was counted stays counted";
        let hint = "join the registry with the windows, not with what goes into them".to_owned();
        report.error(step.at("revise"), message, hint);
        return None;
    };
    let identity = keys.iter().map(String::as_str).chain([*id]);
    Some(Some(ReviseSpec {
        keep_us: step.duration_us("revise_for").unwrap_or_default(),
        identity: identity.map(|name| input.index(name)).collect(),
        revision: input.index("revision"),
        end: input.index(input.time()),
        moves: *withdrawn || *id != input.start(),
        rows: input.withdrawn_column(),
    }))
}

#[cfg(test)]
mod tests;
