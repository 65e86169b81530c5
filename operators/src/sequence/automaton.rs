//! What is looked for, as an automaton over the readings of one key in the order of their times.
//!
//! A step is a pure function of the automaton and a reading; time that passes without one is a step
//! too. So what an automaton finds in a list of readings depends on the list alone.

use std::collections::VecDeque;

use crate::picked::Values;
use crate::spec::Pattern;

/// A reading, as far as the pattern is concerned.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    pub(super) time_us: i64,
    /// What came before it was heard; false for the first reading after an outage.
    pub(super) heard: bool,
    /// It can be the first reading of a match.
    pub(super) first: bool,
    /// It can be the last one, or is one of those that are counted.
    pub(super) last: bool,
    pub(super) values: Values,
}

/// A match; times in microseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Match {
    /// Time of its first reading.
    pub(super) start_us: i64,
    /// When it was complete.
    pub(super) completed_us: i64,
    /// When it was over; the greatest time while it is not.
    pub(super) over_us: i64,
    /// How many readings made it.
    pub(super) matched: i64,
    pub(super) first: Values,
    pub(super) last: Values,
}

/// A reading that was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    /// How many readings of the key came before it.
    pub(super) number: i64,
    pub(super) time_us: i64,
    pub(super) values: Values,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Automaton {
    /// The first reading of what may become a match.
    pub(super) waiting: Option<(i64, Values)>,
    /// The match that is not over.
    pub(super) active: Option<Match>,
    /// How many readings there were.
    pub(super) number: i64,
    /// The newest of those that are counted, at most as many as make a match.
    pub(super) counted: VecDeque<Counted>,
}

/// What a step found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Completed(Match),
    Over(Match),
}

impl Automaton {
    /// Takes the next reading.
    pub(super) fn step(&mut self, pattern: Pattern, entry: &Entry, found: &mut Vec<Found>) {
        if let Pattern::Without { within_us } = pattern
            && !entry.heard
        {
            // Whether what was waited for came while nothing could be heard, nobody knows.
            self.waiting.take_if(|w| w.0.saturating_add(within_us) < entry.time_us);
        }
        let before_us = entry.time_us.saturating_sub(1);
        self.pass(pattern, before_us, found);
        match pattern {
            Pattern::Then { within_us } => self.then(within_us, entry, found),
            Pattern::Without { .. } => self.without(entry, found),
            Pattern::Among { times, of } => {
                self.count(entry, times);
                let from = self.number - of;
                while self.counted.pop_front_if(|c| c.number < from).is_some() {}
                self.counts(times, entry.time_us, found);
            }
            Pattern::Times { times, within_us } => {
                let from_us = entry.time_us.saturating_sub(within_us);
                while self.counted.pop_front_if(|c| c.time_us <= from_us).is_some() {}
                // Too few are left before this one may be one more.
                self.counts_not(times, entry, found);
                self.count(entry, times);
                self.counts(times, entry.time_us, found);
            }
        }
    }

    /// The next time at which something happens without a reading.
    pub(super) fn next_us(&self, pattern: Pattern) -> Option<i64> {
        match pattern {
            Pattern::Without { within_us } => {
                self.waiting.as_ref().map(|w| w.0.saturating_add(within_us))
            }
            Pattern::Times { within_us, .. } if self.active.is_some() => {
                self.counted.front().map(|c| c.time_us.saturating_add(within_us))
            }
            _ => None,
        }
    }

    /// Time passes: nothing comes up to and with this time. What happens at that time happens only
    /// once it is over, because a reading of that time comes first.
    pub(super) fn pass(&mut self, pattern: Pattern, to_us: i64, found: &mut Vec<Found>) {
        let Some(at_us) = self.next_us(pattern).filter(|at_us| *at_us <= to_us) else { return };
        match pattern {
            Pattern::Without { .. } => {
                if let Some((start_us, values)) = self.waiting.take() {
                    let (first, last) = (values.clone(), values);
                    self.complete((start_us, first), (at_us, last), 1, found);
                }
            }
            _ => self.over(at_us, found),
        }
    }

    fn complete(
        &mut self,
        (start_us, first): (i64, Values),
        (completed_us, last): (i64, Values),
        matched: i64,
        found: &mut Vec<Found>,
    ) {
        let made = Match { start_us, completed_us, over_us: i64::MAX, matched, first, last };
        found.push(Found::Completed(made.clone()));
        self.active = Some(made);
    }

    fn over(&mut self, over_us: i64, found: &mut Vec<Found>) {
        if let Some(active) = self.active.take() {
            found.push(Found::Over(Match { over_us, ..active }));
        }
    }

    fn then(&mut self, within_us: i64, entry: &Entry, found: &mut Vec<Found>) {
        if !entry.last {
            self.over(entry.time_us, found);
        } else if let Some(first) = self.waiting.take_if(|w| w.0 < entry.time_us)
            && entry.time_us.saturating_sub(first.0) <= within_us
        {
            self.over(entry.time_us, found);
            self.complete(first, (entry.time_us, entry.values.clone()), 2, found);
        }
        if entry.first {
            self.waiting = Some((entry.time_us, entry.values.clone()));
        }
    }

    fn without(&mut self, entry: &Entry, found: &mut Vec<Found>) {
        if entry.last {
            self.waiting.take_if(|w| w.0 < entry.time_us);
            self.over(entry.time_us, found);
        }
        // While one is waited for, or is known not to have come, others change nothing.
        if entry.first && self.waiting.is_none() && self.active.is_none() {
            self.waiting = Some((entry.time_us, entry.values.clone()));
        }
    }

    fn count(&mut self, entry: &Entry, times: i64) {
        if entry.last {
            let (number, time_us) = (self.number, entry.time_us);
            self.counted.push_back(Counted { number, time_us, values: entry.values.clone() });
            if self.counted.len() as i64 > times {
                self.counted.pop_front();
            }
        }
        self.number += 1;
    }

    /// Whether enough are counted decides whether there is a match.
    fn counts(&mut self, times: i64, time_us: i64, found: &mut Vec<Found>) {
        if (self.counted.len() as i64) < times {
            return self.over(time_us, found);
        }
        if self.active.is_some() {
            return;
        }
        if let Some((first, last)) = self.counted.front().zip(self.counted.back()) {
            let first = (first.time_us, first.values.clone());
            let last = (time_us, last.values.clone());
            self.complete(first, last, times, found);
        }
    }

    fn counts_not(&mut self, times: i64, entry: &Entry, found: &mut Vec<Found>) {
        let left = self.counted.len() as i64 + i64::from(entry.last);
        if left < times {
            self.over(entry.time_us, found);
        }
    }
}
