//! Limits with the real binary: a disk that fills up, tables that are away, a receiver of webhooks
//! that does not answer.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{
    ColdChain, Device, Home, Instance, PATIENCE, Reading, Receiver, START_MS, Scrape, eventually,
    get, is_long, say, skipped, tidegate, windows_of,
};

/// A file system of its own with little room, for one test.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounted at `path`, which is made; `None`, said loudly, where that is not allowed.
    fn mounted(path: PathBuf, mib: u32) -> Option<Self> {
        std::fs::create_dir_all(&path).unwrap();
        let size = format!("size={mib}m");
        let options = ["-t", "tmpfs", "-o", &size, "tmpfs"];
        match Command::new("mount").args(options).arg(&path).output() {
            Ok(output) if output.status.success() => Some(Self(path)),
            other => {
                skipped("a full disk", &format!("a tmpfs needs root: {other:?}"));
                None
            }
        }
    }

    /// Takes the room that is left but for some; removing the file gives it back.
    fn fill_but(&self, left_bytes: u64) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        let block = vec![7; 1 << 16];
        while file.write_all(&block).is_ok() {}
        let len = file.metadata().unwrap().len();
        file.set_len(len - left_bytes).unwrap();
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Publishes one reading after the other until it is told to stop, each when the one before was
/// acknowledged; gives what was acknowledged.
struct Publisher {
    acked: Arc<AtomicU64>,
    /// When the last one was acknowledged.
    last: Arc<Mutex<Instant>>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Vec<Reading>>,
}

impl Publisher {
    fn start(instance: &Instance) -> Self {
        let (acked, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counter, until, to) = (Arc::clone(&acked), Arc::clone(&stop), instance.endpoint());
        let last = Arc::new(Mutex::new(Instant::now()));
        let heard = Arc::clone(&last);
        let thread = std::thread::spawn(move || {
            let mut device = Device::connect(to, "d1").unwrap();
            let mut sent = Vec::new();
            while !until.load(Ordering::Acquire) {
                let reading = Reading::regular("north", "d1", sent.len() as i64, 100);
                device.send(&reading.topic(), &reading.payload()).unwrap();
                sent.push(reading);
                device.acknowledged().unwrap();
                *heard.lock().unwrap() = Instant::now();
                counter.fetch_add(1, Ordering::AcqRel);
            }
            sent
        });
        Self { acked, last, stop, thread }
    }

    fn acked(&self) -> u64 {
        self.acked.load(Ordering::Acquire)
    }

