//! How far apart the readings of a key are: declared, or learnt from its own gaps. Readings may
//! come in batches: of what is learnt for ticks, a batch is one arrival.

use std::collections::VecDeque;

use crate::spec::{AbsenceSpec, Cadence};

/// Gaps between readings, in the order of their times, from which a cadence is learnt. Nine of ten
/// of them are not longer than what is learnt: three long ones in a row do not change it much, a
/// fourth says that the key has become slower.
pub const GAPS_LEARNT: usize = 31;

/// Gaps before a cadence is known.
pub const GAPS_LEAST: usize = 8;

/// The last gaps of a key, microseconds; nothing where the cadence is declared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Gaps(pub(super) VecDeque<i64>);

/// What is expected of a key, microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    /// How far apart its readings are.
    pub(super) cadence_us: i64,
    /// A longer gap is an absence.
    pub(super) limit_us: i64,
}

impl Expected {
    /// How long a key must be silent in ticks for that to be told: also for as long as its next
    /// reading may take and an outage may stay unknown.
    pub(super) fn told_us(&self, spec: &AbsenceSpec) -> i64 {
        self.limit_us.max(self.cadence_us.saturating_add(spec.known_after_us))
    }
}

/// When a key's readings arrive, in ticks; nothing where the cadence is declared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Arrivals {
    pub(super) gaps: Gaps,
    /// The tick of the last arrival.
    pub(super) last_us: Option<i64>,
}

impl Arrivals {
    /// Takes the tick of a reading; `explained`: the time before it says nothing of the key.
    pub(super) fn learn(&mut self, spec: &AbsenceSpec, tick_us: i64, explained: bool) {
        let Cadence::Learnt { least_us } = spec.cadence else { return };
        if let Some(last_us) = self.last_us {
            let gap_us = tick_us.saturating_sub(last_us);
            if gap_us < least_us {
                return;
            }
            if !explained {
                self.gaps.learn(spec, gap_us);
            }
        }
        self.last_us = Some(tick_us);
    }

    /// What is expected of a key in ticks, given what is of its readings.
    pub(super) fn expected(&self, spec: &AbsenceSpec, readings: Expected) -> Option<Expected> {
        let arrivals = self.gaps.expected(spec)?;
        Some(if arrivals.cadence_us > readings.cadence_us { arrivals } else { readings })
    }
}

impl Gaps {
    /// Takes the newest gap.
    pub(super) fn learn(&mut self, spec: &AbsenceSpec, gap_us: i64) {
        if matches!(spec.cadence, Cadence::Learnt { .. }) {
            if self.0.len() == GAPS_LEARNT {
                self.0.pop_front();
            }
            self.0.push_back(gap_us);
        }
    }

    /// What is expected now; `None` if too little is known.
    pub(super) fn expected(&self, spec: &AbsenceSpec) -> Option<Expected> {
        let cadence_us = match spec.cadence {
            Cadence::Every(us) => us,
            Cadence::Learnt { least_us } => {
                if self.0.len() < GAPS_LEAST {
                    return None;
                }
                let mut sorted: Vec<i64> = self.0.iter().copied().collect();
                sorted.sort_unstable();
                let at = (sorted.len() * 9).div_ceil(10) - 1;
                sorted[at].max(least_us)
            }
        };
        Some(Expected { cadence_us, limit_us: cadence_us.saturating_mul(spec.missed) })
    }
}
