//! CONNECT and CONNACK by the numbers of the standard (3.1.1 as [3: ..], 5 as [5: ..]).

use super::*;

/// A CONNECT with everything free.
struct Connect {
    name: &'static str,
    level: u8,
    flags: u8,
    keep_alive: u16,
    properties: Vec<u8>,
    payload: Vec<u8>,
}

impl Connect {
    fn new(level: u8) -> Self {
        let (properties, payload) = (Vec::new(), text("c"));
        Self { name: "MQTT", level, flags: 2, keep_alive: 60, properties, payload }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut body = text(self.name);
        body.extend_from_slice(&[self.level, self.flags]);
        body.extend_from_slice(&self.keep_alive.to_be_bytes());
        if self.level >= 5 {
            body.push(self.properties.len() as u8);
            body.extend_from_slice(&self.properties);
        }
        body.extend_from_slice(&self.payload);
        packet(0x10, &body)
    }
}

async fn answer(endpoint: &Running, connect: &Connect) -> Option<Vec<u8>> {
    let mut peer = endpoint.open().await;
    peer.send(&connect.bytes()).await;
    let answer = peer.packet().await;
    if answer.as_ref().is_none_or(|a| a[a.len().min(3)] != 0) {
        if answer.is_some() {
            peer.expect_closed().await;
        }
    }
    answer
}

#[tokio::test]
async fn a_malformed_connect_of_version_3_is_closed_without_a_word() {
    let endpoint = start(TestIntake::open()).await;
    let will = |flags, topic: &str| {
        let payload = [text("c"), text(topic), text("gone")].concat();
        Connect { flags, payload, ..Connect::new(4) }
    };
    for (what, connect) in [
        ("[3: 3.1.2-1] protocol name", Connect { name: "hj", ..Connect::new(4) }),
        ("[3: 3.1.2-3] reserved flag", Connect { flags: 3, ..Connect::new(4) }),
        ("[3: 3.1.2-13] will QoS without will", Connect { flags: 0x0A, ..Connect::new(4) }),
        ("[3: 3.1.2-14] will QoS 3", will(0x1E, "w")),
        ("[3: 3.1.2-15] will retain without will", Connect { flags: 0x22, ..Connect::new(4) }),
        ("[3: 3.1.2-20] no password", Connect { flags: 0xC2, ..Connect::new(4) }),
        ("[3: 3.1.2-22] password without user", Connect { flags: 0x42, ..Connect::new(4) }),
        (
            "[3: 3.1.3-4] client id is not UTF-8",
            Connect { payload: vec![0, 2, 0xC3, 0x28], ..Connect::new(4) },
        ),
        (
            "[3: 1.5.3-1] surrogate",
            Connect { payload: vec![0, 3, 0xED, 0xA0, 0x80], ..Connect::new(4) },
        ),
        ("[3: 1.5.3-2] NUL", Connect { payload: text("a\0"), ..Connect::new(4) }),
        ("[3: 3.1.3-10] will topic with a wildcard", will(6, "w/#")),
        (
            "bytes behind the end",
            Connect { payload: [text("c"), vec![0]].concat(), ..Connect::new(4) },
        ),
        ("cut off", Connect { payload: vec![0, 9, b'c'], ..Connect::new(4) }),
    ] {
        assert_eq!(answer(&endpoint, &connect).await, None, "{what}");
    }
    assert_eq!(endpoint.counts().2, 13);
}

#[tokio::test]
async fn a_malformed_connect_of_version_5_is_told_why() {
    let endpoint = start(TestIntake::open()).await;
    let with = |properties: &[u8]| Connect { properties: properties.to_vec(), ..Connect::new(5) };
    let will = |flags, properties: &[u8], topic: &str| {
        let length = vec![properties.len() as u8];
        let payload = [text("c"), length, properties.to_vec(), text(topic), text("gone")].concat();
        Connect { flags, payload, ..Connect::new(5) }
    };
    for (what, connect, reason) in [
        ("[5: 3.1.2-3] reserved flag", Connect { flags: 3, ..Connect::new(5) }, 0x81),
        ("[5: 3.1.2-11] will QoS without will", Connect { flags: 0x0A, ..Connect::new(5) }, 0x81),
        ("[5: 3.1.2-12] will QoS 3", will(0x1E, &[], "w"), 0x81),
        ("[5: 3.1.2-13] retain without will", Connect { flags: 0x22, ..Connect::new(5) }, 0x81),
        ("[5: 3.1.2.11.2] session expiry twice", with(&[17, 0, 0, 0, 1, 17, 0, 0, 0, 1]), 0x82),
        ("[5: 3.1.2.11.3] receive maximum 0", with(&[33, 0, 0]), 0x82),
        ("[5: 3.1.2.11.4] maximum packet size 0", with(&[39, 0, 0, 0, 0]), 0x82),
        ("[5: 3.1.2.11.6] response information 2", with(&[25, 2]), 0x82),
        ("[5: 3.1.2.11.7] problem information 2", with(&[23, 2]), 0x82),
        ("[5: 3.1.2.11.10] data without method", with(&[22, 0, 1, 7]), 0x82),
        ("[5: 2.2.2.2] a property of PUBLISH", with(&[35, 0, 1]), 0x82),
        ("[5: 2.2.2.2] an unknown property", with(&[99]), 0x81),
        ("[5: 3.1.3.2.2] will delay twice", will(6, &[24, 0, 0, 0, 1, 24, 0, 0, 0, 1], "w"), 0x82),
        ("[5: 3.1.3-11] will topic not UTF-8", will(6, &[], "a\0"), 0x81),
        ("[5: 4.7.1-1] will topic with a wildcard", will(6, &[], "w/+"), 0x90),
        ("[5: 4.7.3-1] empty will topic", will(6, &[], ""), 0x82),
        ("[5: 4.12] extended authentication", with(&[&[21][..], &text("X")].concat()), 0x8C),
        ("a will to $SYS", will(6, &[], "$SYS/x"), 0x90),
        ("an answer that does not fit", with(&[39, 0, 0, 0, 8]), 0x95),
    ] {
        let answer = answer(&endpoint, &connect).await;
        assert_eq!(answer, Some(vec![0x20, 3, 0, reason, 0]), "{what}");
    }
}

