//! Results of windows that are still open: a dashboard sees them before the windows close, and
//! after kills they are the same as without.

use std::process::Command;

use crate::support::{Device, Home, Instance, eventually};

const PIPELINE: &str = r#"
name = "early"
[source]
type = "endpoint"
listen = "127.0.0.1:0"
topics = ["t/{device}"]
[reading]
device = "{device}"
time = "ts"
idle_close = "1h"
disorder = "0s"
[reading.fields]
v = "int64"

[[step]]
name = "days"
type = "window"
every = "day"
zone = "UTC"
early = "200ms"
select = { total = "sum(v)" }

[[alert]]
name = "some"
from = "days"
fire = "total > 0"

[[table]]
from = "days"
freshness = "200ms"
[[table]]
from = "days"
name = "whole"
early = false
freshness = "200ms"
"#;

const DAY_MS: i64 = 86_400_000;
const START_MS: i64 = 20_000 * DAY_MS;
const DEVICES: [&str; 3] = ["d0", "d1", "d2"];

fn command(home: &Home, workers: usize) -> Command {
    let mut command = home.run_command(workers);
    command.args(["--checkpoint-every", "1s"]);
    command
}

fn publish(instance: &Instance, at_ms: i64, v: i64) {
    for device in DEVICES {
        let mut client = Device::connect(instance.endpoint(), device).unwrap();
        let payload = format!(r#"{{"ts":{at_ms},"v":{v}}}"#);
        client.publish_all([(format!("t/{device}").as_str(), payload)]).unwrap();
    }
}

/// Waits until each device's open day shows this total.
fn wait_for(home: &Home, instance: &Instance, total: i64, is_final: bool) {
    let sql = format!(
        "SELECT count(*) AS n FROM early.days WHERE total = {total} AND is_final = {is_final}"
    );
    eventually("the windows", || {
        let rows = home.try_rows(&sql)?;
        match rows.first().and_then(|row| row["n"].as_i64()) == Some(DEVICES.len() as i64) {
            true => Ok(()),
            false => Err(format!("{rows:?}\n{}", instance.said())),
        }
    });
}

#[test]
fn an_open_window_is_seen_before_it_closes_and_kills_do_not_show() {
    let home = Home::with(PIPELINE);
    let mut total = 0;
    for (round, workers) in [1, 3, 2].into_iter().enumerate() {
        let instance = home.start_command(&mut command(&home, workers));
        for part in 0..4 {
            total += 1 + part;
            publish(&instance, START_MS + (round as i64 * 10 + part) * 1_000, 1 + part);
            if part % 2 == 0 {
                wait_for(&home, &instance, total, false);
            }
        }
        assert_eq!(home.count("SELECT count(*) FROM early.whole"), 0, "no day is over");
        assert_eq!(home.count("SELECT count(*) FROM system.alerts"), 0, "no day is over");
        instance.kill();
    }
    let instance = home.start_command(&mut command(&home, 2));
    publish(&instance, START_MS + DAY_MS, 0);
    wait_for(&home, &instance, total, true);
    let n = DEVICES.len() as i64;
    home.wait_for_count(&format!("SELECT count(*) FROM early.whole WHERE total = {total}"), n);
    home.wait_for_count("SELECT count(*) FROM system.alerts WHERE status = 'firing'", n);
    instance.stop();
    // Each revision of each window is there once, with none left out, and never has fewer readings
    // than the one before it.
    let odd = "SELECT count(*) AS n FROM (SELECT revision, rows, \
               row_number() OVER w - 1 AS place, lag(rows) OVER w AS before \
               FROM early.days_revisions \
               WINDOW w AS (PARTITION BY device, window_start ORDER BY revision)) \
               WHERE revision <> place OR rows < before";
    assert_eq!(home.count(odd), 0);
    let early = "SELECT count(*) AS n FROM early.days_revisions WHERE NOT is_final";
    assert!(home.count(early) >= 6 * n, "each was seen at least twice in each round");
}
