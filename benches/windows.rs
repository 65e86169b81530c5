//! Every type of window over the common workload on one worker: rate beside that of tumbling
//! windows, memory per key, and what a million devices take.
//!
//! `cargo bench --bench windows -- [--lines N] [--kinds tumbling,session,...]
//! [--parts rate,memory,million]`
//! `rate`: the readings of the common workload, 10,000 devices with about a reading per second.
//! `memory`: a minute of 100,000 devices at that rate; what the process had at most beyond what it
//! has for 10,000, by device. `million`: windows of a minute for a million devices, each of which
//! sends about once a minute. Every measurement is a process of its own.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod product;
#[allow(dead_code, reason = "the other parts are for the common bench and for tests")]
mod workload;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use workload::check::Checksum;
use workload::generate::Workload;

/// A type of window by the keys that ask for it.
const KINDS: &[(&str, &str)] = &[
    ("tumbling", "every = '10s'"),
    ("hopping", "size = '60s'\nslide = '10s'"),
    ("calendar", "every = 'day'\nzone = 'Europe/Berlin'"),
    ("session", "gap = '3s'"),
    ("session-max", "gap = '3s'\nmax = '60s'"),
    ("count", "count = 10"),
    ("count-hop", "count = 60\nhop = 10"),
    ("state", "while = 'temperature > 20'"),
    ("sliding-at", "before = '60s'\nafter = '10s'\nat = 'temperature > 27'"),
    ("sliding-all", "before = '10s'"),
];

/// What a million devices are measured with.
const MINUTE: (&str, &str) = ("minute", "every = '1m'");

/// Readings per second of a device.
const RATE: u64 = 1;

/// What the command line asks for.
struct Options {
    lines: u64,
    kinds: Vec<&'static (&'static str, &'static str)>,
    parts: Vec<String>,
    /// In a child: the file of readings.
    data: Option<PathBuf>,
}

/// What a child measured.
struct Measured {
    seconds: f64,
    peak_mb: u64,
    rows: u64,
}

fn main() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    if let Some(data) = &options.data {
        return measure(options.kinds[0], data);
    }
    let has = |part: &str| options.parts.iter().any(|p| p == part);
    if has("rate") {
        rates(&options)?;
    }
    if has("memory") {
        memory(&options)?;
    }
    if has("million") {
        million()?;
    }
    Ok(())
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            lines: 4_000_000,
            kinds: KINDS.iter().collect(),
            parts: ["rate", "memory", "million"].map(str::to_owned).to_vec(),
            data: None,
        };
        while let Some(name) = arguments.next() {
            // Cargo says this to every bench.
            if name == "--bench" {
                continue;
            }
            let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--lines" => options.lines = value.parse()?,
                "--kinds" => options.kinds = value.split(',').map(kind).collect::<Result<_>>()?,
                "--parts" => options.parts = value.split(',').map(str::to_owned).collect(),
                "--data" => options.data = Some(value.into()),
                _ => bail!("unknown option {name} {value}"),
            }
        }
        Ok(options)
    }
}

fn kind(name: &str) -> Result<&'static (&'static str, &'static str)> {
    KINDS
        .iter()
        .chain([&MINUTE])
        .find(|(n, _)| *n == name)
        .with_context(|| format!("no type of window {name}"))
}

/// A folder below `target/` for everything that this bench writes.
fn scratch() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("windows")
}

fn rates(options: &Options) -> Result<()> {
    let standard = Workload::STANDARD;
    let workload = Workload { lines: standard.lines.max(options.lines), ..standard };
    let data = product::readings(&scratch(), workload, options.lines)?;
    // Once before, so that the file is in memory for all of them.
    in_child(kind("tumbling")?, &data)?;
    let tumbling = in_child(kind("tumbling")?, &data)?;
    for kind in &options.kinds {
        let this = in_child(kind, &data)?;
        println!(
            "rate {} readings_s={:.0} ratio={:.2} rows={} peak_mb={}",
            kind.0,
            options.lines as f64 / this.seconds,
            tumbling.seconds / this.seconds,
            this.rows,
            this.peak_mb,
        );
    }
    Ok(())
}

fn memory(options: &Options) -> Result<()> {
    let of = |devices: u64| -> Result<PathBuf> {
        let lines = devices * RATE * 60;
        product::readings(&scratch(), Workload { lines, devices, span_ms: 60_000 }, lines)
    };
    let (few, many) = (10_000, 100_000);
    let (few_data, many_data) = (of(few)?, of(many)?);
    for kind in &options.kinds {
        let (little, much) = (in_child(kind, &few_data)?, in_child(kind, &many_data)?);
        let bytes = much.peak_mb.saturating_sub(little.peak_mb) * 1_000_000;
        println!(
            "memory {} bytes_per_device={} peak_mb={}",
            kind.0,
            bytes / (many - few),
            much.peak_mb
        );
    }
    Ok(())
}

fn million() -> Result<()> {
    let workload = Workload { lines: 10_000_000, devices: 1_000_000, span_ms: 600_000 };
    let data = product::readings(&scratch(), workload, workload.lines)?;
    let this = in_child(&MINUTE, &data)?;
    println!(
        "million devices=1000000 readings_s={:.0} rows={} peak_mb={}",
        workload.lines as f64 / this.seconds,
        this.rows,
        this.peak_mb
    );
    Ok(())
}

/// Measures in a process of its own.
fn in_child((name, _): &(&str, &str), data: &Path) -> Result<Measured> {
    let data = data.to_str().context("the path of the data is UTF-8")?;
    let text = product::in_child(&["--kinds", name, "--data", data])?;
    let fields: Vec<&str> = text.split(' ').collect();
    let [seconds, peak_mb, rows] = fields[..] else { bail!("a child said {text}") };
    Ok(Measured { seconds: seconds.parse()?, peak_mb: peak_mb.parse()?, rows: rows.parse()? })
}

/// In the child: measures once and tells the parent in one line.
fn measure((name, keys): &(&str, &str), data: &Path) -> Result<()> {
    let folder = product::empty(scratch().join(name))?;
    let start = Instant::now();
    product::run(&pipeline(keys, data)?, &folder, 1)?;
    let seconds = start.elapsed().as_secs_f64();
    // Before the rows are counted.
    let peak_mb = product::peak_mb()?;
    let result = folder.join("tables").join("bench").join("result");
    let rows = Checksum::of_folder(&result)?.rows;
    ensure!(rows > 0, "{name}: no windows");
    println!("{seconds} {peak_mb} {rows}");
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// The pipeline of the common workload with this type of window.
fn pipeline(keys: &str, data: &Path) -> Result<String> {
    let data = data.to_str().context("the path of the data is UTF-8")?;
    Ok(format!(
        r#"
name = "bench"
[source]
type = "file"
path = "{data}"
[reading]
device = "device"
time = {{ field = "ts", format = "ms" }}
disorder = "5s"
[reading.fields]
temperature = "float64"
status = "string"
[limits]
reading_every = "1s"
[[step]]
name = "ok_only"
type = "filter"
where = "status = 'ok'"
[[step]]
name = "result"
type = "window"
from = "ok_only"
{keys}
late = "table"
[step.select]
n = "count(*)"
avg = "avg(temperature)"
min = "min(temperature)"
max = "max(temperature)"
sd = "stddev_pop(temperature)"
[[table]]
from = "result"
freshness = "500ms"
"#
    ))
}
