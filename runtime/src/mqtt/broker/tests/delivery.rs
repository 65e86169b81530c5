//! Queues, windows, acknowledgements and what limits them.

use super::*;

#[test]
fn qos_is_the_lower_of_both_and_packets_are_whole() {
    let broker = memory();
    for version in [Version::V3, Version::V5] {
        let client = Client::open(&broker, Opening { version, ..opening("c") }, 0);
        for (topic, qos) in [("t/0", 0), ("t/1", 1), ("t/2", 2)] {
            client.subscribe(filter(topic, qos));
        }
        for topic in ["t/0", "t/1", "t/2"] {
            (0..3).for_each(|qos| publish(&broker, publication(topic, "x", qos)));
        }
        let qos: Vec<u8> = client.got().iter().map(|got| got.qos).collect();
        assert_eq!(qos, [0, 0, 0, 0, 1, 1, 0, 1, 2]);
        client.leave(Leave::Normal { session_expiry_s: Some(0) }, 0);
    }
}

#[test]
fn properties_are_passed_on_to_version_5_only() {
    let broker = memory();
    let user = [&[38][..], &[0, 1], b"k", &[0, 1], b"v"].concat();
    for (version, wanted) in [(Version::V5, 1), (Version::V3, 0)] {
        let client = Client::open(&broker, Opening { version, ..opening("c") }, 0);
        client.subscribe(filter("t", 0));
        let properties = Bytes::from(user.clone());
        publish(&broker, Publication { properties, ..publication("t", &"x".repeat(200), 0) });
        let got = client.got();
        assert_eq!((got[0].user.len(), got[0].payload.len()), (wanted, 200));
    }
}

#[test]
fn what_was_not_acknowledged_goes_out_again_in_order_with_dup_and_the_same_ids_4_4_0_1() {
    let broker = memory();
    let client = Client::with(&broker, "c", &["t"]);
    for (payload, qos) in [("a", 1), ("b", 2), ("c", 2), ("d", 1), ("e", 0), ("f", 2)] {
        publish(&broker, publication("t", payload, qos));
    }
    let first = client.got();
    assert!(first.iter().all(|got| !got.dup));
    assert!(broker.pubrec(&client.port, first[2].id, false));
    assert!(broker.pubrec(&client.port, first[1].id, false));
    assert!(broker.puback(&client.port, first[3].id));
    let releases: Vec<u16> = client.got().iter().map(|got| got.id).collect();
    assert_eq!(releases, [first[2].id, first[1].id], "4.6.0-4");
    assert!(broker.pubcomp(&client.port, first[2].id));
    client.leave(LOST, 0);
    publish(&broker, publication("t", "g", 1));

    let client = Client::open(&broker, opening("c"), 0);
    let again = client.got();
    let seen: Vec<_> = again.iter().map(|got| (got.payload.as_str(), got.id, got.dup)).collect();
    let (b, a, f) = (first[1].id, first[0].id, first[5].id);
    let g = again.last().unwrap().id;
    assert_eq!(seen, [("", b, false), ("a", a, true), ("f", f, true), ("g", g, false)]);
    assert!(again[0].release && ![a, b, f].contains(&g));
    assert_eq!(client.got(), [], "only once on a connection");
}

#[test]
fn acknowledgements_that_answer_nothing_change_nothing() {
    let broker = memory();
    let client = Client::with(&broker, "c", &["t"]);
    publish(&broker, publication("t", "a", 1));
    publish(&broker, publication("t", "b", 2));
    let ids: Vec<u16> = client.got().iter().map(|got| got.id).collect();
    assert!(!broker.puback(&client.port, ids[1]) && !broker.pubrec(&client.port, ids[0], false));
    assert!(!broker.pubcomp(&client.port, ids[1]) && !broker.puback(&client.port, 999));
    assert_eq!(load(&broker.counters().queued_messages), 2);
    assert!(broker.puback(&client.port, ids[0]) && !broker.puback(&client.port, ids[0]));
    assert!(broker.pubrec(&client.port, ids[1], false));
    assert_eq!(client.texts(), [format!("release {}", ids[1])]);
    assert!(broker.pubrec(&client.port, ids[1], false), "it has not seen the PUBREL");
    assert_eq!(client.texts(), [format!("release {}", ids[1])]);
    assert!(broker.pubcomp(&client.port, ids[1]) && !broker.pubcomp(&client.port, ids[1]));
    assert_eq!(load(&broker.counters().queued_bytes), 0);
}

#[test]
fn a_failed_pubrec_ends_the_message_4_3_3() {
    let broker = memory();
    let client = Client::with(&broker, "c", &["t"]);
    publish(&broker, publication("t", "a", 2));
    assert!(broker.pubrec(&client.port, client.got()[0].id, true));
    assert_eq!(client.got(), []);
    assert_eq!(load(&broker.counters().dropped_refused), 1);
}

