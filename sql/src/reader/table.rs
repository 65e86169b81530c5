//! One table as readers hold it: the newest snapshot that was seen, moved on when asked.

use std::sync::Arc;

use object_store::path::Path;
use tokio::sync::Mutex;

use super::provider::DeltaProvider;
use crate::delta::Snapshot;
use crate::delta::log;
use crate::{Error, Result, Store, writer};

/// A table that can be read while others write to it.
#[derive(Debug)]
pub struct DeltaTable {
    store: Store,
    path: Path,
    shown: String,
    // Held over a refresh: queries that start together read the log once.
    newest: Mutex<Option<Arc<Snapshot>>>,
}

impl DeltaTable {
    /// The table `namespace.name` below the root. Nothing is read yet.
    ///
    /// # Errors
    /// The names cannot be folders.
    pub fn new(store: &Store, namespace: &str, name: &str) -> Result<Self> {
        Ok(Self {
            store: store.clone(),
            path: writer::table_path(namespace, name)?,
            shown: format!("{namespace}.{name}"),
            newest: Mutex::new(None),
        })
    }

    /// The newest snapshot, reading only what was committed since the last call; `None` if there
    /// is no such table.
    ///
    /// # Errors
    /// The store fails or the log is damaged.
    pub async fn snapshot(&self) -> Result<Option<Arc<Snapshot>>> {
        let mut newest = self.newest.lock().await;
        *newest = match newest.as_ref() {
            Some(old) => Some(log::refresh(&self.store, &self.path, old).await?),
            None => log::load(&self.store, &self.path).await?.map(Arc::new),
        };
        Ok(newest.clone())
    }

    /// The newest snapshot of a table that must exist.
    ///
    /// # Errors
    /// As [`DeltaTable::snapshot`], or there is no table.
    pub async fn open(&self) -> Result<Arc<Snapshot>> {
        let missing = || Error::table(&self.shown, "does not exist");
        self.snapshot().await?.ok_or_else(missing)
    }

    /// The newest snapshot as something that DataFusion can scan.
    ///
    /// # Errors
    /// As [`DeltaTable::open`].
    pub async fn provider(&self) -> Result<DeltaProvider> {
        DeltaProvider::new(&self.path, self.open().await?)
    }
}
