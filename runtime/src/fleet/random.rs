//! The fleet's own random numbers: SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom
//! number generators", 2014). The same seed gives the same fleet on every machine and in every
//! release, which a library's generator does not promise.

/// A small generator; not for secrets.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// A generator for `stream` of `seed`; different streams are independent of each other.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut mixer = Self { state: seed };
        let base = mixer.next_u64();
        Self { state: base ^ stream.wrapping_mul(0xD1B5_4A32_D192_ED03) }
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number in `[low, high)`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + self.unit() * (high - low)
    }

    /// A whole number in `[0, count)`; 0 where `count` is 0.
    pub fn below(&mut self, count: u64) -> u64 {
        // The bias of a multiply-shift is below 2^-40 for the small counts used here.
        ((u128::from(self.next_u64()) * u128::from(count)) >> 64) as u64
    }

    /// Whether an event of one in `count` happens.
    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// Bell-shaped noise with mean 0 and standard deviation 1, never beyond ±3.5 (the sum of four
    /// uniform numbers), so that healthy devices have no outliers by accident.
    pub fn noise(&mut self) -> f64 {
        let sum = self.unit() + self.unit() + self.unit() + self.unit();
        (sum - 2.0) * 3f64.sqrt()
    }
}
