//! The session: names, revisions, refusals, helpful errors, formats.

#![allow(clippy::unwrap_used)]

mod lengths;
mod memory;

use std::sync::Arc;

use crate::testing::{DAY_US, START_US, lines, local, many, spec, windows};
use crate::{Error, OutputFormat, QueryOptions, Session, Store, TableName, TableWriter, run_query};
use arrow::array::{RecordBatch, RecordBatchReader};
use arrow::datatypes::SchemaRef;
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;
use tidegate_operators::spec::TableSpec;
use tidegate_operators::system::system_tables;

async fn write(store: &Store, spec: &TableSpec, batches: &[RecordBatch]) {
    let mut writer = TableWriter::open(store, spec, "a".into()).await.unwrap();
    let first = writer.committed_epoch() + 1;
    for (epoch, batch) in (first..).zip(batches) {
        writer.append(batch.clone(), epoch).await.unwrap();
        writer.commit(epoch).await.unwrap();
    }
}

async fn plan(session: &Session, sql: &str) -> String {
    let frame = session.sql(sql).await.unwrap();
    frame.into_optimized_plan().unwrap().display_indent().to_string()
}

async fn error(session: &Session, sql: &str) -> String {
    session.sql(sql).await.unwrap_err().to_string()
}

#[tokio::test]
async fn the_plain_name_shows_the_latest_revision() {
    let (_folder, store) = local();
    let minute = 60_000_000;
    let at = |m: i64| START_US + m * minute;
    let first = windows(&[("a", at(0), 1, 0), ("a", at(1), 2, 0), ("b", at(0), 3, 0)]);
    let spec = spec("per_minute", &first);
    write(&store, &spec, &[first]).await;
    let session = Session::over(store.clone(), 1 << 28).unwrap();
    let all = "SELECT device, n, revision FROM plant.per_minute ORDER BY device, window_start";
    assert!(!plan(&session, all).await.contains("Window"));
    assert_eq!(lines(&store, all).await, ["a 1 0", "a 2 0", "b 3 0"]);

    let other_day = windows(&[("a", START_US + DAY_US, 9, 0)]);
    let revised = windows(&[("a", at(0), 4, 1), ("a", at(0), 5, 2), ("b", at(0), 6, 1)]);
    write(&store, &spec, &[other_day, revised]).await;
    assert_eq!(lines(&store, all).await, ["a 5 2", "a 2 0", "a 9 0", "b 6 1"]);
    assert!(plan(&session, all).await.contains("Window"));
    let raw = "SELECT count(*), sum(n) FROM per_minute_revisions";
    assert_eq!(lines(&store, raw).await, ["7 30"]);
    let filtered = "SELECT n FROM per_minute WHERE device = 'b' AND day = '2026-01-01'";
    assert_eq!(lines(&store, filtered).await, ["6"]);
    assert_eq!(lines(&store, "SELECT count(*) FROM per_minute").await, ["4"]);
}

#[tokio::test]
async fn a_withdrawn_window_is_not_shown() {
    let (_folder, store) = local();
    let with_rows = |rows: &[(&str, i64, i64, i64)]| {
        let windows = windows(rows);
        let columns = ["device", "window_start", "rows", "revision"].into_iter();
        RecordBatch::try_from_iter(columns.zip(windows.columns().iter().cloned())).unwrap()
    };
    let (one, other) = (START_US, START_US + 60_000_000);
    let first = with_rows(&[("a", one, 1, 0), ("a", other, 2, 0), ("b", one, 3, 0)]);
    let spec = spec("sessions", &first);
    write(&store, &spec, &[first, with_rows(&[("a", one, 3, 1), ("a", other, 0, 1)])]).await;
    let all = "SELECT device, rows, revision FROM sessions ORDER BY device";
    assert_eq!(lines(&store, all).await, ["a 3 1", "b 3 0"]);
    let raw = "SELECT count(*) FROM sessions_revisions";
    assert_eq!(lines(&store, raw).await, ["5"]);
}

