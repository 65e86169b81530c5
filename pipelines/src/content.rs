//! A number for each stateful operator that says what its state is made of.
//!
//! It is the hash of the operator's own definition and of everything upstream that decides what
//! rows it gets. So two plans in which an operator has the same number can hand its state from one
//! to the other. Not in it: positions and order, the names of steps and of their edges, what only
//! decides how a state is shown (`select` of a window, the threshold of a detector, whom an alert
//! tells), other steps, where messages come from. The name of an alert is in it, because the ids
//! of its events hold it.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_operators::spec::{PipelineSpec, StepKind};
use xxhash_rust::xxh3::xxh3_64;

use crate::fingerprint::{
    alert_condition, decode_text, dedup_text, exprs, registry_text, shown_text, state_text,
};
use crate::graph::{READINGS, outage_operator, registry_operator, skew_operator, versions_edge};
use crate::resolve::early::is_of_finals;

/// The content ids of a pipeline's stateful operators, by the names under which their state is
/// saved (`cold-rooms/per_minute`).
pub fn content_ids(p: &PipelineSpec) -> BTreeMap<String, u64> {
    both_ids(p).0
}

/// The ids of what a pipeline's stateful steps make of their states: of the rows that come from
/// now on.
pub(crate) fn shown_ids(p: &PipelineSpec) -> BTreeMap<String, u64> {
    both_ids(p).1
}

fn both_ids(p: &PipelineSpec) -> (BTreeMap<String, u64>, BTreeMap<String, u64>) {
    let (mut ids, mut shown) = (BTreeMap::new(), BTreeMap::new());
    let mut readings = id(0, &decode_text(&p.decode));
    if p.skew.is_some() {
        ids.insert(skew_operator(&p.name), id(readings, "clock skew"));
    }
    if let Some(dedup) = &p.dedup {
        readings = id(readings, &dedup_text(dedup));
        ids.insert(format!("{}/reading/dedup", p.name), readings);
    }
    let mut edges = BTreeMap::from([(READINGS.to_owned(), readings)]);
    for registry in &p.registries {
        let own = id(0, &registry_text(registry));
        ids.insert(registry_operator(&p.name, &registry.name), own);
        edges.insert(versions_edge(&registry.name), own);
    }
    for step in &p.steps {
        let mut from = edges[&step.from];
        if is_of_finals(&step.name) {
            // Who reads the final rows gets what there would be without early ones.
            edges.insert(step.name.clone(), from);
            continue;
        }
        if let StepKind::Join(join) = &step.kind {
            from = id(from, &format!("with {:016x}", edges[&join.with]));
        }
        let own = id(from, &state_text(&step.kind));
        let rows = id(own, &shown_text(&step.kind));
        match &step.kind {
            // A row goes to the first branch that takes it: later ones do not matter.
            StepKind::Route(route) => {
                for (i, (name, _)) in route.branches.iter().enumerate() {
                    let conditions: Vec<_> =
                        route.branches[..=i].iter().map(|b| ("", b.1.clone())).collect();
                    edges.insert(name.clone(), id(from, &format!("route {}", exprs(&conditions))));
                }
                continue;
            }
            StepKind::Window(_)
            | StepKind::Detect(_)
            | StepKind::Enrich(_)
            | StepKind::Latest(_)
            | StepKind::Absence(_)
            | StepKind::Sequence(_)
            | StepKind::Join(_) => {
                let name = format!("{}/{}", p.name, step.name);
                ids.insert(name.clone(), own);
                shown.insert(name, rows);
            }
            StepKind::Filter(_) | StepKind::Project(_) => {}
        }
        edges.insert(step.name.clone(), rows);
    }
    if p.hears_outages() {
        ids.insert(outage_operator(&p.name), id(0, "outages"));
    }
    for (from, alert) in &p.alerts {
        let own = format!("alert {} {} {}", p.name, alert.name, alert_condition(alert));
        ids.insert(format!("{}/alert/{}", p.name, alert.name), id(edges[from], &own));
    }
    (ids, shown)
}

fn id(upstream: u64, own: &str) -> u64 {
    xxh3_64(format!("tidegate content 1 {upstream:016x} {own}").as_bytes())
}

/// Which state goes on: the names of operators of a new plan, each with the name that the operator
/// had in the old one. First by name and content; then by content alone, where that is clear, so
/// that a step may be renamed.
pub fn kept(old: &BTreeMap<String, u64>, new: &BTreeMap<String, u64>) -> BTreeMap<String, String> {
    let mut kept: BTreeMap<String, String> = new
        .iter()
        .filter(|(name, id)| old.get(*name) == Some(id))
        .map(|(name, _)| (name.clone(), name.clone()))
        .collect();
    let taken: BTreeSet<&String> = kept.keys().collect();
    let free = |all: &BTreeMap<String, u64>| -> Vec<(String, u64)> {
        let free = all.iter().filter(|(name, _)| !taken.contains(name));
        free.map(|(name, id)| (name.clone(), *id)).collect()
    };
    let (old, new) = (free(old), free(new));
    let count = |all: &[(String, u64)], id: u64| all.iter().filter(|o| o.1 == id).count();
    for (name, id) in &new {
        // Another pipeline's state has its own name in what it wrote.
        let same = |o: &&(String, u64)| o.1 == *id && pipeline_of(&o.0) == pipeline_of(name);
        if let Some((before, _)) = old.iter().find(same)
            && count(&old, *id) == 1
            && count(&new, *id) == 1
        {
            kept.insert(name.clone(), before.clone());
        }
    }
    kept
}

fn pipeline_of(operator: &str) -> &str {
    operator.split('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
