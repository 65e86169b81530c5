//! Which limits of the engine are reached, as rows of `system.limits`: one when it is, one when it
//! is no longer. They are events in the journal, like the engine's own alerts ([`super::alarms`]).
//!
//! Invariant: of one limit `reached` and `left` come in turns, also over a restart, whenever the
//! process was killed: which ones are reached is what the journal says ([`Standing`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use tidegate_operators::MessagesBuilder;
use tidegate_operators::event::LimitChange;
use tidegate_operators::reject::keys_refused;
use tokio::sync::mpsc;

use super::conditions::States;
use super::cuts::Room;
use super::feed::InFlight;
use super::memory::{Known, Memory};
use super::options::EngineOptions;
use super::standing::Standing;
use crate::clock::Clock;
use crate::intake::Intake;
use crate::memory::Stage;
use crate::open_files;
use crate::stats::Stats;

/// How often limits are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Rows of new keys that found no place in a step, by `PIPELINE/STEP`: how many, and `keys_max`.
#[derive(Clone, Debug, Default)]
pub(crate) struct RefusedKeys(Arc<Mutex<BTreeMap<String, (u64, u64)>>>);

impl RefusedKeys {
    /// Counts those among rows of `system.rejects`.
    pub(super) fn count(&self, rejects: &RecordBatch) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for refused in keys_refused(rejects) {
            let name = format!("{}/{}", refused.pipeline, refused.step);
            let entry = all.entry(name).or_default();
            *entry = (entry.0 + refused.rows, refused.keys_max);
        }
    }

    fn now(&self) -> BTreeMap<String, (u64, u64)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// New counters, with how many connections there is room for: this raises the limit of open files,
/// so before any door is opened.
pub(super) fn stats_with_room() -> Arc<Stats> {
    let stats = Arc::<Stats>::default();
    Stats::set(&stats.connections_max, open_files::room().connections() as u64);
    stats
}

/// The limits of a running engine.
#[derive(Clone)]
pub(crate) struct Bounds {
    pub(super) memory: Memory,
    pub(super) refused: RefusedKeys,
    /// What was said of them, and by alerts.
    pub(super) standing: Standing,
    in_flight: Arc<InFlight>,
    journal_bytes_max: u64,
    spill_bytes_max: u64,
}

impl Bounds {
    /// Those of the options, and what is in flight, which memory bounds.
    pub(super) fn of(options: &EngineOptions) -> (Arc<InFlight>, Self) {
        let in_flight = Arc::new(InFlight::default());
        let bounds = Self {
            memory: Memory::new(options.memory_bytes_max, &in_flight),
            refused: RefusedKeys::default(),
            standing: Standing::default(),
            in_flight: Arc::clone(&in_flight),
            journal_bytes_max: options.journal_bytes_max,
            spill_bytes_max: options.spill_bytes_max,
        };
        (in_flight, bounds)
    }
}

/// A limit: its name, and which one of them.
type Name = (&'static str, String);

/// What is known of a limit that is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reached {
    value: Option<u64>,
    max: Option<u64>,
    action: String,
}

const NAMES: [&str; 8] =
    ["memory", "journal", "disk", "spill", "in_flight", "outbox", "keys", "open_files"];

/// How long a limit must be reached, and how long not, before it is told. Room in a journal that is
/// full comes and goes with each trimming; of keys it is the time without a refusal.
fn patience(limit: &str) -> (Duration, Duration) {
    let [after_ms, calm_ms] = match limit {
        "memory" => [0, 0],
        "keys" => [0, 60_000],
        _ => [500, 5_000],
    };
    (Duration::from_millis(after_ms), Duration::from_millis(calm_ms))
}

/// A limit that was seen reached.
#[derive(Clone, Copy, Debug)]
struct Seen {
    since: Instant,
    last: Instant,
    told: bool,
}

/// What was seen and told.
#[derive(Debug, Default)]
struct Watch(BTreeMap<Name, Seen>);

impl Watch {
    /// After a start: those that were told as reached, by kind and subject.
    fn after(reached: &BTreeSet<(String, String)>, now: Instant) -> Self {
        let named = reached.iter().filter_map(|(kind, subject)| name_of(kind, subject));
        let seen = Seen { since: now, last: now, told: true };
        Self(named.map(|name| (name, seen)).collect())
    }

