//! The file of a registry is changed while devices publish, and the process is killed: every window
//! has the limit that the whole history says, and SQL over that history finds the same.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Device, Home, Instance, PATIENCE, eventually, get};

/// First reading, milliseconds since the Unix epoch: on a whole hour.
pub(super) const START_MS: i64 = 1_767_225_600_000;
/// Windows, in readings of one per second.
pub(super) const EVERY: i64 = 10;
pub(super) const WINDOWS: i64 = 20;
const DEVICES: [&str; 3] = ["d1", "d2", "d3"];

/// Everything of the history by which a window is joined, in SQL.
const AS_OF: &str = "FROM p.limited l LEFT JOIN p.limits_versions v ON v.device = l.device \
    AND (v.valid_from IS NULL OR v.valid_from <= l.window_start) \
    AND (v.valid_to IS NULL OR l.window_start < v.valid_to)";

fn home() -> Home {
    let home = Home::with("");
    let limits = home.write("limits.csv", HEADER);
    home.write("pipelines/one.toml", &pipeline(&format!("path = \"{}\"", limits.display())));
    home
}

/// Limits from a registry, whose place is `place`.
pub(super) fn pipeline(place: &str) -> String {
    format!(
        r#"
name = "p"
[source]
type = "endpoint"
listen = "127.0.0.1:0"
topics = ["p/{{device}}"]
[reading]
device = "{{device}}"
time = "ts"
disorder = "0s"
idle_close = "1h"
fields = {{ v = "int64" }}
[[registry]]
name = "limits"
{place}
key = ["device"]
valid_from = "since"
columns = {{ device = "string", high = "int64" }}
[[step]]
name = "sums"
type = "window"
every = "10s"
select = {{ n = "count(*)" }}
[[step]]
name = "limited"
type = "enrich"
from = "sums"
registry = "limits"
revise = true
revise_for = "1h"
[[table]]
from = "limited"
freshness = "200ms"
"#
    )
}

