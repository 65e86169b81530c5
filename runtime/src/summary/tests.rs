//! The live summary, as text.
#![allow(clippy::unwrap_used)]

use std::io::{self, Write};
use std::sync::Mutex;

use super::*;

fn sample() -> Picture {
    Picture {
        elapsed: Duration::from_secs(75),
        now: Snapshot {
            messages_received: 37_510,
            messages_acked: 37_500,
            readings: 86_000,
            rejects: 812,
            late: 3,
            windows: 7_400,
            findings: 41,
            alerts: 24,
            webhooks: 22,
            webhooks_pending: 2,
            table_files: 60,
            table_rows: 1_234_567,
            table_bytes: 2_411_724,
            journal_bytes: 900,
            lag_us: 184_000,
            connections: 498,
            ..Snapshot::default()
        },
        messages_per_s: 500.4,
        readings_per_s: 1_166.9,
        memory_bytes: Some(96 << 20),
        fleet: Some(FleetTotals { published: 37_512, acked: 37_500, ..FleetTotals::default() }),
        files: None,
    }
}

#[test]
fn the_plain_line() {
    assert_eq!(
        line(&sample()),
        "1:15 min messages 37500 (500/s), readings 86000 (1166/s), rejects 812, late 3, \
         windows 7400, findings 41, alerts 24, webhooks 22, files 60, lag 184 ms, memory 96.0 MiB"
    );
}

#[test]
fn the_block() {
    let expected = "
tidegate demo   1:15 min   498 connections   fleet sent 37,512, acked 37,500
  messages         37,500       500/s
  readings         86,000     1,166/s   rejects 812   late 3
  windows           7,400    findings 41
  alerts               24    webhooks 22 delivered, 2 waiting
  files                60    1,234,567 rows, 2.3 MiB
  lag 184 ms   journal 900 B   memory 96.0 MiB";
    let block = block("tidegate demo", &sample());
    assert_eq!(block.join("\n"), expected);
    assert!(block.iter().all(|l| l.chars().count() < 80));
}

#[test]
fn memory_that_is_short_is_told() {
    let mut picture = sample();
    picture.now.memory_max_bytes = 100 << 20;
    for (stage, told) in [
        (0, "memory 96.0 MiB"),
        (1, "memory 96.0 MiB of 100.0 MiB: short"),
        (2, "memory 96.0 MiB of 100.0 MiB: new keys refused"),
        (3, "memory 96.0 MiB of 100.0 MiB: sources wait"),
    ] {
        picture.now.memory_stage = stage;
        assert!(line(&picture).ends_with(&format!(", {told}")));
        let block = block("tidegate demo", &picture);
        assert!(block.iter().all(|l| l.chars().count() < 80));
        assert!(block.iter().any(|l| l.ends_with(&format!("   {told}"))));
    }
}

#[test]
fn the_progress_of_files() {
    let reading = Reading {
        share: 0.439,
        file: 3,
        files: 1_200,
        name: "a/very/long/path/to/some/part-3.csv".into(),
        rows: 5,
        rows_per_s: 1_234_567,
        left: Some(Duration::from_secs(80)),
    };
    assert_eq!(
        progress(&reading),
        "file 3 of 1,200: 43 %   1,234,567 rows/s   about 1:20 min left   /path/to/some/part-3.csv"
    );
    let short = Reading { name: "é.csv".into(), left: None, ..reading };
    assert_eq!(progress(&short), "file 3 of 1,200: 43 %   1,234,567 rows/s   é.csv");
    let with = Picture { files: Some(short), ..sample() };
    assert!(block("x", &with).iter().all(|l| l.chars().count() < 80));
}

#[test]
fn messages_of_qos_0_are_taken_and_not_acknowledged() {
    let mut picture = sample();
    picture.now.messages_quiet = 1_500;
    assert!(line(&picture).contains("messages 39000 (500/s), readings"));
    assert!(block("x", &picture).contains(&"  messages         39,000       500/s".to_owned()));
    let intake = |picture: &Picture| totals(picture)[1].clone();
    let both =
        "intake    37,500 messages acknowledged and 1,500 taken at QoS 0 in 1:15 min, 86,000";
    assert!(intake(&picture).starts_with(both), "{}", intake(&picture));
    picture.now.messages_acked = 0;
    let quiet = "intake    1,500 messages taken at QoS 0 in 1:15 min, 86,000";
    assert!(intake(&picture).starts_with(quiet), "{}", intake(&picture));
    // What was refused is told beside it.
    picture.now.messages_dropped = 12;
    assert!(line(&picture).contains("messages 1500 (500/s), 12 not taken, readings"));
    let row = "  messages          1,500       500/s   12 not taken";
    assert!(block("x", &picture).contains(&row.to_owned()));
    assert!(intake(&picture).contains("in 1:15 min, 12 not taken, 86,000 readings"));
}

#[test]
fn repetitions_are_shown_where_there_are_any() {
    let mut picture = sample();
    picture.now.duplicates = 7;
    assert!(line(&picture).contains("late 3, 7 repeated, windows"));
    assert!(totals(&picture)[1].ends_with("3 late, 7 repeated"));
    assert!(block("x", &picture).iter().any(|l| l.ends_with("late 3   7 repeated")));
}

#[test]
fn the_totals_and_their_json() {
    assert_eq!(
        totals(&sample()),
        [
            "fleet     37,512 messages published, 37,500 acknowledged",
            "intake    37,500 messages acknowledged in 1:15 min, 86,000 readings (1,146/s), \
             812 rejects, 3 late",
            "results   7,400 windows, 41 findings, 24 alerts, webhooks 22 delivered, 2 waiting",
            "tables    1,234,567 rows in 60 files, 2.3 MiB",
        ]
    );
    let json = json(&sample());
    for (name, value) in [
        ("messages_acked", 37_500),
        ("readings", 86_000),
        ("rejects", 812),
        ("windows", 7_400),
        ("findings", 41),
        ("alerts", 24),
        ("webhooks", 22),
        ("published", 37_512),
    ] {
        assert_eq!(json[name], value, "{name}");
    }
    assert_eq!(json["fleet"]["acked"], 37_500);
    assert_eq!(json["duration_s"], 75.0);
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn without_a_terminal_there_are_plain_lines_with_rates() {
    let buffer = Buffer::default();
    let screen = Screen::new(Box::new(buffer.clone()), false);
    assert_eq!(every(&screen), LINE_EVERY);
    let stats = Arc::new(Stats::default());
    let mut summary = Summary::new("x", Arc::clone(&stats), None);
    summary.show(&screen);
    assert_eq!(buffer.0.lock().unwrap().len(), 0, "nothing to say at the start");
    // So long that the time that this test takes changes no rate.
    summary.started -= Duration::from_secs(1_000);
    summary.samples[0].0 -= Duration::from_secs(1_000);
    Stats::add(&stats.messages_received, 100_900);
    Stats::add(&stats.messages_acked, 100_100);
    summary.show(&screen);
    let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 1);
    assert!(lines[0].starts_with("16:4"), "{text}");
    assert!(lines[0].contains(" min messages 100100 (100/s), readings 0 (0/s)"), "{text}");
    assert!(!text.contains('\x1b'));
}
