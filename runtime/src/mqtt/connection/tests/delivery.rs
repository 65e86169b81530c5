//! What subscribers get, and when: after the journal has it.

use super::publishing::publish5;
use super::*;

/// SUBSCRIBE with packet id 1.
pub(super) fn subscribe(level: u8, filter: &str, options: u8) -> Vec<u8> {
    let properties: &[u8] = if level == 5 { &[0] } else { &[] };
    packet(0x82, &[&[0, 1], properties, &text(filter), &[options]].concat())
}

pub(super) fn suback(level: u8, code: u8) -> Vec<u8> {
    if level == 5 { vec![0x90, 4, 0, 1, 0, code] } else { vec![0x90, 3, 0, 1, code] }
}

/// A CONNECT that asks for a session that lasts.
pub(super) fn connect_kept(level: u8, client: &str) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend_from_slice(&[level, 0, 0, 60]);
    if level == 5 {
        body.extend_from_slice(&[5, 17, 0, 0, 3, 0xE8]);
    }
    body.extend(text(client));
    packet(0x10, &body)
}

impl Running {
    /// A connected client with a subscription.
    pub(super) async fn subscriber(&self, level: u8, client: &str, filter: &str, qos: u8) -> Peer {
        let mut peer = self.client(level, client, 60).await;
        peer.send(&subscribe(level, filter, qos)).await;
        peer.expect(&suback(level, qos)).await;
        peer
    }

    /// A client with a lasting session, which was `present` or not.
    pub(super) async fn kept(&self, level: u8, client: &str, present: bool) -> Peer {
        let mut peer = self.open().await;
        peer.send(&connect_kept(level, client)).await;
        let connack = peer.packet().await.unwrap();
        let flags = if level == 5 { connack[2] } else { connack[2] };
        assert_eq!((connack[0], flags, connack[3]), (0x20, u8::from(present), 0));
        peer
    }
}

#[tokio::test]
async fn a_message_is_delivered_after_it_is_durable() {
    for level in [4, 5] {
        let endpoint = start(TestIntake::closed()).await;
        let mut reader = endpoint.subscriber(level, "reader", "a/+", 1).await;
        let mut device = endpoint.client(level, "device", 60).await;
        device.send(&publish_packet(level, 1, 7, "a/b", "hello")).await;
        endpoint.intake.wait_for(1).await;
        reader.expect_quiet().await;
        endpoint.intake.allow(1);
        reader.expect(&publish_packet(level, 1, 1, "a/b", "hello")).await;
        device.expect(&[0x40, 2, 0, 7]).await;
        reader.send(&packet(0x40, &[0, 1])).await;
        device.send(&publish_packet(level, 0, 0, "b/b", "not for him")).await;
        endpoint.intake.allow(1);
        reader.expect_quiet().await;
    }
}

#[tokio::test]
async fn qos_2_goes_out_in_four_steps() {
    for level in [4, 5] {
        let endpoint = start(TestIntake::open()).await;
        let mut reader = endpoint.subscriber(level, "reader", "#", 2).await;
        let mut device = endpoint.client(level, "device", 60).await;
        device.send(&publish_packet(level, 2, 9, "a", "x")).await;
        device.expect(&[0x50, 2, 0, 9]).await;
        reader.expect(&publish_packet(level, 2, 1, "a", "x")).await;
        reader.send(&packet(0x50, &[0, 1])).await;
        reader.expect(&[0x62, 2, 0, 1]).await;
        reader.send(&packet(0x70, &[0, 1])).await;
        // Unknown ones are answered so that the client can forget them, too.
        reader.send(&packet(0x50, &[0, 77])).await;
        let unknown = if level == 5 { vec![0x62, 3, 0, 77, 0x92] } else { vec![0x62, 2, 0, 77] };
        reader.expect(&unknown).await;
        reader.send(&packet(0x40, &[0, 78])).await;
        reader.send(&packet(0x70, &[0, 79])).await;
        reader.send(&[0xC0, 0]).await;
        reader.expect(&[0xD0, 0]).await;
    }
}

