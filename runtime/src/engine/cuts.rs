//! When state is cut: between the feed, which asks for cuts, and the thread that saves them.
//!
//! Invariant ([`Cuts::due`]): at most one checkpoint is under way, so what they hold in memory
//! is bounded by the state itself, however long tables cannot be committed. Only the end of the
//! process and a change of the plan ask for one more.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidegate_operators::{Epoch, Tick};

/// What is known of a cut when it is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// Tick time of its epoch, microseconds since the Unix epoch.
    pub(crate) time_us: i64,
    /// Offset of the first message after it.
    pub(crate) offset: u64,
    /// When it was asked for.
    pub(crate) asked_at: Instant,
    /// It is of all groups.
    pub(crate) whole: bool,
}

/// Shared by the feed and the saver.
#[derive(Debug)]
pub(crate) struct Cuts {
    every: Duration,
    under_way: Mutex<State>,
    /// The next cut has to be of all groups.
    whole: AtomicBool,
    /// Epoch and tick time of the newest checkpoint; 0 without one.
    saved: AtomicU64,
    saved_us: AtomicI64,
}

/// After a checkpoint that came to nothing, the next one for lack of room waits for so long.
const RETRY: Duration = Duration::from_secs(1);

/// Room in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// Nobody has to care.
    Enough,
    /// Soon there will be none.
    Little,
    /// Sources wait for it.
    None,
}

#[derive(Debug)]
struct State {
    cuts: BTreeMap<Epoch, Cut>,
    last: Instant,
    /// The next one comes as soon as none is under way.
    soon: bool,
    /// What there is in the journal: for lack of it, so does one that makes room.
    room: Room,
    /// How long the newest that was finished took.
    took: Duration,
    /// Offsets of the last two that were saved, the older one first.
    offsets: [u64; 2],
    /// The newest that was asked for.
    newest: Epoch,
    /// Why the newest that was tried found no room on its disk, if it did not.
    disk_full: Option<String>,
}

impl State {
    /// Whether a cut at this offset makes room that is needed, if that of epoch `saved` was the
    /// newest that was saved. Epochs go with the second checkpoint after them, so there have to be
    /// messages after the last but one. While sources go on, state is saved for it half of the time
    /// at most; when they wait there is nothing else to do. One that came to nothing is not tried
    /// again at each tick.
    fn makes_room(&self, offset: u64, saved: Epoch) -> bool {
        let rest = match self.room {
            Room::Enough => return false,
            Room::Little => 2 * self.took,
            Room::None => Duration::ZERO,
        };
        let rest = if self.newest > saved { rest.max(RETRY) } else { rest };
        self.last.elapsed() >= rest && offset > self.offsets[0]
    }
}

