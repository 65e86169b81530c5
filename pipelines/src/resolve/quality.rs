//! Whether the windows of a step say how good they are, and how many readings are to be expected.

use tidegate_operators::spec::{QualitySpec, StepKind};

use super::limits;
use super::steps::Steps;
use crate::config::problem::Reporter;
use crate::config::section::Section;
use crate::graph::READINGS;

/// Whether a window has the columns of its quality.
pub(super) fn is_asked_for(step: &Section<'_>) -> bool {
    step.bool("quality")
}

/// What is asked of the quality of the windows of a step with these keys.
pub(super) fn quality(
    steps: &Steps<'_>,
    step: &Section<'_>,
    keys: &[String],
    report: &mut Reporter<'_>,
) -> Option<QualitySpec> {
    if let Some(entry) = step.entry("cadence") {
        if !is_asked_for(step) {
            let hint = "write `quality = true` as well".to_owned();
            report.error(entry.key_at, "`cadence` has no effect here", hint);
        }
        if step.duration_us("cadence") == Some(0) {
            report.error(entry.node.at, "readings are some time apart", None);
        }
    }
    is_asked_for(step).then(|| QualitySpec {
        every_us: step.duration_us("cadence").or_else(|| declared_us(steps, step, keys)),
        keeps: steps.keeps,
    })
}

/// How often a key has a row, where that is how often a device has a reading: the key is one of
/// devices, and no step before this one takes rows away or adds some.
fn declared_us(steps: &Steps<'_>, step: &Section<'_>, keys: &[String]) -> Option<i64> {
    let every_us = limits::declared(&steps.limits).reading_every_us?;
    let mut from = step.text("from")?;
    while from != READINGS {
        let before = steps.specs.iter().find(|s| s.name == from)?;
        match before.kind {
            StepKind::Project(_) | StepKind::Enrich(_) => from = &before.from,
            _ => return None,
        }
    }
    keys.iter().any(|key| key == "device").then_some(every_us)
}