#[tokio::test]
async fn names_resolve_and_new_tables_appear() {
    let (_folder, store) = local();
    let session = Session::over(store.clone(), 1 << 28).unwrap();
    let mut readings = spec("readings", &many(0, 1));
    write(&store, &readings, &[many(0, 3)]).await;
    session.sql("SELECT * FROM readings").await.unwrap();
    session.sql("SELECT * FROM tidegate.plant.readings").await.unwrap();
    readings.namespace = "other".into();
    write(&store, &readings, &[many(0, 4)]).await;
    let problem = error(&session, "SELECT * FROM readings").await;
    assert!(problem.contains("`other.readings` or `plant.readings`"), "{problem}");
    assert_eq!(lines(&store, "SELECT count(*) FROM other.readings").await, ["4"]);
    let names = [TableName::new("other", "readings"), TableName::new("plant", "readings")];
    assert_eq!(session.tables(), names);
    let shown = "SELECT table_schema FROM information_schema.tables WHERE table_name = 'readings'";
    assert_eq!(lines(&store, &format!("{shown} ORDER BY 1")).await, ["other", "plant"]);
    let cte = "WITH x AS (SELECT 1 AS one) SELECT one FROM x";
    assert_eq!(lines(&store, cte).await, ["1"]);
}

#[tokio::test]
async fn tables_of_the_engine_are_there_before_they_have_a_row() {
    let (_folder, store) = local();
    let session = Session::over(store.clone(), 1 << 28).unwrap();
    write(&store, &spec("readings", &many(0, 1)), &[many(0, 3)]).await;
    assert!(session.sql("SELECT * FROM system.alerts").await.is_err(), "not of any folder");
    let table = |name: &str, schema: &SchemaRef| TableSpec {
        namespace: "system".into(),
        partition: Vec::new(),
        sort: Vec::new(),
        ..spec(name, &RecordBatch::new_empty(Arc::clone(schema)))
    };
    let all = system_tables();
    let (first, schema) = &all[0];
    write(&store, &table(first, schema), &[]).await;
    for (name, schema) in &all[1..] {
        let asked = format!("SELECT * FROM system.{name}");
        let plain = format!("SELECT count(*) FROM {name}");
        assert_eq!(lines(&store, &plain).await, ["0"], "{name}");
        let empty = session.sql(&asked).await.unwrap();
        write(&store, &table(name, schema), &[]).await;
        let there = session.sql(&asked).await.unwrap();
        assert_eq!(empty.schema().as_arrow(), there.schema().as_arrow(), "{name}");
    }
    assert_eq!(session.tables().len(), 1 + all.len(), "then they are real");
}

#[tokio::test]
async fn nothing_can_be_written() {
    let (folder, store) = local();
    write(&store, &spec("t", &many(0, 1)), &[many(0, 3)]).await;
    let session = Session::over(store.clone(), 1 << 28).unwrap();
    let copy = format!("COPY plant.t TO '{}/x.parquet'", folder.path().display());
    for sql in [
        "CREATE TABLE x AS SELECT 1",
        "CREATE VIEW x AS SELECT 1",
        "CREATE SCHEMA x",
        "CREATE EXTERNAL TABLE x STORED AS PARQUET LOCATION '/etc'",
        "DROP TABLE plant.t",
        "INSERT INTO plant.t SELECT * FROM plant.t",
        "DELETE FROM plant.t",
        "UPDATE plant.t SET value = 1",
        "SET datafusion.execution.batch_size = 1",
        copy.as_str(),
        "EXPLAIN ANALYZE INSERT INTO plant.t SELECT * FROM plant.t",
    ] {
        let problem = error(&session, sql).await;
        assert!(problem.contains("refused: this session only reads"), "{sql}: {problem}");
    }
    assert!(!folder.path().join("x.parquet").exists());
    assert_eq!(lines(&store, "SELECT count(*) FROM plant.t").await, ["3"]);
}

#[tokio::test]
async fn errors_name_what_is_close() {
    let (_folder, store) = local();
    write(&store, &spec("readings", &many(0, 1)), &[many(0, 3)]).await;
    let session = Session::over(store.clone(), 1 << 28).unwrap();
    let problem = error(&session, "SELECT * FROM reading").await;
    assert!(problem.contains("did you mean `readings`?"), "{problem}");
    assert!(problem.contains("tables: plant.readings"), "{problem}");
    write(&store, &spec("per_day", &windows(&[])), &[windows(&[("a", START_US, 1, 0)])]).await;
    let problem = error(&session, "SELECT * FROM per_day_revision").await;
    let wanted = "unknown table `per_day_revision`; did you mean `per_day_revisions`?\n\
                  tables: plant.per_day, plant.per_day_revisions, plant.readings";
    assert_eq!(problem, wanted);
    let problem = error(&session, "SELECT valu FROM readings").await;
    let wanted = "unknown column `valu` of readings; did you mean `value`?\n\
                  columns: device, time, value";
    assert!(problem.starts_with(wanted), "{problem}");
    let from = "FROM readings a JOIN plant.readings b ON a.time = b.time";
    for (select, wanted) in [
        ("a.valu", "unknown column `valu` of a; did you mean `value`?\ncolumns: device, time"),
        ("valu", "unknown column `valu`; did you mean `a.value`?\ncolumns of a: device, time"),
        ("c.value", "no table `c` is in FROM\ntables in FROM: a, b"),
        ("value", "several tables have a column `value`: write `a.value` or `b.value`"),
        ("\"x\"", "unknown column `x`; text is in single quotes: 'x'\ncolumns of a: device"),
    ] {
        let problem = error(&session, &format!("SELECT {select} {from}")).await;
        assert!(problem.starts_with(wanted), "{select}: {problem}");
    }
    assert!(error(&session, "SELEC 1").await.contains("not valid SQL"));
    let problem = error(&session, "SELECT device, top FROM readings").await;
    let wanted = "; a name that is a word of SQL is in double quotes: \"top\"";
    assert!(problem.ends_with(wanted), "{problem}");
    assert!(!error(&session, "SELECT 1 FROM readings FROM x").await.contains("quotes"));
    assert!(error(&session, "").await.contains("exactly one"));
}

