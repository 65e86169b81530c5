//! The SQL session: all tables below one root, read-only, with bounded memory.
//!
//! Reading is all it does: a statement that would change anything is refused before it runs.

mod catalog;
mod distinct;
mod json;
pub(crate) mod problems;
#[cfg(test)]
mod tests;
mod wording;

use std::path::PathBuf;
use std::sync::Arc;

use datafusion::common::TableReference;
use datafusion::error::DataFusionError;
use datafusion::execution::FunctionRegistry;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::prelude::{DataFrame, SQLOptions, SessionConfig, SessionContext};
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;
use tidegate_operators::aggregate::time_series;
use tidegate_operators::parts;
use tidegate_pipelines::planner::precedence::regroup;

use crate::reader::objects_url;
use crate::{DeltaTable, Error, Result, Store};
use catalog::TableCatalog;
use distinct::CountBytes;

pub use catalog::TableName;

/// The one catalog of a session.
const CATALOG: &str = "tidegate";

/// The schema that shows every table whose name is unique.
pub(crate) const PUBLIC: &str = "public";

/// Memory of a session beyond which sorts, joins and aggregates spill to disk or fail: 1 GiB.
const MEMORY_BYTES_MAX: usize = 1 << 30;

/// Disk of a session, in the system's folder for temporary files, for what does not fit into that:
/// a query that fills the disk would stop whoever acknowledges messages on it. 10 GiB.
const SPILL_BYTES_MAX: u64 = 10 << 30;

/// Memory of each piece of a query: a sort that is on disk takes 10 MiB to be merged, and batches
/// of rows have to fit in besides. With less, more cores would have queries fail.
const PIECE_BYTES_MIN: usize = 32 << 20;

/// Which tables a session reads, and what it may use.
#[derive(Clone, Debug)]
pub struct Tables {
    /// Root of the tables, see [`Store::open`].
    pub url: String,
    /// Limit of the memory of all queries together, bytes.
    pub memory_bytes_max: usize,
}

impl Tables {
    /// The tables below `url` with the usual limits.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), memory_bytes_max: MEMORY_BYTES_MAX }
    }
}

/// A read-only SQL session over the tables below one root.
#[derive(Clone)]
pub struct Session {
    context: SessionContext,
    catalog: Arc<TableCatalog>,
}

/// Opens a session. Tables that appear later are found by later queries.
///
/// # Errors
/// The root cannot be read.
pub async fn open_session(tables: &Tables) -> Result<Session> {
    let session = Session::over(Store::open(&tables.url)?, tables.memory_bytes_max)?;
    session.refresh().await?;
    Ok(session)
}

impl Session {
    /// A session over an open store. [`Session::refresh`] before listing tables.
    ///
    /// # Errors
    /// The memory limit cannot be set up.
    pub fn over(store: Store, memory_bytes_max: usize) -> Result<Self> {
        Self::limited(store, memory_bytes_max, SPILL_BYTES_MAX)
    }

    /// [`Session::over`] with another limit of what queries put on disk.
    pub(crate) fn limited(
        store: Store,
        memory_bytes_max: usize,
        spill_bytes_max: u64,
    ) -> Result<Self> {
        let runtime = RuntimeEnvBuilder::new().with_max_temp_directory_size(spill_bytes_max);
        Self::with(store, memory_bytes_max, runtime)
    }

    /// [`Session::over`] with sorts that spill into `dir`, which is made when it is needed, and not
    /// into the system's folder for temporary files.
    ///
    /// # Errors
    /// As [`Session::over`].
    pub fn spilling_into(store: Store, memory_bytes_max: usize, dir: PathBuf) -> Result<Self> {
        Self::with(store, memory_bytes_max, RuntimeEnvBuilder::new().with_temp_file_path(dir))
    }

