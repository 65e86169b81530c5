//! Takes messages from somebody else's broker, with a persistent session and manual
//! acknowledgements.
//!
//! The broker keeps every message until our PUBACK, and PUBACK means "in our journal". A lost
//! connection is made again with growing, jittered pauses for as long as the process runs; what
//! was not acknowledged comes again from the broker and is passed on (with its DUP flag). A session
//! that the broker has forgotten is subscribed anew, counted as a gap, and logged with its times.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::wire::Version;
use crate::source::{Intake, Source, SourceError, SourceStats, count, now_us, stopped};

mod backoff;
mod dial;
mod packets;
mod session;

use backoff::Backoff;
use dial::Target;
use session::{End, Session};

/// A connection that lasted this long was a good one: the next pause starts small again.
const GOOD_CONNECTION: Duration = Duration::from_secs(5);

/// Settings of a [`Subscriber`].
#[derive(Clone)]
pub struct SubscriberConfig {
    /// `mqtt://host[:1883]` or `mqtts://host[:8883]` (TLS).
    pub url: String,
    /// Topic filters to subscribe to.
    pub filters: Vec<String>,
    /// Highest quality of service to ask for: 0 or 1.
    pub qos: u8,
    /// The name of the session on the broker: stable over restarts, used by nobody else.
    pub client_id: String,
    /// MQTT 5; or else 3.1.1.
    pub version5: bool,
    /// User name, if the broker wants one.
    pub user: Option<String>,
    /// Password, if the broker wants one.
    pub password: Option<String>,
    /// PEM file of the certificate authorities to trust instead of those of the system.
    pub ca_file: Option<PathBuf>,
    /// MQTT 5: how long the broker keeps the session while we are away, seconds.
    pub session_expiry_s: u32,
}

impl fmt::Debug for SubscriberConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `check` refuses credentials in the URL, but this may be printed before.
        let url = self.url.rsplit_once('@').map_or(self.url.as_str(), |(_, host)| host);
        f.debug_struct("SubscriberConfig")
            .field("url", &url)
            .field("filters", &self.filters)
            .field("qos", &self.qos)
            .field("client_id", &self.client_id)
            .field("version5", &self.version5)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("ca_file", &self.ca_file)
            .field("session_expiry_s", &self.session_expiry_s)
            .finish()
    }
}

impl SubscriberConfig {
    fn version(&self) -> Version {
        if self.version5 { Version::V5 } else { Version::V3 }
    }

    fn check(&self) -> Result<(), SourceError> {
        let bad = |text: String| Err(SourceError::Config(text));
        if self.qos > 1 {
            return bad("`qos` must be 0 or 1: the journal makes 1 exact enough".to_owned());
        }
        if self.client_id.is_empty() {
            return bad("`client_id` must not be empty: it names the session to resume".to_owned());
        }
        if self.filters.is_empty() {
            return bad("`topics` must name at least one topic".to_owned());
        }
        for filter in &self.filters {
            if !rumqttc_v4::mqttbytes::valid_filter(filter) || filter.contains('\0') {
                return bad(format!("`{filter}` is not a topic filter"));
            }
        }
        if self.password.is_some() && self.user.is_none() && !self.version5 {
            return bad("MQTT 3.1.1 has no password without a `user`".to_owned());
        }
        Ok(())
    }
}

/// What of a session outlives its connections.
#[derive(Debug, Default)]
struct Memory {
    /// The broker has granted all filters, in the session that it still had when last heard of.
    subscribed: bool,
    /// QoS 2: packet ids that the broker has not released. At most 65,535.
    exactly_once: HashSet<u16>,
    /// When the broker was last heard, microseconds since the epoch; `None` before the first
    /// connection.
    last_heard_us: Option<i64>,
}

/// A subscriber to an external broker.
pub struct Subscriber {
    name: String,
    config: SubscriberConfig,
    target: Target,
}

