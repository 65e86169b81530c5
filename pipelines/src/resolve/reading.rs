//! `[reading]`: from what is declared, and what the plan uses, to the columns that are decoded.

use tidegate_operators::properties::Property;
use tidegate_operators::spec::{
    ColumnSpec, ColumnType, DecodeSpec, Format, OnInvalid, Origin, Rules, TimeFormat,
};
use tidegate_operators::topic::TopicTemplate;

use super::dedup;
use super::usage::Needs;
use crate::config::keys::TYPES;
use crate::config::problem::{At, Reporter, hint_of};
use crate::config::section::Section;
use crate::config::tree::Entry;

/// Columns that are there where they are used, without being declared.
pub(crate) const BUILTIN: [&str; 6] =
    ["topic", "client_id", "received_time", "journal_offset", "journal_element", "payload_hash"];

/// Columns of a reading at most: more would be a mistake, and each costs memory in every batch.
const COLUMNS_MAX: usize = 1_000;

/// What decodes the payloads of a pipeline; `needs` says which columns are put out, all if absent.
pub(crate) fn decode(
    pipeline: &str,
    source: u16,
    reading: &Section<'_>,
    topics: &[(TopicTemplate, At)],
    needs: Option<&Needs>,
    report: &mut Reporter<'_>,
) -> DecodeSpec {
    let kept = dedup::columns_read(reading);
    let mut columns = Columns { topics, needs, kept: &kept, report, list: Vec::new() };
    columns.device(reading);
    columns.time(reading);
    for entry in reading.entries("fields") {
        columns.field(reading, entry);
    }
    columns.captures();
    columns.builtin();
    if columns.list.len() > COLUMNS_MAX {
        let at = reading.at("fields");
        columns.report.error(at, format!("a reading can have {COLUMNS_MAX} columns"), None);
    }
    let list = columns.list;
    let format = match reading.text("format") {
        Some("influx") => Format::Influx,
        _ => Format::Json,
    };
    if let (Format::Influx, Some(written)) = (format, reading.entry("explode")) {
        let hint = "each line is a reading of its own".to_owned();
        report.error(written.key_at, "a line of InfluxDB has no array to explode", hint);
    }
    let explode = reading.text("explode").and_then(|text| match origin(text) {
        Origin::Path(path) | Origin::Root(path) => Some(path),
        _ => {
            let hint = "it is the path of an array in the payload".to_owned();
            report.error(reading.at("explode"), format!("`{text}` is no path"), hint);
            None
        }
    });
    DecodeSpec {
        pipeline: pipeline.to_owned(),
        source,
        topics: topics.iter().map(|(t, _)| t.clone()).collect(),
        format,
        explode,
        columns: list,
        future_bound_us: reading.duration_us("future_bound").unwrap_or_default(),
        past_bound_us: reading.duration_us("past_bound"),
        clocks: false,
        payload_bytes_max: reading.size_bytes("payload_max").unwrap_or_default() as usize,
    }
}

/// The columns that the table below `key` declares, read from objects of their own. What does not
/// say where it is, and has the name of a level of `topics`, is that level.
pub(super) fn declared(
    section: &Section<'_>,
    key: &str,
    topics: &[(TopicTemplate, At)],
    report: &mut Reporter<'_>,
) -> Vec<ColumnSpec> {
    let mut columns = Columns { topics, needs: None, kept: &[], report, list: Vec::new() };
    let mut list = Vec::new();
    for entry in section.entries(key) {
        let table = section.named(key, entry);
        let mut column = match &table {
            Some(table) => columns.field_table(&entry.key, table),
            None => {
                let kind = column_type(entry.node.text().unwrap_or("string"), "auto");
                columns.plain(&entry.key, origin_of_name(&entry.key), kind)
            }
        };
        let says = table.is_some_and(|table| table.entry("field").is_some());
        if !says && topics.iter().any(|(t, _)| t.names().contains(&entry.key)) {
            column.origin = Origin::Capture(entry.key.clone());
        }
        if !matches!(column.origin, Origin::Path(_) | Origin::Capture(_)) {
            let hint = "a row has members and nothing else".to_owned();
            columns.report.error(entry.key_at, "this is not in a row of a registry", hint);
        }
        list.push(column);
    }
    list
}

/// Names of the columns that are declared with a type that is none.
pub(crate) fn of_unknown_type(reading: &Section<'_>) -> Vec<String> {
    let written = |entry: &Entry| -> Option<String> {
        let node = match reading.named("fields", entry) {
            Some(table) => table.entry("type").map(|e| &e.node),
            None => Some(&entry.node),
        };
        node?.text().map(str::to_owned)
    };
    let fields = reading.entries("fields").iter();
    fields
        .filter(|e| !written(e).is_some_and(|t| TYPES.contains(&t.as_str())))
        .map(|e| e.key.clone())
        .collect()
}

