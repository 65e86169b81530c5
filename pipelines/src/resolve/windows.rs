//! Steps that keep state per key: windows and detectors.

use arrow::datatypes::DataType;
use tidegate_operators::aggregate::{POINTS_MAX, points_max};
use tidegate_operators::spec::{
    Clock, DetectMethod, DetectOrder, DetectSpec, IS_FINAL, LatePolicy, QUALITY_COLUMNS, Shape,
    StepKind, WindowSpec,
};

use super::calendar::zone_column;
use super::edges::{Edge, RowKind};
use super::shapes::shape;
use super::steps::Steps;
use super::{early, is_consequence, limits, quality, sql};
use crate::bounds::counted;
use crate::config::problem::{At, Reporter};
use crate::config::section::Section;
use crate::planner::{PlanProblem, PlannedWindow, plan_window};

/// Columns that every window has.
const WINDOW_COLUMNS: [&str; 4] = ["window_start", "window_end", "rows", "revision"];

/// Keys, each with the column that windows of this kind have as well.
const OWN_COLUMNS: [(&str, &str); 3] =
    [("count", "window_number"), ("shifts", "shift"), ("early", IS_FINAL)];

/// A duration of the step, or, if absent, of `[reading]`.
pub(super) fn inherited(steps: &Steps<'_>, step: &Section<'_>, key: &str) -> i64 {
    step.duration_us(key).or_else(|| steps.reading.duration_us(key)).unwrap_or_default()
}

/// Resolves a window.
pub(crate) fn window(
    steps: &Steps<'_>,
    step: &Section<'_>,
    name: &str,
    input: &Edge,
    report: &mut Reporter<'_>,
) -> Option<(StepKind, Edge)> {
    let (mut keys, complete) = input.key_indexes(step.texts("by"), report);
    // A key has the windows of one zone.
    let zone = zone_column(step, input, report).filter(|zone| !keys.contains(zone));
    keys.extend(zone.filter(|_| step.entry("by").is_none()));
    let shape = shape(step, input, &keys, report);
    let late = late(step, report);
    not_over_revisions(step, ("from", input), "would be counted twice", report);
    let mut key_names = input.key_names(&keys);
    if !complete {
        key_names.extend(input.meant(step.texts("by")));
    }
    let quality = quality::quality(steps, step, report);
    let at_end = shape.as_ref().is_some_and(Shape::ends_with_reading);
    let planned = selected(step, (&key_names, at_end), input, report);
    let shape = shape?;
    let early_us = early::every_us(step, &shape, report);
    let planned = planned.filter(|_| complete)?;
    let planned = short_enough(step, &shape, planned, report)?;
    let spec = WindowSpec {
        pipeline: steps.pipeline.clone(),
        name: name.to_owned(),
        input: input.schema.clone(),
        keys,
        time: input.index(input.start()),
        shape,
        aggregates: planned.aggregates,
        filters: planned.filters,
        select: planned.select,
        disorder_us: inherited(steps, step, "disorder"),
        idle_close_us: inherited(steps, step, "idle_close"),
        clock: if step.text("clock") == Some("fleet") { Clock::Fleet } else { Clock::Device },
        late,
        // It is known when all tables are.
        puts_off: false,
        early_us,
        quality,
        limits: limits::of_step(&steps.limits, step),
    };
    let is_revised = matches!(late, LatePolicy::Revise { .. });
    let id = spec.shape.identity();
    let early = early_us.map(|_| is_revised);
    let revised = is_revised || early.is_some();
    let withdrawn = revised && spec.shape.withdraws();
    let taken_back = false;
    let rows = RowKind::Windows { keys: key_names, id, revised, withdrawn, taken_back, early };
    let edge = Edge { schema: spec.schema(), rows };
    Some((StepKind::Window(spec), edge))
}

/// Reports if windows would have longer lists than one row can have; then nothing is left. Where a
/// window has no greatest length, one that comes to more is null in this column, and a reject.
fn short_enough(
    step: &Section<'_>,
    shape: &Shape,
    planned: PlannedWindow,
    report: &mut Reporter<'_>,
) -> Option<PlannedWindow> {
    let longest_us = shape.longest_us();
    let points = planned.aggregates.iter().filter_map(|a| points_max(a, longest_us?)).max();
    let Some(points) = points.filter(|points| *points > POINTS_MAX) else { return Some(planned) };
    let message = format!("a resampling gives up to {} points in a window", counted(points));
    let hint = format!("at most {} fit into a row: take a longer interval", counted(POINTS_MAX));
    report.error(step.at("select"), message, hint);
    None
}

fn late(step: &Section<'_>, report: &mut Reporter<'_>) -> LatePolicy {
    if step.text("late") == Some("table") {
        if let Some(entry) = step.entry("revise_for") {
            let hint = "`late = \"table\"` never revises a window".to_owned();
            report.error(entry.key_at, "`revise_for` has no effect here", hint);
        }
        return LatePolicy::Table;
    }
    LatePolicy::Revise { keep_us: step.duration_us("revise_for").unwrap_or_default() }
}

/// Reports if a key has the name of a column that `rows` have of their own; then nothing is left.
pub(super) fn keys_are_free(
    step: &Section<'_>,
    rows: &str,
    (own, key_names): (&[&str], &[String]),
    report: &mut Reporter<'_>,
) -> Option<()> {
    let Some(taken) = key_names.iter().find(|k| own.contains(&k.as_str())) else {
        return Some(());
    };
    let message = format!("{rows} have a column `{taken}` of their own");
    report.error(step.at("by"), message, "give the key another name".to_owned());
    None
}

