//! What can be saved of a table, as a new table elsewhere: one log entry that names the files which
//! are there and whole, with the epochs that the old log had reached.
//!
//! Where a log entry is lost, files of ours tell by their names which epochs they hold:
//! see [`chain`].

use std::collections::{BTreeMap, BTreeSet};

use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt};
use parquet::file::metadata::ParquetMetaData;

use super::chain::{self, Closed, Known, Part};
use super::{files, history, list};
use crate::delta::action::{Action, Add, Txn, encode};
use crate::delta::log::{self, Replay, Snapshot, commit_path};
use crate::delta::{checkpoint, path};
use crate::session::TableName;
use crate::writer::{COMPLETE_KEY, PARTITION_KEY, table_path};
use crate::{Error, Result, Store};

/// What was saved of a table, and what was not.
#[derive(Debug, Default)]
pub struct Rebuilt {
    /// Files that the new table names.
    pub files: usize,
    /// Their rows.
    pub rows: u64,
    /// Files that the old log names and that are gone or damaged, with their rows.
    pub lost: Vec<(String, u64)>,
    /// Files that were named again by what their own names say.
    pub found: usize,
    /// Versions of the log that were missing or unreadable.
    pub bad_versions: Vec<u64>,
    /// The newest of them is the newest of the log: it is as if it had not been written.
    pub rolled_back: bool,
    /// Epochs of lost entries whose files could not be told, by application: first and last.
    pub open: Vec<(String, u64, u64)>,
    /// The newest epoch of each application in the new table.
    pub committed: BTreeMap<String, u64>,
}

/// Application and place of a file of ours, by its name.
fn part_of(location: &str, file: usize) -> Option<(String, Part)> {
    let (app, first, through, number) = path::part_of(location.rsplit('/').next()?)?;
    Some((app.to_owned(), Part { file, first, through, number }))
}

/// Values of the partition columns, by the folders of a file, or by its footer where these were too
/// short for them.
fn partition_values(
    below_table: &str,
    footer: &ParquetMetaData,
) -> BTreeMap<String, Option<String>> {
    let notes = footer.file_metadata().key_value_metadata().into_iter().flatten();
    let noted = notes.filter(|n| n.key == PARTITION_KEY).find_map(|n| n.value.as_deref());
    if let Some(noted) = noted.and_then(|text| serde_json::from_str(text).ok()) {
        return noted;
    }
    let folders = below_table.split('/').filter_map(|part| part.split_once('='));
    let unescape = |text: &str| path::decode(text).unwrap_or_else(|_| text.to_owned());
    let value = |v: &str| (v != path::NULL_FOLDER).then(|| unescape(v));
    folders.map(|(column, v)| (unescape(column), value(v))).collect()
}

/// Writes a new table into `to` of what is whole of the table in `from`; `None` if nothing says
/// what columns it has. What the application `reached.0` wrote of epochs up to `reached.1` is known
/// to have been committed, and will not be written again.
///
/// # Errors
/// A store fails, or the log needs features that we do not have.
pub async fn rebuild(
    from: &Store,
    to: &Store,
    name: &TableName,
    reached: (&str, u64),
) -> Result<Option<Rebuilt>> {
    let table = table_path(&name.schema, &name.name)?;
    let listing = list(from, &table).await?;
    let (mut replay, next) = base(from, &table).await?;
    let floor: BTreeMap<String, u64> =
        replay.txns().filter(|(app, _)| !log::is_day_app(app)).map(word_and_epoch).collect();
    let (good, mut bad) = history::readable(from, &table, &listing, next).await?;
    let newest = good.iter().map(|(v, _)| *v).chain(bad.iter().copied()).max();
    let known: Vec<u64> = good.iter().map(|(v, _)| *v).collect();
    let expected = next..newest.map_or(next, |n| n + 1);
    bad.extend(expected.filter(|v| !known.contains(v) && !bad.contains(v)).collect::<Vec<_>>());
    bad.sort_unstable();
    let mut ends: BTreeSet<(String, u64)> = floor.clone().into_iter().collect();
    for (version, actions) in good {
        // The counted rows of a day are no epochs.
        let txns = actions.iter().filter_map(|action| action.txn.as_ref());
        let txns = txns.filter(|txn| !log::is_day_app(&txn.app_id));
        ends.extend(txns.map(|txn| word_and_epoch((&txn.app_id, &txn.version))));
        replay.apply(commit_path(&table, version).as_ref(), actions)?;
    }
    let Ok(mut snapshot) = replay.finish(&table, newest.unwrap_or(0)) else { return Ok(None) };
    let rolled_back = bad.last().is_some_and(|bad| Some(*bad) == newest);
    let mut rebuilt = Rebuilt { bad_versions: bad, rolled_back, ..Rebuilt::default() };
    let mut adds: Vec<Add> = snapshot.files.values().map(|f| f.add.clone()).collect();
    if !rebuilt.bad_versions.is_empty() {
        // Nobody knows whether all rows are there: what says how many there were may be lost, too.
        if let Some(settings) = &mut snapshot.metadata.configuration {
            settings.remove(COMPLETE_KEY);
        }
        let lost = Lost { ends, floor, reached, rolled_back };
        let again = nameless(from, &table, &listing, &mut snapshot, &lost, &mut rebuilt).await?;
        rebuilt.found = again.len();
        adds.extend(again);
    }
    snapshot.files.clear();
    let mut kept = Vec::new();
    for add in adds {
        copy(from, to, &table, add, &mut kept, &mut rebuilt).await?;
    }
    rebuilt.files = kept.len();
    write(to, &table, &snapshot, kept, &mut rebuilt).await?;
    Ok(Some(rebuilt))
}

