//! Folders as SQL names: `<schema>/<table>/` below the root is `schema.table`, and a table name
//! that is unique over all schemas also lives in `public`.
//!
//! DataFusion asks for names without waiting, so they come from a listing that `refresh` renews;
//! tables themselves are looked up in the store when the listing does not know them.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, SchemaProvider, TableProvider};
use datafusion::datasource::empty::EmptyTable;
use datafusion::error::Result as DfResult;
use object_store::path::Path;
use tidegate_operators::system::system_tables;

use super::PUBLIC;
use crate::reader::{current, latest_revisions};
use crate::writer::DAY;
use crate::{DeltaTable, Error, Result, Store};

/// The schema of the engine's own tables.
const SYSTEM: &str = "system";

/// Suffix of the name under which all revisions of a table's rows are visible.
const REVISIONS: &str = "_revisions";

/// Suffix of the name of the history of a registry, whose own name shows what holds now.
const VERSIONS: &str = "_versions";

/// Full name of a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// Its schema: a pipeline, or `system`.
    pub schema: String,
    /// Its name there.
    pub name: String,
}

impl TableName {
    /// `schema.name`.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }
}

impl Display for TableName {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

#[derive(Debug)]
struct Shared {
    store: Store,
    listing: RwLock<Vec<TableName>>,
    open: Mutex<BTreeMap<TableName, Arc<DeltaTable>>>,
}

/// The catalog of a session.
#[derive(Debug)]
pub(crate) struct TableCatalog {
    shared: Arc<Shared>,
}

impl TableCatalog {
    pub(super) fn new(store: Store) -> Self {
        let (listing, open) = (RwLock::default(), Mutex::default());
        Self { shared: Arc::new(Shared { store, listing, open }) }
    }

    pub(super) async fn refresh(&self) -> Result<()> {
        self.shared.refresh().await
    }

    pub(super) fn tables(&self) -> Vec<TableName> {
        self.shared.tables()
    }

    pub(super) fn empty(&self) -> Vec<TableName> {
        self.shared.empty().into_iter().map(|(name, _)| name).collect()
    }

    pub(super) fn delta(&self, name: &TableName) -> Result<Arc<DeltaTable>> {
        self.shared.delta(name)
    }

    /// Names beside that of a table under which its rows can be asked for, each with what it
    /// shows.
    pub(super) async fn others(&self, name: &TableName) -> Result<Vec<(TableName, &'static str)>> {
        let raw = self.delta(name)?.provider().await?;
        let latest = latest_revisions(&raw)?;
        let mut found = Vec::new();
        if latest.is_some() {
            found.push((format!("{}{REVISIONS}", name.name), "all revisions"));
        }
        if let Some(base) = name.name.strip_suffix(VERSIONS)
            && current(latest.unwrap_or_else(|| Arc::new(raw)))?.is_some()
        {
            found.push((base.to_owned(), "what holds now"));
        }
        let full = |(other, what)| (TableName::new(&name.schema, other), what);
        let tables = self.tables();
        Ok(found.into_iter().map(full).filter(|(other, _)| !tables.contains(other)).collect())
    }

    pub(super) async fn find(
        &self,
        schema: &str,
        name: &str,
    ) -> Result<Option<Arc<dyn TableProvider>>> {
        self.shared.find(schema, name).await
    }
}

/// The schema of a table whose rows have `given`.
fn read_back(given: &Schema) -> SchemaRef {
    let fields = given.fields().iter().map(|f| f.as_ref().clone().with_nullable(true));
    let day = Field::new(DAY, DataType::Date32, true);
    Arc::new(Schema::new(fields.chain([day]).collect::<Vec<_>>()))
}

fn folder_names(prefixes: &[Path]) -> impl Iterator<Item = String> {
    let names = prefixes.iter().filter_map(|p| p.filename().map(str::to_owned));
    names.filter(|n| !n.starts_with(['.', '_']))
}

impl Shared {
    fn tables(&self) -> Vec<TableName> {
        self.listing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn refresh(&self) -> Result<()> {
        let list = |prefix: Option<Path>| async move {
            let found = self.store.objects().list_with_delimiter(prefix.as_ref()).await;
            let found = found.map_err(Error::store(format!("listing {}", self.store.url())))?;
            Ok::<_, Error>(folder_names(&found.common_prefixes).collect::<Vec<_>>())
        };
        let mut tables = Vec::new();
        for schema in list(None).await? {
            for name in list(Some(Path::from(schema.as_str()))).await? {
                tables.push(TableName::new(schema.clone(), name));
            }
        }
        tables.sort();
        *self.listing.write().unwrap_or_else(PoisonError::into_inner) = tables;
        Ok(())
    }

    fn delta(&self, name: &TableName) -> Result<Arc<DeltaTable>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = open.get(name) {
            return Ok(Arc::clone(table));
        }
        let table = Arc::new(DeltaTable::new(&self.store, &name.schema, &name.name)?);
        open.insert(name.clone(), Arc::clone(&table));
        Ok(table)
    }

