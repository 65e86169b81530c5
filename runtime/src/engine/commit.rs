//! The commit edge: completed epochs become effects outside, in one place and in one order.
//!
//! Rows wait here until their epoch is complete. Alerts go to the outbox at once, tables are
//! committed every few seconds (their `freshness`), and a checkpoint is written when all operators
//! have handed in their state and all tables are committed at least that far; only then is the
//! journal trimmed. So recovery finds, in every crash: checkpoint <= what tables and outbox have.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use tidegate_operators::spec::TableSpec;
use tidegate_operators::{Epoch, Tick};
use tidegate_pipelines::graph::{ALERTS, SYSTEM, Target};
use tidegate_sql::{Error, Store, TableWriter};
use tokio::runtime::Handle;

use super::checkpoints::Checkpoints;
use super::feed::InFlight;
use super::notifications::Notifications;
use super::workers::Event;
use crate::journal::Journal;
use crate::stats::Stats;

/// First pause after the object store failed.
const STORE_PAUSE_MIN: Duration = Duration::from_millis(250);

/// Longest pause.
const STORE_PAUSE_MAX: Duration = Duration::from_secs(10);

/// One table at work.
struct Table {
    writer: TableWriter,
    freshness: Duration,
    committed_at: Instant,
    dirty: bool,
}

struct CloseOnDrop(Arc<InFlight>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Everything that the commit thread owns.
pub(crate) struct Committer {
    pub(crate) runtime: Handle,
    pub(crate) stats: Arc<Stats>,
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) journal: Option<Arc<Journal>>,
    tables: Vec<Table>,
    alerts_table: Option<usize>,
    notifications: Option<Notifications>,
    checkpoints: Option<Checkpoints>,
    /// Rows of epochs that are not complete.
    pending: BTreeMap<Epoch, Vec<(usize, RecordBatch)>>,
    done: Epoch,
    time_us: i64,
    stopping: Arc<AtomicBool>,
    /// The input has ended for good.
    flushed: bool,
}

impl Committer {
    pub(crate) async fn open(
        store: &Store,
        specs: &[TableSpec],
        instance: &str,
        runtime: Handle,
        stats: Arc<Stats>,
        in_flight: Arc<InFlight>,
    ) -> anyhow::Result<Self> {
        let mut tables = Vec::with_capacity(specs.len());
        for spec in specs {
            let app = format!("{instance}/{}.{}", spec.namespace, spec.name);
            tables.push(Table {
                writer: TableWriter::open(store, spec, app).await?,
                freshness: Duration::from_micros(spec.freshness_us.max(0) as u64),
                committed_at: Instant::now(),
                dirty: false,
            });
        }
        let alerts_table = specs.iter().position(|s| s.namespace == SYSTEM && s.name == ALERTS);
        Ok(Self {
            runtime,
            stats,
            in_flight,
            journal: None,
            tables,
            alerts_table,
            notifications: None,
            checkpoints: None,
            pending: BTreeMap::new(),
            done: 0,
            time_us: 0,
            stopping: Arc::default(),
            flushed: false,
        })
    }

    /// Adds what a live run has beyond tables.
    pub(crate) fn with_durable(
        mut self,
        journal: Arc<Journal>,
        notifications: Notifications,
        checkpoints: Checkpoints,
    ) -> Self {
        self.journal = Some(journal);
        self.notifications = Some(notifications);
        self.checkpoints = Some(checkpoints);
        self
    }

    /// While this is false, a store that cannot be reached is tried again for ever.
    pub(crate) fn give_up_when(mut self, stopping: Arc<AtomicBool>) -> Self {
        self.stopping = stopping;
        self
    }

    /// Works until all workers have ended; then commits what is left.
    pub(crate) fn run(mut self, events: Receiver<Event>) -> anyhow::Result<()> {
        // However this ends, the feed must not wait for somebody who is gone.
        let _close = CloseOnDrop(Arc::clone(&self.in_flight));
        self.take_events(events)
    }

