//! The checkpoint at which one plan takes the place of another.
//!
//! A change is made at an epoch e of which there is a checkpoint of the old plan. What is written
//! here is another checkpoint of e, of the new plan: with the state that stays, with the state that
//! was made anew, and with the rows that end alerts. Its manifest takes the place of the old one in
//! a single rename ([`Saver::switch`]), and that is the change. Before it, a crash finds the old
//! plan with its state as of e, and no row of a later epoch has left the process, because the feed
//! stands still; after it, a crash finds the new plan with the state that the running dataflow was
//! given. So in both cases the replay from e gives the rows that the run would have given, or did.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;

use anyhow::Context;
use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use tidegate_operators::alert::{EndedRule, end_alerts, untold};
use tidegate_operators::key::{key_group, stable_hashes};
use tidegate_operators::spec::PipelineSpec;
use tidegate_operators::{Epoch, SavedRows};
use tidegate_pipelines::change::rule_of;
use tidegate_pipelines::kept;

use super::parts;
use super::saver::{Plan, Saver};
use crate::checkpoint::Prepared;
use crate::checkpoint::holdings::Holdings;
use crate::checkpoint::manifest::{FORMAT, JournalPosition, Manifest};
use crate::engine::content;
use crate::fault;

/// Severity of alerts whose rule is not known any more.
const SEVERITY_UNKNOWN: &str = "warning";

/// What the switch is to.
pub(crate) struct Switch {
    /// The epoch of the newest checkpoint.
    pub(crate) epoch: Epoch,
    /// Tick time of the epoch, microseconds since the Unix epoch.
    pub(crate) time_us: i64,
    /// The epoch to which rows that end alerts are to belong.
    pub(crate) ended_epoch: Epoch,
    /// What tables have committed.
    pub(crate) tables: BTreeMap<String, Epoch>,
    /// The pipelines that ran, as far as they are known.
    pub(crate) old: Vec<PipelineSpec>,
    /// The pipelines that are to run.
    pub(crate) new: Vec<PipelineSpec>,
    /// State that was made anew, by operator.
    pub(crate) rebuilt: Vec<(String, SavedRows)>,
}

/// What a switch gives back.
pub(crate) struct Switched {
    /// State by operator of the new pipelines.
    pub(crate) state: Vec<(String, RecordBatch)>,
    /// Rows of `system.alerts` that end alerts, of [`Switch::ended_epoch`].
    pub(crate) ended: Option<RecordBatch>,
}

/// Where the answer goes: what the switch gave, or why it was refused.
pub(super) type Reply = Sender<anyhow::Result<Switched>>;

/// Everything for the switch, but the name of its manifest.
struct Ready {
    manifest: Prepared,
    holdings: Holdings,
    plan: Plan,
    switched: Switched,
}

impl Saver {
    /// See the head of this file. The inner error leaves everything as it was. After the outer one
    /// it is not known which plan is the durable one, and the process has to end.
    pub(super) fn switch(&mut self, switch: Switch) -> anyhow::Result<anyhow::Result<Switched>> {
        let ready = match self.prepare(switch) {
            Ok(ready) => ready,
            Err(refused) => return Ok(Err(refused)),
        };
        fault::point("apply_before_switch");
        self.options.store.place(ready.manifest).context("cannot make the change")?;
        fault::point("apply_after_switch");
        (self.options.holdings, self.plan) = (ready.holdings, ready.plan);
        Ok(Ok(ready.switched))
    }

