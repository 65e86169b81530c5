//! The Delta Lake log as far as append-only tables need it: protocol reader 1, writer 2.
//!
//! Nothing else in the crate knows how a commit, a statistic, a partition folder or a checkpoint
//! is written. Reading understands what other engines add to such a table (compaction, removed
//! files, checkpoints); tables that need newer reader features are refused by name.

pub(crate) mod action;
pub(crate) mod checkpoint;
pub(crate) mod log;
pub(crate) mod path;
pub(crate) mod schema;
pub(crate) mod stats;

pub use action::Add;
pub use log::{DataFile, Snapshot};
