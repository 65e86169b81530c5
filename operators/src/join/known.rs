//! The state of each key of a join, and when the key was heard last: one that is silent waits for
//! no partner any more, and one that is silent for longer is forgotten, but for how far it came. A
//! time in which nothing could be heard is no silence.

use std::mem::take;

use arrow::array::RecordBatch;

use crate::intern::{Fresh, KeyInterner};
use crate::keys::{Quiet, Remnant, Remnants, anew_us, gone_us};
use crate::operator::OperatorError;
use crate::outage::Outages;
use crate::slabs::Slabs;
use crate::snapshot::GroupSet;

/// The keys of a join.
pub(super) struct Known<K> {
    /// Their state, by id.
    pub(super) keys: Slabs<K>,
    /// What is left of those that were forgotten.
    pub(super) remnants: Remnants,
    idle: Quiet,
    gone: Quiet,
    outages: Outages,
    /// How long a key is silent before it waits no longer, and before it is forgotten:
    /// microseconds.
    silent_us: (i64, i64),
    changed: GroupSet,
}

impl<K: Clone + Default> Known<K> {
    /// No keys, of at most `most` of which something is left; `silent_us` is how long one is silent
    /// before it waits no longer, and before it is forgotten.
    pub(super) fn new(most: u32, silent_us: (i64, i64)) -> Self {
        Self {
            keys: Slabs::default(),
            remnants: Remnants::new(most),
            idle: Quiet::new(silent_us.0),
            gone: Quiet::new(silent_us.1),
            outages: Outages::default(),
            silent_us,
            changed: GroupSet::default(),
        }
    }

    /// Begins with keys, which can be back: then with what is left of them.
    pub(super) fn start(&mut self, fresh: &[Fresh], back: impl Fn(Remnant) -> K) {
        for key in fresh {
            let state = self.remnants.take(*key).map_or_else(K::default, &back);
            self.restore(key.id, state, i64::MIN);
        }
    }

    /// Has a key as it was, heard last at that tick time.
    pub(super) fn restore(&mut self, id: u32, state: K, seen_us: i64) {
        self.keys.put(id as usize, state);
        self.idle.start(id, seen_us);
        self.gone.start(id, seen_us);
    }

    /// A key was heard at that tick time.
    pub(super) fn heard(&mut self, id: u32, interner: &KeyInterner, now_us: i64) {
        self.idle.heard(id, now_us);
        self.gone.heard(id, now_us);
        self.change(id, interner);
    }

    /// Something of a key is not as it was.
    pub(super) fn change(&mut self, id: u32, interner: &KeyInterner) {
        self.changed.insert(interner.group(id));
    }

    /// The groups of keys of which something changed since this was asked last; all if they are
    /// asked for.
    pub(super) fn cut(&mut self, whole: bool) -> GroupSet {
        let changed = take(&mut self.changed);
        if whole { GroupSet::ALL } else { changed }
    }

    /// By id, the tick time at which a key was heard last.
    pub(super) fn seen_us(&self) -> Slabs<i64> {
        self.gone.seen_us()
    }

    /// Whether a key is silent in the very tick that it is heard in.
    pub(super) fn is_silent_at_once(&self) -> bool {
        self.idle.is_at_once()
    }

    /// Keys that have become silent for so long that they wait no longer.
    pub(super) fn silent(&mut self, now_us: i64) -> Vec<u32> {
        let (idle_us, outages) = (self.silent_us.0, &self.outages);
        self.idle.silent(now_us, |_, seen_us| anew_us(outages, seen_us, idle_us))
    }

    /// Forgets keys that were silent for so long that nothing of them is expected any more, but for
    /// what `left` keeps of them; `longer_us` is for how much longer one is expected.
    pub(super) fn forget(
        &mut self,
        interner: &mut KeyInterner,
        now_us: i64,
        longer_us: impl Fn(&K) -> i64,
        left: impl Fn(&K) -> Remnant,
    ) -> Result<(), OperatorError> {
        let (keys, outages) = (&self.keys, &self.outages);
        let (idle_us, forget_us) = self.silent_us;
        let gone = self.gone.silent(now_us, |id, seen_us| {
            let forget_us = forget_us.saturating_add(longer_us(&keys[id as usize]));
            gone_us(outages, seen_us, (idle_us, forget_us))
        });
        let left: Vec<(u32, Remnant)> =
            gone.iter().map(|id| (*id, left(&keys[*id as usize]))).collect();
        self.remnants.keep(interner, &left)?;
        for id in gone {
            self.changed.insert(interner.group(id));
            let is_last = interner.forget(id);
            self.keys.forget(id as usize, is_last);
            self.idle.forget(id, is_last);
            self.gone.forget(id, is_last);
        }
        Ok(())
    }

    /// Takes the log of outages.
    pub(super) fn outages(&mut self, rows: &RecordBatch) {
        if rows.num_rows() > 0 {
            self.outages.take(rows);
            self.idle.changed();
            self.gone.changed();
        }
    }
}