#[tokio::test]
async fn versions_that_we_do_not_speak_are_told_so() {
    let endpoint = start(TestIntake::open()).await;
    // [3: 3.1.2-2], [5: 3.1.2-2]
    let old = Connect { level: 3, ..Connect::new(4) };
    assert_eq!(answer(&endpoint, &old).await, Some(vec![0x20, 2, 0, 1]));
    let newer = Connect { level: 6, ..Connect::new(4) };
    assert_eq!(answer(&endpoint, &newer).await, Some(vec![0x20, 3, 0, 0x84, 0]));
}

#[tokio::test]
async fn the_answer_says_what_differs_from_what_was_asked_for() {
    let config = EndpointConfig { session_expiry_max_s: 100, ..config() };
    let endpoint = start_with(config, TestIntake::open()).await;
    let read = async |connect: &Connect| {
        let bytes = answer(&endpoint, connect).await.unwrap();
        match v5::Packet::read(&mut BytesMut::from(&bytes[..]), None).unwrap() {
            v5::Packet::ConnAck(connack) => connack.properties.unwrap(),
            other => panic!("{other:?}"),
        }
    };
    let plain = read(&Connect::new(5)).await;
    assert_eq!(plain.session_expiry_interval, None);
    assert_eq!(plain.server_keep_alive, None);
    assert_eq!(plain.assigned_client_identifier, None);
    assert_eq!(plain.retain_available, None);
    assert_eq!(plain.max_qos, None, "all three");
    let properties = vec![17, 0, 0, 1, 0];
    let greedy = read(&Connect { keep_alive: 600, properties, ..Connect::new(5) }).await;
    assert_eq!(greedy.session_expiry_interval, Some(100));
    assert_eq!(greedy.server_keep_alive, Some(60), "[5: 3.1.2-21]");
    let nameless = read(&Connect { payload: text(""), flags: 0, ..Connect::new(5) }).await;
    assert!(nameless.assigned_client_identifier.is_some(), "[5: 3.1.3-7]");
}

#[tokio::test]
async fn what_is_switched_off_is_said_and_refused() {
    let config = EndpointConfig { retained: false, subscribe: false, ..config() };
    let endpoint = start_with(config, TestIntake::open()).await;
    let mut peer = endpoint.open().await;
    peer.send(&connect(5, "c", 60, None)).await;
    let connack = peer.packet().await.unwrap();
    for off in [[37, 0], [40, 0], [41, 0], [42, 0]] {
        assert!(connack.windows(2).any(|w| w == off), "{off:?}");
    }
    peer.send(&packet(0x82, &[vec![0, 9, 0], text("a"), vec![0]].concat())).await;
    peer.expect(&[0x90, 4, 0, 9, 0, 0x80]).await;
    // [5: 3.2.2-14]
    peer.send(&packet(0x31, &[0, 1, b'a', 0])).await;
    peer.expect(&[0xE0, 1, 0x9A]).await;
    peer.expect_closed().await;
}

#[tokio::test]
async fn refused_connections_are_events_but_not_without_end() {
    let endpoint = start(TestIntake::open()).await;
    for _ in 0..40 {
        let mut stranger = endpoint.open().await;
        stranger.send(b"GET / HTTP/1.1\r\n\r\n").await;
        stranger.expect_closed().await;
    }
    let refused = |events: &[String]| {
        let one = events.iter().filter(|e| e.contains("the first packet is not a CONNECT"));
        let sums = events.iter().filter_map(|e| {
            let rest = e.strip_prefix("refused  ")?;
            rest.strip_suffix(" more in the last second")?.parse::<usize>().ok()
        });
        (one.count(), sums.sum::<usize>())
    };
    eventually(|| {
        let (one, sum) = refused(&endpoint.intake.events());
        one + sum == 40
    })
    .await;
    // Whoever only knocks is no event.
    drop(endpoint.open().await);
    eventually(|| endpoint.counts().2 == 41).await;
    assert_eq!(refused(&endpoint.intake.events()).0 + refused(&endpoint.intake.events()).1, 40);
}
