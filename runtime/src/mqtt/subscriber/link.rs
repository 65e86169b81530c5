//! One session at the broker: connects, serves, and connects again for as long as the process
//! runs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate_operators::MessagesBuilder;
use tidegate_operators::event::SessionEvent;
use tokio::sync::watch;

use super::Pace;
use super::backoff::Backoff;
use super::config::SubscriberConfig;
use super::dial::Target;
use super::health::Health;
use super::memory::Memory;
use super::session::{End, Session};
use crate::mqtt::batcher::Batcher;
use crate::source::{Intake, IntakeError, SourceError, SourceStats, count, now_us, stopped};
use crate::time::{self, sleep};

/// A connection that lasted this long was a good one: the next pause starts small again.
const GOOD_CONNECTION: Duration = Duration::from_secs(1);

/// Least limit for packets that a small journal can bring about.
const PACKET_BYTES_MIN: usize = 256 * 1024;

/// How often something happened since it was told, if that was more than once.
fn often(count: u64) -> String {
    if count > 1 { format!(" ({count} times)") } else { String::new() }
}

/// What does not change while the process runs.
pub(super) struct Link {
    /// Name of the source.
    pub(super) source: String,
    pub(super) config: Arc<SubscriberConfig>,
    pub(super) target: Arc<Target>,
    pub(super) client_id: String,
    /// Number of the session within the source.
    pub(super) number: u16,
    pub(super) stats: Arc<SourceStats>,
    pub(super) health: Arc<Health>,
    pub(super) pace: Pace,
}

impl Link {
    /// An event of this session, complete but for where it goes.
    pub(super) fn event(&self, event: &str, detail: &str) -> SessionEvent {
        SessionEvent {
            source: self.source.clone(),
            client_id: self.client_id.clone(),
            user: self.config.user.clone().unwrap_or_default(),
            event: event.to_owned(),
            detail: detail.to_owned(),
            address: self.target.to_string(),
            protocol: self.config.protocol().to_owned(),
            fresh: false,
            heard_us: 0,
        }
    }

    pub(super) async fn run(
        self: Arc<Self>,
        intake: Arc<dyn Intake>,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), SourceError> {
        let state = self.config.state.as_deref();
        let mut memory =
            Memory::open(state, &self.config.url, &self.client_id).await.map_err(|error| {
                SourceError::Io { what: "the state of a session".to_owned(), error }
            })?;
        let mut backoff = Backoff::new();
        let mut outage = String::new();
        // From here on until it is connected nobody listens, also if no broker ever answers.
        let mut ended = self.tell("starting", "", &intake, &mut stop).await;
        loop {
            let begin = time::now();
            let end = match ended.take() {
                Some(end) => end,
                None => self.connect_once(&mut memory, &intake, &mut stop, &mut outage).await,
            };
            match end {
                End::Stopped => {
                    self.health.ill(self.number, "stopped");
                    return Ok(());
                }
                End::Failed(error) => {
                    self.health.ill(self.number, &error.to_string());
                    return Err(error.into());
                }
                End::Lost(text) => {
                    if let Some(failed) = self.health.failed(self.number, &text) {
                        tracing::warn!(
                            "{} {}: {text}{}",
                            self.source,
                            self.client_id,
                            often(failed)
                        );
                    }
                }
            }
            if time::now() - begin >= GOOD_CONNECTION && outage.is_empty() {
                backoff = Backoff::new();
            }
            let pause = backoff.next_pause().min(self.pace.pause_max);
            let pause = pause.max(self.pace.spacing.saturating_sub(time::now() - begin));
            tokio::select! {
                biased;
                () = stopped(&mut stop) => {
                    self.health.ill(self.number, "stopped");
                    return Ok(());
                }
                () = sleep(pause) => {}
            }
        }
    }

