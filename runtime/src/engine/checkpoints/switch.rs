//! The checkpoint at which one plan takes the place of another.
//!
//! A change is made at an epoch e of which there is a checkpoint of the old plan. What is written
//! here is another checkpoint of e, of the new plan: with the state that stays, with the state that
//! was made anew, and with the rows that end alerts. Its manifest takes the place of the old one in
//! a single rename ([`Saver::switch`]), and that is the change. Before it, a crash finds the old
//! plan with its state as of e, and no row of a later epoch has left the process, because the feed
//! stands still; after it, a crash finds the new plan with the state that the running dataflow was
//! given. So in both cases the replay from e gives the rows that the run would have given, or did.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::Sender;

use anyhow::Context;
use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use tidegate_operators::alert::{EndedRule, end_alerts};
use tidegate_operators::key::{key_group, stable_hashes};
use tidegate_operators::spec::PipelineSpec;
use tidegate_operators::{Epoch, SavedRows};
use tidegate_pipelines::change::rule_of;
use tidegate_pipelines::kept;

use super::floor::with_floors;
use super::restore::{TOGETHER_BYTES_MAX, together};
use super::rules::{self, Rules, add_ended};
use super::saver::{Plan, Saver};
use super::told::with_told;
use super::{TablesAt, parts};
use crate::checkpoint::Prepared;
use crate::checkpoint::holdings::Holdings;
use crate::checkpoint::manifest::{FORMAT, JournalPosition, Manifest};
use crate::engine::content;
use crate::fault;

/// Severity of alerts whose rule is not known: of checkpoints that had no rules in them.
const SEVERITY_UNKNOWN: &str = "warning";

/// What the switch is to.
pub(crate) struct Switch {
    /// The epoch of the newest checkpoint.
    pub(crate) epoch: Epoch,
    /// Tick time of the epoch, microseconds since the Unix epoch.
    pub(crate) time_us: i64,
    /// The epoch to which rows that end alerts are to belong.
    pub(crate) ended_epoch: Epoch,
    /// How far tables are.
    pub(crate) tables: TablesAt,
    /// Tables that have rows.
    pub(crate) had: BTreeSet<String>,
    /// The pipelines that ran, as far as they are known.
    pub(crate) old: Vec<PipelineSpec>,
    /// The pipelines that are to run.
    pub(crate) new: Vec<PipelineSpec>,
    /// The pipelines of which state is wanted; `None`: all.
    pub(crate) built: Option<BTreeSet<String>>,
    /// State that was made anew, by operator.
    pub(crate) rebuilt: Vec<(String, SavedRows)>,
    /// From when on: see `Rebuilt::since_us`.
    pub(crate) since_us: Option<i64>,
}

/// What a switch gives back.
pub(crate) struct Switched {
    /// State by operator of the new pipelines, at least of [`Switch::built`].
    pub(crate) state: Vec<(String, RecordBatch)>,
    /// Rows of `system.alerts` that end alerts, of [`Switch::ended_epoch`].
    pub(crate) ended: Option<RecordBatch>,
    /// The alert rules from now on.
    pub(crate) rules: Rules,
    /// The rules of which there are rows in [`Switched::ended`], as they were, by that epoch.
    pub(crate) ended_rules: BTreeMap<Epoch, Rules>,
}

/// Where the answer goes: what the switch gave, or why it was refused.
pub(super) type Reply = Sender<anyhow::Result<Switched>>;

