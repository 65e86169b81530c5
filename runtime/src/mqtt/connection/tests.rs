//! One connection of the endpoint, driven by raw bytes and by real clients.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant as WallInstant;

use bytes::BytesMut;
use proptest::prelude::*;
use rumqttc_v5::mqttbytes::v5;
use tidegate_operators::event::Untaken;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::*;
use crate::mqtt::limits::{BATCH_BYTES_MAX, CONNECT_TIMEOUT, RECEIVE_MAXIMUM, TOPIC_ALIASES_MAX};
use crate::mqtt::testing::publish as publish_packet;
use crate::mqtt::testing::{Peer, TestIntake, eventually, packet, text};
use crate::mqtt::{Endpoint, EndpointConfig};
use crate::source::{Source, SourceError};

mod bounds;
mod delivery;
mod ends;
mod handshake;
mod publishing;

struct Running {
    address: SocketAddr,
    stats: Arc<SourceStats>,
    intake: Arc<TestIntake>,
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), SourceError>>,
}

fn config() -> EndpointConfig {
    EndpointConfig {
        packet_bytes_max: 64 * 1024,
        connections_max: 100,
        ..EndpointConfig::new("127.0.0.1:0".parse().unwrap())
    }
}

async fn start_with(config: EndpointConfig, intake: Arc<TestIntake>) -> Running {
    let endpoint = Endpoint::bind(config).await.unwrap();
    let address = endpoint.local_addr().unwrap();
    let stats = Arc::new(SourceStats::default());
    let (stop, stopped) = watch::channel(false);
    let task = Box::new(endpoint).start(intake.clone(), stopped, stats.clone());
    Running { address, stats, intake, stop, task }
}

async fn start(intake: Arc<TestIntake>) -> Running {
    start_with(config(), intake).await
}

/// CONNECT with a clean session.
fn connect(level: u8, client: &str, keep_alive: u16, login: Option<(&str, &str)>) -> Vec<u8> {
    let flags = if login.is_some() { 0xC2 } else { 2 };
    let mut body = text("MQTT");
    body.extend_from_slice(&[level, flags]);
    body.extend_from_slice(&keep_alive.to_be_bytes());
    if level == 5 {
        body.push(0);
    }
    body.extend(text(client));
    if let Some((user, password)) = login {
        body.extend(text(user));
        body.extend(text(password));
    }
    packet(0x10, &body)
}

impl Running {
    async fn open(&self) -> Peer {
        Peer::new(TcpStream::connect(self.address).await.unwrap())
    }

    /// A client that is through the handshake.
    async fn client(&self, level: u8, name: &str, keep_alive: u16) -> Peer {
        let mut peer = self.open().await;
        peer.send(&connect(level, name, keep_alive, None)).await;
        let connack = peer.packet().await.unwrap();
        assert_eq!((connack[0], connack[connack[1..].len().min(2)], connack[3]), (0x20, 0, 0));
        peer
    }

    fn counts(&self) -> (u64, u64, u64) {
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        (get(&self.stats.received), get(&self.stats.acked), get(&self.stats.protocol_errors))
    }
}

#[tokio::test]
async fn puback_waits_for_the_journal() {
    for level in [4, 5] {
        let endpoint = start(TestIntake::closed()).await;
        let mut peer = endpoint.client(level, "d1", 60).await;
        peer.send(&publish_packet(level, 1, 7, "plant/a", "hello")).await;
        endpoint.intake.wait_for(1).await;
        peer.expect_quiet().await;
        assert_eq!(endpoint.counts(), (1, 0, 0));
        endpoint.intake.allow(1);
        peer.expect(&[0x40, 2, 0, 7]).await;
        assert_eq!(endpoint.counts(), (1, 1, 0));
        let offer = &endpoint.intake.offers()[0];
        assert_eq!(endpoint.intake.texts(), ["plant/a hello"]);
        assert_eq!(offer.client(0), b"d1");
        let meta = offer.index[0];
        assert_eq!((meta.packet_id, meta.qos, meta.duplicate, meta.retain), (7, 1, false, false));
        assert!((now_us() - meta.received_us).abs() < 60_000_000);
    }
}

