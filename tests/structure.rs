//! The rules of the house that no compiler checks: what lies where, which crate may know which,
//! how long a file, a function and a line may be, and which words have no place in which crate.
//!
//! It reads the files that git tracks (new ones too, unless ignored), so a stray local file cannot
//! fail it. Exceptions are listed by name below, each list may only shrink: a file that no longer
//! needs its exception fails as well, until the entry is removed.

mod guarantees;
mod rules;
mod source;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::skipped;
use source::Source;

/// Longest file without its inline test modules, lines. One concept per file needs fewer.
const FILE_LINES_MAX: usize = 500;
/// Longest function from signature to closing brace, lines: what fits on one screen.
const FUNCTION_LINES_MAX: usize = 70;
/// Longest line, characters. rustfmt leaves strings and comments alone; this does not.
const LINE_CHARS_MAX: usize = 100;

/// Files that may be longer than [`FILE_LINES_MAX`], with the length they may have.
const LONG_FILES: &[(&str, usize)] = &[];
/// Functions that may be longer than [`FUNCTION_LINES_MAX`] (`file:function`), with their length.
const LONG_FUNCTIONS: &[(&str, usize)] = &[];

/// What the top level may hold besides dot-files.
const TOP_LEVEL: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "LICENSE",
    "README.md",
    "operators",
    "pipelines",
    "runtime",
    "sql",
    "tests",
    "benches",
];

/// The crates, with the crates of ours that each may depend on. Everything else is refused.
const EDGES: &[(&str, &[&str])] = &[
    ("operators", &[]),
    ("pipelines", &["operators"]),
    ("sql", &["operators", "pipelines"]),
    ("runtime", &["operators", "pipelines", "sql"]),
    (".", &["operators", "pipelines", "sql", "runtime"]),
];

/// Crates in which everything is a function of the plan and the journal.
const DETERMINISTIC: &[&str] = &["operators", "pipelines"];

/// Dependencies that bring I/O, clocks or chance; no deterministic crate names them. (Random input
/// for tests comes with proptest, which is a development dependency.)
const IMPURE_DEPENDENCIES: &[&str] = &[
    "tokio",
    "object_store",
    "reqwest",
    "axum",
    "hyper",
    "rumqttc-v4",
    "rumqttc-v5",
    "rand",
    "getrandom",
    "fastrand",
    "tempfile",
    "async-trait",
    "ring",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Paths of all files that git tracks or would track; `None`, said loudly, without git.
fn tracked() -> Option<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    let Some(output) = output.ok().filter(|o| o.status.success()) else {
        skipped("structure checks", "no git here, or this is no git work tree");
        return None;
    };
    let text = String::from_utf8(output.stdout).expect("paths are UTF-8");
    let mut paths: Vec<PathBuf> =
        text.split('\0').filter(|p| !p.is_empty()).map(Into::into).collect();
    paths.retain(|p| root().join(p).is_file());
    paths.sort();
    paths.dedup();
    assert!(paths.iter().any(|p| p.ends_with("tests/structure.rs")), "git does not list this file");
    Some(paths)
}

fn sources() -> Option<Vec<Source>> {
    let rust = |p: &PathBuf| p.extension().is_some_and(|e| e == "rs");
    Some(tracked()?.into_iter().filter(rust).map(|p| Source::read(root(), &p)).collect())
}

/// Fails with all problems at once.
fn assert_none(what: &str, problems: &[String]) {
    assert!(problems.is_empty(), "{what}:\n  {}\n", problems.join("\n  "));
}

/// Compares measured lengths with a limit and its list of exceptions.
fn ratchet(measured: &[(String, usize)], max: usize, exceptions: &[(&str, usize)]) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, lines) in measured {
        match exceptions.iter().find(|(n, _)| n == name) {
            None if *lines > max => problems.push(format!("{name}: {lines} lines, at most {max}")),
            Some((_, was)) if lines > was => {
                problems.push(format!("{name}: grew to {lines} lines, its exception is {was}"));
            }
            Some(_) if *lines <= max => {
                problems.push(format!("{name}: {lines} lines need no exception, remove it"));
            }
            _ => {}
        }
    }
    for (name, _) in exceptions {
        if !measured.iter().any(|(n, _)| n == name) {
            problems.push(format!("{name}: has an exception but does not exist"));
        }
    }
    problems
}

