//! The traps in which other subscribers lose messages, hang, or connect for ever.

use super::*;
use tokio::io::AsyncWriteExt;

/// Both versions of the protocol.
const BOTH: [bool; 2] = [false, true];

fn duplicate(mut packet: Vec<u8>) -> Vec<u8> {
    packet[0] |= 8;
    packet
}

#[tokio::test]
async fn no_ack_of_an_old_connection_reaches_a_new_one() {
    for version5 in BOTH {
        let s = start(TestIntake::closed(), version5).await;
        let mut broker = s.first().await;
        broker.send(&s.publish(1, "old 1")).await;
        s.intake.wait_for(1).await;
        broker.send(&[s.publish(2, "old 2"), s.publish(3, "old 3")].concat()).await;
        // Both have been read when the connection goes.
        eventually(|| s.get(|s| &s.received) == 3).await;
        drop(broker);
        sleep(Duration::from_millis(50)).await;
        s.intake.allow(2);
        // The session is lost: the same ids mean new messages, and none of them is durable.
        let mut broker = s.accept(false).await;
        s.grant(&mut broker, [1, 1]).await;
        broker.send(&[s.publish(1, "new 1"), s.publish(2, "new 2")].concat()).await;
        s.intake.wait_for(4).await;
        broker.expect_quiet().await;
        assert_eq!(s.get(|s| &s.acked), 0);
        s.intake.allow(10);
        broker.expect(&[0x40, 2, 0, 1]).await;
        broker.expect(&[0x40, 2, 0, 2]).await;
        assert_eq!(s.intake.texts()[..3], ["plant/a old 1", "plant/a old 2", "plant/a old 3"]);
    }
}

#[tokio::test]
async fn no_alias_is_announced_and_a_broker_that_uses_one_is_not_left() {
    let s = start(TestIntake::open(), true).await;
    let accepted = s.broker.accept().await.unwrap();
    let mut broker = Peer::new(accepted.0);
    let connect = broker.packet().await.unwrap();
    // Session expiry of 600 s and a receive maximum of 65,535; no maximum packet size (39), no
    // topic alias maximum (34).
    assert_eq!(connect[12..21], [8, 17, 0, 0, 2, 88, 33, 255, 255]);
    broker.send(&[0x20, 3, 0, 0, 0]).await;
    s.grant(&mut broker, [1, 1]).await;
    // An empty topic with alias 7.
    broker.send(&packet(0x32, &[0, 0, 0, 9, 3, 35, 0, 7, b'x'])).await;
    broker.expect(&[0x40, 2, 0, 9]).await;
    broker.send(&s.publish(10, "next")).await;
    broker.expect(&[0x40, 2, 0, 10]).await;
    assert_eq!(s.intake.texts(), ["plant/a next"]);
    assert_eq!(s.get(|s| &s.skipped), 1);
    assert!(
        s.intake
            .session_events()
            .iter()
            .any(|e| e.event == "skipped" && e.detail.contains("alias"))
    );
}

#[tokio::test]
async fn a_session_that_goes_on_at_pubrel_makes_no_storm() {
    for version5 in BOTH {
        let s = start_with(TestIntake::open(), version5, |c| c.qos = 2).await;
        let mut broker = s.accept(false).await;
        s.grant(&mut broker, [2, 2]).await;
        broker.send(&publish(s.level(), 2, 5, "plant/a", "once")).await;
        broker.expect(&[0x50, 2, 0, 5]).await;
        drop(broker);
        let mut broker = s.accept(true).await;
        broker.send(&[0x62, 2, 0, 5]).await;
        broker.expect(&[0x70, 2, 0, 5]).await;
        // An id that was never there is answered as well: else the broker would ask for ever.
        broker.send(&[0x62, 2, 0, 77]).await;
        broker.expect(&[0x70, 2, 0, 77]).await;
        broker.send(&publish(s.level(), 2, 5, "plant/a", "once")).await;
        broker.expect(&[0x50, 2, 0, 5]).await;
        assert_eq!(s.intake.texts().len(), 2, "after PUBREL the id means a new message");
        assert_eq!(s.get(|s| &s.connections_total), 2);
    }
}