#[tokio::test]
async fn many_publishes_in_one_write_are_acknowledged_in_order() {
    for level in [4, 5] {
        let endpoint = start(TestIntake::open()).await;
        let mut peer = endpoint.client(level, "d1", 60).await;
        let mut all = Vec::new();
        let mut expected = Vec::new();
        for id in 1..=3000u16 {
            let qos = (id % 3) as u8;
            all.extend(publish_packet(level, qos, id, "t", &id.to_string()));
            match qos {
                1 => expected.push((0x40, id)),
                2 => expected.push((0x50, id)),
                _ => {}
            }
        }
        let (mut reader, mut writer) = peer.stream.into_split();
        let writing = tokio::spawn(async move {
            writer.write_all(&all).await.unwrap();
            writer
        });
        let mut acks = vec![0; expected.len() * 4];
        reader.read_exact(&mut acks).await.unwrap();
        let acks: Vec<(u8, u16)> =
            acks.chunks(4).map(|a| (a[0], u16::from_be_bytes([a[2], a[3]]))).collect();
        assert_eq!(acks, expected);
        let texts: Vec<String> = (1..=3000).map(|id| format!("t {id}")).collect();
        assert_eq!(endpoint.intake.texts(), texts);
        assert!(endpoint.intake.offers().len() < 300, "publishes are offered in batches");
        drop(writing.await.unwrap());
        peer = endpoint.open().await;
        drop(peer);
    }
}

#[tokio::test]
async fn acks_of_two_batches_keep_their_order_and_pings_are_answered_meanwhile() {
    let endpoint = start(TestIntake::closed()).await;
    let mut peer = endpoint.client(4, "d1", 60).await;
    peer.send(&publish_packet(4, 1, 1, "t", "a")).await;
    endpoint.intake.wait_for(1).await;
    peer.send(&publish_packet(4, 1, 2, "t", "b")).await;
    peer.send(&[0xC0, 0]).await;
    peer.expect(&[0xD0, 0]).await;
    assert_eq!(endpoint.intake.texts(), ["t a"], "one batch under way at a time");
    endpoint.intake.allow(1);
    peer.expect(&[0x40, 2, 0, 1]).await;
    endpoint.intake.wait_for(2).await;
    peer.expect_quiet().await;
    endpoint.intake.allow(1);
    peer.expect(&[0x40, 2, 0, 2]).await;
}

#[tokio::test]
async fn a_slow_journal_stops_the_reading_and_memory_stays_bounded() {
    let endpoint = start(TestIntake::closed()).await;
    let mut peer = endpoint.client(4, "d1", 60).await;
    let payload = "x".repeat(1000);
    let total = 40_000u64;
    let mut flood = Vec::new();
    for id in 1..=total as u16 {
        flood.extend(publish_packet(4, 1, id, "t", &payload));
    }
    let (mut reader, mut writer) = peer.stream.into_split();
    let writing = tokio::spawn(async move { writer.write_all(&flood).await.map(|()| writer) });
    let mut before = u64::MAX;
    while before != endpoint.counts().0 || before == 0 {
        before = endpoint.counts().0;
        sleep(Duration::from_millis(200)).await;
    }
    let most = (2 * BATCH_BYTES_MAX + 2 * READ_BYTES_MAX) as u64 / 1000;
    assert!(before <= most, "{before} messages were taken, at most {most} may be");
    assert!(!writing.is_finished(), "TCP holds the sender back");
    endpoint.intake.allow(1 << 20);
    let mut acks = vec![0; total as usize * 4];
    reader.read_exact(&mut acks).await.unwrap();
    let ids = acks.chunks(4).map(|a| u16::from_be_bytes([a[2], a[3]]));
    assert!(ids.eq(1..=total as u16));
    drop(writing.await.unwrap().unwrap());
    peer = endpoint.client(4, "d2", 60).await;
    drop(peer);
}

