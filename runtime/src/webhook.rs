//! Webhooks: delivers what is in the outbox, by Standard Webhooks, to the configured targets.
//!
//! Invariant: each notification is tried until its target took it (2xx), refused it for good (other
//! 4xx, 3xx), or it is older than the target's `max_age`; always under the same `webhook-id`. At
//! least once: a receiver drops repeated identifiers. No redirect and no proxy is followed, and
//! private addresses are reached only where that is allowed.

mod address;
mod target;
mod worker;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::target::Endpoint;
pub use self::target::{WebhookError, WebhookTarget};
use self::worker::Worker;
use crate::clock::Clock;
use crate::outbox::Outbox;

/// How soon a wish to send something again is noticed.
const REQUESTS_EVERY: Duration = Duration::from_millis(500);

/// How the sender behaves towards all targets.
#[derive(Clone, Debug)]
pub struct SenderOptions {
    /// Attempts in flight per target.
    pub in_flight_max: usize,
    /// Pause after the first failed attempt; doubles from then on.
    pub pause_min: Duration,
    /// Longest pause of our own.
    pub pause_max: Duration,
    /// Longest pause that a target can ask for.
    pub retry_after_max: Duration,
}

impl Default for SenderOptions {
    fn default() -> Self {
        Self {
            in_flight_max: 8,
            pause_min: Duration::from_millis(500),
            pause_max: Duration::from_secs(60),
            retry_after_max: Duration::from_secs(3600),
        }
    }
}

/// Counts of one target.
#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    retried: AtomicU64,
    dead: AtomicU64,
    pending: AtomicU64,
}

/// Targets by name.
type Counted = Vec<(String, Arc<Counters>)>;

/// How one target is doing, since the start of the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebhookStats {
    /// The target.
    pub name: String,
    /// Delivered.
    pub sent: u64,
    /// Attempts that failed and were or will be repeated.
    pub retried: u64,
    /// Given up.
    pub dead: u64,
    /// Not yet delivered.
    pub pending: u64,
}

/// The counters of all targets, to look at while senders work.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watched(Arc<Mutex<Counted>>);

impl Watched {
    /// The targets of a sender as well.
    pub(crate) fn add(&self, sender: &WebhookSender) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(sender.counters.iter().cloned());
    }

    /// How each target is doing.
    pub(crate) fn stats(&self) -> Vec<WebhookStats> {
        stats(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn stats(counters: &[(String, Arc<Counters>)]) -> Vec<WebhookStats> {
    let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
    counters
        .iter()
        .map(|(name, counters)| WebhookStats {
            name: name.clone(),
            sent: get(&counters.sent),
            retried: get(&counters.retried),
            dead: get(&counters.dead),
            pending: get(&counters.pending),
        })
        .collect()
}

/// The running senders.
pub struct WebhookSender {
    counters: Counted,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl WebhookSender {
    /// Starts one task per target on the current tokio runtime. Notifications in the outbox for
    /// targets that are not configured any more are given up.
    ///
    /// # Errors
    /// A target with an invalid URL or secret, or two of one name. Private literal addresses are no
    /// error here (see [`WebhookTarget::check`]): what is sent to them is given up with that
    /// reason.
    pub fn start(
        outbox: Arc<Outbox>,
        targets: Vec<WebhookTarget>,
        options: SenderOptions,
        clock: Clock,
    ) -> Result<Self, WebhookError> {
        let mut endpoints = Vec::new();
        let mut names = HashSet::new();
        for target in targets {
            if !names.insert(target.name.clone()) {
                let problem = "there are two targets of this name".into();
                return Err(WebhookError { name: target.name, problem });
            }
            endpoints.push(Arc::new(Endpoint::new(target)?));
        }
        for gone in outbox.fresh_targets().into_iter().filter(|name| !names.contains(name)) {
            for item in outbox.fetch(&gone) {
                if let Err(error) = outbox.dead(&item.id, "its target is not configured any more") {
                    tracing::error!(%error, "cannot write to the outbox");
                }
            }
        }
        Ok(Self::run(outbox, endpoints, options, clock))
    }

    /// The same for targets that come later: those that are not among them are left alone.
    ///
    /// # Errors
    /// As [`WebhookSender::start`].
    pub fn start_more(
        outbox: Arc<Outbox>,
        targets: Vec<WebhookTarget>,
        options: SenderOptions,
        clock: Clock,
    ) -> Result<Self, WebhookError> {
        let endpoints = targets.into_iter().map(|target| Endpoint::new(target).map(Arc::new));
        Ok(Self::run(outbox, endpoints.collect::<Result<_, _>>()?, options, clock))
    }

    fn run(
        outbox: Arc<Outbox>,
        endpoints: Vec<Arc<Endpoint>>,
        options: SenderOptions,
        clock: Clock,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut sender = Self { counters: Vec::new(), stop, tasks: Vec::new() };
        let listening = requests(outbox.clone(), clock.clone(), stopped.clone());
        sender.tasks.push(tokio::spawn(listening));
        for endpoint in endpoints {
            let counters = Arc::new(Counters::default());
            sender.counters.push((endpoint.target.name.clone(), counters.clone()));
            let worker =
                Worker::new(outbox.clone(), endpoint, options.clone(), clock.clone(), counters);
            sender.tasks.push(tokio::spawn(worker.run(stopped.clone())));
        }
        sender
    }

    /// How each target is doing.
    pub fn stats(&self) -> Vec<WebhookStats> {
        stats(&self.counters)
    }

    /// Stops: attempts in flight may end, for at most `at_most`. What is pending stays in the
    /// outbox for the next start.
    pub async fn shutdown(mut self, at_most: Duration) {
        self.stop.send_replace(true);
        let end = tokio::time::Instant::now() + at_most;
        for mut task in std::mem::take(&mut self.tasks) {
            if tokio::time::timeout_at(end, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

/// Looks again and again whether somebody wants dead letters to be sent again.
async fn requests(outbox: Arc<Outbox>, clock: Clock, mut stop: watch::Receiver<bool>) {
    loop {
        let (outbox, now_us) = (outbox.clone(), clock.now_us());
        match tokio::task::spawn_blocking(move || outbox.take_requests(now_us)).await {
            Ok(Ok(0)) => {}
            Ok(Ok(count)) => tracing::info!(count, "notifications are sent again, as asked for"),
            Ok(Err(error)) => tracing::error!(%error, "cannot do what the outbox was asked for"),
            Err(error) => tracing::error!(%error, "looking for requests was interrupted"),
        }
        tokio::select! {
            () = tokio::time::sleep(REQUESTS_EVERY) => {}
            _ = stop.changed() => return,
        }
    }
}

#[cfg(test)]
mod tests;
