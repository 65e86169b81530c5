//! Classic checkpoints: the whole state of a log at one version as Parquet, so that opening a
//! table does not read every commit since its birth.
//!
//! Both directions go through the JSON form of the actions, so that one place (`action`) knows
//! their fields. A checkpoint only repeats what commits say: losing one costs time, not data.

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::json::{ReaderBuilder, WriterBuilder, writer::LineDelimited};
use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde::Deserialize;
use tokio::sync::oneshot;

use super::action::{self, Action, decode};
use super::log::{self, Replay};
use crate::{Error, Result, Store};

/// Actions after which a row group ends. What a group takes while it is made is kept by each thread
/// that ever made one, so it must not grow with the table.
const GROUP_ROWS: usize = 2048;

fn map(name: &str) -> Field {
    let entries = Fields::from(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("value", DataType::Utf8, true),
    ]);
    let entries = Field::new("key_value", DataType::Struct(entries), false);
    Field::new(name, DataType::Map(Arc::new(entries), false), true)
}

fn group(name: &str, fields: Vec<Field>) -> Field {
    Field::new(name, DataType::Struct(fields.into()), true)
}

fn schema() -> Schema {
    let text = |n: &str| Field::new(n, DataType::Utf8, true);
    let long = |n: &str| Field::new(n, DataType::Int64, true);
    let int = |n: &str| Field::new(n, DataType::Int32, true);
    let flag = |n: &str| Field::new(n, DataType::Boolean, true);
    let names = DataType::List(Arc::new(Field::new("element", DataType::Utf8, true)));
    Schema::new(vec![
        group("txn", vec![text("appId"), long("version"), long("lastUpdated")]),
        group(
            "add",
            vec![
                text("path"),
                map("partitionValues"),
                long("size"),
                long("modificationTime"),
                flag("dataChange"),
                text("stats"),
            ],
        ),
        group("remove", vec![text("path"), long("deletionTimestamp"), flag("dataChange")]),
        group(
            "metaData",
            vec![
                text("id"),
                text("name"),
                group("format", vec![text("provider"), map("options")]),
                text("schemaString"),
                Field::new("partitionColumns", names, true),
                map("configuration"),
                long("createdTime"),
            ],
        ),
        group("protocol", vec![int("minReaderVersion"), int("minWriterVersion")]),
    ])
}

/// Parquet bytes of a checkpoint, batch by batch.
struct Encoder {
    schema: Arc<Schema>,
    writer: ArrowWriter<Vec<u8>>,
    actions: usize,
    metadata: bool,
    protocol: bool,
}

impl Encoder {
    fn new() -> Result<Self> {
        let schema = Arc::new(schema());
        let zstd = Compression::ZSTD(ZstdLevel::default());
        let properties = WriterProperties::builder().set_compression(zstd).build();
        let writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&schema), Some(properties))?;
        Ok(Self { schema, writer, actions: 0, metadata: false, protocol: false })
    }

    fn push(&mut self, mut actions: Vec<Action>) -> Result<()> {
        for action in &mut actions {
            // Inside a checkpoint nothing is a change.
            if let Some(add) = &mut action.add {
                add.data_change = false;
            }
            self.metadata |= action.meta_data.is_some();
            self.protocol |= action.protocol.is_some();
        }
        self.actions += actions.len();
        let json = action::encode(&actions);
        for batch in ReaderBuilder::new(Arc::clone(&self.schema)).build(Cursor::new(json))? {
            self.writer.write(&batch?)?;
        }
        if self.writer.in_progress_rows() >= GROUP_ROWS {
            self.writer.flush()?;
        }
        Ok(())
    }
}

/// A checkpoint that says what `old` checkpoints (path as shown, bytes) say and what `tail`, which
/// is newer, has made of it: its bytes, and how many actions it holds. In memory are what `tail`
/// has and one batch of the old ones, however many files the table has.
fn encode(table: &Path, old: Vec<(String, Bytes)>, tail: Replay) -> Result<(Vec<u8>, usize)> {
    let mut encoder = Encoder::new()?;
    for (shown, bytes) in old {
        each_batch(&shown, bytes, |mut actions| {
            actions.iter().try_for_each(|action| log::understood(&shown, action))?;
            actions.retain(|action| tail.leaves(action) && *action != Action::default());
            encoder.push(actions)
        })?;
    }
    encoder.push(tail.into_actions())?;
    for (there, what) in [(encoder.metadata, "metaData"), (encoder.protocol, "protocol")] {
        if !there {
            return Err(log::missing(table, what));
        }
    }
    Ok((encoder.writer.into_inner()?, encoder.actions))
}

