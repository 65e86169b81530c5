//! Newline-delimited files as a source: the file is its own journal.
//!
//! Chunks, epochs and ticks are a function of the file alone, so reading it again gives the same
//! epochs, the same rows and the same table files; a run that was interrupted can be repeated and
//! commits only what is missing.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use anyhow::Context;
use bytes::Bytes;
use tidegate_operators::{Epoch, MessageMeta, Messages, Tick};

use super::feed::FeedQueue;

/// Bytes that are read and decoded at a time: a chunk and what is made of it fit the cache.
const CHUNK_BYTES: usize = 1 << 20;

/// Chunks of one epoch: enough that every worker has some, and that per-epoch work is rare.
const EPOCH_CHUNKS: u64 = 8;

/// A line longer than this ends the run: it is not newline-delimited.
const LINE_BYTES_MAX: usize = 256 << 20;

/// One file of the plan.
#[derive(Clone, Debug)]
pub(crate) struct FileSource {
    pub(crate) source: u16,
    pub(crate) path: PathBuf,
    pub(crate) topic: String,
}

/// What identifies the content of the files, for tables to know what they have already.
pub(crate) fn identity(files: &[FileSource]) -> anyhow::Result<String> {
    let mut text = String::new();
    for file in files {
        let meta = std::fs::metadata(&file.path)
            .with_context(|| format!("cannot read {}", file.path.display()))?;
        let modified_us = modified_us(&file.path)?;
        text.push_str(&format!("{}:{}:{modified_us};", file.path.display(), meta.len()));
    }
    Ok(format!("file-{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes())))
}

/// Feeds the files, one after the other, and says that the input has ended.
pub(crate) fn feed(files: &[FileSource], queue: &mut FeedQueue) -> anyhow::Result<()> {
    let mut position = Position { epoch: 1, offset: 0, chunks: 0, time_us: 0 };
    for file in files {
        position.time_us = position.time_us.max(modified_us(&file.path)?);
        feed_file(file, queue, &mut position)
            .with_context(|| format!("cannot read {}", file.path.display()))?;
    }
    position.seal(queue);
    queue.end(true);
    Ok(())
}

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

struct Position {
    epoch: Epoch,
    offset: u64,
    chunks: u64,
    time_us: i64,
}

impl Position {
    fn seal(&mut self, queue: &mut FeedQueue) {
        queue.tick(Tick { epoch: self.epoch, time_us: self.time_us });
        self.epoch += 1;
        self.time_us += 1;
        self.chunks = 0;
    }
}

fn feed_file(
    file: &FileSource,
    queue: &mut FeedQueue,
    position: &mut Position,
) -> anyhow::Result<()> {
    let mut reader = File::open(&file.path)?;
    let topic = file.topic.as_bytes();
    let mut rest: Vec<u8> = Vec::new();
    let mut buffers = Buffers::default();
    loop {
        let (mut data, index) = buffers.take();
        data.reserve(topic.len() + rest.len() + CHUNK_BYTES + 1);
        data.extend_from_slice(topic);
        data.append(&mut rest);
        let before = data.len();
        let read = (&mut reader).take(CHUNK_BYTES as u64).read_to_end(&mut data)?;
        let at_end = read == 0;
        let line_end = match memchr::memrchr(b'\n', &data[before..]) {
            Some(newline) => before + newline + 1,
            None if at_end => data.len(),
            None => {
                rest.extend_from_slice(&data[topic.len()..]);
                let too_long = rest.len() > LINE_BYTES_MAX;
                anyhow::ensure!(!too_long, "a line is longer than {LINE_BYTES_MAX} bytes");
                continue;
            }
        };
        rest.extend_from_slice(&data[line_end..]);
        data.truncate(line_end);
        let messages = lines(file.source, position, topic.len(), data, index);
        if !messages.is_empty() {
            position.offset += messages.len() as u64;
            let messages = Arc::new(messages);
            buffers.lend(&messages);
            queue.messages(messages);
            position.chunks += 1;
            if position.chunks == EPOCH_CHUNKS {
                position.seal(queue);
            }
        }
        if at_end {
            return Ok(());
        }
    }
}

/// One message per line that is not empty. `data` starts with the topic.
fn lines(
    source: u16,
    position: &Position,
    topic_len: usize,
    data: Vec<u8>,
    mut index: Vec<MessageMeta>,
) -> Messages {
    let mut start = topic_len;
    while start < data.len() {
        let end = memchr::memchr(b'\n', &data[start..]).map_or(data.len(), |n| start + n);
        let text_end = if end > start && data[end - 1] == b'\r' { end - 1 } else { end };
        if text_end > start {
            index.push(MessageMeta {
                topic_start: 0,
                topic_len: topic_len as u32,
                payload_start: start as u32,
                payload_len: (text_end - start) as u32,
                received_us: position.time_us,
                ..MessageMeta::default()
            });
        }
        start = end + 1;
    }
    Messages { source, first_offset: position.offset, data: Bytes::from(data), index }
}

fn modified_us(path: &Path) -> anyhow::Result<i64> {
    let meta =
        std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    // A time before 1970 is a file system without times.
    let since = meta.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(i64::try_from(since.as_micros()).unwrap_or(i64::MAX / 2))
}
