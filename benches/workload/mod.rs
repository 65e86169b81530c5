//! The common workload: its generator, a hand-written loop that does nothing else, and checksums of
//! results. Benches measure with it and tests compare with it; the product does not know it.

pub(crate) mod check;
pub(crate) mod generate;
pub(crate) mod hand;
pub(crate) mod parse;
pub(crate) mod state;

use std::fmt;

/// A job of the common workload. All read the same file and keep the readings with status `ok`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Per device and 10 s: count, mean, minimum, maximum, standard deviation of the temperature.
    W1,
    /// The same over 60 s, every 10 s.
    W2,
    /// Readings far from the exponentially weighted mean of their device.
    W3,
}

impl Job {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::W1, Self::W2, Self::W3];

    /// The job of this name, in any case.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|job| job.to_string().eq_ignore_ascii_case(name))
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
