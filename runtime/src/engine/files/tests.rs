//! What the formats make of files, good and bad ones, without workers.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use arrow::array::{
    ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray,
};
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate_pipelines::plan::FileSpec;

use super::FileSource;
use super::feeder::Feeder;
use super::ledger::{Ledger, Place};
use super::progress::Progress;
use crate::engine::feed::{Command, FeedQueue, InFlight, WorkerPort};
use crate::stats::Stats;

const START: Place = Place { epoch: 1, offset: 0, time_us: 0 };

/// What one message was: topic, payload, and why it was refused.
type Said = (String, String, String);

/// What a run did.
struct Run {
    said: Vec<Said>,
    /// Ends of epochs, as the offset of the first message of the next one.
    epochs: Vec<u64>,
    end: anyhow::Result<Option<Place>>,
}

impl Run {
    fn payloads(&self) -> Vec<Value> {
        let payloads = self.said.iter().filter(|s| s.2.is_empty());
        payloads.map(|s| serde_json::from_str(&s.1).unwrap()).collect()
    }

    fn error(&self) -> String {
        format!("{:#}", self.end.as_ref().unwrap_err())
    }
}

fn source(path: &Path) -> FileSource {
    let path = path.display().to_string();
    let spec = FileSpec { path, topic: None, format: None, columns: None, delimiter: None };
    FileSource { source: 3, spec }
}

fn run(source: &FileSource) -> Run {
    run_until(source, |_| false)
}