/// What is known about lost entries beside the files.
struct Lost<'a> {
    /// Epochs with which commits ended, by application as files spell it.
    ends: BTreeSet<(String, u64)>,
    /// The newest of those that the table's checkpoint tells.
    floor: BTreeMap<String, u64>,
    reached: (&'a str, u64),
    rolled_back: bool,
}

/// How files spell an application, and its epoch.
fn word_and_epoch((app_id, version): (&String, &i64)) -> (String, u64) {
    (path::file_word(app_id), u64::try_from(*version).unwrap_or(0))
}

/// The newest checkpoint if it can be read, and the version to go on with.
async fn base(store: &Store, table: &Path) -> Result<(Replay, u64)> {
    let Some((version, parts)) = log::list(store, table).await?.checkpoint else {
        return Ok((Replay::default(), 0));
    };
    let mut replay = Replay::default();
    for part in &parts {
        match checkpoint::read(store, part).await {
            Ok(actions) => replay.apply(part.as_ref(), actions)?,
            Err(error @ Error::Store { .. }) => return Err(error),
            Err(_) => return Ok((Replay::default(), 0)),
        }
    }
    Ok((replay, version + 1))
}

/// Files that no readable version names and that lost ones did; their epochs become those of the
/// snapshot.
async fn nameless(
    store: &Store,
    table: &Path,
    listing: &super::Listing,
    snapshot: &mut Snapshot,
    lost: &Lost<'_>,
    rebuilt: &mut Rebuilt,
) -> Result<Vec<Add>> {
    let named = snapshot.files.keys().chain(snapshot.removed.keys());
    let named: BTreeSet<Path> = named.filter_map(|e| path::from_log(table, e).ok()).collect();
    let mut known: BTreeMap<String, Known> = BTreeMap::new();
    for (app, part) in named.iter().filter_map(|path| part_of(path.as_ref(), 0)) {
        known.entry(app).or_default().named.push((part.first, part.through));
    }
    for (app, end) in &lost.ends {
        known.entry(app.clone()).or_default().ends.insert(*end);
    }
    let listed: Vec<(&Path, &ObjectMeta)> = listing.files.iter().collect();
    let mut parts: BTreeMap<String, Vec<Part>> = BTreeMap::new();
    for (file, (location, _)) in listed.iter().enumerate() {
        if !named.contains(*location)
            && let Some((app, part)) = part_of(location.as_ref(), file)
        {
            known.entry(app.clone()).or_default();
            parts.entry(app).or_default().push(part);
        }
    }
    let mut adds = Vec::new();
    for (app, mut known) in known {
        let of_app = |id: &&String| path::file_word(id) == app;
        let ours = Some(lost.reached.0.to_owned()).filter(|id| of_app(&id));
        let Some(app_id) = snapshot.txns.keys().find(of_app).cloned().or(ours) else { continue };
        let committed = snapshot.committed(&app_id);
        let reached = if app_id == lost.reached.0 { lost.reached.1 } else { 0 };
        known.floor = lost.floor.get(&app).copied().unwrap_or(0);
        known.committed = committed.max(reached);
        known.newest_lost = lost.rolled_back && reached > committed;
        let Closed { files, through, open } =
            chain::close(&known, parts.remove(&app).unwrap_or_default());
        for file in files {
            let (location, meta) = listed[file];
            adds.extend(add_of(store, table, location, meta).await?);
        }
        if through > committed {
            snapshot.txns.insert(app_id.clone(), i64::try_from(through).unwrap_or(i64::MAX));
        }
        rebuilt.open.extend(open.into_iter().map(|(from, to)| (app_id.clone(), from, to)));
    }
    Ok(adds)
}

