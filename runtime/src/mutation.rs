//! Deliberate mistakes, by which the simulation is checked: one that no test of it notices would
//! say that it tests nothing.
//!
//! Invariant: in the product no mistake can be switched on; the question costs nothing there.

/// Where the product can be made wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code))]
pub(crate) enum Mutation {
    /// Offers are answered before the sync that covers them.
    AckBeforeSync,
    /// Files are never synced.
    NoSync,
    /// Folders are never synced.
    NoFolderSync,
    /// What a sender sends again is taken for new.
    NoRecognition,
    /// A table's log names files that are not written yet.
    CommitBeforeUpload,
    /// The journal is trimmed although tables have not committed as far.
    TrimTooEarly,
    /// Acknowledgements of a lost connection are sent on the next one.
    NoGeneration,
}

/// Whether this mistake is made on this thread.
#[inline]
pub(crate) fn on(mutation: Mutation) -> bool {
    #[cfg(test)]
    return crate::sim::inject::mutation() == Some(mutation);
    #[cfg(not(test))]
    {
        let _ = mutation;
        false
    }
}
