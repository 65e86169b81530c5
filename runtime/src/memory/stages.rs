//! How near the process is to its budget, in stages.
//!
//! Invariant: a stage is entered as soon as memory is above its bound, and left when memory was
//! below a lower one all the time for [`CALM`]. So memory that goes up and down by less than the
//! distance of the two changes nothing.

use std::time::{Duration, Instant};

/// For so long memory must be below the lower bound of a stage.
pub(crate) const CALM: Duration = Duration::from_secs(2);

/// What is done about it, each one with all before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Nothing.
    #[default]
    Roomy,
    /// Less is in flight, and sources wait while the dataflow is behind.
    Tight,
    /// New keys find no place.
    Full,
    /// Sources wait while the dataflow has something to do, and at the very end for longer.
    Stop,
}

impl Stage {
    /// All but the first.
    pub(crate) const ALL: [Self; 3] = [Self::Tight, Self::Full, Self::Stop];

    /// Its name in rows.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Roomy => "roomy",
            Self::Tight => "tight",
            Self::Full => "full",
            Self::Stop => "stop",
        }
    }

    /// What is done, for people.
    pub(crate) fn action(self) -> &'static str {
        match self {
            Self::Roomy => "nothing",
            Self::Tight => "less is in flight, sources wait while the dataflow is behind",
            Self::Full => "rows of new keys are refused (memory_max)",
            Self::Stop => "sources wait until what was taken is worked through",
        }
    }

    /// Of a hundred parts of the budget: above the first it is entered, below the second left.
    fn bounds(self) -> (u64, u64) {
        match self {
            Self::Roomy => (0, 0),
            Self::Tight => (65, 60),
            Self::Full => (75, 70),
            Self::Stop => (85, 80),
        }
    }

    /// Bytes above which it is entered.
    pub(crate) fn enter_bytes(self, bytes_max: u64) -> u64 {
        bytes_max / 100 * self.bounds().0
    }

    /// Bytes below which it is left.
    pub(crate) fn leave_bytes(self, bytes_max: u64) -> u64 {
        bytes_max / 100 * self.bounds().1
    }

    fn before(self) -> Self {
        match self {
            Self::Roomy | Self::Tight => Self::Roomy,
            Self::Full => Self::Tight,
            Self::Stop => Self::Full,
        }
    }
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Stages {
    bytes_max: u64,
    stage: Stage,
    /// Since when memory is low enough to leave the stage.
    calm_since: Option<Instant>,
}

impl Stages {
    /// With room.
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, stage: Stage::Roomy, calm_since: None }
    }

    /// The stage at `now`, with so many bytes in use.
    pub(crate) fn step(&mut self, now: Instant, bytes: u64) -> Stage {
        let reached =
            Stage::ALL.into_iter().filter(|s| bytes > s.enter_bytes(self.bytes_max)).max();
        if reached > Some(self.stage) {
            self.stage = reached.unwrap_or_default();
            self.calm_since = None;
        } else if bytes >= self.stage.leave_bytes(self.bytes_max) {
            self.calm_since = None;
        } else if now.saturating_duration_since(*self.calm_since.get_or_insert(now)) >= CALM {
            self.stage = self.stage.before();
            self.calm_since = None;
        }
        self.stage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stages of a made-up meter, one look each 100 ms.
    fn stages(meter: impl IntoIterator<Item = u64>) -> Vec<Stage> {
        let (mut stages, start) = (Stages::new(1_000), Instant::now());
        let looks = meter.into_iter().enumerate();
        looks
            .map(|(i, bytes)| stages.step(start + Duration::from_millis(100) * i as u32, bytes))
            .collect()
    }

    #[test]
    fn stages_are_entered_at_once_and_left_one_after_the_other() {
        let up = stages([0, 650, 651, 750, 751, 860, 100]);
        let wanted = [Stage::Roomy, Stage::Roomy, Stage::Tight, Stage::Tight, Stage::Full];
        assert_eq!(up[..5], wanted);
        assert_eq!(up[5..], [Stage::Stop; 2]);
        let down = stages(std::iter::once(999).chain(std::iter::repeat_n(0, 100)));
        let at = |stage| down.iter().position(|s| *s == stage);
        // Each takes its time of calm, which begins with the look after.
        let calm = (CALM.as_millis() / 100) as usize;
        let steps = [calm + 1, 2 * calm + 2, 3 * calm + 3].map(Some);
        assert_eq!([at(Stage::Full), at(Stage::Tight), at(Stage::Roomy)], steps);
        assert!(down.is_sorted_by(|a, b| a >= b));
    }

    #[test]
    fn what_goes_up_and_down_within_the_distance_changes_nothing() {
        let meter = (0..10_000).map(|i| if i % 7 < 3 { 701 } else { 760 });
        let all = stages(meter);
        assert!(all[4..].iter().all(|stage| *stage == Stage::Full));
        // Far below, but never for long enough.
        let meter = (0..10_000).map(|i| if i % 15 == 0 { 760 } else { 100 });
        assert!(stages(meter).into_iter().all(|stage| stage == Stage::Full));
        // And what is below the lower bound for good leaves it.
        let meter = std::iter::once(760).chain(std::iter::repeat_n(699, 1_000));
        assert_eq!(stages(meter).last(), Some(&Stage::Tight), "699 is above 600");
    }
}
