//! The endpoint's session stores: whether they open, and whether every page is as it was written.
//! A copy is looked at, because opening one may repair it; and only while no instance has it open.

use std::path::Path;

use redb::Database;

use super::super::report::Report;
use super::super::{bytes_text, file_name};
use super::{Scene, VERDICTS};

/// Larger stores are not copied.
const BYTES_MAX: u64 = 2 << 30;

pub(super) fn examine(scene: &Scene<'_>) -> Option<Report> {
    let dir = scene.data.join("sessions");
    let entries = std::fs::read_dir(&dir).ok()?;
    let mut files: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "redb"));
    files.sort();
    if files.is_empty() {
        return None;
    }
    let mut report = Report::new(&scene.subject("sessions"), VERDICTS);
    for path in files {
        let name = file_name(&path);
        let bytes = std::fs::metadata(&path).map_or(0, |meta| meta.len());
        if scene.running.is_some() {
            report.check(&name, "in use: not looked at", &["run the doctor when it is stopped"]);
            continue;
        }
        if bytes > BYTES_MAX {
            report.check(&name, &format!("{}: not copied to look at it", bytes_text(bytes)), &[]);
            continue;
        }
        (scene.progress)("sessions", 0, bytes);
        match look_at_copy(&path) {
            Ok(()) => report.ok(&name, &format!("whole, {}", bytes_text(bytes))),
            Err(reason) => {
                let away = format!("move {} elsewhere, or restore it from a copy", path.display());
                report.fail(&name, &reason, &[&away, &scene.salvage()]);
                report.means(
                    "the endpoint does not start with it; without it sessions, retained and \
                     queued messages start empty, readings are not affected",
                );
            }
        }
        report.at(path.display().to_string(), None, None);
    }
    Some(report)
}

/// Whether the store at `path` is whole.
///
/// # Errors
/// What is wrong with it.
pub(in super::super) fn look_at_copy(path: &Path) -> Result<(), String> {
    let copy = std::env::temp_dir().join(format!("tidegate-doctor-{}.redb", std::process::id()));
    let outcome = std::fs::copy(path, &copy)
        .map_err(|error| format!("cannot copy it to {}: {error}", copy.display()))
        .and_then(|_| {
            let mut store = Database::open(&copy).map_err(|error| error.to_string())?;
            match store.check_integrity() {
                Ok(true) => Ok(()),
                Ok(false) => Err("pages of it are damaged".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        });
    // Best effort: it lies in the folder for temporary files.
    let _ = std::fs::remove_file(&copy);
    outcome
}
