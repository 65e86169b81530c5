//! What can go wrong with tables and queries, worded for the person who has to act on it.

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use parquet::errors::ParquetError;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL or folder of the tables cannot be used.
    #[error("tables at `{url}`: {problem}")]
    Location {
        /// As given.
        url: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A table cannot be written as asked: its columns, types or partitions do not fit.
    #[error("table {table}: {problem}")]
    Table {
        /// `namespace.name`.
        table: String,
        /// What does not fit, naming the column.
        problem: String,
    },
    /// A log or checkpoint cannot be understood.
    #[error("{path}: {problem}")]
    Log {
        /// Object that cannot be read.
        path: String,
        /// Why.
        problem: String,
    },
    /// Another process committed rows under the same application id: only one may.
    #[error(
        "table {table}: another writer committed epoch {found} of `{app_id}` in between; \
         restart to go on from there"
    )]
    Fenced {
        /// `namespace.name`.
        table: String,
        /// Application id that two writers use.
        app_id: String,
        /// Epoch found in the log.
        found: u64,
    },
    /// The object store failed.
    #[error("{what}: {source}")]
    Store {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: object_store::Error,
    },
    /// A statement is wrong or not allowed; the text is complete.
    #[error("{0}")]
    Query(String),
    /// Failure while a query was planned or run.
    #[error(transparent)]
    DataFusion(#[from] DataFusionError),
    /// Arrow kernel failure.
    #[error(transparent)]
    Arrow(#[from] ArrowError),
    /// Parquet could not be written or read.
    #[error(transparent)]
    Parquet(#[from] ParquetError),
    /// Output or terminal failure.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A background task died.
    #[error("a background task failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl Error {
    pub(crate) fn store(what: impl Into<String>) -> impl FnOnce(object_store::Error) -> Self {
        let what = what.into();
        move |source| Self::Store { what, source }
    }

    pub(crate) fn table(table: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Table { table: table.into(), problem: problem.into() }
    }

    pub(crate) fn log(path: impl ToString, problem: impl ToString) -> Self {
        Self::Log { path: path.to_string(), problem: problem.to_string() }
    }
}

impl From<Error> for DataFusionError {
    fn from(e: Error) -> Self {
        match e {
            Error::DataFusion(e) => e,
            other => Self::External(Box::new(other)),
        }
    }
}
