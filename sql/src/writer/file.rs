//! Buffered rows as Parquet files: one per partition, named by what is in it.
//!
//! Names are a function of writer, epochs and content: a repeated upload after a crash overwrites
//! the same bytes, and no upload can ever change a file that a commit names.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::interleave_record_batch;
use arrow::datatypes::{Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::layout::{DAY, Layout};
use super::rows::{self, PartitionKey, RowId};
use crate::Result;
use crate::delta::path;
use crate::delta::stats::StatsBuilder;

/// Rows of a row group: the unit that readers skip and that workers share.
const ROW_GROUP_ROWS: usize = 1 << 20;

/// Rows that are put into order and encoded at a time, so that a large buffer is not copied whole.
const CHUNK_ROWS: usize = 1 << 16;

/// Higher levels save little on sorted columns and cost much more time.
const ZSTD_LEVEL: i32 = 1;

/// Note in the footer of a file whose folders had to be cut: JSON object of the partition columns.
pub(crate) const PARTITION_KEY: &str = "tidegate.partition";

/// A file that is ready to be uploaded.
pub(super) struct EncodedFile {
    /// Below the table's folder, folders escaped.
    pub(super) path: String,
    pub(super) partition_values: BTreeMap<String, Option<String>>,
    pub(super) bytes: Vec<u8>,
    pub(super) rows: u64,
    pub(super) stats: String,
}

/// All rows of `batches` as files, numbered from `number` on.
pub(super) fn encode_all(
    layout: &Layout,
    batches: &[RecordBatch],
    label: &str,
    number: usize,
) -> Result<Vec<EncodedFile>> {
    let groups = rows::partitions(layout, batches)?;
    let stored = &layout.stored;
    let kept: Vec<usize> =
        (0..stored.fields().len()).filter(|c| !layout.partition.contains(c)).collect();
    let schema: SchemaRef = Arc::new(plain(&stored.project(&kept)?));
    let narrow = |b: &RecordBatch| {
        let columns = kept.iter().map(|c| b.column(*c).clone()).collect();
        Ok(RecordBatch::try_new(Arc::clone(&schema), columns)?)
    };
    let narrow: Vec<RecordBatch> = batches.iter().map(narrow).collect::<Result<_>>()?;
    let narrow: Vec<&RecordBatch> = narrow.iter().collect();
    let mut files = Vec::with_capacity(groups.len());
    for (i, (key, ids)) in groups.into_iter().enumerate() {
        let (folder, partition_values) = partition(layout, &key);
        let note = path::is_cut(&folder).then(|| note(&partition_values));
        let (bytes, stats) = encode(layout, &schema, &narrow, (&ids, note))?;
        let hash = xxhash_rust::xxh3::xxh3_64(&bytes) as u32;
        let name = format!("part-{label}-{:04}-{hash:08x}.parquet", number + i);
        let path = format!("{folder}/{name}");
        files.push(EncodedFile { path, partition_values, bytes, rows: ids.len() as u64, stats });
    }
    Ok(files)
}

/// Units and other notes of a column are in the log; inside files they would only cost bytes.
fn plain(schema: &Schema) -> Schema {
    let fields = schema.fields().iter().map(|f| f.as_ref().clone().with_metadata([].into()));
    Schema::new(fields.collect::<Vec<_>>())
}

/// Folders of a file, and the true values of its partition columns.
fn partition(
    layout: &Layout,
    (day, values): &PartitionKey,
) -> (String, BTreeMap<String, Option<String>>) {
    let day = day.and_then(|d| chrono::NaiveDate::from_epoch_days(d).map(|d| d.to_string()));
    // Every engine reads an empty partition value as null; then let it be written as null.
    let named = layout.partition.iter().zip(values).map(|(column, value)| {
        let value = value.as_deref().filter(|v| !v.is_empty());
        (layout.stored.field(*column).name().as_str(), value)
    });
    let columns: Vec<_> = std::iter::once((DAY, day.as_deref())).chain(named).collect();
    let owned = |(name, value): &(&str, Option<&str>)| ((*name).into(), value.map(str::to_owned));
    (path::folders(&columns), columns.iter().map(owned).collect())
}

/// What a file says itself where its folders cannot: without the log nobody else knows it.
fn note(partition_values: &BTreeMap<String, Option<String>>) -> KeyValue {
    let text = serde_json::to_string(partition_values).expect("text is JSON");
    KeyValue::new(PARTITION_KEY.to_owned(), text)
}

fn properties(
    layout: &Layout,
    schema: &Schema,
    rows: usize,
    note: Option<KeyValue>,
) -> Result<WriterProperties> {
    let mut properties = WriterProperties::builder()
        .set_created_by("tidegate".into())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_key_value_metadata(note.map(|note| vec![note]));
    let sorted = layout.sort.iter().chain([&layout.time]);
    let sorted: Vec<SortingColumn> = sorted
        .filter_map(|c| schema.index_of(layout.stored.field(*c).name()).ok())
        .filter_map(|c| i32::try_from(c).ok())
        .map(|column_idx| SortingColumn { column_idx, descending: false, nulls_first: true })
        .collect();
    // Positions in the Parquet schema equal ours only without nested columns before them.
    if !schema.fields().iter().any(|f| f.data_type().is_nested()) {
        properties = properties.set_sorting_columns(Some(sorted));
    }
    if layout.device.is_some() {
        let device = ColumnPath::from("device");
        properties = properties
            .set_column_bloom_filter_enabled(device.clone(), true)
            .set_column_bloom_filter_max_ndv(device, rows.min(ROW_GROUP_ROWS) as u64);
    }
    Ok(properties.build())
}

fn encode(
    layout: &Layout,
    schema: &SchemaRef,
    batches: &[&RecordBatch],
    (ids, note): (&[RowId], Option<KeyValue>),
) -> Result<(Vec<u8>, String)> {
    let properties = properties(layout, schema, ids.len(), note)?;
    let options = ArrowWriterOptions::new().with_properties(properties);
    let options = options.with_skip_arrow_metadata(true);
    let mut writer = ArrowWriter::try_new_with_options(Vec::new(), Arc::clone(schema), options)?;
    let mut stats = StatsBuilder::new(schema.fields().len());
    for chunk in ids.chunks(CHUNK_ROWS) {
        let batch = interleave_record_batch(batches, chunk)?;
        stats.update(&batch);
        writer.write(&batch)?;
    }
    Ok((writer.into_inner()?, stats.finish(schema)))
}
