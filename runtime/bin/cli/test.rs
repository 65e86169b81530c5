//! `tidegate test`: the `[[test]]` tables of pipeline files, in process, on the same graph.

use arrow::array::RecordBatch;
use tidegate_pipelines::{Plan, TestSpec, compare_rows};
use tidegate_runtime::engine::trial;

use super::args::PathArgs;
use super::failure::Failure;
use super::{Outcome, files, print};

/// Tests are small, and results do not depend on the number of workers.
const WORKERS: usize = 1;

pub(super) fn test(args: &PathArgs) -> Outcome {
    let plan = files::load(&args.paths)?;
    let mut failed = 0;
    for test in &plan.tests {
        let problems = problems(&plan, test)?;
        let mark = if problems.is_empty() { "ok  " } else { "FAIL" };
        let mut text = format!("{mark} {} ({}:{})", test.name, test.file.display(), test.line);
        for problem in &problems {
            text.push_str("\n     ");
            text.push_str(&problem.replace('\n', "\n     "));
        }
        failed += usize::from(!problems.is_empty());
        print(&text)?;
    }
    print(&format!("{} passed, {failed} failed", plan.tests.len() - failed))?;
    if failed > 0 { Err(Failure::Reported) } else { Ok(()) }
}

/// What a test expected and did not get.
fn problems(plan: &Plan, test: &TestSpec) -> anyhow::Result<Vec<String>> {
    let edges = trial::run(&plan.pipelines[test.pipeline], &test.inputs, WORKERS)?;
    let rows_of = |edge: &str| edges.get(edge).map_or(&[] as &[RecordBatch], Vec::as_slice);
    let mut problems = Vec::new();
    for (edge, expected) in &test.expect {
        let differences = compare_rows(expected, rows_of(edge));
        problems.extend(differences.into_iter().map(|d| format!("{edge}: {d}")));
    }
    for (edge, expected) in &test.count {
        let found: u64 = rows_of(edge).iter().map(|b| b.num_rows() as u64).sum();
        if found != *expected {
            problems.push(format!("{edge}: expected {expected} rows, got {found}"));
        }
    }
    Ok(problems)
}
