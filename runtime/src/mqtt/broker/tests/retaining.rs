//! Retained messages.

use super::*;

#[test]
fn an_empty_message_deletes_and_is_delivered_3_3_1_6() {
    let broker = memory();
    let client = Client::with(&broker, "c", &["#"]);
    publish(&broker, retained("a", "1", 1));
    publish(&broker, retained("a", "2", 0));
    assert_eq!(load(&broker.counters().retained), 1);
    publish(&broker, retained("a", "", 0));
    assert_eq!(client.texts(), ["a=1 q1", "a=2 q0", "a= q0"]);
    assert_eq!(load(&broker.counters().retained), 0);
    assert_eq!(load(&broker.counters().retained_bytes), 0);
    assert_eq!(Client::with(&broker, "d", &["#"]).texts(), [""; 0]);
}

#[test]
fn retain_handling_and_the_retain_flag_follow_3_3_1() {
    let broker = memory();
    publish(&broker, retained("a", "x", 1));
    let client = Client::open(&broker, opening("c"), 0);
    let with = |retain_handling| Subscription { retain_handling, ..filter("a", 2) };
    client.subscribe(with(2));
    assert_eq!(client.got().len(), 0, "2: never");
    client.subscribe(with(1));
    assert_eq!(client.got().len(), 0, "1: not for a subscription that existed");
    client.subscribe(with(0));
    client.subscribe(with(0));
    let got = client.got();
    assert_eq!(got.len(), 2, "0: each time");
    assert!(got.iter().all(|got| got.retain && got.qos == 1), "3.3.1-8");
    broker.unsubscribe(&client.port, &["a"]);
    client.subscribe(with(1));
    assert_eq!(client.got().len(), 1);
    publish(&broker, retained("a", "y", 0));
    assert!(!client.got()[0].retain, "3.3.1-12: an established subscription");
    client.subscribe(Subscription { retain_as_published: true, ..with(2) });
    publish(&broker, retained("a", "z", 0));
    assert!(client.got()[0].retain, "3.3.1-13: as published");
}

#[test]
fn a_shared_subscription_gets_no_retained_messages() {
    let broker = memory();
    publish(&broker, retained("a", "x", 1));
    assert_eq!(Client::with(&broker, "c", &["$share/g/a"]).got(), []);
}

#[test]
fn they_expire_and_tell_what_is_left() {
    let broker = memory();
    let expiring = Publication { expires_at_ms: Some(10_000), ..retained("a", "x", 0) };
    publish(&broker, expiring.clone());
    publish(&broker, Publication { topic: "b".into(), ..expiring });
    let client = Client::open(&broker, opening("c"), 0);
    broker.subscribe(&client.port, &[filter("a", 0)], 4_500);
    assert_eq!(client.got_at(4_500)[0].expiry_s, Some(6));
    assert_eq!(broker.due(9_999).next_ms, Some(10_000));
    broker.subscribe(&client.port, &[filter("a", 0)], 10_000);
    assert_eq!(client.got_at(10_000), []);
    assert_eq!(broker.due(10_000).next_ms, None);
    assert_eq!(load(&broker.counters().retained), 0);
}

#[test]
fn their_number_and_bytes_are_bounded() {
    let options = BrokerOptions { retained_max: 3, ..BrokerOptions::default() };
    let broker = Broker::open(options, 0).unwrap();
    for i in 0..5 {
        publish(&broker, retained(&format!("t/{i}"), "x", 0));
    }
    publish(&broker, retained("t/1", "new", 0));
    let got = Client::with(&broker, "c", &["t/+"]).texts();
    assert_eq!(got, ["t/0=x q0", "t/1=new q0", "t/2=x q0"]);
    assert_eq!(load(&broker.counters().retained_refused), 2);

    let options = BrokerOptions { retained_bytes_max: 1000, ..BrokerOptions::default() };
    let broker = Broker::open(options, 0).unwrap();
    publish(&broker, retained("t", "small", 0));
    publish(&broker, retained("t", &"x".repeat(1000), 0));
    assert_eq!(load(&broker.counters().retained), 0, "the old one would be a lie");
    assert_eq!(load(&broker.counters().retained_refused), 1);
}

#[test]
fn a_subscription_to_everything_gets_all_that_may_be_retained() {
    let options = BrokerOptions { retained_max: 20_000, ..BrokerOptions::default() };
    let broker = Broker::open(BrokerOptions { queue_bytes_max: 2 << 20, ..options }, 0).unwrap();
    for i in 0..20_000 {
        publish(&broker, retained(&format!("d/{i}"), &"x".repeat(200), 0));
    }
    assert_eq!(Client::with(&broker, "c", &["#"]).got().len(), 20_000);
}
