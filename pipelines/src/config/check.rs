//! Checks a tree against the table of keys: unknown keys, missing keys, values of the wrong kind.
//!
//! After it, whatever is written and was not reported can be read without another check; what was
//! reported is treated as absent by the readers (`section.rs`), so that nothing is reported twice.

use tidegate_operators::properties::Property;
use tidegate_operators::topic::{TopicError, TopicTemplate, is_identifier};
use tidegate_operators::zone::Zone;

use super::kinds::{Component, Key, Kind};
use super::problem::{At, Reporter, hint_of, nearest, sounds_secret};
use super::references;
use super::tree::{Node, Table, Value};
use super::units;

/// Examples of durations.
const DURATIONS: &str = "for example \"250ms\", \"5s\", \"1m\", \"2h\", \"7d\"";

/// Checks the table of a component.
pub fn component(c: &'static Component, node: &Node, at: At, report: &mut Reporter<'_>) {
    let Some(table) = node.table() else {
        report.error(at, format!("this must be a table, not {}", node.value.describe()), None);
        return;
    };
    for entry in &table.entries {
        if c.tag.is_some() && entry.key == "type" {
            continue;
        }
        match c.key(&entry.key) {
            Some(key) => value(&key.kind, &entry.node, entry.key_at, report),
            None => {
                report.error(
                    entry.key_at,
                    format!("unknown key `{}` in {}", entry.key, describe(c)),
                    why_not(c, &entry.key).or_else(|| meant(c, &entry.key, table)),
                );
                mask_if_secret(c, &entry.key, &entry.node, report);
            }
        }
    }
    let is_missing = |k: &&Key| k.required && table.get(k.name).is_none();
    // One that was meant by a key that is none was reported with it.
    let misspelt: Vec<&str> = misspelt(c, table).collect();
    for key in c.keys.iter().filter(|k| is_missing(k) && !misspelt.contains(&k.name)) {
        let hint = if key.example.is_empty() {
            format!("`{}` is a {}", key.name, key.kind.describe())
        } else {
            format!("for example `{} = {}`", key.name, key.example)
        };
        report.error(at, format!("`{}` is missing in {}", key.name, describe(c)), hint);
    }
}

/// Names of all keys of a component.
fn names(c: &'static Component) -> impl Iterator<Item = &'static str> + Clone {
    c.tag.map(|_| "type").into_iter().chain(c.keys.iter().map(|k| k.name))
}

/// The keys that those in a table which are none were probably meant for.
pub(super) fn misspelt<'t>(
    c: &'static Component,
    table: &'t Table,
) -> impl Iterator<Item = &'static str> + 't {
    let unknown = table.entries.iter().filter(|e| c.key(&e.key).is_none() && e.key != "type");
    unknown.filter(|e| why_not(c, &e.key).is_none()).filter_map(move |e| nearest(&e.key, names(c)))
}

/// What a key that is none was meant for.
fn meant(c: &'static Component, written: &str, table: &Table) -> Option<String> {
    let near = nearest(written, names(c)).and_then(|near| c.key(near));
    match near {
        Some(key) if key.required && table.get(key.name).is_none() => {
            Some(format!("did you mean `{}`, which is missing?", key.name))
        }
        _ => hint_of(written, names(c)),
    }
}

/// Why some components do not have a key that others have.
fn why_not(c: &Component, key: &str) -> Option<String> {
    match (c.tag, key) {
        (Some("route"), "early") => Some(
            "it takes the final rows only: a window that is open can change its branch with each \
             row; write filters with `early = true`"
                .to_owned(),
        ),
        (Some("join"), "early") => Some(
            "it takes the final rows only: what an open window is joined to would be told before \
             its partner is over, and nothing would take it back if there is none"
                .to_owned(),
        ),
        _ => None,
    }
}

