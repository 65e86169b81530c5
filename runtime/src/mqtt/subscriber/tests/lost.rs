//! Lost connections and lost sessions: what is acknowledged, what is told, what is asked for again.

use std::collections::HashSet;
use std::sync::Mutex;

use async_trait::async_trait;
use tidegate_operators::MessagesBuilder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout_at;

use super::*;
use crate::intake::IntakeError;

#[tokio::test]
async fn a_lost_session_is_a_gap_with_filters_and_times() {
    for version5 in [false, true] {
        let s = start(TestIntake::open(), version5).await;
        let before = crate::source::now_us();
        let mut broker = s.first().await;
        broker.send(&s.publish(1, "x")).await;
        broker.expect(&[0x40, 2, 0, 1]).await;
        drop(broker);
        let mut broker = s.accept(false).await;
        let connected = Instant::now();
        s.grant(&mut broker, [1, 1]).await;
        assert!(connected.elapsed() < Duration::from_secs(5), "SUBSCRIBE at once");
        eventually(|| s.intake.gaps().len() == 1).await;
        let (filter, from, to) = s.intake.gaps().remove(0);
        assert_eq!(filter, "plant/# other/+");
        assert!(before <= from && from < to && to <= crate::source::now_us());
        let fresh: Vec<bool> = (s.intake.session_events().iter())
            .filter(|e| e.event == "connected")
            .map(|e| e.fresh)
            .collect();
        assert_eq!(fresh, [true, true]);
        drop(broker);
        s.accept(true).await;
        eventually(|| s.intake.session_events().iter().any(|e| e.event == "connected" && !e.fresh))
            .await;
    }
}

#[tokio::test]
async fn the_beginning_of_a_session_stands_before_its_first_message() {
    let s = start(TestIntake::open(), true).await;
    let mut broker = s.first().await;
    broker.send(&s.publish(1, "x")).await;
    broker.expect(&[0x40, 2, 0, 1]).await;
    let first = s.intake.session_events().remove(0);
    assert_eq!((first.event.as_str(), first.fresh), ("connected", true));
    assert_eq!((first.client_id.as_str(), first.protocol.as_str()), ("tidegate", "5"));
    assert_eq!((first.source.contains("tidegate"), first.user.as_str()), (true, "u"));
}

#[tokio::test]
async fn a_restart_resumes_without_subscribing_and_knows_of_a_gap() {
    for version5 in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let state = Some(folder.path().to_owned());
        let s = start_with(TestIntake::open(), version5, |c| c.state = state.clone()).await;
        let url = format!("mqtt://{}", s.broker.local_addr().unwrap());
        let broker = s.first().await;
        let stopping = async { drop(broker) };
        s.stop.send(true).unwrap();
        stopping.await;
        s.task.await.unwrap().unwrap();
        // The session is there: nothing to ask for.
        let again = SubscriberConfig { state: state.clone(), ..config(url.clone(), version5) };
        let s = start_on(s.broker, TestIntake::open(), again.clone());
        let mut broker = s.accept(true).await;
        eventually(|| s.stats.is_healthy()).await;
        broker.expect_quiet().await;
        let until = crate::source::now_us();
        s.stop.send(true).unwrap();
        drop(broker);
        s.task.await.unwrap().unwrap();
        // One filter less, one more: only that is told to the broker.
        let mut other = again.clone();
        other.filters = vec!["plant/#".to_owned(), "third".to_owned()];
        let s = start_on(s.broker, TestIntake::open(), other.clone());
        let mut broker = s.accept(true).await;
        let unsubscribe = broker.packet().await.unwrap();
        assert_eq!(unsubscribe[0], 0xA2);
        assert!(String::from_utf8_lossy(&unsubscribe).contains("other/+"));
        let code = if version5 { &[0, 0][..] } else { &[] };
        broker.send(&packet(0xB0, &[&unsubscribe[2..4], code].concat())).await;
        let subscribe = s.answer_subscribe(&mut broker, &[1]).await;
        assert!(subscribe.contains("third") && !subscribe.contains("plant"), "{subscribe}");
        eventually(|| s.stats.is_healthy()).await;
        s.stop.send(true).unwrap();
        drop(broker);
        s.task.await.unwrap().unwrap();
        // Lost while no process ran.
        let s = start_on(s.broker, TestIntake::open(), other);
        let mut broker = s.accept(false).await;
        s.answer_subscribe(&mut broker, &[1, 1]).await;
        eventually(|| s.intake.gaps().len() == 1).await;
        let (filter, from, _) = s.intake.gaps().remove(0);
        assert_eq!(filter, "plant/# third");
        assert!(from >= until - 1_000_000, "the last contact is known");
        assert_eq!(s.get(|s| &s.gaps), 1);
    }
}

#[tokio::test]
async fn what_a_broker_numbers_anew_is_taken_for_new() {
    let s = start(TestIntake::open(), false).await;
    let mut broker = s.first().await;
    broker.send(&s.publish(7, "x")).await;
    broker.expect(&[0x40, 2, 0, 7]).await;
    drop(broker);
    let mut broker = s.accept(true).await;
    broker.send(&s.publish(8, "x")).await;
    broker.expect(&[0x40, 2, 0, 8]).await;
    assert_eq!(s.intake.texts(), ["plant/a x", "plant/a x"]);
}

