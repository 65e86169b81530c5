//! Late readings of a key that are near to each other, and what the states around them are without
//! and with them; see [`super::states`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::group::Days;
use super::late::{Late, last_offset};
use super::revise::{Changes, Known, Made};

const HOUR_US: i64 = 3_600_000_000;

/// Late readings of a key that are further apart are different parts.
const APART_US: i64 = 24 * HOUR_US;

/// How far before and after a part it is gone through at first, and how much further with each
/// further try; after so many tries through all that there is.
const AROUND_US: i64 = HOUR_US;
const FURTHER: i64 = 16;
const TRIES: u32 = 4;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Part {
    /// By time.
    late: Vec<Late>,
    /// What is older is not revised by the step any more.
    final_us: i64,
    tries: u32,
    /// What is gone through: from when, and until before when.
    pub(super) from_us: i64,
    pub(super) to_us: i64,
    /// Before the late readings, the last one from which on it is known what is open.
    pub(super) reset_us: Option<i64>,
    /// The last one with another reading after it.
    pub(super) last_reset_us: Option<i64>,
    /// The last reading.
    pub(super) newest_us: i64,
    /// The states that the table has, which begin in this time or reach into it.
    known: Vec<Known>,
    /// Starts of states that are none, with their newest revision.
    gone: BTreeMap<i64, i64>,
    /// Without and with the late readings, by their starts.
    pub(super) made: [BTreeMap<i64, Made>; 2],
    /// Starts of what is open at the end.
    pub(super) open_us: [Option<i64>; 2],
}

/// What becomes of a part.
pub(super) enum Outcome {
    /// It is known what changes.
    Changed,
    /// It is to be gone through more.
    Again,
    /// The step can still change what comes after it.
    Open,
    /// Nothing changes.
    Stays,
}

impl Part {
    fn new(late: Vec<Late>, final_us: i64) -> Self {
        Self {
            late,
            final_us,
            tries: 0,
            from_us: 0,
            to_us: 0,
            reset_us: None,
            last_reset_us: None,
            newest_us: i64::MIN,
            known: Vec::new(),
            gone: BTreeMap::new(),
            made: [BTreeMap::new(), BTreeMap::new()],
            open_us: [None; 2],
        }
    }

    /// Its first late reading.
    pub(super) fn first_us(&self) -> i64 {
        self.late.first().map_or(i64::MAX, |l| l.time_us)
    }

    /// Its last one.
    pub(super) fn last_us(&self) -> i64 {
        self.late.last().map_or(i64::MAX, |l| l.time_us)
    }

    /// How many there are.
    pub(super) fn late(&self) -> i64 {
        self.late.iter().map(|l| l.count).sum()
    }

    /// Says what is to be gone through, of which nothing is known yet.
    fn begin(&mut self) {
        let around_us = (self.tries < TRIES).then(|| AROUND_US * FURTHER.pow(self.tries));
        let before_us = around_us.map(|us| self.first_us().saturating_sub(us));
        let after_us = around_us.map(|us| self.last_us().saturating_add(us));
        self.from_us = before_us.unwrap_or(0).max(0);
        self.to_us = after_us.unwrap_or(i64::MAX).min(self.final_us);
        (self.reset_us, self.last_reset_us, self.newest_us) = (None, None, i64::MIN);
        (self.known, self.gone) = (Vec::new(), BTreeMap::new());
        (self.made, self.open_us) = ([BTreeMap::new(), BTreeMap::new()], [None; 2]);
    }

    /// Takes the next state of the table by its start; those that begin before what is gone through
    /// may come last.
    pub(super) fn know(&mut self, known: Known) {
        if self.to_us <= known.start_us {
            return;
        }
        if known.rows == 0 {
            self.gone.insert(known.start_us, known.revision);
        } else {
            self.known.push(known);
        }
    }

    /// From when on it is known what is open: before its first reading a key has nothing open.
    fn certain_us(&self) -> Option<i64> {
        self.reset_us.or_else(|| (self.from_us == 0).then_some(0))
    }

    /// States that are over before this time will not change by what comes later.
    fn over_us(&self) -> i64 {
        // The step may still take a reading that none of the older ones comes after.
        self.newest_us.min(self.to_us)
    }

    /// The states of the table that are over.
    fn over(&self) -> impl Iterator<Item = &Known> {
        let (from_us, to_us) = (self.certain_us().unwrap_or(i64::MAX), self.over_us());
        self.known.iter().filter(move |k| from_us <= k.start_us && k.end_us < to_us)
    }

    /// Those that were made, over or not.
    fn made(&self, with_late: bool, are_over: bool) -> impl Iterator<Item = &Made> {
        let (from_us, to_us) = (self.certain_us().unwrap_or(i64::MAX), self.over_us());
        let made = self.made[usize::from(with_late)].values();
        made.filter(move |m| from_us <= m.start_us && (m.end_us < to_us) == are_over)
    }

