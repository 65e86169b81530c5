//! When the engine has something to say about itself: what its parts report, as conditions of
//! [`super::alarms`]. This file must not decide how long a condition has to hold.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::alarms::{Alarms, Conditions as Holding, Rule};
use super::tables::TableTroubles;
use crate::clock::Clock;
use crate::journal::Journal;
use crate::outbox::Outbox;
use crate::source::SourceStats;
use crate::stats::Stats;

/// What is asked besides the journal: sources, tables, notifications, counters.
pub(super) type About = (Vec<(String, Arc<SourceStats>)>, TableTroubles, Arc<Outbox>, Arc<Stats>);

/// Watches all of it and tells what changes to the journal.
pub(super) fn watch(
    data: &Path,
    clock: Clock,
    journal: &Arc<Journal>,
    (sources, tables, outbox, stats): About,
) -> std::io::Result<Alarms> {
    let urgent = journal.urgent_intake();
    let conditions = Conditions { journal: Arc::clone(journal), sources, tables, outbox, stats };
    Alarms::start(data, clock, urgent, conditions.looker())
}

/// The parts that are asked.
struct Conditions {
    journal: Arc<Journal>,
    sources: Vec<(String, Arc<SourceStats>)>,
    tables: TableTroubles,
    outbox: Arc<Outbox>,
    stats: Arc<Stats>,
}

impl Conditions {
    /// Asks all of them. What only happens, and is no state, holds when it has happened since it
    /// was asked last.
    fn looker(self) -> impl FnMut() -> Holding + Send + 'static {
        let mut refused_before = 0;
        let mut dead_before = self.outbox.dead_count();
        move || {
            let journal = self.journal.stats();
            let mut all = Holding::new();
            all.extend(journal.disk_full.map(|why| (Rule::DiskFull, why)));
            if journal.waiting_for_room && !all.contains_key(&Rule::DiskFull) {
                let why = format!("the journal has {} bytes, sources wait", journal.bytes_on_disk);
                all.insert(Rule::JournalFull, why);
            }
            let down = self.sources.iter().find_map(|(name, stats)| {
                stats.problem().map(|why| (Rule::SourceDown, format!("{name}: {why}")))
            });
            all.extend(down);
            all.extend(self.tables.first().map(|why| (Rule::TablesUnreachable, why)));
            let refused = self.stats.keys_refused.load(Ordering::Relaxed);
            if refused > refused_before {
                let why = format!("{refused} rows of new keys found no place since the start");
                all.insert(Rule::KeysMax, why);
            }
            let dead = self.outbox.dead_count();
            if dead > dead_before {
                all.insert(Rule::WebhookDead, format!("{dead} notifications were given up"));
            }
            (refused_before, dead_before) = (refused, dead);
            all
        }
    }
}
