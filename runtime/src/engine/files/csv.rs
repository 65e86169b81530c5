//! Comma-separated values: each row becomes a JSON object with the columns as members.
//!
//! An empty cell is null, a cell that is a number as JSON writes numbers is one, everything else is
//! text as it stands. A row with another number of cells, or that is not UTF-8, becomes a row of
//! `system.rejects` that names its file and line.

use std::cell::Cell;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::rc::Rc;

use ::csv::{ByteRecord, Reader, ReaderBuilder};
use anyhow::Context;
use tidegate_operators::MessageMeta;

use super::discover::Found;
use super::feeder::{CHUNK_BYTES, Chunks};
use super::lines::BYTE_ORDER_MARK;
use super::unpack::Unpacked;

/// Longest row. Beyond it a quote was not closed, and the rest of the file would become one cell.
const ROW_BYTES_MAX: u64 = 16 << 20;

/// Most columns: each costs a name in every message.
const COLUMNS_MAX: usize = 10_000;

/// Bytes that are read at a time.
const READ_BYTES: usize = 256 << 10;

/// Reads a file of rows.
pub(super) fn read(found: &Found, feeder: &mut dyn Chunks) -> anyhow::Result<ControlFlow<()>> {
    let mut line = 0;
    let why = |line: u64| format!("cannot read {} after line {line}", found.path.display());
    read_rows(found, feeder, &mut line).with_context(|| why(line))
}

/// Refuses to read on and on without a row coming to its end, and counts.
struct Guard {
    file: Unpacked,
    since_row: Rc<Cell<u64>>,
    bytes: Rc<Cell<u64>>,
}

impl Read for Guard {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.since_row.get() > ROW_BYTES_MAX {
            let mib = ROW_BYTES_MAX >> 20;
            let why = format!("the row after it is longer than {mib} MiB: is a quote not closed?");
            return Err(io::Error::other(why));
        }
        let read = self.file.reader.read(buffer)?;
        self.since_row.set(self.since_row.get() + read as u64);
        self.bytes.set(self.bytes.get() + self.file.progress(read as u64));
        Ok(read)
    }
}

