//! The reference of all keys as Markdown, derived from the table of keys.

use std::fmt::Write as _;

use arrow::datatypes::{DataType, Schema, SchemaRef};
use tidegate_operators::aggregate::{StateSize, functions};
use tidegate_operators::system;

use super::keys::{PIPELINE, PROCESS_FILE};
use super::kinds::{Component, Key, Kind};
use crate::examples::FIRST;

const BEGIN: &str = "\
# Pipeline files

A pipeline reads messages from a source, makes typed rows of them (the edge `readings`), and sends
these through steps. Each step reads an edge and its output is an edge of the step's name. Alerts
and tables read edges. Expressions are SQL.

Durations have a unit: `us`, `ms`, `s`, `m`, `h`, `d`. Sizes too: `B`, `KB`, `MB`, `GB`, `TB`,
`KiB`, `MiB`, `GiB`, `TiB`. Secrets are never written into a file but referred to: `${env:NAME}`,
`${file:PATH}`.
";

/// Reference of all keys of a pipeline file and of `tidegate.toml`.
pub fn docs_markdown() -> String {
    let mut out = String::from(BEGIN);
    let _ = write!(out, "\n## An example\n\n```toml\n{}```\n", FIRST.1);
    component(&PIPELINE, &mut out);
    time_series(&mut out);
    system_tables(&mut out);
    component(&PROCESS_FILE, &mut out);
    out
}

/// The aggregates that are there beside DataFusion's.
fn time_series(out: &mut String) {
    out.push_str(
        "\n## Aggregates for time series\n\nIn the `select` of a window and in `tidegate sql`, \
         beside all aggregates of DataFusion. In a window `time` is left out: it is the time of \
         the reading (`twa(level)`); in SQL it is named (`twa(level, time)`). For the same \
         readings both give the same result, to the last bit, in whatever order they came. Nulls, \
         NaN and infinities are skipped. Of several values of one time the greatest counts.\n\n\
         | function | meaning | state |\n|---|---|---|\n",
    );
    for f in functions() {
        let names = [&[f.name], f.aliases].concat();
        let calls: Vec<String> = names.iter().map(|n| format!("`{n}({})`", f.arguments)).collect();
        let state = match f.state {
            StateSize::Bounded(bytes) => format!("{bytes} bytes"),
            StateSize::PerReading(bytes) => format!("{bytes} bytes per reading"),
        };
        let _ = writeln!(out, "| {} | {} | {state} |", calls.join(", "), f.doc);
    }
}

/// The tables that are there without being asked for.
fn system_tables(out: &mut String) {
    out.push_str(
        "\n## System tables\n\nThey are there for every pipeline, without a `[[table]]`; \
         `pipeline` says whose rows they are. `keys` and `row` are JSON.\n",
    );
    for (name, doc, schema) in about_readings().into_iter().chain(about_the_rest()) {
        let _ = write!(out, "\n### `system.{name}`\n\n{doc}\n\n{}\n", columns(&schema));
    }
}

/// Name, meaning and schema.
type SystemTable = (&'static str, &'static str, SchemaRef);

/// What became of readings.
fn about_readings() -> Vec<SystemTable> {
    vec![
        (
            "rejects",
            "What could not be used: messages, elements of arrays, rows of steps. `reason` is one \
             word, `detail` a sentence, `payload` the raw bytes (`TRY_CAST(payload AS VARCHAR)`), \
             `reading_time` the reading's own time where that is known: if it is too far ahead or \
             behind (`future`, `past`), and in steps that have it.",
            system::rejects_schema(),
        ),
        (
            "late",
            "Readings that came after the state of their windows was gone: `window_start` is that \
             of the first, `window_end` that of the last window that no longer takes them (of \
             windows with bounds from the readings: their own time, and the time before which \
             windows of their key are not revised any more), `received_late_us` how far \
             they were behind the clock of their key, `ingest_time` the time of the epoch in which \
             they came. A reading that touches a session or a state which is not final has its \
             effect when that is: its `window_end` is its own time, and one more row, which is no \
             reading, tells of all that waited: its `time` is its `window_end`, its `window_start` \
             the time of the first of them, and none of them came before `first_offset`.",
            system::late_table_schema(),
        ),
        (
            "windows_kept",
            "Windows that late readings had no effect on, since not all of their readings are \
             stored (deleted, or from before there was a table of them), or because they are \
             sessions that would all be cut at other times up to the open one, or counts that \
             share readings of one time: one row for each, when that turned out first. `time` is \
             their `window_start` (of sessions that could become one: that of the first, and \
             `window_end` that of the last; of states, and where no count is known: the times of \
             the first and the last late reading), `table_name` the table in which they stay as \
             they are, `late_readings` how many came too late then, `ingest_time` by when.",
            system::windows_kept_schema(),
        ),
        (
            "duplicates",
            "Readings that were dropped because they came before (`reason` is `repeated`), and \
             readings that had to be forgotten before `horizon` (`forgotten`): one row per epoch, \
             device and reason, with how many there were, the journal offsets of the first and the \
             last, and the time of the first.",
            system::duplicates_schema(),
        ),
        (
            "clock_skew",
            "How far the clocks of devices are from ours: a row when that has changed by more than \
             a second and a tenth. `offset_us` is the device's clock less ours, and the delay of \
             its way to us as if it were behind; `off` says whether that is more than \
             `clock_skew_max`, `since` when it was seen first. An estimate takes two stretches of \
             five minutes with readings that agree: a device that sends what it has buffered \
             catches up, so they do not. A device without a row is right to a second, or not \
             known yet, or beyond `keys_max`.",
            system::clock_skew_schema(),
        ),
    ]
}

