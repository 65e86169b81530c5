//! Reading a journal again: the same messages and ticks that the live run saw.
//!
//! Invariant: every frame is checked, every sealed epoch is checked against the count and hash of
//! its tick before that tick is handed out, and nothing is skipped: a gap or a bad frame ends the
//! replay with an error that names file and offset. Works beside the running writer: it reads up to
//! where the journal ended when it was opened.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use tidegate_operators::event::is_of_sessions;
use tidegate_operators::{Epoch, Messages, MessagesBuilder};

use super::Feed;
use super::epoch::{Position, Step};
use super::error::DurableError;
use super::files::Files;
use super::segment::{FrameReader, ReadFault};

/// Number of a source that is not in the plan any more; no pipeline reads it.
const GONE: u16 = u16::MAX;

/// All epochs from the one that was asked for to the end of the journal as it was opened.
pub struct Replay {
    /// Segments not yet read; the end of the last one.
    segments: VecDeque<(PathBuf, Option<u64>)>,
    current: Option<(PathBuf, FrameReader)>,
    position: Option<Position>,
    /// Parts of the last run that are still to be handed out.
    parts: VecDeque<Messages>,
    from_epoch: Epoch,
    sources: Vec<String>,
    /// Messages whose source is not in the plan any more, by its name.
    orphans: BTreeMap<String, u64>,
    /// Bytes of all segments that are or were to be read, and of those that were read to the end.
    bytes_all: u64,
    bytes_read: u64,
    /// Where what was asked for begins: bytes before it, offset of its first message.
    begin: Option<(u64, u64)>,
    /// Offset after the last message of the journal; 0 where that is not known.
    end_offset: u64,
    /// Nobody asked for messages, so none are missed.
    ticks_only: bool,
    done: bool,
}

/// How far a replay is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Bytes that were read from where the first epoch begins that was asked for.
    pub bytes: u64,
    /// Bytes from there to the end of the journal.
    pub bytes_all: u64,
    /// Messages from there to the end of the journal; 0 where that is not known.
    pub messages_all: u64,
}

impl Replay {
    /// `end_offset` is the offset after the last message of the journal, 0 if nobody asks for it.
    pub(crate) fn new(
        files: &Files,
        sources: &[String],
        from_epoch: Epoch,
        end_offset: u64,
    ) -> Self {
        let mut segments: VecDeque<_> = files
            .sealed
            .iter()
            .filter(|sealed| sealed.last_epoch >= from_epoch)
            .map(|sealed| (sealed.path.clone(), None))
            .collect();
        segments.push_back((files.active.path.clone(), Some(files.active.bytes)));
        let sealed = files.sealed.iter().filter(|sealed| sealed.last_epoch >= from_epoch);
        let bytes_all = sealed.map(|sealed| sealed.bytes).sum::<u64>() + files.active.bytes;
        Self { bytes_all, end_offset, ..Self::of(segments, sources, from_epoch) }
    }

    /// Reads these segments, each to the given end.
    pub(crate) fn of(
        segments: VecDeque<(PathBuf, Option<u64>)>,
        sources: &[String],
        from_epoch: Epoch,
    ) -> Self {
        Self {
            segments,
            current: None,
            position: None,
            parts: VecDeque::new(),
            from_epoch,
            sources: sources.to_vec(),
            orphans: BTreeMap::new(),
            bytes_all: 0,
            bytes_read: 0,
            begin: None,
            end_offset: 0,
            ticks_only: false,
            done: false,
        }
    }

    /// Without the messages of any source.
    pub(crate) fn ticks_only(self) -> Self {
        Self { ticks_only: true, ..self }
    }

    /// How far it is; all zero before the first epoch that was asked for.
    pub fn extent(&self) -> Extent {
        let Some((bytes, offset)) = self.begin else { return Extent::default() };
        let current = self.current.as_ref().map_or(0, |(_, reader)| reader.offset);
        Extent {
            bytes: (self.bytes_read + current).saturating_sub(bytes),
            bytes_all: self.bytes_all.saturating_sub(bytes),
            messages_all: self.end_offset.saturating_sub(offset),
        }
    }

    /// Messages so far that were left out because the plan has no source of their name any more.
    /// They stay in the journal until it is trimmed. Events are not left out.
    pub fn orphans(&self) -> u64 {
        self.orphans.values().sum()
    }

    /// The same, by the name of their source.
    pub(crate) fn orphans_by_source(&self) -> &BTreeMap<String, u64> {
        &self.orphans
    }

