//! A number that changes when what a pipeline computes changes.
//!
//! It is the hash of a text in which columns go by name: neither the order of the pipelines, nor
//! which columns others need, nor a secret, nor where messages come from is in it.

use std::fmt::Write as _;
use std::sync::LazyLock;

use regex::Regex;
use tidegate_operators::spec::{Expr, PipelineSpec, StepKind};
use xxhash_rust::xxh3::xxh3_64;

/// Positions of columns in the text of an expression, `temperature@2`: they depend on the others.
static POSITION: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"@\d+").expect("a valid pattern"));

/// The fingerprint of a pipeline.
pub fn fingerprint(pipeline: &PipelineSpec) -> u64 {
    xxh3_64(canonical(pipeline).as_bytes())
}

/// An expression without the positions of its columns.
pub(crate) fn expr(e: &Expr) -> String {
    POSITION.replace_all(&e.to_string(), "").into_owned()
}

fn exprs(list: &[(String, Expr)]) -> String {
    list.iter().map(|(name, e)| format!("{name}={};", expr(e))).collect()
}

fn names(schema: &arrow::datatypes::SchemaRef, keys: &[usize]) -> Vec<String> {
    keys.iter().map(|k| schema.field(*k).name().clone()).collect()
}

fn canonical(p: &PipelineSpec) -> String {
    let mut out = String::from("tidegate plan 1\n");
    let d = &p.decode;
    let topics: Vec<String> = d.topics.iter().map(ToString::to_string).collect();
    let _ = writeln!(
        out,
        "{} {topics:?} {:?} {:?} {} {}",
        p.name, d.format, d.explode, d.future_bound_us, d.payload_bytes_max
    );
    // Columns that are always available change nothing for the others.
    for c in d.columns.iter().filter(|c| !crate::resolve::is_builtin(&c.name)) {
        let _ = writeln!(
            out,
            "{} {:?} {:?} {:?} {:?}",
            c.name, c.origin, c.kind, c.rules, c.on_invalid
        );
    }
    if let Some(d) = &p.dedup {
        let key = names(&d.input, &d.key);
        let _ = writeln!(out, "dedup {key:?} {} {}", d.horizon_us, d.keys_max);
    }
    for step in &p.steps {
        let _ = writeln!(out, "step {} from {}: {}", step.name, step.from, step_text(&step.kind));
    }
    for (from, a) in &p.alerts {
        let _ = writeln!(
            out,
            "alert {} from {from} {:?} {} {} {} {} {:?} {:?} {}",
            a.name,
            names(&a.input, &a.keys),
            expr(&a.fire),
            expr(&a.clear),
            a.for_us,
            a.severity,
            a.summary,
            a.notify,
            a.max_age_us
        );
    }
    for t in &p.tables {
        let _ = writeln!(out, "table {} from {} {:?}", t.name, t.from, t.partition);
    }
    out
}

fn step_text(kind: &StepKind) -> String {
    match kind {
        StepKind::Filter(e) => format!("filter {}", expr(e)),
        // What only passes through depends on what others need.
        StepKind::Project(list) => {
            let made: Vec<(String, Expr)> =
                list.iter().filter(|(name, e)| expr(e) != *name).cloned().collect();
            format!("project {}", exprs(&made))
        }
        StepKind::Route(list) => format!("route {}", exprs(list)),
        StepKind::Window(w) => {
            let calls: Vec<String> = w
                .aggregates
                .iter()
                .zip(&w.filters)
                .map(|(a, f)| {
                    let arguments: Vec<String> = a.expressions().iter().map(expr).collect();
                    format!(
                        "{} {arguments:?} {} {} {:?} {:?}",
                        a.fun().name(),
                        a.is_distinct(),
                        a.ignore_nulls(),
                        a.order_bys()
                            .iter()
                            .map(|o| format!("{} {:?}", expr(&o.expr), o.options))
                            .collect::<Vec<_>>(),
                        f.as_ref().map(expr)
                    )
                })
                .collect();
            format!(
                "window {:?} {} {} {} {calls:?} {} {} {} {:?} {:?}",
                names(&w.input, &w.keys),
                w.size_us,
                w.slide_us,
                w.offset_us,
                exprs(&w.select),
                w.disorder_us,
                w.idle_close_us,
                w.clock,
                w.late
            )
        }
        StepKind::Detect(d) => format!(
            "detect {:?} {} {:?} {:?} {} {}",
            names(&d.input, &d.keys),
            expr(&d.on),
            d.method,
            d.order,
            d.disorder_us,
            d.idle_close_us
        ),
    }
}
