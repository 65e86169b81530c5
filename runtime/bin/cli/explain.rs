//! `tidegate explain`: what the plan does, as text or as a graph for Graphviz.

use std::fmt::Write;

use tidegate_operators::spec::{PipelineSpec, StepKind, StepSpec};
use tidegate_pipelines::Plan;

use super::args::ExplainArgs;
use super::{Outcome, files, print};

pub(super) fn explain(args: &ExplainArgs) -> Outcome {
    let plan = files::load(&args.paths.paths)?;
    print(&if args.dot { dot(&plan) } else { text(&plan) })
}

/// The plan as text, a block per pipeline.
fn text(plan: &Plan) -> String {
    let mut out = String::new();
    for p in &plan.pipelines {
        let source = plan.sources.get(usize::from(p.decode.source));
        let _ = writeln!(out, "pipeline {} (SQL schema {})", p.name, p.sql_name);
        let _ = writeln!(out, "  from {}", source.map_or("?", |s| s.name.as_str()));
        let schema = p.decode.schema();
        let columns: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        let _ = writeln!(out, "  readings: {}", columns.join(", "));
        for step in &p.steps {
            let _ = writeln!(out, "  {} -> {}: {}", step.from, step.name, describe(step));
        }
        for (from, alert) in &p.alerts {
            let tells = match alert.notify.is_empty() {
                true => String::new(),
                false => format!(", tells {}", alert.notify.join(", ")),
            };
            let _ = writeln!(
                out,
                "  {from} -> alert {}: when {} for {}{tells}",
                alert.name,
                alert.fire,
                time(alert.for_us)
            );
        }
        for table in &p.tables {
            let _ = writeln!(
                out,
                "  {} -> table {}.{}, visible after {}",
                table.from,
                table.namespace,
                table.name,
                time(table.freshness_us)
            );
        }
        out.push('\n');
    }
    out
}

fn describe(step: &StepSpec) -> String {
    match &step.kind {
        StepKind::Filter(e) => format!("rows where {e}"),
        StepKind::Project(columns) => {
            let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
            format!("columns {}", names.join(", "))
        }
        StepKind::Route(branches) => {
            let names: Vec<&str> = branches.iter().map(|(name, _)| name.as_str()).collect();
            format!("each row to the first that fits of {}", names.join(", "))
        }
        StepKind::Window(w) => {
            let names: Vec<&str> = w.select.iter().map(|(name, _)| name.as_str()).collect();
            let every = match w.size_us == w.slide_us {
                true => String::new(),
                false => format!(" every {}", time(w.slide_us)),
            };
            format!(
                "windows of {}{every} by {}: {}; waits {} for disorder, closes after {} of \
                 silence",
                time(w.size_us),
                keys(&w.keys, &w.input),
                names.join(", "),
                time(w.disorder_us),
                time(w.idle_close_us)
            )
        }
        StepKind::Detect(d) => {
            format!("findings on {} by {}, {:?}", d.on_text, keys(&d.keys, &d.input), d.method)
        }
    }
}

fn keys(keys: &[usize], input: &arrow::datatypes::Schema) -> String {
    let names: Vec<&str> = keys.iter().map(|k| input.field(*k).name().as_str()).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// The longest unit that says it in whole numbers.
fn time(us: i64) -> String {
    let units = [
        (86_400_000_000, "d"),
        (3_600_000_000, "h"),
        (60_000_000, "m"),
        (1_000_000, "s"),
        (1_000, "ms"),
    ];
    match units.iter().find(|(unit, _)| us != 0 && us % unit == 0) {
        Some((unit, name)) => format!("{}{name}", us / unit),
        None if us == 0 => "0s".to_owned(),
        None => format!("{us}us"),
    }
}

/// The plan as a graph: sources, edges as nodes, tables and alerts as leaves.
fn dot(plan: &Plan) -> String {
    let mut out = String::from("digraph tidegate {\n  rankdir = LR;\n  node [shape = box];\n");
    for (i, source) in plan.sources.iter().enumerate() {
        let _ = writeln!(out, "  source{i} [label = {}, shape = cds];", quoted(&source.name));
    }
    for p in &plan.pipelines {
        dot_pipeline(&mut out, p);
    }
    out.push_str("}\n");
    out
}

fn dot_pipeline(out: &mut String, p: &PipelineSpec) {
    let node = |name: &str| quoted(&format!("{}.{name}", p.sql_name));
    let _ = writeln!(out, "  {} [label = {}];", node("readings"), quoted(&p.name));
    let _ = writeln!(out, "  source{} -> {};", p.decode.source, node("readings"));
    for step in &p.steps {
        let _ = writeln!(out, "  {} -> {};", node(&step.from), node(&step.name));
        let _ = writeln!(out, "  {} [label = {}];", node(&step.name), quoted(&step.name));
        if let StepKind::Route(branches) = &step.kind {
            for (branch, _) in branches {
                let _ = writeln!(out, "  {} -> {};", node(&step.name), node(branch));
                let _ = writeln!(out, "  {} [label = {}];", node(branch), quoted(branch));
            }
        }
    }
    for (from, alert) in &p.alerts {
        let leaf = node(&format!("alert:{}", alert.name));
        let _ = writeln!(out, "  {leaf} [label = {}, shape = octagon];", quoted(&alert.name));
        let _ = writeln!(out, "  {} -> {leaf};", node(from));
    }
    for table in p.tables.iter().filter(|t| t.namespace == p.sql_name) {
        let leaf = node(&format!("table:{}", table.name));
        let _ = writeln!(out, "  {leaf} [label = {}, shape = cylinder];", quoted(&table.name));
        let _ = writeln!(out, "  {} -> {leaf};", node(&table.from));
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_quotes_are_readable() {
        assert_eq!(time(90_000_000), "90s");
        assert_eq!(time(3_600_000_000), "1h");
        assert_eq!((time(0), time(1_500)), ("0s".to_owned(), "1500us".to_owned()));
        assert_eq!(quoted("a\"b\\"), "\"a\\\"b\\\\\"");
    }
}
