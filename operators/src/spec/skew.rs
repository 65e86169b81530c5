//! What is asked of the estimation of clocks.

use super::KeyLimits;

/// Estimates the clocks of devices ([`crate::skew`]).
#[derive(Clone, Debug)]
pub struct SkewSpec {
    /// Name of the pipeline, for `system.clock_skew`.
    pub pipeline: String,
    /// A clock that is off by more is an event, microseconds.
    pub bound_us: i64,
    /// A device that was silent for this long (tick time) is forgotten, microseconds.
    pub forget_after_us: i64,
    /// How many devices are watched; further ones are not.
    pub limits: KeyLimits,
}
