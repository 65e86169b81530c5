//! SIGKILL under load: every reading that a device published is in the readings table exactly once,
//! and windows and alerts are those of these readings.
//!
//! Moments follow from a seed, which `TIDEGATE_SEED` replaces to search for other ones.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{
    Device, Home, Instance, PATIENCE, Published, Reading, Receiver, Rng, Site, Traffic, eventually,
    publish, say,
};

const DEVICES: usize = 4;
const EVERY_MS: i64 = 200;
const READINGS_PER_MINUTE: i64 = 60_000 / EVERY_MS;
/// In each third minute devices are too warm: an alert fires, and is resolved in the next.
const WARM_EVERY_MINUTES: i64 = 3;

/// How a run is disturbed.
pub(super) struct Plan {
    pub(super) seed: u64,
    /// Readings of each device.
    pub(super) readings: i64,
    /// Between two readings of a device.
    pub(super) pause: Duration,
    pub(super) kills: usize,
    /// Longest time between a moment that is counted in acknowledgements and the kill.
    pub(super) delay_ms_max: u64,
    /// Workers of the first start, of the one after the first kill, and so on, round and round.
    pub(super) workers: &'static [usize],
    pub(super) checkpoint_every: &'static str,
}

impl Plan {
    fn all(&self) -> i64 {
        DEVICES as i64 * self.readings
    }

    /// Waits for the moment of a kill.
    pub(super) fn wait_for_kill(&self, kill: usize, rng: &mut Rng, site: &Site) {
        let part = self.all() as usize / (self.kills + 1);
        let moment = kill * part + part / 2 + rng.below(part as u64) as usize;
        let deadline = Instant::now() + PATIENCE;
        while site.acknowledged() < moment {
            assert!(Instant::now() < deadline, "too few acknowledgements: {site:?}");
            std::thread::sleep(Duration::from_micros(500));
        }
        std::thread::sleep(Duration::from_millis(rng.below(self.delay_ms_max + 1)));
    }

    fn start(&self, home: &Home, kills_before: usize) -> Instance {
        let mut command: Command =
            home.run_command(self.workers[kills_before % self.workers.len()]);
        command.args(["--checkpoint-every", self.checkpoint_every]);
        home.start_command(&mut command)
    }
}

fn reading(device: &str, seq: i64) -> Reading {
    let mut reading = Reading::regular("north", device, seq, EVERY_MS);
    if is_warm(seq / READINGS_PER_MINUTE) {
        reading.temperature += 40.0;
    }
    reading
}

fn is_warm(minute: i64) -> bool {
    minute % WARM_EVERY_MINUTES == 1
}

/// Kills and starts again at seeded moments, counted in acknowledgements.
fn disturb(home: &Home, plan: &Plan, site: &Site) -> (Instance, ()) {
    let mut rng = Rng(plan.seed);
    let mut instance = plan.start(home, 0);
    for kill in 0..plan.kills {
        site.moved(Some(instance.endpoint()));
        plan.wait_for_kill(kill, &mut rng, site);
        site.moved(None);
        instance.kill();
        instance = plan.start(home, kill + 1);
    }
    site.moved(Some(instance.endpoint()));
    (instance, ())
}

/// Windows count exactly the rows that the readings table has for their minutes, and each warm
/// minute has one alert, told once and resolved once.
fn check_windows_and_alerts(home: &Home, plan: &Plan) {
    let windows = format!(
        "SELECT count(*) FROM (\
         SELECT device, date_trunc('minute', time) AS m, count(*) AS n, sum(temperature) AS t \
         FROM readings WHERE seq < {} GROUP BY 1, 2) r \
         FULL JOIN (SELECT *, window_start AS m FROM per_minute) w \
         ON r.device = w.device AND r.m = w.m \
         WHERE (r.n IS DISTINCT FROM w.n) OR (r.t IS DISTINCT FROM w.t_sum)",
        plan.readings
    );
    home.wait_for_count(&windows, 0);
    let minutes = plan.readings / READINGS_PER_MINUTE;
    assert_eq!(home.count("SELECT count(*) FROM per_minute"), DEVICES as i64 * minutes);
    let revision_twice = "SELECT count(*) FROM (SELECT 1 FROM per_minute_revisions \
        GROUP BY device, window_start, revision HAVING count(*) > 1)";
    assert_eq!(home.count(revision_twice), 0, "a revision is there twice");
    let warm = (0..minutes).filter(|m| is_warm(*m)).count() as i64 * DEVICES as i64;
    for status in ["firing", "resolved"] {
        let of_status = format!("FROM system.alerts WHERE status = '{status}'");
        home.wait_for_count(&format!("SELECT count(*) {of_status}"), warm);
        home.wait_for_count(&format!("SELECT count(DISTINCT alert_id) {of_status}"), warm);
    }
}

