//! Where registries come from: a file, a URL or a topic.

use tidegate_operators::spec::{ColumnSpec, Origin, RegistrySpec};
use tidegate_operators::topic::{TopicTemplate, filters_meet};

use crate::config::problem::{At, Reporter};
use crate::config::references::Resolver;
use crate::config::secret::Secret;
use crate::config::section::{Section, expand};
use crate::config::tree::Entry;
use crate::plan::{FileFormat, RegistryPlace, RegistrySource, RegistryTopic, RegistryUrl};
use crate::resolve::source;

/// Keys that say where a registry is.
const PLACES: [&str; 3] = ["path", "url", "topic"];

/// Keys that are for a URL.
const OF_URL: [&str; 4] = ["refresh", "headers", "timeout", "body_max"];

/// Keys that are for rows of a file or an answer.
const OF_ROWS: [&str; 2] = ["format", "delimiter"];

/// The shortest `refresh`, microseconds: whoever needs it sooner asks for what is new, not for all.
const REFRESH_LEAST_US: i64 = 1_000_000;

/// Below this an answer has no room, bytes.
const BODY_BYTES_MIN: u64 = 1 << 10;

/// Where the registries of a pipeline come from.
pub(in crate::resolve) fn sources(
    file: &Section<'_>,
    registries: &[RegistrySpec],
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Vec<RegistrySource> {
    let mut found = Vec::new();
    for section in file.sections("registry") {
        let place = place(&section, resolve, report);
        let spec = registries.iter().find(|r| Some(r.name.as_str()) == section.text("name"));
        let (Some(spec), Some(place)) = (spec, place) else { continue };
        let path_of = |c: &ColumnSpec| {
            let path = match &c.origin {
                Origin::Path(path) => path.clone(),
                _ => vec![c.name.clone()],
            };
            (c.name.clone(), path)
        };
        let (key, others) = spec.columns.split_at(spec.keys);
        let others = others.iter().filter(|c| !may_be_absent(&section, &c.name));
        found.push(RegistrySource {
            pipeline: spec.pipeline.clone(),
            name: spec.name.clone(),
            key: key.iter().map(path_of).collect(),
            columns: others.map(path_of).collect(),
            valid_from: section.text("valid_from").map(str::to_owned),
            place,
            format: source::file_format(&section),
            delimiter: delimiter(&section, report),
        });
    }
    found
}

/// Where one is; reports if that is said twice or not at all.
fn place(
    section: &Section<'_>,
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Option<RegistryPlace> {
    let named: Vec<&str> = PLACES.into_iter().filter(|k| section.entry(k).is_some()).collect();
    let [place] = named.as_slice() else {
        let all = "`path` for a file, `url` for HTTP, `topic` for retained messages";
        match named.as_slice() {
            [] => report.error(
                section.at("name"),
                "nothing says where this registry is",
                format!("give {all}"),
            ),
            [first, second, ..] => {
                let message = format!("`{first}` and `{second}` exclude each other");
                report.error(section.at(second), message, format!("one of them: {all}"));
            }
            [_] => {}
        }
        return None;
    };
    let mut refuse = |keys: &[&str], of: &str| {
        for entry in keys.iter().filter_map(|key| section.entry(key)) {
            report.error(entry.key_at, format!("`{}` is for {of}", entry.key), None);
        }
    };
    match *place {
        "url" => return url(section, resolve, report).map(RegistryPlace::Url),
        "path" => refuse(&OF_URL, "a `url`"),
        _ => {
            refuse(&OF_URL, "a `url`");
            refuse(&OF_ROWS, "rows of a file");
            let (template, _) = topic(section)?;
            removable(section, &template, report);
            let columns = section.entries("columns").iter();
            let captured = |entry: &Entry| {
                let capture = match field(section, &entry.key) {
                    Some(field) => field.strip_prefix('{')?.strip_suffix('}')?.to_owned(),
                    None => entry.key.clone(),
                };
                template.names().contains(&capture).then(|| (entry.key.clone(), capture))
            };
            let captures = columns.filter_map(captured).collect();
            return Some(RegistryPlace::Topic(RegistryTopic { template, captures }));
        }
    }
    section.resolved("path", resolve, report).map(RegistryPlace::File)
}

/// The topic of a registry, if it is one.
pub(in crate::resolve) fn topic(section: &Section<'_>) -> Option<(TopicTemplate, At)> {
    let template = TopicTemplate::parse(section.text("topic")?).ok()?;
    Some((template, section.at("topic")))
}

/// The filters of all registries of a pipeline that are topics.
pub(in crate::resolve) fn filters(file: &Section<'_>) -> Vec<String> {
    let topics = file.sections("registry");
    let mut filters: Vec<String> =
        topics.iter().filter_map(|section| Some(topic(section)?.0.filter())).collect();
    filters.sort();
    filters.dedup();
    filters
}

/// Reports a topic that cannot be one of a registry, in a pipeline that reads `readings`.
pub(super) fn check_topic(
    file: &Section<'_>,
    section: &Section<'_>,
    report: &mut Reporter<'_>,
) -> Option<()> {
    let at = section.at("topic");
    let template = match TopicTemplate::parse(section.text("topic")?) {
        Ok(template) => template,
        Err(error) => {
            report.error(at, error.to_string(), None);
            return None;
        }
    };
    let source = file.section("source").and_then(|source| source.component.tag);
    if !matches!(source, Some("endpoint" | "mqtt") | None) {
        let hint = "a source of type `endpoint` or `mqtt` does".to_owned();
        report.error(at, "the source of this pipeline has no retained messages", hint);
    }
    for (readings, _) in source::templates(file) {
        if filters_meet(&readings.filter(), &template.filter()) {
            let message = format!("some topics match both `{template}` and `{readings}`");
            let hint = "a message is either an entry of the registry or a reading: change \
                        `topic` here, or `topics` of the source"
                .to_owned();
            report.error(at, message, hint);
        }
    }
    Some(())
}

/// Warns of entries that cannot be removed.
fn removable(section: &Section<'_>, template: &TopicTemplate, report: &mut Reporter<'_>) {
    let key: Vec<&str> =
        section.texts("key").unwrap_or_default().into_iter().map(|(name, _)| name).collect();
    let is_level = |name: &str| match field(section, name) {
        Some(field) => field.starts_with('{'),
        None => template.names().iter().any(|n| n == name),
    };
    if let Some(name) = key.iter().find(|name| !is_level(name)) {
        let message = format!("an empty payload cannot say which `{name}` is removed");
        let hint = format!("make it a level of the topic: `{{{name}}}`");
        report.warning(section.at("topic"), message, hint);
    }
}

/// Where a column says that it is.
fn field<'t>(section: &Section<'t>, name: &str) -> Option<&'t str> {
    let entry = section.entries("columns").iter().find(|e| e.key == name)?;
    section.named("columns", entry)?.text("field")
}

