//! Endless new device ids against a budget of keys: who found a place goes on as if nothing were,
//! everybody else is a row, memory has an end, and a kill in between changes no answer.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use tidegate_operators::key::{KEY_GROUPS, key_group, stable_hashes};
use tidegate_operators::spec::share_of;

use crate::support::{Home, Instance, START_MS, eventually, request_key};

const KEYS_MAX: u64 = 10_000;
/// Devices that nobody declared, each with one reading.
const FLOOD: usize = 120_000;
/// Readings in a request.
const LINES: usize = 5_000;
/// Devices that were there before, and go on.
const OLD: usize = 50;
/// What memory may grow by while the second half of the flood comes in.
const GROWTH_KIB: u64 = 64 * 1024;

const PIPELINE: &str = r#"name = "flood"
[source]
type = "http"
listen = "127.0.0.1:0"
[reading]
device = "device"
time = "ts"
idle_close = "1d"
fields = { t = "float64" }
[limits]
keys_max = 10000
[[step]]
name = "per_minute"
type = "window"
every = "1m"
select = { n = "count(*)", t_max = "max(t)" }
[[alert]]
name = "too-warm"
from = "per_minute"
fire = "t_max > 50"
[[table]]
from = "per_minute"
freshness = "1s"
"#;

/// Who finds a place among the devices in the order in which they come: the definition.
fn admitted(devices: &[String]) -> BTreeSet<&str> {
    let column: ArrayRef = Arc::new(StringArray::from_iter_values(devices));
    let mut hashes = Vec::new();
    stable_hashes(&[column], devices.len(), &mut hashes);
    let (mut places, mut found) = (vec![0; usize::from(KEY_GROUPS)], BTreeSet::new());
    for (device, hash) in devices.iter().zip(hashes) {
        let taken = &mut places[usize::from(key_group(hash))];
        if *taken < share_of(KEYS_MAX) && found.insert(device.as_str()) {
            *taken += 1;
        }
    }
    found
}

struct Client {
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
}

impl Client {
    fn new() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        Self { runtime, http: reqwest::Client::new() }
    }

    /// Sends lines until they are on disk. What was refused may have been taken all the same: it is
    /// sent again under the same key.
    fn send(&self, instance: &Instance, body: &str) {
        let (url, key) = (format!("http://{}/ingest/flood", instance.http()), request_key());
        eventually("202", || {
            let request = self.http.post(&url).header("content-type", "application/x-ndjson");
            let request = request.header("idempotency-key", &key).body(body.to_owned());
            let sent = self.runtime.block_on(request.send());
            let status = sent.map_err(|e| e.to_string())?.status().as_u16();
            if status == 202 { Ok(()) } else { Err(status.to_string()) }
        });
    }
}

/// Minute `minute` of the devices that were there before: one reading each.
fn minute(minute: i64) -> String {
    let line = |device| {
        let ms = START_MS + minute * 60_000;
        format!("{{\"device\":\"old-{device}\",\"ts\":{ms},\"t\":{}}}\n", 20 + minute)
    };
    (0..OLD).map(line).collect()
}

fn memory_kib(instance: &Instance) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", instance.id())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("Linux says it");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number of KiB")
}

const REFUSED: &str = "SELECT count(*) FROM system.rejects WHERE reason = 'keys_max'";

