//! The state of the hand-written loop: per device a ring of window panes, or a running mean, and
//! the Parquet file that results go to.
//!
//! Panes close for all devices at once when the newest reading has passed their end by 5 s; the
//! generator's readings are never later than that.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use arrow::array::{ArrayRef, Float64Builder, Int64Builder, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use hashbrown::HashMap;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::Job;

const PANE_MS: i64 = 10_000;
const DISORDER_MS: i64 = 5_000;
/// Panes of a device that are kept: the six of a window, two for the disorder, and those that the
/// readings of two chunks may begin before anything is closed.
const RING: usize = 32;
const ALPHA: f64 = 0.05;
const WARMUP: u32 = 30;
const THRESHOLD: f64 = 4.0;
const BATCH_ROWS: usize = 65_536;

/// Count, extremes, and mean and squared deviations by Welford's method.
#[derive(Clone, Copy)]
struct Pane {
    n: u32,
    min: f64,
    max: f64,
    mean: f64,
    m2: f64,
}

impl Pane {
    const EMPTY: Self =
        Self { n: 0, min: f64::INFINITY, max: f64::NEG_INFINITY, mean: 0.0, m2: 0.0 };

    #[inline(always)]
    fn add(&mut self, x: f64) {
        self.n += 1;
        let delta = x - self.mean;
        self.mean += delta / f64::from(self.n);
        self.m2 += delta * (x - self.mean);
        self.min = self.min.min(x);
        self.max = self.max.max(x);
    }

    fn merge(&mut self, other: &Self) {
        if other.n == 0 {
            return;
        }
        if self.n == 0 {
            *self = *other;
            return;
        }
        let (a, b) = (f64::from(self.n), f64::from(other.n));
        let delta = other.mean - self.mean;
        self.mean += delta * b / (a + b);
        self.m2 += other.m2 + delta * delta * a * b / (a + b);
        self.n += other.n;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }
}

/// Exponentially weighted mean and variance.
#[derive(Clone, Copy, Default)]
struct Running {
    n: u32,
    mean: f64,
    variance: f64,
}

/// One thread's devices.
pub(crate) struct State {
    job: Job,
    /// Panes of a window.
    panes: i64,
    devices: HashMap<Box<[u8]>, u32>,
    names: Vec<Box<[u8]>>,
    rings: Vec<[Pane; RING]>,
    running: Vec<Running>,
    /// The oldest pane that is open; none before the first reading.
    next: Option<i64>,
    newest_pane: i64,
    newest_ms: i64,
    out: Output,
}

impl State {
    /// Results go to the Parquet file `out`.
    pub(crate) fn new(job: Job, out: &Path) -> Result<Self> {
        Ok(Self {
            job,
            panes: if job == Job::W2 { 6 } else { 1 },
            devices: HashMap::new(),
            names: Vec::new(),
            rings: Vec::new(),
            running: Vec::new(),
            next: None,
            newest_pane: 0,
            newest_ms: 0,
            out: Output::new(out)?,
        })
    }

    /// Takes a reading whose status is `ok`.
    #[inline]
    pub(crate) fn add(&mut self, device: &[u8], ts_ms: i64, value: f64) {
        let id = match self.devices.get(device) {
            Some(id) => *id as usize,
            None => self.add_device(device),
        };
        if self.job == Job::W3 {
            return self.judge(id, ts_ms, value);
        }
        let pane = ts_ms / PANE_MS;
        // The first reading may be one of the old ones, or not: two panes may still come.
        let next = *self.next.get_or_insert(pane - 2);
        let ahead = pane - next;
        assert!(ahead >= 0, "the generator keeps the disorder bound");
        assert!(ahead <= RING as i64 - self.panes, "too few readings per second for the ring");
        self.newest_pane = self.newest_pane.max(pane);
        self.rings[id][pane as usize % RING].add(value);
    }

    fn add_device(&mut self, device: &[u8]) -> usize {
        let id = self.names.len();
        self.devices.insert(device.into(), id as u32);
        self.names.push(device.into());
        match self.job {
            Job::W3 => self.running.push(Running::default()),
            Job::W1 | Job::W2 => self.rings.push([Pane::EMPTY; RING]),
        }
        id
    }