    /// Whether what comes after it is the same without and with the late readings.
    fn is_same_after(&self) -> bool {
        let begins_after = |start_us: i64| start_us > self.last_us();
        let bounds = |made: &Made| (made.start_us, made.end_us, made.rows);
        let [without, with] = self.open_us;
        without == with
            && without.is_none_or(begins_after)
            && self.made(false, false).map(bounds).eq(self.made(true, false).map(bounds))
            && self.made(true, false).all(|m| m.end_us > self.to_us || begins_after(m.start_us))
    }

    /// What becomes of it. The table has to have every state (`is_complete`).
    pub(super) fn outcome(&self, days: &Days, is_complete: bool) -> Outcome {
        let certain_us = self.certain_us();
        let Some(certain_us) = certain_us.filter(|_| self.is_same_after()) else {
            let no_more = certain_us.is_some() && self.to_us == self.final_us;
            return if no_more { Outcome::Open } else { Outcome::Again };
        };
        // What had no effect is among the readings, and can end what the table has.
        let is_cut = |k: &Known| k.start_us < certain_us && certain_us < k.end_us;
        let is_same = self.over().count() == self.made(false, true).count()
            && self.over().zip(self.made(false, true)).all(|(known, made)| made.is_as(known));
        let is_whole = is_complete && days.has_all((certain_us, self.to_us));
        match is_same && is_whole && !self.known.iter().any(is_cut) {
            true => Outcome::Changed,
            false => Outcome::Stays,
        }
    }

    /// What is to be written.
    pub(super) fn change(&self, changes: &mut Changes) {
        let mut before: BTreeMap<i64, &Known> = self.over().map(|k| (k.start_us, k)).collect();
        for made in self.made(true, true) {
            let known = before.remove(&made.start_us);
            // A late reading in it makes it one more. Of its first time it can also end the state
            // of the reading that began it, and another late one begin this one.
            let begins_anew = self.late.binary_search_by_key(&made.start_us, |l| l.time_us).is_ok();
            if !begins_anew && known.is_some_and(|known| made.is_as(known)) {
                continue;
            }
            let revision = known.map(|k| k.revision).or(self.gone.get(&made.start_us).copied());
            changes.make(made.place, revision);
        }
        for (start_us, known) in before {
            if let Some(made) = self.made[0].get(&start_us) {
                changes.withdraw(made.place, *known);
            }
        }
    }
}

/// The late readings of a key.
pub(super) struct OfKey {
    /// Times and places in the journal of all.
    pub(super) late: BTreeSet<(i64, i64)>,
    final_us: i64,
    /// The place in the journal of the last reading that counts.
    pub(super) last_offset: i64,
    /// The one at hand.
    pub(super) part: Option<Part>,
    later: VecDeque<Vec<Late>>,
}

impl OfKey {
    /// By time.
    pub(super) fn new(late: Vec<Late>) -> Self {
        let final_us = late.iter().map(|l| l.final_us).max().unwrap_or_default();
        let last_offset = last_offset(&late);
        let all = late.iter().map(|l| (l.time_us, l.offset)).collect();
        let mut later: VecDeque<Vec<Late>> = VecDeque::new();
        for late in late {
            let is_near = |l: &Late| late.time_us.saturating_sub(l.time_us) <= APART_US;
            match later.back_mut() {
                Some(part) if part.last().is_some_and(is_near) => part.push(late),
                _ => later.push_back(vec![late]),
            }
        }
        Self { late: all, final_us, last_offset, part: None, later }
    }

    /// Has a part at hand, if one is left, and says what is to be gone through; what comes before
    /// the end of that is of the same part.
    pub(super) fn begin(&mut self) {
        let next = || self.later.pop_front().map(|late| Part::new(late, self.final_us));
        let Some(mut part) = self.part.take().or_else(next) else { return };
        part.begin();
        while let Some(late) = self.later.pop_front_if(|l| l[0].time_us < part.to_us) {
            part.late.extend(late);
            part.begin();
        }
        self.part = Some(part);
    }

    /// What becomes of the part at hand; then it is not, unless it is to be gone through more. Of a
    /// part that the step can still change only that is given up.
    pub(super) fn judge(&mut self, days: &Days, is_complete: bool) -> Option<(Outcome, Part)> {
        let mut part = self.part.take()?;
        let outcome = part.outcome(days, is_complete);
        match outcome {
            Outcome::Changed | Outcome::Stays => return Some((outcome, part)),
            Outcome::Again => part.tries += 1,
            Outcome::Open => {
                let reset_us = part.last_reset_us.unwrap_or(i64::MIN);
                let over = part.late.partition_point(|l| l.time_us < reset_us);
                if over == part.late.len() {
                    return Some((Outcome::Stays, part));
                }
                let open = Part::new(part.late.split_off(over), self.final_us);
                self.part = Some(part).filter(|part| !part.late.is_empty());
                return Some((outcome, open));
            }
        }
        self.part = Some(part);
        None
    }
}
