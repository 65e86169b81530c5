//! When the engine has something to say about itself: what its parts report, as conditions of
//! [`super::alarms`]. This file must not decide how long a condition has to hold.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::alarms::{Alarms, Conditions as Holding, Rule};
use super::cuts::Cuts;
use super::limits::{self, Bounds};
use super::recompute::Waiting;
use super::registries::Registries;
use super::sources::SourceState;
use super::tables::TableTroubles;
use super::{blocked, memory};
use crate::clock::Clock;
use crate::doctor::counted;
use crate::journal::Journal;
use crate::outbox::Outbox;
use crate::stats::Stats;

/// Watches all of it and tells what changes to the journal.
pub(super) fn watch(clock: Clock, states: States, stats: Arc<Stats>) -> Alarms {
    let urgent = states.journal.urgent_intake();
    let journal = Arc::clone(&states.journal);
    let memory = memory::watch(states.bounds.memory.clone(), Arc::clone(&journal), stats.clone());
    let blocked = blocked::watch(clock.clone(), Arc::clone(&urgent), journal);
    let (urgent_too, states_too) = (Arc::clone(&urgent), states.clone());
    let limits = limits::watch(clock.clone(), urgent_too, states_too, stats.clone());
    let standing = states.bounds.standing.clone();
    let conditions = Conditions { states, stats };
    let alarms = Alarms::start(&standing, clock, urgent, conditions.looker());
    let alarms = alarms.with(tokio::spawn(blocked)).with(tokio::spawn(limits));
    alarms.with(tokio::spawn(memory))
}

/// Parts of the engine that can be in a bad state.
#[derive(Clone)]
pub(super) struct States {
    pub(super) journal: Arc<Journal>,
    pub(super) sources: Vec<SourceState>,
    pub(super) registries: Arc<Registries>,
    pub(super) tables: TableTroubles,
    pub(super) waiting: Waiting,
    pub(super) outbox: Arc<Outbox>,
    pub(super) bounds: Bounds,
    pub(super) cuts: Arc<Cuts>,
}

impl States {
    /// What is wrong at present, the most important first.
    pub(super) fn problems(&self) -> Vec<(Rule, String)> {
        let journal = self.journal.stats();
        let mut all = Vec::new();
        all.extend(self.bounds.memory.problem().map(|why| (Rule::MemoryMax, why)));
        let full = journal.disk_full.is_some();
        let disk_full = journal.disk_full.or_else(|| self.cuts.disk_full());
        all.extend(disk_full.map(|why| (Rule::DiskFull, why)));
        if journal.waiting_for_room && !full {
            let why = format!("the journal has {} bytes, sources wait", journal.bytes_on_disk);
            all.push((Rule::JournalFull, why));
        }
        all.extend(self.sources.iter().filter_map(|source| {
            Some((Rule::SourceDown, format!("{}: {}", source.name, source.problem()?)))
        }));
        let unreadable = self.registries.problems().into_iter();
        all.extend(unreadable.map(|why| (Rule::RegistryUnreadable, why)));
        let tables = self.tables.now();
        // Where tables are away, that is what is wrong.
        if tables.is_empty() {
            all.extend(self.waiting.now().into_iter().map(|(table, why)| {
                (Rule::WindowsWaiting, format!("late windows of table {table} wait: {why}"))
            }));
        }
        all.extend(
            tables
                .into_iter()
                .map(|(table, _, why)| (Rule::TablesUnreachable, format!("table {table}: {why}"))),
        );
        all
    }
}

/// The parts that are asked.
struct Conditions {
    states: States,
    stats: Arc<Stats>,
}