#[tokio::test]
async fn properties_reach_the_subscriber_without_alias_and_with_less_expiry() {
    let endpoint = start(TestIntake::open()).await;
    let mut reader = endpoint.subscriber(5, "reader", "#", 0).await;
    let mut device = endpoint.client(5, "device", 60).await;
    let passed = [
        &[1, 1, 3][..],
        &text("json"),
        &[8],
        &text("re"),
        &[9, 0, 1, 7, 38],
        &text("k"),
        &text("v"),
    ]
    .concat();
    let sent = [&passed[..], &[35, 0, 1, 2, 0, 0, 0, 100]].concat();
    device.send(&publish5(0x30, 0, "t", &sent, "x")).await;
    let got = reader.packet().await.unwrap();
    let v5::Packet::Publish(publish) =
        v5::Packet::read(&mut BytesMut::from(&got[..]), None).unwrap()
    else {
        panic!("not a PUBLISH: {got:02x?}")
    };
    let properties = publish.properties.unwrap();
    assert_eq!(properties.content_type.as_deref(), Some("json"), "[5: 3.3.2-20]");
    assert_eq!(properties.response_topic.as_deref(), Some("re"), "[5: 3.3.2-15]");
    assert_eq!(properties.correlation_data.as_deref(), Some(&[7][..]), "[5: 3.3.2-16]");
    assert_eq!(properties.payload_format_indicator, Some(1), "[5: 3.3.2-4]");
    assert_eq!(properties.user_properties, [("k".into(), "v".into())], "[5: 3.3.2-17]");
    assert!(properties.message_expiry_interval.is_some_and(|s| (90..=100).contains(&s)));
    assert_eq!(properties.topic_alias, None, "[5: 3.1.2-26] the reader allows none");
}

#[tokio::test]
async fn a_retained_message_is_found_by_a_subscription_right_behind_it() {
    for level in [4, 5] {
        let endpoint = start(TestIntake::open()).await;
        let mut peer = endpoint.client(level, "d", 60).await;
        let mut retained = publish_packet(level, 0, 0, "state", "on");
        retained[0] |= 1;
        peer.send(&[retained.clone(), subscribe(level, "state", 0)].concat()).await;
        peer.expect(&suback(level, 0)).await;
        // [3: 3.3.1-8], [5: 3.3.1-8]: RETAIN says that it comes because of the subscription.
        peer.expect(&retained).await;
        // [3: 3.3.1-9]: and is 0 for who was there already.
        peer.send(&retained).await;
        peer.expect(&publish_packet(level, 0, 0, "state", "on")).await;
        // [3: 3.3.1-10]: an empty one takes it back.
        let mut empty = publish_packet(level, 0, 0, "state", "");
        empty[0] |= 1;
        peer.send(&empty).await;
        peer.expect(&publish_packet(level, 0, 0, "state", "")).await;
        let mut late = endpoint.subscriber(level, "late", "state", 0).await;
        late.expect_quiet().await;
    }
}

#[tokio::test]
async fn each_filter_has_its_code() {
    let endpoint = start(TestIntake::open()).await;
    let deep = "a/".repeat(100);
    let three = [text("a/#"), vec![1], text(&deep), vec![0], text("$share/g/b"), vec![2]].concat();
    let mut v3 = endpoint.client(4, "old", 60).await;
    v3.send(&packet(0x82, &[vec![0, 9], three.clone()].concat())).await;
    v3.expect(&[0x90, 5, 0, 9, 1, 0x80, 2]).await;
    v3.send(&packet(0xA2, &[vec![0, 8], text("b")].concat())).await;
    v3.expect(&[0xB0, 2, 0, 8]).await;
    let mut v5 = endpoint.client(5, "new", 60).await;
    v5.send(&packet(0x82, &[vec![0, 9, 2, 11, 7], three].concat())).await;
    v5.expect(&[0x90, 6, 0, 9, 0, 1, 0x97, 2]).await;
    v5.send(&packet(0xA2, &[vec![0, 8, 0], text("b"), text("a/#")].concat())).await;
    v5.expect(&[0xB0, 5, 0, 8, 0, 0x11, 0]).await;
}

#[tokio::test]
async fn no_answer_is_larger_than_the_client_allows() {
    let endpoint = start(TestIntake::open()).await;
    let mut body = text("MQTT");
    body.extend_from_slice(&[5, 2, 0, 60, 5, 39, 0, 0, 0, 30]);
    body.extend(text("small"));
    let mut peer = endpoint.open().await;
    peer.send(&packet(0x10, &body)).await;
    assert!(peer.packet().await.unwrap().len() <= 30);
    let many: Vec<u8> = (0..40).flat_map(|_| [0, 1, b'a', 0]).collect();
    peer.send(&packet(0x82, &[vec![0, 9, 0], many].concat())).await;
    peer.send(&publish_packet(5, 0, 0, "a", &"x".repeat(30))).await;
    peer.send(&publish_packet(5, 0, 0, "a", "fits")).await;
    // [5: 3.1.2-24], [5: 3.1.2-25]
    peer.expect(&publish_packet(5, 0, 0, "a", "fits")).await;
}

