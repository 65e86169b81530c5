//! Which windows are told of the readings that `[reading.dedup]` dropped: those of the readings
//! that it leaves, with nothing but stateless steps in between. What these make of a reading does
//! not depend on any other, so a repeated one goes the way that the first one went.

use tidegate_operators::expression::StatelessStep;
use tidegate_operators::spec::{PipelineSpec, StepKind};

use crate::graph::READINGS;
use crate::recompute::{Path, maker, readings_before};

/// Notes in a pipeline which windows count the readings that are dropped, and whether they come out
/// to be counted.
pub(crate) fn note(p: &mut PipelineSpec) {
    if p.dedup.is_none() {
        return;
    }
    let reads = |from: &str| readings_before(p, from) == READINGS;
    let told: Vec<bool> = p.steps.iter().map(|step| reads(&step.from)).collect();
    let mut marks = false;
    for (step, is_told) in p.steps.iter_mut().zip(told) {
        if let StepKind::Window(window) = &mut step.kind
            && let Some(quality) = &mut window.quality
        {
            quality.repeated = is_told;
            marks |= is_told;
        }
    }
    p.dedup.iter_mut().for_each(|dedup| dedup.marks = marks);
}

/// The steps from the readings to an edge, each with the branch that leads there, if none of them
/// keeps state.
pub(crate) fn path(p: &PipelineSpec, edge: &str) -> Option<Path> {
    if edge == READINGS {
        return Some(Path::new());
    }
    let (step, branch) = maker(p, edge)?;
    let mut path = path(p, &step.from)?;
    let input = match maker(p, &step.from) {
        Some((before, _)) => before.output.clone(),
        None => p.readings_schema(),
    };
    path.push((StatelessStep::new(&step.kind, input, step.output.clone())?, branch));
    Some(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::testing::{HEAD, plan};

    const STEPS: &str = r#"
[[registry]]
name = "places"
path = "places.csv"
key = ["device"]
columns = { device = "string", site = "string" }
[[step]]
name = "warm"
type = "filter"
where = "v > 0"
[[step]]
name = "twice"
type = "derive"
from = "warm"
set = { w = "v * 2" }
[[step]]
name = "parts"
type = "route"
from = "twice"
branches = { low = "w < 9", high = "true" }
[[step]]
name = "placed"
type = "enrich"
from = "warm"
registry = "places"
"#;

    /// A pipeline with windows over these edges, and which of them are told.
    fn told(dedup: &str, over: &[&str], quality: bool) -> (bool, Vec<(String, bool)>) {
        let window = |from: &&str| {
            format!(
                "[[step]]\nname = \"of_{from}\"\ntype = \"window\"\nfrom = \"{from}\"\n\
                 every = \"1m\"\nlate = \"table\"\nquality = {quality}\n\
                 select = {{ n = \"count(*)\" }}\n[[table]]\nfrom = \"of_{from}\"\n"
            )
        };
        let head = HEAD.replace("[reading.fields]", &format!("{dedup}\n[reading.fields]"));
        let windows: String = over.iter().map(window).collect();
        let plan = plan(format!("{head}{STEPS}{windows}")).unwrap();
        let p = &plan.pipelines[0];
        let windows = p.steps.iter().filter_map(|step| match &step.kind {
            StepKind::Window(window) => {
                let is_told = window.quality.is_some_and(|quality| quality.repeated);
                assert_eq!(path(p, &step.from).is_some() && quality && p.dedup.is_some(), is_told);
                Some((step.from.clone(), is_told))
            }
            _ => None,
        });
        (p.dedup.as_ref().is_some_and(|dedup| dedup.marks), windows.collect())
    }

    #[test]
    fn windows_are_told_behind_steps_without_state() {
        let all = ["readings", "warm", "twice", "low", "high", "placed"];
        let (marks, windows) = told("dedup = {}", &all, true);
        let not: Vec<&str> = windows.iter().filter(|w| !w.1).map(|w| w.0.as_str()).collect();
        assert_eq!((marks, windows.len(), not), (true, all.len(), vec!["placed"]));
        let is_none = |(marks, windows): (bool, Vec<(String, bool)>)| {
            assert!(!windows.is_empty());
            !marks && windows.iter().all(|w| !w.1)
        };
        assert!(is_none(told("", &all, true)), "nothing is dropped");
        assert!(is_none(told("dedup = {}", &all, false)), "nobody asks");
        assert!(is_none(told("dedup = {}", &["placed"], true)), "nobody is told");
    }
}
