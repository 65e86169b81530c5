//! Keys of `[[step]]` with `type = "sequence"`.

use super::limits::{STEP_AT_KEYS_MAX, STEP_FORGET_AFTER, STEP_KEYS_MAX};
use super::steps::{BY_WINDOW, DISORDER, IDLE_CLOSE, STEP_FROM, STEP_NAME};
use crate::config::kinds::{Component, Key, Kind};

/// Most readings that a pattern counts, or counts among.
const COUNT_MAX: i64 = 10_000;

pub(super) static SEQUENCE: Component = Component {
    id: "step.sequence",
    heading: "[[step]]",
    tag: Some("sequence"),
    doc: "Finds patterns in the readings of each key, in the order of their times: `first`, `then` \
          and `within` (one and after it another); `first`, `without` and `within` (one and after \
          it no other: no message is needed to tell it); `when`, `times` and `of` or `within` (so \
          many of the last ones, or within a time). A row has the key, `window_start` (the first \
          reading of the match), `window_end`, `active`, `completed` (when it was complete), \
          `matched` (how many readings made it), the selected columns, `rows` and `revision`. It \
          comes when the match is complete (`active` is true, `window_end` is `completed`), and, \
          with the next `revision`, when it is over (`window_end` is when): with the first reading \
          for which `then` is not true; with the one that was waited for; with too few. What is \
          missing while the source is away, or Tidegate does not run, is not told. Put an alert on \
          it with `fire = \"active\"`.",
    keys: &[
        STEP_NAME,
        STEP_FROM,
        Key::new(
            "first",
            Kind::Sql,
            "True for a reading that can begin a match; the latest before `then` counts, and the \
             earliest for `without`.",
            "\"event = 'opened'\"",
        ),
        Key::new(
            "then",
            Kind::Sql,
            "True for a reading that completes it, later than the first and within `within` of it.",
            "\"pressure < 2\"",
        ),
        Key::new(
            "without",
            Kind::Sql,
            "True for a reading that must not be missing within `within` after the first.",
            "\"event = 'closed'\"",
        ),
        Key::new("when", Kind::Sql, "True for readings that are counted.", "\"temperature > 80\""),
        Key::new("times", Kind::Int(1, COUNT_MAX), "With `when`: how many make a match.", "3"),
        Key::new(
            "of",
            Kind::Int(1, COUNT_MAX),
            "With `when`: among so many last readings, those that are not counted included.",
            "5",
        ),
        Key::new(
            "within",
            Kind::Duration,
            "The longest time from the first to the other; with `when`: the time in which they are \
             counted.",
            "\"5m\"",
        ),
        BY_WINDOW,
        Key::new(
            "select_first",
            Kind::SqlMap,
            "Further columns: expressions over the first reading of the match.",
            "{ opened_by = \"person\" }",
        ),
        Key::new(
            "select",
            Kind::SqlMap,
            "Further columns: expressions over its last reading (of `without`: the first).",
            "{ pressure = \"pressure\" }",
        ),
        DISORDER,
        IDLE_CLOSE,
        Key::new(
            "revise_for",
            Kind::Duration,
            "How long, in event time, readings are kept to revise what was said; what is later \
             goes to `system.late`. Longer needs more memory.",
            "\"10m\"",
        )
        .default("1m"),
        STEP_FORGET_AFTER,
        STEP_KEYS_MAX,
        STEP_AT_KEYS_MAX,
    ],
};
