//! `tidegate sql "..."`: statements in, formatted results out, nothing collected that can stream.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use datafusion::sql::parser::Statement;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::headings::Headings;
use crate::output::Sink;
use crate::patience::Patience;
use crate::session::parse;
use crate::{Error, OutputFormat, Result, Session, Store, Tables, open_session};

/// File in the data folder that says where the tables are, if they are not in its `tables` folder.
pub const TABLES_URL_FILE: &str = "tables-url";

/// Rows of a result that the table format prints before it cuts.
const ROWS_SHOWN_MAX: usize = 10_000;

/// Time that a statement has if nobody says otherwise: enough to look through a few hundred million
/// rows on a small machine.
const TIME_MAX: Duration = Duration::from_secs(300);

/// Batches that a query may be ahead of its output: enough to overlap the two.
const BATCHES_AHEAD_MAX: usize = 2;

/// Where the tables are and how results are shown.
#[derive(Clone, Debug)]
pub struct QueryOptions {
    /// Data folder of the instance; tables lie in its `tables` folder, the prompt's history in it.
    pub data: PathBuf,
    /// Root of the tables; without it, what the instance noted in its data folder.
    pub tables: Option<String>,
    /// Memory limit of the session, bytes.
    pub memory_bytes_max: usize,
    /// Rows after which the table format is cut.
    pub rows_shown_max: usize,
    /// Time after which a statement is stopped that has not ended, without the time in which its
    /// rows wait for their reader; `None`: never.
    pub time_max: Option<Duration>,
}

impl QueryOptions {
    /// The usual limits for an instance's data folder.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            tables: None,
            memory_bytes_max: Tables::new("").memory_bytes_max,
            rows_shown_max: ROWS_SHOWN_MAX,
            time_max: Some(TIME_MAX),
        }
    }
}

/// What one statement gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuerySummary {
    /// Rows of the result (as far as it was read).
    pub rows: u64,
    /// From planning to the last row.
    pub elapsed: Duration,
    /// False if the table format cut the result.
    pub complete: bool,
}

/// Opens the session that `options` describe.
///
/// # Errors
/// There are no tables yet: the error says what to run first.
pub async fn open(options: &QueryOptions) -> Result<Session> {
    let url = match &options.tables {
        Some(url) => url.clone(),
        None => tables_of(&options.data)?,
    };
    let data = options.data.display();
    let nothing = || {
        Error::Query(format!(
            "there are no tables in `{url}` yet\n\
             Start `tidegate demo --data {data}` or `tidegate run PIPELINE.toml --data {data}` \
             first,\nor say where the tables are with --data or --tables."
        ))
    };
    if Store::local_folder(&url)?.is_some_and(|folder| !folder.is_dir()) {
        return Err(nothing());
    }
    let tables = Tables { url: url.clone(), memory_bytes_max: options.memory_bytes_max };
    let session = open_session(&tables).await?;
    if session.tables().is_empty() {
        return Err(nothing());
    }
    Ok(session)
}

/// Where the tables of an instance are, given its data folder.
///
/// # Errors
/// Its note of that cannot be read.
pub fn tables_of(data: &Path) -> Result<String> {
    match std::fs::read_to_string(data.join(TABLES_URL_FILE)) {
        Ok(url) => Ok(url.trim().to_owned()),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            Ok(data.join("tables").to_string_lossy().into_owned())
        }
        Err(e) => Err(Error::Io(e)),
    }
}

/// Runs the statements of `sql` one after the other and writes their results to `out`. A reader
/// of `out` that goes away ends it without an error.
///
/// # Errors
/// There are no tables, a statement is wrong, would write, or fails; results before it are out.
pub async fn run_query(
    options: &QueryOptions,
    sql: &str,
    format: OutputFormat,
    out: &mut dyn Write,
) -> Result<Vec<QuerySummary>> {
    let statements = parse(sql)?;
    if statements.is_empty() {
        return Err(Error::Query("there is no statement".into()));
    }
    if format == OutputFormat::Parquet && statements.len() > 1 {
        return Err(Error::Query("a Parquet file holds one result: give one statement".into()));
    }
    let session = open(options).await?;
    let mut summaries = Vec::new();
    let mut piped = Piped { out, gone: false };
    for statement in statements {
        match execute(&session, statement, format, options, &mut piped).await {
            Ok(summary) => summaries.push(summary),
            Err(_) if piped.gone => break,
            Err(e) => return Err(e),
        }
    }
    Ok(summaries)
}

/// An output that remembers that its reader went away: some formats make text of that error.
struct Piped<'o> {
    out: &'o mut dyn Write,
    gone: bool,
}

impl Piped<'_> {
    fn noticed<T>(&mut self, result: std::io::Result<T>) -> std::io::Result<T> {
        self.gone |= matches!(&result, Err(e) if e.kind() == ErrorKind::BrokenPipe);
        result
    }
}

impl Write for Piped<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes);
        self.noticed(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let flushed = self.out.flush();
        self.noticed(flushed)
    }
}

/// Runs one statement. Dropping the future cancels it, and so does the end of its time.
pub(crate) async fn execute(
    session: &Session,
    statement: Statement,
    format: OutputFormat,
    options: &QueryOptions,
    out: &mut dyn Write,
) -> Result<QuerySummary> {
    let started = Instant::now();
    let mut patience = Patience::new(options.time_max)?;
    let headings = Headings::of(&statement);
    // Tasks of their own: whoever drops this future need not wait until the planner or an operator
    // yields, and dropping the set stops them.
    let mut planner = JoinSet::new();
    let owned = session.clone();
    planner.spawn(async move {
        let frame = owned.plan(statement).await?;
        let stream = frame.execute_stream().await;
        stream.map_err(|error| owned.explain(error))
    });
    let planned = patience.wait(planner.join_next()).await?;
    let mut stream = planned.expect("one task was spawned")??;
    let schema = headings.over(&stream.schema());
    let mut sink = Sink::new(format, schema, options.rows_shown_max)?;
    let (mut rows, mut complete) = (0, true);
    let (send, mut batches) = mpsc::channel(BATCHES_AHEAD_MAX);
    let mut producer = JoinSet::new();
    producer.spawn(async move {
        while let Some(batch) = stream.next().await {
            if send.send(batch).await.is_err() {
                break;
            }
        }
    });
    while let Some(batch) = patience.wait(batches.recv()).await? {
        let batch = batch.map_err(|error| session.explain(error))?;
        let batch = headings.over_rows(&batch)?;
        rows += batch.num_rows() as u64;
        if !sink.write(&batch, out)? {
            complete = false;
            break;
        }
    }
    drop(batches);
    while let Some(done) = producer.join_next().await {
        // A panic in the query must not look like its end.
        done?;
    }
    sink.finish(out)?;
    Ok(QuerySummary { rows, elapsed: started.elapsed(), complete })
}
