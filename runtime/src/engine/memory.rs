//! Keeps the process within its memory: looks at what is resident, and acts by stages
//! ([`crate::memory::Stage`]).
//!
//! What is refused is decided by the journal: this file asks it to close epochs to new keys, and
//! that is journaled with each of them. All else that is done here changes when something happens,
//! and never what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidegate_operators::event::NoNewKeys;

use super::feed::InFlight;
use crate::journal::Journal;
use crate::memory::{Stage, Stages, used_bytes};
use crate::stats::Stats;
use crate::summary::bytes as in_words;

/// How often memory is looked at: a flood of new keys takes about 100 MB in a second.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The same while it is short, and sources are held and let go: between two looks more comes in
/// than may be in flight, or nothing although all of it is done, and whoever is known waits for
/// that, too.
const SHORT_LOOK_EVERY: Duration = Duration::from_millis(5);

/// While memory is short, so little of it may be in flight: rows are many times as large as
/// messages, and so is the state of new keys.
const TIGHT_PART: u64 = 256;
const TIGHT_BYTES_MIN: u64 = 256 << 10;
/// Before that, so many bytes of memory may be taken by each byte that is acknowledged and still to
/// be worked through: what is in the journal without a mark lets new keys in, whatever memory is by
/// then.
const GROWS_BY: u64 = 16;
/// And so much less of it at the last stage.
const STOP_PART: u64 = 16;

/// How long an operator is young: so long it lets new keys in although memory is used up, because
/// to it nearly all keys are new. What the journal does not tell of any more comes meanwhile.
const YOUNG_FOR: Duration = Duration::from_secs(3600);

/// What is not worked through although nothing more comes for so long waits for something else, the
/// tables for example: then it is the journal's budget that counts.
const STUCK: Duration = Duration::from_secs(1);

/// Why a change is refused once sources wait.
const NO_PLACE: &str = "memory is used up, what is new would find no place: the old plan goes on";

/// Of a hundred parts: above this a little is taken only when there was nothing to do for a rest,
/// which is longer above all of them. (What threads have freed is given back when they work, so if
/// nothing at all came in, memory could stay above for good.)
const LAST_PARTS: u64 = 95;
const REST: Duration = Duration::from_millis(500);
const LONG_REST: Duration = Duration::from_secs(2);

/// What is known of memory at present.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known {
    pub(crate) stage: Stage,
    pub(crate) bytes: u64,
    pub(crate) bytes_max: u64,
}

/// The memory of a running engine.
#[derive(Clone)]
pub(crate) struct Memory {
    known: Arc<Mutex<Known>>,
    in_flight: Arc<InFlight>,
    /// Operators that are young, and until when.
    young: Arc<Mutex<BTreeMap<String, Instant>>>,
}

impl Memory {
    /// With a budget; 0 is none.
    pub(super) fn new(bytes_max: u64, in_flight: &Arc<InFlight>) -> Self {
        let known = Known { bytes_max, ..Known::default() };
        Self {
            known: Arc::new(Mutex::new(known)),
            in_flight: Arc::clone(in_flight),
            young: Arc::default(),
        }
    }

    fn young(&self) -> MutexGuard<'_, BTreeMap<String, Instant>> {
        self.young.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has these operators begin with what `make` does, if there is a place for their state. They
    /// are young from before that, so that no epoch after it is without them; if it fails, nothing
    /// has begun.
    pub(super) fn begin<T>(
        &self,
        operators: &BTreeSet<String>,
        make: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        anyhow::ensure!(self.now().stage < Stage::Stop || operators.is_empty(), NO_PLACE);
        let before = self.young().clone();
        let begin = || {
            let until = Instant::now() + YOUNG_FOR;
            self.young().extend(operators.iter().map(|name| (name.clone(), until)));
        };
        begin();
        let made = make();
        match made {
            Ok(_) => begin(),
            Err(_) => *self.young() = before,
        }
        made
    }

