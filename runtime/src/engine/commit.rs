//! The commit edge: completed epochs become effects outside, in one place and in one order.
//!
//! Rows wait here until their epoch is complete. Alerts go to the outbox at once, tables are
//! committed every few seconds (their `freshness`) on threads of their own, and a checkpoint is
//! written when all operators have handed in their state and all tables are committed at least that
//! far; only then is the journal trimmed. So recovery finds, in every crash: checkpoint <= what
//! tables and outbox have.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use arrow::array::RecordBatch;
use tidegate_operators::spec::TableSpec;
use tidegate_operators::{Epoch, Tick};
use tidegate_pipelines::graph::{ALERTS, LATE, REJECTS, SYSTEM, Target};
use tidegate_sql::{Store, TableWriter};

use super::belonging::Found;
use super::checkpoints::Checkpoints;
use super::feed::InFlight;
use super::limits::RefusedKeys;
use super::notifications::Notifications;
use super::patience::Patience;
use super::recompute::{Horizon, Recomputed};
use super::switching::{self, Opening, Order};
use super::tables::{Table, TableContext};
use super::workers::Event;
use crate::fault;
use crate::journal::Journal;
use crate::mutation::{self, Mutation};
use crate::stats::Stats;

struct CloseOnDrop(Arc<InFlight>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Everything that the commit thread owns.
pub(crate) struct Committer {
    pub(crate) stats: Arc<Stats>,
    pub(crate) in_flight: Arc<InFlight>,
    pub(crate) journal: Option<Arc<Journal>>,
    pub(super) tables: Vec<Table>,
    pub(super) alerts_table: Option<usize>,
    late_table: Option<usize>,
    rejects_table: Option<usize>,
    /// Rows of new keys that steps refused.
    pub(super) refused: RefusedKeys,
    /// Who has to know when late readings are whole, and by which plan.
    pub(super) recompute: Option<(Arc<Horizon>, Recomputed)>,
    pub(super) notifications: Option<Notifications>,
    pub(super) checkpoints: Option<Checkpoints>,
    /// Rows of epochs that are not complete.
    pub(super) pending: BTreeMap<Epoch, Vec<(usize, RecordBatch)>>,
    pub(super) done: Epoch,
    /// Before this epoch is complete no checkpoint is made visible; see [`Committer::alerts_held`].
    pub(super) hold: Epoch,
    time_us: i64,
    /// A checkpoint that has all of its parts, and the epoch that the tables have to reach first.
    waiting: Option<(Epoch, Epoch)>,
    /// The input has ended for good.
    flushed: bool,
    /// The newest epoch that a table had when it was opened.
    pub(super) found: Epoch,
    /// Epochs of the two newest checkpoints, the older one first.
    saved: (Epoch, Epoch),
    /// What tables are opened with while running.
    pub(super) opening: Option<Opening>,
    /// A change that waits for its checkpoint.
    pub(super) order: Option<Order>,
    /// Of a cluster: the newest epoch whose state has come from all processes.
    pub(super) saved_elsewhere: Option<Epoch>,
}

impl Committer {
    pub(crate) async fn open(
        store: &Store,
        specs: &[TableSpec],
        instance: &str,
        context: TableContext,
        in_flight: Arc<InFlight>,
    ) -> anyhow::Result<Self> {
        let stats = Arc::clone(&context.stats);
        let of = (instance, context.from_first, &context.patience);
        Self::open_with(store, specs, of, (stats, in_flight), |name, writer, freshness| {
            Table::start(name, writer, freshness, context.clone())
        })
        .await
    }

    /// [`Committer::open`] with tables that `start` puts to work.
    pub(super) async fn open_with(
        store: &Store,
        specs: &[TableSpec],
        (instance, from_first, patience): (&str, bool, &Patience),
        (stats, in_flight): (Arc<Stats>, Arc<InFlight>),
        mut start: impl FnMut(String, TableWriter, Duration) -> std::io::Result<Table>,
    ) -> anyhow::Result<Self> {
        let mut tables = Vec::with_capacity(specs.len());
        let mut found = 0;
        for spec in specs {
            let app = format!("{instance}/{}.{}", spec.namespace, spec.name);
            let open = || async {
                Ok(TableWriter::open_from(store, spec, app.clone(), from_first).await?)
            };
            let writer = patience.until(open).await?;
            found = writer.committed_epoch().max(found);
            let freshness = Duration::from_micros(spec.freshness_us.max(0) as u64);
            let name = format!("{}.{}", spec.namespace, spec.name);
            tables.push(start(name, writer, freshness)?);
        }
        let system = |name| specs.iter().position(|s| s.namespace == SYSTEM && s.name == name);
        let (alerts_table, late_table, rejects_table) =
            (system(ALERTS), system(LATE), system(REJECTS));
        Ok(Self {
            stats,
            in_flight,
            journal: None,
            tables,
            alerts_table,
            late_table,
            rejects_table,
            refused: RefusedKeys::default(),
            recompute: None,
            notifications: None,
            checkpoints: None,
            pending: BTreeMap::new(),
            done: 0,
            hold: 0,
            time_us: 0,
            waiting: None,
            flushed: false,
            found,
            saved: (0, 0),
            opening: None,
            order: None,
            saved_elsewhere: None,
        })
    }

    /// Adds what a live run has beyond tables.
    pub(crate) fn with_durable(
        mut self,
        journal: Arc<Journal>,
        notifications: Notifications,
        checkpoints: Checkpoints,
        restored: Epoch,
    ) -> Self {
        self.saved = (0, restored);
        self.journal = Some(journal);
        self.notifications = Some(notifications);
        self.checkpoints = Some(checkpoints);
        self
    }

    /// Adds the state of operators, of a run over files.
    pub(crate) fn with_checkpoints(mut self, checkpoints: Checkpoints) -> Self {
        self.checkpoints = Some(checkpoints);
        self
    }

    /// The newest epoch that a table had when it was opened.
    pub(crate) fn found(&self) -> Epoch {
        self.found
    }

    /// The newest epoch that the log of each table says.
    pub(super) fn has(&self) -> Found {
        let tables = self.tables.iter().map(Table::at);
        tables.map(|(name, _, logged)| (name, Some(logged))).collect()
    }

    /// Works until all workers have ended; then commits what is left.
    pub(crate) fn run(mut self, events: Receiver<Event>) -> anyhow::Result<()> {
        // However this ends, the feed must not wait for somebody who is gone.
        let _close = CloseOnDrop(Arc::clone(&self.in_flight));
        self.take_events(events)
    }

    fn take_events(&mut self, events: Receiver<Event>) -> anyhow::Result<()> {
        loop {
            let event = match self.order {
                None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(_) => events.recv_timeout(switching::LOOK),
            };
            match event {
                Ok(Event::Ended) | Err(RecvTimeoutError::Disconnected) => return self.finish(),
                Err(RecvTimeoutError::Timeout) => {}
                Ok(event) => self.event(event)?,
            }
            self.try_switch()?;
        }
    }

    /// Takes one report of the workers, other than their end.
    pub(super) fn event(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Rows { target: Target::Table(table), epoch, rows } => {
                if Some(table) == self.alerts_table && epoch < self.hold {
                    for (epoch, rows) in self.alerts_held(epoch, rows)? {
                        self.pending.entry(epoch).or_default().push((table, rows));
                    }
                    return Ok(());
                }
                self.pending.entry(epoch).or_default().push((table, rows));
            }
            Event::Rows { target: Target::Edge(..), .. } | Event::Ended => {}
            Event::State { name, epoch, state } => {
                if let Some(checkpoints) = &mut self.checkpoints {
                    checkpoints.add(name, epoch, state)?;
                }
            }
            Event::Checkpoint(epoch) => {
                if let Some(checkpoints) = &mut self.checkpoints {
                    checkpoints.ask(epoch);
                }
            }
            Event::Done(tick) => self.done(tick)?,
            Event::Saved(epoch) => {
                self.saved_elsewhere = Some(epoch);
                self.checkpoint()?;
            }
            Event::Flushed => self.flushed = true,
            Event::Switch(order) => self.order = Some(*order),
            Event::Failed(why) => anyhow::bail!("{why}"),
        }
        Ok(())
    }

    fn done(&mut self, tick: Tick) -> anyhow::Result<()> {
        let later = self.pending.split_off(&(tick.epoch + 1));
        let complete = std::mem::replace(&mut self.pending, later);
        for (epoch, rows) in complete {
            self.epoch_complete(epoch, tick.time_us, rows)?;
        }
        if let Some((horizon, _)) = &self.recompute {
            horizon.complete(tick);
        }
        self.done = tick.epoch;
        self.time_us = tick.time_us;
        Stats::set(&self.stats.epochs_done, tick.epoch);
        Stats::set(&self.stats.done_tick_us, tick.time_us.max(0).unsigned_abs());
        self.in_flight.done(tick.epoch);
        if let Some(checkpoints) = &mut self.checkpoints {
            checkpoints.check()?;
        }
        for table in &mut self.tables {
            table.commit(tick.epoch, false)?;
        }
        self.checkpoint()
    }

    /// Has the tables brought up to a checkpoint that is complete, and made visible when they are.
    pub(super) fn checkpoint(&mut self) -> anyhow::Result<()> {
        self.forget_saved();
        if self.done < self.hold {
            return Ok(());
        }
        if let Some((epoch, through)) = self.waiting {
            let early = mutation::on(Mutation::TrimTooEarly);
            if !early && !self.tables.iter().all(|t| t.has_committed(through)) {
                return Ok(());
            }
            self.wait_for_alerts()?;
            self.waiting = None;
            self.write_checkpoint(epoch)?;
        }
        if let Some(epoch) = self.complete() {
            for table in &mut self.tables {
                table.commit(self.done, true)?;
            }
            self.waiting = Some((epoch, self.done));
        }
        Ok(())
    }

    /// The newest checkpoint that has all of its parts, if one waits.
    fn complete(&self) -> Option<Epoch> {
        let through = self.saved_elsewhere.map_or(self.done, |saved| saved.min(self.done));
        self.checkpoints.as_ref()?.complete_through(through)
    }

    fn write_checkpoint(&mut self, epoch: Epoch) -> anyhow::Result<()> {
        let tables = self.tables.iter().map(Table::at).collect();
        match &mut self.checkpoints {
            Some(checkpoints) => checkpoints.write(epoch, tables),
            None => Ok(()),
        }
    }

    /// Waits until no alert is lost if no epoch so far is replayed.
    fn wait_for_alerts(&self) -> anyhow::Result<()> {
        self.notifications.iter().try_for_each(Notifications::wait_until_published)
    }

    /// What recovery will not need again goes: journal and outbox up to the newest checkpoint that
    /// is visible. It may go because a checkpoint is made visible only after all tables have
    /// committed its epoch ([`Committer::checkpoint`]), so no replay begins before the epoch after
    /// it; and if that checkpoint should be damaged, the one before leans on the journal that
    /// [`Committer::trimmed_through`] leaves.
    fn forget_saved(&mut self) {
        let Some(saved) = self.checkpoints.as_ref().map(Checkpoints::written) else { return };
        if saved <= self.saved.1 {
            return;
        }
        self.saved = (self.saved.1, saved);
        if let Some(journal) = &self.journal {
            journal.trim(self.trimmed_through());
        }
        if let Some(notifications) = &self.notifications {
            notifications.forget(self.trimmed_through());
        }
    }

    /// The epoch through which the journal may go: that of the checkpoint before the newest one, so
    /// that damage to the newest is no loss.
    fn trimmed_through(&self) -> Epoch {
        self.saved.0
    }

    /// Whether nothing waits: no rows of an open epoch, no checkpoint for its tables.
    #[cfg(test)]
    pub(super) fn is_at_rest(&self) -> bool {
        self.waiting.is_none() && self.pending.is_empty()
    }

    fn epoch_complete(
        &mut self,
        epoch: Epoch,
        tick_us: i64,
        rows: Vec<(usize, RecordBatch)>,
    ) -> anyhow::Result<()> {
        fault::point("epoch_complete");
        if let (Some(table), Some(notifications)) = (self.alerts_table, &mut self.notifications) {
            let alerts = || rows.iter().filter(|r| r.0 == table).map(|r| &r.1);
            notifications.publish(epoch, alerts());
            notifications.enqueue(epoch, tick_us, alerts())?;
        }
        let has_late = rows.iter().any(|(table, _)| Some(*table) == self.late_table);
        if let (true, Some((horizon, _))) = (has_late, &self.recompute) {
            horizon.late();
        }
        for (table, rows) in rows {
            if Some(table) == self.rejects_table {
                self.refused.count(&rows);
            }
            self.tables[table].rows(epoch, rows)?;
        }
        Ok(())
    }

    /// Hands what is left to the tables and has all of it committed.
    pub(super) fn commit_rest(&mut self) -> anyhow::Result<()> {
        if !self.flushed {
            self.pending.clear();
        }
        for (epoch, rows) in std::mem::take(&mut self.pending) {
            self.epoch_complete(epoch, self.time_us, rows)?;
            self.done = self.done.max(epoch);
        }
        for table in &mut self.tables {
            table.commit(self.done, true)?;
        }
        Ok(())
    }

    /// After the last epoch: rows that the end of the input made, and the last commit. Rows of an
    /// epoch that no tick sealed are left to the replay: the tables would take them for the whole.
    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
        self.commit_rest()?;
        for table in &mut self.tables {
            table.finish()?;
        }
        // Every table has everything: the newest checkpoint holds, whether it waited or not.
        if let Some(epoch) = self.complete().or(self.waiting.map(|w| w.0))
            && self.done >= self.hold
        {
            self.wait_for_alerts()?;
            self.write_checkpoint(epoch)?;
        }
        if let Some(checkpoints) = &mut self.checkpoints {
            checkpoints.finish()?;
        }
        self.forget_saved();
        Ok(())
    }
}
