//! Frames: the unit of every append-only file (journal segments and the outbox).
//!
//! Invariant: a frame that decodes is exactly the frame that was written to this file. Header and
//! body have a CRC-32 each; the header's is seeded with the file's salt, so bytes from elsewhere
//! (an older file, a payload that imitates a frame) do not pass.
//!
//! ```text
//!  0  "TG"          8  epoch      u64
//!  2  version u8   16  synced_to  u64    bytes of this file that were durable when it was written
//!  3  kind    u8   24  body_crc   u32
//!  4  body_len u32 28  header_crc u32    then the body; all numbers little-endian
//! ```
//! `synced_to` decides what a bad frame is: if a later frame says that the bad one was durable
//! already, the file is damaged; otherwise the bad one is the torn end of a write.

use std::fmt;

/// Version of frame and bodies; written into each frame.
pub(crate) const VERSION: u8 = 1;
/// Bytes before the body.
pub(crate) const HEADER_BYTES: usize = 32;
/// Largest body. Far above one group of messages, far below what would hurt to hold in memory.
pub(crate) const BODY_BYTES_MAX: usize = 64 << 20;
/// First bytes of each frame of any version, also what a search for later frames looks for.
pub(crate) const MAGIC: [u8; 2] = *b"TG";

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Journal: a run of messages of one source.
    Messages = 1,
    /// Journal: the end of an epoch.
    Tick = 2,
    /// Journal: names of the sources, for the message frames that follow.
    Sources = 3,
    /// Journal: what was journaled last of each session; the first frame of a segment.
    Sessions = 4,
    /// Outbox: notifications of one epoch.
    Enqueued = 16,
    /// Outbox: what became of a notification.
    Outcome = 17,
    /// Outbox: identifiers that were handled and must not be taken again.
    Known = 18,
    /// Outbox: a notification that was given up is to be sent again.
    Again = 19,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Messages,
            Self::Tick,
            Self::Sources,
            Self::Sessions,
            Self::Enqueued,
            Self::Outcome,
            Self::Known,
            Self::Again,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }
}

/// A decoded frame header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) body_bytes: usize,
    pub(crate) epoch: u64,
    body_crc: u32,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadFrame {
    Short,
    Magic,
    HeaderCrc,
    Version(u8),
    Kind(u8),
    TooLong(u32),
    BodyCrc,
}

impl BadFrame {
    /// Whether somebody wrote this frame, and this version does not understand it: its salted
    /// checksum is right. That is never the torn end of a write.
    pub(crate) fn is_of_another_version(self) -> bool {
        matches!(self, Self::Version(_) | Self::Kind(_) | Self::TooLong(_))
    }
}

impl fmt::Display for BadFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => f.write_str("the file ends within a frame"),
            Self::Magic => f.write_str("no frame starts here"),
            Self::HeaderCrc => f.write_str("the checksum of the frame header is wrong"),
            Self::Version(version) => write!(f, "frame version {version} is not known"),
            Self::Kind(kind) => write!(f, "frame kind {kind} is not known"),
            Self::TooLong(bytes) => write!(f, "a frame of {bytes} bytes is over the limit"),
            Self::BodyCrc => f.write_str("the checksum of the frame body is wrong"),
        }
    }
}

/// Appends one frame to `out`: the header, then what `write_body` appends.
///
/// The caller keeps bodies below [`BODY_BYTES_MAX`].
pub(crate) fn append(
    out: &mut Vec<u8>,
    salt: u64,
    kind: Kind,
    epoch: u64,
    synced_to: u64,
    write_body: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.resize(start + HEADER_BYTES, 0);
    write_body(out);
    let (head, body) = out[start..].split_at_mut(HEADER_BYTES);
    debug_assert!(body.len() <= BODY_BYTES_MAX, "callers split larger bodies");
    head[..2].copy_from_slice(&MAGIC);
    head[2] = VERSION;
    head[3] = kind as u8;
    head[4..8].copy_from_slice(&(body.len() as u32).to_le_bytes());
    head[8..16].copy_from_slice(&epoch.to_le_bytes());
    head[16..24].copy_from_slice(&synced_to.to_le_bytes());
    head[24..28].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    let header_crc = header_crc(salt, &head[..28]);
    head[28..32].copy_from_slice(&header_crc.to_le_bytes());
}

