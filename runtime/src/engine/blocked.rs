//! Tells the journal itself that it has no room, so that what is made of it knows that nothing was
//! heard meanwhile: ticks go on, and who cannot be heard would count as silent. It is told again
//! and again, each time for a while ahead: what a killed process has told is over by itself.

use std::sync::Arc;
use std::time::Duration;

use tidegate_operators::MessagesBuilder;
use tidegate_operators::event::Blocked;

use crate::clock::Clock;
use crate::intake::Intake;
use crate::journal::Journal;

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Room that is missing for less is nothing to tell: it comes with each trimming, microseconds.
const TOLD_AFTER_US: i64 = 500_000;
/// How often it is told: well before the time that was told last is over, microseconds.
const TOLD_EVERY_US: i64 = 5_000_000;
/// For how long ahead, microseconds.
const AHEAD_US: i64 = 3 * TOLD_EVERY_US;

/// What was seen and told.
#[derive(Debug, Default)]
struct Watch {
    /// Since when there is no room, microseconds since the Unix epoch.
    from_us: Option<i64>,
    /// When that was told last, likewise.
    told_us: Option<i64>,
}

impl Watch {
    /// What is to be told now, if anything is.
    fn step(&mut self, now_us: i64, blocked: bool) -> Option<Blocked> {
        let Some(from_us) = self.from_us else {
            self.from_us = blocked.then_some(now_us);
            return None;
        };
        if !blocked {
            self.from_us = None;
            return self.told_us.take().map(|_| Blocked { from_us, to_us: now_us });
        }
        let is_due = match self.told_us {
            Some(told_us) => now_us - told_us >= TOLD_EVERY_US,
            None => now_us - from_us >= TOLD_AFTER_US,
        };
        is_due.then(|| {
            self.told_us = Some(now_us);
            Blocked { from_us, to_us: now_us + AHEAD_US }
        })
    }
}

/// Looks and tells until it is aborted or the journal has ended. `urgent` may use what the journal
/// keeps in reserve.
pub(super) async fn watch(clock: Clock, urgent: Arc<dyn Intake>, journal: Arc<Journal>) {
    let (mut watch, mut turns) = (Watch::default(), tokio::time::interval(LOOK_EVERY));
    loop {
        turns.tick().await;
        let now_us = clock.now_us();
        let journal = journal.stats();
        let blocked = journal.waiting_for_room || journal.waiting_for_memory;
        let Some(blocked) = watch.step(now_us, blocked) else { continue };
        let mut message = MessagesBuilder::default();
        blocked.put(&mut message, now_us);
        if urgent.offer(message).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc;

    use tidegate_operators::MessageMeta;

    use super::*;
    use crate::journal::{Feed, FeedSink, JournalOptions};

    struct Sink(mpsc::Sender<Feed>);

    impl FeedSink for Sink {
        fn push(&mut self, feed: Feed) {
            let _ = self.0.send(feed);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_journal_without_room_says_so_in_itself() {
        let dir = tempfile::tempdir().unwrap();
        let options = JournalOptions { budget_bytes: 256 << 10, ..JournalOptions::new(dir.path()) };
        let (journal, _) = Journal::open(options, Clock::system(), &["x".to_owned()], 0).unwrap();
        let (journal, (sender, receiver)) = (Arc::new(journal), mpsc::channel());
        journal.start(Box::new(Sink(sender))).unwrap();
        let watching = watch(Clock::system(), journal.urgent_intake(), Arc::clone(&journal));
        let watching = tokio::spawn(watching);
        let intake = journal.intake(0);
        let offers = tokio::spawn(async move {
            loop {
                let mut message = MessagesBuilder::default();
                message.push(b"a", &[b'x'; 10_000], b"device", MessageMeta::default());
                if intake.offer(message).await.is_err() {
                    return;
                }
            }
        });
        let told = tokio::task::spawn_blocking(move || {
            receiver.iter().find_map(|feed| match feed {
                Feed::Messages(run) => (0..run.len()).find_map(|i| Blocked::of(&run, i)),
                Feed::Tick(_) => None,
            })
        });
        let told = tokio::time::timeout(Duration::from_secs(30), told).await.unwrap().unwrap();
        let told = told.unwrap();
        assert!(told.from_us > 0 && told.to_us > told.from_us + AHEAD_US, "{told:?}");
        watching.abort();
        journal.shutdown();
        offers.await.unwrap();
    }

    #[test]
    fn no_room_is_told_while_it_lasts_and_a_moment_is_not() {
        let mut watch = Watch::default();
        let mut told = |tenths: i64, blocked| {
            watch.step(tenths * 100_000, blocked).map(|b| (b.from_us / 100_000, b.to_us / 100_000))
        };
        assert_eq!([told(0, false), told(1, true), told(4, true), told(5, false)], [None; 4]);
        assert_eq!([told(10, true), told(14, true)], [None; 2]);
        assert_eq!([told(15, true), told(64, true)], [Some((10, 165)), None], "with time to spare");
        assert_eq!(told(65, true), Some((10, 215)), "the same time, longer");
        assert_eq!([told(70, false), told(72, false)], [Some((10, 70)), None]);
        assert_eq!([told(80, true), told(85, true)], [None, Some((80, 235))]);
    }
}