#[tokio::test]
async fn an_oversized_packet_is_refused_from_its_header() {
    let endpoint = start(TestIntake::open()).await;
    // 1 MiB announced, no body sent.
    let header = [0x32, 0x80, 0x80, 0x40];
    let mut v5 = endpoint.client(5, "new", 60).await;
    v5.send(&publish_packet(5, 1, 1, "t", "kept")).await;
    v5.send(&header).await;
    v5.expect(&[0x40, 2, 0, 1]).await;
    v5.expect(&[0xE0, 1, 0x95]).await;
    v5.expect_closed().await;
    let mut v3 = endpoint.client(4, "old", 60).await;
    v3.send(&header).await;
    v3.expect_closed().await;
    assert_eq!(endpoint.counts(), (1, 1, 2));
    let told = |n: usize| {
        let untaken = endpoint.intake.untaken();
        let known = |u: &Untaken| (u.topic.clone(), u.client_id.clone(), u.packet_bytes);
        assert_eq!(untaken.len(), n);
        known(&untaken[n - 1])
    };
    let nothing = String::new();
    assert_eq!(told(2), (nothing, "old".to_owned(), 4 + (1 << 20)));
    // With its topic, if that came too.
    let mut start = header.to_vec();
    start.extend([text("plant/x"), vec![0, 9], b"yyy".to_vec()].concat());
    let mut v3 = endpoint.client(4, "old", 60).await;
    v3.send(&start).await;
    v3.expect_closed().await;
    assert_eq!(told(3), ("plant/x".to_owned(), "old".to_owned(), 4 + (1 << 20)));
    // The largest packet allowed passes through the small first buffer.
    let mut peer = endpoint.client(4, "big", 60).await;
    let payload = "y".repeat(64 * 1024 - 4 - 2 - 1 - 2);
    let largest = publish_packet(4, 1, 9, "t", &payload);
    assert_eq!(largest.len(), 64 * 1024);
    peer.send(&largest).await;
    peer.expect(&[0x40, 2, 0, 9]).await;
}

#[tokio::test]
async fn a_bad_packet_closes_only_its_connection() {
    let endpoint = start(TestIntake::open()).await;
    let mut good = endpoint.client(5, "good", 60).await;
    let alias = packet(0x30, &[0, 1, b'a', 3, 35, 0, 33]);
    let long_topic = publish_packet(5, 0, 0, &"a/".repeat(100), "");
    let cases: Vec<(Vec<u8>, u8)> = vec![
        (packet(0x36, &[0, 1, b'a', 0, 1, 0]), 0x81),
        (packet(0x32, &[0, 1, b'a', 0, 0, 0]), 0x82),
        (packet(0x30, &[0, 9, b'a']), 0x81),
        (publish_packet(5, 0, 0, "a/+", ""), 0x90),
        (long_topic, 0x90),
        (alias, 0x94),
        (vec![0x30, 0xFF, 0xFF, 0xFF, 0xFF, 1], 0x81),
        (packet(0x60, &[0, 1]), 0x81),
        // 3.8.3-2: no filter is a protocol error.
        (packet(0x82, &[0, 1, 0]), 0x82),
        (packet(0x80, &[0, 1, 0]), 0x81),
        (packet(0x00, &[]), 0x82),
        (packet(0xF0, &[]), 0x82),
        (connect(5, "again", 60, None), 0x82),
    ];
    let n = cases.len() as u64;
    for (bytes, reason) in cases {
        let mut bad = endpoint.client(5, "bad", 60).await;
        bad.send(&bytes).await;
        bad.expect(&[0xE0, 1, reason]).await;
        bad.expect_closed().await;
    }
    assert_eq!(endpoint.counts(), (0, 0, n));
    good.send(&publish_packet(5, 1, 3, "t", "fine")).await;
    good.expect(&[0x40, 2, 0, 3]).await;
    for first in [b"GET / HTTP/1.1\r\n\r\n".to_vec(), publish_packet(4, 0, 0, "t", "x")] {
        let mut stranger = endpoint.open().await;
        stranger.send(&first).await;
        stranger.expect_closed().await;
    }
    let mut old = endpoint.open().await;
    let mut body = text("MQIsdp");
    body.extend_from_slice(&[3, 2, 0, 60]);
    body.extend(text("c"));
    old.send(&packet(0x10, &body)).await;
    old.expect(&[0x20, 2, 0, 1]).await;
    old.expect_closed().await;
}

