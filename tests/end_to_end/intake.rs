//! Devices publish to the endpoint; readings, windows, rejects and alerts come out, with exact
//! counts and sums, and the webhook arrives, signed, although its receiver was down at first.

use crate::support::{ColdChain, Device, Home, Reading, Receiver, eventually, windows_of};

const DEVICES: i64 = 3;
const READINGS: i64 = 600;
const EVERY_MS: i64 = 1_000;
const MINUTES: i64 = READINGS * EVERY_MS / 60_000;
/// Every so many readings a broken message comes as well.
const BROKEN_EVERY: i64 = 50;
/// The minute in which device d1 is too warm.
const WARM_MINUTE: i64 = 3;

/// What one device sends, in order; the last reading, much later, closes its windows.
fn readings_of(device: i64) -> Vec<Reading> {
    let name = format!("d{device}");
    let site = if device == 0 { "north" } else { "south" };
    let mut readings: Vec<Reading> =
        (0..READINGS).map(|i| Reading::regular(site, &name, i, EVERY_MS)).collect();
    if device == 1 {
        let warm = |r: &&mut Reading| r.seq * EVERY_MS / 60_000 == WARM_MINUTE;
        readings.iter_mut().filter(warm).for_each(|r| r.temperature += 40.0);
    }
    readings.push(Reading::regular(site, &name, 2 * READINGS, EVERY_MS));
    readings
}

/// One of each kind of bad message.
fn broken(good: &Reading) -> Vec<String> {
    let (seq, at_ms) = (good.seq, good.at_ms);
    vec![
        r#"{"seq": 1, "#.into(),
        format!(r#"{{"seq":{seq},"ts":{at_ms},"temperature":500.0}}"#),
        format!(r#"{{"seq":{seq},"ts":{at_ms}}}"#),
        format!(r#"{{"seq":{seq},"temperature":20.0}}"#),
        format!(r#"{{"seq":"x","ts":{at_ms},"temperature":20.0}}"#),
    ]
}

fn publish(home: &Home, at: std::net::SocketAddr) -> (Vec<Reading>, i64) {
    let mut all = Vec::new();
    let mut rejects = 0;
    for d in 0..DEVICES {
        let mut device = Device::connect(at, &format!("client-{d}")).unwrap();
        let readings = readings_of(d);
        let topic = readings[0].topic();
        let mut payloads = Vec::new();
        for r in &readings[..readings.len() - 1] {
            payloads.push(r.payload());
            if r.seq % BROKEN_EVERY == 0 {
                let bad = broken(r);
                rejects += bad.len() as i64;
                payloads.extend(bad);
            }
        }
        let sent = payloads.len();
        let messages = payloads.into_iter().map(|p| (topic.as_str(), p));
        assert_eq!(device.publish_all(messages).unwrap(), sent);
        // The closing reading goes at QoS 0, which nobody acknowledges.
        let last = readings.last().unwrap().payload();
        device.send_unacknowledged(&topic, &last).unwrap();
        all.extend(readings);
        home.wait_for_count("SELECT count(*) FROM cold_chain.readings", all.len() as i64);
    }
    (all, rejects)
}

#[test]
fn devices_publish_and_everything_comes_out() {
    let receiver = Receiver::start();
    let home = Home::notifying(&receiver);
    let instance = home.start();
    let (all, rejects) = publish(&home, instance.endpoint());

    let expected = windows_of(&all, MINUTES);
    assert_eq!(expected.len() as i64, DEVICES * MINUTES);
    home.wait_for_windows(MINUTES, &expected);
    home.wait_for_count("SELECT count(*) FROM system.rejects", rejects);
    let clients = "SELECT count(DISTINCT client_id) FROM system.rejects \
        WHERE pipeline IN ('cold-chain', 'cold_chain') AND topic LIKE 'plant/%'";
    home.wait_for_count(clients, DEVICES);
    let raw = "SELECT count(*) FROM system.rejects WHERE payload_bytes = 11";
    home.wait_for_count(raw, DEVICES * READINGS / BROKEN_EVERY);
    let reasons = home.count("SELECT count(DISTINCT reason) FROM system.rejects");
    assert!(reasons >= 3, "five kinds of broken messages have only {reasons} reasons");

    home.wait_for_count("SELECT count(*) FROM system.alerts", 2);
    let alerts = home.rows("SELECT rule, keys, status FROM system.alerts ORDER BY time");
    assert_eq!(
        (&alerts[0]["status"], &alerts[1]["status"]),
        (&"firing".into(), &"resolved".into())
    );
    assert!(alerts.iter().all(|a| a["keys"].as_str().is_some_and(|k| k.contains("d1"))));
    check_webhook(&receiver);
    instance.stop();
    // The same answers from the data of an instance that does not run.
    assert_eq!(home.windows(MINUTES).unwrap(), expected);
    assert_eq!(home.count("SELECT count(*) FROM cold_chain.readings"), all.len() as i64);
}

fn check_webhook(receiver: &Receiver) {
    let firing = eventually("the webhook", || {
        let all = receiver.deliveries();
        let good = all.iter().find(|d| d.status == 200 && d.body.contains("firing"));
        good.cloned().ok_or_else(|| format!("{all:?}"))
    });
    assert!(firing.body.contains("too-warm") && firing.body.contains("d1"), "{firing:?}");
    assert!(firing.body.contains("d1 reached 64.5 °C"), "the summary is filled in: {firing:?}");
    let all = receiver.deliveries();
    assert!(all.iter().all(|d| d.signed_well), "each request is signed: {all:?}");
    assert_eq!(all[0].status, 503);
    assert!(
        all.iter().any(|d| d.status == 200 && d.id == all[0].id),
        "a refused request comes again under its id: {all:?}"
    );
}

/// Twice what the journal may have, and no checkpoint for an hour: it makes room by itself.
#[test]
fn a_journal_that_is_full_is_not_full_until_the_next_regular_checkpoint() {
    let home = Home::with(&ColdChain::on_endpoint().text());
    let mut command = home.run_command(1);
    command.args(["--journal-max", "256KiB", "--checkpoint-every", "1h"]);
    let instance = home.start_command(&mut command);
    let mut device = Device::connect(instance.endpoint(), "d1").unwrap();
    let readings: Vec<Reading> =
        (0..6_000).map(|seq| Reading::regular("north", "d1", seq, EVERY_MS)).collect();
    let messages: Vec<_> = readings.iter().map(|r| (r.topic(), r.payload())).collect();
    let bytes: usize = messages.iter().map(|(topic, payload)| topic.len() + payload.len()).sum();
    assert!(bytes > 2 * (256 << 10), "{bytes}");
    let messages = messages.iter().map(|(topic, payload)| (topic.as_str(), payload.clone()));
    assert_eq!(device.publish_all(messages).unwrap(), readings.len());
    home.wait_for_count("SELECT count(*) FROM cold_chain.readings", readings.len() as i64);
    instance.stop();
}
