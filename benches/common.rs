//! The common workload, by the product and by hand, in one run: rates, their ratio, peak memory,
//! and whether the rows are the reference's.
//!
//! `cargo bench --bench common -- [--lines N] [--jobs w1,w2,w3] [--workers 1,2] [--data FILE]`
//! Every measurement is a process of its own, because peak memory belongs to a process.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod product;
#[allow(dead_code, reason = "tests use other parts of it")]
mod workload;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use workload::check::{Checksum, reference};
use workload::generate::Workload;
use workload::{Job, hand};

/// What the command line asks for.
struct Options {
    lines: u64,
    jobs: Vec<Job>,
    workers: Vec<usize>,
    data: Option<PathBuf>,
    /// In a child: measure this and nothing else.
    only: Option<Side>,
}

/// Whose rate is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Product,
    Hand,
}

/// What a child measured.
struct Measured {
    seconds: f64,
    peak_mb: u64,
    check: String,
}

fn main() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let data = prepare_data(&options)?;
    if let Some(side) = options.only {
        return measure(side, options.jobs[0], options.workers[0], options.lines, &data);
    }
    let mut wrong = 0;
    for job in &options.jobs {
        for workers in &options.workers {
            let product = in_child(Side::Product, *job, *workers, options.lines, &data)?;
            let hand = in_child(Side::Hand, *job, *workers, options.lines, &data)?;
            ensure!(hand.check != "wrong", "{job}: the hand-written loop's rows are wrong");
            println!(
                "{job} workers={workers} readings_s={:.0} ratio={:.2} peak_mb={} check={}",
                options.lines as f64 / product.seconds,
                hand.seconds / product.seconds,
                product.peak_mb,
                product.check,
            );
            wrong += usize::from(product.check == "wrong");
        }
    }
    ensure!(wrong == 0, "{wrong} results are not the reference's");
    Ok(())
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self {
            lines: Workload::STANDARD.lines,
            jobs: Job::ALL.to_vec(),
            workers: vec![1, 2],
            data: None,
            only: None,
        };
        while let Some(name) = arguments.next() {
            // Cargo says this to every bench.
            if name == "--bench" {
                continue;
            }
            let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--lines" => options.lines = value.parse()?,
                "--jobs" => {
                    let jobs = value.split(',').map(Job::parse).collect::<Option<Vec<_>>>();
                    options.jobs = jobs.with_context(|| format!("unknown job in {value}"))?;
                }
                "--workers" => {
                    options.workers = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
                }
                "--data" => options.data = Some(value.into()),
                "--only" if value == "product" => options.only = Some(Side::Product),
                "--only" if value == "hand" => options.only = Some(Side::Hand),
                _ => bail!("unknown option {name} {value}"),
            }
        }
        Ok(options)
    }
}

/// A folder below `target/` for everything that this bench writes.
fn scratch() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("common")
}

/// The data file, generated if it is not there yet. Its name tells how many lines it has.
fn prepare_data(options: &Options) -> Result<PathBuf> {
    if let Some(data) = &options.data {
        return Ok(data.clone());
    }
    let standard = Workload::STANDARD;
    let workload = Workload { lines: standard.lines.max(options.lines), ..standard };
    product::readings(&scratch(), workload, options.lines)
}

/// Measures in a process of its own.
fn in_child(side: Side, job: Job, workers: usize, lines: u64, data: &Path) -> Result<Measured> {
    let side = if side == Side::Product { "product" } else { "hand" };
    let (job, workers, lines) = (job.to_string(), workers.to_string(), lines.to_string());
    let data = data.to_str().context("the path of the data is UTF-8")?;
    let text = product::in_child(&[
        "--only",
        side,
        "--jobs",
        &job,
        "--workers",
        &workers,
        "--lines",
        &lines,
        "--data",
        data,
    ])?;
    let fields: Vec<&str> = text.split(' ').collect();
    let [seconds, peak_mb, check] = fields[..] else { bail!("a child said {text}") };
    Ok(Measured { seconds: seconds.parse()?, peak_mb: peak_mb.parse()?, check: check.to_owned() })
}

/// In the child: measures once and tells the parent in one line.
fn measure(side: Side, job: Job, workers: usize, lines: u64, data: &Path) -> Result<()> {
    let folder =
        product::empty(scratch().join(format!("{side:?}-{job}-{workers}").to_lowercase()))?;
    let start = Instant::now();
    let result = match side {
        Side::Hand => {
            hand::run(job, data, &folder, workers)?;
            folder.clone()
        }
        Side::Product => {
            product::run(&pipeline(job, data)?, &folder, workers)?;
            folder.join("tables").join(format!("bench_{job}").to_lowercase()).join("result")
        }
    };
    let seconds = start.elapsed().as_secs_f64();
    // Before the check, which reads the whole result.
    let peak_mb = product::peak_mb()?;
    let check = match reference(job, lines) {
        None => "none",
        Some(expected) => {
            let sum = Checksum::of_folder(&result)?;
            if sum.agrees(&expected) {
                "ok"
            } else {
                eprintln!("{job} gives {sum:?}, expected {expected:?}");
                "wrong"
            }
        }
    };
    println!("{seconds} {peak_mb} {check}");
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// The example pipeline of a job, reading from `data`.
fn pipeline(job: Job, data: &Path) -> Result<String> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/examples");
    let name = format!("bench-{job}.toml").to_lowercase();
    let text = std::fs::read_to_string(examples.join(name))?;
    let data = data.to_str().context("the path of the data is UTF-8")?;
    ensure!(text.contains("readings.ndjson"), "the pipeline names its file readings.ndjson");
    Ok(text.replace("readings.ndjson", data))
}