fn describe(c: &Component) -> String {
    match (c.heading, c.tag) {
        ("", _) => "the pipeline".to_owned(),
        (heading, Some(tag)) => format!("{heading} of type \"{tag}\""),
        (heading, None) => heading.to_owned(),
    }
}

/// The component that a table's `type` selects; reports if there is none.
fn variant(
    all: &'static [&'static Component],
    node: &Node,
    at: At,
    report: &mut Reporter<'_>,
) -> Option<&'static Component> {
    let tags: Vec<&str> = all.iter().filter_map(|c| c.tag).collect();
    let Some(table) = node.table() else {
        report.error(at, format!("this must be a table, not {}", node.value.describe()), None);
        return None;
    };
    let Some(entry) = table.get("type") else {
        let is_key = |name: &str| all.iter().any(|c| c.key(name).is_some());
        let is_like = |name: &str| !is_key(name) && nearest(name, ["type"]).is_some();
        match table.entries.iter().find(|e| is_like(&e.key)) {
            Some(e) => {
                let hint = "did you mean `type`, which is missing?".to_owned();
                let message = format!("unknown key `{}` in {}", e.key, all[0].heading);
                report.error(e.key_at, message, hint);
            }
            None => {
                let hint = hint_of("", tags);
                report.error(at, format!("`type` is missing in {}", all[0].heading), hint);
            }
        }
        return None;
    };
    let found = selected(all, table);
    if found.is_none() {
        let written = entry.node.text().unwrap_or(entry.node.value.describe());
        let message = format!("unknown type `{written}` in {}", all[0].heading);
        report.error(entry.node.at, message, hint_of(written, tags));
    }
    found
}

/// The component that a table's `type` selects.
pub fn selected(all: &'static [&'static Component], table: &Table) -> Option<&'static Component> {
    let tag = table.get("type")?.node.text()?;
    all.iter().copied().find(|c| c.tag == Some(tag))
}

/// Checks one value; `key_at` is where its key is.
fn value(kind: &Kind, node: &Node, key_at: At, report: &mut Reporter<'_>) {
    match kind {
        Kind::Section(c) => component(c, node, key_at, report),
        Kind::Sections(c) => each(node, kind, report, |item, report| {
            component(c, item, start_of(item), report);
        }),
        Kind::Variant(all) => {
            if let Some(c) = variant(all, node, key_at, report) {
                component(c, node, key_at, report);
            }
        }
        Kind::Variants(all) => each(node, kind, report, |item, report| {
            let at = start_of(item);
            if let Some(c) = variant(all, item, at, report) {
                component(c, item, at, report);
            }
        }),
        Kind::NamedVariants(all) => named(node, kind, report, |_, item, at, report| {
            if let Some(c) = variant(all, item, at, report) {
                component(c, item, at, report);
            }
        }),
        Kind::Time(c) | Kind::Zone(c) if node.table().is_some() => {
            component(c, node, key_at, report);
        }
        Kind::Fields(c) => named(node, kind, report, |name, item, at, report| {
            identifier(name, at, report);
            if item.table().is_some() {
                component(c, item, at, report);
            } else if let Some(key) = c.key("type") {
                value(&key.kind, item, at, report);
            }
        }),
        Kind::SqlMap => named(node, kind, report, |name, item, at, report| {
            identifier(name, at, report);
            value(&Kind::Sql, item, at, report);
        }),
        Kind::TimesOfDay => named(node, kind, report, |_, n, _, report| scalar(kind, n, report)),
        Kind::Secrets => named(node, kind, report, |_, item, at, report| {
            value(&Kind::Secret, item, at, report);
        }),
        Kind::Properties => named(node, kind, report, |name, item, at, report| {
            value(&Kind::Payload, item, at, report);
            if name.starts_with("mqtt:") && Property::parse(name).is_none() {
                let hint = hint_of(name, Property::names());
                report.error(at, format!("`{name}` is no property of MQTT 5 here"), hint);
            }
        }),
        Kind::RowsByEdge => named(node, kind, report, |_, item, _, report| {
            each(item, &Kind::RowsByEdge, report, |row, report| {
                if row.table().is_none() {
                    wrong("a table of columns", row, None, report);
                }
            });
        }),
        Kind::CountByEdge => named(node, kind, report, |_, item, at, report| {
            value(&Kind::Int(0, i64::MAX), item, at, report);
        }),
        Kind::Names | Kind::Texts | Kind::Topics => each(node, kind, report, |item, report| {
            let one = match kind {
                Kind::Names => Kind::Name,
                Kind::Topics => Kind::Topics,
                _ => Kind::Text,
            };
            scalar(&one, item, report);
        }),
        _ => scalar(kind, node, report),
    }
}