    fn with(store: Store, memory_bytes_max: usize, runtime: RuntimeEnvBuilder) -> Result<Self> {
        let config = SessionConfig::new();
        let pieces = pieces(config.target_partitions(), memory_bytes_max);
        let config = config
            .with_target_partitions(pieces)
            .with_default_catalog_and_schema(CATALOG, PUBLIC)
            .with_create_default_catalog_and_schema(false)
            .with_information_schema(true);
        let pool = Arc::new(FairSpillPool::new(memory_bytes_max));
        let runtime = runtime.with_memory_pool(pool).build_arc()?;
        let date_part = parts::date_part(datafusion::functions::datetime::date_part());
        let state = SessionStateBuilder::new()
            .with_config(config)
            .with_runtime_env(runtime)
            .with_expr_planners(vec![parts::extract(Arc::clone(&date_part))])
            .with_default_features();
        let context = SessionContext::new_with_state(state.build());
        context.register_udf(Arc::unwrap_or_clone(date_part));
        for function in time_series() {
            context.register_udaf(Arc::unwrap_or_clone(function));
        }
        context.state_ref().write().register_function_rewrite(Arc::new(CountBytes))?;
        json::register(&mut *context.state_ref().write())?;
        context.register_object_store(objects_url().as_ref(), Arc::clone(store.objects()));
        let catalog = Arc::new(TableCatalog::new(store));
        context.register_catalog(CATALOG, Arc::<TableCatalog>::clone(&catalog));
        Ok(Self { context, catalog })
    }

    /// With queries that run in one piece each, whatever cores there are: every piece of a sort
    /// sets memory aside, so that on many cores little memory would be too little.
    #[must_use]
    pub fn on_one_core(self) -> Self {
        let state = self.context.state_ref();
        state.write().config_mut().options_mut().execution.target_partitions = 1;
        self
    }

    /// DataFusion's context, for servers and for functions to be registered. It does not refuse
    /// statements that write; [`Session::sql`] does.
    pub fn context(&self) -> &SessionContext {
        &self.context
    }

    /// An error of a query that ran, as a person wants it.
    pub(crate) fn explain(&self, error: DataFusionError) -> Error {
        problems::explain_run(error, &self.context.runtime_env())
    }

    /// Looks for tables that appeared or vanished.
    ///
    /// # Errors
    /// The root cannot be listed.
    pub async fn refresh(&self) -> Result<()> {
        self.catalog.refresh().await
    }

    /// All tables as of the last refresh, in order of their names.
    pub fn tables(&self) -> Vec<TableName> {
        self.catalog.tables()
    }

    /// Tables of the engine that are not among them, as nothing was written to them: whoever asks
    /// finds them without rows.
    pub(crate) fn empty(&self) -> Vec<TableName> {
        self.catalog.empty()
    }

    /// Further names of a table's rows, which are no tables of their own, each with what it shows.
    ///
    /// # Errors
    /// The table cannot be read.
    pub(crate) async fn others(&self, name: &TableName) -> Result<Vec<(TableName, &'static str)>> {
        self.catalog.others(name).await
    }

    /// A table by its full name.
    ///
    /// # Errors
    /// The name cannot be one of a table.
    pub fn table(&self, name: &TableName) -> Result<Arc<DeltaTable>> {
        self.catalog.delta(name)
    }

    /// Plans one query.
    ///
    /// # Errors
    /// There is not exactly one statement, it is wrong, or it would write.
    pub async fn sql(&self, sql: &str) -> Result<DataFrame> {
        let mut statements = parse(sql)?;
        match (statements.pop(), statements.is_empty()) {
            (Some(statement), true) => self.plan(statement).await,
            _ => Err(Error::Query("give exactly one statement".into())),
        }
    }

