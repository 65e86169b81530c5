//! Counts of a key that the table has, and which of its readings are in them; see
//! [`super::counts`].

use std::collections::{BTreeMap, BTreeSet};

use super::affected::Bounds;
use super::late::Late;
use super::revise::Place;
use super::tally::{Between, Step, Tally};

/// A window that the table has, as its newest revision says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbered {
    pub(super) start_us: i64,
    pub(super) end_us: i64,
    /// Of those of its readings that were not late, the times of the first and the last one, if
    /// that is known (`is_own`); else those between which they are.
    pub(super) own_us: Bounds,
    pub(super) is_own: bool,
    pub(super) number: i64,
    pub(super) rows: i64,
    pub(super) revision: i64,
}

/// Two times, each as far as it is known.
pub(super) type MaybeBounds = (Option<i64>, Option<i64>);

impl Numbered {
    /// The numbers of its first and its last reading, each with the times between which it is.
    /// Of those that end just before `final_us` it is not known whether they are final: such
    /// numbers can have been those of later readings then.
    pub(super) fn places(&self, step: Step, final_us: i64) -> [(i64, MaybeBounds); 2] {
        let first = self.number * step.hop;
        // Late readings are behind the first one, but for those that are older than all.
        let is_first = self.is_own || self.number > 0;
        let sure = |us: i64| Some(us).filter(|us| us.saturating_add(1) < final_us);
        let start_us = (Some(self.own_us.0), sure(self.own_us.0).filter(|_| is_first));
        let end_us = (Some(self.own_us.1).filter(|_| self.is_own), sure(self.own_us.1));
        [(first, start_us), (first + step.size - 1, end_us)]
    }

    fn bounds(&self) -> Bounds {
        (self.start_us, self.end_us)
    }
}

/// A stored reading.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    /// Its time and its place in the journal.
    pub(super) at: (i64, i64),
    /// It was too late, in this group or before.
    is_late: bool,
    /// It is a late one of this group.
    is_new: bool,
    pub(super) place: Place,
}

/// What becomes of a window.
pub(super) enum Fate<'r> {
    /// It has late readings that its newest revision has not: all of its readings, and how many.
    Comes(&'r Numbered, &'r [Reading], i64),
    /// The same, but it is not known which readings it has.
    Stays(Bounds, i64),
}

/// Windows that may have late readings, without a time between them that is in none.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) range_us: Bounds,
    /// By number, each with the times between which its readings are, at most.
    windows: Vec<(Numbered, Bounds)>,
    /// By time, those that were late behind the others.
    readings: Vec<Reading>,
    /// Where those are that were not late.
    own: Vec<usize>,
    /// The number of the first of these.
    first: Between,
    /// What is older is final, and what is just before it can be.
    final_us: i64,
}

impl Run {
    /// Sets which readings were late, of those that came in one message and are of one time the
    /// last ones; with how many there were.
    fn set_late(&mut self, late: &BTreeMap<(i64, i64), i64>, is_new: impl Fn((i64, i64)) -> bool) {
        let mut same = (None, 0);
        for reading in self.readings.iter_mut().rev() {
            if same.0 != Some(reading.at) {
                same = (Some(reading.at), late.get(&reading.at).copied().unwrap_or_default());
            }
            reading.is_late = same.1 > 0;
            reading.is_new = reading.is_late && is_new(reading.at);
            same.1 -= 1;
        }
        self.readings.sort_by_key(|r| (r.at.0, r.is_late));
        self.own = (0..self.readings.len()).filter(|i| !self.readings[*i].is_late).collect();
    }

    /// The readings of a window, if the first reading here has this number.
    fn members(&self, known: &Numbered, first: i64, step: Step) -> Option<&[Reading]> {
        let from = usize::try_from(known.number * step.hop - first).ok()?;
        let to = from + usize::try_from(step.size).ok()?;
        let last = *self.own.get(to.checked_sub(1)?)?;
        let next = self.own.get(to).copied().unwrap_or(self.readings.len());
        // What is older than all is in the first window.
        let from = if known.number == 0 { 0 } else { self.own[from] };
        let is_last = self.readings[last].at.0 == known.own_us.1 || !known.is_own;
        self.readings.get(from..next).filter(|_| is_last)
    }

    /// What becomes of a window; nothing if it has no late readings but those of its newest
    /// revision.
    fn fate<'r>(&'r self, of: &'r (Numbered, Bounds), step: Step) -> Option<Fate<'r>> {
        let (known, range_us) = of;
        let had = known.rows - step.size;
        let late = |readings: &[Reading]| readings.iter().filter(|r| r.is_late).count() as i64;
        let fresh = |readings: &[Reading]| readings.iter().filter(|r| r.is_new).count() as i64;
        if let Some(first) = self.first.only()
            && let Some(members) = self.members(known, first, step)
        {
            let (late, fresh) = (late(members), fresh(members));
            if fresh == 0 || had == late {
                return None;
            }
            // It can have been final when they came, or have become it since.
            let is_known = (0..late).contains(&had) && (known.is_own || had + fresh == late);
            return Some(match is_known {
                true => Fate::Comes(known, members, fresh),
                false => Fate::Stays(known.bounds(), fresh),
            });
        }
        if self.first.only().is_some() && self.final_us <= known.own_us.1.saturating_add(1) {
            // It was not final then.
            return None;
        }
        let from = self.readings.partition_point(|r| r.at.0 < range_us.0);
        let to = self.readings.partition_point(|r| r.at.0 <= range_us.1);
        let inside = &self.readings[from..to];
        let (late, fresh) = (late(inside), fresh(inside));
        (fresh > 0 && had < late).then_some(Fate::Stays(known.bounds(), fresh))
    }

