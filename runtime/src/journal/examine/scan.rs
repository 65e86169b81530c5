//! The frames of one file, past damage: what is whole, and the ranges between that are not.
//!
//! Invariant: a frame that it gives was written to this file, whatever is around it: the salted
//! checksum of its header and that of its body are right. It changes nothing.

use bytes::Bytes;

use super::super::frame::{self, BadFrame, HEADER_BYTES};
use super::super::segment::{self, FileHeader, Frame};

/// What stands next in a file.
pub(crate) enum Piece {
    Frame(Frame),
    Bad(Bad),
}

/// Bytes that are no frame.
#[derive(Clone, Debug)]
pub(crate) struct Bad {
    pub(crate) offset: u64,
    /// Where the next whole frame starts, or the end of the file.
    pub(crate) until: u64,
    pub(crate) reason: String,
    /// Where a later frame says that these bytes had been durable, or that they were is known
    /// otherwise.
    pub(crate) proof: Option<u64>,
}

impl Bad {
    /// Whether it is the end, at `bytes`, of a file of which the last write was under way.
    pub(crate) fn is_torn_end(&self, bytes: u64) -> bool {
        self.proof.is_none() && self.until == bytes
    }
}

/// All pieces of a file in order.
pub(crate) struct Scan {
    bytes: Bytes,
    salt: u64,
    at: usize,
}

impl Scan {
    /// The pieces behind the file header, whose salt is `salt`.
    pub(crate) fn new(bytes: Bytes, salt: u64) -> Self {
        Self { bytes, salt, at: segment::HEADER_BYTES }
    }

    fn frame_at(&self, at: usize) -> Result<Frame, BadFrame> {
        let rest = &self.bytes[at..];
        let header = frame::decode_header(self.salt, rest)?;
        let body = rest.get(HEADER_BYTES..HEADER_BYTES + header.body_bytes);
        let body = body.ok_or(BadFrame::Short)?;
        frame::check_body(&header, body)?;
        Ok(Frame {
            kind: header.kind,
            epoch: header.epoch,
            offset: at as u64,
            body: self.bytes.slice_ref(body),
        })
    }
}

impl Iterator for Scan {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let offset = self.at;
        match self.frame_at(offset) {
            Ok(frame) => {
                self.at += HEADER_BYTES + frame.body.len();
                Some(Piece::Frame(frame))
            }
            Err(why) => {
                let rest = &self.bytes[offset + 1..];
                let starts = memchr::memmem::find_iter(rest, &frame::MAGIC);
                let next = starts.map(|at| offset + 1 + at).find(|at| self.frame_at(*at).is_ok());
                self.at = next.unwrap_or(self.bytes.len());
                let (bytes, salt) = (&self.bytes[offset..], self.salt);
                let until = self.at as u64;
                let proof = segment::proof_in(bytes, salt, offset as u64);
                // What another version wrote is whole: no torn end.
                let (reason, proof) = match why.is_of_another_version() {
                    true => (format!("{why}: another version wrote it"), proof.or(Some(until))),
                    false => (why.to_string(), proof),
                };
                Some(Piece::Bad(Bad { offset: offset as u64, until, reason, proof }))
            }
        }
    }
}

/// The salt of a file whose header is damaged, if it can be told: as it stands there, or with one
/// byte of it changed, so that the first frame passes.
pub(crate) fn salt_of(bytes: &Bytes) -> Option<u64> {
    let field = bytes.get(segment::SALT_AT..segment::SALT_AT + 8)?;
    let salt = u64::from_le_bytes(field.try_into().ok()?);
    let changed =
        (0..64).step_by(8).flat_map(|shift| (1..=255u64).map(move |byte| salt ^ (byte << shift)));
    let first = segment::HEADER_BYTES;
    std::iter::once(salt).chain(changed).find(|salt| {
        let scan = Scan::new(bytes.clone(), *salt);
        bytes.len() > first && scan.frame_at(first).is_ok()
    })
}

/// The header of a file and its salt; the reason why there is no valid header.
pub(crate) fn header_of(bytes: &[u8]) -> Result<FileHeader, &'static str> {
    let head = bytes.first_chunk().ok_or("the file header is cut off")?;
    FileHeader::decode(head)
}
