//! The sender against a receiver on 127.0.0.1.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::Mutex;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac;

use super::*;
use crate::logged::Logged;
use crate::outbox::Notification;

/// What the receiver saw: identifier, body, signature headers.
#[derive(Clone, Debug)]
struct Seen {
    id: String,
    body: String,
    timestamp: String,
    signature: String,
    at: std::time::Instant,
}

/// Status, and a header if one is needed.
type Answer = (u16, Option<(&'static str, String)>);

/// Answers as scripted, then 200.
#[derive(Default)]
struct Receiver {
    seen: Mutex<Vec<Seen>>,
    script: Mutex<VecDeque<Answer>>,
    pause: Mutex<Duration>,
}

async fn receive(
    State(receiver): State<Arc<Receiver>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let get = |name: &str| {
        headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    };
    assert_eq!(get("content-type"), "application/json");
    receiver.seen.lock().unwrap().push(Seen {
        id: get("webhook-id"),
        body: String::from_utf8(body.to_vec()).unwrap(),
        timestamp: get("webhook-timestamp"),
        signature: get("webhook-signature"),
        at: std::time::Instant::now(),
    });
    let pause = *receiver.pause.lock().unwrap();
    tokio::time::sleep(pause).await;
    let (status, header) = receiver.script.lock().unwrap().pop_front().unwrap_or((200, None));
    let mut response = (StatusCode::from_u16(status).unwrap(), "thanks").into_response();
    if let Some((name, value)) = header {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

async fn listen(script: &[u16]) -> (Arc<Receiver>, String) {
    let receiver = Arc::new(Receiver::default());
    *receiver.script.lock().unwrap() = script.iter().map(|code| (*code, None)).collect();
    let app = axum::Router::new().fallback(receive).with_state(receiver.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (receiver, url)
}

fn target(url: &str) -> WebhookTarget {
    WebhookTarget {
        name: "ops".into(),
        url: url.into(),
        secret: Some("whsec_bXkgc2VjcmV0IGtleQ==".into()),
        timeout: Duration::from_secs(5),
        max_age: Duration::from_secs(60),
        allow_private: true,
    }
}

fn options() -> SenderOptions {
    SenderOptions { pause_min: Duration::from_millis(10), ..SenderOptions::default() }
}

fn note(id: &str, key: &str) -> Notification {
    Notification {
        id: id.into(),
        target: "ops".into(),
        key: key.into(),
        created_us: 1_000_000_000,
        body: Bytes::from(format!("{{\"n\":\"{id}\"}}")),
    }
}

/// Ten seconds after the notifications were made.
fn clock() -> Clock {
    Clock::manual(1_010_000_000)
}

fn start(outbox: &Arc<Outbox>, target: WebhookTarget) -> WebhookSender {
    WebhookSender::start(outbox.clone(), vec![target], options(), clock()).unwrap()
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("timed out: {what}");
}

fn seen_ids(receiver: &Receiver) -> Vec<String> {
    receiver.seen.lock().unwrap().iter().map(|seen| seen.id.clone()).collect()
}

#[tokio::test]
async fn failures_are_retried_under_one_id_and_signed_then_delivered_once() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Arc::new(Outbox::open(dir.path()).unwrap());
    let (receiver, url) = listen(&[500, 408, 503]).await;
    let sender = start(&outbox, target(&url));
    outbox.enqueue(1, vec![note("a", "k")]).unwrap();
    until("delivery", || outbox.pending() == 0).await;
    let seen = receiver.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 4);
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"my secret key");
    for seen in &seen {
        assert_eq!((seen.id.as_str(), seen.timestamp.as_str()), ("a", "1010"));
        assert_eq!(seen.body, "{\"n\":\"a\"}");
        let signature = BASE64.decode(seen.signature.strip_prefix("v1,").unwrap()).unwrap();
        let signed = format!("{}.{}.{}", seen.id, seen.timestamp, seen.body);
        hmac::verify(&key, signed.as_bytes(), &signature).unwrap();
    }
    let stats = sender.stats().remove(0);
    assert_eq!((stats.sent, stats.retried, stats.dead, stats.pending), (1, 3, 0, 0));
    sender.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_target_that_goes_on_failing_is_told_once_and_so_is_that_it_works_again() {
    let (logged, _guard) = Logged::here();
    let dir = tempfile::tempdir().unwrap();
    let outbox = Arc::new(Outbox::open(dir.path()).unwrap());
    let (_receiver, url) = listen(&[503; 8]).await;
    let _sender = start(&outbox, target(&url));
    outbox.enqueue(1, vec![note("a", "k"), note("b", "l")]).unwrap();
    until("delivery", || outbox.pending() == 0).await;
    let failed = logged.with("webhook not delivered");
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0].contains("WARN") && failed[0].contains("HTTP 503"), "{failed:?}");
    until("the end", || logged.with("delivered again").len() == 1).await;
    let over = logged.with("delivered again");
    assert!(over[0].contains("INFO") && over[0].contains("ops"), "{over:?}");
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Arc::new(Outbox::open(dir.path()).unwrap());
    let (receiver, url) = listen(&[]).await;
    receiver.script.lock().unwrap().push_back((429, Some(("retry-after", "1".into()))));
    let _sender = start(&outbox, target(&url));
    outbox.enqueue(1, vec![note("a", "k")]).unwrap();
    until("delivery", || outbox.pending() == 0).await;
    let seen = receiver.seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 2);
    assert!(seen[1].at - seen[0].at >= Duration::from_secs(1));
}

