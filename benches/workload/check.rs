//! Checksums of results that do not depend on the order of rows or on how they are cut into files.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimeUnit};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::Job;

/// What a result adds up to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Checksum {
    /// Rows.
    pub(crate) rows: u64,
    /// Sum of `n`.
    pub(crate) readings: i64,
    /// Sum of a small hash of device, window and `n`.
    pub(crate) keysum: i64,
    /// Sums of `avg`, `min`, `max` and `sd`.
    pub(crate) values: [f64; 4],
}

/// Results of the first `lines` lines of the standard workload on which the hand-written loop,
/// DuckDB and Polars agree; none where no reference was computed.
pub(crate) fn reference(job: Job, lines: u64) -> Option<Checksum> {
    let (rows, readings, keysum, values) = match (job, lines) {
        (Job::W1, 10_000_000) => (
            1_003_834,
            9_790_008,
            468_978_607_312,
            [23_040_203.837, 22_293_490.68, 23_800_729.43, 460_220.715],
        ),
        (Job::W2, 10_000_000) => (
            1_053_882,
            58_740_048,
            521_284_916_453,
            [24_188_923.426, 22_989_379.22, 25_485_580.24, 535_564.839],
        ),
        (Job::W3, 10_000_000) => {
            (3_936, 3_936, 619_851_968, [108_833.68, 37_002.76, 37_002.76, 0.0])
        }
        (Job::W1, 1_000_000) => (
            103_880,
            979_235,
            47_584_290_332,
            [2_384_336.998, 2_309_557.02, 2_460_454.43, 46_186.939],
        ),
        (Job::W2, 1_000_000) => (
            153_881,
            5_875_410,
            74_295_419_882,
            [3_532_012.26, 3_376_642.86, 3_696_943.59, 74_853.915],
        ),
        (Job::W3, 1_000_000) => (339, 339, 52_103_988, [9_034.36, 2_647.51, 2_647.51, 0.0]),
        _ => return None,
    };
    Some(Checksum { rows, readings, keysum, values })
}

/// The same for 100,000 lines of 100 devices over 1,000 s; W1 and W2 as DuckDB has them too.
pub(crate) fn small_reference(job: Job) -> Checksum {
    let (rows, readings, keysum, values) = match job {
        Job::W1 => {
            (10_039, 97_958, 1_697_533_839, [230_405.709, 222_933.19, 238_091.68, 4_631.328])
        }
        Job::W2 => {
            (10_539, 587_748, 2_303_710_024, [241_881.063, 229_926.49, 255_342.48, 5_423.169])
        }
        Job::W3 => (41, 41, 7_047_845, [1_242.62, 546.15, 546.15, 0.0]),
    };
    Checksum { rows, readings, keysum, values }
}

impl Checksum {
    /// Adds up Parquet files with the columns of the hand-written loop (`device`, `window_start`,
    /// `n`, `avg`, `min`, `max`, `sd`) or of findings (`device`, `time`, `value`, `score`).
    /// Times are milliseconds or timestamps.
    pub(crate) fn of_files(files: &[PathBuf]) -> Result<Self> {
        let mut sum = Self::default();
        for file in files {
            let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(file)?)?.build()?;
            for batch in reader {
                sum.add(&batch?).with_context(|| file.display().to_string())?;
            }
        }
        Ok(sum)
    }

    /// The same for all Parquet files below a folder.
    pub(crate) fn of_folder(folder: &Path) -> Result<Self> {
        let mut files = Vec::new();
        collect(folder, &mut files)?;
        ensure!(!files.is_empty(), "no Parquet file below {}", folder.display());
        Self::of_files(&files)
    }

    fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let findings = batch.column_by_name("score").is_some();
        let device = text(batch, "device")?;
        let start = milliseconds(batch, if findings { "time" } else { "window_start" })?;
        let names = if findings {
            ["value", "score", "score", "score"]
        } else {
            ["avg", "min", "max", "sd"]
        };
        let n = if findings { None } else { Some(integers(batch, "n")?) };
        let values = names.map(|name| floats(batch, name));
        for row in 0..batch.num_rows() {
            let n = n.as_ref().map_or(1, |n| n.value(row));
            let number: i64 = device.value(row)[2..].parse()?;
            let key = number * 31 + start.value(row).div_euclid(10_000);
            self.rows += 1;
            self.readings += n;
            self.keysum += (n * key) % 1_000_003;
        }
        for (i, (sum, values)) in self.values.iter_mut().zip(values).enumerate() {
            if !(findings && i == 3) {
                *sum += values?.values().iter().sum::<f64>();
            }
        }
        Ok(())
    }

    /// Whether two results are the same: counts and keys exactly, sums of floats but for the order
    /// in which they were added and the digits that references give.
    pub(crate) fn agrees(&self, other: &Self) -> bool {
        let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 0.006 + 1e-9 * b.abs();
        self.rows == other.rows
            && self.readings == other.readings
            && self.keysum == other.keysum
            && self.values.iter().zip(&other.values).all(close)
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            // Checkpoints of the log are Parquet files too.
            if path.file_name().is_none_or(|name| name != "_delta_log") {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|e| e == "parquet") {
            files.push(path);
        }
    }
    Ok(())
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(name).with_context(|| format!("no column {name}"))
}

fn text(batch: &RecordBatch, name: &str) -> Result<StringArray> {
    Ok(cast(column(batch, name)?, &DataType::Utf8)?.as_string::<i32>().clone())
}

fn integers(batch: &RecordBatch, name: &str) -> Result<Int64Array> {
    Ok(cast(column(batch, name)?, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}

fn floats(batch: &RecordBatch, name: &str) -> Result<Float64Array> {
    Ok(cast(column(batch, name)?, &DataType::Float64)?.as_primitive::<Float64Type>().clone())
}

fn milliseconds(batch: &RecordBatch, name: &str) -> Result<Int64Array> {
    let column = column(batch, name)?;
    let times = match column.data_type() {
        DataType::Timestamp(_, zone) => {
            cast(column, &DataType::Timestamp(TimeUnit::Millisecond, zone.clone()))?
        }
        _ => ArrayRef::clone(column),
    };
    Ok(cast(&times, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}