#[tokio::test]
async fn aggregates_for_time_series_are_there() {
    let (_folder, store) = local();
    write(&store, &spec("readings", &many(0, 15)), &[many(0, 8), many(8, 7)]).await;
    // The readings of device-0 are 7 s apart.
    let gaps = "SELECT unnest(resample_linear(value, time, INTERVAL '1 second')) AS p \
                FROM readings WHERE device = 'device-0'";
    let filled = format!("SELECT count(*), sum(p['value']), max(p['time']) FROM ({gaps})");
    assert_eq!(lines(&store, &filled).await, ["15 105.0 2026-01-01T00:00:14Z"]);
    let grouped = "SELECT device, twa(value, time) FROM readings GROUP BY 1 ORDER BY 1 LIMIT 1";
    assert_eq!(lines(&store, grouped).await, ["device-0 3.5"]);
    let whole = "SELECT last(value, time), increase(value, time) FROM readings";
    assert_eq!(lines(&store, whole).await, ["14.0 14.0"]);
    let running = "SELECT sum(l) FROM (SELECT last(value, time) OVER (ORDER BY time) AS l \
                   FROM readings)";
    assert_eq!(lines(&store, running).await, ["105.0"]);
    let known = "SELECT DISTINCT syntax_example FROM information_schema.routines \
                 WHERE routine_name = 'twa'";
    assert_eq!(lines(&store, known).await, ["twa(value, time [, until])"]);
    let session = Session::over(store, 1 << 28).unwrap();
    let problem = error(&session, "SELECT twa(value) FROM readings").await;
    let wanted = "`twa` takes (value, time [, until]), but was given (number)";
    assert_eq!(problem, wanted);
}

async fn run(options: &QueryOptions, sql: &str, format: OutputFormat) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    run_query(options, sql, format, &mut out).await?;
    Ok(out)
}

#[tokio::test]
async fn errors_are_in_the_words_of_a_query() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("tables").to_str().unwrap()).unwrap();
    write(&store, &spec("t", &many(0, 1)), &[many(0, 30)]).await;
    let options = QueryOptions::new(folder.path());
    for (sql, wanted) in [
        ("SELECT avgg(value) FROM t", "unknown function `avgg`; did you mean `avg`?"),
        ("SELECT averge(value) FROM t", "unknown function `averge`; did you mean `avg`?"),
        ("SELECT SUMM(value) FROM t", "unknown function `summ`; did you mean `sum`?"),
        ("SELECT stdev(value) FROM t", "unknown function `stdev`; did you mean `stddev`?"),
        ("SELECT quux_frobnicate(value) FROM t", "unknown function `quux_frobnicate`"),
        (
            "SELECT time_bucket('5 minutes', time) FROM t",
            "unknown function `time_bucket`; did you mean `date_bin`?",
        ),
        (
            "SELECT device, max(value) FROM t",
            "column `device` must be in GROUP BY, or inside an aggregate: max(device)",
        ),
        (
            "SELECT value + device FROM t",
            "number + text cannot be computed; CAST(... AS ...) converts",
        ),
        (
            "SELECT * FROM t WHERE time > 5",
            "time > whole number cannot be compared; \
             a time is written '2026-01-01T00:00:00Z'",
        ),
        (
            "SELECT * FROM t WHERE time > 'yesterday'",
            "'yesterday' is no time; a time is written '2026-01-01T00:00:00Z'",
        ),
        ("SELECT * FROM t WHERE value = 'warm'", "'warm' is no number"),
        ("SELECT CAST(device AS DOUBLE) FROM t", "'device-0' is no number"),
        (
            "SELECT sum(device) FROM t",
            "there is no sum(text); there is sum(number), sum(whole number), sum(length of time)",
        ),
        ("SELECT 1 / (value - value)::int FROM t", "division by zero"),
        ("SELECT * FROM a.b.c.d.e", "Unsupported compound identifier 'a.b.c.d.e'. Expected 1, 2"),
    ] {
        let problem = run(&options, sql, OutputFormat::Csv).await.unwrap_err().to_string();
        assert!(problem.starts_with(wanted), "{sql}: {problem}");
        assert!(!problem.contains('\n'), "{sql}: {problem}");
    }
}

