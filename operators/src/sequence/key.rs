//! What is known of one key: the readings that can still be revised, and what was found in them.

use std::collections::{BTreeMap, VecDeque};

use super::automaton::{Automaton, Entry, Found, Match};
use crate::keys::anew_us;
use crate::outage::Outages;
use crate::spec::Pattern;

/// Readings of a key that are kept at most; beyond that the oldest is final early.
pub const ENTRIES_MAX: usize = 1 << 16;

/// What is looked for, and how long others are waited for; microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub(super) pattern: Pattern,
    pub(super) disorder_us: i64,
    pub(super) idle_close_us: i64,
    pub(super) keep_us: i64,
    /// So long an outage may be unknown.
    pub(super) known_after_us: i64,
}

/// What a row says of a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Say {
    Stands,
    Withdrawn,
}

/// A row to be.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) id: u32,
    pub(super) say: Say,
    pub(super) found: Match,
    pub(super) revision: i64,
}

/// The state of a key. Times in microseconds.
#[derive(Clone, Debug)]
pub(super) struct KeyState {
    /// Newest event time.
    pub(super) clock_us: i64,
    /// Up to here readings are in order. Later than the clock if so much silence was worth a row.
    pub(super) settled_us: i64,
    /// What is older cannot come any more.
    pub(super) final_us: i64,
    /// Tick time of the last row.
    pub(super) seen_us: i64,
    /// Tick time of the last row that moved the clock.
    pub(super) moved_us: i64,
    /// After all readings that are final.
    pub(super) base: Automaton,
    /// The others, in order.
    pub(super) entries: VecDeque<Entry>,
    /// After the first `taken` of these.
    pub(super) tip: Automaton,
    pub(super) taken: usize,
    /// What was found that `base` has not seen the end of.
    pub(super) found: VecDeque<Match>,
    /// Of that, what was told, with its revision.
    pub(super) told: VecDeque<(Match, i64)>,
    /// What was withdrawn and can be found again: by its start, with its last revision.
    pub(super) gone: BTreeMap<i64, i64>,
    /// A reading came too late to go on from `tip`.
    pub(super) revised: bool,
    /// Earliest tick time at which the key is on the list of those to look at.
    pub(super) wake_us: Option<i64>,
    /// Epoch of the last row.
    pub(super) epoch: u64,
}

impl Default for KeyState {
    fn default() -> Self {
        Self {
            clock_us: i64::MIN,
            settled_us: i64::MIN,
            final_us: i64::MIN,
            seen_us: 0,
            moved_us: 0,
            base: Automaton::default(),
            entries: VecDeque::new(),
            tip: Automaton::default(),
            taken: 0,
            found: VecDeque::new(),
            told: VecDeque::new(),
            gone: BTreeMap::new(),
            revised: false,
            wake_us: None,
            epoch: 0,
        }
    }
}

impl KeyState {
    /// Takes a reading that is not final.
    pub(super) fn insert(&mut self, mut entry: Entry) {
        entry.heard = self.takes_mark(entry.time_us);
        let at = self.entries.partition_point(|e| *e <= entry);
        // What is older than settled may come before time that has passed already.
        self.revised |= at < self.taken || entry.time_us < self.settled_us;
        self.entries.insert(at, entry);
    }

    /// Whether the time before a reading that comes now counts as silence: as it does for those of
    /// the same time, else for the next one. The first reading after an outage is the first by its
    /// time, not by its arrival: of those after it, something is known.
    fn takes_mark(&mut self, time_us: i64) -> bool {
        let at = self.entries.partition_point(|e| e.time_us <= time_us);
        if let Some(same) = at.checked_sub(1).and_then(|at| self.entries.get(at))
            && same.time_us == time_us
        {
            return same.heard;
        }
        let Some(next_us) = self.entries.get(at).filter(|e| !e.heard).map(|e| e.time_us) else {
            return true;
        };
        let next = self.entries.range_mut(at..).take_while(|e| e.time_us == next_us);
        next.for_each(|e| e.heard = true);
        false
    }

