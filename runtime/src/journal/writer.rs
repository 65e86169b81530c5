//! The one thread that writes the journal: group commit, ticks, trimming, waiting for room.
//!
//! Invariant: an offer is answered `Ok`, and messages or a tick are handed on, only after the sync
//! that covers them. Each turn takes everything that waits, appends it with one write, syncs once,
//! answers. An idle journal syncs at once, and while a sync runs the next group collects by itself.
//!
//! A full disk or a used-up budget makes offers wait; a failed sync ends the journal for good,
//! because the kernel may have dropped what it could not write. What the sync was for is cut off:
//! the next start would find it in the kernel's memory, and take for durable what is on no disk.

use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidegate_operators::event::NoNewKeys;
use tidegate_operators::{Epoch, MessagesBuilder};

use super::epoch::Position;
use super::files::Files;
use super::follow::Follower;
use super::group::{Group, Target};
use super::inbox::{Inbox, Offer, Shared};
use super::recognize::Recognizer;
use super::room::{DiskRoom, Waits};
use super::storage::is_full;
use super::{Feed, JournalOptions};
use crate::clock::{Clock, instant};
use crate::fault;
use crate::mutation::{self, Mutation};
use crate::open_files::is_used_up;

/// An epoch is sealed early when it holds this much: bounds what operators buffer per epoch.
const EPOCH_BYTES_MAX: u64 = 32 << 20;
/// While offers wait for room, so many ticks come as soon as after messages: they take room, too,
/// and it may be long until there is any.
const HURRIED_MAX: u32 = 64;
/// After a sync, offers gather for this part of the time that it took, and not longer than this.
const GATHER_PART: u32 = 8;
const GATHER_MAX: Duration = Duration::from_millis(2);
/// First and longest pause before a full disk is tried again.
const FULL_PAUSE_MIN: Duration = Duration::from_millis(20);
const FULL_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Why the thread gives up; nobody is answered `Ok` after it.
pub(crate) struct Fatal(pub(crate) String);

/// Whether a write was done or the process is to stop first.
#[derive(PartialEq, Eq)]
enum Done {
    Yes,
    Stopped,
}

/// What one turn has to do.
struct Turn {
    offers: Vec<Offer>,
    trim_through: Epoch,
    /// Why offers wait although the writer is free.
    waits: Option<Waits>,
    stop: bool,
}

/// State of the thread.
pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) files: Files,
    pub(crate) position: Position,
    pub(crate) recognizer: Recognizer,
    pub(crate) options: JournalOptions,
    pub(crate) clock: Clock,
    pub(crate) sources: Vec<String>,
    /// Up to here the active segment holds whole epochs, durable. (`position` says what comes next
    /// in the group that is being written, and so does not tell.)
    pub(crate) sealed_bytes: u64,
    pub(crate) sealed_at: Instant,
    /// Until then offers gather for the next group.
    pub(crate) gather_until: Instant,
    pub(crate) trimmed_through: Epoch,
    pub(crate) disk: DiskRoom,
    /// Offers wait for what the next checkpoints make room for.
    pub(crate) hurries: bool,
    /// Ticks since there was a message.
    pub(crate) empty_ticks: u32,
    /// Epochs with messages are closed to new keys.
    pub(crate) no_new_keys: Option<Arc<NoNewKeys>>,
}

impl Writer {
    /// Runs until it is asked to stop or fails.
    pub(crate) fn run(mut self, mut follower: Follower) {
        let guard = CloseOnExit(self.shared.clone());
        self.publish_segments();
        let result = self.turns(&mut follower);
        if let Err(Fatal(reason)) = result {
            tracing::error!(reason, "the journal failed, nothing is acknowledged any more");
            self.shared.set_failed(reason.clone());
            self.shared.update_stats(|stats| stats.unhealthy = Some(reason.clone()));
            drop(guard);
            if let Some(on_fatal) = &self.options.on_fatal {
                on_fatal(&reason);
            }
        }
    }

    fn turns(&mut self, sink: &mut Follower) -> Result<(), Fatal> {
        loop {
            let turn = self.wait();
            if self.turn(turn, sink)? == Done::Stopped {
                return Ok(());
            }
        }
    }

