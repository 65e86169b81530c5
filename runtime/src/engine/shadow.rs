//! The shadow run: state of changed operators, made anew from what the journal still has.
//!
//! The new pipelines run beside the live ones, on one worker, over the epochs that are still on
//! disk. Their rows go nowhere; at one epoch, their state is taken. Invariant ([`Pace`]): the
//! shadow never passes an epoch that the live run was not fed, so the epoch at which it is to stop
//! is always known in time; and what it does not know, it says: from when on it has seen messages.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use tidegate_operators::spec::PipelineSpec;
use tidegate_operators::{Epoch, SavedRows};

use super::EVENTS_MAX;
use super::feed::{FeedQueue, InFlight};
use super::workers::{Event, WorkerPlan, start};
use crate::journal::{DurableError, Feed, Journal, Replay};
use crate::stats::Stats;

/// How often a shadow that has caught up looks for more.
const LOOK: Duration = Duration::from_millis(5);

/// A shadow this close to the live run, in epochs, has caught up.
const NEAR_EPOCHS: u64 = 64;

/// How often the beginning of the journal is looked for, if it is trimmed meanwhile: about two
/// seconds, since a list has no new beginning before the folder is synced.
const TRIES_MAX: u32 = 400;

/// How far a shadow may go, and how far it is.
#[derive(Debug)]
pub(super) struct Pace {
    /// The newest epoch that the live run was fed.
    fed: Arc<AtomicU64>,
    /// The epoch at which to stop.
    target: AtomicU64,
    near: AtomicBool,
    /// Epochs to the live run where it was nearest.
    nearest: AtomicU64,
    abandoned: AtomicBool,
}

impl Pace {
    /// Behind a live run that says here how far it was fed.
    pub(super) fn behind(fed: Arc<AtomicU64>) -> Self {
        Self {
            fed,
            target: AtomicU64::new(Epoch::MAX),
            near: AtomicBool::new(false),
            nearest: AtomicU64::new(Epoch::MAX),
            abandoned: AtomicBool::new(false),
        }
    }

    /// Nothing is live: straight to the epoch `target`.
    pub(super) fn to(target: Epoch) -> Self {
        let pace = Self::behind(Arc::new(AtomicU64::new(target)));
        pace.stop_at(target);
        pace
    }

    /// Stop at this epoch, which the live run was not fed yet.
    pub(super) fn stop_at(&self, epoch: Epoch) {
        self.target.store(epoch, Ordering::Release);
    }

    /// Nobody wants the result any more.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    #[cfg(test)]
    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    /// The shadow is as near as it will be: it has ended.
    pub(super) fn come_near(&self) {
        self.near.store(true, Ordering::Release);
    }

    /// Whether the shadow has nearly caught up.
    pub(super) fn is_near(&self) -> bool {
        self.near.load(Ordering::Acquire)
    }

