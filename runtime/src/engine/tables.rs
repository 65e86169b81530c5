//! Tables at work, each on a thread of its own: writing files takes as long as it takes, and the
//! epochs, the alerts and the other tables must not wait for it.
//!
//! A table gets rows and commits through a [`Backlog`], in order: what it cannot take at present
//! waits in memory and then on the local disk. Only when that is full too does the committer wait,
//! and with it the workers and the sources: nothing is dropped.

mod backlog;
mod spill;
mod watched;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use tidegate_operators::Epoch;
use tidegate_sql::{Error, TableWriter};
use tokio::runtime::Handle;

pub(super) use self::backlog::Backlog;
use self::backlog::Refused;
pub(crate) use self::spill::SpillBudget;
use self::spill::{Job, Spill};
pub use self::watched::TableState;
pub(crate) use self::watched::TablesWatched;
use self::watched::{Unseen, Watched};
use super::fence::{CommitRight, Fence};
use super::patience::Patience;
use crate::stats::Stats;

/// Folder of waiting rows below the data folder.
const SPILL: &str = "spill";

/// Rows on disk that wait for tables, unless it is configured otherwise.
pub(crate) const SPILL_BYTES_MAX: u64 = 4 << 30;

/// While more commits wait, one is passed over if no more than this waits in memory for it.
const SKIP_BYTES_MAX: usize = 16 << 20;

/// First pause after the object store failed.
const STORE_PAUSE_MIN: Duration = Duration::from_millis(250);

/// Longest pause.
const STORE_PAUSE_MAX: Duration = Duration::from_secs(10);

/// Which tables cannot be written at present: since when, and why.
#[derive(Clone, Debug, Default)]
pub(crate) struct TableTroubles(Arc<Mutex<BTreeMap<String, (Instant, String)>>>);

impl TableTroubles {
    fn note(&self, table: &str, trouble: Option<String>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(why) = trouble else { return drop(all.remove(table)) };
        let entry = all.entry(table.to_owned()).or_insert_with(|| (Instant::now(), String::new()));
        entry.1 = why;
    }

    /// The tables that cannot be written, each with the time since then and the reason.
    pub(crate) fn now(&self) -> Vec<(String, Duration, String)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .map(|(table, (since, why))| (table.clone(), since.elapsed(), why.clone()))
            .collect()
    }
}

/// What every table's thread needs.
#[derive(Clone)]
pub(super) struct TableContext {
    pub(super) runtime: Handle,
    pub(super) stats: Arc<Stats>,
    /// While this is false, a store that cannot be reached is tried again for ever.
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) troubles: TableTroubles,
    pub(super) spill: SpillBudget,
    pub(super) watched: TablesWatched,
    /// Who may commit; nobody is asked in runs over files.
    pub(super) fence: Option<Arc<Fence>>,
    /// No row was made before: tables that are created have all there ever will be.
    pub(super) from_first: bool,
    /// Of whoever opens them at a start.
    pub(super) patience: Patience,
    spill_dir: PathBuf,
}

impl TableContext {
    /// What waits for tables is left in a folder of `data`; what is there is of no use any more.
    pub(super) fn new(
        stats: Arc<Stats>,
        stopping: Arc<AtomicBool>,
        data: &Path,
        spill: SpillBudget,
    ) -> std::io::Result<Self> {
        let spill_dir = data.join(SPILL);
        spill::remove_leftovers(&spill_dir)?;
        let runtime = Handle::current();
        let (troubles, watched) = (TableTroubles::default(), TablesWatched::default());
        let (fence, from_first, patience) = (None, false, Patience::default());
        let context = Self {
            runtime,
            stats,
            stopping,
            troubles,
            spill,
            watched,
            fence,
            from_first,
            patience,
            spill_dir,
        };
        Ok(context)
    }

    /// Says whether nothing was made yet for any table.
    pub(super) fn with_from_first(self, from_first: bool) -> Self {
        Self { from_first, ..self }
    }

