//! A new journal of what is whole of a damaged one.
//!
//! Invariant: every whole message is in it once, in order, in its epoch; every epoch has its tick.
//! Epochs keep their numbers, because tables and checkpoints count by them; where the tick of an
//! epoch is lost, one just after the last is made up. Message offsets close up behind what is lost.
//! The damaged journal is only read, and only by who holds its lock.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use tidegate_operators::{Epoch, Messages};

use super::JournalOptions;
use super::epoch::Position;
use super::error::DurableError;
use super::examine::{Examined, Mode, Watch, Whole, examine};
use super::files::{Active, Files, Keep};
use super::group::{Group, Target};
use super::recognize::Recognizer;
use super::segment::FileHeader;
use super::storage::Disk;

/// Frames are written in pieces of about this size.
const PIECE_BYTES: usize = 4 << 20;
/// More epochs than this are not made up: a journal that lacks so many belongs to other tables.
const MADE_UP_MAX: u64 = 20_000_000;

/// What was saved.
#[derive(Debug)]
pub(crate) struct SavedJournal {
    /// What was found, damage among it.
    pub(crate) found: Examined,
    /// Messages in the new journal.
    pub(crate) messages: u64,
    /// First and last epoch of it.
    pub(crate) epochs: (Epoch, Epoch),
    /// Epochs whose tick had to be made up.
    pub(crate) made_up: u64,
}

/// Which epochs the new journal has to reach, whatever the old one has: the one after its
/// checkpoint, and the newest that checkpoint and tables have.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Range {
    pub(crate) from: Option<Epoch>,
    pub(crate) through: Epoch,
    /// Time of the tick before `from`, µs: ticks that are made up come after it.
    pub(crate) time_us: i64,
}

/// Writes into the empty folder `to` what is whole of the journal in `from`, which may be missing.
///
/// # Errors
/// Those of the file system, and a range that is too far from what the journal has.
pub(crate) fn salvage(
    from: &Path,
    to: &Path,
    range: Range,
    progress: &dyn Fn(u64, u64),
) -> Result<SavedJournal, DurableError> {
    // The first pass learns where it begins, and the names of sources.
    let mut nothing = |_, _: Whole<'_>| Ok(());
    let watch = Watch { progress: &|_, _| {}, visit: &mut nothing, sources: &[] };
    let found = match from.is_dir() {
        true => examine(from, Mode::Everything, watch)?,
        false => Examined::default(),
    };
    let first = found.first_epoch().filter(|epoch| *epoch > 0);
    let wanted = range.from.filter(|wanted| first.is_none_or(|first| *wanted <= first));
    let time_us = if wanted.is_some() { range.time_us } else { 0 };
    let first = wanted.or(first).unwrap_or(range.through + 1);
    let mut out = Out::create(to, (first, time_us), found.first_offset.unwrap_or(0))?;
    let names = found.sources.clone();
    let mut visit = |epoch, whole: Whole<'_>| out.take(epoch, whole);
    let watch = Watch { progress, visit: &mut visit, sources: &names };
    if from.is_dir() {
        examine(from, Mode::Everything, watch)?;
    }
    out.reach(range.through + 1)?;
    out.finish()?;
    let epochs = (first, out.position.epoch.saturating_sub(1));
    Ok(SavedJournal { found, messages: out.messages, epochs, made_up: out.made_up })
}

struct Out {
    files: Files,
    position: Position,
    recognizer: Recognizer,
    group: Group,
    messages: u64,
    made_up: u64,
    segment_bytes: u64,
}

