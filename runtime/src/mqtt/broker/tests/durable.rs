//! What is on disk after a ticket is there after a crash.

use std::path::Path;

use super::*;

fn options(path: &Path) -> BrokerOptions {
    BrokerOptions { store: Some(path.to_owned()), ..BrokerOptions::default() }
}

/// What a crash would leave: a copy of the file while it is open.
fn crash(path: &Path, copy: &str) -> Arc<Broker> {
    let copy = path.with_file_name(copy);
    std::fs::copy(path, &copy).unwrap();
    Broker::open(options(&copy), 0).unwrap()
}

async fn stored(broker: &Broker, publication: Publication) {
    broker.publish("p", vec![publication], 0).done().await.unwrap();
}

/// All that goes out until nothing does, commits included.
async fn settled(client: &Client) -> Vec<Got> {
    let mut all = client.got();
    client.broker.ticket().done().await.unwrap();
    all.extend(client.got());
    all
}

#[tokio::test]
async fn retained_messages_and_queues_survive_a_crash_after_their_ticket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/broker.redb");
    let broker = Broker::open(options(&path), 0).unwrap();
    let subscription = Subscription { identifier: Some(9), ..filter("t/#", 2) };
    let of_user = || Opening { user: "u".to_owned(), ..opening("c") };
    let client = Client::open(&broker, of_user(), 0);
    client.subscribe(subscription);
    client.subscribe(filter("$share/g/s", 1));
    client.leave(LOST, 0);
    stored(&broker, retained("t/r", "kept", 1)).await;
    stored(&broker, publication("t/q", "queued", 2)).await;
    stored(&broker, publication("s", "shared", 1)).await;
    stored(&broker, retained("gone", "x", 1)).await;
    stored(&broker, retained("gone", "", 1)).await;

    let after = crash(&path, "copy.redb");
    assert_eq!(load(&after.counters().subscriptions), 2);
    assert_eq!(load(&after.counters().retained), 1);
    let client = Client::open(&after, of_user(), 0);
    assert!(client.present, "of the same user");
    let got = client.got();
    let texts: Vec<String> = got.iter().map(Got::text).collect();
    assert_eq!(texts, ["t/r=kept q1", "t/q=queued q2", "s=shared q1"]);
    assert!(got.iter().all(|got| !got.dup));
    assert_eq!(got[0].ids, [9]);
    // Subscriptions work, and keys are not used again.
    publish(&after, publication("t/new", "x", 1));
    publish(&after, publication("s", "y", 1));
    assert_eq!(settled(&client).await.len(), 2);
    assert_eq!(Client::with(&after, "d", &["#"]).got().len(), 1);
}

#[tokio::test]
async fn what_is_in_flight_goes_out_again_with_the_same_ids_after_a_crash() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broker.redb");
    let broker = Broker::open(options(&path), 0).unwrap();
    let client = Client::with(&broker, "c", &["t"]);
    for (payload, qos) in [("a", 1), ("b", 2), ("c", 2), ("d", 1), ("e", 2)] {
        stored(&broker, publication("t", payload, qos)).await;
    }
    let first = settled(&client).await;
    assert_eq!(first.len(), 5);
    assert!(broker.puback(&client.port, first[0].id));
    assert!(broker.pubrec(&client.port, first[1].id, false));
    assert!(broker.pubrec(&client.port, first[2].id, false));
    assert_eq!(settled(&client).await.len(), 2, "two PUBRELs");
    assert!(broker.pubcomp(&client.port, first[2].id));
    assert!(broker.receive_qos2(&client.port, 77));
    broker.ticket().done().await.unwrap();

    let after = crash(&path, "copy.redb");
    let client = Client::open(&after, opening("c"), 0);
    let again: Vec<_> = client.got().iter().map(|g| (g.text(), g.id, g.dup)).collect();
    let release = format!("release {}", first[1].id);
    let wanted = [
        (release, first[1].id, false),
        ("t=d q1".to_owned(), first[3].id, true),
        ("t=e q2".to_owned(), first[4].id, true),
    ];
    assert_eq!(again, wanted);
    assert!(after.knows_qos2(&client.port, 77) && !after.knows_qos2(&client.port, 78));
    publish(&after, publication("t", "f", 2));
    let new = settled(&client).await;
    assert!(first.iter().all(|old| old.id != new[0].id));
}

#[tokio::test]
async fn qos_2_goes_out_only_when_it_is_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::open(options(&directory.path().join("broker.redb")), 0).unwrap();
    let client = Client::with(&broker, "c", &["t"]);
    told(&client).await;
    let ticket = broker.publish("p", vec![publication("t", "x", 2)], 0);
    let mut got = Vec::new();
    while got.is_empty() {
        // Told by the publish, and again by the commit.
        told(&client).await;
        got = client.got();
        assert!(got.is_empty() || ticket.is_ready());
    }
    assert!(broker.pubrec(&client.port, got[0].id, false));
    let mut release = Vec::new();
    while release.is_empty() {
        told(&client).await;
        release = client.got();
    }
    assert!(release[0].release);
}

