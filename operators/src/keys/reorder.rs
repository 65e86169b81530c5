//! Puts the readings of each key into event-time order, as far as the configured disorder allows.
//!
//! A reading waits until its key's clock (the newest event time of the key) is `disorder_us` past
//! it, or the key was silent for `idle_close_us` of tick time. Equal times keep the order of
//! arrival. Nothing waits for ever, and no key's buffer grows beyond [`READINGS_PER_KEY_MAX`] and
//! [`BYTES_PER_KEY_MAX`]. What comes when a newer reading of its key is through already is late:
//! whoever asks decides what becomes of it. With [`Reorder::whole_times`] the readings of one time
//! go through together, so one of a time that is through is late as well.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{LISTED_BYTES, anew_us};
use crate::bound::{Load, vec_bytes};
use crate::outage::Outages;
use crate::slabs::Slabs;

/// Readings of one key that wait at most; beyond that the oldest goes early. At ten readings a
/// second this is more than an hour of disorder, far beyond what a device's clock explains.
pub(crate) const READINGS_PER_KEY_MAX: usize = 1 << 16;

/// Bytes of one key's readings that wait at most, where they have a weight.
pub(crate) const BYTES_PER_KEY_MAX: usize = 1 << 20;

/// Most readings of a key that wait, and one that is there for a moment.
pub(crate) fn waiting(load: &Load, disorder_us: i64) -> u64 {
    let most = READINGS_PER_KEY_MAX as u64;
    load.rows_within(disorder_us).map_or(most, |n| n.min(most)).saturating_add(1)
}

/// Bytes of a key and of what waits of it, without what values hold elsewhere.
pub(crate) fn waiting_bytes<V>(load: &Load, disorder_us: i64) -> u64 {
    vec_bytes(waiting(load, disorder_us), size_of::<(i64, V)>())
        .saturating_add(size_of::<Waiting<V>>() as u64 + LISTED_BYTES)
}

/// What waits for one key.
#[derive(Clone, Debug)]
pub(crate) struct Waiting<V> {
    pub(crate) clock_us: i64,
    /// Event time of the newest reading that went through.
    pub(crate) through_us: i64,
    /// Tick time of the key's newest reading; 0 before any.
    pub(crate) seen_us: i64,
    /// Event time and value, ordered by time.
    pub(crate) readings: VecDeque<(i64, V)>,
    /// Bytes that the values hold elsewhere.
    bytes: usize,
    /// Whether `wake` has an entry for the key.
    queued: bool,
}

impl<V> Default for Waiting<V> {
    fn default() -> Self {
        Self {
            clock_us: i64::MIN,
            through_us: i64::MIN,
            seen_us: 0,
            readings: VecDeque::new(),
            bytes: 0,
            queued: false,
        }
    }
}

impl<V> Waiting<V> {
    /// Whether more waits than may.
    fn is_full(&self) -> bool {
        self.readings.len() > READINGS_PER_KEY_MAX || self.bytes > BYTES_PER_KEY_MAX
    }

    fn release(&mut self, id: u32, weigh: Weigh<V>, ready: &mut Ready<V>) {
        if let Some((time_us, value)) = self.readings.pop_front() {
            self.bytes -= weigh(&value);
            self.through_us = self.through_us.max(time_us);
            ready.push(id, time_us, value);
        }
    }
}

/// Readings in the order in which they are to be used.
pub(crate) struct Ready<V> {
    pub(crate) ids: Vec<u32>,
    pub(crate) times_us: Vec<i64>,
    pub(crate) values: Vec<V>,
}

impl<V> Default for Ready<V> {
    fn default() -> Self {
        Self { ids: Vec::new(), times_us: Vec::new(), values: Vec::new() }
    }
}

impl<V> Ready<V> {
    pub(crate) fn push(&mut self, id: u32, time_us: i64, value: V) {
        self.ids.push(id);
        self.times_us.push(time_us);
        self.values.push(value);
    }
}

/// Bytes that a value holds elsewhere.
pub(crate) type Weigh<V> = fn(&V) -> usize;

/// What became of a reading.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pushed<V> {
    /// It waits, or went through at its time.
    InOrder,
    /// The same, and an older one had to go before its time, because too many of its key wait.
    Forced,
    /// A newer one of its key is through already. It was not taken.
    Late(V),
}

/// The buffers of all keys.
pub(crate) struct Reorder<V> {
    disorder_us: i64,
    idle_close_us: i64,
    whole_times: bool,
    weigh: Weigh<V>,
    pub(crate) keys: Slabs<Waiting<V>>,
    /// Keys by the tick time at which they may have become idle; at most one entry per key.
    wake: BTreeMap<i64, Vec<u32>>,
    /// Those that would be if no outage lasted.
    held: BTreeSet<u32>,
}

impl<V: Clone> Reorder<V> {
    pub(crate) fn new(disorder_us: i64, idle_close_us: i64) -> Self {
        Self {
            disorder_us,
            idle_close_us,
            whole_times: false,
            weigh: |_| 0,
            keys: Slabs::default(),
            wake: BTreeMap::new(),
            held: BTreeSet::new(),
        }
    }

    /// The readings of one time go through together: none before the key's clock is more than
    /// `disorder_us` past it, and none of it afterwards. They hold so many bytes elsewhere.
    pub(crate) fn whole_times(self, weigh: Weigh<V>) -> Self {
        Self { whole_times: true, weigh, ..self }
    }

