//! How each table is doing, to look at while it works.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidegate_operators::Epoch;

use super::{Backlog, TableTroubles};

/// A table at one moment.
#[derive(Clone, Debug, Default)]
pub struct TableState {
    /// How long the oldest row has been complete that readers cannot see yet.
    pub lag: Duration,
    /// The newest epoch that a commit covers.
    pub committed: Epoch,
    /// Bytes of rows that wait in memory, and on disk.
    pub waiting_bytes: u64,
    /// See above.
    pub spilled_bytes: u64,
    /// Why it cannot be written at present.
    pub trouble: Option<String>,
}

/// Since when rows wait for readers to see them.
#[derive(Debug, Default)]
pub(super) struct Unseen(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    /// When the first row came after the newest commit that was asked for.
    open: Option<Instant>,
    /// The same for each commit that was asked for and is not there yet.
    asked: VecDeque<(Epoch, Instant)>,
}

impl Unseen {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rows came.
    pub(super) fn rows(&self) {
        self.lock().open.get_or_insert_with(Instant::now);
    }

    /// A commit through `epoch` was asked for.
    pub(super) fn asked(&self, epoch: Epoch) {
        let mut waiting = self.lock();
        if let Some(since) = waiting.open.take() {
            waiting.asked.push_back((epoch, since));
        }
    }

    /// Everything through `epoch` can be seen.
    pub(super) fn seen(&self, epoch: Epoch) {
        let mut waiting = self.lock();
        while waiting.asked.front().is_some_and(|(asked, _)| *asked <= epoch) {
            waiting.asked.pop_front();
        }
    }

    fn lag(&self) -> Duration {
        let waiting = self.lock();
        let oldest = waiting.asked.front().map(|(_, since)| *since).or(waiting.open);
        oldest.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// What is looked at of one table.
#[derive(Clone)]
pub(super) struct Watched {
    pub(super) backlog: Arc<Backlog>,
    pub(super) committed: Arc<AtomicU64>,
    pub(super) unseen: Arc<Unseen>,
}

/// All tables of the process, by name.
#[derive(Clone, Default)]
pub(crate) struct TablesWatched(Arc<Mutex<BTreeMap<String, Watched>>>);

impl TablesWatched {
    /// A table, in the place of one that had its name.
    pub(super) fn put(&self, name: &str, table: Watched) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), table);
    }

    /// How each is doing.
    pub(crate) fn now(&self, troubles: &TableTroubles) -> Vec<(String, TableState)> {
        let mut why: BTreeMap<String, String> =
            troubles.now().into_iter().map(|(table, _, why)| (table, why)).collect();
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .map(|(name, table)| {
                let (waiting_bytes, spilled_bytes) = table.backlog.waiting();
                let state = TableState {
                    lag: table.unseen.lag(),
                    committed: table.committed.load(Ordering::Acquire),
                    waiting_bytes,
                    spilled_bytes,
                    trouble: why.remove(name),
                };
                (name.clone(), state)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_that_of_the_oldest_row_that_nobody_sees() {
        let unseen = Unseen::default();
        let (pause, begun) = (Duration::from_millis(20), Instant::now());
        assert_eq!(unseen.lag(), Duration::ZERO);
        unseen.rows();
        std::thread::sleep(pause);
        unseen.asked(5);
        unseen.rows();
        std::thread::sleep(pause);
        assert!(unseen.lag() >= 2 * pause, "asked for is not seen");
        unseen.asked(7);
        unseen.asked(8);
        unseen.seen(4);
        assert!(unseen.lag() >= 2 * pause, "not yet");
        unseen.seen(6);
        let second = unseen.lag();
        assert!(second >= pause && second + pause <= begun.elapsed(), "of the second");
        unseen.seen(8);
        assert_eq!(unseen.lag(), Duration::ZERO);
    }
}