    /// Does what there is to do, all of it.
    fn turn(&mut self, turn: Turn, sink: &mut Follower) -> Result<Done, Fatal> {
        let stop = turn.stop;
        self.trim(turn.trim_through);
        if turn.waits == Some(Waits::Room) && self.roll_to_trim(turn.trim_through)? == Done::Stopped
        {
            return Ok(Done::Stopped);
        }
        let full = self.files.active.bytes >= self.segment_bytes();
        if full && self.position.messages == 0 && self.roll()? == Done::Stopped {
            return Ok(Done::Stopped);
        }
        let more = !turn.offers.is_empty();
        let done = self.commit(turn.offers, stop, sink)?;
        Ok(if stop && !more { Done::Stopped } else { done })
    }

    /// Sleeps until there is something to do.
    fn wait(&mut self) -> Turn {
        let shared = self.shared.clone();
        let mut inbox = shared.inbox();
        loop {
            match self.next_turn(&mut inbox) {
                Ok(turn) => {
                    drop(inbox);
                    shared.update_stats(|stats| {
                        stats.waiting_for_room = turn.waits == Some(Waits::Room);
                        stats.waiting_for_memory = turn.waits == Some(Waits::Memory);
                    });
                    return turn;
                }
                Err(left) => inbox = wait_for(&shared, inbox, left),
            }
        }
    }

    /// What there is to do now, or how long there will be nothing if nobody asks.
    fn next_turn(&mut self, inbox: &mut Inbox) -> Result<Turn, Duration> {
        let gather = self.gather_until.saturating_duration_since(instant());
        if !gather.is_zero() && !inbox.stop {
            return Err(gather);
        }
        let (offers, waits) = self.take(inbox);
        self.no_new_keys.clone_from(&inbox.no_new_keys);
        let left = self.tick_due().saturating_duration_since(instant());
        let trim = inbox.trim_through > self.trimmed_through;
        if !offers.is_empty() || trim || inbox.stop || left.is_zero() {
            let (trim_through, stop) = (inbox.trim_through, inbox.stop);
            return Ok(Turn { offers, trim_through, waits, stop });
        }
        Err(left)
    }

    fn tick_due(&self) -> Instant {
        // Checkpoints are cut at ticks.
        let hurries = self.hurries && self.empty_ticks < HURRIED_MAX;
        let interval = if self.position.messages > 0 || hurries {
            self.options.epoch_interval
        } else {
            self.options.idle_interval
        };
        self.sealed_at + interval
    }

    /// Writes one group, syncs, answers, hands on.
    fn commit(
        &mut self,
        offers: Vec<Offer>,
        stop: bool,
        sink: &mut Follower,
    ) -> Result<Done, Fatal> {
        let mut group = self.encode(offers, stop);
        if group.bytes.is_empty() {
            // Nothing but repetitions of what is durable.
            self.publish_stats(&group);
            group.waiters.into_iter().for_each(|waiter| waiter.answer(Ok(())));
            return Ok(Done::Yes);
        }
        if mutation::on(Mutation::AckBeforeSync) {
            group.waiters.drain(..).for_each(|waiter| waiter.answer(Ok(())));
        }
        let bytes = std::mem::take(&mut group.bytes);
        let durable_bytes = self.files.active.bytes;
        self.disk.written_bytes += bytes.len() as u64;
        let written = self.retry_while_full("write", |writer| writer.files.active.append(&bytes));
        fault::point("after_wal_write");
        let synced = match written {
            Ok(Done::Yes) => self.sync(),
            other => other,
        };
        match synced {
            Ok(Done::Yes) => {}
            not_durable => {
                if let Err(Fatal(reason)) = &not_durable {
                    self.shared.set_failed(reason.clone());
                    self.files.active.forget(durable_bytes);
                }
                let error = self.shared.end();
                group.waiters.into_iter().for_each(|waiter| waiter.answer(Err(error.clone())));
                fault::point("sync_failed");
                return not_durable;
            }
        }
        if self.position.messages == 0 {
            self.sealed_bytes = self.files.active.bytes;
        }
        fault::point("after_sync");
        if group.feed.iter().any(|feed| matches!(feed, Feed::Tick(_))) {
            fault::point("epoch_seal");
        }
        self.publish_stats(&group);
        group.waiters.into_iter().for_each(|waiter| waiter.answer(Ok(())));
        self.shared.extent().active.1 = self.sealed_bytes;
        group.feed.into_iter().for_each(|feed| sink.push(feed));
        Ok(Done::Yes)
    }

