//! A number for each stateful operator that says what its state is made of.
//!
//! It is the hash of the operator's own definition, of what decides which rows get to it, and of
//! the definitions of the columns that it reads of them, down to the fields of `[reading]`. So two
//! plans in which an operator has the same number can hand its state from one to the other.
//!
//! Which rows get to it: the topics, the format of the payload, `explode`, the time and the device
//! and their bounds, and from there on `dedup`, filters, routes, and steps with state. Not: fields
//! and `derive` columns that it does not read. Such a one can keep a row back (a value of another
//! type, `required`, an expression that fails), but that decides which rows come from now on, as a
//! device does that sends others, and not what a state is made of. What keeps rows whole (a join,
//! an `enrich` that revises) reads all of their columns. What is behind a step with state has all
//! of that state in its number, but for the columns that an `enrich` only passes on.
//!
//! Not in it either: how long a step waits (`disorder`, `idle_close`), because its state says how
//! far it came and goes on from there, so that what it held back is told once; positions and order,
//! the names of steps and of their edges, what only decides how a state is shown (`select` of a
//! window, the threshold of a detector, whom an alert tells), other steps, where messages come
//! from, units. The name of an alert is in it, because the ids of its events hold it.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_operators::spec::{PipelineSpec, StepKind, StepSpec};
use xxhash_rust::xxh3::xxh3_64;

use self::columns::{Columns, Edge};
use crate::fingerprint::{
    alert_condition, dedup_text, exprs, registry_text, shown_text, state_text,
};
use crate::graph::{
    READINGS, outage_operator, refused_operator, registry_operator, skew_operator, versions_edge,
};
use crate::resolve::early::is_of_finals;

mod before;
mod columns;

pub use self::before::content_ids_before;

/// The content ids of a pipeline's stateful operators, by the names under which their state is
/// saved (`cold-rooms/per_minute`).
pub fn content_ids(p: &PipelineSpec) -> BTreeMap<String, u64> {
    Ids::of(p).state
}

/// The ids of what a pipeline's stateful steps make of their states: of the rows that come from
/// now on.
pub(crate) fn shown_ids(p: &PipelineSpec) -> BTreeMap<String, u64> {
    Ids::of(p).shown
}

/// Ids, by the names of operators.
#[derive(Default)]
struct Ids {
    state: BTreeMap<String, u64>,
    shown: BTreeMap<String, u64>,
}

impl Ids {
    fn of(p: &PipelineSpec) -> Self {
        let mut ids = Self::default();
        let mut readings = Edge::of_decode(&p.decode);
        if p.skew.is_some() {
            ids.state.insert(skew_operator(&p.name), id(readings.rows, "clock skew"));
        }
        if let Some(dedup) = &p.dedup {
            let key = Columns::named(&dedup.input, &dedup.key);
            readings.rows = readings.id(&dedup_text(dedup), &key);
            ids.state.insert(format!("{}/reading/dedup", p.name), readings.rows);
        }
        let mut edges = BTreeMap::from([(READINGS.to_owned(), readings)]);
        for registry in &p.registries {
            let own = id(0, &registry_text(registry));
            ids.state.insert(registry_operator(&p.name, &registry.name), own);
            let versions = Edge { rows: own, columns: BTreeMap::new() };
            edges.insert(versions_edge(&registry.name), versions);
            if registry.entries.is_some() {
                let refused = refused_operator(&p.name, &registry.name);
                ids.state.insert(refused, id(own, "refused"));
            }
        }
        for step in &p.steps {
            ids.step(&p.name, step, &mut edges);
        }
        if p.hears_outages() {
            ids.state.insert(outage_operator(&p.name), id(0, "outages"));
        }
        for (from, alert) in &p.alerts {
            let own = format!("alert {} {} {}", p.name, alert.name, alert_condition(alert));
            let own = edges[from].id(&own, &Columns::read_by_alert(alert));
            ids.state.insert(format!("{}/alert/{}", p.name, alert.name), own);
        }
        ids
    }

    /// Adds a step, and the edges that it makes.
    fn step(&mut self, pipeline: &str, step: &StepSpec, edges: &mut BTreeMap<String, Edge>) {
        let from = edges[&step.from].clone();
        let made = match &step.kind {
            // Who reads the final rows gets what there would be without early ones.
            StepKind::Filter(_) if is_of_finals(&step.name) => from,
            StepKind::Filter(filter) => {
                let read = Columns::of([&filter.keep]);
                from.with_rows(from.id(&state_text(&step.kind), &read))
            }
            StepKind::Project(list) => {
                let columns = list.iter().map(|(name, e)| (name.clone(), from.value(e)));
                Edge { rows: from.rows, columns: columns.collect() }
            }
            // A row goes to the first branch that takes it: later ones do not matter.
            StepKind::Route(route) => {
                for (i, (name, _)) in route.branches.iter().enumerate() {
                    let conditions: Vec<_> =
                        route.branches[..=i].iter().map(|b| ("", b.1.clone())).collect();
                    let read = Columns::of(conditions.iter().map(|(_, when)| when));
                    let rows = from.id(&format!("route {}", exprs(&conditions)), &read);
                    edges.insert(name.clone(), from.with_rows(rows));
                }
                return;
            }
            StepKind::Window(_)
            | StepKind::Detect(_)
            | StepKind::Enrich(_)
            | StepKind::Latest(_)
            | StepKind::Absence(_)
            | StepKind::Sequence(_)
            | StepKind::Join(_) => {
                let mut text = state_text(&step.kind);
                if let StepKind::Join(join) = &step.kind {
                    let with = edges[&join.with].id("with", &Columns::read_beside(join));
                    text += &format!(" with {with:016x}");
                }
                let own = from.id(&text, &Columns::read_by(&step.kind));
                let (shown, made) = made_of(&step.kind, own, &from);
                let name = format!("{pipeline}/{}", step.name);
                self.state.insert(name.clone(), own);
                self.shown.insert(name, shown);
                made
            }
        };
        edges.insert(step.name.clone(), made);
    }
}

/// What a step with state makes: the id of how its state is shown, and the edge.
fn made_of(kind: &StepKind, own: u64, from: &Edge) -> (u64, Edge) {
    let text = shown_text(kind);
    match kind {
        StepKind::Window(window) => (id(own, &text), Edge::of_windows(window, own)),
        StepKind::Enrich(enrich) => {
            let shown =
                id(own, &from.reading(&text, &Columns::of(enrich.defaults.iter().flatten())));
            (shown, from.enriched(enrich, own))
        }
        _ => {
            let shown = id(own, &text);
            (shown, Edge { rows: shown, columns: BTreeMap::new() })
        }
    }
}

fn id(upstream: u64, own: &str) -> u64 {
    xxh3_64(format!("tidegate content 2 {upstream:016x} {own}").as_bytes())
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