fn to_json(batch: &RecordBatch) -> Result<Vec<u8>> {
    // Explicit nulls keep null partition values apart from missing ones.
    let builder = WriterBuilder::new().with_explicit_nulls(true);
    let mut writer = builder.build::<_, LineDelimited>(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    Ok(writer.into_inner())
}

/// Gives the actions of a checkpoint file, one batch after the other.
fn each_batch(
    shown: &str,
    bytes: Bytes,
    mut take: impl FnMut(Vec<Action>) -> Result<()>,
) -> Result<()> {
    for batch in ParquetRecordBatchReaderBuilder::try_new(bytes)?.build()? {
        take(decode(shown, &to_json(&batch?)?)?)?;
    }
    Ok(())
}

async fn bytes_of(store: &Store, path: &Path) -> Result<Bytes> {
    let what = || format!("reading {path}");
    let found = store.objects().get(path).await.map_err(Error::store(what()))?;
    found.bytes().await.map_err(Error::store(what()))
}

/// The actions of one checkpoint file.
pub(crate) async fn read(store: &Store, path: &Path) -> Result<Vec<Action>> {
    let (bytes, shown) = (bytes_of(store, path).await?, path.to_string());
    tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        each_batch(&shown, bytes, |actions| {
            all.extend(actions);
            Ok(())
        })?;
        Ok(all)
    })
    .await?
}

/// A checkpoint: its version, and its parts (path as shown, bytes).
type Parts = (u64, Vec<(String, Bytes)>);

/// The newest checkpoint. The hint saves the listing of a log that may be long; it is only a hint.
async fn newest(store: &Store, table: &Path) -> Result<Option<Parts>> {
    if let Some(version) = read_hint(store, table).await {
        let path = checkpoint_path(table, version);
        if let Ok(bytes) = bytes_of(store, &path).await {
            return Ok(Some((version, vec![(path.to_string(), bytes)])));
        }
    }
    let Some((version, paths)) = log::list(store, table).await?.checkpoint else { return Ok(None) };
    let mut parts = Vec::new();
    for path in &paths {
        parts.push((path.to_string(), bytes_of(store, path).await?));
    }
    Ok(Some((version, parts)))
}

fn checkpoint_path(table: &Path, version: u64) -> Path {
    log::folder(table).join(format!("{version:020}.checkpoint.parquet"))
}

/// Writes the checkpoint of `version` from the one before it and the commits since, then the hint
/// that names it. Does nothing if there is one that is as new.
pub(crate) async fn write(store: &Store, table: &Path, version: u64) -> Result<()> {
    let (old, next) = match newest(store, table).await? {
        Some((before, _)) if before >= version => return Ok(()),
        Some((before, parts)) => (parts, before + 1),
        None => (Vec::new(), 0),
    };
    let mut tail = Replay::default();
    for version in next..=version {
        let path = log::commit_path(table, version);
        let actions = log::read_commit(store, table, version).await?;
        tail.apply(path.as_ref(), actions.ok_or_else(|| log::absent(&path))?)?;
    }
    let shown = table.clone();
    // A thread of its own gives back what it took when it ends; those of a pool keep it, each.
    let (send, made) = oneshot::channel();
    let thread = std::thread::Builder::new().name("log checkpoint".into());
    thread.spawn(move || {
        // Nobody waits for it any more if this fails.
        drop(send.send(encode(&shown, old, tail)));
    })?;
    let (bytes, size) = made.await.map_err(|_| Error::log(table, "no checkpoint was made"))??;
    let path = checkpoint_path(table, version);
    let what = format!("writing {path}");
    store.objects().put(&path, bytes.into()).await.map_err(Error::store(what))?;
    let hint = serde_json::json!({"version": version, "size": size}).to_string();
    let path = log::folder(table).join("_last_checkpoint");
    let what = format!("writing {path}");
    store.objects().put(&path, hint.into()).await.map_err(Error::store(what))?;
    Ok(())
}