/// Everything for the switch, but the name of its manifest.
struct Ready {
    manifest: Prepared,
    holdings: Holdings,
    plan: Plan,
    ended: BTreeMap<Epoch, Rules>,
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
        (self.options.rules, self.options.ended) = (ready.switched.rules.clone(), ready.ended);
        Ok(Ok(ready.switched))
    }

    /// The operators that keep the state that a manifest with these ids has.
    fn kept(
        &self,
        saved: &BTreeMap<String, String>,
        new: &[PipelineSpec],
    ) -> BTreeMap<String, String> {
        let before = content::saved(saved, new.iter().chain(&self.options.ran));
        kept(&before, &content::numbers(&content::operators(new)))
    }

    fn prepare(&self, mut switch: Switch) -> anyhow::Result<Ready> {
        let checkpoint = self.options.store.latest().context("cannot read checkpoints")?;
        let checkpoint = checkpoint.context("there is no checkpoint yet")?;
        let old = checkpoint.manifest;
        anyhow::ensure!(old.epoch == switch.epoch, "the newest checkpoint is of another epoch");
        let kept = self.kept(&old.operators, &switch.new);
        let mut had: BTreeMap<String, Vec<RecordBatch>> = BTreeMap::new();
        for (name, saved) in checkpoint.state {
            had.entry(name).or_default().push(saved.rows);
        }
        let mut holdings = self.options.holdings.clone();
        let same = |name: &str| kept.get(name).is_some_and(|old| old == name);
        let stays = |name: &str| parts::stays(name, switch.epoch) || same(name);
        holdings.retain(|name| parts::told_rule(name).is_none() && stays(name));
        let mut state = Vec::new();
        let built =
            |name: &String| switch.built.as_ref().is_none_or(|b| b.contains(pipeline(name)));
        for (name, was) in kept.iter().filter(|(name, was)| name != was || built(name)) {
            let Some(parts) = had.get(was) else { continue };
            if name != was {
                let saved = by_group(&joined(parts)?, keys_of(&switch.new, name))?;
                holdings.apply(self.options.store.write_part(name, &saved)?);
            }
            let together = together(parts, TOGETHER_BYTES_MAX)?.into_iter();
            state.extend(together.map(|rows| (name.clone(), rows)));
        }
        let made = with_floors(&mut switch, &kept, &had)?;
        let (made, told) = with_told(&switch, (&had, &kept), made)?;
        for (name, saved) in made.iter().chain(&told) {
            holdings.apply(self.options.store.write_part(name, saved)?);
        }
        state.extend(made.into_iter().map(|(name, saved)| (name, saved.rows)));
        let (ended, ended_rules) = end_gone((&old.rules, switch.time_us), &had, &kept)?;
        if let Some(rows) = &ended {
            let name = parts::ended_name(switch.ended_epoch);
            // A change before this one may have left rows of the same epoch.
            let mut all = had.remove(&name).unwrap_or_default();
            all.push(rows.clone());
            holdings.apply(self.options.store.write_part(&name, &of_one_group(joined(&all)?))?);
        }
        let plan = Plan::of(&switch.new);
        let rules = rules::after(&old.rules, &switch.new, &kept, switch.ended_epoch);
        let ended_rules = BTreeMap::from([(switch.ended_epoch, ended_rules)]);
        let mut ends = old.ended;
        add_ended(&mut ends, ended_rules.clone());
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
            tables: switch.tables.through,
            logged: switch.tables.logged,
            parts: holdings.parts(),
            rules: rules.clone(),
            ended: ends.clone(),
        };
        let manifest = self.options.store.prepare(&manifest)?;
        let switched = Switched { state, ended, rules, ended_rules };
        Ok(Ready { manifest, holdings, plan, ended: ends, switched })
    }
}

pub(super) fn pipeline(operator: &str) -> &str {
    operator.split('/').next().unwrap_or_default()
}

/// Rows of a part that is no operator's.
pub(super) fn of_one_group(rows: RecordBatch) -> SavedRows {
    let groups = vec![(0, rows.num_rows() as u64)];
    SavedRows { rows, groups }
}

fn joined(parts: &[RecordBatch]) -> anyhow::Result<RecordBatch> {
    match parts {
        [one] => Ok(one.clone()),
        _ => Ok(concat_batches(parts[0].schema_ref(), parts)?),
    }
}

/// Rows that end the alerts of all rules whose state does not go on, and those rules.
fn end_gone(
    (rules, time_us): (&Rules, i64),
    had: &BTreeMap<String, Vec<RecordBatch>>,
    kept: &BTreeMap<String, String>,
) -> anyhow::Result<(Option<RecordBatch>, Rules)> {
    let goes = |name: &&String| !kept.values().any(|was| was == *name);
    let gone = had.keys().filter(goes).filter_map(|name| Some((name, rule_of(name)?)));
    let (mut ended, mut ended_rules) = (Vec::new(), Rules::new());
    for (name, (pipeline, rule)) in gone {
        let was = rules.get(name);
        let severity = was.map_or(SEVERITY_UNKNOWN, |was| was.severity.as_str());
        let of = EndedRule { pipeline, rule, severity };
        let rows = end_alerts(of, &joined(&had[name])?, time_us)?;
        if rows.num_rows() > 0 {
            ended.push(rows);
            ended_rules.extend(was.map(|was| (name.clone(), was.clone())));
        }
    }
    let ended = if ended.is_empty() { None } else { Some(joined(&ended)?) };
    Ok((ended, ended_rules))
}

/// How many key columns the state of an operator begins with.
fn keys_of(pipelines: &[PipelineSpec], operator: &str) -> usize {
    use tidegate_operators::spec::StepKind;
    let Some((pipeline, step)) = operator.split_once('/') else { return 0 };
    let steps = pipelines.iter().filter(|p| p.name == pipeline).flat_map(|p| &p.steps);
    match steps.filter(|s| s.name == step).map(|s| &s.kind).next() {
        Some(StepKind::Window(window)) => window.keys.len(),
        Some(StepKind::Detect(detect)) => detect.keys.len(),
        Some(StepKind::Enrich(enrich)) => enrich.on.len(),
        Some(StepKind::Latest(latest)) => latest.keys.len(),
        Some(StepKind::Absence(absence)) => absence.keys.len(),
        Some(StepKind::Sequence(sequence)) => sequence.keys.len(),
        Some(StepKind::Join(join)) => join.left_keys.len(),
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
