//! `[source] type = "file"` in the table of keys.

use super::super::kinds::{Component, Key, Kind};
use super::TOPICS_DOC;

pub(super) static FILE: Component = Component {
    id: "source.file",
    heading: "[source]",
    tag: Some("file"),
    doc: "A file with one message per line. Bounded: the run ends when all is read.",
    keys: &[
        Key::new("path", Kind::Address, "The file.", "\"readings.ndjson\"").required(),
        Key::new("topic", Kind::Text, "What `topic` says; if absent, the path.", "\"file\""),
        Key::new("topics", Kind::Topics, TOPICS_DOC, "[\"{device}\"]"),
    ],
};
