//! Reads Delta tables: a snapshot that follows the log, and DataFusion's view of one snapshot.

mod committed;
mod current;
mod latest;
mod provider;
mod prune;
mod table;
#[cfg(test)]
mod tests;

pub use committed::committed_epoch;
pub(crate) use current::current;
pub(crate) use latest::latest_revisions;
pub use provider::DeltaProvider;
pub(crate) use provider::objects_url;
pub use table::DeltaTable;
#[cfg(test)]
pub(crate) use tests::scanned as files_of;
