//! The same configuration and the same input give the same rows for 1, 2 and 4 workers, and they
//! are those of the plain loop.

use std::fmt::Write as _;

use crate::support::{
    ColdChain, Home, Instance, PATIENCE, Reading, Rng, Row, WindowRow, eventually, windows_of,
};

const DEVICES: i64 = 40;
const READINGS: i64 = 300;
const EVERY_MS: i64 = 2_000;
const MINUTES: i64 = READINGS * EVERY_MS / 60_000;
/// Below the pipeline's `disorder` of 5 s, so that nothing is late.
const JITTER_MS: u64 = 4_500;

/// Readings of all devices, mixed, out of order within the bound, some twice, with spikes.
fn arrivals(seed: u64) -> Vec<Reading> {
    let mut rng = Rng(seed);
    let mut timed = Vec::new();
    for d in 0..DEVICES {
        let (site, name) = (["north", "south", "west"][d as usize % 3], format!("d{d}"));
        for seq in (0..READINGS).chain([10 * READINGS]) {
            let mut reading = Reading::regular(site, &name, seq, EVERY_MS);
            if seq > 50 && rng.below(100) == 0 {
                reading.temperature += 30.0 + rng.below(40) as f64;
            }
            for _ in 0..1 + u64::from(rng.below(20) == 0) {
                let arrives_ms = reading.at_ms as u64 + rng.below(JITTER_MS);
                timed.push((arrives_ms, reading.clone()));
            }
        }
    }
    timed.sort_by_key(|(arrives_ms, _)| *arrives_ms);
    timed.into_iter().map(|(_, reading)| reading).collect()
}

/// What must not depend on the number of workers.
#[derive(Debug, PartialEq)]
struct Outcome {
    windows: Vec<WindowRow>,
    revised: i64,
    findings: Vec<Row>,
    alerts: Vec<Row>,
    rejects: Vec<Row>,
}

fn run(input: &str, readings: &[Reading], workers: usize) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("readings.ndjson");
    std::fs::write(&file, input).unwrap();
    let home = Home::with(&ColdChain::on_file(&file).text());
    let mut command = home.run_command(workers);
    // Ends by itself, because its only pipeline ends with the file.
    let status = Instance::spawn(&mut command).ended(PATIENCE);
    assert!(status.success(), "run with {workers} workers ended with {status}");
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", readings.len() as i64);
    let alerts = "SELECT rule, keys, status, time, since, alert_id, severity, summary \
        FROM system.alerts ORDER BY keys, time, status";
    Outcome {
        windows: eventually("the windows", || home.windows(MINUTES)),
        revised: home.count("SELECT count(*) FROM cold_chain.per_minute WHERE revision > 0"),
        findings: home.rows(
            "SELECT step, keys, time, value, score, expected, deviation, method \
             FROM system.findings ORDER BY keys, time, value",
        ),
        alerts: home.rows(alerts),
        rejects: home.rows(
            "SELECT reason, topic, journal_offset, payload_bytes FROM system.rejects \
             ORDER BY journal_offset",
        ),
    }
}

#[test]
fn one_two_and_four_workers_give_the_same_rows() {
    let readings = arrivals(7);
    let mut input = String::new();
    let mut broken = 0;
    for (i, r) in readings.iter().enumerate() {
        writeln!(input, "{}", r.payload()).unwrap();
        if i % 97 == 0 {
            broken += 1;
            writeln!(input, "{{\"device\": broken {i}").unwrap();
        }
    }
    let one = run(&input, &readings, 1);
    let expected = windows_of(&readings, MINUTES);
    assert_eq!(one.windows, expected);
    assert_eq!((one.revised, one.rejects.len()), (0, broken));
    assert!(!one.findings.is_empty() && !one.alerts.is_empty(), "spikes are found and alerted");
    for workers in [2, 4] {
        assert_eq!(run(&input, &readings, workers), one, "{workers} workers differ from one");
    }
}
