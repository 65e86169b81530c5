//! Files of frames: their header, and reading them frame by frame.
//!
//! Invariant: a file is `header frame*`; the header was durable before the first frame was written.
//! A bad frame is the torn end of a write only if nothing behind it proves that it was durable;
//! `durable_after` looks for that proof. This module never changes a file.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::frame::{self, BadFrame, Kind};

/// Bytes of the file header.
pub(crate) const HEADER_BYTES: usize = 60;
/// Where its salt stands.
pub(crate) const SALT_AT: usize = 20;
const MAGIC: [u8; 8] = *b"tidegate";
const VERSION: u32 = 1;

/// The start of each file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileHeader {
    /// Number of the file; follows on that of the file before.
    pub(crate) sequence: u64,
    /// Seeds the checksums of frame headers; not guessable by who sends payloads.
    pub(crate) salt: u64,
    /// First epoch in this journal segment (outbox: newest epoch enqueued before this file).
    pub(crate) first_epoch: u64,
    /// Journal offset of the first message in this file.
    pub(crate) first_offset: u64,
    /// Time of the last tick before this file, microseconds since the Unix epoch.
    pub(crate) last_time_us: i64,
}

/// A number that differs from file to file and cannot be foreseen from outside.
pub(crate) fn new_salt(sequence: u64) -> u64 {
    #[cfg(test)]
    if let Some(simulated) = crate::sim::inject::random() {
        return simulated;
    }
    RandomState::new().hash_one(sequence)
}

impl FileHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.salt.to_le_bytes());
        out.extend_from_slice(&self.first_epoch.to_le_bytes());
        out.extend_from_slice(&self.first_offset.to_le_bytes());
        out.extend_from_slice(&self.last_time_us.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, &'static str> {
        if bytes[..8] != MAGIC {
            return Err("this is not a file of Tidegate");
        }
        if crc32fast::hash(&bytes[..56]) != frame::u32_at(bytes, 56) {
            return Err("the checksum of the file header is wrong");
        }
        if frame::u32_at(bytes, 8) != VERSION {
            return Err("the file was written by another version of Tidegate");
        }
        Ok(Self {
            sequence: frame::u64_at(bytes, 12),
            salt: frame::u64_at(bytes, SALT_AT),
            first_epoch: frame::u64_at(bytes, 28),
            first_offset: frame::u64_at(bytes, 36),
            last_time_us: frame::u64_at(bytes, 44) as i64,
        })
    }
}

/// A frame as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) epoch: u64,
    /// Where the frame starts in its file.
    pub(crate) offset: u64,
    pub(crate) body: Bytes,
}

/// Why a file cannot be read on.
#[derive(Debug)]
pub(crate) enum ReadFault {
    Io(io::Error),
    /// The bytes at `offset` are not a frame.
    Bad {
        offset: u64,
        reason: String,
    },
    /// The frame at `offset` is whole, and of another version.
    OtherVersion {
        offset: u64,
        reason: String,
    },
}

impl From<io::Error> for ReadFault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads the frames of one file in order.
#[derive(Debug)]
pub(crate) struct FrameReader {
    file: BufReader<File>,
    pub(crate) header: FileHeader,
    /// Where the next frame starts.
    pub(crate) offset: u64,
    end: u64,
}

