//! How a run ends that cannot go on: with an error that says why, and never by waiting for ever.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use tidegate_operators::Tick;

use super::feed::{FeedQueue, InFlight};
use super::*;
use crate::engine::feed::IN_FLIGHT_EPOCHS_MAX;

/// Longer than any of these runs takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn plan(path: &Path) -> Plan {
    let text = format!(
        r#"
        name = "p"
        [source]
        type = "file"
        path = "{}"
        [reading]
        device = "device"
        time = "ts"
        [reading.fields]
        v = "float64"
        [[step]]
        name = "twice"
        type = "derive"
        set = {{ w = "v * 2" }}
        [[step]]
        name = "seconds"
        type = "window"
        from = "twice"
        every = "1s"
        select = {{ total = "sum(w)" }}
        [[table]]
        from = "twice"
        [[table]]
        from = "seconds"
        "#,
        path.display()
    );
    tidegate_pipelines::load(&[("p.toml".into(), text)], &|_, _| Err(String::new())).unwrap()
}

/// A file of more epochs than the queues between the parts hold without waiting.
fn big_file(folder: &Path) -> PathBuf {
    let path = folder.join("readings.ndjson");
    let mut text = String::new();
    for i in 0..120_000 {
        let pad = "x".repeat(120);
        writeln!(text, r#"{{"device": "d{}", "ts": {i}, "v": {i}, "p": "{pad}"}}"#, i % 9).unwrap();
    }
    std::fs::write(&path, text).unwrap();
    path
}

async fn ends(plan: Plan, data: &Path) -> anyhow::Result<Report> {
    let options = EngineOptions { workers: 2, ..EngineOptions::new(data) };
    let run = async {
        let mut engine = Engine::start(plan, options).await?;
        let ended = engine.ended().await;
        let report = engine.shutdown().await?;
        ended.map(|()| report)
    };
    tokio::time::timeout(PATIENCE, run).await.expect("it ended")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_that_fails_ends_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = big_file(folder.path());
    let mut broken = plan(&path);
    // A schema that the step does not make: nothing that planning lets through.
    broken.pipelines[0].steps[0].output =
        Arc::new(Schema::new(vec![Field::new("other", DataType::Boolean, false)]));
    let error = ends(broken, &folder.path().join("data")).await.unwrap_err().to_string();
    assert!(error.starts_with("p/twice: "), "{error}");
    let report = ends(plan(&path), &folder.path().join("data")).await.unwrap();
    assert_eq!(report.stats.readings, 120_000, "and the same file is read when that is mended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let path = folder.path().join("readings.ndjson");
    let error = format!("{:#}", ends(plan(&path), &data).await.unwrap_err());
    assert!(error.contains("readings.ndjson") && error.contains("No such file"), "{error}");
    std::fs::create_dir(&path).unwrap();
    let error = format!("{:#}", ends(plan(&path), &data).await.unwrap_err());
    assert!(error.contains("readings.ndjson") && error.contains("no file"), "{error}");
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    assert_eq!(ends(plan(&path), &data).await.unwrap().stats.readings, 0);
    std::fs::write(&path, "\n\n{\"device\": \"a\", \"ts\": 1, \"v\": 1}").unwrap();
    for _ in 0..2 {
        assert_eq!(ends(plan(&path), &data).await.unwrap().stats.readings, 1);
    }
    std::fs::write(&path, "{\"device\": \"a\", \"ts\": 1, \"v\": 1, \"more\": 1}").unwrap();
    let error = format!("{:#}", ends(plan(&path), &data).await.unwrap_err());
    assert!(error.contains("readings.ndjson has changed since it was read"), "{error}");
}

/// What is in no table is as if the tables had been removed, but only when the process starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_give_no_row_are_read_once() {
    let folder = tempfile::tempdir().unwrap();
    let (data, input) = (folder.path().join("data"), folder.path().join("in"));
    std::fs::create_dir(&input).unwrap();
    let text = format!(
        r#"
        name = "p"
        [source]
        type = "file"
        path = "{}/*.ndjson"
        [reading]
        device = "device"
        time = "ts"
        [reading.fields]
        v = "float64"
        [[step]]
        name = "high"
        type = "filter"
        where = "v > 5"
        [[table]]
        from = "high"
        "#,
        input.display()
    );
    let plan = || {
        let files = [("p.toml".into(), text.clone())];
        tidegate_pipelines::load(&files, &|_, _| Err(String::new())).unwrap()
    };
    let line = |v: i64| format!("{{\"device\": \"a\", \"ts\": {v}, \"v\": {v}}}\n");
    std::fs::write(input.join("1.ndjson"), line(1) + &line(2)).unwrap();
    for _ in 0..2 {
        assert_eq!(ends(plan(), &data).await.unwrap().stats.readings, 2);
    }
    std::fs::write(input.join("2.ndjson"), line(6)).unwrap();
    let report = ends(plan(), &data).await.unwrap();
    assert_eq!((report.stats.readings, report.stats.table_rows), (3, 1));
    let report = ends(plan(), &data).await.unwrap();
    assert_eq!(report.stats.readings, 0, "and that one has a row");
}

/// What the engine itself says, such as the rows of a registry, stands under source 0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_pipeline_hears_its_registry_whichever_source_it_reads() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(place("limits.csv"), "device,high\nd,5\n").unwrap();
    let texts = ["a", "b", "c"].map(|name| {
        let input = place(&format!("{name}.ndjson"));
        std::fs::write(&input, "{\"device\": \"d\", \"ts\": 1, \"v\": 1}").unwrap();
        let limits = place("limits.csv");
        let text = format!(
            r#"
            name = "{name}"
            [source]
            type = "file"
            path = "{input}"
            [reading]
            device = "device"
            time = "ts"
            [reading.fields]
            v = "float64"
            [[registry]]
            name = "limits"
            path = "{limits}"
            key = ["device"]
            columns = {{ device = "string", high = "float64" }}
            [[step]]
            name = "limited"
            type = "enrich"
            registry = "limits"
            missing = "reject"
            [[table]]
            from = "limited"
            "#
        );
        (PathBuf::from(format!("{name}.toml")), text)
    });
    let plan = tidegate_pipelines::load(&texts, &|_, _| Err(String::new())).unwrap();
    assert_eq!(plan.sources.len(), 3);
    let stats = ends(plan, &folder.path().join("data")).await.unwrap().stats;
    assert_eq!((stats.readings, stats.rejects), (3, 0));
}

#[test]
fn a_feed_that_waits_is_let_go_when_the_workers_are_gone() {
    let in_flight = Arc::new(InFlight::default());
    let (commands, _kept) = std::sync::mpsc::channel();
    let port = feed::WorkerPort { commands, thread: std::thread::current() };
    let never = Arc::new(AtomicBool::new(false));
    let mut queue = FeedQueue::new(vec![port], Arc::clone(&in_flight), Arc::default(), None, never);
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for epoch in 1..=IN_FLIGHT_EPOCHS_MAX as u64 + 10 {
            queue.tick(Tick { epoch, time_us: 0 });
        }
        done.send(()).unwrap();
    });
    assert!(is_done.recv_timeout(Duration::from_millis(200)).is_err(), "nobody finished an epoch");
    in_flight.close();
    is_done.recv_timeout(PATIENCE).unwrap();
}
