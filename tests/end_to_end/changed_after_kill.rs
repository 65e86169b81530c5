//! The process is killed and started again with other files: what had come in before belongs to the
//! pipelines that ran, what comes later to the new ones.

use std::collections::BTreeSet;

use crate::support::{Device, Home, Instance, Receiver, eventually};

const START_MS: i64 = 1_767_225_600_000;
const READINGS: i64 = 40;

/// A pipeline that keeps readings which meet `keep`, and tells of them if it has a rule.
fn pipeline(receiver: &Receiver, keep: &str, rule: &str) -> String {
    format!(
        r#"
name = "a"
[source]
type = "endpoint"
listen = "127.0.0.1:0"
topics = ["a/{{device}}"]
[reading]
device = "{{device}}"
time = "ts"
fields = {{ v = "int64" }}
[[step]]
name = "some"
type = "filter"
where = "{keep}"
{rule}
[[table]]
from = "some"
freshness = "1h"
[notify.ops]
type = "webhook"
url = "{}"
allow_private = true
max_age = "36500d"
"#,
        receiver.url
    )
}

const RULE: &str = "[[alert]]\nname = \"seen\"\nfrom = \"some\"\nfire = \"v >= 0\"\n\
    clear = \"v < 0\"\nnotify = [\"ops\"]\nmax_age = \"36500d\"";

fn publish(instance: &Instance, seqs: std::ops::Range<i64>) {
    let mut client = Device::connect(instance.endpoint(), "d1").unwrap();
    let text = |seq: i64| format!(r#"{{"ts":{},"v":{seq}}}"#, START_MS + seq * 1000);
    client.publish_all(seqs.map(|seq| ("a/d1", text(seq)))).unwrap();
}

fn statuses(receiver: &Receiver) -> BTreeSet<String> {
    let accepted = receiver.deliveries().into_iter().filter(|d| d.status == 200);
    let body = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap() };
    let status = |d: &str| body(d)["data"]["status"].as_str().unwrap_or_default().to_owned();
    accepted.map(|d| status(&d.body)).collect()
}

/// No checkpoint, or one in the middle of what came in: the rows are those of the old filter for
/// all that came before the kill, and those of the new one after it.
fn rows_are_of_the_pipeline_that_took_them(with_checkpoint: bool) {
    let receiver = Receiver::start();
    let home = Home::with(&pipeline(&receiver, "v % 2 = 0", ""));
    let mut from = 0;
    if with_checkpoint {
        let instance = home.start();
        publish(&instance, 0..READINGS / 2);
        instance.stop();
        from = READINGS / 2;
    }
    let mut command = home.run_command(2);
    let instance = home.start_command(command.args(["--checkpoint-every", "1h"]));
    publish(&instance, from..READINGS);
    instance.kill();
    home.write("pipelines/one.toml", &pipeline(&receiver, "v % 2 = 1", ""));
    // Killed again while it finishes what the old pipelines had: it begins once more.
    let mut command = home.run_command(1);
    let killed = Instance::spawn(command.env("TIDEGATE_FAULT", "kill:replay:2"));
    assert!(!killed.ended(crate::support::PATIENCE).success());
    let instance = home.start();
    let said = instance.said();
    assert!(said.contains("finished by them as they were"), "{said}");
    publish(&instance, READINGS..2 * READINGS);
    instance.stop();
    let rows = home.rows("SELECT v FROM some ORDER BY v");
    let rows: Vec<i64> = rows.iter().map(|row| row["v"].as_i64().unwrap()).collect();
    let old = (0..READINGS).filter(|v| v % 2 == 0);
    let new = (READINGS..2 * READINGS).filter(|v| v % 2 == 1);
    assert_eq!(rows, old.chain(new).collect::<Vec<_>>());
    let instance = home.start();
    assert!(!instance.said().contains("as they were"), "{}", instance.said());
    instance.stop();
}

