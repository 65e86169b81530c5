//! What clients publish: aliases, properties, bounds, QoS 2, and topics they may not have.

use super::*;

/// A version 5 PUBLISH with properties.
pub(super) fn publish5(
    first: u8,
    id: u16,
    topic: &str,
    properties: &[u8],
    payload: &str,
) -> Vec<u8> {
    let mut body = text(topic);
    if first & 6 != 0 {
        body.extend_from_slice(&id.to_be_bytes());
    }
    body.push(properties.len() as u8);
    body.extend_from_slice(properties);
    body.extend_from_slice(payload.as_bytes());
    packet(first, &body)
}

#[tokio::test]
async fn topic_aliases_are_resolved_and_do_not_reach_the_journal() {
    let endpoint = start(TestIntake::open()).await;
    let mut peer = endpoint.client(5, "d", 60).await;
    let user = [&[38][..], &text("k"), &text("v")].concat();
    let with_alias = [&[35, 0, 32][..], &user].concat();
    peer.send(&publish5(0x32, 1, "long/topic", &with_alias, "first")).await;
    peer.expect(&[0x40, 2, 0, 1]).await;
    peer.send(&publish5(0x32, 2, "", &with_alias, "second")).await;
    peer.expect(&[0x40, 2, 0, 2]).await;
    peer.send(&publish5(0x32, 3, "other", &[35, 0, 32], "third")).await;
    peer.send(&publish5(0x32, 4, "", &[35, 0, 32], "fourth")).await;
    peer.expect(&[0x40, 2, 0, 3]).await;
    peer.expect(&[0x40, 2, 0, 4]).await;
    let texts = ["long/topic first", "long/topic second", "other third", "other fourth"];
    assert_eq!(endpoint.intake.texts(), texts);
    let (messages, i) = endpoint.intake.find("second");
    assert_eq!(messages.properties(i), user);
    let (messages, i) = endpoint.intake.find("fourth");
    assert_eq!(messages.properties(i), [0u8; 0]);
    // [5: 3.3.2-7] Aliases end with the connection.
    let mut again = endpoint.client(5, "d", 60).await;
    again.send(&publish5(0x30, 0, "", &[35, 0, 32], "x")).await;
    again.expect(&[0xE0, 1, 0x82]).await;
    again.expect_closed().await;
}

#[tokio::test]
async fn properties_are_journaled_as_they_came() {
    let endpoint = start(TestIntake::open()).await;
    let mut peer = endpoint.client(5, "d", 60).await;
    let all = [
        &[1, 1, 2, 0, 0, 0, 60, 3][..],
        &text("json"),
        &[8],
        &text("re"),
        &[9, 0, 1, 7, 38],
        &text("a"),
        &text("1"),
        &[38],
        &text("a"),
        &text("2"),
    ]
    .concat();
    peer.send(&publish5(0x32, 1, "t", &all, "x")).await;
    peer.expect(&[0x40, 2, 0, 1]).await;
    let (messages, i) = endpoint.intake.find("x");
    assert_eq!(messages.properties(i), all);
}

