//! The process is killed at every named fault point (`runtime/src/fault.rs`), while devices
//! publish; what comes out in the end is what a plain loop makes of the readings.
//!
//! One home lives through all of its kills: each start dies at the next point. CI takes each point
//! at its 2nd hit, in two homes; with `TIDEGATE_LONG=1` each point is taken at its 1st, 2nd and
//! 10th hit as well, each in a home of its own.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{
    ColdChain, Device, Home, Instance, PATIENCE, Published, Reading, Receiver, Site, Traffic,
    eventually, is_long, publish, say, windows_of,
};

/// Points on the way in, and those of the outbox.
const INTAKE: &[&str] = &[
    "after_recv",
    "after_wal_write",
    "after_sync",
    "before_ack",
    "after_ack",
    "epoch_seal",
    "epoch_complete",
    "outbox_append",
    "alert_enqueued",
    "webhook_sent",
];
/// Points of tables and checkpoints.
const COMMIT: &[&str] = &[
    "parquet_part",
    "parquet_done",
    "before_commit",
    "after_commit",
    "snapshot_file",
    "snapshot_manifest",
    "before_gc",
    "mid_gc",
];

const DEVICES: usize = 3;
const EVERY_MS: i64 = 1_000;
const READINGS_PER_MINUTE: i64 = 60;
const ABORTED: i32 = 6;
/// After this many readings a device would wait for the end; no run comes near it.
const READINGS_MAX: i64 = 100_000;

const TRAFFIC: Traffic =
    Traffic { reading, readings_max: READINGS_MAX, pause: Duration::from_millis(3) };

/// Every third minute is too warm.
pub(super) fn reading(device: &str, seq: i64) -> Reading {
    let mut reading = Reading::regular("north", device, seq, EVERY_MS);
    if seq / READINGS_PER_MINUTE % 3 == 1 {
        reading.temperature += 40.0;
    }
    reading
}

/// Starts with a fault and waits for the death that it brings.
fn die_at(home: &Home, point: &str, hit: u64, site: &Site) {
    let mut command = home.run_command(2);
    command.args(["--checkpoint-every", "100ms"]);
    command.env("TIDEGATE_FAULT", format!("kill:{point}:{hit}"));
    let mut instance = Instance::spawn(&mut command);
    let deadline = Instant::now() + PATIENCE;
    let status: ExitStatus = loop {
        site.moved(instance.address());
        if let Some(status) = instance.try_ended() {
            break status;
        }
        assert!(Instant::now() < deadline, "never came to {point} for the {hit}th time");
        std::thread::sleep(Duration::from_millis(2));
    };
    site.moved(None);
    let said = format!("fault Kill at {point}, hit {hit}");
    eventually("the name of the point", || {
        if instance.said().contains(&said) { Ok(()) } else { Err(instance.said()) }
    });
    assert_eq!(status.signal(), Some(ABORTED), "{point}: {status}\n{}", instance.said());
}

fn run(kills: &[(&str, u64)]) {
    let receiver = Receiver::start();
    let secret_of = |home: &Home| home.write("webhook-secret", &Receiver::secret());
    let home = Home::with("");
    let pipeline = ColdChain::on_endpoint().notifying(&receiver.url, &secret_of(&home));
    home.write("pipelines/one.toml", &pipeline.text().replace("\"1s\"", "\"100ms\""));
    let site = Arc::new(Site::default());
    let devices: Vec<_> = (0..DEVICES).map(|d| publish(format!("d{d}"), TRAFFIC, &site)).collect();
    for (point, hit) in kills {
        die_at(&home, point, *hit, &site);
    }
    let instance = home.start();
    site.moved(Some(instance.endpoint()));
    // However soon it died: enough for an alert on each device that fires and is resolved.
    let wanted = site.acknowledged().max(3 * READINGS_PER_MINUTE as usize * DEVICES);
    eventually("more acknowledgements", || match site.acknowledged() {
        n if n >= wanted + DEVICES * READINGS_PER_MINUTE as usize => Ok(()),
        n => Err(format!("{n}, wanted {wanted} and more")),
    });
    site.enough();
    let published: Vec<Published> = devices.into_iter().map(|d| d.join().unwrap()).collect();
    // One last reading on each device closes its windows.
    let closing = |p: &Published| Reading::regular("north", &p.device, 2 * READINGS_MAX, EVERY_MS);
    let mut closer = Device::connect(instance.endpoint(), "closing").unwrap();
    for last in published.iter().map(closing) {
        closer.publish_all([(last.topic().as_str(), last.payload())]).unwrap();
    }
    // A clean stop commits everything, so that one look is enough.
    instance.stop();
    let mut readings: Vec<Reading> = published.iter().flat_map(|p| p.all(TRAFFIC)).collect();
    check_windows_and_alerts(&home, &receiver, &readings);
    readings.extend(published.iter().map(closing));
    check_readings(&home, &readings);
    let again: usize = published.iter().map(|p| p.again).sum();
    let (n, all) = (kills.len(), readings.len());
    say(&format!("killed at {n} points: {all} readings, {again} sent again, all exact: {kills:?}"));
}

