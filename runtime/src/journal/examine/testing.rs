//! Journals for the tests of those who examine them.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate_operators::{MessageMeta, MessagesBuilder};

use super::super::files::PREFIX;
use super::super::{Feed, FeedSink, Journal, JournalOptions, segment};
use crate::clock::Clock;

struct Kept(Arc<Mutex<Vec<Feed>>>);

impl FeedSink for Kept {
    fn push(&mut self, feed: Feed) {
        self.0.lock().unwrap().push(feed);
    }
}

/// Writes a journal with this many offers of one or two messages; each is an epoch of its own or
/// shares one with its neighbour. Gives the payloads in order.
pub(crate) fn write_journal(dir: &Path, segment_bytes: u64, offers: usize) -> Vec<String> {
    let options = JournalOptions {
        segment_bytes,
        epoch_interval: Duration::from_millis(1),
        idle_interval: Duration::from_secs(3600),
        ..JournalOptions::new(dir)
    };
    let names = ["x".to_owned(), "y".to_owned()];
    let (journal, _) = Journal::open(options, Clock::manual(5_000), &names, 0).unwrap();
    let feed = Arc::new(Mutex::new(Vec::new()));
    journal.start(Box::new(Kept(feed.clone()))).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut payloads = Vec::new();
    runtime.block_on(async {
        for offer in 0..offers {
            let mut builder = MessagesBuilder::default();
            for i in 0..=offer % 2 {
                let payload = format!("payload {offer}/{i}");
                let meta = MessageMeta { received_us: 1_000, qos: 1, ..Default::default() };
                builder.push(b"a/b", payload.as_bytes(), b"client", meta);
                payloads.push(payload);
            }
            journal.intake(offer % 2).offer(builder).await.unwrap();
        }
    });
    journal.shutdown();
    payloads
}

/// The segment files, in order.
pub(crate) fn segments(dir: &Path) -> Vec<PathBuf> {
    segment::list(dir, PREFIX).unwrap().into_iter().map(|(_, path)| path).collect()
}