    fn take_events(&mut self, events: Receiver<Event>) -> anyhow::Result<()> {
        loop {
            match events.recv() {
                Ok(Event::Rows { target: Target::Table(table), epoch, rows }) => {
                    self.pending.entry(epoch).or_default().push((table, rows));
                }
                Ok(Event::Rows { target: Target::Edge(..), .. }) => {}
                Ok(Event::State { name, epoch, worker, state }) => {
                    if let Some(checkpoints) = &mut self.checkpoints {
                        checkpoints.add(name, epoch, worker, state)?;
                    }
                }
                Ok(Event::Checkpoint(epoch)) => {
                    if let Some(checkpoints) = &mut self.checkpoints {
                        checkpoints.ask(epoch);
                    }
                }
                Ok(Event::Done(tick)) => self.done(tick)?,
                Ok(Event::Flushed) => self.flushed = true,
                Ok(Event::Failed(why)) => anyhow::bail!("{why}"),
                Ok(Event::Ended) | Err(_) => return self.finish(),
            }
        }
    }

    fn done(&mut self, tick: Tick) -> anyhow::Result<()> {
        let later = self.pending.split_off(&(tick.epoch + 1));
        let complete = std::mem::replace(&mut self.pending, later);
        for (epoch, rows) in complete {
            self.epoch_complete(epoch, tick.time_us, rows)?;
        }
        self.done = tick.epoch;
        self.time_us = tick.time_us;
        Stats::set(&self.stats.epochs_done, tick.epoch);
        self.in_flight.done(tick.epoch);
        let checkpoint = self.checkpoints.as_ref().and_then(|c| c.complete_through(tick.epoch));
        self.commit(checkpoint.is_some())?;
        if let (Some(epoch), Some(checkpoints)) = (checkpoint, &mut self.checkpoints) {
            checkpoints.write(epoch)?;
            if let Some(journal) = &self.journal {
                journal.trim(epoch);
            }
            if let Some(notifications) = &self.notifications {
                notifications.forget(epoch);
            }
        }
        Ok(())
    }

    fn epoch_complete(
        &mut self,
        epoch: Epoch,
        tick_us: i64,
        rows: Vec<(usize, RecordBatch)>,
    ) -> anyhow::Result<()> {
        if let (Some(table), Some(notifications)) = (self.alerts_table, &mut self.notifications) {
            let alerts = rows.iter().filter(|r| r.0 == table).map(|r| &r.1);
            notifications.enqueue(epoch, tick_us, alerts)?;
        }
        for (table, rows) in rows {
            let table = &mut self.tables[table];
            let (runtime, stopping) = (&self.runtime, &self.stopping);
            until_it_works(stopping, || {
                runtime.block_on(table.writer.append(rows.clone(), epoch))
            })?;
            table.dirty = true;
        }
        Ok(())
    }

    /// Commits tables that are due, or all that have rows.
    fn commit(&mut self, all: bool) -> anyhow::Result<()> {
        for table in &mut self.tables {
            let due = all || table.committed_at.elapsed() >= table.freshness;
            if !table.dirty || !due {
                continue;
            }
            let (runtime, through) = (&self.runtime, self.done);
            let report =
                until_it_works(&self.stopping, || runtime.block_on(table.writer.commit(through)))?;
            table.dirty = false;
            table.committed_at = Instant::now();
            Stats::add(&self.stats.table_files, report.files as u64);
            Stats::add(&self.stats.table_rows, report.rows);
            Stats::add(&self.stats.table_bytes, report.bytes);
        }
        Ok(())
    }

    /// After the last epoch: rows that the end of the input made, and the last commit. Rows of an
    /// epoch that no tick sealed are left to the replay: the tables would take them for the whole.
    fn finish(&mut self) -> anyhow::Result<()> {
        if !self.flushed {
            self.pending.clear();
        }
        for (epoch, rows) in std::mem::take(&mut self.pending) {
            self.epoch_complete(epoch, self.time_us, rows)?;
            self.done = self.done.max(epoch);
        }
        self.commit(true)
    }
}

/// Repeats `action` while the object store fails: rows wait here, the workers wait for this
/// thread, and the sources for the workers, so nothing is dropped. Any other error is final.
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
