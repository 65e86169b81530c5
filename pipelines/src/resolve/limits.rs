//! `[limits]`: how many keys steps may have, for how long they are remembered, and what is declared
//! of devices.

use tidegate_operators::spec::{AtKeysMax, Declared, KeyLimits};

use crate::config::keys::LIMITS;
use crate::config::section::Section;

/// The table, empty if it is absent.
pub(crate) fn table<'t>(file: &Section<'t>) -> Section<'t> {
    file.section("limits").unwrap_or(Section::nothing(&LIMITS, file.at))
}

/// The budget of a step or an alert: its own keys, else those of the table.
pub(crate) fn of_step(limits: &Section<'_>, step: &Section<'_>) -> KeyLimits {
    of(step.int("keys_max").or(limits.int("keys_max")), step.text("at_keys_max"), limits)
}

/// The budget of what is no step.
pub(crate) fn of_pipeline(limits: &Section<'_>) -> KeyLimits {
    of(limits.int("keys_max"), None, limits)
}

fn of(keys_max: Option<i64>, at_keys_max: Option<&str>, limits: &Section<'_>) -> KeyLimits {
    let at_keys_max = match at_keys_max.or(limits.text("at_keys_max")) {
        Some("stop") => AtKeysMax::Stop,
        _ => AtKeysMax::Reject,
    };
    // What is no number of keys was reported.
    let keys_max = keys_max.and_then(|n| u64::try_from(n).ok());
    KeyLimits { keys_max: keys_max.unwrap_or(KeyLimits::default().keys_max), at_keys_max }
}

/// How long what a step has learnt of a silent key is kept, microseconds.
pub(crate) fn forget_after_us(limits: &Section<'_>, step: &Section<'_>) -> Option<i64> {
    step.duration_us("forget_after").or_else(|| limits.duration_us("forget_after"))
}

/// What is declared of devices, and so of the size of all state.
pub(crate) fn declared(limits: &Section<'_>) -> Declared {
    Declared {
        devices: limits.int("devices").and_then(|n| u64::try_from(n).ok()),
        reading_every_us: limits.duration_us("reading_every").filter(|us| *us > 0),
        text_bytes: limits.size_bytes("text_size").and_then(|n| n.try_into().ok()).unwrap_or(0),
    }
}

/// Whether a step may have state without a bound.
pub(crate) fn may_be_unbounded(limits: &Section<'_>, step: Option<&Section<'_>>) -> bool {
    let own = step.filter(|s| s.knows("unbounded")).and_then(|s| s.text("unbounded"));
    own.or(limits.text("unbounded")) == Some("allow")
}
