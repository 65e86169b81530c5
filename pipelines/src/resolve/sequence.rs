//! Steps of type `sequence`.

use arrow::datatypes::{DataType, SchemaRef};
use tidegate_operators::spec::{Expr, Pattern, SequenceSpec, StepKind};

use super::absence::selected;
use super::edges::{Edge, RowKind};
use super::steps::Steps;
use super::windows::{inherited, keys_are_free, not_over_revisions};
use super::{limits, sql};
use crate::config::problem::Reporter;
use crate::config::section::Section;

/// Columns that every row has.
const OWN: [&str; 7] =
    ["window_start", "window_end", "active", "completed", "matched", "rows", "revision"];

/// Whether these are the columns of sequences.
pub(super) fn is_of(schema: &SchemaRef) -> bool {
    OWN.iter().all(|name| schema.field_with_name(name).is_ok())
}

/// A pattern with what its readings meet.
struct Planned {
    pattern: Pattern,
    first: Option<Expr>,
    last: Expr,
}

/// Resolves a sequence.
pub(crate) fn sequence(
    steps: &Steps<'_>,
    step: &Section<'_>,
    name: &str,
    input: &Edge,
    report: &mut Reporter<'_>,
) -> Option<(StepKind, Edge)> {
    not_over_revisions(
        step,
        ("from", input),
        "would be taken for readings that came again",
        report,
    );
    let planned = planned(step, input, report);
    let (keys, complete) = input.key_indexes(step.texts("by"), report);
    let key_names = input.key_names(&keys);
    keys_are_free(step, "sequences", (&OWN, &key_names), report)?;
    let select_first = selected(step, "select_first", (&OWN, &key_names), input, report);
    let mut taken = key_names.clone();
    taken.extend(select_first.iter().flatten().map(|(name, _)| name.clone()));
    let select = selected(step, "select", (&OWN, &taken), input, report);
    let (planned, select_first, select) = (planned?, select_first?, select?);
    if !complete {
        return None;
    }
    let spec = SequenceSpec {
        pipeline: steps.pipeline.clone(),
        name: name.to_owned(),
        input: input.schema.clone(),
        keys,
        time: input.index(input.time()),
        pattern: planned.pattern,
        first: planned.first,
        last: planned.last,
        select_first,
        select,
        disorder_us: inherited(steps, step, "disorder"),
        idle_close_us: inherited(steps, step, "idle_close"),
        keep_us: step.duration_us("revise_for")?,
        live: steps.live,
        known_after_us: steps.known_after_us,
        forget_after_us: limits::forget_after_us(&steps.limits, step)?,
        limits: limits::of_step(&steps.limits, step),
    };
    let edge = Edge { schema: spec.schema(), rows: RowKind::lasting(key_names) };
    Some((StepKind::Sequence(spec), edge))
}

fn planned(step: &Section<'_>, input: &Edge, report: &mut Reporter<'_>) -> Option<Planned> {
    let is = |key: &str| step.entry(key).is_some();
    let problem = match (is("first"), is("then"), is("without"), is("when")) {
        (true, true, false, false) | (true, false, true, false) | (false, false, false, true) => {
            None
        }
        (true, false, false, false) => Some("`first` without what follows"),
        (_, true, true, _) => Some("`then` together with `without`"),
        (_, _, _, true) => Some("`when` together with `first`, `then` or `without`"),
        (false, true, ..) | (false, _, true, _) => Some("what follows without `first`"),
        (false, false, false, false) => Some("there is no pattern"),
    };
    if let Some(message) = problem {
        let hint = "write `first` and `then`, `first` and `without`, or `when`".to_owned();
        report.error(step.at("first"), message, hint);
        return None;
    }
    let condition = |key: &str, report: &mut Reporter<'_>| {
        sql(step.text(key)?, step.at(key), &input.schema, Some(&DataType::Boolean), report)
    };
    if is("when") {
        let pattern = counted(step, report);
        let last = condition("when", report)?;
        return Some(Planned { pattern: pattern?, first: None, last });
    }
    let within_us = within(step, report);
    for key in ["times", "of"] {
        if let Some(entry) = step.entry(key) {
            let hint = "it goes with `when`".to_owned();
            report.error(entry.key_at, format!("`{key}` has no effect here"), hint);
        }
    }
    let other = if is("then") { "then" } else { "without" };
    let (first, last) = (condition("first", report), condition(other, report));
    let within_us = within_us?;
    let pattern = match other {
        "then" => Pattern::Then { within_us },
        _ => Pattern::Without { within_us },
    };
    Some(Planned { pattern, first: Some(first?), last: last? })
}

fn within(step: &Section<'_>, report: &mut Reporter<'_>) -> Option<i64> {
    let Some(entry) = step.entry("within") else {
        let hint = "say how long it may take: within = \"5m\"".to_owned();
        report.error(step.at, "`within` is missing", hint);
        return None;
    };
    let us = step.duration_us("within").filter(|us| *us > 0);
    if us.is_none() {
        report.error(entry.node.at, "`within` must be longer than nothing", None);
    }
    us
}

fn counted(step: &Section<'_>, report: &mut Reporter<'_>) -> Option<Pattern> {
    let Some(times) = step.int("times") else {
        report.error(step.at("when"), "`times` is missing", "say how many: times = 3".to_owned());
        return None;
    };
    match (step.entry("of"), step.entry("within")) {
        (Some(_), None) => {
            let of = step.int("of")?;
            if of < times {
                let message = format!("there are never {times} among {of}");
                report.error(step.at("of"), message, "make `of` larger".to_owned());
                return None;
            }
            Some(Pattern::Among { times, of })
        }
        (None, Some(_)) => Some(Pattern::Times { times, within_us: within(step, report)? }),
        (both, _) => {
            let message = match both {
                Some(_) => "`of` together with `within`",
                None => "`when` without `of` or `within`",
            };
            let hint = "count among the last readings (`of`), or within a time (`within`)";
            report.error(step.at("when"), message, hint.to_owned());
            None
        }
    }
}
