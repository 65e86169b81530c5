//! The wall clock: the only place of the whole program that reads it.
//!
//! Operators never see it. The journal stamps ticks with it, and those ticks are the time that the
//! dataflow and every replay know. Durations (back-off, sync times) use `Instant` and not this.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Where the present time comes from; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Set in tests: time stands still until it is moved.
    manual_us: Option<Arc<AtomicI64>>,
}

impl Clock {
    /// The clock of the operating system.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that shows `now_us` until [`Clock::set`] moves it; clones move together.
    pub fn manual(now_us: i64) -> Self {
        Self { manual_us: Some(Arc::new(AtomicI64::new(now_us))) }
    }

    /// Microseconds since the Unix epoch (UTC). May go back when the system clock is set back.
    pub fn now_us(&self) -> i64 {
        match &self.manual_us {
            Some(manual_us) => manual_us.load(Ordering::Acquire),
            None => system_now_us(),
        }
    }

    /// Moves a manual clock to `now_us`; returns whether this is a manual clock.
    pub fn set(&self, now_us: i64) -> bool {
        match &self.manual_us {
            Some(manual_us) => {
                manual_us.store(now_us, Ordering::Release);
                true
            }
            None => false,
        }
    }
}

/// The monotonic clock, for what the simulation has to foresee: group commit and ticks.
pub(crate) fn instant() -> Instant {
    #[cfg(test)]
    if let Some(simulated) = crate::sim::inject::instant() {
        return simulated;
    }
    Instant::now()
}

/// Times before 1970 count as 0: a machine whose clock was never set.
fn system_now_us() -> i64 {
    #[cfg(test)]
    if let Some(simulated_us) = crate::sim::inject::wall_us() {
        return simulated_us;
    }
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_with_its_clones_only_when_told() {
        let clock = Clock::manual(7);
        let other = clock.clone();
        assert!(other.set(9));
        assert_eq!(clock.now_us(), 9);
    }

    #[test]
    fn the_system_clock_is_in_this_century_and_cannot_be_set() {
        let clock = Clock::system();
        assert!(clock.now_us() > 1_577_836_800_000_000);
        assert!(!clock.set(0));
    }
}