    fn encode(&mut self, offers: Vec<Offer>, stop: bool) -> Group {
        let active = &self.files.active;
        let to = Target { salt: active.header.salt, synced_to: active.bytes };
        let mut group = Group::default();
        let had_messages = self.position.messages > 0 || !offers.is_empty();
        if !offers.is_empty() {
            if self.position.sources != self.sources {
                group.add_sources(&self.sources, &mut self.position, to);
            }
            group.add_offers(offers, &mut self.recognizer, &mut self.position, to);
        }
        let now = instant();
        let due = now >= self.tick_due();
        let large = self.position.bytes >= EPOCH_BYTES_MAX
            || active.bytes + group.bytes.len() as u64 >= self.segment_bytes();
        // Also an empty epoch at the end: its tick is where the last checkpoint is cut.
        if due || stop || (had_messages && large) {
            if let Some(mark) = &self.no_new_keys
                && self.position.messages > 0
            {
                let mut event = MessagesBuilder::default();
                mark.put(&mut event, self.clock.now_us());
                group.add_run(event.finish(0, 0), &mut self.position, to);
            }
            self.empty_ticks = if had_messages { 0 } else { self.empty_ticks.saturating_add(1) };
            group.add_tick(self.clock.now_us(), &mut self.position, to);
            self.sealed_at = now;
        }
        group
    }

    fn sync(&mut self) -> Result<Done, Fatal> {
        let start = instant();
        self.files.active.sync().map_err(|error| self.fatal("sync", &error))?;
        let took = instant().saturating_duration_since(start);
        // Who was answered just now offers again in a moment: a sync that starts without them makes
        // them wait for two.
        self.gather_until = instant() + (took / GATHER_PART).min(GATHER_MAX);
        self.shared.update_stats(|stats| {
            stats.syncs += 1;
            stats.last_sync_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        });
        Ok(Done::Yes)
    }

    fn fatal(&self, action: &str, error: &io::Error) -> Fatal {
        Fatal(format!("{}: {action}: {error}", self.files.active.path.display()))
    }

    /// Tries until it works or fails for another reason than a full disk or too many open files;
    /// meanwhile nothing is answered, so that sources wait, and segments may be trimmed.
    fn retry_while_full(
        &mut self,
        action: &str,
        mut attempt: impl FnMut(&mut Self) -> io::Result<()>,
    ) -> Result<Done, Fatal> {
        let mut pause = FULL_PAUSE_MIN;
        loop {
            let error = match attempt(self) {
                Ok(()) => break,
                Err(error) if is_full(&error) => error,
                Err(error) => return Err(self.fatal(action, &error)),
            };
            if pause == FULL_PAUSE_MIN {
                let path = self.files.dir.display();
                match is_used_up(&error) {
                    true => tracing::error!(%path, %error, "no file can be opened, sources wait"),
                    false => tracing::error!(%path, %error, "the disk is full, sources wait"),
                }
                self.files.trim(self.trimmed_through, i64::MAX);
                self.publish_segments();
            }
            let reason = format!("{}: {action}: {error}", self.files.dir.display());
            self.shared.update_stats(|stats| {
                stats.disk_full = Some(reason.clone());
                stats.unhealthy = Some(reason);
            });
            if self.pause(pause) == Done::Stopped {
                return Ok(Done::Stopped);
            }
            pause = (pause * 2).min(FULL_PAUSE_MAX);
        }
        if pause > FULL_PAUSE_MIN {
            tracing::info!(path = %self.files.dir.display(), "the journal is written again");
            self.shared.update_stats(|stats| (stats.unhealthy, stats.disk_full) = (None, None));
        }
        Ok(Done::Yes)
    }

