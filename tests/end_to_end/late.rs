//! Readings that come when their windows are gone: the windows are computed again, whatever happens
//! to the process meanwhile.

use std::collections::BTreeSet;
use std::process::Command;

use crate::support::{Device, Home, Instance, START_MS, eventually};

const PIPELINE: &str = r#"
name = "late"
[source]
type = "endpoint"
listen = "127.0.0.1:0"
topics = ["t/{device}"]
[reading]
device = "{device}"
time = "ts"
idle_close = "2s"
[reading.fields]
v = "float64"

[limits]
reading_every = "1s"

[[step]]
name = "minutes"
type = "window"
every = "1m"
revise_for = "2m"
select = { n = "count(*)", total = "sum(v)", least = "min(v)" }

[[step]]
name = "visits"
type = "window"
from = "readings"
gap = "130s"
max = "10m"
revise_for = "2m"
select = { n = "count(*)", total = "sum(v)" }

[[step]]
name = "near"
type = "window"
from = "readings"
before = "4m"
after = "10s"
revise_for = "2m"
select = { n = "count(*)", total = "sum(v)" }

[[step]]
name = "high"
type = "window"
from = "readings"
while = "v >= 0.5"
revise_for = "2m"
select = { n = "count(*)", total = "sum(v)" }

[[step]]
name = "tens"
type = "window"
from = "readings"
count = 10
revise_for = "2m"
select = { n = "count(*)", total = "sum(v)" }

[[table]]
from = "tens"
freshness = "500ms"
[[table]]
from = "near"
freshness = "500ms"
[[table]]
from = "high"
freshness = "500ms"
[[table]]
from = "visits"
freshness = "500ms"
[[table]]
from = "readings"
freshness = "500ms"
[[table]]
from = "minutes"
freshness = "500ms"
"#;

const DEVICES: [&str; 3] = ["d0", "d1", "d2"];

