//! History and SQL: Delta tables on object storage, and the session that queries them.
//!
//! A table is a folder of Parquet files plus a commit log that is the only thing that makes a file
//! visible ([`delta`]). [`TableWriter`] appends exactly once by epoch, [`DeltaTable`] reads a
//! snapshot, [`Session`] plans SQL over all tables below one root, [`run_query`] and [`prompt`]
//! are its two faces in a terminal.

pub mod delta;
mod error;
mod reader;
mod store;
mod writer;

pub use error::{Error, Result};
pub use reader::{DeltaProvider, DeltaTable};
pub use store::Store;
pub use writer::{CommitReport, TableWriter};
