//! Guessing is slow: an address that failed often waits before its next try is looked at.
//!
//! Each failure costs its address time. A few are free (somebody mistypes, one device of many has
//! an old password); after that there is one try per [`COST_MS`], and tries that would have to
//! wait too long are turned away at once.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use super::counts::network;

/// What a failure costs: one guess per two seconds in the long run.
const COST_MS: u64 = 2_000;

/// Failures that cost no waiting: ten.
const FREE_MS: u64 = 10 * COST_MS;

/// Longest wait; devices give up after about ten seconds.
const WAIT_MAX_MS: u64 = 5_000;

/// No address is shut out for longer than this after its last failure, however many there were.
const OWED_MAX_MS: u64 = FREE_MS + 60_000;

/// Addresses that are remembered: 10,000 cost less than a megabyte. When there are more, the one
/// that owes least is forgotten.
const ADDRESSES_MAX: usize = 10_000;

/// Failures by address.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<HashMap<IpAddr, u64>>);

/// What to do with a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It is looked at now.
    Now,
    /// It is looked at after this time, which is kept free for it.
    After(u64),
    /// It would have to wait too long.
    Refused,
}

impl Failures {
    /// A try comes from this address.
    pub(crate) fn turn(&self, address: IpAddr, now_ms: u64) -> Turn {
        let mut owed = self.lock();
        let Some(until_ms) = owed.get_mut(&network(address)) else { return Turn::Now };
        let wait_ms = until_ms.saturating_sub(now_ms + FREE_MS);
        match wait_ms {
            0 => Turn::Now,
            wait_ms if wait_ms > WAIT_MAX_MS => Turn::Refused,
            wait_ms => {
                *until_ms += COST_MS;
                Turn::After(wait_ms)
            }
        }
    }

    /// The try has failed.
    pub(crate) fn failed(&self, address: IpAddr, turn: Turn, now_ms: u64) {
        // A turn that was waited for is paid already. This machine is exempt: what connects from
        // here is often a proxy, behind which everybody is.
        if turn != Turn::Now || address.to_canonical().is_loopback() {
            return;
        }
        let mut owed = self.lock();
        let key = network(address);
        if owed.len() >= ADDRESSES_MAX && !owed.contains_key(&key) {
            owed.retain(|_, until_ms| *until_ms > now_ms);
            if owed.len() >= ADDRESSES_MAX {
                let least = owed.iter().min_by_key(|(_, until_ms)| **until_ms).map(|(k, _)| *k);
                least.and_then(|least| owed.remove(&least));
            }
        }
        let until_ms = owed.entry(key).or_insert(now_ms);
        *until_ms = ((*until_ms).max(now_ms) + COST_MS).min(now_ms + OWED_MAX_MS);
    }

    /// The try was good: a turn that was waited for costs nothing.
    pub(crate) fn succeeded(&self, address: IpAddr, turn: Turn) {
        if matches!(turn, Turn::After(_))
            && let Some(until_ms) = self.lock().get_mut(&network(address))
        {
            *until_ms = until_ms.saturating_sub(COST_MS);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<IpAddr, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn guesses_become_slow_and_time_heals() {
        let failures = Failures::default();
        let (bad, good): (IpAddr, IpAddr) =
            ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let (mut now_ms, mut tries) = (0, 0);
        while now_ms < 600_000 {
            match failures.turn(bad, now_ms) {
                Turn::Refused => now_ms += 100,
                turn => {
                    tries += 1;
                    if let Turn::After(wait_ms) = turn {
                        now_ms += wait_ms;
                    }
                    failures.failed(bad, turn, now_ms);
                }
            }
            assert_eq!(failures.turn(good, now_ms), Turn::Now);
        }
        // Ten for nothing, then one in two seconds.
        assert!((300..330).contains(&tries), "{tries}");
        assert_eq!(failures.turn(bad, now_ms + 60_000), Turn::Now);
    }

    #[test]
    fn a_flood_of_failures_shuts_out_for_a_minute_only() {
        let failures = Failures::default();
        let bad: IpAddr = "192.0.2.1".parse().unwrap();
        for _ in 0..1000 {
            failures.failed(bad, Turn::Now, 0);
        }
        assert_eq!(failures.turn(bad, 0), Turn::Refused);
        assert_eq!(failures.turn(bad, 60_000), Turn::Now);
    }

    #[test]
    fn success_gives_back_what_was_kept_free() {
        let failures = Failures::default();
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        for _ in 0..11 {
            failures.failed(address, Turn::Now, 0);
        }
        for _ in 0..100 {
            let turn = failures.turn(address, 0);
            assert_eq!(turn, Turn::After(COST_MS));
            failures.succeeded(address, turn);
        }
    }

    #[test]
    fn the_table_is_bounded_and_keeps_the_worst() {
        let failures = Failures::default();
        let worst: IpAddr = "192.0.2.1".parse().unwrap();
        for _ in 0..30 {
            failures.failed(worst, Turn::Now, 0);
        }
        for i in 0..3 * ADDRESSES_MAX as u32 {
            failures.failed(IpAddr::from((0x0A00_0000 + i).to_be_bytes()), Turn::Now, 0);
        }
        assert_eq!(failures.lock().len(), ADDRESSES_MAX);
        assert_eq!(failures.turn(worst, 0), Turn::Refused);
        failures.failed("127.0.0.1".parse().unwrap(), Turn::Now, 0);
        assert_eq!(failures.turn("127.0.0.1".parse().unwrap(), 0), Turn::Now);
    }
}
