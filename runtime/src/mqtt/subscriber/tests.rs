//! The subscriber against a scripted broker: acks, lost sessions, back-off.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::Ordering;

use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::logged::Logged;
use crate::mqtt::testing::{Peer, TestIntake, eventually, packet, publish, text};

fn config(url: String, version5: bool) -> SubscriberConfig {
    SubscriberConfig {
        url,
        filters: vec!["plant/#".to_owned(), "other/+".to_owned()],
        qos: 1,
        client_id: "tidegate".to_owned(),
        version5,
        user: Some("u".to_owned()),
        password: Some("s3cret".to_owned()),
        session_expiry_s: 600,
        ..SubscriberConfig::default()
    }
}

struct Running {
    broker: TcpListener,
    version5: bool,
    stats: Arc<SourceStats>,
    intake: Arc<TestIntake>,
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), SourceError>>,
}

async fn start(intake: Arc<TestIntake>, version5: bool) -> Running {
    start_with(intake, version5, |_| {}).await
}

/// With other settings.
async fn start_with(
    intake: Arc<TestIntake>,
    version5: bool,
    change: impl FnOnce(&mut SubscriberConfig),
) -> Running {
    let broker = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config(format!("mqtt://{}", broker.local_addr().unwrap()), version5);
    change(&mut config);
    start_on(broker, intake, config)
}

fn start_on(broker: TcpListener, intake: Arc<TestIntake>, config: SubscriberConfig) -> Running {
    let version5 = config.version5;
    let mut subscriber = Subscriber::new(config).unwrap();
    // Tests lose connections more often than anybody wants to wait for.
    subscriber.pace.spacing = Duration::ZERO;
    let stats = Arc::new(SourceStats::default());
    let (stop, stopped) = watch::channel(false);
    let task = Box::new(subscriber).start(intake.clone(), stopped, stats.clone());
    Running { broker, version5, stats, intake, stop, task }
}

impl Running {
    fn level(&self) -> u8 {
        if self.version5 { 5 } else { 4 }
    }

    /// The next connection, after its CONNECT was checked and answered.
    async fn accept(&self, session_present: bool) -> Peer {
        let accepted = timeout(Duration::from_secs(60), self.broker.accept()).await;
        let mut peer = Peer::new(accepted.expect("no connection came").unwrap().0);
        let connect = peer.packet().await.unwrap();
        assert_eq!((connect[0], connect[8]), (0x10, self.level()));
        assert_eq!(connect[9] & 2, 0, "the session is not to be cleaned");
        let text = String::from_utf8_lossy(&connect);
        assert!(text.contains("tidegate") && text.ends_with("\0\x01u\0\x06s3cret"));
        let present = u8::from(session_present);
        if self.version5 {
            peer.send(&[0x20, 3, present, 0, 0]).await;
        } else {
            peer.send(&[0x20, 2, present, 0]).await;
        }
        peer
    }

    /// Expects a SUBSCRIBE to both filters and answers with these codes.
    async fn grant(&self, peer: &mut Peer, codes: [u8; 2]) {
        let subscribe = self.answer_subscribe(peer, &codes).await;
        assert!(subscribe.contains("plant/#") && subscribe.contains("other/+"));
    }

    /// Expects a SUBSCRIBE and answers with these codes; gives its text.
    async fn answer_subscribe(&self, peer: &mut Peer, codes: &[u8]) -> String {
        let subscribe = peer.packet().await.unwrap();
        assert_eq!(subscribe[0], 0x82);
        let mut body = subscribe[2..4].to_vec();
        if self.version5 {
            body.push(0);
        }
        body.extend_from_slice(codes);
        peer.send(&packet(0x90, &body)).await;
        String::from_utf8_lossy(&subscribe).into_owned()
    }

    /// The first connection, subscribed.
    async fn first(&self) -> Peer {
        let mut broker = self.accept(false).await;
        self.grant(&mut broker, [1, 1]).await;
        eventually(|| self.stats.is_healthy()).await;
        broker
    }

    /// Ends the source and waits for it.
    async fn end(self) {
        self.stop.send(true).unwrap();
        self.task.await.unwrap().unwrap();
    }