impl Conditions {
    /// Asks all of them. What only happens, and is no state, holds when it has happened since it
    /// was asked last.
    fn looker(self) -> impl FnMut() -> Holding + Send + 'static {
        let (mut refused_before, mut off_before) = (0, 0);
        let mut dead_before = self.states.outbox.given_up();
        move || {
            let mut all = Holding::new();
            for (rule, why) in self.states.problems() {
                all.entry(rule).or_insert(why);
            }
            let refused = self.stats.keys_refused.load(Ordering::Relaxed);
            if refused > refused_before {
                let rows = counted(refused, "row");
                let why = format!("{rows} of new keys found no place since the start");
                all.insert(Rule::KeysMax, why);
            }
            let off = self.stats.clocks_off.load(Ordering::Relaxed);
            if off > off_before {
                let why = format!(
                    "clocks of devices are off by more than clock_skew_max ({} more of \
                     system.clock_skew, which says whose and by how much)",
                    counted(off - off_before, "row")
                );
                all.insert(Rule::ClockSkew, why);
            }
            let dead = self.states.outbox.given_up();
            if dead > dead_before {
                let were = if dead == 1 { "was" } else { "were" };
                let notifications = counted(dead, "notification");
                let why = format!("{notifications} {were} given up since the start");
                all.insert(Rule::WebhookDead, why);
            }
            (refused_before, off_before, dead_before) = (refused, off, dead);
            all
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use bytes::Bytes;

    use super::super::options::EngineOptions;
    use super::super::{folder, registries};
    use super::*;
    use crate::outbox::Notification;

    const PIPELINE: &str = "name = \"p\"\n[source]\ntype = \"endpoint\"\n\
        listen = \"127.0.0.1:0\"\ntopics = [\"t/{device}\"]\n[reading]\n\
        device = \"{device}\"\ntime = \"ts\"\nfields = { v = \"float64\" }\n\
        [[table]]\nfrom = \"readings\"\n";

    /// Those of an engine with which nothing is wrong.
    async fn states(options: &EngineOptions) -> States {
        let plan = tidegate_pipelines::load(&[("p.toml".into(), PIPELINE.into())], &|_, _| {
            Err(String::new())
        });
        let (plan, clock) = (plan.unwrap(), Clock::system());
        let (journal, _) = folder::open_journal(&plan, options, clock.clone(), 1).unwrap();
        let opened = registries::open(&plan, options, clock).await.unwrap();
        let registries = opened.begin(&journal, &[], options).await.unwrap();
        States {
            journal,
            sources: Vec::new(),
            registries: Arc::new(registries),
            tables: TableTroubles::default(),
            waiting: Waiting::default(),
            outbox: folder::open_outbox(options).unwrap(),
            bounds: Bounds::of(options).1,
            cuts: Arc::new(Cuts::new(Duration::from_secs(1))),
        }
    }

    fn notification(id: &str) -> Notification {
        let (target, key) = ("p/ops".to_owned(), id.to_owned());
        Notification { id: id.into(), target, key, created_us: 0, body: Bytes::new() }
    }

    #[tokio::test]
    async fn what_only_happens_holds_once_each_time_that_it_does() {
        let folder = tempfile::tempdir().unwrap();
        let options = EngineOptions::new(folder.path());
        let (states, stats) = (states(&options).await, Arc::<Stats>::default());
        let outbox = Arc::clone(&states.outbox);
        let mut look = Conditions { states, stats: Arc::clone(&stats) }.looker();
        let nothing = Holding::new();
        let one = |rule, why: &str| Holding::from([(rule, why.to_owned())]);
        assert_eq!(look(), nothing);
        Stats::add(&stats.keys_refused, 1);
        assert_eq!(look(), one(Rule::KeysMax, "1 row of new keys found no place since the start"));
        assert_eq!(look(), nothing);
        Stats::add(&stats.clocks_off, 2);
        let why = look().remove(&Rule::ClockSkew).unwrap();
        assert!(why.contains("(2 rows more of system.clock_skew, "), "{why}");
        assert_eq!(look(), nothing);
        Stats::add(&stats.clocks_off, 1);
        let why = look().remove(&Rule::ClockSkew).unwrap();
        assert!(why.contains("(1 row more of "), "{why}");
        for (epoch, why) in [(1, "1 notification was"), (2, "2 notifications were")] {
            let id = format!("n{epoch}");
            outbox.enqueue(epoch, vec![notification(&id)]).unwrap();
            assert_eq!(look(), nothing, "it is on its way");
            outbox.dead(&id, "410").unwrap();
            assert_eq!(look(), one(Rule::WebhookDead, &format!("{why} given up since the start")));
            assert_eq!(look(), nothing);
        }
    }

    #[tokio::test]
    async fn a_disk_that_is_full_for_checkpoints_is_full_until_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let states = states(&EngineOptions::new(folder.path())).await;
        assert_eq!(states.problems(), []);
        states.cuts.note_disk_full("why".into());
        assert_eq!(states.problems(), [(Rule::DiskFull, "why".to_owned())]);
        states.cuts.note_saved(1, 1, 0);
        assert_eq!(states.problems(), []);
    }
}
