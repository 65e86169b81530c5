//! Query results as text or bytes: aligned table, CSV, JSON lines, Parquet.
//!
//! All but the table are written as the batches come; the table needs its widths first and is cut
//! after a number of rows, and says so.

use std::io::{self, Write};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, StringArray};
use arrow::compute::cast;
use arrow::csv;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
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
                batches.push(readable(&taken)?);
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
    as_text(batch, DataType::is_nested, |column| {
        let formatter = ArrayFormatter::try_new(column, &options)?;
        let text = |row| column.is_valid(row).then(|| formatter.value(row).to_string());
        Ok((0..column.len()).map(text).collect())
    })
}

/// `batch` with lengths of time as people read them.
fn readable(batch: &RecordBatch) -> Result<RecordBatch> {
    as_text(
        batch,
        |kind| matches!(kind, DataType::Duration(_)),
        |column| {
            let DataType::Duration(unit) = column.data_type() else {
                return Ok(StringArray::new_null(column.len()));
            };
            let counts = cast(column, &DataType::Int64)?;
            let text = |count: Option<i64>| count.map(|count| length(count, *unit));
            Ok(counts.as_primitive::<Int64Type>().iter().map(text).collect())
        },
    )
}

/// `batch` with columns of some types as text.
fn as_text(
    batch: &RecordBatch,
    is_meant: impl Fn(&DataType) -> bool,
    text: impl Fn(&dyn Array) -> Result<StringArray>,
) -> Result<RecordBatch> {
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        match is_meant(field.data_type()) {
            false => {
                fields.push(field.as_ref().clone());
                columns.push(Arc::clone(column));
            }
            true => {
                fields.push(Field::new(field.name(), DataType::Utf8, true));
                columns.push(Arc::new(text(column.as_ref())?));
            }
        }
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let schema = Arc::new(Schema::new(fields));
    RecordBatch::try_new_with_options(schema, columns, &options).map_err(Error::from)
}

/// A length of time as PostgreSQL shows it, such as `2 days 23:08:09.5`.
fn length(count: i64, unit: TimeUnit) -> String {
    let (per_second, digits) = match unit {
        TimeUnit::Second => (1, 0),
        TimeUnit::Millisecond => (1_000, 3),
        TimeUnit::Microsecond => (1_000_000, 6),
        TimeUnit::Nanosecond => (1_000_000_000, 9),
    };
    let (seconds, fraction) = (count / per_second, (count % per_second).abs());
    let (days, rest) = (seconds / 86_400, (seconds % 86_400).abs());
    let days = match days {
        0 => String::new(),
        1 => "1 day ".to_owned(),
        _ => format!("{days} days "),
    };
    let sign = if count < 0 && (rest, fraction) != (0, 0) { "-" } else { "" };
    let (hours, minutes, seconds) = (rest / 3_600, rest / 60 % 60, rest % 60);
    let fraction = match fraction {
        0 => String::new(),
        _ => format!(".{fraction:0digits$}").trim_end_matches('0').to_owned(),
    };
    format!("{days}{sign}{hours:02}:{minutes:02}:{seconds:02}{fraction}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_shown_as_people_read_them() {
        for (count, unit, wanted) in [
            (5_016_000, TimeUnit::Microsecond, "00:00:05.016"),
            (-5_016, TimeUnit::Millisecond, "-00:00:05.016"),
            (86_400 + 3_661, TimeUnit::Second, "1 day 01:01:01"),
            (-86_400 * 3, TimeUnit::Second, "-3 days 00:00:00"),
            (
                -(86_400 * 2 * 1_000_000_000 + 1),
                TimeUnit::Nanosecond,
                "-2 days -00:00:00.000000001",
            ),
            (0, TimeUnit::Nanosecond, "00:00:00"),
        ] {
            assert_eq!(length(count, unit), wanted);
        }
    }
}