    fn publish(&self, id: u16, payload: &str) -> Vec<u8> {
        publish(self.level(), 1, id, "plant/a", payload)
    }

    fn get(&self, counter: fn(&SourceStats) -> &std::sync::atomic::AtomicU64) -> u64 {
        counter(&self.stats).load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn acks_follow_the_journal_in_order_and_several_publishes_make_one_offer() {
    for version5 in [false, true] {
        let s = start(TestIntake::closed(), version5).await;
        let mut broker = s.accept(false).await;
        s.grant(&mut broker, [1, 1]).await;
        eventually(|| s.stats.is_healthy()).await;
        broker.send(&s.publish(1, "0")).await;
        s.intake.wait_for(1).await;
        let many: Vec<u8> = (2..=50).flat_map(|id| s.publish(id, "m")).collect();
        broker.send(&many).await;
        broker.expect_quiet().await;
        s.intake.allow(1);
        broker.expect(&[0x40, 2, 0, 1]).await;
        s.intake.wait_for(50).await;
        broker.expect_quiet().await;
        s.intake.allow(60);
        for id in 2..=50 {
            broker.expect(&[0x40, 2, 0, id]).await;
        }
        assert!(s.intake.offers().len() <= 3);
        assert_eq!(s.get(|s| &s.acked), 50);
        // Stopping says goodbye.
        s.stop.send(true).unwrap();
        broker.expect(&[0xE0, 0]).await;
        s.task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_broker_that_is_away_is_told_once_and_so_is_that_it_is_back() {
    let (logged, _guard) = Logged::here();
    let s = start(TestIntake::open(), true).await;
    let broker = s.first().await;
    assert_eq!(logged.with("works again").len(), 0, "nothing failed yet");
    drop(broker);
    for _ in 0..3 {
        let mut peer = Peer::new(s.broker.accept().await.unwrap().0);
        peer.packet().await.unwrap();
    }
    let mut broker = s.accept(true).await;
    eventually(|| s.stats.is_healthy()).await;
    let failed = logged.with("subscriber tidegate on");
    let warned: Vec<&String> = failed.iter().filter(|line| line.starts_with("WARN")).collect();
    // The connection is lost, and then refused: those are two reasons.
    assert_eq!(warned.len(), 2, "{failed:?}");
    assert!(warned[1].contains("closes before its CONNACK"), "{failed:?}");
    let over = logged.with("works again");
    assert!(over.len() == 1 && over[0].starts_with("INFO"), "{over:?}");
    assert!(over[0].contains("failed=4"), "{over:?}");
    broker.send(&s.publish(1, "kept")).await;
    broker.expect(&[0x40, 2, 0, 1]).await;
}

#[tokio::test]
async fn messages_of_qos_0_are_counted_when_they_are_durable() {
    let s = start(TestIntake::closed(), true).await;
    let mut broker = s.first().await;
    broker.send(&publish(5, 0, 0, "plant/a", "1")).await;
    broker.send(&publish(5, 0, 0, "plant/a", "2")).await;
    s.intake.wait_for(1).await;
    assert_eq!(s.get(|s| &s.quiet), 0);
    s.intake.allow(10);
    eventually(|| s.get(|s| &s.quiet) == 2).await;
    assert_eq!((s.get(|s| &s.received), s.get(|s| &s.acked)), (2, 0));
    s.end().await;
}

#[tokio::test]
async fn a_lost_session_is_subscribed_again_and_counted_and_a_kept_one_is_not() {
    for version5 in [false, true] {
        let s = start(TestIntake::open(), version5).await;
        let mut broker = s.accept(false).await;
        s.grant(&mut broker, [1, 1]).await;
        eventually(|| s.stats.is_healthy()).await;
        assert_eq!(s.get(|s| &s.gaps), 0, "a first session is not a gap");
        drop(broker);
        // Kept: no SUBSCRIBE.
        let mut broker = s.accept(true).await;
        eventually(|| s.stats.is_healthy()).await;
        broker.expect_quiet().await;
        broker.send(&s.publish(1, "kept")).await;
        broker.expect(&[0x40, 2, 0, 1]).await;
        assert_eq!((s.get(|s| &s.gaps), s.get(|s| &s.reconnects)), (0, 1));
        drop(broker);
        // Lost.
        let mut broker = s.accept(false).await;
        s.grant(&mut broker, [1, 1]).await;
        eventually(|| s.stats.is_healthy()).await;
        assert_eq!((s.get(|s| &s.gaps), s.get(|s| &s.reconnects)), (1, 2));
        assert!(s.stats.last_error().unwrap().contains("may be missing"));
    }
}

#[tokio::test]
async fn a_redelivery_is_passed_on_with_its_flag() {
    let s = start(TestIntake::open(), false).await;
    let mut broker = s.accept(false).await;
    s.grant(&mut broker, [1, 1]).await;
    broker.send(&s.publish(7, "x")).await;
    broker.expect(&[0x40, 2, 0, 7]).await;
    drop(broker);
    let mut broker = s.accept(true).await;
    let mut again = s.publish(7, "x");
    again[0] |= 8;
    broker.send(&again).await;
    broker.expect(&[0x40, 2, 0, 7]).await;
    let flags: Vec<bool> = s
        .intake
        .offers()
        .iter()
        .flat_map(|m| m.index.iter().filter(|m| !m.event).map(|m| m.duplicate).collect::<Vec<_>>())
        .collect();
    assert_eq!(flags, [false, true]);
}

#[tokio::test]
async fn a_refused_filter_is_unhealthy_at_once_and_asked_for_again() {
    for version5 in [false, true] {
        let s = start(TestIntake::open(), version5).await;
        let mut broker = s.accept(false).await;
        let code = if version5 { 0x87 } else { 0x80 };
        s.grant(&mut broker, [1, code]).await;
        eventually(|| s.stats.last_error().is_some_and(|e| e.contains("other/+"))).await;
        assert!(!s.stats.is_healthy());
        assert!(!s.stats.last_error().unwrap().contains("plant/#"));
        // What was granted is taken meanwhile.
        broker.send(&s.publish(1, "x")).await;
        broker.expect(&[0x40, 2, 0, 1]).await;
        // So devices can be heard, and an absence means something.
        let told: Vec<String> = s.intake.session_events().into_iter().map(|e| e.event).collect();
        assert_eq!(told, ["connected", "subscribed", "filter_refused"]);
        // Only what was refused is asked for again: a SUBSCRIBE may bring all retained messages.
        let again = s.answer_subscribe(&mut broker, &[0]).await;
        assert!(again.contains("other/+") && !again.contains("plant/#"), "{again}");
        eventually(|| s.stats.is_healthy()).await;
        let gaps = s.intake.gaps();
        assert!(gaps.len() == 1 && gaps[0].0 == "other/+" && gaps[0].1 < gaps[0].2, "{gaps:?}");
    }
}

#[tokio::test]
async fn a_broker_that_refuses_is_tried_again_with_growing_pauses() {
    let s = start(TestIntake::open(), false).await;
    let mut at = Vec::new();
    for _ in 0..5 {
        let (stream, _) =
            timeout(Duration::from_secs(10), s.broker.accept()).await.unwrap().unwrap();
        at.push(Instant::now());
        let mut peer = Peer::new(stream);
        peer.packet().await.unwrap();
        peer.send(&[0x20, 2, 0, 5]).await;
        peer.expect_closed().await;
    }
    let pauses: Vec<Duration> = at.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(pauses[0] >= Duration::from_millis(100), "{pauses:?}");
    assert!(pauses[3] >= Duration::from_millis(800), "{pauses:?}");
    assert!(s.stats.last_error().unwrap().contains("not authorized"));
    assert!(!s.stats.is_healthy());
    // And stopping does not wait for the pause.
    s.stop.send(true).unwrap();
    timeout(Duration::from_secs(1), s.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn pings_go_out_while_the_journal_is_slow() {
    let s = start(TestIntake::closed(), true).await;
    let accepted = s.broker.accept().await.unwrap();
    let mut broker = Peer::new(accepted.0);
    broker.packet().await.unwrap();
    // Server Keep Alive of 1 s.
    broker.send(&[0x20, 6, 0, 0, 3, 19, 0, 1]).await;
    s.grant(&mut broker, [1, 1]).await;
    // More than is read while a batch is under way, so that even reading has stopped.
    let payload = "x".repeat(100_000);
    let flood: Vec<u8> = (1..=40).flat_map(|id| s.publish(id, &payload)).collect();
    let (mut reader, mut writer) = broker.stream.into_split();
    let writing = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        writer.write_all(&flood).await.map(|()| writer)
    });
    let mut pings = [0; 10];
    use tokio::io::AsyncReadExt;
    timeout(Duration::from_secs(10), reader.read_exact(&mut pings)).await.unwrap().unwrap();
    assert_eq!(pings, [0xC0, 0, 0xC0, 0, 0xC0, 0, 0xC0, 0, 0xC0, 0]);
    assert!(s.get(|s| &s.received) < 40, "reading has a bound");
    assert_eq!(s.get(|s| &s.connections), 1, "the connection stays");
    s.intake.allow(100);
    s.intake.wait_for(40).await;
    drop(writing.await.unwrap().unwrap());
}

#[tokio::test]
async fn a_silent_broker_is_left() {
    let s = start(TestIntake::open(), true).await;
    let accepted = s.broker.accept().await.unwrap();
    let mut broker = Peer::new(accepted.0);
    broker.packet().await.unwrap();
    broker.send(&[0x20, 6, 0, 0, 3, 19, 0, 1]).await;
    s.grant(&mut broker, [1, 1]).await;
    while let Some(packet) = broker.packet().await {
        assert_eq!(packet, [0xC0, 0]);
    }
    assert!(s.stats.last_error().unwrap().contains("silent"));
    s.accept(true).await;
}

#[tokio::test]
async fn a_failed_journal_ends_the_subscriber_without_an_ack() {
    let s = start(TestIntake::closed(), false).await;
    let mut broker = s.accept(false).await;
    s.grant(&mut broker, [1, 1]).await;
    broker.send(&s.publish(1, "x")).await;
    s.intake.wait_for(1).await;
    s.intake.fail();
    broker.expect_closed().await;
    assert!(matches!(s.task.await.unwrap(), Err(SourceError::Intake(_))));
}

#[test]
fn settings_that_cannot_work_are_refused_and_secrets_are_not_shown() {
    let good = config("mqtt://localhost".to_owned(), false);
    assert!(Subscriber::new(good.clone()).is_ok());
    assert!(!format!("{good:?}").contains("s3cret"));
    let with_login = config("mqtt://me:s3cret@localhost".to_owned(), false);
    assert!(!format!("{with_login:?}").contains("s3cret"));
    let bad = |change: fn(&mut SubscriberConfig), hint: &str| {
        let mut config = good.clone();
        change(&mut config);
        let error = Subscriber::new(config).err().expect("must be refused").to_string();
        assert!(error.contains(hint), "{error}");
    };
    bad(|c| c.url = "http://x".to_owned(), "http://");
    bad(|c| c.url = "mqtt://me:pw@x".to_owned(), "credentials");
    bad(|c| c.url = "mqtt://x/path".to_owned(), "more than a host");
    bad(|c| c.url = "localhost".to_owned(), "url");
    bad(|c| c.qos = 3, "qos");
    bad(|c| c.connections = 2, "share");
    bad(|c| c.connections = 0, "connections");
    bad(|c| c.share = Some("a/b".to_owned()), "share");
    bad(|c| c.cert_file = Some("/x".into()), "key_file");
    bad(|c| c.filters.clear(), "topics");
    bad(|c| c.filters = vec!["a/#/b".to_owned()], "a/#/b");
    bad(|c| c.client_id.clear(), "client_id");
    bad(|c| c.user = None, "password");
    bad(
        |c| {
            c.url = "mqtts://x".to_owned();
            c.ca_file = Some("/nonexistent/ca.pem".into());
        },
        "ca.pem",
    );
}

mod brokers;
mod lost;
mod traps;