    fn prepare(&self, switch: Switch) -> anyhow::Result<Ready> {
        let checkpoint = self.options.store.latest().context("cannot read checkpoints")?;
        let checkpoint = checkpoint.context("there is no checkpoint yet")?;
        let old = checkpoint.manifest;
        anyhow::ensure!(old.epoch == switch.epoch, "the newest checkpoint is of another epoch");
        let before = content::numbers(&old.operators);
        let kept = kept(&before, &content::numbers(&content::operators(&switch.new)));
        let mut had: BTreeMap<String, Vec<RecordBatch>> = BTreeMap::new();
        for (name, saved) in checkpoint.state {
            had.entry(name).or_default().push(saved.rows);
        }
        let mut holdings = self.options.holdings.clone();
        let same = |name: &str| kept.get(name).is_some_and(|old| old == name);
        holdings.retain(|name| parts::stays(name, switch.epoch) || same(name));
        let mut state = Vec::new();
        for (name, was) in &kept {
            let Some(rows) = had.get(was).map(|parts| joined(parts)).transpose()? else { continue };
            if name != was {
                let saved = by_group(&rows, keys_of(&switch.new, name))?;
                holdings.apply(self.options.store.write_part(name, &saved)?);
            }
            state.push((name.clone(), rows));
        }
        for (name, mut saved) in switch.rebuilt {
            if rule_of(&name).is_some() {
                saved.rows = untold(&saved.rows)?;
            }
            holdings.apply(self.options.store.write_part(&name, &saved)?);
            state.push((name, saved.rows));
        }
        let ended = end_gone((&switch.old, switch.time_us), &had, &kept)?;
        if let Some(rows) = &ended {
            let name = parts::ended_name(switch.ended_epoch);
            // A change before this one may have left rows of the same epoch.
            let mut all = had.remove(&name).unwrap_or_default();
            all.push(rows.clone());
            let rows = joined(&all)?;
            let groups = vec![(0, rows.num_rows() as u64)];
            let saved = SavedRows { rows, groups };
            holdings.apply(self.options.store.write_part(&name, &saved)?);
        }
        let plan = Plan::of(&switch.new);
        let segment = self.options.journal.as_ref().and_then(|j| j.segment_after(switch.epoch));
        let manifest = Manifest {
            format: FORMAT,
            epoch: switch.epoch,
            incarnation: self.options.incarnation,
            time_us: old.time_us,
            journal: JournalPosition {
                segment: segment.unwrap_or_default(),
                offset: old.journal.offset,
            },
            pipelines: plan.pipelines.clone(),
            operators: plan.operators.clone(),
            tables: switch.tables,
            parts: holdings.parts(),
        };
        let manifest = self.options.store.prepare(&manifest)?;
        Ok(Ready { manifest, holdings, plan, switched: Switched { state, ended } })
    }
}

fn joined(parts: &[RecordBatch]) -> anyhow::Result<RecordBatch> {
    match parts {
        [one] => Ok(one.clone()),
        _ => Ok(concat_batches(parts[0].schema_ref(), parts)?),
    }
}

/// Rows that end the alerts of all rules whose state does not go on.
fn end_gone(
    (old, time_us): (&[PipelineSpec], i64),
    had: &BTreeMap<String, Vec<RecordBatch>>,
    kept: &BTreeMap<String, String>,
) -> anyhow::Result<Option<RecordBatch>> {
    let goes = |name: &&String| !kept.values().any(|was| was == *name);
    let gone = had.keys().filter(goes).filter_map(|name| Some((name, rule_of(name)?)));
    let mut ended = Vec::new();
    for (name, rule) in gone {
        let rows = end(old, rule, &joined(&had[name])?, time_us)?;
        ended.extend((rows.num_rows() > 0).then_some(rows));
    }
    if ended.is_empty() { Ok(None) } else { joined(&ended).map(Some) }
}

/// Rows that end the alerts of a rule, with what is known of it.
fn end(
    old: &[PipelineSpec],
    (pipeline, rule): (&str, &str),
    state: &RecordBatch,
    time_us: i64,
) -> anyhow::Result<RecordBatch> {
    let alerts = old.iter().filter(|p| p.name == pipeline).flat_map(|p| &p.alerts);
    let spec = alerts.map(|(_, alert)| alert).find(|alert| alert.name == rule);
    let severity = spec.map_or(SEVERITY_UNKNOWN, |alert| alert.severity.as_str());
    Ok(end_alerts(EndedRule { pipeline, rule, severity }, state, time_us)?)
}

/// How many key columns the state of an operator begins with.
fn keys_of(pipelines: &[PipelineSpec], operator: &str) -> usize {
    use tidegate_operators::spec::StepKind;
    let Some((pipeline, step)) = operator.split_once('/') else { return 0 };
    let steps = pipelines.iter().filter(|p| p.name == pipeline).flat_map(|p| &p.steps);
    match steps.filter(|s| s.name == step).map(|s| &s.kind).next() {
        Some(StepKind::Window(window)) => window.keys.len(),
        Some(StepKind::Detect(detect)) => detect.keys.len(),
        // Only steps can have another name and be the same.
        _ => 0,
    }
}

/// State rows in the order of their key groups.
fn by_group(rows: &RecordBatch, keys: usize) -> anyhow::Result<SavedRows> {
    let mut hashes = Vec::new();
    stable_hashes(&rows.columns()[..keys], rows.num_rows(), &mut hashes);
    let groups: Vec<u16> = hashes.iter().map(|hash| key_group(*hash)).collect();
    let mut order: Vec<u32> = (0..rows.num_rows() as u32).collect();
    order.sort_by_key(|row| groups[*row as usize]);
    let mut counts = vec![0; usize::from(tidegate_operators::key::KEY_GROUPS)];
    groups.iter().for_each(|group| counts[usize::from(*group)] += 1);
    let groups = counts.into_iter().enumerate().map(|(group, rows)| (group as u16, rows)).collect();
    Ok(SavedRows { rows: take_record_batch(rows, &UInt32Array::from(order))?, groups })
}
