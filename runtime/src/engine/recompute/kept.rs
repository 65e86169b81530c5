//! Windows that stay as they are although readings came too late for them, in
//! `system.windows_kept`.
//!
//! A window of which readings are missing never gets another revision: they do not come back. That
//! it stayed has to be known by later groups, since the `rows` of its newest revision say nothing
//! of the late readings that it has not. So it is committed before the windows of its group: a
//! crash in between finds it, and adds nothing twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use futures::TryStreamExt as _;
use tidegate_operators::Epoch;
use tidegate_operators::spec::TableSpec;
use tidegate_pipelines::graph::{SYSTEM, WINDOWS_KEPT, windows_kept};
use tidegate_pipelines::recompute::Recomputation;
use tidegate_sql::{Session, Store, TableName, TableWriter};

use super::affected::Bounds;
use super::group::{text, time};

/// A window that stays.
pub(super) struct Stayed<'k> {
    pub(super) key: &'k str,
    pub(super) bounds: Bounds,
    /// How many readings of the group are too late for it.
    pub(super) late: i64,
}

/// Of one table of windows, during one group.
pub(super) struct Kept<'a> {
    pub(super) session: &'a Session,
    pub(super) store: &'a Store,
    pub(super) of: &'a Recomputation,
    pub(super) table: &'a TableSpec,
    /// Under which they are committed.
    pub(super) app_id: String,
    /// Open if there is one to be added.
    writer: Option<(TableWriter, Epoch)>,
}

impl<'a> Kept<'a> {
    pub(super) fn new(
        (store, session): (&'a Store, &'a Session),
        (of, table): (&'a Recomputation, &'a TableSpec),
        app_id: String,
    ) -> Self {
        Self { session, store, of, table, app_id, writer: None }
    }

    fn table_name(&self) -> String {
        format!("{}.{}", self.table.namespace, self.table.name)
    }

    /// What stayed before of some keys, in these times.
    pub(super) async fn known(
        &self,
        (from_us, to_us): Bounds,
        is_asked: impl Fn(&str) -> bool,
    ) -> anyhow::Result<BTreeMap<String, BTreeSet<Bounds>>> {
        let mut known: BTreeMap<String, BTreeSet<Bounds>> = BTreeMap::new();
        let name = TableName::new(SYSTEM.to_owned(), WINDOWS_KEPT.to_owned());
        if self.session.table(&name)?.snapshot().await?.is_none() {
            return Ok(known);
        }
        let sql = format!(
            "SELECT keys, time, window_end FROM {SYSTEM}.{WINDOWS_KEPT} WHERE pipeline = {} AND \
             step = {} AND table_name = {} AND window_end >= {} AND time < {}",
            text(&self.of.window.pipeline),
            text(&self.of.window.name),
            text(&self.table_name()),
            time(from_us),
            time(to_us),
        );
        let mut found = self.session.sql(&sql).await?.execute_stream().await?;
        while let Some(rows) = found.try_next().await? {
            let keys = cast(rows.column(0), &DataType::Utf8)?;
            let keys = keys.as_string::<i32>();
            let [starts, ends] = [1, 2].map(|i| {
                let times = rows.column(i).as_primitive::<TimestampMicrosecondType>();
                times.values().iter().copied()
            });
            for (row, bounds) in starts.zip(ends).enumerate() {
                let key = keys.value(row);
                if is_asked(key) {
                    known.entry(key.to_owned()).or_default().insert(bounds);
                }
            }
        }
        Ok(known)
    }

    /// Adds windows that were not written, of a group that ends then.
    pub(super) async fn add(&mut self, windows: &[Stayed<'_>], end_us: i64) -> anyhow::Result<()> {
        if windows.is_empty() {
            return Ok(());
        }
        let rows = kept_rows(self.of, &self.table_name(), windows, end_us)?;
        if self.writer.is_none() {
            let spec = windows_kept();
            let writer = TableWriter::open(self.store, &spec, self.app_id.clone()).await?;
            // What is known is not added again, so another number than that of the group will do.
            let epoch = writer.committed_epoch().saturating_add(1).max(end_us.unsigned_abs());
            self.writer = Some((writer, epoch));
        }
        if let Some((writer, epoch)) = &mut self.writer {
            writer.append(rows, *epoch).await?;
        }
        Ok(())
    }

    /// Makes them visible; how many there are.
    pub(super) async fn commit(&mut self) -> anyhow::Result<u64> {
        match &mut self.writer {
            Some((writer, epoch)) => Ok(writer.commit(*epoch).await?.rows),
            None => Ok(0),
        }
    }
}

/// The rows of windows of a step that stay in a table, of a group that ends then.
pub(super) fn kept_rows(
    of: &Recomputation,
    table: &str,
    windows: &[Stayed<'_>],
    end_us: i64,
) -> anyhow::Result<RecordBatch> {
    let text = |value: &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(windows.iter().map(|_| value)))
    };
    let times = |f: &dyn Fn(&Stayed<'_>) -> i64| -> ArrayRef {
        let values = windows.iter().map(f);
        Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
    };
    let columns: Vec<ArrayRef> = vec![
        times(&|w| w.bounds.0),
        text(&of.window.pipeline),
        text(&of.window.name),
        text(table),
        Arc::new(StringArray::from_iter_values(windows.iter().map(|w| w.key))),
        times(&|w| w.bounds.1),
        Arc::new(Int64Array::from_iter_values(windows.iter().map(|w| w.late))),
        times(&|_| end_us),
    ];
    Ok(RecordBatch::try_new(windows_kept().schema, columns)?)
}
