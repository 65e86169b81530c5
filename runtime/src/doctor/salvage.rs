//! `tidegate doctor data --salvage`: a new data folder of what is whole of a damaged one.
//!
//! Invariant: the damaged folder is never written, and its locks are held meanwhile, so that no
//! instance starts on it. The new folder must be empty. What could not be saved is told in numbers.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tidegate_operators::Epoch;
use tidegate_sql::examine::{Rebuilt, rebuild, tables};
use tidegate_sql::{Store, tables_of};

use super::data::{look_at_sessions, lost_text};
use super::report::{Report, Verdicts};
use super::{OnProgress, bytes_text, counted, file_name};
use crate::checkpoint::CheckpointStore;
use crate::checkpoint::manifest::{FORMAT, Manifest};
use crate::journal::examine::Lost;
use crate::journal::salvage::{Range, salvage as salvage_journal};
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
    let committed = save_tables(options, &mut report, progress).await?;
    let newest = save_checkpoints(options, &mut report)?;
    save_journal(options, &mut report, newest, committed, progress)?;
    save_outbox(options, &mut report)?;
    save_sessions(options, &mut report)?;
    save_rest(options, &mut report)?;
    report.note(
        "next",
        "look at it with the doctor, then go on from there; keep the old folder until all is well",
    );
    let to = options.to.display();
    if let Some(row) = report.rows.last_mut() {
        row.change = vec![
            format!("tidegate doctor --data {to}"),
            format!("tidegate run PIPELINES --data {to}"),
        ];
    }
    Ok(vec![report])
}

/// Rebuilds the tables in the data folder; gives the newest epoch that this instance committed.
async fn save_tables(
    options: &SalvageOptions,
    report: &mut Report,
    progress: OnProgress<'_>,
) -> anyhow::Result<Epoch> {
    let url = tables_of(&options.data)?;
    let inside = Store::local_folder(&url)?.filter(|f| *f == options.data.join("tables"));
    let Some(folder) = inside else {
        let text = format!("they lie in {url} and stay there");
        report.note("tables", &text);
        let store = Store::open(&url)?;
        return committed_elsewhere(&store, &options.data).await;
    };
    if !folder.is_dir() {
        return Ok(0);
    }
    let from = Store::open(&url)?;
    let to = Store::open(&options.to.join("tables").display().to_string())?;
    let instance = instance_of(&options.data);
    let mut newest = 0;
    let names = tables(&from).await?;
    for (n, name) in names.iter().enumerate() {
        progress("tables", n as u64, names.len() as u64);
        let check = format!("table {name}");
        match rebuild(&from, &to, name).await {
            Ok(Some(rebuilt)) => {
                newest = newest.max(epoch_of(&rebuilt.committed, &instance));
                tell_table(report, &check, &rebuilt);
            }
            Ok(None) => {
                report.fail(&check, "nothing of its log can be read: it is left out", &[]);
                report.means("its Parquet files are still in the old folder");
            }
            Err(error) => report.fail(&check, &error.to_string(), &[]),
        }
    }
    Ok(newest)
}

fn instance_of(data: &Path) -> String {
    fs::read_to_string(data.join("instance")).unwrap_or_default().trim().to_owned()
}

fn epoch_of(committed: &BTreeMap<String, u64>, instance: &str) -> u64 {
    let ours = committed.iter().filter(|(app, _)| {
        !instance.is_empty()
            && app.split('/').next() == Some(instance)
            && app.matches('/').count() == 1
    });
    ours.map(|(_, epoch)| *epoch).max().unwrap_or(0)
}

async fn committed_elsewhere(store: &Store, data: &Path) -> anyhow::Result<Epoch> {
    let (instance, mut newest) = (instance_of(data), 0);
    for name in tables(store).await? {
        let table = tidegate_sql::DeltaTable::new(store, &name.schema, &name.name)?;
        if let Some(snapshot) = table.snapshot().await? {
            newest = newest.max(snapshot.committed(&format!("{instance}/{name}")));
        }
    }
    Ok(newest)
}

fn tell_table(report: &mut Report, check: &str, rebuilt: &Rebuilt) {
    let saved = format!("{} in {} saved", counted(rebuilt.rows, "row"), files_text(rebuilt.files));
    let bad = rebuilt.bad_versions.len();
    if rebuilt.lost.is_empty() && bad == 0 {
        report.ok(check, &saved);
        return;
    }
    let rows: u64 = rebuilt.lost.iter().map(|(_, rows)| rows).sum();
    let mut text = saved;
    if !rebuilt.lost.is_empty() {
        let files = files_text(rebuilt.lost.len());
        text += &format!("; {files} with {} missing or damaged", counted(rows, "row"));
    }
    if bad > 0 {
        let versions = counted(bad as u64, "log version");
        text += &format!("; {versions} unreadable, {} named again", files_text(rebuilt.found));
    }
    let lost: Vec<String> = rebuilt
        .lost
        .iter()
        .take(TOLD_MAX)
        .map(|(file, rows)| format!("lost: {file} ({})", counted(*rows, "row")))
        .collect();
    let lost: Vec<&str> = lost.iter().map(String::as_str).collect();
    match rows {
        0 => report.warn(check, &text, &lost),
        _ => report.fail(check, &text, &lost),
    }
    if bad > rebuilt.found {
        report.means(
            "rows of a log entry that is rolled back come again from the journal, if it has them",
        );
    }
}

fn files_text(count: usize) -> String {
    counted(count as u64, "file")
}

