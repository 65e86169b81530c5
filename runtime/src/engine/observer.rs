//! What anybody may ask of a running engine at any time without holding it up: counters, and
//! states behind locks that nobody keeps while waiting for something else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::conditions::States;
use super::cuts::Cuts;
use super::sources::SourceState;
use super::tables::{TableState, TablesWatched};
use crate::clock::Clock;
use crate::journal::JournalStats;
use crate::source::{SourceHealth, SourceStats};
use crate::stats::{Snapshot, Stats};
use crate::webhook::{WebhookSender, WebhookStats};

/// See the head of this module. Clones look at the same engine.
#[derive(Clone)]
pub struct Observer {
    pub(super) stats: Arc<Stats>,
    pub(super) live: Option<Arc<Live>>,
}

/// What there is to look at beyond counters, but of files.
pub(super) struct Live {
    pub(super) states: States,
    pub(super) tables: TablesWatched,
    pub(super) webhooks: Arc<WebhookSender>,
    pub(super) cuts: Arc<Cuts>,
    pub(super) clock: Clock,
}

impl Observer {
    /// The counters now.
    pub fn snapshot(&self) -> Snapshot {
        self.refresh();
        self.stats.snapshot()
    }

    /// Brings counters up to date that other parts keep.
    pub(super) fn refresh(&self) {
        let Some(live) = &self.live else { return };
        let stats = &self.stats;
        let sum = |read: &dyn Fn(&SourceStats) -> &AtomicU64| -> u64 {
            live.states.sources.iter().map(|s| read(&s.stats).load(Ordering::Relaxed)).sum()
        };
        Stats::set(&stats.messages_received, sum(&|s| &s.received));
        Stats::set(&stats.messages_acked, sum(&|s| &s.acked));
        Stats::set(&stats.messages_quiet, sum(&|s| &s.quiet));
        Stats::set(&stats.messages_dropped, sum(&|s| &s.denied) + sum(&|s| &s.skipped));
        Stats::set(&stats.connections, sum(&|s| &s.connections));
        let journal = live.states.journal.stats();
        Stats::set(&stats.journal_bytes, journal.bytes_on_disk);
        Stats::set(&stats.journal_behind_bytes, journal.behind_bytes);
        Stats::set(&stats.messages_repeated, journal.repeated);
        // Before the first epoch of a start there is nothing that could be behind.
        let done_us = stats.done_tick_us.load(Ordering::Relaxed);
        let sealed_us = journal.sealed_time_us.max(0).unsigned_abs();
        let lag_us = if done_us == 0 { 0 } else { sealed_us.saturating_sub(done_us) };
        Stats::set(&stats.lag_us, lag_us);
        if let Some(saved_us) = live.cuts.saved_us() {
            let age_us = live.clock.now_us().saturating_sub(saved_us);
            Stats::set(&stats.checkpoint_age_us, age_us.try_into().unwrap_or(0));
        }
        let outbox = &live.states.outbox;
        Stats::set(&stats.outbox_max, outbox.pending_max() as u64);
        Stats::set(&stats.outbox_overflowed, outbox.overflowed());
        let webhooks = live.webhooks.stats();
        let sum = |read: &dyn Fn(&WebhookStats) -> u64| webhooks.iter().map(read).sum();
        Stats::set(&stats.webhooks, sum(&|w| w.sent));
        Stats::set(&stats.webhooks_failed, sum(&|w| w.retried + w.dead));
        Stats::set(&stats.webhooks_pending, sum(&|w| w.pending));
    }

    /// What is wrong at present: the name of the engine's own alert about it, and why.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let Some(live) = &self.live else { return Vec::new() };
        let mut all: Vec<_> =
            live.states.problems().into_iter().map(|(rule, why)| (rule.name(), why)).collect();
        // What the alerts do not know: the journal takes nothing, for another reason.
        if all.is_empty()
            && let Some(why) = live.states.journal.stats().unhealthy
        {
            all.push(("journal_unhealthy", why));
        }
        all
    }

    /// How the journal is doing, where there is one.
    pub(crate) fn journal(&self) -> Option<JournalStats> {
        self.live.as_ref().map(|live| live.states.journal.stats())
    }

    /// The sources.
    pub(crate) fn sources(&self) -> Vec<(String, Arc<SourceStats>)> {
        let sources = self.live.iter().flat_map(|live| &live.states.sources);
        sources.map(|s| (s.name.clone(), Arc::clone(&s.stats))).collect()
    }

    /// How each source is.
    pub(crate) fn source_health(&self) -> Vec<SourceHealth> {
        let sources = self.live.iter().flat_map(|live| &live.states.sources);
        sources.map(SourceState::health).collect()
    }

    /// The tables.
    pub(crate) fn tables(&self) -> Vec<(String, TableState)> {
        self.live.as_ref().map_or_else(Vec::new, |live| live.tables.now(&live.states.tables))
    }

    /// The webhooks.
    pub(crate) fn webhooks(&self) -> Vec<WebhookStats> {
        self.live.as_ref().map_or_else(Vec::new, |live| live.webhooks.stats())
    }
}