#[tokio::test]
async fn results_have_the_headings_of_the_query() {
    let (folder, store) = local();
    write(&store, &spec("t", &many(0, 1)), &[many(0, 2)]).await;
    let mut options = QueryOptions::new(folder.path());
    options.tables = Some(folder.path().to_str().unwrap().to_owned());
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let sql = "SELECT 1, time + INTERVAL '1 day' - time, max(value) FROM t \
               GROUP BY ALL ORDER BY max(value)";
    let csv = text(run(&options, sql, OutputFormat::Csv).await.unwrap());
    assert!(csv.starts_with("1,time + INTERVAL '1 day' - time,max(value)\n1,"), "{csv}");
    let json = text(run(&options, "SELECT 1 + 1 FROM t", OutputFormat::Json).await.unwrap());
    assert_eq!(json, "{\"1 + 1\":2}\n{\"1 + 1\":2}\n");
    let table = text(run(&options, sql, OutputFormat::Table).await.unwrap());
    assert!(table.contains("| 1 day 00:00:00 "), "{table}");
    let parquet = run(&options, "SELECT 1 + 1", OutputFormat::Parquet).await.unwrap();
    let rows = ParquetRecordBatchReader::try_new(bytes::Bytes::from(parquet), 10).unwrap();
    assert_eq!(rows.schema().field(0).name(), "1 + 1");
}

#[tokio::test]
async fn results_are_written_in_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = QueryOptions::new(folder.path());
    let problem = run(&options, "SELECT 1", OutputFormat::Csv).await.unwrap_err().to_string();
    assert!(problem.contains("tidegate demo --data"), "{problem}");
    let store = Store::open(folder.path().join("tables").to_str().unwrap()).unwrap();
    let problem = run(&options, "SELECT 1", OutputFormat::Csv).await.unwrap_err().to_string();
    assert!(problem.contains("tidegate demo --data"), "{problem}");
    write(&store, &spec("t", &many(0, 1)), &[many(0, 30)]).await;

    let two = "SELECT device, time, value, array_agg(value) OVER () IS NULL AS x, [1, 2] AS l \
               FROM t ORDER BY time LIMIT 1";
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    let json = text(run(&options, two, OutputFormat::Json).await.unwrap());
    let line =
        r#"{"device":"device-0","time":"2026-01-01T00:00:00Z","value":0.0,"x":false,"l":[1,2]}"#;
    assert_eq!(json, format!("{line}\n"));
    let csv = text(run(&options, two, OutputFormat::Csv).await.unwrap());
    let line = "device-0,2026-01-01T00:00:00Z,0.0,false,\"[1, 2]\"";
    assert_eq!(csv, format!("device,time,value,x,l\n{line}\n"));
    let none = "SELECT device FROM t WHERE false; SELECT 2 AS b";
    assert_eq!(text(run(&options, none, OutputFormat::Csv).await.unwrap()), "device\nb\n2\n");
    let parquet = run(&options, "SELECT * FROM t", OutputFormat::Parquet).await.unwrap();
    let reader = ParquetRecordBatchReader::try_new(bytes::Bytes::from(parquet), 1024);
    assert_eq!(reader.unwrap().map(|b| b.unwrap().num_rows()).sum::<usize>(), 30);
    assert!(run(&options, none, OutputFormat::Parquet).await.is_err());

    options.rows_shown_max = 10;
    let table = text(run(&options, "SELECT * FROM t", OutputFormat::Table).await.unwrap());
    assert_eq!(table.lines().filter(|l| l.contains("device-")).count(), 10);
    assert!(table.contains("Only the first 10 rows are shown"));
    let exact = run(&options, "SELECT * FROM t LIMIT 10", OutputFormat::Table).await.unwrap();
    assert!(!text(exact).contains("Only the first"));
}

