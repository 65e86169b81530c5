//! Pipelines are changed while devices publish: what did not change goes on as if nothing had been,
//! what changed is as if it had always been so, also if the process dies in the middle.
//!
//! The oracle is a loop over the readings that were sent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Device, Home, Instance, Scrape, eventually, get, tidegate};

/// First reading, milliseconds since the Unix epoch: on a whole hour.
const START_MS: i64 = 1_767_225_600_000;
/// Readings of each device before and after the change, one per second: the change falls into the
/// middle of a window.
const BEFORE: i64 = 125;
const READINGS: i64 = 250;
/// A reading far behind all others, which closes all windows.
const LAST: i64 = 100_000;
/// Length of windows, in readings.
const EVERY: i64 = 10;
const DEVICES: [&str; 3] = ["d1", "d2", "d3"];

fn value(device: &str, seq: i64) -> i64 {
    (seq * 37 + i64::from(device.as_bytes()[1]) * 11) % 101
}

fn payload(device: &str, seq: i64) -> String {
    format!(r#"{{"ts":{},"v":{}}}"#, START_MS + seq * 1000, value(device, seq))
}

/// A pipeline with windows that stay, windows that are changed, and alerts.
fn pipeline(name: &str, second: &str, alerts: &str) -> String {
    format!(
        r#"
name = "{name}"
[source]
type = "endpoint"
listen = "127.0.0.1:0"
topics = ["{name}/{{device}}"]
[reading]
device = "{{device}}"
time = "ts"
disorder = "0s"
idle_close = "1h"
fields = {{ v = "int64" }}
[[step]]
name = "sums"
type = "window"
from = "readings"
every = "10s"
select = {{ n = "count(*)", total = "sum(v)" }}
[[step]]
name = "extreme"
type = "window"
from = "readings"
every = "10s"
select = {{ x = "{second}" }}
{alerts}
[[table]]
from = "sums"
freshness = "1s"
[[table]]
from = "extreme"
freshness = "1s"
"#
    )
}

/// Fires for every device at its first window, for good.
fn alert(name: &str, fire: &str) -> String {
    let rule = "from = \"sums\"\nclear = \"n < 0\"";
    format!("[[alert]]\nname = \"{name}\"\nfire = \"{fire}\"\n{rule}\n")
}

fn rising() -> String {
    alert("always", "n > 0")
}

fn publish(to: SocketAddr, pipeline: &str, seqs: impl Iterator<Item = i64> + Clone) {
    for device in DEVICES {
        let topic = format!("{pipeline}/{device}");
        let mut client = Device::connect(to, &format!("{pipeline}-{device}")).unwrap();
        client.publish_all(seqs.clone().map(|s| (topic.as_str(), payload(device, s)))).unwrap();
    }
}

/// What one column of windows has to be: by device and number of the window.
fn expected(of: impl Fn(&[i64], i64) -> i64) -> BTreeMap<(String, i64), i64> {
    let mut rows = BTreeMap::new();
    for device in DEVICES {
        for window in 0..READINGS / EVERY {
            let seqs = window * EVERY..(window + 1) * EVERY;
            let values: Vec<i64> = seqs.map(|seq| value(device, seq)).collect();
            rows.insert((device.to_owned(), window), of(&values, window));
        }
    }
    rows
}

/// One column of a table of windows, each row of which must come once.
fn windows(home: &Home, table: &str, column: &str) -> Result<BTreeMap<(String, i64), i64>, String> {
    let start = START_MS / 1000;
    let rows = home.try_rows(&format!(
        "SELECT device, (to_unixtime(window_start) - {start}) / {EVERY} AS w, {column} AS c \
         FROM {table} WHERE to_unixtime(window_start) < {} ORDER BY device, w",
        start + READINGS
    ))?;
    let mut windows = BTreeMap::new();
    for row in rows {
        let key = (row["device"].as_str().unwrap().to_owned(), row["w"].as_i64().unwrap());
        let twice = windows.insert(key, row["c"].as_i64().unwrap());
        assert!(twice.is_none(), "twice in {table}: {row:?}");
    }
    Ok(windows)
}

fn wait_for(home: &Home, table: &str, column: &str, expected: &BTreeMap<(String, i64), i64>) {
    eventually(&format!("{table}.{column}"), || {
        let found = windows(home, table, column)?;
        let differs = |key: &&(String, i64)| found.get(*key) != expected.get(*key);
        let first: Vec<_> = expected.keys().chain(found.keys()).filter(differs).take(3).collect();
        match first.is_empty() {
            true => Ok(()),
            false => Err(format!("{} rows, other ones at {first:?}", found.len())),
        }
    });
}

fn apply(home: &Home, more: &[&str]) -> Output {
    let mut command = tidegate();
    command.arg("apply").arg(home.pipelines()).arg("--data").arg(home.data()).args(more);
    command.output().expect("the binary starts")
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Two pipelines, `a` with an alert, on one endpoint.
fn home() -> Home {
    let home = Home::with(&pipeline("a", "max(v)", &rising()));
    home.write("pipelines/two.toml", &pipeline("b", "max(v)", ""));
    home
}

/// Windows before the change were told by the old definition, all others by the new one, which also
/// knows the readings before the change.
fn changed_at(window: i64) -> impl Fn(&[i64], i64) -> i64 {
    move |values: &[i64], number| match number < window {
        true => *values.iter().max().unwrap(),
        false => *values.iter().min().unwrap(),
    }
}

fn sum(values: &[i64], _: i64) -> i64 {
    values.iter().sum()
}

fn max(values: &[i64], _: i64) -> i64 {
    *values.iter().max().unwrap()
}

/// Waits until the windows before the change are in the tables: from then on they are told.
fn wait_until_told(home: &Home) {
    let windows = BEFORE / EVERY * DEVICES.len() as i64;
    home.wait_for_count("SELECT count(*) FROM a.extreme", windows);
    home.wait_for_count("SELECT count(*) FROM system.alerts", DEVICES.len() as i64);
}

fn ended_alerts(home: &Home) -> i64 {
    home.count("SELECT count(*) FROM system.alerts WHERE reason = 'rule_changed'")
}

#[test]
fn a_change_keeps_rebuilds_and_ends_what_it_says_while_devices_publish() {
    let home = home();
    let mut command = home.run_command(2);
    let instance = home.start_command(command.args(["--metrics", "127.0.0.1:0"]));
    let to = instance.endpoint();
    // The other pipeline is busy all the time.
    let done = Arc::new(AtomicBool::new(false));
    let is_done = Arc::clone(&done);
    let other = std::thread::spawn(move || {
        for seq in 0..READINGS {
            publish(to, "b", seq..seq + 1);
            assert!(seq > 2 || !is_done.load(Ordering::SeqCst), "it was busy before the change");
        }
        publish(to, "b", LAST..LAST + 1);
    });
    publish(to, "a", 0..BEFORE);
    wait_until_told(&home);
    let renamed = pipeline("a", "min(v)", &alert("other", "n > 1")).replace("\"sums\"", "\"all\"");
    home.write("pipelines/one.toml", &renamed);
    let look = out(&apply(&home, &["--dry-run"]));
    assert!(look.contains("all: keeps its state (it was a/sums)"), "{look}");
    assert!(look.contains("extreme: changed, rebuilt"), "{look}");
    assert!(look.contains("alert/always: goes") && look.contains("rule_changed"), "{look}");
    assert!(look.contains("pipeline b: unchanged"), "{look}");
    assert_eq!(ended_alerts(&home), 0, "nothing was done yet");
    let applied = apply(&home, &[]);
    assert!(applied.status.success(), "{}", err(&applied));
    assert!(out(&applied).contains("done after epoch"), "{}", out(&applied));
    done.store(true, Ordering::SeqCst);
    publish(to, "a", (BEFORE..READINGS).chain([LAST]));
    other.join().unwrap();
    for column in ["n", "total"] {
        let of = |values: &[i64], w: i64| if column == "n" { EVERY } else { sum(values, w) };
        wait_for(&home, "b.sums", column, &expected(of));
    }
    wait_for(&home, "b.extreme", "x", &expected(max));
    wait_for(&home, "a.extreme", "x", &expected(changed_at(BEFORE / EVERY)));
    // The windows that stay go on in another table, because the step has another name.
    let mut rest = expected(sum);
    rest.retain(|(_, window), _| *window >= BEFORE / EVERY);
    wait_for(&home, "a.all", "total", &rest);
    let devices = DEVICES.len() as i64;
    eventually("all alerts", || {
        let fired = home.count("SELECT count(*) FROM system.alerts WHERE rule = 'other'");
        if fired == devices { Ok(()) } else { Err(fired.to_string()) }
    });
    assert_eq!(ended_alerts(&home), devices);
    let open = "SELECT count(*) FROM (SELECT alert_id FROM system.alerts WHERE rule = 'always' \
                GROUP BY alert_id HAVING count(*) = 2 AND max(reason) = 'rule_changed')";
    assert_eq!(home.count(open), devices, "the very alerts that were open");
    let (_, text) = get(instance.metrics().expect("asked for"), "/metrics").unwrap();
    let counted = Scrape::read(&text).value("tidegate_alert_changes_total");
    assert_eq!(counted, home.count("SELECT count(*) FROM system.alerts") as f64, "these, too");
    instance.stop();
}

#[test]
fn what_cannot_be_is_refused_with_all_reasons_and_everything_goes_on() {
    let home = home();
    let instance = home.start();
    publish(instance.endpoint(), "a", 0..BEFORE);
    wait_until_told(&home);
    home.write("pipelines/one.toml", &pipeline("a", "maxx(v)", &rising()));
    let bad = apply(&home, &[]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(
        err(&bad).contains("maxx") && err(&bad).contains("nothing was changed"),
        "{}",
        err(&bad)
    );
    let moved = pipeline("a", "max(v)", &rising()).replace("127.0.0.1:0", "127.0.0.1:1");
    home.write("pipelines/one.toml", &moved);
    let text = pipeline("b", "CAST(max(v) AS VARCHAR)", "");
    home.write("pipelines/two.toml", &text);
    let refused = apply(&home, &[]);
    assert_eq!(refused.status.code(), Some(1));
    for reason in ["127.0.0.1:1", "start it with the new files", "b.extreme", "column `x`"] {
        assert!(err(&refused).contains(reason), "{reason} in {}", err(&refused));
    }
    home.write("pipelines/one.toml", &pipeline("a", "max(v)", &rising()));
    home.write("pipelines/two.toml", &pipeline("b", "max(v)", ""));
    assert!(out(&apply(&home, &[])).contains("nothing to change"));
    publish(instance.endpoint(), "a", (BEFORE..READINGS).chain([LAST]));
    wait_for(&home, "a.sums", "total", &expected(sum));
    wait_for(&home, "a.extreme", "x", &expected(max));
    assert_eq!(ended_alerts(&home), 0);
    instance.stop();
    let gone = apply(&home, &[]);
    assert!(gone.status.code() == Some(1) && err(&gone).contains("no instance"), "{}", err(&gone));
}

/// Kills the process at a point within the change, and starts it with the new files.
fn killed_at(point: &str) {
    let home = home();
    let mut command = home.run_command(2);
    let instance = home.start_command(command.env("TIDEGATE_FAULT", format!("kill:{point}:1")));
    publish(instance.endpoint(), "a", 0..BEFORE);
    wait_until_told(&home);
    home.write("pipelines/one.toml", &pipeline("a", "min(v)", &alert("other", "n > 1")));
    assert!(!apply(&home, &[]).status.success(), "it died at {point}");
    let status = instance.ended(crate::support::PATIENCE);
    assert!(!status.success(), "{status}");
    let again: Instance = home.start_with(1);
    publish(again.endpoint(), "a", (BEFORE..READINGS).chain([LAST]));
    wait_for(&home, "a.sums", "total", &expected(sum));
    wait_for(&home, "a.extreme", "x", &expected(changed_at(BEFORE / EVERY)));
    home.wait_for_count("SELECT count(*) FROM system.alerts WHERE rule = 'other'", 3);
    assert_eq!(ended_alerts(&home), DEVICES.len() as i64, "{point}");
    again.stop();
}

#[test]
fn a_death_just_before_the_change_is_made_good_by_the_next_start() {
    killed_at("apply_before_switch");
}

#[test]
fn a_death_just_after_the_change_is_made_good_by_the_next_start() {
    killed_at("apply_after_switch");
}

#[test]
fn watched_files_are_applied_and_bad_ones_are_told() {
    let home = home();
    let mut command = home.run_command(1);
    let instance = home.start_command(command.arg("--watch"));
    publish(instance.endpoint(), "a", 0..BEFORE);
    wait_until_told(&home);
    home.write("pipelines/one.toml", "name = 3");
    home.write("pipelines/two.toml", &pipeline("c", "max(v)", ""));
    assert_eq!(
        apply(&home, &[]).status.code(),
        Some(1),
        "a file that cannot be applied by hand either"
    );
    home.write("pipelines/one.toml", &pipeline("a", "min(v)", ""));
    home.wait_for_count(
        "SELECT count(*) FROM system.alerts WHERE reason = 'rule_changed'",
        DEVICES.len() as i64,
    );
    publish(instance.endpoint(), "a", (BEFORE..READINGS).chain([LAST]));
    publish(instance.endpoint(), "c", (0..READINGS).chain([LAST]));
    wait_for(&home, "a.extreme", "x", &expected(changed_at(BEFORE / EVERY)));
    wait_for(&home, "c.sums", "total", &expected(sum));
    instance.stop();
}

#[test]
fn a_change_can_be_explained_beforehand() {
    let home = home();
    let new = home.write("new.toml", &pipeline("a", "min(v)", ""));
    let explained = explain(&new, &[&home.pipelines()]);
    let text = out(&explained);
    assert!(explained.status.success(), "{text}");
    for line in [
        "pipeline a: changed",
        "  sums: keeps its state",
        "  extreme: changed, rebuilt from what the journal still has",
        "  alert/always: goes, with its state; its open alerts end as rule_changed",
        "pipeline b: removed",
        "  table b.sums: written no more",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}

fn explain(new: &Path, against: &[&Path]) -> Output {
    let mut command = tidegate();
    command.arg("explain").arg(new).arg("--against").args(against);
    command.output().expect("the binary starts")
}

/// What is said of the operator that is changed.
fn of_extreme(output: &Output) -> Option<String> {
    let text = out(output);
    text.lines().find(|line| line.starts_with("  extreme: ")).map(str::to_owned)
}

/// What `explain` says beforehand is what the change does: from when on, also of an instance that
/// was stopped, and with a data folder beside files.
#[test]
fn what_is_rebuilt_is_said_with_its_time_while_it_runs_and_when_it_is_stopped() {
    let home = home();
    let mut command = home.run_command(1);
    command.args(["--journal-max", "256KiB", "--journal-keep", "1us"]);
    let instance = home.start_command(command.args(["--checkpoint-every", "200ms"]));
    // Windows that began before what the journal has are begun anew in another table.
    let of = |second: &str, table: &str| {
        let table = format!("from = \"extreme\"\nname = \"{table}\"");
        pipeline("a", second, "").replace("from = \"extreme\"", &table)
    };
    let new = home.write("new.toml", &of("min(v)", "least"));
    let two = home.pipelines().join("two.toml");
    std::fs::create_dir(new.with_file_name("both")).unwrap();
    let both = home.write("both/one.toml", &of("min(v)", "least"));
    std::fs::copy(&two, both.with_file_name("two.toml")).unwrap();
    let (both, data, old) = (both.parent().unwrap(), home.data(), home.pipelines());
    let first = "  extreme: changed, rebuilt from the first message";
    assert_eq!(of_extreme(&explain(both, &[&data])).as_deref(), Some(first));
    // Until the journal has forgotten its beginning.
    let mut seq = 0;
    let beside = |output: &Output| {
        let line = of_extreme(output).unwrap_or_else(|| panic!("{}", err(output)));
        let said = line.strip_prefix("  extreme: changed, rebuilt from ").expect("it is changed");
        said.split("; windows").next().unwrap_or_default().to_owned()
    };
    let is_time = |text: &str| text.starts_with("20") && text.ends_with('Z');
    eventually("a time", || {
        publish(instance.endpoint(), "a", seq..seq + 500);
        seq += 500;
        let said = beside(&explain(both, &[&data]));
        if is_time(&said) { Ok(()) } else { Err(said) }
    });
    let said = beside(&explain(both, &[&data]));
    let copied = std::fs::copy(both.join("one.toml"), old.join("one.toml")).unwrap();
    assert!(copied > 0);
    let applied = apply(&home, &[]);
    assert!(beside(&applied) >= said, "{said}, then {}", out(&applied));
    home.write("both/one.toml", &of("max(v)", "most"));
    instance.stop();
    let stopped = explain(both, &[&data]);
    assert!(out(&stopped).starts_with("at the next start:"), "{}", out(&stopped));
    assert!(!err(&stopped).contains("not configured"), "no source is missed: {}", err(&stopped));
    assert!(is_time(&beside(&stopped)), "{}", out(&stopped));
    let mut command = tidegate();
    command.arg("explain").arg(both).arg("--against").arg(&old).arg("--data").arg(&data);
    assert_eq!(beside(&command.output().unwrap()), beside(&stopped));
    // One pipeline alone: the other one's table is written no more.
    let alone = out(&explain(&new, &[&data]));
    assert!(alone.contains("pipeline b: removed"), "{alone}");
    // Columns that a table cannot take are told as `apply` tells them.
    home.write("both/two.toml", &pipeline("b", "CAST(max(v) AS VARCHAR)", ""));
    for against in [&data, &old] {
        let refused = explain(both, &[against]);
        assert_eq!(refused.status.code(), Some(1), "{}", out(&refused));
        let line = "refused: table b.extreme: column `x` is Int64, not Utf8";
        assert!(out(&refused).contains(line), "{}", out(&refused));
    }
}

/// The longest time for which no epoch was done until `is_over`.
fn longest_stop(metrics: SocketAddr, is_over: impl Fn() -> bool) -> Duration {
    let (mut last, mut since, mut longest) = (0.0, Instant::now(), Duration::ZERO);
    while !is_over() {
        let now = Scrape::read(&get(metrics, "/metrics").unwrap().1).value("tidegate_epoch_done");
        if now > last {
            (last, since) = (now, Instant::now());
        }
        longest = longest.max(since.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    longest
}

#[test]
fn while_tables_are_away_a_change_is_refused_and_no_pipeline_stands_still() {
    let home = home();
    let mut command = home.run_command(2);
    let instance = home.start_command(command.args(["--metrics", "127.0.0.1:0"]));
    let (to, metrics) = (instance.endpoint(), instance.metrics().unwrap());
    publish(to, "a", 0..BEFORE);
    wait_until_told(&home);
    let (tables, away) = (home.data().join("tables"), home.data().join("away"));
    std::fs::rename(&tables, &away).unwrap();
    std::fs::write(&tables, "in the way").unwrap();
    home.write("pipelines/one.toml", &pipeline("a", "min(v)", &rising()));
    let is_over = AtomicBool::new(false);
    // Nobody has noticed yet when it is asked for the first time; then it is known.
    let refused = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            for seq in 0..READINGS {
                publish(to, "b", seq..seq + 1);
            }
        });
        let refused = scope.spawn(|| {
            let refused = [apply(&home, &[]), apply(&home, &[])];
            is_over.store(true, Ordering::SeqCst);
            refused
        });
        let stop = longest_stop(metrics, || is_over.load(Ordering::SeqCst));
        assert!(stop < Duration::from_secs(8), "all stood still for {stop:?}");
        other.join().unwrap();
        refused.join().unwrap()
    });
    for output in refused {
        assert_eq!(output.status.code(), Some(1), "{}", out(&output));
        assert!(err(&output).contains("cannot be written"), "{}", err(&output));
    }
    std::fs::remove_file(&tables).unwrap();
    std::fs::rename(&away, &tables).unwrap();
    eventually("the change", || match apply(&home, &[]) {
        applied if applied.status.success() => Ok(()),
        refused => Err(err(&refused)),
    });
    publish(to, "a", (BEFORE..READINGS).chain([LAST]));
    publish(to, "b", LAST..LAST + 1);
    wait_for(&home, "a.extreme", "x", &expected(changed_at(BEFORE / EVERY)));
    wait_for(&home, "a.sums", "total", &expected(sum));
    wait_for(&home, "b.sums", "total", &expected(sum));
    instance.stop();
}
