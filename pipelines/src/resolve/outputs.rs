//! What leaves a pipeline: `[[alert]]`, `[[table]]` and `[notify]`.

use std::collections::BTreeMap;

use arrow::datatypes::DataType;
use tidegate_operators::alert::summary::{Piece, pieces};
use tidegate_operators::spec::{AlertSpec, TableSpec};

use super::edges::{Edge, Edges, RowKind};
use super::{absence, early, endless, limits, sequence, sql};
use crate::config::problem::{At, Reporter, hint_of, nearest};
use crate::config::references::{Resolver, UNSET, has_any};
use crate::config::secret::Secret;
use crate::config::section::Section;
use crate::graph::READINGS;
use crate::plan::NotifySpec;
use crate::webhook::{SECRET_PREFIX, private_host, signing_key};

/// The column names that a text for people refers to: `{name}`.
pub(crate) fn placeholders(text: &str) -> impl Iterator<Item = &str> {
    pieces(text).into_iter().filter_map(|(_, piece)| match piece {
        Piece::Column(name) => Some(name),
        Piece::Plain(_) | Piece::Lone(_) => None,
    })
}

/// Reports what a text for people cannot be filled with, each at its place.
fn check_summary(alert: &Section<'_>, edge: &Edge, report: &mut Reporter<'_>) {
    let Some(text) = alert.text("summary") else { return };
    let whole = alert.at("summary");
    for (start, piece) in pieces(text) {
        match piece {
            Piece::Plain(_) => {}
            Piece::Column("") => {
                let at = report.within(whole, text, start..start + 2);
                let hint = "a column is written `{name}`, and a brace `{{` or `}}`".to_owned();
                report.error(at, "there is no name between these braces", hint);
            }
            Piece::Column(name) => {
                let at = report.within(whole, text, start..start + name.len() + 2);
                edge.column(name, at, report);
            }
            Piece::Lone(brace) => {
                let at = report.within(whole, text, start..start + 1);
                let what = if brace == "{" { "is not closed" } else { "was not opened" };
                let hint = "a column is written `{name}`, and a brace `{{` or `}}`".to_owned();
                report.error(at, format!("this `{brace}` {what}"), hint);
            }
        }
    }
}

/// Names that were taken, for uniqueness.
#[derive(Default)]
struct Taken<'t>(BTreeMap<&'t str, At>);

impl<'t> Taken<'t> {
    fn take(&mut self, what: &str, name: &'t str, at: At, report: &mut Reporter<'_>) {
        if let Some(first) = self.0.insert(name, at) {
            let (_, line) = report.place(first);
            let message = format!("there is already {what} `{name}`");
            report.error(at, message, format!("the first one is in line {line}"));
        }
    }
}

/// The alert rules, each with the edge that it reads.
pub(crate) fn alerts(
    file: &Section<'_>,
    edges: &Edges,
    report: &mut Reporter<'_>,
) -> Vec<(String, AlertSpec)> {
    let mut taken = Taken::default();
    let mut found = Vec::new();
    let known: Vec<&str> = file.entries("notify").iter().map(|e| e.key.as_str()).collect();
    for alert in file.sections("alert") {
        if let Some(name) = alert.text("name") {
            taken.take("an alert", name, alert.at("name"), report);
        }
        known_notifications(file, &alert, report);
        let Some(from) = alert.text("from") else { continue };
        if edges.get(from, alert.at("from"), report).is_none() {
            continue;
        }
        let from = early::taken(edges, &alert, "from", report);
        let Some(edge) = edges.peek(&from) else { continue };
        if let Some(spec) = one_alert(file, &alert, edge, report) {
            found.push((from, spec));
        }
    }
    for entry in file.entries("notify") {
        // One that is misspelt was reported, and is meant for the nearest.
        let used = |a: &Section<'_>| {
            let mut names = a.texts("notify").unwrap_or_default().into_iter();
            names.any(|(name, _)| {
                name == entry.key || meant(name, &known) == Some(entry.key.as_str())
            })
        };
        let engine = file.named("notify", entry).is_some_and(|n| n.bool("engine"));
        if !engine && !file.sections("alert").iter().any(used) {
            let hint = format!("name it in an alert: notify = [\"{}\"]", entry.key);
            report.warning(entry.key_at, format!("no alert tells `{}`", entry.key), hint);
        }
    }
    found
}

/// The name that one which is not among the known ones is meant for.
fn meant<'n>(name: &str, known: &[&'n str]) -> Option<&'n str> {
    nearest(name, known.iter().copied()).filter(|_| !known.contains(&name))
}

