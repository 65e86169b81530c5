//! The queue between the committer and the thread of one table: first in memory, then on disk.
//!
//! Invariant: jobs come out once and in the order in which they went in. Memory is bounded by
//! [`HEAD_BYTES_MAX`] and a small tail; what is more goes to the [`Spill`]; only when that has no
//! room either (budget, full disk) does the one who brings jobs wait, and nothing is dropped.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::spill::{Job, Spill};

/// Rows that wait in memory for one table.
const HEAD_BYTES_MAX: usize = 4 << 20;
/// Jobs that wait in memory: an empty batch costs memory too.
const HEAD_JOBS_MAX: usize = 256;
/// Jobs, and bytes of their rows, that go to disk together: a record of its own for each small
/// epoch would be mostly the description of its columns.
const TAIL_JOBS_MAX: usize = 128;
const TAIL_BYTES_MAX: usize = 1 << 20;
/// Pause before a disk without room is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(100);

struct State {
    head: VecDeque<Job>,
    head_bytes: usize,
    head_bytes_max: usize,
    head_jobs_max: usize,
    spill: Spill,
    tail: Vec<Job>,
    tail_bytes: usize,
    /// Commits that wait.
    commits: usize,
    /// Nothing more comes.
    closed: bool,
    /// Nobody takes jobs any more.
    gone: bool,
    /// Why the last job had to wait, if it had to.
    stuck: Option<String>,
}

/// See the head of this module.
pub(crate) struct Backlog {
    state: Mutex<State>,
    changed: Condvar,
    /// Bytes that wait in memory and on disk, to look at without the lock: it may be held while
    /// the disk is waited for.
    memory_bytes: AtomicU64,
    disk_bytes: AtomicU64,
}

/// Why a job was not taken.
pub(crate) enum Refused {
    /// Nobody takes jobs any more.
    Gone,
    /// The process stops, and there is no room for what waits.
    Stopped(String),
}

impl Backlog {
    pub(crate) fn new(spill: Spill) -> Self {
        let state = State {
            head: VecDeque::new(),
            head_bytes: 0,
            head_bytes_max: HEAD_BYTES_MAX,
            head_jobs_max: HEAD_JOBS_MAX,
            spill,
            tail: Vec::new(),
            tail_bytes: 0,
            commits: 0,
            closed: false,
            gone: false,
            stuck: None,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            memory_bytes: AtomicU64::new(0),
            disk_bytes: AtomicU64::new(0),
        }
    }