    /// Late readings of the group that are in windows which have to be there, and are not.
    fn nowhere(&self, known: &BTreeMap<i64, Numbered>, step: Step) -> Vec<(i64, i64)> {
        let (Some(first), Some(last)) = (self.first.only(), known.keys().next_back()) else {
            return Vec::new();
        };
        let is_nowhere = |at: &usize| {
            let before = self.own.partition_point(|own| own < at) as i64;
            let number = (first + before - 1).max(0);
            let from = (number - step.size).div_euclid(step.hop) + 1;
            // What comes after the last one is not final, and has it when it is.
            let mut windows = from.max(0)..=(number / step.hop).min(*last);
            windows.any(|number| !known.contains_key(&number))
        };
        let new = (0..self.readings.len()).filter(|at| self.readings[*at].is_new);
        new.filter(is_nowhere).map(|at| self.readings[at].at).collect()
    }
}

/// The late readings of a key.
pub(super) struct OfKey {
    late: Vec<Late>,
    /// What is older is final.
    pub(super) final_us: i64,
    /// Windows that are final, by their numbers.
    known: BTreeMap<i64, Numbered>,
    /// By time.
    runs: Vec<Run>,
    /// Those before are done with.
    at: usize,
    /// How many readings were late, of this group and before, by time and place in the journal.
    late_before: BTreeMap<(i64, i64), i64>,
    /// Times of late readings that are older than all windows that are known, with how many there
    /// are; and whether any are.
    outside: (Vec<(i64, i64)>, bool),
}

impl OfKey {
    pub(super) fn new(mut late: Vec<Late>) -> Self {
        let final_us = late.iter().map(|l| l.final_us).max().unwrap_or_default();
        // One can be told again with what has become final.
        late.sort_by_key(|l| (l.time_us, l.offset));
        late.dedup_by_key(|l| (l.time_us, l.offset));
        let (known, runs, late_before) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        let outside = (Vec::new(), false);
        Self { late, final_us, known, runs, at: 0, late_before, outside }
    }

    /// Forgets what is known of windows: it comes now.
    pub(super) fn begin(&mut self) {
        self.known.clear();
    }

    /// The first and the last late reading.
    pub(super) fn range_us(&self) -> Bounds {
        let us = |late: Option<&Late>| late.map_or(0, |l| l.time_us);
        (us(self.late.first()), us(self.late.last()))
    }

    /// Takes a window of the table.
    pub(super) fn know(&mut self, known: Numbered) {
        // What the step can still change is its own matter.
        if known.end_us < self.final_us && known.rows > 0 {
            self.known.insert(known.number, known);
        }
    }

    /// Whether there are windows enough before the first late reading, or none.
    pub(super) fn has_before(&self) -> bool {
        let first_us = self.range_us().0;
        self.known.contains_key(&0)
            || self.known.values().filter(|known| known.end_us < first_us).count() > 1
    }

    /// Whether there is a window after the last late reading.
    pub(super) fn has_after(&self) -> bool {
        let last_us = self.range_us().1;
        self.known.values().any(|known| last_us < known.start_us)
    }

    /// Whether windows without a reading in common are one after the other. If not, what is known
    /// of one is where it was before readings moved it, for longer than `moved_us`; where it is now
    /// was not asked.
    pub(super) fn is_in_order(&self, step: Step, moved_us: i64) -> bool {
        let more = (step.size + step.hop - 1) / step.hop;
        self.known.values().all(|known| {
            let next = self.known.range(known.number + more..).next();
            let is_long = known.own_us.1.saturating_sub(known.own_us.0) > moved_us;
            // One that was moved by a single reading ends with the first one of the next.
            let is_after = |us: i64| known.own_us.1 < us || (known.own_us.1 == us && !is_long);
            next.is_none_or(|(_, next)| is_after(next.own_us.0))
        })
    }

