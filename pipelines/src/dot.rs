//! A plan as a graph in the DOT language of Graphviz.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tidegate_operators::spec::{PipelineSpec, StepKind};

use crate::plan::Plan;

/// The graph of a plan, for `dot -Tsvg`.
pub fn explain_dot(plan: &Plan) -> String {
    let mut out = String::from(
        "digraph tidegate {\n  rankdir = LR;\n  node [shape = box, fontname = \"sans-serif\"];\n",
    );
    for (i, source) in plan.sources.iter().enumerate() {
        let _ = writeln!(out, "  s{i} [shape = cds, label = {}];", quoted(&source.name));
    }
    for (i, pipeline) in plan.pipelines.iter().enumerate() {
        one_pipeline(plan, i, pipeline, &mut out);
    }
    out.push_str("}\n");
    out
}

fn one_pipeline(plan: &Plan, i: usize, p: &PipelineSpec, out: &mut String) {
    let _ = writeln!(out, "  subgraph cluster{i} {{\n    label = {};", quoted(&p.name));
    let mut arrows: Vec<(String, String, String)> = Vec::new();
    // Which node an edge comes out of.
    let mut from: BTreeMap<&str, String> = BTreeMap::new();
    let node = |out: &mut String, id: String, shape: &str, label: &str| -> String {
        let _ = writeln!(out, "    {id} [shape = {shape}, label = {}];", quoted(label));
        id
    };
    let decode = node(out, format!("p{i}_decode"), "box", "decode");
    arrows.push((format!("s{}", p.decode.source), decode.clone(), String::new()));
    from.insert("readings", decode);
    let versions: Vec<String> =
        p.registries.iter().map(|r| crate::graph::versions_edge(&r.name)).collect();
    for (n, registry) in p.registries.iter().enumerate() {
        let label = format!("registry {}", registry.name);
        let id = node(out, format!("p{i}_registry{n}"), "folder", &label);
        from.insert(&versions[n], id);
    }
    for (n, step) in p.steps.iter().enumerate() {
        let kind = kind_of(&step.kind);
        let id = node(out, format!("p{i}_step{n}"), "box", &format!("{kind} {}", step.name));
        arrows.push((from[step.from.as_str()].clone(), id.clone(), step.from.clone()));
        if let StepKind::Join(join) = &step.kind {
            arrows.push((from[join.with.as_str()].clone(), id.clone(), join.with.clone()));
        }
        if let StepKind::Enrich(enrich) = &step.kind {
            let edge = crate::graph::versions_edge(&enrich.registry.name);
            arrows.push((from[edge.as_str()].clone(), id.clone(), enrich.registry.name.clone()));
        }
        match &step.kind {
            StepKind::Route(route) => {
                from.extend(route.branches.iter().map(|(name, _)| (name.as_str(), id.clone())));
            }
            _ => {
                if matches!(step.kind, StepKind::Detect(_)) {
                    arrows.push((id.clone(), format!("p{i}_findings"), String::new()));
                }
                from.insert(&step.name, id);
            }
        }
    }
    if p.steps.iter().any(|step| matches!(step.kind, StepKind::Detect(_))) {
        node(out, format!("p{i}_findings"), "cylinder", "system.findings");
    }
    for (n, (edge, alert)) in p.alerts.iter().enumerate() {
        let id = node(out, format!("p{i}_alert{n}"), "octagon", &format!("alert {}", alert.name));
        arrows.push((from[edge.as_str()].clone(), id.clone(), edge.clone()));
        for name in &alert.notify {
            arrows.push((id.clone(), format!("p{i}_notify_{name}"), String::new()));
        }
    }
    for (n, table) in p.tables.iter().enumerate() {
        let label = format!("{}.{}", table.namespace, table.name);
        let id = node(out, format!("p{i}_table{n}"), "cylinder", &label);
        arrows.push((from[table.from.as_str()].clone(), id, table.from.clone()));
    }
    for notify in plan.notifications.iter().filter(|n| n.pipeline == p.name) {
        let id = quoted(&format!("p{i}_notify_{}", notify.name));
        node(out, id, "note", &format!("webhook {}", notify.name));
    }
    out.push_str("  }\n");
    for (a, b, label) in arrows {
        let _ = writeln!(out, "  {a} -> {} [label = {}];", quoted(&b), quoted(&label));
    }
}

/// What is written in the node of a step.
fn kind_of(kind: &StepKind) -> &'static str {
    match kind {
        StepKind::Filter(_) => "filter",
        StepKind::Project(_) => "derive",
        StepKind::Route(_) => "route",
        StepKind::Window(_) => "window",
        StepKind::Detect(_) => "detect",
        StepKind::Enrich(_) => "enrich",
        StepKind::Latest(_) => "latest",
        StepKind::Absence(_) => "absence",
        StepKind::Sequence(_) => "sequence",
        StepKind::Join(_) => "join",
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
