//! Pipeline files from the command line, and what `${env:}` and `${file:}` stand for.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tidegate_pipelines::config::Severity;
use tidegate_pipelines::config::process::PROCESS_FILE_NAME;
use tidegate_pipelines::config::references::{UNSET, unset};
use tidegate_pipelines::{Plan, Problem};

use super::failure::Failure;

/// A pipeline is a page or two of text; this much is a wrong file.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Longest secret that `${file:}` reads.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// Reads and resolves all files; problems are printed to standard error.
pub(super) fn load(paths: &[PathBuf]) -> Result<Plan, Failure> {
    let files = read(paths)?;
    resolve(&files, &reference)
}

/// The same as [`load_to_look_at`], with all there is to say of warnings.
pub(super) fn load_to_check(paths: &[PathBuf]) -> Result<(Plan, Vec<String>), Failure> {
    let (plan, missing) = load_lacking(paths)?;
    for warning in &plan.warnings {
        eprintln!("{warning}\n");
    }
    Ok((plan, missing))
}

/// Reads and resolves all files for commands that do not run them: a reference that this machine
/// lacks is no problem there. Returns the plan and why references are missing, each once.
pub(super) fn load_to_look_at(paths: &[PathBuf]) -> Result<(Plan, Vec<String>), Failure> {
    let (plan, missing) = load_lacking(paths)?;
    warn_briefly(&plan.warnings);
    Ok((plan, missing))
}

fn load_lacking(paths: &[PathBuf]) -> Result<(Plan, Vec<String>), Failure> {
    let files = read(paths)?;
    let missing = RefCell::new(BTreeSet::new());
    let known = |kind: &str, name: &str| {
        Ok(reference(kind, name).unwrap_or_else(|why| {
            missing.borrow_mut().insert(why);
            UNSET.to_owned()
        }))
    };
    let plan = tidegate_pipelines::load(&files, &known).map_err(|problems| tell(&problems))?;
    Ok((plan, missing.into_inner().into_iter().collect()))
}

/// Resolves files as they were when they ran, for what needs neither their secrets nor their
/// addresses; none if they cannot be resolved any more.
pub(super) fn load_earlier(files: &[(PathBuf, String)]) -> Option<Plan> {
    let known =
        |kind: &str, name: &str| Ok(reference(kind, name).unwrap_or_else(|_| unset(kind, name)));
    tidegate_pipelines::load(files, &known).ok()
}

/// Reads and resolves all files; problems are the error's text.
pub(super) fn load_quietly(paths: &[PathBuf]) -> Result<Plan, String> {
    let files = read(paths).map_err(|error| format!("error: {error:#}"))?;
    tidegate_pipelines::load(&files, &reference)
        .map_err(|problems| problems.iter().map(|problem| format!("{problem}\n\n")).collect())
}

/// Resolves files that were read already.
pub(super) fn resolve(
    files: &[(PathBuf, String)],
    reference: &dyn Fn(&str, &str) -> Result<String, String>,
) -> Result<Plan, Failure> {
    let plan = tidegate_pipelines::load(files, reference).map_err(|problems| tell(&problems))?;
    warn_briefly(&plan.warnings);
    Ok(plan)
}

/// A line for each warning: it was read in full when the plan was checked.
fn warn_briefly(warnings: &[Problem]) {
    for warning in warnings {
        eprintln!("{}", brief(warning));
    }
}

fn brief(warning: &Problem) -> String {
    let (file, line, message) = (warning.file.display(), warning.line, &warning.message);
    format!("warning: {file}:{line}: {message}; `tidegate check` says more")
}

/// Prints problems to standard error.
pub(super) fn tell(problems: &[Problem]) -> Failure {
    for problem in problems {
        eprintln!("{problem}\n");
    }
    eprintln!("{} found", count(problems));
    Failure::Reported
}

/// How many of them are errors, and how many warnings.
fn count(problems: &[Problem]) -> String {
    let counted = |n: usize, noun| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
    let errors = problems.iter().filter(|p| p.severity == Severity::Error).count();
    let errors_counted = counted(errors, "problem");
    match problems.len() - errors {
        0 => errors_counted,
        warnings => format!("{errors_counted} and {}", counted(warnings, "warning")),
    }
}

/// The texts of files and of the `*.toml` files of folders, but for the settings of the process, in
/// the order of names, each once.
pub(super) fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            let inside = toml_files(path)?;
            anyhow::ensure!(!inside.is_empty(), "there is no *.toml file in {}", path.display());
            files.extend(inside);
        } else {
            files.push(path.clone());
        }
    }
    let mut texts: Vec<(PathBuf, String)> = Vec::with_capacity(files.len());
    for path in files {
        if texts.iter().all(|(known, _)| *known != path) {
            let text = read_text(&path, FILE_BYTES_MAX)
                .with_context(|| format!("cannot read {}", path.display()))?;
            texts.push((path, text));
        }
    }
    Ok(texts)
}

