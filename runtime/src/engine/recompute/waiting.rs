//! Tables whose late windows could not be computed again.
//!
//! Each is tried again by itself, after a pause that grows, so that one in trouble holds up no
//! others. What is wrong is told at the first failure and then ever more rarely; meanwhile it is
//! the engine's alert `windows_waiting`. Nothing is lost by waiting: late readings are in
//! `system.late`, and where to go on is in the table.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pause after the first failure; it doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_secs(10);

/// Longest pause: whoever mends something does not wait for longer.
const PAUSE_MAX: Duration = Duration::from_secs(600);

/// By table, what is wrong. Clones look at the same.
#[derive(Clone, Default)]
pub(in crate::engine) struct Waiting(Arc<Mutex<BTreeMap<String, Trouble>>>);

struct Trouble {
    failures: u64,
    /// When it is tried again.
    again: Instant,
    /// The newest end of a group that it was not worked on for.
    owed_us: Option<i64>,
    why: String,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Trouble>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tables in trouble, each with the reason.
    pub(in crate::engine) fn now(&self) -> Vec<(String, String)> {
        self.lock().iter().map(|(table, trouble)| (table.clone(), trouble.why.clone())).collect()
    }

    /// Forgets those for which this does not hold.
    pub(super) fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.lock().retain(|table, _| is_there(table));
    }

    /// Up to which end a table is to be worked on, if groups have become whole up to `end_us`; the
    /// outer `None` says that it has to wait.
    pub(super) fn due(
        &self,
        table: &str,
        end_us: Option<i64>,
        now: Instant,
    ) -> Option<Option<i64>> {
        let mut all = self.lock();
        let Some(trouble) = all.get_mut(table) else { return Some(end_us) };
        trouble.owed_us = trouble.owed_us.max(end_us);
        (trouble.again <= now).then_some(trouble.owed_us)
    }

    /// The work up to this end has failed. How often it has, if that is to be told.
    pub(super) fn failed(
        &self,
        table: &str,
        (end_us, why): (Option<i64>, &str),
        now: Instant,
    ) -> Option<u64> {
        let mut all = self.lock();
        let trouble = all.entry(table.to_owned()).or_insert_with(|| Trouble {
            failures: 0,
            again: now,
            owed_us: end_us,
            why: String::new(),
        });
        trouble.failures += 1;
        let doublings = u32::try_from(trouble.failures - 1).unwrap_or(u32::MAX);
        let pause = PAUSE_MIN.saturating_mul(2_u32.saturating_pow(doublings)).min(PAUSE_MAX);
        trouble.again = now + pause;
        trouble.owed_us = trouble.owed_us.max(end_us);
        why.clone_into(&mut trouble.why);
        trouble.failures.is_power_of_two().then_some(trouble.failures)
    }

    /// The work on a table was done. How often it had failed before, if it had.
    pub(super) fn works(&self, table: &str) -> Option<u64> {
        self.lock().remove(table).map(|trouble| trouble.failures)
    }
}

#[cfg(test)]
impl Waiting {
    /// How often the work on a table has failed.
    pub(super) fn failures(&self, table: &str) -> Option<u64> {
        self.lock().get(table).map(|trouble| trouble.failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_and_told_ever_more_rarely() {
        let (waiting, start) = (Waiting::default(), Instant::now());
        let (mut tried, mut told) = (Vec::new(), Vec::new());
        // A look every half second for a day.
        for look in 0..172_800_u32 {
            let now = start + Duration::from_millis(500) * look;
            if waiting.due("p.t", (look == 0).then_some(7), now) == Some(Some(7)) {
                tried.push(look / 2);
                told.extend(waiting.failed("p.t", (Some(7), "why"), now).map(|_| look / 2));
            }
        }
        assert_eq!(tried[..8], [0, 10, 30, 70, 150, 310, 630, 1_230]);
        assert_eq!(tried.len(), 149, "every ten minutes from then on");
        assert_eq!(told, [0, 10, 70, 1_230, 6_030, 15_630, 34_830, 73_230]);
        assert_eq!(waiting.now(), [("p.t".to_owned(), "why".to_owned())]);
        assert_eq!((waiting.works("p.t"), waiting.works("p.t")), (Some(149), None));
        assert_eq!(waiting.now(), []);
    }

    #[test]
    fn what_came_meanwhile_is_owed_and_others_do_not_wait() {
        let (waiting, now) = (Waiting::default(), Instant::now());
        assert_eq!(waiting.due("p.t", Some(5), now), Some(Some(5)));
        waiting.failed("p.t", (Some(5), "why"), now);
        assert_eq!(waiting.due("p.t", Some(9), now), None);
        assert_eq!(waiting.due("p.t", None, now + PAUSE_MIN), Some(Some(9)));
        assert_eq!(waiting.due("p.other", None, now), Some(None));
        waiting.retain(|table| table != "p.t");
        assert_eq!(waiting.due("p.t", None, now), Some(None), "the step is gone");
    }
}
