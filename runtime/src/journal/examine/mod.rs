//! Reading a journal as a doctor does: all that is there, past any damage, changing nothing.
//!
//! Invariant: what a start would stop at is the first damage that is found here, in the same file
//! at the same offset, because both use the same rules (`frame`, `epoch`, `segment`). What is
//! handed on was written, each message once, in the order of the journal. It takes no lock: beside
//! a running writer the growing end is told from damage.

pub(crate) mod scan;
mod walk;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tidegate_operators::{Epoch, Messages, Tick};

use super::epoch::Position;
use super::error::DurableError;
use super::files::PREFIX;
use super::recover::is_unborn;
use super::segment;
use walk::Walk;

/// How often a file that is being written is looked at again before its end counts as damage.
const LOOKS_MAX: u32 = 5;
/// Between two such looks: longer than a write takes.
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// No message takes fewer bytes in a frame.
const MESSAGE_BYTES_MIN: u64 = 5;

/// How a journal is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nobody writes: as a start would find it.
    Stopped,
    /// A writer may be at work.
    Live,
    /// Nobody writes, and what follows a torn write is wanted too.
    Everything,
}

/// Something that is whole.
pub(crate) enum Whole<'a> {
    /// What source numbers stand for, for the messages that follow.
    Messages(Messages, &'a [String]),
    Tick(Tick),
    /// The copy of recent sessions that a segment begins with.
    Sessions(Bytes),
}

/// How many messages a damage cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    Exactly(u64),
    AtMost(u64),
    /// Not even a bound is known: a file is missing at the end.
    Unknown,
}

/// A place that is not as it was written.
#[derive(Clone, Debug)]
pub(crate) struct Damage {
    /// A segment, or the folder where one is missing.
    pub(crate) path: PathBuf,
    /// The first bad byte; `None` where a whole segment is missing.
    pub(crate) offset: Option<u64>,
    /// The byte after the last bad one.
    pub(crate) until: u64,
    pub(crate) reason: String,
    /// First and last epoch that it concerns.
    pub(crate) epochs: (Epoch, Epoch),
    pub(crate) lost: Lost,
    /// A start reads this part of the file, whatever its checkpoint.
    pub(crate) always_read: bool,
}

/// A segment as it was found.
#[derive(Clone, Debug)]
pub(crate) struct SegmentSeen {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// First epoch, and the one after the last.
    pub(crate) epochs: (Epoch, Epoch),
}

/// The end of the last segment.
#[derive(Clone, Debug)]
pub(crate) struct Torn {
    pub(crate) path: PathBuf,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Examined {
    pub(crate) segments: Vec<SegmentSeen>,
    pub(crate) damages: Vec<Damage>,
    /// A write that was under way when the process ended (or is now).
    pub(crate) torn: Option<Torn>,
    /// A segment whose creation was interrupted.
    pub(crate) unborn: Option<PathBuf>,
    /// Offset of the first message, if a header or a frame says it.
    pub(crate) first_offset: Option<u64>,
    /// Whole messages.
    pub(crate) messages: u64,
    /// Sealed epochs that are whole.
    pub(crate) epochs: u64,
    /// The open epoch at the end, and its messages so far.
    pub(crate) open: (Epoch, u64),
    /// Time of the last tick, microseconds since the Unix epoch; 0 if there is none.
    pub(crate) last_time_us: i64,
    /// The first names of sources that were found.
    pub(crate) sources: Vec<String>,
}

impl Examined {
    /// The first epoch that is there; `None` for an empty folder.
    pub(crate) fn first_epoch(&self) -> Option<Epoch> {
        self.segments.first().map(|s| s.epochs.0)
    }

    /// The epoch that a start has sealed last: an open one with messages is sealed by it.
    pub(crate) fn last_epoch(&self) -> Epoch {
        match self.open {
            (epoch, 0) => epoch.saturating_sub(1),
            (epoch, _) => epoch,
        }
    }

    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|s| s.bytes).sum()
    }

    /// Damage that a start from this epoch would meet, in the order in which it lies.
    pub(crate) fn stops_at(&self, from_epoch: Epoch) -> impl Iterator<Item = &Damage> {
        self.damages.iter().filter(move |d| {
            let segment = self.segments.iter().position(|s| s.path == d.path);
            // A segment ends where the next one begins, whatever can be read of it.
            let next = segment.and_then(|i| self.segments.get(i + 1));
            d.always_read || next.is_none_or(|next| next.epochs.0 > from_epoch)
        })
    }
}

/// What is told and asked on the way.
pub(crate) struct Watch<'a> {
    /// Bytes that were read, of how many.
    pub(crate) progress: &'a dyn Fn(u64, u64),
    /// Takes what is whole.
    pub(crate) visit: &'a mut dyn FnMut(Epoch, Whole<'_>) -> Result<(), DurableError>,
    /// Names of sources where the table of them is damaged.
    pub(crate) sources: &'a [String],
}

/// Reads all of the journal in `dir`.
///
/// # Errors
/// Those of the file system and of `visit`. Damage is no error here.
pub(crate) fn examine(dir: &Path, mode: Mode, watch: Watch<'_>) -> Result<Examined, DurableError> {
    let mut segments = segment::list(dir, PREFIX).map_err(DurableError::io("list", dir))?;
    let mut unborn = None;
    if let Some((_, path)) = segments.last()
        && is_unborn(path)?
    {
        unborn = segments.pop().map(|(_, path)| path);
    }
    if mode == Mode::Everything {
        // Files that were renamed are read in the order in which they were written.
        for (number, path) in &mut segments {
            let bytes = std::fs::read(&*path).map_err(DurableError::io("read", path))?;
            *number = scan::header_of(&bytes).map_or(*number, |header| header.sequence);
        }
        segments.sort();
    }
    let len = |path: &PathBuf| std::fs::metadata(path).map_or(0, |meta| meta.len());
    let total: u64 = segments.iter().map(|(_, path)| len(path)).sum();
    let mut walk = Walk::new(dir, mode, watch, total);
    walk.out.unborn = unborn;
    let count = segments.len();
    for (i, (number, path)) in segments.into_iter().enumerate() {
        walk.segment(number, &path, i + 1 == count)?;
    }
    Ok(walk.finish())
}

fn position_at(
    epoch: Epoch,
    next_offset: u64,
    last_time_us: i64,
    sources: Vec<String>,
) -> Position {
    let header = segment::FileHeader {
        sequence: 0,
        salt: 0,
        first_epoch: epoch,
        first_offset: next_offset,
        last_time_us,
    };
    let mut position = Position::start_of(&header);
    position.sources = sources;
    position
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
