//! A start with other pipelines than those of the newest checkpoint: the same change as while
//! running (see `apply.rs`), as of that checkpoint.
//!
//! What the old pipelines did after the checkpoint is in the tables already if the process was
//! killed; those epochs are not written again. But what new and changed rules have to tell of them
//! is told, in the first epoch that tables and receivers do not have; and until that one is
//! complete no checkpoint is made, since it would not give those rows again. After a clean stop the
//! checkpoint is the end, and nothing is between the two plans.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use tidegate_operators::Epoch;
use tidegate_operators::spec::PipelineSpec;
use tidegate_pipelines::change::waiting_as_before;
use tidegate_pipelines::{Plan, content_ids};

use super::checkpoints::{Restored, Switch};
use super::commit::Committer;
use super::notifications::Notifications;
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
        let ended = std::mem::take(&mut restored.ended_rules);
        self.notify(|notifications| notifications.end(ended));
        self.hold_for(restored);
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
        let all = waiting_as_before(&restored.ran, pipelines);
        let changed: Vec<PipelineSpec> = all.iter().filter(is_wanted).cloned().collect();
        let names: Vec<String> = plan.sources.iter().map(|s| s.name.clone()).collect();
        let mut made = match wanted.is_empty() {
            true => Default::default(),
            false => rebuild(journal, &names, changed, &wanted, &Pace::to(restored.epoch))?,
        };
        let taken = TakenOver {
            // A large state has several parts.
            rebuilt: Vec::from_iter(BTreeSet::from_iter(made.state.iter().map(|s| s.0.clone()))),
            since_us: made.since_us,
        };
        let Some(checkpoints) = &mut self.checkpoints else { return Ok(taken) };
        // Tables and receivers take nothing twice of epochs that they have.
        let ended_epoch = self.found.max(restored.epoch).max(told) + 1;
        let switched = checkpoints.switch(Switch {
            epoch: restored.epoch,
            time_us: restored.time_us,
            ended_epoch,
            tables: self.tables.iter().map(Table::at).collect(),
            had: restored.had.clone(),
            old: restored.ran.clone(),
            new: pipelines.clone(),
            built: None,
            rebuilt: std::mem::take(&mut made.state),
            since_us: made.since_us,
        })??;
        (restored.state, restored.rules) = (switched.state, switched.rules);
        self.notify(|notifications| {
            notifications.follow(restored.rules.clone());
            notifications.end(switched.ended_rules);
        });
        self.end_alerts(ended_epoch, switched.ended);
        self.hold_for(restored);
        Ok(taken)
    }

    fn notify(&mut self, tell: impl FnOnce(&mut Notifications)) {
        if let Some(notifications) = &mut self.notifications {
            tell(notifications);
        }
    }

    /// Rules that are others only from an epoch on that is still to come: what they tell in the
    /// replay before it belongs there ([`Committer::alerts_held`]), because tables and receivers
    /// take nothing more of the epochs before.
    fn hold_for(&mut self, restored: &Restored) {
        let since = restored.rules.values().map(|rule| rule.since_epoch).max().unwrap_or_default();
        self.hold = if since > restored.epoch + 1 { since } else { 0 };
    }

    /// Of alert rows in a replayed epoch: those that belong to a later one, by that epoch.
    pub(super) fn alerts_held(
        &self,
        epoch: Epoch,
        rows: RecordBatch,
    ) -> anyhow::Result<BTreeMap<Epoch, RecordBatch>> {
        let of = match &self.notifications {
            Some(notifications) if epoch < self.hold => notifications.epochs_of(epoch, &rows)?,
            _ => return Ok(BTreeMap::from([(epoch, rows)])),
        };
        let epochs: BTreeSet<Epoch> = of.iter().copied().collect();
        let those = |wanted: Epoch| {
            let mask: BooleanArray = of.iter().map(|epoch| Some(*epoch == wanted)).collect();
            Ok((wanted, filter_record_batch(&rows, &mask)?))
        };
        epochs.into_iter().map(those).collect()
    }
}
