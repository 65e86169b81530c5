//! One source, several connections: the source is well if all of them are.

use std::sync::{Arc, Mutex, PoisonError};

use crate::source::SourceStats;

/// How one connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Starting,
    Well,
    Ill(String),
}

#[derive(Debug)]
pub(super) struct Health {
    states: Mutex<Vec<State>>,
    stats: Arc<SourceStats>,
}

impl Health {
    pub(super) fn new(connections: u16, stats: Arc<SourceStats>) -> Arc<Self> {
        let states = Mutex::new(vec![State::Starting; usize::from(connections)]);
        Arc::new(Self { states, stats })
    }

    pub(super) fn well(&self, connection: u16) {
        self.set(connection, State::Well);
    }

    pub(super) fn ill(&self, connection: u16, why: &str) {
        self.set(connection, State::Ill(why.to_owned()));
    }

    fn set(&self, connection: u16, state: State) {
        // A panic while holding this lock cannot leave half a state behind.
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
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