/// The entry of a file, as far as the file says it; `None` if it is not whole.
async fn add_of(
    store: &Store,
    table: &Path,
    location: &Path,
    meta: &ObjectMeta,
) -> Result<Option<Add>> {
    let Ok(footer) = files::footer(store, location, meta.size).await? else { return Ok(None) };
    let below = location.as_ref().strip_prefix(&format!("{table}/")).unwrap_or_default();
    let rows = footer.file_metadata().num_rows();
    Ok(Some(Add {
        path: path::to_log(below),
        partition_values: partition_values(below, &footer),
        size: i64::try_from(meta.size).unwrap_or(i64::MAX),
        modification_time: meta.last_modified.timestamp_millis(),
        data_change: true,
        stats: Some(serde_json::json!({ "numRecords": rows }).to_string()),
        deletion_vector: None,
    }))
}

/// Copies a file that is whole.
async fn copy(
    from: &Store,
    to: &Store,
    table: &Path,
    add: Add,
    kept: &mut Vec<Add>,
    rebuilt: &mut Rebuilt,
) -> Result<()> {
    let location = path::from_log(table, &add.path)?;
    let stats: Option<serde_json::Value> =
        add.stats.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let rows = stats.and_then(|s| s["numRecords"].as_u64());
    let whole = match from.objects().get(&location).await {
        Ok(found) => found.bytes().await.ok(),
        Err(_) => None,
    };
    let stated = u64::try_from(add.size).unwrap_or(0);
    let footer = match &whole {
        Some(bytes) if bytes.len() as u64 == stated => {
            files::footer(from, &location, stated).await?.ok()
        }
        _ => None,
    };
    let held = footer.map(|f| u64::try_from(f.file_metadata().num_rows()).unwrap_or(0));
    match (whole, held) {
        (Some(bytes), Some(held)) if rows.is_none_or(|rows| rows == held) => {
            let what = format!("writing {location}");
            to.objects().put(&location, bytes.into()).await.map_err(Error::store(what))?;
            rebuilt.rows += held;
            kept.push(add);
        }
        _ => rebuilt.lost.push((location.to_string(), rows.unwrap_or(0))),
    }
    Ok(())
}

async fn write(
    to: &Store,
    table: &Path,
    snapshot: &Snapshot,
    adds: Vec<Add>,
    rebuilt: &mut Rebuilt,
) -> Result<()> {
    let empty = Action::default;
    let info = serde_json::json!({ "operation": "SALVAGE", "engineInfo": "tidegate/doctor" });
    let mut actions = vec![
        Action { commit_info: Some(info), ..empty() },
        Action { protocol: Some(snapshot.protocol.clone()), ..empty() },
        Action { meta_data: Some(snapshot.metadata.clone()), ..empty() },
    ];
    rebuilt.committed = snapshot.epochs();
    for (app_id, version) in &snapshot.txns {
        let txn = Txn { app_id: app_id.clone(), version: *version, last_updated: None };
        actions.push(Action { txn: Some(txn), ..empty() });
    }
    actions.extend(adds.into_iter().map(|add| Action { add: Some(add), ..empty() }));
    let log_entry = commit_path(table, 0);
    let what = format!("writing {log_entry}");
    to.objects().put(&log_entry, encode(&actions).into()).await.map_err(Error::store(what))?;
    Ok(())
}
