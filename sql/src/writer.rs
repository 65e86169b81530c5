//! Appends rows to one Delta table, each epoch exactly once.
//!
//! Rows wait in memory until `commit`, which writes Parquet files and then one log entry that
//! names them together with the epoch they reach (`txn`). A file that no entry names is invisible,
//! so a crash at any point leaves either all rows of a commit or none. There is one writer per
//! table and application id; a second one is noticed and refused, not merged.

mod commit;
mod file;
mod layout;
mod leftovers;
#[cfg(test)]
mod long;
#[cfg(test)]
mod partitions;
#[cfg(test)]
mod power;
mod rows;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod told_apart;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tidegate_operators::Epoch;
use tidegate_operators::spec::TableSpec;

use crate::delta::action::{Action, Add};
use crate::delta::{log, path};
use crate::{Error, Result, Store, fault};
pub(crate) use file::PARTITION_KEY;
use layout::Layout;
pub(crate) use layout::{COMPLETE_KEY, DAY, IDENTITY_KEY, TIME_KEY};
use leftovers::Leftovers;

/// Buffered bytes beyond which rows become (still invisible) files before their commit. Rows of an
/// epoch that is still arriving may double it.
const BUFFER_BYTES_MAX: usize = 128 << 20;

/// Files that are uploaded at the same time; enough to hide the latency of an object store.
const UPLOADS_MAX: usize = 8;

/// What a commit did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitReport {
    /// Data files that became visible.
    pub files: usize,
    /// Rows that became visible.
    pub rows: u64,
    /// Bytes of the data files.
    pub bytes: u64,
    /// Version of the log entry, `None` if there was nothing to commit.
    pub version: Option<u64>,
}

/// Rows that are already files but not yet visible.
#[derive(Debug, Default)]
struct Staged {
    adds: Vec<Add>,
    rows: u64,
    bytes: u64,
    /// Rows by day.
    days: BTreeMap<String, u64>,
}

/// Writer of one table. See the module's head for what it promises.
#[derive(Debug)]
pub struct TableWriter {
    store: Store,
    table: Path,
    layout: Arc<Layout>,
    app_id: String,
    committed: Epoch,
    version: u64,
    /// Rows of each day that it has committed since the table is there, if that has them all.
    days: Option<BTreeMap<String, u64>>,
    buffer: Vec<(Epoch, RecordBatch)>,
    buffered_bytes: usize,
    staged: Staged,
    leftovers: Leftovers,
    buffer_bytes_max: usize,
}

impl TableWriter {
    /// Opens the table of `spec`, creating it if it is missing and adding columns that are new.
    /// Columns that the table has and `spec` has not are filled with null. `app_id` names the
    /// writer in the log; it must stay the same over restarts and be used by one process only.
    ///
    /// # Errors
    /// A column's type has no Delta type or differs from the table's, the partition columns
    /// differ, the log is damaged, or the store fails.
    pub async fn open(store: &Store, spec: &TableSpec, app_id: String) -> Result<Self> {
        Self::open_from(store, spec, app_id, false).await
    }

    /// [`TableWriter::open`]; `from_first` says that nothing was made for this table before it is
    /// opened, so that one which is created now will have every row of this application
    /// ([`Snapshot::is_complete_for`](crate::Snapshot::is_complete_for)).
    ///
    /// # Errors
    /// As [`TableWriter::open`].
    pub async fn open_from(
        store: &Store,
        spec: &TableSpec,
        app_id: String,
        from_first: bool,
    ) -> Result<Self> {
        let layout = Arc::new(Layout::new(spec)?);
        let table = table_path(&spec.namespace, &spec.name)?;
        commit::remove_torn_commit(store, &table).await?;
        let mut leftovers = Leftovers::of(&app_id);
        store.sync_names(table.as_ref(), |file| leftovers.see(file))?;
        let complete_for = from_first.then_some(app_id.as_str());
        let snapshot = commit::ensure_table(store, &table, &layout, complete_for).await?;
        let layout = Arc::new(layout.for_table(&snapshot.schema));
        let is_complete = snapshot.is_complete_for(&app_id);
        let committed = snapshot.committed(&app_id);
        Ok(Self {
            days: is_complete.then(|| snapshot.days_written(&app_id)),
            store: store.clone(),
            table,
            layout,
            committed,
            app_id,
            version: snapshot.version,
            buffer: Vec::new(),
            buffered_bytes: 0,
            staged: Staged::default(),
            leftovers: leftovers.after(committed),
            buffer_bytes_max: BUFFER_BYTES_MAX,
        })
    }