#[tokio::test]
async fn credentials_are_checked() {
    let users = BTreeMap::from([("gw".to_owned(), "s3cret".to_owned())]);
    let config = EndpointConfig { users, ..config() };
    assert!(!format!("{config:?}").contains("s3cret"));
    let endpoint = start_with(config, TestIntake::open()).await;
    for login in [None, Some(("gw", "wrong")), Some(("who", "s3cret")), Some(("gw", ""))] {
        let mut v3 = endpoint.open().await;
        v3.send(&connect(4, "c", 60, login)).await;
        v3.expect(&[0x20, 2, 0, 4]).await;
        v3.expect_closed().await;
        let mut v5 = endpoint.open().await;
        v5.send(&connect(5, "c", 60, login)).await;
        v5.expect(&[0x20, 3, 0, 0x86, 0]).await;
        v5.expect_closed().await;
    }
    let mut peer = endpoint.open().await;
    peer.send(&connect(4, "c", 60, Some(("gw", "s3cret")))).await;
    peer.expect(&[0x20, 2, 0, 0]).await;
    assert_eq!(endpoint.stats.refused.load(Ordering::Relaxed), 8);
    assert!(!endpoint.stats.last_error().unwrap().contains("s3cret"));
}

#[tokio::test]
async fn client_ids_are_assigned_or_refused() {
    let endpoint = start(TestIntake::open()).await;
    let mut v3 = endpoint.client(4, "", 60).await;
    v3.send(&publish_packet(4, 1, 1, "t", "x")).await;
    v3.expect(&[0x40, 2, 0, 1]).await;
    assert!(endpoint.intake.offers()[0].client(0).starts_with(b"auto-"));
    let mut v5 = endpoint.open().await;
    v5.send(&connect(5, "", 60, None)).await;
    let connack = v5.packet().await.unwrap();
    let v5::Packet::ConnAck(connack) =
        v5::Packet::read(&mut BytesMut::from(&connack[..]), None).unwrap()
    else {
        panic!("not a CONNACK")
    };
    let properties = connack.properties.unwrap();
    assert!(properties.assigned_client_identifier.unwrap().starts_with("auto-"));
    assert_eq!(properties.max_packet_size, Some(64 * 1024));
    assert_eq!(properties.receive_max, Some(RECEIVE_MAXIMUM));
    assert_eq!(properties.topic_alias_max, Some(TOPIC_ALIASES_MAX));
    assert!(!connack.session_present);
    let mut session = connect(4, "", 60, None);
    session[9] = 0;
    let mut v3 = endpoint.open().await;
    v3.send(&session).await;
    v3.expect(&[0x20, 2, 0, 2]).await;
    v3.expect_closed().await;
    let mut long = endpoint.open().await;
    long.send(&connect(5, &"i".repeat(300), 60, None)).await;
    long.expect(&[0x20, 3, 0, 0x85, 0]).await;
}

#[tokio::test]
async fn silence_beyond_the_keep_alive_closes() {
    let endpoint = start(TestIntake::open()).await;
    let mut talking = endpoint.client(4, "talking", 1).await;
    let begin = WallInstant::now();
    let mut silent = endpoint.client(5, "silent", 1).await;
    let talk = async {
        for _ in 0..13 {
            sleep(Duration::from_millis(200)).await;
            talking.send(&[0xC0, 0]).await;
            talking.expect(&[0xD0, 0]).await;
        }
    };
    let fall_silent = async {
        silent.expect(&[0xE0, 1, 0x8D]).await;
        silent.expect_closed().await;
        begin.elapsed()
    };
    let ((), lasted) = tokio::join!(talk, fall_silent);
    assert!(lasted >= Duration::from_millis(1500), "closed after {lasted:?}");
    assert!(lasted < Duration::from_secs(60), "closed after {lasted:?}");
}

