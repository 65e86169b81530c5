//! The replay at a start: from the journal to the workers, and how far it is.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::feed::FeedQueue;
use crate::fault;
use crate::http::Requests;
use crate::journal::{DurableError, Extent, Feed, Replay};

/// How far a replay is; shared by the one who replays and those who look.
#[derive(Debug, Default)]
pub struct Replaying {
    begun: Mutex<Option<Begun>>,
    bytes: AtomicU64,
    messages: AtomicU64,
    epoch: AtomicU64,
    /// What the start waits for after the replay, if it does.
    waits: Mutex<Option<String>>,
}

/// What was known when the first epoch to replay was found.
#[derive(Clone, Copy, Debug)]
struct Begun {
    at: Instant,
    bytes_all: u64,
    messages_all: u64,
}

/// A replay at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Replayed {
    /// Messages so far.
    pub messages: u64,
    /// Messages that there are to replay; where sources were removed, some of them are left out.
    pub messages_all: u64,
    /// Bytes of the journal so far.
    pub bytes: u64,
    /// Bytes of the journal that are to be read.
    pub bytes_all: u64,
    /// The newest epoch that was handed on.
    pub epoch: u64,
    /// Messages per second, since the first one.
    pub messages_per_s: u64,
    /// How long it has taken.
    pub elapsed: Duration,
    /// How long it will take at this rate; `None` before that can be said.
    pub left: Option<Duration>,
}

impl Replayed {
    /// The part of the bytes that was read, 0 to 1.
    pub fn share(&self) -> f64 {
        match self.bytes_all {
            0 => 0.0,
            all => (self.bytes as f64 / all as f64).min(1.0),
        }
    }
}

impl Replaying {
    /// The state of things now; `None` before the first epoch to replay was found.
    pub fn now(&self) -> Option<Replayed> {
        let begun = (*self.begun.lock().unwrap_or_else(PoisonError::into_inner))?;
        Some(self.after(begun, begun.at.elapsed()))
    }

    /// What the start waits for, if it does.
    pub fn waits_for(&self) -> Option<String> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says what the start waits for from now on.
    pub(super) fn wait_for(&self, why: Option<String>) {
        *self.waits.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Before another replay begins.
    pub fn reset(&self) {
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = None;
        for number in [&self.bytes, &self.messages, &self.epoch] {
            number.store(0, Relaxed);
        }
    }

    fn after(&self, begun: Begun, elapsed: Duration) -> Replayed {
        let mut now = Replayed {
            messages: self.messages.load(Relaxed),
            messages_all: begun.messages_all,
            bytes: self.bytes.load(Relaxed),
            bytes_all: begun.bytes_all,
            epoch: self.epoch.load(Relaxed),
            elapsed,
            ..Replayed::default()
        };
        let (seconds, share) = (elapsed.as_secs_f64().max(0.001), now.share());
        now.messages_per_s = (now.messages as f64 / seconds) as u64;
        now.left = (share > 0.0)
            .then(|| Duration::try_from_secs_f64(seconds * (1.0 - share) / share).ok())
            .flatten();
        now
    }

    /// Hands all of a replay to the workers. Blocks on them and on the disk.
    fn run(
        &self,
        mut replay: Replay,
        queue: &mut FeedQueue,
        requests: &Requests,
    ) -> Result<(), DurableError> {
        while let Some(feed) = replay.next() {
            match feed? {
                Feed::Messages(run) => {
                    self.messages.fetch_add(run.len() as u64, Relaxed);
                    requests.note(&run);
                    queue.messages(run);
                }
                Feed::Tick(tick) => {
                    self.epoch.store(tick.epoch, Relaxed);
                    queue.tick(tick);
                }
            }
            fault::point("replay");
            self.note(replay.extent());
        }
        Ok(())
    }

    fn note(&self, extent: Extent) {
        self.bytes.store(extent.bytes, Relaxed);
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(Begun {
            at: Instant::now(),
            bytes_all: extent.bytes_all,
            messages_all: extent.messages_all,
        });
    }
}

/// Hands all of a replay to the workers; what was replayed is in `progress` then.
pub(super) async fn replay_into(
    replay: Replay,
    mut queue: FeedQueue,
    requests: Arc<Requests>,
    progress: Arc<Replaying>,
) -> anyhow::Result<FeedQueue> {
    let work = move || {
        progress.run(replay, &mut queue, &requests)?;
        Ok(queue)
    };
    tokio::task::spawn_blocking(work).await.context("the replay ended")?
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_quarter_in_ten_seconds_leaves_half_a_minute() {
        let progress = Replaying::default();
        assert_eq!(progress.now(), None, "nothing was found yet");
        progress.note(Extent { bytes: 0, bytes_all: 4_000, messages_all: 80 });
        let begun = progress.begun.lock().unwrap().unwrap();
        assert_eq!(progress.after(begun, Duration::ZERO).left, None);
        progress.note(Extent { bytes: 1_000, bytes_all: 4_000, messages_all: 80 });
        progress.messages.store(20, Relaxed);
        let now = progress.after(begun, Duration::from_secs(10));
        assert_eq!((now.share(), now.messages, now.messages_all), (0.25, 20, 80));
        assert_eq!((now.messages_per_s, now.left), (2, Some(Duration::from_secs(30))));
    }
}
