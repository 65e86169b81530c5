//! A start with other pipelines than those of the newest checkpoint: the same change as while
//! running (see `apply.rs`), as of that checkpoint.
//!
//! What the old pipelines did after the checkpoint is in the tables already if the process was
//! killed; those epochs are not written again. After a clean stop the checkpoint is the end, and
//! nothing is between the two plans.

use std::collections::BTreeSet;

use tidegate_operators::Epoch;
use tidegate_operators::spec::PipelineSpec;
use tidegate_pipelines::{Plan, content_ids};

use super::checkpoints::{Restored, Switch};
use super::commit::Committer;
use super::shadow::{Pace, rebuild};
use super::tables::Table;
use crate::journal::Journal;

/// What a start did with changed operators.
#[derive(Debug, Default)]
pub(super) struct TakenOver {
    /// Operators whose state was made anew.
    pub(super) rebuilt: Vec<String>,
    /// From when on, microseconds since the Unix epoch; `None`: from the beginning.
    pub(super) since_us: Option<i64>,
}

impl Committer {
    /// Makes the restored checkpoint one of `pipelines`, if it is of others; and gives rows that
    /// end alerts (again). `told` is the newest epoch whose alerts were sent.
    pub(super) fn take_over(
        &mut self,
        journal: &Journal,
        plan: &Plan,
        restored: &mut Restored,
        told: Epoch,
    ) -> anyhow::Result<TakenOver> {
        let pipelines = &plan.pipelines;
        for (epoch, rows) in std::mem::take(&mut restored.ended) {
            self.end_alerts(epoch, Some(rows));
        }
        if restored.epoch == 0 || !restored.other_plan {
            return Ok(TakenOver::default());
        }
        let have: BTreeSet<&String> = restored.kept.iter().collect();
        let wanted: BTreeSet<String> = pipelines
            .iter()
            .flat_map(|p| content_ids(p).into_keys())
            .filter(|name| !have.contains(name))
            .collect();
        let is_wanted = |p: &&PipelineSpec| content_ids(p).keys().any(|n| wanted.contains(n));
        let changed: Vec<PipelineSpec> = pipelines.iter().filter(is_wanted).cloned().collect();
        let names: Vec<String> = plan.sources.iter().map(|s| s.name.clone()).collect();
        let mut made = match wanted.is_empty() {
            true => Default::default(),
            false => rebuild(journal, &names, changed, &wanted, &Pace::to(restored.epoch))?,
        };
        let taken = TakenOver {
            rebuilt: made.state.iter().map(|(name, _)| name.clone()).collect(),
            since_us: made.since_us,
        };
        let Some(checkpoints) = &mut self.checkpoints else { return Ok(taken) };
        // Tables and receivers take nothing twice of epochs that they have.
        let ended_epoch = self.found.max(restored.epoch).max(told) + 1;
        let switched = checkpoints.switch(Switch {
            epoch: restored.epoch,
            time_us: restored.time_us,
            ended_epoch,
            tables: self.tables.iter().map(Table::committed).collect(),
            old: Vec::new(),
            new: pipelines.clone(),
            rebuilt: std::mem::take(&mut made.state),
        })??;
        restored.state = switched.state;
        self.end_alerts(ended_epoch, switched.ended);
        Ok(taken)
    }
}
