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
use object_store::ObjectStoreExt;
use object_store::path::Path;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde::Deserialize;

use super::action::{self, Action, Txn, decode};
use super::log::{Snapshot, folder};
use crate::{Error, Result, Store};

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

fn actions_of(snapshot: &Snapshot) -> Vec<Action> {
    let empty = Action::default;
    let mut actions = vec![
        Action { protocol: Some(snapshot.protocol.clone()), ..empty() },
        Action { meta_data: Some(snapshot.metadata.clone()), ..empty() },
    ];
    actions.extend(snapshot.txns.iter().map(|(app_id, version)| {
        let txn = Txn { app_id: app_id.clone(), version: *version, last_updated: None };
        Action { txn: Some(txn), ..empty() }
    }));
    let adds = snapshot.files.values().map(|f| &f.add);
    actions.extend(adds.map(|a| Action { add: Some(a.clone()), ..empty() }));
    let removes = snapshot.removed.values();
    actions.extend(removes.map(|r| Action { remove: Some(r.clone()), ..empty() }));
    actions
}

/// A checkpoint of `snapshot` as Parquet bytes, and how many actions it holds.
fn encode(snapshot: &Snapshot) -> Result<(Vec<u8>, usize)> {
    let mut actions = actions_of(snapshot);
    for action in &mut actions {
        // Inside a checkpoint nothing is a change.
        if let Some(add) = &mut action.add {
            add.data_change = false;
        }
    }
    let schema = Arc::new(schema());
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let properties = WriterProperties::builder().set_compression(zstd).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&schema), Some(properties))?;
    let json = action::encode(&actions);
    for batch in ReaderBuilder::new(schema).build(Cursor::new(json))? {
        writer.write(&batch?)?;
    }
    Ok((writer.into_inner()?, actions.len()))
}

fn to_json(batches: &[RecordBatch]) -> Result<Vec<u8>> {
    // Explicit nulls keep null partition values apart from missing ones.
    let builder = WriterBuilder::new().with_explicit_nulls(true);
    let mut writer = builder.build::<_, LineDelimited>(Vec::new());
    writer.write_batches(&batches.iter().collect::<Vec<_>>())?;
    writer.finish()?;
    Ok(writer.into_inner())
}

/// The actions of one checkpoint file.
pub(crate) async fn read(store: &Store, path: &Path) -> Result<Vec<Action>> {
    let what = || format!("reading {path}");
    let found = store.objects().get(path).await.map_err(Error::store(what()))?;
    let bytes = found.bytes().await.map_err(Error::store(what()))?;
    let shown = path.to_string();
    tokio::task::spawn_blocking(move || {
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes)?.build()?;
        let batches = reader.collect::<Result<Vec<_>, _>>()?;
        decode(&shown, &to_json(&batches)?)
    })
    .await?
}

/// Writes the checkpoint of `snapshot`, then the hint that names it.
pub(crate) async fn write(store: &Store, table: &Path, snapshot: Arc<Snapshot>) -> Result<()> {
    let version = snapshot.version;
    let (bytes, size) = tokio::task::spawn_blocking(move || encode(&snapshot)).await??;
    let path = folder(table).join(format!("{version:020}.checkpoint.parquet"));
    let what = format!("writing {path}");
    store.objects().put(&path, bytes.into()).await.map_err(Error::store(what))?;
    let hint = serde_json::json!({"version": version, "size": size}).to_string();
    let path = folder(table).join("_last_checkpoint");
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
    let path = folder(table).join("_last_checkpoint");
    let bytes = store.objects().get(&path).await.ok()?.bytes().await.ok()?;
    Some(serde_json::from_slice::<Hint>(&bytes).ok()?.version)
}
