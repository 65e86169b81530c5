//! Byte streams below MQTT: TLS and WebSocket over any stream, for those who accept and for those
//! who connect. Nothing here knows MQTT beyond its names in the two handshakes.
//!
//! Whoever writes to such a stream flushes it afterwards: a plain socket sends at once, but TLS and
//! WebSocket keep what the socket did not take.

pub(crate) mod tls;
pub(crate) mod watched;
pub(crate) mod ws;

use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream, whatever is below it.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A stream whose layers were chosen at run time.
pub(crate) type BoxStream = Box<dyn Stream>;