/// The limits, one row each: device, window from which it holds (`None`: ever), limit.
pub(super) type Limits = Vec<(&'static str, Option<i64>, i64)>;

const HEADER: &str = "device,since,high\n";

/// The limits as rows of CSV.
pub(super) fn csv(limits: &Limits) -> String {
    let mut text = HEADER.to_owned();
    for (device, window, high) in limits {
        let since = window.map(|w| (START_MS + w * EVERY * 1000).to_string());
        text += &format!("{device},{},{high}\n", since.unwrap_or_default());
    }
    text
}

/// Replaces the file as a careful program does.
fn write(home: &Home, limits: &Limits) {
    let new = home.write("limits.new", &csv(limits));
    std::fs::rename(&new, new.with_extension("csv")).unwrap();
}

pub(super) fn publish(instance: &Instance, seqs: std::ops::Range<i64>) {
    for device in DEVICES {
        let topic = format!("p/{device}");
        let mut client = Device::connect(instance.endpoint(), device).unwrap();
        let payload = |seq: i64| format!(r#"{{"ts":{},"v":1}}"#, START_MS + seq * 1000);
        client.publish_all(seqs.clone().map(|s| (topic.as_str(), payload(s)))).unwrap();
    }
}

/// What each window has to have.
fn expected(limits: &Limits, windows: i64) -> BTreeMap<(String, i64), Option<i64>> {
    let mut all = BTreeMap::new();
    for device in DEVICES {
        for window in 0..windows {
            let of = limits.iter().filter(|l| l.0 == device && l.1.is_none_or(|w| w <= window));
            let holds = of.max_by_key(|l| l.1).map(|l| l.2);
            all.insert((device.to_owned(), window), holds);
        }
    }
    all
}

/// Waits until the windows have these limits, by the join and by SQL over the history.
pub(super) fn wait_for(home: &Home, limits: &Limits, windows: i64) {
    let expected = expected(limits, windows);
    let start = START_MS / 1000;
    let query = format!(
        "SELECT l.device, (to_unixtime(l.window_start) - {start}) / {EVERY} AS w, l.high, \
         v.high AS of_sql {AS_OF} WHERE to_unixtime(l.window_end) <= {}",
        start + windows * EVERY
    );
    eventually("the limits", || {
        let rows = home.try_rows(&query)?;
        let of = |column: &str| -> BTreeMap<(String, i64), Option<i64>> {
            let row = |r: &serde_json::Map<String, Value>| {
                let key = (r["device"].as_str().unwrap().to_owned(), r["w"].as_i64().unwrap());
                (key, r[column].as_i64())
            };
            rows.iter().map(row).collect()
        };
        if rows.len() != expected.len() {
            return Err(format!("{} rows instead of {}", rows.len(), expected.len()));
        }
        for column in ["high", "of_sql"] {
            if of(column) != expected {
                return Err(format!("{column}: {:?}", of(column)));
            }
        }
        Ok(())
    });
}

#[test]
fn a_changed_registry_and_kills_give_what_the_whole_history_says() {
    let home = home();
    let mut limits: Limits = vec![("d1", None, 10), ("d2", Some(5), 20)];
    write(&home, &limits);
    let instance = home.start_with(2);
    publish(&instance, 0..WINDOWS * EVERY / 2 + 1);
    wait_for(&home, &limits, WINDOWS / 2);
    // Late changes, of a key that is known, of one that is new, and of one that goes.
    limits = vec![("d1", None, 10), ("d1", Some(3), 11), ("d3", Some(1), 30)];
    write(&home, &limits);
    // Anywhere between nothing read and everything told.
    std::thread::sleep(Duration::from_millis(700));
    instance.kill();
    let instance = home.start_with(1);
    wait_for(&home, &limits, WINDOWS / 2);
    limits.push(("d2", Some(15), 22));
    limits.push(("d1", Some(4), 12));
    write(&home, &limits);
    publish(&instance, WINDOWS * EVERY / 2..(WINDOWS + 1) * EVERY);
    instance.kill();
    let instance = home.start_with(3);
    publish(&instance, (WINDOWS + 1) * EVERY..(WINDOWS + 2) * EVERY);
    wait_for(&home, &limits, WINDOWS);
    let current = home.rows("SELECT device, high FROM p.limits ORDER BY device");
    let current: Vec<(&str, i64)> = current
        .iter()
        .map(|r| (r["device"].as_str().unwrap(), r["high"].as_i64().unwrap()))
        .collect();
    assert_eq!(current, [("d1", 12), ("d2", 22), ("d3", 30)]);
    instance.stop();
}

#[test]
fn a_file_that_is_gone_keeps_what_it_said_and_is_told() {
    let home = home();
    let limits: Limits = vec![("d1", None, 10)];
    write(&home, &limits);
    let instance = home.start();
    let path = home.pipelines().parent().unwrap().join("limits.csv");
    std::fs::remove_file(&path).unwrap();
    let alerts =
        "SELECT count(*) FROM system.alerts WHERE rule = 'registry_unreadable' AND status =";
    home.wait_for_count(&format!("{alerts} 'firing'"), 1);
    publish(&instance, 0..2 * EVERY + 1);
    wait_for(&home, &limits, 2);
    // A bad row costs nothing but itself.
    std::fs::write(&path, "device,since,high\nd1,,many\nd2,,7\n").unwrap();
    home.wait_for_count(&format!("{alerts} 'resolved'"), 1);
    let limits: Limits = vec![("d1", None, 10), ("d2", None, 7)];
    wait_for(&home, &limits, 2);
    let why =
        "SELECT count(*) FROM system.rejects WHERE reason = 'type' AND topic = 'registry/p/limits'";
    home.wait_for_count(why, 1);
    instance.stop();
    std::fs::remove_file(&path).unwrap();
    let output = home.run_command(1).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("registry limits of pipeline p") && said.contains("limits.csv"),
        "{said}"
    );
}

#[test]
fn a_header_without_a_declared_column_is_told_by_check_and_at_a_start() {
    let home = home();
    home.write("limits.csv", "device,since,hihg\nd1,,6\n");
    let check = || crate::support::tidegate().arg("check").arg(home.pipelines()).output().unwrap();
    for output in [check(), home.run_command(1).output().unwrap()] {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        for part in
            ["registry limits of pipeline p", "limits.csv has no column `high` (it has `hihg`"]
        {
            assert!(said.contains(part), "{part} is not in {said}");
        }
    }
    home.write("limits.csv", "device,since,high\nd1,,6\nd2,,x\n");
    let output = check();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("1 row is not taken"), "{said}");
    let instance = home.start();
    assert!(
        instance.said().contains("1 row is not taken, the first is row 2"),
        "{}",
        instance.said()
    );
    instance.stop();
}

const ALERTS: &str =
    "SELECT count(*) FROM system.alerts WHERE rule = 'registry_unreadable' AND status =";

