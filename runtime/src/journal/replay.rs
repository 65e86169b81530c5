//! Reading a journal again: the same messages and ticks that the live run saw.
//!
//! Invariant: every frame is checked, every sealed epoch is checked against the count and hash of
//! its tick before that tick is handed out, and nothing is skipped: a gap or a bad frame ends the
//! replay with an error that names file and offset. Works beside the running writer: it reads up to
//! where the journal ended when it was opened.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use tidegate_operators::Epoch;

use super::Feed;
use super::epoch::{Position, Step};
use super::error::DurableError;
use super::files::Files;
use super::segment::{FrameReader, ReadFault};

/// All epochs from the one that was asked for to the end of the journal as it was opened.
pub struct Replay {
    /// Segments not yet read; the end of the last one.
    segments: VecDeque<(PathBuf, Option<u64>)>,
    current: Option<(PathBuf, FrameReader)>,
    position: Option<Position>,
    from_epoch: Epoch,
    sources: Vec<String>,
    /// Messages whose source is not in the plan any more.
    orphans: u64,
    done: bool,
}

impl Replay {
    pub(crate) fn new(files: &Files, sources: &[String], from_epoch: Epoch) -> Self {
        let mut segments: VecDeque<_> = files
            .sealed
            .iter()
            .filter(|sealed| sealed.last_epoch >= from_epoch)
            .map(|sealed| (sealed.path.clone(), None))
            .collect();
        segments.push_back((files.active.path.clone(), Some(files.active.bytes)));
        Self {
            segments,
            current: None,
            position: None,
            from_epoch,
            sources: sources.to_vec(),
            orphans: 0,
            done: false,
        }
    }

    /// Messages so far that were left out because the plan has no source of their name any more.
    /// They stay in the journal until it is trimmed.
    pub fn orphans(&self) -> u64 {
        self.orphans
    }

    fn advance(&mut self) -> Result<Option<Feed>, DurableError> {
        loop {
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
                    self.current = None;
                    continue;
                }
                Err(ReadFault::Io(error)) => return Err(DurableError::io("read", path)(error)),
                Err(fault) => return Err(DurableError::read(path)(fault)),
            };
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
                    if self.orphans == 0 {
                        tracing::warn!(
                            source = %name,
                            "messages of a source that is not configured any more are not replayed"
                        );
                    }
                    self.orphans += messages.len() as u64;
                    return None;
                };
                messages.source = source as u16;
                Some(Feed::Messages(Arc::new(messages)))
            }
        }
    }
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
