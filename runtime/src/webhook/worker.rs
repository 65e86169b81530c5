//! The task that delivers to one target.
//!
//! Invariant: of one key, only the oldest notification is on its way or waiting for its next try;
//! keys do not wait for each other, but for the bound on attempts in flight. What became of an
//! attempt is recorded in the outbox before the next notification of its key is tried.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::target::{Attempt, Endpoint};
use super::{Counters, SenderOptions};
use crate::clock::Clock;
use crate::failing::Failing;
use crate::fault;
use crate::journal::DurableError;
use crate::outbox::{Notification, Outbox};

/// A notification that waits, and how old it is.
struct Waiting {
    item: Arc<Notification>,
    fetched: Instant,
    /// When it was fetched, by the wall clock: it may come from an earlier run.
    age: Duration,
}

impl Waiting {
    fn new(item: Arc<Notification>, now_us: i64) -> Self {
        let age_us = u64::try_from(now_us.saturating_sub(item.created_us)).unwrap_or(0);
        Self { item, fetched: Instant::now(), age: Duration::from_micros(age_us) }
    }

    /// A wall clock that is set meanwhile makes nothing older: what waits would be given up.
    fn age(&self) -> Duration {
        self.age.saturating_add(self.fetched.elapsed())
    }
}

/// The notifications of one key, oldest first.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<Waiting>,
    /// Attempts at the oldest so far.
    attempts: u32,
    /// Why the last one failed.
    reason: String,
}

pub(super) struct Worker {
    pub(super) outbox: Arc<Outbox>,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) options: SenderOptions,
    pub(super) clock: Clock,
    pub(super) counters: Arc<Counters>,
    lanes: HashMap<String, Lane>,
    ready: VecDeque<String>,
    /// Keys whose oldest has to wait, by when it is due; the number makes keys of one time differ.
    delayed: BTreeMap<(Instant, u64), String>,
    delays: u64,
    running: JoinSet<(String, Attempt)>,
    failing: Failing,
}

