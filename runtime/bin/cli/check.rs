//! `tidegate check` and `tidegate explain`: what a plan is, without running it.

use super::args::{ExplainArgs, PathArgs};
use super::{Outcome, files, print};

pub(super) fn check(args: &PathArgs) -> Outcome {
    let (plan, missing) = files::load_to_look_at(&args.paths)?;
    for why in missing {
        eprintln!("warning: {why}; `tidegate run` needs it");
    }
    let tables: usize = plan.pipelines.iter().map(|p| p.tables.len()).sum();
    let alerts: usize = plan.pipelines.iter().map(|p| p.alerts.len()).sum();
    print(&format!(
        "ok: {} pipelines, {} sources, {tables} tables, {alerts} alerts, {} tests",
        plan.pipelines.len(),
        plan.sources.len(),
        plan.tests.len()
    ))
}

pub(super) fn explain(args: &ExplainArgs) -> Outcome {
    let (plan, _) = files::load_to_look_at(&args.paths.paths)?;
    let text = match args.dot {
        true => tidegate_pipelines::explain_dot(&plan),
        false => tidegate_pipelines::explain(&plan),
    };
    print(&text)
}
