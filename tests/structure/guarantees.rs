//! The README's table of guarantees names tests: each of them has to exist, or the table promises
//! what nobody checks.

use super::source::Source;

/// The head of the table; its third column names tests.
const HEAD: &str = "| Fault |";
const TESTS: usize = 3;

/// What the table names and the sources do not have; also each row without names, and no table.
pub(crate) fn problems(readme: &str, sources: &[Source], files: &[String]) -> Vec<String> {
    let rows = readme.lines().skip_while(|l| !l.starts_with(HEAD)).skip(2);
    let rows: Vec<&str> = rows.take_while(|l| l.starts_with('|')).collect();
    if rows.is_empty() {
        return vec![format!("README.md: there is no table that begins with `{HEAD}`")];
    }
    let mut problems = Vec::new();
    for row in rows {
        let fault = row.split('|').nth(1).unwrap_or_default().trim();
        let cell = row.split('|').nth(TESTS).unwrap_or_default();
        if !cell.contains('`') {
            problems.push(format!("README.md: nothing is named beside \"{fault}\""));
        }
        for name in cell.split('`').skip(1).step_by(2) {
            let is_file = name.ends_with(".toml") && files.iter().any(|f| f.ends_with(name));
            if !is_file && !sources.iter().any(|s| has(s, name)) {
                problems.push(format!("README.md: `{name}`, beside \"{fault}\", is no test"));
            }
        }
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
    let lines: Vec<&str> = source.lines().map(|(_, line)| line).collect();
    let is_module = parts.contains(last) && lines.iter().any(|line| is_test(line));
    let is_run = |at: usize| {
        let above = lines[..at].iter().rev();
        let attributes: Vec<&&str> = above.take_while(|l| l.trim().starts_with("#[")).collect();
        attributes.iter().any(|line| is_test(line))
            && !attributes.iter().any(|line| line.contains("#[ignore"))
    };
    let functions = lines.iter().enumerate().filter(|(_, line)| line.contains(&function));
    is_module
        || functions.map(|(at, _)| at).any(is_run)
        || lines.iter().any(|line| line.starts_with(&module))
}

fn is_test(line: &str) -> bool {
    line.trim().starts_with("#[test]") || line.trim().starts_with("#[tokio::test")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_name_that_no_test_has_is_found() {
        let table = "| Fault | What | Shown by | Not yet |\n|---|---|---|---|\n\
            | a kill | all | `kill::it_dies`, `...lives`, `kill::tests` (all) | - |\n\
            | two | all | `kill::helper` | - |\n";
        let source = Source::new(
            Path::new("runtime/src/kill/tests.rs"),
            "//! x\n#[test]\nfn it_dies() {}\n#[test]\n#[ignore]\nfn lives() {}\nfn helper() {}\n",
        );
        let found = problems(table, &[source], &[]);
        let said = |name: &str, fault: &str| {
            format!("README.md: `{name}`, beside \"{fault}\", is no test")
        };
        assert_eq!(found, [said("...lives", "a kill"), said("kill::helper", "two")]);
        assert_eq!(problems("no table", &[], &[]).len(), 1);
    }

    #[test]
    fn a_row_without_a_test_is_found_beside_rows_that_have_one() {
        let table = "| Fault | What | Shown by | Not yet |\n|---|---|---|---|\n\
            | a kill | all | `kill::it_dies` | - |\n\
            | power loss | all | - | `kill::it_dies` |\n\
            | a cut | all | `golden/cut.toml` | - |\n\n| other | | | |\n";
        let source = Source::new(Path::new("runtime/src/kill.rs"), "#[test]\nfn it_dies() {}\n");
        let found = problems(table, &[source], &["tests/golden/cut.toml".into()]);
        assert_eq!(found, ["README.md: nothing is named beside \"power loss\""]);
    }
}
