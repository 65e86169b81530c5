//! Log entries of a writer: creating a table, extending its schema, committing rows.
//!
//! The rule that makes an epoch visible once: before every attempt, and after every failure, the
//! log is read on to its end. If it says that our epoch is there, it is there, whatever the store
//! answered (on a local disk once its folder is synced); if another process moved the same
//! application id, we stop.

use std::time::Duration;

use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStoreExt, PutMode, PutOptions};
use serde_json::json;
use tidegate_operators::Epoch;

use super::layout::{COMPLETE_KEY, Layout, ROWS_KEY};
use super::{TableWriter, data_actions, existing};
use crate::delta::action::{Action, FileFormat, Metadata, Protocol, Txn, decode, encode};
use crate::delta::log::{self, Snapshot, commit_path, read_commit};
use crate::delta::{checkpoint, schema};
use crate::{Error, Result, Store};

/// Attempts of one commit, with pauses from 50 ms doubling to 5 s: about half a minute of trouble
/// is ridden out, more is the caller's decision.
const ATTEMPTS_MAX: u32 = 12;
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Commits between checkpoints of the log.
pub(super) const CHECKPOINT_COMMITS: u64 = 100;

const ENGINE: &str = concat!("tidegate/", env!("CARGO_PKG_VERSION"));

pub(super) fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

/// `commitInfo` and `txn`, with which every data commit begins.
pub(super) fn head(app_id: &str, through: Epoch, rows: u64) -> Vec<Action> {
    let info = json!({
        "timestamp": now_ms(),
        "operation": "WRITE",
        "operationParameters": {"mode": "Append"},
        "operationMetrics": {"numOutputRows": rows.to_string()},
        "isBlindAppend": true,
        "engineInfo": ENGINE,
    });
    vec![Action { commit_info: Some(info), ..Action::default() }, txn(app_id.into(), through)]
}

/// Notes a number that only grows: an epoch, or rows.
pub(super) fn txn(app_id: String, version: u64) -> Action {
    let version = i64::try_from(version).expect("epochs and rows stay below 2^63");
    let txn = Txn { app_id, version, last_updated: Some(now_ms()) };
    Action { txn: Some(txn), ..Action::default() }
}

enum Put {
    Done,
    Taken,
    Failed(Error),
}

async fn put_commit(store: &Store, table: &Path, version: u64, actions: &[Action]) -> Put {
    let path = commit_path(table, version);
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    match store.objects().put_opts(&path, encode(actions).into(), options).await {
        Ok(_) => Put::Done,
        Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Put::Taken,
        Err(e) => Put::Failed(Error::store(format!("committing {path}"))(e)),
    }
}

/// What happened in the log since the writer last looked.
struct Progress {
    next: u64,
    committed: Option<(u64, Epoch)>,
    metadata: bool,
}

async fn catch_up(writer: &TableWriter, from: u64) -> Result<Progress> {
    let mut progress = Progress { next: from, committed: None, metadata: false };
    while let Some(actions) = read_commit(&writer.store, &writer.table, progress.next).await? {
        for action in actions {
            if let Some(txn) = action.txn.filter(|t| t.app_id == writer.app_id) {
                let epoch = u64::try_from(txn.version).unwrap_or(0);
                progress.committed = Some((progress.next, epoch));
            }
            progress.metadata |= action.meta_data.is_some() || action.protocol.is_some();
        }
        progress.next += 1;
    }
    Ok(progress)
}

/// Makes the staged files of `writer` visible; the version at which they are.
pub(super) async fn commit(writer: &TableWriter, through: Epoch) -> Result<u64> {
    let actions = data_actions(writer, through);
    let mut next = writer.version + 1;
    let mut pause = PAUSE_MIN;
    let mut last = None;
    for attempt in 1..=ATTEMPTS_MAX {
        match put_commit(&writer.store, &writer.table, next, &actions).await {
            Put::Done => return Ok(next),
            Put::Taken => {}
            Put::Failed(e) => {
                tracing::warn!(error = %e, attempt, "commit failed, looking at the log");
                last = Some(e);
                if writer.store.pauses() {
                    tokio::time::sleep(pause).await;
                }
                pause = (2 * pause).min(PAUSE_MAX);
            }
        }
        match catch_up(writer, next).await {
            Ok(progress) => match check(writer, through, &progress).await? {
                Some(version) => return Ok(version),
                None => next = progress.next,
            },
            Err(e) => last = Some(e),
        }
    }
    Err(last.unwrap_or_else(|| {
        Error::log(&writer.table, "too many other writers committed at the same time")
    }))
}

