//! More than the process can work through: devices are slowed down and not refused, the journal and
//! memory stay within their budgets, the delay is told, and in the end everything is there once.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::points::{check_readings, check_windows_and_alerts, reading};
use crate::support::{
    Device, Home, Instance, PATIENCE, Published, Reading, Receiver, Scrape, Site, Traffic,
    eventually, get, publish, say,
};

const JOURNAL_BYTES_MAX: u64 = 256 << 10;
const MEMORY_BYTES_MAX: f64 = (512 << 20) as f64;
/// Each epoch with rows takes a fifth of a second, however fast the machine is. While messages
/// come, one is sealed every twentieth of a second: four times as many as can be worked through.
const SLOW: &str = "slow:epoch_complete:1+,slow:epoch_complete:1+,slow:epoch_complete:1+,\
                    slow:epoch_complete:1+";
const DEVICES: usize = 4;
/// As fast as they can; together more than twice what the journal may hold.
const TRAFFIC: Traffic = Traffic { reading, readings_max: 1_100, pause: Duration::ZERO };
const EVERY_MS: i64 = 1_000;

/// Bytes of the journal's files. Between two looks at their names none came and none went, and
/// files only grow: so at the end of the look there were at least as many.
fn bytes_of(journal: &Path) -> u64 {
    let names = || {
        let entries = std::fs::read_dir(journal).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        names.sort();
        names
    };
    loop {
        let before = names();
        let len = |path: &std::path::PathBuf| std::fs::metadata(path).map_or(0, |m| m.len());
        let bytes = before.iter().map(len).sum();
        if names() == before {
            return bytes;
        }
    }
}

/// What was seen while devices published.
#[derive(Debug, Default)]
struct Seen {
    /// Sources waited for room in the journal.
    was_full: bool,
    journal_bytes: u64,
    memory_bytes: f64,
    lag_s: f64,
}

impl Seen {
    fn look(&mut self, home: &Home, instance: &Instance) {
        self.journal_bytes = self.journal_bytes.max(bytes_of(&home.data().join("journal")));
        let now = metrics(instance);
        self.was_full |= now.value("tidegate_journal_full") == 1.0;
        self.memory_bytes = self.memory_bytes.max(now.value("process_resident_memory_bytes"));
        self.lag_s = self.lag_s.max(now.value("tidegate_lag_seconds"));
    }
}

fn metrics(instance: &Instance) -> Scrape {
    Scrape::read(&get(instance.metrics().expect("asked for"), "/metrics").unwrap().1)
}

/// Publishes all of it as fast as it is taken, and looks meanwhile.
fn flood(home: &Home, instance: &Instance) -> (Vec<Published>, Seen) {
    let (site, mut seen) = (Arc::new(Site::default()), Seen::default());
    site.moved(Some(instance.endpoint()));
    let devices: Vec<_> = (0..DEVICES).map(|d| publish(format!("d{d}"), TRAFFIC, &site)).collect();
    let begun = Instant::now();
    while devices.iter().any(|device| !device.is_finished()) {
        assert!(begun.elapsed() < PATIENCE, "{} are acknowledged, {seen:?}", site.acknowledged());
        seen.look(home, instance);
        std::thread::sleep(Duration::from_millis(20));
    }
    (devices.into_iter().map(|device| device.join().unwrap()).collect(), seen)
}

#[test]
fn more_than_can_be_worked_through_slows_devices_down_and_nothing_is_lost() {
    let receiver = Receiver::start();
    let home = Home::notifying(&receiver);
    let mut command = home.run_command(2);
    command.args(["--journal-max", "256KiB", "--memory-max", "512MiB"]);
    command.args(["--metrics", "127.0.0.1:0"]).env("TIDEGATE_FAULT", SLOW);
    let instance = home.start_command(&mut command);
    let (published, seen) = flood(&home, &instance);
    say(&format!("{} readings: {seen:?}", DEVICES as i64 * TRAFFIC.readings_max));
    assert!(seen.was_full, "it was not too much: {seen:?}");
    assert!(seen.journal_bytes <= JOURNAL_BYTES_MAX, "{seen:?}");
    assert!(seen.journal_bytes > JOURNAL_BYTES_MAX / 2, "{seen:?}");
    assert!(seen.memory_bytes < MEMORY_BYTES_MAX, "{seen:?}");
    // At least what one epoch takes.
    assert!(seen.lag_s > 0.2, "{seen:?}");
    for device in &published {
        assert_eq!(device.readings, TRAFFIC.readings_max);
        assert_eq!(device.again, 0, "{} was disconnected", device.device);
    }
    eventually("no delay any more", || {
        let now = metrics(&instance);
        let of = |name: &str| now.value(&format!("tidegate_{name}"));
        match (of("lag_seconds"), of("journal_full")) {
            (0.0, 0.0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    // One last reading on each device closes its windows.
    let last = |p: &Published| Reading::regular("north", &p.device, 9_000, EVERY_MS);
    let closing: Vec<Reading> = published.iter().map(last).collect();
    let mut closer = Device::connect(instance.endpoint(), "closing").unwrap();
    for last in &closing {
        closer.publish_all([(last.topic().as_str(), last.payload())]).unwrap();
    }
    instance.stop();
    let mut readings: Vec<Reading> = published.iter().flat_map(|p| p.all(TRAFFIC)).collect();
    check_windows_and_alerts(&home, &receiver, &readings);
    readings.extend(closing);
    check_readings(&home, &readings);
}
