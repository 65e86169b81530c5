//! A table's log as one snapshot: what is visible at a version, and how to move on from there.
//!
//! Opening reads the newest checkpoint and the commits after it; a refresh reads only commits that
//! are new. A snapshot never changes, so a query that holds one sees one version throughout.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use arrow::datatypes::SchemaRef;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStoreExt};

use super::action::{Action, Add, Metadata, Protocol, Remove, Txn, decode};
use super::checkpoint;
use super::schema;
use super::stats::FileStats;
use crate::writer::{COMPLETE_KEY, DAY};
use crate::{Error, Result, Store};

/// How long the log keeps the names of removed files, so that other engines' vacuum can delete
/// them: a week, Delta's default.
const TOMBSTONE_MS: i64 = 7 * 24 * 3_600 * 1_000;

/// A visible file.
#[derive(Debug)]
pub struct DataFile {
    /// As the log describes it.
    pub add: Add,
    stats: OnceLock<FileStats>,
}

impl DataFile {
    pub(crate) fn stats(&self, table: &SchemaRef) -> &FileStats {
        // Columns that were added later are not in this file, so any later schema reads the same.
        self.stats.get_or_init(|| FileStats::parse(self.add.stats.as_deref(), table))
    }
}

/// A table at one version.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Number of the newest commit.
    pub version: u64,
    pub(crate) protocol: Protocol,
    pub(crate) metadata: Metadata,
    pub(crate) schema: SchemaRef,
    pub(crate) files: BTreeMap<String, Arc<DataFile>>,
    pub(crate) txns: BTreeMap<String, i64>,
    pub(crate) removed: BTreeMap<String, Remove>,
}

impl Snapshot {
    /// Schema of the table, partition columns included.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The visible files by their path in the log.
    pub fn files(&self) -> impl Iterator<Item = &Arc<DataFile>> {
        self.files.values()
    }

    /// Names of the partition columns.
    pub fn partition_columns(&self) -> &[String] {
        &self.metadata.partition_columns
    }

    /// The newest version that `app_id` committed, 0 if none.
    pub fn committed(&self, app_id: &str) -> u64 {
        self.txns.get(app_id).map_or(0, |v| u64::try_from(*v).unwrap_or(0))
    }

    /// Whether this table was there before `app_id` had made any row for it. Whoever deletes rows
    /// does not change that.
    pub fn is_complete_for(&self, app_id: &str) -> bool {
        self.metadata.setting(COMPLETE_KEY) == Some(app_id)
    }

    /// Rows that `app_id` wrote for each day so far, as far as it counted them.
    pub(crate) fn days_written(&self, app_id: &str) -> BTreeMap<String, u64> {
        let before = day_app(app_id, "");
        let of_day = |(app, rows): (&String, &i64)| {
            Some((app.strip_prefix(&before)?.to_owned(), u64::try_from(*rows).ok()?))
        };
        self.txns.iter().filter_map(of_day).collect()
    }

    /// The days, as `YYYY-MM-DD`, of which this table has more or fewer rows than `app_id` made:
    /// of these, somebody has deleted some. `None` if the table was not there before the first of
    /// them, or does not know it.
    pub fn days_changed(&self, app_id: &str) -> Option<BTreeSet<String>> {
        if !self.is_complete_for(app_id) {
            return None;
        }
        let written = self.days_written(app_id);
        let mut held: BTreeMap<&str, Option<u64>> =
            written.keys().map(|day| (day.as_str(), Some(0))).collect();
        for file in self.files() {
            if let Some(Some(day)) = file.add.partition_values.get(DAY) {
                let rows = held.entry(day).or_insert(Some(0));
                *rows = rows.zip(file.stats(&self.schema).rows).map(|(a, b)| a + b);
            }
        }
        // A file may not say how many it has.
        let as_written =
            |day: &str, held: Option<u64>| held.is_some() && held == written.get(day).copied();
        let changed = held.into_iter().filter(|(day, held)| !as_written(day, *held));
        Some(changed.map(|(day, _)| day.to_owned()).collect())
    }

    /// The newest epoch of each application.
    pub(crate) fn epochs(&self) -> BTreeMap<String, u64> {
        let apps = self.txns.keys().filter(|app| !is_day_app(app));
        apps.map(|app| (app.clone(), self.committed(app))).collect()
    }

    /// Rows of all files, `None` if some file does not say.
    pub fn rows(&self) -> Option<u64> {
        self.files().map(|f| f.stats(&self.schema).rows).sum()
    }
}

/// The application under which the rows of a day are counted that `app_id` wrote.
pub(crate) fn day_app(app_id: &str, day: &str) -> String {
    format!("{app_id}/rows/{day}")
}

/// Whether what an application id counts is rows of a day, and not epochs.
pub(crate) fn is_day_app(app_id: &str) -> bool {
    app_id.rsplit_once('/').is_some_and(|(before, _)| before.ends_with("/rows"))
}

