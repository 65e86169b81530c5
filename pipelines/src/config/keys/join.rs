//! Keys of `[[step]]` with `type = "join"`.

use super::limits::{STEP_AT_KEYS_MAX, STEP_FORGET_AFTER, STEP_KEYS_MAX};
use super::steps::{DISORDER, IDLE_CLOSE, STEP_NAME};
use crate::config::kinds::{Component, Key, Kind};

/// Most rows of a key that are kept of each edge.
const ROWS_MAX: i64 = 1_000_000;

pub(super) static JOIN: Component = Component {
    id: "step.join",
    heading: "[[step]]",
    tag: Some("join"),
    doc: "Joins the rows of one edge with those of another that have the same key: windows with \
          the same bounds, or, with `within`, `before` or `after`, rows whose times are near \
          enough. The output has the columns of the left edge (`from`), then those of the right \
          one (`with`); where both have a name, the right one's begins with the name of its edge: \
          `doors_time`. A window that comes again revises the joined row. Rows that are near come \
          once each, in order of time, when all partners of the left row are there; what is later \
          than `disorder` is a row of `system.late`, and so is a right row whose left row came \
          without it after a pause.",
    keys: &[
        STEP_NAME,
        Key::new("from", Kind::Name, "The left edge, whose rows are joined.", "\"readings\"")
            .default("readings"),
        Key::new("with", Kind::Name, "The right edge, whose columns are added.", "\"doors\"")
            .required(),
        Key::new(
            "by",
            Kind::Names,
            "Columns of both edges that make the key; if absent, the key of the left edge. \
             Windows are joined by all of their keys.",
            "[\"site\", \"device\"]",
        ),
        Key::new(
            "join",
            Kind::OneOf(&["inner", "left"]),
            "What becomes of a row of the left edge without a partner: nothing, or it comes with \
             nulls, once the clock of its key is far enough past it or the key is silent for \
             `idle_close` (of rows that are near, at least for `after` and `disorder`; of windows, \
             for as long as the steps before may hold one back).",
            "\"left\"",
        )
        .default("inner"),
        Key::new(
            "columns",
            Kind::Names,
            "The columns of the right edge to add; if absent, all that are not of the key.",
            "[\"open\"]",
        ),
        Key::new(
            "within",
            Kind::Duration,
            "Partners are at most so far away in event time, on either side: short for `before` \
             and `after`. If there is none of the three, both edges are windows, and partners have \
             the same bounds.",
            "\"5s\"",
        ),
        Key::new(
            "before",
            Kind::Duration,
            "Partners are at most so much older than the row of the left edge.",
            "\"1h\"",
        ),
        Key::new(
            "after",
            Kind::Duration,
            "Partners are at most so much younger than the row of the left edge, which waits for \
             them.",
            "\"10s\"",
        ),
        Key::new(
            "match",
            Kind::OneOf(&["all", "nearest"]),
            "Rows that are near: a row for each partner, or only for the nearest one (of equally \
             near ones the older, of one time the last that came).",
            "\"nearest\"",
        )
        .default("all"),
        Key::new(
            "matches_max",
            Kind::Int(1, ROWS_MAX),
            "A row of the left edge with more partners is a row of `system.rejects` \
             (`matches_max`).",
            "1000",
        )
        .default("1000"),
        Key::new(
            "rows_max",
            Kind::Int(1, ROWS_MAX),
            "Most rows of a key that wait, of each edge; more, the newest first, are rows of \
             `system.rejects` (`rows_max`).",
            "10000",
        )
        .default("10000"),
        Key::new(
            "revise_for",
            Kind::Duration,
            "Of windows: how long, in event time, they are kept for a partner and for revisions; \
             what is later goes to `system.late`.",
            "\"1h\"",
        )
        .default("1h"),
        DISORDER,
        IDLE_CLOSE,
        STEP_FORGET_AFTER,
        STEP_KEYS_MAX,
        STEP_AT_KEYS_MAX,
    ],
};
