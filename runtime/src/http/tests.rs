//! Requests over real sockets, as clients make them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use reqwest::Method;
use serde_json::json;
use tidegate_operators::event::SessionEvent;
use tidegate_operators::spec::Format;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::limits::Timeouts;
use super::server::HttpConfig;
use super::testing::{PATIENCE, Setup, gzip, map, start, wide};
use crate::source::{IntakeError, SourceError};

#[tokio::test]
async fn bodies_become_messages() {
    let running = start(Setup::default()).await;
    let json = "application/json";
    let lines = "application/x-ndjson; charset=utf-8";
    let cases: [(&str, &str, &[&str]); 12] = [
        (json, r#" {"a": 1} "#, &[r#"{"a": 1}"#]),
        (json, "{\"a\":\n1}\n", &["{\"a\":\n1}"]),
        (json, r#"[{"a":1}, {"b":"],[\""} ,3]"#, &[r#"{"a":1}"#, r#"{"b":"],[\""}"#, "3"]),
        (json, " [ ] ", &[]),
        (json, "[[1,[2]],{}]", &["[1,[2]]", "{}"]),
        (lines, "{\"a\":1}\r\n\n{broken\n[2]", &[r#"{"a":1}"#, "{broken", "[2]"]),
        ("", "{\"a\":1}", &[r#"{"a":1}"#]),
        ("", "{\"a\":\n1}", &["{\"a\":\n1}"]),
        ("", "{\"a\":1}\n{\"a\":2}\n", &[r#"{"a":1}"#, r#"{"a":2}"#]),
        ("application/x-www-form-urlencoded", "[1,2]", &["1", "2"]),
        ("text/plain", "{\"a\":1}\nnothing\n", &[r#"{"a":1}"#, "nothing"]),
        (json, "not json at all", &["not json at all"]),
    ];
    for (content_type, body, expected) in cases {
        let answer = running.ingest(content_type, body).await;
        assert_eq!(answer, (202, json!({ "accepted": expected.len() })), "{body}");
        assert_eq!(running.payloads(), expected, "{body}");
    }
    let stats = &running.stats[0];
    let acked = stats.acked.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(acked, cases.iter().map(|c| c.2.len() as u64).sum::<u64>());
}

#[tokio::test]
async fn a_broken_array_is_refused_as_a_whole_with_its_line() {
    let running = start(Setup::default()).await;
    for (body, line, why) in [
        ("[{\"a\":1},\n{\"a\":}]", 2, "element 1"),
        ("[1,\n2,\n\n3", 4, "not closed"),
        ("[1 2]", 1, "comma"),
        ("[1,]", 1, "element 1"),
        ("[1]\n]", 2, "follows"),
        ("[\"a\",\n\"\tb\"]", 2, "element 1"),
        ("[", 1, "not closed"),
        ("[1,2,\n{\"a\":[1,2}]", 2, "element 2"),
    ] {
        let (status, said) = running.ingest("application/json", body).await;
        let text = said["error"].as_str().unwrap().to_owned();
        assert_eq!(status, 400, "{body}: {text}");
        assert!(text.contains(&format!("at line {line} ")) && text.contains(why), "{body}: {text}");
    }
    assert_eq!(running.ingest("application/json", " \n").await.0, 400);
    assert!(running.payloads().is_empty(), "nothing of them is taken");
}

#[tokio::test]
async fn packed_bodies_are_unpacked_within_bounds() {
    let running = start(Setup::default()).await;
    let body: String = (0..500).map(|i| format!("{{\"number\":{i}}}\n")).collect();
    let zstd = zstd::encode_all(body.as_bytes(), 3).unwrap();
    let twice = [gzip(&body.as_bytes()[..15]), gzip(&body.as_bytes()[15..])].concat();
    for (encoding, packed) in [("gzip", gzip(body.as_bytes())), ("zstd", zstd), ("gzip", twice)] {
        let request = running.post("/ingest/json").header("content-encoding", encoding);
        let request = request.header("content-type", "application/x-ndjson").body(packed);
        assert_eq!(running.send(request).await, (202, json!({ "accepted": 500 })));
        assert_eq!(running.payloads(), body.lines().collect::<Vec<_>>());
    }
    let zeros = vec![b' '; 2_000_000];
    let half = gzip(body.as_bytes());
    let half = &half[..half.len() / 2];
    for (encoding, packed, status) in [
        ("gzip", gzip(&zeros), 413),
        ("zstd", zstd::encode_all(&zeros[..], 3).unwrap(), 413),
        ("gzip", b"not gzip".to_vec(), 400),
        ("zstd", b"not zstd".to_vec(), 400),
        ("gzip", half.to_vec(), 400),
        ("br", b"x".to_vec(), 415),
    ] {
        let request = running.post("/ingest/json").header("content-encoding", encoding);
        assert_eq!(running.send(request.body(packed)).await.0, status, "{encoding}");
    }
    assert!(running.payloads().is_empty());
    // Refused from its headers, while its sender is at it.
    let body = "x".repeat(16_000_000);
    assert_eq!(running.send(running.post("/ingest/other").body(body)).await.0, 401);
    let long = "x".repeat(100_001);
    assert_eq!(running.ingest("text/plain", &long).await.0, 413);
    assert_eq!(running.ingest("text/plain", &long[1..]).await.0, 202);
}

#[tokio::test]
async fn nothing_is_answered_before_it_is_durable() {
    let running = start(Setup { slow: true, ..Setup::default() }).await;
    let request = running.post("/ingest/json").body("{}");
    let pending = tokio::spawn(request.send());
    running.offered().await;
    assert!(!pending.is_finished());
    assert_eq!(running.stats[0].acked.load(std::sync::atomic::Ordering::Relaxed), 0);
    running.journal.syncs.add_permits(1);
    assert_eq!(pending.await.unwrap().unwrap().status(), 202);
    // The same while the source stops: what was offered is answered.
    let pending = tokio::spawn(running.post("/ingest/json").body("{}").send());
    running.offered().await;
    running.stop.send(true).unwrap();
    running.journal.syncs.add_permits(1);
    assert_eq!(pending.await.unwrap().unwrap().status(), 202);
    for task in running.tasks {
        task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_failed_journal_is_told_and_ends_the_source() {
    let running = start(Setup::default()).await;
    *running.journal.failed.lock().unwrap() = Some(IntakeError::Failed("disk".into()));
    assert_eq!(running.ingest("", "{}").await.0, 503);
    let ended = running.tasks.into_iter().next().unwrap().await.unwrap();
    assert!(matches!(ended, Err(SourceError::Intake(IntakeError::Failed(_)))), "{ended:?}");
}

#[tokio::test]
async fn a_repeated_key_takes_nothing_again() {
    let running = start(Setup { slow: true, ..Setup::default() }).await;
    running.journal.syncs.add_permits(1);
    let keyed = |key: &str, path: &str, body: &str| {
        running.post(path).header("idempotency-key", key).body(body.to_owned())
    };
    let first = running.send(keyed("k1", "/ingest/json", "[1,2]")).await;
    assert_eq!(first, (202, json!({ "accepted": 2 })));
    let taken = running.messages();
    let event = SessionEvent::of(&taken, 0).unwrap();
    assert_eq!(
        (event.event.as_str(), event.protocol.as_str(), taken.len()),
        ("request", "http", 3)
    );
    let again = running.send(keyed("k1", "/ingest/json", "[1,2]")).await;
    assert_eq!(again, (202, json!({ "accepted": 0, "duplicate": true })));
    assert_eq!(running.send(keyed("k1", "/ingest/json", "[1]")).await.0, 422);
    assert_eq!(running.send(keyed("k1", "/ingest/json?topic=t", "[1,2]")).await.0, 422);
    assert_eq!(running.send(keyed(&"k".repeat(256), "/ingest/json", "1")).await.0, 400);
    running.offered().await;
    // While the first one waits for the disk, the second one is told to come back.
    let keyed = |key: &str| running.post("/ingest/json").header("idempotency-key", key).body("{}");
    let pending = tokio::spawn(keyed("k2").send());
    running.offered().await;
    let busy = keyed("k2").send().await.unwrap();
    assert!(busy.status() == 429 && busy.headers().contains_key("retry-after"));
    running.journal.syncs.add_permits(1);
    assert_eq!(pending.await.unwrap().unwrap().status(), 202);
    assert_eq!(running.send(keyed("k2")).await.1["duplicate"], json!(true));
    // A refused body does not use its key up.
    running.journal.syncs.add_permits(2);
    let body = |body: &'static str| {
        running.post("/ingest/json").header("idempotency-key", "k3").body(body)
    };
    assert_eq!(running.send(body("[1,")).await.0, 400);
    assert_eq!(running.send(body("[1]")).await.1, json!({ "accepted": 1 }));
    // Without a key, the same body is two requests.
    running.journal.syncs.add_permits(1);
    assert_eq!(running.ingest("", "[1]").await.1, json!({ "accepted": 1 }));
}

#[tokio::test]
async fn without_room_clients_are_told_to_come_back() {
    let setup = Setup { slow: true, in_flight_bytes_max: 300_000, ..Setup::default() };
    let running = start(setup).await;
    let body = format!("\"{}\"", "x".repeat(90_000));
    let pending = tokio::spawn(running.post("/ingest/json").body(body.clone()).send());
    running.offered().await;
    let second = tokio::spawn(running.post("/ingest/json").body(body.clone()).send());
    running.offered().await;
    // Two requests hold 90 kB each; a third one does not fit beside them while it is read.
    let refused = running.post("/ingest/json").body(body.clone()).send().await.unwrap();
    assert_eq!(refused.status(), 429);
    assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 0);
    running.journal.syncs.add_permits(3);
    assert_eq!(pending.await.unwrap().unwrap().status(), 202);
    assert_eq!(second.await.unwrap().unwrap().status(), 202);
    assert_eq!(running.ingest("", &body).await.0, 202);
    assert_eq!(running.payloads().len(), 3);
}

#[tokio::test]
async fn a_disk_that_stands_still_refuses_new_requests_until_it_moves() {
    let timeouts = Timeouts { offer: Duration::from_millis(50), ..Timeouts::default() };
    let running = start(Setup { slow: true, timeouts, ..Setup::default() }).await;
    let first = running.post("/ingest/json").body("{}").send().await.unwrap();
    assert_eq!(first.status(), 429, "{}", first.text().await.unwrap());
    running.offered().await;
    let ready = |r: &super::testing::Running| r.client.get(format!("{}/readyz", r.url)).send();
    assert_eq!(ready(&running).await.unwrap().status(), 503);
    let refused = running.post("/ingest/json").body("{}").send().await.unwrap();
    assert_eq!(refused.status(), 429);
    assert!(running.offers.lock().await.try_recv().is_err(), "it was not offered");
    running.journal.syncs.add_permits(1);
    // The offer that was late is taken all the same, and then there is room again.
    while ready(&running).await.unwrap().status() != 200 {
        tokio::task::yield_now().await;
    }
    assert_eq!(running.payloads().len(), 1);
}

#[tokio::test]
async fn users_and_tokens_are_those_of_the_pipeline() {
    let setup =
        Setup { users: &[("ann", "secret")], tokens: &[("gateway", "t0ken")], ..Setup::default() };
    let running = start(setup).await;
    let with = |path: &str, authorization: &str| {
        let request = running.post(path).body("m,host=a v=1");
        match authorization {
            "" => request,
            text => request.header("authorization", text),
        }
    };
    let basic =
        |text: &str| format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text));
    let ingest = "/ingest/json";
    for (path, authorization, status, who) in [
        (ingest, String::new(), 401, ""),
        (ingest, "Bearer wrong".into(), 401, ""),
        (ingest, "Bearer of-the-other".into(), 403, ""),
        (ingest, "Bearer t0ken".into(), 202, "gateway"),
        (ingest, basic("ann:secret"), 202, "ann"),
        (ingest, basic("ann:wrong"), 401, ""),
        ("/ingest/other", "Bearer t0ken".into(), 403, ""),
        ("/ingest/other", "Bearer of-the-other".into(), 202, "o"),
        ("/write?db=lines&u=ann&p=secret", String::new(), 204, "ann"),
        ("/write?db=lines&u=ann&p=no", String::new(), 401, ""),
        ("/api/v2/write?bucket=lines", "Token t0ken".into(), 204, "gateway"),
        ("/api/v2/write?bucket=lines", "Token ann:secret".into(), 204, "ann"),
        ("/api/v2/write?bucket=lines", "Token x".into(), 401, ""),
    ] {
        let response = with(path, &authorization).send().await.unwrap();
        assert_eq!(response.status(), status, "{path} {authorization}");
        assert_eq!(response.headers().contains_key("www-authenticate"), status == 401);
        match status {
            202 | 204 => assert_eq!(running.messages().client(0), who.as_bytes()),
            _ => assert!(running.journal.taken.lock().unwrap().is_empty()),
        }
        running.payloads();
    }
    let wide = wide().await;
    let config = |insecure_listen, tokens| HttpConfig {
        pipeline: "p".into(),
        format: Format::Json,
        topic: "p".into(),
        topics: Vec::new(),
        users: BTreeMap::new(),
        tokens,
        body_bytes_max: 1,
        decompressed_bytes_max: 1,
        insecure_listen,
    };
    assert!(wide.add(config(false, BTreeMap::new())).is_err());
    assert!(wide.add(config(true, BTreeMap::new())).is_ok());
    assert!(wide.add(config(false, map(&[("a", "b")]))).is_ok());
}

#[tokio::test]
async fn mistakes_are_told_with_what_to_do() {
    let running = start(Setup { topics: "plant/{site}/{device}", ..Setup::default() }).await;
    let (status, said) = running.ingest("", "{}").await;
    assert!(status == 400 && said.to_string().contains("plant/{site}/{device}"), "{said}");
    let request = running.post("/ingest/json?topic=plant%2Fa%2Fd1").body("{}");
    assert_eq!(running.send(request).await.0, 202);
    assert_eq!(running.messages().topic(0), b"plant/a/d1");
    let header = running.post("/ingest/json?topic=x").header("tidegate-topic", "plant/b/d2");
    assert_eq!(running.send(header.body("{}")).await.0, 202);
    assert_eq!(running.messages().topic(0), b"plant/b/d2");
    for (method, path, content_type, status, text) in [
        ("POST", "/ingest/nobody", "", 404, "no pipeline `nobody`"),
        ("GET", "/ingest/json", "", 405, "use POST"),
        ("POST", "/healthz", "", 405, "use GET or HEAD"),
        ("POST", "/ingest/json?topic=a/%23", "", 400, "without `+` and `#`"),
        ("POST", "/ingest/json", "text/html", 415, "application/x-ndjson"),
        ("POST", "/ingest/lines?topic=plant/a/b", "application/json", 415, "line protocol"),
        ("POST", "/ingest/lines?topic=plant/a/b&precision=day", "", 400, "ns, us, ms, s, m or h"),
        ("POST", "/elsewhere", "", 404, "/ingest/PIPELINE"),
        ("POST", "/write", "", 400, "database is required"),
        ("POST", "/write?db=json", "", 400, "/ingest/json"),
        ("POST", "/write?db=no", "", 404, "database not found"),
        ("POST", "/api/v2/write?bucket=no", "", 404, "bucket not found"),
        ("POST", "/api/v2/buckets", "", 404, "/api/v2/write"),
    ] {
        let method: Method = method.parse().unwrap();
        let request = running.client.request(method, format!("{}{path}", running.url)).body("{}");
        let (found, said) = running.send(request.header("content-type", content_type)).await;
        assert_eq!(found, status, "{path}: {said}");
        let word = if path.starts_with("/api/v2") { "message" } else { "error" };
        assert!(said[word].as_str().unwrap().contains(text), "{path}: {said}");
    }
    for path in ["/healthz", "/readyz", "/health", "/ready"] {
        let request = running.client.get(format!("{}{path}", running.url));
        assert_eq!(running.send(request).await.0, 200);
    }
}

#[tokio::test]
async fn clients_of_influxdb_find_what_they_look_for() {
    let running = start(Setup::default()).await;
    let body = "# c\nm,host=a v=1 1760000000\n\nm,host=b s=\"two\nlines\" 1760000001\r\nbroken\n";
    for path in ["/write?db=lines&rp=x&precision=s", "/api/v2/write?org=o&bucket=lines&precision=s"]
    {
        let request = running.post(path).header("content-encoding", "gzip");
        let response = request.body(gzip(body.as_bytes())).send().await.unwrap();
        assert_eq!(response.status(), 204);
        assert!(response.headers().contains_key("x-influxdb-version"));
        let messages = running.messages();
        assert_eq!(messages.topic(0), b"lines");
        assert_eq!(messages.properties(0), b"\x26\0\x09precision\0\x01s");
        let expected =
            ["m,host=a v=1 1760000000", "m,host=b s=\"two\nlines\" 1760000001", "broken"];
        assert_eq!(running.payloads(), expected);
    }
    assert_eq!(
        running.post("/write?db=lines/autogen").body("").send().await.unwrap().status(),
        204
    );
    let nanoseconds = running.post("/write?db=lines").body("m v=1");
    assert_eq!(nanoseconds.send().await.unwrap().status(), 204);
    assert_eq!(running.messages().properties(0), b"");
    let head = running.client.head(format!("{}/ping", running.url)).send().await.unwrap();
    assert_eq!(head.status(), 204);
    assert!(head.headers()["x-influxdb-version"].to_str().unwrap().starts_with("1."));
    let query = |q: &str| running.client.get(format!("{}/query?q={q}", running.url));
    let (_, said) = running.send(query("SHOW%20DATABASES")).await;
    assert_eq!(said["results"][0]["series"][0]["values"], json!([["lines"]]));
    let form = "q=CREATE+DATABASE+%22lines%22;CREATE+DATABASE+x;SELECT+1";
    let (status, said) = running.send(running.post("/query").body(form)).await;
    assert_eq!((status, &said["results"][0]), (200, &json!({ "statement_id": 0 })));
    assert!(said["results"][1]["error"].as_str().unwrap().contains("no pipeline `x`"));
    assert!(said["results"][2]["error"].as_str().unwrap().contains("tidegate sql"));
}

#[tokio::test]
async fn connections_that_only_occupy_a_place_are_closed() {
    let short = Duration::from_millis(100);
    let timeouts = Timeouts { head: short, idle: short, ..Timeouts::default() };
    let running = start(Setup { connections_max: 2, timeouts, ..Setup::default() }).await;
    let address = running.url.strip_prefix("http://").unwrap();
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"POST /ingest/json HTTP/1.1\r\nx: ").await.unwrap();
    let mut out = Vec::new();
    // Both end, although nobody ends them here.
    let ends = async {
        let _ = silent.read_to_end(&mut out).await;
        let _ = slow.read_to_end(&mut out).await;
    };
    tokio::time::timeout(PATIENCE, ends).await.expect("both are closed");
    // Headers without an end.
    let mut endless = TcpStream::connect(address).await.unwrap();
    let line = format!("x: {}\r\n", "y".repeat(1000));
    let _ = endless.write_all(b"GET / HTTP/1.1\r\n").await;
    let all = async { while endless.write_all(line.as_bytes()).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, all).await.expect("the connection is closed");
    // A body that does not come is told so.
    let timeouts = Timeouts { body: short, ..Timeouts::default() };
    let running = start(Setup { timeouts, ..Setup::default() }).await;
    let address = running.url.strip_prefix("http://").unwrap();
    let mut body = TcpStream::connect(address).await.unwrap();
    let head = b"POST /ingest/json HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{";
    body.write_all(head).await.unwrap();
    out.clear();
    body.read_to_end(&mut out).await.unwrap();
    assert!(out.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&out));
}

#[tokio::test]
async fn connections_beyond_the_limit_are_refused() {
    let running = start(Setup { connections_max: 1, ..Setup::default() }).await;
    let address = running.url.strip_prefix("http://").unwrap();
    let mut first = TcpStream::connect(address).await.unwrap();
    let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    first.write_all(request).await.unwrap();
    let mut byte = [0; 1];
    first.read_exact(&mut byte).await.unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    let _ = second.write_all(request).await;
    let mut out = Vec::new();
    let _ = second.read_to_end(&mut out).await;
    assert!(out.is_empty());
    drop(first);
    loop {
        // The place is free when the server has seen the end.
        if let Ok(response) = reqwest::get(format!("{}/healthz", running.url)).await {
            assert_eq!(response.status(), 200);
            break;
        }
    }
}
