//! How connections end: wills, sessions, take-over, and what `system.sessions` is told.

use super::delivery::{connect_kept, suback, subscribe};
use super::*;

/// A CONNECT with a will of QoS 1, keep-alive 1 s; version 5 with these will properties.
fn connect_with_will(level: u8, client: &str, session_expiry_s: u8, will: &[u8]) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend_from_slice(&[level, 0x0E, 0, 1]);
    if level == 5 {
        body.extend_from_slice(&[5, 17, 0, 0, 0, session_expiry_s]);
    }
    body.extend(text(client));
    if level == 5 {
        body.push(will.len() as u8);
        body.extend_from_slice(will);
    }
    body.extend(text("wills/d"));
    body.extend(text("gone"));
    packet(0x10, &body)
}

impl Running {
    async fn with_will(&self, level: u8, expiry_s: u8, will: &[u8]) -> Peer {
        let mut peer = self.open().await;
        peer.send(&connect_with_will(level, "d", expiry_s, will)).await;
        assert_eq!(peer.packet().await.unwrap()[3], 0);
        peer
    }
}

fn wills(endpoint: &Running) -> usize {
    endpoint.intake.texts().iter().filter(|t| *t == "wills/d gone").count()
}

#[tokio::test]
async fn a_lost_connection_publishes_its_will_to_journal_and_subscribers() {
    for level in [4, 5] {
        let endpoint = start(TestIntake::open()).await;
        let mut reader = endpoint.subscriber(level, "reader", "wills/#", 1).await;
        let user = [&[38][..], &text("k"), &text("v")].concat();
        let properties = if level == 5 { user.clone() } else { Vec::new() };
        drop(endpoint.with_will(level, 0, &properties).await);
        let got = reader.packet().await.unwrap();
        assert_eq!(got[0], 0x32, "[3: 3.1.2-8], with the will's QoS");
        assert!(got.ends_with(b"gone"));
        if level == 5 {
            assert!(got.windows(user.len()).any(|w| w == user), "[5: 3.1.3-10]");
        }
        let (messages, i) = endpoint.intake.find("gone");
        let meta = messages.index[i];
        assert_eq!((meta.packet_id, meta.qos, messages.client(i)), (0, 1, &b"d"[..]));
        assert_eq!(messages.properties(i), properties);
        let events = endpoint.intake.events();
        let of_d: Vec<&str> = events.iter().map(|e| &e[..]).filter(|e| e.contains(" d")).collect();
        assert_eq!(of_d, ["connected d", "lost d closed", "will d wills/d"]);
    }
}

#[tokio::test]
async fn only_a_normal_disconnect_takes_the_will_back() {
    let endpoint = start(TestIntake::open()).await;
    let mut polite = endpoint.with_will(4, 0, &[]).await;
    polite.send(&[0xE0, 0]).await;
    polite.expect_closed().await;
    let mut polite = endpoint.with_will(5, 0, &[]).await;
    polite.send(&[0xE0, 1, 0]).await;
    polite.expect_closed().await;
    endpoint.intake.wait_for_event("disconnected d").await;
    assert_eq!(wills(&endpoint), 0, "[3: 3.14.4-3], [5: 3.14.4-3]");
    let mut willing = endpoint.with_will(5, 0, &[]).await;
    willing.send(&[0xE0, 1, 4]).await;
    willing.expect_closed().await;
    eventually(|| wills(&endpoint) == 1).await;
    endpoint.intake.wait_for_event("disconnected d 0x04").await;
    let mut rude = endpoint.with_will(5, 0, &[]).await;
    rude.send(&packet(0x36, &[0, 1, b'a', 0, 1, 0])).await;
    rude.expect(&[0xE0, 1, 0x81]).await;
    eventually(|| wills(&endpoint) == 2).await;
    let mut silent = endpoint.with_will(4, 0, &[]).await;
    silent.expect_closed().await;
    eventually(|| wills(&endpoint) == 3).await;
    endpoint.intake.wait_for_event("timeout d").await;
    let mut old = endpoint.with_will(4, 0, &[]).await;
    let _new = endpoint.client(4, "d", 60).await;
    old.expect_closed().await;
    eventually(|| wills(&endpoint) == 4).await;
    endpoint.intake.wait_for_event("taken_over d").await;
}

#[tokio::test]
async fn a_delayed_will_comes_later_or_never_if_the_client_is_back() {
    let endpoint = start(TestIntake::open()).await;
    let mut reader = endpoint.subscriber(5, "reader", "wills/#", 1).await;
    // Will delay 5 s, session expiry 100 s, and an expiry of the message of 50 s.
    let delayed = [24, 0, 0, 0, 5, 2, 0, 0, 0, 50];
    drop(endpoint.with_will(5, 100, &delayed).await);
    endpoint.intake.wait_for_event("lost d closed").await;
    let back = endpoint.kept(5, "d", true).await;
    sleep(Duration::from_millis(5500)).await;
    reader.expect_quiet().await;
    assert_eq!(wills(&endpoint), 0, "[5: 3.1.3-9]");
    drop(back);
    drop(endpoint.with_will(5, 100, &delayed).await);
    let got = reader.packet().await.unwrap();
    assert!(got.ends_with(b"gone"));
    let at = got.windows(5).position(|w| w[..4] == [2, 0, 0, 0]).unwrap();
    assert!((45..=50).contains(&got[at + 4]), "[5: 3.1.3.2.4] counted from its publication");
    eventually(|| wills(&endpoint) == 1).await;
    endpoint.intake.wait_for_event("will d wills/d").await;
    // A session that ends at once does not wait with its will.
    drop(endpoint.with_will(5, 0, &[24, 0, 0, 0, 200]).await);
    assert!(reader.packet().await.unwrap().ends_with(b"gone"), "[5: 3.1.2-8]");
}

