//! Endless new device ids against a budget of memory: who was there before goes on, each row of the
//! others that finds no room is a reject, the process stays within its budget and says what it
//! does, and a kill in between changes no answer.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::fencing::all_is_committed;
use crate::support::{Home, Instance, START_MS, Scrape, eventually, get, request_key, say};

/// The binary of tests takes 130 MB before it has done anything.
const BUDGET_MIB: u64 = 384;
const BUDGET: &str = "384MiB";
/// Readings in a request of the flood.
const LINES: usize = 250;
/// Devices that were there before.
const OLD: usize = 50;
/// Rows of new keys that must have been refused before the flood ends.
const REFUSED: f64 = 20_000.0;
/// For so long the flood may take to use up the budget.
const PATIENCE: Duration = Duration::from_secs(240);

const PIPELINE: &str = r#"name = "flood"
[source]
type = "http"
listen = "127.0.0.1:0"
[reading]
device = "device"
time = "ts"
idle_close = "1d"
fields = { t = "float64" }
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

/// A client that keeps its connection.
struct Client {
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
    url: String,
}

impl Client {
    fn of(instance: &Instance) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let url = format!("http://{}/ingest/flood", instance.http());
        Self { runtime, http: reqwest::Client::new(), url }
    }

    /// Sends lines until they are on disk; how long that took. What was refused may have been
    /// taken all the same: it is sent again under the same key.
    fn send(&self, body: &str) -> Duration {
        let (begun, key) = (Instant::now(), request_key());
        eventually("202", || {
            let request = self.http.post(&self.url).header("content-type", "application/x-ndjson");
            let request = request.header("idempotency-key", &key).body(body.to_owned());
            let sent = self.runtime.block_on(request.send());
            let status = sent.map_err(|e| e.to_string())?.status().as_u16();
            if status == 202 { Ok(()) } else { Err(status.to_string()) }
        });
        begun.elapsed()
    }
}

/// Minute `minute` of the devices that were there before: one reading each.
fn minute(minute: i64) -> String {
    let line = |device| {
        let ms = START_MS + minute * 60_000;
        format!("{{\"device\":\"old-{device}\",\"ts\":{ms},\"t\":{}}}\n", 20 + minute % 20)
    };
    (0..OLD).map(line).collect()
}

fn memory_mib(instance: &Instance) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", instance.id())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("Linux says it");
    let kib: u64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap();
    kib / 1024
}

fn metric(instance: &Instance, name: &str) -> f64 {
    let (_, text) = get(instance.metrics().expect("asked for"), "/metrics").unwrap();
    Scrape::read(&text).value(name)
}

/// Devices of the flood, each with one reading, from `next` on until it is told to stop.
fn flood(client: &Client, next: &AtomicU64, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        let from = next.load(Ordering::Acquire);
        let mut body = String::new();
        for device in from..from + LINES as u64 {
            writeln!(body, "{{\"device\":\"new-{device}\",\"ts\":{START_MS},\"t\":1}}").unwrap();
        }
        client.send(&body);
        next.store(from + LINES as u64, Ordering::Release);
    }
}

/// What the devices that were there before saw.
#[derive(Default)]
struct Old {
    minutes: i64,
    took: Vec<Duration>,
}

impl Old {
    fn send(&mut self, client: &Client) {
        self.took.push(client.send(&minute(self.minutes)));
        self.minutes += 1;
    }

    /// Of a hundred acknowledgements, 99 took no longer.
    fn p99(&mut self) -> Duration {
        let mut took = std::mem::take(&mut self.took);
        took.sort();
        took[took.len() * 99 / 100]
    }
}

/// Floods until rows were refused and `check` has had its look; the most memory that was seen, MiB.
fn until_refused(
    instance: &Instance,
    next: &Arc<AtomicU64>,
    old: &mut Old,
    check: impl FnOnce(),
) -> u64 {
    let stop = Arc::new(AtomicBool::new(false));
    let (client, more, until) = (Client::of(instance), Arc::clone(next), Arc::clone(&stop));
    let flooding = std::thread::spawn(move || flood(&client, &more, &until));
    let (client, begun, mut most) = (Client::of(instance), Instant::now(), 0);
    let before = metric(instance, "tidegate_memory_refused_total");
    while metric(instance, "tidegate_memory_refused_total") < before + REFUSED {
        let devices = next.load(Ordering::Acquire);
        assert!(begun.elapsed() < PATIENCE, "{devices} devices came, {most} MiB, none is refused");
        old.send(&client);
        most = most.max(memory_mib(instance));
        std::thread::sleep(Duration::from_millis(20));
    }
    check();
    stop.store(true, Ordering::Release);
    flooding.join().unwrap();
    most.max(memory_mib(instance))
}

const REJECTS: &str = "SELECT count(*) FROM system.rejects WHERE reason = 'memory_max'";

