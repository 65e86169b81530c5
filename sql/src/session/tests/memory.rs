//! Queries at the limits of memory and of what they put on disk: they are right all the same, or
//! say what to do, and the session answers the next one.

use arrow::array::AsArray;
use arrow::datatypes::{Float64Type, Int64Type};
use datafusion::error::DataFusionError;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use futures::StreamExt;

use super::*;
use crate::session::{MEMORY_BYTES_MAX, SPILL_BYTES_MAX, parse, pieces, problems};
use crate::{QuerySummary, query};

/// Rows of the table; made as wide as [`WIDE`], they are nearly twice as much as [`MEMORY`].
const ROWS: i64 = 120_000;
const MEMORY: usize = 32 << 20;
/// Texts of 500 bytes that differ from row to row.
const WIDE: &str = "lpad(CAST(999999 - value AS VARCHAR), 500, 'x')";
/// More than any of these queries puts on disk.
const DISK: u64 = 1 << 30;

async fn session(spill_bytes_max: u64) -> (tempfile::TempDir, Session) {
    let (folder, store) = local();
    write(&store, &spec("t", &many(0, 1)), &[many(0, ROWS)]).await;
    let session = Session::limited(store, MEMORY, spill_bytes_max).unwrap();
    (folder, session)
}

/// How often a plan that has run put something on disk.
fn spills(plan: &dyn ExecutionPlan) -> usize {
    let own = plan.metrics().and_then(|metrics| metrics.spill_count()).unwrap_or(0);
    own + plan.children().iter().map(|child| spills(child.as_ref())).sum::<usize>()
}

/// Runs a query whose rows are shown to `see`; how often it put something on disk.
async fn run(session: &Session, sql: &str, mut see: impl FnMut(&RecordBatch)) -> usize {
    let frame = session.sql(sql).await.unwrap();
    let context = Arc::new(frame.task_ctx());
    let plan = frame.create_physical_plan().await.unwrap();
    let mut rows = execute_stream(Arc::clone(&plan), context).unwrap();
    while let Some(batch) = rows.next().await {
        see(&batch.unwrap_or_else(|error| panic!("{sql}: {error}")));
    }
    spills(plan.as_ref())
}

/// As `tidegate sql` runs it.
async fn shown(session: &Session, sql: &str) -> crate::Result<QuerySummary> {
    let statement = parse(sql).unwrap().pop().unwrap();
    let options = QueryOptions::new("");
    query::execute(session, statement, OutputFormat::Csv, &options, &mut std::io::sink()).await
}

/// What it says to whoever asked too much; then it answers the next query, and nothing is left of
/// the one before.
async fn stopped(session: &Session, sql: &str) -> String {
    let problem = shown(session, sql).await.unwrap_err().to_string();
    for jargon in ["xhausted", "datafusion", "allocat", "Sorter", "HashJoin", "pool", "config"] {
        assert!(!problem.contains(jargon), "{problem}");
    }
    assert!(problem.starts_with("stopped: the statement "), "{problem}");
    assert!(problem.contains("\nAsk for less: fewer days or devices"), "{problem}");
    let mut count = 0;
    let next = "SELECT count(*) FROM plant.t WHERE value >= 7";
    run(session, next, |rows| count += rows.column(0).as_primitive::<Int64Type>().value(0)).await;
    assert_eq!(count, ROWS - 7);
    let runtime = session.context().runtime_env();
    assert_eq!((runtime.memory_pool.reserved(), runtime.disk_manager.used_disk_space()), (0, 0));
    problem
}

#[tokio::test]
async fn a_sort_that_does_not_fit_into_memory_goes_to_disk_and_is_right() {
    let (_folder, session) = session(DISK).await;
    let mut expected = ROWS;
    let sql = format!("SELECT value, {WIDE} AS wide FROM plant.t ORDER BY wide");
    let spills = run(&session, &sql, |rows| {
        for value in rows.column(0).as_primitive::<Float64Type>().values() {
            expected -= 1;
            assert_eq!(*value, expected as f64);
        }
    });
    assert!(spills.await > 0, "it was all in memory");
    assert_eq!(expected, 0, "all rows came");
    let runtime = session.context().runtime_env();
    assert_eq!((runtime.memory_pool.reserved(), runtime.disk_manager.used_disk_space()), (0, 0));
}

