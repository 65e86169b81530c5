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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::target::Endpoint;
pub use self::target::{WebhookError, WebhookTarget};
pub(crate) use self::target::{retry_after, text_of};
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

/// One target at work.
struct Running {
    endpoint: Arc<Endpoint>,
    counters: Arc<Counters>,
    stop: watch::Sender<bool>,
    /// `None` after the end: then only its counts are of interest.
    task: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct All {
    running: Vec<Running>,
    ended: bool,
}

/// The running senders: one task per target, of which there are never two with one name.
pub struct WebhookSender {
    outbox: Arc<Outbox>,
    options: SenderOptions,
    clock: Clock,
    runtime: Handle,
    all: Mutex<All>,
    stop: watch::Sender<bool>,
    listening: Mutex<Option<JoinHandle<()>>>,
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
        let endpoints = checked(targets)?;
        let names: HashSet<&String> = endpoints.iter().map(|e| &e.target.name).collect();
        for gone in outbox.fresh_targets().into_iter().filter(|name| !names.contains(name)) {
            for item in outbox.fetch(&gone) {
                if let Err(error) = outbox.dead(&item.id, "its target is not configured any more") {
                    tracing::error!(%error, "cannot write to the outbox");
                }
            }
        }
        let (stop, stopped) = watch::channel(false);
        let runtime = Handle::current();
        let listening = runtime.spawn(requests(outbox.clone(), clock.clone(), stopped));
        let (all, listening) = (Mutex::default(), Mutex::new(Some(listening)));
        let sender = Self { outbox, options, clock, runtime, all, stop, listening };
        sender.run_all(endpoints);
        Ok(sender)
    }

    /// These are the targets from now on: starts those that do not run, and puts others in the
    /// place of those whose settings have changed. Who is replaced ends its attempts first; what it
    /// has not delivered goes to the new one. Those that are not among them go on, because the last
    /// of what is for them may be still to come.
    ///
    /// # Errors
    /// As [`WebhookSender::start`]; then nothing was changed.
    pub fn follow(&self, targets: Vec<WebhookTarget>) -> Result<(), WebhookError> {
        self.run_all(checked(targets)?);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_all(&self, endpoints: Vec<Arc<Endpoint>>) {
        let mut all = self.lock();
        if all.ended {
            return;
        }
        let running = &mut all.running;
        for endpoint in endpoints {
            let name = &endpoint.target.name;
            match running.iter().position(|r| r.endpoint.target.name == *name) {
                None => running.push(self.run(endpoint, Arc::default(), None)),
                Some(at) if running[at].endpoint.target == endpoint.target => {}
                Some(at) => {
                    let before = running.remove(at);
                    let counters = Arc::clone(&before.counters);
                    running.insert(at, self.run(endpoint, counters, Some(before)));
                }
            }
        }
    }

    fn run(
        &self,
        endpoint: Arc<Endpoint>,
        counters: Arc<Counters>,
        before: Option<Running>,
    ) -> Running {
        let (stop, stopped) = watch::channel(false);
        let worker = Worker::new(
            self.outbox.clone(),
            endpoint.clone(),
            self.options.clone(),
            self.clock.clone(),
            counters.clone(),
        );
        let (outbox, name, count) =
            (self.outbox.clone(), endpoint.target.name.clone(), counters.clone());
        let task = self.runtime.spawn(async move {
            if let Some(Running { stop, task: Some(task), .. }) = before {
                stop.send_replace(true);
                // If it panicked, what it left behind is taken over all the more.
                let _ = task.await;
                count.pending.store(0, Ordering::Relaxed);
                outbox.release(&name);
            }
            worker.run(stopped).await;
        });
        Running { endpoint, counters, stop, task: Some(task) }
    }

    /// How each target is doing.
    pub fn stats(&self) -> Vec<WebhookStats> {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let of = |running: &Running| WebhookStats {
            name: running.endpoint.target.name.clone(),
            sent: get(&running.counters.sent),
            retried: get(&running.counters.retried),
            dead: get(&running.counters.dead),
            pending: get(&running.counters.pending),
        };
        self.lock().running.iter().map(of).collect()
    }

    /// Stops: attempts in flight may end, for at most `at_most`. What is pending stays in the
    /// outbox for the next start.
    pub async fn shutdown(&self, at_most: Duration) {
        self.stop.send_replace(true);
        let mut tasks = Vec::new();
        {
            let mut all = self.lock();
            all.ended = true;
            for one in &mut all.running {
                one.stop.send_replace(true);
                tasks.extend(one.task.take());
            }
        }
        let listening = self.listening.lock().unwrap_or_else(PoisonError::into_inner).take();
        let end = tokio::time::Instant::now() + at_most;
        for mut task in tasks.into_iter().chain(listening) {
            if tokio::time::timeout_at(end, &mut task).await.is_err() {
                task.abort();
                // Until then it may hold the outbox.
                let _ = task.await;
            }
        }
    }
}

/// What can be sent to, of targets with names of their own.
fn checked(targets: Vec<WebhookTarget>) -> Result<Vec<Arc<Endpoint>>, WebhookError> {
    let mut names = HashSet::new();
    let mut endpoints = Vec::new();
    for target in targets {
        if !names.insert(target.name.clone()) {
            let problem = "there are two targets of this name".into();
            return Err(WebhookError { name: target.name, problem });
        }
        endpoints.push(Arc::new(Endpoint::new(target)?));
    }
    Ok(endpoints)
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