/// The version that `_last_checkpoint` names. It is only a hint: unreadable is as good as missing.
pub(crate) async fn read_hint(store: &Store, table: &Path) -> Option<u64> {
    #[derive(Deserialize)]
    struct Hint {
        version: u64,
    }
    let path = log::folder(table).join("_last_checkpoint");
    let bytes = store.objects().get(&path).await.ok()?.bytes().await.ok()?;
    Some(serde_json::from_slice::<Hint>(&bytes).ok()?.version)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::delta::action::{Add, FileFormat, Metadata, Protocol, Remove, Txn};
    use crate::delta::log::Snapshot;

    const DAY_MS: i64 = 86_400_000;
    const COMMITS: u64 = 60;

    fn head() -> Vec<Action> {
        let metadata = Metadata {
            id: "x".into(),
            name: None,
            format: FileFormat { provider: "parquet".into(), options: None },
            schema_string: r#"{"type":"struct","fields":[]}"#.into(),
            partition_columns: Vec::new(),
            configuration: Some([("a".into(), Some("0".into()))].into()),
            created_time: None,
        };
        let protocol = Protocol { min_reader_version: 1, min_writer_version: 2 };
        vec![
            Action { meta_data: Some(metadata), ..Action::default() },
            Action { protocol: Some(protocol), ..Action::default() },
        ]
    }

    /// A commit adds, removes or adds again one of twenty files; some change the settings.
    fn commit(n: u64) -> Vec<Action> {
        let word = xxhash_rust::xxh3::xxh3_64(&n.to_le_bytes());
        let (path, at) = (format!("{}.parquet", word % 20), i64::try_from(n).unwrap() * DAY_MS / 2);
        let app_id = format!("app {}", word % 3);
        let txn = Txn { app_id, version: i64::try_from(n).unwrap(), last_updated: None };
        let mut actions = vec![Action { txn: Some(txn), ..Action::default() }];
        if word >> 8 & 1 == 0 {
            let partition_values = [("s".into(), None)].into();
            let add = Add {
                path,
                partition_values,
                size: at,
                modification_time: at,
                data_change: true,
                stats: Some("{}".into()),
                deletion_vector: None,
            };
            actions.push(Action { add: Some(add), ..Action::default() });
        } else {
            let deletion_timestamp = (word >> 9 & 7 != 0).then_some(at);
            let remove = Remove { path, deletion_timestamp, data_change: true };
            actions.push(Action { remove: Some(remove), ..Action::default() });
        }
        if word >> 12 & 7 == 0 {
            let mut metadata = head().swap_remove(0).meta_data.unwrap();
            metadata.configuration = Some([("a".into(), Some(n.to_string()))].into());
            actions.push(Action { meta_data: Some(metadata), ..Action::default() });
        }
        actions
    }

    fn replay(commits: impl IntoIterator<Item = Vec<Action>>) -> Replay {
        let mut replay = Replay::default();
        for actions in commits {
            replay.apply("x", actions).unwrap();
        }
        replay
    }

    fn shown(snapshot: &Snapshot) -> String {
        let adds: Vec<_> =
            snapshot.files().map(|f| Add { data_change: false, ..f.add.clone() }).collect();
        format!(
            "{adds:?} {:?} {:?} {:?} {:?}",
            snapshot.txns, snapshot.removed, snapshot.metadata, snapshot.protocol
        )
    }

    #[test]
    fn a_checkpoint_made_of_the_one_before_equals_one_of_all_commits() {
        let table = Path::from("plant/t");
        for every in [1, 3, 7, 20] {
            let mut old = Vec::new();
            let mut since = vec![head()];
            for n in 1..=COMMITS {
                since.push(commit(n));
                if n % every != 0 {
                    continue;
                }
                let (bytes, size) = encode(&table, old, replay(since.drain(..))).unwrap();
                let bytes = Bytes::from(bytes);
                let mut read = Replay::default();
                let mut count = 0;
                each_batch("x", bytes.clone(), |actions| {
                    count += actions.len();
                    read.apply("x", actions)
                })
                .unwrap();
                assert_eq!(count, size);
                let read = read.finish(&table, n).unwrap();
                let all = replay(std::iter::once(head()).chain((1..=n).map(commit)));
                assert_eq!(shown(&read), shown(&all.finish(&table, n).unwrap()), "{every} {n}");
                // No file is named twice, by an action that something newer has undone.
                assert_eq!(size, 2 + read.txns.len() + read.files.len() + read.removed.len());
                old = vec![("x".into(), bytes)];
            }
        }
    }

    #[test]
    fn without_a_schema_there_is_no_checkpoint() {
        let table = Path::from("plant/t");
        let error = encode(&table, Vec::new(), replay([commit(1)])).unwrap_err();
        assert!(error.to_string().contains("no metaData"), "{error}");
    }
}