#[test]
fn endless_new_devices_find_no_more_memory_than_there_is_and_nobody_else_notices() {
    let home = Home::with(PIPELINE);
    let start = |workers, budget: &str| {
        let mut command = home.run_command(workers);
        command.args(["--checkpoint-every", "1s", "--metrics", "127.0.0.1:0"]);
        home.start_http(command.args(["--memory-max", budget]))
    };
    let instance = start(2, BUDGET);
    let said = instance.said();
    assert!(said.contains("memory: at most 384.0 MiB, as asked for"), "{said}");
    let (mut old, next) = (Old::default(), Arc::new(AtomicU64::new(0)));
    let client = Client::of(&instance);
    (0..200).for_each(|_| old.send(&client));
    let calm = old.p99();
    let most = until_refused(&instance, &next, &mut old, || the_engine_says_so(&home, &instance));
    let flooded = old.p99();
    say(&format!(
        "p99 of acknowledgements: {calm:?}, {flooded:?} in the flood; {most} MiB at most"
    ));
    assert!(most < BUDGET_MIB, "{most} MiB");
    let refused = settled(&home, &instance);
    everybody_else_goes_on(&home, &old);
    // What was refused comes from the journal, on another number of workers and with all the memory
    // that there is.
    instance.kill();
    let instance = start(3, "0");
    everybody_else_goes_on(&home, &old);
    assert_eq!(settled(&home, &instance), refused, "a replay refuses the same");
    // Each device of the flood is a window or a reject.
    let close = |device: u64| {
        let ms = START_MS + 300_000;
        format!("{{\"device\":\"new-{device}\",\"ts\":{ms},\"t\":1}}\n")
    };
    let all = next.load(Ordering::Acquire);
    let client = Client::of(&instance);
    for from in (0..all).step_by(LINES) {
        client.send(&(from..from + LINES as u64).map(close).collect::<String>());
    }
    let windows = "SELECT count(*) FROM flood.per_minute WHERE device LIKE 'new-%' AND n = 1";
    home.wait_for_count(windows, all as i64 - refused);
    it_is_over(&home);
    instance.stop();
}

/// How many rows were refused, when all that came is worked through and committed.
fn settled(home: &Home, instance: &Instance) -> i64 {
    // What came last may be in the epoch that is open.
    let last = metric(instance, "tidegate_journal_sealed_epoch") + 1.0;
    eventually("all epochs are done", || match metric(instance, "tidegate_epoch_done") {
        done if done >= last => Ok(()),
        done => Err(format!("{done} of {last}")),
    });
    all_is_committed(instance);
    home.count(REJECTS)
}

/// Every closed minute of the old devices is there once, with its own value.
fn everybody_else_goes_on(home: &Home, old: &Old) {
    // A minute closes when its device's clock is `disorder` past its end: the last two are open.
    let minutes = old.minutes - 2;
    let right = format!(
        "SELECT count(*) FROM flood.per_minute WHERE device LIKE 'old-%' AND n = 1 \
         AND revision = 0 AND t_max = 20 + ((to_unixtime(window_start) - {}) / 60) % 20",
        START_MS / 1000
    );
    home.wait_for_count(&right, OLD as i64 * minutes);
    let refused =
        "SELECT count(*) FROM system.rejects WHERE CAST(payload AS VARCHAR) LIKE '%old-%'";
    assert_eq!(home.count(refused), 0);
}

/// What the killed process had told is ended by the one that has room.
fn it_is_over(home: &Home) {
    let turns = "SELECT sum(CASE state WHEN 'reached' THEN 1 ELSE -1 END) FROM system.limits \
                 WHERE kind = 'memory'";
    home.wait_for_count(turns, 0);
    let resolved = "SELECT count(*) FROM system.alerts WHERE pipeline = 'tidegate' \
                    AND rule = 'memory_max' AND status = 'resolved'";
    home.wait_for_count(resolved, 1);
}

/// By its alert, its health, its metrics and its rows.
fn the_engine_says_so(home: &Home, instance: &Instance) {
    // Memory goes up and down around the limit.
    eventually("the stage", || match metric(instance, "tidegate_memory_stage") {
        stage if stage >= 2.0 => Ok(()),
        stage => Err(stage.to_string()),
    });
    assert_eq!(metric(instance, "tidegate_memory_max_bytes"), (BUDGET_MIB << 20) as f64);
    eventually("its health", || match get(instance.metrics().unwrap(), "/health").unwrap() {
        (503, health) if health.contains("memory_max") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let told = "SELECT count(*) FROM system.alerts WHERE pipeline = 'tidegate' \
                AND rule = 'memory_max' AND status = 'firing'";
    home.wait_for_count(told, 1);
    for (subject, percent) in [("tight", 65), ("full", 75)] {
        let reached = format!(
            "SELECT count(*) FROM system.limits WHERE kind = 'memory' AND state = 'reached' \
             AND subject = '{subject}' AND value > max AND max = {}",
            (BUDGET_MIB << 20) / 100 * percent
        );
        eventually("rows of the limits", || match home.count(&reached) {
            0 => Err(subject.to_owned()),
            _ => Ok(()),
        });
    }
}