#[tokio::test]
async fn sessions_that_expired_or_were_not_to_be_kept_are_not_restored() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broker.redb");
    let broker = Broker::open(options(&path), 0).unwrap();
    let with = |id: &str, session_expiry_s| {
        let client = Client::open(&broker, Opening { session_expiry_s, ..opening(id) }, 0);
        client.subscribe(filter("t", 1));
        client
    };
    let (_connected, _volatile) = (with("connected", 10), with("volatile", 0));
    with("short", 10).leave(LOST, 1_000);
    with("long", 100).leave(LOST, 1_000);
    with("ended", 100).leave(Leave::Normal { session_expiry_s: Some(0) }, 1_000);
    stored(&broker, publication("t", "x", 1)).await;
    drop(broker);

    drop(_connected);
    drop(_volatile);
    let broker = Broker::open(options(&path), 11_000).unwrap();
    assert_eq!(load(&broker.counters().sessions), 2);
    assert_eq!(load(&broker.counters().queued_messages), 2);
    assert_eq!(broker.due(20_999).expired, ["short"], "while nothing ran");
    assert_eq!(broker.due(21_000).expired, ["connected"], "ten seconds after the start");
    assert_eq!(broker.due(101_000).expired, ["long"]);
    drop(broker);
    let broker = Broker::open(options(&path), 0).unwrap();
    assert_eq!(load(&broker.counters().sessions), 0);
}

#[tokio::test]
async fn nothing_is_left_in_the_file_of_messages_that_were_delivered() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broker.redb");
    let broker = Broker::open(options(&path), 0).unwrap();
    let clients = ["a", "b"].map(|id| Client::with(&broker, id, &["t"]));
    for qos in [1, 2, 0, 1] {
        stored(&broker, publication("t", "x", qos)).await;
    }
    for client in clients {
        let got = settled(&client).await;
        assert_eq!(got.len(), 4);
        for got in got {
            match got.qos {
                1 => assert!(broker.puback(&client.port, got.id)),
                2 => assert!(broker.pubrec(&client.port, got.id, false)),
                _ => {}
            }
        }
        for got in settled(&client).await {
            assert!(got.release && broker.pubcomp(&client.port, got.id));
        }
        client.leave(Leave::Normal { session_expiry_s: Some(0) }, 0);
    }
    drop(broker);
    let (_, records) = store::Store::open(&path).unwrap();
    assert!(records.0.is_empty(), "{records:?}");
}

#[tokio::test]
async fn without_a_store_tickets_are_ready() {
    let broker = memory();
    Client::with(&broker, "c", &["t"]).leave(LOST, 0);
    let ticket = broker.publish("p", vec![retained("t", "x", 1)], 0);
    assert!(ticket.is_ready() && broker.ticket().is_ready());
    ticket.done().await.unwrap();
    assert_eq!(broker.store_error(), None);
}

#[tokio::test]
async fn a_damaged_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broker.redb");
    std::fs::write(&path, b"this is not a store").unwrap();
    let error = Broker::open(options(&path), 0).err().unwrap().to_string();
    assert!(error.contains("broker.redb") && error.contains("move it away"), "{error}");

    std::fs::remove_file(&path).unwrap();
    let broker = Broker::open(options(&path), 0).unwrap();
    let error = Broker::open(options(&path), 0).err().unwrap().to_string();
    assert!(error.contains("another process"), "{error}");
    for i in 0..100 {
        stored(&broker, retained(&format!("t/{i}"), &"x".repeat(1000), 1)).await;
    }
    drop(broker);
    let whole = std::fs::read(&path).unwrap();
    // Damage anywhere may go unseen where nothing is stored, but never panics.
    let mut found = 0;
    for at in (0..whole.len()).step_by(whole.len() / 40) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        std::fs::write(&path, &bytes).unwrap();
        match Broker::open(options(&path), 0) {
            Ok(broker) => assert!(load(&broker.counters().retained) <= 100),
            Err(error) => {
                found += 1;
                assert!(error.to_string().contains("broker.redb"), "{error}");
            }
        }
    }
    assert!(found > 0, "no damage was seen");
}

/// Publishes the alerts of an epoch, and says what of it the client gets.
async fn told_of(epoch: u64, broker: &Arc<Broker>, client: &Client) -> Vec<String> {
    let text = epoch.to_string();
    broker.publish_alerts(epoch, vec![retained("alerts/a", &text, 1)], 0);
    let got = settled(client).await;
    assert!(broker.has_written_alerts());
    got.iter().map(Got::text).collect()
}

#[tokio::test]
async fn alerts_of_an_epoch_come_again_only_if_a_crash_was_before_they_were_on_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broker.redb");
    let broker = Broker::open(options(&path), 0).unwrap();
    let client = Client::with(&broker, "c", &["alerts/#"]);
    assert_eq!(told_of(3, &broker, &client).await, ["alerts/a=3 q1"]);
    assert_eq!(told_of(7, &broker, &client).await, ["alerts/a=7 q1"]);
    assert!(told_of(7, &broker, &client).await.is_empty());
    // The epochs of this file's copies: a crash after those of 7, and one before those of 9.
    std::fs::copy(&path, path.with_file_name("before.redb")).unwrap();
    broker.publish_alerts(9, vec![retained("alerts/a", "9", 1)], 0);
    client.got();
    for copy in ["after.redb", "before.redb"] {
        let after = match copy {
            "after.redb" => {
                broker.ticket().done().await.unwrap();
                crash(&path, copy)
            }
            _ => Broker::open(options(&path.with_file_name(copy)), 0).unwrap(),
        };
        let client = Client::open(&after, opening("c"), 0);
        client.got();
        for replayed in [3, 7] {
            assert!(told_of(replayed, &after, &client).await.is_empty(), "{replayed} in {copy}");
        }
        let again = told_of(9, &after, &client).await;
        assert_eq!(again.is_empty(), copy == "after.redb", "{again:?} in {copy}");
        let last = after.retained("alerts/a", 0);
        assert_eq!(&last[0].payload[..], b"9", "in {copy}");
        assert_eq!(after.alerts_through(), 9);
    }
}