#[tokio::test]
async fn a_disconnect_can_change_how_long_the_session_lasts() {
    let endpoint = start(TestIntake::open()).await;
    let mut peer = endpoint.kept(5, "d", false).await;
    peer.send(&packet(0xE0, &[0, 5, 17, 0, 0, 0, 0])).await;
    peer.expect_closed().await;
    endpoint.intake.wait_for_event("disconnected d").await;
    let mut peer = endpoint.kept(5, "d", false).await;
    peer.send(&[0xE0, 0]).await;
    peer.expect_closed().await;
    eventually(|| endpoint.intake.events().iter().filter(|e| *e == "disconnected d").count() == 2)
        .await;
    let mut peer = endpoint.kept(5, "d", true).await;
    peer.send(&packet(0xE0, &[0, 5, 17, 0, 0, 0, 1])).await;
    peer.expect_closed().await;
    endpoint.intake.wait_for_event("expired d").await;
    endpoint.kept(5, "d", false).await;
}

#[tokio::test]
async fn connections_are_events_and_no_session_forgets_what_was_acknowledged() {
    let endpoint = start(TestIntake::open()).await;
    let mut peer = endpoint.kept(4, "d", false).await;
    peer.send(&publish_packet(4, 1, 1, "t", "x")).await;
    peer.expect(&[0x40, 2, 0, 1]).await;
    drop(peer);
    endpoint.intake.wait_for_event("lost d closed").await;
    drop(endpoint.kept(4, "d", true).await);
    eventually(|| endpoint.intake.events().len() >= 4).await;
    let events = endpoint.intake.session_events();
    let fresh: Vec<(&str, bool)> = events.iter().map(|e| (&e.event[..], e.fresh)).collect();
    let expected = [("connected", false), ("lost", false), ("connected", false), ("lost", false)];
    assert_eq!(fresh, expected);
    let first = &events[0];
    assert_eq!((&first.protocol[..], &first.client_id[..]), ("3.1.1", "d"));
    assert!(first.source.starts_with("endpoint 127.0.0.1:"), "{}", first.source);
    assert!(first.address.starts_with("127.0.0.1:"), "{}", first.address);
}

#[tokio::test]
async fn sessions_and_retained_messages_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let config = EndpointConfig { store: Some(folder.path().join("s/x.redb")), ..config() };
    let endpoint = start_with(config.clone(), TestIntake::open()).await;
    let mut reader = endpoint.kept(4, "reader", false).await;
    reader.send(&subscribe(4, "a", 1)).await;
    reader.expect(&suback(4, 1)).await;
    let mut device = endpoint.client(4, "device", 60).await;
    let mut retained = publish_packet(4, 1, 1, "a", "kept");
    retained[0] |= 1;
    reader.send(&[0xE0, 0]).await;
    reader.expect_closed().await;
    device.send(&retained).await;
    device.expect(&[0x40, 2, 0, 1]).await;
    endpoint.stop.send(true).unwrap();
    device.expect_closed().await;
    drop(device);
    endpoint.task.await.unwrap().unwrap();
    let endpoint = start_with(config, TestIntake::open()).await;
    let mut reader = endpoint.kept(4, "reader", true).await;
    reader.expect(&publish_packet(4, 1, 1, "a", "kept")).await;
    let mut new = endpoint.subscriber(4, "new", "a", 0).await;
    let mut found = publish_packet(4, 0, 0, "a", "kept");
    found[0] |= 1;
    new.expect(&found).await;
    assert_eq!(connect_kept(4, "x")[9], 0);
}

#[tokio::test]
async fn what_was_sent_before_a_take_over_is_not_lost() {
    let endpoint = start(TestIntake::open()).await;
    for number in 0..50 {
        let mut peer = endpoint.kept(4, "d", number > 0).await;
        let payload = format!("n{number}");
        let mut last = publish_packet(4, 0, 0, "t", &payload);
        last.extend_from_slice(&[0xE0, 0]);
        peer.send(&last).await;
    }
    drop(endpoint.kept(4, "d", true).await);
    eventually(|| endpoint.intake.texts().len() >= 50).await;
    let expected: Vec<String> = (0..50).map(|n| format!("t n{n}")).collect();
    let mut texts = endpoint.intake.texts();
    texts.sort_by_key(|text| text[3..].parse::<u32>().unwrap());
    assert_eq!(texts, expected);
}