fn read_rows(
    found: &Found,
    feeder: &mut dyn Chunks,
    line: &mut u64,
) -> anyhow::Result<ControlFlow<()>> {
    let (since_row, bytes) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let file = Unpacked::open(found)?;
    let guard = Guard { file, since_row: Rc::clone(&since_row), bytes: Rc::clone(&bytes) };
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(found.delimiter)
        .buffer_capacity(READ_BYTES)
        .from_reader(guard);
    let Some(names) = names(found, &mut reader)? else { return Ok(ControlFlow::Continue(())) };
    let writer = Writer::new(found, &names);
    let mut record = ByteRecord::new();
    let topic = found.topic.as_bytes();
    let mut at_end = false;
    while !at_end {
        let (mut data, mut index) = feeder.chunk(topic);
        data.reserve(CHUNK_BYTES + CHUNK_BYTES / 4);
        let mut broken = None;
        while data.len() < CHUNK_BYTES {
            match reader.read_byte_record(&mut record) {
                Ok(true) => {}
                Ok(false) => at_end = true,
                Err(error) => broken = Some(error),
            }
            if at_end || broken.is_some() {
                break;
            }
            since_row.set(0);
            *line = record.position().map_or(*line, ::csv::Position::line);
            let meta = writer.row(&record, *line, &mut data);
            index.push(MessageMeta { received_us: feeder.received_us(), ..meta });
        }
        feeder.add_bytes(bytes.replace(0));
        if feeder.give(found.source, data, index).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if let Some(error) = broken {
            return Err(error.into());
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The names of the columns; `None` if the file is empty.
fn names(found: &Found, reader: &mut Reader<Guard>) -> anyhow::Result<Option<Vec<String>>> {
    if let Some(names) = &found.columns {
        return Ok(Some(names.clone()));
    }
    let mut record = ByteRecord::new();
    if !reader.read_byte_record(&mut record)? {
        return Ok(None);
    }
    anyhow::ensure!(record.len() <= COLUMNS_MAX, "there are more than {COLUMNS_MAX} columns");
    let mut names: Vec<String> = Vec::with_capacity(record.len());
    for (i, cell) in record.iter().enumerate() {
        let cell = if i == 0 { cell.strip_prefix(BYTE_ORDER_MARK).unwrap_or(cell) } else { cell };
        let name = std::str::from_utf8(cell)
            .with_context(|| format!("the name of column {} is not UTF-8", i + 1))?
            .trim()
            .trim_matches('"');
        // Some programs write the number of a row without a name.
        let name = if name.is_empty() { format!("column_{}", i + 1) } else { name.to_owned() };
        anyhow::ensure!(!names.contains(&name), "the line of names has two columns `{name}`");
        names.push(name);
    }
    Ok(Some(names))
}

/// Writes rows as JSON.
struct Writer {
    path: String,
    topic_len: u32,
    delimiter: u8,
    /// What comes before each value: bracket or comma, and the name.
    before: Vec<Vec<u8>>,
    names: Vec<String>,
}

impl Writer {
    fn new(found: &Found, names: &[String]) -> Self {
        let before = names.iter().enumerate().map(|(i, name)| {
            let mut text = vec![if i == 0 { b'{' } else { b',' }];
            put_text(name.as_bytes(), &mut text);
            text.push(b':');
            text
        });
        Self {
            path: found.path.display().to_string(),
            topic_len: found.topic.len() as u32,
            delimiter: found.delimiter,
            before: before.collect(),
            names: names.to_vec(),
        }
    }

    /// Appends one row; where it is.
    fn row(&self, record: &ByteRecord, line: u64, data: &mut Vec<u8>) -> MessageMeta {
        let start = data.len();
        let why = match (record.len() == self.names.len(), self.not_utf8(record)) {
            (false, _) => {
                let (there, expected) = (record.len(), self.names.len());
                format!("{} line {line}: {there} cells, expected {expected}", self.path)
            }
            (true, Some(name)) => format!("{} line {line}: `{name}` is not UTF-8", self.path),
            (true, None) => {
                for (before, cell) in self.before.iter().zip(record) {
                    data.extend_from_slice(before);
                    put_cell(cell, data);
                }
                data.push(b'}');
                String::new()
            }
        };
        if !why.is_empty() {
            for (i, cell) in record.iter().enumerate() {
                data.extend((i > 0).then_some(self.delimiter));
                data.extend_from_slice(cell);
            }
        }
        let payload_len = (data.len() - start) as u32;
        let properties_start = data.len() as u32;
        data.extend_from_slice(why.as_bytes());
        MessageMeta {
            topic_len: self.topic_len,
            payload_start: start as u32,
            payload_len,
            properties_start,
            properties_len: why.len() as u32,
            refused: !why.is_empty(),
            ..MessageMeta::default()
        }
    }

    fn not_utf8(&self, record: &ByteRecord) -> Option<&str> {
        let bad = record.iter().position(|cell| std::str::from_utf8(cell).is_err())?;
        self.names.get(bad).map(String::as_str)
    }
}

fn put_cell(cell: &[u8], out: &mut Vec<u8>) {
    let trimmed = cell.trim_ascii();
    if trimmed.is_empty() {
        out.extend_from_slice(b"null");
    } else if is_number(trimmed) {
        out.extend_from_slice(trimmed);
    } else {
        put_text(cell, out);
    }
}

/// Appends text as a JSON string.
fn put_text(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            0..0x20 => {
                let digit = |half: u8| b"0123456789abcdef"[usize::from(half)];
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
            }
            _ => out.push(*byte),
        }
    }
    out.push(b'"');
}

/// Whether a text is a number as JSON writes it. `007` is a name and not a number.
fn is_number(text: &[u8]) -> bool {
    let digits = |text: &mut &[u8]| -> usize {
        let count = text.iter().take_while(|b| b.is_ascii_digit()).count();
        *text = &text[count..];
        count
    };
    let mut rest = text.strip_prefix(b"-").unwrap_or(text);
    let leading_zero = rest.first() == Some(&b'0');
    let whole = digits(&mut rest);
    if whole == 0 || (leading_zero && whole > 1) {
        return false;
    }
    if let Some(fraction) = rest.strip_prefix(b".") {
        rest = fraction;
        if digits(&mut rest) == 0 {
            return false;
        }
    }
    if let Some(exponent) = rest.strip_prefix(b"e").or_else(|| rest.strip_prefix(b"E")) {
        let signed = exponent.strip_prefix(b"+").or_else(|| exponent.strip_prefix(b"-"));
        rest = signed.unwrap_or(exponent);
        if digits(&mut rest) == 0 {
            return false;
        }
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_are_those_of_json(text in "-?[0-9.eE+-]{1,6}") {
            let json: Result<serde_json::Number, _> = serde_json::from_str(&text);
            // serde_json refuses what is beyond the largest float.
            let exponent = text.contains(['e', 'E']);
            prop_assume!(!exponent || json.is_ok() || text.len() < 4);
            prop_assert_eq!(is_number(text.as_bytes()), json.is_ok(), "{}", text);
        }

        #[test]
        fn texts_come_back(text in any::<String>()) {
            let mut out = Vec::new();
            put_text(text.as_bytes(), &mut out);
            let back: String = serde_json::from_slice(&out).unwrap();
            prop_assert_eq!(back, text);
        }
    }
}