#[tokio::test]
async fn the_newest_connection_of_a_client_id_stays() {
    let endpoint = start(TestIntake::closed()).await;
    let mut first = endpoint.client(5, "same", 60).await;
    let mut other = endpoint.client(5, "other", 60).await;
    first.send(&publish_packet(5, 1, 1, "t", "of the first")).await;
    endpoint.intake.wait_for(1).await;
    let mut second = endpoint.client(5, "same", 60).await;
    endpoint.intake.allow(1 << 20);
    first.expect(&[0x40, 2, 0, 1]).await;
    first.expect(&[0xE0, 1, 0x8E]).await;
    first.expect_closed().await;
    for peer in [&mut second, &mut other] {
        peer.send(&publish_packet(5, 1, 2, "t", "x")).await;
        peer.expect(&[0x40, 2, 0, 2]).await;
    }
}

#[tokio::test]
async fn qos_0_before_hanging_up_is_not_lost() {
    let endpoint = start(TestIntake::closed()).await;
    let mut peer = endpoint.client(4, "d", 60).await;
    peer.send(&publish_packet(4, 0, 0, "t", "1")).await;
    endpoint.intake.wait_for(1).await;
    let last = [publish_packet(4, 0, 0, "t", "2"), vec![0xE0, 0]].concat();
    peer.send(&last).await;
    drop(peer);
    sleep(Duration::from_millis(50)).await;
    endpoint.intake.allow(2);
    endpoint.intake.wait_for(2).await;
    assert_eq!(endpoint.intake.texts(), ["t 1", "t 2"]);
    eventually(|| endpoint.stats.connections.load(Ordering::Relaxed) == 0).await;
}

#[tokio::test]
async fn qos_2_is_journaled_once_per_release() {
    for level in [4, 5] {
        let endpoint = start(TestIntake::open()).await;
        let mut peer = endpoint.client(level, "d", 60).await;
        let mut again = publish_packet(level, 2, 5, "t", "once");
        peer.send(&again).await;
        peer.expect(&[0x50, 2, 0, 5]).await;
        again[0] |= 8;
        peer.send(&again).await;
        peer.expect(&[0x50, 2, 0, 5]).await;
        peer.send(&[0x62, 2, 0, 5]).await;
        peer.expect(&[0x70, 2, 0, 5]).await;
        peer.send(&publish_packet(level, 2, 5, "t", "new")).await;
        peer.expect(&[0x50, 2, 0, 5]).await;
        assert_eq!(endpoint.intake.texts(), ["t once", "t new"]);
    }
}

#[tokio::test]
async fn a_failed_journal_acknowledges_nothing_and_ends_the_endpoint() {
    let endpoint = start(TestIntake::closed()).await;
    let mut peer = endpoint.client(5, "d", 60).await;
    peer.send(&publish_packet(5, 1, 1, "t", "x")).await;
    endpoint.intake.wait_for(1).await;
    endpoint.intake.fail();
    peer.expect_closed().await;
    let result = endpoint.task.await.unwrap();
    assert!(matches!(result, Err(SourceError::Intake(_))), "{result:?}");
    assert!(!endpoint.stats.is_healthy());
}

#[tokio::test]
async fn stopping_finishes_what_is_under_way() {
    let endpoint = start(TestIntake::closed()).await;
    let mut busy = endpoint.client(5, "busy", 60).await;
    assert!(endpoint.stats.is_healthy());
    let mut idle = endpoint.client(4, "idle", 60).await;
    busy.send(&publish_packet(5, 1, 1, "t", "x")).await;
    endpoint.intake.wait_for(1).await;
    endpoint.stop.send(true).unwrap();
    idle.expect_closed().await;
    busy.expect_quiet().await;
    endpoint.intake.allow(1);
    busy.expect(&[0x40, 2, 0, 1]).await;
    busy.expect(&[0xE0, 1, 0x8B]).await;
    busy.expect_closed().await;
    drop((busy, idle));
    endpoint.task.await.unwrap().unwrap();
    assert!(TcpStream::connect(endpoint.address).await.is_err());
}

