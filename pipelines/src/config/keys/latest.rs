//! Keys of `[[step]]` with `type = "latest"`.

use super::limits::{STEP_AT_KEYS_MAX, STEP_FORGET_AFTER, STEP_KEYS_MAX};
use super::steps::{BY_WINDOW, DISORDER, IDLE_CLOSE, STEP_FROM, STEP_NAME};
use crate::config::kinds::{Component, Key, Kind};

pub(super) static LATEST: Component = Component {
    id: "step.latest",
    heading: "[[step]]",
    tag: Some("latest"),
    doc: "Last-known values: what several topics and fields of a device say, joined into one row. \
          The output has the key, `time` and the selected columns, each with the value of the \
          newest reading up to that time for which it is not null. Readings are put into order of \
          time, as far as `disorder` allows; what is later is a row of `system.late`. Readings of \
          the same time are one row.",
    keys: &[
        STEP_NAME,
        STEP_FROM,
        BY_WINDOW,
        Key::new(
            "select",
            Kind::SqlMap,
            "The columns: SQL expressions over the row. Null says nothing, and what was known \
             stays.",
            "{ temperature = \"temperature\", door = \"open\" }",
        )
        .required(),
        Key::new(
            "at",
            Kind::Sql,
            "Only times at which a reading meets this have a row; if absent, all.",
            "\"temperature IS NOT NULL\"",
        ),
        Key::new(
            "on_change",
            Kind::Bool,
            "Only rows in which a column is another than in the row before of the key.",
            "true",
        )
        .default("false"),
        Key::new(
            "max_age",
            Kind::Duration,
            "A value older than this, in event time, is not known any more: null. If absent, it \
             stays until the key is forgotten.",
            "\"10m\"",
        ),
        DISORDER,
        IDLE_CLOSE,
        STEP_FORGET_AFTER,
        STEP_KEYS_MAX,
        STEP_AT_KEYS_MAX,
    ],
};