/// The version of our commit if the log has it already; an error if it can never get there.
async fn check(writer: &TableWriter, through: Epoch, seen: &Progress) -> Result<Option<u64>> {
    if let Some((version, epoch)) = seen.committed {
        if epoch == through && is_ours(writer, version).await? {
            // Perhaps it could be named and its folder not be opened: then it is visible, and a
            // power loss takes it.
            writer.store.sync_folder(&log::folder(&writer.table))?;
            return Ok(Some(version));
        }
        return Err(Error::Fenced {
            table: writer.layout.shown.clone(),
            app_id: writer.app_id.clone(),
            found: epoch,
        });
    }
    if seen.metadata {
        let snapshot = existing(&writer.store, &writer.table).await?;
        let same = snapshot.partition_columns() == writer.layout.partition_columns();
        if !same || writer.layout.merged(&snapshot.schema)? != *snapshot.schema {
            let problem = "its columns were changed by another program, restart";
            return Err(Error::table(&writer.layout.shown, problem));
        }
    }
    Ok(None)
}

/// Whether commit `version` names exactly the files that we staged: then the answer to our own
/// attempt was lost.
async fn is_ours(writer: &TableWriter, version: u64) -> Result<bool> {
    let actions = read_commit(&writer.store, &writer.table, version).await?.unwrap_or_default();
    let named = actions.iter().filter_map(|a| a.add.as_ref()).map(|a| &a.path);
    Ok(named.eq(writer.staged.adds.iter().map(|a| &a.path)))
}

fn table_info(operation: &str) -> Action {
    let info = json!({"timestamp": now_ms(), "operation": operation, "engineInfo": ENGINE});
    Action { commit_info: Some(info), ..Action::default() }
}

fn new_metadata(table: &Path, layout: &Layout, complete_for: Option<&str>) -> Metadata {
    // Two processes that create the same table at once race for commit 0, so the id only has to
    // tell tables apart that replace each other at the same place.
    let seed = format!("{table} {}", chrono::Utc::now().timestamp_nanos_opt().unwrap_or(0));
    let hash = xxhash_rust::xxh3::xxh3_128(seed.as_bytes());
    let hex = format!("{hash:032x}");
    let mut configuration = layout.configuration.clone();
    if let Some(app_id) = complete_for {
        configuration.insert(COMPLETE_KEY.into(), Some(app_id.to_owned()));
    }
    let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..]);
    Metadata {
        id: format!("{a}-{b}-4{c}-8{d}-{e}"),
        name: Some(layout.shown.clone()),
        format: FileFormat { provider: "parquet".into(), options: Some([].into()) },
        schema_string: schema::to_json(&layout.table_schema()),
        partition_columns: layout.partition_columns(),
        configuration: Some(configuration),
        created_time: Some(now_ms()),
    }
}