impl FrameReader {
    /// Opens `path` and reads its header; reads no further than `end` (`None`: the file's length).
    pub(crate) fn open(path: &Path, end: Option<u64>) -> Result<Self, ReadFault> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let mut file = BufReader::with_capacity(1 << 16, file);
        let mut head = [0; HEADER_BYTES];
        if len < HEADER_BYTES as u64 {
            return Err(ReadFault::Bad { offset: 0, reason: "the file header is cut off".into() });
        }
        file.read_exact(&mut head)?;
        let header = FileHeader::decode(&head)
            .map_err(|reason| ReadFault::Bad { offset: 0, reason: reason.into() })?;
        let end = end.unwrap_or(len);
        Ok(Self { file, header, offset: HEADER_BYTES as u64, end })
    }

    /// The next frame, `None` at the end. After an error the reader is of no further use.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, ReadFault> {
        let left = self.end.saturating_sub(self.offset);
        if left == 0 {
            return Ok(None);
        }
        let offset = self.offset;
        let bad = |what: BadFrame| match what.is_of_another_version() {
            true => ReadFault::OtherVersion { offset, reason: what.to_string() },
            false => ReadFault::Bad { offset, reason: what.to_string() },
        };
        let mut head = [0; frame::HEADER_BYTES];
        if left < head.len() as u64 {
            return Err(bad(BadFrame::Short));
        }
        self.read(&mut head, offset)?;
        let header = frame::decode_header(self.header.salt, &head).map_err(bad)?;
        if left < (head.len() + header.body_bytes) as u64 {
            return Err(bad(BadFrame::Short));
        }
        let mut body = vec![0; header.body_bytes];
        self.read(&mut body, offset)?;
        frame::check_body(&header, &body).map_err(bad)?;
        self.offset += (head.len() + body.len()) as u64;
        Ok(Some(Frame { kind: header.kind, epoch: header.epoch, offset, body: body.into() }))
    }

    /// A file that is shorter than it was at the start is damage, not an error of the disk.
    fn read(&mut self, into: &mut [u8], offset: u64) -> Result<(), ReadFault> {
        self.file.read_exact(into).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                ReadFault::Bad { offset, reason: BadFrame::Short.to_string() }
            }
            _ => error.into(),
        })
    }
}

/// Looks behind a bad frame at `bad_offset` for a frame which says that those bytes had been
/// durable; returns its offset. Reads the rest of the file into memory: files are bounded.
pub(crate) fn durable_after(
    path: &Path,
    header: &FileHeader,
    bad_offset: u64,
) -> io::Result<Option<u64>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(bad_offset))?;
    let mut rest = Vec::new();
    file.read_to_end(&mut rest)?;
    Ok(proof_in(&rest, header.salt, bad_offset))
}

/// [`durable_after`] in `rest`, the bytes of a file from `bad_offset` on.
pub(crate) fn proof_in(rest: &[u8], salt: u64, bad_offset: u64) -> Option<u64> {
    let found = memchr::memmem::find_iter(rest, &frame::MAGIC).find(|at| {
        frame::synced_before(salt, &rest[*at..])
            .is_some_and(|to| to > bad_offset && to <= bad_offset + *at as u64)
    });
    found.map(|at| bad_offset + at as u64)
}

/// The newest epoch that the last journal file of `dir` has anything of, or of which the one before
/// it had; none without files. For those who look at a journal that nobody writes.
pub(crate) fn newest_epoch(dir: &Path, prefix: &str) -> Option<u64> {
    let mut files = list(dir, prefix).ok()?.into_iter().rev();
    // One whose creation was interrupted has no header.
    let mut reader = files.find_map(|(_, path)| FrameReader::open(&path, None).ok())?;
    let mut newest = reader.header.first_epoch.saturating_sub(1);
    // A torn end was not acknowledged.
    while let Ok(Some(frame)) = reader.next_frame() {
        if let Kind::Messages | Kind::Tick = frame.kind {
            newest = newest.max(frame.epoch);
        }
    }
    Some(newest)
}

/// Name of the file with number `sequence`.
pub(crate) fn file_name(prefix: &str, sequence: u64) -> String {
    format!("{prefix}-{sequence:012}.log")
}

/// The files `prefix-NUMBER.log` of `dir`, by number.
pub(crate) fn list(dir: &Path, prefix: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let sequence = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix(prefix)?.strip_prefix('-')?.strip_suffix(".log"))
            .and_then(|number| number.parse().ok());
        if let Some(sequence) = sequence {
            found.push((sequence, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}
