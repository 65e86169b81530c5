//! The words that the end-to-end tests speak: a [`Home`] holds pipeline files and data, it starts
//! an [`Instance`], a [`Device`] publishes to it, SQL is asked until the answer is there.
//!
//! Nothing here sleeps for a fixed time and hopes: every wait has a condition and a deadline.

mod assets;
mod cold_chain;
mod device;
mod instance;
mod names;
mod publisher;
mod rng;
mod scrape;
mod webhook;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) use assets::{Assets, Mood};
pub(crate) use cold_chain::{ColdChain, Reading, START_MS, WindowRow, windows_of};
pub(crate) use device::Device;
pub(crate) use instance::{Home, Instance, Row, tidegate};
pub(crate) use names::{free_address, request_key};
pub(crate) use publisher::{Published, Site, Traffic, publish};
pub(crate) use rng::Rng;
pub(crate) use scrape::{Scrape, get};
pub(crate) use webhook::Receiver;

/// How long any wait may take before the test fails: far more than a debug build on two busy cores
/// needs, far less than a CI run.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// Between the first two looks at a condition; each wait is half as long again as the one before.
const LOOK_FIRST: Duration = Duration::from_millis(5);
/// The longest time between two looks: a look may be a whole process that answers SQL.
const LOOK_LAST: Duration = Duration::from_millis(300);

/// Whether what the acceptance tests ask for is to be shown in full, on a machine that does nothing
/// else (`.ci/long`).
pub(crate) fn is_long() -> bool {
    std::env::var("TIDEGATE_LONG").as_deref() == Ok("1")
}

/// Prints a line that is seen although the test passes (the test harness keeps back what `println!`
/// and `eprintln!` print).
pub(crate) fn say(line: &str) {
    // Nobody to tell if standard error is closed.
    let _ = std::io::stderr().write_all(format!("\n{line}\n").as_bytes());
}

/// Says loudly that something was not tested; in CI that is a failure.
pub(crate) fn skipped(what: &str, why: &str) {
    say(&format!("!!!! SKIPPED {what}: {why}"));
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{what} must not be skipped in CI: {why}"
    );
}

/// The Parquet files below a folder, by their paths.
pub(crate) fn data_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = entries
        .flat_map(|path| match path.is_dir() {
            true => data_files(&path),
            false => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|e| e == "parquet"))
        .collect();
    found.sort();
    found
}

/// Calls `look` until it gives a value, or fails with what it last said.
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = LOOK_FIRST;
    loop {
        match look() {
            Ok(value) => return value,
            Err(so_far) if Instant::now() > deadline => {
                panic!("waited {PATIENCE:?} for {what}; last: {so_far}")
            }
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 3 / 2).min(LOOK_LAST);
    }
}
