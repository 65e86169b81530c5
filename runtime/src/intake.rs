//! The one contract between sources and the journal: offer messages, and when the offer is
//! answered they are on disk.
//!
//! A source acknowledges to its sender only after `offer` returned `Ok`. It must never acknowledge
//! on an error, and it need not buffer: an offer that waits is back-pressure.

use async_trait::async_trait;
use tidegate_operators::MessagesBuilder;

/// Why messages were not made durable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntakeError {
    /// The process is shutting down: nothing was acknowledged, the sender will deliver again.
    #[error("the journal is closed")]
    Closed,
    /// The journal cannot be trusted any more (a failed sync); the process has to end.
    #[error("the journal failed: {0}")]
    Failed(String),
    /// One offer is larger than a journal frame may be; the source has to offer less at a time.
    #[error("{bytes} bytes in one offer, at most {bytes_max} fit")]
    TooLarge {
        /// Size of the offer.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
}

/// Where a source puts its messages.
#[async_trait]
pub trait Intake: Send + Sync + 'static {
    /// Returns when the messages are durable, in the order in which offers of one caller were made.
    /// Waits while the journal is behind or its disk budget is used up.
    ///
    /// # Errors
    /// See [`IntakeError`]; none of the messages may be acknowledged then. After a cancelled call
    /// the messages may or may not have been written.
    async fn offer(&self, messages: MessagesBuilder) -> Result<(), IntakeError>;
}
