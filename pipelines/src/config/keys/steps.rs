//! The steps in the table of keys.

use super::super::kinds::{Component, Key, Kind};
use super::limits::{STEP_AT_KEYS_MAX, STEP_FORGET_AFTER, STEP_KEYS_MAX};

pub(super) const STEP_NAME: Key =
    Key::new("name", Kind::Name, "Name of the step and of its output edge.", "\"per_minute\"")
        .required();
pub(super) const STEP_FROM: Key =
    Key::new("from", Kind::Name, "The edge that it reads.", "\"readings\"").default("readings");

/// Of steps that make one row of each, of filters, and of alerts.
pub(super) const STEP_EARLY: Key = Key::new(
    "early",
    Kind::Bool,
    "With windows that have early results: takes these, too. If false, only the final rows. An \
     alert that an open window fires ends if the window's final row does not say the same.",
    "true",
)
.default("false");

pub(super) const TABLE_EARLY: Key = Key::new(
    "early",
    Kind::Bool,
    "Of windows with early results: keeps these, too, so that the table shows windows that are \
     still open. If false, only the final rows.",
    "false",
)
.default("true");

pub(super) static FILTER: Component = Component {
    id: "step.filter",
    heading: "[[step]]",
    tag: Some("filter"),
    doc: "Keeps the rows for which an expression is true. The others are not wanted: they are not \
          rejects. Of windows that come again it keeps those whose newest row passes: one that \
          came before, and does not pass, comes with `rows` = 0 (tables do not show it) and takes \
          back what did.",
    keys: &[
        STEP_NAME,
        STEP_FROM,
        Key::new(
            "where",
            Kind::Sql,
            "True for the rows to keep; null is not true.",
            "\"state = 'ok'\"",
        )
        .required(),
        STEP_EARLY,
    ],
};

pub(super) static DERIVE: Component = Component {
    id: "step.derive",
    heading: "[[step]]",
    tag: Some("derive"),
    doc: "Adds or replaces columns and keeps all others. A row for which an expression fails (a \
          division by zero, a cast) is a row of `system.rejects`.",
    keys: &[
        STEP_NAME,
        STEP_FROM,
        Key::new(
            "set",
            Kind::SqlMap,
            "The columns, each an expression over the input (not over each other).",
            "{ fahrenheit = \"temperature * 1.8 + 32\" }",
        )
        .required(),
        STEP_EARLY,
    ],
};

pub(super) static SELECT: Component = Component {
    id: "step.select",
    heading: "[[step]]",
    tag: Some("select"),
    doc: "Keeps only the columns that are named, and those that identify the row (of readings: \
          `device` and `time`).",
    keys: &[
        STEP_NAME,
        STEP_FROM,
        Key::new(
            "columns",
            Kind::SqlMap,
            "The columns, each an expression over the input.",
            "{ celsius = \"temperature\" }",
        )
        .required(),
        STEP_EARLY,
    ],
};

pub(super) static ROUTE: Component = Component {
    id: "step.route",
    heading: "[[step]]",
    tag: Some("route"),
    doc: "Sends each row to the first branch whose expression is true. Each branch is an edge of \
          its own name. A row that no branch takes is a row of `system.rejects`. A window that \
          comes again comes with `rows` = 0 in the branches that do not take it, so that it is in \
          the one that takes its newest row.",
    keys: &[
        STEP_NAME,
        STEP_FROM,
        Key::new(
            "branches",
            Kind::SqlMap,
            "The branches, in order.",
            "{ pumps = \"kind = 'pump'\", rest = \"true\" }",
        )
        .required(),
    ],
};

pub(super) const BY_WINDOW: Key = Key::new(
    "by",
    Kind::Names,
    "Columns that make the key; if absent, the key of the edge (of readings: `device`).",
    "[\"site\", \"device\"]",
);
pub(super) const DISORDER: Key = Key::new(
    "disorder",
    Kind::Duration,
    "How long to wait for rows that come out of order, in event time. If absent, as in \
     `[reading]`.",
    "\"5s\"",
);
pub(super) const IDLE_CLOSE: Key = Key::new(
    "idle_close",
    Kind::Duration,
    "How long a silent key is waited for, in receive time. If absent, as in `[reading]`.",
    "\"1m\"",
);

pub(super) static DETECT: Component = Component {
    id: "step.detect",
    heading: "[[step]]",
    tag: Some("detect"),
    doc: "Finds unusual values. The output has the key, `time`, `value`, `score`, `expected`, \
          `deviation` (standard) and `method`; findings are also rows of `system.findings`, with \
          or without a `[[table]]`.",
    keys: &[
        STEP_NAME,
        STEP_FROM,
        Key::new("on", Kind::Sql, "The value to judge, a number.", "\"temperature\"").required(),
        BY_WINDOW,
        Key::new(
            "method",
            Kind::OneOf(&["ewma_z"]),
            "`ewma_z`: distance from an exponentially weighted mean, in standard deviations.",
            "\"ewma_z\"",
        )
        .default("ewma_z"),
        Key::new(
            "alpha",
            Kind::Float,
            "Weight of the newest reading, between 0 and 1: 0.05 \
                                        remembers about the last 20.",
            "0.05",
        )
        .default("0.05"),
        Key::new(
            "warmup",
            Kind::Int(1, 1_000_000_000),
            "Readings of a key before anything is judged.",
            "30",
        )
        .default("30"),
        Key::new(
            "threshold",
            Kind::Float,
            "A finding is further away than this many standard \
                                            deviations.",
            "4.0",
        )
        .default("4.0"),
        Key::new(
            "order",
            Kind::OneOf(&["event_time", "arrival"]),
            "By time, waiting for `disorder`: the same for any order of arrival (rows of one time \
             as they come in). Or as rows come in, at once.",
            "\"event_time\"",
        )
        .default("event_time"),
        DISORDER,
        IDLE_CLOSE,
        STEP_FORGET_AFTER,
        STEP_KEYS_MAX,
        STEP_AT_KEYS_MAX,
    ],
};
