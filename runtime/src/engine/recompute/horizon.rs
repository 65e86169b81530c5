//! Which groups of late readings are whole: the ends of stretches of journal time, each with the
//! epoch that the tables must have committed.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate_operators::{Epoch, Tick};

/// Groups up to `end_us` are whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Whole {
    pub(in crate::engine) end_us: i64,
    /// There were late readings since the last that was done.
    pub(in crate::engine) late: bool,
}

/// What the committer tells of epochs, and what becomes whole by commits.
pub(in crate::engine) struct Horizon {
    every_us: i64,
    state: Mutex<State>,
}

struct State {
    /// End of the newest stretch that is over.
    newest_us: i64,
    /// The first tick of the journal, if it is known.
    first_us: Option<i64>,
    /// Late readings came in the epoch at hand, and since the newest stretch was over.
    late_now: bool,
    late: bool,
    /// Ends of stretches, the epoch to be committed, whether late readings came.
    ends: VecDeque<(Whole, Epoch)>,
}

impl Horizon {
    /// Stretches of a length of at least a microsecond.
    pub(in crate::engine) fn new(every: Duration) -> Self {
        let every_us = i64::try_from(every.as_micros()).unwrap_or(i64::MAX).max(1);
        // What was before the start is not known.
        let (newest_us, late_now, late) = (i64::MIN, false, true);
        let state = State { newest_us, first_us: None, late_now, late, ends: VecDeque::new() };
        Self { every_us, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Length of a stretch, microseconds.
    pub(in crate::engine) fn every_us(&self) -> i64 {
        self.every_us
    }

    /// An epoch that is complete has late readings.
    pub(in crate::engine) fn late(&self) {
        self.lock().late_now = true;
    }

    /// All epochs up to this one are complete. To be told after their late readings.
    pub(in crate::engine) fn complete(&self, tick: Tick) {
        let end_us = tick.time_us.div_euclid(self.every_us) * self.every_us;
        let mut state = self.lock();
        if tick.epoch == 1 {
            state.first_us = Some(tick.time_us);
        }
        let late_now = std::mem::take(&mut state.late_now);
        let late = state.late || late_now;
        if end_us <= state.newest_us {
            state.late = late;
            return;
        }
        state.newest_us = end_us;
        state.ends.push_back((Whole { end_us, late }, tick.epoch));
        // What came late in this epoch may belong to the next stretch as well.
        state.late = late_now;
    }

    /// The first tick of the journal, microseconds, if this process saw it: then all that was late
    /// before it came by another journal.
    pub(in crate::engine) fn first_us(&self) -> Option<i64> {
        self.lock().first_us
    }

    /// The newest end that is whole once the tables have committed so much.
    pub(in crate::engine) fn whole(&self, committed: Epoch) -> Option<Whole> {
        let state = self.lock();
        let whole = state.ends.iter().take_while(|(_, epoch)| *epoch <= committed).map(|e| e.0);
        whole.reduce(|a, b| Whole { end_us: b.end_us, late: a.late || b.late })
    }

    /// Everything up to this end is done.
    pub(in crate::engine) fn done(&self, end_us: i64) {
        let mut state = self.lock();
        while state.ends.front().is_some_and(|(whole, _)| whole.end_us <= end_us) {
            state.ends.pop_front();
        }
    }
}