fn toml_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let cannot = || format!("cannot read the folder {}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        let settings = path.file_name().is_some_and(|name| name == PROCESS_FILE_NAME);
        if path.extension().is_some_and(|e| e == "toml") && path.is_file() && !settings {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_text(path: &Path, bytes_max: u64) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    anyhow::ensure!(bytes.len() as u64 <= bytes_max, "it is longer than {bytes_max} bytes");
    String::from_utf8(bytes).map_err(|e| anyhow::anyhow!("it is not UTF-8 text: {e}"))
}

/// What a reference stands for. The error never contains the value.
pub(super) fn reference(kind: &str, name: &str) -> Result<String, String> {
    match kind {
        "env" => std::env::var(name).map_err(|e| match e {
            std::env::VarError::NotPresent => {
                format!("the environment variable {name} is not set")
            }
            std::env::VarError::NotUnicode(_) => {
                format!("the environment variable {name} is not UTF-8 text")
            }
        }),
        "file" => {
            let text = read_text(Path::new(name), SECRET_BYTES_MAX)
                .map_err(|e| format!("cannot read the file {name}: {e:#}"))?;
            let line = text.strip_suffix('\n').unwrap_or(&text);
            Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
        }
        other => Err(format!("`{other}` is not known; use `env` or `file`")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn folders_give_their_toml_files_in_order_and_each_file_once() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.toml", "a.toml", "tidegate.toml", "note.txt"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let paths = [folder.path().to_owned(), folder.path().join("a.toml")];
        let texts: Vec<String> = read(&paths).unwrap().into_iter().map(|(_, t)| t).collect();
        assert_eq!(texts, ["a.toml", "b.toml"]);
        let empty = tempfile::tempdir().unwrap();
        let error = read(&[empty.path().to_owned()]).unwrap_err();
        assert!(error.to_string().contains("no *.toml file"), "{error}");
        let error = read(&[folder.path().join("c.toml")]).unwrap_err();
        assert!(error.to_string().contains("c.toml"), "{error}");
    }

    #[test]
    fn missing_references_stop_only_those_who_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.toml");
        let text = r#"
            name = "p"
            [source]
            type = "file"
            path = "readings.ndjson"
            [reading]
            device = "device"
            time = "ts"
            [reading.fields]
            t = "float64"
            [[alert]]
            name = "hot"
            from = "readings"
            fire = "t > 8"
            notify = ["ops"]
            [notify.ops]
            type = "webhook"
            url = "${env:TIDEGATE_NO_SUCH_URL}"
            secret = "${file:/tidegate/no/such/secret}"
        "#;
        std::fs::write(&path, text).unwrap();
        let paths = [path];
        let (plan, missing) = load_to_look_at(&paths).unwrap();
        assert_eq!(plan.notifications[0].url.expose(), UNSET);
        assert_eq!(missing.len(), 2, "{missing:?}");
        assert!(missing[0].contains("/tidegate/no/such/secret"), "{missing:?}");
        assert!(missing[1].contains("TIDEGATE_NO_SUCH_URL"), "{missing:?}");
        assert!(load(&paths).is_err());
    }

    #[test]
    fn warnings_are_no_problems_and_have_one_line_where_nothing_is_checked() {
        let mut problem = Problem {
            file: "p.toml".into(),
            line: 7,
            column: 1,
            width: 1,
            source_line: "x = 1".to_owned(),
            message: "so it is".to_owned(),
            hint: Some("do that".to_owned()),
            note: None,
            severity: Severity::Warning,
        };
        let told = "warning: p.toml:7: so it is; `tidegate check` says more";
        assert_eq!(brief(&problem), told);
        let warning = problem.clone();
        problem.severity = Severity::Error;
        assert_eq!(count(&[problem.clone()]), "1 problem");
        assert_eq!(count(&[problem.clone(), warning.clone()]), "1 problem and 1 warning");
        let all = [problem.clone(), warning.clone(), problem, warning];
        assert_eq!(count(&all), "2 problems and 2 warnings");
    }

    #[test]
    fn references_name_what_is_missing_and_lose_one_line_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "s3cret\n\r\n").unwrap();
        assert_eq!(reference("file", path.to_str().unwrap()).unwrap(), "s3cret\n");
        std::fs::write(&path, vec![b'x'; SECRET_BYTES_MAX as usize + 1]).unwrap();
        assert!(reference("file", path.to_str().unwrap()).unwrap_err().contains("longer"));
        let error = reference("env", "TIDEGATE_NO_SUCH_VARIABLE").unwrap_err();
        assert!(error.contains("TIDEGATE_NO_SUCH_VARIABLE is not set"), "{error}");
        assert!(reference("vault", "x").is_err());
    }
}