/// Whether a column says itself that it is not required: then it may be in no row at all.
fn may_be_absent(section: &Section<'_>, name: &str) -> bool {
    let entry = section.entries("columns").iter().find(|e| e.key == name);
    let table = entry.and_then(|entry| section.named("columns", entry));
    table.is_some_and(|table| table.entry("required").is_some() && !table.bool("required"))
}

fn url(
    section: &Section<'_>,
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Option<RegistryUrl> {
    let at = section.at("url");
    let url = section.resolved("url", resolve, report);
    let headers = headers(section, resolve, report);
    let parsed = url.as_ref().and_then(|url| url::Url::parse(url).ok());
    match parsed.filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host()) {
        None if url.is_some() => {
            report.mask(at);
            let hint = "it starts with `https://` or `http://`".to_owned();
            report.error(at, "this is no URL of a registry", hint);
        }
        Some(u) if u.password().is_some() || !u.username().is_empty() => {
            report.mask(at);
            let hint = "use `headers = { Authorization = \"Basic ${env:NAME}\" }`".to_owned();
            report.error(at, "a user or password must not be in the URL", hint);
        }
        _ => {}
    }
    let refresh_us = section.duration_us("refresh")?;
    if refresh_us < REFRESH_LEAST_US {
        report.error(section.at("refresh"), "the shortest `refresh` is \"1s\"", None);
    }
    let timeout_us = section.duration_us("timeout")?;
    if timeout_us == 0 {
        report.error(section.at("timeout"), "an answer needs some time", None);
    }
    let body_bytes_max = section.size_bytes("body_max")?;
    if body_bytes_max < BODY_BYTES_MIN {
        report.error(section.at("body_max"), "an answer needs at least 1KiB", None);
    }
    let url = Secret::new(url?);
    Some(RegistryUrl { url, headers: headers?, refresh_us, timeout_us, body_bytes_max })
}

fn headers(
    section: &Section<'_>,
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Option<Vec<(String, Secret)>> {
    let mut list: Vec<(String, Secret)> = Vec::new();
    let mut all = true;
    for entry in section.entries("headers") {
        let Some(value) = expand(&entry.node, resolve, report) else {
            all = false;
            continue;
        };
        let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if entry.key.is_empty() || !entry.key.chars().all(token) {
            let message = format!("`{}` cannot be the name of a header", entry.key);
            report.error(entry.key_at, message, None);
        }
        let twice = |(name, _): &&(String, Secret)| name.eq_ignore_ascii_case(&entry.key);
        if list.iter().find(twice).is_some() {
            report.error(entry.key_at, format!("`{}` is there twice", entry.key), None);
        }
        if value.is_empty() || !value.bytes().all(|b| b == b'\t' || (b >= b' ' && b != 0x7f)) {
            report.error(entry.node.at, "this value is empty, or no header can have it", None);
        }
        list.push((entry.key.clone(), Secret::new(value)));
    }
    list.sort_by(|a, b| a.0.cmp(&b.0));
    all.then_some(list)
}

/// What is between cells; reports it where there are none.
fn delimiter(section: &Section<'_>, report: &mut Reporter<'_>) -> Option<u8> {
    if let (Some(entry), Some(FileFormat::Ndjson | FileFormat::Parquet)) =
        (section.entry("delimiter"), source::file_format(section))
    {
        report.error(entry.key_at, "`delimiter` is for the format csv", None);
    }
    source::delimiter(section, report)
}
