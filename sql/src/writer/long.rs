//! A table of many commits that nobody compacts: commits stay as fast as the first ones, and
//! opening does not read the log from its birth.
//!
//! `TIDEGATE_LONG_TABLE=10000 cargo test --release -p tidegate-sql a_long_table` is the full form:
//! it checks times and memory too, so it must be the only test of its process. The short one looks
//! at what is read.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use super::TableWriter;
use super::commit::CHECKPOINT_COMMITS;
use crate::testing::{lines, local, many, spec};
use crate::{DeltaTable, Store};

/// The binary's: what is measured here is how much memory that one takes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const COMMITS_IN_CI: u64 = 600;
/// Every so many commits write a checkpoint of the log as well; it is never older than that.
const CHECKPOINTED: u64 = CHECKPOINT_COMMITS;
/// Commits that are compared at both ends; one of them writes a checkpoint.
const END: usize = 100;
/// Of all commits.
const FULL_P99_MAX: Duration = Duration::from_millis(50);
/// Of those that write a checkpoint, the slowest: they are one of a hundred, so the 99th percentile
/// says nothing of them. Whoever commits every second is not behind after it.
const FULL_CHECKPOINT_MAX: Duration = Duration::from_secs(1);
const FULL_OPEN_MAX: Duration = Duration::from_secs(1);

/// How much memory may grow in an hour in which a commit is made every second: ten times as often
/// as with the usual freshness.
const FULL_GROWTH_MAX_MB: f64 = 10.0;
const COMMITS_OF_AN_HOUR: f64 = 3600.0;
/// Commits from one look at the memory to the next.
const LOOK_EVERY: u64 = 50;

/// Resident memory of this process, megabytes.
fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<f64>().unwrap() * 1024.0 / 1e6
}

/// Slope of the line with the least squares through (commits, megabytes).
fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let (mean_x, mean_y) =
        (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
    let spread: f64 = points.iter().map(|p| (p.0 - mean_x).powi(2)).sum();
    points.iter().map(|p| (p.0 - mean_x) * (p.1 - mean_y)).sum::<f64>() / spread
}

/// The time that so large a part of them does not exceed.
fn quantile(times: &[Duration], part: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() as f64 * part).ceil() as usize - 1]
}

/// How long commits took.
struct Times {
    /// Each of them, from the first on.
    all: Vec<Duration>,
}

impl Times {
    /// Those that wrote a checkpoint of the log.
    fn with_checkpoint(&self) -> Vec<Duration> {
        self.all
            .iter()
            .skip(CHECKPOINTED as usize - 1)
            .step_by(CHECKPOINTED as usize)
            .copied()
            .collect()
    }

    fn say(&self) {
        let (first, last) = (&self.all[..END], &self.all[self.all.len() - END..]);
        let checkpoints = self.with_checkpoint();
        eprintln!(
            "{} commits: p50 {:?}, p99 {:?}, slowest {:?}; of the first {END} p50 {:?} and p99 \
             {:?}, of the last {:?} and {:?}; {} that write a checkpoint: first {:?}, p50 {:?}, \
             slowest {:?}",
            self.all.len(),
            quantile(&self.all, 0.5),
            quantile(&self.all, 0.99),
            quantile(&self.all, 1.0),
            quantile(first, 0.5),
            quantile(first, 0.99),
            quantile(last, 0.5),
            quantile(last, 0.99),
            checkpoints.len(),
            checkpoints[0],
            quantile(&checkpoints, 0.5),
            quantile(&checkpoints, 1.0),
        );
    }

    /// That they are as fast as is asked for, and the last ones as the first.
    fn check(&self) {
        let (first, last) = (&self.all[..END], &self.all[self.all.len() - END..]);
        for part in [0.5, 0.99] {
            let (first, last) = (quantile(first, part), quantile(last, part));
            assert!(last <= 2 * first, "p{:.0} grew from {first:?} to {last:?}", part * 100.0);
        }
        let p99 = quantile(&self.all, 0.99);
        assert!(p99 <= FULL_P99_MAX, "p99 of all commits is {p99:?}");
        let slowest = quantile(&self.with_checkpoint(), 1.0);
        assert!(slowest <= FULL_CHECKPOINT_MAX, "a commit with a checkpoint takes {slowest:?}");
    }
}

async fn cold_open(store: &Store) -> (Duration, u64) {
    let begin = Instant::now();
    let rows = DeltaTable::new(store, "plant", "t").unwrap().open().await.unwrap().rows().unwrap();
    (begin.elapsed(), rows)
}

#[tokio::test]
async fn a_long_table_stays_fast_to_write_and_to_open() {
    let asked = std::env::var("TIDEGATE_LONG_TABLE").ok().and_then(|n| n.parse().ok());
    let commits: u64 = asked.unwrap_or(COMMITS_IN_CI);
    let (folder, store) = local();
    let spec = spec("t", &many(0, 1));
    let mut writer = TableWriter::open(&store, &spec, "a".into()).await.unwrap();
    let (mut times, mut memory) = (Times { all: Vec::new() }, Vec::new());
    for epoch in 1..=commits {
        writer.append(many(epoch as i64 * 5, 5), epoch).await.unwrap();
        let begin = Instant::now();
        writer.commit(epoch).await.unwrap();
        times.all.push(begin.elapsed());
        if epoch % LOOK_EVERY == 0 {
            memory.push((epoch as f64, resident_mb()));
        }
    }
    // What it takes at first is no growth.
    let growth = slope(&memory[memory.len() / 2..]) * COMMITS_OF_AN_HOUR;
    let (open, rows) = cold_open(&store).await;
    assert_eq!(rows, commits * 5);
    assert_eq!(lines(&store, "SELECT count(*) FROM plant.t").await, [rows.to_string()]);
    times.say();
    eprintln!(
        "cold open {open:?}; {:.0} MB of memory; in the second half {growth:.1} MB more in an hour \
         of a commit per second ({:.1} MB of one every 10 s)",
        resident_mb(),
        growth / 10.0,
    );
    if asked.is_some() {
        times.check();
        assert!(open <= FULL_OPEN_MAX, "a cold open takes {open:?}");
        assert!(growth <= FULL_GROWTH_MAX_MB, "memory grows by {growth:.1} MB an hour");
    }
    // What lies before the newest checkpoint is not read: it may be gone.
    let log = folder.path().join("plant/t/_delta_log");
    let mut left = 0;
    for entry in std::fs::read_dir(log).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let version = name.strip_suffix(".json").and_then(|number| number.parse::<u64>().ok());
        if version.is_some_and(|version| version + CHECKPOINTED < commits) {
            std::fs::remove_file(path).unwrap();
        } else {
            left += u64::from(version.is_some());
        }
    }
    assert!(left <= CHECKPOINTED + 1, "{left}");
    assert_eq!(cold_open(&store).await.1, commits * 5);
}