#[tokio::test]
async fn at_qos_2_a_message_is_taken_once_until_it_is_released() {
    for version5 in BOTH {
        let s = start_with(TestIntake::closed(), version5, |c| c.qos = 2).await;
        let mut broker = s.accept(false).await;
        s.grant(&mut broker, [2, 2]).await;
        let message = publish(s.level(), 2, 6, "plant/a", "m");
        broker.send(&message).await;
        s.intake.wait_for(1).await;
        broker.expect_quiet().await;
        broker.send(&duplicate(message.clone())).await;
        broker.expect_quiet().await;
        s.intake.allow(1);
        broker.expect(&[0x50, 2, 0, 6]).await;
        broker.expect(&[0x50, 2, 0, 6]).await;
        drop(broker);
        // The PUBREC was lost on the way: the session goes on with the message.
        let mut broker = s.accept(true).await;
        broker.send(&duplicate(message.clone())).await;
        broker.expect(&[0x50, 2, 0, 6]).await;
        drop(broker);
        assert_eq!(s.intake.texts().len(), 1);
        // A new session: the same id is another message.
        let mut broker = s.accept(false).await;
        s.grant(&mut broker, [2, 2]).await;
        broker.send(&message).await;
        s.intake.wait_for(2).await;
        s.intake.allow(1);
        broker.expect(&[0x50, 2, 0, 6]).await;
    }
}

/// It has no memory of what it had delivered in its last moments, and counts on from before.
#[tokio::test]
async fn at_qos_2_another_message_of_a_broker_that_was_killed_is_taken_under_an_id_not_released() {
    for version5 in BOTH {
        let s = start_with(TestIntake::open(), version5, |c| c.qos = 2).await;
        let mut broker = s.accept(false).await;
        s.grant(&mut broker, [2, 2]).await;
        broker.send(&publish(s.level(), 2, 6, "plant/a", "forgotten")).await;
        broker.expect(&[0x50, 2, 0, 6]).await;
        drop(broker);
        let mut broker = s.accept(true).await;
        broker.send(&publish(s.level(), 2, 6, "plant/a", "another")).await;
        broker.expect(&[0x50, 2, 0, 6]).await;
        assert_eq!(s.intake.texts(), ["plant/a forgotten", "plant/a another"]);
        broker.send(&duplicate(publish(s.level(), 2, 6, "plant/a", "another"))).await;
        broker.expect(&[0x50, 2, 0, 6]).await;
        assert_eq!(s.intake.texts().len(), 2, "and that one once");
    }
}

#[tokio::test]
async fn a_broker_that_is_slow_with_its_connack_is_waited_for() {
    for version5 in BOTH {
        let s = start(TestIntake::open(), version5).await;
        let accepted = s.broker.accept().await.unwrap();
        let mut broker = Peer::new(accepted.0);
        broker.packet().await.unwrap();
        let another = timeout(Duration::from_millis(1500), s.broker.accept()).await;
        assert!(another.is_err(), "it must not connect again");
        broker.send(if version5 { &[0x20, 3, 0, 0, 0] } else { &[0x20, 2, 0, 0] }).await;
        s.grant(&mut broker, [1, 1]).await;
        eventually(|| s.stats.is_healthy()).await;
    }
}

#[tokio::test]
async fn a_subscribe_that_was_not_answered_is_sent_again_in_the_kept_session() {
    for version5 in BOTH {
        let s = start(TestIntake::open(), version5).await;
        let mut broker = s.accept(false).await;
        assert_eq!(broker.packet().await.unwrap()[0], 0x82);
        drop(broker);
        let mut broker = s.accept(true).await;
        s.grant(&mut broker, [1, 1]).await;
        eventually(|| s.stats.is_healthy()).await;
    }
}

#[tokio::test]
async fn a_packet_that_is_too_large_is_passed_over_and_the_next_is_taken() {
    for (version5, qos) in [(false, 1), (true, 2), (true, 0)] {
        let s = start_with(TestIntake::open(), version5, |c| c.qos = qos).await;
        let mut broker = s.accept(false).await;
        s.grant(&mut broker, [qos, qos]).await;
        // 100 MB of one packet, never all in memory.
        let mut start = text("plant/big");
        if qos > 0 {
            start.extend_from_slice(&7_u16.to_be_bytes());
        }
        if version5 {
            start.push(0);
        }
        let body = 100_000_000;
        let mut header = vec![0x30 | qos << 1];
        let mut left = body;
        while left >= 0x80 {
            header.push((left & 0x7F) as u8 | 0x80);
            left >>= 7;
        }
        header.push(left as u8);
        broker.send(&header).await;
        broker.send(&start).await;
        let chunk = vec![b'x'; 1 << 20];
        let mut rest = body - start.len();
        while rest > 0 {
            let n = rest.min(chunk.len());
            broker.stream.write_all(&chunk[..n]).await.unwrap();
            rest -= n;
        }
        match qos {
            0 => {}
            1 => broker.expect(&[0x40, 2, 0, 7]).await,
            _ => broker.expect(&[0x50, 2, 0, 7]).await,
        }
        broker.send(&s.publish(8, "next")).await;
        broker.expect(&[0x40, 2, 0, 8]).await;
        assert_eq!(s.intake.texts(), ["plant/a next"]);
        let events = s.intake.session_events();
        let skipped: Vec<_> = events.iter().filter(|e| e.event == "skipped").collect();
        assert_eq!(skipped.len(), 1);
        assert!(skipped[0].detail.contains("plant/big") && skipped[0].detail.contains("1000000"));
        assert_eq!((s.get(|s| &s.skipped), s.get(|s| &s.connections_total)), (1, 1));
        let untaken = s.intake.untaken();
        let told: Vec<_> =
            untaken.iter().map(|u| (u.topic.as_str(), u.packet_bytes, u.malformed)).collect();
        assert_eq!(told, [("plant/big", 100_000_005, false)]);
    }
}

