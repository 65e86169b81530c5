//! Waiting, where the simulation has to decide how long it takes: tokio's timers, or its own.
//!
//! Invariant: in the product these are tokio's functions under other names.

use std::time::Duration;

use tokio::time::Instant;
#[cfg(not(test))]
pub(crate) use tokio::time::{sleep, sleep_until, timeout, timeout_at};

#[cfg(test)]
pub(crate) use crate::sim::timers::{sleep, sleep_until, timeout, timeout_at};

/// Lets the calling thread wait; only threads that may stand still call it.
pub(crate) fn block(time: Duration) {
    #[cfg(test)]
    if crate::sim::inject::wait(time) {
        return;
    }
    std::thread::sleep(time);
}

/// The present, for durations.
pub(crate) fn now() -> Instant {
    crate::clock::instant().into()
}
