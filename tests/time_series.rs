//! Aggregates for time series: windows and SQL over the stored readings give the same answer.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type};
use arrow::util::display::array_value_to_string;
use tidegate_operators::aggregate::{functions, takes_time};
use tidegate_operators::spec::TableSpec;
use tidegate_pipelines::load;
use tidegate_pipelines::plan::TestInput;
use tidegate_runtime::engine::trial;
use tidegate_sql::{Session, Store, TableWriter};

use crate::support::Rng;

/// Column, call in a window, call in SQL.
type Call = (String, String, String);

const PIPELINE: &str = r#"
name = "plant"
[source]
type = "endpoint"
listen = "127.0.0.1:1883"
topics = ["{device}"]
[reading]
device = "{device}"
time = "ts"
disorder = "10m"
[reading.fields]
v = "float64"
on = "bool"
kind = "string"
[limits]
reading_every = "500ms"
[[step]]
name = "minutes"
type = "window"
every = "1m"
by = ["device"]
select = { SELECT }
[[table]]
from = "readings"
"#;

/// Calls of every function, of each with every type of value that it takes.
fn calls() -> Vec<Call> {
    let call = |f: &str, value: &str, more: &str| {
        let time = if takes_time(f) { ", time" } else { "" };
        (format!("{f}({value}{more})"), format!("{f}({value}{time}{more})"))
    };
    let mut calls = Vec::new();
    for function in functions() {
        let f = function.name;
        match f {
            "first" | "last" | "changes" => {
                calls.extend(["v", "on", "kind"].map(|value| call(f, value, "")));
            }
            "duration_in" => calls.extend(["on", "v > 50"].map(|value| call(f, value, ""))),
            "filled_slots" => calls.push(call(f, "v", ", INTERVAL '5 seconds'")),
            "resample" | "resample_linear" => {
                let (window, sql) = call(f, "v", ", INTERVAL '7 seconds'");
                let text = |c: String| format!("array_length({c}) * 1000 + {c}[2]['value']");
                calls.push((text(window), text(sql)));
            }
            "quantile" => calls.push(call(f, "v", ", 0.9")),
            "histogram" => {
                let (window, sql) = call(f, "v", ", 20, 50");
                let text = |c: String| format!("array_to_string({c}, ' ')");
                calls.push((text(window), text(sql)));
            }
            f => calls.push(call(f, "v", "")),
        }
        if function.arguments.ends_with("[, until]") {
            let end = "date_bin(INTERVAL '1 minute', time) + INTERVAL '1 minute'";
            let value = if f == "duration_in" { "on" } else { "v" };
            let window = format!("{f}({value}, window_end)");
            calls.push((window, format!("{f}({value}, time, {end})")));
        }
    }
    let named = calls.into_iter().enumerate();
    named.map(|(i, (window, sql))| (format!("c{i}"), window, sql)).collect()
}

