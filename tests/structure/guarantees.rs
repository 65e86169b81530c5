//! The README's table of guarantees names tests: each of them has to exist, or the table promises
//! what nobody checks.

use super::source::Source;

/// The head of the table; its third column names tests.
const HEAD: &str = "| Fault |";
const TESTS: usize = 3;

/// What the table names and the sources do not have; also a table without names.
pub(crate) fn problems(readme: &str, sources: &[Source], files: &[String]) -> Vec<String> {
    let rows = readme.lines().skip_while(|l| !l.starts_with(HEAD)).skip(2);
    let rows: Vec<&str> = rows.take_while(|l| l.starts_with('|')).collect();
    let mut problems = Vec::new();
    let mut names = 0;
    for row in &rows {
        let fault = row.split('|').nth(1).unwrap_or_default().trim();
        let cell = row.split('|').nth(TESTS).unwrap_or_default();
        for name in cell.split('`').skip(1).step_by(2) {
            names += 1;
            let is_file = name.ends_with(".toml") && files.iter().any(|f| f.ends_with(name));
            if !is_file && !sources.iter().any(|s| has(s, name)) {
                problems.push(format!("README.md: `{name}`, beside \"{fault}\", is no test"));
            }
        }
    }
    if names == 0 {
        problems.push(format!("README.md: {} rows after `{HEAD}` name no test", rows.len()));
    }
    problems
}

/// Whether the source has this test or module of tests, as `module::tests::name`; three dots stand
/// for modules that are left out.
fn has(source: &Source, name: &str) -> bool {
    let path: Vec<&str> = name.trim_start_matches("...").split("::").collect();
    let Some((last, modules)) = path.split_last() else { return false };
    let file = source.name();
    let parts: Vec<&str> = file.split('/').map(|p| p.trim_end_matches(".rs")).collect();
    if !modules.iter().all(|m| *m == "tests" || parts.contains(m)) {
        return false;
    }
    let function = format!("fn {last}(");
    let module = format!("mod {last}");
    let is_module = parts.contains(last) && source.lines().any(|(_, l)| l.contains("#[test]"));
    is_module || source.lines().any(|(_, l)| l.contains(&function) || l.starts_with(&module))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_name_that_no_test_has_is_found() {
        let table = "| Fault | What | Shown by | Not yet |\n|---|---|---|---|\n\
            | a kill | all | `kill::it_dies`, `...lives`, `kill::tests` (all) | - |\n";
        let source = Source::new(
            Path::new("runtime/src/kill/tests.rs"),
            "//! x\n#[test]\nfn it_dies() {}\n",
        );
        let found = problems(table, &[source], &[]);
        assert_eq!(found, ["README.md: `...lives`, beside \"a kill\", is no test"]);
        assert_eq!(problems("no table", &[], &[]).len(), 1);
    }
}
