//! Steps of type `absence`.

use arrow::datatypes::SchemaRef;
use tidegate_operators::spec::{AbsenceSpec, Cadence, Expr, INHIBITED, StepKind};

use super::edges::{Edge, RowKind};
use super::steps::Steps;
use super::windows::{inherited, keys_are_free, not_over_revisions};
use super::{limits, sql};
use crate::config::problem::Reporter;
use crate::config::section::Section;
use crate::config::units::show_duration;

/// Columns that every row has.
const OWN: [&str; 8] =
    ["window_start", "window_end", "status", "missed", "cadence", INHIBITED, "rows", "revision"];

/// Whether these are the columns of absences.
pub(super) fn is_of(schema: &SchemaRef) -> bool {
    OWN.iter().all(|name| schema.field_with_name(name).is_ok())
}

/// Resolves an absence.
pub(crate) fn absence(
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
    let (cadence, missed) = (cadence(step, report), step.int("missed"));
    let (keys, complete) = input.key_indexes(step.texts("by"), report);
    let key_names = input.key_names(&keys);
    let select = selected(step, "select", (&OWN, &key_names), input, report);
    keys_are_free(step, "absences", (&OWN, &key_names), report)?;
    let (cadence, missed) = (cadence?, missed?);
    let forget_after_us = limits::forget_after_us(&steps.limits, step)?;
    let (Cadence::Every(us) | Cadence::Learnt { least_us: us }) = cadence;
    let limit_us = us.saturating_mul(missed);
    let told_us = us.saturating_add(if steps.live { steps.known_after_us } else { 0 });
    let told_us = told_us.max(limit_us);
    if told_us >= forget_after_us {
        let (limit, forget) = (show_duration(told_us), show_duration(forget_after_us));
        let message = format!("a key is forgotten after {forget}, before it is silent for {limit}");
        let hint = "make `forget_after` longer, here or in [limits]".to_owned();
        report.error(step.at("missed"), message, hint);
        return None;
    }
    let select = select.filter(|_| complete)?;
    let spec = AbsenceSpec {
        pipeline: steps.pipeline.clone(),
        name: name.to_owned(),
        input: input.schema.clone(),
        keys,
        time: input.index(input.time()),
        cadence,
        missed,
        select,
        disorder_us: inherited(steps, step, "disorder"),
        keep_us: step.duration_us("revise_for")?,
        live: steps.live,
        known_after_us: steps.known_after_us,
        forget_after_us,
        limits: limits::of_step(&steps.limits, step),
    };
    let edge = Edge { schema: spec.schema(), rows: RowKind::lasting(key_names) };
    Some((StepKind::Absence(spec), edge))
}

fn cadence(step: &Section<'_>, report: &mut Reporter<'_>) -> Option<Cadence> {
    let key = if step.entry("every").is_some() { "every" } else { "least" };
    let us = step.duration_us(key)?;
    if us == 0 {
        report.error(step.at(key), "readings are some time apart", None);
        return None;
    }
    if key == "least" {
        return Some(Cadence::Learnt { least_us: us });
    }
    if let Some(entry) = step.entry("least") {
        let hint = "it is for a cadence that is learnt, which `every` declares".to_owned();
        report.error(entry.key_at, "`least` has no effect here", hint);
    }
    Some(Cadence::Every(us))
}

/// The expressions of a key such as `select`, each over a row of the input, none under a name that
/// is taken.
pub(super) fn selected(
    step: &Section<'_>,
    key: &str,
    (own, keys): (&[&str], &[String]),
    input: &Edge,
    report: &mut Reporter<'_>,
) -> Option<Vec<(String, Expr)>> {
    let entries = step.entries(key);
    let mut columns = Vec::with_capacity(entries.len());
    for entry in entries {
        let name = entry.key.as_str();
        if own.contains(&name) || keys.iter().any(|k| k == name) {
            let message = format!("every row here has a column `{name}` anyway");
            report.error(entry.key_at, message, "choose another name".to_owned());
            continue;
        }
        let Some(text) = entry.node.text() else { continue };
        columns.extend(
            sql(text, entry.node.at, &input.schema, None, report).map(|e| (name.to_owned(), e)),
        );
    }
    (columns.len() == entries.len()).then_some(columns)
}