/// The state that actions build up; becomes a [`Snapshot`] once it has a schema.
#[derive(Default)]
pub(crate) struct Replay {
    protocol: Option<Protocol>,
    metadata: Option<Metadata>,
    files: BTreeMap<String, Arc<DataFile>>,
    txns: BTreeMap<String, i64>,
    removed: BTreeMap<String, Remove>,
    newest_ms: i64,
}

impl Replay {
    fn from_snapshot(s: &Snapshot) -> Self {
        Self {
            protocol: Some(s.protocol.clone()),
            metadata: Some(s.metadata.clone()),
            files: s.files.clone(),
            txns: s.txns.clone(),
            removed: s.removed.clone(),
            newest_ms: 0,
        }
    }

    /// The newest version of each application so far.
    pub(crate) fn txns(&self) -> impl Iterator<Item = (&String, &i64)> {
        self.txns.iter()
    }

    pub(crate) fn apply(&mut self, path: &str, actions: Vec<Action>) -> Result<()> {
        for action in actions {
            understood(path, &action)?;
            if let Some(protocol) = action.protocol {
                self.protocol = Some(protocol);
            }
            if let Some(metadata) = action.meta_data {
                self.metadata = Some(metadata);
            }
            if let Some(txn) = action.txn {
                self.newest_ms = self.newest_ms.max(txn.last_updated.unwrap_or(0));
                self.txns.insert(txn.app_id, txn.version);
            }
            if let Some(add) = action.add {
                self.newest_ms = self.newest_ms.max(add.modification_time);
                self.removed.remove(&add.path);
                let file = DataFile { add, stats: OnceLock::new() };
                self.files.insert(file.add.path.clone(), Arc::new(file));
            }
            if let Some(remove) = action.remove {
                self.files.remove(&remove.path);
                self.newest_ms = self.newest_ms.max(remove.deletion_timestamp.unwrap_or(0));
                self.removed.insert(remove.path.clone(), remove);
            }
        }
        Ok(())
    }

    /// Whether something that an older checkpoint says still holds after these actions, which are
    /// newer than all of it.
    pub(crate) fn leaves(&self, older: &Action) -> bool {
        let unnamed = |path| !self.files.contains_key(path) && !self.removed.contains_key(path);
        older.add.as_ref().is_none_or(|add| unnamed(&add.path))
            && older.remove.as_ref().is_none_or(|r| unnamed(&r.path) && !expired(r, self.newest_ms))
            && older.txn.as_ref().is_none_or(|txn| !self.txns.contains_key(&txn.app_id))
            && (older.meta_data.is_none() || self.metadata.is_none())
            && (older.protocol.is_none() || self.protocol.is_none())
    }

    /// What these actions come to, as a checkpoint repeats it.
    pub(crate) fn into_actions(self) -> Vec<Action> {
        let newest_ms = self.newest_ms;
        let empty = Action::default;
        let mut actions: Vec<Action> = [
            self.protocol.map(|protocol| Action { protocol: Some(protocol), ..empty() }),
            self.metadata.map(|metadata| Action { meta_data: Some(metadata), ..empty() }),
        ]
        .into_iter()
        .flatten()
        .collect();
        actions.extend(self.txns.into_iter().map(|(app_id, version)| Action {
            txn: Some(Txn { app_id, version, last_updated: None }),
            ..empty()
        }));
        let adds = self.files.into_values().map(|file| file.add.clone());
        actions.extend(adds.map(|add| Action { add: Some(add), ..empty() }));
        let removes = self.removed.into_values().filter(|r| !expired(r, newest_ms));
        actions.extend(removes.map(|r| Action { remove: Some(r), ..empty() }));
        actions
    }

    pub(crate) fn finish(mut self, table: &Path, version: u64) -> Result<Snapshot> {
        let missing = |what| missing(table, what);
        let metadata = self.metadata.ok_or_else(|| missing("metaData"))?;
        let schema =
            schema::from_json(&metadata.schema_string).map_err(|e| Error::log(table, e))?;
        let newest_ms = self.newest_ms;
        self.removed.retain(|_, r| !expired(r, newest_ms));
        Ok(Snapshot {
            version,
            protocol: self.protocol.ok_or_else(|| missing("protocol"))?,
            metadata,
            schema,
            files: self.files,
            txns: self.txns,
            removed: self.removed,
        })
    }
}

/// Whether the name of a removed file need not be kept any more; without a time it always is.
fn expired(remove: &Remove, newest_ms: i64) -> bool {
    remove.deletion_timestamp.is_some_and(|at| at < newest_ms - TOMBSTONE_MS)
}

pub(crate) fn absent(commit: &Path) -> Error {
    Error::log(commit, "is missing from the log")
}

pub(crate) fn missing(table: &Path, what: &str) -> Error {
    Error::log(table, format!("the log has no {what}"))
}

