//! Keys of `[[step]]` with `type = "absence"`.

use super::limits::{STEP_AT_KEYS_MAX, STEP_FORGET_AFTER, STEP_KEYS_MAX};
use super::steps::{BY_WINDOW, DISORDER, STEP_FROM, STEP_NAME};
use crate::config::kinds::{Component, Key, Kind};

/// Most readings in a row that can be asked to be missing.
const MISSED_MAX: i64 = 1_000_000;

pub(super) static ABSENCE: Component = Component {
    id: "step.absence",
    heading: "[[step]]",
    tag: Some("absence"),
    doc: "Tells when a key should have had readings and had none; it needs no message for it. A \
          row has the key, `window_start` (the last reading), `window_end` (the next one, or, \
          while it is silent, when this was certain), `status`, `missed` (how many readings), \
          `cadence` (seconds from reading to reading), `inhibited`, the selected columns, `rows` \
          and `revision`. `status` is `silent`; `inhibited` while the source is away or Tidegate \
          did not run, after which every key has the whole time anew; then, with the next \
          `revision`, `back`, or `forgotten` after `forget_after`, or `withdrawn` (`rows` = 0) if \
          the readings were only on their way. Not told before a lost connection would be known: \
          30 s after a reading was due (from a broker), or 10 s. Put an alert on it with \
          `fire = \"status = 'silent'\"`, without `for`. From files, only gaps between readings \
          are told.",
    keys: &[
        STEP_NAME,
        STEP_FROM,
        Key::new(
            "every",
            Kind::Duration,
            "How far apart the readings of a key are. If absent, it is learnt from each key's own \
             last 31 gaps: nine of ten are not longer; likewise how far apart they arrive, if they \
             come in batches. Before the first 8, nothing is told.",
            "\"1m\"",
        ),
        Key::new(
            "missed",
            Kind::Int(1, MISSED_MAX),
            "How many readings in a row must be missing.",
            "3",
        )
        .default("3"),
        Key::new(
            "least",
            Kind::Duration,
            "Without `every`: readings closer together than this are taken for this far apart.",
            "\"10s\"",
        )
        .default("1s"),
        BY_WINDOW,
        Key::new(
            "select",
            Kind::SqlMap,
            "Further columns: expressions over the last reading before the absence.",
            "{ battery = \"battery\" }",
        ),
        DISORDER,
        Key::new(
            "revise_for",
            Kind::Duration,
            "How much older than the newest reading of its key a reading may be to correct what \
             was told; what is older goes to `system.late`. Only absences are kept for it, at most \
             64 per key.",
            "\"1d\"",
        )
        .default("1d"),
        STEP_FORGET_AFTER,
        STEP_KEYS_MAX,
        STEP_AT_KEYS_MAX,
    ],
};