impl Cuts {
    /// Cuts about `every` so often.
    pub(crate) fn new(every: Duration) -> Self {
        let state = State {
            cuts: BTreeMap::new(),
            last: Instant::now(),
            soon: false,
            room: Room::Enough,
            took: Duration::ZERO,
            offsets: [0; 2],
            newest: 0,
            disk_full: None,
        };
        Self {
            every,
            under_way: Mutex::new(state),
            whole: AtomicBool::new(false),
            saved: AtomicU64::new(0),
            saved_us: AtomicI64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether state is to be cut at this tick (then it is under way), and whether all of it.
    pub(crate) fn due(&self, tick: Tick, offset: u64, always: bool) -> Option<bool> {
        let mut state = self.lock();
        let asked = state.soon
            || state.makes_room(offset, self.saved())
            || state.last.elapsed() >= self.every;
        if !(always || asked && state.cuts.is_empty()) {
            return None;
        }
        (state.last, state.soon) = (Instant::now(), false);
        state.newest = tick.epoch;
        let whole = self.whole.swap(false, Ordering::AcqRel);
        let cut = Cut { time_us: tick.time_us, offset, asked_at: state.last, whole };
        state.cuts.insert(tick.epoch, cut);
        Some(whole)
    }

    /// Somebody waits for a checkpoint after this epoch: unless one is under way, the next cut does
    /// not wait for its time.
    pub(crate) fn hasten(&self, after: Epoch) {
        let mut state = self.lock();
        state.soon = state.cuts.range(after + 1..).next().is_none();
    }

    /// Notes how much room the journal has. Checkpoints make some: for lack of it they come before
    /// their time, as often as it makes sense.
    pub(crate) fn note_room(&self, room: Room) {
        self.lock().room = room;
    }

    /// Whether a cut after epoch `after`, and up to `through`, is of all groups. Of those that are
    /// not finished.
    pub(crate) fn has_whole(&self, after: Epoch, through: Epoch) -> bool {
        let state = self.lock();
        after < through && state.cuts.range(after + 1..=through).any(|(_, cut)| cut.whole)
    }

    /// The cut of `epoch` was saved or given up, and so were those before it.
    pub(crate) fn finish(&self, epoch: Epoch) -> Option<Cut> {
        let mut state = self.lock();
        let later = state.cuts.split_off(&(epoch + 1));
        let cut = std::mem::replace(&mut state.cuts, later).remove(&epoch);
        if let Some(cut) = cut {
            state.took = cut.asked_at.elapsed();
        }
        cut
    }

    /// The cut of `epoch` is not made after all; a later one is in its place.
    pub(crate) fn give_up(&self, epoch: Epoch) {
        if self.finish(epoch).is_some_and(|cut| cut.whole) {
            self.want_whole();
        }
    }

    /// The next cut is to be of all groups: files are scattered, or a cut was lost.
    pub(crate) fn want_whole(&self) {
        self.whole.store(true, Ordering::Release);
    }

    /// Notes epoch and tick time of the newest checkpoint, and the offset of the first message
    /// after it.
    pub(crate) fn note_saved(&self, epoch: Epoch, time_us: i64, offset: u64) {
        let mut state = self.lock();
        state.offsets = [state.offsets[1], offset];
        state.disk_full = None;
        drop(state);
        self.saved_us.store(time_us, Ordering::Release);
        self.saved.store(epoch, Ordering::Release);
    }

    /// Notes why there was no room for one: that holds until there is a checkpoint again.
    pub(crate) fn note_disk_full(&self, why: String) {
        self.lock().disk_full = Some(why);
    }

    /// Why there is no room for checkpoints at present, as far as that is known.
    pub(crate) fn disk_full(&self) -> Option<String> {
        self.lock().disk_full.clone()
    }

    /// Epoch of the newest checkpoint; 0 without one.
    pub(crate) fn saved(&self) -> Epoch {
        self.saved.load(Ordering::Acquire)
    }

    /// Tick time of the newest checkpoint; `None` without one.
    pub(crate) fn saved_us(&self) -> Option<i64> {
        Some(self.saved_us.load(Ordering::Acquire)).filter(|time_us| *time_us != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tick(epoch: Epoch) -> Tick {
        Tick { epoch, time_us: epoch as i64 }
    }

    #[test]
    fn one_checkpoint_at_a_time_but_for_the_last() {
        let cuts = Cuts::new(Duration::ZERO);
        assert_eq!(cuts.due(tick(1), 5, false), Some(false));
        assert_eq!(cuts.due(tick(2), 6, false), None, "the first is under way");
        cuts.want_whole();
        assert_eq!(cuts.due(tick(3), 7, true), Some(true), "the end of the process");
        let cut = cuts.finish(3).expect("it was asked for");
        assert_eq!((cut.time_us, cut.offset), (3, 7));
        assert!(cuts.finish(1).is_none(), "given up with the later one");
        assert_eq!(cuts.due(tick(4), 7, false), Some(false));
    }

    #[test]
    fn who_waits_for_a_checkpoint_gets_the_next_one_and_no_second_one_at_a_time() {
        let cuts = Cuts::new(Duration::MAX);
        assert_eq!(cuts.due(tick(1), 0, false), None, "it is not time");
        assert_eq!(cuts.due(tick(2), 0, true), Some(false));
        cuts.hasten(3);
        assert_eq!(cuts.due(tick(4), 0, false), None, "one is under way, but too old");
        cuts.finish(2);
        assert_eq!(cuts.due(tick(5), 0, false), Some(false));
        cuts.hasten(3);
        cuts.finish(5);
        cuts.note_saved(5, 50, 0);
        assert_eq!((cuts.saved(), cuts.saved_us()), (5, Some(50)));
        assert_eq!(cuts.due(tick(6), 0, false), None, "the one that was waited for is enough");
    }

    #[test]
    fn a_disk_is_full_until_there_is_a_checkpoint_again() {
        let cuts = Cuts::new(Duration::ZERO);
        cuts.note_saved(1, 10, 0);
        assert_eq!(cuts.disk_full(), None);
        cuts.note_disk_full("why".into());
        assert_eq!(cuts.due(tick(2), 0, false), Some(false));
        cuts.finish(2);
        assert_eq!(cuts.disk_full().as_deref(), Some("why"), "that one came to nothing");
        cuts.note_saved(3, 30, 0);
        assert_eq!(cuts.disk_full(), None);
    }

    #[test]
    fn a_journal_that_wants_for_room_gets_the_two_checkpoints_that_make_it() {
        let cuts = Cuts::new(Duration::MAX);
        let due = |epoch, offset| {
            let due = cuts.due(tick(epoch), offset, false).is_some();
            cuts.finish(epoch);
            if due {
                cuts.note_saved(epoch, 0, offset);
            }
            cuts.lock().took = Duration::ZERO;
            due
        };
        assert!(!due(1, 5), "there is room");
        cuts.note_room(Room::Little);
        assert_eq!([due(2, 5), due(3, 5), due(4, 5)], [true, true, false], "a third makes none");
        assert_eq!([due(5, 6), due(6, 6), due(7, 6)], [true, true, false]);
        cuts.note_room(Room::Enough);
        assert!(!due(8, 7));
        cuts.note_room(Room::Little);
        cuts.lock().took = Duration::from_secs(3600);
        assert_eq!(cuts.due(tick(9), 7, false), None, "saving takes half of the time at most");
        cuts.note_room(Room::None);
        assert_eq!(cuts.due(tick(10), 7, false), Some(false), "sources wait for it");
        assert_eq!(cuts.due(tick(11), 8, false), None, "one at a time");
        // It comes to nothing, and makes no room.
        cuts.finish(10);
        assert_eq!(cuts.due(tick(12), 7, false), None, "it has just been tried");
        cuts.lock().took = Duration::ZERO;
        cuts.note_room(Room::Little);
        assert_eq!(cuts.due(tick(12), 7, false), None, "nor while sources go on");
        cuts.lock().last -= RETRY;
        assert_eq!(cuts.due(tick(13), 7, false), Some(false));
    }
}
