//! Sessions begin, are resumed, taken over and end; wills.

use super::*;

fn v3(client_id: &str, clean: bool) -> Opening {
    let session_expiry_s = if clean { 0 } else { u32::MAX };
    let version = Version::V3;
    Opening { version, clean_start: clean, session_expiry_s, ..opening(client_id) }
}

fn will(topic: &str, delay_s: u32) -> Option<Will> {
    Some(Will { publication: publication(topic, "gone", 1), delay_s })
}

#[test]
fn a_session_is_present_only_if_it_was_kept_and_is_wanted() {
    let broker = memory();
    for clean_start in [true, false] {
        let client = Client::open(&broker, Opening { clean_start, ..opening("c") }, 0);
        assert_eq!(client.present, !clean_start);
        client.leave(BYE, 0);
    }
    let client = Client::open(&broker, Opening { session_expiry_s: 0, ..opening("c") }, 0);
    assert!(client.present);
    client.leave(BYE, 0);
    assert!(!Client::open(&broker, opening("c"), 0).present, "it ended with its connection");

    assert!(!Client::open(&broker, v3("d", false), 0).present);
    assert!(Client::open(&broker, v3("d", false), 0).present);
    assert!(!Client::open(&broker, v3("d", true), 0).present);
    assert!(!Client::open(&broker, v3("d", false), 0).present, "a clean session is not resumed");
}

#[test]
fn a_session_expires_after_its_time_and_not_before() {
    let broker = memory();
    let ten = || Opening { session_expiry_s: 10, ..opening("c") };
    Client::open(&broker, ten(), 0).leave(LOST, 5_000);
    assert_eq!(broker.due(14_999).expired, [""; 0]);
    assert!(Client::open(&broker, ten(), 14_999).present);
    assert_eq!(broker.due(60_000).expired, [""; 0], "it is connected");
    let client = Client::open(&broker, ten(), 60_000);
    client.leave(Leave::Normal { session_expiry_s: Some(100) }, 60_000);
    assert_eq!(broker.due(0).next_ms, Some(160_000), "DISCONNECT has changed it");
    assert_eq!(broker.due(160_000).expired, ["c"]);
    assert_eq!(load(&broker.counters().sessions), 0);
    Client::open(&broker, ten(), 160_000).leave(LOST, 160_000);
    assert!(!Client::open(&broker, ten(), 170_000).present, "before anybody asked what is due");
    assert_eq!(broker.due(170_000).expired, ["c"]);
}

#[test]
fn the_expiry_is_bounded_and_cannot_rise_from_zero() {
    let options = BrokerOptions { session_expiry_max_s: 60, ..BrokerOptions::default() };
    let broker = Broker::open(options, 0).unwrap();
    let client = Client::open(&broker, opening("c"), 0);
    assert_eq!(client.port.session_expiry_s, 60);
    client.leave(Leave::Normal { session_expiry_s: Some(u32::MAX) }, 0);
    assert_eq!(broker.due(0).next_ms, Some(60_000));
    let client = Client::open(&broker, Opening { session_expiry_s: 0, ..opening("d") }, 0);
    client.leave(Leave::Normal { session_expiry_s: Some(50) }, 0);
    assert_eq!(load(&broker.counters().sessions), 1);
}

#[test]
fn too_many_sessions_are_served_but_not_kept() {
    let options = BrokerOptions { sessions_max: 1, ..BrokerOptions::default() };
    let broker = Broker::open(options, 0).unwrap();
    Client::open(&broker, opening("a"), 0).leave(BYE, 0);
    let client = Client::open(&broker, opening("b"), 0);
    assert_eq!(client.port.session_expiry_s, 0);
    client.leave(BYE, 0);
    assert_eq!(load(&broker.counters().sessions), 1);
    assert_eq!(load(&broker.counters().sessions_refused), 1);
    assert!(Client::open(&broker, opening("a"), 0).present);
}

#[tokio::test]
async fn the_newest_connection_takes_over_3_1_4_3() {
    let broker = memory();
    let first = Client::with(&broker, "c", &["a"]);
    assert!(!first.port.is_taken());
    let second = Client::open(&broker, opening("c"), 0);
    first.port.taken().await;
    publish(&broker, publication("a", "x", 0));
    assert_eq!(first.got(), []);
    assert_eq!(broker.subscribe(&first.port, &[filter("b", 0)], 0), [0x80]);
    assert_eq!(first.leave(LOST, 0), None);
    assert_eq!(second.texts(), ["a=x q0"], "what the older one does changes nothing");
    assert!(!second.port.is_taken() && second.present);
    assert_eq!(load(&broker.counters().connected), 1);
    assert_eq!(load(&broker.counters().sessions), 1);
}

