//! Windows that a change would begin anew from a part of their readings, in tables that have rows
//! of them: such a change is refused (see [`tidegate_pipelines::change::begun_anew`]).
//!
//! While running that is looked at twice: beforehand, and when the change is made, because the
//! journal may have been trimmed and time has gone by. At a start it is looked at before anything
//! is changed, so that one with the old files goes on as if nothing had been.

use std::collections::BTreeSet;
use std::path::Path;

use tidegate_operators::spec::TableSpec;
use tidegate_pipelines::Plan;
use tidegate_pipelines::change::{BegunAnew, Change, begun_anew};

use super::checkpoints::Restored;
use super::earlier::rebuilt_since;
use super::options::moment;
use super::shadow;
use crate::checkpoint::CheckpointStore;
use crate::clock::Clock;
use crate::journal::Journal;

/// What a change begins anew, in tables that are open and in others; and from when on (see
/// [`super::shadow::since_us`]).
pub(super) type Looked = (Vec<BegunAnew>, Option<i64>);

/// What this change would begin anew where `tables` are open.
///
/// # Errors
/// Why it cannot be, or what keeps the journal from being read.
pub(super) fn look(
    journal: &Journal,
    tables: &[TableSpec],
    plan: &Plan,
    change: &Change,
) -> Result<Looked, Vec<String>> {
    if change.rebuilt().is_empty() {
        return Ok((Vec::new(), None));
    }
    let since_us = since_us(journal, plan).map_err(|error| vec![format!("{error:#}")])?;
    let refused = refused(&of_change(tables, plan, change), since_us, Clock::system().now_us());
    let kept = change.kept();
    // Whether the others have rows is known when they are opened.
    let anew = || begun_anew(&plan.pipelines, |operator| kept.contains(operator), |_| true);
    if refused.is_empty() { Ok((anew(), since_us)) } else { Err(refused) }
}

/// Refuses the change that is made at `now_us`, where the tables in `had` have rows.
pub(super) fn check(
    (anew, had): (&[BegunAnew], &BTreeSet<String>),
    since_us: Option<i64>,
    now_us: i64,
) -> anyhow::Result<()> {
    let anew: Vec<BegunAnew> = anew.iter().filter(|of| had.contains(of.table())).cloned().collect();
    let refused = refused(&anew, since_us, now_us);
    anyhow::ensure!(refused.is_empty(), refused.join("\n"));
    Ok(())
}

/// Refuses a start with this plan from a checkpoint of another one.
pub(super) fn check_start(
    journal: &Journal,
    plan: &Plan,
    restored: &Restored,
) -> anyhow::Result<()> {
    if restored.epoch == 0 || !restored.other_plan {
        return Ok(());
    }
    let kept: BTreeSet<&str> = restored.kept.iter().map(String::as_str).collect();
    let had = |table: &str| restored.had.contains(table);
    let anew = begun_anew(&plan.pipelines, |operator| kept.contains(operator), had);
    if anew.is_empty() {
        return Ok(());
    }
    check((&anew, &restored.had), since_us(journal, plan)?, restored.time_us)
}

/// From when on a start on a data folder makes state of changed operators anew, microseconds since
/// the Unix epoch (`None`: from the beginning), and why that cannot be, if `change` leads to `new`
/// and `tables` were written before.
///
/// # Errors
/// Its journal cannot be read.
pub fn look_at(
    data: &Path,
    change: &Change,
    tables: &[TableSpec],
    new: &Plan,
) -> anyhow::Result<(Option<i64>, Vec<String>)> {
    let since_us = rebuilt_since(data)?;
    let manifest = CheckpointStore::look_at(data.join("checkpoints")).newest_manifest();
    let now_us = manifest.map_or_else(|| Clock::system().now_us(), |manifest| manifest.time_us);
    Ok((since_us, refused(&of_change(tables, new, change), since_us, now_us)))
}

fn of_change(tables: &[TableSpec], plan: &Plan, change: &Change) -> Vec<BegunAnew> {
    let full = |table: &TableSpec| format!("{}.{}", table.namespace, table.name);
    let tables: BTreeSet<String> = tables.iter().map(full).collect();
    let kept = change.kept();
    begun_anew(&plan.pipelines, |operator| kept.contains(operator), |table| tables.contains(table))
}

fn since_us(journal: &Journal, plan: &Plan) -> anyhow::Result<Option<i64>> {
    let names: Vec<String> = plan.sources.iter().map(|s| s.name.clone()).collect();
    shadow::since_us(|| Ok(journal.read(&names, 0)))
}

fn refused(anew: &[BegunAnew], since_us: Option<i64>, now_us: i64) -> Vec<String> {
    let Some(since_us) = since_us else { return Vec::new() };
    let since = moment(since_us);
    anew.iter().filter_map(|of| of.refused((since_us, &since), now_us)).collect()
}
