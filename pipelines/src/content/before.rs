//! Content ids as earlier versions wrote them, where all of the decode, and all that steps make,
//! was in the id of everything after it.
//!
//! For the first start of this version on their checkpoints: what has the same id there has not
//! changed, so it has the id of this version.

use std::collections::BTreeMap;

use tidegate_operators::spec::{PipelineSpec, StepKind};
use xxhash_rust::xxh3::xxh3_64;

use crate::fingerprint::{
    alert_condition, decode_text, dedup_text, exprs, registry_text, shown_text, waiting_text,
};
use crate::graph::{READINGS, outage_operator, registry_operator, skew_operator, versions_edge};
use crate::resolve::early::is_of_finals;

/// The content ids of a pipeline's stateful operators, as earlier versions made them.
pub fn content_ids_before(p: &PipelineSpec) -> BTreeMap<String, u64> {
    let mut ids = BTreeMap::new();
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
        let own = id(from, &waiting_text(&step.kind));
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
                ids.insert(format!("{}/{}", p.name, step.name), own);
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
    ids
}

fn id(upstream: u64, own: &str) -> u64 {
    xxh3_64(format!("tidegate content 1 {upstream:016x} {own}").as_bytes())
}