fn known_notifications(file: &Section<'_>, alert: &Section<'_>, report: &mut Reporter<'_>) {
    let known: Vec<&str> = file.entries("notify").iter().map(|e| e.key.as_str()).collect();
    for (name, at) in alert.texts("notify").unwrap_or_default() {
        if !known.contains(&name) {
            let hint = hint_of(name, known.clone())
                .unwrap_or_else(|| format!("add a table [notify.{name}]"));
            report.error(at, format!("there is no [notify.{name}]"), hint);
        }
    }
}

fn one_alert(
    file: &Section<'_>,
    alert: &Section<'_>,
    edge: &Edge,
    report: &mut Reporter<'_>,
) -> Option<AlertSpec> {
    let (keys, complete) = edge.key_indexes(alert.texts("by"), report);
    let summary = alert.text("summary").or(alert.text("name")).unwrap_or_default();
    check_summary(alert, edge, report);
    let text = alert.text("fire")?;
    let want = Some(&DataType::Boolean);
    let fire = sql(text, alert.at("fire"), &edge.schema, want, report);
    let clear = match alert.text("clear") {
        Some(clear) => sql(clear, alert.at("clear"), &edge.schema, want, report),
        // A second planning of a broken text would report it twice.
        None => {
            fire.as_ref()?;
            sql(&format!("NOT ({text})"), alert.at("fire"), &edge.schema, want, report)
        }
    };
    if let Some(rule) = fire.as_ref().zip(clear.as_ref()) {
        endless::warn((file, alert), edge, rule, report);
    }
    if !complete {
        return None;
    }
    never_lasts(alert, edge, report);
    let others = match &edge.rows {
        RowKind::Windows { keys: of_windows, .. } => {
            of_windows.iter().map(|key| edge.index(key)).filter(|i| !keys.contains(i)).collect()
        }
        _ => Vec::new(),
    };
    Some(AlertSpec {
        pipeline: file.text("name").unwrap_or_default().to_owned(),
        name: alert.text("name")?.to_owned(),
        input: edge.schema.clone(),
        keys,
        others,
        time: edge.index(edge.time()),
        fire: fire?,
        clear: clear?,
        for_us: alert.duration_us("for")?,
        severity: alert.text("severity")?.to_owned(),
        summary: summary.to_owned(),
        notify: alert
            .texts("notify")
            .unwrap_or_default()
            .into_iter()
            .map(|(name, _)| name.to_owned())
            .collect(),
        max_age_us: alert.duration_us("max_age")?,
        early: early::has_early(edge),
        limits: limits::of_step(&limits::table(file), alert),
    })
}

/// Warns of a rule that waits for a further row, where that row says that it is over.
fn never_lasts(alert: &Section<'_>, edge: &Edge, report: &mut Reporter<'_>) {
    let once = absence::is_of(&edge.schema) || sequence::is_of(&edge.schema);
    if once && alert.duration_us("for").is_some_and(|us| us > 0) {
        let message = "this never fires: there is one row when it begins, and one when it is over";
        let hint = "leave out `for`; how long it must last is said in the step".to_owned();
        report.warning(alert.at("for"), message, hint);
    }
}

/// The tables.
pub(crate) fn tables(
    file: &Section<'_>,
    namespace: &str,
    edges: &Edges,
    report: &mut Reporter<'_>,
) -> Vec<TableSpec> {
    let mut taken = Taken::default();
    let mut found = Vec::new();
    for table in file.sections("table") {
        let Some(from) = table.text("from") else { continue };
        let name = table.text("name").unwrap_or(from);
        let key = if table.entry("name").is_some() { "name" } else { "from" };
        taken.take("a table", name, table.at(key), report);
        if edges.get(from, table.at("from"), report).is_none() {
            continue;
        }
        let from = early::taken(edges, &table, "from", report);
        let Some(edge) = edges.peek(&from) else { continue };
        found.extend(one_table(&table, namespace, (name, &from), edge, report));
    }
    found
}

fn one_table(
    table: &Section<'_>,
    namespace: &str,
    (name, from): (&str, &str),
    edge: &Edge,
    report: &mut Reporter<'_>,
) -> Option<TableSpec> {
    let fields = edge.schema.fields().iter();
    if let Some(day) = fields.map(|f| f.name()).find(|name| name.eq_ignore_ascii_case("day")) {
        let hint = "rename it with a step of type \"select\"".to_owned();
        let message = format!("a column `{day}` would clash with the partition");
        report.error(table.at("from"), message, hint);
    }
    let mut partition: Vec<String> = Vec::new();
    for (column, at) in table.texts("partition").unwrap_or_default() {
        let Some(index) = edge.column(column, at, report) else { continue };
        let data_type = edge.schema.field(index).data_type();
        if *data_type != DataType::Utf8 {
            let hint = "partition columns are text; the day is the first partition anyway";
            let message = format!("`{column}` is not text");
            report.error(at, message, hint.to_owned());
        } else if column == "device" {
            let hint = "partition by something with few values; rows are sorted by device anyway";
            report.warning(at, "files per device will be many and small", hint.to_owned());
        }
        if partition.iter().any(|p| p == column) {
            report.error(at, format!("`{column}` is named twice"), None);
        } else {
            partition.push(column.to_owned());
        }
    }
    let keys = edge.keys();
    // Also where windows come once: the table may have rows from when they came more than once.
    let identity = match &edge.rows {
        RowKind::Windows { id, .. } => keys.iter().cloned().chain([(*id).to_owned()]).collect(),
        _ => Vec::new(),
    };
    Some(TableSpec {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        from: from.to_owned(),
        schema: edge.schema.clone(),
        time: edge.start().to_owned(),
        sort: keys.into_iter().filter(|k| !partition.contains(k)).collect(),
        partition,
        identity,
        rows: None,
        freshness_us: table.duration_us("freshness")?,
    })
}

