//! A step is changed whose journal has forgotten its beginning: windows from before that, which the
//! new state does not know, come again as what they are, and not as if they were new.

use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::{Device, Home, Instance, eventually, tidegate};

fn pipeline(step: &str, select: &str) -> String {
    format!(
        r#"
name = "a"
[source]
type = "endpoint"
listen = "127.0.0.1:0"
topics = ["t/{{device}}"]
[reading]
device = "{{device}}"
time = "ts"
disorder = "0s"
idle_close = "1s"
fields = {{ v = "int64" }}
[[step]]
name = "{step}"
type = "window"
from = "readings"
every = "10s"
revise_for = "1s"
select = {{ n = "count(*)", x = "{select}" }}
[[table]]
from = "readings"
freshness = "200ms"
[[table]]
from = "{step}"
name = "extreme"
freshness = "200ms"
"#
    )
}

/// The first reading: some time ago, where a window begins.
fn begin_ms() -> i64 {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
    now_ms / 10_000 * 10_000 - 1_200_000
}

fn run(home: &Home) -> Command {
    let mut command = home.run_command(2);
    command.args(["--journal-max", "256KiB", "--journal-keep", "1us", "--checkpoint-every"]);
    command.args(["200ms", "--recompute-every", "1s"]);
    command
}

/// Readings of these times.
fn publish(instance: &Instance, device: &str, times_ms: impl Iterator<Item = i64>) {
    let mut client = Device::connect(instance.endpoint(), device).unwrap();
    let topic = format!("t/{device}");
    let payload = |ms: i64| format!(r#"{{"ts":{ms},"v":{}}}"#, ms % 7);
    client.publish_all(times_ms.map(|ms| (topic.as_str(), payload(ms)))).unwrap();
}

/// All rows of the first window of each device: how many readings, which revision.
fn told(home: &Home, table: &str, begin_ms: i64) -> Result<Vec<String>, String> {
    let rows = home.try_rows(&format!(
        "SELECT device, n, revision FROM a.{table} WHERE to_unixtime(window_start) = {} ORDER BY \
         device, revision",
        begin_ms / 1_000
    ))?;
    let text = |row: &serde_json::Map<_, serde_json::Value>| {
        format!("{} {} {}", row["device"].as_str().unwrap_or_default(), row["n"], row["revision"])
    };
    Ok(rows.iter().map(text).collect())
}

fn wait_for(home: &Home, table: &str, begin_ms: i64, wanted: &[&str]) {
    eventually(&format!("{wanted:?} in {table}"), || match told(home, table, begin_ms)? {
        found if found == wanted => Ok(()),
        found => Err(format!("{found:?}")),
    });
}

fn out(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat()
}

/// One device is silent from then on, and the other one goes on until the journal has forgotten
/// its beginning; then the step is another one, and may have another name.
fn begun(step: &str, made: &str) -> (Home, Instance, i64) {
    let (home, begin_ms) = (Home::with(&pipeline("extreme", "max(v)")), begin_ms());
    let instance = home.start_command(&mut run(&home));
    for device in ["busy", "silent"] {
        publish(&instance, device, (0..6).chain([15]).map(|s| begin_ms + s * 1_000));
    }
    wait_for(&home, "extreme", begin_ms, &["busy 6 0", "silent 6 0"]);
    let new = home.write("new.toml", &pipeline(step, "min(v)"));
    let says = |wanted: &str| {
        let mut command = tidegate();
        command.arg("explain").arg(&new).arg("--against").arg(home.data());
        let said = out(&command.output().unwrap());
        if said.contains(wanted) { Ok(()) } else { Err(said) }
    };
    let mut sent = 0;
    eventually("a beginning that is forgotten", || {
        publish(&instance, "busy", (sent..sent + 500).map(|i| begin_ms + 20_000 + i * 10));
        sent += 500;
        says("the journal is kept from 20")
    });
    // Until then, a window that began before that could be open.
    eventually("windows that are over", || says(&format!("{step}: {made} from 20")));
    home.write("pipelines/one.toml", &pipeline(step, "min(v)"));
    (home, instance, begin_ms)
}

/// A reading for the first window of each device: the next revision of the whole window, once.
fn come_again(home: &Home, instance: Instance, begin_ms: i64) {
    for device in ["busy", "silent"] {
        publish(&instance, device, std::iter::once(begin_ms + 3_500));
    }
    let whole = ["busy 7 1", "silent 7 1"];
    wait_for(home, "extreme", begin_ms, &whole);
    // Until whatever those readings would have begun would have been told.
    publish(&instance, "busy", (0..2).map(|s| begin_ms + 1_000_000 + s * 20_000));
    publish(&instance, "silent", (0..2).map(|s| begin_ms + 1_000_000 + s * 20_000));
    let after = "SELECT count(*) FROM a.extreme WHERE to_unixtime(window_start) >=";
    home.wait_for_count(&format!("{after} {}", begin_ms / 1_000 + 1_000), 4);
    instance.stop();
    let all = ["busy 6 0", "busy 7 1", "silent 6 0", "silent 7 1"];
    assert_eq!(told(home, "extreme_revisions", begin_ms).unwrap(), all);
    assert_eq!(told(home, "extreme", begin_ms).unwrap(), whole);
}

#[test]
fn late_readings_find_their_windows_whole_after_a_change() {
    for (step, made) in [("extreme", "changed, rebuilt"), ("extremum", "new, built")] {
        let (home, instance, begin_ms) = begun(step, made);
        let mut command = tidegate();
        command.arg("apply").arg(home.pipelines()).arg("--data").arg(home.data());
        let applied = out(&command.output().unwrap());
        assert!(applied.contains(&format!("{step}: {made} from 20")), "{applied}");
        come_again(&home, instance, begin_ms);
    }
}

#[test]
fn late_readings_find_their_windows_whole_after_a_start_with_changed_files() {
    let (home, instance, begin_ms) = begun("extreme", "changed, rebuilt");
    instance.stop();
    let instance = home.start_command(&mut run(&home));
    come_again(&home, instance, begin_ms);
}
