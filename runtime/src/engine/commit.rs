//! The commit edge: completed epochs become effects outside, in one place and in one order.
//!
//! Rows wait here until their epoch is complete. Alerts go to the outbox at once, tables are
//! committed every few seconds (their `freshness`), and a checkpoint is written when all operators
//! have handed in their state and all tables are committed at least that far; only then is the
//! journal trimmed. So recovery finds, in every crash: checkpoint <= what tables and outbox have.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use tidegate_operators::spec::TableSpec;
use tidegate_operators::{Epoch, Tick};
use tidegate_pipelines::graph::{ALERTS, SYSTEM, Target};
use tidegate_sql::{Store, TableWriter};
use tokio::runtime::Handle;

use super::checkpoints::Checkpoints;
use super::feed::InFlight;
use super::notifications::Notifications;
use super::workers::Event;
use crate::journal::Journal;
use crate::stats::Stats;

/// One table at work.
struct Table {
    writer: TableWriter,
    freshness: Duration,
    committed_at: Instant,
    dirty: bool,
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

    /// Works until all workers have ended; then commits what is left.
    pub(crate) fn run(mut self, events: Receiver<Event>) -> anyhow::Result<()> {
        let result = self.take_events(events);
        self.in_flight.close();
        result
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
            self.runtime.block_on(table.writer.append(rows, epoch))?;
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
            let report = self.runtime.block_on(table.writer.commit(self.done))?;
            table.dirty = false;
            table.committed_at = Instant::now();
            Stats::add(&self.stats.table_files, report.files as u64);
            Stats::add(&self.stats.table_rows, report.rows);
            Stats::add(&self.stats.table_bytes, report.bytes);
        }
        Ok(())
    }

    /// After the last epoch: rows that the end of the input made, and the last commit.
    fn finish(&mut self) -> anyhow::Result<()> {
        if self.journal.is_some() {
            // A journal seals what it holds before it ends, so what is left is of an epoch without
            // its tick: only a part of it, which must not be committed as the whole. The next start
            // replays it.
            self.pending.clear();
        }
        for (epoch, rows) in std::mem::take(&mut self.pending) {
            self.epoch_complete(epoch, self.time_us, rows)?;
            self.done = self.done.max(epoch);
        }
        self.commit(true)
    }
}