#[tokio::test]
async fn a_wrong_publish_of_version_5_is_told_why() {
    let endpoint = start(TestIntake::open()).await;
    let many: Vec<u8> = (0..65).flat_map(|_| [38, 0, 0, 0, 0]).collect();
    let mut body = text("t");
    body.extend_from_slice(&[0xC5, 2]);
    body.extend_from_slice(&many);
    let too_many = packet(0x30, &body);
    for (what, bytes, reason) in [
        ("[5: 3.3.1-4] QoS 3", publish5(0x36, 1, "t", &[], ""), 0x81),
        ("[5: 3.3.1-2] QoS 0 with DUP", publish5(0x38, 0, "t", &[], ""), 0x81),
        ("[5: 2.2.1-3] packet id 0", publish5(0x32, 0, "t", &[], ""), 0x82),
        ("[5: 3.3.2-2] wildcard", publish5(0x30, 0, "t/#", &[], ""), 0x90),
        ("[5: 4.7.3-1] no topic, no alias", publish5(0x30, 0, "", &[], ""), 0x82),
        ("[5: 1.5.4-2] NUL in the topic", publish5(0x30, 0, "a\0", &[], ""), 0x81),
        ("[5: 3.3.2-8] alias 0", publish5(0x30, 0, "t", &[35, 0, 0], ""), 0x94),
        ("[5: 3.3.2-9] alias above the maximum", publish5(0x30, 0, "t", &[35, 0, 33], ""), 0x94),
        ("[5: 3.3.4] alias unknown", publish5(0x30, 0, "", &[35, 0, 1], ""), 0x82),
        ("[5: 3.3.4-6] subscription identifier", publish5(0x30, 0, "t", &[11, 1], ""), 0x82),
        (
            "[5: 3.3.2-14] wildcard in response topic",
            publish5(0x30, 0, "t", &[8, 0, 1, b'#'], ""),
            0x82,
        ),
        ("[5: 3.3.2.3.2] payload format 2", publish5(0x30, 0, "t", &[1, 2], ""), 0x82),
        (
            "[5: 3.3.2.3.3] expiry twice",
            publish5(0x30, 0, "t", &[2, 0, 0, 0, 1, 2, 0, 0, 0, 1], ""),
            0x82,
        ),
        ("[5: 2.2.2.2] property of CONNECT", publish5(0x30, 0, "t", &[33, 0, 1], ""), 0x82),
        ("[5: 1.5.5-1] padded length", vec![0x30, 0x84, 0, 0, 1, b't', 0], 0x81),
        ("ours: user properties", too_many, 0x97),
        ("[5: 3.6.1-1] PUBREL flags", packet(0x60, &[0, 1]), 0x81),
        ("[5: 3.8.1-1] SUBSCRIBE flags", packet(0x80, &[0, 1, 0, 0, 1, b'a', 0]), 0x81),
        ("[5: 3.10.1-1] UNSUBSCRIBE flags", packet(0xA0, &[0, 1, 0, 0, 1, b'a']), 0x81),
        ("[5: 3.10.3-2] UNSUBSCRIBE of nothing", packet(0xA2, &[0, 1, 0]), 0x82),
        ("[5: 3.12] PINGREQ with a body", packet(0xC0, &[0]), 0x81),
        ("[5: 3.14.1-1] DISCONNECT flags", packet(0xE1, &[]), 0x81),
        ("[5: 3.14.2] DISCONNECT, server's reason", packet(0xE0, &[0x8B]), 0x82),
        ("[5: 3.1.2-11] revived session", packet(0xE0, &[0, 5, 17, 0, 0, 0, 9]), 0x82),
        ("[5: 3.15] AUTH", packet(0xF0, &[0x18, 0]), 0x82),
        ("a server's packet", packet(0x90, &[0, 1, 0, 0]), 0x82),
    ] {
        let mut peer = endpoint.client(5, "d", 60).await;
        peer.send(&bytes).await;
        assert_eq!(peer.packet().await, Some(vec![0xE0, 1, reason]), "{what}");
        peer.expect_closed().await;
    }
    assert_eq!(endpoint.intake.texts(), [""; 0]);
}

#[tokio::test]
async fn a_wrong_packet_of_version_3_closes_the_connection() {
    let endpoint = start(TestIntake::open()).await;
    for (what, bytes) in [
        ("[3: 3.3.1-4] QoS 3", packet(0x36, &[0, 1, b't', 0, 1])),
        ("[3: 3.3.1-2] QoS 0 with DUP", packet(0x38, &[0, 1, b't'])),
        ("[3: 2.3.1-1] packet id 0", publish_packet(4, 1, 0, "t", "")),
        ("[3: 3.3.2-2] wildcard", publish_packet(4, 0, 0, "t/+", "")),
        ("[3: 4.7.3-1] empty topic", publish_packet(4, 0, 0, "", "")),
        ("[3: 1.5.3-1] surrogate", packet(0x30, &[0, 3, 0xED, 0xA0, 0x80])),
        ("[3: 3.6.1-1] PUBREL flags", packet(0x60, &[0, 1])),
        ("[3: 3.8.1-1] SUBSCRIBE flags", packet(0x80, &[0, 1, 0, 1, b'a', 0])),
        ("[3: 3.8.3-3] SUBSCRIBE of nothing", packet(0x82, &[0, 1])),
        ("[3: 3.8.3-4] SUBSCRIBE with QoS 3", packet(0x82, &[0, 1, 0, 1, b'a', 3])),
        ("[3: 4.7.1-2] bad filter", packet(0x82, &[0, 1, 0, 3, b'#', b'/', b'a', 0])),
        ("[3: 3.10.3-2] UNSUBSCRIBE of nothing", packet(0xA2, &[0, 1])),
        ("[3: 3.14.1-1] DISCONNECT flags", packet(0xE1, &[])),
        ("[3: 3.1.0-2] second CONNECT", connect(4, "d", 60, None)),
        ("[3: 2.2.2-2] type 15", packet(0xF0, &[])),
        ("[3: 2.2.2-2] type 0", packet(0x00, &[])),
    ] {
        let mut peer = endpoint.client(4, "d", 60).await;
        peer.send(&bytes).await;
        assert_eq!(peer.packet().await, None, "{what}");
    }
    assert_eq!(endpoint.counts().2, 16);
}

