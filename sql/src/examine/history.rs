//! The log of a table from its first entry to its newest: none missing, each readable, each epoch
//! of an application once and in order.

use std::collections::BTreeMap;

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;

use super::{Finding, Listing, Severity, TableHealth};
use crate::delta::action::Action;
use crate::delta::log::{commit_path, read_commit};
use crate::delta::{checkpoint, log};
use crate::{Error, Result, Store};

/// Log entries that are read at the same time.
const READS_MAX: usize = 16;

/// The number of a commit's file.
fn version_of(name: &str) -> Option<u64> {
    name.strip_suffix(".json")?.parse().ok()
}

pub(super) async fn examine(
    store: &Store,
    table: &Path,
    listing: &Listing,
    health: &mut TableHealth,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<()> {
    let versions: Vec<u64> = listing.log.keys().filter_map(|n| version_of(n)).collect();
    let base = checkpoints(store, table, listing, health).await?;
    missing(table, &versions, base, health);
    let (newest, total) = (versions.last().copied(), versions.len() as u64);
    let mut reads = futures::stream::iter(versions.clone())
        .map(|version| async move { (version, read_commit(store, table, version).await) })
        .buffered(READS_MAX);
    let mut epochs: BTreeMap<String, (i64, u64)> = BTreeMap::new();
    let (mut done, mut bad, mut commits) = (0, 0, 0_u64);
    while let Some((version, read)) = reads.next().await {
        done += 1;
        progress(done, total);
        match read {
            Ok(Some(actions)) => {
                commits += 1;
                in_order(table, version, &actions, &mut epochs, health);
            }
            // Cleaned up by another program since it was listed.
            Ok(None) => {}
            Err(error @ Error::Store { .. }) => return Err(error),
            Err(error) => {
                bad += 1;
                let needed = base.is_none_or(|base| version > base);
                let is_newest = Some(version) == newest;
                unreadable(store, table, version, &error, (needed, is_newest), health);
            }
        }
    }
    if bad == 0 && !health.findings.iter().any(|f| f.severity == Severity::Fail) {
        let from = versions.first().copied().or(base).unwrap_or(0);
        let through = newest.max(base).unwrap_or(0);
        let entries = if commits == 1 { "entry" } else { "entries" };
        let text =
            format!("versions {from} to {through}, {commits} readable {entries}, none missing");
        health.findings.insert(0, Finding::new(Severity::Ok, "log", text));
    }
    Ok(())
}

/// The newest complete and readable checkpoint; damaged ones are told.
async fn checkpoints(
    store: &Store,
    table: &Path,
    listing: &Listing,
    health: &mut TableHealth,
) -> Result<Option<u64>> {
    let listed = log::list(store, table).await?;
    let Some((version, parts)) = listed.checkpoint else {
        let zero =
            listing.log.values().find(|meta| meta.location.as_ref().contains(".checkpoint."));
        if let Some(meta) = zero {
            let text = format!("{} belongs to no complete checkpoint", meta.location);
            let finding = Finding::new(Severity::Warn, "checkpoint", text).at(&meta.location);
            health.findings.push(finding.means("it is passed over: opening takes longer"));
        }
        return Ok(None);
    };
    for part in &parts {
        if let Err(error) = checkpoint::read(store, part).await {
            let text = format!("checkpoint {part} cannot be read: {error}");
            let finding = Finding::new(Severity::Fail, "checkpoint", text).at(part);
            health.findings.push(
                finding
                    .means("readers that begin with it fail, although all rows are there")
                    .change(format!(
                        "if every entry from version 0 is there: delete it and _last_checkpoint; \
                         else restore it from a copy (version {version})"
                    )),
            );
            return Ok(None);
        }
    }
    Ok(Some(version))
}

fn missing(table: &Path, versions: &[u64], base: Option<u64>, health: &mut TableHealth) {
    let first_needed = base.map_or(0, |base| base + 1);
    let mut gaps = Vec::new();
    if let Some(first) = versions.first().filter(|first| **first > first_needed) {
        gaps.push((first_needed, first - 1));
    }
    for pair in versions.windows(2).filter(|pair| pair[0] + 1 < pair[1]) {
        gaps.push((pair[0] + 1, pair[1] - 1));
    }
    for (from, through) in gaps {
        let needed = through >= first_needed;
        let text = match from == through {
            true => format!("version {from} is missing"),
            false => format!("versions {from} to {through} are missing"),
        };
        let object = commit_path(table, from);
        if needed {
            health.findings.push(
                Finding::new(Severity::Fail, "log", text)
                    .at(object)
                    .means("readers stop there; files that only those versions name are invisible")
                    .change("restore it from a copy")
                    .change("tidegate doctor data --data DIR --salvage NEW_FOLDER"),
            );
        } else {
            let finding = Finding::new(Severity::Note, "log", text).at(object);
            health.findings.push(finding.means("a newer checkpoint holds what it said"));
        }
    }
}

fn unreadable(
    store: &Store,
    table: &Path,
    version: u64,
    error: &Error,
    (needed, newest): (bool, bool),
    health: &mut TableHealth,
) {
    let object = commit_path(table, version);
    let finding = match needed {
        true => Finding::new(Severity::Fail, "log", error.to_string()),
        false => Finding::new(Severity::Warn, "log", error.to_string()),
    };
    let finding = finding.at(&object);
    let torn_here = newest && store.folder().is_some();
    health.findings.push(match (needed, torn_here) {
        (false, _) => finding.means("a newer checkpoint holds what it said"),
        (true, true) => finding
            .means(
                "readers stop there. It is the newest entry: the next start removes it, if it is \
                 one of ours, and writes its rows again from the journal",
            )
            .change("tidegate run, with the same data folder"),
        (true, false) => finding
            .means("readers stop there; files that only this version names are invisible")
            .change("restore it from a copy")
            .change("tidegate doctor data --data DIR --salvage NEW_FOLDER"),
    });
}

/// No two commits of an application share an epoch, and epochs grow.
fn in_order(
    table: &Path,
    version: u64,
    actions: &[Action],
    epochs: &mut BTreeMap<String, (i64, u64)>,
    health: &mut TableHealth,
) {
    for txn in actions.iter().filter_map(|a| a.txn.as_ref()) {
        let new = (txn.version, version);
        let Some((epoch, before)) = epochs.insert(txn.app_id.clone(), new) else { continue };
        if txn.version > epoch {
            continue;
        }
        let (app, now) = (&txn.app_id, txn.version);
        let text = match now == epoch {
            true => format!("epoch {now} of {app} was committed at version {before} and {version}"),
            false => format!(
                "{app} committed epoch {epoch} at version {before} and then epoch {now} at \
                 version {version}"
            ),
        };
        health.findings.push(
            Finding::new(Severity::Fail, "epochs", text)
                .at(commit_path(table, version))
                .means("the rows of this epoch are there twice")
                .change(format!(
                    "look at what both versions added; with delta-rs: \
                     DeltaTable(PATH, version={version}).get_add_actions()"
                )),
        );
    }
}

/// All readable actions of the commits of a table from `from` on, in order, for a rebuild.
pub(super) async fn readable(
    store: &Store,
    table: &Path,
    listing: &Listing,
    from: u64,
) -> Result<(Vec<(u64, Vec<Action>)>, Vec<u64>)> {
    let wanted = listing.log.keys().filter_map(|n| version_of(n)).filter(|v| *v >= from);
    let read: Vec<_> = futures::stream::iter(wanted)
        .map(|version| async move {
            match read_commit(store, table, version).await {
                Err(error @ Error::Store { .. }) => Err(error),
                other => Ok((version, other.ok().flatten())),
            }
        })
        .buffered(READS_MAX)
        .try_collect()
        .await?;
    let mut bad = Vec::new();
    let mut good = Vec::new();
    for (version, actions) in read {
        match actions {
            Some(actions) => good.push((version, actions)),
            None => bad.push(version),
        }
    }
    Ok((good, bad))
}
