//! Parquet: each row becomes a JSON object with the columns as members, batch by batch.
//!
//! Times without a zone are taken as UTC, and what a float cannot say in JSON (NaN) is null.

use std::fs::File;
use std::ops::ControlFlow;

use anyhow::Context;
use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::json::WriterBuilder;
use arrow::json::writer::LineDelimited;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::sync::Arc;

use super::discover::{Found, Packing};
use super::feeder::{CHUNK_BYTES, Chunks};
use super::lines::lines;

/// Rows that are in memory at a time, beyond the pages that they are read from.
const BATCH_ROWS: usize = 1_024;

/// Reads a file of rows.
pub(super) fn read(found: &Found, feeder: &mut dyn Chunks) -> anyhow::Result<ControlFlow<()>> {
    let packed = found.packing != Packing::Plain;
    anyhow::ensure!(!packed, "Parquet files are packed inside: unpack it first");
    let file = File::open(&found.path)?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file)?;
    let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
    let share = |row: u64| u128::from(found.bytes) * u128::from(row) / u128::from(rows.max(1));
    let mut batches = builder.with_batch_size(BATCH_ROWS).build()?;
    let topic = found.topic.as_bytes();
    let (mut done, mut at_end) = (0, false);
    while !at_end {
        let (mut data, mut index) = feeder.chunk(topic);
        let before = done;
        while data.len() < CHUNK_BYTES {
            let Some(batch) = batches.next() else {
                at_end = true;
                break;
            };
            let written = batch.map_err(anyhow::Error::from).and_then(|b| write(&b, &mut data));
            done += written.with_context(|| format!("after row {done}"))?;
        }
        let fits = u32::try_from(data.len()).is_ok();
        anyhow::ensure!(fits, "the {BATCH_ROWS} rows before row {done} are longer than 4 GiB");
        lines(feeder.received_us(), topic.len(), topic.len(), &data, &mut index);
        feeder.add_bytes((share(done) - share(before)) as u64);
        if feeder.give(found.source, data, index).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    anyhow::ensure!(done == rows, "it should have {rows} rows and has {done}");
    Ok(ControlFlow::Continue(()))
}

/// Appends rows as lines of JSON; how many.
fn write(batch: &RecordBatch, data: &mut Vec<u8>) -> anyhow::Result<u64> {
    let batch = in_utc(batch)?;
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(data);
    writer.write(&batch)?;
    writer.finish()?;
    Ok(batch.num_rows() as u64)
}

/// The rows with every time in UTC and microseconds, as the rest of Tidegate has them.
fn in_utc(batch: &RecordBatch) -> anyhow::Result<RecordBatch> {
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let mut fields: Vec<Arc<Field>> = batch.schema().fields().to_vec();
    let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
    for (field, column) in fields.iter_mut().zip(&mut columns) {
        if matches!(field.data_type(), DataType::Timestamp(..)) && *field.data_type() != utc {
            *column = cast(column, &utc)?;
            *field = Arc::new(Field::new(field.name(), utc.clone(), true));
        }
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}
