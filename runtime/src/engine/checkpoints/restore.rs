//! What a checkpoint gives back at a start.
//!
//! An operator keeps its state if it is the same as when the state was saved, by its content id:
//! its own definition and that of everything before it that it reads. Others start without state,
//! and are named.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::error::ArrowError;
use tidegate_operators::Epoch;
use tidegate_operators::spec::PipelineSpec;
use tidegate_pipelines::kept;

use super::rules::{self, Rules};
use super::{CheckpointOptions, TablesAt, parts};
use crate::checkpoint::CheckpointStore;
use crate::checkpoint::holdings::Holdings;
use crate::checkpoint::manifest::Manifest;
use crate::engine::content;
use crate::engine::cuts::Cuts;
use crate::engine::standing::Standing;
use crate::stats::Stats;

/// A checkpoint, as far as it fits the plan.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    /// The epoch that it is of; 0 if there is none.
    pub(crate) epoch: Epoch,
    /// Tick time of that epoch, microseconds since the Unix epoch.
    pub(crate) time_us: i64,
    /// State by operator name.
    pub(crate) state: Vec<(String, RecordBatch)>,
    /// Rows of it.
    pub(crate) rows: u64,
    /// Operators whose state was left out, because they have changed since.
    pub(crate) changed: Vec<String>,
    /// Operators that keep their state.
    pub(crate) kept: Vec<String>,
    /// Whether the plan is another one than that of the checkpoint.
    pub(crate) other_plan: bool,
    /// Whether its pipelines are others, be it only in what goes to tables.
    pub(crate) other_pipelines: bool,
    /// Tables that have rows, as a start has found them.
    pub(crate) had: BTreeSet<String>,
    /// Rows of `system.alerts` that end alerts, each with the epoch that they belong to.
    pub(crate) ended: Vec<(Epoch, RecordBatch)>,
    /// Alert rules of the plan. Those that have changed are replaced by what a switch says.
    pub(crate) rules: Rules,
    /// Rules that ended, as they were, by the epoch of the rows that end their alerts.
    pub(crate) ended_rules: BTreeMap<Epoch, Rules>,
    /// How far tables were.
    pub(crate) tables: TablesAt,
    /// Newer checkpoints that were damaged, and how.
    pub(crate) damaged: Vec<String>,
    /// Whether an operator took up the state of one with another name: the first cut must be of
    /// all groups.
    pub(crate) renamed: bool,
    /// Files of the state that is kept.
    pub(crate) holdings: Holdings,
    /// The pipelines that ran before, if they are known.
    pub(crate) ran: Vec<PipelineSpec>,
    /// Bytes and rows of all files of the checkpoint, of state that is left out as well.
    pub(crate) size: (u64, u64),
}

/// Bytes of parts of a state that are loaded as one: a column of texts has room for 2 GiB.
pub(super) const TOGETHER_BYTES_MAX: usize = 1 << 30;

/// Parts of a state as few batches of at most `bytes_max`, or one part: nearly always one.
pub(super) fn together(
    parts: &[RecordBatch],
    bytes_max: usize,
) -> Result<Vec<RecordBatch>, ArrowError> {
    let mut out = Vec::new();
    let (mut from, mut bytes) = (0, 0);
    for (at, part) in parts.iter().enumerate() {
        let columns = part.columns().iter().map(|c| c.to_data().get_slice_memory_size());
        let own = columns.sum::<Result<usize, ArrowError>>()?;
        if at > from && bytes + own > bytes_max {
            out.push(concat_batches(parts[from].schema_ref(), &parts[from..at])?);
            (from, bytes) = (at, 0);
        }
        bytes += own;
    }
    match &parts[from..] {
        [] => {}
        [one] => out.push(one.clone()),
        rest => out.push(concat_batches(rest[0].schema_ref(), rest)?),
    }
    Ok(out)
}

impl Restored {
    /// The newest checkpoint in the store that is whole.
    ///
    /// # Errors
    /// Those of the store, and state that is not of one schema.
    pub(crate) fn read(
        store: &CheckpointStore,
        pipelines: &[PipelineSpec],
    ) -> anyhow::Result<Self> {
        Self::read_after(&[], store, pipelines)
    }

