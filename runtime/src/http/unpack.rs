//! Bodies as they were sent to bodies as they were meant: gzip and zstd, never further than a
//! bound, and counted while they grow.

use std::io::{ErrorKind, Read};

use axum::http::StatusCode;
use flate2::read::MultiGzDecoder;

use super::budget::Held;
use super::limits::{RATIO_MAX, ZSTD_WINDOW_LOG_MAX};
use super::refusal::Refusal;

/// How a body is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Plain,
    Gzip,
    Zstd,
}

impl Encoding {
    /// What `Content-Encoding` says.
    pub(crate) fn parse(text: Option<&str>) -> Result<Self, Refusal> {
        match text.map(|t| t.trim().to_ascii_lowercase()).as_deref() {
            None | Some("" | "identity") => Ok(Self::Plain),
            Some("gzip" | "x-gzip") => Ok(Self::Gzip),
            Some("zstd") => Ok(Self::Zstd),
            Some(other) => Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                format!("Content-Encoding `{other}` is not known: use gzip, zstd or none"),
            )),
        }
    }
}

/// How far a body may grow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Longest body as it is sent.
    pub(crate) body_bytes_max: usize,
    /// Longest body after decompression.
    pub(crate) decompressed_bytes_max: usize,
}

/// Bytes that are unpacked at a time.
const STEP_BYTES: usize = 64 * 1024;

/// The body, unpacked; what it takes is counted in `held`, as what `body` takes was.
pub(crate) fn unpack(
    body: Vec<u8>,
    encoding: Encoding,
    bounds: Bounds,
    held: &mut Held,
) -> Result<Vec<u8>, Refusal> {
    // What could have been sent plainly needs no ratio.
    let ratio = body.len().saturating_mul(RATIO_MAX).max(bounds.body_bytes_max);
    let bytes_max = bounds.decompressed_bytes_max.min(ratio);
    let unpacked = match encoding {
        Encoding::Plain => return Ok(body),
        Encoding::Gzip => drain(MultiGzDecoder::new(&body[..]), "gzip", bytes_max, held)?,
        Encoding::Zstd => {
            let broken = |e| Refusal::bad(format!("the body is not zstd: {e}"));
            let mut decoder =
                zstd::stream::read::Decoder::with_buffer(&body[..]).map_err(broken)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(broken)?;
            drain(decoder, "zstd", bytes_max, held)?
        }
    };
    held.shrink(body.capacity());
    Ok(unpacked)
}

fn drain(
    mut from: impl Read,
    name: &str,
    bytes_max: usize,
    held: &mut Held,
) -> Result<Vec<u8>, Refusal> {
    let mut out: Vec<u8> = Vec::new();
    let mut step = vec![0; STEP_BYTES];
    loop {
        let n = match from.read(&mut step) {
            Ok(0) => return Ok(out),
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(Refusal::bad(format!("the body is not {name}: {e}"))),
        };
        if out.len() + n > bytes_max {
            return Err(Refusal::too_large(format!(
                "the body unpacks to more than {bytes_max} bytes: send less at a time"
            )));
        }
        held.append(&mut out, &step[..n], bytes_max)?;
    }
}