/// Reports if windows that can come again go into a step that takes every row for a new one, with
/// what would come of it.
pub(super) fn not_over_revisions(
    step: &Section<'_>,
    (key, input): (&str, &Edge),
    consequence: &str,
    report: &mut Reporter<'_>,
) {
    if let RowKind::Windows { revised: true, .. } = input.rows {
        let from = step.text(key).unwrap_or_default();
        let message = format!("windows of `{from}` can be revised, and {consequence}");
        let hint = "write `late = \"table\"` in the window that it comes from".to_owned();
        report.error(step.at(key), message, hint);
    }
}

fn selected(
    step: &Section<'_>,
    (keys, at_end): (&[String], bool),
    input: &Edge,
    report: &mut Reporter<'_>,
) -> Option<PlannedWindow> {
    let entries = step.entries("select");
    let mut good = true;
    let of_quality = quality::is_asked_for(step);
    let is_own = |name: &str| {
        OWN_COLUMNS.iter().any(|(key, own)| *own == name && step.entry(key).is_some())
            || of_quality && QUALITY_COLUMNS.contains(&name)
    };
    for entry in entries {
        let name = entry.key.as_str();
        if WINDOW_COLUMNS.contains(&name) || is_own(name) || keys.iter().any(|k| k == name) {
            good = false;
            let message = format!("every window here has a column `{name}` anyway");
            report.error(entry.key_at, message, "choose another name".to_owned());
        }
    }
    if let Some(name) = keys.iter().find(|name| is_own(name)) {
        good = false;
        let message = format!("`{name}` cannot be in the key: windows here have such a column");
        report.error(place_of(step, name), message, "give it another name".to_owned());
    }
    let texts: Vec<(String, String)> = entries
        .iter()
        .filter_map(|e| Some((e.key.clone(), e.node.text()?.to_owned())))
        .filter(|(_, text)| !text.trim().is_empty())
        .collect();
    good &= texts.len() == entries.len();
    match plan_window(&texts, keys, &input.schema, (input.start(), at_end)) {
        Ok(planned) => good.then_some(planned),
        Err(problems) => {
            for (name, PlanProblem { message, hint }) in problems {
                if texts.iter().any(|(n, t)| *n == name && is_consequence(t, report)) {
                    continue;
                }
                report.error(place_of(step, &name), message, hint);
            }
            None
        }
    }
}

/// Where a column of `select`, or else a key, is written.
fn place_of(step: &Section<'_>, name: &str) -> At {
    let selected = step.entries("select").iter().find(|e| e.key == name).map(|e| e.node.at);
    let key = || step.texts("by").into_iter().flatten().find(|(n, _)| *n == name).map(|(_, at)| at);
    selected.or_else(key).unwrap_or_else(|| step.at("select"))
}

/// Resolves a detector.
pub(crate) fn detect(
    steps: &Steps<'_>,
    step: &Section<'_>,
    name: &str,
    input: &Edge,
    report: &mut Reporter<'_>,
) -> Option<(StepKind, Edge)> {
    let method = method(step, report);
    not_over_revisions(step, ("from", input), "would be learnt twice", report);
    let (keys, complete) = input.key_indexes(step.texts("by"), report);
    let text = step.text("on")?;
    let on = sql(text, step.at("on"), &input.schema, Some(&DataType::Float64), report)?;
    if !complete {
        return None;
    }
    let key_names = input.key_names(&keys);
    const OWN: [&str; 6] = ["time", "value", "score", "expected", "deviation", "method"];
    keys_are_free(step, "findings", (&OWN, &key_names), report)?;
    let spec = DetectSpec {
        pipeline: steps.pipeline.clone(),
        name: name.to_owned(),
        input: input.schema.clone(),
        keys,
        time: input.index(input.time()),
        on,
        on_text: text.to_owned(),
        method: method?,
        order: match step.text("order") {
            Some("arrival") => DetectOrder::Arrival,
            _ => DetectOrder::EventTime,
        },
        disorder_us: inherited(steps, step, "disorder"),
        idle_close_us: inherited(steps, step, "idle_close"),
        forget_after_us: limits::forget_after_us(&steps.limits, step)?,
        limits: limits::of_step(&steps.limits, step),
    };
    let edge = Edge { schema: spec.schema(), rows: RowKind::Findings { keys: key_names } };
    Some((StepKind::Detect(spec), edge))
}

fn method(step: &Section<'_>, report: &mut Reporter<'_>) -> Option<DetectMethod> {
    let (alpha, threshold) = (step.number("alpha")?, step.number("threshold")?);
    let mut good = true;
    if alpha <= 0.0 || alpha >= 1.0 {
        good = false;
        let hint = "0.05 remembers about the last 20 readings".to_owned();
        report.error(step.at("alpha"), format!("{alpha} is not between 0 and 1"), hint);
    }
    if threshold <= 0.0 {
        good = false;
        report.error(step.at("threshold"), "the threshold must be more than 0", None);
    }
    let warmup = u64::try_from(step.int("warmup")?).ok()?;
    good.then_some(DetectMethod::EwmaZ { alpha, warmup, threshold })
}
