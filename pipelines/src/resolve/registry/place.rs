//! Where registries come from: a file or a URL.

use tidegate_operators::spec::{Origin, RegistrySpec};

use crate::config::problem::Reporter;
use crate::config::references::Resolver;
use crate::config::secret::Secret;
use crate::config::section::{Section, expand};
use crate::plan::{FileFormat, RegistryPlace, RegistrySource, RegistryUrl};
use crate::resolve::source;

/// Keys that say where a registry is.
const PLACES: [&str; 2] = ["path", "url"];

/// Keys that are for a URL.
const OF_URL: [&str; 4] = ["refresh", "headers", "timeout", "body_max"];

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
        let key = spec.columns[..spec.keys].iter().map(|c| {
            let path = match &c.origin {
                Origin::Path(path) => path.clone(),
                _ => vec![c.name.clone()],
            };
            (c.name.clone(), path)
        });
        found.push(RegistrySource {
            pipeline: spec.pipeline.clone(),
            name: spec.name.clone(),
            key: key.collect(),
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
        let all = "`path` for a file, `url` for what is asked for by HTTP";
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
    if *place != "url" {
        for entry in OF_URL.into_iter().filter_map(|key| section.entry(key)) {
            report.error(entry.key_at, format!("`{}` is for a `url`", entry.key), None);
        }
        return section.resolved("path", resolve, report).map(RegistryPlace::File);
    }
    url(section, resolve, report).map(RegistryPlace::Url)
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