    /// Tables of the engine that are not there, as nothing was written to them, beside others that
    /// are: they are shown without rows.
    fn empty(&self) -> Vec<(TableName, SchemaRef)> {
        let tables = self.tables();
        if !tables.iter().any(|t| t.schema == SYSTEM) {
            return Vec::new();
        }
        let all = system_tables().into_iter();
        let all = all.map(|(name, schema)| (TableName::new(SYSTEM, name), read_back(&schema)));
        all.filter(|(name, _)| !tables.contains(name)).collect()
    }

    /// The table that `schema.name` means, with revisions resolved.
    async fn find(&self, schema: &str, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        for known in [false, true] {
            if known {
                // Not in the listing: it may be newer than that.
                self.refresh().await?;
            }
            if let Some(full) = self.resolve(schema, name)? {
                let raw = self.delta(&full)?.provider().await?;
                return Ok(Some(match latest_revisions(&raw)? {
                    Some(view) => view,
                    None => Arc::new(raw),
                }));
            }
            let base = name.strip_suffix(REVISIONS);
            if let Some(full) = base.map(|b| self.resolve(schema, b)).transpose()?.flatten() {
                let raw = self.delta(&full)?.provider().await?;
                let has_revisions = latest_revisions(&raw)?.is_some();
                return Ok(has_revisions.then(|| Arc::new(raw) as _));
            }
            if let Some(full) = self.resolve(schema, &format!("{name}{VERSIONS}"))? {
                let raw = self.delta(&full)?.provider().await?;
                let history = latest_revisions(&raw)?.unwrap_or_else(|| Arc::new(raw));
                return Ok(current(history)?);
            }
        }
        let means = |t: &TableName| t.name == name && [SYSTEM, PUBLIC].contains(&schema);
        let empty = self.empty().into_iter().find(|(table, _)| means(table));
        Ok(empty.map(|(_, schema)| Arc::new(EmptyTable::new(schema)) as _))
    }

    fn resolve(&self, schema: &str, name: &str) -> Result<Option<TableName>> {
        let tables = self.tables();
        let fits = |t: &&TableName| t.name == name && (schema == PUBLIC || t.schema == schema);
        let mut found = tables.iter().filter(fits);
        let first = found.next();
        if let (Some(first), Some(second)) = (first, found.next()) {
            let text = format!("table `{name}` is not unique: write `{first}` or `{second}`");
            return Err(Error::Query(text));
        }
        Ok(first.cloned())
    }

    fn names(&self, schema: &str) -> Vec<String> {
        let tables = self.tables();
        let unique = |t: &TableName| tables.iter().filter(|o| o.name == t.name).count() == 1;
        let here = |t: &&TableName| if schema == PUBLIC { unique(t) } else { t.schema == schema };
        let mut names: Vec<String> = tables.iter().filter(here).map(|t| t.name.clone()).collect();
        if schema == SYSTEM {
            names.extend(self.empty().into_iter().map(|(table, _)| table.name));
        }
        names
    }
}

impl CatalogProvider for TableCatalog {
    fn schema_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.tables().into_iter().map(|t| t.schema).collect();
        names.dedup();
        names.push(PUBLIC.into());
        names
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        // Also for names that are not listed: the table may be newer than the listing.
        Some(Arc::new(TableSchema { name: name.into(), shared: Arc::clone(&self.shared) }))
    }
}

/// One schema; only a name, everything is looked up.
#[derive(Debug)]
struct TableSchema {
    name: String,
    shared: Arc<Shared>,
}

#[async_trait]
impl SchemaProvider for TableSchema {
    fn table_names(&self) -> Vec<String> {
        // Listings show each table once, under its full name.
        if self.name == PUBLIC { Vec::new() } else { self.shared.names(&self.name) }
    }

    async fn table(&self, name: &str) -> DfResult<Option<Arc<dyn TableProvider>>> {
        Ok(self.shared.find(&self.name, name).await?)
    }

    fn table_exist(&self, name: &str) -> bool {
        self.shared.names(&self.name).iter().any(|n| n == name)
    }
}