#[test]
fn a_will_without_delay_is_published_when_the_connection_is_lost() {
    let broker = memory();
    let new = |delay_s| Opening { will: will("w", delay_s), ..opening("c") };
    let lost = Client::open(&broker, new(0), 0).leave(LOST, 0);
    assert_eq!(lost, Some(publication("w", "gone", 1)));
    let asked = Leave::WithWill { session_expiry_s: None };
    assert!(Client::open(&broker, new(0), 0).leave(asked, 0).is_some());
    assert_eq!(Client::open(&broker, new(0), 0).leave(BYE, 0), None, "3.14.4-3");
    // A newer connection ends the older one, which is no goodbye.
    let older = Client::open(&broker, new(0), 0);
    let newer = Client::open(&broker, opening("c"), 0);
    assert!(older.leave(Leave::TakenOver, 0).is_some());
    assert_eq!(newer.leave(LOST, 0), None, "the will belongs to the connection");
}

#[test]
fn a_delayed_will_waits_and_is_cancelled_by_the_client_coming_back_3_1_3_9() {
    let broker = memory();
    let new = || Opening { will: will("w", 10), ..opening("c") };
    assert_eq!(Client::open(&broker, new(), 0).leave(LOST, 1_000), None);
    assert!(broker.due(10_999).wills.is_empty());
    let client = Client::open(&broker, new(), 10_999);
    assert!(broker.due(100_000).wills.is_empty());
    client.leave(LOST, 100_000);
    let due = broker.due(110_000);
    assert_eq!(due.wills, [("c".to_owned(), publication("w", "gone", 1))]);
    assert!(due.expired.is_empty());
    assert!(broker.due(u64::MAX).wills.is_empty(), "once");
    // Taken over by a connection that goes on with the session.
    let older = Client::open(&broker, new(), 0);
    let newer = Client::open(&broker, new(), 0);
    assert_eq!(older.leave(Leave::TakenOver, 0), None);
    // Taken over by one that ends it.
    let clean = Client::open(&broker, Opening { clean_start: true, ..opening("c") }, 0);
    assert!(newer.leave(Leave::TakenOver, 0).is_some());
    drop(clean);
}

#[test]
fn a_delayed_will_is_published_at_the_latest_when_the_session_ends() {
    let broker = memory();
    let new =
        |expiry_s| Opening { will: will("w", 100), session_expiry_s: expiry_s, ..opening("c") };
    Client::open(&broker, new(10), 0).leave(LOST, 0);
    let due = broker.due(10_000);
    assert_eq!((due.wills.len(), due.expired.len()), (1, 1));
    assert!(Client::open(&broker, new(0), 0).leave(LOST, 0).is_some());
    Client::open(&broker, new(50), 0).leave(LOST, 0);
    let clean = Client::open(&broker, Opening { clean_start: true, ..opening("c") }, 0);
    assert_eq!(broker.due(0).wills.len(), 1, "a clean start ends the session");
    assert!(!clean.present);
    assert_eq!(broker.due(u64::MAX).wills.len(), 0);
}

#[test]
fn an_idle_session_is_small() {
    use std::mem::size_of;

    use tokio::sync::Notify;

    // What a connected, subscribed and idle session holds, tables at their worst fill.
    let session = size_of::<session::Session>() * 2;
    let online = size_of::<session::Online>();
    let signal = size_of::<types::Signal>() + size_of::<Notify>() + 32;
    let tables = 2 * (size_of::<Arc<str>>() + 8) + 2 * (40 + 24 + 2 * 100);
    let total = session + online + signal + tables;
    assert!(total < 1800, "{total} bytes");
}

#[test]
fn nobody_inherits_the_session_of_another_user() {
    let broker = memory();
    let of = |user: &str| Opening { user: user.to_owned(), will: will("w", 9), ..opening("c") };
    let owner = Client::open(&broker, of("owner"), 0);
    owner.subscribe(filter("secret", 1));
    assert_eq!(broker.subscriptions(&owner.port), ["secret"]);
    owner.leave(LOST, 0);
    publish(&broker, publication("secret", "x", 1));
    let stranger = Client::open(&broker, of("stranger"), 0);
    assert!(!stranger.present && stranger.got().is_empty());
    assert!(broker.subscriptions(&stranger.port).is_empty());
    assert_eq!(broker.due(0).wills.len(), 1, "the owner's session has ended");
    assert!(Client::open(&broker, of("stranger"), 0).present);
}
