//! `tidegate doctor data --salvage`: a new data folder of what is whole of a damaged one.
//!
//! Invariant: the damaged folder is never written, and its locks are held meanwhile, so that no
//! instance starts on it. The new folder must be empty. What could not be saved is told in numbers.

mod journal;
mod tables;

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tidegate_operators::Epoch;

use super::data::{Unsound, look_at_sessions};
use super::report::{Report, Verdicts};
use super::{OnProgress, counted, file_name};
use crate::checkpoint::CheckpointStore;
use crate::checkpoint::manifest::{FORMAT, Manifest, Unusable};
use crate::engine::{INSTANCE, name_anew, named};
use crate::outbox::examine::salvage as salvage_outbox;

const VERDICTS: Verdicts = [
    "everything was saved",
    "saved, as far as the warnings say",
    "not everything was saved: what is lost stands above",
];
/// Damage beyond this many places is only counted.
const TOLD_MAX: usize = 30;

/// From where to where.
#[derive(Clone, Debug)]
pub struct SalvageOptions {
    /// The damaged data folder.
    pub data: PathBuf,
    /// The new one; must be missing or empty.
    pub to: PathBuf,
}

/// The locks of a folder, held without making anything in it.
struct Locks {
    _held: Vec<File>,
}

fn lock(data: &Path) -> anyhow::Result<Locks> {
    let mut held = Vec::new();
    for part in ["journal", "checkpoints", "outbox"] {
        let path = data.join(part).join("lock");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).context(format!("cannot open {}", path.display())),
        };
        match file.try_lock() {
            Ok(()) => held.push(file),
            Err(TryLockError::WouldBlock) => {
                bail!("an instance is running on {}: stop it first", data.display())
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).context(format!("cannot lock {}", path.display()));
            }
        }
    }
    Ok(Locks { _held: held })
}

fn prepare(options: &SalvageOptions) -> anyhow::Result<()> {
    let (data, to) = (&options.data, &options.to);
    if !data.is_dir() {
        bail!("there is no folder {}", data.display());
    }
    // Asked before anything is made.
    let existing = to.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    if fs::canonicalize(existing)?.starts_with(fs::canonicalize(data)?) {
        bail!("the new folder must not lie inside of {}", data.display());
    }
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    let empty = fs::read_dir(to).context("cannot list the new folder")?.next().is_none();
    if !empty {
        bail!("{} is not empty: salvage writes into a new folder", to.display());
    }
    Ok(())
}

/// Saves what can be saved.
///
/// # Errors
/// An instance runs, the new folder is not empty, or a file system fails. Damage is no error.
pub async fn salvage(
    options: &SalvageOptions,
    progress: OnProgress<'_>,
) -> anyhow::Result<Vec<Report>> {
    prepare(options)?;
    let _locks = lock(&options.data)?;
    let mut report = Report::new(&format!("saved to {}", options.to.display()), VERDICTS);
    let saved = save_checkpoints(options, &mut report)?;
    let tables = tables::save(options, &mut report, &saved, progress).await?;
    let saved = match tables.are_gone {
        true => journal::begin_at_first(options, &mut report, saved)?,
        false => saved,
    };
    let told = save_outbox(options, &mut report)?;
    let told = save_sessions(options, &mut report)?.max(told);
    let known = journal::Known { state: saved.newest(), tables: tables.committed, told };
    journal::save(options, &mut report, &known, progress)?;
    save_rest(options, &mut report)?;
    report.note(
        "next",
        "look at it with the doctor, then go on from there; keep the old folder until all is well",
    );
    let to = options.to.display();
    if let Some(row) = report.rows.last_mut() {
        row.change = vec![
            format!("tidegate doctor --data {to}"),
            format!("tidegate run PIPELINES --data {to}{}", tables.option),
        ];
    }
    Ok(vec![report])
}

/// What the whole checkpoints say.
#[derive(Default)]
struct Saved {
    newest: Option<Manifest>,
}

impl Saved {
    /// Epoch and tick time of the newest one; zeros without one.
    fn newest(&self) -> (Epoch, i64) {
        self.newest.as_ref().map_or((0, 0), |manifest| (manifest.epoch, manifest.time_us))
    }
}

