//! Opening a journal: find its end, cut what a crash tore, seal what was left open.
//!
//! Steps: (1) list the segments and check that none is missing; (2) read the last one to its end;
//! (3) a bad frame there is cut off if nothing proves that it was durable, else it is an error;
//! (4) the open epoch is sealed with a fresh tick, so that acknowledged messages are replayed in an
//! epoch that never changes again. Older segments are checked while they are replayed.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use tidegate_operators::Epoch;

use super::epoch::{Position, Step};
use super::error::DurableError;
use super::files::{Active, Files, Keep, PREFIX, Sealed};
use super::group::{Group, Target};
use super::recognize::Recognizer;
use super::segment::{self, FileHeader, Frame, FrameReader, ReadFault};
use super::storage::Storage;
use crate::clock::Clock;

/// The end of a file of frames.
pub(crate) struct Tail {
    pub(crate) header: FileHeader,
    /// Up to here all frames are good.
    pub(crate) good_bytes: u64,
}

/// Reads all frames of `path`, the newest of its kind, through `each`, and finds where it ends.
///
/// # Errors
/// Damage to bytes that had been durable, and frames that `each` says do not belong here.
pub(crate) fn read_tail(
    path: &Path,
    mut each: impl FnMut(&FileHeader, &Frame) -> Result<(), String>,
) -> Result<Tail, DurableError> {
    let mut reader = FrameReader::open(path, None).map_err(DurableError::read(path))?;
    let header = reader.header;
    loop {
        match reader.next_frame() {
            Ok(Some(frame)) => each(&header, &frame)
                .map_err(|reason| DurableError::damaged(path, frame.offset, reason))?,
            Ok(None) => return Ok(Tail { header, good_bytes: reader.offset }),
            Err(ReadFault::Bad { offset, reason }) => {
                let proof = segment::durable_after(path, &header, offset)
                    .map_err(DurableError::io("read", path))?;
                if let Some(later) = proof {
                    let reason = format!("{reason}, and it was durable before byte {later}");
                    return Err(DurableError::damaged(path, offset, reason));
                }
                tracing::warn!(
                    path = %path.display(), offset, reason,
                    "cut off the end of a write that was under way when the process ended"
                );
                return Ok(Tail { header, good_bytes: offset });
            }
            Err(fault) => return Err(DurableError::read(path)(fault)),
        }
    }
}

/// Whether `path` can only be a file whose creation was interrupted: nothing follows its header.
pub(crate) fn is_unborn(path: &Path) -> Result<bool, DurableError> {
    let bytes = std::fs::metadata(path).map_err(DurableError::io("read", path))?.len();
    Ok(bytes <= segment::HEADER_BYTES as u64
        && matches!(FrameReader::open(path, None), Err(ReadFault::Bad { .. })))
}

/// A journal that was opened.
pub(crate) struct Recovered {
    pub(crate) files: Files,
    pub(crate) position: Position,
    pub(crate) recognizer: Recognizer,
}

/// Opens what is in `dir`, or starts at `from_epoch` where it is empty. `recognizer` is empty.
pub(crate) fn recover(
    dir: &Path,
    storage: Arc<dyn Storage>,
    clock: &Clock,
    sources: &[String],
    from_epoch: Epoch,
    mut recognizer: Recognizer,
) -> Result<Recovered, DurableError> {
    let mut segments = segment::list(dir, PREFIX).map_err(DurableError::io("list", dir))?;
    if let Some((_, path)) = segments.last()
        && is_unborn(path)?
    {
        storage.remove(path).map_err(DurableError::io("remove", path))?;
        segments.pop();
    }
    for pair in segments.windows(2) {
        if pair[0].0 + 1 != pair[1].0 {
            let reason = format!("segment {} is missing", pair[0].0 + 1);
            return Err(DurableError::Mismatch { path: dir.to_owned(), reason });
        }
    }
    let (mut files, mut position) = match segments.pop() {
        None => start(dir, storage, from_epoch, &recognizer)?,
        Some((_, last)) => {
            let mut position = None;
            let mut memory = Memory { recognizer: &mut recognizer, copied: false };
            let tail = read_tail(&last, |header, frame| {
                let position = position.get_or_insert_with(|| Position::start_of(header));
                let step = position.step(frame)?;
                // The copy was cut off: what it said is in the segment before.
                if !memory.copied
                    && !matches!(step, Step::Sessions(_))
                    && let Some((_, before)) = segments.last()
                {
                    memory.read(before)?;
                }
                memory.take(step, &position.sources)
            })?;
            if !memory.copied
                && position.is_none()
                && let Some((_, before)) = segments.last()
            {
                let failed = |reason| DurableError::damaged(before, 0, reason);
                memory.read(before).map_err(failed)?;
            }
            let position = position.unwrap_or_else(|| Position::start_of(&tail.header));
            let sealed = sealed_segments(segments, &tail.header)?;
            let active = Active::reopen(&*storage, last.clone(), tail.header, tail.good_bytes)
                .map_err(DurableError::io("open", &last))?;
            let keep = Keep::default();
            (Files { dir: dir.to_owned(), storage, sealed, active, keep }, position)
        }
    };
    check_range(&files, &position, from_epoch)?;
    finish(&mut files, &mut position, clock, sources)?;
    Ok(Recovered { files, position, recognizer })
}

