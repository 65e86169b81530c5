//! The bounds of HTTP intake, each with its reason.

use std::time::Duration;

/// How long anything may take. A struct, so that tests need not wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// From the first byte of a request (or from the connection, for its first one) to the end of
    /// its headers. Slow links manage in a second or two; more only helps those who occupy
    /// connections.
    pub(crate) head: Duration,
    /// How long a connection may wait between two requests. Most clients keep theirs for a minute.
    pub(crate) idle: Duration,
    /// How long a body may take: the largest one at 140 kB/s.
    pub(crate) body: Duration,
    /// How long an answer may wait for a client that does not read.
    pub(crate) write: Duration,
    /// How long a request waits for the disk before its client is told to come back. Much longer
    /// than any sync takes, shorter than the patience of most clients.
    pub(crate) offer: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            body: Duration::from_secs(60),
            write: Duration::from_secs(20),
            offer: Duration::from_secs(8),
        }
    }
}

/// Bytes of headers. Tokens and topics are short; browsers stop at 8 KiB or 16 KiB.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;

/// What clients that have to come back are told.
pub(crate) const RETRY_AFTER_S: u64 = 2;

/// What is read and thrown away of a body after it was refused, so that its sender sees the answer.
pub(crate) const READ_ON_BYTES_MAX: usize = 64 << 20;
/// And how long.
pub(crate) const READ_ON_TIMEOUT: Duration = Duration::from_secs(5);

/// After the order to stop: how long requests may wait for the disk. What is not durable by then
/// is not acknowledged.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A compressed body may become this many times as long, beyond what could have been sent plainly
/// anyway. Readings compress ten to one; bombs a thousand to one.
pub(crate) const RATIO_MAX: usize = 16;

/// Memory for a zstd frame's window (RFC 8878 recommends to support 8 MiB, and not to ask for
/// more).
pub(crate) const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// What one request may take in the journal, whose records end at 64 MiB. Each message counts with
/// its topic and sender, so many tiny messages cannot take more memory than a few long ones.
pub(crate) const OFFER_BYTES_MAX: usize = 60 << 20;

/// Longest topic, bytes, as over MQTT.
pub(crate) const TOPIC_BYTES_MAX: usize = 1024;

/// Longest idempotency key, bytes. What is kept of it is a hash.
pub(crate) const KEY_BYTES_MAX: usize = 255;

/// Keys that are remembered, of all pipelines: 5 MB.
pub(crate) const KEYS_MAX: usize = 100_000;

/// How long they are remembered, microseconds: a client that comes back after a day is a new one.
pub(crate) const KEYS_AGE_US: i64 = 24 * 3_600 * 1_000_000;

/// Bodies above this are unpacked and split on a thread that may take its time.
pub(crate) const INLINE_BYTES_MAX: usize = 64 * 1024;

/// A query of InfluxDB's version 1 in a body.
pub(crate) const QUERY_BYTES_MAX: usize = 16 * 1024;
