//! Waiting, where the simulation has to decide how long it takes: tokio's timers, or its own.
//!
//! Invariant: in the product these are tokio's functions under other names.

use tokio::time::Instant;
#[cfg(not(test))]
pub(crate) use tokio::time::{sleep, sleep_until, timeout, timeout_at};

#[cfg(test)]
pub(crate) use crate::sim::timers::{sleep, sleep_until, timeout, timeout_at};

/// The present, for durations.
pub(crate) fn now() -> Instant {
    crate::clock::instant().into()
}