impl Worker {
    pub(super) fn new(
        outbox: Arc<Outbox>,
        endpoint: Arc<Endpoint>,
        options: SenderOptions,
        clock: Clock,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            outbox,
            endpoint,
            options,
            clock,
            counters,
            lanes: HashMap::new(),
            ready: VecDeque::new(),
            delayed: BTreeMap::new(),
            delays: 0,
            running: JoinSet::new(),
            failing: Failing::default(),
        }
    }

    /// Runs until `stop`, then waits for what is in flight.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let outbox = self.outbox.clone();
        loop {
            // Listening begins before fetching, so that nothing slips between the two.
            let mut news = std::pin::pin!(outbox.news.notified());
            news.as_mut().enable();
            self.fetch();
            self.wake_delayed();
            self.send_ready().await;
            let next = self.delayed.keys().next().map(|(due, _)| *due);
            tokio::select! {
                () = &mut news => {}
                Some(done) = self.running.join_next() => self.finish(done.ok()).await,
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)),
                    if next.is_some() => {}
                _ = stop.changed() => break,
            }
        }
        while let Some(done) = self.running.join_next().await {
            self.finish(done.ok()).await;
        }
    }

    fn fetch(&mut self) {
        let now_us = self.clock.now_us();
        for item in self.outbox.fetch(&self.endpoint.target.name) {
            let key = item.key.clone();
            let lane = self.lanes.entry(key.clone()).or_default();
            if lane.waiting.is_empty() {
                self.ready.push_back(key);
            }
            lane.waiting.push_back(Waiting::new(item, now_us));
            self.counters.pending.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn wake_delayed(&mut self) {
        let now = Instant::now();
        while let Some(first) = self.delayed.first_entry()
            && first.key().0 <= now
        {
            self.ready.push_back(first.remove());
        }
    }

    async fn send_ready(&mut self) {
        while self.running.len() < self.options.in_flight_max
            && let Some(key) = self.ready.pop_front()
        {
            let Some(lane) = self.lanes.get(&key) else { continue };
            let Some(first) = lane.waiting.front() else { continue };
            if first.age() > self.endpoint.target.max_age {
                let reason = format!("older than max_age; last attempt: {}", lane.reason);
                self.settle(key, Attempt::Dead { reason }).await;
                continue;
            }
            let (endpoint, item) = (self.endpoint.clone(), Arc::clone(&first.item));
            let now_us = self.clock.now_us();
            self.running.spawn(async move {
                let attempt = endpoint.attempt(&item, now_us).await;
                (key, attempt)
            });
        }
    }

    async fn finish(&mut self, done: Option<(String, Attempt)>) {
        // `None`: the attempt panicked. Its notification stays pending for the next start.
        if let Some((key, attempt)) = done {
            self.settle(key, attempt).await;
        }
    }

    /// Records what became of the oldest of `key`, and says what is next for the key.
    async fn settle(&mut self, key: String, attempt: Attempt) {
        let Some(lane) = self.lanes.get_mut(&key) else { return };
        let Some(item) = lane.waiting.front().map(|first| Arc::clone(&first.item)) else { return };
        if let Attempt::Retry { reason, after } = attempt {
            lane.attempts += 1;
            lane.reason.clone_from(&reason);
            let pause = pause(&self.options, &item.id, lane.attempts, after);
            if let Some(failed) = self.failing.failed(Instant::now(), &reason) {
                tracing::warn!(
                    target_name = self.endpoint.target.name,
                    id = item.id,
                    reason,
                    ?pause,
                    failed,
                    "webhook not delivered, will be tried again"
                );
            }
            self.counters.retried.fetch_add(1, Ordering::Relaxed);
            self.record(move |outbox| outbox.failed(&item.id, &reason)).await;
            self.delays += 1;
            self.delayed.insert((Instant::now() + pause, self.delays), key);
            return;
        }
        lane.waiting.pop_front();
        lane.attempts = 0;
        lane.reason.clear();
        let more = !lane.waiting.is_empty();
        self.counters.pending.fetch_sub(1, Ordering::Relaxed);
        if let Attempt::Dead { reason } = attempt {
            self.counters.dead.fetch_add(1, Ordering::Relaxed);
            self.record(move |outbox| outbox.dead(&item.id, &reason)).await;
        } else {
            fault::point("webhook_sent");
            if let Some(over) = self.failing.works(Instant::now()) {
                let (failed, lasted_s) = (over.failures, over.lasted.as_secs());
                let target_name = &self.endpoint.target.name;
                tracing::info!(target_name, failed, lasted_s, "webhooks are delivered again");
            }
            self.counters.sent.fetch_add(1, Ordering::Relaxed);
            self.record(move |outbox| outbox.delivered(&item.id)).await;
        }
        if more {
            self.ready.push_back(key);
        } else {
            self.lanes.remove(&key);
        }
    }

    /// Writes to the outbox off the async threads. If it fails, the notification is sent again
    /// after a restart, under the same identifier.
    async fn record(
        &self,
        write: impl FnOnce(&Outbox) -> Result<(), DurableError> + Send + 'static,
    ) {
        let outbox = self.outbox.clone();
        match tokio::task::spawn_blocking(move || write(&outbox)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "cannot write to the outbox"),
            Err(error) => tracing::error!(%error, "writing to the outbox was interrupted"),
        }
    }
}

/// Doubles from attempt to attempt up to the limit, of which half is spread by notification so that
/// a target that comes back is not hit by all at once. What the target asked for is kept, bounded.
fn pause(options: &SenderOptions, id: &str, attempts: u32, after: Option<Duration>) -> Duration {
    let doubled = options.pause_min.saturating_mul(1u32 << attempts.saturating_sub(1).min(20));
    let full = doubled.min(options.pause_max);
    let spread = xxhash_rust::xxh3::xxh3_64_with_seed(id.as_bytes(), attempts.into()) % 1024;
    let own = full / 2 + (full / 2).mul_f64(spread as f64 / 1024.0);
    own.max(after.unwrap_or_default().min(options.retry_after_max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_are_spread_and_bounded() {
        let options = SenderOptions::default();
        for attempts in 1..80 {
            let full = options.pause_min * 2u32.pow((attempts - 1).min(20));
            let full = full.min(options.pause_max);
            let got = pause(&options, "id", attempts, None);
            assert!(got >= full / 2 && got <= full, "{attempts}: {got:?}");
        }
        assert_ne!(pause(&options, "a", 3, None), pause(&options, "b", 3, None));
        let asked = |seconds| pause(&options, "a", 1, Some(Duration::from_secs(seconds)));
        assert_eq!(asked(30), Duration::from_secs(30));
        assert_eq!(asked(10_000_000), options.retry_after_max);
    }
}
