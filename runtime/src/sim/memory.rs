//! Memory that is used up now and then. It has chance of its own, so that it changes nothing about
//! what else happens in a seed.

use crate::fuzz::Rng;

/// How long it is so, and not so, microseconds.
const LASTS_US_MAX: usize = 1_500_000;

/// Whether memory is used up.
pub(super) struct Memory {
    rng: Rng,
    full: bool,
    until_us: u64,
    /// How often it was.
    pub(super) times: u64,
}

impl Memory {
    /// In every other seed from the beginning, when devices are heard for the first time.
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x6d65_6d6f_7279);
        let full = rng.one_in(2);
        Self { rng, full, until_us: 0, times: 0 }
    }

    /// How it is now.
    pub(super) fn is_full(&mut self, now_us: u64) -> bool {
        if now_us >= self.until_us {
            self.until_us = now_us + 1 + self.rng.below(LASTS_US_MAX) as u64;
            self.full = !self.full;
            self.times += u64::from(self.full);
        }
        self.full
    }
}
