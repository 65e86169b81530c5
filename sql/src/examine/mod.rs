//! Examining tables: is the log whole, is every file there, does each say what the log says of it,
//! was an epoch committed twice; and does the store keep what a commit relies on.
//!
//! Invariant: it reads only (the probe of the store aside, which works in a folder of its own and
//! removes it), so it may run beside writers: what appears or vanishes meanwhile is looked at again
//! before it counts.

mod bucket;
mod chain;
mod files;
mod history;
mod rebuild;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use object_store::ObjectMeta;
use object_store::path::Path;

use crate::delta::log;
use crate::session::TableName;
use crate::writer::table_path;
use crate::{Error, Result, Session, Store};

pub use bucket::probe;
pub use rebuild::{Rebuilt, rebuild};

/// A listing needs no more.
const MEMORY_BYTES: usize = 16 << 20;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// For information.
    Note,
    /// It works, but not well.
    Warn,
    /// Rows are lost or doubled, or cannot be read.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at.
    pub check: &'static str,
    /// What was seen.
    pub text: String,
    /// The object that it is about.
    pub object: Option<String>,
    /// What follows from it.
    pub means: String,
    /// What to do.
    pub change: Vec<String>,
}

impl Finding {
    fn new(severity: Severity, check: &'static str, text: impl Into<String>) -> Self {
        let (means, change) = (String::new(), Vec::new());
        Self { severity, check, text: text.into(), object: None, means, change }
    }

    fn at(self, object: impl ToString) -> Self {
        Self { object: Some(object.to_string()), ..self }
    }

    fn means(self, text: impl Into<String>) -> Self {
        Self { means: text.into(), ..self }
    }

    fn change(mut self, line: impl Into<String>) -> Self {
        self.change.push(line.into());
        self
    }
}

/// A table as it was found.
#[derive(Debug)]
pub struct TableHealth {
    /// Its name.
    pub name: TableName,
    /// In the order of the checks.
    pub findings: Vec<Finding>,
    /// The newest epoch of each application that writes it.
    pub committed: BTreeMap<String, u64>,
    /// Rows of visible files, as the log says.
    pub rows: u64,
}

/// What a table's folder holds.
struct Listing {
    /// Objects of `_delta_log`, by name.
    log: BTreeMap<String, ObjectMeta>,
    /// All other objects, by path.
    files: BTreeMap<Path, ObjectMeta>,
    listed_at: DateTime<Utc>,
}

/// `1 row`, `2 rows`.
fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

async fn list(store: &Store, table: &Path) -> Result<Listing> {
    let what = format!("listing {table}");
    let listed_at = Utc::now();
    let found: Vec<ObjectMeta> =
        store.objects().list(Some(table)).try_collect().await.map_err(Error::store(what))?;
    let folder = log::folder(table);
    let (mut log, mut files) = (BTreeMap::new(), BTreeMap::new());
    for meta in found {
        match meta.location.prefix_match(&folder).map(|parts| parts.count()) {
            Some(1) => {
                log.insert(meta.location.filename().unwrap_or_default().to_owned(), meta);
            }
            Some(_) => {}
            None => {
                files.insert(meta.location.clone(), meta);
            }
        }
    }
    Ok(Listing { log, files, listed_at })
}

/// The tables below a root.
///
/// # Errors
/// The root cannot be listed.
pub async fn tables(store: &Store) -> Result<Vec<TableName>> {
    let session = Session::over(store.clone(), MEMORY_BYTES)?;
    session.refresh().await?;
    Ok(session.tables())
}

/// Examines one table. `progress` is told how many files were looked at, of how many.
///
/// # Errors
/// The store fails. Damage is no error here.
pub async fn table(
    store: &Store,
    name: &TableName,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<TableHealth> {
    let path = table_path(&name.schema, &name.name)?;
    let listing = list(store, &path).await?;
    let mut health = TableHealth {
        name: name.clone(),
        findings: Vec::new(),
        committed: BTreeMap::new(),
        rows: 0,
    };
    if listing.log.is_empty() {
        let text = "it has no log: this folder is not a table, or its _delta_log is gone";
        health.findings.push(
            Finding::new(Severity::Fail, "log", text)
                .at(log::folder(&path))
                .means("its rows cannot be read")
                .change("restore _delta_log from a copy, or move the folder away"),
        );
        return Ok(health);
    }
    history::examine(store, &path, &listing, &mut health, progress).await?;
    match log::load(store, &path).await {
        Ok(Some(snapshot)) => {
            health.committed = snapshot.epochs();
            files::examine(store, &path, &listing, &snapshot, &mut health, progress).await?;
        }
        Ok(None) => {}
        // The history has said why; else this is all there is to say.
        Err(error) if health.findings.iter().any(|f| f.severity == Severity::Fail) => {
            tracing::debug!(%error, "no snapshot");
        }
        Err(error @ Error::Store { .. }) => return Err(error),
        Err(error) => {
            let finding = Finding::new(Severity::Fail, "log", error.to_string());
            health.findings.push(finding.means("its rows cannot be read"));
        }
    }
    Ok(health)
}