#[tokio::test]
async fn connections_are_limited_and_must_speak_in_time() {
    let config = EndpointConfig { connections_max: 2, ..config() };
    let endpoint = start_with(config, TestIntake::open()).await;
    let first = endpoint.client(4, "a", 60).await;
    let mut mute = endpoint.open().await;
    eventually(|| endpoint.stats.connections.load(Ordering::Relaxed) == 2).await;
    for (level, reply) in [(4, vec![0x20, 2, 0, 3]), (5, vec![0x20, 3, 0, 0x97, 0])] {
        let mut third = endpoint.open().await;
        third.send(&connect(level, "c", 60, None)).await;
        third.expect(&reply).await;
        third.expect_closed().await;
    }
    drop(first);
    eventually(|| endpoint.stats.connections.load(Ordering::Relaxed) == 1).await;
    endpoint.client(4, "b", 60).await;
    let mut end = [0];
    let closed = timeout(CONNECT_TIMEOUT * 2, mute.stream.read(&mut end)).await;
    assert_eq!(closed.unwrap().unwrap(), 0);
    assert_eq!(endpoint.stats.refused.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn other_machines_need_users_or_consent() {
    let open = EndpointConfig { listen: "0.0.0.0:0".parse().unwrap(), ..config() };
    let error = Endpoint::bind(open).await.err().unwrap();
    assert!(error.to_string().contains("insecure_listen"), "{error}");
}

#[tokio::test]
async fn a_real_client_of_version_3_publishes() {
    let endpoint = start(TestIntake::open()).await;
    let broker = ("127.0.0.1", endpoint.address.port());
    let options = rumqttc_v4::MqttOptions::new("real-3", broker);
    let (client, mut events) = rumqttc_v4::AsyncClient::builder(options).capacity(10).build();
    let acked = tokio::spawn(async move {
        let mut n = 0;
        while n < 200 {
            use rumqttc_v4::{Event, Packet};
            let event = events.poll().await.unwrap();
            if matches!(event, Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_))) {
                n += 1;
            }
        }
    });
    use rumqttc_v4::PublishOptions;
    for i in 0..100 {
        client.publish("real/3", i.to_string(), PublishOptions::at_least_once()).await.unwrap();
        client.publish("real/3", i.to_string(), PublishOptions::exactly_once()).await.unwrap();
        client.publish("real/3", i.to_string(), PublishOptions::at_most_once()).await.unwrap();
    }
    acked.await.unwrap();
    endpoint.intake.wait_for(300).await;
    assert_eq!(endpoint.intake.texts().len(), 300);
}

#[tokio::test]
async fn a_real_client_of_version_5_publishes() {
    let endpoint = start(TestIntake::open()).await;
    let broker = ("127.0.0.1", endpoint.address.port());
    let options = rumqttc_v5::MqttOptions::new("real-5", broker);
    let (client, mut events) = rumqttc_v5::AsyncClient::builder(options).capacity(10).build();
    let acked = tokio::spawn(async move {
        let mut n = 0;
        while n < 100 {
            use rumqttc_v5::mqttbytes::v5::Packet;
            if let rumqttc_v5::Event::Incoming(Packet::PubAck(_)) = events.poll().await.unwrap() {
                n += 1;
            }
        }
    });
    for i in 0..100 {
        let properties = v5::PublishProperties {
            user_properties: vec![("unit".to_owned(), "°C".to_owned())],
            content_type: Some("text/plain".to_owned()),
            ..Default::default()
        };
        let options = rumqttc_v5::PublishOptions::at_least_once().properties(properties);
        client.publish("real/5", i.to_string(), options).await.unwrap();
    }
    acked.await.unwrap();
    let texts: Vec<String> = (0..100).map(|i| format!("real/5 {i}")).collect();
    assert_eq!(endpoint.intake.texts(), texts);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// A panic would take the connection down: whatever follows the first bytes of a CONNECT.
    #[test]
    fn no_handshake_makes_us_panic(
        flags: u8,
        body in proptest::collection::vec(prop_oneof![0..6u8, any::<u8>()], 0..80),
        v5: bool,
    ) {
        let level = if v5 { 5 } else { 4 };
        let packet = packet(0x10, &[text("MQTT"), vec![level, flags & 0xFE], body].concat());
        let frame = frame(&packet, usize::MAX).unwrap().unwrap();
        if let Ok(connect) = crate::mqtt::connect::read(frame, &packet) {
            let terms = config().terms();
            let _ = crate::mqtt::connect::Hello::of(&connect, &terms);
        }
    }
}
