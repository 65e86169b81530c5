//! Windows of changed steps that had readings before the part of the journal from which their state
//! was made anew: see [`heir`].

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use tidegate_operators::SavedRows;
use tidegate_operators::spec::{PipelineSpec, StepKind, WindowSpec};
use tidegate_operators::window::heir;
use tidegate_pipelines::change::{going_on, same_windows};

use super::switch::{Switch, pipeline};
use crate::engine::content;

/// Takes the state that was made anew out of a switch, with what the old states of the same steps
/// (`had`) have to say, if its windows go to tables that have rows: others begin with a part.
/// `kept` are the operators whose state stays, each with the name that it had.
pub(super) fn with_floors(
    switch: &mut Switch,
    kept: &BTreeMap<String, String>,
    had: &BTreeMap<String, Vec<RecordBatch>>,
) -> anyhow::Result<Vec<(String, SavedRows)>> {
    let rebuilt = std::mem::take(&mut switch.rebuilt);
    let go_on = going_on(&switch.new, |table| switch.had.contains(table));
    let is_changed = |name: &str| go_on.contains(name) && !kept.contains_key(name);
    let gone = gone(&switch.new, kept, had);
    let same = same_windows(&switch.old, &switch.new);
    let steps: BTreeMap<String, &WindowSpec> =
        windows(&switch.new).filter(|(name, _)| is_changed(name)).collect();
    let (own, mut all): (Vec<_>, Vec<_>) =
        rebuilt.into_iter().partition(|(name, _)| steps.contains_key(name));
    let mut parts: BTreeMap<String, Vec<SavedRows>> = BTreeMap::new();
    for (name, saved) in own {
        parts.entry(name).or_default().push(saved);
    }
    for (name, spec) in steps {
        let made = parts.remove(&name).unwrap_or_default();
        // Every operator has state of a run over anything, if only that there are no keys.
        let since_us = if made.is_empty() { Some(switch.time_us) } else { switch.since_us };
        let rows: Vec<RecordBatch> = made.into_iter().map(|saved| saved.rows).collect();
        // A step that was renamed with its change is among those of its pipeline that are gone.
        let own = || had.get(&name).map(|rows| rows.iter());
        let gone = gone.iter().filter(|(was, _)| pipeline(was) == pipeline(&name));
        let before: Vec<RecordBatch> = match own() {
            Some(own) => own.cloned().collect(),
            None => gone.flat_map(|(_, rows)| rows.iter().cloned()).collect(),
        };
        let told = same.get(&name).and_then(|was| had.get(was)).map_or(&[][..], Vec::as_slice);
        let heir = heir(spec, &rows, (&before, told), since_us)?;
        all.extend(heir.into_iter().map(|saved| (name.clone(), saved)));
    }
    Ok(all)
}

/// The states of operators that have no heir of their name.
fn gone<'h>(
    new: &[PipelineSpec],
    kept: &BTreeMap<String, String>,
    had: &'h BTreeMap<String, Vec<RecordBatch>>,
) -> Vec<(&'h String, &'h Vec<RecordBatch>)> {
    let now = content::operators(new);
    let goes_on = |name: &String| now.contains_key(name) || kept.values().any(|was| was == name);
    had.iter().filter(|(name, _)| !goes_on(name)).collect()
}

/// The steps with windows of fixed bounds, by the names of their operators.
fn windows(pipelines: &[PipelineSpec]) -> impl Iterator<Item = (String, &WindowSpec)> {
    let steps = pipelines.iter().flat_map(|p| p.steps.iter().map(move |step| (p, step)));
    steps.filter_map(|(pipeline, step)| match &step.kind {
        StepKind::Window(window) if window.shape.has_fixed_bounds() => {
            Some((format!("{}/{}", pipeline.name, step.name), window))
        }
        _ => None,
    })
}
