//! What the leader and a follower say to each other on their control connection.
//!
//! A frame is the length of its head (u32) and of its body (u64), little-endian, the head as JSON
//! and the body as bytes. Batches travel as Arrow IPC, messages in the form of the journal, state
//! in that of checkpoints: nothing here has a format of its own.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidegate_operators::{Epoch, Messages};

use super::counts::Counts;
use crate::journal::{get_messages, put_messages};

/// Longest head: the plan is a page or two of text for each pipeline.
const HEAD_BYTES_MAX: u32 = 256 << 20;
/// Longest body: all state of an operator on one worker.
const BODY_BYTES_MAX: u64 = 1 << 40;

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Head {
    /// Leader: this is what is to be run.
    Welcome(Welcome),
    /// Leader: saved state of an operator; the body is a batch.
    Restore { operator: String },
    /// Leader: messages of the open epoch for one worker of the process; the body is a run.
    Messages { worker: usize },
    /// Leader: save state as of the end of this epoch.
    Checkpoint { epoch: Epoch, whole: bool },
    /// Leader: emit what is open at the end of this epoch.
    Flush { epoch: Epoch },
    /// Leader: new keys find no place in this epoch, but at these operators.
    NoNewKeys { epoch: Epoch, but: BTreeSet<String> },
    /// Leader: the end of an epoch.
    Tick { epoch: Epoch, time_us: i64 },
    /// Leader: nothing more comes.
    End { flush: bool },
    /// Follower: the plan is understood, the processes are connected.
    Joined,
    /// Either: it cannot be, and why.
    Refused { why: String },
    /// Follower: rows of a table; the body is a batch.
    Rows { table: usize, epoch: Epoch },
    /// Follower: state of an operator as of the end of an epoch; the body is that of a part file.
    State { epoch: Epoch },
    /// Follower: all state of its operators as of the end of this epoch was sent.
    Saved { epoch: Epoch },
    /// Follower: all rows of every epoch up to this one were sent.
    Done { epoch: Epoch, time_us: i64, counts: Counts },
    /// Follower: an operator failed.
    Failed { why: String },
    /// Follower: its workers have ended.
    Ended { counts: Counts },
    /// Either: it is there.
    Ping,
}

/// What a follower is to run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Welcome {
    /// Names this gathering of processes; connections of another one are not taken.
    pub(super) run: String,
    /// Workers of each process.
    pub(super) workers: usize,
    /// The first epoch that will be fed.
    pub(super) first_epoch: Epoch,
    /// The files of the plan: path and text.
    pub(super) files: Vec<(String, String)>,
    /// What the plan is to be, as [`crate::engine::content::fingerprints`] says.
    pub(super) fingerprints: Vec<(String, String)>,
    /// The number of each pipeline's source. A follower cannot find it by itself: which endpoints
    /// are one depends on addresses, which it need not know.
    pub(super) sources: Vec<(String, u16)>,
    /// How many [`Head::Restore`] follow.
    pub(super) states: usize,
}

/// Writes a frame.
pub(super) fn write(out: &mut impl Write, head: &Head, body: &[u8]) -> io::Result<()> {
    let head = serde_json::to_vec(head)?;
    let mut frame = Vec::with_capacity(12 + head.len() + body.len());
    frame.extend((head.len() as u32).to_le_bytes());
    frame.extend((body.len() as u64).to_le_bytes());
    frame.extend(head);
    frame.extend(body);
    out.write_all(&frame)
}

/// Reads a frame. Memory is taken as bytes come, not as the length says.
pub(super) fn read(from: &mut impl Read) -> io::Result<(Head, Bytes)> {
    let (mut head_length, mut body_length) = ([0; 4], [0; 8]);
    from.read_exact(&mut head_length)?;
    from.read_exact(&mut body_length)?;
    let (head_length, body_length) =
        (u32::from_le_bytes(head_length), u64::from_le_bytes(body_length));
    if head_length > HEAD_BYTES_MAX || body_length > BODY_BYTES_MAX {
        return Err(invalid("a frame is longer than any can be"));
    }
    let head = exactly(from, head_length.into())?;
    let body = exactly(from, body_length)?;
    Ok((serde_json::from_slice(&head)?, body.into()))
}

