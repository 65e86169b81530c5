//! The history of a registry as what holds now.

use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::catalog::view::ViewTable;
use datafusion::common::Column;
use datafusion::datasource::provider_as_source;
use datafusion::error::Result as DfResult;
use datafusion::functions::datetime::expr_fn::now;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder};
use tidegate_operators::spec::{INGEST_TIME, TOLD_TIME, VALID_FROM, VALID_TO};

/// The view of the versions of `history` that hold now, without when; `None` if it is no history.
pub(crate) fn current(history: Arc<dyn TableProvider>) -> DfResult<Option<Arc<dyn TableProvider>>> {
    let schema = history.schema();
    if [VALID_FROM, VALID_TO, INGEST_TIME].iter().any(|name| schema.index_of(name).is_err()) {
        return Ok(None);
    }
    let column = |name: &str| Expr::Column(Column::from_name(name));
    let begun = column(VALID_FROM).is_null().or(column(VALID_FROM).lt_eq(now()));
    let lasts = column(VALID_TO).is_null().or(column(VALID_TO).gt(now()));
    let hidden = [VALID_TO, "revision", TOLD_TIME];
    let shown = schema.fields().iter().filter(|f| !hidden.contains(&f.name().as_str()));
    let plan = LogicalPlanBuilder::scan("versions", provider_as_source(history), None)?
        .filter(begun.and(lasts))?
        .project(shown.map(|f| column(f.name())))?
        .build()?;
    Ok(Some(Arc::new(ViewTable::new(plan, None))))
}
