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

/// Calls of every function, of each with every type of value that it takes. In SQL the bounds of
/// the window are `ws` and `we`; `tenth` is about a tenth of a window.
fn calls(tenth: &str, ends_with_reading: bool) -> Vec<Call> {
    let call = |f: &str, value: &str, more: &str| {
        let time = if takes_time(f) { ", time" } else { "" };
        (format!("{f}({value}{more})"), format!("{f}({value}{time}{more})"))
    };
    let tenth = format!("INTERVAL '{tenth}'");
    let bounded = |f: &str, value: &str, more: &str| {
        let (window, sql) = call(f, value, more);
        let with = |call: &str, bounds: &str| call.replacen(')', bounds, 1);
        (with(&window, ", window_start, window_end)"), with(&sql, ", ws, we)"))
    };
    let mut calls = Vec::new();
    for function in functions() {
        let f = function.name;
        match f {
            "first" | "last" | "changes" => {
                calls.extend(["v", "on", "kind"].map(|value| call(f, value, "")));
            }
            "duration_in" => calls.extend(["on", "v > 50"].map(|value| call(f, value, ""))),
            "filled_slots" => calls.push(call(f, "v", &format!(", {tenth}"))),
            "resample" | "resample_linear" => {
                let more = format!(", {tenth}");
                let (window, sql) = call(f, "v", &more);
                let text = |c: String| format!("array_length({c}) * 1000 + {c}[2]['value']");
                calls.extend([(text(window.clone()), text(sql.clone())), (window, sql)]);
                calls.push(bounded(f, "v", &more));
                // The reading before comes from the first half of the window.
                let (window, sql) = bounded(f, "v", &more);
                let half = format!("window_start{}", format!(" + {tenth}").repeat(5));
                let window = window.replace("window_start", &half);
                calls.push((window, sql.replace("ws", &half.replace("window_start", "ws"))));
            }
            "expected_ratio" => {
                let more = format!(", {tenth}");
                calls.extend(["v", "kind"].map(|value| bounded(f, value, &more)));
                // What is expected where nobody says from when to when.
                let end = if ends_with_reading { format!("we + {tenth}") } else { "we".into() };
                calls.push((call(f, "v", &more).0, format!("{f}(v, {tenth}, ws, {end})")));
            }
            "quantile" => calls.push(call(f, "v", ", 0.9")),
            "histogram" | "buckets" => {
                let (window, sql) = call(f, "v", ", 20, 50");
                calls.push((format!("{window}[2]"), format!("{sql}[2]")));
                calls.push((window, sql));
            }
            f => calls.push(call(f, "v", "")),
        }
        if function.arguments.ends_with("[, until]") {
            let value = if f == "duration_in" { "on" } else { "v" };
            let window = format!("{f}({value}, window_end)");
            calls.push((window, format!("{f}({value}, time, we)")));
        }
    }
    // Some of the readings only.
    for f in ["histogram(v, 60)", "expected_ratio(v, #, <, >)", "resample(v, #, <, >)"] {
        let of = |from: &str, to: &str| {
            let call = f.replace('#', &tenth).replace('<', from).replace('>', to);
            call + " FILTER (WHERE v > 30)"
        };
        let sql = of("ws", "we").replace("resample(v", "resample(v, time");
        calls.push((of("window_start", "window_end"), sql));
    }
    let named = calls.into_iter().enumerate();
    named.map(|(i, (window, sql))| (format!("c{i}"), window, sql)).collect()
}

/// When the readings of [`inputs`] begin: 2026-01-01T00:00:00Z.
const BASE_MS: i64 = 1_767_225_600_000;

