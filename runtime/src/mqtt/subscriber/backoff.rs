//! Pauses between attempts: doubling, bounded, and random enough that a fleet of clients does not
//! come back all at once.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

use crate::mqtt::limits::{BACKOFF_MAX, BACKOFF_MIN};

#[derive(Debug)]
pub(super) struct Backoff {
    /// Upper end of the next pause; its lower end is half of it.
    upper: Duration,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { upper: BACKOFF_MIN * 2 }
    }

    /// The next pause, between [`BACKOFF_MIN`] and [`BACKOFF_MAX`].
    pub(super) fn next_pause(&mut self) -> Duration {
        let mut random = [0; 2];
        // Without randomness the pauses are merely regular.
        let _ = SystemRandom::new().fill(&mut random);
        #[cfg(test)]
        if let Some(simulated) = crate::sim::inject::random() {
            random = [simulated as u8, (simulated >> 8) as u8];
        }
        let pause = self.pause(u16::from_be_bytes(random));
        self.upper = (self.upper * 2).min(BACKOFF_MAX);
        pause
    }

    fn pause(&self, random: u16) -> Duration {
        let half = self.upper / 2;
        half + half * u32::from(random) / u32::from(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_within_their_bounds() {
        let mut backoff = Backoff::new();
        let pauses: Vec<Duration> = (0..20).map(|_| backoff.next_pause()).collect();
        assert!(pauses.iter().all(|p| (BACKOFF_MIN..=BACKOFF_MAX).contains(p)), "{pauses:?}");
        assert!(pauses[0] <= BACKOFF_MIN * 2 && pauses[3] >= BACKOFF_MIN * 8);
        assert!(pauses[19] >= BACKOFF_MAX / 2);
        assert_ne!(backoff.pause(0), backoff.pause(u16::MAX));
    }
}