#[tokio::test]
async fn an_aggregate_that_does_not_fit_into_memory_goes_to_disk_and_is_right() {
    let (_folder, session) = session(DISK).await;
    let (mut groups, mut sum) = (0, 0.0);
    let sql = format!("SELECT {WIDE} AS wide, count(*), sum(value) FROM plant.t GROUP BY wide");
    let spills = run(&session, &sql, |rows| {
        groups += rows.num_rows() as i64;
        assert!(rows.column(1).as_primitive::<Int64Type>().values().iter().all(|n| *n == 1));
        sum += rows.column(2).as_primitive::<Float64Type>().values().iter().sum::<f64>();
    });
    assert!(spills.await > 0, "it was all in memory");
    assert_eq!((groups, sum), (ROWS, (ROWS * (ROWS - 1) / 2) as f64));
}

#[tokio::test]
async fn what_cannot_go_to_disk_is_stopped_and_says_what_to_do() {
    let (_folder, session) = session(DISK).await;
    let wide = format!("(SELECT value, {WIDE} AS wide FROM plant.t)");
    let join = format!("SELECT count(*) FROM {wide} a JOIN {wide} b ON a.wide = b.wide");
    let list = format!("SELECT cardinality(array_agg({WIDE})) FROM plant.t");
    for sql in [join, list] {
        let problem = stopped(&session, &sql).await;
        assert!(problem.contains("needs more than 32 MiB of memory, besides"), "{problem}");
        assert!(problem.contains("; or give it more: --memory-max SIZE."), "{problem}");
    }
}

#[tokio::test]
async fn what_puts_too_much_on_disk_is_stopped_and_says_what_to_do() {
    let (_folder, session) = session(8 << 20).await;
    let sort = format!("SELECT value, {WIDE} AS wide FROM plant.t ORDER BY wide");
    let group = format!("SELECT {WIDE} AS wide, count(*) FROM plant.t GROUP BY wide");
    for sql in [sort, group] {
        let problem = stopped(&session, &sql).await;
        assert!(problem.contains("puts more than 8 MiB of what does not fit"), "{problem}");
    }
}

#[tokio::test]
async fn a_full_disk_is_named() {
    let (_folder, store) = local();
    let session = Session::over(store, MEMORY).unwrap();
    let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
    let arrow = arrow::error::ArrowError::IoError("spill".into(), full());
    for error in [DataFusionError::IoError(full()), arrow.into()] {
        let limits = session.context().runtime_env();
        let problem = problems::explain_run(error.context("while it sorted"), &limits).to_string();
        assert!(problem.starts_with("stopped: there is no room in /"), "{problem}");
        assert!(problem.contains("TMPDIR"), "{problem}");
    }
}

#[tokio::test]
async fn usual_sessions_have_limits() {
    let (_folder, store) = local();
    let session = Session::over(store, MEMORY_BYTES_MAX).unwrap();
    let runtime = session.context().runtime_env();
    assert_eq!(runtime.disk_manager.max_temp_directory_size(), SPILL_BYTES_MAX);
    let problem = DataFusionError::ResourcesExhausted("anything".into());
    let problem = problems::explain_run(problem, &runtime).to_string();
    assert!(problem.contains("needs more than 1 GiB of memory, besides"), "{problem}");
    assert_eq!(QueryOptions::new("").memory_bytes_max, MEMORY_BYTES_MAX);
}

#[test]
fn every_piece_of_a_query_has_room_to_work_on_disk() {
    for (cores, memory, wanted) in [
        (2, MEMORY_BYTES_MAX, 2),
        (32, MEMORY_BYTES_MAX, 32),
        (128, MEMORY_BYTES_MAX, 32),
        (2, MEMORY, 1),
        (16, 1, 1),
    ] {
        assert_eq!(pieces(cores, memory), wanted, "{cores} cores, {memory} bytes");
    }
}