/// What is remembered of sessions while segments are read.
struct Memory<'a> {
    recognizer: &'a mut Recognizer,
    /// The copy at the start of a segment was seen, or made good for.
    copied: bool,
}

impl Memory<'_> {
    fn take(&mut self, step: Step, sources: &[String]) -> Result<(), String> {
        match step {
            Step::Messages(messages) => self.recognizer.replay(&messages, sources),
            Step::Sessions(copy) => {
                self.copied = true;
                self.recognizer.get(&copy).ok_or("the copy of recent sessions is not valid")?;
            }
            Step::Tick(_) | Step::Sources => {}
        }
        Ok(())
    }

    /// Reads a whole segment for what it says of sessions.
    fn read(&mut self, path: &Path) -> Result<(), String> {
        self.copied = true;
        let text = |error: DurableError| error.to_string();
        let mut reader =
            FrameReader::open(path, None).map_err(DurableError::read(path)).map_err(text)?;
        let mut position = Position::start_of(&reader.header);
        while let Some(frame) =
            reader.next_frame().map_err(DurableError::read(path)).map_err(text)?
        {
            let step = position.step(&frame)?;
            self.take(step, &position.sources)?;
        }
        Ok(())
    }
}

fn start(
    dir: &Path,
    storage: Arc<dyn Storage>,
    from_epoch: Epoch,
    recognizer: &Recognizer,
) -> Result<(Files, Position), DurableError> {
    if from_epoch > 1 {
        tracing::warn!(dir = %dir.display(), from_epoch, "there is no journal: it starts anew");
    }
    let header = FileHeader {
        sequence: 1,
        salt: 0,
        first_epoch: from_epoch.max(1),
        first_offset: 0,
        last_time_us: 0,
    };
    let position = Position::start_of(&header);
    let active = Active::create(&*storage, dir, 1, &position, recognizer)
        .map_err(DurableError::io("create the first segment", dir))?;
    let (dir, sealed, keep) = (dir.to_owned(), VecDeque::new(), Keep::default());
    Ok((Files { dir, storage, sealed, active, keep }, position))
}

/// Sizes and epochs of all segments but the last, from their headers.
fn sealed_segments(
    segments: Vec<(u64, std::path::PathBuf)>,
    last: &FileHeader,
) -> Result<VecDeque<Sealed>, DurableError> {
    let mut sealed = VecDeque::new();
    let (mut next_epoch, mut last_time_us) = (last.first_epoch, last.last_time_us);
    for (_, path) in segments.into_iter().rev() {
        let reader = FrameReader::open(&path, None).map_err(DurableError::read(&path))?;
        let bytes = std::fs::metadata(&path).map_err(DurableError::io("read", &path))?.len();
        if reader.header.first_epoch >= next_epoch {
            return Err(DurableError::damaged(
                &path,
                0,
                "its epochs do not come before the next's",
            ));
        }
        sealed.push_front(Sealed { path, bytes, last_epoch: next_epoch - 1, last_time_us });
        (next_epoch, last_time_us) = (reader.header.first_epoch, reader.header.last_time_us);
    }
    Ok(sealed)
}

/// The journal has to reach from `from_epoch` (or before) to at least the epoch before it.
fn check_range(files: &Files, position: &Position, from_epoch: Epoch) -> Result<(), DurableError> {
    let mismatch = |reason| Err(DurableError::Mismatch { path: files.dir.clone(), reason });
    let oldest = files.sealed.front().map_or(Ok(files.active.header.first_epoch), |sealed| {
        FrameReader::open(&sealed.path, None)
            .map(|reader| reader.header.first_epoch)
            .map_err(DurableError::read(&sealed.path))
    })?;
    if oldest > from_epoch.max(1) {
        return mismatch(format!(
            "epoch {from_epoch} has to be replayed, but the journal starts at epoch {oldest}. \
             Bring back the checkpoints that belong to it; without them, `tidegate doctor data \
             --data {} --salvage NEW_FOLDER` makes a folder that begins there, without state",
            files.dir.parent().unwrap_or(&files.dir).display()
        ));
    }
    if position.epoch < from_epoch {
        return mismatch(format!(
            "the journal ends at epoch {}, but tables or checkpoints hold epoch {} already: \
             they do not belong together",
            position.epoch - 1,
            from_epoch - 1
        ));
    }
    Ok(())
}

/// Seals an epoch that was left open, and says which sources follow.
fn finish(
    files: &mut Files,
    position: &mut Position,
    clock: &Clock,
    sources: &[String],
) -> Result<(), DurableError> {
    let active = &mut files.active;
    let to = Target { salt: active.header.salt, synced_to: active.bytes };
    let mut group = Group::default();
    if position.messages > 0 {
        group.add_tick(clock.now_us(), position, to);
    }
    if position.sources != sources {
        group.add_sources(sources, position, to);
    }
    active.append(&group.bytes).map_err(DurableError::io("write", &active.path))?;
    active.sync().map_err(DurableError::io("sync", &active.path))
}