    /// Whether the table of `spec` takes its rows, if there is such a table: what
    /// [`TableWriter::open`] would refuse is refused, and nothing is written.
    ///
    /// # Errors
    /// As [`TableWriter::open`]; of a log that cannot be read nothing is said.
    pub async fn takes(store: &Store, spec: &TableSpec) -> Result<()> {
        let layout = Layout::new(spec)?;
        match log::load(store, &table_path(&spec.namespace, &spec.name)?).await {
            // The newest commit may be torn, which is mended when the table is opened.
            Ok(None) | Err(Error::Log { .. }) => Ok(()),
            Ok(Some(snapshot)) => commit::changed_metadata(&snapshot, &layout).map(drop),
            Err(error) => Err(error),
        }
    }

    /// The newest epoch whose rows are visible, 0 if none. It moves only with a commit, and an
    /// epoch range without rows makes none: the caller keeps its own note of how far it has come.
    pub fn committed_epoch(&self) -> Epoch {
        self.committed
    }

    /// Bytes of rows that wait in memory.
    pub fn buffered_bytes(&self) -> usize {
        self.buffered_bytes
    }

    /// Adds rows of `epoch` to the next commit. Rows of an epoch that is committed already (a
    /// replay) are ignored. Epochs must come in order, batches of one epoch in any order.
    ///
    /// # Errors
    /// The batch does not have the table's schema, a value does not fit its stored type, or too
    /// much is buffered and a file cannot be written.
    pub async fn append(&mut self, batch: RecordBatch, epoch: Epoch) -> Result<()> {
        if epoch <= self.committed || batch.num_rows() == 0 {
            return Ok(());
        }
        // Whole epochs go into a spilled file where possible: then its bytes do not depend on the
        // order in which the batches of an epoch arrive.
        let sealed = self.buffer.last().is_some_and(|(last, _)| *last < epoch);
        let limit = if sealed { self.buffer_bytes_max } else { 2 * self.buffer_bytes_max };
        if self.buffered_bytes > limit {
            self.flush(epoch).await?;
        }
        let batch = self.layout.conform(&batch)?;
        self.buffered_bytes += rows::bytes(&batch);
        self.buffer.push((epoch, batch));
        Ok(())
    }

    /// Makes everything appended so far visible and records that epochs through `through` are
    /// written. Does nothing if there are no rows. After an error it may be called again.
    ///
    /// # Errors
    /// The store fails for longer than the retries last, or another process writes as the same
    /// application ([`Error::Fenced`]).
    pub async fn commit(&mut self, through: Epoch) -> Result<CommitReport> {
        if self.buffer.is_empty() && self.staged.adds.is_empty() {
            return Ok(CommitReport::default());
        }
        self.flush(through).await?;
        fault::point("before_commit");
        let version = commit::commit(self, through).await?;
        fault::point("after_commit");
        let staged = std::mem::take(&mut self.staged);
        self.committed = through;
        self.version = version;
        if let Some(days) = &mut self.days {
            staged.days.into_iter().for_each(|(day, rows)| *days.entry(day).or_default() += rows);
        }
        self.leftovers.remove(through, &staged.adds);
        commit::checkpoint_if_due(&self.store, &self.table, version).await;
        Ok(CommitReport {
            files: staged.adds.len(),
            rows: staged.rows,
            bytes: staged.bytes,
            version: Some(version),
        })
    }