#[tokio::test]
async fn more_than_the_receive_maximum_is_too_much() {
    let endpoint = start(TestIntake::open()).await;
    let mut peer = endpoint.client(5, "d", 60).await;
    let flood: Vec<u8> =
        (1..=RECEIVE_MAXIMUM + 1).flat_map(|id| publish_packet(5, 2, id, "t", "")).collect();
    peer.send(&flood).await;
    let mut last = Vec::new();
    while let Some(packet) = peer.packet().await {
        assert!(packet[0] == 0x50 || packet == [0xE0, 1, 0x93], "{packet:?}");
        last = packet;
    }
    // [5: 3.3.4-9] QoS 2 counts until PUBREL, not until PUBREC.
    assert_eq!(last, [0xE0, 1, 0x93]);
}

#[tokio::test]
async fn a_released_packet_id_makes_room_and_an_unknown_one_is_told() {
    let endpoint = start(TestIntake::open()).await;
    let mut v5 = endpoint.client(5, "new", 60).await;
    v5.send(&packet(0x62, &[0, 9])).await;
    v5.expect(&[0x70, 3, 0, 9, 0x92]).await;
    v5.send(&publish_packet(5, 2, 9, "t", "x")).await;
    v5.expect(&[0x50, 2, 0, 9]).await;
    v5.send(&packet(0x62, &[0, 9, 0, 0])).await;
    v5.expect(&[0x70, 2, 0, 9]).await;
    let mut v3 = endpoint.client(4, "old", 60).await;
    v3.send(&packet(0x62, &[0, 9])).await;
    v3.expect(&[0x70, 2, 0, 9]).await;
}

#[tokio::test]
async fn a_qos_2_message_is_journaled_once_over_reconnects_of_its_session() {
    let endpoint = start(TestIntake::open()).await;
    let mut kept = connect(4, "d", 60, None);
    kept[9] = 0;
    let mut first = endpoint.open().await;
    first.send(&kept).await;
    first.expect(&[0x20, 2, 0, 0]).await;
    let mut message = publish_packet(4, 2, 5, "t", "once");
    first.send(&message).await;
    first.expect(&[0x50, 2, 0, 5]).await;
    drop(first);
    endpoint.intake.wait_for_event("lost d closed").await;
    let mut second = endpoint.open().await;
    second.send(&kept).await;
    second.expect(&[0x20, 2, 1, 0]).await;
    message[0] |= 8;
    second.send(&message).await;
    second.expect(&[0x50, 2, 0, 5]).await;
    second.send(&packet(0x62, &[0, 5])).await;
    second.expect(&[0x70, 2, 0, 5]).await;
    second.send(&publish_packet(4, 2, 5, "t", "new")).await;
    second.expect(&[0x50, 2, 0, 5]).await;
    assert_eq!(endpoint.intake.texts(), ["t once", "t new"]);
}

#[tokio::test]
async fn topics_of_the_server_are_refused_and_other_dollar_topics_are_not() {
    let endpoint = start(TestIntake::open()).await;
    let mut v5 = endpoint.client(5, "new", 60).await;
    v5.send(&publish_packet(5, 1, 1, "$SYS/x", "a")).await;
    v5.expect(&[0x40, 3, 0, 1, 0x90]).await;
    v5.send(&publish_packet(5, 2, 2, "$share/g/x", "b")).await;
    v5.expect(&[0x50, 3, 0, 2, 0x90]).await;
    v5.send(&publish_packet(5, 0, 0, "$SYS", "c")).await;
    v5.send(&publish_packet(5, 1, 3, "$SYSTEM/x", "d")).await;
    v5.expect(&[0x40, 2, 0, 3]).await;
    let mut v3 = endpoint.client(4, "old", 60).await;
    v3.send(&publish_packet(4, 1, 1, "$SYS/x", "e")).await;
    // [3: 3.3.5-2] It must not hear that the message is kept.
    v3.expect_closed().await;
    assert_eq!(endpoint.intake.texts(), ["$SYSTEM/x d"]);
    endpoint.intake.wait_for_event("lost old may not publish to $SYS/x").await;
    let denied = endpoint.intake.events().iter().filter(|e| e.starts_with("denied")).count();
    assert_eq!((denied, endpoint.stats.denied.load(Ordering::Relaxed)), (4, 4));
}