/// Reads until the stop is wanted, given the number of messages so far.
fn run_until(source: &FileSource, stop_after: impl Fn(usize) -> bool) -> Run {
    let (commands, received) = channel();
    let port = WorkerPort { commands, thread: std::thread::current() };
    let in_flight = Arc::new(InFlight::default());
    // Nobody is there to finish an epoch.
    in_flight.close();
    let never = Arc::new(AtomicBool::new(false));
    let mut queue = FeedQueue::new(vec![port], in_flight, Arc::new(Stats::default()), None, never);
    let (progress, stop) = (Progress::new(), AtomicBool::new(stop_after(0)));
    let feeder = Feeder::new(&mut queue, &progress, &stop, START);
    let end = source.find().and_then(|files| feeder.read_all(&files, false, |_| Ok(())));
    drop(queue);
    let (mut said, mut epochs) = (Vec::new(), Vec::new());
    for command in received {
        match command {
            Command::Messages(run) => {
                assert_eq!((run.source, run.first_offset), (3, said.len() as u64));
                for i in 0..run.len() {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    assert_eq!(run.index[i].refused, !run.properties(i).is_empty());
                    let why = text(run.properties(i));
                    said.push((text(run.topic(i)), text(run.payload(i)), why));
                }
            }
            Command::Tick(_) => epochs.push(said.len() as u64),
            _ => {}
        }
    }
    Run { said, epochs, end }
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

fn one(name: &str, bytes: &[u8]) -> Run {
    let dir = folder(&[(name, bytes)]);
    run(&source(&dir.path().join(name)))
}

/// Rows of a number and a text, as JSON values.
fn rows(count: usize) -> Vec<Value> {
    (0..count).map(|i| json!({ "n": i, "v": i as f64 / 4.0, "t": format!("é\"{i}\n") })).collect()
}

fn as_lines(rows: &[Value]) -> Vec<u8> {
    rows.iter().map(|r| format!("{r}\n")).collect::<String>().into_bytes()
}

fn as_csv(rows: &[Value]) -> Vec<u8> {
    let mut text = String::from("n,v,t\r\n");
    for row in rows {
        let quoted = row["t"].as_str().unwrap().replace('"', "\"\"");
        text += &format!("{},{},\"{quoted}\"\r\n", row["n"], row["v"]);
    }
    text.into_bytes()
}

fn as_parquet(rows: &[Value]) -> Vec<u8> {
    let columns: [(&str, ArrayRef); 3] = [
        ("n", Arc::new(Int64Array::from_iter(rows.iter().map(|r| r["n"].as_i64())))),
        ("v", Arc::new(Float64Array::from_iter(rows.iter().map(|r| r["v"].as_f64())))),
        ("t", Arc::new(StringArray::from_iter(rows.iter().map(|r| r["t"].as_str())))),
    ];
    parquet_of(&RecordBatch::try_from_iter(columns).unwrap())
}

fn parquet_of(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

#[test]
fn all_formats_give_the_same_messages() {
    let rows = rows(50_000);
    let (lines, csv) = (as_lines(&rows), as_csv(&rows));
    for (name, bytes) in [
        ("a.ndjson", lines.clone()),
        ("a.jsonl.gz", gzip(&lines)),
        ("a.json.zst", zstd::encode_all(&lines[..], 1).unwrap()),
        ("a.csv", csv.clone()),
        ("a.csv.gz", gzip(&csv)),
        ("a.csv.zst", zstd::encode_all(&csv[..], 1).unwrap()),
        ("a.parquet", as_parquet(&rows)),
    ] {
        let run = one(name, &bytes);
        assert_eq!(run.end.as_ref().unwrap().unwrap().offset, 50_000, "{name}");
        assert!(run.payloads() == rows, "{name}");
        assert!(run.said.iter().all(|s| s.0.ends_with(name)), "the path is the topic");
    }
    let parts: Vec<Vec<u8>> = rows.chunks(9_000).map(as_csv).collect();
    let names: Vec<String> = (0..parts.len()).map(|i| format!("part-{}.csv", i + 8)).collect();
    let files: Vec<(&str, &[u8])> =
        names.iter().map(String::as_str).zip(parts.iter().map(Vec::as_slice)).collect();
    let dir = folder(&files);
    assert!(run(&source(dir.path())).payloads() == rows, "in the order of the numbers");
}

#[test]
fn cells_are_numbers_null_or_text() {
    let text = "\u{feff}a, b,\"c,d\",\n1,-2.5e3, 7 ,007\n,NaN,\" x\",\"\"\ntrue,1.,.5,0x1\n";
    let read = one("x.csv", text.as_bytes());
    assert_eq!(
        read.payloads(),
        [
            json!({ "a": 1, "b": -2500.0, "c,d": 7, "column_4": "007" }),
            json!({ "a": null, "b": "NaN", "c,d": " x", "column_4": null }),
            json!({ "a": "true", "b": "1.", "c,d": ".5", "column_4": "0x1" }),
        ]
    );
    let dir = folder(&[("x.tsv", b"1\t2\n\n3\t4")]);
    let mut named = source(&dir.path().join("x.tsv"));
    named.spec.columns = Some(vec!["p".into(), "q".into()]);
    let found = run(&named);
    assert_eq!(found.payloads(), [json!({ "p": 1, "q": 2 }), json!({ "p": 3, "q": 4 })]);
    named.spec.delimiter = Some(b';');
    assert_eq!(run(&named).said.len(), 2);
}

#[test]
fn bad_rows_are_refused_with_file_and_line_and_the_others_are_read() {
    let text = b"a,b\n1,2\n3\n4,5,6\n\xff,7\n8,\"9\n10,11\n";
    let run = one("x.csv", text);
    assert_eq!(run.payloads(), [json!({ "a": 1, "b": 2 }), json!({ "a": 8, "b": "9\n10,11\n" })]);
    let why: Vec<(&str, &str)> = run
        .said
        .iter()
        .filter(|s| !s.2.is_empty())
        .map(|s| (s.1.as_str(), s.2.rsplit_once('/').unwrap().1))
        .collect();
    assert_eq!(
        why,
        [
            ("3", "x.csv line 3: 1 cells, expected 2"),
            ("4,5,6", "x.csv line 4: 3 cells, expected 2"),
            ("\u{fffd},7", "x.csv line 5: `a` is not UTF-8"),
        ]
    );
    let doubled = one("x.csv", b"a,b,a\n1,2,3\n");
    assert!(doubled.error().contains("two columns `a`"), "{}", doubled.error());
}

#[test]
fn an_open_quote_ends_the_run_before_memory_does() {
    let mut text = b"a\n1\n\"".to_vec();
    text.resize(24 << 20, b'x');
    let error = one("x.csv", &text).error();
    assert!(error.contains("x.csv after line 2") && error.contains("quote"), "{error}");
}

#[test]
fn what_is_cut_is_an_error_with_its_file_and_line() {
    let rows = rows(40_000);
    let (lines, csv) = (as_lines(&rows), as_csv(&rows));
    for (name, packed) in [
        ("x.ndjson.gz", gzip(&lines)),
        ("x.ndjson.zst", zstd::encode_all(&lines[..], 1).unwrap()),
        ("x.csv.gz", gzip(&csv)),
        ("x.csv.zst", zstd::encode_all(&csv[..], 1).unwrap()),
    ] {
        let run = one(name, &packed[..packed.len() / 2]);
        let error = run.error();
        let (_, line) = error.split_once(&format!("{name} after line ")).unwrap();
        let line: usize = line.split(':').next().unwrap().parse().unwrap();
        assert!(line > 0, "{error}");
        assert!(run.payloads() == rows[..run.said.len()], "{name}: what came is whole");
    }
    let parquet = as_parquet(&rows);
    let mut flipped = parquet.clone();
    let footer = flipped.len() - 60..flipped.len() - 8;
    flipped[footer].iter_mut().for_each(|byte| *byte ^= 0x55);
    for bytes in [&parquet[..parquet.len() / 2], &flipped, b"PAR1", b"x"] {
        let dir = folder(&[("x.parquet", bytes)]);
        let source = source(&dir.path().join("x.parquet"));
        // A library may panic on damage; whoever runs this catches it.
        let end = std::panic::catch_unwind(|| run(&source).end.map_err(|e| format!("{e:#}")));
        let said = end.unwrap_or_else(|_| Err("x.parquet".into())).unwrap_err();
        assert!(said.contains("x.parquet"), "{said}");
    }
}

#[test]
fn times_of_parquet_are_utc_and_nulls_are_null() {
    let columns: [(&str, ArrayRef); 2] = [
        ("ts", Arc::new(TimestampMillisecondArray::from(vec![Some(1_767_225_600_500), None]))),
        ("v", Arc::new(Float64Array::from(vec![Some(f64::NAN), Some(0.5)]))),
    ];
    let run = one("x.parquet", &parquet_of(&RecordBatch::try_from_iter(columns).unwrap()));
    let expected =
        [json!({ "ts": "2026-01-01T00:00:00.500Z", "v": null }), json!({ "ts": null, "v": 0.5 })];
    let mut found = run.payloads();
    let time = found[0]["ts"].as_str().unwrap().replace("500000Z", "500Z");
    found[0]["ts"] = time.into();
    assert_eq!(found, expected);
}

#[test]
fn epochs_are_a_function_of_the_files_and_a_stop_leaves_whole_ones() {
    let dir = folder(&[("x.ndjson", &as_lines(&rows(400_000)))]);
    let source = source(&dir.path().join("x.ndjson"));
    let whole = run(&source);
    assert!(whole.epochs.len() >= 3, "{:?}", whole.epochs);
    assert_eq!(run(&source).epochs, whole.epochs);
    assert_eq!(whole.end.unwrap().unwrap().epoch, whole.epochs.len() as u64 + 1);
    let stopped = run_until(&source, |_| true);
    assert_eq!((stopped.end.unwrap(), stopped.epochs.len()), (None, 0));
}

#[test]
fn a_file_that_changes_while_it_is_read_is_told() {
    let dir = folder(&[("x.ndjson", b"{}\n")]);
    let source = source(&dir.path().join("x.ndjson"));
    let files = source.find().unwrap();
    std::fs::write(dir.path().join("x.ndjson"), "{}\n{}\n").unwrap();
    let (commands, _received) = channel();
    let port = WorkerPort { commands, thread: std::thread::current() };
    let never = Arc::new(AtomicBool::new(false));
    let in_flight = Arc::new(InFlight::default());
    let mut queue = FeedQueue::new(vec![port], in_flight, Arc::default(), None, never);
    let (progress, stop) = (Progress::new(), AtomicBool::new(false));
    let feeder = Feeder::new(&mut queue, &progress, &stop, START);
    let error = feeder.read_all(&files, false, |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("has changed while it was read"), "{error}");
    assert!(!stop.load(Ordering::Acquire));
}

#[test]
fn the_ledger_adds_generations_and_refuses_what_changed() {
    let state = tempfile::tempdir().unwrap();
    let dir = folder(&[("b.csv", b"x\n1\n"), ("a.csv", b"x\n2\n")]);
    let source = source(dir.path());
    let open = |plan: &str, committed: u64| -> anyhow::Result<Ledger> {
        let found = source.find().unwrap();
        let own = state.path().join("own");
        std::fs::create_dir_all(&own).unwrap();
        let mut ledger = Ledger::open(&own, "key", "tables", plan, &found)?;
        ledger.settle(&found, committed).map(|()| ledger)
    };
    let names = |ledger: &Ledger| -> Option<(usize, Vec<String>, u64)> {
        let todo = ledger.next(&source.find().unwrap()).unwrap()?;
        let names = todo.files.into_iter().map(|f| f.name).collect();
        Some((todo.number, names, todo.start.epoch))
    };
    let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
    let mut ledger = open("p", 0).unwrap();
    let identity = ledger.identity().to_owned();
    assert_eq!(names(&ledger), Some((0, list(&["a.csv", "b.csv"]), 1)));
    // Nothing of it is in the tables yet: files may change and come.
    std::fs::write(dir.path().join("b.csv"), "x\n1\n9\n").unwrap();
    assert_eq!(names(&open("p", 0).unwrap()).unwrap().1.len(), 2);
    // A file comes while the first generation is in the tables in part: it is the next one's.
    std::fs::write(dir.path().join("aa.csv"), "x\n3\n").unwrap();
    ledger = open("p", 1).unwrap();
    assert_eq!(names(&ledger), Some((0, list(&["a.csv", "b.csv"]), 1)));
    let end = Place { epoch: 7, offset: 2, time_us: 5 };
    ledger.closing(0, end).unwrap();
    ledger.saved(5).unwrap();
    assert_eq!(ledger.done(), 0, "this is not its checkpoint");
    ledger.saved(6).unwrap();
    assert_eq!(names(&ledger), Some((1, list(&["aa.csv"]), 7)));
    ledger.finish(1, Place { epoch: 9, ..end }).unwrap();
    // Files that were read may go, unless they are needed again.
    std::fs::remove_file(dir.path().join("b.csv")).unwrap();
    ledger = open("p", 8).unwrap();
    assert_eq!((names(&ledger), ledger.start(2).epoch), (None, 9));
    assert_eq!(ledger.identity(), identity);
    let other = open("other pipelines", 8).unwrap();
    assert_eq!(other.done(), 0);
    let error = other.next(&source.find().unwrap()).unwrap_err().to_string();
    assert!(error.contains("b.csv is not there any more"), "{error}");
    std::fs::write(dir.path().join("a.csv"), "x\n2\n4\n").unwrap();
    let error = open("p", 8).unwrap_err().to_string();
    assert!(error.contains("a.csv has changed since it was read (4 bytes then, 6 now)"), "{error}");
    // Another set of sources, or other settings, must not add the same rows again.
    let found = source.find().unwrap();
    let second = state.path().join("second");
    let error = Ledger::open(&second, "other", "tables", "p", &found).unwrap_err().to_string();
    assert!(error.contains("a.csv was read into these tables before"), "{error}");
    assert!(Ledger::open(&second, "other", "other tables", "p", &found).is_ok());
    std::fs::write(state.path().join("own/ledger.json"), "{").unwrap();
    let error = open("p", 8).unwrap_err().to_string();
    assert!(error.contains("is damaged"), "{error}");
}
