//! What brokers may say and do: refusals, limits, several sessions, TLS, WebSocket.

use super::*;
use crate::net::BoxStream;
use crate::net::tls::tests::{Ca, Files, Wish};
use crate::net::tls::{ClientCertificates, ServerTls};
use crate::net::ws::{self, WsRules};

#[tokio::test]
async fn several_connections_share_a_subscription_as_sessions_of_their_own() {
    let s = start_with(TestIntake::open(), true, |c| {
        c.share = Some("tide".to_owned());
        c.connections = 2;
    })
    .await;
    let mut names = Vec::new();
    for _ in 0..2 {
        let accepted = timeout(Duration::from_secs(10), s.broker.accept()).await.unwrap();
        let mut peer = Peer::new(accepted.unwrap().0);
        let connect = peer.packet().await.unwrap();
        let text = String::from_utf8_lossy(&connect).into_owned();
        names.push(if text.contains("tidegate-1") { 1 } else { 2 });
        assert!(text.contains(&format!("tidegate-{}", names.last().unwrap())), "{text}");
        assert!(!s.stats.is_healthy(), "one of two is not enough");
        peer.send(&[0x20, 3, 0, 0, 0]).await;
        let subscribe = s.answer_subscribe(&mut peer, &[1, 1]).await;
        assert!(subscribe.contains("$share/tide/plant/#"), "{subscribe}");
        peer.send(&s.publish(1, &format!("by {}", names.last().unwrap()))).await;
        peer.expect(&[0x40, 2, 0, 1]).await;
        tokio::spawn(async move { while peer.packet().await.is_some() {} });
    }
    names.sort_unstable();
    assert_eq!(names, [1, 2]);
    eventually(|| s.stats.is_healthy()).await;
    for offer in s.intake.offers() {
        for i in (0..offer.len()).filter(|i| !offer.index[*i].event) {
            let payload = String::from_utf8_lossy(offer.payload(i)).into_owned();
            assert_eq!(payload, format!("by {}", offer.index[i].session + 1));
        }
    }
    s.end().await;
}

#[tokio::test]
async fn a_refusal_says_why_in_words() {
    let v3 = [(1, "3.1.1"), (2, "client_id"), (4, "password"), (5, "not authorized")];
    let v5 = [(0x84, "version"), (0x86, "password"), (0x88, "unavailable"), (1, "3.1.1")];
    for (version5, code, word) in
        v3.map(|(c, w)| (false, c, w)).into_iter().chain(v5.map(|(c, w)| (true, c, w)))
    {
        let s = start(TestIntake::open(), version5).await;
        let accepted = s.broker.accept().await.unwrap();
        let mut peer = Peer::new(accepted.0);
        peer.packet().await.unwrap();
        // A broker of 3.1.1 answers in its own form.
        let short = !version5 || code == 1;
        let answer = if short { vec![0x20, 2, 0, code] } else { vec![0x20, 3, 0, code, 0] };
        peer.send(&answer).await;
        eventually(|| s.stats.last_error().is_some()).await;
        let error = s.stats.last_error().unwrap();
        assert!(error.contains(word), "{code}: {error}");
    }
}

#[tokio::test]
async fn what_a_broker_lacks_is_said() {
    // No shared subscriptions (42).
    let s = start_with(TestIntake::open(), true, |c| c.share = Some("g".to_owned())).await;
    let mut peer = Peer::new(s.broker.accept().await.unwrap().0);
    peer.packet().await.unwrap();
    peer.send(&[0x20, 5, 0, 0, 2, 42, 0]).await;
    peer.expect_closed().await;
    eventually(|| s.stats.last_error().is_some_and(|e| e.contains("remove `share`"))).await;
    // QoS 0 at most (36), a session that ends after 60 s (17), which is less than asked for.
    let s = start(TestIntake::open(), true).await;
    let mut peer = Peer::new(s.broker.accept().await.unwrap().0);
    peer.packet().await.unwrap();
    peer.send(&[0x20, 10, 0, 0, 7, 36, 0, 17, 0, 0, 0, 60]).await;
    s.grant(&mut peer, [0, 0]).await;
    eventually(|| s.stats.is_healthy()).await;
    eventually(|| s.intake.session_events().iter().any(|e| e.event == "subscribed")).await;
    let events = s.intake.session_events();
    assert!(events[0].detail.contains("60 s") && events[0].detail.contains("QoS 0"), "{events:?}");
    // It leaves with a reason.
    peer.send(&[0xE0, 2, 0x8E, 0]).await;
    peer.expect_closed().await;
    eventually(|| s.stats.last_error().is_some_and(|e| e.contains("same client_id"))).await;
    let lost = |s: &Running| s.intake.session_events().iter().any(|e| e.event == "lost");
    eventually(|| lost(&s)).await;
}