/// The newest snapshot of the table, after creating it or adding what `layout` has and it lacks.
/// `complete_for`: the application of which a table that is created now has every row.
pub(super) async fn ensure_table(
    store: &Store,
    table: &Path,
    layout: &Layout,
    complete_for: Option<&str>,
) -> Result<Snapshot> {
    for _ in 0..ATTEMPTS_MAX {
        let (version, actions) = match log::load(store, table).await? {
            None => {
                let protocol = Protocol { min_reader_version: 1, min_writer_version: 2 };
                let metadata = new_metadata(table, layout, complete_for);
                let actions = vec![
                    table_info("CREATE TABLE"),
                    Action { protocol: Some(protocol), ..Action::default() },
                    Action { meta_data: Some(metadata), ..Action::default() },
                ];
                (0, actions)
            }
            Some(snapshot) => match changed_metadata(&snapshot, layout)? {
                None => return Ok(snapshot),
                Some(metadata) => {
                    let metadata = Action { meta_data: Some(metadata), ..Action::default() };
                    (snapshot.version + 1, vec![table_info("ADD COLUMNS"), metadata])
                }
            },
        };
        // Taken: somebody else changed the table, look again. Lost answers look the same.
        if let Put::Failed(e) = put_commit(store, table, version, &actions).await {
            return Err(e);
        }
    }
    Err(Error::log(table, "is changed by too many writers at the same time"))
}

/// The metadata that the table needs to take our rows, `None` if it is fine as it is.
pub(super) fn changed_metadata(snapshot: &Snapshot, layout: &Layout) -> Result<Option<Metadata>> {
    let bad = |problem: String| Error::table(&layout.shown, problem);
    if snapshot.protocol.min_writer_version > 2 {
        let version = snapshot.protocol.min_writer_version;
        return Err(bad(format!("needs Delta writer version {version}, which is not supported")));
    }
    if snapshot.partition_columns() != layout.partition_columns() {
        return Err(bad(format!(
            "is stored in partitions by {}, the pipeline asks for {}; give it a new name",
            snapshot.partition_columns().join(", "),
            layout.partition_columns().join(", ")
        )));
    }
    let conflict = snapshot.metadata.setting(ROWS_KEY).and_then(|text| layout.conflict(text));
    // Of a table that nobody wrote a row to, nothing can be taken for it.
    if let Some(why) = conflict.filter(|_| !snapshot.txns.is_empty()) {
        return Err(bad(why));
    }
    let merged = layout.merged(&snapshot.schema)?;
    let mut metadata = snapshot.metadata.clone();
    let settings = metadata.configuration.get_or_insert_default();
    settings.retain(|k, _| !k.starts_with("tidegate.") || [COMPLETE_KEY, ROWS_KEY].contains(&&**k));
    settings.extend(layout.configuration.clone());
    if merged != *snapshot.schema {
        metadata.schema_string = schema::to_json(&merged);
    }
    Ok((metadata != snapshot.metadata).then_some(metadata))
}

/// Removes the newest commit if a power loss left it unreadable. Only on a local file system:
/// object stores write whole objects. Only the newest: anything else is damage to be looked at.
pub(super) async fn remove_torn_commit(store: &Store, table: &Path) -> Result<()> {
    if store.folder().is_none() {
        return Ok(());
    }
    let Some(newest) = log::list(store, table).await?.newest else { return Ok(()) };
    let path = commit_path(table, newest);
    let what = || format!("reading {path}");
    let bytes = match store.objects().get(&path).await {
        Ok(found) => found.bytes().await.map_err(Error::store(what()))?,
        Err(StoreError::NotFound { .. }) => return Ok(()),
        Err(e) => return Err(Error::store(what())(e)),
    };
    if decode(path.as_ref(), &bytes).is_ok() {
        return Ok(());
    }
    let foreign = !bytes.is_empty() && !String::from_utf8_lossy(&bytes).contains("tidegate/");
    if foreign {
        return Err(Error::log(path, "is damaged, and not written by tidegate"));
    }
    tracing::warn!(%path, "removing a torn commit; its rows come again from the journal");
    store.objects().delete(&path).await.map_err(Error::store(format!("removing {path}")))?;
    Ok(store.sync_folder(&log::folder(table))?)
}

/// Writes a checkpoint of the log now and then. A failure costs time later, not data.
pub(super) async fn checkpoint_if_due(store: &Store, table: &Path, version: u64) {
    if version == 0 || !version.is_multiple_of(CHECKPOINT_COMMITS) {
        return;
    }
    if let Err(error) = checkpoint::write(store, table, version).await {
        tracing::warn!(%error, %table, "no checkpoint of the log was written");
    }
}