    fn advance(&mut self) -> Result<Option<Feed>, DurableError> {
        loop {
            if let Some(part) = self.parts.pop_front() {
                return Ok(Some(Feed::Messages(Arc::new(part))));
            }
            let Some((path, reader)) = &mut self.current else {
                let Some((path, end)) = self.segments.pop_front() else { return Ok(None) };
                let reader = FrameReader::open(&path, end).map_err(DurableError::read(&path))?;
                self.enter(&path, &reader)?;
                self.current = Some((path, reader));
                continue;
            };
            let position = self.position.as_mut().expect("set when the segment was entered");
            let frame = match reader.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    if position.messages > 0 {
                        let reason = "the segment ends within an epoch";
                        return Err(DurableError::damaged(path, reader.offset, reason));
                    }
                    self.bytes_read += reader.offset;
                    self.current = None;
                    continue;
                }
                Err(ReadFault::Io(error)) => return Err(DurableError::io("read", path)(error)),
                Err(fault) => return Err(DurableError::read(path)(fault)),
            };
            if frame.epoch >= self.from_epoch {
                self.begin.get_or_insert((self.bytes_read + frame.offset, position.next_offset));
            }
            let step = position
                .step(&frame)
                .map_err(|reason| DurableError::damaged(path, frame.offset, reason))?;
            if frame.epoch >= self.from_epoch
                && let Some(feed) = self.feed(step)
            {
                return Ok(Some(feed));
            }
        }
    }

    /// A segment has to begin exactly where the one before it ended.
    fn enter(&mut self, path: &std::path::Path, reader: &FrameReader) -> Result<(), DurableError> {
        let next = Position::start_of(&reader.header);
        if let Some(last) = &self.position
            && (last.epoch, last.next_offset, last.last_time_us)
                != (next.epoch, next.next_offset, next.last_time_us)
        {
            let reason = format!(
                "it begins at epoch {} and message {}, the segment before it ended before epoch \
                 {} and message {}",
                next.epoch, next.next_offset, last.epoch, last.next_offset
            );
            return Err(DurableError::damaged(path, 0, reason));
        }
        self.position = Some(next);
        Ok(())
    }

    /// Source numbers of the file become those of the running plan.
    fn feed(&mut self, step: Step) -> Option<Feed> {
        match step {
            Step::Sources | Step::Sessions(_) => None,
            Step::Tick(tick) => Some(Feed::Tick(tick)),
            Step::Messages(mut messages) => {
                let names = &self.position.as_ref()?.sources;
                let name = names.get(usize::from(messages.source))?;
                let Some(source) = self.sources.iter().position(|have| have == name) else {
                    self.parts = events(&messages);
                    let kept = self.parts.iter().map(Messages::len).sum::<usize>();
                    let left_out = (messages.len() - kept) as u64;
                    if left_out == 0 || self.ticks_only {
                        return None;
                    }
                    if !self.orphans.contains_key(name) {
                        tracing::warn!(
                            source = %name,
                            "messages of a source that is not configured any more are not replayed"
                        );
                    }
                    *self.orphans.entry(name.clone()).or_default() += left_out;
                    return None;
                };
                messages.source = source as u16;
                Some(Feed::Messages(Arc::new(messages)))
            }
        }
    }
}

/// The events among the messages of a source that is gone, in runs without a gap.
///
/// What the engine itself says stands under the first source of its time, whatever that was called;
/// a mark that an epoch is closed to new keys holds without it. It becomes what source 0 says, as
/// it was. What a source told of its sessions still makes rows, but no pipeline hears it: the
/// silence of one source is not that of another.
fn events(messages: &Messages) -> VecDeque<Messages> {
    let source = |i: usize| match (messages.index[i].event, is_of_sessions(messages, i)) {
        (false, _) => None,
        (true, false) => Some(0),
        (true, true) => Some(GONE),
    };
    let all: Vec<usize> = (0..messages.len()).collect();
    let mut runs = VecDeque::new();
    for part in all.chunk_by(|one, next| source(*one) == source(*next)) {
        let Some(source) = source(part[0]) else { continue };
        let mut run = MessagesBuilder::default();
        for &i in part {
            let (topic, payload) = (messages.topic(i), messages.payload(i));
            let (client, properties) = (messages.client(i), messages.properties(i));
            run.push_with(topic, payload, client, properties, messages.index[i]);
        }
        runs.push_back(run.finish(source, messages.first_offset + part[0] as u64));
    }
    runs
}

impl Iterator for Replay {
    type Item = Result<Feed, DurableError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.advance().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}
