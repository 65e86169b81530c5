//! How far a run over files is, for people.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shared by the thread that reads and those who look.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    bytes_all: AtomicU64,
    bytes: AtomicU64,
    rows: AtomicU64,
    files_all: AtomicU64,
    files: AtomicU64,
    complete: AtomicBool,
    current: Mutex<String>,
}

/// Progress at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The part of the bytes that was read, 0 to 1.
    pub share: f64,
    /// Files that were begun.
    pub file: u64,
    /// Files that this run reads.
    pub files: u64,
    /// The file that is being read.
    pub name: String,
    /// Lines and rows so far.
    pub rows: u64,
    /// Per second, since the start.
    pub rows_per_s: u64,
    /// How long it will take at this rate; `None` before that can be said.
    pub left: Option<Duration>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            bytes_all: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            files_all: AtomicU64::new(0),
            files: AtomicU64::new(0),
            complete: AtomicBool::new(false),
            current: Mutex::new(String::new()),
        }
    }

    /// How much there is to read.
    pub(super) fn expect(&self, files: u64, bytes: u64) {
        self.files_all.store(files, Relaxed);
        self.bytes_all.store(bytes, Relaxed);
    }

    /// A file is begun.
    pub(super) fn begin(&self, path: &Path) {
        self.files.fetch_add(1, Relaxed);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = path.display().to_string();
    }

    /// The file that is being read.
    pub(super) fn current(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn add_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn add_rows(&self, rows: u64) {
        self.rows.fetch_add(rows, Relaxed);
    }

    pub(super) fn complete(&self) {
        self.complete.store(true, Relaxed);
    }

    /// Whether all files were read to their end, and all is in the tables.
    pub fn is_complete(&self) -> bool {
        self.complete.load(Relaxed)
    }

    /// Files that this run has to read.
    pub fn files(&self) -> u64 {
        self.files_all.load(Relaxed)
    }

    /// The state of things now.
    pub fn now(&self) -> Reading {
        self.after(self.started.elapsed())
    }

    fn after(&self, elapsed: Duration) -> Reading {
        let (bytes, all) = (self.bytes.load(Relaxed), self.bytes_all.load(Relaxed));
        let share = if all == 0 { 0.0 } else { (bytes as f64 / all as f64).min(1.0) };
        let rows = self.rows.load(Relaxed);
        let seconds = elapsed.as_secs_f64().max(0.001);
        let left = (share > 0.0)
            .then(|| Duration::try_from_secs_f64(seconds * (1.0 - share) / share).ok())
            .flatten();
        Reading {
            share,
            file: self.files.load(Relaxed),
            files: self.files(),
            name: self.current(),
            rows,
            rows_per_s: (rows as f64 / seconds) as u64,
            left,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_in_ten_seconds_leaves_half_a_minute() {
        let progress = Progress::new();
        progress.expect(4, 4_000);
        assert_eq!(progress.after(Duration::ZERO).left, None);
        progress.begin(Path::new("a.csv"));
        progress.add_bytes(1_000);
        progress.add_rows(500);
        let reading = progress.after(Duration::from_secs(10));
        assert_eq!((reading.share, reading.file, reading.files), (0.25, 1, 4));
        assert_eq!((reading.rows, reading.rows_per_s, &*reading.name), (500, 50, "a.csv"));
        assert_eq!(reading.left, Some(Duration::from_secs(30)));
        assert!(!progress.is_complete());
    }
}
