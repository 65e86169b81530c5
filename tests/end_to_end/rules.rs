//! Alert rules are changed, by hand and by a start with other files: whoever was told of an alert
//! is told of its end, and what goes on under the changed rule is told again.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::{Device, Home, Instance, Receiver, eventually, tidegate};

const START_MS: i64 = 1_767_225_600_000;
const DEVICES: [&str; 3] = ["d1", "d2", "d3"];
/// Alerts that were told twice, of which the event with the greatest time says that they fire.
const LAST_SAYS_FIRING: &str = "SELECT count(*) FROM (SELECT alert_id, count(*) AS n, \
    last_value(status ORDER BY time) AS status FROM system.alerts GROUP BY alert_id) \
    WHERE n = 3 AND status = 'firing'";

/// A pipeline with a rule, if there is one, whose webhook stays.
fn pipeline(url: &str, rule: Option<&str>) -> String {
    let rule = rule.map_or(String::new(), |rule| {
        format!(
            "[[alert]]\nname = \"always\"\nfrom = \"readings\"\nclear = \"v < 0\"\n\
             severity = \"critical\"\nnotify = [\"ops\"]\nmax_age = \"36500d\"\n{rule}\n"
        )
    });
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
{rule}
[[table]]
from = "readings"
freshness = "1s"
[notify.ops]
type = "webhook"
url = "{url}"
allow_private = true
max_age = "36500d"
"#
    )
}

/// Readings of all devices, one per second.
fn publish(instance: &Instance, seqs: std::ops::Range<i64>) {
    for device in DEVICES {
        let mut client = Device::connect(instance.endpoint(), device).unwrap();
        let topic = format!("a/{device}");
        let text = |seq: i64| format!(r#"{{"ts":{},"v":{seq}}}"#, START_MS + seq * 1000);
        client.publish_all(seqs.clone().map(|seq| (topic.as_str(), text(seq)))).unwrap();
    }
}

/// What was delivered with this status: identifiers, and the alerts that they are of.
fn delivered(receiver: &Receiver, status: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut ids, mut alerts) = (BTreeSet::new(), BTreeSet::new());
    for delivery in receiver.deliveries().into_iter().filter(|d| d.status == 200) {
        let body: Value = serde_json::from_str(&delivery.body).unwrap();
        if body["data"]["status"] == status {
            assert_eq!(body["data"]["severity"], "critical");
            ids.insert(delivery.id);
            alerts.insert(body["data"]["alert_id"].as_str().unwrap().to_owned());
        }
    }
    (ids, alerts)
}

/// Waits until so many of a status were delivered.
fn wait_for(receiver: &Receiver, status: &str, count: usize) {
    eventually(&format!("{count} {status}"), || match delivered(receiver, status).0.len() {
        found if found == count => Ok(()),
        found => Err(format!("{found}")),
    });
}

fn apply(home: &Home) -> bool {
    let mut command = tidegate();
    command.arg("apply").arg(home.pipelines()).arg("--data").arg(home.data());
    command.output().expect("the binary starts").status.success()
}

#[test]
fn an_alert_that_goes_on_under_a_changed_rule_is_told_again() {
    let receiver = Receiver::start();
    let home = Home::with(&pipeline(&receiver.url, Some("fire = \"v >= 0\"")));
    let instance = home.start();
    publish(&instance, 0..20);
    wait_for(&receiver, "firing", 3);
    home.write(
        "pipelines/one.toml",
        &pipeline(&receiver.url, Some("fire = \"v >= 0\"\nfor = \"5s\"")),
    );
    assert!(apply(&home));
    wait_for(&receiver, "resolved", 3);
    publish(&instance, 20..30);
    wait_for(&receiver, "firing", 6);
    let (_, firing) = delivered(&receiver, "firing");
    assert_eq!(firing.len(), 3, "since the same moment: the same alerts");
    assert_eq!(delivered(&receiver, "resolved").1, firing);
    home.wait_for_count(LAST_SAYS_FIRING, 3);
    instance.stop();
}

