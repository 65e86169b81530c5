//! The store of what must survive, and tickets that tell when it is on disk.

use crate::source::SourceError;

/// Resolves when the changes that it covers are on disk.
#[derive(Debug)]
#[must_use]
pub(crate) struct Ticket(());

impl Ticket {
    /// A ticket for nothing.
    pub(super) fn ready() -> Self {
        Self(())
    }

    /// Whether it has resolved.
    pub(crate) fn is_ready(&self) -> bool {
        true
    }

    /// Waits. Cancel-safe.
    ///
    /// # Errors
    /// The store has failed.
    pub(crate) async fn done(self) -> Result<(), SourceError> {
        Ok(())
    }
}
