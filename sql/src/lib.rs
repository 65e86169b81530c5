//! History and SQL: Delta tables on object storage, and the session that queries them.
//!
//! A table is a folder of Parquet files plus a commit log that is the only thing that makes a file
//! visible ([`delta`]). [`TableWriter`] appends exactly once by epoch, [`DeltaTable`] reads a
//! snapshot, [`Session`] plans SQL over all tables below one root, [`run_query`] and [`prompt`]
//! are its two faces in a terminal.

pub mod delta;
mod error;
pub mod examine;
pub mod fault;
mod headings;
mod output;
mod patience;
mod prompt;
mod query;
mod reader;
mod session;
mod store;
#[cfg(test)]
mod testing;
mod writer;

pub use error::{Error, Result};
pub use output::OutputFormat;
pub use prompt::prompt;
pub use query::{QueryOptions, QuerySummary, TABLES_URL_FILE, open, run_query, tables_of};
pub use reader::{DeltaProvider, DeltaTable, committed_epoch};
pub use session::{Session, TableName, Tables, open_session};
pub use store::{OnFailedSync, Store, has_no_room, may_pass, rename_new};
pub use writer::{CommitReport, TableWriter};
