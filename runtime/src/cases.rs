//! `[[test]]` tables: runs each on the real graph and compares what came out.

use std::path::PathBuf;

use arrow::array::{Array, AsArray, RecordBatch};
use tidegate_pipelines::graph::REJECTS;
use tidegate_pipelines::{Plan, TestSpec, compare_rows};

use crate::engine::trial::{self, Edges};

/// Rows of rejects that are shown where a test expects another number of them.
const REJECTS_LISTED_MAX: usize = 10;

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
    let rows_of = |edge: &str| edges.get(edge).unwrap_or(&none);
    let mut problems = Vec::new();
    for (edge, expected) in &test.expect {
        let differences = compare_rows(expected, rows_of(edge));
        problems.extend(differences.into_iter().map(|d| format!("{edge}: {d}")));
    }
    for (edge, expected) in &test.count {
        let found: usize = rows_of(edge).iter().map(RecordBatch::num_rows).sum();
        if found as u64 != *expected {
            problems.push(format!("{edge}: {found} rows, expected {expected}"));
            if edge == REJECTS {
                problems.extend(listed(rows_of(REJECTS)));
            }
        }
    }
    // What is missing may have been refused before it got so far.
    let mut asked = test.expect.iter().map(|e| &e.0).chain(test.count.iter().map(|c| &c.0));
    if !problems.is_empty() && !asked.any(|edge| edge == REJECTS) {
        problems.extend(refused(rows_of(REJECTS)));
    }
    problems
}

/// Reason and detail of each row that was refused.
fn reasons(rejects: &[RecordBatch]) -> impl Iterator<Item = (&str, &str)> {
    rejects.iter().flat_map(|rows| {
        let text = |name: &str| rows.column_by_name(name).and_then(|c| c.as_string_opt::<i32>());
        let both = text("reason").zip(text("detail")).into_iter();
        both.flat_map(|(reason, detail)| {
            (0..reason.len()).map(|row| (reason.value(row), detail.value(row)))
        })
    })
}

/// One line for each of the first rows that were refused.
fn listed(rejects: &[RecordBatch]) -> Vec<String> {
    let line = |(reason, detail)| format!("{REJECTS}: {reason}: {detail}");
    let mut lines: Vec<String> = reasons(rejects).take(REJECTS_LISTED_MAX).map(line).collect();
    if let more @ 1.. = reasons(rejects).count() - lines.len() {
        lines.push(format!("{REJECTS}: and {more} more"));
    }
    lines
}

/// One line for each reason for which rows were refused, with the first of them.
fn refused(rejects: &[RecordBatch]) -> Vec<String> {
    let mut kinds: Vec<(&str, usize, &str)> = Vec::new();
    for (reason, detail) in reasons(rejects) {
        match kinds.iter_mut().find(|(known, ..)| *known == reason) {
            Some((_, count, _)) => *count += 1,
            None => kinds.push((reason, 1, detail)),
        }
    }
    let line = |(reason, count, detail): (&str, usize, &str)| match count {
        1 => format!("{REJECTS}: one row of which the test says nothing: {reason}: {detail}"),
        _ => format!(
            "{REJECTS}: {count} rows of which the test says nothing, the first: {reason}: {detail}"
        ),
    };
    kinds.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_test_that_fails_says_what_was_refused() {
        let text = r#"
name = "p"
[source]
type = "endpoint"
listen = "127.0.0.1:1"
topics = ["t/{device}"]
[reading]
device = "{device}"
time = "ts"
[reading.fields]
v = { type = "float64", max = 10 }
[[test]]
name = "t"
input = [{ topic = "t/a", every = "1s", count = 3, payload = '{"ts":{ms},"v":11}' }]
count.readings = 3
"#;
        let files = [("p.toml".into(), text.to_owned())];
        let plan = tidegate_pipelines::load(&files, &|_, _| Err(String::new())).unwrap();
        let problems = run(&plan).unwrap().swap_remove(0).problems;
        assert_eq!(problems[0], "readings: 0 rows, expected 3");
        assert_eq!(problems.len(), 2, "{problems:?}");
        let rest = "rejects: 3 rows of which the test says nothing, the first: range: `v` is 11";
        assert!(problems[1].starts_with(rest), "{problems:?}");
        let many = text.replace("count = 3", "count = 12");
        let files = [("p.toml".into(), many.replace("count.readings = 3", "count.rejects = 0"))];
        let plan = tidegate_pipelines::load(&files, &|_, _| Err(String::new())).unwrap();
        let problems = run(&plan).unwrap().swap_remove(0).problems;
        assert_eq!(problems[0], "rejects: 12 rows, expected 0");
        assert!(problems[1].starts_with("rejects: range: `v` is 11"), "{problems:?}");
        assert_eq!((problems.len(), problems[11].as_str()), (12, "rejects: and 2 more"));
    }
}
