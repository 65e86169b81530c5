//! The step `latest`.

use std::sync::Arc;

use arrow::datatypes::DataType;
use tidegate_operators::spec::{LatestSpec, StepKind};

use super::edges::{Edge, RowKind};
use super::steps::{Steps, made};
use super::windows::{inherited, keys_are_free, not_over_revisions};
use super::{limits, sql};
use crate::config::problem::Reporter;
use crate::config::section::Section;

/// Resolves a step of last-known values.
pub(super) fn latest(
    steps: &Steps<'_>,
    step: &Section<'_>,
    name: &str,
    input: &Edge,
    report: &mut Reporter<'_>,
) -> Option<(StepKind, Edge)> {
    not_over_revisions(step, ("from", input), "would say what was said again", report);
    let (keys, complete) = input.key_indexes(step.texts("by"), report);
    let key_names = input.key_names(&keys);
    keys_are_free(step, "these rows", (&["time"], &key_names), report)?;
    let select = selected(step, &key_names, input, report);
    let at = match step.text("at") {
        Some(text) => {
            let want = Some(&DataType::Boolean);
            sql(text, step.at("at"), &input.schema, want, report).map(Some)
        }
        None => Some(None),
    };
    let max_age_us = match step.entry("max_age") {
        Some(_) => Some(step.duration_us("max_age")?),
        None => None,
    };
    let (select, at) = (select.filter(|_| complete)?, at?);
    let spec = LatestSpec {
        pipeline: steps.pipeline.clone(),
        name: name.to_owned(),
        input: input.schema.clone(),
        keys,
        time: input.index(input.time()),
        select,
        at,
        on_change: step.bool("on_change"),
        max_age_us,
        disorder_us: inherited(steps, step, "disorder"),
        idle_close_us: inherited(steps, step, "idle_close"),
        live: steps.live,
        forget_after_us: limits::forget_after_us(&steps.limits, step)?,
        limits: limits::of_step(&steps.limits, step),
    };
    let edge = Edge { schema: spec.schema(), rows: RowKind::Timed { keys: key_names } };
    Some((StepKind::Latest(spec), edge))
}

/// The values, each with the column that it becomes.
fn selected(
    step: &Section<'_>,
    keys: &[String],
    input: &Edge,
    report: &mut Reporter<'_>,
) -> Option<Vec<(Arc<arrow::datatypes::Field>, tidegate_operators::spec::Expr)>> {
    let entries = step.entries("select");
    let mut good = true;
    if entries.is_empty() {
        good = false;
        report.error(step.at("select"), "which values are to be known?", None);
    }
    let mut found = Vec::new();
    for entry in entries {
        if entry.key == "time" || keys.contains(&entry.key) {
            good = false;
            let message = format!("every row here has a column `{}` anyway", entry.key);
            report.error(entry.key_at, message, "choose another name".to_owned());
        }
        match made(entry, &input.schema, report) {
            Some((_, expr, field)) => found.push((Arc::new(field.with_nullable(true)), expr)),
            None => good = false,
        }
    }
    good.then_some(found)
}