    /// What is to be told at `now`.
    fn step(&mut self, now: Instant, reached: &BTreeMap<Name, Reached>) -> Vec<LimitChange> {
        let mut changes = Vec::new();
        for (name, what) in reached {
            let new = Seen { since: now, last: now, told: false };
            let seen = self.0.entry(name.clone()).or_insert(new);
            seen.last = now;
            if !seen.told && now.saturating_duration_since(seen.since) >= patience(name.0).0 {
                seen.told = true;
                changes.push(change(name, "reached", what.clone()));
            }
        }
        self.0.retain(|name, seen| {
            let over = now.saturating_duration_since(seen.last) >= patience(name.0).1;
            if reached.contains_key(name) || (seen.told && !over) {
                return true;
            }
            if seen.told {
                let action = "it is over".to_owned();
                changes.push(change(name, "left", Reached { value: None, max: None, action }));
            }
            false
        });
        changes
    }
}

fn change((kind, subject): &Name, state: &str, what: Reached) -> LimitChange {
    LimitChange {
        kind: (*kind).to_owned(),
        subject: subject.clone(),
        state: state.to_owned(),
        value: what.value,
        max: what.max,
        action: what.action,
    }
}

/// Asks all parts. Of keys it is whether rows were refused since it was asked last.
struct Looker {
    states: States,
    stats: Arc<Stats>,
    refused_before: BTreeMap<String, (u64, u64)>,
}

impl Looker {
    /// A journal that is full, or nearly so, is trimmed with the next checkpoints: they are not to
    /// wait for their time while sources do.
    fn note_room(&self) {
        let (journal, max) = (self.states.journal.stats(), self.states.bounds.journal_bytes_max);
        self.states.cuts.note_room(match journal.bytes_on_disk > max / 4 * 3 {
            _ if journal.waiting_for_room => Room::None,
            true => Room::Little,
            false => Room::Enough,
        });
    }

    fn look(&mut self) -> BTreeMap<Name, Reached> {
        let Bounds { memory, refused, in_flight, journal_bytes_max, spill_bytes_max, .. } =
            &self.states.bounds;
        let mut all = BTreeMap::new();
        let mut put = |name: Name, value, max, action: &str| {
            all.insert(name, Reached { value, max, action: action.to_owned() });
        };
        let Known { stage, bytes, bytes_max } = memory.now();
        for stage in Stage::ALL.into_iter().filter(|s| *s <= stage) {
            let max = Some(stage.enter_bytes(bytes_max));
            put(("memory", stage.name().to_owned()), Some(bytes), max, stage.action());
        }
        let journal = self.states.journal.stats();
        let one = |limit| (limit, String::new());
        match journal.disk_full {
            Some(why) => put(one("disk"), None, None, &why),
            None if journal.waiting_for_room => {
                let (value, max) = (Some(journal.bytes_on_disk), Some(*journal_bytes_max));
                put(one("journal"), value, max, "sources wait");
            }
            None => {}
        }
        let spilled = self.stats.spilled_bytes.load(Ordering::Relaxed);
        if spilled > 0 && spilled >= spill_bytes_max / 100 * 95 {
            let (value, max) = (Some(spilled), Some(*spill_bytes_max));
            put(one("spill"), value, max, "all that waits for tables waits, and then sources");
        }
        if let Some((of, value, max)) = in_flight.full() {
            let action = "messages wait in the journal; sources go on while it has room";
            put(("in_flight", of.to_owned()), Some(value as u64), Some(max as u64), action);
        }
        let (waiting, most) = (self.states.outbox.pending(), self.states.outbox.pending_max());
        if waiting >= most {
            let action = "new notifications are given up at once, and can be sent again";
            put(one("outbox"), Some(waiting as u64), Some(most as u64), action);
        }
        let room = open_files::room();
        if room.is_used_up() {
            let (value, max) = (Some(room.taken() as u64), Some(room.connections() as u64));
            put(one("open_files"), value, max, "more connections are refused (ulimit -n)");
        }
        let refused = refused.now();
        for (step, (rows, keys_max)) in &refused {
            if self.refused_before.get(step).is_none_or(|before| before.0 < *rows) {
                let action = "rows of new keys are refused (keys_max)";
                put(("keys", step.clone()), Some(*rows), Some(*keys_max), action);
            }
        }
        self.refused_before = refused;
        all
    }
}

