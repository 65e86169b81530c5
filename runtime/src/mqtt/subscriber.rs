//! Takes messages from somebody else's broker, with persistent sessions and acknowledgements of our
//! own.
//!
//! The broker keeps every message until our PUBACK, and PUBACK means "in our journal". A lost
//! connection is made again with growing, jittered pauses for as long as the process runs; what
//! was not acknowledged comes again from the broker and is passed on (with its DUP flag, by which
//! the journal recognises it). A session that the broker has forgotten is subscribed anew at once;
//! the time in which messages may be missing becomes a row of `system.gaps`.
//!
//! A broker that sends a message again under another packet id, or without DUP, breaks the
//! specification: what it sends is taken for new. Where that happens, the key `reading.dedup` of
//! the pipeline tells such readings apart.
//!
//! Several connections are several sessions, each with its own state; the broker deals the messages
//! of a shared subscription out to them. What one of them did not acknowledge it may give to
//! another one, as a new message: there too only `reading.dedup` helps.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::limits::{BACKOFF_MAX, CONNECT_SPACING};
use crate::source::{Intake, Source, SourceError, SourceStats};

mod backoff;
mod config;
pub(crate) mod dial;
mod health;
mod link;
mod memory;
pub(crate) mod packets;
pub(crate) mod reasons;
mod retained;
mod session;
mod subscription;

pub use config::{RetainedPolicy, SubscriberConfig};
use dial::Target;
use health::Health;
use link::Link;

/// A subscriber to an external broker.
pub struct Subscriber {
    name: String,
    config: Arc<SubscriberConfig>,
    target: Arc<Target>,
    pace: Pace,
}

/// How often it is tried to connect.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Least time from one attempt to the next.
    spacing: Duration,
    /// Longest pause between two.
    pause_max: Duration,
}

impl Subscriber {
    /// Checks the settings and reads the certificate files; connects in [`Source::start`].
    ///
    /// # Errors
    /// [`SourceError::Config`] for settings that cannot work, [`SourceError::Io`] if a file of
    /// certificates cannot be read.
    pub fn new(config: SubscriberConfig) -> Result<Self, SourceError> {
        config.check()?;
        let target = Target::new(&config)?;
        let name = format!("subscriber {} on {target}", config.client_id);
        let (config, target) = (Arc::new(config), Arc::new(target));
        let pace = Pace { spacing: CONNECT_SPACING, pause_max: BACKOFF_MAX };
        Ok(Self { name, config, target, pace })
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
    /// Runs all sessions, each in a task of its own.
    async fn run(
        self: Box<Self>,
        intake: Arc<dyn Intake>,
        stop: watch::Receiver<bool>,
        stats: Arc<SourceStats>,
    ) -> Result<(), SourceError> {
        let health = Health::new(self.config.connections, Arc::clone(&stats));
        let mut sessions = JoinSet::new();
        for number in 0..self.config.connections {
            let link = Link {
                source: self.name.clone(),
                config: Arc::clone(&self.config),
                target: Arc::clone(&self.target),
                client_id: self.config.session_name(number),
                number,
                stats: Arc::clone(&stats),
                health: Arc::clone(&health),
                pace: self.pace,
            };
            sessions.spawn(Arc::new(link).run(Arc::clone(&intake), stop.clone()));
        }
        while let Some(ended) = sessions.join_next().await {
            // Only the failure of the journal ends a session by itself, and it ends all of them.
            ended.unwrap_or_else(|gone| std::panic::resume_unwind(gone.into_panic()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
