//! Following a journal frame by frame: which epoch is open, what it holds, what must come next.
//!
//! Invariant: the writer, the recovery and the replay use this one definition of an epoch's count
//! and hash, and of the order of epochs, offsets and times. A frame that does not continue the
//! journal exactly is an error, even if its checksums are right.

use bytes::Bytes;
use tidegate_operators::{Epoch, Messages, Tick};
use xxhash_rust::xxh3::Xxh3;

use super::frame::Kind;
use super::record::{self, Seal};
use super::segment::{FileHeader, Frame};

/// The position at the end of what was written or read.
pub(crate) struct Position {
    /// The open epoch: the next tick seals it.
    pub(crate) epoch: Epoch,
    /// Messages in the open epoch.
    pub(crate) messages: u64,
    /// Body bytes in the open epoch.
    pub(crate) bytes: u64,
    hash: Xxh3,
    /// Journal offset of the next message.
    pub(crate) next_offset: u64,
    /// Time of the last tick.
    pub(crate) last_time_us: i64,
    /// Names of the sources as the current file says.
    pub(crate) sources: Vec<String>,
}

/// What a frame meant.
#[derive(Debug)]
pub(crate) enum Step {
    Messages(Messages),
    Tick(Tick),
    Sources,
    Sessions(Bytes),
}

impl Position {
    pub(crate) fn start_of(header: &FileHeader) -> Self {
        Self {
            epoch: header.first_epoch,
            messages: 0,
            bytes: 0,
            hash: Xxh3::new(),
            next_offset: header.first_offset,
            last_time_us: header.last_time_us,
            sources: Vec::new(),
        }
    }

    /// Counts a message frame of the open epoch.
    pub(crate) fn add(&mut self, body: &[u8], messages: u64) {
        self.hash.update(body);
        self.messages += messages;
        self.bytes += body.len() as u64;
        self.next_offset += messages;
    }

    /// Ends the open epoch at `now_us`, or just after the last tick if the clock went back.
    pub(crate) fn seal(&mut self, now_us: i64) -> Seal {
        let time_us = now_us.max(self.last_time_us.saturating_add(1));
        let seal = Seal {
            tick: Tick { epoch: self.epoch, time_us },
            messages: self.messages,
            hash: self.hash.digest(),
        };
        self.next_epoch(time_us);
        seal
    }

    fn next_epoch(&mut self, time_us: i64) {
        self.epoch += 1;
        self.messages = 0;
        self.bytes = 0;
        self.hash.reset();
        self.last_time_us = time_us;
    }

    /// Takes the next frame that was read.
    pub(crate) fn step(&mut self, frame: &Frame) -> Result<Step, String> {
        if frame.epoch != self.epoch {
            return Err(format!("a frame of epoch {} within epoch {}", frame.epoch, self.epoch));
        }
        match frame.kind {
            Kind::Messages => self.step_messages(frame).map(Step::Messages),
            Kind::Tick => self.step_tick(frame).map(Step::Tick),
            Kind::Sources => {
                self.sources =
                    record::get_sources(&frame.body).ok_or("the table of sources is not valid")?;
                Ok(Step::Sources)
            }
            Kind::Sessions => Ok(Step::Sessions(frame.body.clone())),
            other => Err(format!("a frame of kind {other:?} does not belong here")),
        }
    }

    fn step_messages(&mut self, frame: &Frame) -> Result<Messages, String> {
        let messages = record::get_messages(&frame.body).ok_or("a run of messages is not valid")?;
        if messages.first_offset != self.next_offset {
            let (have, want) = (messages.first_offset, self.next_offset);
            return Err(format!("message offset {have} where {want} must follow"));
        }
        if usize::from(messages.source) >= self.sources.len() {
            return Err(format!("source {} is not in the table of sources", messages.source));
        }
        self.add(&frame.body, messages.len() as u64);
        Ok(messages)
    }

    fn step_tick(&mut self, frame: &Frame) -> Result<Tick, String> {
        let seal = record::get_seal(frame.epoch, &frame.body).ok_or("a tick is not valid")?;
        if seal.messages != self.messages || seal.hash != self.hash.digest() {
            return Err(format!(
                "epoch {} was sealed with {} messages, the file holds {}{}",
                seal.tick.epoch,
                seal.messages,
                self.messages,
                if seal.messages == self.messages { " others" } else { "" },
            ));
        }
        if seal.tick.time_us <= self.last_time_us {
            return Err(format!("the time of epoch {} goes back", seal.tick.epoch));
        }
        self.next_epoch(seal.tick.time_us);
        Ok(seal.tick)
    }
}