    /// Everything waits in memory: for a simulation, which has its own bounds.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        let spill = Spill::nowhere();
        let backlog = Self::new(spill);
        backlog.lock().head_bytes_max = usize::MAX;
        backlog.lock().head_jobs_max = usize::MAX;
        backlog
    }

    /// Brings a job; waits only while neither memory nor disk has room.
    pub(crate) fn push(&self, job: Job, stopping: impl Fn() -> bool) -> Result<(), Refused> {
        let mut state = self.lock();
        let mut job = Some(job);
        loop {
            if state.gone {
                return Err(Refused::Gone);
            }
            match state.put(&mut job) {
                Ok(()) => break,
                Err(error) => {
                    let why = error.to_string();
                    if stopping() {
                        return Err(Refused::Stopped(why));
                    }
                    if state.stuck.as_ref() != Some(&why) {
                        tracing::warn!(%error, "rows for a table wait in memory only");
                        state.stuck = Some(why);
                    }
                    let wait = self.changed.wait_timeout(state, FULL_PAUSE);
                    state = wait.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        state.stuck = None;
        self.tell(&state);
        self.changed.notify_all();
        Ok(())
    }

    /// The next job, if there is one.
    ///
    /// # Errors
    /// As [`Backlog::pop`].
    #[cfg(test)]
    pub(crate) fn try_pop(&self) -> io::Result<Option<Job>> {
        let mut state = self.lock();
        let job = state.next()?;
        state.commits -= usize::from(matches!(job, Some(Job::Commit(_))));
        Ok(job)
    }

    /// The next job; waits for one. `None` when nothing more comes. Of several commits that wait
    /// only the last one counts, as long as `skip` allows it: what is late anyway becomes few files
    /// and not many.
    ///
    /// # Errors
    /// What was left on disk cannot be read back.
    pub(crate) fn pop(&self, skip: bool) -> io::Result<Option<Job>> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.next()? {
                self.tell(&state);
                self.changed.notify_all();
                if matches!(job, Job::Commit(_)) {
                    state.commits -= 1;
                    if skip && state.commits > 0 {
                        continue;
                    }
                }
                return Ok(Some(job));
            }
            if state.closed {
                return Ok(None);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nothing more comes.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Nobody takes jobs any more.
    pub(crate) fn leave(&self) {
        self.lock().gone = true;
        self.changed.notify_all();
    }

    /// Why jobs have to wait for room, if they have to.
    #[cfg(test)]
    pub(crate) fn stuck(&self) -> Option<String> {
        self.lock().stuck.clone()
    }

    /// Bytes of rows that wait in memory, and on disk.
    pub(crate) fn waiting(&self) -> (u64, u64) {
        (self.memory_bytes.load(Ordering::Relaxed), self.disk_bytes.load(Ordering::Relaxed))
    }

    fn tell(&self, state: &State) {
        let memory = state.head_bytes + state.tail_bytes;
        self.memory_bytes.store(memory as u64, Ordering::Relaxed);
        self.disk_bytes.store(state.spill.bytes(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes `job` out and puts it where there is room.
    fn put(&mut self, job: &mut Option<Job>) -> io::Result<()> {
        let bytes = job.as_ref().map_or(0, size_bytes);
        let in_memory = self.spill.is_empty() && self.tail.is_empty();
        let head_full =
            self.head_bytes >= self.head_bytes_max || self.head.len() >= self.head_jobs_max;
        if !in_memory || head_full {
            if self.tail.len() >= TAIL_JOBS_MAX || self.tail_bytes >= TAIL_BYTES_MAX {
                self.spill.write(&self.tail)?;
                self.tail.clear();
                self.tail_bytes = 0;
            }
            self.tail_bytes += bytes;
        } else {
            self.head_bytes += bytes;
        }
        let Some(job) = job.take() else { return Ok(()) };
        self.commits += usize::from(matches!(job, Job::Commit(_)));
        match in_memory && !head_full {
            true => self.head.push_back(job),
            false => self.tail.push(job),
        }
        Ok(())
    }

    fn next(&mut self) -> io::Result<Option<Job>> {
        if self.head.is_empty() {
            let more = match self.spill.is_empty() {
                true => {
                    self.tail_bytes = 0;
                    std::mem::take(&mut self.tail)
                }
                false => self.spill.read()?,
            };
            self.head_bytes = more.iter().map(size_bytes).sum();
            self.head = more.into();
        }
        let job = self.head.pop_front();
        self.head_bytes -= job.as_ref().map_or(0, size_bytes).min(self.head_bytes);
        Ok(job)
    }
}

fn size_bytes(job: &Job) -> usize {
    match job {
        // What comes back from disk shares its buffers, so that this counts too much.
        Job::Rows(_, rows) => rows.get_array_memory_size(),
        Job::Commit(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use arrow::array::{ArrayRef, Int64Array, RecordBatch};

    use super::super::spill::SpillBudget;
    use super::*;

    fn rows(epoch: u64) -> Job {
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![epoch as i64; 5]));
        Job::Rows(epoch, RecordBatch::try_from_iter([("n", numbers)]).unwrap())
    }

    fn backlog(folder: &std::path::Path, bytes: u64) -> (Arc<Backlog>, SpillBudget) {
        let budget = SpillBudget::new(bytes);
        let spill = Spill::new(folder.join("spill"), budget.clone()).unwrap();
        (Arc::new(Backlog::new(spill)), budget)
    }

    fn epochs(jobs: &[Job]) -> Vec<u64> {
        jobs.iter().filter_map(|j| if let Job::Rows(e, _) = j { Some(*e) } else { None }).collect()
    }

    #[test]
    fn thousands_of_epochs_pass_through_little_memory_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let (backlog, budget) = backlog(folder.path(), 1 << 30);
        let count = 5_000;
        let mut got = Vec::new();
        for epoch in 1..=count {
            backlog.push(rows(epoch), || false).ok().unwrap();
            backlog.push(Job::Commit(epoch), || false).ok().unwrap();
            if epoch % 10 == 0 {
                got.extend(backlog.pop(false).unwrap());
            }
        }
        assert!(budget.used_bytes() > 0, "it was too much for the memory");
        let state = backlog.lock();
        assert!(state.head.len() <= HEAD_JOBS_MAX && state.tail.len() <= TAIL_JOBS_MAX);
        drop(state);
        backlog.close();
        while let Some(job) = backlog.pop(false).unwrap() {
            got.push(job);
        }
        let wanted: Vec<Job> = (1..=count).flat_map(|e| [rows(e), Job::Commit(e)]).collect();
        assert_eq!(got, wanted);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn of_commits_that_wait_the_last_one_counts() {
        let folder = tempfile::tempdir().unwrap();
        let (backlog, _) = backlog(folder.path(), 1 << 30);
        for epoch in 1..=1_000 {
            backlog.push(rows(epoch), || false).ok().unwrap();
            backlog.push(Job::Commit(epoch), || false).ok().unwrap();
        }
        backlog.close();
        let mut got = Vec::new();
        while let Some(job) = backlog.pop(true).unwrap() {
            got.push(job);
        }
        assert_eq!(epochs(&got), (1..=1_000).collect::<Vec<_>>());
        assert_eq!(got.last(), Some(&Job::Commit(1_000)));
        assert_eq!(got.len(), 1_001);
    }

    #[test]
    fn without_room_the_bringer_waits_and_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let (backlog, _) = backlog(folder.path(), 20_000);
        let stop = Arc::new(AtomicBool::new(false));
        let count = 4_000;
        let bringer = std::thread::spawn({
            let (backlog, stop) = (Arc::clone(&backlog), Arc::clone(&stop));
            move || {
                for epoch in 1..=count {
                    let stopping = || stop.load(Ordering::Acquire);
                    if backlog.push(rows(epoch), stopping).is_err() {
                        return epoch;
                    }
                }
                backlog.close();
                0
            }
        });
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while backlog.stuck().is_none() {
            assert!(std::time::Instant::now() < deadline, "the bringer waits");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut got = Vec::new();
        while let Some(job) = backlog.pop(true).unwrap() {
            got.push(job);
        }
        assert_eq!(bringer.join().unwrap(), 0);
        assert_eq!(epochs(&got), (1..=count).collect::<Vec<_>>());
        assert_eq!(backlog.stuck(), None);
    }
}
