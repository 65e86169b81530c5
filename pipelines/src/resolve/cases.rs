//! `[[test]]`: messages written out, and what is expected of them.

use arrow::datatypes::SchemaRef;
use chrono::{DateTime, SecondsFormat};
use serde_json::{Map, Number, Value as Json};
use tidegate_operators::properties::{self, Property};
use tidegate_operators::system::{
    alerts_schema, clock_skew_schema, duplicates_schema, findings_schema, late_table_schema,
    rejects_schema,
};

use super::edges::{Edges, RESERVED};
use super::{registry, source};
use crate::config::keys::TEST_MESSAGES_MAX;
use crate::config::problem::{At, Reporter, hint_of, nearest};
use crate::config::section::Section;
use crate::config::tree::{Entry, Node, Value};
use crate::graph::{ALERTS, CLOCK_SKEW, DUPLICATES, FINDINGS, LATE, REJECTS};
use crate::plan::{TestEvent, TestInput, TestSpec};

/// The columns of a table of every plan; `None` if there is no such table. `keys` holds the key
/// columns, which tests can name as if they were columns.
fn system_table(name: &str) -> Option<SchemaRef> {
    match name {
        REJECTS => Some(rejects_schema()),
        LATE => Some(late_table_schema()),
        DUPLICATES => Some(duplicates_schema()),
        CLOCK_SKEW => Some(clock_skew_schema()),
        FINDINGS => Some(findings_schema()),
        ALERTS => Some(alerts_schema()),
        _ => None,
    }
}

/// The tests of a pipeline, the `index`-th of the plan.
pub(crate) fn tests(
    file: &Section<'_>,
    index: usize,
    edges: &Edges,
    report: &mut Reporter<'_>,
) -> Vec<TestSpec> {
    let mut found = Vec::new();
    for test in file.sections("test") {
        let mut inputs = inputs(file, &test, report);
        inputs.splice(0..0, registry::test_inputs(file, &test, &inputs, report));
        inputs.sort_by_key(|i| i.at_us);
        let expect: Vec<(String, Vec<Map<String, Json>>)> = test
            .entries("expect")
            .iter()
            .filter_map(|entry| {
                if !edge_is_known(entry, edges, report) {
                    return None;
                }
                Some((entry.key.clone(), rows(entry, edges, report)))
            })
            .collect();
        let count: Vec<(String, u64)> = test
            .entries("count")
            .iter()
            .filter(|entry| edge_is_known(entry, edges, report))
            .filter_map(|entry| match entry.node.value {
                Value::Int(i) => Some((entry.key.clone(), u64::try_from(i).ok()?)),
                _ => None,
            })
            .collect();
        if test.entries("expect").is_empty() && test.entries("count").is_empty() {
            let hint = "add `expect.EDGE = [...]` or `count.EDGE = ...`".to_owned();
            report.error(test.at, "this test expects nothing, so it cannot fail", hint);
        }
        let (path, line) = report.place(test.at);
        let name = test.text("name").unwrap_or_default().to_owned();
        found.push(TestSpec { name, pipeline: index, inputs, expect, count, file: path, line });
    }
    found
}

fn inputs(file: &Section<'_>, test: &Section<'_>, report: &mut Reporter<'_>) -> Vec<TestInput> {
    let sections = test.sections("input");
    let total: i64 = sections.iter().filter_map(|s| s.int("count")).sum();
    if total > TEST_MESSAGES_MAX {
        let message = format!("{total} messages, and {TEST_MESSAGES_MAX} are the most");
        report.error(test.at("input"), message, None);
        return Vec::new();
    }
    let mut templates = source::templates(file);
    templates.extend(file.sections("registry").iter().filter_map(registry::topic));
    let mut inputs = Vec::new();
    for input in sections {
        if input.entry("event").is_some() {
            inputs.extend(event(file, &input, report));
            continue;
        }
        for key in ["topic", "payload"] {
            if input.entry(key).is_none() {
                let hint = "write it, or an `event`".to_owned();
                report.error(input.at, format!("`{key}` is missing"), hint);
            }
        }
        let Some(topic) = input.text("topic") else { continue };
        let mut captures = Vec::new();
        let is_read = templates.iter().any(|(t, _)| t.matches(topic, &mut captures));
        let all_known = !source::is_unknown(file) && source::unreadable(file).next().is_none();
        if !is_read && all_known {
            let hint = "compare it with `topics` in [source]".to_owned();
            let message = format!("the pipeline does not read `{topic}`");
            report.warning(input.at("topic"), message, hint);
        }
        expand(&input, topic, &mut inputs);
    }
    inputs.sort_by_key(|i| i.at_us);
    since_away(&mut inputs);
    inputs
}

/// A session that is lost is so since the connection was.
fn since_away(inputs: &mut [TestInput]) {
    let mut away_us = None;
    for input in inputs {
        match &mut input.event {
            Some(TestEvent::SourceAway) => away_us = away_us.or(Some(input.at_us)),
            Some(TestEvent::SessionLost { since_us }) => {
                *since_us = away_us.take().unwrap_or(input.at_us);
            }
            Some(TestEvent::SourceBack) => away_us = None,
            Some(TestEvent::Tick) | None => {}
        }
    }
}

