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

[limits]
reading_every = "1s"

[[step]]
name = "days"
type = "window"
every = "day"
zone = "UTC"
early = "200ms"
select = { total = "sum(v)" }

[[step]]
name = "trips"
type = "window"
gap = "1h"
early = "200ms"
select = { total = "sum(v)" }

[[alert]]
name = "so-far"
from = "days"
early = true
fire = "total > 5"

[[table]]
from = "readings"
freshness = "200ms"
[[table]]
from = "trips"
freshness = "200ms"

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
    command.args(["--checkpoint-every", "1s", "--recompute-every", "2s"]);
    command
}

fn publish(instance: &Instance, at_ms: i64, v: i64) {
    for device in DEVICES {
        let mut client = Device::connect(instance.endpoint(), device).unwrap();
        let payload = format!(r#"{{"ts":{at_ms},"v":{v}}}"#);
        client.publish_all([(format!("t/{device}").as_str(), payload)]).unwrap();
    }
}

/// Waits until each device's window shows this total.
fn wait_for(home: &Home, instance: &Instance, (table, total): (&str, i64), is_final: bool) {
    let sql = format!(
        "SELECT count(*) AS n FROM early.{table} WHERE total = {total} AND is_final = {is_final}"
    );
    eventually("the windows", || {
        let rows = home.try_rows(&sql)?;
        match rows.first().and_then(|row| row["n"].as_i64()) == Some(DEVICES.len() as i64) {
            true => Ok(()),
            false => Err(format!("{rows:?}\n{}", instance.said())),
        }
    });
}

/// How many changes of the alert by whole days there are.
fn some(status: &str) -> String {
    format!("SELECT count(*) FROM system.alerts WHERE rule = 'some' AND status = '{status}'")
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
                wait_for(&home, &instance, ("days", total), false);
                wait_for(&home, &instance, ("trips", total), false);
            }
        }
        assert_eq!(home.count("SELECT count(*) FROM early.whole"), 0, "no day is over");
        assert_eq!(home.count(&some("firing")), 0, "no day is over");
        instance.kill();
    }
    let instance = home.start_command(&mut command(&home, 2));
    publish(&instance, START_MS + DAY_MS, 0);
    wait_for(&home, &instance, ("days", total), true);
    wait_for(&home, &instance, ("trips", total), true);
    let n = DEVICES.len() as i64;
    home.wait_for_count(&format!("SELECT count(*) FROM early.whole WHERE total = {total}"), n);
    home.wait_for_count(&some("firing"), n);
    // Who took open days heard it once, over all kills, before any day was over.
    let told = "SELECT count(*) FROM system.alerts WHERE rule = 'so-far' AND status = 'firing' \
                AND \"row\" LIKE '%\"is_final\":false%'";
    assert_eq!(home.count(told), n);
    // A reading that is too late for its day: it is computed again, and revisions go on.
    publish(&instance, START_MS + 3 * DAY_MS, 0);
    publish(&instance, START_MS + 5_500, 1_000);
    wait_for(&home, &instance, ("days", total + 1_000), true);
    instance.stop();
    // Each revision of each window is there once, with none left out, and never has fewer readings
    // than the one before it.
    for table in ["days", "trips"] {
        let odd = format!(
            "SELECT count(*) AS n FROM (SELECT revision, rows, \
             row_number() OVER w - 1 AS place, lag(rows) OVER w AS before \
             FROM early.{table}_revisions \
             WINDOW w AS (PARTITION BY device, window_start ORDER BY revision)) \
             WHERE revision <> place OR rows < before"
        );
        assert_eq!(home.count(&odd), 0, "{table}");
    }
    let early = "SELECT count(*) AS n FROM early.days_revisions WHERE NOT is_final";
    assert!(home.count(early) >= 6 * n, "each was seen at least twice in each round");
}