/// Nobody is there at night: what ran comes back, with what the registry said.
#[test]
fn a_start_after_the_first_goes_on_where_the_file_lacks_a_column() {
    let home = home();
    let mut limits: Limits = vec![("d1", None, 10)];
    write(&home, &limits);
    let instance = home.start();
    publish(&instance, 0..EVERY + 1);
    wait_for(&home, &limits, 1);
    instance.kill();
    let other = csv(&vec![("d1", None, 11)]).replace("high", "hihg");
    home.write("limits.csv", &other);
    let instance = home.start();
    let said = instance.said();
    assert!(
        said.contains("what it said last stays") && said.contains("no column `high`"),
        "{said}"
    );
    home.wait_for_count(&format!("{ALERTS} 'firing'"), 1);
    publish(&instance, EVERY + 1..2 * EVERY + 1);
    wait_for(&home, &limits, 2);
    limits = vec![("d1", None, 12)];
    write(&home, &limits);
    home.wait_for_count(&format!("{ALERTS} 'resolved'"), 1);
    wait_for(&home, &limits, 2);
    instance.stop();
}

/// A change of the plan needs a file that has its columns, and the file may follow it.
#[test]
fn columns_of_a_change_are_looked_for_in_the_file_from_then_on() {
    let home = home();
    let mut limits: Limits = vec![("d1", None, 10)];
    write(&home, &limits);
    let instance = home.start();
    publish(&instance, 0..EVERY + 1);
    wait_for(&home, &limits, 1);
    let path = home.pipelines().parent().unwrap().join("limits.csv");
    let place = format!("path = \"{}\"", path.display());
    let moved = "high = { type = \"int64\", field = \"top\" }";
    home.write("pipelines/one.toml", &pipeline(&place).replace("high = \"int64\"", moved));
    let apply = || {
        let mut command = crate::support::tidegate();
        command.arg("apply").arg(home.pipelines()).arg("--data").arg(home.data());
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].map(|s| String::from_utf8_lossy(&s).into_owned());
        (output.status.success(), said.concat())
    };
    let (done, said) = apply();
    assert!(!done && said.contains("limits.csv has no column `top`"), "{said}");
    home.write("limits.csv", "device,since,high,top\nd1,,10,20\n");
    let (done, said) = apply();
    assert!(done, "{said}");
    // Without the name of before.
    limits = vec![("d1", None, 21), ("d2", None, 22)];
    home.write("limits.csv", &csv(&limits).replace("high", "top"));
    wait_for(&home, &limits, 1);
    home.write("limits.csv", &csv(&limits));
    home.wait_for_count(&format!("{ALERTS} 'firing'"), 1);
    instance.kill();
    let instance = home.start();
    assert!(instance.said().contains("no column `top`"), "{}", instance.said());
    publish(&instance, EVERY + 1..2 * EVERY + 1);
    wait_for(&home, &limits, 2);
    instance.stop();
}

/// What a registry says has to be journaled before a door opens. Without room for it the start
/// waits and says why, and a signal ends it.
#[test]
fn a_start_that_finds_no_room_says_why_and_heeds_a_signal() {
    for signal in ["INT", "TERM"] {
        let home = home();
        write(&home, &vec![("d1", None, 5)]);
        let mut command = home.run_command(1);
        command.args(["--metrics", "127.0.0.1:0", "--disk-reserve", "900TiB"]);
        let instance = Instance::spawn(&mut command);
        let ready = eventually("what the start waits for", || {
            let address = instance.metrics().ok_or_else(|| instance.said())?;
            let (status, text) = get(address, "/ready").map_err(|e| e.to_string())?;
            let body: Value = serde_json::from_str(&text).unwrap();
            assert_eq!((status, body["status"].as_str()), (503, Some("starting")), "{text}");
            let why = body["waits"].as_str().ok_or(text)?.to_owned();
            let (status, health) = get(address, "/health").unwrap();
            assert!(status == 200 && health.contains(&why), "{health}");
            Ok(why)
        });
        assert!(ready.contains("bytes are free"), "{ready}");
        assert!(instance.said().contains("the start waits for room"), "{}", instance.said());
        instance.signal(signal);
        assert_eq!(instance.ended(PATIENCE).code(), Some(130), "{signal}");
        // The next one begins anew.
        let instance = home.start();
        publish(&instance, 0..1);
        instance.stop();
    }
}