#[test]
fn no_more_than_the_receive_maximum_is_in_flight_3_3_4_9() {
    let broker = memory();
    let client = Client::open(&broker, Opening { receive_maximum: 3, ..opening("c") }, 0);
    client.subscribe(filter("t", 2));
    (0..10).for_each(|i| publish(&broker, publication("t", &i.to_string(), 1 + i % 2)));
    let got = client.got();
    assert_eq!(got.len(), 3);
    assert!(broker.pubrec(&client.port, got[1].id, false));
    assert_eq!(client.texts(), [format!("release {}", got[1].id)], "open until PUBCOMP");
    assert!(broker.pubcomp(&client.port, got[1].id));
    assert_eq!(client.got().len(), 1);
    client.leave(LOST, 0);
    let client = Client::open(&broker, Opening { receive_maximum: 2, ..opening("c") }, 0);
    let again = client.got();
    assert_eq!(again.len(), 2, "repetitions count as well");
    assert!(broker.puback(&client.port, again[0].id));
    let third = client.got();
    assert_eq!((third.len(), third[0].dup, third[0].payload.as_str()), (1, true, "3"));
}

#[test]
fn version_3_gets_a_window_of_our_own() {
    let broker = memory();
    let client = Client::open(&broker, Opening { version: Version::V3, ..opening("c") }, 0);
    client.subscribe(filter("t", 1));
    (0..150).for_each(|i| publish(&broker, publication("t", &i.to_string(), 1)));
    assert_eq!(client.got().len(), 100);
}

#[test]
fn packet_ids_are_never_0_and_not_used_again_while_in_flight_2_2_1_4() {
    let broker = memory();
    let client = Client::with(&broker, "c", &["t"]);
    publish(&broker, publication("t", "stuck", 1));
    let stuck = client.got()[0].id;
    let mut seen = 0;
    for _ in 0..70_000 {
        publish(&broker, publication("t", "x", 1));
        for got in client.got() {
            assert!(got.id != 0 && got.id != stuck);
            assert!(broker.puback(&client.port, got.id));
            seen += 1;
        }
    }
    assert_eq!(seen, 65_534, "then the oldest has to be acknowledged");
    assert!(broker.puback(&client.port, stuck));
    let mut got = client.got();
    while !got.is_empty() {
        seen += got.len();
        got.iter().for_each(|got| assert!(broker.puback(&client.port, got.id)));
        got = client.got();
    }
    assert_eq!(seen, 70_000);
}

#[test]
fn messages_expire_in_the_queue_and_tell_what_is_left_3_3_2_6() {
    let broker = memory();
    Client::with(&broker, "c", &["t"]).leave(LOST, 0);
    for expires_at_ms in [Some(5_000), Some(9_001), None] {
        publish(&broker, Publication { expires_at_ms, ..publication("t", "x", 1) });
    }
    let client = Client::open(&broker, opening("c"), 5_000);
    let left: Vec<_> = client.got_at(5_000).iter().map(|got| got.expiry_s).collect();
    assert_eq!(left, [Some(5), None]);
    assert_eq!(load(&broker.counters().dropped_expired), 1);
}

#[test]
fn packets_too_large_for_a_client_are_dropped_for_it_3_1_2_25() {
    let broker = memory();
    let small = Opening { packet_bytes_max: 50, ..opening("small") };
    let (small, other) = (Client::open(&broker, small, 0), Client::with(&broker, "other", &["t"]));
    small.subscribe(filter("t", 1));
    // 2 header, 3 topic, 2 packet id, 1 properties.
    publish(&broker, publication("t", &"x".repeat(42), 1));
    publish(&broker, publication("t", &"x".repeat(43), 1));
    publish(&broker, publication("t", "y", 1));
    assert_eq!(small.got().iter().map(|g| g.payload.len()).collect::<Vec<_>>(), [42, 1]);
    assert_eq!(other.got().len(), 3);
    assert_eq!(load(&broker.counters().dropped_too_large), 1);
}

#[test]
fn topics_get_aliases_if_the_client_allows() {
    let broker = memory();
    let client = Client::open(&broker, Opening { topic_alias_max: 2, ..opening("c") }, 0);
    client.subscribe(filter("#", 0));
    let topics = ["a", "b", "a", "c", "b", "a"];
    topics.iter().for_each(|topic| publish(&broker, publication(topic, "x", 0)));
    let got: Vec<_> = client.got().into_iter().map(|got| (got.topic, got.alias)).collect();
    let want =
        [("a", Some(1)), ("b", Some(2)), ("", Some(1)), ("c", None), ("", Some(2)), ("", Some(1))];
    assert_eq!(got, want.map(|(topic, alias)| (topic.to_owned(), alias)));
    client.leave(LOST, 0);
    let client = Client::open(&broker, opening("c"), 0);
    publish(&broker, publication("a", "x", 0));
    assert_eq!(client.got()[0].alias, None, "aliases end with their connection, 3.3.2-7");
}