    /// Nothing could be heard for a part of the time after this clock. If silence has been judged
    /// since, that part is over and was not what counted.
    pub(super) fn missed_since(&mut self, clock_us: i64) {
        let at = self.entries.partition_point(|e| e.time_us <= clock_us);
        let Some(first_us) = self.entries.get(at).map(|e| e.time_us) else { return };
        if self.settled_us <= clock_us {
            let all = self.entries.range_mut(at..);
            all.take_while(|e| e.time_us == first_us).for_each(|e| e.heard = false);
        }
    }

    /// Everything from `base` on, as of what is settled: after it was loaded.
    pub(super) fn restored(&mut self, pattern: Pattern) {
        self.begin();
        self.advance(pattern);
    }

    /// From `base` on, again.
    fn begin(&mut self) {
        self.tip = self.base.clone();
        self.taken = 0;
        self.found = self.base.active.iter().cloned().collect();
    }

    /// Brings `tip` to what is settled; whether anything was found.
    fn advance(&mut self, pattern: Pattern) -> bool {
        let mut news = Vec::new();
        while let Some(entry) = self.entries.get(self.taken)
            && entry.time_us <= self.settled_us
        {
            self.tip.step(pattern, entry, &mut news);
            self.taken += 1;
        }
        if is_heard(self.entries.get(self.taken)) {
            self.tip.pass(pattern, self.settled_us.saturating_sub(1), &mut news);
        }
        let changed = !news.is_empty();
        for new in news {
            // Only one is not over at a time: the last. One that begins with the same time as the
            // one before it is the same again.
            let (Found::Completed(found) | Found::Over(found)) = new;
            self.found.pop_back_if(|last| last.start_us == found.start_us);
            self.found.push_back(found);
        }
        changed
    }

    /// Readings up to `horizon_us` are in order. Tells what is new.
    ///
    /// What is final is counted from the clock and not from the horizon: a device that was silent
    /// may only have been cut off, and what it buffered must not be too late.
    pub(super) fn settle(&mut self, id: u32, rule: Rule, horizon_us: i64, out: &mut Vec<Told>) {
        let pattern = rule.pattern;
        let surplus = self.entries.len().saturating_sub(ENTRIES_MAX);
        let forced_us = surplus.checked_sub(1).map_or(i64::MIN, |at| self.entries[at].time_us);
        self.settled_us = self.settled_us.max(horizon_us).max(forced_us);
        let revised = std::mem::take(&mut self.revised);
        if revised {
            self.begin();
        }
        if self.advance(pattern) || revised {
            // Without a revision, only the last that was told can have changed.
            let from = if revised { 0 } else { self.told.len().saturating_sub(1) };
            self.tell(id, from, out);
        }
        let kept_us = rule.disorder_us.saturating_add(rule.keep_us);
        let final_us = self.clock_us.saturating_sub(kept_us).max(forced_us);
        self.final_us = self.final_us.max(final_us);
        self.fold(pattern);
    }

    /// Tells what differs from what was told, both by their starts, from this one on.
    fn tell(&mut self, id: u32, from: usize, out: &mut Vec<Told>) {
        let mut say = |say: Say, found: &Match, revision: i64| {
            out.push(Told { id, say, found: found.clone(), revision });
        };
        let mut old = self.told.split_off(from).into_iter().peekable();
        for found in self.found.iter().skip(from) {
            while let Some((told, revision)) = old.next_if(|t| t.0.start_us < found.start_us) {
                say(Say::Withdrawn, &told, revision + 1);
                self.gone.insert(told.start_us, revision + 1);
            }
            let revision = match old.next_if(|t| t.0.start_us == found.start_us) {
                Some((told, revision)) if told == *found => revision,
                Some((_, revision)) => {
                    say(Say::Stands, found, revision + 1);
                    revision + 1
                }
                None => {
                    // Who watches it sees it begin, too, if it is over already.
                    let first = self.gone.remove(&found.start_us).map_or(0, |last| last + 1);
                    say(Say::Stands, &Match { over_us: i64::MAX, ..found.clone() }, first);
                    let is_over = found.over_us != i64::MAX;
                    if is_over {
                        say(Say::Stands, found, first + 1);
                    }
                    first + i64::from(is_over)
                }
            };
            self.told.push_back((found.clone(), revision));
        }
        for (told, revision) in old {
            say(Say::Withdrawn, &told, revision + 1);
            self.gone.insert(told.start_us, revision + 1);
        }
    }

