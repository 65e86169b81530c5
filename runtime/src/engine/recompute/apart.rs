//! Tables that do not get what is made of windows that were computed again: a step on the way keeps
//! state of its own, or nobody knows what a registry said. So that the two can be told apart, each
//! revision that such a table does not have is a row of `system.windows_kept` with its name.
//!
//! Under an application id of its own and the number of the group, committed before the windows: a
//! crash in between adds nothing twice.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use tidegate_operators::spec::TableSpec;
use tidegate_operators::system::keys_json;
use tidegate_pipelines::graph::windows_kept;
use tidegate_pipelines::recompute::Recomputation;
use tidegate_sql::{Store, TableWriter};

use super::full_name;
use super::kept::{Stayed, kept_rows};

/// Those of one step, during one group.
pub(super) struct Apart<'a> {
    pub(super) store: &'a Store,
    pub(super) of: &'a Recomputation,
    pub(super) tables: Vec<&'a TableSpec>,
    /// Under which the rows are committed.
    pub(super) app_id: String,
    /// The end of the group.
    pub(super) end_us: i64,
    /// Open if there is something to tell.
    pub(super) writer: Option<TableWriter>,
}

impl Apart<'_> {
    /// Tells of next revisions of windows.
    pub(super) async fn add(&mut self, windows: &RecordBatch) -> anyhow::Result<()> {
        if self.tables.is_empty() || windows.num_rows() == 0 {
            return Ok(());
        }
        let input = &self.of.window.input;
        let names: Vec<&str> =
            self.of.window.keys.iter().map(|k| input.field(*k).name().as_str()).collect();
        let columns = &windows.columns()[..names.len()];
        let time = |name: &str| windows[name].as_primitive::<TimestampMicrosecondType>();
        let (starts, ends) = (time("window_start"), time("window_end"));
        let keys: Vec<String> =
            (0..windows.num_rows()).map(|row| keys_json(&names, columns, row)).collect();
        let each = keys.iter().enumerate();
        let stayed = each.map(|(row, key)| {
            // The readings are in the window itself.
            Stayed { key, bounds: (starts.value(row), ends.value(row)), late: 0 }
        });
        let stayed: Vec<Stayed<'_>> = stayed.collect();
        if self.writer.is_none() {
            let spec = windows_kept();
            self.writer = Some(TableWriter::open(self.store, &spec, self.app_id.clone()).await?);
        }
        for table in &self.tables {
            let rows = kept_rows(self.of, &full_name(table), &stayed, self.end_us)?;
            if let Some(writer) = &mut self.writer {
                writer.append(rows, self.end_us.unsigned_abs()).await?;
            }
        }
        Ok(())
    }

    /// Makes it visible; how many rows that are.
    pub(super) async fn commit(&mut self) -> anyhow::Result<u64> {
        match &mut self.writer {
            Some(writer) => Ok(writer.commit(self.end_us.unsigned_abs()).await?.rows),
            None => Ok(0),
        }
    }
}
