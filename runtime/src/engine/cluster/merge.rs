//! What all processes together have done: an epoch is complete when each of them has said so.
//!
//! Invariant that the committer leans on: whatever belongs to an epoch is in the queue of events
//! before its [`Event::Done`]. A follower says it after its rows, on a connection that keeps the
//! order, and whoever reads that connection passes the rows on before it notes the word; so when
//! the last process is noted here, the rows of all of them are in the queue.

use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, PoisonError};

use tidegate_operators::{Epoch, Tick};

use crate::engine::workers::Event;

/// Shared by the workers of the leader and by those who read what followers say.
pub(crate) struct Merge {
    pub(super) events: SyncSender<Event>,
    state: Mutex<State>,
}

struct State {
    /// By process: the newest epoch that is complete there.
    done: Vec<Option<Tick>>,
    /// The newest epoch that was passed on.
    told: Epoch,
    /// By process: the newest epoch whose state has come; the leader's comes with its rows.
    saved: Vec<Epoch>,
    saved_told: Epoch,
    /// Processes whose workers have not ended.
    running: usize,
}

impl Merge {
    /// For so many processes, of which 0 is the leader.
    pub(super) fn new(processes: usize, events: SyncSender<Event>) -> Self {
        let mut saved = vec![0; processes];
        saved[0] = Epoch::MAX;
        let done = vec![None; processes];
        let state = State { done, told: 0, saved, saved_told: 0, running: processes };
        Self { events, state: Mutex::new(state) }
    }

    /// Every epoch up to this one is complete on the workers of a process.
    pub(crate) fn done(&self, process: usize, tick: Tick) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.done[process] = Some(tick);
        let all: Option<Vec<Tick>> = state.done.iter().copied().collect();
        let Some(least) = all.and_then(|all| all.into_iter().min_by_key(|t| t.epoch)) else {
            return;
        };
        if least.epoch > state.told {
            state.told = least.epoch;
            // Under the lock, or a later one could overtake it.
            let _ = self.events.send(Event::Done(least));
        }
    }

    /// All state of a follower as of the end of this epoch has been passed on.
    pub(super) fn saved(&self, process: usize, epoch: Epoch) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.saved[process] = epoch;
        let least = state.saved.iter().copied().min().unwrap_or_default();
        if least > state.saved_told {
            state.saved_told = least;
            let _ = self.events.send(Event::Saved(least));
        }
    }

    /// The workers of a process have ended.
    pub(crate) fn ended(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running = state.running.saturating_sub(1);
        if state.running == 0 {
            let _ = self.events.send(Event::Ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn an_epoch_is_done_when_the_last_process_has_it() {
        let (events, received) = sync_channel(16);
        let merge = Merge::new(3, events);
        let tick = |epoch| Tick { epoch, time_us: 10 * epoch as i64 };
        let told = || -> Vec<String> {
            let text = |event| match event {
                Event::Done(tick) => format!("done {} {}", tick.epoch, tick.time_us),
                Event::Saved(epoch) => format!("saved {epoch}"),
                other => format!("{other:?}"),
            };
            received.try_iter().map(text).collect()
        };
        merge.done(0, tick(5));
        merge.done(1, tick(3));
        assert!(told().is_empty());
        merge.done(2, tick(4));
        assert_eq!(told(), ["done 3 30"]);
        merge.done(2, tick(9));
        assert!(told().is_empty());
        merge.done(1, tick(7));
        assert_eq!(told(), ["done 5 50"]);
        merge.saved(1, 8);
        assert!(told().is_empty());
        merge.saved(2, 4);
        merge.saved(2, 9);
        assert_eq!(told(), ["saved 4", "saved 8"]);
        merge.ended();
        merge.ended();
        assert!(told().is_empty());
        merge.ended();
        assert_eq!(told(), ["Ended"]);
    }
}