/// Names of the columns that are there whatever the topics are.
pub(crate) fn without_captures(reading: &Section<'_>) -> Vec<String> {
    let declared = reading.entries("fields").iter().map(|e| e.key.as_str());
    ["device", "time"].into_iter().chain(BUILTIN).chain(declared).map(str::to_owned).collect()
}

/// Where a value comes from, as written.
fn origin(text: &str) -> Origin {
    let path = |text: &str| text.split('.').map(str::to_owned).collect();
    if let Some(name) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
        match Property::parse(name) {
            Some(property) => Origin::Property(property),
            None => Origin::Capture(name.to_owned()),
        }
    } else if let Some(rest) = text.strip_prefix("$.") {
        Origin::Root(path(rest))
    } else {
        Origin::Path(path(text))
    }
}

fn time_format(text: &str) -> TimeFormat {
    match text {
        "auto" => TimeFormat::Auto,
        "s" => TimeFormat::Seconds,
        "ms" => TimeFormat::Milliseconds,
        "us" => TimeFormat::Microseconds,
        "ns" => TimeFormat::Nanoseconds,
        "rfc3339" => TimeFormat::Rfc3339,
        pattern => TimeFormat::Pattern(pattern.to_owned()),
    }
}

struct Columns<'a, 'r> {
    topics: &'a [(TopicTemplate, At)],
    needs: Option<&'a Needs>,
    /// Columns that are read before anything else is.
    kept: &'a [String],
    report: &'a mut Reporter<'r>,
    list: Vec<ColumnSpec>,
}

impl Columns<'_, '_> {
    fn required(&mut self, name: &str, origin: Origin, kind: ColumnType) {
        self.list.push(ColumnSpec {
            name: name.to_owned(),
            origin,
            kind,
            rules: Rules { required: true, ..Rules::default() },
            on_invalid: OnInvalid::Reject,
            unit: None,
            output: true,
        });
    }

    fn device(&mut self, reading: &Section<'_>) {
        let at = reading.at("device");
        let from = origin(reading.text("device").unwrap_or("device"));
        if let Origin::Capture(name) = &from {
            self.capture_exists(name, at);
            for (template, _) in self.topics.iter().filter(|(t, _)| !t.names().contains(name)) {
                if self.topics.iter().any(|(t, _)| t.names().contains(name)) {
                    let message = format!("the topic `{template}` has no `{{{name}}}`");
                    let hint = "every reading needs its device, so every topic needs it".to_owned();
                    self.report.error(at, message, hint);
                }
            }
        }
        self.required("device", from, ColumnType::Utf8);
    }

    fn time(&mut self, reading: &Section<'_>) {
        let (from, format) = match reading.section("time") {
            Some(time) => (
                time.text("field").unwrap_or("time"),
                time_format(time.text("format").unwrap_or("auto")),
            ),
            None => (reading.text("time").unwrap_or("time"), TimeFormat::Auto),
        };
        let is_received = from == "received" && reading.section("time").is_none();
        let from = if is_received { Origin::ReceivedTime } else { origin(from) };
        if let Origin::Capture(name) = &from {
            self.capture_exists(name, reading.at("time"));
        }
        self.required("time", from, ColumnType::Time(format));
    }

    fn capture_exists(&mut self, name: &str, at: At) {
        let names: Vec<&str> =
            self.topics.iter().flat_map(|(t, _)| t.names()).map(String::as_str).collect();
        let is_consequence =
            !self.report.knows_captures() || self.report.is_unsure(&[name.to_owned()]);
        if !names.contains(&name) && !is_consequence {
            let message = format!("no topic has a capture `{{{name}}}`");
            self.report.error(at, message, hint_of(name, names));
        }
    }

    fn field(&mut self, reading: &Section<'_>, entry: &Entry) {
        let name = entry.key.as_str();
        if matches!(name, "device" | "time") {
            let hint = format!("say where it is with `{name} = ...` in [reading]");
            self.report.error(entry.key_at, format!("`{name}` is there already"), hint);
            return;
        }
        if BUILTIN.contains(&name) {
            let hint = format!("choose another name, with `field = \"{name}\"`");
            let message = format!("`{name}` is what Tidegate knows about the message");
            self.report.error(entry.key_at, message, hint);
            return;
        }
        let column = match reading.named("fields", entry) {
            Some(table) => self.field_table(name, &table),
            None => {
                let kind = column_type(entry.node.text().unwrap_or("string"), "auto");
                self.plain(name, origin_of_name(name), kind)
            }
        };
        if let Origin::Path(path) = &column.origin {
            let hides = self.topics.iter().any(|(t, _)| t.names().iter().any(|n| n == name));
            if hides && path.len() == 1 && path[0] == name {
                let message = format!("this is read from the payload and hides `{{{name}}}`");
                let hint = format!("the capture is `field = \"{{{name}}}\"`");
                self.report.warning(entry.key_at, message, hint);
            }
        }
        self.list.push(column);
    }