impl Subscriber {
    /// Checks the settings and reads the certificate file; connects in [`Source::start`].
    ///
    /// # Errors
    /// [`SourceError::Config`] for settings that cannot work, [`SourceError::Io`] if `ca_file`
    /// cannot be read.
    pub fn new(config: SubscriberConfig) -> Result<Self, SourceError> {
        config.check()?;
        let target = Target::new(&config.url, config.ca_file.as_deref())?;
        let name = format!("subscriber {} on {target}", config.client_id);
        Ok(Self { name, config, target })
    }
}

impl Source for Subscriber {
    fn name(&self) -> &str {
        &self.name
    }

    fn start(
        self: Box<Self>,
        intake: Arc<dyn Intake>,
        stop: watch::Receiver<bool>,
        stats: Arc<SourceStats>,
    ) -> JoinHandle<Result<(), SourceError>> {
        tokio::spawn(self.run(intake, stop, stats))
    }
}

impl Subscriber {
    async fn run(
        self: Box<Self>,
        intake: Arc<dyn Intake>,
        mut stop: watch::Receiver<bool>,
        stats: Arc<SourceStats>,
    ) -> Result<(), SourceError> {
        let mut memory = Memory::default();
        let mut backoff = Backoff::new();
        loop {
            let begin = Instant::now();
            let end = self.connect_once(&mut memory, &intake, &mut stop, &stats).await;
            match end {
                End::Stopped => {
                    stats.set_unhealthy("stopped");
                    return Ok(());
                }
                End::Failed(error) => {
                    stats.set_unhealthy(error.to_string());
                    return Err(error.into());
                }
                End::Lost(text) => {
                    tracing::warn!("{}: {text}", self.name);
                    stats.set_unhealthy(text);
                }
            }
            if begin.elapsed() >= GOOD_CONNECTION {
                backoff = Backoff::new();
            }
            let pause = backoff.next_pause();
            tokio::select! {
                () = stopped(&mut stop) => {
                    stats.set_unhealthy("stopped");
                    return Ok(());
                }
                () = sleep(pause) => {}
            }
        }
    }

    /// Connects, serves the connection to its end, and says how it ended.
    async fn connect_once(
        &self,
        memory: &mut Memory,
        intake: &Arc<dyn Intake>,
        stop: &mut watch::Receiver<bool>,
        stats: &Arc<SourceStats>,
    ) -> End {
        let opening = tokio::select! {
            () = stopped(stop) => return End::Stopped,
            opening = Session::open(&self.target, &self.config, intake, stats) => opening,
        };
        let (mut session, session_present) = match opening {
            Ok(opened) => opened,
            Err(text) => return End::Lost(text),
        };
        count(&stats.connections, 1);
        count(&stats.connections_total, 1);
        if memory.last_heard_us.is_some() {
            count(&stats.reconnects, 1);
        }
        if !session_present {
            self.note_new_session(memory, stats);
        }
        memory.last_heard_us = Some(now_us());
        let end = session.run(&self.config, memory, stop).await;
        stats.connections.fetch_sub(1, Ordering::Relaxed);
        end
    }

    /// The broker has no session of ours: normal at first, a possible loss later.
    fn note_new_session(&self, memory: &mut Memory, stats: &SourceStats) {
        memory.subscribed = false;
        memory.exactly_once.clear();
        if let Some(last_us) = memory.last_heard_us {
            count(&stats.gaps, 1);
            let from = chrono::DateTime::from_timestamp_micros(last_us).unwrap_or_default();
            let to = chrono::DateTime::from_timestamp_micros(now_us()).unwrap_or_default();
            let text = format!(
                "the broker has forgotten our session: messages published between {} and {} may \
                 be missing",
                from.to_rfc3339(),
                to.to_rfc3339(),
            );
            tracing::error!("{}: {text}", self.name);
            stats.note_error(text);
        }
    }
}

#[cfg(test)]
mod tests;