    /// What the journal is to say of new keys at this stage and time: once sources wait, nobody is
    /// excepted.
    fn mark(&self, stage: Stage, now: Instant) -> Option<NoNewKeys> {
        let mut young = self.young();
        young.retain(|_, until| now < *until);
        match stage {
            Stage::Roomy | Stage::Tight => None,
            Stage::Full => Some(NoNewKeys { but: young.keys().cloned().collect() }),
            Stage::Stop => Some(NoNewKeys::default()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known at present.
    pub(crate) fn now(&self) -> Known {
        *self.lock()
    }

    /// What is wrong, for people, if anything is.
    pub(crate) fn problem(&self) -> Option<String> {
        let Known { stage, bytes, bytes_max } = self.now();
        let also = match stage {
            Stage::Roomy | Stage::Tight => return None,
            Stage::Full => "",
            Stage::Stop => ", and sources wait",
        };
        Some(format!(
            "memory is {} of {} (memory_max): rows of new keys are refused{also}. \
             system.rejects says whose",
            in_words(bytes),
            in_words(bytes_max)
        ))
    }
}

/// What has to be done at present.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Orders {
    stage: Stage,
    /// How many bytes may be in flight, if less than usual.
    in_flight_bytes: Option<usize>,
    /// New keys are refused.
    refuse: Option<NoNewKeys>,
    /// Sources wait.
    hold: bool,
}

impl Orders {
    /// At a stage, with so many bytes in use, and so many of messages that the dataflow still has
    /// to work through, or none for so long.
    fn at(
        (stage, refuse): (Stage, Option<NoNewKeys>),
        bytes: u64,
        bytes_max: u64,
        (backlog_bytes, rest): (u64, Duration),
        stuck: bool,
    ) -> Self {
        let tight_bytes = (bytes_max / TIGHT_PART).max(TIGHT_BYTES_MIN);
        let hold = match stage {
            Stage::Roomy => !stuck && !has_room((bytes, bytes_max), backlog_bytes),
            Stage::Tight | Stage::Full => backlog_bytes > tight_bytes,
            // Little at a time: devices that are known go on by that, and it is seen what it takes.
            Stage::Stop => {
                let least = match bytes {
                    bytes if bytes > bytes_max => LONG_REST,
                    bytes if bytes > bytes_max / 100 * LAST_PARTS => REST,
                    _ => Duration::ZERO,
                };
                backlog_bytes > tight_bytes / STOP_PART || rest < least
            }
        };
        let in_flight_bytes = usize::try_from(tight_bytes).ok().filter(|_| stage > Stage::Roomy);
        Self { stage, in_flight_bytes, refuse, hold }
    }
}

/// Whether what is acknowledged has room when it is worked through.
fn has_room((bytes, bytes_max): (u64, u64), backlog_bytes: u64) -> bool {
    backlog_bytes.saturating_mul(GROWS_BY) <= bytes_max.saturating_sub(bytes)
}

/// Whether what is acknowledged is being worked through.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// The least that was left, and since when; none while there is room.
    least: Option<(u64, Instant)>,
}

impl Progress {
    /// Notes what is left at `now`; whether that stands still.
    fn is_stuck(&mut self, has_room: bool, backlog_bytes: u64, now: Instant) -> bool {
        match self.least {
            _ if has_room => self.least = None,
            Some((least, _)) if backlog_bytes >= least => {}
            _ => self.least = Some((backlog_bytes, now)),
        }
        self.least.is_some_and(|(_, since)| now.duration_since(since) >= STUCK)
    }
}

/// Watches and acts until it is aborted; ends at once without a budget.
pub(super) async fn watch(memory: Memory, journal: Arc<Journal>, stats: Arc<Stats>) {
    let bytes_max = memory.now().bytes_max;
    Stats::set(&stats.memory_max_bytes, bytes_max);
    if bytes_max == 0 || used_bytes().is_none() {
        return;
    }
    let mut stages = Stages::new(bytes_max);
    let (mut done, mut idle_since) = (Orders::default(), None);
    let mut progress = Progress::default();
    loop {
        let short = done.stage > Stage::Roomy || done.hold;
        tokio::time::sleep(if short { SHORT_LOOK_EVERY } else { LOOK_EVERY }).await;
        let Some(bytes) = used_bytes() else { continue };
        let now = Instant::now();
        let stage = stages.step(now, bytes);
        let refuse = memory.mark(stage, now);
        let taken = journal.stats();
        let backlog = memory.in_flight.bytes() as u64 + taken.queued_bytes + taken.behind_bytes;
        idle_since = (backlog == 0).then(|| idle_since.unwrap_or(now));
        let rest = idle_since.map_or(Duration::ZERO, |since| now.duration_since(since));
        let stuck = progress.is_stuck(has_room((bytes, bytes_max), backlog), backlog, now);
        let orders = Orders::at((stage, refuse), bytes, bytes_max, (backlog, rest), stuck);
        *memory.lock() = Known { stage, bytes, bytes_max };
        if orders == done {
            continue;
        }
        journal.refuse_new_keys(orders.refuse.clone());
        journal.hold(orders.hold);
        memory.in_flight.tighten(orders.in_flight_bytes);
        stats.memory_stage.store(stage as u64, Ordering::Relaxed);
        if stage != done.stage {
            let (name, before, action) = (stage.name(), done.stage.name(), stage.action());
            tracing::warn!(stage = name, before, bytes, bytes_max, action, "memory");
        }
        done = orders;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: u64 = 1 << 30;

    fn hold(stage: Stage, bytes: u64, backlog: u64) -> bool {
        Orders::at((stage, None), bytes, MAX, (backlog, Duration::ZERO), false).hold
    }

    #[test]
    fn each_stage_does_what_those_before_it_do() {
        let memory = Memory::new(MAX, &Arc::default());
        let mark = |stage| memory.mark(stage, Instant::now());
        let orders = [Stage::Roomy, Stage::Tight, Stage::Full, Stage::Stop].map(|stage| {
            Orders::at((stage, mark(stage)), MAX / 2, MAX, (16 << 20, Duration::ZERO), false)
        });
        let of = |f: fn(&Orders) -> bool| orders.each_ref().map(f);
        assert_eq!(of(|o| o.in_flight_bytes == Some(4 << 20)), [false, true, true, true]);
        assert_eq!(of(|o| o.refuse.is_some()), [false, false, true, true]);
        assert_eq!(of(|o| o.hold), [false, true, true, true]);
        assert_eq!(orders[0], Orders::default());
    }

    #[test]
    fn operators_are_excepted_for_an_hour_and_not_while_sources_wait() {
        let memory = Memory::new(MAX, &Arc::default());
        let names = |all: &[&str]| -> BTreeSet<String> {
            all.iter().map(|name| (*name).to_owned()).collect()
        };
        let but = |stage, now| memory.mark(stage, now).map(|mark| mark.but);
        memory.begin(&names(&["p/a"]), || Ok(())).expect("there is a place");
        let failed = memory.begin(&names(&["p/a", "p/b"]), || -> anyhow::Result<()> {
            let both = names(&["p/a", "p/b"]);
            assert_eq!(but(Stage::Full, Instant::now()), Some(both), "before it is made");
            anyhow::bail!("why")
        });
        assert!(failed.is_err());
        let now = Instant::now();
        assert_eq!(but(Stage::Tight, now), None);
        assert_eq!(but(Stage::Full, now), Some(names(&["p/a"])));
        assert_eq!(but(Stage::Stop, now), Some(BTreeSet::new()));
        assert_eq!(but(Stage::Full, now + YOUNG_FOR / 2), Some(names(&["p/a"])));
        assert_eq!(but(Stage::Full, now + YOUNG_FOR * 2), Some(BTreeSet::new()));
        assert!(memory.young().is_empty());
    }

    #[test]
    fn nothing_begins_once_sources_wait() {
        let memory = Memory::new(MAX, &Arc::default());
        let some = BTreeSet::from(["p/a".to_owned()]);
        for stage in [Stage::Roomy, Stage::Tight, Stage::Full, Stage::Stop] {
            *memory.lock() = Known { stage, bytes: MAX, bytes_max: MAX };
            assert!(memory.begin(&BTreeSet::new(), || Ok(())).is_ok());
            let told = memory.begin(&some, || Ok(())).map_err(|error| error.to_string());
            let expected = match stage {
                Stage::Stop => Err(NO_PLACE.to_owned()),
                _ => Ok(()),
            };
            assert_eq!(told, expected, "{stage:?}");
        }
    }

    #[test]
    fn what_is_acknowledged_has_room_when_it_is_worked_through() {
        let backlog = (MAX - MAX / 4) / GROWS_BY;
        assert!(!hold(Stage::Roomy, MAX / 4, backlog));
        assert!(hold(Stage::Roomy, MAX / 4, backlog + 1));
        assert!(!hold(Stage::Roomy, MAX, 0) && hold(Stage::Roomy, MAX * 2, 1));
    }

    #[test]
    fn sources_do_not_wait_for_what_stands_still() {
        let (mut progress, start) = (Progress::default(), Instant::now());
        let mut at = |ms: u64, has_room: bool, backlog| {
            progress.is_stuck(has_room, backlog, start + Duration::from_millis(ms))
        };
        assert!(!at(0, false, 9) && !at(999, false, 9) && at(1_000, false, 9));
        assert!(at(5_000, false, 12), "more has come since");
        assert!(!at(5_001, false, 8) && at(6_001, false, 8), "it went on for a moment");
        assert!(!at(6_002, true, 1) && !at(6_003, false, 9));
        let orders = Orders::at((Stage::Roomy, None), MAX, MAX, (9, Duration::ZERO), true);
        assert!(!orders.hold);
    }

    #[test]
    fn who_can_be_served_does_not_wait() {
        for stage in [Stage::Tight, Stage::Full] {
            assert!(!hold(stage, MAX, 4 << 20) && hold(stage, MAX, (4 << 20) + 1), "{stage:?}");
        }
        // At the end a little at a time, and above that only when there is nothing else to do.
        let (near, little) = (MAX / 100 * 94, 256 << 10);
        assert!(!hold(Stage::Stop, near, little) && hold(Stage::Stop, near, little + 1));
        assert!(hold(Stage::Stop, MAX / 100 * 96, 0));
        let hold = |bytes, rest| Orders::at((Stage::Stop, None), bytes, MAX, (0, rest), false).hold;
        assert!(!hold(MAX / 100 * 96, REST) && hold(MAX / 100 * 96, REST / 2));
        assert!(hold(MAX + 1, REST) && !hold(MAX + 1, LONG_REST));
    }

    #[test]
    fn it_is_a_problem_once_somebody_is_refused() {
        let memory = Memory::new(MAX, &Arc::default());
        let mut said = Vec::new();
        for stage in [Stage::Roomy, Stage::Tight, Stage::Full, Stage::Stop] {
            *memory.lock() = Known { stage, bytes: 3 << 28, bytes_max: MAX };
            said.push(memory.problem());
        }
        assert_eq!(said[..2], [None, None]);
        let full = said[2].as_ref().expect("full");
        assert!(full.contains("768.0 MiB of 1.0 GiB") && !full.contains("wait"), "{full}");
        assert!(said[3].as_ref().is_some_and(|why| why.contains("and sources wait.")));
    }
}
