//! What a follower counts, on its way to the counters of the leader.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::stats::Stats;

/// What was counted since the last time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Counts {
    sums: [u64; 10],
    /// Longest time that a worker was held up to hand over state, microseconds.
    stall_us: u64,
}

/// The counters that workers add to.
fn counters(stats: &Stats) -> [&AtomicU64; 10] {
    [
        &stats.readings,
        &stats.rejects,
        &stats.keys_refused,
        &stats.memory_refused,
        &stats.clocks_off,
        &stats.late,
        &stats.duplicates,
        &stats.windows,
        &stats.findings,
        &stats.alerts,
    ]
}

impl Counts {
    /// Takes what there is; what comes later is for the next time.
    pub(super) fn take(stats: &Stats) -> Self {
        Self {
            sums: counters(stats).map(|counter| counter.swap(0, Ordering::Relaxed)),
            stall_us: stats.checkpoint_stall_us.load(Ordering::Relaxed),
        }
    }

    /// Adds it.
    pub(super) fn add_to(self, stats: &Stats) {
        for (counter, sum) in counters(stats).into_iter().zip(self.sums) {
            Stats::add(counter, sum);
        }
        stats.checkpoint_stall_us.fetch_max(self.stall_us, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_there_once() {
        let (follower, leader) = (Stats::default(), Stats::default());
        Stats::add(&leader.readings, 1);
        for readings in [3, 4] {
            Stats::add(&follower.readings, readings);
            Stats::add(&follower.alerts, 1);
            Stats::set(&follower.checkpoint_stall_us, 10 * readings);
            Counts::take(&follower).add_to(&leader);
        }
        let found = leader.snapshot();
        assert_eq!((found.readings, found.alerts, found.checkpoint_stall_us), (8, 2, 40));
    }
}