/// Looks and tells until it is aborted.
pub(super) async fn watch(
    clock: Clock,
    intake: Arc<dyn Intake>,
    states: States,
    stats: Arc<Stats>,
) {
    let refused_before = states.bounds.refused.now();
    let reached = states.bounds.standing.reached();
    let mut looker = Looker { states, stats, refused_before };
    let mut watch = Watch::after(&reached, Instant::now());
    let (tell, told) = mpsc::unbounded_channel();
    let looks = async move {
        let mut turns = tokio::time::interval(LOOK_EVERY);
        loop {
            turns.tick().await;
            looker.note_room();
            for change in watch.step(Instant::now(), &looker.look()) {
                if tell.send((clock.now_us(), change)).is_err() {
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = looks => {}
        () = journal(told, intake) => {}
    }
}

/// Brings changes into the journal, one after the other, however long that takes.
async fn journal(mut told: mpsc::UnboundedReceiver<(i64, LimitChange)>, intake: Arc<dyn Intake>) {
    while let Some((now_us, change)) = told.recv().await {
        let mut message = MessagesBuilder::default();
        change.put(&mut message, now_us);
        if intake.offer(message).await.is_err() {
            // The journal ends; so does the process.
            return;
        }
    }
}

fn name_of(limit: &str, subject: &str) -> Option<Name> {
    let limit = NAMES.into_iter().find(|name| *name == limit)?;
    Some((limit, subject.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(all: &[(&'static str, &str)]) -> BTreeMap<Name, Reached> {
        let what = Reached { value: Some(1), max: Some(2), action: "a".into() };
        all.iter().map(|(limit, subject)| ((*limit, (*subject).into()), what.clone())).collect()
    }

    #[test]
    fn each_limit_is_told_in_turns_and_what_flaps_is_one() {
        let (mut watch, start) = (Watch::default(), Instant::now());
        let mut told = Vec::new();
        // Tenths of seconds: the journal has no room every other one for a minute, memory is full
        // for two, keys are refused now and then.
        for tenth in 0..2_000_u64 {
            let mut reached = Vec::new();
            if tenth < 600 && tenth % 20 < 10 {
                reached.push(("journal", ""));
            }
            if (50..70).contains(&tenth) {
                reached.push(("memory", "full"));
            }
            if tenth < 900 && tenth % 300 == 0 {
                reached.push(("keys", "p/s"));
            }
            // A moment without room is nothing to tell.
            if tenth == 1_000 {
                reached.push(("disk", ""));
            }
            let now = start + Duration::from_millis(100) * tenth as u32;
            let changes = watch.step(now, &names(&reached));
            told.extend(changes.into_iter().map(|c| (tenth, c.kind, c.state)));
        }
        let wanted = [
            (0, "keys", "reached"),
            (5, "journal", "reached"),
            (50, "memory", "reached"),
            (70, "memory", "left"),
            (639, "journal", "left"),
            (1_200, "keys", "left"),
        ];
        let wanted = wanted.map(|(at, limit, state)| (at, limit.to_owned(), state.to_owned()));
        assert_eq!(told, wanted);
    }

    #[test]
    fn every_kind_is_documented() {
        let docs = tidegate_pipelines::docs_markdown();
        let (_, limits) = docs.split_once("Limits of the engine that were reached").unwrap();
        let limits = limits.lines().next().unwrap();
        let readme = include_str!("../../../README.md");
        for name in NAMES {
            assert!(limits.contains(&format!("`{name}`")), "{name} is not in {limits}");
            assert!(readme.contains(&format!("\n| `{name}` |")), "{name}");
        }
    }

    #[test]
    fn a_limit_of_a_killed_process_is_left() {
        let reached = [("memory", "full"), ("keys", "p/s"), ("of a later version", "")];
        let reached = reached.map(|(kind, subject)| (kind.to_owned(), subject.to_owned()));
        let now = Instant::now();
        let mut watch = Watch::after(&reached.into(), now);
        let changes = watch.step(now, &BTreeMap::new());
        let states: Vec<_> = changes.iter().map(|c| (c.kind.as_str(), c.state.as_str())).collect();
        assert_eq!(states, [("memory", "left")], "of keys it takes a minute");
    }
}
