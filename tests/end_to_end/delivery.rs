//! What goes out to subscribed clients: commands, which are no readings, and alerts as retained
//! topics.

use crate::support::{ColdChain, Device, Home, Instance, Reading, eventually};

/// The cold chain with commands and alerts as topics.
fn home() -> Home {
    let more = "\ndeliver = [\"cmd/#\"]\nalerts = \"tidegate/alerts\"";
    let topics = "topics = [\"plant/{site}/{device}/telemetry\"]";
    Home::with(&ColdChain::on_endpoint().text().replace(topics, &format!("{topics}{more}")))
}

#[test]
fn commands_reach_devices_and_are_no_readings() {
    let home = home();
    let instance = home.start();
    let mut device = Device::connect(instance.endpoint(), "d1").unwrap();
    device.subscribe("cmd/d1/#").unwrap();
    let mut operator = Device::connect(instance.endpoint(), "operator").unwrap();
    for number in 0..100 {
        let sent = operator.publish_all([("cmd/d1/set", format!("{number}"))]).unwrap();
        assert_eq!(sent, 1, "acknowledged");
        let (topic, payload, retained) = device.delivered().unwrap();
        assert_eq!((topic.as_str(), retained), ("cmd/d1/set", false));
        assert_eq!(payload, number.to_string().as_bytes());
    }
    // A message that is neither a reading nor a command is a reject, and only that one.
    operator.publish_all([("elsewhere", "x".to_owned())]).unwrap();
    home.wait_for_count("SELECT count(*) FROM system.rejects WHERE topic = 'elsewhere'", 1);
    assert_eq!(home.count("SELECT count(*) FROM system.rejects"), 1);
    instance.stop();
    let seen = "SELECT count(*) FROM system.sessions WHERE event = 'connected' \
                AND client_id IN ('d1', 'operator')";
    assert_eq!(home.count(seen), 2);
}

#[test]
fn an_alert_is_a_retained_topic_until_it_changes() {
    let home = home();
    let mut instance = home.start();
    let mut early = Device::connect(instance.endpoint(), "early").unwrap();
    early.subscribe("tidegate/alerts/#").unwrap();
    let mut device = Device::connect(instance.endpoint(), "d1").unwrap();
    let mut publish = |minute: i64, temperature: f64| {
        let mut reading = Reading::regular("north", "d1", minute * 60, 1_000);
        reading.temperature = temperature;
        device.publish_all([(reading.topic().as_str(), reading.payload())]).unwrap();
    };
    publish(0, 60.0);
    publish(2, 20.0);
    let topic = "tidegate/alerts/cold-chain/too-warm/north/d1";
    let status = |payload: &[u8]| {
        let row: serde_json::Value = serde_json::from_slice(payload).unwrap();
        assert_eq!(row["severity"], "critical");
        row["status"].as_str().unwrap().to_owned()
    };
    let (seen, payload, retained) = early.delivered().unwrap();
    assert_eq!((seen.as_str(), status(&payload), retained), (topic, "firing".into(), false));
    // Nobody else can publish what looks like an alert: 3.1.1 has no words for that but to close.
    let mut forger = Device::connect(instance.endpoint(), "forger").unwrap();
    forger.publish_all([(topic, "{}".to_owned())]).unwrap_err();
    home.wait_for_count("SELECT count(*) FROM system.sessions WHERE event = 'denied'", 1);
    drop(early);
    // Who comes later, and after a restart, sees it as retained.
    instance.stop();
    instance = home.start();
    let mut late = Device::connect(instance.endpoint(), "late").unwrap();
    late.subscribe("tidegate/alerts/+/too-warm/#").unwrap();
    let (seen, payload, retained) = late.delivered().unwrap();
    assert_eq!((seen.as_str(), status(&payload), retained), (topic, "firing".into(), true));
    let mut device = Device::connect(instance.endpoint(), "d1").unwrap();
    let last = Reading::regular("north", "d1", 300, 1_000);
    device.publish_all([(last.topic().as_str(), last.payload())]).unwrap();
    let (_, payload, _) = late.delivered().unwrap();
    assert_eq!(status(&payload), "resolved");
    eventually("the rows", || match home.count("SELECT count(*) FROM system.alerts") {
        2 => Ok(()),
        n => Err(format!("{n} rows")),
    });
    instance.stop();
}

/// A session that stays has got its alerts: a replay of their epochs is no news. An alert that came
/// while the session was away waits in it, over a kill as well.
#[test]
fn alerts_that_a_session_has_got_do_not_come_again_after_a_kill() {
    let home = home();
    let run = || {
        let mut command = home.run_command(2);
        home.start_command(command.args(["--checkpoint-every", "1h"]))
    };
    let publish = |instance: &Instance, device: &str, minute: i64, temperature: f64| {
        let mut reading = Reading::regular("north", device, minute * 60, 1_000);
        reading.temperature = temperature;
        let mut client = Device::connect(instance.endpoint(), device).unwrap();
        client.publish_all([(reading.topic().as_str(), reading.payload())]).unwrap();
    };
    let change = |ops: &mut Device| {
        let (topic, payload) = ops.take().unwrap();
        let row: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        (topic.rsplit('/').next().unwrap().to_owned(), row["status"].as_str().unwrap().to_owned())
    };
    let instance = run();
    let (mut ops, present) = Device::resume(instance.endpoint(), "ops").unwrap();
    assert!(!present);
    ops.subscribe_at("tidegate/alerts/#", 1).unwrap();
    let devices: Vec<String> = (0..10).map(|number| format!("d{number}")).collect();
    for device in &devices {
        publish(&instance, device, 0, 60.0);
        publish(&instance, device, 2, 20.0);
        assert_eq!(change(&mut ops), (device.clone(), "firing".into()));
    }
    // Its answer is on disk after all that was acknowledged before.
    ops.subscribe_at("other", 1).unwrap();
    drop(ops);
    publish(&instance, "away", 0, 60.0);
    publish(&instance, "away", 2, 20.0);
    let alerts = devices.len() as i64 + 1;
    home.wait_for_count("SELECT count(*) FROM system.alerts", alerts);
    instance.kill();
    run().kill();
    let instance = run();
    assert!(instance.said().contains("replayed"), "{}", instance.said());
    let (mut ops, present) = Device::resume(instance.endpoint(), "ops").unwrap();
    assert!(present);
    assert_eq!(change(&mut ops), ("away".into(), "firing".into()));
    publish(&instance, "d3", 5, 20.0);
    assert_eq!(change(&mut ops), ("d3".into(), "resolved".into()), "nothing else came again");
    instance.stop();
}
