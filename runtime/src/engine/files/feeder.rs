//! From messages of files to the queue of the workers: chunks, epochs and ticks.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use bytes::Bytes;
use tidegate_operators::{MessageMeta, Messages, Tick};
use tidegate_pipelines::plan::FileFormat;

use super::discover::{Found, state_of};
use super::ledger::Place;
use super::progress::Progress;
use super::{columns, csv, lines};
use crate::engine::feed::FeedQueue;

/// Bytes that are read and decoded at a time: a chunk and what is made of it fit the cache.
pub(super) const CHUNK_BYTES: usize = 1 << 20;

/// Chunks of one epoch: enough that every worker has some, and that per-epoch work is rare.
const EPOCH_CHUNKS: u64 = 8;

/// Buffers of chunks that the workers are done with: reading into memory that is already mapped
/// spares the kernel a page fault for every 4 KiB of the file.
#[derive(Default)]
struct Buffers(VecDeque<Arc<Messages>>);

impl Buffers {
    /// An empty buffer and an empty index, used ones where there are any.
    fn take(&mut self) -> (Vec<u8>, Vec<MessageMeta>) {
        if self.0.front().is_some_and(|m| Arc::strong_count(m) == 1)
            && let Some(Ok(used)) = self.0.pop_front().map(Arc::try_unwrap)
        {
            let (mut data, mut index) = (Vec::from(used.data), used.index);
            data.clear();
            index.clear();
            return (data, index);
        }
        (Vec::new(), Vec::new())
    }

    /// A chunk that is on its way to a worker.
    fn lend(&mut self, messages: &Arc<Messages>) {
        self.0.push_back(Arc::clone(messages));
    }
}

/// Takes what the formats read. After [`ControlFlow::Break`] a format gives up at once.
pub(in crate::engine) trait Chunks {
    /// A chunk that begins with the topic of its messages, and an empty index.
    fn chunk(&mut self, topic: &[u8]) -> (Vec<u8>, Vec<MessageMeta>);

    /// When what is read now counts as received.
    fn received_us(&self) -> i64;

    /// So much of the file is done.
    fn add_bytes(&mut self, bytes: u64);

    /// Hands a chunk on.
    fn give(&mut self, source: u16, data: Vec<u8>, index: Vec<MessageMeta>) -> ControlFlow<()>;
}

/// Reads a file, whatever its format.
pub(in crate::engine) fn read_file(
    file: &Found,
    to: &mut dyn Chunks,
) -> anyhow::Result<ControlFlow<()>> {
    match file.format {
        FileFormat::Ndjson => lines::read(file, to),
        FileFormat::Csv => csv::read(file, to),
        FileFormat::Parquet => {
            columns::read(file, to).with_context(|| format!("cannot read {}", file.path.display()))
        }
    }
}

/// Hands what the formats read to the workers.
pub(super) struct Feeder<'a> {
    queue: &'a mut FeedQueue,
    progress: &'a Progress,
    stop: &'a AtomicBool,
    place: Place,
    chunks: u64,
    buffers: Buffers,
}

impl<'a> Feeder<'a> {
    pub(super) fn new(
        queue: &'a mut FeedQueue,
        progress: &'a Progress,
        stop: &'a AtomicBool,
        place: Place,
    ) -> Self {
        Self { queue, progress, stop, place, chunks: 0, buffers: Buffers::default() }
    }

    /// What registries say, in the first epoch.
    pub(super) fn registries(&mut self, said: Vec<Messages>) {
        for mut messages in said {
            messages.first_offset = self.place.offset;
            self.place.offset += messages.len() as u64;
            self.queue.messages(Arc::new(messages));
        }
    }

    fn seal(&mut self) {
        let tick = self.next_tick();
        self.queue.tick(tick);
        self.chunks = 0;
    }

    fn next_tick(&mut self) -> Tick {
        let tick = Tick { epoch: self.place.epoch, time_us: self.place.time_us };
        self.place.epoch += 1;
        self.place.time_us += 1;
        tick
    }

    /// Reads files one after the other and closes what is open. `closing` is told where the next
    /// generation begins, before anything of the end can be seen; `save` asks for the operators'
    /// state. Without a place, somebody has asked to stop.
    pub(super) fn read_all(
        mut self,
        files: &[Found],
        save: bool,
        closing: impl FnOnce(Place) -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<Place>> {
        for file in files {
            self.progress.begin(&file.path);
            let (bytes, modified_us) = state_of(&file.path)?;
            self.place.time_us = self.place.time_us.max(file.modified_us);
            let read = read_file(file, &mut self)?;
            if read.is_break() {
                self.queue.end(false);
                return Ok(None);
            }
            let same = (bytes, modified_us) == (file.bytes, file.modified_us)
                && state_of(&file.path)? == (bytes, modified_us);
            anyhow::ensure!(
                same,
                "{} has changed while it was read: run again when it is complete",
                file.path.display()
            );
        }
        self.seal();
        let end =
            Place { epoch: self.place.epoch + 1, time_us: self.place.time_us + 1, ..self.place };
        closing(end)?;
        let tick = self.next_tick();
        self.queue.flush(tick, save);
        self.queue.end(false);
        Ok(Some(end))
    }
}

impl Chunks for Feeder<'_> {
    fn chunk(&mut self, topic: &[u8]) -> (Vec<u8>, Vec<MessageMeta>) {
        let (mut data, index) = self.buffers.take();
        data.extend_from_slice(topic);
        (data, index)
    }

    fn received_us(&self) -> i64 {
        self.place.time_us
    }

    fn add_bytes(&mut self, bytes: u64) {
        self.progress.add_bytes(bytes);
    }

    fn give(&mut self, source: u16, data: Vec<u8>, index: Vec<MessageMeta>) -> ControlFlow<()> {
        if !index.is_empty() {
            let data = Bytes::from(data);
            let messages = Messages { source, first_offset: self.place.offset, data, index };
            self.place.offset += messages.len() as u64;
            self.progress.add_rows(messages.len() as u64);
            let messages = Arc::new(messages);
            self.buffers.lend(&messages);
            self.queue.messages(messages);
            self.chunks += 1;
            if self.chunks == EPOCH_CHUNKS {
                self.seal();
            }
        }
        match self.stop.load(Ordering::Acquire) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}
