//! Going through the segments in order: strictly as a replay does while all is well, leniently
//! from a damage to the next place where the journal can be followed again.
//!
//! What was lost is counted by what is around it: the offsets of later messages, the seal of the
//! epoch, the header of the next segment.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use tidegate_operators::Epoch;

use super::super::epoch::{Position, Step};
use super::super::error::DurableError;
use super::super::frame::Kind;
use super::super::recognize::Recognizer;
use super::super::record;
use super::super::segment::{FileHeader, Frame};
use super::scan::{Bad, Piece, Scan, header_of, salt_of};
use super::{
    Damage, Examined, LOOK_PAUSE, LOOKS_MAX, Lost, MESSAGE_BYTES_MIN, Mode, SegmentSeen, Torn,
    Watch, Whole, position_at,
};

/// Where the walk is.
struct State {
    position: Position,
    /// The open epoch is not whole: its seal cannot be compared.
    broken: bool,
    /// The damage whose loss is not known yet.
    gap: Option<usize>,
    /// Whether `position.next_offset` is known.
    offset_known: bool,
}

pub(super) struct Walk<'a> {
    dir: PathBuf,
    mode: Mode,
    watch: Watch<'a>,
    total_bytes: u64,
    read_bytes: u64,
    state: Option<State>,
    before: Option<u64>,
    /// The newest names of sources.
    names: Vec<String>,
    pub(super) out: Examined,
}

