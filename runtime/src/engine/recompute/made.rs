//! What the steps between windows and a table behind them make of revisions.
//!
//! A join with a registry gets what the table of the registry's versions had told by the end of
//! the group, which is there when the group is whole: whatever was said later is nothing to it,
//! however much later it runs. If that table has not all that was said, nobody knows what the
//! registry said of a row, and the table behind stays as it is.

use std::collections::BTreeSet;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use futures::TryStreamExt as _;
use tidegate_operators::enrich::EnrichTold;
use tidegate_operators::expression::StatelessStep;
use tidegate_operators::spec::{EnrichSpec, INGEST_TIME, TOLD_TIME, TableSpec};
use tidegate_pipelines::recompute::{Behind, Between};
use tidegate_sql::{Session, TableName};

use super::group::{NAMED_MAX, as_stored, name, text, time};

/// The steps to one table.
pub(super) struct Made<'a>(Vec<Step<'a>>);

enum Step<'a> {
    Stateless(&'a StatelessStep, usize),
    Enrich(Box<Registry<'a>>),
}

impl<'a> Made<'a> {
    /// Of rows of a group that ends then.
    pub(super) fn new(
        session: &'a Session,
        behind: &'a Behind,
        end_us: i64,
    ) -> anyhow::Result<Self> {
        let step = |between: &'a Between| {
            Ok(match between {
                Between::Stateless(step, branch) => Step::Stateless(step, *branch),
                Between::Enrich(spec, versions) => {
                    Step::Enrich(Box::new(Registry::new(session, spec, (versions, end_us))?))
                }
            })
        };
        Ok(Self(behind.path.iter().map(step).collect::<anyhow::Result<_>>()?))
    }

    /// The rows of the table, of rows of the windows, and how many of these could not be used.
    pub(super) async fn rows(
        &mut self,
        rows: RecordBatch,
    ) -> anyhow::Result<(Vec<RecordBatch>, usize)> {
        let (mut all, mut failed) = (vec![rows], 0);
        for step in &mut self.0 {
            let mut next = Vec::with_capacity(all.len());
            for rows in all {
                match step {
                    Step::Stateless(step, branch) => {
                        let mut made = step.apply(&rows)?;
                        next.push(made.branches.swap_remove(*branch));
                        failed += made.failed.len();
                    }
                    Step::Enrich(registry) => {
                        let (joined, refused) = registry.join(&rows).await?;
                        next.extend(joined);
                        failed += refused;
                    }
                }
            }
            all = next;
        }
        Ok((all, failed))
    }
}

/// What a registry had said by the end of a group.
struct Registry<'a> {
    session: &'a Session,
    join: EnrichTold,
    versions: &'a TableSpec,
    /// Number of key columns, which are the first ones.
    keys: usize,
    end_us: i64,
}

impl<'a> Registry<'a> {
    fn new(
        session: &'a Session,
        spec: &EnrichSpec,
        (versions, end_us): (&'a TableSpec, i64),
    ) -> anyhow::Result<Self> {
        let (join, keys) = (EnrichTold::new(spec.clone())?, spec.registry.keys);
        Ok(Self { session, join, versions, keys, end_us })
    }

    async fn join(&mut self, rows: &RecordBatch) -> anyhow::Result<(Vec<RecordBatch>, usize)> {
        let wanted = self.join.wants(rows)?;
        if wanted.first().is_some_and(|key| !key.is_empty()) {
            let mut found = self.session.sql(&self.told(&wanted)).await?.execute_stream().await?;
            while let Some(versions) = found.try_next().await? {
                self.join.tell(&as_stored(&versions, self.versions)?)?;
            }
        }
        Ok(self.join.join(rows)?)
    }

    /// Asks for what was told of keys.
    fn told(&self, wanted: &[ArrayRef]) -> String {
        let fields = self.versions.schema.fields();
        let columns: Vec<String> = fields.iter().map(|f| name(f.name())).collect();
        // Without identity a table shows all rows, and no revisions.
        let revisions = if self.versions.identity.is_empty() { "" } else { "_revisions" };
        let mut sql = format!(
            "SELECT {} FROM {}.{} WHERE coalesce({TOLD_TIME}, {INGEST_TIME}) < {}",
            columns.join(", "),
            name(&self.versions.namespace),
            name(&format!("{}{revisions}", self.versions.name)),
            time(self.end_us),
        );
        for (column, field) in wanted.iter().zip(&fields[..self.keys]) {
            if let Some(values) = named(column) {
                sql += &format!(" AND {} IN ({})", name(field.name()), values.join(", "));
            }
        }
        sql
    }
}

/// The texts of a column of keys, if they are few, so that files and pages of others are not read.
fn named(column: &ArrayRef) -> Option<Vec<String>> {
    if *column.data_type() != DataType::Utf8 {
        return None;
    }
    let values: BTreeSet<&str> = column.as_string::<i32>().iter().flatten().collect();
    // Where it is a partition, an empty text is stored as null.
    let can_be_named = values.len() <= NAMED_MAX && !values.contains("");
    can_be_named.then(|| values.into_iter().map(text).collect())
}

/// The first table of versions on the way to a table that has not all that was told, as `app_id`
/// wrote it: some was deleted, or the table was not there before that.
pub(super) async fn not_whole<'b>(
    session: &Session,
    behind: &'b Behind,
    app_id: impl Fn(&TableSpec) -> String,
) -> anyhow::Result<Option<&'b TableSpec>> {
    for versions in behind.histories() {
        let name = TableName::new(versions.namespace.clone(), versions.name.clone());
        let snapshot = session.table(&name)?.open().await?;
        if snapshot.days_changed(&app_id(versions)).is_none_or(|days| !days.is_empty()) {
            return Ok(Some(versions));
        }
    }
    Ok(None)
}