    /// Plans one parsed statement, after a look for new tables.
    ///
    /// # Errors
    /// It is wrong (the error names what is close), or it would write.
    pub(crate) async fn plan(&self, statement: Statement) -> Result<DataFrame> {
        check_reading(&statement)?;
        self.refresh().await?;
        let statement = match statement.to_string() == "SHOW TABLES" {
            true => parse(&self.show_tables().await)?.pop().expect("it is one statement"),
            false => statement,
        };
        let state = self.context.state();
        let text = statement.to_string();
        let explain = |error| problems::explain_with(error, &text, &state);
        for reference in state.resolve_table_references(&statement).map_err(explain)? {
            self.check_table(&reference).await?;
        }
        let plan = state.statement_to_plan(statement).await.map_err(explain)?;
        let reading = SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false);
        // Statements can hide in others (EXPLAIN ANALYZE, WITH): the plan tells them all.
        reading.verify_plan(&plan).map_err(|e| problems::refused(&e.strip_backtrace()))?;
        Ok(DataFrame::new(state, plan))
    }

    /// What `SHOW TABLES` asks: the names that `\d` lists, of tables that cannot be read as well.
    async fn show_tables(&self) -> String {
        let names = self.names().await;
        let quoted = |name: &TableName| format!("('{}')", name.to_string().replace('\'', "''"));
        let rows: Vec<String> = names.iter().map(quoted).collect();
        match rows.is_empty() {
            true => "SELECT '' AS \"table\" WHERE false".to_owned(),
            false => {
                let rows = rows.join(", ");
                format!("SELECT column1 AS \"table\" FROM (VALUES {rows}) ORDER BY 1")
            }
        }
    }

    /// All names that can be asked for.
    async fn names(&self) -> Vec<TableName> {
        let mut names = Vec::new();
        for table in self.tables() {
            let others = self.others(&table).await.unwrap_or_default();
            names.push(table);
            names.extend(others.into_iter().map(|(name, _)| name));
        }
        names.extend(self.empty());
        names
    }

    async fn check_table(&self, reference: &TableReference) -> Result<()> {
        let schema = reference.schema().unwrap_or(PUBLIC);
        if schema == "information_schema" || reference.catalog().is_some_and(|c| c != CATALOG) {
            return Ok(());
        }
        match self.catalog.find(schema, reference.table()).await? {
            Some(_) => Ok(()),
            None => Err(problems::unknown_table(reference, &self.names().await)),
        }
    }
}

/// In how many pieces a query runs: on all cores, as far as each piece has the memory that it needs
/// to do its work on disk.
fn pieces(cores: usize, memory_bytes_max: usize) -> usize {
    cores.min(memory_bytes_max / PIECE_BYTES_MIN).max(1)
}

/// Refuses by its first word what is not a question, before its table names are looked up.
fn check_reading(statement: &Statement) -> Result<()> {
    let reads = match statement {
        Statement::Statement(inner) => matches!(
            inner.as_ref(),
            SqlStatement::Query(_)
                | SqlStatement::Explain { .. }
                | SqlStatement::ExplainTable { .. }
                | SqlStatement::ShowTables { .. }
                | SqlStatement::ShowColumns { .. }
                | SqlStatement::ShowFunctions { .. }
                | SqlStatement::ShowVariable { .. }
        ),
        Statement::Explain(explain) => return check_reading(&explain.statement),
        _ => false,
    };
    let text = statement.to_string();
    let first = text.split_whitespace().next().unwrap_or("this");
    if reads { Ok(()) } else { Err(problems::refused(first)) }
}

/// The statements of `sql`, separated by `;`.
pub(crate) fn parse(sql: &str) -> Result<Vec<Statement>> {
    let statements = DFParser::parse_sql(sql).map_err(|error| problems::explain(error, sql))?;
    let mut statements: Vec<Statement> = statements.into();
    statements.iter_mut().for_each(regroup_all);
    Ok(statements)
}

/// Puts right how closely operators bind.
fn regroup_all(statement: &mut Statement) {
    match statement {
        Statement::Statement(inner) => regroup(inner.as_mut()),
        Statement::Explain(explain) => regroup_all(&mut explain.statement),
        // They are refused.
        _ => {}
    }
}
