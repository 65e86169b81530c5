//! The configuration as it is written: TOML with positions, one table of keys, problems for people.
//!
//! No I/O: the caller reads the files and says what `${env:...}` and `${file:...}` stand for.

pub mod check;
mod docs;
pub(crate) mod keys;
pub mod kinds;
pub mod problem;
pub mod process;
pub mod references;
mod schema;
pub mod secret;
pub mod section;
pub mod tree;
pub mod units;

use std::path::PathBuf;

pub use docs::docs_markdown;
pub use problem::{Problem, Severity};
pub use schema::{process_schema, schema};
pub use secret::Secret;

use crate::plan::Plan;
use crate::resolve;

/// Reads the files of a plan (path for messages, and text) and resolves them.
///
/// # Errors
/// All problems of all files, errors and warnings, in the order of the files and lines.
pub fn load(
    files: &[(PathBuf, String)],
    resolve: references::Resolver<'_>,
) -> Result<Plan, Vec<Problem>> {
    let mut report = problem::Reporter::new(files);
    let mut trees = Vec::new();
    for file in 0..files.len() {
        if let Some(tree) = tree::parse(file, &mut report) {
            let start = problem::At { file, start: 0, end: 0 };
            check::component(&keys::PIPELINE, &tree, start, &mut report);
            trees.push(tree);
        }
    }
    let plan = resolve::plan(&trees, resolve, &mut report);
    let failed = report.failed();
    let problems = report.finish();
    match plan {
        Some(mut plan) if !failed => {
            plan.warnings = problems;
            plan.files = files.to_vec();
            Ok(plan)
        }
        _ => Err(problems),
    }
}

#[cfg(test)]
mod consequences;
#[cfg(test)]
mod tests;