/// What happens instead of a message.
fn event(file: &Section<'_>, input: &Section<'_>, report: &mut Reporter<'_>) -> Option<TestInput> {
    for key in ["topic", "payload", "properties", "every", "count"] {
        if let Some(entry) = input.entry(key) {
            let hint = "an event is no message, and happens once".to_owned();
            report.error(entry.key_at, format!("`{key}` together with `event`"), hint);
        }
    }
    let event = match input.text("event")? {
        "tick" => TestEvent::Tick,
        "source_away" => TestEvent::SourceAway,
        "session_lost" => TestEvent::SessionLost { since_us: 0 },
        _ => TestEvent::SourceBack,
    };
    let tag = file.section("source").and_then(|source| source.component.tag);
    if event != TestEvent::Tick && tag.is_some_and(|tag| tag != "mqtt") {
        let hint = "a source of type `mqtt` has a connection that can be lost".to_owned();
        report.error(input.at("event"), "this source cannot be away", hint);
    }
    let at = DateTime::parse_from_rfc3339(input.text("at")?).ok()?;
    Some(TestInput {
        topic: String::new(),
        at_us: at.timestamp_micros(),
        payload: Vec::new(),
        properties: Vec::new(),
        change: None,
        event: Some(event),
    })
}

fn expand(input: &Section<'_>, topic: &str, inputs: &mut Vec<TestInput>) {
    let at = input.text("at").and_then(|t| DateTime::parse_from_rfc3339(t).ok());
    let parts = (at, input.duration_us("every"), input.int("count"), input.text("payload"));
    let (Some(at), Some(every_us), Some(count), Some(payload)) = parts else { return };
    let properties: Vec<(Property, &str)> = input
        .entries("properties")
        .iter()
        .filter_map(|e| {
            let named = Property::parse(&e.key);
            Some((named.unwrap_or_else(|| Property::User(e.key.clone())), e.node.text()?))
        })
        .collect();
    let properties = properties::encode(properties.iter().map(|(p, text)| (p, text.as_bytes())));
    for i in 0..count {
        let at_us = at.timestamp_micros().saturating_add(every_us.saturating_mul(i));
        let payload = payload
            .replace("{ms}", &at_us.div_euclid(1_000).to_string())
            .replace("{us}", &at_us.to_string())
            .replace("{s}", &at_us.div_euclid(1_000_000).to_string())
            .replace("{rfc3339}", &rfc3339(at_us))
            .replace("{i}", &i.to_string());
        inputs.push(TestInput {
            topic: topic.to_owned(),
            at_us,
            payload: payload.into_bytes(),
            properties: properties.clone(),
            change: None,
            event: None,
        });
    }
}

/// A point in time for people and payloads.
pub(crate) fn rfc3339(us: i64) -> String {
    match DateTime::from_timestamp_micros(us) {
        Some(time) => time.to_rfc3339_opts(SecondsFormat::AutoSi, true),
        None => format!("{us} µs"),
    }
}

fn edge_is_known(entry: &Entry, edges: &Edges, report: &mut Reporter<'_>) -> bool {
    let name = entry.key.as_str();
    let known = system_table(name).is_some() || edges.contains(name);
    if !known {
        // Tables of the system are no edges, but tests can name them.
        let names = edges.names().into_iter().chain(RESERVED);
        match nearest(name, names).filter(|near| system_table(near).is_some()) {
            Some(near) => {
                let hint = format!("did you mean `{near}`?");
                report.error(entry.key_at, format!("there is no edge `{name}`"), hint);
            }
            None => edges.report_unknown(name, entry.key_at, report),
        }
    }
    known
}

fn rows(entry: &Entry, edges: &Edges, report: &mut Reporter<'_>) -> Vec<Map<String, Json>> {
    let names = columns(&entry.key, edges);
    let mut rows = Vec::new();
    for row in entry.node.list().iter().filter_map(Node::table) {
        for cell in &row.entries {
            if let Some(names) = &names {
                column_is_known(&cell.key, cell.key_at, names, report);
            }
        }
        rows.push(row.entries.iter().map(|c| (c.key.clone(), json(&c.node))).collect());
    }
    rows
}

fn column_is_known(name: &str, at: At, names: &[String], report: &mut Reporter<'_>) {
    if !names.iter().any(|n| n == name) {
        let message = format!("there is no column `{name}` here");
        report.error(at, message, hint_of(name, names.iter().map(String::as_str)));
    }
}

/// What a test can name of an edge; `None` if the edge could not be resolved.
fn columns(edge: &str, edges: &Edges) -> Option<Vec<String>> {
    let names = |schema: &SchemaRef| -> Vec<String> {
        schema.fields().iter().map(|f| f.name().clone()).collect()
    };
    let of = |name: &str| edges.peek(name).map(|e| names(&e.schema));
    let Some(schema) = system_table(edge) else { return of(edge) };
    let mut known = names(&schema);
    if known.iter().any(|n| n == "keys") {
        // Any column can be a key somewhere.
        known.extend(edges.names().into_iter().filter_map(of).flatten());
    }
    Some(known)
}

fn json(node: &Node) -> Json {
    match &node.value {
        Value::Text(text) | Value::Datetime(text) => Json::String(text.clone()),
        Value::Int(i) => Json::Number((*i).into()),
        Value::Float(f) => Number::from_f64(*f).map_or(Json::Null, Json::Number),
        Value::Bool(b) => Json::Bool(*b),
        Value::List(items) => Json::Array(items.iter().map(json).collect()),
        Value::Table(table) => {
            Json::Object(table.entries.iter().map(|e| (e.key.clone(), json(&e.node))).collect())
        }
    }
}
