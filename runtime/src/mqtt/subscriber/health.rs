//! One source, several connections: the source is well if all of them are. That it is not is told
//! once for all of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::failing::{Failing, Over};
use crate::source::SourceStats;
use crate::time;

/// How one connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Starting,
    Well,
    Ill(String),
}

#[derive(Debug)]
pub(super) struct Health {
    states: Mutex<States>,
    stats: Arc<SourceStats>,
}

#[derive(Debug)]
struct States {
    all: Vec<State>,
    failing: Failing,
}

impl Health {
    pub(super) fn new(connections: u16, stats: Arc<SourceStats>) -> Arc<Self> {
        let all = vec![State::Starting; usize::from(connections)];
        let states = Mutex::new(States { all, failing: Failing::default() });
        Arc::new(Self { states, stats })
    }

    /// If the source works again by that, and it was told that it did not: what is over.
    pub(super) fn well(&self, connection: u16) -> Option<Over> {
        self.set(connection, State::Well);
        let mut states = self.lock();
        let all_well = states.all.iter().all(|s| *s == State::Well);
        all_well.then(|| states.failing.works(time::now())).flatten()
    }

    /// [`Health::ill`], and, if it is to be told, how often that was so since it was told.
    pub(super) fn failed(&self, connection: u16, why: &str) -> Option<u64> {
        self.ill(connection, why);
        self.lock().failing.failed(time::now(), why)
    }

    fn lock(&self) -> MutexGuard<'_, States> {
        // A panic while holding this lock cannot leave half a state behind.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ill(&self, connection: u16, why: &str) {
        self.set(connection, State::Ill(why.to_owned()));
    }

    fn set(&self, connection: u16, state: State) {
        let mut guard = self.lock();
        let states = &mut guard.all;
        states[usize::from(connection)] = state;
        let ill = states.iter().find_map(|s| match s {
            State::Ill(why) => Some(why),
            _ => None,
        });
        match ill {
            Some(why) => self.stats.set_unhealthy(why.clone()),
            None if states.iter().all(|s| *s == State::Well) => self.stats.set_healthy(),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_ill_connection_makes_the_source_ill() {
        let stats = Arc::new(SourceStats::default());
        let health = Health::new(2, Arc::clone(&stats));
        health.well(0);
        assert!(!stats.is_healthy(), "the other one has not connected yet");
        health.well(1);
        assert!(stats.is_healthy());
        health.ill(1, "gone");
        health.well(0);
        assert_eq!(stats.problem().as_deref(), Some("gone"));
        health.well(1);
        assert!(stats.is_healthy());
    }
}