    /// A key of which nothing waits yet.
    pub(crate) fn start(&mut self, id: u32) {
        self.keys.put(id as usize, Waiting::default());
    }

    /// A key is forgotten; nothing of it waits.
    pub(crate) fn forget(&mut self, id: u32, is_last: bool) {
        self.keys.forget(id as usize, is_last);
    }

    /// Bytes held, given the keys that there are, without what values hold elsewhere.
    pub(crate) fn size_bytes(&self, ids: impl Iterator<Item = u32>) -> usize {
        let waiting = ids.map(|id| self.keys[id as usize].readings.capacity());
        let waiting = waiting.sum::<usize>() * size_of::<(i64, V)>();
        let wake = self.wake.values().map(|ids| ids.capacity() * size_of::<u32>() + 64);
        self.keys.size_bytes() + waiting + wake.sum::<usize>()
    }

    /// Changes what waits of this key for this time, if anything does, and releases what is too
    /// much by that.
    pub(crate) fn merge(
        &mut self,
        id: u32,
        (time_us, tick_us): (i64, i64),
        with: impl FnOnce(&mut V),
        ready: &mut Ready<V>,
    ) -> bool {
        let key = &mut self.keys[id as usize];
        let at = key.readings.partition_point(|(t, _)| *t < time_us);
        let Some((_, value)) = key.readings.get_mut(at).filter(|r| r.0 == time_us) else {
            return false;
        };
        let before = (self.weigh)(value);
        with(value);
        key.bytes = key.bytes + (self.weigh)(value) - before;
        key.seen_us = tick_us;
        while key.is_full() {
            key.release(id, self.weigh, ready);
        }
        true
    }

    /// What waited when the state was saved, in its order.
    pub(crate) fn restore(&mut self, id: u32, time_us: i64, value: V) {
        let key = &mut self.keys[id as usize];
        key.bytes += (self.weigh)(&value);
        key.readings.push_back((time_us, value));
    }

    /// Takes a reading and releases what its time allows.
    pub(crate) fn push(
        &mut self,
        id: u32,
        (time_us, value): (i64, V),
        tick_us: i64,
        ready: &mut Ready<V>,
    ) -> Pushed<V> {
        let key = &mut self.keys[id as usize];
        key.seen_us = tick_us;
        if time_us < key.through_us || self.whole_times && time_us == key.through_us {
            return Pushed::Late(value);
        }
        key.bytes += (self.weigh)(&value);
        key.clock_us = key.clock_us.max(time_us);
        match key.readings.back() {
            Some((last_us, _)) if *last_us > time_us => {
                let at = key.readings.partition_point(|(t, _)| *t <= time_us);
                key.readings.insert(at, (time_us, value));
            }
            _ => key.readings.push_back((time_us, value)),
        }
        let passed_us = key.clock_us.saturating_sub(self.disorder_us);
        let passed_us = passed_us.saturating_sub(i64::from(self.whole_times));
        while key.readings.front().is_some_and(|(t, _)| *t <= passed_us) {
            key.release(id, self.weigh, ready);
        }
        let forced = key.is_full();
        while key.is_full() {
            key.release(id, self.weigh, ready);
        }
        self.queue(id);
        if forced { Pushed::Forced } else { Pushed::InOrder }
    }

    /// Makes sure that a key with waiting readings is looked at when it may be idle.
    pub(crate) fn queue(&mut self, id: u32) {
        let key = &mut self.keys[id as usize];
        if !key.queued && !key.readings.is_empty() {
            key.queued = true;
            let due_us = key.seen_us.saturating_add(self.idle_close_us);
            self.wake.entry(due_us).or_default().push(id);
        }
    }

    /// Releases everything of keys that were silent for long enough at tick time `now_us`.
    pub(crate) fn release_idle(&mut self, now_us: i64, ready: &mut Ready<V>) {
        self.release_quiet(&Outages::default(), now_us, ready);
    }

    /// The same where a time in which nothing could be heard is no silence: while an outage lasts
    /// no key is silent, and after it each has its whole time anew.
    pub(crate) fn release_quiet(&mut self, outages: &Outages, now_us: i64, ready: &mut Ready<V>) {
        while let Some(entry) = self.wake.first_entry().filter(|e| *e.key() <= now_us) {
            for id in entry.remove() {
                let key = &mut self.keys[id as usize];
                match anew_us(outages, key.seen_us, self.idle_close_us) {
                    _ if key.readings.is_empty() => key.queued = false,
                    None => drop(self.held.insert(id)),
                    Some(due_us) if due_us > now_us => {
                        self.wake.entry(due_us).or_default().push(id);
                    }
                    Some(_) => {
                        key.queued = false;
                        while !key.readings.is_empty() {
                            key.release(id, self.weigh, ready);
                        }
                    }
                }
            }
        }
    }

    /// The outages are others than before.
    pub(crate) fn outages_changed(&mut self) {
        for id in std::mem::take(&mut self.held) {
            self.keys[id as usize].queued = false;
            self.queue(id);
        }
    }

    /// Releases everything of the keys that there are.
    pub(crate) fn release_all(&mut self, ids: impl Iterator<Item = u32>, ready: &mut Ready<V>) {
        for id in ids {
            while !self.keys[id as usize].readings.is_empty() {
                self.keys[id as usize].release(id, self.weigh, ready);
            }
        }
    }
}