    fn plain(&self, name: &str, origin: Origin, kind: ColumnType) -> ColumnSpec {
        ColumnSpec {
            name: name.to_owned(),
            origin,
            kind,
            rules: Rules::default(),
            on_invalid: OnInvalid::Reject,
            unit: None,
            output: self.needs.is_none_or(|n| n.keeps(name)) || self.is_kept(name),
        }
    }

    fn is_kept(&self, name: &str) -> bool {
        self.kept.iter().any(|k| k == name)
    }

    fn field_table(&mut self, name: &str, table: &Section<'_>) -> ColumnSpec {
        let type_name = table.text("type").unwrap_or("string");
        let kind = column_type(type_name, table.text("format").unwrap_or("auto"));
        let number = matches!(kind, ColumnType::Int64 | ColumnType::Float64);
        let text = kind == ColumnType::Utf8;
        let time = matches!(kind, ColumnType::Time(_));
        for (key, fits, of) in [
            ("min", number, "numbers"),
            ("max", number, "numbers"),
            ("one_of", text, "strings"),
            ("matches", text, "strings"),
            ("format", time, "times"),
        ] {
            // What is no type was reported.
            let fits = fits || table.text("type").is_none();
            if let (Some(written), false) = (table.entry(key), fits) {
                let message = format!("`{key}` is for {of}, and `{name}` is a {type_name}");
                self.report.error(written.key_at, message, None);
            }
        }
        let (min, max) = (table.number("min"), table.number("max"));
        if let (Some(low), Some(high)) = (min, max)
            && low > high
        {
            let message = format!("`min` is {low} and `max` is {high}: no value can satisfy both");
            self.report.error(table.at("min"), message, None);
        }
        let from = table.text("field").map_or_else(|| origin_of_name(name), origin);
        if let Origin::Capture(capture) = &from {
            self.capture_exists(capture, table.at("field"));
        }
        let one_of = table.texts("one_of");
        if one_of.as_ref().is_some_and(Vec::is_empty) {
            self.report.error(table.at("one_of"), "no value can satisfy an empty list", None);
        }
        ColumnSpec {
            rules: Rules {
                required: table.bool("required"),
                min,
                max,
                matches: table.text("matches").map(str::to_owned),
                one_of: one_of.map(|l| l.into_iter().map(|(t, _)| t.to_owned()).collect()),
            },
            on_invalid: match table.text("on_invalid") {
                Some("null") => OnInvalid::Null,
                _ => OnInvalid::Reject,
            },
            unit: table.text("unit").map(str::to_owned),
            ..self.plain(name, from, kind)
        }
    }

    /// Captures that nothing declares are columns of their own names.
    fn captures(&mut self) {
        for (template, at) in self.topics {
            for name in template.names() {
                let own = Origin::Capture(name.clone());
                if let Some(column) = self.list.iter().find(|c| c.name == *name) {
                    if matches!(name.as_str(), "device" | "time") && column.origin != own {
                        let message = format!("`{{{name}}}` has the name of another column");
                        let hint = format!("name it `{{topic_{name}}}`, or read `{name}` from it");
                        self.report.error(*at, message, hint);
                    }
                    continue;
                }
                if self.list.iter().any(|c| c.origin == own) {
                    continue;
                }
                if BUILTIN.contains(&name.as_str()) {
                    let message = format!("`{{{name}}}` has the name of a column that is there");
                    self.report.error(*at, message, format!("name it `{{topic_{name}}}`"));
                    continue;
                }
                let mut column = self.plain(name, own, ColumnType::Utf8);
                column.rules.required = self.topics.iter().all(|(t, _)| t.names().contains(name));
                self.list.push(column);
            }
        }
    }

    fn builtin(&mut self) {
        let time = ColumnType::Time(TimeFormat::Microseconds);
        let all = [
            ("topic", Origin::Topic, ColumnType::Utf8),
            ("client_id", Origin::Client, ColumnType::Utf8),
            ("received_time", Origin::ReceivedTime, time),
            ("journal_offset", Origin::Offset, ColumnType::Int64),
            ("journal_element", Origin::Element, ColumnType::Int64),
            ("payload_hash", Origin::PayloadHash, ColumnType::Int64),
        ];
        for (name, origin, kind) in all {
            if self.needs.is_none_or(|n| n.keeps_builtin(name)) || self.is_kept(name) {
                self.required(name, origin, kind);
            }
        }
        // Not every source knows who sent a message.
        for column in self.list.iter_mut().filter(|c| c.origin == Origin::Client) {
            column.rules.required = false;
        }
    }
}

fn origin_of_name(name: &str) -> Origin {
    Origin::Path(vec![name.to_owned()])
}

fn column_type(name: &str, format: &str) -> ColumnType {
    match name {
        "bool" => ColumnType::Bool,
        "int64" => ColumnType::Int64,
        "float64" => ColumnType::Float64,
        "time" => ColumnType::Time(time_format(format)),
        _ => ColumnType::Utf8,
    }
}