#[tokio::test]
async fn a_suback_that_is_too_short_is_no_grant() {
    let s = start(TestIntake::open(), false).await;
    let mut broker = s.accept(false).await;
    let subscribe = broker.packet().await.unwrap();
    broker.send(&[0x90, 3, subscribe[2], subscribe[3], 1]).await;
    broker.expect_closed().await;
    let mut broker = s.accept(true).await;
    s.grant(&mut broker, [1, 1]).await;
}

#[tokio::test]
async fn many_filters_go_in_several_subscribes() {
    let filters: Vec<String> = (10..30).map(|i| format!("f/{i}")).collect();
    let s = start_with(TestIntake::open(), true, |c| c.filters = filters.clone()).await;
    let mut broker = s.accept(false).await;
    let mut all = String::new();
    for n in [8, 8, 4] {
        assert!(!s.stats.is_healthy());
        all.push_str(&s.answer_subscribe(&mut broker, &vec![1; n]).await);
    }
    assert!(filters.iter().all(|f| all.contains(f)));
    eventually(|| s.stats.is_healthy()).await;
}

/// Stands before the broker and speaks TLS, WebSocket or both.
async fn front(broker: &TcpListener, tls: Option<ServerTls>, socket: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, broker) = (listener.local_addr().unwrap().port(), broker.local_addr().unwrap());
    let rules = WsRules {
        path: "/mqtt".to_owned(),
        origins: None,
        message_bytes_max: 1 << 20,
        timeout: Duration::from_secs(10),
    };
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let mut outer: BoxStream = match &tls {
                None => Box::new(tcp),
                Some(tls) => match tls.accept(tcp).await {
                    Ok((stream, _)) => Box::new(stream),
                    Err(_) => continue,
                },
            };
            if socket {
                match ws::accept(outer, &rules).await {
                    Ok(stream) => outer = Box::new(stream),
                    Err(_) => continue,
                }
            }
            let mut inner = tokio::net::TcpStream::connect(broker).await.unwrap();
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
            });
        }
    });
    port
}

/// One message there and its acknowledgement back.
async fn takes_a_message(s: &Running) {
    let mut broker = s.first().await;
    let payload = "x".repeat(200_000);
    broker.send(&s.publish(1, &payload)).await;
    broker.expect(&[0x40, 2, 0, 1]).await;
    assert_eq!(s.intake.texts()[0].len(), payload.len() + "plant/a ".len());
}

async fn start_behind(url: String, broker: TcpListener, files: Option<&Files>) -> Running {
    let mut config = config(url, true);
    if let Some(files) = files {
        config.ca_file = Some(files.0.path().join("ca.pem"));
        config.cert_file = Some(files.0.path().join("client.pem"));
        config.key_file = Some(files.0.path().join("client.key"));
    }
    start_on(broker, TestIntake::open(), config)
}

#[tokio::test]
async fn tls_with_a_client_certificate_plain_and_over_websocket() {
    for socket in [false, true] {
        let ca = Ca::new("ours");
        let files = Files::new(&ca);
        let (cert, key) = ca.issue(Wish { cn: "tidegate", ..Wish::default() });
        files.put("client.pem", &cert);
        files.put("client.key", &key);
        let tls = ServerTls::new(files.config(ClientCertificates::Required), b"mqtt").unwrap();
        let broker = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = front(&broker, Some(tls), socket).await;
        let url = match socket {
            false => format!("mqtts://localhost:{port}"),
            true => format!("wss://localhost:{port}/mqtt"),
        };
        let s = start_behind(url, broker, Some(&files)).await;
        takes_a_message(&s).await;
    }
}

#[tokio::test]
async fn a_certificate_of_a_stranger_is_not_spoken_to() {
    let (ca, stranger) = (Ca::new("ours"), Ca::new("theirs"));
    let files = Files::new(&stranger);
    let tls = ServerTls::new(files.config(ClientCertificates::None), b"mqtt").unwrap();
    let broker = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = front(&broker, Some(tls), false).await;
    files.put("ca.pem", &ca.pem);
    let mut config = config(format!("mqtts://localhost:{port}"), true);
    config.ca_file = Some(files.0.path().join("ca.pem"));
    let s = start_on(broker, TestIntake::open(), config);
    eventually(|| s.stats.last_error().is_some_and(|e| e.contains("certificate"))).await;
    let reached = timeout(Duration::from_millis(300), s.broker.accept()).await;
    assert!(reached.is_err(), "it must not speak to a stranger");
}

#[tokio::test]
async fn a_websocket_without_tls() {
    let broker = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = front(&broker, None, true).await;
    let s = start_behind(format!("ws://127.0.0.1:{port}/mqtt"), broker, None).await;
    takes_a_message(&s).await;
}