    /// Who opens them waits for them.
    pub(super) fn waited_for(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// Commits are made only while there is no later process.
    pub(super) fn fenced(self, fence: &Arc<Fence>) -> Self {
        Self { fence: Some(Arc::clone(fence)), ..self }
    }
}

/// One table.
pub(super) struct Table {
    name: String,
    backlog: Arc<Backlog>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
    /// The newest epoch that a finished commit covers.
    committed: Arc<AtomicU64>,
    /// The newest epoch that its log says: those without rows are in none.
    logged: Arc<AtomicU64>,
    unseen: Arc<Unseen>,
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
        let spill = Spill::new(context.spill_dir.join(&name), context.spill.clone())?;
        let (mut table, work) = Self::new(name, writer, freshness, Backlog::new(spill));
        table.stopping = Arc::clone(&context.stopping);
        context.watched.put(&table.name, table.watched());
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
        backlog: Backlog,
    ) -> (Self, TableWork) {
        let backlog = Arc::new(backlog);
        let found = || Arc::new(AtomicU64::new(writer.committed_epoch()));
        let (committed, logged) = (found(), found());
        let work = TableWork {
            name: name.clone(),
            writer,
            backlog: Arc::clone(&backlog),
            committed: Arc::clone(&committed),
            logged: Arc::clone(&logged),
            unseen: Arc::default(),
            job: None,
        };
        let table = Self {
            name,
            backlog,
            stopping: Arc::default(),
            thread: None,
            committed,
            logged,
            unseen: Arc::clone(&work.unseen),
            freshness,
            committed_at: Instant::now(),
            dirty: false,
        };
        (table, work)
    }

    fn watched(&self) -> Watched {
        Watched {
            backlog: Arc::clone(&self.backlog),
            committed: Arc::clone(&self.committed),
            unseen: Arc::clone(&self.unseen),
        }
    }

    /// Hands rows of a complete epoch to the table.
    pub(super) fn rows(&mut self, epoch: Epoch, rows: RecordBatch) -> anyhow::Result<()> {
        self.dirty = true;
        self.unseen.rows();
        self.send(Job::Rows(epoch, rows))
    }

    /// Asks for a commit if the table has new rows and it is time, or always.
    pub(super) fn commit(&mut self, through: Epoch, always: bool) -> anyhow::Result<()> {
        let due = self.dirty && self.committed_at.elapsed() >= self.freshness;
        if due || always {
            self.dirty = false;
            self.committed_at = Instant::now();
            self.unseen.asked(through);
            self.send(Job::Commit(through))?;
        }
        Ok(())
    }

    /// Whether everything up to `epoch` is visible to readers, once it was asked for.
    pub(super) fn has_committed(&self, epoch: Epoch) -> bool {
        self.committed.load(Ordering::Acquire) >= epoch
    }

    /// The table's name, the newest epoch that a finished commit of this run covers, and the
    /// newest one that its log says.
    pub(super) fn at(&self) -> (String, Epoch, Epoch) {
        let [committed, logged] =
            [&self.committed, &self.logged].map(|e| e.load(Ordering::Acquire));
        (self.name.clone(), committed, logged)
    }

    /// Waits until all that was handed over is done.
    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
        self.backlog.close();
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => anyhow::bail!("table {}: its thread is gone", self.name),
        }
    }

    fn send(&mut self, job: Job) -> anyhow::Result<()> {
        match self.backlog.push(job, || self.stopping.load(Ordering::Acquire)) {
            Ok(()) => Ok(()),
            // The thread has ended before its time: it knows why.
            Err(Refused::Gone) => {
                self.finish()?;
                anyhow::bail!("table {} takes no rows any more", self.name)
            }
            Err(Refused::Stopped(why)) => {
                anyhow::bail!("table {}: {why}; what it lacks stays in the journal", self.name)
            }
        }
    }
}

/// The work on one table.
pub(super) struct TableWork {
    name: String,
    writer: TableWriter,
    backlog: Arc<Backlog>,
    committed: Arc<AtomicU64>,
    logged: Arc<AtomicU64>,
    unseen: Arc<Unseen>,
    /// The job at hand, until it is done.
    job: Option<Job>,
}

