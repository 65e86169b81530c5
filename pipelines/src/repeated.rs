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
