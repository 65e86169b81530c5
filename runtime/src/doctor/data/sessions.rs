//! The endpoint's session stores: whether they open, and whether every page is as it was written.
//! A copy is looked at, because opening one may repair it; and only while no instance has it open.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use redb::Database;
use tidegate_operators::Epoch;

use super::super::report::Report;
use super::super::{bytes_text, file_name};
use super::{Scene, VERDICTS};
use crate::mqtt::alerts_through;

/// Larger stores are not copied.
const BYTES_MAX: u64 = 2 << 30;

/// And the newest epoch whose alerts they have; 0 if that is not known.
pub(super) fn examine(scene: &Scene<'_>) -> Option<(Report, Epoch)> {
    let dir = scene.data.join("sessions");
    let entries = std::fs::read_dir(&dir).ok()?;
    let mut files: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "redb"));
    files.sort();
    if files.is_empty() {
        return None;
    }
    let mut report = Report::new(&scene.subject("sessions"), VERDICTS);
    let mut told = 0;
    for path in files {
        let name = file_name(&path);
        let bytes = std::fs::metadata(&path).map_or(0, |meta| meta.len());
        if scene.running.is_some() {
            report.not_seen(&name, "in use: not looked at", &["run the doctor when it is stopped"]);
            continue;
        }
        if bytes > BYTES_MAX {
            report.not_seen(
                &name,
                &format!("{}: not copied to look at it", bytes_text(bytes)),
                &[],
            );
            continue;
        }
        (scene.progress)("sessions", 0, bytes);
        match look_at_copy(&path, &std::env::temp_dir()) {
            Ok(through) => {
                told = through.max(told);
                report.ok(&name, &format!("whole, {}", bytes_text(bytes)));
            }
            Err(Unsound::NotLookedAt(error)) => {
                report.not_seen(
                    &name,
                    &format!("not looked at: {error}"),
                    &["set TMPDIR elsewhere"],
                );
            }
            Err(Unsound::Damaged(reason)) => {
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
    Some((report, told))
}

/// Why a store is not known to be whole.
pub(in super::super) enum Unsound {
    /// It could not be copied, which says nothing of it.
    NotLookedAt(io::Error),
    /// What is wrong with it.
    Damaged(String),
}

/// Whether the store at `path` is whole, by a copy of it in `folder`; the newest epoch whose alerts
/// it has.
pub(in super::super) fn look_at_copy(path: &Path, folder: &Path) -> Result<Epoch, Unsound> {
    let salt = crate::journal::segment::new_salt(0);
    let copy = folder.join(format!("doctor-{}-{salt:016x}.tmp", std::process::id()));
    let copied = File::open(path).and_then(|mut from| {
        // Never something that is there already, whoever put it there.
        io::copy(&mut from, &mut OpenOptions::new().write(true).create_new(true).open(&copy)?)
    });
    let outcome = copied.map_err(Unsound::NotLookedAt).and_then(|_| {
        let damaged = |reason: String| Err(Unsound::Damaged(reason));
        let looked = Database::open(&copy).map(|mut store| {
            let whole = store.check_integrity();
            (whole, alerts_through(&store))
        });
        match looked {
            Ok((Ok(true), Ok(told))) => Ok(told),
            Ok((Ok(true), Err(error))) => damaged(error.to_string()),
            Ok((Ok(false), _)) => damaged("pages of it are damaged".to_owned()),
            Ok((Err(error), _)) => damaged(error.to_string()),
            Err(error) => damaged(error.to_string()),
        }
    });
    // Best effort: the name is never used again.
    let _ = std::fs::remove_file(&copy);
    outcome
}
