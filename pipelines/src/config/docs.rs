//! The reference of all keys as Markdown, derived from the table of keys.

use std::fmt::Write as _;

use super::keys::PIPELINE;
use super::kinds::{Component, Key, Kind};

/// Reference of all keys of a pipeline file.
pub fn docs_markdown() -> String {
    let mut out = String::from(
        "# Pipeline files\n\nDurations have a unit: `us`, `ms`, `s`, `m`, `h`, `d`. Sizes too: \
         `B`, `KB`, `MB`, `GB`, `TB`, `KiB`, `MiB`, `GiB`, `TiB`. Secrets are never written \
         into a file but referred to: `${env:NAME}`, `${file:PATH}`.\n",
    );
    component(&PIPELINE, &mut out);
    out
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