    fn judge(&mut self, id: usize, ts_ms: i64, x: f64) {
        let Running { n, mean, variance } = &mut self.running[id];
        if *n >= WARMUP && *variance > 0.0 {
            let z = (x - *mean) / variance.sqrt();
            if z.abs() > THRESHOLD {
                let row = Pane { n: 1, mean: x, min: z, max: z, m2: 0.0 };
                self.out.push(&self.names[id], ts_ms, &row);
            }
        }
        let delta = x - *mean;
        if *n == 0 {
            *mean = x;
        } else {
            *mean += ALPHA * delta;
            *variance = (1.0 - ALPHA) * (*variance + ALPHA * delta * delta);
        }
        *n += 1;
    }

    /// Tells that a reading of `newest_ms` was seen, by whichever thread.
    pub(crate) fn advance(&mut self, newest_ms: i64) -> Result<()> {
        self.newest_ms = self.newest_ms.max(newest_ms);
        while let Some(next) = self.next
            && (next + 1) * PANE_MS <= self.newest_ms - DISORDER_MS
        {
            self.close(next);
        }
        self.out.flush_if_full()
    }

    /// Emits the windows that end with a pane and frees the oldest one.
    fn close(&mut self, pane: i64) {
        let first = pane - self.panes + 1;
        for (name, ring) in self.names.iter().zip(&mut self.rings) {
            let mut window = Pane::EMPTY;
            for p in first..=pane {
                window.merge(&ring[p as usize % RING]);
            }
            if window.n > 0 {
                self.out.push(name, first * PANE_MS, &window);
            }
            ring[first as usize % RING] = Pane::EMPTY;
        }
        self.next = Some(pane + 1);
    }

    /// Closes all windows and the file; the rows written.
    pub(crate) fn finish(mut self) -> Result<u64> {
        while let Some(next) = self.next
            && next < self.newest_pane + self.panes
        {
            self.close(next);
        }
        self.out.flush()?;
        self.out.writer.close()?;
        Ok(self.out.rows)
    }
}

struct Output {
    writer: ArrowWriter<File>,
    schema: SchemaRef,
    device: StringBuilder,
    window_start: Int64Builder,
    n: Int64Builder,
    /// avg, min, max, sd
    values: [Float64Builder; 4],
    rows: u64,
}

impl Output {
    fn new(path: &Path) -> Result<Self> {
        let field = |name: &str, kind| Field::new(name, kind, false);
        let mut fields = vec![
            field("device", DataType::Utf8),
            field("window_start", DataType::Int64),
            field("n", DataType::Int64),
        ];
        fields.extend(["avg", "min", "max", "sd"].map(|name| field(name, DataType::Float64)));
        let schema = Arc::new(Schema::new(fields));
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
            .build();
        let file = File::create(path)?;
        Ok(Self {
            writer: ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties))?,
            schema,
            device: StringBuilder::new(),
            window_start: Int64Builder::new(),
            n: Int64Builder::new(),
            values: std::array::from_fn(|_| Float64Builder::new()),
            rows: 0,
        })
    }

    fn push(&mut self, device: &[u8], start_ms: i64, pane: &Pane) {
        self.device.append_value(String::from_utf8_lossy(device));
        self.window_start.append_value(start_ms);
        self.n.append_value(i64::from(pane.n));
        let sd = (pane.m2 / f64::from(pane.n)).max(0.0).sqrt();
        for (column, value) in self.values.iter_mut().zip([pane.mean, pane.min, pane.max, sd]) {
            column.append_value(value);
        }
        self.rows += 1;
    }

    fn flush_if_full(&mut self) -> Result<()> {
        if arrow::array::ArrayBuilder::len(&self.n) >= BATCH_ROWS { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.device.finish()),
            Arc::new(self.window_start.finish()),
            Arc::new(self.n.finish()),
        ];
        for column in &mut self.values {
            columns.push(Arc::new(column.finish()));
        }
        self.writer.write(&RecordBatch::try_new(Arc::clone(&self.schema), columns)?)?;
        Ok(())
    }
}
