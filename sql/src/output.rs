//! Query results as text or bytes: aligned table, CSV, JSON lines, Parquet.
//!
//! All but the table are written as the batches come; the table needs its widths first and is cut
//! after a number of rows, and says so.

use std::io::{self, Write};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::csv;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::json;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches_with_options;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use crate::{Error, Result};

/// Times without a zone are UTC like all others.
const UTC_FORMAT: &str = "%Y-%m-%dT%H:%M:%S%.fZ";

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputFormat {
    /// Aligned columns, cut after a number of rows.
    #[default]
    Table,
    /// RFC 4180 with a header line; null is empty.
    Csv,
    /// One JSON object per line; times in RFC 3339.
    Json,
    /// One Parquet file.
    Parquet,
}

impl FromStr for OutputFormat {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "table" => Ok(Self::Table),
            "csv" => Ok(Self::Csv),
            "json" => Ok(Self::Json),
            "parquet" => Ok(Self::Parquet),
            _ => Err(format!("unknown format `{text}`: table, csv, json or parquet")),
        }
    }
}

/// A place for Parquet's writer, which wants to own what it writes to.
#[derive(Clone, Default)]
pub(crate) struct Pipe(Arc<Mutex<Vec<u8>>>);

impl Pipe {
    fn drain(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        out.write_all(&bytes)?;
        bytes.clear();
        Ok(())
    }
}

impl Write for Pipe {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the batches of one result.
pub(crate) enum Sink {
    Table { schema: SchemaRef, batches: Vec<RecordBatch>, rows: usize, rows_max: usize, cut: bool },
    Csv { schema: SchemaRef, started: bool },
    Json,
    Parquet { writer: Box<ArrowWriter<Pipe>>, pipe: Pipe },
}

impl Sink {
    pub(crate) fn new(format: OutputFormat, schema: SchemaRef, rows_max: usize) -> Result<Self> {
        Ok(match format {
            OutputFormat::Table => {
                Self::Table { schema, batches: Vec::new(), rows: 0, rows_max, cut: false }
            }
            OutputFormat::Csv => Self::Csv { schema, started: false },
            OutputFormat::Json => Self::Json,
            OutputFormat::Parquet => {
                let zstd = Compression::ZSTD(ZstdLevel::default());
                let properties = WriterProperties::builder().set_compression(zstd).build();
                let pipe = Pipe::default();
                let writer = ArrowWriter::try_new(pipe.clone(), schema, Some(properties))?;
                Self::Parquet { writer: Box::new(writer), pipe }
            }
        })
    }

    /// Takes one batch; false if no more are wanted.
    pub(crate) fn write(&mut self, batch: &RecordBatch, out: &mut dyn Write) -> Result<bool> {
        match self {
            Self::Table { batches, rows, rows_max, cut, .. } => {
                let room = *rows_max - *rows;
                *cut = batch.num_rows() > room;
                let taken = batch.slice(0, batch.num_rows().min(room));
                *rows += taken.num_rows();
                batches.push(taken);
                return Ok(!*cut);
            }
            Self::Csv { started, .. } => {
                write_csv(batch, !std::mem::replace(started, true), out)?;
            }
            Self::Json => {
                let builder = json::WriterBuilder::new().with_explicit_nulls(true);
                let builder = builder.with_timestamp_format(UTC_FORMAT.into());
                let mut writer = builder.build::<_, json::writer::LineDelimited>(out);
                writer.write(batch)?;
                writer.finish()?;
            }
            Self::Parquet { writer, pipe } => {
                writer.write(batch)?;
                pipe.drain(out)?;
            }
        }
        Ok(true)
    }

    /// Ends the result.
    pub(crate) fn finish(self, out: &mut dyn Write) -> Result<()> {
        match self {
            Self::Table { schema, batches, rows_max, cut, .. } => {
                let batches =
                    if batches.is_empty() { vec![RecordBatch::new_empty(schema)] } else { batches };
                let options = FormatOptions::default().with_null("NULL").with_display_error(true);
                writeln!(out, "{}", pretty_format_batches_with_options(&batches, &options)?)?;
                if cut {
                    writeln!(
                        out,
                        "Only the first {rows_max} rows are shown. For all of them use \
                         `-o csv`, `-o json` or `-o parquet`; for fewer add a LIMIT."
                    )?;
                }
            }
            Self::Csv { schema, started: false } => {
                write_csv(&RecordBatch::new_empty(schema), true, out)?;
            }
            Self::Csv { .. } | Self::Json => {}
            Self::Parquet { writer, pipe } => {
                writer.close()?;
                pipe.drain(out)?;
            }
        }
        Ok(out.flush()?)
    }
}

fn write_csv(batch: &RecordBatch, header: bool, out: &mut dyn Write) -> Result<()> {
    let builder = csv::WriterBuilder::new().with_header(header);
    let builder = builder.with_timestamp_format(UTC_FORMAT.into());
    builder.with_timestamp_tz_format(UTC_FORMAT.into()).build(out).write(&flat(batch)?)?;
    Ok(())
}

/// `batch` with nested columns as text, which is all that CSV can hold.
fn flat(batch: &RecordBatch) -> Result<RecordBatch> {
    let options = FormatOptions::default().with_display_error(true);
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        if !field.data_type().is_nested() {
            fields.push(field.as_ref().clone());
            columns.push(Arc::clone(column));
            continue;
        }
        let formatter = ArrayFormatter::try_new(column.as_ref(), &options)?;
        let text = (0..column.len())
            .map(|row| column.is_valid(row).then(|| formatter.value(row).to_string()));
        columns.push(Arc::new(text.collect::<StringArray>()));
        fields.push(Field::new(field.name(), DataType::Utf8, true));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(Error::from)
}
