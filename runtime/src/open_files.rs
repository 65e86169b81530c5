//! Files that this process may have open at a time (`ulimit -n`), and how many of them connections
//! may be.
//!
//! A connection is an open file, and so is everything that the journal, tables and checkpoints
//! write: strangers must not get the last one. Invariant: the connections of all doors together
//! are [`Room::connections`] at most, so what else the process has to do finds a file. What still
//! finds none waits for one ([`is_used_up`]).

use std::fmt;
use std::io;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::io::Errno;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Files that connections leave to everything else: segments, sessions, uploads of tables,
/// checkpoints, webhooks, brokers, questions for metrics, and those who are told that they are
/// refused.
const RESERVE: u64 = 192;

/// No more is asked for: each open file costs the system memory.
const FILES_MAX: u64 = 1 << 20;

/// Connections that are only told that there is no file left for them.
const REFUSALS_MAX: usize = 32;

/// How often it is told that connections are refused.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How long after a refusal there is still no room: whoever was refused comes again.
const JUST_NOW: Duration = Duration::from_secs(1);

static ROOM: LazyLock<Room> = LazyLock::new(|| Room::of(raise()));

/// What the limit of this process leaves room for. It is raised first, as far as the system lets
/// it be.
pub fn room() -> &'static Room {
    &ROOM
}

/// How many files may be open, and how many connections.
#[derive(Debug)]
pub struct Room {
    files: u64,
    connections: usize,
    free: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    told: Mutex<Option<Instant>>,
    refused: Mutex<Option<Instant>>,
}

/// A connection's file, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Room {
    fn of(files: u64) -> Self {
        let connections = (files - RESERVE.min(files / 2)) as usize;
        Self {
            files,
            connections,
            free: Arc::new(Semaphore::new(connections)),
            refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
            told: Mutex::default(),
            refused: Mutex::default(),
        }
    }

    /// Files that the process may have open at a time.
    pub fn files(&self) -> u64 {
        self.files
    }

    /// Connections of all doors at a time.
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Connections that have a place at present.
    pub(crate) fn taken(&self) -> usize {
        self.connections - self.free.available_permits().min(self.connections)
    }

    /// Whether there is no place, or was none for somebody just now: places come and go.
    pub(crate) fn is_used_up(&self) -> bool {
        let refused = *self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        self.taken() >= self.connections || refused.is_some_and(|at| at.elapsed() < JUST_NOW)
    }

    /// A place for a connection, if there is one.
    pub(crate) fn place(&self) -> Option<Place> {
        let permit = Arc::clone(&self.free).try_acquire_owned().ok()?;
        Some(Place { _permit: permit })
    }

    /// A place for a connection that is only told why it is refused.
    pub(crate) fn refusal(&self) -> Option<Place> {
        let permit = Arc::clone(&self.refusals).try_acquire_owned().ok()?;
        Some(Place { _permit: permit })
    }

    /// Why a connection is refused, for its sender and for the log.
    pub(crate) fn full(&self) -> String {
        let Self { files, connections, .. } = self;
        let why = format!(
            "more than {connections} connections: only {files} files may be open (ulimit -n)"
        );
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            *told = Some(Instant::now());
            tracing::warn!("connections are refused: {why}");
        }
        why
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { files, connections, .. } = self;
        write!(f, "at most {connections}, as {files} files may be open (ulimit -n)")
    }
}

/// Raises the limit as far as it goes without privileges; what it is then.
fn raise() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return FILES_MAX };
    let wanted = hard.min(FILES_MAX);
    if soft >= wanted {
        return soft.min(FILES_MAX);
    }
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!(%error, soft, wanted, "the limit of open files cannot be raised");
            soft
        }
    }
}

/// Whether no file could be opened because too many are, of this process or of the whole system.
/// Others are closed sooner or later: waiting helps.
pub(crate) fn is_used_up(error: &io::Error) -> bool {
    let used_up = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| used_up.contains(&code))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn connections_leave_files_for_everything_else() {
        for (files, connections) in [(20_000, 19_808), (1024, 832), (384, 192), (100, 50), (0, 0)] {
            assert_eq!(Room::of(files).connections(), connections, "{files}");
        }
        let room = Room::of(4);
        let both = [room.place().unwrap(), room.place().unwrap()];
        assert!(room.place().is_none() && room.taken() == 2);
        let refused: Vec<Place> = std::iter::from_fn(|| room.refusal()).collect();
        assert_eq!(refused.len(), REFUSALS_MAX);
        assert!(room.full().contains("more than 2 connections: only 4 files"));
        drop(both);
        assert!(room.place().is_some());
    }

    #[test]
    fn the_limit_is_raised_to_what_is_allowed() {
        let files = room().files();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(soft.min(FILES_MAX) == files && files == hard.min(FILES_MAX), "{soft} {hard}");
    }

    #[test]
    fn too_many_open_files_are_told_from_other_errors() {
        let is = |errno: Errno| is_used_up(&io::Error::from(errno));
        assert!(is(Errno::MFILE) && is(Errno::NFILE));
        assert!(!is(Errno::NOSPC) && !is(Errno::IO) && !is_used_up(&io::Error::other("x")));
    }
}
