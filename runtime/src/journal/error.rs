//! What can be wrong with durable files. Every error names the file, and damage its offset, so that
//! an operator knows what to look at; nothing is skipped or repaired silently.

use std::io;
use std::path::{Path, PathBuf};

use super::segment::ReadFault;

/// Why durable state cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum DurableError {
    /// The file system refused.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// Another process holds the directory.
    #[error("another Tidegate is running on {}", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// Bytes that had been durable are not what was written.
    #[error("{} is damaged at byte {offset}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where, bytes from its start.
        offset: u64,
        /// What is wrong there.
        reason: String,
    },
    /// The files are sound but do not belong to what the caller wants to continue.
    #[error("{}: {reason}", path.display())]
    Mismatch {
        /// The directory.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// A limit makes no sense.
    #[error("{0}")]
    Options(String),
    /// An earlier sync failed; the state on disk is not known any more.
    #[error("{}: an earlier write could not be made durable: {reason}", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// What went wrong then.
        reason: String,
    },
}

impl DurableError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::ResourceBusy if action == LOCK => Self::InUse { path },
            _ => Self::Io { action, path, source },
        }
    }

    pub(crate) fn damaged(path: &Path, offset: u64, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), offset, reason: reason.into() }
    }

    pub(crate) fn read(path: &Path) -> impl FnOnce(ReadFault) -> Self {
        let path = path.to_owned();
        move |fault| match fault {
            ReadFault::Io(source) => Self::Io { action: "read", path, source },
            ReadFault::Bad { offset, reason } => Self::Damaged { path, offset, reason },
        }
    }
}

/// The action that turns a busy directory into [`DurableError::InUse`].
pub(crate) const LOCK: &str = "lock the directory";
