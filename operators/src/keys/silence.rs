//! Which keys were silent for long enough, by ticks alone.
//!
//! Invariant: a key is told at the first tick that is `after_us` or more later than the tick of its
//! last row, also if its operator was stopped and loaded in between.

use std::collections::BTreeMap;

use crate::bound::tree_bytes;
use crate::outage::Outages;
use crate::slabs::Slabs;

/// Bytes of a key in such a list: at worst it is alone at its time, in a vector of four.
pub(crate) const LISTED_BYTES: u64 =
    tree_bytes(size_of::<(i64, Vec<u32>)>()) + 4 * size_of::<u32>() as u64;

/// Watches the keys of one operator.
pub(crate) struct Silence {
    after_us: i64,
    /// Tick time of each key's last row; the least time if the key is not watched.
    pub(crate) seen_us: Slabs<i64>,
    /// Watched keys by the tick time at which to look at them, each once.
    due: BTreeMap<i64, Vec<u32>>,
}

impl Silence {
    pub(crate) fn new(after_us: i64) -> Self {
        Self { after_us, seen_us: Slabs::default(), due: BTreeMap::new() }
    }

    /// Whether a key is silent at the tick of its own row.
    pub(crate) fn is_at_once(&self) -> bool {
        self.after_us <= 0
    }

    /// A key that is new, or was loaded, with the tick time of its last row (the least time: none).
    pub(crate) fn start(&mut self, id: u32, seen_us: i64) {
        self.seen_us.put(id as usize, i64::MIN);
        if seen_us != i64::MIN {
            self.heard(id, seen_us);
        }
    }

    /// A row of a key.
    pub(crate) fn heard(&mut self, id: u32, now_us: i64) {
        let seen_us = &mut self.seen_us[id as usize];
        if *seen_us == i64::MIN {
            self.due.entry(now_us.saturating_add(self.after_us)).or_default().push(id);
        }
        *seen_us = now_us;
    }

    /// A key that was told to be silent, but is not to be forgotten before `at_us`; heard last at
    /// the tick `seen_us`.
    pub(crate) fn again(&mut self, id: u32, seen_us: i64, at_us: i64) {
        self.seen_us[id as usize] = seen_us;
        self.due.entry(at_us).or_default().push(id);
    }

    /// Keys that are silent for long enough now. They are no longer watched until they are heard.
    pub(crate) fn silent(&mut self, now_us: i64) -> Vec<u32> {
        self.silent_since(now_us).into_iter().map(|(id, _)| id).collect()
    }

    /// The same, each with the tick at which it was heard last.
    pub(crate) fn silent_since(&mut self, now_us: i64) -> Vec<(u32, i64)> {
        let mut silent = Vec::new();
        while let Some(entry) = self.due.first_entry().filter(|e| *e.key() <= now_us) {
            for id in entry.remove() {
                let seen_us = self.seen_us[id as usize];
                let due_us = seen_us.saturating_add(self.after_us);
                if due_us <= now_us {
                    self.seen_us[id as usize] = i64::MIN;
                    silent.push((id, seen_us));
                } else {
                    self.due.entry(due_us).or_default().push(id);
                }
            }
        }
        silent
    }

    pub(crate) fn forget(&mut self, id: u32, is_last: bool) {
        self.seen_us.forget(id as usize, is_last);
    }

    pub(crate) fn size_bytes(&self) -> usize {
        let due = self.due.values().map(|ids| ids.capacity() * size_of::<u32>() + 64);
        self.seen_us.size_bytes() + due.sum::<usize>()
    }
}

/// The same where a time in which nothing could be heard is no silence: while an outage lasts no
/// key is silent, and after it each has its whole time anew.
pub(crate) struct Quiet {
    silence: Silence,
    /// Keys that would be told if no outage lasted, each with the tick of its last row.
    held: BTreeMap<u32, i64>,
}

/// Bytes of a key that is held.
pub(crate) const HELD_BYTES: u64 = tree_bytes(size_of::<(u32, i64)>());

/// From which tick time on a key heard last at a tick was silent for `after_us`, as far as it had
/// its whole time anew after the last outage. `None`: while one lasts.
pub(crate) fn anew_us(outages: &Outages, seen_us: i64, after_us: i64) -> Option<i64> {
    Some(outages.over_us()?.max(seen_us).saturating_add(after_us))
}

/// From which tick time on a key heard last at a tick can be forgotten: `gone_us` passed in which
/// it could be heard, and it had its whole `idle_us` anew. `None`: while an outage lasts.
pub(crate) fn gone_us(
    outages: &Outages,
    seen_us: i64,
    (idle_us, gone_us): (i64, i64),
) -> Option<i64> {
    Some(outages.quiet_for(seen_us, gone_us)?.max(anew_us(outages, seen_us, idle_us)?))
}

impl Quiet {
    pub(crate) fn new(after_us: i64) -> Self {
        Self { silence: Silence::new(after_us), held: BTreeMap::new() }
    }

    /// See [`Silence::is_at_once`].
    pub(crate) fn is_at_once(&self) -> bool {
        self.silence.is_at_once()
    }

    /// See [`Silence::start`].
    pub(crate) fn start(&mut self, id: u32, seen_us: i64) {
        self.held.remove(&id);
        self.silence.start(id, seen_us);
    }

    /// A row of a key.
    pub(crate) fn heard(&mut self, id: u32, now_us: i64) {
        self.held.remove(&id);
        self.silence.heard(id, now_us);
    }

    /// The outages are others than before.
    pub(crate) fn changed(&mut self) {
        for (id, seen_us) in std::mem::take(&mut self.held) {
            self.silence.again(id, seen_us, seen_us);
        }
    }

    /// Keys that are silent for long enough now, given from which tick time on a key heard last at
    /// a tick is. They are no longer watched until they are heard.
    pub(crate) fn silent(
        &mut self,
        now_us: i64,
        at_us: impl Fn(u32, i64) -> Option<i64>,
    ) -> Vec<u32> {
        let mut silent = Vec::new();
        for (id, seen_us) in self.silence.silent_since(now_us) {
            match at_us(id, seen_us) {
                None => drop(self.held.insert(id, seen_us)),
                Some(at_us) if at_us > now_us => self.silence.again(id, seen_us, at_us),
                Some(_) => silent.push(id),
            }
        }
        silent
    }

    /// The tick of each key's last row; the least time if it is not watched.
    pub(crate) fn seen_us(&self) -> Slabs<i64> {
        let mut all = self.silence.seen_us.clone();
        for (id, seen_us) in &self.held {
            all[*id as usize] = *seen_us;
        }
        all
    }

    pub(crate) fn forget(&mut self, id: u32, is_last: bool) {
        self.held.remove(&id);
        self.silence.forget(id, is_last);
    }
}
