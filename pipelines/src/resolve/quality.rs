//! Whether the windows of a step say how good they are, and how many readings are to be expected.

use tidegate_operators::spec::{QualitySpec, StepKind, StepSpec};

use super::steps::Steps;
use crate::config::problem::Reporter;
use crate::config::section::Section;
use crate::graph::READINGS;

/// Whether a window has the columns of its quality.
pub(super) fn is_asked_for(step: &Section<'_>) -> bool {
    step.bool("quality")
}

/// What is asked of the quality of the windows of a step. Reports if what comes in does not say
/// what was lost.
pub(super) fn quality(
    steps: &Steps<'_>,
    step: &Section<'_>,
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
    if !is_asked_for(step) {
        return None;
    }
    if is_held_back(&steps.specs, step.text("from").unwrap_or(READINGS)) {
        let message = "rows that were held back do not say when their readings came in";
        let hint = "ask for it in the window of readings, and take `bool_and(complete)` of that";
        report.error(step.at("quality"), message, hint.to_owned());
    }
    // What is dropped before this step is known when all steps are.
    let every_us = step.duration_us("cadence");
    Some(QualitySpec { every_us, keeps: steps.keeps, repeated: false })
}

/// Whether the rows of an edge do not come with the ticks with which the readings came that they
/// are made of: a step before keeps rows for later. What was lost is found by these ticks.
fn is_held_back(steps: &[StepSpec], from: &str) -> bool {
    let mut from = from;
    while from != READINGS {
        // A step with mistakes, which were reported, is not there.
        let Some(step) = steps.iter().find(|step| step.makes(from)) else { return false };
        match &step.kind {
            StepKind::Filter(_)
            | StepKind::Project(_)
            | StepKind::Route(_)
            | StepKind::Enrich(_) => from = &step.from,
            StepKind::Window(_)
            | StepKind::Detect(_)
            | StepKind::Latest(_)
            | StepKind::Absence(_)
            | StepKind::Sequence(_)
            | StepKind::Join(_) => return true,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use crate::testing::{HEAD, plan};

    const STEPS: &str = r#"
[limits]
reading_every = "10s"
[[step]]
name = "minutes"
type = "window"
every = "1m"
late = "table"
quality = true
select = { total = "sum(v)" }
[[step]]
name = "last"
type = "latest"
select = { v = "v" }
[[step]]
name = "odd"
type = "detect"
on = "v"
[[step]]
name = "some"
type = "filter"
where = "v > 1"
[[step]]
name = "more"
type = "derive"
from = "some"
set = { twice = "v * 2" }
[[step]]
name = "parts"
type = "route"
from = "more"
branches = { large = "v > 8", small = "true" }
[[step]]
name = "few"
type = "select"
from = "minutes"
columns = { complete = "complete" }
"#;

    /// What is said of a window over an edge, if it asks for its quality.
    fn said(from: &str) -> String {
        let window = format!(
            "[[step]]\nname = \"w\"\ntype = \"window\"\nfrom = \"{from}\"\nevery = \"1h\"\n\
             quality = true\nselect = {{ n = \"count(*)\" }}\n"
        );
        plan(format!("{HEAD}{STEPS}{window}")).err().unwrap_or_default()
    }

    #[test]
    fn what_was_held_back_does_not_say_what_was_lost() {
        for from in ["readings", "some", "more", "large", "small"] {
            assert_eq!(said(from), "", "{from}");
        }
        for from in ["minutes", "few", "last", "odd"] {
            let said = said(from);
            assert!(said.contains("do not say when their readings came in"), "{from}: {said}");
            assert!(said.contains("take `bool_and(complete)` of that"), "{from}: {said}");
        }
    }

    #[test]
    fn how_often_there_is_a_reading_at_most_says_nothing_of_how_often_there_is_one() {
        let plan = plan(format!("{HEAD}{STEPS}")).unwrap();
        let steps = &plan.pipelines[0].steps;
        let tidegate_operators::spec::StepKind::Window(window) = &steps[0].kind else { panic!() };
        assert_eq!(window.quality.unwrap().every_us, None);
    }
}