    /// Lets go of readings that are final, or too many (of a clock that stands, all are of one
    /// time), and of what they say for good.
    fn fold(&mut self, pattern: Pattern) {
        let mut news = Vec::new();
        while let Some(entry) = self.entries.front()
            && (entry.time_us < self.final_us || self.entries.len() > ENTRIES_MAX)
            && self.taken > 0
        {
            self.base.step(pattern, entry, &mut news);
            self.entries.pop_front();
            self.taken -= 1;
        }
        if is_heard(self.entries.front()) {
            self.base.pass(pattern, self.final_us.saturating_sub(1), &mut news);
        }
        for new in news {
            if let Found::Over(over) = new {
                self.found.pop_front_if(|f| *f == over);
                self.told.pop_front_if(|(told, _)| *told == over);
            }
        }
        if !self.gone.is_empty() {
            // Nothing that begins before this is found any more.
            let waiting = self.base.waiting.iter().map(|w| w.0);
            let counted = self.base.counted.front().map(|c| c.time_us);
            let from_us = waiting.chain(counted).fold(self.final_us, i64::min);
            self.gone = self.gone.split_off(&from_us);
        }
    }

    /// When something happens next if no row of the key comes, by its own clock.
    pub(super) fn timer_us(&self, pattern: Pattern) -> Option<i64> {
        // After an outage, the reading that came first says what was.
        self.tip.next_us(pattern).filter(|_| is_heard(self.entries.get(self.taken)))
    }

    /// At which tick time to look at the key if no row of it comes, and up to where its readings
    /// are in order then: not further than what is waited for. `None`: only when the outages have
    /// changed, or never.
    pub(super) fn next_look(&self, rule: Rule, outages: &Outages) -> Option<(i64, i64)> {
        let waits = (self.taken < self.entries.len()).then(|| {
            let silence_us = rule.disorder_us.max(rule.idle_close_us);
            (self.seen_us.saturating_add(silence_us), self.clock_us)
        });
        let timer = self.timer_us(rule.pattern).and_then(|at_us| {
            let past_us = at_us.saturating_add(1);
            let silence_us = past_us.saturating_add(rule.disorder_us).saturating_sub(self.clock_us);
            // Silence while nothing could be heard is none: it begins anew.
            // An outage of which nobody knows yet may explain it.
            let silence_us = silence_us.saturating_add(rule.known_after_us);
            Some((anew_us(outages, self.seen_us, silence_us.max(rule.idle_close_us))?, past_us))
        });
        waits.into_iter().chain(timer).min()
    }

    /// The key is taken for gone: what is not over is.
    pub(super) fn forgotten(&mut self, id: u32, after_us: i64, out: &mut Vec<Told>) {
        let over_us = self.clock_us.saturating_add(after_us);
        for (found, revision) in self.told.drain(..).filter(|t| t.0.over_us == i64::MAX) {
            let found = Match { over_us, ..found };
            out.push(Told { id, say: Say::Stands, found, revision: revision + 1 });
        }
    }
}

/// Whether the time up to the next reading counts as silence.
fn is_heard(next: Option<&Entry>) -> bool {
    next.is_none_or(|entry| entry.heard)
}
