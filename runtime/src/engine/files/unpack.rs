//! Opens files, unpacking them where they are packed, and counts what was read of them.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::discover::{Found, Packing};

/// Bytes that are unpacked at a time.
const PACKED_BYTES: usize = 256 << 10;

/// The content of a file.
pub(in crate::engine) fn open(found: &Found) -> io::Result<Box<dyn Read>> {
    Ok(Unpacked::open(found)?.reader)
}

/// A file being read.
pub(super) struct Unpacked {
    /// The content.
    pub(super) reader: Box<dyn Read>,
    packed: Option<Arc<AtomicU64>>,
    told: u64,
}

impl Unpacked {
    pub(super) fn open(found: &Found) -> io::Result<Self> {
        let file = File::open(&found.path)?;
        if found.packing == Packing::Plain {
            // Unwrapped: its `read_to_end` fills memory without clearing it first.
            return Ok(Self { reader: Box::new(file), packed: None, told: 0 });
        }
        let bytes = Arc::new(AtomicU64::new(0));
        let counted = Counted { inner: file, bytes: Arc::clone(&bytes) };
        let packed = BufReader::with_capacity(PACKED_BYTES, counted);
        let reader: Box<dyn Read> = match found.packing {
            Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
            _ => Box::new(zstd::stream::read::Decoder::with_buffer(packed)?),
        };
        Ok(Self { reader, packed: Some(bytes), told: 0 })
    }

    /// Bytes of the file itself since the last call, given that `content` bytes came out of it.
    pub(super) fn progress(&mut self, content: u64) -> u64 {
        let Some(packed) = &self.packed else { return content };
        let now = packed.load(Ordering::Relaxed);
        now - std::mem::replace(&mut self.told, now)
    }
}

/// Counts what it reads.
struct Counted<R> {
    inner: R,
    bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
