//! The read buffer of one connection: small while it says little, bounded when it says much.
//!
//! Bytes in `start..end` are received and not yet consumed. It never grows beyond the limit given
//! with each call, which is what keeps a peer from making us allocate.

use super::limits::{READ_BYTES_MAX, READ_BYTES_MIN};

/// Reads in a row that used little before the buffer shrinks again.
const SMALL_READS: u32 = 64;

#[derive(Debug)]
pub(crate) struct ReadBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    small_reads: u32,
    wants_more: bool,
}

impl ReadBuffer {
    pub(crate) fn new() -> Self {
        let bytes = vec![0; READ_BYTES_MIN];
        Self { bytes, start: 0, end: 0, small_reads: 0, wants_more: false }
    }

    /// What was received and not consumed.
    pub(crate) fn received(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Marks `n` bytes as consumed.
    pub(crate) fn consume(&mut self, n: usize) {
        self.start += n;
        debug_assert!(self.start <= self.end);
    }

    /// Room to read into; not empty as long as fewer than `limit_bytes` are unconsumed.
    pub(crate) fn spare(&mut self, limit_bytes: usize) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let limit_bytes = limit_bytes.max(READ_BYTES_MIN);
        let size = self.bytes.len();
        let full = self.end == size && size < limit_bytes;
        let busy = self.wants_more && size < limit_bytes.min(READ_BYTES_MAX);
        if full || busy {
            self.bytes.resize((size * 2).min(limit_bytes), 0);
            self.wants_more = false;
        } else if self.small_reads >= SMALL_READS && self.end == 0 {
            self.bytes = vec![0; READ_BYTES_MIN];
            self.small_reads = 0;
        }
        &mut self.bytes[self.end..]
    }

    /// Records that a read put `n` bytes into the room.
    pub(crate) fn filled(&mut self, n: usize) {
        let size = self.bytes.len();
        self.wants_more = n == size - self.end;
        let small = size > READ_BYTES_MIN && n < size / 16;
        self.small_reads = if small { self.small_reads + 1 } else { 0 };
        self.end += n;
    }

    /// Bytes of memory in use.
    #[cfg(test)]
    fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(buffer: &mut ReadBuffer, data: &[u8], limit: usize) -> usize {
        let spare = buffer.spare(limit);
        let n = spare.len().min(data.len());
        spare[..n].copy_from_slice(&data[..n]);
        buffer.filled(n);
        n
    }

    #[test]
    fn bytes_come_out_as_they_went_in_over_odd_boundaries() {
        let data: Vec<u8> = (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect();
        let (mut buffer, mut out, mut put) = (ReadBuffer::new(), Vec::new(), 0);
        let mut step = 1;
        while out.len() < data.len() {
            put += feed(&mut buffer, &data[put..], READ_BYTES_MAX);
            let take = buffer.received().len().min(step);
            out.extend_from_slice(&buffer.received()[..take]);
            buffer.consume(take);
            step = step * 3 % 4099 + 1;
        }
        assert_eq!(out, data);
    }

    #[test]
    fn it_never_grows_beyond_its_limit_and_shrinks_when_calm() {
        let mut buffer = ReadBuffer::new();
        let data = vec![1; 1 << 20];
        for _ in 0..50 {
            feed(&mut buffer, &data, 100_000);
        }
        assert_eq!(buffer.capacity(), 100_000);
        assert!(buffer.spare(100_000).is_empty());
        buffer.consume(100_000);
        for _ in 0..=SMALL_READS {
            feed(&mut buffer, b"x", 100_000);
            buffer.consume(1);
        }
        buffer.spare(100_000);
        assert_eq!(buffer.capacity(), READ_BYTES_MIN);
    }
}
