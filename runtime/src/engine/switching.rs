//! The committer's part of a change: at one epoch, other pipelines, tables and receivers.
//!
//! Invariant ([`Committer::try_switch`]): it is made when the checkpoint of the epoch is visible
//! and the feed stands still, so nothing that belongs to the old plan is under way, and nothing of
//! the new one exists before the new plan is durable (see `checkpoints/switch.rs`). If anything
//! fails before that, the old plan goes on; if anything fails from then on, the process ends, since
//! the old plan must not go on beside checkpoints of the new one.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use anyhow::Context;
use arrow::array::RecordBatch;
use tidegate_operators::Epoch;
use tidegate_operators::spec::{PipelineSpec, TableSpec};
use tidegate_pipelines::change::BegunAnew;
use tidegate_sql::{Store, TableWriter};

use super::anew;
use super::belonging;
use super::checkpoints::Switch;
use super::commit::Committer;
use super::shadow::Rebuilt;
use super::tables::{Table, TableContext};
use crate::stats::Stats;

/// How long a change may wait for its checkpoint, for the shadow run and for its tables, all
/// together; the dataflow of all pipelines stands still meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the committer is to change to.
#[derive(Debug)]
pub(crate) struct Order {
    /// The last epoch of the old plan.
    pub(super) epoch: Epoch,
    /// Tick time of it, microseconds since the Unix epoch.
    pub(super) time_us: i64,
    pub(super) old: Vec<PipelineSpec>,
    pub(super) new: Vec<PipelineSpec>,
    /// Names of the pipelines whose dataflow is built.
    pub(super) built: BTreeSet<String>,
    /// All tables, those that run first.
    pub(super) tables: Vec<TableSpec>,
    /// What would be wrong in those of them that have rows if the journal does not go back far
    /// enough.
    pub(super) anew: Vec<BegunAnew>,
    /// The shadow run's result.
    pub(super) rebuilt: Receiver<anyhow::Result<Rebuilt>>,
    /// State for the new dataflows, or why the old ones go on.
    pub(super) reply: SyncSender<anyhow::Result<Ordered>>,
    pub(super) asked_at: Instant,
}

/// What is known when a change is made.
#[derive(Debug)]
pub(crate) struct Ordered {
    /// State for the new dataflows, by operator.
    pub(super) state: Vec<(String, RecordBatch)>,
    /// See [`Rebuilt::since_us`].
    pub(super) since_us: Option<i64>,
}

/// What is needed to open further tables.
pub(super) struct Opening {
    pub(super) store: Store,
    pub(super) instance: String,
    pub(super) context: TableContext,
    /// The tables that are open, in order.
    pub(super) specs: Vec<TableSpec>,
}

impl Opening {
    /// Whether a table is not open as it is to be.
    fn lacks(&self, (place, spec): (usize, &TableSpec)) -> bool {
        self.specs.get(place).is_none_or(|o| format!("{o:?}") != format!("{spec:?}"))
    }
}

impl Committer {
    /// Makes the change that was ordered, if it is time.
    pub(super) fn try_switch(&mut self) -> anyhow::Result<()> {
        let Some(order) = self.order.take() else { return Ok(()) };
        // No tick comes that would look after the checkpoint.
        self.checkpoint()?;
        let written = self.checkpoints.as_ref().map_or(0, |c| c.written());
        if self.done < order.epoch || written < order.epoch {
            if order.asked_at.elapsed() < PATIENCE {
                self.order = Some(order);
                return Ok(());
            }
            let why = "no checkpoint could be written in time: are the tables reachable, is there \
                       room on the disk?";
            let _ = order.reply.send(Err(anyhow::anyhow!(why)));
            return Ok(());
        }
        let reply = order.reply.clone();
        // Whoever asked learns from the missing answer that the engine ends.
        let answer = self.switch(order)?;
        let _ = reply.send(answer);
        Ok(())
    }

    /// The inner error: the old plan goes on. The outer one: nothing can go on.
    fn switch(&mut self, order: Order) -> anyhow::Result<anyhow::Result<Ordered>> {
        let prepared = self.prepare(&order);
        let Order { epoch, tables: specs, old, new, built, time_us, .. } = order;
        let pipelines = new.clone();
        let (rebuilt, tables, had) = match prepared {
            Ok(prepared) => prepared,
            Err(refused) => return Ok(Err(refused)),
        };
        let Some(checkpoints) = self.checkpoints.as_mut() else {
            return Ok(Err(anyhow::anyhow!("there are no checkpoints")));
        };
        let switched = checkpoints.switch(Switch {
            epoch,
            time_us,
            ended_epoch: epoch + 1,
            tables: self.tables.iter().map(Table::at).collect(),
            had,
            old,
            new,
            built: Some(built),
            rebuilt: rebuilt.state,
            since_us: rebuilt.since_us,
        })?;
        let switched = match switched {
            Ok(switched) => switched,
            Err(refused) => return Ok(Err(refused)),
        };
        // From here on it is the new plan.
        if let Some((_, recomputed)) = &self.recompute {
            recomputed.follow(&pipelines);
        }
        for (place, spec, writer) in tables {
            self.put_table(place, &spec, writer).context("the change was made")?;
        }
        if let Some(opening) = &mut self.opening {
            opening.specs = specs;
        }
        if let Some(notifications) = &mut self.notifications {
            notifications.follow(switched.rules);
            notifications.end(switched.ended_rules);
        }
        self.end_alerts(epoch + 1, switched.ended);
        Ok(Ok(Ordered { state: switched.state, since_us: rebuilt.since_us }))
    }

