//! Which step of the old plan a step of the new one was, and how long it waited.
//!
//! State that is made anew takes the place of state that has told windows already, and rows of that
//! time are not written again. So it has to have told the same ones, neither more, which would
//! never be told, nor fewer, which would be told twice. What decides that, besides the readings, is
//! how long a step waits for those that are late and for keys that are silent. So state is made
//! anew by steps that wait as they did, and they wait otherwise from the change on.

use std::collections::BTreeMap;
use std::mem::discriminant;

use tidegate_operators::spec::{PipelineSpec, StepKind, StepSpec};

use super::taken;
use super::windows::{made_by, operator};
use crate::fingerprint::waits;

/// The pipelines of a new plan in which every step waits as it did in the old one, if it was there.
pub fn waiting_as_before(old: &[PipelineSpec], new: &[PipelineSpec]) -> Vec<PipelineSpec> {
    let was = was(old, new);
    let mut all = new.to_vec();
    for (p, new) in all.iter_mut().zip(new) {
        for (step, now) in p.steps.iter_mut().zip(&new.steps) {
            if let Some((_, before)) = was.get(&operator(new, now)) {
                let mut before = before.kind.clone();
                let waited = waits(&mut before);
                waits(&mut step.kind).into_iter().zip(waited).for_each(|(us, was)| *us = *was);
            }
        }
    }
    all
}

/// The operators of the new plan with windows of fixed bounds that had the very same windows in the
/// old one, each with the name that it had there.
pub fn same_windows(old: &[PipelineSpec], new: &[PipelineSpec]) -> BTreeMap<String, String> {
    let was = was(old, new);
    let steps = new.iter().flat_map(|p| p.steps.iter().map(move |step| (operator(p, step), step)));
    let same = steps.filter_map(|(name, step)| {
        let (before, then) = was.get(&name)?;
        let (StepKind::Window(now), StepKind::Window(then)) = (&step.kind, &then.kind) else {
            return None;
        };
        let is_same = now.shape.has_fixed_bounds()
            && now.clock == then.clock
            && taken::keys(now) == taken::keys(then)
            && taken::bounds(now) == taken::bounds(then);
        is_same.then(|| (name, before.clone()))
    });
    same.collect()
}

/// By the names of operators in the new plan, the steps that they were in the old one: those of the
/// same name, or, where there is none, those that made the same table.
fn was<'o>(
    old: &'o [PipelineSpec],
    new: &[PipelineSpec],
) -> BTreeMap<String, (String, &'o StepSpec)> {
    let mut all = BTreeMap::new();
    for p in new {
        let Some(before) = old.iter().find(|before| before.name == p.name) else { continue };
        let of_table = |step: &StepSpec| {
            let is_its = |from: &str| made_by(p, from).is_some_and(|made| made.name == step.name);
            let table = p.tables.iter().find(|table| is_its(&table.from))?;
            let same = before.tables.iter().find(|was| was.name == table.name)?;
            made_by(before, &same.from)
        };
        for step in &p.steps {
            let named = before.steps.iter().find(|before| before.name == step.name);
            let found = named.or_else(|| of_table(step));
            let is_like = |b: &&StepSpec| discriminant(&b.kind) == discriminant(&step.kind);
            if let Some(found) = found.filter(is_like) {
                all.insert(operator(p, step), (operator(before, found), found));
            }
        }
    }
    all
}
