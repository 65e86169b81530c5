//! Session events that strangers can cause, so many per second and no more.
//!
//! Each event is a journaled row. Whoever tries passwords or topics in a loop must not fill the
//! disk with them: what is too much is counted, and told as one event per kind.

use std::sync::{Mutex, PoisonError};

use super::limits::NOTICES_PER_SECOND;

const KINDS: usize = 3;

/// What such an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A connection that was not let in.
    Refused,
    /// A message or subscription that was not allowed.
    Denied,
    /// A message that was too large; this one is a row of `system.rejects`.
    TooLarge,
}

impl Notice {
    const ALL: [Self; KINDS] = [Self::Refused, Self::Denied, Self::TooLarge];

    /// The event's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Denied => "denied",
            Self::TooLarge => "too_large",
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    second: u64,
    this_second: [u32; KINDS],
    left_out: [u64; KINDS],
}

/// The counts of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Notices(Mutex<Counts>);

impl Notices {
    /// Whether one more event may be written now; counts it if not.
    pub(crate) fn allow(&self, notice: Notice, now_ms: u64) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let second = now_ms / 1000;
        if counts.second != second {
            counts.second = second;
            counts.this_second = [0; KINDS];
        }
        let i = notice as usize;
        counts.this_second[i] = counts.this_second[i].saturating_add(1);
        let allowed = counts.this_second[i] <= NOTICES_PER_SECOND;
        counts.left_out[i] += u64::from(!allowed);
        allowed
    }

    /// How many were left out since this was last asked, once their second is over.
    pub(crate) fn left_out(&self, now_ms: u64) -> Vec<(Notice, u64)> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.second == now_ms / 1000 {
            return Vec::new();
        }
        let left_out = std::mem::take(&mut counts.left_out);
        Notice::ALL.into_iter().zip(left_out).filter(|(_, n)| *n > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_some_events_and_one_sum_per_kind() {
        let notices = Notices::default();
        let storm =
            |n: u32, now_ms| (0..n).filter(|_| notices.allow(Notice::Refused, now_ms)).count();
        assert_eq!(storm(100, 5_100), NOTICES_PER_SECOND as usize);
        assert!(notices.allow(Notice::Denied, 5_200), "kinds do not take each other's place");
        assert_eq!(notices.left_out(5_900), [], "the second is not over");
        let rest = 100 - u64::from(NOTICES_PER_SECOND);
        assert_eq!(notices.left_out(6_000), [(Notice::Refused, rest)]);
        assert_eq!(notices.left_out(6_000), []);
        assert_eq!(storm(1, 6_000), 1);
    }
}
