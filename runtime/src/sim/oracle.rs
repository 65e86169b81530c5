//! What must hold when everything has come to rest, recomputed by other means than the product's.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::marks::{Marks, Reading};
use super::tables::{Row, Tables};
use super::trace::Trace;

/// Windows of the simulated pipelines.
pub(crate) const WINDOW_MS: i64 = 1_000;

/// Device, and start in milliseconds.
type WindowKey = (String, i64);
/// Number of readings, their sum, the largest.
type Values = (i64, i64, i64);

/// What a webhook's receiver has got: bodies by id.
pub(crate) type Received = BTreeMap<String, Vec<u8>>;

/// Compares the tables with what the world knows.
pub(crate) fn check(tables: &Tables, marks: &Marks, received: &Received, trace: &Trace) {
    let fail = |what: String| trace.failure(what);
    let rows = |table: &str| tables.get(table).map_or(&[][..], Vec::as_slice);
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    let refused = refused(tables);
    for pipeline in ["direct", "bridged"] {
        let readings = rows(&format!("{pipeline}/readings"));
        for row in readings {
            *found.entry(row["id"].clone()).or_default() += 1;
            if !is_as_sent(marks, row) {
                fail(format!("{row:?} is not what was sent"));
            }
        }
        let taken = readings.iter().filter(|row| !refused.contains(&row["id"]));
        check_windows(pipeline, taken, rows(&format!("{pipeline}/sums")), &fail);
    }
    let known = marks.known();
    for (id, times) in &found {
        if *times > 1 {
            fail(format!("{id} is there {times} times"));
        }
        if !known.sent.contains_key(id) {
            fail(format!("{id} was never sent"));
        }
    }
    for id in known.acked.iter().filter(|id| !found.contains_key(*id)) {
        fail(format!("{id} was acknowledged and is lost"));
    }
    drop(known);
    check_alerts(rows("system/alerts"), received, &fail);
}

/// The readings that windows did not take, because their keys were new while memory was used up:
/// they are rejects, and only those.
pub(crate) fn refused(tables: &Tables) -> BTreeSet<String> {
    let rejects = tables.get("system/rejects").into_iter().flatten();
    let rejects = rejects.filter(|row| row["reason"] == "memory_max");
    let id = |row: &Row| {
        let payload = (0..row["payload"].len() / 2).map(|i| &row["payload"][2 * i..2 * i + 2]);
        let bytes: Vec<u8> = payload.filter_map(|hex| u8::from_str_radix(hex, 16).ok()).collect();
        let payload: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        payload["id"].as_str().map(str::to_owned)
    };
    rejects.filter_map(id).collect()
}

fn is_as_sent(marks: &Marks, row: &Row) -> bool {
    let known = marks.known();
    let Some(Reading { device, time_ms, value }) = known.sent.get(&row["id"]) else {
        return true;
    };
    row["device"] == *device && time_of(&row["time"]) == *time_ms && int(&row["v"]) == *value
}

/// Milliseconds of a time as text.
fn time_of(text: &str) -> i64 {
    chrono::DateTime::parse_from_rfc3339(text).map_or(i64::MIN, |t| t.timestamp_millis())
}

fn micros_of(text: &str) -> i64 {
    chrono::DateTime::parse_from_rfc3339(text).map_or(i64::MIN, |t| t.timestamp_micros())
}

fn int(text: &str) -> i64 {
    text.parse::<f64>().map_or(i64::MIN, |v| v as i64)
}

/// The newest revision of every window is what a plain loop over the readings makes of it.
fn check_windows<'r>(
    pipeline: &str,
    readings: impl Iterator<Item = &'r Row>,
    windows: &[Row],
    fail: &dyn Fn(String),
) {
    let mut expected: BTreeMap<WindowKey, Values> = BTreeMap::new();
    for row in readings {
        let start = time_of(&row["time"]).div_euclid(WINDOW_MS) * WINDOW_MS;
        let value = int(&row["v"]);
        let window = expected.entry((row["device"].clone(), start)).or_insert((0, 0, i64::MIN));
        *window = (window.0 + 1, window.1 + value, window.2.max(value));
    }
    let mut found: BTreeMap<WindowKey, (i64, Values)> = BTreeMap::new();
    let mut revisions = BTreeSet::new();
    for row in windows {
        let key = (row["device"].clone(), time_of(&row["window_start"]));
        let revision = int(&row["revision"]);
        if !revisions.insert((key.clone(), revision)) {
            fail(format!("{pipeline}: window {key:?} has revision {revision} twice"));
        }
        let values = (int(&row["n"]), int(&row["total"]), int(&row["most"]));
        let newest = found.entry(key).or_insert((revision, values));
        if revision >= newest.0 {
            *newest = (revision, values);
        }
    }
    for (key, values) in &expected {
        match found.get(key) {
            Some((_, have)) if have == values => {}
            have => fail(format!("{pipeline}: window {key:?} is {have:?}, must be {values:?}")),
        }
    }
    if let Some(key) = found.keys().find(|key| !expected.contains_key(*key)) {
        fail(format!("{pipeline}: window {key:?} has no readings"));
    }
}

/// Every alert is there once; whoever is to be told was told, of nothing else.
fn check_alerts(rows: &[Row], received: &Received, fail: &dyn Fn(String)) {
    let mut told: BTreeMap<String, bool> = BTreeMap::new();
    let mut once = BTreeSet::new();
    for row in rows {
        let event = format!("{}-{}.{}", row["alert_id"], row["status"], micros_of(&row["time"]));
        // A late reading may fire an alert again that had resolved, under its old id.
        if !once.insert(row) {
            fail(format!("alert {event} is there twice: {row:?}"));
        }
        *told.entry(event).or_insert(false) |= row["notify"] == "true";
    }
    for (event, notify) in &told {
        let found = received.keys().any(|id| id.starts_with(&format!("{event}-")));
        if *notify && !found {
            fail(format!("nobody was told of {event}"));
        }
    }
    for id in received.keys() {
        let event = id.rsplit_once('-').map_or("", |(event, _)| event);
        if !told.contains_key(event) {
            fail(format!("somebody was told of {id}, which is no alert"));
        }
    }
}
