//! Filters, options and codes of subscriptions.

use super::*;

#[test]
fn filters_are_judged_as_in_chapter_4_7() {
    for good in
        ["a", "/", "+", "#", "a/+/b", "a/#", "+/+", "/+", "$SYS/#", "$share/g/a/#", "ä/b", "a//b"]
    {
        assert!(is_valid_filter(good), "{good}");
    }
    let (deep, long) = (vec!["a"; 65].join("/"), "a".repeat(1025));
    for bad in ["", "a/#/b", "#a", "a+", "a/b+/c", "a#", "a\0b", "##", &deep, &long] {
        assert!(!is_valid_filter(bad), "{bad}");
    }
    for bad in ["$share/", "$share/g", "$share/g/", "$share//a", "$share/g+/a", "$share/#/a"] {
        assert!(!is_valid_filter(bad), "{bad}");
    }
    assert_eq!(shared_group("$share/g/a"), Some("g"));
    assert_eq!(shared_group("$share"), None);
}

#[test]
fn each_version_gets_its_own_codes() {
    let options = BrokerOptions { subscriptions_max: 2, ..BrokerOptions::default() };
    let broker = Broker::open(options, 0).unwrap();
    let v5 = Client::open(&broker, opening("v5"), 0);
    let v3 = Client::open(&broker, Opening { version: Version::V3, ..opening("v3") }, 0);
    let filters = [filter("a", 1), filter("b/#/c", 1), filter("b", 0), filter("c", 2)];
    assert_eq!(broker.subscribe(&v5.port, &filters, 0), [1, 0x8F, 0, 0x97]);
    assert_eq!(broker.subscribe(&v3.port, &filters, 0), [1, 0x80, 0, 0x80]);
    // To replace one is possible at the bound.
    assert_eq!(v5.subscribe(filter("a", 2)), 2);
    assert_eq!(broker.unsubscribe(&v5.port, &["a", "x", "a/#/b"]), [0, 0x11, 0x8F]);
    assert_eq!(load(&broker.counters().subscriptions), 3);
    assert!(broker.may_match(b"a/x") && broker.may_match(b"b") && !broker.may_match(b"z/x"));
    v5.leave(Leave::Normal { session_expiry_s: Some(0) }, 0);
    v3.leave(Leave::Normal { session_expiry_s: Some(0) }, 0);
    assert!(!broker.may_match(b"a/x") && !broker.may_match(b"b"));
    assert_eq!(load(&broker.counters().sessions), 0);
}

#[test]
fn overlapping_filters_give_one_copy_with_the_best_of_all() {
    let broker = memory();
    let client = Client::open(&broker, opening("c"), 0);
    client.subscribe(Subscription { identifier: Some(7), ..filter("a/#", 0) });
    client.subscribe(Subscription { identifier: Some(300), ..filter("a/+", 1) });
    client.subscribe(Subscription { retain_as_published: true, ..filter("a/b", 0) });
    publish(&broker, retained("a/b", "x", 2));
    let got = client.got();
    assert_eq!(got.len(), 1);
    assert_eq!((got[0].qos, got[0].retain, &got[0].ids[..]), (1, true, &[7, 300][..]));
}

#[test]
fn a_new_subscription_replaces_the_one_with_the_same_filter_3_8_4_3() {
    let broker = memory();
    let client = Client::open(&broker, opening("c"), 0);
    client.subscribe(Subscription { identifier: Some(7), ..filter("a", 2) });
    client.subscribe(filter("a", 0));
    publish(&broker, publication("a", "x", 2));
    let got = client.got();
    assert_eq!((got.len(), got[0].qos, got[0].ids.len()), (1, 0, 0));
    assert_eq!(load(&broker.counters().subscriptions), 1);
}

#[test]
fn no_local_keeps_back_only_what_the_client_itself_has_published_3_8_3_3() {
    let broker = memory();
    let client = Client::open(&broker, opening("c"), 0);
    client.subscribe(Subscription { no_local: true, ..filter("a", 0) });
    let _ = broker.publish("c", vec![publication("a", "own", 0)], 0);
    publish(&broker, publication("a", "other", 0));
    assert_eq!(client.texts(), ["a=other q0"]);
    client.subscribe(filter("#", 0));
    let _ = broker.publish("c", vec![publication("a", "own", 0)], 0);
    assert_eq!(client.texts(), ["a=own q0"]);
}

#[test]
fn a_group_gets_one_copy_in_turns_and_prefers_those_who_are_there() {
    let broker = memory();
    let (a, b) = (Client::with(&broker, "a", &[]), Client::with(&broker, "b", &[]));
    let alone = Client::with(&broker, "alone", &["$share/h/t/#"]);
    for client in [&a, &b] {
        client.subscribe(filter("$share/g/t/+", 1));
    }
    for i in 0..10 {
        publish(&broker, publication("t/x", &i.to_string(), 1));
    }
    assert_eq!((a.got().len(), b.got().len(), alone.got().len()), (5, 5, 10));
    b.leave(LOST, 0);
    for i in 0..4 {
        publish(&broker, publication("t/x", &i.to_string(), 1));
    }
    assert_eq!(a.got().len(), 4);
    a.leave(LOST, 0);
    publish(&broker, publication("t/x", "later", 1));
    let queued: Vec<_> = ["a", "b"]
        .into_iter()
        .flat_map(|id| Client::with(&broker, id, &[]).got())
        .filter(|got| got.payload == "later")
        .collect();
    assert_eq!(queued.len(), 1, "one member that comes back gets it");
}

#[test]
fn a_group_passes_over_members_without_room() {
    let options = BrokerOptions { queue_bytes_max: 1000, ..BrokerOptions::default() };
    let broker = Broker::open(options, 0).unwrap();
    let (a, b) = (Client::with(&broker, "a", &[]), Client::with(&broker, "b", &[]));
    for client in [&a, &b] {
        client.subscribe(filter("$share/g/t", 1));
    }
    // One reads and acknowledges, the other does neither.
    let mut n = 0;
    for i in 0..100 {
        publish(&broker, publication("t", &i.to_string(), 1));
        for got in a.got() {
            n += 1;
            assert!(broker.puback(&a.port, got.id));
        }
    }
    assert_eq!(n + b.got().len(), 100);
    assert_eq!(load(&broker.counters().dropped_full), 0);
}