    /// Sleeps for `pause`, less if something can be trimmed or the process is to stop.
    fn pause(&mut self, pause: Duration) -> Done {
        let shared = self.shared.clone();
        let end = instant() + pause;
        let mut inbox = shared.inbox();
        loop {
            if inbox.stop {
                return Done::Stopped;
            }
            let through = inbox.trim_through;
            if through > self.trimmed_through {
                drop(inbox);
                self.trim(through);
                return Done::Yes;
            }
            let left = end.saturating_duration_since(instant());
            if left.is_zero() {
                return Done::Yes;
            }
            #[cfg(test)]
            {
                drop(inbox);
                let simulated = crate::sim::inject::wait(left);
                inbox = shared.inbox();
                if simulated {
                    continue;
                }
            }
            inbox = wait_for(&shared, inbox, left);
        }
    }

    fn trim(&mut self, through: Epoch) {
        if through > self.trimmed_through {
            self.files.trim(through, self.clock.now_us());
            self.publish_segments();
            self.trimmed_through = through;
            self.publish_stats(&Group::default());
        }
    }

    /// Only closed segments can be trimmed: with the budget used up, the active one is closed too,
    /// so that its room comes back as soon as its epochs are not needed any more. One that has
    /// little, such as what the engine says of the full journal, gives no room back: the next one
    /// begins with the same copy of what is recognised.
    fn roll_to_trim(&mut self, through: Epoch) -> Result<Done, Fatal> {
        let whole = self.position.messages == 0;
        let holds = self.files.active.header.first_offset < self.position.next_offset;
        if whole && holds && self.files.active.is_worth_closing() && self.roll()? == Done::Stopped {
            return Ok(Done::Stopped);
        }
        // Whoever waits is more than what is only kept.
        self.files.trim(through, i64::MAX);
        self.publish_segments();
        self.publish_stats(&Group::default());
        Ok(Done::Yes)
    }

    fn roll(&mut self) -> Result<Done, Fatal> {
        let done = self.retry_while_full("create a segment", |writer| {
            writer.files.roll(&writer.position, &writer.recognizer)
        })?;
        if done == Done::Yes {
            self.sealed_bytes = self.files.active.bytes;
        }
        self.publish_segments();
        // The new file has no table of sources yet.
        self.position.sources.clear();
        Ok(done)
    }

    fn segment_bytes(&self) -> u64 {
        self.options.segment_bytes_effective()
    }

    /// Says where sealed epochs are, after segments have come or gone.
    fn publish_segments(&self) {
        let closed = self.files.sealed.iter().map(|s| (s.path.clone(), s.last_epoch)).collect();
        let mut extent = self.shared.extent();
        extent.closed = closed;
        // Both at once: who reads must not take the new one to be as long as the one before.
        extent.active = (self.files.active.path.clone(), self.sealed_bytes);
    }

    fn publish_stats(&self, group: &Group) {
        self.shared.update_stats(|stats| {
            stats.bytes_on_disk = self.files.bytes();
            stats.segments = self.files.sealed.len() + 1;
            stats.sealed_epoch = self.position.epoch - 1;
            stats.sealed_time_us = self.position.last_time_us;
            stats.messages += group.messages;
            stats.repeated += group.repeated;
        });
    }
}

/// The writer by turns, for the simulation: what [`Writer::run`] does, without a thread.
#[cfg(test)]
impl Writer {
    pub(crate) fn begin(&mut self) {
        self.publish_segments();
    }

    /// Takes one turn if there is something to do; whether the writer goes on, and whether it did
    /// anything.
    pub(crate) fn step(&mut self, sink: &mut Follower) -> Result<(bool, bool), String> {
        let shared = self.shared.clone();
        let Ok(turn) = self.next_turn(&mut shared.inbox()) else { return Ok((true, false)) };
        match self.turn(turn, sink) {
            Ok(done) => Ok((done == Done::Yes, true)),
            Err(Fatal(reason)) => {
                shared.set_failed(reason.clone());
                Err(reason)
            }
        }
    }
}

/// However the thread ends, nobody is left waiting.
struct CloseOnExit(Arc<Shared>);

impl Drop for CloseOnExit {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.set_failed("the writer thread panicked".into());
        }
        self.0.close();
    }
}

fn wait_for<'a>(
    shared: &'a Shared,
    inbox: MutexGuard<'a, Inbox>,
    at_most: Duration,
) -> MutexGuard<'a, Inbox> {
    shared.wake.wait_timeout(inbox, at_most).unwrap_or_else(PoisonError::into_inner).0
}
