//! A restart in the middle of open windows, of matches, of rows that wait for partners and of
//! values that are known, clean or by SIGKILL, ends in the same rows as no restart.

use crate::support::{ColdChain, Device, Home, Instance, Reading, START_MS, windows_of};

const DEVICES: i64 = 4;
const READINGS: i64 = 250;
const EVERY_MS: i64 = 1_000;
const MINUTES: i64 = 4;
/// In the third minute: windows are open on all devices.
const CUT: usize = 130;

/// Temperatures rise from 20 to 24.5 °C in ten readings. What comes last settles the others.
const PATTERNS: &str = r#"
[[step]]
name   = "known"
type   = "latest"
from   = "readings"
select = { temperature = "temperature", low = "CASE WHEN temperature = 20 THEN seq END" }

[[step]]
name  = "cold"
type  = "filter"
from  = "readings"
where = "temperature = 20.5 OR seq = 1000"

[[step]]
name  = "colder"
type  = "filter"
from  = "readings"
where = "temperature = 21.5"

[[step]]
name    = "pairs"
type    = "join"
from    = "cold"
with    = "colder"
after   = "3s"
columns = ["seq"]

[[step]]
name   = "rises"
type   = "sequence"
from   = "readings"
first  = "temperature = 20"
then   = "temperature = 24.5"
within = "10s"

[[table]]
from      = "known"
freshness = "1s"
[[table]]
from      = "pairs"
freshness = "1s"
[[table]]
from      = "rises"
freshness = "1s"
"#;

fn publish(instance: &Instance, readings: &[Vec<Reading>], range: std::ops::Range<usize>) {
    for device in readings {
        let mut client = Device::connect(instance.endpoint(), &device[0].device).unwrap();
        let topic = device[0].topic();
        let part = device[range.clone()].iter().map(|r| (topic.as_str(), r.payload()));
        client.publish_all(part).unwrap();
    }
}

/// Publishes in two parts with `between` in the middle and checks every row.
fn interrupted(between: impl Fn(&Home, Instance) -> Instance) {
    let readings: Vec<Vec<Reading>> = (0..DEVICES)
        .map(|d| {
            let regular = |i| Reading::regular("north", &format!("d{d}"), i, EVERY_MS);
            (0..READINGS).chain([4 * READINGS]).map(regular).collect()
        })
        .collect();
    let home = Home::with(&(ColdChain::on_endpoint().text() + PATTERNS));
    let instance = home.start();
    publish(&instance, &readings, 0..CUT);
    let instance = between(&home, instance);
    publish(&instance, &readings, CUT..readings[0].len());

    let all: Vec<Reading> = readings.into_iter().flatten().collect();
    home.wait_for_windows(MINUTES, &windows_of(&all, MINUTES));
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", all.len() as i64);
    home.wait_for_count(
        "SELECT count(DISTINCT device || '/' || seq) FROM readings",
        all.len() as i64,
    );
    assert_eq!(home.count("SELECT count(*) FROM cold_chain.per_minute WHERE revision > 0"), 0);
    patterns(&home);
    instance.stop();
}

/// What the other steps made, which is plain from the readings.
fn patterns(home: &Home) {
    let known = "SELECT count(*) FROM cold_chain.known";
    home.wait_for_count(known, DEVICES * READINGS);
    let low = format!("(CAST(to_unixtime(time) AS BIGINT) - {}) / 10 * 10", START_MS / 1_000);
    assert_eq!(home.count(&format!("{known} WHERE low = {low}")), DEVICES * READINGS);
    let pairs = "SELECT count(*) FROM cold_chain.pairs";
    home.wait_for_count(pairs, DEVICES * READINGS / 10);
    assert_eq!(home.count(&format!("{pairs} WHERE colder_seq = seq + 2")), DEVICES * READINGS / 10);
    let rises = "SELECT count(*) FROM cold_chain.rises";
    home.wait_for_count(rises, DEVICES * READINGS / 10);
    // All but the last one are over.
    assert_eq!(home.count(&format!("{rises} WHERE active")), DEVICES);
    let all = "SELECT count(*) FROM cold_chain.rises_revisions";
    assert_eq!(home.count(all), DEVICES * (READINGS / 5 - 1));
    assert_eq!(home.count("SELECT count(*) FROM system.late"), 0);
}

#[test]
fn without_a_restart() {
    interrupted(|_, instance| instance);
}

#[test]
fn after_a_clean_stop() {
    interrupted(|home, instance| {
        instance.stop();
        let checkpoints = std::fs::read_dir(home.data().join("checkpoints")).unwrap();
        let names = checkpoints.map(|c| c.unwrap().file_name());
        assert!(names.filter(|n| n != "lock").count() > 0, "a clean stop cuts a checkpoint");
        home.start()
    });
}

#[test]
fn after_a_kill_at_once() {
    interrupted(|home, instance| {
        instance.kill();
        home.start()
    });
}

#[test]
fn after_a_kill_when_windows_were_written_and_with_other_workers() {
    interrupted(|home, instance| {
        home.wait_for_count("SELECT count(*) FROM cold_chain.per_minute", 2 * DEVICES);
        instance.kill();
        home.start_with(1)
    });
}