#[tokio::test]
async fn a_journal_that_takes_no_large_message_makes_it_passed_over() {
    struct Small(Arc<TestIntake>);
    #[async_trait]
    impl Intake for Small {
        async fn offer(&self, messages: MessagesBuilder) -> Result<(), IntakeError> {
            let (bytes, bytes_max) = (messages.data_bytes() as u64, 1 << 20);
            match bytes > bytes_max {
                true => Err(IntakeError::TooLarge { bytes, bytes_max }),
                false => self.0.offer(messages).await,
            }
        }
    }
    let broker = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("mqtt://{}", broker.local_addr().unwrap());
    let subscriber = Subscriber::new(config(url, true)).unwrap();
    let intake = TestIntake::open();
    let stats = Arc::new(SourceStats::default());
    let (stop, stopped) = watch::channel(false);
    let small = Arc::new(Small(intake.clone()));
    let task = Box::new(subscriber).start(small, stopped, stats.clone());
    let s = Running { broker, version5: true, stats, intake, stop, task };
    let mut broker = s.first().await;
    let large = s.publish(1, &"x".repeat(2 << 20));
    broker.send(&large).await;
    broker.expect_closed().await;
    let mut broker = s.accept(true).await;
    broker.send(&large).await;
    broker.expect(&[0x40, 2, 0, 1]).await;
    broker.send(&s.publish(2, "next")).await;
    broker.expect(&[0x40, 2, 0, 2]).await;
    assert_eq!(s.intake.texts(), ["plant/a next"]);
    s.end().await;
}

/// Makes offers durable after a random time, and knows what is.
struct SlowJournal {
    durable: Mutex<HashSet<String>>,
    random: Mutex<u64>,
}

impl SlowJournal {
    /// A number below `n`; the sequence follows from the seed.
    fn random(&self, n: u64) -> u64 {
        let mut state = self.random.lock().unwrap();
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (*state >> 33) % n
    }
}

#[async_trait]
impl Intake for SlowJournal {
    async fn offer(&self, mut messages: MessagesBuilder) -> Result<(), IntakeError> {
        let messages = messages.finish(0, 0);
        sleep(Duration::from_micros(self.random(2_000))).await;
        let mut durable = self.durable.lock().unwrap();
        for i in 0..messages.len() {
            durable.insert(String::from_utf8_lossy(messages.payload(i)).into_owned());
        }
        Ok(())
    }
}

/// Drops per version; `TIDEGATE_DROPS` for more.
fn drops() -> usize {
    std::env::var("TIDEGATE_DROPS").ok().and_then(|n| n.parse().ok()).unwrap_or(150)
}

/// Sends messages and looks at each acknowledgement when it comes; how many came.
async fn exchange(s: &Running, peer: Peer, journal: &SlowJournal, drop: usize, sent: u16) -> usize {
    let (stream, mut acks) = peer.into_parts();
    assert!(acks.is_empty(), "acknowledged before anything was sent: {acks:?}");
    let (mut reader, mut writer) = stream.into_split();
    let until = Instant::now() + Duration::from_micros(2_000 + journal.random(30_000));
    let sending = async {
        for id in 1..=sent {
            let message = s.publish(id, &format!("{drop}-{id}"));
            writer.write_all(&message).await.unwrap();
            if journal.random(4) == 0 {
                sleep(Duration::from_micros(300)).await;
            }
        }
    };
    let reading = async {
        while let Ok(Ok(byte)) = timeout_at(until, reader.read_u8()).await {
            acks.push(byte);
            if let [.., high, low] = acks[..]
                && acks.len().is_multiple_of(4)
            {
                let message = format!("{drop}-{}", u16::from_be_bytes([high, low]));
                assert!(journal.durable.lock().unwrap().contains(&message), "{message}");
            }
        }
        acks.len() / 4
    };
    tokio::join!(sending, reading).1
}

#[tokio::test]
async fn random_drops_with_lost_sessions_never_confirm_what_is_not_durable() {
    for version5 in [false, true] {
        let broker = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("mqtt://{}", broker.local_addr().unwrap());
        let mut subscriber = Subscriber::new(config(url, version5)).unwrap();
        subscriber.pace = Pace { spacing: Duration::ZERO, pause_max: Duration::from_millis(1) };
        let journal = Arc::new(SlowJournal { durable: Mutex::default(), random: Mutex::new(11) });
        let stats = Arc::new(SourceStats::default());
        let (stop, stopped) = watch::channel(false);
        let task = Box::new(subscriber).start(journal.clone(), stopped, stats.clone());
        let s = Running { broker, version5, stats, intake: TestIntake::open(), stop, task };
        let (mut confirmed, mut unconfirmed) = (0, 0);
        for drop in 0..drops() {
            let mut peer = s.accept(false).await;
            s.grant(&mut peer, [1, 1]).await;
            // Ids begin anew on each connection, as at a broker that forgets.
            let sent = 1 + journal.random(30) as u16;
            let acks = exchange(&s, peer, &journal, drop, sent).await;
            confirmed += acks;
            unconfirmed += usize::from(sent) - acks;
        }
        assert!(confirmed > 100 && unconfirmed > 100, "{confirmed} {unconfirmed}");
        assert_eq!(s.get(|s| &s.gaps), drops() as u64 - 1);
        s.end().await;
    }
}

#[tokio::test]
async fn nobody_listens_from_the_start_on_and_since_the_broker_was_last_heard() {
    let s = start(TestIntake::open(), true).await;
    let events = || s.intake.all_session_events();
    // Before any broker has answered.
    eventually(|| events().iter().any(|e| e.event == "starting")).await;
    assert_eq!(events().len(), 1);
    let broker = s.first().await;
    let heard_us = crate::source::now_us();
    sleep(Duration::from_millis(100)).await;
    drop(broker);
    eventually(|| events().iter().any(|e| e.event == "lost")).await;
    let lost = events().into_iter().find(|e| e.event == "lost").unwrap();
    assert!(lost.heard_us > 0 && lost.heard_us <= heard_us, "{lost:?}");
}