/// Each reading is there once, as it was sent.
pub(super) fn check_readings(home: &Home, readings: &[Reading]) {
    let rows = home.rows("SELECT device, seq, temperature FROM readings ORDER BY device, seq");
    let found = rows.iter().map(|r| {
        let device = r["device"].as_str().unwrap().to_owned();
        (device, r["seq"].as_i64().unwrap(), r["temperature"].as_f64().unwrap())
    });
    let mut expected: Vec<_> =
        readings.iter().map(|r| (r.device.clone(), r.seq, r.temperature)).collect();
    expected.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    let differs = expected.iter().map(Some).chain([None]).zip(found.map(Some).chain([None]));
    for (expected, found) in differs {
        assert_eq!(expected, found.as_ref(), "the first reading that differs");
    }
}

/// Windows are those of the plain loop, in their first revision; alerts are what follows from them;
/// and the receiver has taken each change under one id.
pub(super) fn check_windows_and_alerts(home: &Home, receiver: &Receiver, readings: &[Reading]) {
    let windows = windows_of(readings, i64::MAX);
    let closed = 1 + windows.iter().map(|w| w.2).max().expect("there are windows");
    assert_eq!(home.windows(closed).unwrap(), windows, "windows");
    let revised = "SELECT count(*) FROM per_minute_revisions WHERE revision > 0";
    assert_eq!(home.count(revised), 0, "windows were told twice");

    let mut firing: BTreeMap<&str, bool> = BTreeMap::new();
    let mut expected = Vec::new();
    for (_, device, minute, _, _, t_max) in &windows {
        let fires = firing.entry(device.as_str()).or_default();
        if *t_max > 50.0 && !*fires {
            *fires = true;
            expected.push((device.clone(), *minute, "firing".to_owned()));
        } else if *t_max < 40.0 && *fires {
            *fires = false;
            expected.push((device.clone(), *minute, "resolved".to_owned()));
        }
    }
    let rows = home.rows(
        "SELECT keys, \"row\", status, alert_id, arrow_cast(time, 'Int64') AS at_us \
         FROM system.alerts WHERE pipeline <> 'tidegate'",
    );
    let json = |text: &serde_json::Value| -> serde_json::Value {
        serde_json::from_str(text.as_str().unwrap()).unwrap()
    };
    let mut found: Vec<(String, i64, String)> = rows
        .iter()
        .map(|r| {
            let minute = minute_of(json(&r["row"])["window_start"].as_str().unwrap());
            let device = json(&r["keys"])["device"].as_str().unwrap().to_owned();
            (device, minute, r["status"].as_str().unwrap().to_owned())
        })
        .collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "alerts");
    assert!(!expected.is_empty(), "no alert fired: the test shows nothing");

    let changes = |r: &crate::support::Row| {
        let [id, status] = ["alert_id", "status"].map(|name| r[name].as_str().unwrap());
        format!("{id}-{status}.{}-", r["at_us"])
    };
    let mut told: Vec<String> = rows.iter().map(changes).collect();
    let mut accepted: BTreeMap<String, String> = BTreeMap::new();
    for delivery in receiver.deliveries() {
        assert!(delivery.signed_well, "{delivery:?}");
        let body = accepted.entry(delivery.id).or_insert_with(|| delivery.body.clone());
        assert_eq!(*body, delivery.body, "one id, two notifications");
    }
    told.sort();
    let ids: Vec<String> =
        accepted.keys().map(|id| id[..id.rfind('-').unwrap() + 1].to_owned()).collect();
    assert_eq!(ids, told, "webhooks");
}

/// Minutes from the start of the readings to a time like `2026-01-01T05:33:00Z`.
fn minute_of(time: &str) -> i64 {
    let number = |from: usize| time[from..from + 2].parse::<i64>().unwrap();
    assert!(time.starts_with("2026-01-"), "readings end within a month: {time}");
    ((number(8) - 1) * 24 + number(11)) * 60 + number(14)
}

/// Pairs of kills for CI, or nothing: the long form has them.
fn each(points: &[&'static str]) {
    if is_long() {
        for point in points {
            for hit in [1, 2, 10] {
                run(&[(point, hit)]);
            }
        }
    }
    run(&points.iter().map(|point| (*point, 2)).collect::<Vec<_>>());
}

#[test]
fn a_kill_at_each_point_of_the_intake_and_the_outbox_changes_nothing() {
    each(INTAKE);
}

#[test]
fn a_kill_at_each_point_of_tables_and_checkpoints_changes_nothing() {
    each(COMMIT);
}
