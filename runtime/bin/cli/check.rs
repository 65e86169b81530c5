//! `tidegate check` and `tidegate schema`.

use super::args::PathArgs;
use super::{Outcome, files, print};

pub(super) fn check(args: &PathArgs) -> Outcome {
    let plan = files::load(&args.paths)?;
    let tables: usize = plan.pipelines.iter().map(|p| p.tables.len()).sum();
    let alerts: usize = plan.pipelines.iter().map(|p| p.alerts.len()).sum();
    print(&format!(
        "ok: {} pipelines, {} sources, {tables} tables, {alerts} alerts, {} tests",
        plan.pipelines.len(),
        plan.sources.len(),
        plan.tests.len()
    ))
}

/// The JSON Schema of a pipeline file.
pub(super) fn schema() -> String {
    format!("{:#}", tidegate_pipelines::schema())
}