    /// Waits until the shadow has nearly caught up.
    ///
    /// # Errors
    /// It has come no nearer within `patience`: what comes in is more than it can take.
    pub(super) fn wait_until_near(&self, patience: Duration) -> anyhow::Result<()> {
        let (mut nearest, mut since) = (Epoch::MAX, Instant::now());
        while !self.is_near() {
            let now = self.nearest.load(Ordering::Acquire);
            if now < nearest {
                (nearest, since) = (now, Instant::now());
            }
            anyhow::ensure!(
                since.elapsed() < patience,
                "state cannot be rebuilt while so much comes in (no nearer in {} s), the old plan \
                 goes on",
                patience.as_secs()
            );
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Waits until `epoch` may be passed; whether it is the one to stop at.
    fn wait(&self, epoch: Epoch) -> anyhow::Result<bool> {
        loop {
            anyhow::ensure!(!self.abandoned.load(Ordering::Acquire), "it was abandoned");
            let fed = self.fed.load(Ordering::Acquire);
            self.nearest.fetch_min(fed.saturating_sub(epoch), Ordering::AcqRel);
            if fed.saturating_sub(epoch) <= NEAR_EPOCHS {
                self.near.store(true, Ordering::Release);
            }
            if epoch <= fed {
                return Ok(epoch >= self.target.load(Ordering::Acquire));
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// What a shadow run gives.
#[derive(Debug, Default)]
pub(super) struct Rebuilt {
    /// Tick time of the epoch before the first that it saw, microseconds; `None`: it saw none, or
    /// everything that there ever was.
    pub(super) since_us: Option<i64>,
    /// State by operator.
    pub(super) state: Vec<(String, SavedRows)>,
}

/// Runs `pipelines` until `pace` says stop, and takes the state of the operators in `wanted`.
/// `sources` are the names behind the numbers of sources.
pub(super) fn rebuild(
    journal: &Journal,
    sources: &[String],
    pipelines: Vec<PipelineSpec>,
    wanted: &BTreeSet<String>,
    pace: &Pace,
) -> anyhow::Result<Rebuilt> {
    let Some((first, first_us)) = first_tick(|| Ok(journal.read(sources, 0)))? else {
        return Ok(Rebuilt::default());
    };
    if first > pace.target.load(Ordering::Acquire) {
        return Ok(Rebuilt::default());
    }
    let stats = Arc::new(Stats::default());
    let in_flight = Arc::new(InFlight::default());
    let (events, received) = sync_channel(EVENTS_MAX);
    let (ports, _) = start(WorkerPlan::of(pipelines, 1, first), Arc::clone(&stats), events)?;
    let collector_in_flight = Arc::clone(&in_flight);
    let wanted = wanted.clone();
    let collector = std::thread::Builder::new().name("shadow".into()).spawn(move || {
        let result = collect(&received, &collector_in_flight, &wanted);
        collector_in_flight.close();
        result
    })?;
    let save = Arc::new(AtomicBool::new(false));
    // Whoever was refused was new to other operators; to these everybody is.
    let queue = FeedQueue::new(ports, in_flight, stats, None, Arc::clone(&save));
    let mut queue = queue.open_to_all();
    let fed = feed(journal, sources, first, pace, &save, &mut queue);
    queue.end(false);
    drop(queue);
    let state = collector.join().map_err(|_| anyhow::anyhow!("the shadow run panicked"))??;
    fed?;
    Ok(Rebuilt { since_us: (first > 1).then_some(first_us), state })
}

/// What [`Rebuilt::since_us`] will be for this journal.
pub(super) fn since_us(
    journal: impl Fn() -> Result<Replay, DurableError>,
) -> anyhow::Result<Option<i64>> {
    let first = first_tick(journal)?.filter(|(epoch, _)| *epoch > 1);
    Ok(first.map(|(_, time_us)| time_us))
}

/// The first epoch that is still there, and its time. A segment that is trimmed after it was listed
/// is looked for again, in a new list.
fn first_tick(
    journal: impl Fn() -> Result<Replay, DurableError>,
) -> anyhow::Result<Option<(Epoch, i64)>> {
    let first = |journal: Replay| {
        for feed in journal {
            if let Feed::Tick(tick) = feed? {
                return Ok(Some((tick.epoch, tick.time_us)));
            }
        }
        Ok(None)
    };
    let gone = |error: &DurableError| match error {
        DurableError::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    };
    let mut tries = TRIES_MAX;
    loop {
        match journal().and_then(first) {
            Err(error) if tries > 1 && gone(&error) => {
                tries -= 1;
                std::thread::sleep(LOOK);
            }
            found => return found.context("cannot read the journal"),
        }
    }
}

fn feed(
    journal: &Journal,
    sources: &[String],
    first: Epoch,
    pace: &Pace,
    save: &AtomicBool,
    queue: &mut FeedQueue,
) -> anyhow::Result<()> {
    let mut next = first;
    loop {
        for feed in journal.read(sources, next) {
            match feed.context("cannot read the journal")? {
                Feed::Messages(messages) => queue.messages(messages),
                Feed::Tick(tick) => {
                    let is_last = pace.wait(tick.epoch)?;
                    save.store(is_last, Ordering::Release);
                    queue.tick(tick);
                    if is_last {
                        return Ok(());
                    }
                    next = tick.epoch + 1;
                }
            }
        }
        // Everything that is on disk was read; waits for the next epoch to be fed.
        if pace.wait(next)? && next > pace.target.load(Ordering::Acquire) {
            anyhow::bail!("the journal ends before epoch {next}");
        }
    }
}

fn collect(
    received: &Receiver<Event>,
    in_flight: &InFlight,
    wanted: &BTreeSet<String>,
) -> anyhow::Result<Vec<(String, SavedRows)>> {
    let mut state = Vec::new();
    loop {
        match received.recv() {
            Ok(Event::State { name, state: taken, .. }) if wanted.contains(&name) => {
                let parts = taken.parts()?.into_iter();
                state.extend(parts.map(|part| (name.clone(), part)));
            }
            Ok(Event::Done(tick)) => in_flight.done(tick.epoch),
            Ok(Event::Failed(why)) => anyhow::bail!("{why}"),
            Ok(Event::Ended) | Err(_) => return Ok(state),
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::Cell;

    use super::*;

    /// The files of trimmed segments are gone for some time before the list says so.
    #[test]
    fn the_beginning_of_a_journal_that_is_trimmed_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let looked = Cell::new(0);
        let journal = |stale: u32| {
            let looked = &looked;
            looked.set(0);
            let gone = dir.path().join("journal-000000000001.log");
            move || {
                looked.set(looked.get() + 1);
                let listed = (looked.get() <= stale).then(|| (gone.clone(), None));
                Ok(Replay::of(listed.into_iter().collect(), &[], 0))
            }
        };
        assert_eq!(since_us(journal(50)).unwrap(), None);
        assert_eq!(looked.get(), 51);
        let error = format!("{:#}", since_us(journal(u32::MAX)).unwrap_err());
        assert!(error.contains("cannot read the journal"), "{error}");
    }

    #[test]
    fn a_shadow_that_comes_no_nearer_is_not_waited_for() {
        let fed = Arc::new(AtomicU64::new(1_000));
        let pace = Pace::behind(Arc::clone(&fed));
        // As fast as what comes in, and then nearer.
        for epoch in 1..=3 {
            assert!(!pace.wait(epoch).unwrap());
            fed.fetch_add(1, Ordering::AcqRel);
            let why = pace.wait_until_near(Duration::from_millis(20)).unwrap_err().to_string();
            assert!(why.contains("the old plan goes on"), "{why}");
        }
        pace.wait(fed.load(Ordering::Acquire) - NEAR_EPOCHS).unwrap();
        pace.wait_until_near(Duration::ZERO).unwrap();
    }
}
