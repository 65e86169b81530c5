//! How many keys a step may have, and what a pipeline says of its devices.

use crate::key::KEY_GROUPS;

/// What happens with a row whose key is new when its step has no place left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtKeysMax {
    /// It becomes a row of `system.rejects` (reason `keys_max`).
    #[default]
    Reject,
    /// The process ends, and says why.
    Stop,
}

/// What happens with a row whose key is new while the memory of the process is used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtMemoryMax {
    /// It becomes a row of `system.rejects` (reason `memory_max`).
    #[default]
    Reject,
    /// Its key finds a place all the same: if memory does not suffice, the intake waits.
    Wait,
}

/// The budget of keys of one step.
///
/// Keys are admitted by key group, so that the answer depends neither on the number of workers nor
/// on restarts. A group takes its share: the mean, and so much more that a fleet of `keys_max` keys
/// is refused none of them, but for a chance of less than one in a thousand million (Bernstein's
/// inequality over all groups). A budget of 1,000,000 is kept at 1,118,464 at most, one of 10,000
/// at 24,064.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyLimits {
    /// Keys that find a place in any case.
    pub keys_max: u64,
    /// What happens beyond that.
    pub at_keys_max: AtKeysMax,
    /// What happens with new keys while the memory of the process is used up.
    pub at_memory_max: AtMemoryMax,
}

impl Default for KeyLimits {
    fn default() -> Self {
        Self {
            keys_max: 1_000_000,
            at_keys_max: AtKeysMax::default(),
            at_memory_max: AtMemoryMax::default(),
        }
    }
}

impl KeyLimits {
    /// Most keys of one key group.
    pub fn share(&self) -> u32 {
        share_of(self.keys_max)
    }

    /// Most keys of all groups.
    pub fn most_keys(&self) -> u64 {
        u64::from(self.share()) * u64::from(KEY_GROUPS)
    }
}

/// What is declared of the devices of a pipeline, so that the size of its state is known before it
/// runs. Nothing is refused by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declared {
    /// How many there are at most; if absent, as many as a step may have keys.
    pub devices: Option<u64>,
    /// A device has a reading so often at most, microseconds.
    pub reading_every_us: Option<i64>,
    /// How long texts are taken to be, bytes.
    pub text_bytes: usize,
}

/// The part of `total` things, dealt to key groups by chance, that one group may have: no more than
/// that come to any group, but for a chance of 1e-9.
pub fn share_of(total: u64) -> u32 {
    // -ln(1e-9 / 256).
    const T: f64 = 26.27;
    let mean = total as f64 / f64::from(KEY_GROUPS);
    let more = T / 3.0 + (T * T / 9.0 + 2.0 * mean * T).sqrt();
    let share = ((mean + more).ceil() as u64).min(total);
    u32::try_from(share).unwrap_or(u32::MAX - 1)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, StringArray};

    use super::*;
    use crate::key::{key_group, stable_hashes};

    #[test]
    fn a_fleet_of_the_declared_size_finds_place_and_the_surplus_is_small() {
        for (keys_max, most) in [(1u64, 256), (3, 768), (1_000, 10_000), (10_000, 24_064)] {
            let limits = KeyLimits { keys_max, ..KeyLimits::default() };
            assert!(limits.most_keys() <= most, "{keys_max}: {}", limits.most_keys());
        }
        assert_eq!(KeyLimits::default().most_keys(), 1_118_464);
        for keys_max in [1, 10, 500, 20_000, 200_000] {
            let keys = (0..keys_max).map(|i| format!("device-{i:06}"));
            let column: ArrayRef = Arc::new(StringArray::from_iter_values(keys));
            let mut hashes = Vec::new();
            stable_hashes(&[column], keys_max, &mut hashes);
            let mut counts = vec![0u32; usize::from(KEY_GROUPS)];
            hashes.iter().for_each(|hash| counts[usize::from(key_group(*hash))] += 1);
            let fullest = counts.iter().copied().max().unwrap_or_default();
            assert!(fullest <= share_of(keys_max as u64), "{keys_max}: {fullest}");
        }
    }
}