#[test]
fn a_queue_is_bounded_while_the_client_is_away() {
    let options = BrokerOptions { queue_messages_max: 3, ..BrokerOptions::default() };
    let broker = Broker::open(options, 0).unwrap();
    Client::with(&broker, "c", &["t"]).leave(LOST, 0);
    let many = (0..5).map(|i| publication("t", &i.to_string(), 1)).collect();
    let _ = broker.publish("p", many, 0);
    publish(&broker, publication("t", "q0", 0));
    assert_eq!(broker.due(0).limited, [("c".to_owned(), 2)]);
    publish(&broker, publication("t", "x", 1));
    assert_eq!(broker.due(59_999).limited, [], "at most once a minute");
    assert_eq!(broker.due(60_000).limited, [("c".to_owned(), 1)]);
    let client = Client::open(&broker, opening("c"), 0);
    assert_eq!(client.texts(), ["t=0 q1", "t=1 q1", "t=2 q1"], "the oldest are kept");
    let counters = broker.counters();
    assert_eq!((load(&counters.dropped_full), load(&counters.dropped_offline)), (3, 1));
}

#[test]
fn a_client_that_does_not_read_costs_a_bounded_number_of_bytes() {
    let options = BrokerOptions { queue_bytes_max: 10_000, ..BrokerOptions::default() };
    let broker = Broker::open(options, 0).unwrap();
    let (dead, alive) =
        (Client::with(&broker, "dead", &["t"]), Client::with(&broker, "alive", &["t"]));
    for i in 0..1000 {
        publish(&broker, publication("t", &"x".repeat(100), (i % 2) as u8));
        for got in alive.got().iter().filter(|got| got.qos == 1) {
            assert!(broker.puback(&alive.port, got.id));
        }
    }
    assert_eq!(load(&broker.counters().delivered), 1000);
    assert!(load(&broker.counters().queued_bytes) <= 10_000);
    let got = dead.got().len() as u64;
    assert_eq!(got + load(&broker.counters().dropped_full), 1000);
}

#[tokio::test]
async fn outgoing_takes_no_more_than_it_may_and_comes_back_for_the_rest() {
    let broker = memory();
    let client = Client::with(&broker, "c", &["t"]);
    told(&client).await;
    (0..20).for_each(|_| publish(&broker, publication("t", &"x".repeat(95), 0)));
    let mut total = 0;
    while total < 20 {
        told(&client).await;
        let mut out = b"before".to_vec();
        broker.outgoing(&client.port, &mut out, 250, 0);
        let got = read_all(Version::V5, &out[6..]);
        assert_eq!(got.len(), 2);
        total += got.len();
    }
    publish(&broker, publication("t", &"x".repeat(1000), 0));
    let mut out = Vec::new();
    broker.outgoing(&client.port, &mut out, 250, 0);
    assert!(out.len() > 1000, "one in any case");
}

#[test]
fn received_qos_2_ids_survive_the_connection_4_3_3() {
    let broker = memory();
    let client = Client::with(&broker, "c", &[]);
    assert!(broker.receive_qos2(&client.port, 1) && broker.receive_qos2(&client.port, 2));
    assert!(!broker.receive_qos2(&client.port, 1));
    assert!(broker.knows_qos2(&client.port, 1) && !broker.knows_qos2(&client.port, 3));
    client.leave(LOST, 0);
    let client = Client::with(&broker, "c", &[]);
    assert!(!broker.receive_qos2(&client.port, 2));
    assert!(broker.release_qos2(&client.port, 2) && !broker.release_qos2(&client.port, 2));
    assert!(broker.receive_qos2(&client.port, 2));
    let newer = Client::with(&broker, "c", &[]);
    assert!(broker.receive_qos2(&client.port, 4), "durable after the session was taken over");
    assert!(broker.knows_qos2(&newer.port, 4));
    let clean = Client::open(&broker, Opening { clean_start: true, ..opening("c") }, 0);
    broker.receive_qos2(&newer.port, 5);
    assert!(!broker.knows_qos2(&clean.port, 1) && !broker.knows_qos2(&clean.port, 5));
}

#[test]
fn topics_that_a_client_may_not_receive_are_kept_back() {
    let broker = memory();
    publish(&broker, retained("denied", "old", 1));
    let may_receive: Option<MayReceive> = Some(Arc::new(|topic: &str| topic != "denied"));
    let client = Client::open(&broker, Opening { may_receive, ..opening("c") }, 0);
    client.subscribe(filter("#", 2));
    for topic in ["a", "denied", "b"] {
        (0..3).for_each(|qos| publish(&broker, publication(topic, "x", qos)));
    }
    let got = client.got();
    assert!(got.len() == 6 && got.iter().all(|got| got.topic != "denied"));
    assert_eq!(load(&broker.counters().dropped_denied), 4);
    assert_eq!(load(&broker.counters().queued_messages), 4, "what is in flight");
}