    fn goes_on(&self, why: &str, within: Duration) {
        let (before, begun) = (self.acked(), Instant::now());
        while self.acked() < before + 3 {
            assert!(begun.elapsed() < within, "{why}: no acknowledgement for {within:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Acknowledgements end, and stay away; how long after `full` the last one came.
    fn stands_still(&self, full: Instant) -> Duration {
        loop {
            let before = self.acked();
            std::thread::sleep(Duration::from_millis(700));
            if self.acked() == before {
                let after = self.last.lock().unwrap().saturating_duration_since(full);
                assert!(
                    after < asked().stops_within,
                    "the last acknowledgement came {after:?} too late"
                );
                return after;
            }
            assert!(full.elapsed() < PATIENCE, "acknowledgements go on");
        }
    }

    fn finish(self) -> Vec<Reading> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }
}

/// All windows of what was acknowledged are there, and every reading once.
fn everything_is_there_once(home: &Home, sent: &[Reading]) {
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", sent.len() as i64);
    home.wait_for_count("SELECT count(DISTINCT seq) FROM cold_chain.readings", sent.len() as i64);
    let last_ms = sent.iter().map(|r| r.at_ms).max().unwrap() - 5_000;
    let minutes = (last_ms - START_MS).div_euclid(60_000);
    home.wait_for_windows(minutes, &windows_of(sent, minutes));
}

const RESERVE_BYTES: u64 = 8 << 20;

/// What is asked of a full disk.
struct Asked {
    mib: u32,
    /// Acknowledgements stop, after it is full.
    stops_within: Duration,
    /// They go on, after there is room.
    resumes_within: Duration,
}

/// As the acceptance test says it, where that is asked for: anything else may run beside it in CI.
fn asked() -> Asked {
    match is_long() {
        true => Asked {
            mib: 32,
            stops_within: Duration::from_secs(1),
            resumes_within: Duration::from_secs(5),
        },
        false => Asked { mib: 48, stops_within: Duration::from_secs(30), resumes_within: PATIENCE },
    }
}

/// Waits until `/health` is green, or is red and says by this name that there is no room.
fn health_says(address: SocketAddr, what: Option<&str>) {
    eventually("what /health says of the disk", || {
        let (status, text) = get(address, "/health").unwrap();
        let body: Value = serde_json::from_str(&text).unwrap();
        let reasons = body["reasons"].as_array().unwrap();
        // A write may find no room before anybody has looked how much there is.
        let says = |why: &str| why.contains("bytes are free") || why.contains("No space left");
        let of = |what| reasons.iter().filter(move |r| r["what"] == what);
        let is_said = match what {
            Some(what) => status == 503 && of(what).any(|r| r["why"].as_str().is_some_and(says)),
            None => status == 200 && reasons.is_empty(),
        };
        if is_said { Ok(()) } else { Err(format!("{status} {body}")) }
    });
}

fn is_told(receiver: &Receiver) -> Result<(), String> {
    let bodies: Vec<String> = receiver.deliveries().into_iter().map(|d| d.body).collect();
    let told = bodies.iter().any(|b| b.contains("disk_full") && b.contains("firing"));
    if told { Ok(()) } else { Err(format!("{bodies:?}")) }
}

/// Waits until checkpoints were given up, or until one is made after that.
fn checkpoints(address: SocketAddr, given_up: bool) {
    let look = |name: &str| Scrape::read(&get(address, "/metrics").unwrap().1).value(name);
    let name = match given_up {
        true => "tidegate_checkpoints_failed_total",
        false => "tidegate_checkpoints_total",
    };
    let before = look(name);
    eventually(name, || match look(name) {
        now if now > before => Ok(()),
        now => Err(now.to_string()),
    });
}

/// A disk of all data, of the tables or of the checkpoints; by which name `/health` says so.
fn a_disk_fills_up(of: &str, what: &str) {
    let stops = of.is_empty();
    let receiver = Receiver::start();
    let home = Home::notifying_of_the_engine(&receiver);
    let Some(disk) = SmallDisk::mounted(home.data().join(of), asked().mib) else { return };
    let mut command = home.run_command(2);
    command.args(["--checkpoint-every", "1s", "--disk-reserve", "8MiB"]);
    let mut instance = home.start_command(command.args(["--metrics", "127.0.0.1:0"]));
    let metrics = instance.metrics().unwrap();
    let publisher = Publisher::start(&instance);
    publisher.goes_on("at first", PATIENCE);
    // At first less is left than the reserve, then nothing.
    for left_bytes in [RESERVE_BYTES * 3 / 4, 0] {
        let filler = disk.fill_but(left_bytes);
        let full = Instant::now();
        match stops {
            true => {
                let after = publisher.stands_still(full);
                say(&format!("{left_bytes} bytes left: the last acknowledgement after {after:?}"));
                health_says(metrics, Some(what));
            }
            false => publisher.goes_on("with a full disk of others", PATIENCE),
        }
        if left_bytes == 0 && !stops {
            health_says(metrics, Some(what));
            publisher.goes_on("also when a write has failed", PATIENCE);
        }
        if of == "checkpoints" && left_bytes == 0 {
            checkpoints(metrics, true);
        }
        if stops && left_bytes > 0 {
            eventually("the engine's own alert, while it still can", || is_told(&receiver));
        }
        std::thread::sleep(Duration::from_secs(2));
        assert!(instance.try_ended().is_none(), "a full disk ends nothing: {}", instance.said());
        std::fs::remove_file(filler).unwrap();
        publisher.goes_on("with room again", asked().resumes_within);
        health_says(metrics, None);
        checkpoints(metrics, false);
    }
    let sent = publisher.finish();
    everything_is_there_once(&home, &sent);
    if what == "disk_full" {
        let sql = "SELECT count(*) FROM system.alerts WHERE pipeline = 'tidegate' \
                   AND rule = 'disk_full' AND status = ";
        for status in ["'firing'", "'resolved'"] {
            eventually("its rows", || match home.count(&format!("{sql}{status}")) {
                n if n > 0 => Ok(()),
                n => Err(format!("{n} {status}")),
            });
        }
    }
    instance.stop();
    drop(disk);
}

/// A process that was killed must come back by itself: nobody is there to start it when there is
/// room again.
#[test]
fn a_start_on_a_full_disk_of_the_tables_waits_for_room() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let Some(disk) = SmallDisk::mounted(home.data().join("tables"), 48) else { return };
    let metrics = ["--metrics", "127.0.0.1:0"];
    let instance = home.start_command(home.run_command(2).args(metrics));
    let publisher = Publisher::start(&instance);
    publisher.goes_on("at first", PATIENCE);
    home.wait_for_count("SELECT CAST(count(*) > 0 AS INT) FROM cold_chain.readings", 1);
    let sent = publisher.finish();
    instance.kill();
    let filler = disk.fill_but(0);
    let mut instance = Instance::spawn(home.run_command(2).args(metrics));
    eventually("what the start waits for", || {
        let address = instance.metrics().ok_or_else(|| instance.said())?;
        let (status, text) = get(address, "/ready").map_err(|e| e.to_string())?;
        let waits = status == 503 && text.contains("\"waits\"") && text.contains("space left");
        if waits { Ok(()) } else { Err(text) }
    });
    assert!(instance.try_ended().is_none(), "{}", instance.said());
    std::fs::remove_file(filler).unwrap();
    eventually("the start", || instance.address().ok_or_else(|| instance.said()));
    everything_is_there_once(&home, &sent);
    instance.stop();
    drop(disk);
}

/// All of the data folder: the reserve lets checkpoints, tables and the alert be written.
#[test]
fn a_full_disk_stops_acknowledgements_and_they_go_on_by_themselves() {
    a_disk_fills_up("", "disk_full");
}

#[test]
fn a_full_disk_of_the_tables_stops_nothing() {
    a_disk_fills_up("tables", "tables_unreachable");
}

#[test]
fn a_full_disk_of_the_checkpoints_stops_nothing() {
    a_disk_fills_up("checkpoints", "disk_full");
}

fn swap(from: &Path, to: &Path) {
    std::fs::rename(from, to).unwrap();
}

/// Tables that are away for thousands of epochs: alerts are told meanwhile, acknowledgements go on,
/// and then everything is there once.
#[test]
fn tables_that_are_away_hold_up_no_alert() {
    let receiver = Receiver::start();
    let home = Home::notifying(&receiver);
    let instance = home.start();
    let [tables, away] = ["tables", "away"].map(|name| home.data().join(name));
    let mut device = Device::connect(instance.endpoint(), "d1").unwrap();
    let mut sent = Vec::new();
    let mut hot = 0;
    let mut send = |device: &mut Device, seq: i64, is_hot: bool| {
        let mut reading = Reading::regular("north", "d1", seq, 10_000);
        reading.temperature = if is_hot { 60.0 } else { reading.temperature };
        device.publish_all([(reading.topic().as_str(), reading.payload())]).unwrap();
        sent.push(reading);
    };
    send(&mut device, 0, false);
    swap(&tables, &away);
    std::fs::write(&tables, "away").unwrap();
    // Every reading is an epoch or two of its own; each sixth minute is hot and the next is not.
    for seq in 1..1_200 {
        let is_hot = (seq / 6) % 6 == 5;
        send(&mut device, seq, is_hot);
        if is_hot && seq % 6 == 5 {
            hot += 1;
        }
        if seq % 6 == 2 && (seq / 6 - 1) % 6 == 5 {
            let wanted = hot;
            eventually("the alert, while the tables are away", || {
                let bodies = receiver.deliveries();
                let told =
                    bodies.iter().filter(|d| d.status == 200 && d.body.contains("alert.firing"));
                match told.count() {
                    n if n >= wanted => Ok(()),
                    n => Err(format!("{n} of {wanted}")),
                }
            });
        }
    }
    std::fs::remove_file(&tables).unwrap();
    swap(&away, &tables);
    everything_is_there_once(&home, &sent);
    instance.stop();
}

/// Changes of a limit in their order, and the largest value and limit that they say.
fn told_of(home: &Home, limit: &str) -> Result<(Vec<String>, i64, i64), String> {
    let rows = home.try_rows(&format!(
        "SELECT state, value, max FROM system.limits WHERE kind = '{limit}' ORDER BY time"
    ))?;
    // Of a limit that is left there is none.
    let numbers = |name: &str| rows.iter().filter_map(|row| row.get(name)?.as_i64()).max();
    let most = |name: &str| numbers(name).unwrap_or_default();
    let states = rows.iter().filter_map(|row| Some(row["state"].as_str()?.to_owned()));
    Ok((states.collect(), most("value"), most("max")))
}

/// A dataflow that does not keep up: what is in flight has a limit, which is told; sources go on,
/// and then everything is there once.
#[test]
fn a_dataflow_that_is_behind_is_told_and_holds_up_no_source() {
    let receiver = Receiver::start();
    let home = Home::notifying(&receiver);
    let mut command = home.run_command(1);
    command.args(["--metrics", "127.0.0.1:0"]);
    // Each epoch with an alert takes a tenth of a second longer than its messages.
    let slow = "slow:outbox_append:1+,slow:alert_enqueued:1+";
    let instance = home.start_command(command.env("TIDEGATE_FAULT", slow));
    let behind = || {
        let (_, text) = get(instance.metrics().expect("asked for"), "/metrics").unwrap();
        let now = Scrape::read(&text);
        now.value("tidegate_journal_sealed_epoch") - now.value("tidegate_epoch_done")
    };
    let mut device = Device::connect(instance.endpoint(), "d1").unwrap();
    let mut sent = Vec::new();
    let begun = Instant::now();
    while behind() < 280.0 {
        assert!(begun.elapsed() < PATIENCE, "{} epochs behind", behind());
        // Every other minute is hot: each is a change of the alert.
        for _ in 0..20 {
            let mut reading = Reading::regular("north", "d1", sent.len() as i64, 60_000);
            reading.temperature = if sent.len() % 2 == 0 { 60.0 } else { 20.0 };
            device.publish_all([(reading.topic().as_str(), reading.payload())]).unwrap();
            sent.push(reading);
        }
    }
    // So long has it to be reached.
    std::thread::sleep(Duration::from_secs(1));
    eventually("the limit, reached and left", || match told_of(&home, "in_flight")? {
        (told, value, 256) if told.starts_with(&["reached".into(), "left".into()]) => {
            if value > 256 { Ok(()) } else { Err(value.to_string()) }
        }
        other => Err(format!("{other:?}")),
    });
    everything_is_there_once(&home, &sent);
    instance.stop();
}

/// Nobody answers: notifications beyond the limit are given up, counted, told as rows, and sent
/// when somebody wants them again.
#[test]
fn notifications_beyond_the_limit_are_told_and_can_be_sent_again() {
    let (receiver, closed) = Receiver::closed();
    let home = Home::notifying(&receiver);
    let mut command = home.run_command(1);
    command.args(["--outbox-max", "2", "--metrics", "127.0.0.1:0"]);
    let instance = home.start_command(&mut command);
    let overflowed = || {
        let (_, text) = get(instance.metrics().expect("asked for"), "/metrics").unwrap();
        let now = Scrape::read(&text);
        assert_eq!(now.value("tidegate_outbox_max"), 2.0);
        now.value("tidegate_outbox_overflowed_total")
    };
    // Every other minute is hot: each minute is a change of the alert.
    let mut device = Device::connect(instance.endpoint(), "d1").unwrap();
    for seq in 0..10 {
        let mut reading = Reading::regular("north", "d1", seq, 60_000);
        reading.temperature = if seq % 2 == 0 { 60.0 } else { 20.0 };
        device.publish_all([(reading.topic().as_str(), reading.payload())]).unwrap();
    }
    eventually("what is given up", || match overflowed() {
        n if n >= 2.0 => Ok(()),
        n => Err(n.to_string()),
    });
    let reached = |states: &[&str]| {
        eventually(&format!("{states:?}"), || match told_of(&home, "outbox")? {
            (told, value, 2) if told == states && value >= 2 => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    reached(&["reached"]);
    closed.open();
    reached(&["reached", "left"]);
    let outbox = |args: &[&str]| {
        let mut command = tidegate();
        command.arg("outbox").args(args).arg("--data").arg(home.data());
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let listed = outbox(&["list"]);
    assert!(listed.contains("2 notifications were pending (outbox_max)"), "{listed}");
    outbox(&["resend", "--all-dead"]);
    let changes = "SELECT count(*) FROM system.alerts WHERE pipeline <> 'tidegate'";
    eventually("each change of the alert", || {
        let all = home.count(changes);
        let taken = receiver.deliveries().into_iter().filter(|d| d.status == 200);
        match taken.map(|d| d.id).collect::<BTreeSet<_>>().len() as i64 {
            taken if taken == all && taken >= 4 => Ok(()),
            taken => Err(format!("{taken} of {all}")),
        }
    });
    instance.stop();
}

/// Devices that come at once, more than find a place.
const FLEET: i64 = 600;

/// What the engine has said stands after a kill, in whatever moment: the same trouble is no second
/// alert, and a limit that is reached is not reached again. Until there is a checkpoint the journal
/// knows it, and then the checkpoint; files in which it could be noted too late do not count.
#[test]
fn what_was_said_before_a_kill_is_not_said_again_after_it() {
    for every in ["1h", "200ms"] {
        let home = Home::with(&(ColdChain::on_endpoint().text() + "\n[limits]\nkeys_max = 1\n"));
        let start = || {
            let mut command = home.run_command(1);
            command.args(["--checkpoint-every", every, "--metrics", "127.0.0.1:0"]);
            home.start_command(&mut command)
        };
        // Two steps, each with a place for one key in each of 256 groups.
        let publish = |instance: &Instance, round: i64| {
            let device = |number| format!("d{}", round * FLEET + number);
            let all = (0..FLEET).map(|n| Reading::regular("north", &device(n), 0, 1_000));
            let all: Vec<_> = all.map(|reading| (reading.topic(), reading.payload())).collect();
            let mut client = Device::connect(instance.endpoint(), "gateway").unwrap();
            client.publish_all(all.iter().map(|r| (r.0.as_str(), r.1.clone()))).unwrap();
        };
        let refused =
            || home.count("SELECT count(*) FROM system.rejects WHERE reason = 'keys_max'");
        let metric = |instance: &Instance, name: &str| {
            Scrape::read(&get(instance.metrics().unwrap(), "/metrics").unwrap().1).value(name)
        };
        let told = "SELECT count(*) FROM system.alerts WHERE rule = 'keys_max'";
        let mut instance = start();
        publish(&instance, 0);
        home.wait_for_count(told, 1);
        eventually("the limit", || match told_of(&home, "keys")? {
            (told, ..) if told == ["reached", "reached"] => Ok(()),
            other => Err(format!("{other:?}")),
        });
        for round in 1..=2 {
            let before = refused();
            if every == "200ms" {
                let before = metric(&instance, "tidegate_checkpoints_total");
                eventually("a checkpoint", || {
                    match metric(&instance, "tidegate_checkpoints_total") {
                        now if now > before + 1.0 => Ok(()),
                        now => Err(now.to_string()),
                    }
                });
            }
            instance.kill();
            for name in ["engine-alerts.json", "limits.json"] {
                let _ = std::fs::remove_file(home.data().join(name));
            }
            instance = start();
            publish(&instance, round);
            eventually("more are refused", || match refused() {
                now if now >= before + FLEET => Ok(()),
                now => Err(format!("{now} after {before}")),
            });
            // Four looks at what is wrong.
            std::thread::sleep(Duration::from_secs(1));
        }
        instance.stop();
        assert_eq!(home.count(told), 1, "checkpoints each {every}");
        let limits = told_of(&home, "keys").unwrap().0;
        assert_eq!(limits, ["reached", "reached"], "checkpoints each {every}");
    }
}