    /// State made anew, the tables that were not open, and those that have rows: what may take long
    /// or be refused.
    fn prepare(&self, order: &Order) -> anyhow::Result<Prepared> {
        let left = || PATIENCE.saturating_sub(order.asked_at.elapsed());
        let rebuilt = order.rebuilt.recv_timeout(left()).context("the shadow run is too slow")?;
        let rebuilt = rebuilt.context("cannot rebuild state")?;
        // Whoever opens a table may write to it what its rows are from now on, and a change that is
        // refused after that would have spoilt it for the right one.
        let had = self.with_rows(&order.tables, left)?;
        anew::check((&order.anew, &had), rebuilt.since_us, order.time_us)?;
        let opened = self.open_tables(&order.tables, left)?;
        Ok((rebuilt, opened, had))
    }

    /// The tables that were open, and those that an earlier plan has written: what is opened now
    /// may have been closed long ago. Nothing is written; what a table does not take is refused.
    fn with_rows(
        &self,
        specs: &[TableSpec],
        left: impl Fn() -> Duration,
    ) -> anyhow::Result<BTreeSet<String>> {
        let opening = self.opening.as_ref().context("no tables can be opened")?;
        let others: Vec<TableSpec> = specs
            .iter()
            .enumerate()
            .filter(|of| opening.lacks(*of))
            .map(|of| of.1.clone())
            .collect();
        let look = async {
            belonging::take(&opening.store, &others).await?;
            belonging::look(&opening.store, &others, &opening.instance).await
        };
        let look = async { tokio::time::timeout(left(), look).await };
        let found = opening.context.runtime.block_on(look);
        let found = found.context("tables: no answer")??;
        let written = found.into_iter().filter(|(_, epoch)| epoch.is_some_and(|epoch| epoch > 0));
        let open = opening.specs.iter().map(|spec| format!("{}.{}", spec.namespace, spec.name));
        Ok(open.chain(written.map(|(table, _)| table)).collect())
    }

    /// Rows that end alerts, which belong to an epoch to come.
    pub(super) fn end_alerts(&mut self, epoch: Epoch, rows: Option<RecordBatch>) {
        if let (Some(table), Some(rows)) = (self.alerts_table, rows) {
            Stats::add(&self.stats.alerts, rows.num_rows() as u64);
            self.pending.entry(epoch).or_default().push((table, rows));
        }
    }

    /// Opens the tables that are not open as they are to be, each with its place, in the time that
    /// is left.
    fn open_tables(
        &self,
        specs: &[TableSpec],
        left: impl Fn() -> Duration,
    ) -> anyhow::Result<Vec<Opened>> {
        let opening = self.opening.as_ref().context("no tables can be opened")?;
        let mut opened = Vec::new();
        for (place, spec) in specs.iter().enumerate().filter(|of| opening.lacks(*of)) {
            let name = format!("{}.{}", spec.namespace, spec.name);
            let app = format!("{}/{name}", opening.instance);
            let open = TableWriter::open(&opening.store, spec, app);
            let open = async { tokio::time::timeout(left(), open).await };
            let opened_in_time = opening.context.runtime.block_on(open);
            let writer = opened_in_time.with_context(|| format!("table {name}: no answer"))?;
            let writer = writer.with_context(|| format!("table {name}"))?;
            opened.push((place, spec.clone(), writer));
        }
        Ok(opened)
    }

    /// Puts a table to work, in the place of the one that was there.
    fn put_table(
        &mut self,
        place: usize,
        spec: &TableSpec,
        writer: TableWriter,
    ) -> anyhow::Result<()> {
        let opening = self.opening.as_ref().context("no tables can be opened")?;
        // One at a time uses the folder for what waits.
        if let Some(old) = self.tables.get_mut(place) {
            old.finish()?;
        }
        let freshness = Duration::from_micros(spec.freshness_us.max(0) as u64);
        let name = format!("{}.{}", spec.namespace, spec.name);
        let table = Table::start(name, writer, freshness, opening.context.clone())?;
        match self.tables.get_mut(place) {
            Some(old) => *old = table,
            None => self.tables.push(table),
        }
        Ok(())
    }
}

/// See [`Committer::prepare`].
type Prepared = (Rebuilt, Vec<Opened>, BTreeSet<String>);

/// A table that was opened, and its place.
type Opened = (usize, TableSpec, TableWriter);

/// How often a change that waits is looked at.
pub(super) const LOOK: Duration = Duration::from_millis(5);

/// All tables that there are when `new` comes after `open`: places stay.
pub(super) fn merged(open: &[TableSpec], new: Vec<TableSpec>) -> Vec<TableSpec> {
    let mut all = open.to_vec();
    for spec in new {
        let same = |o: &TableSpec| (&o.namespace, &o.name) == (&spec.namespace, &spec.name);
        match all.iter().position(same) {
            Some(place) => all[place] = spec,
            None => all.push(spec),
        }
    }
    all
}

#[cfg(test)]
mod tests;
