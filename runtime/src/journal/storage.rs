//! What the durable parts ask of a disk, so that tests can count syncs and make them fail.
//!
//! Invariant of the real one: when `sync` returned, the bytes survive a power loss; when `sync_dir`
//! returned, so do the names. A failed sync says nothing about what is on disk (the kernel may have
//! dropped the dirty pages): whoever sees one must stop and not try again.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Whether waiting for room may help.
pub(crate) use tidegate_sql::has_no_room as is_full;

use crate::open_files;

/// Pause after the system refused to open a file because too many are.
const FILE_PAUSE: Duration = Duration::from_millis(50);

/// Creates, opens and removes append-only files.
pub trait Storage: Send + Sync + 'static {
    /// Creates `path`; an existing file is emptied.
    ///
    /// # Errors
    /// Those of the file system.
    fn create(&self, path: &Path) -> io::Result<Box<dyn AppendFile>>;
    /// Opens `path` to append at `len`, which is its length.
    ///
    /// # Errors
    /// Those of the file system.
    fn open(&self, path: &Path, len: u64) -> io::Result<Box<dyn AppendFile>>;
    /// Makes creations, renames and removals in `dir` durable.
    ///
    /// # Errors
    /// Those of the file system.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Renames, replacing `to`.
    ///
    /// # Errors
    /// Those of the file system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Renames where there is no `to` yet, for names that no other process makes.
    ///
    /// # Errors
    /// `AlreadyExists` where there is; those of the file system.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        if to.try_exists()? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.rename(from, to)
    }
    /// Removes a file.
    ///
    /// # Errors
    /// Those of the file system.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Bytes that can still be written below `dir`; `None` if that is not known.
    fn free_bytes(&self, dir: &Path) -> Option<u64> {
        let _ = dir;
        None
    }
}

/// One file that is only appended to or cut.
pub trait AppendFile: Send {
    /// Appends all of `bytes`; after an error some of them may have been written.
    ///
    /// # Errors
    /// Those of the file system, among them a full disk.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Cuts the file to `len` bytes and appends from there on.
    ///
    /// # Errors
    /// Those of the file system.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
    /// Makes all that was appended durable.
    ///
    /// # Errors
    /// Those of the file system; after one the file must not be used but to be cut.
    fn sync(&mut self) -> io::Result<()>;
}

/// The local file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

struct DiskFile(File);

impl Storage for Disk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        Ok(Box::new(DiskFile(file)))
    }

    fn open(&self, path: &Path, len: u64) -> io::Result<Box<dyn AppendFile>> {
        let mut file = OpenOptions::new().write(true).open(path)?;
        file.seek(SeekFrom::Start(len))?;
        Ok(Box::new(DiskFile(file)))
    }

    /// Waits for a file to be closed where no more may be open: that says nothing about what was
    /// written, unlike an error of the sync.
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        loop {
            match File::open(dir) {
                Err(error) if open_files::is_used_up(&error) => crate::time::block(FILE_PAUSE),
                opened => return opened?.sync_all(),
            }
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        tidegate_sql::rename_new(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn free_bytes(&self, dir: &Path) -> Option<u64> {
        let system = rustix::fs::statvfs(dir).ok()?;
        Some(system.f_bavail.saturating_mul(system.f_frsize))
    }
}

impl AppendFile for DiskFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)?;
        self.0.seek(SeekFrom::Start(len)).map(drop)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// Keeps a directory for this process until dropped (or until the process ends, however it ends).
#[derive(Debug)]
pub(crate) struct DirLock {
    _file: File,
}

/// Creates `dir` with its parents, and locks it.
///
/// # Errors
/// `ResourceBusy` where another process holds the directory, or those of the file system.
pub(crate) fn lock_dir(dir: &Path) -> io::Result<DirLock> {
    std::fs::create_dir_all(dir)?;
    let path: PathBuf = dir.join("lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(DirLock { _file: file }),
        Err(TryLockError::WouldBlock) => Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "another tidegate process is using this directory",
        )),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A disk on which this appends to files that are new.
    #[derive(Clone)]
    pub(crate) struct Appending<F>(pub(crate) F);

    struct Appended<F>(Box<dyn AppendFile>, F);

    impl<F> Storage for Appending<F>
    where
        F: Fn(&mut dyn AppendFile, &[u8]) -> io::Result<()> + Clone + Send + Sync + 'static,
    {
        fn create(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
            Ok(Box::new(Appended(Disk.create(path)?, self.0.clone())))
        }
        fn open(&self, path: &Path, len: u64) -> io::Result<Box<dyn AppendFile>> {
            Disk.open(path, len)
        }
        fn sync_dir(&self, dir: &Path) -> io::Result<()> {
            Disk.sync_dir(dir)
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            Disk.rename(from, to)
        }
        fn remove(&self, path: &Path) -> io::Result<()> {
            Disk.remove(path)
        }
    }

    impl<F> AppendFile for Appended<F>
    where
        F: Fn(&mut dyn AppendFile, &[u8]) -> io::Result<()> + Send,
    {
        fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
            (self.1)(&mut *self.0, bytes)
        }
        fn truncate(&mut self, len: u64) -> io::Result<()> {
            self.0.truncate(len)
        }
        fn sync(&mut self) -> io::Result<()> {
            self.0.sync()
        }
    }
}
