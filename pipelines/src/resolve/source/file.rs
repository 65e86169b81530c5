//! `[source] type = "file"`.

use std::collections::BTreeSet;

use tidegate_operators::topic::TopicTemplate;

use crate::config::problem::{At, Reporter, hint_of};
use crate::config::references::Resolver;
use crate::config::section::Section;
use crate::plan::{FileFormat, FileSpec, SourceKind, SourceSpec};

/// What of a file's name a topic can hold.
const PLACEHOLDERS: [&str; 3] = ["name", "stem", "path"];

pub(super) fn file(
    source: &Section<'_>,
    topics: &[(TopicTemplate, At)],
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Option<SourceSpec> {
    let path = source.resolved("path", resolve, report)?;
    let topic = source.text("topic").map(str::to_owned);
    topic_is_read(&path, topic.as_deref(), source, topics, report);
    let format = file_format(source);
    for key in ["columns", "delimiter"] {
        if let (Some(entry), Some(FileFormat::Ndjson | FileFormat::Parquet)) =
            (source.entry(key), format)
        {
            report.error(entry.key_at, format!("`{key}` is for files of the format csv"), None);
        }
    }
    Some(SourceSpec {
        name: format!("file {path}"),
        kind: SourceKind::File(FileSpec {
            path,
            topic,
            format,
            columns: columns(source, report),
            delimiter: delimiter(source, report),
        }),
    })
}

/// The format that is written down.
pub(crate) fn file_format(section: &Section<'_>) -> Option<FileFormat> {
    match section.text("format") {
        Some("ndjson") => Some(FileFormat::Ndjson),
        Some("csv") => Some(FileFormat::Csv),
        Some("parquet") => Some(FileFormat::Parquet),
        _ => None,
    }
}

/// Reports a topic that no template takes, as far as that can be known without the files.
fn topic_is_read(
    path: &str,
    topic: Option<&str>,
    source: &Section<'_>,
    topics: &[(TopicTemplate, At)],
    report: &mut Reporter<'_>,
) {
    let mut open = path.contains(['*', '?']) || topic.is_none() && !path.contains('.');
    for placeholder in topic.map(placeholders).unwrap_or_default() {
        open = true;
        if !PLACEHOLDERS.contains(&placeholder) {
            let message = format!("`{{{placeholder}}}` says nothing about a file");
            report.error(source.at("topic"), message, hint_of(placeholder, PLACEHOLDERS));
        }
    }
    let topic = topic.unwrap_or(path);
    if !open && !topics.iter().any(|(t, _)| t.matches(topic, &mut Vec::new())) {
        let message = format!("no topic template matches `{topic}`, so nothing would be read");
        let hint = "change `topic` or `topics`".to_owned();
        report.error(source.at("topics"), message, hint);
    }
}

/// What stands in braces.
fn placeholders(text: &str) -> Vec<&str> {
    let inner = |part| str::split_once(part, '}').map(|(inner, _)| inner);
    text.split('{').skip(1).filter_map(inner).collect()
}

fn columns(source: &Section<'_>, report: &mut Reporter<'_>) -> Option<Vec<String>> {
    let names = source.texts("columns")?;
    let mut seen = BTreeSet::new();
    for (name, at) in &names {
        if !seen.insert(*name) {
            report.error(*at, format!("there are two columns `{name}`"), None);
        }
    }
    if names.is_empty() {
        report.error(source.at("columns"), "there is no column in the list", None);
    }
    Some(names.into_iter().map(|(name, _)| name.to_owned()).collect())
}

/// The delimiter that is written down.
pub(crate) fn delimiter(source: &Section<'_>, report: &mut Reporter<'_>) -> Option<u8> {
    let text = source.text("delimiter")?;
    match text.as_bytes() {
        [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r') => Some(*byte),
        _ => {
            let hint = "for example \";\" or \"\\t\"".to_owned();
            report.error(source.at("delimiter"), "a delimiter is one ASCII character", hint);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::load;
    use crate::plan::{FileFormat, FileSpec, SourceKind};

    fn spec(source: &str) -> Result<FileSpec, String> {
        let text = format!(
            "name = \"p\"\n[source]\ntype = \"file\"\n{source}\n\
             [reading]\ndevice = \"d\"\ntime = \"ts\"\n[[table]]\nfrom = \"readings\""
        );
        let plan = load(&[("p.toml".into(), text)], &|_, _| Err(String::new()));
        let plan = plan.map_err(|problems| {
            problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        })?;
        match plan.sources.into_iter().next().map(|s| s.kind) {
            Some(SourceKind::File(spec)) => Ok(spec),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn every_key_arrives() {
        let all = "path = \"x/**/*.csv\"\nformat = \"csv\"\ncolumns = [\"a\", \"b\"]\n\
                   delimiter = \"\\t\"\ntopic = \"p/{path}\"\ntopics = [\"p/{site}/{n}\"]";
        let expected = FileSpec {
            path: "x/**/*.csv".into(),
            topic: Some("p/{path}".into()),
            format: Some(FileFormat::Csv),
            columns: Some(vec!["a".into(), "b".into()]),
            delimiter: Some(b'\t'),
        };
        assert_eq!(spec(all), Ok(expected));
        let plain = spec("path = \"x\"").unwrap();
        assert_eq!((plain.topic, plain.format, plain.columns), (None, None, None));
    }

    #[test]
    fn what_cannot_be_is_told() {
        for (source, told) in [
            ("path = \"x\"\ndelimiter = \";;\"", "one ASCII character"),
            ("path = \"x\"\nformat = \"xml\"", "not one of the values"),
            ("path = \"x\"\nformat = \"parquet\"\ncolumns = [\"a\"]", "of the format csv"),
            ("path = \"x\"\ncolumns = [\"a\", \"a\"]", "two columns"),
            ("path = \"x\"\ntopic = \"{stam}\"", "did you mean `stem`"),
            ("path = \"x\"\ntopic = \"a\"\ntopics = [\"b\"]", "nothing would be read"),
        ] {
            let error = spec(source).unwrap_err();
            assert!(error.contains(told), "{source}: {error}");
        }
    }
}