#[tokio::test]
async fn no_more_is_in_flight_than_the_client_receives() {
    let endpoint = start(TestIntake::open()).await;
    let mut body = text("MQTT");
    body.extend_from_slice(&[5, 2, 0, 60, 3, 33, 0, 2]);
    body.extend(text("narrow"));
    let mut peer = endpoint.open().await;
    peer.send(&packet(0x10, &body)).await;
    peer.packet().await.unwrap();
    peer.send(&subscribe(5, "a", 1)).await;
    peer.expect(&suback(5, 1)).await;
    let mut device = endpoint.client(5, "device", 60).await;
    for id in 1..=4 {
        device.send(&publish_packet(5, 1, id, "a", &id.to_string())).await;
        device.expect(&[0x40, 2, 0, id as u8]).await;
    }
    peer.expect(&publish_packet(5, 1, 1, "a", "1")).await;
    peer.expect(&publish_packet(5, 1, 2, "a", "2")).await;
    peer.expect_quiet().await;
    peer.send(&packet(0x40, &[0, 1])).await;
    let third = peer.packet().await.unwrap();
    assert!(third.ends_with(b"3"), "[5: 3.3.4-9] {third:?}");
    peer.expect_quiet().await;
}

#[tokio::test]
async fn a_lasting_session_keeps_what_comes_meanwhile_and_sends_again_what_was_not_answered() {
    for level in [4, 5] {
        let endpoint = start(TestIntake::open()).await;
        let mut reader = endpoint.kept(level, "reader", false).await;
        reader.send(&subscribe(level, "a", 1)).await;
        reader.expect(&suback(level, 1)).await;
        let mut device = endpoint.client(level, "device", 60).await;
        device.send(&publish_packet(level, 1, 1, "a", "1")).await;
        device.expect(&[0x40, 2, 0, 1]).await;
        reader.expect(&publish_packet(level, 1, 1, "a", "1")).await;
        drop(reader);
        endpoint.intake.wait_for_event("lost reader closed").await;
        device.send(&publish_packet(level, 1, 2, "a", "2")).await;
        device.expect(&[0x40, 2, 0, 2]).await;
        let mut reader = endpoint.kept(level, "reader", true).await;
        // [3: 4.4.0-1], [5: 4.4.0-1]: the same packet id, with DUP.
        let mut again = publish_packet(level, 1, 1, "a", "1");
        again[0] |= 8;
        reader.expect(&again).await;
        reader.expect(&publish_packet(level, 1, 2, "a", "2")).await;
        // [3: 3.1.2-6]: a clean one has no past.
        let mut clean = endpoint.client(level, "reader", 60).await;
        clean.expect_quiet().await;
    }
}

#[tokio::test]
async fn a_slow_reader_holds_nobody_back() {
    let endpoint = start(TestIntake::open()).await;
    let _slow = endpoint.subscriber(4, "slow", "#", 0).await;
    let mut fast = endpoint.subscriber(4, "fast", "last", 0).await;
    let mut device = endpoint.client(4, "device", 60).await;
    let payload = "x".repeat(60_000);
    for id in 1..=300 {
        device.send(&publish_packet(4, 1, id, "t", &payload)).await;
        assert_eq!(device.packet().await.unwrap()[0], 0x40);
    }
    device.send(&publish_packet(4, 1, 301, "last", "x")).await;
    fast.expect(&publish_packet(4, 0, 0, "last", "x")).await;
}

#[tokio::test]
async fn a_message_to_oneself_and_two_that_talk_at_once_do_not_lock_up() {
    let endpoint = start(TestIntake::open()).await;
    let peer = endpoint.subscriber(4, "echo", "t", 0).await;
    let payload = "x".repeat(1000);
    let flood: Vec<u8> = (0..20_000).flat_map(|_| publish_packet(4, 0, 0, "t", &payload)).collect();
    let (mut reader, mut writer) = peer.stream.into_split();
    // All is written before anything is read: more than both sockets hold.
    timeout(Duration::from_secs(60), writer.write_all(&flood)).await.unwrap().unwrap();
    let mut some = vec![0; publish_packet(4, 0, 0, "t", &payload).len()];
    timeout(Duration::from_secs(60), reader.read_exact(&mut some)).await.unwrap().unwrap();
    assert_eq!(some, publish_packet(4, 0, 0, "t", &payload));
}