/// The receiver has accepted one request for each change of an alert, perhaps more than once, but
/// always under its id.
fn check_webhooks(home: &Home, receiver: &Receiver) {
    let changes = home.count("SELECT count(*) FROM system.alerts");
    eventually("the webhooks", || {
        let accepted = receiver.deliveries().into_iter().filter(|d| d.status == 200);
        let ids: BTreeSet<String> = accepted.map(|d| d.id).collect();
        if ids.len() as i64 == changes {
            return Ok(());
        }
        Err(format!("{} ids for {changes} changes", ids.len()))
    });
}

/// Publishes while `disturb` kills and starts, and checks what has come of it. It gives the last
/// instance, and what that needs to go on.
pub(super) fn run<T>(mut plan: Plan, disturb: impl FnOnce(&Home, &Plan, &Site) -> (Instance, T)) {
    if let Ok(seed) = std::env::var("TIDEGATE_SEED") {
        plan.seed = seed.parse().expect("TIDEGATE_SEED is a number");
    }
    let receiver = Receiver::start();
    let home = Home::notifying(&receiver);
    let site = Arc::new(Site::default());
    let traffic = Traffic { reading, readings_max: plan.readings, pause: plan.pause };
    let publishers: Vec<_> =
        (0..DEVICES).map(|d| publish(format!("d{d}"), traffic, &site)).collect();
    let (instance, needed) = disturb(&home, &plan, &site);
    let published: Vec<Published> =
        publishers.into_iter().map(|p| p.join().expect("a publisher failed")).collect();
    let again: usize = published.iter().map(|p| p.again).sum();
    let all = plan.all();
    assert_eq!(site.acknowledged() as i64, all);

    let distinct = "SELECT count(DISTINCT device || '/' || seq) FROM readings";
    home.wait_for_count(distinct, all);
    // A last reading on each device closes its windows.
    let mut closing = Device::connect(instance.endpoint(), "closing").unwrap();
    for d in 0..DEVICES {
        let last = Reading::regular("north", &format!("d{d}"), 10 * plan.readings, EVERY_MS);
        closing.publish_all([(last.topic().as_str(), last.payload())]).unwrap();
    }
    home.wait_for_count(distinct, all + DEVICES as i64);

    // Nothing is there twice: what was sent again was recognised.
    assert_eq!(home.count("SELECT count(*) FROM readings"), all + DEVICES as i64);
    let counts = format!("{all} acknowledged, 0 lost, {again} sent again, 0 doubled");
    say(&format!("{} kills with seed {}: {counts}", plan.kills, plan.seed));
    assert!(again > 0, "no kill hit a message in flight: the test shows nothing");
    check_windows_and_alerts(&home, &plan);
    check_webhooks(&home, &receiver);
    instance.stop();
    drop(needed);
}

#[test]
fn kill_under_load_loses_nothing_that_was_acknowledged() {
    let plan = Plan {
        seed: 11,
        readings: 3_000,
        pause: Duration::ZERO,
        kills: 3,
        delay_ms_max: 0,
        workers: &[2],
        checkpoint_every: "10s",
    };
    run(plan, disturb);
}

/// Tables commit every second and checkpoints are cut all the time, so that kills hit the middle
/// of them; each start has another number of workers.
#[test]
fn kill_in_commits_and_checkpoints_with_other_workers() {
    let plan = Plan {
        seed: 12,
        readings: 4_800,
        pause: Duration::from_millis(1),
        kills: 6,
        delay_ms_max: 400,
        workers: &[2, 1, 4, 3],
        checkpoint_every: "100ms",
    };
    run(plan, disturb);
}