/// A point that no test comes to is a promise of `fault.rs` that nobody keeps.
#[test]
fn every_fault_point_is_reached_by_a_test() {
    let Some(sources) = sources() else { return };
    let Some(faults) = sources.iter().find(|s| s.path.ends_with("runtime/src/fault.rs")) else {
        panic!("fault.rs is gone")
    };
    let point = |line: &str| Some(line.strip_prefix("//! | `")?.split('`').next()?.to_owned());
    let points: Vec<String> = faults.lines().filter_map(|(_, line)| point(line)).collect();
    assert!(points.len() > 20, "{points:?}");
    let used = |point: &String| {
        let (listed, asked) = (format!("\"{point}\""), format!(":{point}:"));
        let has = |(_, line): (usize, &str)| line.contains(&listed) || line.contains(&asked);
        let mut tests = sources.iter().filter(|s| s.path.starts_with("tests/end_to_end"));
        tests.any(|source| source.lines().any(has))
    };
    let unused: Vec<String> = points.into_iter().filter(|point| !used(point)).collect();
    assert_none("fault points that no test names", &unused);
}

#[test]
fn the_top_level_holds_only_what_the_design_names() {
    let Some(paths) = tracked() else { return };
    let first = |p: &PathBuf| p.components().next().map(|c| c.as_os_str().to_string_lossy().into());
    let top: BTreeSet<String> = paths.iter().filter_map(first).collect();
    let stray: Vec<String> = top
        .into_iter()
        .filter(|n| !n.starts_with('.') && !TOP_LEVEL.contains(&n.as_str()))
        .collect();
    assert_none("not a part of the top level", &stray);
}

#[test]
fn crates_know_each_other_one_way_only() {
    let mut problems = Vec::new();
    for (folder, allowed) in EDGES {
        let path = root().join(folder).join("Cargo.toml");
        let text = std::fs::read_to_string(&path).expect("every crate has a manifest");
        let manifest: toml::Table = text.parse().expect("cargo has read it before");
        problems.extend(rules::edge_problems(folder, &manifest, allowed));
        if DETERMINISTIC.contains(folder) {
            problems.extend(rules::impure_dependencies(folder, &manifest, IMPURE_DEPENDENCIES));
        }
    }
    assert_none("dependencies against the design", &problems);
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let mut problems = Vec::new();
    for (folder, _) in EDGES {
        let text = std::fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = text.parse().unwrap();
        let inherits = manifest
            .get("lints")
            .and_then(|l| l.get("workspace"))
            .is_some_and(|w| w.as_bool() == Some(true));
        if !inherits {
            problems.push(format!("{folder}/Cargo.toml: [lints] workspace = true is missing"));
        }
    }
    assert_none("lints", &problems);
}

#[test]
fn files_functions_and_lines_are_short() {
    let Some(sources) = sources() else { return };
    let files: Vec<(String, usize)> = sources
        .iter()
        .filter(|s| !s.is_test_file())
        .map(|s| (s.name(), s.lines_without_tests()))
        .collect();
    let mut problems = ratchet(&files, FILE_LINES_MAX, LONG_FILES);
    let functions: Vec<(String, usize)> = sources.iter().flat_map(Source::functions).collect();
    problems.extend(ratchet(&functions, FUNCTION_LINES_MAX, LONG_FUNCTIONS));
    problems.extend(sources.iter().flat_map(|s| s.long_lines(LINE_CHARS_MAX)));
    assert_none("too long", &problems);
}

#[test]
fn every_file_says_first_what_it_is() {
    let Some(sources) = sources() else { return };
    let silent = sources.iter().filter(|s| !s.starts_with_doc()).map(Source::name);
    assert_none("does not start with `//!`", &silent.collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_to_be_done() {
    let Some(sources) = sources() else { return };
    let problems: Vec<String> = sources.iter().flat_map(rules::unfinished).collect();
    assert_none("left unfinished", &problems);
}

#[test]
fn deterministic_crates_read_no_clock_chance_or_environment() {
    let Some(sources) = sources() else { return };
    let inside = |s: &&Source| DETERMINISTIC.iter().any(|d| s.path.starts_with(d));
    let pure: Vec<&Source> = sources.iter().filter(inside).collect();
    assert!(!pure.is_empty(), "no source of {DETERMINISTIC:?} was found");
    let problems: Vec<String> = pure.into_iter().flat_map(rules::impurities).collect();
    assert_none("not deterministic", &problems);
}

#[test]
fn no_file_names_the_machine_it_was_written_on() {
    let Some(paths) = tracked() else { return };
    let mut problems = Vec::new();
    for path in paths.iter().filter(|p| p.as_path() != Path::new("Cargo.lock")) {
        let bytes = std::fs::read(root().join(path)).expect("git lists it");
        if let Ok(text) = String::from_utf8(bytes) {
            problems.extend(rules::machine_words(&path.display().to_string(), &text));
        }
    }
    assert_none("words of one machine", &problems);
}

#[test]
fn every_test_that_the_readme_names_exists() {
    let (Some(paths), Some(sources)) = (tracked(), sources()) else { return };
    let readme = std::fs::read_to_string(root().join("README.md")).expect("there is a README");
    let files: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    assert_none("the table of guarantees", &guarantees::problems(&readme, &sources, &files));
}
