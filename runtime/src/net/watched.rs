//! Files that are read again when they change: certificates, revocation lists, passwords, keys.
//!
//! A new version that cannot be used is logged and the one before stays: a half-written file must
//! not lock everybody out, nor let anybody in.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

use crate::source::SourceError;

/// Time between two looks at the files: a look is a system call per file, and there may be
/// thousands of connections in a second.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Makes the value out of the files.
type Load<T> = Box<dyn Fn() -> Result<T, SourceError> + Send + Sync>;

/// What shows that a file is another one: when it was written, its length, and on Unix which one
/// it is (a rename brings a new one).
type Stamp = Option<(SystemTime, u64, u64)>;

/// A value made out of files.
pub(crate) struct Watched<T> {
    paths: Vec<PathBuf>,
    load: Load<T>,
    current: RwLock<Arc<T>>,
    seen: Mutex<Seen>,
}

struct Seen {
    at: Instant,
    stamps: Vec<Stamp>,
}

impl<T> Watched<T> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// What `load` says.
    pub(crate) fn new(
        paths: Vec<PathBuf>,
        load: impl Fn() -> Result<T, SourceError> + Send + Sync + 'static,
    ) -> Result<Self, SourceError> {
        // Before reading: a change while we read is a change at the next look.
        let seen = Seen { at: Instant::now(), stamps: stamps(&paths) };
        let current = RwLock::new(Arc::new(load()?));
        Ok(Self { paths, load: Box::new(load), current, seen: Mutex::new(seen) })
    }

    /// The value, of the newest files that could be used.
    pub(crate) fn get(&self) -> Arc<T> {
        self.get_at(Instant::now())
    }

    /// Whether the next [`Watched::get`] looks at the files, which may take a moment.
    pub(crate) fn is_due(&self) -> bool {
        self.seen.try_lock().is_ok_and(|seen| seen.at.elapsed() >= LOOK_EVERY)
    }

    fn get_at(&self, now: Instant) -> Arc<T> {
        // Whoever finds it locked takes the value that is there.
        if let Ok(mut seen) = self.seen.try_lock()
            && now.saturating_duration_since(seen.at) >= LOOK_EVERY
        {
            seen.at = now;
            let stamps = stamps(&self.paths);
            if stamps != seen.stamps {
                seen.stamps = stamps;
                self.reload();
            }
        }
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn reload(&self) {
        let names: Vec<String> = self.paths.iter().map(|p| p.display().to_string()).collect();
        let names = names.join(", ");
        match (self.load)() {
            Ok(value) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
                tracing::info!("read again after a change: {names}");
            }
            Err(error) => {
                tracing::error!("the change of {names} is not used, the old state stays: {error}");
            }
        }
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Stamp> {
    paths.iter().map(|path| stamp(path)).collect()
}

fn stamp(path: &Path) -> Stamp {
    let data = fs::metadata(path).ok()?;
    Some((data.modified().ok()?, data.len(), number(&data)))
}

#[cfg(unix)]
fn number(data: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(data)
}

#[cfg(not(unix))]
fn number(_: &fs::Metadata) -> u64 {
    0
}

/// Reads a file that must not be longer than `bytes_max`.
///
/// # Errors
/// [`SourceError::Io`] if it cannot be read, [`SourceError::Config`] if it is too long; `key` is
/// the key of the configuration that names it.
pub(crate) fn read(key: &str, path: &Path, bytes_max: u64) -> Result<Vec<u8>, SourceError> {
    use std::io::Read;
    let what = format!("`{key}` {}", path.display());
    let io = |error| SourceError::Io { what: what.clone(), error };
    let file = fs::File::open(path).map_err(io)?;
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(io)?;
    match bytes.len() as u64 > bytes_max {
        true => Err(SourceError::Config(format!("{what} is longer than {bytes_max} bytes"))),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_change_is_taken_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("number");
        fs::write(&path, "1").unwrap();
        let from = path.clone();
        let load = move || {
            let bytes = read("number", &from, 8)?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            text.parse::<u32>().map_err(|e| SourceError::Config(e.to_string()))
        };
        let watched = Watched::new(vec![path.clone()], load).unwrap();
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(*watched.get_at(start), 1);
        fs::write(&path, "22").unwrap();
        assert_eq!(*watched.get_at(start), 1, "looked again too soon");
        assert_eq!(*watched.get_at(later(2)), 22);
        fs::write(&path, "nonsense").unwrap();
        assert_eq!(*watched.get_at(later(4)), 22);
        fs::write(&path, "longer than it may be").unwrap();
        assert_eq!(*watched.get_at(later(6)), 22);
        fs::remove_file(&path).unwrap();
        assert_eq!(*watched.get_at(later(8)), 22);
        // A rename brings another file.
        let other = folder.path().join("other");
        fs::write(&other, "333").unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(*watched.get_at(later(10)), 333);
    }
}