#[test]
fn endless_new_devices_are_rejected_by_the_budget_and_nobody_else_notices() {
    let flood: Vec<String> = (0..FLOOD).map(|i| format!("new-{i}")).collect();
    let old = (0..OLD).map(|i| format!("old-{i}"));
    let all: Vec<String> = old.chain(flood.iter().cloned()).collect();
    let places = admitted(&all);
    let home = Home::with(PIPELINE);
    let start = |workers| {
        let mut command = home.run_command(workers);
        home.start_http(command.args(["--checkpoint-every", "1s"]))
    };
    let client = Client::new();
    let mut instance = start(2);
    let (mut refused, mut memory) = (0, Vec::new());
    for (number, devices) in flood.chunks(LINES).enumerate() {
        client.send(&instance, &minute(number as i64));
        let mut body = String::new();
        for device in devices {
            writeln!(body, "{{\"device\":\"{device}\",\"ts\":{START_MS},\"t\":1}}").unwrap();
        }
        client.send(&instance, &body);
        refused += devices.iter().filter(|d| !places.contains(d.as_str())).count() as i64;
        if number + 1 == FLOOD / LINES / 2 {
            home.wait_for_count(REFUSED, refused);
            // The state of the budget comes from a checkpoint and the journal, on other workers.
            instance.kill();
            instance = start(3);
        }
        if number + 1 == FLOOD / LINES * 3 / 4 {
            home.wait_for_count(REFUSED, refused);
            memory.push(memory_kib(&instance));
        }
    }
    home.wait_for_count(REFUSED, refused);
    memory.push(memory_kib(&instance));
    assert!(refused > FLOOD as i64 * 3 / 4, "{refused} refused");
    assert!(memory[1] < memory[0] + GROWTH_KIB, "memory in KiB: {memory:?}");
    let names = "SELECT count(DISTINCT CAST(payload AS VARCHAR)) FROM system.rejects";
    assert_eq!(home.count(names), refused, "each once");
    nobody_else_notices(&home);
    let told = "SELECT count(*) FROM system.alerts WHERE pipeline = 'tidegate' \
                AND rule = 'keys_max' AND status = 'firing'";
    eventually("the engine's own alert", || match home.count(told) {
        0 => Err("none".to_owned()),
        _ => Ok(()),
    });
    let taken = everybody_else_has_a_window(&home, &client, &instance, (&flood, &places), refused);
    assert_eq!(refused + taken, FLOOD as i64);
    instance.stop();
}

/// A second reading of whoever found a place closes the window of the first, and one of others is
/// refused again; how many of the flood have a window.
fn everybody_else_has_a_window(
    home: &Home,
    client: &Client,
    instance: &Instance,
    (flood, places): (&[String], &BTreeSet<&str>),
    refused: i64,
) -> i64 {
    let (found, others): (Vec<&str>, Vec<&str>) =
        flood.iter().map(String::as_str).partition(|device| places.contains(device));
    for devices in others.chunks(LINES).take(1).chain(found.chunks(LINES)) {
        let ms = START_MS + 300_000;
        let line = |device| format!("{{\"device\":\"{device}\",\"ts\":{ms},\"t\":1}}\n");
        client.send(instance, &devices.iter().map(line).collect::<String>());
    }
    home.wait_for_count(REFUSED, refused + LINES as i64);
    let windows = "FROM flood.per_minute WHERE device LIKE 'new-%'";
    home.wait_for_count(&format!("SELECT count(*) {windows} AND n = 1"), found.len() as i64);
    let rows = home.rows(&format!("SELECT device {windows}"));
    let devices: BTreeSet<&str> = rows.iter().map(|row| row["device"].as_str().unwrap()).collect();
    assert_eq!(rows.len(), devices.len(), "each once");
    assert_eq!(devices, found.into_iter().collect());
    rows.len() as i64
}

/// Every closed minute of the old devices is there once, with its own value.
fn nobody_else_notices(home: &Home) {
    // A minute closes when its device's clock is `disorder` past its end: the last two are open.
    let minutes = (FLOOD / LINES) as i64 - 2;
    let right = format!(
        "SELECT count(*) FROM flood.per_minute \
         WHERE device LIKE 'old-%' AND n = 1 AND revision = 0 \
         AND t_max = 20 + (to_unixtime(window_start) - {}) / 60",
        START_MS / 1000
    );
    home.wait_for_count(&right, OLD as i64 * minutes);
    let all = "SELECT count(*) FROM flood.per_minute WHERE device LIKE 'old-%'";
    assert_eq!(home.count(all), OLD as i64 * minutes);
    let refused =
        "SELECT count(*) FROM system.rejects WHERE CAST(payload AS VARCHAR) LIKE '%old-%'";
    assert_eq!(home.count(refused), 0);
}
