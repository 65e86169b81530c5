//! The segment files of a journal: the one that is written, the sealed ones before it, their sizes.
//!
//! Invariant: each segment holds whole epochs (a new one starts only after a tick), so a segment
//! can be read, checked and deleted by itself. A segment exists only with a durable header.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_operators::Epoch;

use super::epoch::Position;
use super::frame::{self, Kind};
use super::recognize::Recognizer;
use super::segment::{self, FileHeader};
use super::storage::{AppendFile, Storage};
use crate::fault;

/// Name of segment files: `journal-NUMBER.log`.
pub(crate) const PREFIX: &str = "journal";

/// A segment that is complete.
#[derive(Clone, Debug)]
pub(crate) struct Sealed {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) last_epoch: Epoch,
    /// Time of its last tick, microseconds since the Unix epoch.
    pub(crate) last_time_us: i64,
}

/// What stays although recovery does not need it: changed pipelines are rebuilt from it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Keep {
    /// For how long, microseconds.
    pub(crate) age_us: i64,
    /// Only while all segments together have no more bytes than this.
    pub(crate) bytes_max: u64,
}

/// The segment that is written.
pub(crate) struct Active {
    pub(crate) path: PathBuf,
    pub(crate) header: FileHeader,
    file: Box<dyn AppendFile>,
    /// Bytes of its header and the copy behind it, as far as that is known.
    head_bytes: u64,
    /// Length of the file; all of it is durable between group commits.
    pub(crate) bytes: u64,
}

/// All files.
pub(crate) struct Files {
    pub(crate) dir: PathBuf,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) sealed: VecDeque<Sealed>,
    pub(crate) active: Active,
    pub(crate) keep: Keep,
}

impl Active {
    /// Creates the segment that begins at `position`, with a copy of what is to be recognised.
    pub(crate) fn create(
        storage: &dyn Storage,
        dir: &Path,
        sequence: u64,
        position: &Position,
        recognizer: &Recognizer,
    ) -> io::Result<Self> {
        let header = FileHeader {
            sequence,
            salt: segment::new_salt(sequence),
            first_epoch: position.epoch,
            first_offset: position.next_offset,
            last_time_us: position.last_time_us,
        };
        let path = dir.join(segment::file_name(PREFIX, sequence));
        let mut file = storage.create(&path)?;
        let mut copy = Vec::new();
        let synced_to = segment::HEADER_BYTES as u64;
        frame::append(&mut copy, header.salt, Kind::Sessions, position.epoch, synced_to, |body| {
            recognizer.put(body);
        });
        // Each is durable before the next: a power loss may leave the end of what was not synced
        // without its beginning, and a file is known to be unborn only if nothing follows its
        // header.
        for part in [&header.encode(), &copy] {
            if let Err(error) = file.append(part) {
                storage.remove(&path).map_err(io::Error::other)?;
                return Err(error);
            }
            // From here on an error is final: after a failed sync nothing is known about the file.
            file.sync().map_err(io::Error::other)?;
        }
        storage.sync_dir(dir).map_err(io::Error::other)?;
        let head_bytes = synced_to + copy.len() as u64;
        Ok(Self { path, header, file, head_bytes, bytes: head_bytes })
    }

    /// Opens the last segment again; what is behind `good_bytes` is cut off. The process that made
    /// it may have died before its name was durable: now it is.
    pub(crate) fn reopen(
        storage: &dyn Storage,
        path: PathBuf,
        header: FileHeader,
        good_bytes: u64,
    ) -> io::Result<Self> {
        let mut file = storage.open(&path, good_bytes)?;
        file.truncate(good_bytes)?;
        file.sync()?;
        if let Some(dir) = path.parent() {
            storage.sync_dir(dir)?;
        }
        let head_bytes = segment::HEADER_BYTES as u64;
        Ok(Self { path, header, file, head_bytes, bytes: good_bytes })
    }

    /// Whether closing it gives more room back, when its epochs are not needed any more, than the
    /// head of the next one takes.
    pub(crate) fn is_worth_closing(&self) -> bool {
        self.bytes.saturating_sub(self.head_bytes) > self.head_bytes
    }

    /// Appends all of `bytes` or nothing. The error is final unless it means a full disk.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = fault::io("append").and_then(|()| self.file.append(bytes)) {
            self.file.truncate(self.bytes).map_err(io::Error::other)?;
            return Err(error);
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    pub(crate) fn sync(&mut self) -> io::Result<()> {
        fault::io("sync")?;
        self.file.sync()
    }

    /// Cuts off what was appended behind `durable_bytes`, after a sync of it has failed: nobody
    /// was told of it. If that fails too, it was all that could be done.
    pub(crate) fn forget(&mut self, durable_bytes: u64) {
        if let Err(error) = self.file.truncate(durable_bytes) {
            let path = self.path.display();
            tracing::error!(%path, %error, "cannot cut off what is not durable");
        }
    }
}

impl Files {
    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.active.bytes + self.sealed.iter().map(|sealed| sealed.bytes).sum::<u64>()
    }

    /// Starts the next segment at `position`, which is right after a tick.
    pub(crate) fn roll(&mut self, position: &Position, recognizer: &Recognizer) -> io::Result<()> {
        let sequence = self.active.header.sequence + 1;
        let next = Active::create(&*self.storage, &self.dir, sequence, position, recognizer)?;
        let last = std::mem::replace(&mut self.active, next);
        self.sealed.push_back(Sealed {
            path: last.path,
            bytes: last.bytes,
            last_epoch: position.epoch - 1,
            last_time_us: position.last_time_us,
        });
        Ok(())
    }

    /// Whether the oldest segment may go: nobody needs it to recover, that comes first, and it is
    /// either too old to be kept or there is no room for that.
    fn is_due(&self, through: Epoch, now_us: i64) -> bool {
        self.sealed.front().is_some_and(|sealed| {
            let old = sealed.last_time_us.saturating_add(self.keep.age_us) <= now_us;
            sealed.last_epoch <= through && (old || self.bytes() > self.keep.bytes_max)
        })
    }

    /// Deletes sealed segments that end at or before `through` and are not kept, oldest first, so
    /// that a crash leaves no gap. A file that cannot be deleted is tried again the next time.
    /// With `i64::MAX` as the present nothing is kept.
    pub(crate) fn trim(&mut self, through: Epoch, now_us: i64) {
        let mut removed = false;
        if self.is_due(through, now_us) {
            fault::point("before_gc");
        }
        while self.is_due(through, now_us) {
            let Some(sealed) = self.sealed.front() else { break };
            if let Err(error) = self.storage.remove(&sealed.path) {
                tracing::warn!(path = %sealed.path.display(), %error, "cannot delete a segment");
                break;
            }
            fault::point("mid_gc");
            removed = true;
            self.sealed.pop_front();
        }
        if removed && let Err(error) = self.storage.sync_dir(&self.dir) {
            // At worst the old segment is there again after a power loss.
            tracing::warn!(path = %self.dir.display(), %error, "cannot sync the journal folder");
        }
    }
}
