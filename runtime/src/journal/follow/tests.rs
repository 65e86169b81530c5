//! A slow dataflow gets everything once and in order, and the sources do not notice it.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use tidegate_operators::{MessageMeta, MessagesBuilder, Tick};
use tokio::runtime::Runtime;

use super::*;
use crate::clock::Clock;
use crate::intake::Intake;
use crate::journal::{Journal, JournalOptions};

/// Hands feeds to the test, which takes them when it likes.
struct Rendezvous(mpsc::SyncSender<Feed>);

impl FeedSink for Rendezvous {
    fn push(&mut self, feed: Feed) {
        let _ = self.0.send(feed);
    }
}

const QUEUE_BYTES: usize = 1 << 20;

fn journal(dir: &Path) -> Journal {
    let options = JournalOptions {
        segment_bytes: 64 << 10,
        feed_bytes_max: QUEUE_BYTES,
        epoch_interval: Duration::from_millis(1),
        idle_interval: Duration::from_millis(5),
        ..JournalOptions::new(dir)
    };
    Journal::open(options, Clock::system(), &["s".to_owned()], 0).unwrap().0
}

async fn offer(intake: &dyn Intake, number: u64, bytes: usize) {
    let mut out = MessagesBuilder::default();
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(bytes, b'x');
    out.push(b"t", &payload, b"", MessageMeta::default());
    intake.offer(out).await.unwrap();
}

/// Takes feeds until message `last` was seen; checks that nothing is missing, doubled or displaced.
fn take(feeds: &mpsc::Receiver<Feed>, next: &mut u64, epoch: &mut Epoch, last: u64) {
    while *next <= last {
        match feeds.recv_timeout(Duration::from_secs(60)).expect("feeds go on") {
            Feed::Messages(messages) => {
                for i in 0..messages.len() {
                    let number = u64::from_le_bytes(*messages.payload(i).first_chunk().unwrap());
                    assert_eq!((number, messages.first_offset + i as u64), (*next, *next));
                    *next += 1;
                }
            }
            Feed::Tick(tick) => {
                assert_eq!(tick.epoch, *epoch + 1);
                *epoch = tick.epoch;
            }
        }
    }
}

#[test]
fn a_stuck_dataflow_does_not_hold_sources_back_and_catches_up() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal(dir.path());
    let (sender, feeds) = mpsc::sync_channel(0);
    journal.start(Box::new(Rendezvous(sender))).unwrap();
    let (intake, runtime) = (journal.intake(0), Runtime::new().unwrap());
    let (mut next, mut epoch, mut sent) = (0, 0, 0);
    // Twice over what memory takes, then slowly on while it catches up, and once more.
    for _ in 0..2 {
        let bytes = 16 << 10;
        for _ in 0..2 * QUEUE_BYTES / bytes {
            runtime.block_on(offer(&*intake, sent, bytes));
            sent += 1;
        }
        assert!(journal.stats().behind_bytes > QUEUE_BYTES as u64 / 2, "on disk only");
        for _ in 0..50 {
            take(&feeds, &mut next, &mut epoch, sent / 2);
            runtime.block_on(offer(&*intake, sent, 10));
            sent += 1;
        }
        take(&feeds, &mut next, &mut epoch, sent - 1);
        while journal.stats().behind_bytes > 0 {
            let Feed::Tick(Tick { epoch: idle, .. }) = feeds.recv().unwrap() else {
                panic!("nothing was offered");
            };
            epoch = idle;
        }
    }
    drop(feeds);
    journal.shutdown();
}

#[test]
fn what_the_dataflow_has_taken_waits_no_more_although_no_tick_comes() {
    let dir = tempfile::tempdir().unwrap();
    let options = JournalOptions {
        epoch_interval: Duration::from_millis(1),
        idle_interval: Duration::from_secs(3600),
        ..JournalOptions::new(dir.path())
    };
    let names = ["s".to_owned()];
    let (journal, _) = Journal::open(options, Clock::system(), &names, 0).unwrap();
    let (sender, feeds) = mpsc::sync_channel(0);
    journal.start(Box::new(Rendezvous(sender))).unwrap();
    let (intake, runtime) = (journal.intake(0), Runtime::new().unwrap());
    let until = |wanted: &dyn Fn(u64) -> bool| {
        let begun = std::time::Instant::now();
        while !wanted(journal.stats().queued_bytes) {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", journal.stats());
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    // The first one is being handed on, the second one waits.
    for number in 0..2 {
        runtime.block_on(offer(&*intake, number, 1000));
    }
    until(&|queued| queued >= 1000);
    let taker = std::thread::spawn(move || feeds.iter().count());
    until(&|queued| queued == 0);
    journal.shutdown();
    drop(journal);
    assert!(taker.join().unwrap() >= 3);
}

#[test]
fn what_is_only_on_disk_at_the_end_is_left_to_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let stuck = journal(dir.path());
    let (sender, feeds) = mpsc::sync_channel(0);
    stuck.start(Box::new(Rendezvous(sender))).unwrap();
    let (intake, runtime) = (stuck.intake(0), Runtime::new().unwrap());
    let bytes = 32 << 10;
    let count = 3 * (QUEUE_BYTES / bytes) as u64;
    for number in 0..count {
        runtime.block_on(offer(&*intake, number, bytes));
    }
    let taker = std::thread::spawn(move || feeds.iter().count());
    stuck.shutdown();
    drop(stuck);
    taker.join().unwrap();
    let options = JournalOptions::new(dir.path());
    let (_journal, replay) = Journal::open(options, Clock::system(), &["s".to_owned()], 0).unwrap();
    let messages: usize = replay
        .map(|feed| match feed.unwrap() {
            Feed::Messages(messages) => messages.len(),
            Feed::Tick(_) => 0,
        })
        .sum();
    assert_eq!(messages as u64, count);
}

#[test]
fn damage_that_is_found_while_reading_back_is_fatal() {
    let dir = tempfile::tempdir().unwrap();
    let (told, fatal) = mpsc::channel();
    let told = Mutex::new(told);
    let options = JournalOptions {
        segment_bytes: 64 << 10,
        feed_bytes_max: QUEUE_BYTES,
        epoch_interval: Duration::from_millis(1),
        on_fatal: Some(Arc::new(move |why| told.lock().unwrap().send(why.to_owned()).unwrap())),
        ..JournalOptions::new(dir.path())
    };
    let (journal, _) = Journal::open(options, Clock::system(), &["s".to_owned()], 0).unwrap();
    let (sender, feeds) = mpsc::sync_channel(0);
    journal.start(Box::new(Rendezvous(sender))).unwrap();
    let (intake, runtime) = (journal.intake(0), Runtime::new().unwrap());
    for number in 0..100 {
        runtime.block_on(offer(&*intake, number, 32 << 10));
    }
    // In the middle of what is only on disk.
    let segments = crate::journal::segment::list(dir.path(), "journal").unwrap();
    let path = &segments[segments.len() - 3].1;
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
    let taker = std::thread::spawn(move || feeds.iter().count());
    let why = fatal.recv_timeout(Duration::from_secs(60)).expect("it is told");
    assert!(why.contains(&path.display().to_string()), "{why}");
    journal.shutdown();
    drop(journal);
    taker.join().unwrap();
}