#[tokio::test]
async fn refusals_and_redirects_are_dead_and_the_next_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Arc::new(Outbox::open(dir.path()).unwrap());
    let (receiver, url) = listen(&[404]).await;
    let elsewhere = ("location", format!("{url}/elsewhere"));
    receiver.script.lock().unwrap().push_back((307, Some(elsewhere)));
    let sender = start(&outbox, target(&url));
    outbox.enqueue(1, vec![note("a", "k"), note("b", "k"), note("c", "k")]).unwrap();
    until("all settled", || outbox.pending() == 0).await;
    assert_eq!(seen_ids(&receiver), ["a", "b", "c"]);
    let stats = sender.stats().remove(0);
    assert_eq!((stats.sent, stats.retried, stats.dead), (1, 0, 2));
    assert_eq!(outbox.dead_count(), 2);
}

#[tokio::test]
async fn a_restart_sends_what_was_pending_and_nothing_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (receiver, url) = listen(&[200, 503]).await;
    {
        let outbox = Arc::new(Outbox::open(dir.path()).unwrap());
        let slow = SenderOptions { pause_min: Duration::from_secs(30), ..options() };
        let sender =
            WebhookSender::start(outbox.clone(), vec![target(&url)], slow, clock()).unwrap();
        outbox.enqueue(1, vec![note("a", "k"), note("b", "k"), note("c", "k")]).unwrap();
        until("a failed attempt", || sender.stats()[0].retried == 1).await;
        sender.shutdown(Duration::from_secs(5)).await;
        assert_eq!(outbox.pending(), 2);
    }
    let outbox = Arc::new(Outbox::open(dir.path()).unwrap());
    let sender = start(&outbox, target(&url));
    outbox.enqueue(1, vec![note("a", "k"), note("b", "k")]).unwrap();
    until("the rest", || outbox.pending() == 0).await;
    sender.shutdown(Duration::from_secs(5)).await;
    assert_eq!(seen_ids(&receiver), ["a", "b", "b", "c"]);
}

#[tokio::test]
async fn keys_keep_their_order_and_do_not_wait_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Arc::new(Outbox::open(dir.path()).unwrap());
    let (receiver, url) = listen(&[500, 500, 500, 500, 500, 500]).await;
    *receiver.pause.lock().unwrap() = Duration::from_millis(5);
    let sender = start(&outbox, target(&url));
    for n in 0..10 {
        let list = (0..6).map(|key| note(&format!("{key}-{n:02}"), &format!("k{key}"))).collect();
        outbox.enqueue(n + 1, list).unwrap();
    }
    until("all", || outbox.pending() == 0).await;
    assert_eq!(sender.stats()[0].sent, 60);
    let seen = seen_ids(&receiver);
    assert_eq!(seen.len(), 66);
    for key in 0..6 {
        let mut of_key: Vec<_> =
            seen.iter().filter(|id| id.starts_with(&format!("{key}-"))).cloned().collect();
        assert!(of_key.is_sorted(), "{of_key:?}");
        of_key.dedup();
        assert_eq!(of_key.len(), 10);
    }
    // Keys were interleaved.
    assert!(!seen.is_sorted());
}

#[tokio::test]
async fn private_targets_are_refused_without_a_connection() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Arc::new(Outbox::open(dir.path()).unwrap());
    let (receiver, url) = listen(&[]).await;
    let by_name = url.replace("127.0.0.1", "localhost");
    let literal = WebhookTarget { allow_private: false, ..target(&url) };
    let named = WebhookTarget { name: "named".into(), url: by_name.clone(), ..literal.clone() };
    let allowed = WebhookTarget { name: "allowed".into(), url: by_name, ..target(&url) };
    let targets = vec![literal, named, allowed];
    let sender = WebhookSender::start(outbox.clone(), targets, options(), clock()).unwrap();
    let to = |target: &str, id: &str| Notification { target: target.into(), ..note(id, "k") };
    let list = vec![to("ops", "a"), to("named", "b"), to("allowed", "c"), to("gone", "d")];
    outbox.enqueue(1, list).unwrap();
    until("three settled", || outbox.pending() == 1).await;
    assert_eq!(seen_ids(&receiver), ["c"]);
    let stats = sender.stats();
    assert_eq!(
        stats.iter().map(|s| (s.sent, s.dead)).collect::<Vec<_>>(),
        [(0, 1), (0, 1), (1, 0)]
    );
    sender.shutdown(Duration::from_secs(1)).await;
    drop((sender, outbox));
    // What waits for a target that is not configured is given up at the next start.
    let outbox = Arc::new(Outbox::open(dir.path()).unwrap());
    let _sender = start(&outbox, target(&url));
    assert_eq!(outbox.pending(), 0);
}