/// Copies whole checkpoints.
fn save_checkpoints(options: &SalvageOptions, report: &mut Report) -> anyhow::Result<Saved> {
    let dir = options.data.join("checkpoints");
    let mut saved = Saved::default();
    if !dir.is_dir() {
        return Ok(saved);
    }
    let store = CheckpointStore::open(options.to.join("checkpoints"))?;
    let mut bad = Vec::new();
    for one in CheckpointStore::look_at(&dir).survey()? {
        match one.found {
            Ok(mut checkpoint) => {
                saved.newest = Some(checkpoint.manifest.clone());
                // The new folder takes the tables as they are, or as they are saved.
                checkpoint.manifest.tables.clear();
                checkpoint.manifest.logged.clear();
                store.copy(&checkpoint)?;
            }
            Err(Unusable::OtherFormat(format)) => bail!(
                "{} is of format {format}, this version reads format {FORMAT}: salvage it with the \
                 version that wrote it",
                dir.join(&one.manifest).display()
            ),
            Err(Unusable::Damaged(reason)) => {
                bad.push(format!("left out: {}: {reason}", one.manifest));
            }
        }
    }
    let (newest, _) = saved.newest();
    let bad: Vec<&str> = bad.iter().map(String::as_str).collect();
    let text = match newest {
        0 => "none is whole".to_owned(),
        epoch => format!("the newest whole one is of epoch {epoch}"),
    };
    match bad.is_empty() {
        true => report.ok("checkpoints", &text),
        false => report.warn("checkpoints", &text, &bad),
    }
    Ok(saved)
}

/// Copies what is whole of the outbox, and wishes to send again; gives the newest epoch whose
/// alerts it has.
fn save_outbox(options: &SalvageOptions, report: &mut Report) -> anyhow::Result<Epoch> {
    let dir = options.data.join("outbox");
    if !dir.is_dir() {
        return Ok(0);
    }
    let to = options.to.join("outbox");
    fs::create_dir_all(&to)?;
    for entry in fs::read_dir(&dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "request") {
            fs::copy(&path, to.join(file_name(&path)))?;
        }
    }
    let saved = salvage_outbox(&dir, &to)?;
    let text = format!("{} saved", counted(saved.records, "record"));
    let places: Vec<String> = saved
        .damages
        .iter()
        .map(|b| format!("left out: bytes {} to {}: {}", b.offset, b.until, b.reason))
        .collect();
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    match places.is_empty() {
        true => report.ok("outbox", &text),
        false => {
            report.fail("outbox", &text, &places);
            report.means("a notification there is not sent, or sent again under the same id");
        }
    }
    if let Some(torn) = saved.torn {
        report.means(format!("{torn} bytes of a write that was under way at its end were cut off"));
    }
    Ok(saved.through)
}

/// Copies stores of sessions that are whole; gives the newest epoch whose alerts they have.
fn save_sessions(options: &SalvageOptions, report: &mut Report) -> anyhow::Result<Epoch> {
    let Ok(entries) = fs::read_dir(options.data.join("sessions")) else { return Ok(0) };
    let mut told = 0;
    let to = options.to.join("sessions");
    fs::create_dir_all(&to)?;
    for entry in entries {
        let path = entry?.path();
        let name = file_name(&path);
        if path.extension().is_none_or(|e| e != "redb") {
            continue;
        }
        match look_at_sessions(&path, &to) {
            Ok(through) => {
                told = through.max(told);
                fs::copy(&path, to.join(&name))?;
                report.ok("sessions", &format!("{name} saved"));
            }
            Err(Unsound::NotLookedAt(error)) => return Err(error).context(name),
            Err(Unsound::Damaged(reason)) => {
                report.fail("sessions", &format!("{name} is left out: {reason}"), &[]);
                report.means("sessions, retained and queued messages of the endpoint start empty");
            }
        }
    }
    Ok(told)
}

/// Copies what else lies in the folder: its name, what is known of brokers and files.
fn save_rest(options: &SalvageOptions, report: &mut Report) -> anyhow::Result<()> {
    const DONE: [&str; 5] = ["journal", "checkpoints", "outbox", "sessions", "tables"];
    // Rows that a start makes again, and what only means something while a process runs.
    const PASSING: [&str; 4] = ["spill", "recompute", "control.sock", "control.path"];
    for entry in fs::read_dir(&options.data)? {
        let path = entry?.path();
        let name = file_name(&path);
        if !DONE.contains(&name.as_str()) && !PASSING.contains(&name.as_str()) {
            copy_all(&path, &options.to.join(&name))
                .with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    if named(&options.to)?.is_some() {
        return Ok(());
    }
    // An empty one would keep its place.
    match fs::remove_file(options.to.join(INSTANCE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    // A start makes no name where there is a journal: here somebody has asked for it.
    name_anew(&options.to)?;
    report.warn("name", "the file `instance` is missing: tables will be added to anew", &[]);
    report.means("rows of epochs that the journal still has come a second time");
    Ok(())
}

/// Copies files and folders; a socket, say, is nothing that could be copied.
fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_file() {
        return fs::copy(from, to).map(drop);
    }
    if !from.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy_all(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
