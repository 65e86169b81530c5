//! Tables at work, each on a thread of its own: writing files takes as long as it takes, and the
//! epochs, the alerts and the other tables must not wait for it.
//!
//! A table gets rows and commits through a bounded queue, in order. Only when that queue is full
//! does the committer wait, and with it the workers and the sources: nothing is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use tidegate_operators::Epoch;
use tidegate_sql::{Error, TableWriter};
use tokio::runtime::Handle;

use crate::stats::Stats;

/// Batches and commits that may wait for one table.
const JOBS_MAX: usize = 64;

/// First pause after the object store failed.
const STORE_PAUSE_MIN: Duration = Duration::from_millis(250);

/// Longest pause.
const STORE_PAUSE_MAX: Duration = Duration::from_secs(10);

/// What a table is asked to do.
pub(super) enum Job {
    Rows(Epoch, RecordBatch),
    Commit(Epoch),
}

/// What every table's thread needs.
#[derive(Clone)]
pub(super) struct TableContext {
    pub(super) runtime: Handle,
    pub(super) stats: Arc<Stats>,
    /// While this is false, a store that cannot be reached is tried again for ever.
    pub(super) stopping: Arc<AtomicBool>,
}

/// One table.
pub(super) struct Table {
    name: String,
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
    /// The newest epoch that a finished commit covers.
    committed: Arc<AtomicU64>,
    freshness: Duration,
    committed_at: Instant,
    dirty: bool,
}

impl Table {
    /// Starts the thread of a table.
    pub(super) fn start(
        name: String,
        writer: TableWriter,
        freshness: Duration,
        context: TableContext,
    ) -> std::io::Result<Self> {
        let (mut table, work) = Self::new(name, writer, freshness, JOBS_MAX);
        let thread =
            std::thread::Builder::new().name("table".into()).spawn(move || work.run(&context))?;
        table.thread = Some(thread);
        Ok(table)
    }

    /// A table, and the work that its thread has to do.
    pub(super) fn new(
        name: String,
        writer: TableWriter,
        freshness: Duration,
        jobs_max: usize,
    ) -> (Self, TableWork) {
        let (jobs, queue) = sync_channel(jobs_max);
        let committed = Arc::new(AtomicU64::new(0));
        let work = TableWork { writer, queue, committed: Arc::clone(&committed), job: None };
        let table = Self {
            name,
            jobs: Some(jobs),
            thread: None,
            committed,
            freshness,
            committed_at: Instant::now(),
            dirty: false,
        };
        (table, work)
    }

    /// Hands rows of a complete epoch to the table.
    pub(super) fn rows(&mut self, epoch: Epoch, rows: RecordBatch) -> anyhow::Result<()> {
        self.dirty = true;
        self.send(Job::Rows(epoch, rows))
    }

    /// Asks for a commit if the table has new rows and it is time, or always.
    pub(super) fn commit(&mut self, through: Epoch, always: bool) -> anyhow::Result<()> {
        let due = self.dirty && self.committed_at.elapsed() >= self.freshness;
        if due || always {
            self.dirty = false;
            self.committed_at = Instant::now();
            self.send(Job::Commit(through))?;
        }
        Ok(())
    }

    /// Whether everything up to `epoch` is visible to readers, once it was asked for.
    pub(super) fn has_committed(&self, epoch: Epoch) -> bool {
        self.committed.load(Ordering::Acquire) >= epoch
    }

    /// Waits until all that was handed over is done.
    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
        self.jobs = None;
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => anyhow::bail!("table {}: its thread is gone", self.name),
        }
    }

    fn send(&mut self, job: Job) -> anyhow::Result<()> {
        match self.jobs.as_ref().map(|jobs| jobs.send(job)) {
            Some(Ok(())) => Ok(()),
            // The thread has ended before its time: it knows why.
            _ => {
                self.finish()?;
                anyhow::bail!("table {} takes no rows any more", self.name)
            }
        }
    }
}

/// The work on one table.
pub(super) struct TableWork {
    writer: TableWriter,
    queue: Receiver<Job>,
    committed: Arc<AtomicU64>,
    /// The job at hand, until it is done.
    job: Option<Job>,
}

impl TableWork {
    /// Works until nobody asks for more.
    fn run(mut self, context: &TableContext) -> anyhow::Result<()> {
        let TableContext { runtime, stats, stopping } = context;
        while let Ok(job) = self.queue.recv() {
            self.job = Some(job);
            until_it_works(stopping, || runtime.block_on(self.work(stats)))?;
        }
        Ok(())
    }

    /// Does the job at hand; after an error it may be tried again.
    async fn work(&mut self, stats: &Stats) -> tidegate_sql::Result<()> {
        match &self.job {
            Some(Job::Rows(epoch, rows)) => self.writer.append(rows.clone(), *epoch).await?,
            Some(Job::Commit(through)) => {
                let through = *through;
                let report = self.writer.commit(through).await?;
                Stats::add(&stats.table_files, report.files as u64);
                Stats::add(&stats.table_rows, report.rows);
                Stats::add(&stats.table_bytes, report.bytes);
                self.committed.store(through, Ordering::Release);
            }
            None => {}
        }
        self.job = None;
        Ok(())
    }

    /// Does one job on `runtime`, for the simulation: whether there was one. A store that fails
    /// leaves it for the next time.
    #[cfg(test)]
    pub(super) fn step(
        &mut self,
        runtime: &tokio::runtime::Runtime,
        stats: &Stats,
    ) -> anyhow::Result<bool> {
        if self.job.is_none() {
            self.job = self.queue.try_recv().ok();
        }
        if self.job.is_none() {
            return Ok(false);
        }
        match runtime.block_on(self.work(stats)) {
            Ok(()) | Err(Error::Store { .. } | Error::Io(_)) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

/// Repeats `action` while the object store fails. Any other error is final.
fn until_it_works<T>(
    stopping: &AtomicBool,
    mut action: impl FnMut() -> tidegate_sql::Result<T>,
) -> anyhow::Result<T> {
    let mut pause = STORE_PAUSE_MIN;
    loop {
        let error = match action() {
            Ok(value) => return Ok(value),
            Err(error @ (Error::Store { .. } | Error::Io(_))) => error,
            Err(error) => return Err(error.into()),
        };
        if stopping.load(Ordering::Acquire) {
            let why = "the tables cannot be written; what they lack stays in the journal";
            return Err(anyhow::Error::from(error).context(why));
        }
        tracing::warn!(%error, pause_s = pause.as_secs_f64(), "tables cannot be written");
        std::thread::sleep(pause);
        pause = (pause * 2).min(STORE_PAUSE_MAX);
    }
}