/// Readings of all devices at these seconds after the start; whether all were acknowledged.
fn publish(instance: &Instance, seconds: impl Iterator<Item = i64> + Clone) -> bool {
    DEVICES.iter().all(|device| {
        let sent: Vec<(String, String)> = seconds
            .clone()
            .map(|s| {
                let value = s.rem_euclid(7) as f64 / 8.0;
                let ts = START_MS + s * 1_000;
                (format!("t/{device}"), format!(r#"{{"ts":{ts},"v":{value}}}"#))
            })
            .collect();
        let sent = sent.iter().map(|(topic, payload)| (topic.as_str(), payload.clone()));
        let client = Device::connect(instance.endpoint(), device);
        client.is_ok_and(|mut client| client.publish_all(sent).is_ok())
    })
}

fn command(home: &Home, workers: usize, fault: Option<&str>) -> Command {
    let mut command = home.run_command(workers);
    command.args(["--recompute-every", "2s", "--checkpoint-every", "2s"]);
    if let Some(fault) = fault {
        command.env("TIDEGATE_FAULT", fault);
    }
    command
}

fn wait_for_its_end(mut instance: Instance) {
    eventually("the kill", || instance.try_ended().ok_or_else(|| instance.said()));
}

/// The windows as they are shown, and as all readings make them.
fn windows(home: &Home) -> (BTreeSet<String>, BTreeSet<String>) {
    let shown = lines(home, "SELECT device, window_start, n, total, least FROM late.minutes");
    let all = lines(
        home,
        "SELECT device, date_bin(INTERVAL '1 minute', time) AS window_start, count(*) AS n, \
         sum(v) AS total, min(v) AS least FROM late.readings GROUP BY 1, 2",
    );
    (shown, all)
}

/// The sessions of the buffered day, and as all of its readings make them: one every two minutes,
/// cut every ten.
fn visits(home: &Home) -> (BTreeSet<String>, BTreeSet<String>) {
    let rows = |sql: String| lines(home, &sql);
    let day = |time: &str| {
        let at = |s: i64| format!("to_timestamp_millis({})", START_MS + s * 1_000);
        format!("{time} >= {} AND {time} < {}", at(-86_400), at(-900))
    };
    let (of_windows, of_readings) = (day("window_start"), day("time"));
    let shown = rows(format!(
        "SELECT device, window_start, window_end, n, total FROM late.visits WHERE {of_windows}"
    ));
    let all = rows(format!(
        "SELECT device, min(time) AS window_start, max(time) AS window_end, count(*) AS n, sum(v) \
         AS total FROM late.readings WHERE {of_readings} GROUP BY device, \
         date_bin(INTERVAL '10 minutes', time)"
    ));
    (shown, all)
}

/// Rows of a table as text.
fn lines(home: &Home, sql: &str) -> BTreeSet<String> {
    let rows = home.try_rows(sql).unwrap_or_default();
    rows.into_iter().map(|row| serde_json::Value::Object(row).to_string()).collect()
}

/// The windows around readings, and as all readings make them.
fn around(home: &Home) -> (BTreeSet<String>, BTreeSet<String>) {
    let shown = "SELECT device, window_start, n, total FROM late.near";
    let all = "SELECT a.device, a.time - INTERVAL '4 minutes' AS window_start, count(*) AS n, \
               sum(b.v) AS total FROM (SELECT DISTINCT device, time FROM late.readings) a JOIN \
               late.readings b ON a.device = b.device AND b.time BETWEEN a.time - INTERVAL \
               '4 minutes' AND a.time + INTERVAL '10 seconds' GROUP BY 1, 2";
    (lines(home, shown), lines(home, all))
}

/// The states, and as all readings make them: readings of one are those after which as many others
/// had ended.
fn states(home: &Home) -> (BTreeSet<String>, BTreeSet<String>) {
    let shown = "SELECT device, window_start, window_end, n, total FROM late.high";
    let all = "SELECT device, min(time) FILTER (WHERE v >= 0.5) AS window_start, ends AS \
               window_end, count(*) FILTER (WHERE v >= 0.5) AS n, sum(v) FILTER (WHERE v >= 0.5) \
               AS total FROM (SELECT *, min(CASE WHEN v < 0.5 THEN time END) OVER (PARTITION BY \
               device ORDER BY time ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) AS ends \
               FROM late.readings) GROUP BY device, ends HAVING count(*) FILTER (WHERE v >= 0.5) \
               > 0 AND ends IS NOT NULL";
    (lines(home, shown), lines(home, all))
}

/// The counts, and as all readings make them: ten that were not late, and the late ones that come
/// behind each of these.
fn counts(home: &Home) -> (BTreeSet<String>, BTreeSet<String>) {
    let shown = "SELECT device, window_number, n, total FROM late.tens";
    let all = "SELECT device, (greatest(passed, 1) - 1) / 10 AS window_number, count(*) AS n, \
               sum(v) AS total FROM (SELECT r.device, r.v, l.journal_offset IS NULL AS in_time, \
               count(*) FILTER (WHERE l.journal_offset IS NULL) OVER (PARTITION BY r.device ORDER \
               BY r.time, r.journal_offset ROWS UNBOUNDED PRECEDING) AS passed FROM late.readings \
               r LEFT JOIN (SELECT journal_offset FROM system.late WHERE step = 'tens') l ON \
               l.journal_offset = r.journal_offset) GROUP BY 1, 2 HAVING count(*) FILTER (WHERE \
               in_time) = 10";
    (lines(home, shown), lines(home, all))
}

#[test]
fn a_day_of_buffered_readings_reaches_its_windows_over_kills_on_one_two_and_three_workers() {
    let home = Home::with(PIPELINE);
    // An hour, live; then what was buffered: some of the same hour, and the day before it. Some of
    // it comes together with the end of the hour, so that it is late for a part of the hour only.
    let live = (0..2_400).step_by(10);
    let buffered = (3..2_400).step_by(10).chain((-86_400..-1_000).step_by(120));
    let buffered = (2_400..3_600).step_by(10).chain(buffered);
    let instance = home.start_command(&mut command(&home, 2, Some("kill:recomputed_slice:1")));
    assert!(publish(&instance, live));
    let told = publish(&instance, buffered.clone());
    wait_for_its_end(instance);
    for fault in ["kill:recomputed_kept:1", "kill:recomputed:1"] {
        let instance = home.start_command(&mut command(&home, 1, Some(fault)));
        wait_for_its_end(instance);
    }
    let instance = home.start_command(&mut command(&home, 3, None));
    assert!(told || publish(&instance, buffered));
    eventually("the windows of all readings", || {
        for ((shown, all), least) in [
            (windows(&home), 2_000),
            (visits(&home), 400),
            (around(&home), 3_000),
            (states(&home), 500),
            (counts(&home), 100),
        ] {
            if shown != all || all.len() < least {
                return Err(format!(
                    "{} of {} windows are right, of {}\n{}",
                    shown.intersection(&all).count(),
                    all.len(),
                    shown.len(),
                    instance.said()
                ));
            }
        }
        Ok(())
    });
    instance.stop();
    for (table, id) in [
        ("minutes", "window_start"),
        ("visits", "window_start"),
        ("near", "window_start"),
        ("high", "window_start"),
        ("tens", "window_number"),
    ] {
        let twice = format!(
            "SELECT device, {id}, revision FROM late.{table}_revisions GROUP BY 1, 2, 3 \
             HAVING count(*) > 1"
        );
        assert_eq!(home.rows(&twice).len(), 0);
    }
    // What is left undone by a stop is done by the next start.
    let instance = home.start_command(&mut command(&home, 2, None));
    assert!(publish(&instance, [-200_000].into_iter()));
    instance.stop();
    let instance = home.start_command(&mut command(&home, 2, None));
    eventually("the windows of all readings", || {
        let (shown, all) = windows(&home);
        (shown == all).then_some(()).ok_or_else(|| format!("{} of {}", shown.len(), all.len()))
    });
    instance.stop();
}

const LIMITED: &str = r#"
name = "late"
[source]
type = "endpoint"
listen = "127.0.0.1:0"
topics = ["t/{device}"]
[reading]
device = "{device}"
time = "ts"
idle_close = "2s"
[reading.fields]
v = "float64"
[[registry]]
name = "limits"
path = "LIMITS"
key = ["device"]
valid_from = "since"
columns = { device = "string", high = "float64" }
[[step]]
name = "minutes"
type = "window"
every = "1m"
revise_for = "2m"
select = { n = "count(*)", total = "sum(v)" }
[[step]]
name = "limited"
type = "enrich"
from = "minutes"
registry = "limits"
default = { high = "total" }
[[table]]
from = "readings"
freshness = "500ms"
[[table]]
from = "minutes"
freshness = "500ms"
[[table]]
from = "limited"
freshness = "500ms"
"#;

/// Of one device there is a limit since ever, of one since the middle of the day before, of one
/// none.
#[test]
fn a_day_of_buffered_readings_reaches_tables_behind_a_join_with_a_registry_over_kills() {
    let home = Home::with("");
    let since = START_MS - 50_000_000;
    let limits = home.write("limits.csv", &format!("device,since,high\nd0,,1\nd1,{since},2\n"));
    let limits = limits.display().to_string();
    home.write("pipelines/one.toml", &LIMITED.replace("LIMITS", &limits));
    let buffered = (-86_400..-1_000).step_by(120);
    let instance = home.start_command(&mut command(&home, 2, Some("kill:recomputed_kept:1")));
    assert!(publish(&instance, (0..1_200).step_by(10)));
    let told = publish(&instance, buffered.clone());
    wait_for_its_end(instance);
    let instance = home.start_command(&mut command(&home, 3, None));
    assert!(told || publish(&instance, buffered));
    eventually("the limits of all windows", || {
        let shown = lines(&home, "SELECT device, window_start, n, high FROM late.limited");
        let all = lines(
            &home,
            "SELECT r.device, r.window_start, r.n, coalesce(v.high, r.total) AS high FROM (SELECT \
             device, date_bin(INTERVAL '1 minute', time) AS window_start, count(*) AS n, sum(v) \
             AS total FROM late.readings GROUP BY 1, 2) AS r LEFT JOIN late.limits_versions v ON \
             v.device = r.device AND (v.valid_from IS NULL OR v.valid_from <= r.window_start) AND \
             (v.valid_to IS NULL OR r.window_start < v.valid_to)",
        );
        let is_right = shown == all && all.len() > 2_000;
        is_right
            .then_some(())
            .ok_or_else(|| format!("{} of {}\n{}", shown.len(), all.len(), instance.said()))
    });
    instance.stop();
    let twice = "SELECT device, window_start, revision FROM late.limited_revisions GROUP BY 1, 2, \
                 3 HAVING count(*) > 1";
    assert_eq!(home.rows(twice).len(), 0);
    let shown = home.rows("SELECT * FROM late.limits WHERE device = 'd0'");
    assert!(shown[0].contains_key("high") && !shown[0].contains_key("told_time"), "{shown:?}");
}