    /// Records that epochs through `through` are written, of which this application has no rows.
    ///
    /// # Errors
    /// As [`TableWriter::commit`]; also with rows that wait for their commit.
    pub async fn mark(&mut self, through: Epoch) -> Result<()> {
        if !self.buffer.is_empty() || !self.staged.adds.is_empty() {
            return Err(Error::table(&self.layout.shown, "rows wait for their commit"));
        }
        if through > self.committed {
            self.version = commit::commit(self, through).await?;
            self.committed = through;
        }
        Ok(())
    }

    /// Writes what is buffered as files, not yet visible. Their names carry `through`.
    async fn flush(&mut self, through: Epoch) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let first = self.committed + 1;
        let label = format!("{}-{first:010}-{through:010}", path::file_word(&self.app_id));
        let numbered_from = self.staged.adds.len();
        let batches: Vec<RecordBatch> = self.buffer.iter().map(|(_, b)| b.clone()).collect();
        let layout = Arc::clone(&self.layout);
        let files = tokio::task::spawn_blocking(move || {
            file::encode_all(&layout, &batches, &label, numbered_from)
        })
        .await??;
        let rows: u64 = files.iter().map(|f| f.rows).sum();
        let day = |f: &file::EncodedFile| Some((f.partition_values.get(DAY)?.clone()?, f.rows));
        let days: Vec<(String, u64)> = files.iter().filter_map(day).collect();
        let bytes: u64 = files.iter().map(|f| f.bytes.len() as u64).sum();
        let adds: Vec<Add> = futures::stream::iter(files)
            .map(|f| upload(&self.store, &self.table, f))
            .buffered(UPLOADS_MAX)
            .try_collect()
            .await?;
        // Only now: a failed upload leaves the rows in the buffer for the next try.
        self.staged.adds.extend(adds);
        self.staged.rows += rows;
        self.staged.bytes += bytes;
        for (day, rows) in days {
            *self.staged.days.entry(day).or_default() += rows;
        }
        self.buffer.clear();
        self.buffered_bytes = 0;
        Ok(())
    }
}

async fn upload(store: &Store, table: &Path, file: file::EncodedFile) -> Result<Add> {
    let target = path::from_log(table, &path::to_log(&file.path))?;
    let add = Add {
        path: path::to_log(&file.path),
        partition_values: file.partition_values,
        size: i64::try_from(file.bytes.len()).expect("a file is below 8 EiB"),
        modification_time: commit::now_ms(),
        data_change: true,
        stats: Some(file.stats),
        deletion_vector: None,
    };
    let what = format!("writing {target}");
    store.objects().put(&target, file.bytes.into()).await.map_err(Error::store(what))?;
    fault::point("parquet_done");
    Ok(add)
}

/// Folder of a table below the root.
pub(crate) fn table_path(namespace: &str, name: &str) -> Result<Path> {
    for part in [namespace, name] {
        let odd = part.is_empty() || part.starts_with(['.', '_']) || part.contains(['/', '\\']);
        if odd {
            let problem = format!("`{part}` cannot be the name of a folder");
            return Err(Error::table(format!("{namespace}.{name}"), problem));
        }
    }
    Ok(Path::from_iter([namespace, name]))
}

/// The actions of a data commit.
fn data_actions(writer: &TableWriter, through: Epoch) -> Vec<Action> {
    let mut actions = commit::head(&writer.app_id, through, writer.staged.rows);
    if let Some(known) = &writer.days {
        actions.extend(writer.staged.days.iter().map(|(day, rows)| {
            let before = known.get(day).copied().unwrap_or_default();
            commit::txn(log::day_app(&writer.app_id, day), before + rows)
        }));
    }
    let adds = writer.staged.adds.iter().cloned();
    actions.extend(adds.map(|add| Action { add: Some(add), ..Action::default() }));
    actions
}

/// The newest snapshot of a table that exists.
async fn existing(store: &Store, table: &Path) -> Result<log::Snapshot> {
    log::load(store, table).await?.ok_or_else(|| Error::log(table, "the table has vanished"))
}