/// Tables in a list begin with their `[[...]]` or brace: a caret under that says enough.
fn start_of(node: &Node) -> At {
    At { end: node.at.start + 1, ..node.at }
}

fn each(
    node: &Node,
    kind: &Kind,
    report: &mut Reporter<'_>,
    mut check: impl FnMut(&Node, &mut Reporter<'_>),
) {
    match &node.value {
        Value::List(items) => items.iter().for_each(|item| check(item, report)),
        _ => wrong(&kind.describe(), node, Some("write it in `[` and `]`".into()), report),
    }
}

fn named(
    node: &Node,
    kind: &Kind,
    report: &mut Reporter<'_>,
    mut check: impl FnMut(&str, &Node, At, &mut Reporter<'_>),
) {
    match &node.value {
        Value::Table(table) => {
            table.entries.iter().for_each(|e| check(&e.key, &e.node, e.key_at, report));
        }
        _ => wrong(&kind.describe(), node, None, report),
    }
}

fn wrong(expected: &str, node: &Node, hint: Option<String>, report: &mut Reporter<'_>) {
    let message = format!("expected {expected}, not {}", node.value.describe());
    report.error(node.at, message, hint);
}

fn identifier(name: &str, at: At, report: &mut Reporter<'_>) {
    if !is_identifier(name) {
        report.error(
            at,
            format!("`{name}` cannot be the name of a column or an edge"),
            "a name has letters, digits and `_`, and does not start with a digit".to_owned(),
        );
    }
}

/// A misspelt key may well hold a password.
fn mask_if_secret(c: &Component, name: &str, node: &Node, report: &mut Reporter<'_>) {
    let near = nearest(name, c.keys.iter().map(|k| k.name)).and_then(|near| c.key(near));
    let secret =
        near.is_some_and(|k| matches!(k.kind, Kind::Secret | Kind::Secrets | Kind::SecretAddress));
    let literal = !node.text().is_some_and(references::has_any);
    if literal && (secret || sounds_secret(name)) {
        report.mask(node.at);
    }
}

fn scalar(kind: &Kind, node: &Node, report: &mut Reporter<'_>) {
    if matches!(kind, Kind::Secret) && node.text().is_none() {
        report.mask(node.at);
    }
    let problem: Option<(String, Option<String>)> = match (kind, &node.value) {
        (Kind::Bool, Value::Bool(_)) => None,
        (Kind::Int(min, max), Value::Int(i)) if (min..=max).contains(&i) => None,
        (Kind::Int(..), Value::Int(i)) => {
            Some((format!("{i} is outside of what is allowed: {}", kind.describe()), None))
        }
        (Kind::Float, Value::Int(_)) => None,
        (Kind::Float, Value::Float(f)) if f.is_finite() => None,
        (Kind::Float, Value::Float(_)) => Some(("this must be a finite number".into(), None)),
        (Kind::Duration | Kind::DurationOr(_), Value::Int(i)) => Some((
            format!("{i} has no unit"),
            Some(format!("durations are texts with a unit: \"{i}s\", \"{i}ms\", \"{i}m\"")),
        )),
        (Kind::Size, Value::Int(i)) => Some((
            format!("{i} has no unit"),
            Some(format!("sizes are texts with a unit: \"{i}B\", \"{i}KiB\", \"{i}MiB\"")),
        )),
        // TOML has a type of its own for this, and both ways say the same.
        (Kind::Instant, Value::Datetime(d)) => instant(d),
        (_, Value::Text(text)) => return text_value(kind, text, node, report),
        _ => {
            let hint = matches!(kind, Kind::Sql)
                .then(|| "SQL expressions are written as text, in quotes".to_owned());
            return wrong(&kind.describe(), node, hint, report);
        }
    };
    if let Some((message, hint)) = problem {
        report.error(node.at, message, hint);
    }
}

fn text_value(kind: &Kind, text: &str, node: &Node, report: &mut Reporter<'_>) {
    let at = node.at;
    let problem: Option<(String, Option<String>)> = match kind {
        Kind::Name | Kind::PipelineName => return name(kind, text, at, report),
        Kind::DurationOr(words) if words.contains(&text) => None,
        Kind::Duration => units::duration_us(text).err().map(|m| (m, Some(DURATIONS.into()))),
        Kind::DurationOr(words) => units::duration_us(text)
            .err()
            .map(|m| (m, Some(format!("{DURATIONS}, or {}", Kind::OneOf(words).describe())))),
        Kind::Zone(_) => zone(text),
        Kind::TimesOfDay => units::time_of_day_us(text)
            .err()
            .map(|m| (m, Some("for example \"06:00\" or \"22:30\"".into()))),
        Kind::Size => units::size_bytes(text)
            .err()
            .map(|m| (m, Some("for example \"64KiB\" or \"1MB\"".into()))),
        Kind::OneOf(words) if !words.contains(&text) => {
            let hint = type_of_others(text, words).or_else(|| hint_of(text, words.iter().copied()));
            Some((format!("`{text}` is not one of the values allowed"), hint))
        }
        Kind::Topics => {
            TopicTemplate::parse(text).err().map(|e| (e.to_string(), without_ending(text, &e)))
        }
        Kind::Path => path(text),
        Kind::Time(_) => path(text),
        Kind::Regex => regex::Regex::new(text).err().map(|e| {
            let last = e.to_string().lines().last().unwrap_or_default().trim().to_owned();
            (format!("this is not a regular expression: {last}"), None)
        }),
        Kind::TimeFormat => time_format(text),
        Kind::Instant => instant(text),
        Kind::Sql if text.trim().is_empty() => Some(("the expression is empty".into(), None)),
        Kind::Address => references::check(text).err().map(|m| (m, None)),
        Kind::SecretAddress => {
            if !references::has_any(text) {
                report.mask(at);
            }
            references::check(text).err().map(|m| (m, None))
        }
        Kind::Secret => secret(text, at, report),
        Kind::Text if references::has_any(text) => Some((
            "references are not replaced here".into(),
            Some("`${env:...}` and `${file:...}` work in addresses and secrets".into()),
        )),
        Kind::Bool | Kind::Int(..) | Kind::Float => {
            let hint = Some("write it without quotes".into());
            return wrong(&kind.describe(), node, hint, report);
        }
        Kind::OneOf(_) | Kind::Sql | Kind::Text | Kind::Payload => None,
        _ => return wrong(&kind.describe(), node, None, report),
    };
    if let Some((message, hint)) = problem {
        report.error(at, message, hint);
    }
}

/// What may help with a topic of a file whose ending was written.
fn without_ending(text: &str, error: &TopicError) -> Option<String> {
    let TopicError::PartialCapture(level) = error else { return None };
    let (_, ending) = level.rsplit_once('}').filter(|(_, ending)| ending.starts_with('.'))?;
    let topics = text.strip_suffix(ending)?;
    Some(format!(
        "of a source of type \"file\", `topic = \"{{path}}\"` is the path below `path` without \
         ending, for `topics = [\"{topics}\"]`"
    ))
}

/// What a type is called here that has another name in other systems.
fn type_of_others(text: &str, words: &[&str]) -> Option<String> {
    const OTHERS: [(&str, &[&str]); 5] = [
        ("float64", &["double", "float", "real", "decimal", "numeric", "number", "f64", "float32"]),
        ("int64", &["int", "integer", "bigint", "smallint", "long", "short", "int32", "i64"]),
        ("string", &["text", "varchar", "char", "str", "utf8"]),
        ("bool", &["boolean", "bit"]),
        ("time", &["timestamp", "timestamptz", "datetime", "date"]),
    ];
    let lower = text.to_ascii_lowercase();
    // `varchar(20)`, `double precision`.
    let first = lower.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    let (ours, _) = OTHERS.iter().find(|(_, others)| others.contains(&first))?;
    words.contains(ours).then(|| format!("that is `{ours}` here"))
}

fn name(kind: &Kind, text: &str, at: At, report: &mut Reporter<'_>) {
    if matches!(kind, Kind::Name) {
        return identifier(text, at, report);
    }
    let good = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if !good {
        let hint = "a name has letters, digits, `-` and `_`, and starts with a letter".to_owned();
        report.error(at, format!("`{text}` cannot be the name of a pipeline"), hint);
    }
}

fn secret(text: &str, at: At, report: &mut Reporter<'_>) -> Option<(String, Option<String>)> {
    if references::has_any(text) {
        return references::check(text).err().map(|m| (m, None));
    }
    report.mask(at);
    Some((
        "a secret must not be written into the file".into(),
        Some("refer to it: \"${env:NAME}\" or \"${file:PATH}\"".into()),
    ))
}

fn path(text: &str) -> Option<(String, Option<String>)> {
    let hint = "a path is `a`, `a.b` or, from the whole document, `$.a.b`; a capture is `{name}`";
    if let Some(inner) = text.strip_prefix('{') {
        let inner = inner.strip_suffix('}');
        if inner.is_some_and(|inner| inner.contains(':')) {
            let good = inner.and_then(Property::parse).is_some();
            let names: Vec<String> = Property::names().map(|n| format!("`{{{n}}}`")).collect();
            let hint = format!("a property is `{{user:NAME}}` or one of {}", names.join(", "));
            return (!good).then(|| (format!("`{text}` is not a property"), Some(hint)));
        }
        let good = inner.is_some_and(is_identifier);
        return (!good).then(|| (format!("`{text}` is not a capture"), Some(hint.into())));
    }
    let inner = text.strip_prefix("$.").unwrap_or(text);
    let bad = inner.split('.').any(str::is_empty);
    bad.then(|| (format!("`{text}` is not a path"), Some(hint.into())))
}

fn zone(text: &str) -> Option<(String, Option<String>)> {
    let hint = || hint_of(text, Zone::names());
    Zone::parse(text).is_none().then(|| (format!("`{text}` is no IANA time zone"), hint()))
}

fn time_format(text: &str) -> Option<(String, Option<String>)> {
    let words = ["auto", "s", "ms", "us", "ns", "rfc3339"];
    if words.contains(&text) {
        return None;
    }
    if !text.contains('%') {
        return Some((format!("`{text}` is not a time format"), hint_of(text, words)));
    }
    let bad = chrono::format::StrftimeItems::new(text)
        .any(|item| matches!(item, chrono::format::Item::Error));
    bad.then(|| (format!("`{text}` is not a strftime pattern"), None))
}

fn instant(text: &str) -> Option<(String, Option<String>)> {
    chrono::DateTime::parse_from_rfc3339(text).is_err().then(|| {
        let hint = "for example \"2026-01-01T00:00:00Z\", with its offset from UTC";
        (format!("`{text}` is not a point in time"), Some(hint.into()))
    })
}