/// Warns of steps whose rows go nowhere. (Findings are kept anyway, and the rows of a branch may be
/// meant to go nowhere.)
pub(crate) fn unread_steps(file: &Section<'_>, report: &mut Reporter<'_>) {
    let mut readers: Vec<&str> = ["alert", "table"]
        .iter()
        .flat_map(|key| file.sections(key))
        .filter_map(|section| section.text("from"))
        .collect();
    let steps = file.sections("step");
    readers.extend(steps.iter().flat_map(super::steps::inputs).map(|(_, edge)| edge));
    let names: Vec<&str> = steps.iter().flat_map(super::steps::outputs).collect();
    // One that is misspelt was reported, and is meant for the nearest.
    let misspelt = readers.iter().filter(|name| **name != READINGS);
    let misspelt: Vec<&str> = misspelt.filter_map(|name| meant(name, &names)).collect();
    readers.extend(misspelt);
    for step in file.sections("step") {
        let Some(name) = step.text("name") else { continue };
        if !matches!(step.component.tag, Some("route" | "detect")) && !readers.contains(&name) {
            let hint = format!("keep it with [[table]] from = \"{name}\"");
            report.warning(step.at("name"), format!("nothing reads `{name}`"), hint);
        }
    }
}

/// Whom the alerts of a pipeline can tell.
pub(crate) fn notifications(
    file: &Section<'_>,
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Vec<NotifySpec> {
    let mut found = Vec::new();
    for entry in file.entries("notify") {
        let Some(table) = file.named("notify", entry) else { continue };
        let url = table.resolved("url", resolve, report);
        let secret = table.resolved("secret", resolve, report).map(Secret::new);
        let Some(url) = url else { continue };
        let parsed = url::Url::parse(&url).ok();
        let good = parsed.filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
        let Some(parsed) = good else {
            let hint = "it starts with `https://` or `http://`".to_owned();
            report.error(table.at("url"), "this is no URL of a webhook", hint);
            continue;
        };
        never_reached(&table, &parsed, report);
        never_genuine(&table, secret.as_ref(), report);
        let times = table.duration_us("timeout").zip(table.duration_us("max_age"));
        let Some((timeout_us, max_age_us)) = times else { continue };
        if timeout_us == 0 {
            report.error(table.at("timeout"), "a try needs some time", None);
        }
        found.push(NotifySpec {
            pipeline: file.text("name").unwrap_or_default().to_owned(),
            name: entry.key.clone(),
            url: Secret::new(url),
            secret,
            timeout_us,
            max_age_us,
            allow_private: table.bool("allow_private"),
            engine: table.bool("engine"),
        });
    }
    found
}

/// Warns of an address to which nothing will be sent.
fn never_reached(table: &Section<'_>, url: &url::Url, report: &mut Reporter<'_>) {
    let private = private_host(url).filter(|_| !table.bool("allow_private"));
    if let Some(host) = private {
        let at = table.at("url");
        if !table.text("url").is_some_and(has_any) {
            report.mask(at);
        }
        let message = format!("nothing will be sent to {host}: this address is private or special");
        report.warning(at, message, "`allow_private = true` permits it".to_owned());
    }
}

/// Reports a secret that cannot be used, and warns of one that most receivers cannot use.
fn never_genuine(table: &Section<'_>, secret: Option<&Secret>, report: &mut Reporter<'_>) {
    // What it will be is not known here.
    let Some(secret) = secret.map(Secret::expose).filter(|s| !s.contains(UNSET)) else { return };
    let at = table.at("secret");
    let make = "make one with `echo \"whsec_$(openssl rand -base64 32)\"`";
    if let Err(why) = signing_key(secret) {
        report.error(at, format!("{why}: it is `whsec_` and base64 of the key"), make.to_owned());
    } else if !secret.starts_with(SECRET_PREFIX) {
        let message = "this secret does not begin with `whsec_`: its text is the key as it \
                       stands, and receivers by Standard Webhooks take it for base64";
        report.warning(at, message, make.to_owned());
    }
}
