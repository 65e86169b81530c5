//! Journals for the tests of those who examine them.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::join;
use tidegate_operators::{MessageMeta, MessagesBuilder};

use super::super::files::PREFIX;
use super::super::{Feed, FeedSink, Journal, JournalOptions, segment};
use crate::clock::Clock;
use crate::sim::inject::Injected;

/// How long an epoch with messages is.
const EPOCH: Duration = Duration::from_millis(1);

struct Nobody;

impl FeedSink for Nobody {
    fn push(&mut self, _feed: Feed) {}
}

/// Writes a journal with this many offers of one or two messages; of four, the first two share an
/// epoch, the third has its tick in a write of its own, the fourth in the same. Time and chance are
/// simulated: the bytes are the same on every machine. Gives the payloads in order.
pub(crate) fn write_journal(dir: &Path, segment_bytes: u64, offers: usize) -> Vec<String> {
    let (time, _guard) = Injected::install(1, 0, None);
    let options = JournalOptions {
        segment_bytes,
        epoch_interval: EPOCH,
        idle_interval: Duration::from_secs(3600),
        ..JournalOptions::new(dir)
    };
    let names = ["x".to_owned(), "y".to_owned()];
    let (journal, _) = Journal::open(options, Clock::manual(5_000), &names, 0).unwrap();
    let mut writer = journal.start_stepped(Box::new(Nobody));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut payloads = Vec::new();
    for offer in 0..offers {
        let mut builder = MessagesBuilder::default();
        for i in 0..=offer % 2 {
            let payload = format!("payload {offer}/{i}");
            let meta = MessageMeta { received_us: 1_000, qos: 1, ..Default::default() };
            builder.push(b"a/b", payload.as_bytes(), b"client", meta);
            payloads.push(payload);
        }
        if offer % 2 == 1 {
            time.advance(EPOCH);
        }
        let intake = journal.intake(offer % 2);
        let written = async {
            while !writer.write().unwrap().1 {
                tokio::task::yield_now().await;
            }
        };
        runtime.block_on(join(intake.offer(builder), written)).0.unwrap();
        if offer % 4 == 2 {
            time.advance(EPOCH);
            // Nothing if the segment was full: then its epoch has ended with the offer.
            writer.write().unwrap();
        }
    }
    journal.ask_to_stop();
    while writer.write().unwrap().0 {}
    payloads
}

/// The segment files, in order.
pub(crate) fn segments(dir: &Path) -> Vec<PathBuf> {
    segment::list(dir, PREFIX).unwrap().into_iter().map(|(_, path)| path).collect()
}