/// An error for what no reader may pass over.
pub(crate) fn understood(path: &str, action: &Action) -> Result<()> {
    if let Some(needs) = action.protocol.as_ref().map(|p| p.min_reader_version).filter(|v| *v > 1) {
        return Err(Error::log(path, format!("needs Delta reader version {needs}")));
    }
    if action.add.as_ref().is_some_and(|add| add.deletion_vector.is_some()) {
        return Err(Error::log(path, "deletion vectors are not supported"));
    }
    Ok(())
}

/// The log folder of a table.
pub(crate) fn folder(table: &Path) -> Path {
    table.clone().join("_delta_log")
}

/// The object of commit `version`.
pub(crate) fn commit_path(table: &Path, version: u64) -> Path {
    folder(table).join(format!("{version:020}.json"))
}

/// The actions of commit `version`, `None` if there is no such commit.
pub(crate) async fn read_commit(
    store: &Store,
    table: &Path,
    version: u64,
) -> Result<Option<Vec<Action>>> {
    let path = commit_path(table, version);
    match store.objects().get(&path).await {
        Ok(found) => {
            let bytes = found.bytes().await.map_err(Error::store(format!("reading {path}")))?;
            decode(path.as_ref(), &bytes).map(Some)
        }
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(e) => Err(Error::store(format!("reading {path}"))(e)),
    }
}

/// What the log folder holds from the last checkpoint on.
pub(crate) struct Listing {
    /// Newest complete checkpoint: its version and its parts.
    pub(crate) checkpoint: Option<(u64, Vec<Path>)>,
    /// Newest commit.
    pub(crate) newest: Option<u64>,
}

/// Lists the log, beginning at the checkpoint that `_last_checkpoint` names if there is one.
pub(crate) async fn list(store: &Store, table: &Path) -> Result<Listing> {
    let folder = folder(table);
    let hint = checkpoint::read_hint(store, table).await;
    let what = || format!("listing {folder}");
    let stream = match hint {
        // The offset is exclusive, and "N.c" sorts before "N.checkpoint".
        Some(version) => {
            let offset = folder.clone().join(format!("{version:020}.c"));
            store.objects().list_with_offset(Some(&folder), &offset)
        }
        None => store.objects().list(Some(&folder)),
    };
    let found: Vec<_> = stream.try_collect().await.map_err(Error::store(what()))?;
    let mut parts: BTreeMap<u64, (usize, Vec<Path>)> = BTreeMap::new();
    let mut newest = hint;
    for meta in found {
        let Some((version, kind)) = meta.location.filename().and_then(|n| n.split_once('.')) else {
            continue;
        };
        let Ok(version) = version.parse::<u64>() else { continue };
        let segments: Vec<&str> = kind.split('.').collect();
        let expected = match segments[..] {
            ["json"] => {
                newest = newest.max(Some(version));
                continue;
            }
            ["checkpoint", "parquet"] => 1,
            ["checkpoint", _, of, "parquet"] => of.parse().unwrap_or(usize::MAX),
            _ => continue,
        };
        let entry = parts.entry(version).or_insert((expected, Vec::new()));
        if expected == 1 {
            *entry = (1, vec![meta.location]);
        } else if entry.0 == expected {
            entry.1.push(meta.location);
        }
    }
    let complete = parts.into_iter().rev().find(|(_, (expected, p))| p.len() == *expected);
    Ok(Listing { checkpoint: complete.map(|(version, (_, p))| (version, p)), newest })
}

/// Reads a table from its log, `None` if there is no table.
pub(crate) async fn load(store: &Store, table: &Path) -> Result<Option<Snapshot>> {
    let listing = list(store, table).await?;
    let mut replay = Replay::default();
    let mut next = 0;
    if let Some((version, parts)) = &listing.checkpoint {
        for part in parts {
            replay.apply(part.as_ref(), checkpoint::read(store, part).await?)?;
        }
        next = version + 1;
    }
    let Some(newest) = listing.newest.or(listing.checkpoint.as_ref().map(|c| c.0)) else {
        return Ok(None);
    };
    replay_from(store, table, replay, next, newest).await.map(Some)
}

/// Applies commits from `next` on until there is none; all through `newest` must exist.
async fn replay_from(
    store: &Store,
    table: &Path,
    mut replay: Replay,
    mut next: u64,
    newest: u64,
) -> Result<Snapshot> {
    loop {
        let path = commit_path(table, next);
        match read_commit(store, table, next).await? {
            Some(actions) => replay.apply(path.as_ref(), actions)?,
            None if next <= newest => return Err(absent(&path)),
            None => return replay.finish(table, next - 1),
        }
        next += 1;
    }
}

/// Moves on to the newest version; the same snapshot if nothing was committed.
pub(crate) async fn refresh(
    store: &Store,
    table: &Path,
    old: &Arc<Snapshot>,
) -> Result<Arc<Snapshot>> {
    let next = old.version + 1;
    let Some(actions) = read_commit(store, table, next).await? else { return Ok(Arc::clone(old)) };
    let mut replay = Replay::from_snapshot(old);
    replay.apply(commit_path(table, next).as_ref(), actions)?;
    replay_from(store, table, replay, next + 1, next).await.map(Arc::new)
}