/// One segment while it is read.
struct Current<'p> {
    number: u64,
    path: &'p Path,
    last: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn new(dir: &Path, mode: Mode, watch: Watch<'a>, total_bytes: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            mode,
            watch,
            total_bytes,
            read_bytes: 0,
            state: None,
            before: None,
            names: Vec::new(),
            out: Examined::default(),
        }
    }

    pub(super) fn segment(
        &mut self,
        number: u64,
        path: &Path,
        last: bool,
    ) -> Result<(), DurableError> {
        if let Some(before) = self.before.replace(number)
            && before + 1 != number
        {
            let missing = match before + 2 == number {
                true => format!("segment {} is missing", before + 1),
                false => format!("segments {} to {} are missing", before + 1, number - 1),
            };
            let dir = self.dir.clone();
            self.damage(&dir, None, 0, missing, true);
        }
        let Some(bytes) = self.read(path, last)? else {
            // Trimmed meanwhile, and all before it: the journal begins with the next.
            self.state = None;
            self.out = Examined { unborn: self.out.unborn.take(), ..Examined::default() };
            return Ok(());
        };
        let current = Current { number, path, last };
        let header = header_of(&bytes);
        if let Ok(header) = &header {
            let first = self.out.segments.is_empty();
            self.out.first_offset = first.then_some(header.first_offset).or(self.out.first_offset);
        }
        let salt = match header {
            Ok(header) => {
                self.enter(&current, &header);
                Some(header.salt)
            }
            Err(reason) => {
                let salt = salt_of(&bytes);
                let until = if salt.is_some() { 60 } else { bytes.len() as u64 };
                self.damage(path, Some(0), until, reason.into(), true);
                if let (Some(_), Some(damage)) = (salt, self.out.damages.last_mut()) {
                    // Only the header: what follows can still be read.
                    damage.lost = Lost::Exactly(0);
                }
                salt
            }
        };
        let first = self.state.as_ref().map_or(0, |s| s.position.epoch);
        self.out.segments.push(SegmentSeen {
            path: path.to_owned(),
            bytes: bytes.len() as u64,
            epochs: (header.map_or(first, |h| h.first_epoch), first),
        });
        if let Some(salt) = salt {
            self.pieces(&current, Scan::new(bytes.clone(), salt))?;
        }
        self.leave(&current, bytes.len() as u64);
        Ok(())
    }

    /// The bytes of a segment; `None` if it was trimmed meanwhile. The one that is being written is
    /// read again while its end is not whole but something behind it says that it should be.
    fn read(&mut self, path: &Path, last: bool) -> Result<Option<Bytes>, DurableError> {
        let mut looks = 0;
        loop {
            looks += 1;
            let bytes: Bytes = match std::fs::read(path) {
                Ok(bytes) => bytes.into(),
                Err(error)
                    if self.mode == Mode::Live && error.kind() == std::io::ErrorKind::NotFound =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(DurableError::io("read", path)(error)),
            };
            let doubtful = self.mode == Mode::Live
                && last
                && looks < LOOKS_MAX
                && header_of(&bytes).map_or(true, |header| {
                    let mut scan = Scan::new(bytes.clone(), header.salt);
                    scan.any(|piece| matches!(piece, Piece::Bad(Bad { proof: Some(_), .. })))
                });
            if doubtful {
                std::thread::sleep(LOOK_PAUSE);
                continue;
            }
            self.read_bytes += bytes.len() as u64;
            (self.watch.progress)(self.read_bytes, self.total_bytes.max(self.read_bytes));
            return Ok(Some(bytes));
        }
    }

    /// A segment has to begin exactly where the one before it ended.
    fn enter(&mut self, current: &Current<'_>, header: &FileHeader) {
        let renamed = match header.sequence == current.number {
            true => String::new(),
            false => format!(" (its header says that it is segment {})", header.sequence),
        };
        let next = Position::start_of(header);
        let sources = match self.state.take() {
            None => Vec::new(),
            Some(mut state) => {
                let last = &state.position;
                let fits = (last.epoch, last.next_offset, last.last_time_us)
                    == (next.epoch, next.next_offset, next.last_time_us);
                let reason = format!(
                    "it begins at epoch {} and message {}, the segment before it ended before \
                     epoch {} and message {}{renamed}",
                    next.epoch, next.next_offset, last.epoch, last.next_offset
                );
                let sources = state.position.sources.clone();
                let whole = state.gap.is_none();
                if !whole {
                    self.settle(&mut state, next.epoch.saturating_sub(1), next.next_offset);
                }
                let known = state.offset_known;
                self.state = Some(state);
                if whole && !fits && known {
                    // A start compares the headers of all segments.
                    let begins = self.out.segments.last().map_or(0, |before| before.epochs.0);
                    self.damage(current.path, Some(0), 0, reason, begins >= next.epoch);
                    if let Some(mut state) = self.state.take() {
                        self.settle(&mut state, next.epoch.saturating_sub(1), next.next_offset);
                    }
                }
                sources
            }
        };
        let mut position = next;
        position.sources = sources;
        self.state = Some(State { position, broken: false, gap: None, offset_known: true });
    }

    fn pieces(&mut self, current: &Current<'_>, scan: Scan) -> Result<(), DurableError> {
        let mut first = true;
        for piece in scan {
            let copy = matches!(&piece, Piece::Frame(frame) if frame.kind == Kind::Sessions);
            if first && current.last && !copy {
                self.needs_before(current.path);
            }
            match piece {
                Piece::Frame(frame) => {
                    // Without a header the first frame says where the segment begins.
                    if let Some(seen) = self.out.segments.last_mut().filter(|s| s.epochs.0 == 0) {
                        seen.epochs.0 = frame.epoch;
                    }
                    if first
                        && let Some(state) = &mut self.state
                        && state.gap.is_none()
                    {
                        // Each segment says anew what its source numbers mean.
                        state.position.sources.clear();
                    }
                    self.frame(current, &frame)?;
                }
                Piece::Bad(bad) => {
                    if self.bad(current, bad) {
                        return Ok(());
                    }
                }
            }
            first = false;
        }
        Ok(())
    }

    /// Without its copy of recent sessions the last segment needs the one before it, whatever the
    /// checkpoint is.
    fn needs_before(&mut self, path: &Path) {
        let before = self.out.segments.iter().rev().find(|s| s.path != path);
        let Some(before) = before.map(|s| s.path.clone()) else { return };
        let of_before = self.out.damages.iter_mut().filter(|d| d.path == before);
        of_before.for_each(|d| d.always_read = true);
    }

    /// Whether the rest of the file does not count.
    fn bad(&mut self, current: &Current<'_>, bad: Bad) -> bool {
        let torn = current.last && bad.proof.is_none();
        if torn && self.out.torn.is_none() {
            let end = self.out.segments.last().map_or(bad.until, |s| s.bytes);
            let (path, offset) = (current.path.to_owned(), bad.offset);
            self.out.torn = Some(Torn { path, offset, bytes: end - offset });
        }
        if torn && self.mode != Mode::Everything {
            return true;
        }
        let reason = match bad.proof {
            Some(later) => format!("{}, and it was durable before byte {later}", bad.reason),
            None => bad.reason,
        };
        self.damage(current.path, Some(bad.offset), bad.until, reason, current.last);
        false
    }

    fn damage(&mut self, path: &Path, offset: Option<u64>, until: u64, reason: String, read: bool) {
        let epoch = self.state.as_ref().map_or(0, |s| s.position.epoch);
        let bytes = until.saturating_sub(offset.unwrap_or(0));
        let lost = match offset {
            Some(_) => Lost::AtMost(bytes / MESSAGE_BYTES_MIN),
            None => Lost::Unknown,
        };
        let state = self.state.get_or_insert_with(|| State {
            position: position_at(0, 0, 0, Vec::new()),
            broken: true,
            gap: None,
            offset_known: false,
        });
        state.broken = true;
        // Two that follow each other share one loss, which the first of them tells.
        if state.gap.is_none() {
            state.gap = Some(self.out.damages.len());
        }
        if state.position.sources.is_empty() {
            let known = if self.names.is_empty() { self.watch.sources } else { &self.names };
            state.position.sources = known.to_vec();
        }
        self.out.damages.push(Damage {
            path: path.to_owned(),
            offset,
            until,
            reason,
            epochs: (epoch, epoch),
            lost,
            always_read: read,
        });
    }

    /// The loss of the open gap, now that it is known what follows it.
    fn settle(&mut self, state: &mut State, through: Epoch, next_offset: u64) {
        let Some(gap) = state.gap.take() else { return };
        let lost = next_offset.saturating_sub(state.position.next_offset);
        let of_gap = &mut self.out.damages[gap..];
        for damage in of_gap.iter_mut() {
            damage.epochs.1 = damage.epochs.1.max(through);
            if damage.epochs.0 == 0 {
                damage.epochs.0 = through;
            }
            if state.offset_known {
                damage.lost = Lost::Exactly(0);
            }
        }
        if state.offset_known {
            of_gap[0].lost = Lost::Exactly(lost);
        }
    }

    fn frame(&mut self, current: &Current<'_>, frame: &Frame) -> Result<(), DurableError> {
        let Some(state) = &mut self.state else { return Ok(()) };
        if state.broken || state.gap.is_some() {
            return self.lenient(frame);
        }
        match state.position.step(frame) {
            Ok(Step::Sessions(copy)) if current.last && Recognizer::new(0).get(&copy).is_none() => {
                let reason = "the copy of recent sessions is not valid".to_owned();
                let end = frame.offset + frame.body.len() as u64;
                self.damage(current.path, Some(frame.offset), end, reason, current.last);
                Ok(())
            }
            Ok(step) => {
                if let Step::Tick(_) = step {
                    self.out.epochs += 1;
                }
                self.whole(frame.epoch, step)
            }
            Err(reason) => {
                let end = frame.offset + frame.body.len() as u64;
                self.damage(current.path, Some(frame.offset), end, reason, current.last);
                self.lenient(frame)
            }
        }
    }

    fn whole(&mut self, epoch: Epoch, step: Step) -> Result<(), DurableError> {
        let sources = self.state.as_ref().map_or(&[][..], |s| s.position.sources.as_slice());
        if matches!(step, Step::Sources) {
            self.names = sources.to_vec();
        }
        if self.out.sources.is_empty() {
            self.out.sources = sources.to_vec();
        }
        match step {
            Step::Messages(messages) => {
                self.out.messages += messages.len() as u64;
                self.out.first_offset.get_or_insert(messages.first_offset);
                (self.watch.visit)(epoch, Whole::Messages(messages, sources))
            }
            Step::Tick(tick) => {
                self.out.last_time_us = tick.time_us;
                (self.watch.visit)(epoch, Whole::Tick(tick))
            }
            Step::Sessions(copy) => (self.watch.visit)(epoch, Whole::Sessions(copy)),
            Step::Sources => Ok(()),
        }
    }

    /// A whole frame behind a damage: taken for what it says, if that lies ahead.
    fn lenient(&mut self, frame: &Frame) -> Result<(), DurableError> {
        let Some(mut state) = self.state.take() else { return Ok(()) };
        let step = match frame.kind {
            Kind::Messages => self.lenient_messages(&mut state, frame),
            Kind::Tick => self.lenient_tick(&mut state, frame),
            Kind::Sources => record::get_sources(&frame.body).map(|names| {
                state.position.sources = names;
                Step::Sources
            }),
            Kind::Sessions if state.position.epoch <= frame.epoch => {
                Some(Step::Sessions(frame.body.clone()))
            }
            _ => None,
        };
        self.state = Some(state);
        match step {
            Some(step) => self.whole(frame.epoch, step),
            None => Ok(()),
        }
    }

    fn lenient_messages(&mut self, state: &mut State, frame: &Frame) -> Option<Step> {
        let messages = record::get_messages(&frame.body)?;
        let position = &state.position;
        if usize::from(messages.source) >= position.sources.len() {
            // Whose they are is lost: they would become readings of another pipeline.
            return None;
        }
        let behind = messages.first_offset < position.next_offset || frame.epoch < position.epoch;
        if state.offset_known && behind {
            // It was handed on before, or belongs to another journal.
            return None;
        }
        self.settle(state, frame.epoch, messages.first_offset);
        state.offset_known = true;
        if frame.epoch != state.position.epoch {
            let sources = std::mem::take(&mut state.position.sources);
            let time_us = state.position.last_time_us;
            state.position = position_at(frame.epoch, messages.first_offset, time_us, sources);
        }
        state.position.next_offset = messages.first_offset;
        state.position.add(&frame.body, messages.len() as u64);
        state.broken = true;
        Some(Step::Messages(messages))
    }

    fn lenient_tick(&mut self, state: &mut State, frame: &Frame) -> Option<Step> {
        let seal = record::get_seal(frame.epoch, &frame.body)?;
        if frame.epoch < state.position.epoch && state.offset_known {
            return None;
        }
        if frame.epoch == state.position.epoch && state.offset_known && state.gap.is_some() {
            let missing = seal.messages.saturating_sub(state.position.messages);
            let next_offset = state.position.next_offset + missing;
            self.settle(state, frame.epoch, next_offset);
            state.position.next_offset = next_offset;
        }
        let sources = std::mem::take(&mut state.position.sources);
        let next_offset = state.position.next_offset;
        state.position = position_at(frame.epoch + 1, next_offset, seal.tick.time_us, sources);
        state.broken = false;
        Some(Step::Tick(seal.tick))
    }

    /// At the end of a segment: it holds whole epochs, unless it is the last one.
    fn leave(&mut self, current: &Current<'_>, bytes: u64) {
        let whole = self.state.as_ref().is_some_and(|s| !s.broken && s.gap.is_none());
        let open = self.state.as_ref().is_some_and(|s| s.position.messages > 0);
        if whole && open && !current.last {
            let reason = "the segment ends within an epoch".to_owned();
            self.damage(current.path, Some(bytes), bytes, reason, false);
        }
        if let (Some(state), Some(seen)) = (&self.state, self.out.segments.last_mut()) {
            seen.epochs.1 = state.position.epoch + u64::from(state.position.messages > 0);
            if seen.epochs.0 == 0 {
                seen.epochs.0 = seen.epochs.1;
            }
        }
    }

    pub(super) fn finish(mut self) -> Examined {
        if let Some(state) = &self.state {
            self.out.open = (state.position.epoch, state.position.messages);
            self.out.last_time_us = self.out.last_time_us.max(state.position.last_time_us);
            if let Some(gap) = state.gap {
                for damage in &mut self.out.damages[gap..] {
                    damage.epochs.1 = damage.epochs.1.max(state.position.epoch);
                }
            }
        }
        self.out
    }
}
