//! `[[test]]` tables: runs each on the real graph and compares what came out.

use std::path::PathBuf;

use arrow::array::RecordBatch;
use tidegate_pipelines::{Plan, TestSpec, compare_rows};

use crate::engine::trial::{self, Edges};

/// How one test ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// Where it is written.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// What differs from what was expected; empty if it passed.
    pub problems: Vec<String>,
}

/// Runs all tests of a plan, each in a graph of its own.
///
/// # Errors
/// An operator failed, which is a bug and not a failed test.
pub fn run(plan: &Plan) -> anyhow::Result<Vec<Outcome>> {
    plan.tests.iter().map(|test| run_one(plan, test)).collect()
}

/// Runs one test in a graph of its own. Tests are small, and results do not depend on the number
/// of workers, so one will do.
///
/// # Errors
/// See [`run`].
pub fn run_one(plan: &Plan, test: &TestSpec) -> anyhow::Result<Outcome> {
    let edges = trial::run(&plan.pipelines[test.pipeline], &test.inputs, 1)?;
    Ok(Outcome {
        name: test.name.clone(),
        file: test.file.clone(),
        line: test.line,
        problems: problems(test, &edges),
    })
}

/// What differs between the rows of a run and what a test expects.
pub fn problems(test: &TestSpec, edges: &Edges) -> Vec<String> {
    let none: Vec<RecordBatch> = Vec::new();
    let rows_of = |edge: &String| edges.get(edge).unwrap_or(&none);
    let mut problems = Vec::new();
    for (edge, expected) in &test.expect {
        let differences = compare_rows(expected, rows_of(edge));
        problems.extend(differences.into_iter().map(|d| format!("{edge}: {d}")));
    }
    for (edge, expected) in &test.count {
        let found: usize = rows_of(edge).iter().map(RecordBatch::num_rows).sum();
        if found as u64 != *expected {
            problems.push(format!("{edge}: {found} rows, expected {expected}"));
        }
    }
    problems
}
