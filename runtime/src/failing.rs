//! What fails again and again, and how often that is told: the first failure at once, then after a
//! minute, two, four and so on up to an hour, with how many there were meanwhile; and once that it
//! works again.
//!
//! The intervals go on across short recoveries, so that what fails and works by turns does not fill
//! the log either. A reason that was not told yet is told at once, up to a few of them.

use std::time::Duration;

use tokio::time::Instant;

/// Time from the first failure that is told to the next one; it doubles from then on.
const INTERVAL_MIN: Duration = Duration::from_secs(60);

/// Longest such time.
const INTERVAL_MAX: Duration = Duration::from_secs(3600);

/// Different reasons that are told without waiting.
const REASONS_MAX: usize = 4;

/// How something that can be tried again is doing.
#[derive(Debug)]
pub(crate) struct Failing {
    /// `None`: it works.
    trouble: Option<Trouble>,
    /// When a failure was told last.
    told: Option<Instant>,
    /// When it failed last.
    failed: Option<Instant>,
    interval: Duration,
    /// Failures since one was told.
    untold: u64,
    reasons: Vec<String>,
}

#[derive(Debug)]
struct Trouble {
    since: Instant,
    failures: u64,
    is_told: bool,
}

/// A trouble that is over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Over {
    pub(crate) failures: u64,
    /// From the first failure on.
    pub(crate) lasted: Duration,
}

impl Default for Failing {
    fn default() -> Self {
        Self {
            trouble: None,
            told: None,
            failed: None,
            interval: INTERVAL_MIN,
            untold: 0,
            reasons: Vec::new(),
        }
    }
}

impl Failing {
    /// It failed. If that is to be told: how often it did since that was told.
    pub(crate) fn failed(&mut self, now: Instant, reason: &str) -> Option<u64> {
        let is_long_ago = |at: Instant| now.duration_since(at) >= self.interval;
        if self.trouble.is_none() && self.failed.is_none_or(is_long_ago) {
            *self = Self::default();
        }
        self.failed = Some(now);
        self.untold += 1;
        let begins = || Trouble { since: now, failures: 0, is_told: false };
        let trouble = self.trouble.get_or_insert_with(begins);
        trouble.failures += 1;
        let is_due = self.told.is_none_or(|at| now.duration_since(at) >= self.interval);
        let is_new = !self.reasons.iter().any(|r| r == reason) && self.reasons.len() < REASONS_MAX;
        if !is_due && !is_new {
            return None;
        }
        trouble.is_told = true;
        if is_new {
            self.reasons.push(reason.to_owned());
        }
        if is_due {
            if self.told.is_some() {
                self.interval = (self.interval * 2).min(INTERVAL_MAX);
            }
            self.told = Some(now);
        }
        Some(std::mem::take(&mut self.untold))
    }

    /// It works. If a failure was told before: what is over now.
    pub(crate) fn works(&mut self, now: Instant) -> Option<Over> {
        let Trouble { since, failures, is_told } = self.trouble.take()?;
        is_told.then(|| Over { failures, lasted: now.duration_since(since) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn failures_are_told_at_growing_intervals_with_a_count() {
        let (mut failing, start) = (Failing::default(), Instant::now());
        // A failure every ten seconds for six hours.
        let told: Vec<(u64, u64)> = (0..2_160)
            .filter_map(|i| {
                let at = SECOND * 10 * i;
                Some((at.as_secs(), failing.failed(start + at, "refused")?))
            })
            .collect();
        let minutes: Vec<u64> = told.iter().map(|(at, _)| at / 60).collect();
        assert_eq!(minutes, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303]);
        assert_eq!(told[..3], [(0, 1), (60, 6), (180, 12)]);
        let end = start + SECOND * 21_600;
        let over = Over { failures: 2_160, lasted: SECOND * 21_600 };
        assert_eq!(failing.works(end), Some(over));
        assert_eq!(failing.works(end), None, "that is told once");
        // What fails long after that is a new trouble.
        let later = end + INTERVAL_MAX;
        assert_eq!(failing.failed(later, "refused"), Some(1));
        assert_eq!(failing.failed(later + SECOND * 60, "refused"), Some(1));
    }

    #[test]
    fn what_fails_and_works_by_turns_is_told_as_rarely() {
        let (mut failing, start) = (Failing::default(), Instant::now());
        let (mut told, mut over) = (0, 0);
        for i in 0..3_600 {
            let at = start + SECOND * i;
            told += u32::from(failing.failed(at, "HTTP 503").is_some());
            over += u32::from(failing.works(at).is_some());
        }
        assert_eq!((told, over), (6, 6), "after 0, 1, 3, 7, 15 and 31 minutes");
    }

    #[test]
    fn another_reason_is_told_at_once() {
        let (mut failing, start) = (Failing::default(), Instant::now());
        let mut say = |i: u64, reason: &str| failing.failed(start + SECOND * i as u32, reason);
        assert_eq!(say(0, "closed"), Some(1));
        assert_eq!(say(1, "refused"), Some(1));
        assert_eq!(say(2, "closed"), None);
        assert_eq!(say(3, "refused"), None);
        assert_eq!(say(60, "refused"), Some(3));
        let told: Vec<bool> = (0..9).map(|i| say(61, &format!("{i}")).is_some()).collect();
        assert_eq!(told.iter().filter(|told| **told).count(), 2, "no more than {REASONS_MAX}");
    }
}