/// The header at the start of `bytes`, if it was written to this file, by whatever version.
fn checked(salt: u64, bytes: &[u8]) -> Result<&[u8; HEADER_BYTES], BadFrame> {
    let head: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(BadFrame::Short)?;
    if head[..2] != MAGIC {
        return Err(BadFrame::Magic);
    }
    let crc_is_right = header_crc(salt, &head[..28]) == u32_at(head, 28);
    match (crc_is_right, head[2] == VERSION) {
        (true, _) => Ok(head),
        (false, true) => Err(BadFrame::HeaderCrc),
        (false, false) => Err(BadFrame::Magic),
    }
}

/// What a header at the start of `bytes` says was durable when it was written, by whatever version.
pub(crate) fn synced_before(salt: u64, bytes: &[u8]) -> Option<u64> {
    checked(salt, bytes).ok().map(|head| u64_at(head, 16))
}

/// Reads a header from the start of `bytes`.
pub(crate) fn decode_header(salt: u64, bytes: &[u8]) -> Result<Header, BadFrame> {
    let head = checked(salt, bytes)?;
    if head[2] != VERSION {
        return Err(BadFrame::Version(head[2]));
    }
    let kind = Kind::from_byte(head[3]).ok_or(BadFrame::Kind(head[3]))?;
    let body_bytes = u32_at(head, 4);
    if body_bytes as usize > BODY_BYTES_MAX {
        return Err(BadFrame::TooLong(body_bytes));
    }
    Ok(Header {
        kind,
        body_bytes: body_bytes as usize,
        epoch: u64_at(head, 8),
        body_crc: u32_at(head, 24),
    })
}

/// Whether `body` is the body that `header` was written with.
pub(crate) fn check_body(header: &Header, body: &[u8]) -> Result<(), BadFrame> {
    if crc32fast::hash(body) == header.body_crc { Ok(()) } else { Err(BadFrame::BodyCrc) }
}

fn header_crc(salt: u64, head: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&salt.to_le_bytes());
    crc.update(head);
    crc.finalize()
}

/// Little-endian `u32` at `at`; the caller knows that `bytes` is long enough.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Little-endian `u64` at `at`; the caller knows that `bytes` is long enough.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Appends a frame as another version would write it: with this version and kind.
    pub(crate) fn append_other(
        out: &mut Vec<u8>,
        salt: u64,
        (version, kind): (u8, u8),
        body: &[u8],
    ) {
        let (start, synced_to) = (out.len(), out.len() as u64);
        append(out, salt, Kind::Tick, 1, synced_to, |out| out.extend_from_slice(body));
        let head = &mut out[start..start + HEADER_BYTES];
        (head[2], head[3]) = (version, kind);
        let crc = header_crc(salt, &head[..28]);
        head[28..].copy_from_slice(&crc.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_come_back_and_no_flipped_bit_passes(
            body in proptest::collection::vec(any::<u8>(), 0..200),
            epoch: u64, synced_to: u64, salt: u64, flip in any::<proptest::sample::Index>(),
            bit in 0..8u8,
        ) {
            let mut out = vec![1, 2, 3];
            append(&mut out, salt, Kind::Outcome, epoch, synced_to, |b| b.extend_from_slice(&body));
            let frame = &mut out[3..];
            let header = decode_header(salt, frame).unwrap();
            prop_assert_eq!(header.kind, Kind::Outcome);
            let said = synced_before(salt, frame);
            prop_assert_eq!((header.epoch, said), (epoch, Some(synced_to)));
            prop_assert_eq!(&frame[HEADER_BYTES..], &body[..]);
            prop_assert!(check_body(&header, &frame[HEADER_BYTES..]).is_ok());
            prop_assert!(decode_header(salt ^ 1, frame).is_err(), "salt of another file");
            let at = flip.index(frame.len());
            frame[at] ^= 1 << bit;
            let bad = match decode_header(salt, frame) {
                Ok(header) => check_body(&header, &frame[HEADER_BYTES..]).is_err(),
                Err(_) => true,
            };
            prop_assert!(bad, "flip at {} passed", at);
        }
    }
}