/// Their rows are older than the ends that the change told; the process dies in between.
#[test]
fn an_alert_of_a_rule_that_is_put_back_is_told_after_its_end() {
    let receiver = Receiver::start();
    let with_rule = pipeline(&receiver.url, Some("fire = \"v >= 0\""));
    let home = Home::with(&with_rule);
    let instance = home.start();
    publish(&instance, 0..20);
    wait_for(&receiver, "firing", 3);
    home.write("pipelines/one.toml", &pipeline(&receiver.url, None));
    assert!(apply(&home));
    wait_for(&receiver, "resolved", 3);
    instance.kill();
    let instance = home.start();
    home.write("pipelines/one.toml", &with_rule);
    assert!(apply(&home));
    instance.kill();
    let instance = home.start();
    publish(&instance, 20..30);
    wait_for(&receiver, "firing", 6);
    assert_eq!(delivered(&receiver, "firing").1.len(), 3, "since the same moment: the same alerts");
    home.wait_for_count(LAST_SAYS_FIRING, 3);
    instance.stop();
}

#[test]
fn a_start_without_the_rule_tells_the_end_to_those_who_were_told() {
    let receiver = Receiver::start();
    let home = Home::with(&pipeline(&receiver.url, Some("fire = \"v >= 0\"")));
    let instance = home.start();
    publish(&instance, 0..20);
    wait_for(&receiver, "firing", 3);
    instance.stop();
    home.write("pipelines/one.toml", &pipeline(&receiver.url, None));
    let instance = home.start();
    wait_for(&receiver, "resolved", 3);
    assert_eq!(delivered(&receiver, "resolved").1, delivered(&receiver, "firing").1);
    instance.stop();
}

#[test]
fn the_end_is_told_although_the_process_dies_in_the_moment_of_the_change() {
    let receiver = Receiver::start();
    let home = Home::with(&pipeline(&receiver.url, Some("fire = \"v >= 0\"")));
    let mut command = home.run_command(2);
    let instance = home.start_command(command.env("TIDEGATE_FAULT", "kill:apply_after_switch:1"));
    publish(&instance, 0..20);
    wait_for(&receiver, "firing", 3);
    home.write("pipelines/one.toml", &pipeline(&receiver.url, None));
    assert!(!apply(&home), "it died");
    instance.ended(crate::support::PATIENCE);
    let instance = home.start();
    wait_for(&receiver, "resolved", 3);
    assert_eq!(delivered(&receiver, "resolved").1, delivered(&receiver, "firing").1);
    instance.stop();
}

/// The tables and the outbox are ahead of the newest checkpoint when the process is killed, and
/// nobody knows any more which pipelines ran. What a changed rule has to say of the messages in
/// between is told, without any further reading.
#[test]
fn a_start_with_a_changed_rule_after_a_kill_tells_what_it_finds() {
    let receiver = Receiver::start();
    let home = Home::with(&pipeline(&receiver.url, Some("fire = \"v >= 0\"")));
    // The only checkpoint is that of a clean end.
    let start = || {
        let mut command = home.run_command(1);
        home.start_command(command.args(["--checkpoint-every", "1h"]))
    };
    let instance = start();
    publish(&instance, 0..3);
    wait_for(&receiver, "firing", 3);
    instance.stop();
    let instance = start();
    publish(&instance, 3..20);
    home.wait_for_count("SELECT count(*) FROM a.readings", 60);
    instance.kill();
    std::fs::remove_file(home.data().join("pipelines.json")).unwrap();
    let changed = pipeline(&receiver.url, Some("fire = \"v >= 10\""));
    home.write("pipelines/one.toml", &changed);
    // Once more before anything of it can have been checked: the same again.
    for _ in 0..2 {
        start().kill();
        std::fs::remove_file(home.data().join("pipelines.json")).unwrap();
    }
    let instance = start();
    wait_for(&receiver, "resolved", 3);
    wait_for(&receiver, "firing", 6);
    let (_, alerts) = delivered(&receiver, "firing");
    assert_eq!(alerts.len(), 6, "of another moment: other alerts");
    instance.stop();
    let by = |status: &str, more: &str| {
        home.count(&format!("SELECT count(*) FROM system.alerts WHERE status = '{status}' {more}"))
    };
    assert_eq!((by("firing", ""), by("resolved", "AND reason = 'rule_changed'")), (6, 3));
}