    /// Connects, serves the connection to its end, and says how it ended. `outage` is why there
    /// was no connection the last time.
    async fn connect_once(
        self: &Arc<Self>,
        memory: &mut Memory,
        intake: &Arc<dyn Intake>,
        stop: &mut watch::Receiver<bool>,
        outage: &mut String,
    ) -> End {
        let opening = tokio::select! {
            biased;
            () = stopped(stop) => return End::Stopped,
            opening = Session::open(self, intake) => opening,
        };
        let (mut session, accepted) = match opening {
            Ok(opened) => opened,
            Err(text) => {
                // One row per outage and reason, not per attempt.
                if *outage != text {
                    outage.clone_from(&text);
                    if let Some(end) = self.tell("refused", &text, intake, stop).await {
                        return end;
                    }
                }
                return End::Lost(text);
            }
        };
        outage.clear();
        count(&self.stats.connections, 1);
        count(&self.stats.connections_total, 1);
        if memory.last_heard_us().is_some() {
            count(&self.stats.reconnects, 1);
        }
        if !accepted.session_present
            && let Some(since) = memory.forget_session()
        {
            self.note_lost_session(since);
        }
        session.greet(&accepted);
        memory.heard(now_us());
        let mut end = session.run(memory, stop).await;
        match end {
            End::Failed(IntakeError::TooLarge { bytes_max, .. })
                if self.narrow(memory, bytes_max) =>
            {
                memory.forget_after(session.durable());
                end = End::Lost(format!("the journal takes at most {bytes_max} bytes at a time"));
            }
            End::Lost(_) => memory.retained.all_durable(),
            End::Stopped | End::Failed(_) => {}
        }
        memory.save(session.durable()).await;
        self.stats.connections.fetch_sub(1, Ordering::Relaxed);
        end
    }

    /// The session works: it is connected, and the broker granted every filter.
    pub(super) fn well(&self) {
        if let Some(over) = self.health.well(self.number) {
            let (failed, lasted_s) = (over.failures, over.lasted.as_secs());
            tracing::info!(failed, lasted_s, "{}: works again", self.source);
        }
    }

    /// The broker refuses filters; it is asked again.
    pub(super) fn refused(&self, text: &str) {
        if let Some(failed) = self.health.failed(self.number, text) {
            tracing::error!("{}: {text}; asking again{}", self.source, often(failed));
        }
    }

    /// Takes what comes in this session.
    pub(super) fn batcher(&self, intake: &Arc<dyn Intake>) -> Batcher {
        let batcher = Batcher::new(Arc::clone(intake), Arc::default());
        batcher.in_session(self.number).counting(&self.stats)
    }

    /// What the journal refuses must be passed over from now on, or it would come for ever.
    fn narrow(&self, memory: &mut Memory, journal_bytes_max: u64) -> bool {
        let limit = usize::try_from(journal_bytes_max / 2).unwrap_or(usize::MAX);
        let narrower = limit < memory.packet_bytes_max && limit >= PACKET_BYTES_MIN;
        if narrower {
            memory.packet_bytes_max = limit;
        }
        narrower
    }

    /// Journals one event outside of a connection.
    async fn tell(
        &self,
        event: &str,
        detail: &str,
        intake: &Arc<dyn Intake>,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<End> {
        let mut messages = MessagesBuilder::default();
        self.event(event, detail).put(&mut messages, now_us(), self.number);
        tokio::select! {
            biased;
            () = stopped(stop) => Some(End::Stopped),
            offered = intake.offer(messages) => offered.err().map(End::Failed),
        }
    }

    /// The broker has forgotten what it had promised to keep.
    fn note_lost_session(&self, since_us: i64) {
        count(&self.stats.gaps, 1);
        let time = |us| chrono::DateTime::from_timestamp_micros(us).unwrap_or_default();
        let text = format!(
            "the broker has no session {} of ours any more: messages published between {} and {} \
             may be missing",
            self.client_id,
            time(since_us).to_rfc3339(),
            time(now_us()).to_rfc3339(),
        );
        tracing::error!("{}: {text}", self.source);
        self.stats.note_error(text);
    }
}