/// So many readings of some devices, out of order, at multiples of `step_ms` in 480 such steps,
/// where several can have one time; or each at a time of its own.
fn inputs(count: i64, step_ms: i64, own_times: bool) -> Vec<TestInput> {
    let mut rng = Rng(1);
    let mut places: Vec<i64> = (0..count).map(|_| rng.below(480) as i64 * step_ms).collect();
    if own_times {
        // Sorted at random, with pauses that are now short and now long.
        let mut shuffled: Vec<(u64, i64)> = (0..count)
            .map(|i| (rng.below(1 << 40), i * step_ms + rng.below(step_ms as u64) as i64))
            .collect();
        shuffled.sort_unstable();
        places = shuffled.into_iter().map(|(_, place)| place).collect();
    }
    let message = |(i, place): (usize, i64)| {
        let ms = BASE_MS + place;
        let (v, kind) = (rng.below(1_000) as f64 / 9.0, rng.below(3));
        let v = if rng.below(10) == 0 { "null".to_owned() } else { v.to_string() };
        let on = rng.below(2) == 0;
        let payload = format!(r#"{{"ts":{ms},"v":{v},"on":{on},"kind":"k{kind}"}}"#);
        TestInput {
            at_us: (BASE_MS + 500 * step_ms.max(1_000) + i as i64) * 1_000,
            topic: format!("d{}", rng.below(5)),
            payload: payload.into_bytes(),
            properties: Vec::new(),
            change: None,
            event: None,
        }
    };
    places.into_iter().enumerate().map(message).collect()
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

/// Windows, and the same in SQL.
struct Windows {
    /// Keys of the step.
    step: &'static str,
    /// About a tenth of a window.
    tenth: &'static str,
    ends_with_reading: bool,
    inputs: Vec<TestInput>,
    /// A query for the readings, each once for each window that it is in, with its bounds `ws` and
    /// `we`.
    source: String,
}

/// Windows equal the SQL over the stored history, in every aggregate, to the last bit.
fn agree(windows: Windows, at_least: usize) {
    let calls = calls(windows.tenth, windows.ends_with_reading);
    let select: Vec<String> = calls.iter().map(|c| format!("{} = \"{}\"", c.0, c.1)).collect();
    let text = PIPELINE.replace("every = \"1m\"", windows.step);
    let text = text.replace("SELECT", &select.join(", "));
    let plan = load(&[(PathBuf::from("plant.toml"), text)], &|_, n| Err(n.into()));
    let plan = plan.unwrap_or_else(|problems| panic!("{}", problems[0]));
    let pipeline = &plan.pipelines[0];
    let edges = trial::run(pipeline, &windows.inputs, 2).unwrap();
    let readings: usize = edges["readings"].iter().map(RecordBatch::num_rows).sum();
    assert_eq!(readings, windows.inputs.len());

    let columns: Vec<String> = calls.iter().map(|c| format!("{} AS {}", c.2, c.0)).collect();
    let sql = format!(
        "SELECT device, ws AS window_start, we AS window_end, {} FROM ({}) \
         GROUP BY device, ws, we",
        columns.join(", "),
        windows.source
    );
    let folder = tempfile::tempdir().unwrap();
    let asked = block_on(async {
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        let table = pipeline.tables.iter().find(|t| t.from == "readings").unwrap();
        stored(&store, table, &edges["readings"]).await;
        let session = Session::over(store, 1 << 28).unwrap();
        session.sql(&sql).await.unwrap().collect().await.unwrap()
    });
    let mut names = vec!["device", "window_start", "window_end"];
    names.extend(calls.iter().map(|c| c.0.as_str()));
    let (emitted, asked) = (shown(&edges["minutes"], &names), shown(&asked, &names));
    assert!(emitted.len() >= at_least, "{} windows", emitted.len());
    for (emitted, asked) in emitted.iter().zip(&asked) {
        assert_eq!(emitted, asked, "{}", windows.step);
    }
    assert_eq!(emitted.len(), asked.len());
}

#[test]
fn windows_and_sql_over_history_agree_to_the_last_bit() {
    let source = "SELECT *, date_bin(INTERVAL '1 minute', time) AS ws, \
                  date_bin(INTERVAL '1 minute', time) + INTERVAL '1 minute' AS we \
                  FROM plant.readings";
    let windows = Windows {
        step: "every = \"1m\"",
        tenth: "7 seconds",
        ends_with_reading: false,
        inputs: inputs(1_000, 500, false),
        source: source.into(),
    };
    agree(windows, 20);
}

#[test]
fn hopping_windows_and_sql_agree() {
    let part = |seconds| {
        format!(
            "SELECT *, date_bin(INTERVAL '20 seconds', time) - INTERVAL '{seconds} seconds' AS ws, \
             date_bin(INTERVAL '20 seconds', time) + INTERVAL '{} seconds' AS we \
             FROM plant.readings",
            60 - seconds
        )
    };
    let windows = Windows {
        step: "size = \"1m\"\nslide = \"20s\"",
        tenth: "6 seconds",
        ends_with_reading: false,
        inputs: inputs(1_000, 500, false),
        source: [0, 20, 40].map(part).join(" UNION ALL "),
    };
    agree(windows, 5 * 14);
}

#[test]
fn windows_of_a_calendar_and_sql_agree_in_every_aggregate() {
    let day = "date_trunc('day', time AT TIME ZONE 'Asia/Kolkata')";
    let source = format!(
        "SELECT *, {day} AT TIME ZONE 'UTC' AS ws, \
         ({day} + INTERVAL '1 day') AT TIME ZONE 'UTC' AS we FROM plant.readings"
    );
    let windows = Windows {
        step: "every = \"day\"\nzone = \"Asia/Kolkata\"\ndisorder = \"400d\"",
        tenth: "150 minutes",
        ends_with_reading: false,
        inputs: inputs(500, 600_000, false),
        source,
    };
    agree(windows, 5 * 4);
}

#[test]
fn sessions_and_sql_agree() {
    let source = "\
        SELECT *, min(time) OVER (PARTITION BY device, session) AS ws, \
               max(time) OVER (PARTITION BY device, session) AS we \
        FROM (SELECT *, sum(begins) OVER (PARTITION BY device ORDER BY time) AS session \
              FROM (SELECT *, CASE WHEN date_part('epoch', time) - lag(date_part('epoch', time)) \
                           OVER (PARTITION BY device ORDER BY time) <= 4 THEN 0 ELSE 1 END \
                           AS begins FROM plant.readings))";
    let windows = Windows {
        step: "gap = \"4s\"\nmax = \"1h\"",
        tenth: "2 seconds",
        ends_with_reading: true,
        inputs: inputs(300, 600, true),
        source: source.into(),
    };
    agree(windows, 30);
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