// On more than one thread, as the command runs them: what is stopped may hold its own up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_takes_too_long_is_stopped_and_the_next_one_runs() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("tables").to_str().unwrap()).unwrap();
    write(&store, &spec("t", &many(0, 1)), &[many(0, 3_000)]).await;
    let mut options = QueryOptions::new(folder.path());
    options.time_max = Some(std::time::Duration::from_millis(200));
    // Hours of work in small steps, none of which comes out before the end.
    let endless = "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL \
                   SELECT n + 1 FROM r WHERE n < 1000000000) SELECT count(*) FROM r";
    for format in [OutputFormat::Csv, OutputFormat::Table] {
        let mut out = Vec::new();
        let ended = run_query(&options, endless, format, &mut out).await;
        let problem = ended.unwrap_err().to_string();
        assert!(problem.contains("took longer than 0.2 s"), "{problem}");
    }
    options.time_max = None;
    let mut out = Vec::new();
    run_query(&options, "SELECT count(*) AS n FROM t", OutputFormat::Csv, &mut out).await.unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), "n\n3000\n");
}

#[tokio::test]
async fn what_follows_is_distinct_from_is_no_part_of_it() {
    let (_folder, store) = local();
    for (text, wanted) in [
        ("SELECT true IS DISTINCT FROM true OR true", "true"),
        ("SELECT true IS DISTINCT FROM (true OR true)", "false"),
        ("SELECT 1 WHERE NOT true IS NOT DISTINCT FROM false AND true", "1"),
        ("WITH t AS (SELECT 1 IS DISTINCT FROM 1 OR true AS x) SELECT x FROM t", "true"),
    ] {
        assert_eq!(lines(&store, text).await, [wanted], "{text}");
    }
    let plan = lines(
        &store,
        "EXPLAIN SELECT n IS DISTINCT FROM 1 OR b FROM \
                              (VALUES (1, true), (2, false)) AS t(n, b)",
    )
    .await;
    assert!(plan[0].contains("IS DISTINCT FROM Int64(1) OR"), "{plan:?}");
}

/// An output whose reader has seen enough.
struct Closed;

impl std::io::Write for Closed {
    fn write(&mut self, _bytes: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("tables").to_str().unwrap()).unwrap();
    write(&store, &spec("t", &many(0, 1)), &[many(0, 30)]).await;
    let options = QueryOptions::new(folder.path());
    for format in [OutputFormat::Csv, OutputFormat::Json, OutputFormat::Table] {
        let ended = run_query(&options, "SELECT * FROM t", format, &mut Closed).await;
        assert!(ended.is_ok_and(|done| done.is_empty()), "{format:?}");
    }
    // Another error stays one.
    let wrong = run_query(&options, "SELECT x FROM t", OutputFormat::Csv, &mut Closed).await;
    assert!(wrong.is_err());
}

/// Against an S3 server: `TIDEGATE_TEST_S3_ENDPOINT=http://127.0.0.1:PORT`, with the bucket
/// `tidegate-test` and any credentials in the usual `AWS_*` variables.
#[tokio::test]
async fn tables_work_on_s3() {
    let Ok(endpoint) = std::env::var("TIDEGATE_TEST_S3_ENDPOINT") else {
        eprintln!("skipped: TIDEGATE_TEST_S3_ENDPOINT is not set");
        return;
    };
    let s3 = object_store::aws::AmazonS3Builder::from_env()
        .with_endpoint(endpoint)
        .with_allow_http(true)
        .with_bucket_name("tidegate-test")
        .build()
        .unwrap();
    let now = chrono::Utc::now().timestamp_nanos_opt().unwrap();
    let prefixed = object_store::prefix::PrefixStore::new(s3, format!("run-{now}"));
    let store = Store::from_objects(Arc::new(prefixed), "s3://tidegate-test");
    let spec = spec("t", &many(0, 1));
    let mut a = TableWriter::open(&store, &spec, "a".into()).await.unwrap();
    let mut b = TableWriter::open(&store, &spec, "b".into()).await.unwrap();
    for epoch in 1..=10 {
        a.append(many(0, 10), epoch).await.unwrap();
        b.append(many(0, 10), epoch).await.unwrap();
        let (ra, rb) = tokio::join!(a.commit(epoch), b.commit(epoch));
        assert_ne!(ra.unwrap().version, rb.unwrap().version);
    }
    assert_eq!(lines(&store, "SELECT count(*), sum(value) FROM t").await, ["200 900.0"]);
    let a = TableWriter::open(&store, &spec, "a".into()).await.unwrap();
    assert_eq!(a.committed_epoch(), 10);
}