    /// The same where it is known what ran before: if an earlier version of Tidegate wrote the
    /// checkpoint, that says what it is of.
    pub(crate) fn read_after(
        ran: &[PipelineSpec],
        store: &CheckpointStore,
        pipelines: &[PipelineSpec],
    ) -> anyhow::Result<Self> {
        let Some(checkpoint) = store.recover().context("cannot read checkpoints")? else {
            let rules = rules::of(pipelines);
            return Ok(Self { rules, other_pipelines: true, ..Self::default() });
        };
        let manifest = checkpoint.manifest;
        let now = content::numbers(&content::operators(pipelines));
        let before = content::saved(&manifest.operators, pipelines.iter().chain(ran));
        let kept = kept(&before, &now);
        let was: BTreeMap<&String, &String> = kept.iter().map(|(new, old)| (old, new)).collect();
        let mut changed = Vec::new();
        let mut all: BTreeMap<String, Vec<RecordBatch>> = BTreeMap::new();
        let mut ended = Vec::new();
        for (name, saved) in checkpoint.state {
            if let Some(epoch) = parts::ended_epoch(&name) {
                ended.push((epoch, saved.rows));
                continue;
            }
            match parts::is_of_no_operator(&name).then_some(&name).or(was.get(&name).copied()) {
                Some(name) => all.entry(name.clone()).or_default().push(saved.rows),
                None if now.contains_key(&name) && !changed.contains(&name) => changed.push(name),
                None => {}
            }
        }
        let mut holdings = Holdings::of(&manifest.parts);
        let size = (holdings.bytes(), holdings.rows());
        // A renamed operator's files bear its old name: the first cut writes all of it anew.
        let same = |name: &str| kept.get(name).is_some_and(|old| old == name);
        holdings.retain(|name| parts::stays(name, manifest.epoch) || same(name));
        let renamed = kept.iter().any(|(new, old)| new != old);
        let mut restored = Self {
            epoch: manifest.epoch,
            time_us: manifest.time_us,
            changed,
            other_plan: before != now,
            other_pipelines: manifest.pipelines != content::fingerprints(pipelines),
            ended,
            rules: rules::after(&manifest.rules, pipelines, &kept, 0),
            ended_rules: manifest.ended,
            kept: kept.keys().cloned().collect(),
            tables: TablesAt { through: manifest.tables, logged: manifest.logged },
            damaged: checkpoint.damaged,
            holdings,
            size,
            renamed,
            ran: ran.to_vec(),
            ..Self::default()
        };
        for (name, batches) in all {
            let together = together(&batches, TOGETHER_BYTES_MAX)
                .with_context(|| format!("the state of {name} is not of one kind"))?;
            restored.rows += together.iter().map(|b| b.num_rows() as u64).sum::<u64>();
            restored.state.extend(together.into_iter().map(|rows| (name.clone(), rows)));
        }
        Ok(restored)
    }

    /// How checkpoints go on after this one, about `every` so often.
    pub(crate) fn go_on(
        &mut self,
        store: CheckpointStore,
        every: Duration,
        stats: &Arc<Stats>,
    ) -> CheckpointOptions {
        let cuts = Arc::new(Cuts::new(every));
        // Where it began again is of no matter: what comes from now on is after it.
        cuts.note_saved(self.epoch, self.time_us, 0);
        // It is the newest one until there is another.
        Stats::set(&stats.checkpoint_bytes, self.size.0);
        Stats::set(&stats.state_rows, self.size.1);
        if self.renamed {
            cuts.want_whole();
        }
        CheckpointOptions {
            store,
            incarnation: 0,
            ran: self.ran.clone(),
            holdings: std::mem::take(&mut self.holdings),
            rules: self.rules.clone(),
            ended: self.ended_rules.clone(),
            cuts,
            stats: Arc::clone(stats),
            requests: Arc::default(),
            standing: Standing::default(),
            journal: None,
        }
    }
}

/// Operators with state in a checkpoint that are others now, by name.
pub(crate) fn changed(manifest: &Manifest, pipelines: &[PipelineSpec]) -> Vec<String> {
    let now = content::operators(pipelines);
    let old = content::saved(&manifest.operators, pipelines);
    let kept = kept(&old, &content::numbers(&now));
    let differs = |name: &&String| now.contains_key(*name) && !kept.contains_key(*name);
    manifest.operators.keys().filter(differs).cloned().collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::array::{ArrayRef, Int64Array};

    use super::*;

    #[test]
    fn parts_are_loaded_together_as_far_as_there_is_room() {
        let part = |from: i64| {
            let values: ArrayRef = Arc::new(Int64Array::from_iter_values(from..from + 10));
            RecordBatch::try_from_iter([("v", values)]).unwrap()
        };
        let parts = [part(0), part(10), part(20)];
        let values = |bytes_max: usize| -> Vec<Vec<i64>> {
            let of = |b: &RecordBatch| {
                let values = b["v"].as_any().downcast_ref::<Int64Array>().unwrap();
                values.values().to_vec()
            };
            together(&parts, bytes_max).unwrap().iter().map(of).collect()
        };
        assert_eq!(values(1 << 20), [(0..30).collect::<Vec<_>>()]);
        assert_eq!(values(160), [(0..20).collect::<Vec<_>>(), (20..30).collect()]);
        assert_eq!(values(0).len(), 3);
        assert!(together(&[], 160).unwrap().is_empty());
    }
}