#[tokio::test]
async fn a_malformed_publish_is_acknowledged_where_that_can_be_done() {
    for version5 in BOTH {
        let s = start(TestIntake::open(), version5).await;
        let mut broker = s.first().await;
        // Not UTF-8; a wildcard; no topic.
        for (id, topic) in [(1, &b"\0\x02\xFF\xFE"[..]), (2, b"\0\x01#"), (3, b"\0\0")] {
            let mut body = topic.to_vec();
            body.extend_from_slice(&[0, id]);
            if version5 {
                body.push(0);
            }
            broker.send(&packet(0x32, &body)).await;
            broker.expect(&[0x40, 2, 0, id]).await;
        }
        broker.send(&s.publish(4, "next")).await;
        broker.expect(&[0x40, 2, 0, 4]).await;
        assert_eq!(s.intake.texts(), ["plant/a next"]);
        assert_eq!((s.get(|s| &s.skipped), s.get(|s| &s.connections_total)), (3, 1));
        // Without a packet id nothing can be acknowledged: it leaves, and comes back.
        broker.send(&[0x36, 3, 0, 1, b'a']).await;
        broker.expect_closed().await;
        s.accept(true).await;
        assert_eq!(s.get(|s| &s.protocol_errors), 1);
    }
}

#[tokio::test]
async fn a_broker_that_is_no_broker_is_tried_with_growing_pauses() {
    let s = start(TestIntake::open(), true).await;
    let mut at = Vec::new();
    for _ in 0..5 {
        let accepted = timeout(Duration::from_secs(10), s.broker.accept()).await.unwrap();
        at.push(Instant::now());
        let mut peer = Peer::new(accepted.unwrap().0);
        peer.packet().await.unwrap();
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        peer.expect_closed().await;
    }
    assert!(at[4] - at[3] >= Duration::from_millis(800), "{at:?}");
    let refused = s.intake.session_events().iter().filter(|e| e.event == "refused").count();
    assert_eq!(refused, 1, "one row per outage, not per attempt");
}

#[tokio::test]
async fn retained_messages_that_come_again_are_known() {
    for version5 in BOTH {
        let folder = tempfile::tempdir().unwrap();
        let state = Some(folder.path().to_owned());
        let retained = |s: &Running, topic: &str, id: u16, payload: &str| {
            let mut packet = publish(s.level(), 1, id, topic, payload);
            packet[0] |= 1;
            packet
        };
        let s = start_with(TestIntake::open(), version5, |c| c.state = state.clone()).await;
        for round in 0..3 {
            let mut broker = s.accept(false).await;
            s.grant(&mut broker, [1, 1]).await;
            for id in 1..=10 {
                let topic = format!("plant/{id}");
                broker.send(&retained(&s, &topic, id, "on")).await;
                broker.expect(&[0x40, 2, 0, id as u8]).await;
            }
            assert_eq!(s.intake.texts().len(), 10, "round {round}");
        }
        assert_eq!(s.get(|s| &s.retained_dropped), 20);
        // Live messages are never left out, equal or not; and what they say is known then.
        let mut broker = s.accept(false).await;
        s.grant(&mut broker, [1, 1]).await;
        for (id, text) in [(1, "on"), (2, "off"), (3, "off")] {
            broker.send(&publish(s.level(), 1, id, "plant/1", text)).await;
            broker.expect(&[0x40, 2, 0, id as u8]).await;
        }
        broker.send(&retained(&s, "plant/1", 4, "off")).await;
        broker.expect(&[0x40, 2, 0, 4]).await;
        assert_eq!(s.intake.texts().len(), 13);
        s.stop.send(true).unwrap();
        broker.expect(&[0xE0, 0]).await;
        s.task.await.unwrap().unwrap();
        // Another process.
        let url = format!("mqtt://{}", s.broker.local_addr().unwrap());
        let again = SubscriberConfig { state, ..config(url, version5) };
        let s = start_on(s.broker, TestIntake::open(), again);
        let mut broker = s.accept(false).await;
        s.grant(&mut broker, [1, 1]).await;
        broker.send(&retained(&s, "plant/1", 1, "off")).await;
        broker.expect(&[0x40, 2, 0, 1]).await;
        broker.send(&retained(&s, "plant/2", 2, "new")).await;
        broker.expect(&[0x40, 2, 0, 2]).await;
        assert_eq!(s.intake.texts(), ["plant/2 new"]);
    }
}