/// Killed and changed twice in a row, before the second pipeline has a checkpoint of its own.
#[test]
fn rows_are_of_the_pipeline_that_took_them_after_two_changes() {
    let receiver = Receiver::start();
    let home = Home::with(&pipeline(&receiver, "v % 3 = 0", ""));
    for remainder in 0..3 {
        home.write("pipelines/one.toml", &pipeline(&receiver, &format!("v % 3 = {remainder}"), ""));
        let mut command = home.run_command(2);
        let instance = home.start_command(command.args(["--checkpoint-every", "1h"]));
        publish(&instance, remainder * READINGS..(remainder + 1) * READINGS);
        if remainder < 2 { instance.kill() } else { instance.stop() }
    }
    let rows = home.rows("SELECT v FROM some ORDER BY v");
    let rows: Vec<i64> = rows.iter().map(|row| row["v"].as_i64().unwrap()).collect();
    let expected = (0..3 * READINGS).filter(|v| v % 3 == v / READINGS);
    assert_eq!(rows, expected.collect::<Vec<_>>());
}

#[test]
fn a_pipeline_that_cannot_be_finished_can_be_repaired() {
    can_be_repaired(&Receiver::start(), "");
}

/// A webhook is under way when what cannot be finished ends.
#[test]
fn a_pipeline_that_cannot_be_finished_can_be_repaired_while_a_receiver_hangs() {
    let (receiver, _closed) = Receiver::closed();
    can_be_repaired(&receiver, RULE);
}

/// What stops a pipeline for good must not stop the one that repairs it.
fn can_be_repaired(receiver: &Receiver, rule: &str) {
    let window = |limits: &str| {
        format!(
            "{}\n[[step]]\nname = \"per_minute\"\ntype = \"window\"\nevery = \"1m\"\n\
             by = [\"v\"]\n{limits}select = {{ n = \"count(*)\" }}\n",
            pipeline(receiver, "true", rule)
        )
    };
    let home = Home::with(&window("keys_max = 1\nat_keys_max = \"stop\"\n"));
    let instance = home.start();
    let mut client = Device::connect(instance.endpoint(), "d1").unwrap();
    let text = |seq: i64| format!(r#"{{"ts":{},"v":{seq}}}"#, START_MS + seq * 1000);
    // Until it stops, which may be before all of them are acknowledged.
    let _ = client.publish_all((0..2_000).map(|seq| ("a/d1", text(seq))));
    assert!(!instance.ended(crate::support::PATIENCE).success());
    home.write("pipelines/one.toml", &window(""));
    let instance = home.start();
    let said = instance.said();
    assert!(said.contains("cannot be finished by the pipelines as they were"), "{said}");
    publish(&instance, 2_000..2_010);
    instance.stop();
    assert!(home.count("SELECT count(*) FROM some") > 10);
}

#[test]
fn rows_are_of_the_pipeline_that_took_them_without_a_checkpoint() {
    rows_are_of_the_pipeline_that_took_them(false);
}

#[test]
fn rows_are_of_the_pipeline_that_took_them_after_a_checkpoint() {
    rows_are_of_the_pipeline_that_took_them(true);
}

/// Whoever was told after the last checkpoint is told of the end, although the rule is gone.
#[test]
fn alerts_of_a_removed_rule_are_ended_after_a_kill() {
    let receiver = Receiver::start();
    let home = Home::with(&pipeline(&receiver, "true", RULE));
    let mut command = home.run_command(2);
    let instance = home.start_command(command.args(["--checkpoint-every", "1h"]));
    publish(&instance, 0..READINGS);
    eventually("it is told", || match statuses(&receiver) {
        told if told.contains("firing") => Ok(()),
        told => Err(format!("{told:?}")),
    });
    instance.kill();
    home.write("pipelines/one.toml", &pipeline(&receiver, "true", ""));
    let instance = home.start();
    eventually("its end is told", || match statuses(&receiver) {
        told if told.contains("resolved") => Ok(()),
        told => Err(format!("{told:?}")),
    });
    instance.stop();
    let ended = "SELECT count(*) FROM system.alerts WHERE status = 'resolved' AND reason = \
        'rule_changed'";
    assert_eq!(home.count(ended), 1);
}
