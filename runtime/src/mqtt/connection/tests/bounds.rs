//! What a connection costs, and what its user may cost others.

use super::delivery::{suback, subscribe};
use super::*;
use crate::mqtt::access::Peer as Knocking;
use crate::mqtt::security::AclRule;

#[tokio::test]
async fn an_idle_connection_is_small() {
    let endpoint = Endpoint::bind(config()).await.unwrap();
    let stats = Arc::new(SourceStats::default());
    let (_stop, stopped) = watch::channel(false);
    let (shared, _listeners) = endpoint.open(TestIntake::open(), stats);
    let (stream, _) = tokio::io::duplex(1);
    let peer = Knocking { address: "127.0.0.1:1".parse().unwrap(), certificate: None };
    let future = run(stream, peer, shared, None, stopped);
    // Twice over: tokio moves it into its task, 2 KiB are the read buffer, and the rest is the
    // session at the broker. 20,000 connections have to stay far below 400 MB.
    let size = size_of_val(&future);
    assert!(size <= 3 * 1024, "{size} bytes");
}

#[tokio::test]
async fn who_sends_more_than_allowed_is_read_more_slowly_and_loses_nothing() {
    let mut limited = config();
    limited.security.rate_max = Some(10);
    let endpoint = start_with(limited, TestIntake::open()).await;
    let mut peer = endpoint.client(4, "d", 60).await;
    // The bucket holds ten seconds' worth.
    let begin = WallInstant::now();
    for part in [1..=110u16, 111..=120] {
        let last = *part.end();
        let flood: Vec<u8> = part.flat_map(|id| publish_packet(4, 1, id, "t", "x")).collect();
        peer.send(&flood).await;
        while peer.packet().await.unwrap()[2..] != last.to_be_bytes() {}
    }
    assert!(begin.elapsed() >= Duration::from_millis(900), "{:?}", begin.elapsed());
    peer.send(&[0xC0, 0]).await;
    peer.expect(&[0xD0, 0]).await;
    assert_eq!(endpoint.intake.texts().len(), 120);
}

#[tokio::test]
async fn topics_are_allowed_or_not_in_the_words_of_each_version() {
    let mut limited = config();
    limited.security.acl = vec![AclRule {
        publish: vec!["d/%c/#".to_owned()],
        subscribe: vec!["d/#".to_owned()],
        ..AclRule::default()
    }];
    let endpoint = start_with(limited, TestIntake::open()).await;
    let mut v5 = endpoint.client(5, "new", 60).await;
    v5.send(&publish_packet(5, 1, 1, "d/new/x", "mine")).await;
    v5.expect(&[0x40, 2, 0, 1]).await;
    v5.send(&publish_packet(5, 1, 2, "d/old/x", "not mine")).await;
    v5.expect(&[0x40, 3, 0, 2, 0x87]).await;
    v5.send(&publish_packet(5, 2, 3, "d/old/x", "not mine")).await;
    v5.expect(&[0x50, 3, 0, 3, 0x87]).await;
    v5.send(&publish_packet(5, 0, 0, "d/old/x", "not mine")).await;
    v5.send(&subscribe(5, "secret", 1)).await;
    v5.expect(&suback(5, 0x80)).await;
    let mut v3 = endpoint.client(4, "old", 60).await;
    v3.send(&subscribe(4, "secret", 1)).await;
    v3.expect(&suback(4, 0x80)).await;
    v3.send(&subscribe(4, "d/#", 1)).await;
    v3.expect(&suback(4, 1)).await;
    v3.send(&publish_packet(4, 1, 1, "d/new/x", "not mine")).await;
    v3.expect_closed().await;
    assert_eq!(endpoint.intake.texts(), ["d/new/x mine"]);
    assert_eq!(endpoint.stats.denied.load(Ordering::Relaxed), 4);
    let events = endpoint.intake.events();
    for denied in ["denied new publish d/old/x", "denied new subscribe secret"] {
        assert!(events.iter().any(|e| e == denied), "{events:?}");
    }
    // A will that may not be published is refused at once.
    let mut body = text("MQTT");
    body.extend_from_slice(&[5, 6, 0, 60, 0]);
    body.extend([text("w"), vec![0], text("d/x"), text("gone")].concat());
    let mut peer = endpoint.open().await;
    peer.send(&packet(0x10, &body)).await;
    peer.expect(&[0x20, 3, 0, 0x87, 0]).await;
    peer.expect_closed().await;
}