fn exactly(from: &mut impl Read, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(length).read_to_end(&mut bytes)?;
    match bytes.len() as u64 == length {
        true => Ok(bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// An error about what the other side sent.
pub(super) fn invalid(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}

/// A batch as a body.
pub(super) fn rows_to_bytes(rows: &RecordBatch) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut write = || {
        let mut writer = StreamWriter::try_new(&mut out, rows.schema_ref())?;
        writer.write(rows)?;
        writer.finish()
    };
    write().map_err(invalid)?;
    Ok(out)
}

/// A body as a batch.
pub(super) fn rows_of_bytes(bytes: &[u8]) -> io::Result<RecordBatch> {
    let mut reader = StreamReader::try_new(bytes, None).map_err(invalid)?;
    reader.next().ok_or_else(|| invalid("there is no batch"))?.map_err(invalid)
}

/// A run of messages as a body.
pub(super) fn messages_to_bytes(messages: &Messages) -> Vec<u8> {
    let mut out = Vec::with_capacity(messages.size_bytes());
    put_messages(&mut out, messages);
    out
}

/// A body as a run of messages.
pub(super) fn messages_of_bytes(bytes: &Bytes) -> io::Result<Messages> {
    get_messages(bytes).ok_or_else(|| invalid("these are no messages"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};
    use tidegate_operators::{MessageMeta, MessagesBuilder};

    use super::*;

    #[test]
    fn frames_come_as_they_were_sent_and_cut_ones_do_not() {
        let heads = [
            Head::Tick { epoch: u64::MAX, time_us: i64::MIN },
            Head::Refused { why: "é\n".into() },
            Head::NoNewKeys { epoch: 7, but: ["p/young".into(), "é".into()].into() },
            Head::Ping,
        ];
        let mut wire = Vec::new();
        for head in &heads {
            write(&mut wire, head, b"body").unwrap();
        }
        let mut rest = &wire[..];
        for head in &heads {
            assert_eq!(read(&mut rest).unwrap(), (head.clone(), Bytes::from_static(b"body")));
        }
        for cut in 0..wire.len() {
            let mut rest = &wire[..cut];
            let whole = std::iter::from_fn(|| read(&mut rest).ok()).count();
            assert!(whole < heads.len(), "cut at {cut}");
        }
        let mut bomb = 9u32.to_le_bytes().to_vec();
        bomb.extend(u64::MAX.to_le_bytes());
        assert_eq!(read(&mut &bomb[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn rows_and_messages_survive_the_wire() {
        let rows = RecordBatch::try_from_iter([
            ("a", Arc::new(Int64Array::from(vec![Some(1), None])) as _),
            ("b", Arc::new(StringArray::from(vec!["x", "é"])) as _),
        ])
        .unwrap();
        let part = rows.slice(1, 1);
        assert_eq!(rows_of_bytes(&rows_to_bytes(&part).unwrap()).unwrap(), part);
        assert!(rows_of_bytes(b"").is_err());
        let mut builder = MessagesBuilder::default();
        let meta = MessageMeta { received_us: 5, qos: 1, session: 3, ..MessageMeta::default() };
        builder.push_with(b"t", b"payload", b"client", b"p", meta);
        builder.push(b"u", b"", b"", MessageMeta { event: true, ..meta });
        let messages = builder.finish(7, 1 << 40);
        let bytes = Bytes::from(messages_to_bytes(&messages));
        assert_eq!(messages_of_bytes(&bytes).unwrap(), messages);
        assert!(messages_of_bytes(&bytes.slice(1..)).is_err());
    }
}
