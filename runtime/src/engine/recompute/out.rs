//! Where the next revisions of windows go: to the table of windows, and to the tables behind it.
//!
//! Those are made of the windows by steps without state. What these make of a revision is a
//! function of it: a filter lets it pass, or takes back what it may have let pass before. So a
//! table behind gets its rows together with the table of windows, under the number of the same
//! group, and is committed before it: who finds a group undone does it again, from the same
//! tables, and a table behind that has the group already takes nothing.

use arrow::array::RecordBatch;
use tidegate_operators::Epoch;
use tidegate_operators::spec::TableSpec;
use tidegate_pipelines::recompute::{Behind, Recomputation};
use tidegate_sql::{CommitReport, Store, TableWriter};

/// The writers of one group.
pub(super) struct Out<'a> {
    own: TableWriter,
    behind: Vec<(&'a Behind, TableWriter)>,
    /// The number of the group.
    through: Epoch,
}

impl<'a> Out<'a> {
    /// Of a table of windows, and, if it is the first one of its step, of those behind it; `app_id`
    /// names who writes.
    pub(super) async fn open(
        store: &Store,
        (of, table): (&'a Recomputation, &TableSpec),
        app_id: impl Fn(&TableSpec) -> String,
        through: Epoch,
    ) -> anyhow::Result<Self> {
        let own = TableWriter::open(store, table, app_id(table)).await?;
        let mut behind = Vec::new();
        for one in of.behind(table) {
            behind.push((one, TableWriter::open(store, &one.table, app_id(&one.table)).await?));
        }
        Ok(Self { own, behind, through })
    }

    /// Adds next revisions of windows.
    pub(super) async fn append(&mut self, rows: RecordBatch) -> anyhow::Result<()> {
        for (behind, writer) in &mut self.behind {
            let (made, failed) = behind.rows(rows.clone())?;
            if failed > 0 {
                let table = format!("{}.{}", behind.table.namespace, behind.table.name);
                tracing::warn!(table, failed, "windows that were computed again do not get there");
            }
            writer.append(made, self.through).await?;
        }
        Ok(self.own.append(rows, self.through).await?)
    }

    /// Makes the rows visible, those of the table of windows last; what was committed of it, then
    /// of the others.
    pub(super) async fn commit(&mut self) -> anyhow::Result<(CommitReport, Vec<CommitReport>)> {
        let mut others = Vec::new();
        for (_, writer) in &mut self.behind {
            others.push(writer.commit(self.through).await?);
        }
        let report = self.own.commit(self.through).await?;
        if report.version.is_none() {
            // All of it stays: the next process is not to find that out again.
            self.own.mark(self.through).await?;
        }
        Ok((report, others))
    }
}