/// Copies whole checkpoints; gives the newest one.
fn save_checkpoints(options: &SalvageOptions, report: &mut Report) -> anyhow::Result<Epoch> {
    let dir = options.data.join("checkpoints");
    if !dir.is_dir() {
        return Ok(0);
    }
    let store = CheckpointStore::open(options.to.join("checkpoints"))?;
    let (mut newest, mut bad) = (0, Vec::new());
    for one in CheckpointStore::look_at(&dir).survey()? {
        match one.found {
            Ok(checkpoint) => {
                store.copy(&checkpoint)?;
                newest = one.epoch;
            }
            Err(reason) => bad.push(format!("left out: {}: {reason}", one.manifest)),
        }
    }
    let bad: Vec<&str> = bad.iter().map(String::as_str).collect();
    let text = match newest {
        0 => "none is whole".to_owned(),
        epoch => format!("the newest whole one is of epoch {epoch}"),
    };
    match bad.is_empty() {
        true => report.ok("checkpoints", &text),
        false => report.warn("checkpoints", &text, &bad),
    }
    Ok(newest)
}

fn save_journal(
    options: &SalvageOptions,
    report: &mut Report,
    newest: Epoch,
    committed: Epoch,
    progress: OnProgress<'_>,
) -> anyhow::Result<()> {
    let dir = options.data.join("journal");
    if !dir.is_dir() {
        return Ok(());
    }
    let to = options.to.join("journal");
    fs::create_dir_all(&to)?;
    let range = Range { from: (newest > 0).then_some(newest + 1), through: newest.max(committed) };
    let told = |done, total| progress("journal", done, total);
    let saved = salvage_journal(&dir, &to, range, &told)?;
    let (first, last) = saved.epochs;
    if newest == 0 && first > 1 {
        // A start without a checkpoint wants epoch 1: this one says that state begins here.
        let empty = Manifest { format: FORMAT, epoch: first - 1, ..Manifest::default() };
        CheckpointStore::open(options.to.join("checkpoints"))?.publish(&empty)?;
        report.warn("state", &format!("there is none: it begins empty at epoch {first}"), &[]);
        report.means("windows, alerts and detectors know nothing of what was before");
    }
    let text = format!(
        "{} in epochs {first} to {last}, {}",
        counted(saved.messages, "message"),
        bytes_text(saved.found.bytes())
    );
    let places: Vec<String> = saved
        .found
        .damages
        .iter()
        .take(TOLD_MAX)
        .map(|d| {
            let place = match d.offset {
                Some(offset) => format!("{} bytes {offset} to {}", file_name(&d.path), d.until),
                None => "the folder".into(),
            };
            let (from, through) = d.epochs;
            let lost = lost_text(d.lost);
            format!("left out: {place}, epochs {from} to {through}, {lost}: {}", d.reason)
        })
        .collect();
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    let nothing = saved.found.damages.iter().all(|d| d.lost == Lost::Exactly(0));
    match (places.is_empty(), nothing) {
        (true, _) => report.ok("journal", &text),
        (false, true) => report.warn("journal", &text, &places),
        (false, false) => report.fail("journal", &text, &places),
    }
    let more = saved.found.damages.len().saturating_sub(TOLD_MAX);
    if more > 0 {
        report.means(format!("{more} more places are damaged"));
    } else if saved.made_up > 0 {
        report.means(format!(
            "{} ended without a tick that could be read: each got one",
            counted(saved.made_up, "epoch")
        ));
    }
    Ok(())
}

fn save_outbox(options: &SalvageOptions, report: &mut Report) -> anyhow::Result<()> {
    let dir = options.data.join("outbox");
    if !dir.is_dir() {
        return Ok(());
    }
    let to = options.to.join("outbox");
    fs::create_dir_all(&to)?;
    let (records, bad) = salvage_outbox(&dir, &to)?;
    let text = format!("{} saved", counted(records, "record"));
    let places: Vec<String> = bad
        .iter()
        .map(|b| format!("left out: bytes {} to {}: {}", b.offset, b.until, b.reason))
        .collect();
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    match places.is_empty() {
        true => report.ok("outbox", &text),
        false => {
            report.warn("outbox", &text, &places);
            report.means("a notification there is not sent, or sent again under the same id");
        }
    }
    Ok(())
}

/// Copies stores of sessions that are whole.
fn save_sessions(options: &SalvageOptions, report: &mut Report) -> anyhow::Result<()> {
    let Ok(entries) = fs::read_dir(options.data.join("sessions")) else { return Ok(()) };
    let to = options.to.join("sessions");
    fs::create_dir_all(&to)?;
    for entry in entries {
        let path = entry?.path();
        let name = file_name(&path);
        match look_at_sessions(&path) {
            Ok(()) => {
                fs::copy(&path, to.join(&name))?;
                report.ok("sessions", &format!("{name} saved"));
            }
            Err(reason) => {
                report.fail("sessions", &format!("{name} is left out: {reason}"), &[]);
                report.means("sessions, retained and queued messages of the endpoint start empty");
            }
        }
    }
    Ok(())
}

/// Copies what else lies in the folder: its name, what is known of brokers and files.
fn save_rest(options: &SalvageOptions, report: &mut Report) -> anyhow::Result<()> {
    const DONE: [&str; 5] = ["journal", "checkpoints", "outbox", "sessions", "tables"];
    for entry in fs::read_dir(&options.data)? {
        let path = entry?.path();
        let name = file_name(&path);
        if !DONE.contains(&name.as_str()) {
            copy_all(&path, &options.to.join(&name))
                .with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    if !options.to.join("instance").exists() {
        report.warn("name", "the file `instance` is missing: tables will be added to anew", &[]);
        report.means("rows of epochs that the journal still has come a second time");
    }
    Ok(())
}

fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        return fs::copy(from, to).map(drop);
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
