//! The tables' part of a salvage: those in the data folder are rebuilt, others are only asked.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tidegate_operators::Epoch;
use tidegate_sql::examine::{Rebuilt, rebuild, tables};
use tidegate_sql::{Store, TableName, tables_of};

use super::super::report::Report;
use super::super::{OnProgress, counted};
use super::{SalvageOptions, Saved, TOLD_MAX};

/// The tables of the new folder.
#[derive(Default)]
pub(super) struct Tables {
    /// The newest epoch that this instance committed.
    pub(super) committed: Epoch,
    /// What has to follow a command that starts an instance, if they lie elsewhere.
    pub(super) option: String,
    /// Some that the newest checkpoint relied on are not there.
    pub(super) are_gone: bool,
}

/// Rebuilds the tables in the data folder.
pub(super) async fn save(
    options: &SalvageOptions,
    report: &mut Report,
    saved: &Saved,
    progress: OnProgress<'_>,
) -> anyhow::Result<Tables> {
    let url = tables_of(&options.data)?;
    let own = options.data.join("tables");
    let folder = Store::local_folder(&url).ok().flatten();
    let inside = folder.is_some_and(|folder| same(&folder, &own));
    if !inside {
        report.note("tables", &format!("they lie in {url} and stay there"));
        let mut are_gone = false;
        let committed = match committed_elsewhere(&url, &options.data).await {
            Ok((committed, there)) => {
                are_gone = tell_gone(report, saved, &there);
                committed
            }
            Err(error) => {
                let known = saved.newest.iter().flat_map(|manifest| manifest.tables.values());
                let known = known.copied().max().unwrap_or(0);
                report.warn(
                    "tables",
                    &format!("they cannot be asked: {error}"),
                    &["run the salvage again when they can, before anything is started"],
                );
                report.means(format!(
                    "the newest checkpoint says that they have epoch {known}: if they have later \
                     ones, rows of these would be left out"
                ));
                known
            }
        };
        return Ok(Tables { committed, option: format!(" --tables {url}"), are_gone });
    }
    if !own.is_dir() {
        let are_gone = tell_gone(report, saved, &[]);
        return Ok(Tables { are_gone, ..Tables::default() });
    }
    let from = Store::open(&url)?;
    let to = Store::open(&options.to.join("tables").display().to_string())?;
    let instance = instance_of(&options.data);
    let mut newest = 0;
    // A checkpoint became visible only when the tables had its epoch.
    let (reached, _) = saved.newest();
    let names = tables(&from).await?;
    let are_gone = tell_gone(report, saved, &names);
    for (n, name) in names.iter().enumerate() {
        progress("tables", n as u64, names.len() as u64);
        let check = format!("table {name}");
        let app = format!("{instance}/{name}");
        match rebuild(&from, &to, name, (&app, reached)).await {
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
    Ok(Tables { committed: newest, option: String::new(), are_gone })
}

/// Whether two paths lead to one folder.
fn same(one: &Path, other: &Path) -> bool {
    one == other
        || matches!((fs::canonicalize(one), fs::canonicalize(other)), (Ok(a), Ok(b)) if a == b)
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

/// The newest epoch of this instance, and the tables that there are.
async fn committed_elsewhere(url: &str, data: &Path) -> anyhow::Result<(Epoch, Vec<TableName>)> {
    let (store, instance, mut newest) = (Store::open(url)?, instance_of(data), 0);
    let names = tables(&store).await?;
    for name in &names {
        let table = tidegate_sql::DeltaTable::new(&store, &name.schema, &name.name)?;
        if let Some(snapshot) = table.snapshot().await? {
            newest = newest.max(snapshot.committed(&format!("{instance}/{name}")));
        }
    }
    Ok((newest, names))
}

/// Tells which tables the newest checkpoint relied on that are not there; whether there are any.
fn tell_gone(report: &mut Report, saved: &Saved, there: &[TableName]) -> bool {
    let there: Vec<String> = there.iter().map(ToString::to_string).collect();
    let relied_on = saved.newest.iter().flat_map(|manifest| manifest.tables.keys());
    let gone: Vec<&str> = relied_on.filter(|n| !there.contains(n)).map(String::as_str).collect();
    if !gone.is_empty() {
        let text = format!("not there: {}", gone.join(", "));
        report.fail("tables", &text, &["mount or restore them and run the salvage again"]);
        report.means("they begin empty in the new folder");
    }
    !gone.is_empty()
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
    let files = rebuilt.lost.iter();
    let files = files.map(|(file, rows)| format!("lost: {file} ({})", counted(*rows, "row")));
    let epochs = rebuilt.open.iter().map(|(app, from, through)| {
        format!("lost: rows of epochs {from} to {through} of {app}, as far as there were any")
    });
    let lost: Vec<String> = files.chain(epochs).take(TOLD_MAX).collect();
    let lost: Vec<&str> = lost.iter().map(String::as_str).collect();
    match rows == 0 && rebuilt.open.is_empty() {
        true => report.warn(check, &text, &lost),
        false => report.fail(check, &text, &lost),
    }
    if !rebuilt.open.is_empty() {
        report.means("a start takes these epochs for committed: nobody writes their rows again");
    } else if rebuilt.rolled_back {
        report.means("rows of the newest log entry, if any, come again from the journal");
    }
}

fn files_text(count: usize) -> String {
    counted(count as u64, "file")
}