impl Drop for TableWork {
    fn drop(&mut self) {
        self.backlog.leave();
    }
}

impl TableWork {
    /// Works until nobody asks for more.
    fn run(mut self, context: &TableContext) -> anyhow::Result<()> {
        loop {
            let skip = self.writer.buffered_bytes() < SKIP_BYTES_MAX;
            self.job = self.backlog.pop(skip)?;
            if self.job.is_none() {
                return Ok(());
            }
            self.until_it_works(context)?;
        }
    }

    /// Does the job at hand; after an error it may be tried again.
    async fn work(&mut self, stats: &Stats, fence: Option<&Fence>) -> tidegate_sql::Result<()> {
        match &self.job {
            Some(Job::Rows(epoch, rows)) => self.writer.append(rows.clone(), *epoch).await?,
            Some(Job::Commit(through)) => {
                let through = *through;
                let _right = match fence {
                    Some(fence) => Some(self.right_to_commit(fence).await?),
                    None => None,
                };
                let report = self.writer.commit(through).await?;
                Stats::add(&stats.table_files, report.files as u64);
                Stats::add(&stats.table_rows, report.rows);
                Stats::add(&stats.table_bytes, report.bytes);
                self.logged.store(self.writer.committed_epoch(), Ordering::Release);
                self.committed.store(through, Ordering::Release);
                self.unseen.seen(through);
            }
            None => {}
        }
        self.job = None;
        Ok(())
    }

    /// Waits for nobody: there is a right to commit as long as no later process is there.
    async fn right_to_commit<'f>(&self, fence: &'f Fence) -> tidegate_sql::Result<CommitRight<'f>> {
        let what = || "looking for a later process of this instance".to_owned();
        let right = fence.guard().await;
        match right.map_err(|source| Error::Store { what: what(), source })? {
            Some(right) => Ok(right),
            None => {
                fence.stop(&fence.later()).await;
                let problem = "another process of this instance has taken over".to_owned();
                Err(Error::Table { table: self.name.clone(), problem })
            }
        }
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
            self.job = self.backlog.try_pop()?;
        }
        if self.job.is_none() {
            return Ok(false);
        }
        match runtime.block_on(self.work(stats, None)) {
            Ok(()) | Err(Error::Store { .. } | Error::Io(_)) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the job at hand has failed and waits to be tried again.
    #[cfg(test)]
    pub(super) fn is_stuck(&self) -> bool {
        self.job.is_some()
    }

    /// Repeats the job at hand while the object store fails. Any other error is final.
    fn until_it_works(&mut self, context: &TableContext) -> anyhow::Result<()> {
        let TableContext { runtime, stats, stopping, troubles, fence, .. } = context;
        let fence = fence.as_deref();
        let mut pause = STORE_PAUSE_MIN;
        loop {
            // Also while nothing works: that is when rows wait.
            Stats::set(&stats.spilled_bytes, context.spill.used_bytes());
            let error = match runtime.block_on(self.work(stats, fence)) {
                Ok(()) => break,
                Err(error @ (Error::Store { .. } | Error::Io(_))) => error,
                Err(error) => {
                    if let (Error::Fenced { .. }, Some(fence)) = (&error, fence) {
                        runtime.block_on(fence.stop(&error.to_string()));
                    }
                    return Err(error.into());
                }
            };
            troubles.note(&self.name, Some(error.to_string()));
            if stopping.load(Ordering::Acquire) {
                let why = "the tables cannot be written; what they lack stays in the journal";
                return Err(anyhow::Error::from(error).context(why));
            }
            let (table, pause_s) = (&self.name, pause.as_secs_f64());
            tracing::warn!(table, %error, pause_s, "a table cannot be written");
            std::thread::sleep(pause);
            pause = (pause * 2).min(STORE_PAUSE_MAX);
        }
        if pause > STORE_PAUSE_MIN {
            troubles.note(&self.name, None);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
