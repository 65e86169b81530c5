//! The local webhook receiver: what it takes and prints.
#![allow(clippy::unwrap_used)]

use super::*;

const SECRET: &str = "whsec_dGlkZWdhdGUtdGVzdC1zZWNyZXQ=";
const BODY: &str = r#"{"type":"alert.firing","data":{"rule":"too-warm","status":"firing",
    "keys":{"device":"cold-017"},"summary":"cold-017 is at 9.1 °C\u001b[2J"}}"#;

/// Signs as the specification says, independent of the code under test where possible.
fn sign(secret: &[u8], id: &str, timestamp: u64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let tag = hmac::sign(&key, format!("{id}.{timestamp}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(tag))
}

async fn send(url: &str, id: &str, timestamp: u64, signature: &str, body: &str) -> u16 {
    let request = reqwest::Client::new()
        .post(url)
        .header("webhook-id", id)
        .header("webhook-timestamp", timestamp.to_string())
        .header("webhook-signature", signature)
        .body(body.to_owned());
    request.send().await.unwrap().status().as_u16()
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test]
async fn arrivals_are_verified_counted_and_printed_once() {
    let lines = Arc::new(Mutex::new(Vec::<String>::new()));
    let sink = Arc::clone(&lines);
    let printer: Printer = Arc::new(move |line| sink.lock().unwrap().push(line.to_owned()));
    let receiver = Receiver::start(SECRET, printer).await.unwrap();
    let (url, now) = (receiver.url(), now_s());
    let secret = b"tidegate-test-secret";
    let good = sign(secret, "msg_1", now, BODY);
    assert_eq!(send(&url, "msg_1", now, &good, BODY).await, 204);
    assert_eq!(send(&url, "msg_1", now, &good, BODY).await, 204);
    // A second signature of a rotated key beside a foreign one.
    let rotated = format!("v1,AAAA {}", sign(secret, "msg_2", now, BODY));
    assert_eq!(send(&url, "msg_2", now, &rotated, BODY).await, 204);
    // Another body, another id, another key, an old timestamp: all refused.
    assert_eq!(send(&url, "msg_1", now, &good, "{}").await, 400);
    assert_eq!(send(&url, "msg_3", now, &good, BODY).await, 400);
    let foreign = sign(b"other", "msg_4", now, BODY);
    assert_eq!(send(&url, "msg_4", now, &foreign, BODY).await, 400);
    let old = now - TIMESTAMP_TOLERANCE_S - 60;
    let stale = sign(secret, "msg_5", old, BODY);
    assert_eq!(send(&url, "msg_5", old, &stale, BODY).await, 400);
    assert_eq!(receiver.totals(), ReceiverTotals { received: 2, duplicates: 1, refused: 4 });
    let lines = lines.lock().unwrap();
    assert_eq!(lines.len(), 2);
    let line = lines[0].split_once(' ').unwrap().1;
    assert_eq!(line, "webhook firing too-warm device=cold-017: cold-017 is at 9.1 °C [2J");
}

#[test]
fn the_signature_of_the_specification_is_accepted() {
    // The example of the Standard Webhooks specification's libraries.
    let key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek".parse().unwrap());
    headers.insert("webhook-timestamp", "1614265330".parse().unwrap());
    let signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    headers.insert("webhook-signature", signature.parse().unwrap());
    let body = br#"{"test": 2432232314}"#;
    let (id, event) = accept(&key, &headers, body, 1_614_265_330).unwrap();
    assert_eq!(id, "msg_p5jXN8AQM9LWM0D4loKWxJek");
    assert_eq!(event["test"], 2_432_232_314_u64);
}

#[test]
fn plain_secrets_and_text_keys_work() {
    assert!(key_of("whsec_!!").is_err());
    assert!(key_of("plain").is_ok());
    let event: Value = serde_json::from_str(
        r#"{"rule":"r","status":"resolved","keys":"{\"device\":\"d\",\"n\":3}"}"#,
    )
    .unwrap();
    assert_eq!(describe(&event), "webhook resolved r device=d n=3");
}

#[test]
fn ids_are_bounded() {
    let mut seen = Seen::default();
    for i in 0..=IDS_MAX {
        assert!(seen.insert(&i.to_string()));
    }
    assert_eq!(seen.ids.len(), IDS_MAX);
    assert!(!seen.insert("1"));
    assert!(seen.insert("0"));
}
