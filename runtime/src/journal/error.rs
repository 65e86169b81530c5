//! What can be wrong with durable files. Every error names the file, and damage its offset, so that
//! an operator knows what to look at; nothing is skipped or repaired silently.

use std::io;
use std::path::{Path, PathBuf};

use super::holder;
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
    #[error("another Tidegate is running on {}{}", path.display(), named(*process))]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process that holds it; 0 where the system does not say.
        process: u32,
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
            io::ErrorKind::ResourceBusy if action == LOCK => Self::in_use(path),
            _ => Self::Io { action, path, source },
        }
    }

    /// Another process holds `path`.
    pub(crate) fn in_use(path: PathBuf) -> Self {
        let process = holder::holder(&path).unwrap_or(0);
        Self::InUse { path, process }
    }

    pub(crate) fn damaged(path: &Path, offset: u64, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), offset, reason: reason.into() }
    }

    pub(crate) fn read(path: &Path) -> impl FnOnce(ReadFault) -> Self {
        let path = path.to_owned();
        move |fault| match fault {
            ReadFault::Io(source) => Self::Io { action: "read", path, source },
            ReadFault::Bad { offset, reason } => Self::Damaged { path, offset, reason },
            ReadFault::OtherVersion { offset, reason } => {
                let reason = format!(
                    "byte {offset} was written by another version of Tidegate ({reason}): go on \
                     with that one, or with one that is newer"
                );
                Self::Mismatch { path, reason }
            }
        }
    }
}

/// The process that holds a directory, for people.
fn named(process: u32) -> String {
    match process {
        0 => String::new(),
        process => format!(" (process {process})"),
    }
}

/// The action that turns a busy directory into [`DurableError::InUse`].
pub(crate) const LOCK: &str = "lock the directory";
