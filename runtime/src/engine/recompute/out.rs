//! Where the next revisions of windows go: to the table of windows, and to the tables behind it.
//!
//! Those are made of the windows by steps without state, and by joins with what registries had said
//! by the end of the group ([`super::made`]). What these make of a revision is a function of it: a
//! filter lets it pass, or takes back what it may have let pass before. So a table behind gets its
//! rows together with the table of windows, under the number of the same group, and is committed
//! before it: who finds a group undone does it again, from the same tables, and a table behind that
//! has the group already takes nothing.

use arrow::array::RecordBatch;
use tidegate_operators::Epoch;
use tidegate_operators::spec::TableSpec;
use tidegate_pipelines::recompute::{Behind, Recomputation};
use tidegate_sql::{CommitReport, TableWriter};

use super::apart::Apart;
use super::made::{Made, not_whole};
use super::{Worker, full_name};

/// The writers of one group.
pub(super) struct Out<'a> {
    own: TableWriter,
    behind: Vec<Further<'a>>,
    /// Tables behind that get nothing, each with a table of versions that has not all; until that
    /// is told.
    without: Vec<(&'a Behind, &'a TableSpec)>,
    /// These, and those that never get anything.
    apart: Apart<'a>,
    /// The number of the group.
    through: Epoch,
}

/// A table behind the windows.
struct Further<'a> {
    table: &'a TableSpec,
    made: Made<'a>,
    writer: TableWriter,
}

impl<'a> Out<'a> {
    /// Of a table of windows, and, if it is the first one of its step, of those behind it, for a
    /// group that ends then.
    pub(super) async fn open(
        worker: &'a Worker,
        (of, table): (&'a Recomputation, &TableSpec),
        end_us: i64,
    ) -> anyhow::Result<Self> {
        let (store, session) = (&worker.context.store, &worker.session);
        let own = TableWriter::open(store, table, worker.app_id(table)).await?;
        let (mut behind, mut without) = (Vec::new(), Vec::new());
        for one in of.behind(table) {
            let app_id = |versions: &TableSpec| worker.step_app_id(versions);
            if let Some(versions) = not_whole(session, one, app_id).await? {
                without.push((one, versions));
                continue;
            }
            let table = &one.table;
            let writer = TableWriter::open(store, table, worker.app_id(table)).await?;
            behind.push(Further { table, made: Made::new(session, one, end_us)?, writer });
        }
        let tables = without.iter().map(|(one, _)| &one.table).chain(of.beyond(table)).collect();
        let app_id = format!("{}/behind", worker.app_id(table));
        let apart = Apart { store, of, tables, app_id, end_us, writer: None };
        Ok(Self { own, behind, without, apart, through: end_us.unsigned_abs() })
    }

    /// Adds next revisions of windows.
    pub(super) async fn append(&mut self, rows: RecordBatch) -> anyhow::Result<()> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        for (behind, versions) in self.without.drain(..) {
            tracing::warn!(
                table = full_name(&behind.table),
                "windows that were computed again do not get there: {} does not have all that \
                 the registry said (rows were deleted, or it was not there from the first message \
                 on)",
                full_name(versions),
            );
        }
        for Further { table, made, writer } in &mut self.behind {
            let (made, failed) = made.rows(rows.clone()).await?;
            if failed > 0 {
                let table = full_name(table);
                tracing::warn!(table, failed, "windows that were computed again do not get there");
            }
            for rows in made {
                writer.append(rows, self.through).await?;
            }
        }
        self.apart.add(&rows).await?;
        Ok(self.own.append(rows, self.through).await?)
    }

    /// Makes the rows visible, those of the table of windows last; what was committed of it, then
    /// of the others, and how many rows tell what others do not get.
    pub(super) async fn commit(
        &mut self,
    ) -> anyhow::Result<(CommitReport, Vec<CommitReport>, u64)> {
        let apart = self.apart.commit().await?;
        let mut others = Vec::new();
        for Further { writer, .. } in &mut self.behind {
            others.push(writer.commit(self.through).await?);
        }
        let report = self.own.commit(self.through).await?;
        if report.version.is_none() {
            // All of it stays: the next process is not to find that out again.
            self.own.mark(self.through).await?;
        }
        Ok((report, others, apart))
    }
}