/// Readings of some devices over some minutes, out of order, some with the time of another.
fn inputs() -> Vec<TestInput> {
    let mut rng = Rng(1);
    let base_ms = 1_767_225_600_000i64;
    let message = |i: i64| {
        let ms = base_ms + rng.below(480) as i64 * 500;
        let (v, kind) = (rng.below(1_000) as f64 / 9.0, rng.below(3));
        let v = if rng.below(10) == 0 { "null".to_owned() } else { v.to_string() };
        let on = rng.below(2) == 0;
        let payload = format!(r#"{{"ts":{ms},"v":{v},"on":{on},"kind":"k{kind}"}}"#);
        TestInput {
            at_us: (base_ms + 300_000 + i) * 1_000,
            topic: format!("d{}", rng.below(5)),
            payload: payload.into_bytes(),
            properties: Vec::new(),
            change: None,
            event: None,
        }
    };
    (0..3_000).map(message).collect()
}

/// Rows as text that differs if any bit of a number does, sorted.
fn shown(batches: &[RecordBatch], columns: &[&str]) -> Vec<String> {
    let cell = |batch: &RecordBatch, name: &str, row: usize| {
        let column = batch.column_by_name(name).unwrap();
        match column.data_type() {
            DataType::Float64 if column.is_valid(row) => {
                let value = column.as_primitive::<Float64Type>().value(row);
                format!("{value} {:016x}", value.to_bits())
            }
            _ => array_value_to_string(column, row).unwrap(),
        }
    };
    let line = |batch: &RecordBatch, row: usize| {
        let cells: Vec<String> =
            columns.iter().map(|c| format!("{c}={}", cell(batch, c, row))).collect();
        cells.join(" ")
    };
    let mut lines: Vec<String> =
        batches.iter().flat_map(|b| (0..b.num_rows()).map(|row| line(b, row))).collect();
    lines.sort();
    lines
}

/// The readings as a table of several files, in another order than they came.
async fn stored(store: &Store, spec: &TableSpec, readings: &[RecordBatch]) {
    let mut writer = TableWriter::open(store, spec, "test".into()).await.unwrap();
    let all = arrow::compute::concat_batches(&readings[0].schema(), readings).unwrap();
    let part = all.num_rows().div_ceil(5);
    for (i, epoch) in (0..5usize).rev().zip(1..) {
        let from = i * part;
        let rows = all.slice(from, part.min(all.num_rows() - from));
        writer.append(rows, epoch).await.unwrap();
        writer.commit(epoch).await.unwrap();
    }
}

#[test]
fn windows_and_sql_over_history_agree_to_the_last_bit() {
    let calls = calls();
    let select: Vec<String> = calls.iter().map(|c| format!("{} = \"{}\"", c.0, c.1)).collect();
    let text = PIPELINE.replace("SELECT", &select.join(", "));
    let plan = load(&[(PathBuf::from("plant.toml"), text)], &|_, n| Err(n.into())).unwrap();
    let pipeline = &plan.pipelines[0];
    let edges = trial::run(pipeline, &inputs(), 2).unwrap();
    let readings: usize = edges["readings"].iter().map(RecordBatch::num_rows).sum();
    assert_eq!(readings, 3_000);

    let columns: Vec<String> = calls.iter().map(|c| format!("{} AS {}", c.2, c.0)).collect();
    let sql = format!(
        "SELECT device, date_bin(INTERVAL '1 minute', time) AS window_start, {} \
         FROM plant.readings GROUP BY 1, 2",
        columns.join(", ")
    );
    let folder = tempfile::tempdir().unwrap();
    let asked = async {
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        let table = pipeline.tables.iter().find(|t| t.from == "readings").unwrap();
        stored(&store, table, &edges["readings"]).await;
        let session = Session::over(store, 1 << 28).unwrap();
        session.sql(&sql).await.unwrap().collect().await.unwrap()
    };
    let asked = block_on(asked);
    let mut names = vec!["device", "window_start"];
    names.extend(calls.iter().map(|c| c.0.as_str()));
    let (windows, asked) = (shown(&edges["minutes"], &names), shown(&asked, &names));
    assert_eq!(windows.len(), 20, "four minutes of five devices");
    assert_eq!(windows, asked);
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

/// Zones, each with a time from which its readings come: over nights in which clocks are changed.
const ZONES: [(&str, &str); 4] = [
    ("Europe/Berlin", "2026-03-28T20:00:00Z"),
    ("America/New_York", "2026-10-31T20:00:00Z"),
    ("Australia/Lord_Howe", "2026-04-04T10:00:00Z"),
    ("Asia/Kolkata", "2026-12-31T12:00:00Z"),
];

/// Days and longer on the clocks of a zone are what `date_trunc` makes of the time there.
#[test]
fn calendar_windows_and_sql_over_history_agree() {
    let words = ["day", "week", "month", "quarter", "year"];
    let steps: Vec<String> = words
        .iter()
        .map(|word| {
            format!(
                "[[step]]\nname = \"{word}s\"\ntype = \"window\"\nevery = \"{word}\"\n\
                 zone = {{ column = \"kind\" }}\n\
                 disorder = \"400d\"\nselect = {{ n = \"count(*)\", total = \"sum(v)\" }}\n"
            )
        })
        .collect();
    let text = PIPELINE.replace("SELECT", "n = \"count(*)\"") + &steps.concat();
    let plan = load(&[(PathBuf::from("plant.toml"), text)], &|_, n| Err(n.into())).unwrap();
    let pipeline = &plan.pipelines[0];
    let mut rng = Rng(2);
    let inputs: Vec<TestInput> = (0..2_000)
        .map(|i| {
            let (zone, from) = ZONES[rng.below(4) as usize];
            let from_us = time_us(from);
            let ms = from_us / 1_000 + rng.below(72 * 3_600_000) as i64;
            let v = rng.below(100);
            let payload = format!(r#"{{"ts":{ms},"v":{v},"kind":"{zone}"}}"#);
            TestInput {
                at_us: time_us("2027-06-01T00:00:00Z") + i,
                topic: format!("d{}", rng.below(3)),
                payload: payload.into_bytes(),
                properties: Vec::new(),
                change: None,
                event: None,
            }
        })
        .collect();
    let edges = trial::run(pipeline, &inputs, 2).unwrap();
    let folder = tempfile::tempdir().unwrap();
    block_on(async {
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        let table = pipeline.tables.iter().find(|t| t.from == "readings").unwrap();
        stored(&store, table, &edges["readings"]).await;
        let session = Session::over(store, 1 << 28).unwrap();
        for word in words {
            let mut asked = Vec::new();
            for (zone, _) in ZONES {
                let sql = format!(
                    "SELECT device, kind, date_trunc('{word}', time AT TIME ZONE '{zone}') \
                     AT TIME ZONE 'UTC' AS window_start, count(*) AS n, sum(v) AS total \
                     FROM plant.readings WHERE kind = '{zone}' GROUP BY 1, 2, 3"
                );
                asked.extend(session.sql(&sql).await.unwrap().collect().await.unwrap());
            }
            let names = ["device", "kind", "window_start", "n", "total"];
            let windows = shown(&edges[&format!("{word}s")], &names);
            assert!(windows.len() >= 12, "{word}: {} windows", windows.len());
            assert_eq!(windows, shown(&asked, &names), "{word}");
        }
    });
}

fn time_us(text: &str) -> i64 {
    let array = arrow::array::StringArray::from(vec![text]);
    let utc = DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some("UTC".into()));
    let times = arrow::compute::cast(&array, &utc).unwrap();
    times.as_primitive::<arrow::datatypes::TimestampMicrosecondType>().value(0)
}
