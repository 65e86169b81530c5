//! `[source] type = "file"` in the table of keys.

use super::super::kinds::{Component, Key, Kind};
use super::TOPICS_DOC;

/// How files can be written.
pub(crate) static FILE_FORMATS: [&str; 3] = ["ndjson", "csv", "parquet"];

pub(super) static FILE: Component = Component {
    id: "source.file",
    heading: "[source]",
    tag: Some("file"),
    doc: "Files with one message per line or row. Bounded: the run ends when all is read. Run \
          again, it goes on with files that are new; they may not change once they were read.",
    keys: &[
        Key::new(
            "path",
            Kind::Address,
            "A file, a folder (with all below it, hidden files aside), or a pattern: `*` and `?` \
             stand for letters, `**` for any folders. Files are read in order of their names, \
             numbers in them counted (`part-9` before `part-10`).",
            "\"data/*.ndjson\"",
        )
        .required(),
        Key::new(
            "format",
            Kind::OneOf(&FILE_FORMATS),
            "How the files are written; if absent, their names tell: `.csv`, `.tsv`, `.parquet`, \
             `.ndjson`, `.jsonl`, `.json`. `.gz` and `.zst` are unpacked. A row of `csv` or \
             `parquet` is a message with a JSON object: empty cells of `csv` are null, those that \
             are numbers are numbers.",
            "\"csv\"",
        ),
        Key::new(
            "columns",
            Kind::Texts,
            "Names of the columns of `csv` files without a line of names.",
            "[\"device\", \"ts\", \"v\"]",
        ),
        Key::new(
            "delimiter",
            Kind::Text,
            "What is between the cells of `csv` files; if absent, a comma, in `.tsv` files a tab.",
            "\";\"",
        ),
        Key::new(
            "topic",
            Kind::Text,
            "What `topic` says; `{name}` is the name of the file, `{stem}` that without its \
             endings, `{path}` the stem with the folders below `path`. If absent, the path of the \
             file.",
            "\"plant/{path}\"",
        ),
        Key::new("topics", Kind::Topics, TOPICS_DOC, "[\"plant/{site}/{device}\"]"),
    ],
};
