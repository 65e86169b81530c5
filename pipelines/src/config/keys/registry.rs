//! `[[registry]]`, the step that joins it, and what tests say of it, in the table of keys.

use super::super::kinds::{Component, Key, Kind};
use super::FIELD;
use super::file::FILE_FORMATS;
use super::limits::STEP_UNBOUNDED;
use super::steps::{STEP_EARLY, STEP_FROM, STEP_NAME};

/// Most versions of a key: each takes memory wherever the registry is joined.
const VERSIONS_MAX: i64 = 100_000;

pub(super) static REGISTRY: Component = Component {
    id: "registry",
    heading: "[[registry]]",
    tag: None,
    doc: "What is known of devices, sites or models (limits, places, firmware) and changes over \
          time, kept in a file (`path`), at a `url` or on a `topic`. Changes of it are journaled \
          as readings are. Its history is the table `NAME_versions`; a step of type `enrich` joins \
          it. A row that is bad is a row of `system.rejects`, and what was known before stays.",
    keys: &[
        Key::new("name", Kind::Name, "Its name.", "\"limits\"").required(),
        Key::new(
            "path",
            Kind::Address,
            "A file that is read again whenever it changes. It must be there at the start; if it \
             is gone later, what it said last stays and the alert `registry_unreadable` tells.",
            "\"limits.csv\"",
        ),
        Key::new(
            "url",
            Kind::SecretAddress,
            "In place of `path`: where it is asked for by HTTP. The first start waits for the \
             first answer; what cannot be had later leaves everything as it was, and the alert \
             `registry_unreadable` tells. Only a whole answer counts.",
            "\"https://assets.example/limits.csv\"",
        ),
        Key::new(
            "topic",
            Kind::Text,
            "In place of `path`: a topic template. Each message there is an entry, a JSON object, \
             as a broker retains it; an empty payload removes it. `{name}` is the column of that \
             name. The pipeline's own source brings them (`endpoint` or `mqtt`); they are no \
             readings. An entry holds from when it was received, the first of a key since ever.",
            "\"registry/devices/{device}\"",
        ),
        Key::new(
            "refresh",
            Kind::Duration,
            "How often the `url` is asked; only what has changed is sent, if the server gives an \
             `ETag` or `Last-Modified`. After a failure it is asked again sooner, then with \
             growing pauses.",
            "\"5m\"",
        )
        .default("1m"),
        Key::new(
            "headers",
            Kind::Secrets,
            "Headers of the requests for the `url`. They go to no other host, wherever it \
             redirects.",
            "{ Authorization = \"Bearer ${env:ASSETS_TOKEN}\" }",
        ),
        Key::new(
            "timeout",
            Kind::Duration,
            "How long an answer of the `url` may take until it is whole.",
            "\"30s\"",
        )
        .default("30s"),
        Key::new(
            "body_max",
            Kind::Size,
            "Longest answer of the `url`, as it is sent.",
            "\"64MiB\"",
        )
        .default("64MiB"),
        Key::new(
            "format",
            Kind::OneOf(&FILE_FORMATS),
            "How it is written; if absent, its name tells (`.csv`, `.tsv`, `.parquet`, `.ndjson`), \
             or the `Content-Type` of the answer. `ndjson` may also be one JSON array of objects. \
             What is packed with gzip or zstd is unpacked.",
            "\"csv\"",
        ),
        Key::new(
            "delimiter",
            Kind::Text,
            "What is between the cells of `csv`; if absent, a comma, in `.tsv` files a tab.",
            "\";\"",
        ),
        Key::new("key", Kind::Names, "The columns that a row is about.", "[\"device\"]").required(),
        Key::new(
            "columns",
            Kind::Fields(&FIELD),
            "All columns, those of the key too: `name = \"type\"`, or a table as that of a column \
             of readings. What is in no row of a file or answer makes it unreadable, unless its \
             table says `required = false`.",
            "{ device = \"string\", limit_high = \"float64\" }",
        )
        .required(),
        Key::new(
            "valid_from",
            Kind::Name,
            "The member of a row that says since when it holds (a time; null: since ever); then \
             there can be several rows of a key. If absent, what is there at first holds since \
             ever, and a change from when it was taken in.",
            "\"since\"",
        ),
        Key::new(
            "versions_max",
            Kind::Int(1, VERSIONS_MAX),
            "Most versions of a key that are remembered. Of more, the oldest is forgotten, and \
             rows from its time find nothing.",
            "100",
        )
        .default("100"),
    ],
};

pub(super) static ENRICH: Component = Component {
    id: "step.enrich",
    heading: "[[step]]",
    tag: Some("enrich"),
    doc: "Adds columns of a registry: those of the version that was valid at the row's time (of a \
          window: at its start). Changes of an epoch come before its rows, whatever workers do.",
    keys: &[
        STEP_NAME,
        STEP_FROM,
        Key::new("registry", Kind::Name, "The registry.", "\"limits\"").required(),
        Key::new(
            "on",
            Kind::Names,
            "The columns of the row that make the registry's key, in its order; if absent, those \
             of the same names.",
            "[\"device\"]",
        ),
        Key::new(
            "columns",
            Kind::Names,
            "The columns to add; if absent, all that are not of the key.",
            "[\"limit_high\"]",
        ),
        Key::new(
            "default",
            Kind::SqlMap,
            "What stands in for a null of an added column: an expression over the row.",
            "{ limit_high = \"8.0\" }",
        ),
        Key::new(
            "missing",
            Kind::OneOf(&["null", "reject"]),
            "What becomes of a row of which the registry has nothing at its time: nulls (or \
             defaults), or a row of `system.rejects`.",
            "\"null\"",
        )
        .default("null"),
        Key::new(
            "revise",
            Kind::Bool,
            "A change that comes late emits windows again for which something else holds, with \
             the next `revision`, whatever kind of windows they are. Only for windows: they alone \
             have revisions.",
            "true",
        )
        .default("false"),
        Key::new(
            "revise_for",
            Kind::Duration,
            "How long after their end, in event time of the registry's key, windows are kept to \
             be revised (and as long in receive time, if no more come).",
            "\"1h\"",
        )
        .default("1h"),
        STEP_EARLY,
        STEP_UNBOUNDED,
    ],
};

pub(super) static TEST_REGISTRY: Component = Component {
    id: "test.registry",
    heading: "[[test.registry]]",
    tag: None,
    doc: "A row that a registry has.",
    keys: &[
        Key::new("name", Kind::Name, "The registry.", "\"limits\"").required(),
        Key::new(
            "row",
            Kind::Text,
            "The row, a JSON object.",
            "'{\"device\": \"d1\", \"limit_high\": 8}'",
        )
        .required(),
        Key::new(
            "at",
            Kind::Instant,
            "When it is taken in; if absent, it is there before the first message.",
            "\"2026-01-01T00:05:00Z\"",
        ),
        Key::new("remove", Kind::Bool, "The row goes.", "true").default("false"),
    ],
};
