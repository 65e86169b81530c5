//! Tables with revisions as people want to see them: the newest revision of each row.
//!
//! A table whose files all have `max(revision) = 0` is scanned as it is. Otherwise only the days
//! that hold a revised row are compared, as long as the day is a function of the identity (the
//! time column is part of it); all others are again scanned as they are. A window whose newest
//! revision has no readings was withdrawn, and is not shown.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::catalog::TableProvider;
use datafusion::catalog::view::ViewTable;
use datafusion::common::{Column, ScalarValue};
use datafusion::datasource::provider_as_source;
use datafusion::error::Result as DfResult;
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::{Expr, ExprFunctionExt, LogicalPlanBuilder, lit};

use super::provider::DeltaProvider;
use crate::delta::DataFile;
use crate::writer::{DAY, IDENTITY_KEY, TIME_KEY};

const REVISION: &str = "revision";
/// Readings of a window; none if the window was withdrawn.
const ROWS: &str = "rows";
const RANK: &str = "__rank";

/// Columns that identify a row of this table up to its revision, `None` if it has no revisions.
fn identity(raw: &DeltaProvider) -> Option<Vec<String>> {
    let text = raw.snapshot().metadata.setting(IDENTITY_KEY)?;
    let names: Vec<String> = serde_json::from_str(text).ok()?;
    let schema = raw.schema();
    let known = |name: &String| schema.index_of(name).is_ok();
    let usable = !names.is_empty() && names.iter().all(known) && known(&REVISION.to_owned());
    usable.then_some(names)
}

fn is_revised(raw: &DeltaProvider, file: &DataFile) -> bool {
    let stats = file.stats(raw.snapshot().schema());
    let max = stats.columns.get(REVISION).and_then(|c| c.max.as_ref());
    // Not knowing is as good as yes.
    !matches!(max, Some(ScalarValue::Int64(Some(max))) if *max <= 0)
}

/// The view of the latest revisions of `raw`, `None` if the table has no revisions at all.
pub(crate) fn latest_revisions(raw: &DeltaProvider) -> DfResult<Option<Arc<dyn TableProvider>>> {
    let Some(identity) = identity(raw) else { return Ok(None) };
    let time = raw.snapshot().metadata.setting(TIME_KEY);
    let day_is_fixed = time.is_some_and(|t| identity.iter().any(|i| i == t));
    let day = |f: &DataFile| f.add.partition_values.get(DAY).cloned().flatten();
    let revised: BTreeSet<Option<String>> =
        raw.snapshot().files().filter(|f| is_revised(raw, f)).map(|f| day(f)).collect();
    if revised.is_empty() {
        return Ok(Some(Arc::new(raw.clone())));
    }
    let (compare, plain) = raw.split(|f| !day_is_fixed || revised.contains(&day(f)));
    let mut plan = deduplicated(compare, &identity)?;
    if plain.has_files() {
        let plain = LogicalPlanBuilder::scan("plain", provider_as_source(Arc::new(plain)), None)?;
        plan = plan.union(plain.build()?)?;
    }
    Ok(Some(Arc::new(ViewTable::new(plan.build()?, None))))
}

fn deduplicated(raw: DeltaProvider, identity: &[String]) -> DfResult<LogicalPlanBuilder> {
    let schema = raw.schema();
    let column = |name: &str| Expr::Column(Column::from_name(name));
    let rank = row_number()
        .partition_by(identity.iter().map(|i| column(i)).collect())
        .order_by(vec![column(REVISION).sort(false, false)])
        .build()?
        .alias(RANK);
    let newest = column(RANK).eq(lit(1_u64));
    let shown = match schema.field_with_name(ROWS) {
        Ok(field) if field.data_type() == &DataType::Int64 => {
            newest.and(column(ROWS).not_eq(lit(0_i64)))
        }
        _ => newest,
    };
    LogicalPlanBuilder::scan("revisions", provider_as_source(Arc::new(raw)), None)?
        .window(vec![rank])?
        .filter(shown)?
        .project(schema.fields().iter().map(|f| column(f.name())))
}