/// What else happened.
fn about_the_rest() -> Vec<SystemTable> {
    vec![
        (
            "sessions",
            "What happened to the sessions of devices, brokers and HTTP clients. `event` is \
             `connected`, `disconnected`, `lost`, `timeout`, `taken_over`, `will` (`detail` is its \
             topic), `expired`, `refused` (not let in), `denied` (may not publish or subscribe), \
             `limited` (its queue was full), `starting` (a session with a broker of ours, before \
             it is connected), `subscribed`, `filter_refused` (the others go on), `skipped` (a \
             packet that could not be taken), or `request` (HTTP with a key).",
            system::sessions_schema(),
        ),
        (
            "gaps",
            "Times in which messages may have been lost before they reached us: a broker has \
             forgotten the session.",
            system::gaps_schema(),
        ),
        (
            "limits",
            "Limits of the engine that were reached (`state` is `reached`) and left (`left`), and \
             what is done about it. `kind` is `memory` (`subject` is the stage: `tight`, `full`, \
             `stop`), `journal`, `disk`, `spill`, `in_flight` (`subject` is `bytes` or `epochs`), \
             `outbox`, `open_files`, or `keys` (`subject` is the pipeline and its step). `value` \
             and `max` are bytes; of `in_flight` what its subject says, of `outbox` notifications \
             that wait, of `open_files` connections, of `keys` rows that were refused since the \
             start of the process and `keys_max`; of `disk`, and where a limit is left, they are \
             null: `action` says what is known.",
            system::limits_schema(),
        ),
        ("findings", "What detectors found.", system::findings_schema()),
        (
            "alerts",
            "Changes of alerts, `status` is `firing` or `resolved`; `notify` tells whether \
             somebody was to be told, `reason` why it ended, if not by its condition: \
             `rule_changed`, or `withdrawn` (the window or absence that it fired for was none, or \
             does not pass a filter any more).",
            system::alerts_schema(),
        ),
    ]
}

fn columns(schema: &Schema) -> String {
    let column = |f: &arrow::datatypes::FieldRef| {
        let kind = match f.data_type() {
            DataType::Timestamp(..) => "time".to_owned(),
            DataType::Utf8 => "string".to_owned(),
            DataType::Boolean => "bool".to_owned(),
            other => other.to_string().to_lowercase(),
        };
        format!("`{}` {kind}", f.name())
    };
    schema.fields().iter().map(column).collect::<Vec<_>>().join(", ")
}

fn component(c: &Component, out: &mut String) {
    let heading = match (c.heading, c.tag) {
        ("", _) => "The file".to_owned(),
        (heading, Some(tag)) => format!("`{heading}` with `type = \"{tag}\"`"),
        (heading, None) => format!("`{heading}`"),
    };
    let _ = write!(out, "\n## {heading}\n\n{}\n\n", c.doc);
    out.push_str("| key | value | default | meaning | example |\n|---|---|---|---|---|\n");
    for key in c.keys {
        row(key, out);
    }
    for key in c.keys {
        match key.kind {
            Kind::Section(below)
            | Kind::Sections(below)
            | Kind::Time(below)
            | Kind::Zone(below)
            | Kind::Fields(below) => component(below, out),
            other => other.components().iter().for_each(|below| component(below, out)),
        }
    }
}

fn row(key: &Key, out: &mut String) {
    let cell = |text: &str| text.replace('|', "\\|");
    let default = match (key.required, key.default) {
        (true, _) => "required".to_owned(),
        (false, Some(default)) => match key.kind {
            Kind::Bool | Kind::Int(..) | Kind::Float => format!("`{default}`"),
            _ => format!("`\"{default}\"`"),
        },
        (false, None) => String::new(),
    };
    let example =
        if key.example.is_empty() { String::new() } else { format!("`{}`", cell(key.example)) };
    let kind = cell(&key.kind.describe());
    let _ =
        writeln!(out, "| `{}` | {kind} | {default} | {} | {example} |", key.name, cell(key.doc));
}