impl Out {
    fn create(
        dir: &Path,
        (first, time_us): (Epoch, i64),
        first_offset: u64,
    ) -> Result<Self, DurableError> {
        let options = JournalOptions::new(dir);
        let recognizer = Recognizer::new(options.budget_bytes);
        let header = FileHeader {
            sequence: 1,
            salt: 0,
            first_epoch: first.max(1),
            first_offset,
            last_time_us: time_us,
        };
        let position = Position::start_of(&header);
        let storage = Arc::new(Disk);
        let active = Active::create(&*storage, dir, 1, &position, &recognizer)
            .map_err(DurableError::io("create the first segment", dir))?;
        let sealed = VecDeque::new();
        let files = Files { dir: dir.to_owned(), storage, sealed, active, keep: Keep::default() };
        Ok(Self {
            files,
            position,
            recognizer,
            group: Group::default(),
            messages: 0,
            made_up: 0,
            segment_bytes: options.segment_bytes_effective(),
        })
    }

    fn target(&self) -> Target {
        Target { salt: self.files.active.header.salt, synced_to: self.files.active.bytes }
    }

    fn take(&mut self, epoch: Epoch, whole: Whole<'_>) -> Result<(), DurableError> {
        match whole {
            Whole::Sessions(copy) => {
                // A copy that cannot be read only means that less is recognised.
                let _ = self.recognizer.get(&copy);
                Ok(())
            }
            Whole::Messages(messages, sources) => {
                self.reach(epoch)?;
                self.check(epoch)?;
                self.recognizer.replay(&messages, sources);
                self.run(messages, sources);
                self.flush_if_large()
            }
            Whole::Tick(tick) => {
                self.reach(tick.epoch)?;
                self.check(tick.epoch)?;
                let to = self.target();
                self.group.add_tick(tick.time_us, &mut self.position, to);
                self.flush_if_large()
            }
        }
    }

    /// A message in another epoch than its own would be counted twice by the tables.
    fn check(&self, epoch: Epoch) -> Result<(), DurableError> {
        if epoch == self.position.epoch {
            return Ok(());
        }
        let reason = format!("epoch {epoch} comes after epoch {}", self.position.epoch);
        Err(DurableError::Mismatch { path: self.files.dir.clone(), reason })
    }

    fn run(&mut self, messages: Messages, sources: &[String]) {
        let to = self.target();
        if self.position.sources != sources {
            self.group.add_sources(sources, &mut self.position, to);
        }
        self.messages += messages.len() as u64;
        self.group.add_run(messages, &mut self.position, to);
        self.group.feed.clear();
    }

    /// Seals epochs until `epoch` is the open one.
    fn reach(&mut self, epoch: Epoch) -> Result<(), DurableError> {
        if epoch > self.position.epoch + MADE_UP_MAX {
            let reason = format!(
                "epochs {} to {epoch} are missing: tables and journal do not belong together",
                self.position.epoch
            );
            return Err(DurableError::Mismatch { path: self.files.dir.clone(), reason });
        }
        while self.position.epoch < epoch {
            let to = self.target();
            // Just after the last tick: time never goes back.
            self.group.add_tick(0, &mut self.position, to);
            self.made_up += 1;
            self.flush_if_large()?;
        }
        Ok(())
    }

    fn flush_if_large(&mut self) -> Result<(), DurableError> {
        self.group.feed.clear();
        if self.group.bytes.len() < PIECE_BYTES {
            return Ok(());
        }
        self.flush()?;
        if self.position.messages == 0 && self.files.active.bytes > self.segment_bytes {
            let dir = self.files.dir.clone();
            self.files
                .roll(&self.position, &self.recognizer)
                .map_err(DurableError::io("create a segment", &dir))?;
            self.position.sources.clear();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), DurableError> {
        let bytes = std::mem::take(&mut self.group.bytes);
        let active = &mut self.files.active;
        active.append(&bytes).map_err(DurableError::io("write", &active.path))?;
        active.sync().map_err(DurableError::io("sync", &active.path))
    }

    fn finish(&mut self) -> Result<(), DurableError> {
        if self.position.messages > 0 {
            let to = self.target();
            self.group.add_tick(0, &mut self.position, to);
            self.made_up += 1;
        }
        self.flush()
    }
}
