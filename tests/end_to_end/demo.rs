//! The demo runs for as long as it is told, its last line counts what SQL counts, and it can be
//! started again on its data.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tidegate_pipelines::examples;

use crate::support::{Row, tidegate};

/// What a debug build may need beyond `--for` to start and to drain.
const SLACK: Duration = Duration::from_secs(70);

const COUNTERS: [&str; 7] =
    ["messages_acked", "readings", "rejects", "windows", "findings", "alerts", "webhooks"];

fn demo(data: &Path, seconds: u64) -> Row {
    let started = Instant::now();
    let output = tidegate()
        .args(["demo", "--json", "--listen", "127.0.0.1:0", "--for", &format!("{seconds}s")])
        .arg("--data")
        .arg(data)
        .output()
        .unwrap();
    let took = started.elapsed();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}:\n{said}", output.status);
    assert!(took >= Duration::from_secs(seconds), "ended after {took:?}");
    assert!(took < Duration::from_secs(seconds) + SLACK, "ended only after {took:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.trim_end().lines().last().expect("a last line");
    serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {last}"))
}

fn sql(data: &Path, query: &str) -> Vec<Row> {
    let mut command = tidegate();
    command.arg("sql").arg("--data").arg(data).args(["-o", "json", query]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{query}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    match serde_json::from_str(&text) {
        Ok(rows) => rows,
        Err(_) => text.lines().map(|l| serde_json::from_str(l).unwrap()).collect(),
    }
}

fn count(data: &Path, table: &str) -> i64 {
    let rows = sql(data, &format!("SELECT count(*) AS n FROM {table}"));
    rows[0]["n"].as_i64().unwrap()
}

/// Window rows of all tables that come straight from a window step, each revision counted. (Tables
/// may also come from steps that filter windows; they have no say in how many there are.)
fn count_windows(data: &Path) -> i64 {
    let mut rows = 0;
    for (file, text) in examples::DEMO {
        let pipeline: toml::Table = text.parse().unwrap();
        let schema = pipeline["name"].as_str().unwrap().replace('-', "_");
        let steps = pipeline["step"].as_array().unwrap();
        let windows = steps.iter().filter(|s| s["type"].as_str() == Some("window"));
        for window in windows.map(|s| s["name"].as_str().unwrap()) {
            let tables = pipeline["table"].as_array().unwrap();
            let table = tables.iter().find(|t| t["from"].as_str() == Some(window));
            assert!(table.is_some_and(|t| t.get("name").is_none()), "{file}: no table {window}");
            rows += count(data, &format!("{schema}.{window}_revisions"));
        }
    }
    rows
}

fn number(counters: &Row, name: &str) -> i64 {
    let value = counters.get(name).and_then(Value::as_i64);
    value.unwrap_or_else(|| panic!("no counter {name} in {counters:?}"))
}

#[test]
fn the_demo_counts_what_sql_counts_and_starts_again() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let first = demo(data, 20);
    for name in COUNTERS {
        assert!(number(&first, name) > 0, "{name} is not above zero: {first:?}");
    }
    assert_eq!(number(&first, "rejects"), count(data, "system.rejects"), "{first:?}");
    assert_eq!(number(&first, "findings"), count(data, "system.findings"), "{first:?}");
    assert_eq!(number(&first, "alerts"), count(data, "system.alerts"), "{first:?}");
    assert_eq!(number(&first, "windows"), count_windows(data), "{first:?}");
    assert!(
        number(&first, "readings") + number(&first, "rejects") >= number(&first, "messages_acked")
    );

    let second = demo(data, 5);
    assert!(number(&second, "messages_acked") > 0, "{second:?}");
    assert!(count(data, "system.rejects") >= number(&first, "rejects"), "history was kept");
    assert_eq!(count_windows(data), number(&first, "windows") + number(&second, "windows"));
}
