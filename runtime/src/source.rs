//! What a source is: something that takes messages in and acknowledges them once they are durable.
//!
//! The one contract of intake is `offer(messages) -> durable -> acknowledge`. A source never
//! acknowledges before [`Intake::offer`] returned `Ok`, and never at all after it returned an
//! error: the sender keeps the message then, and sends it again to the next run.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::clock::Clock;
pub use crate::intake::{Intake, IntakeError};

/// Why a source ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The journal failed under it.
    #[error(transparent)]
    Intake(#[from] IntakeError),
    /// Its configuration cannot work.
    #[error("{0}")]
    Config(String),
    /// An operation of the operating system failed, and trying again is of no use.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        error: std::io::Error,
    },
}

/// A way in. It runs as a task of its own until it is told to stop or the journal fails.
pub trait Source: Send {
    /// For logs and system tables; unique in the running plan.
    fn name(&self) -> &str;

    /// Starts the task. When `stop` turns true (or its sender is gone) the source takes nothing
    /// more, waits for the offers under way, acknowledges them, closes and returns `Ok`.
    fn start(
        self: Box<Self>,
        intake: Arc<dyn Intake>,
        stop: watch::Receiver<bool>,
        stats: Arc<SourceStats>,
    ) -> JoinHandle<Result<(), SourceError>>;
}

/// Waits until `stop` turns true or its sender is gone. Cancel-safe.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: whoever could stop us has ended itself.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// When a message is received: microseconds since the Unix epoch (UTC).
pub fn now_us() -> i64 {
    Clock::system().now_us()
}

/// What a source counts; read by the live summary and by system tables while the source writes.
#[derive(Debug, Default)]
pub struct SourceStats {
    /// Connections open now, including those that have not identified themselves yet.
    pub connections: AtomicU64,
    /// Connections ever accepted or made.
    pub connections_total: AtomicU64,
    /// Connections turned away: limits, credentials, protocol version, client id.
    pub refused: AtomicU64,
    /// Messages taken in, durable or not yet.
    pub received: AtomicU64,
    /// Messages acknowledged to their sender, after they were durable.
    pub acked: AtomicU64,
    /// Messages of QoS 0 that are durable: their senders wait for no acknowledgement.
    pub quiet: AtomicU64,
    /// Messages not taken because their sender may not publish to their topic (endpoint).
    pub denied: AtomicU64,
    /// Messages that did not reach a subscriber: its queue was full, they expired, it was away, or
    /// it may not have or cannot take them (endpoint).
    pub undelivered: AtomicU64,
    /// Connections closed because the other side broke the protocol or a limit.
    pub protocol_errors: AtomicU64,
    /// Connections made again after one was lost (subscriber).
    pub reconnects: AtomicU64,
    /// Sessions that the broker had forgotten: messages may be missing (subscriber).
    pub gaps: AtomicU64,
    /// Messages that could not be taken (too large, malformed): acknowledged, not journaled, each
    /// with an event (subscriber).
    pub skipped: AtomicU64,
    /// Retained messages that were acknowledged and not journaled, as configured (subscriber).
    pub retained_dropped: AtomicU64,
    healthy: AtomicBool,
    /// Since when it is healthy, or is not, microseconds since the Unix epoch; 0 if nobody said.
    since_us: AtomicI64,
    last_error: Mutex<Option<String>>,
}

/// How a source is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceHealth {
    /// Its name.
    pub name: String,
    /// Whether it can take messages now.
    pub is_healthy: bool,
    /// Since when that is so, microseconds since the Unix epoch, where it is known.
    pub since_us: Option<i64>,
    /// Why it cannot, where it is known.
    pub why: Option<String>,
}

impl SourceStats {
    /// Of a source that starts now, and does not work yet.
    pub fn starting() -> Self {
        Self { since_us: now_us().into(), ..Self::default() }
    }

    /// Since when the source works, or does not, microseconds since the Unix epoch.
    pub fn since_us(&self) -> Option<i64> {
        Some(self.since_us.load(Ordering::Relaxed)).filter(|us| *us != 0)
    }

    fn set(&self, healthy: bool) {
        if self.healthy.swap(healthy, Ordering::Relaxed) != healthy {
            self.since_us.store(now_us(), Ordering::Relaxed);
        }
    }

    /// Whether the source can take messages now.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// The text of the last failure, kept after recovery.
    pub fn last_error(&self) -> Option<String> {
        self.lock_error().clone()
    }

    /// Why the source does not work at present, if it does not.
    pub fn problem(&self) -> Option<String> {
        if self.is_healthy() { None } else { self.last_error() }
    }

    /// The source works.
    pub fn set_healthy(&self) {
        self.set(true);
    }

    /// The source does not work, for this reason.
    pub fn set_unhealthy(&self, error: impl Into<String>) {
        *self.lock_error() = Some(error.into());
        self.set(false);
    }

    /// Remembers a failure of one connection; the source itself goes on.
    pub fn note_error(&self, error: impl Into<String>) {
        *self.lock_error() = Some(error.into());
    }

    fn lock_error(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        // A panic while holding this lock cannot leave half a text behind.
        self.last_error.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Adds to a counter; order between counters is of no meaning.
pub(crate) fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_when_it_does_not_work_is_not_since_it_was_last_tried() {
        let stats = SourceStats::starting();
        assert!(!stats.is_healthy() && stats.since_us().is_some());
        let was_long_ago = |stats: &SourceStats| stats.since_us.store(7, Ordering::Relaxed);
        was_long_ago(&stats);
        stats.set_unhealthy("refused");
        stats.set_unhealthy("refused again");
        assert_eq!(stats.since_us(), Some(7));
        stats.set_healthy();
        assert!(stats.since_us() > Some(7));
        was_long_ago(&stats);
        stats.set_healthy();
        assert_eq!(stats.since_us(), Some(7));
        stats.set_unhealthy("gone");
        assert!(stats.since_us() > Some(7));
    }
}
