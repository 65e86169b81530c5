//! A table of many commits that nobody compacts: commits stay as fast as the first ones, and
//! opening does not read the log from its birth.
//!
//! `TIDEGATE_LONG_TABLE=10000 cargo test --release -p tidegate-sql a_long_table` is the full form:
//! it checks times and memory too, so it must be the only test of its process. The short one looks
//! at what is read.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use super::TableWriter;
use crate::testing::{lines, local, many, spec};
use crate::{DeltaTable, Store};

/// The binary's: what is measured here is how much memory that one takes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const COMMITS_IN_CI: u64 = 600;
/// A checkpoint of the log is never older than so many commits.
const CHECKPOINTED: u64 = 100;
/// Commits that are compared at both ends; one of them writes a checkpoint.
const END: usize = 100;
const FULL_P99_MAX: Duration = Duration::from_millis(50);
const FULL_OPEN_MAX: Duration = Duration::from_secs(1);

/// How much memory may grow in an hour in which a commit is made every second.
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

fn quantile(times: &[Duration], part: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[((sorted.len() - 1) as f64 * part) as usize]
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
    let (mut times, mut memory) = (Vec::new(), Vec::new());
    for epoch in 1..=commits {
        writer.append(many(epoch as i64 * 5, 5), epoch).await.unwrap();
        let begin = Instant::now();
        writer.commit(epoch).await.unwrap();
        times.push(begin.elapsed());
        if epoch % LOOK_EVERY == 0 {
            memory.push((epoch as f64, resident_mb()));
        }
    }
    // What it takes at first is no growth.
    let growth = slope(&memory[memory.len() / 2..]) * COMMITS_OF_AN_HOUR;
    let (first, last) = (&times[..END], &times[times.len() - END..]);
    let (open, rows) = cold_open(&store).await;
    assert_eq!(rows, commits * 5);
    assert_eq!(lines(&store, "SELECT count(*) FROM plant.t").await, [rows.to_string()]);
    let (p99_first, p99_last) = (quantile(first, 0.99), quantile(last, 0.99));
    let (p50_first, p50_last) = (quantile(first, 0.5), quantile(last, 0.5));
    eprintln!(
        "{commits} commits: p50 {p50_first:?} then {p50_last:?}, p99 {p99_first:?} then \
         {p99_last:?}, cold open {open:?}, {:.0} MB of memory, {growth:.1} MB more in an hour of a \
         commit per second",
        resident_mb()
    );
    if asked.is_some() {
        assert!(p50_last <= 2 * p50_first, "p50 grew from {p50_first:?} to {p50_last:?}");
        assert!(p99_last <= 2 * p99_first, "p99 grew from {p99_first:?} to {p99_last:?}");
        assert!(p99_last <= FULL_P99_MAX, "p99 is {p99_last:?}");
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