#[tokio::test]
async fn retained_messages_are_left_out_or_taken_as_configured() {
    for (policy, taken) in [(RetainedPolicy::Drop, 0), (RetainedPolicy::Process, 2)] {
        let s = start_with(TestIntake::open(), true, |c| c.retained = policy).await;
        let mut broker = s.first().await;
        for id in 1..=2 {
            let mut retained = s.publish(id, "on");
            retained[0] |= 1;
            broker.send(&retained).await;
            broker.expect(&[0x40, 2, 0, id as u8]).await;
        }
        broker.send(&s.publish(3, "live")).await;
        broker.expect(&[0x40, 2, 0, 3]).await;
        assert_eq!(s.intake.texts().len(), taken + 1);
        assert_eq!(s.get(|s| &s.retained_dropped), 2 - taken as u64);
    }
}

#[tokio::test]
async fn entries_are_asked_for_first_and_all_of_them_are_taken() {
    let s = start_with(TestIntake::open(), true, |c| {
        c.retained = RetainedPolicy::Drop;
        c.entries = vec!["registry/+".to_owned()];
        let shared = SubscriberConfig { share: Some("g".into()), connections: 2, ..c.clone() };
        let filters = ["registry/+", "$share/g/plant/#", "$share/g/other/+"];
        assert_eq!(shared.wire_filters(0), filters);
        assert_eq!(shared.wire_filters(1), filters[1..]);
    })
    .await;
    for round in 1..=2 {
        let mut broker = s.accept(false).await;
        let asked = s.answer_subscribe(&mut broker, &[1, 1, 1]).await;
        let place = |filter: &str| asked.find(filter).unwrap();
        assert!(place("registry/+") < place("plant/#").min(place("other/+")), "{asked}");
        for (id, topic) in [(1, "registry/d"), (2, "plant/d")] {
            let mut retained = publish(s.level(), 1, id, topic, "on");
            retained[0] |= 1;
            broker.send(&retained).await;
            broker.expect(&[0x40, 2, 0, id as u8]).await;
        }
        assert_eq!(s.intake.texts(), vec!["registry/d on"; round]);
    }
}

#[tokio::test]
async fn entries_are_asked_for_on_each_connection_and_other_topics_only_if_they_are_missing() {
    for version5 in BOTH {
        let entries = |c: &mut SubscriberConfig| c.entries = vec!["registry/+".to_owned()];
        let s = start_with(TestIntake::open(), version5, entries).await;
        let mut broker = s.accept(false).await;
        s.answer_subscribe(&mut broker, &[1, 1, 1]).await;
        eventually(|| s.stats.is_healthy()).await;
        for round in 1..=2 {
            drop(broker);
            broker = s.accept(true).await;
            let subscribe = broker.packet().await.unwrap();
            assert_eq!(subscribe[0], 0x82);
            let asked = String::from_utf8_lossy(&subscribe).into_owned();
            assert!(asked.contains("registry/+"), "{asked}");
            assert!(!asked.contains("plant/#") && !asked.contains("other/+"), "{asked}");
            // QoS 1; in version 5, what is retained is to be sent on each subscription (0).
            assert_eq!(subscribe.last(), Some(&1));
            let mut body = subscribe[2..4].to_vec();
            body.extend_from_slice(if version5 { &[0, 1] } else { &[1] });
            broker.send(&packet(0x90, &body)).await;
            let mut retained = publish(s.level(), 1, 7, "registry/d", "on");
            retained[0] |= 1;
            broker.send(&retained).await;
            broker.expect(&[0x40, 2, 0, 7]).await;
            assert_eq!(s.intake.texts(), vec!["registry/d on"; round]);
        }
        broker.expect_quiet().await;
    }
}
