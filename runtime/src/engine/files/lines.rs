//! One message per line.

use std::io::{self, Read};
use std::ops::ControlFlow;

use anyhow::Context;
use tidegate_operators::MessageMeta;

use super::discover::Found;
use super::feeder::{CHUNK_BYTES, Chunks};
use super::unpack::Unpacked;

/// A line longer than this ends the run: it is not newline-delimited.
const LINE_BYTES_MAX: usize = 256 << 20;

/// What some programs put before UTF-8 text.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads a file of lines.
pub(super) fn read(found: &Found, feeder: &mut dyn Chunks) -> anyhow::Result<ControlFlow<()>> {
    let mut done = 0;
    let why = |done: u64| format!("cannot read {} after line {done}", found.path.display());
    let mut file = Unpacked::open(found).with_context(|| why(done))?;
    read_lines(found, &mut file, feeder, &mut done).with_context(|| why(done))
}

fn read_lines(
    found: &Found,
    file: &mut Unpacked,
    feeder: &mut dyn Chunks,
    done: &mut u64,
) -> anyhow::Result<ControlFlow<()>> {
    let topic = found.topic.as_bytes();
    let mut rest: Vec<u8> = Vec::new();
    loop {
        let (mut data, mut index) = feeder.chunk(topic);
        data.reserve(rest.len() + CHUNK_BYTES + 1);
        data.append(&mut rest);
        let before = data.len();
        let read = (&mut file.reader).take(CHUNK_BYTES as u64).read_to_end(&mut data);
        // Whole lines before the place where a file is cut are still whole.
        let broken: Option<io::Error> = read.err();
        feeder.add_bytes(file.progress((data.len() - before) as u64));
        let at_end = data.len() == before || broken.is_some();
        let line_end = match memchr::memrchr(b'\n', &data[before..]) {
            Some(newline) => before + newline + 1,
            None if at_end && broken.is_none() => data.len(),
            None if at_end => topic.len(),
            None => {
                rest.extend_from_slice(&data[topic.len()..]);
                let too_long = rest.len() > LINE_BYTES_MAX;
                anyhow::ensure!(!too_long, "a line is longer than {LINE_BYTES_MAX} bytes");
                continue;
            }
        };
        rest.extend_from_slice(&data[line_end..]);
        data.truncate(line_end);
        let mark = *done == 0 && data[topic.len()..].starts_with(BYTE_ORDER_MARK);
        let start = topic.len() + if mark { BYTE_ORDER_MARK.len() } else { 0 };
        *done += lines(feeder.received_us(), topic.len(), start, &data, &mut index);
        if feeder.give(found.source, data, index).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if let Some(error) = broken {
            return Err(error.into());
        }
        if at_end {
            return Ok(ControlFlow::Continue(()));
        }
    }
}

/// One message per line that is not empty, from `start` on. The data begins with the topic. How
/// many lines there were.
pub(super) fn lines(
    received_us: i64,
    topic_len: usize,
    mut start: usize,
    data: &[u8],
    index: &mut Vec<MessageMeta>,
) -> u64 {
    let mut lines = 0;
    while start < data.len() {
        let end = memchr::memchr(b'\n', &data[start..]).map_or(data.len(), |n| start + n);
        let text_end = if end > start && data[end - 1] == b'\r' { end - 1 } else { end };
        if text_end > start {
            index.push(MessageMeta {
                topic_start: 0,
                topic_len: topic_len as u32,
                payload_start: start as u32,
                payload_len: (text_end - start) as u32,
                received_us,
                ..MessageMeta::default()
            });
        }
        lines += 1;
        start = end + 1;
    }
    lines
}