    /// Chooses the windows that may have late readings.
    pub(super) fn choose(&mut self) {
        let mut chosen: BTreeMap<i64, Bounds> = BTreeMap::new();
        let known: Vec<&Numbered> = self.known.values().collect();
        self.outside = (Vec::new(), !known.is_empty());
        for (us, count) in self.late.iter().map(|l| (l.time_us, l.count)) {
            // Both their starts and their ends grow.
            let begun = &known[..known.partition_point(|k| k.start_us <= us)];
            let over = begun.partition_point(|k| k.end_us < us);
            let last_us = begun[..over].last().map(|k| k.end_us);
            let last = begun[..over].iter().rev().take_while(|k| Some(k.end_us) == last_us);
            let first = known.first().filter(|k| k.number == 0 && us < k.start_us);
            for known in begun[over..].iter().chain(last).chain(first) {
                let range = chosen.entry(known.number).or_insert_with(|| known.bounds());
                *range = (range.0.min(us), range.1.max(us));
            }
            if begun.is_empty() && first.is_none() {
                self.outside.0.push((us, count));
            }
        }
        self.runs.clear();
        for (number, range_us) in chosen {
            let Some(known) = self.known.get(&number) else { continue };
            match self.runs.last_mut() {
                Some(run) if range_us.0 <= run.range_us.1 => {
                    run.range_us.1 = run.range_us.1.max(range_us.1);
                    run.windows.push((*known, range_us));
                }
                _ => self.runs.push(Run {
                    range_us,
                    windows: vec![(*known, range_us)],
                    readings: Vec::new(),
                    own: Vec::new(),
                    first: Between::ANY,
                    final_us: self.final_us,
                }),
            }
        }
    }

    /// Notes that a reading was late.
    pub(super) fn was_late(&mut self, at: (i64, i64)) {
        *self.late_before.entry(at).or_default() += 1;
    }

    /// The windows that were chosen.
    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// From the first to the last of their times.
    pub(super) fn windows_us(&self) -> Option<Bounds> {
        Some((self.runs.first()?.range_us.0, self.runs.last()?.range_us.1))
    }

    /// Takes a stored reading, by time.
    pub(super) fn read(&mut self, at: (i64, i64), place: Place) {
        while self.runs.get(self.at).is_some_and(|run| run.range_us.1 < at.0) {
            self.at += 1;
        }
        if let Some(run) = self.runs.get_mut(self.at)
            && run.range_us.0 <= at.0
        {
            run.readings.push(Reading { at, is_late: false, is_new: false, place });
        }
    }

    /// All are read: counts them.
    pub(super) fn number(&mut self, step: Step) {
        let late = &self.late;
        let is_new =
            |at: (i64, i64)| late.binary_search_by_key(&at, |l| (l.time_us, l.offset)).is_ok();
        for run in &mut self.runs {
            run.set_late(&self.late_before, is_new);
            let (from_us, more) = ([run.range_us.0], step.size / step.hop + 1);
            let numbers = || run.windows.iter().map(|(known, _)| known.number);
            let from = numbers().min().unwrap_or_default() - more;
            let near = self.known.range(from..=numbers().max().unwrap_or_default() + more);
            let near = near.map(|(number, known)| (*number, *known)).collect();
            let mut tally = Tally::new(run.range_us, from_us.into_iter(), &near);
            run.own.iter().for_each(|at| tally.add(run.readings[*at].at.0, 1));
            let numbers = tally.numbers((step, self.final_us), &near, from_us.into_iter());
            numbers.iter().for_each(|of| run.first = run.first.and(*of));
        }
    }

    /// What is to be counted to know more; none if that is not needed, or there is no more.
    pub(super) fn to_count(&self) -> Option<Tally> {
        let open = || self.runs.iter().filter(|run| run.first.is_open());
        let from_us = self.known.values().map(|k| k.start_us).min()?;
        let to_us = self.known.values().map(|k| k.end_us).max()?;
        let range_us = open().fold((from_us, to_us), |range, run| {
            (range.0.min(run.range_us.0), range.1.max(run.range_us.1))
        });
        open().next()?;
        Some(Tally::new(range_us, open().map(|run| run.range_us.0), &self.known))
    }

    /// All that was asked for is counted.
    pub(super) fn counted(&mut self, tally: &Tally, step: Step) {
        let open = || self.runs.iter().filter(|run| run.first.is_open());
        let numbers =
            tally.numbers((step, self.final_us), &self.known, open().map(|run| run.range_us.0));
        let open = self.runs.iter_mut().filter(|run| run.first.is_open());
        open.zip(numbers).for_each(|(run, of)| run.first = run.first.and(of));
    }

    /// What becomes of the windows that were chosen.
    pub(super) fn fates(&self, step: Step) -> Vec<(&Run, Fate<'_>)> {
        let windows = self.runs.iter().flat_map(|run| run.windows.iter().map(move |w| (run, w)));
        windows.filter_map(|(run, window)| Some((run, run.fate(window, step)?))).collect()
    }

    /// Times of late readings whose windows are not in the table, with how many there are; of a
    /// table that has all of its rows, if that is so.
    pub(super) fn nowhere(&self, step: Step, is_complete: bool) -> Vec<(i64, i64)> {
        let found = self.runs.iter().flat_map(|run| run.nowhere(&self.known, step));
        let found: BTreeSet<(i64, i64)> = found.collect();
        let found = self.late.iter().filter(|l| found.contains(&(l.time_us, l.offset)));
        // Where no window is final, what it is in will be.
        let (outside, has_windows) = &self.outside;
        let outside = outside.iter().filter(|_| *has_windows || !is_complete);
        found.map(|l| (l.time_us, l.count)).chain(outside.copied()).collect()
    }
}