#[tokio::test]
async fn too_old_and_too_slow_end_too() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Arc::new(Outbox::open(dir.path()).unwrap());
    let (receiver, url) = listen(&[]).await;
    *receiver.pause.lock().unwrap() = Duration::from_millis(300);
    let hasty = WebhookTarget {
        timeout: Duration::from_millis(50),
        max_age: Duration::from_secs(11),
        ..target(&url)
    };
    let clock = clock();
    let sender =
        WebhookSender::start(outbox.clone(), vec![hasty], options(), clock.clone()).unwrap();
    outbox.enqueue(1, vec![note("slow", "k")]).unwrap();
    until("time-outs", || sender.stats()[0].retried >= 2).await;
    until("given up", || outbox.pending() == 0).await;
    assert_eq!((sender.stats()[0].dead, outbox.dead_count()), (1, 1));
    let sent = receiver.seen.lock().unwrap().len();
    assert!(clock.set(1_012_000_000));
    outbox.enqueue(2, vec![note("old", "k")]).unwrap();
    until("given up", || outbox.pending() == 0).await;
    assert_eq!(receiver.seen.lock().unwrap().len(), sent, "too old: not even tried");
}

#[tokio::test]
async fn a_clock_that_is_set_while_a_receiver_is_down_gives_nothing_up() {
    /// Ten times `max_age`.
    const STEP_US: i64 = 600_000_000;
    for step_us in [STEP_US, -STEP_US] {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Arc::new(Outbox::open(dir.path()).unwrap());
        let (receiver, url) = listen(&[503; 5]).await;
        let clock = clock();
        let target = target(&url);
        let sender =
            WebhookSender::start(outbox.clone(), vec![target], options(), clock.clone()).unwrap();
        outbox.enqueue(1, vec![note("a", "k"), note("b", "k")]).unwrap();
        until("a failed attempt", || sender.stats()[0].retried >= 1).await;
        assert!(clock.set(clock.now_us() + step_us));
        until("both", || outbox.pending() == 0).await;
        let stats = sender.stats().remove(0);
        assert_eq!((stats.sent, stats.retried, stats.dead), (2, 5, 0), "{step_us}");
        assert_eq!(seen_ids(&receiver), ["a", "a", "a", "a", "a", "a", "b"]);
        sender.shutdown(Duration::from_secs(1)).await;
    }
}

/// Removed and added again under the same name, with another URL: nothing more goes to the old
/// one, nothing is lost, and the order of an alert is kept.
#[tokio::test]
async fn a_target_with_other_settings_takes_the_place_of_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Arc::new(Outbox::open(dir.path()).unwrap());
    let (old, old_url) = listen(&[200, 500]).await;
    let (new, new_url) = listen(&[]).await;
    let slow = SenderOptions { pause_min: Duration::from_secs(600), ..options() };
    let sender =
        WebhookSender::start(outbox.clone(), vec![target(&old_url)], slow, clock()).unwrap();
    outbox.enqueue(1, vec![note("a", "k"), note("b", "k"), note("c", "k")]).unwrap();
    until("a failed attempt", || sender.stats()[0].retried == 1).await;
    // Those that are not named go on, and the same again changes nothing.
    sender.follow(vec![]).unwrap();
    sender.follow(vec![target(&old_url)]).unwrap();
    let other = WebhookTarget { name: "other".into(), ..target(&new_url) };
    sender.follow(vec![other.clone(), other.clone()]).unwrap_err();
    assert_eq!((sender.stats().len(), sender.stats()[0].pending), (1, 2));
    sender.follow(vec![target(&new_url), other]).unwrap();
    until("the rest", || outbox.pending() == 0).await;
    outbox.enqueue(2, vec![note("d", "k")]).unwrap();
    outbox.enqueue(3, vec![Notification { target: "other".into(), ..note("e", "l") }]).unwrap();
    until("what came later", || outbox.pending() == 0).await;
    assert_eq!(seen_ids(&old), ["a", "b"]);
    assert_eq!(seen_ids(&new), ["b", "c", "d", "e"]);
    let stats = sender.stats();
    assert_eq!(stats.iter().map(|s| s.sent).collect::<Vec<_>>(), [4, 1]);
    assert_eq!(stats.iter().map(|s| s.pending).sum::<u64>(), 0);
    sender.shutdown(Duration::from_secs(5)).await;
    let third = WebhookTarget { name: "third".into(), ..target(&old_url) };
    sender.follow(vec![third]).unwrap();
    assert_eq!(sender.stats(), stats, "nothing is started after the end, and counts stay");
}
