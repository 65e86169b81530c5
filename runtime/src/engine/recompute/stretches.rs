//! The stretches of a key: its sessions and late readings that no pause longer than `gap` divides.
//!
//! With a maximum, a late reading moves cuts that come after it, and none before: a session that
//! had been cut by then is as it was, and so is all before it. So of a stretch only that is made
//! again which begins with the first session that a late reading can reach. Of what is before only
//! the time is asked, since what stays keeps its whole stretch.

use std::collections::{BTreeMap, BTreeSet};

use super::affected::Bounds;
use super::kept::Stayed;
use super::late::{Late, last_offset};
use super::revise::{Known, Made};

/// See the module's head. Both ends belong to it.
#[derive(Debug)]
pub(super) struct Stretch {
    /// Where it begins, microseconds.
    pub(super) since_us: i64,
    /// What of it late readings can reach.
    pub(super) bounds: Bounds,
    /// How many readings of the group are too late for it, and the time of the last.
    pub(super) late: i64,
    last_late_us: i64,
    pub(super) known: Vec<Known>,
    pub(super) made: Vec<Made>,
    /// It ends with these sessions, whatever comes after them.
    is_ended: bool,
    /// Some of it stayed as it was.
    pub(super) has_kept: bool,
}

impl Stretch {
    fn new(since_us: i64, bounds: Bounds) -> Self {
        let (known, made) = (Vec::new(), Vec::new());
        let (last_late_us, is_ended, has_kept) = (i64::MIN, false, false);
        Self { since_us, bounds, late: 0, last_late_us, known, made, is_ended, has_kept }
    }

    /// Whether the stored readings are all that it is made of.
    pub(super) fn is_whole(&self) -> bool {
        let rows: i64 = self.known.iter().map(|k| k.rows).sum();
        let made: i64 = self.made.iter().map(|m| m.rows).sum();
        let inside = |m: &Made| self.bounds.0 <= m.start_us && m.end_us <= self.bounds.1;
        made == rows + self.late && self.made.iter().all(inside)
    }

    /// Whether there are readings after the last session that the table has, and no pause between.
    fn is_prolonged(&self) -> bool {
        self.made.iter().any(|m| self.bounds.1 < m.end_us)
    }

    /// Whether a session that the table has is final whatever comes, and begins after all late
    /// readings: one that is cut.
    fn is_after(&self, known: &Known, max_us: Option<i64>, final_us: i64) -> bool {
        let is_cut = |max_us| known.start_us.saturating_add(max_us) <= final_us;
        self.last_late_us < known.start_us && max_us.is_some_and(is_cut)
    }

    /// Ends it where a session after the late readings begins as it did: what comes after that is
    /// as it was. It may go on, and then the step can still change that.
    fn end_early(&mut self, max_us: Option<i64>, final_us: i64) {
        let made: BTreeSet<i64> = self.made.iter().map(|m| m.start_us).collect();
        let is_same = |k: &Known| made.contains(&k.start_us) && self.is_after(k, max_us, final_us);
        let Some(at) = self.known.iter().position(is_same) else { return };
        let until_us = self.known[at].start_us;
        self.known.truncate(at);
        self.made.retain(|m| m.start_us < until_us);
        self.is_ended = true;
    }

    /// Whether no pause divides it from what is between these times.
    pub(super) fn is_near(&self, gap_us: i64, (from_us, to_us): Bounds) -> bool {
        from_us <= self.bounds.1.saturating_add(gap_us)
            && self.since_us <= to_us.saturating_add(gap_us)
    }

    pub(super) fn stayed<'k>(&self, key: &'k str) -> Stayed<'k> {
        Stayed { key, bounds: self.bounds, late: self.late }
    }
}

/// The late readings of a key, then its stretches.
#[derive(Debug, Default)]
pub(super) struct OfKey {
    /// Times of late readings, in order, each with how many there are.
    pub(super) late: Vec<(i64, i64)>,
    /// What is older is not revised by the step any more.
    pub(super) final_us: i64,
    /// The place in the journal of the last reading that counts.
    pub(super) last_offset: i64,
    /// Late readings that are in stretches.
    passed: usize,
    /// The last sessions that no late reading reaches, of those that no pause divides.
    before: Option<Bounds>,
    open: Option<Stretch>,
    pub(super) stretches: Vec<Stretch>,
    /// Starts of sessions that are none, with their newest revision.
    pub(super) gone: BTreeMap<i64, i64>,
    /// What stayed as it was before, near to the stretches.
    pub(super) kept: BTreeSet<Bounds>,
}

impl OfKey {
    /// By time.
    pub(super) fn new(late: &[Late]) -> Self {
        let final_us = late.iter().map(|l| l.final_us).max().unwrap_or_default();
        let last_offset = last_offset(late);
        let late = late.iter().map(|l| (l.time_us, l.count)).collect();
        Self { late, final_us, last_offset, ..Self::default() }
    }

    /// Forgets all but the late readings: its sessions come now.
    pub(super) fn begin(&mut self) {
        let late = std::mem::take(&mut self.late);
        let (final_us, last_offset) = (self.final_us, self.last_offset);
        *self = Self { late, final_us, last_offset, ..Self::default() };
    }

    /// The stretch of the next session or reading.
    fn reach(&mut self, gap_us: i64, (from_us, to_us): Bounds) -> &mut Stretch {
        let is_near = |s: &Stretch| from_us <= s.bounds.1.saturating_add(gap_us);
        if !self.open.as_ref().is_some_and(is_near) {
            self.close();
        }
        let before = self.before.filter(|b| from_us <= b.1.saturating_add(gap_us));
        let (since_us, bounds) = (before.map_or(from_us, |b| b.0), (from_us, to_us));
        let new = || Stretch::new(since_us, bounds);
        let open = self.open.get_or_insert_with(new);
        open.bounds.1 = open.bounds.1.max(to_us);
        open
    }

    fn close(&mut self) {
        self.stretches.extend(self.open.take().filter(|stretch| stretch.late > 0));
    }

    fn late_before(&mut self, gap_us: i64, until_us: i64) {
        while let Some((time_us, count)) = self.late.get(self.passed).copied()
            && time_us < until_us
        {
            self.passed += 1;
            let stretch = self.reach(gap_us, (time_us, time_us));
            (stretch.late, stretch.last_late_us) = (stretch.late + count, time_us);
        }
    }

    /// The next session by its start.
    pub(super) fn session(&mut self, (gap_us, max_us): (i64, Option<i64>), known: Known) {
        if known.rows == 0 {
            self.gone.insert(known.start_us, known.revision);
            return;
        }
        if self.is_before(max_us, &known) {
            let near = self.before.filter(|b| known.start_us <= b.1.saturating_add(gap_us));
            self.before = Some((near.map_or(known.start_us, |b| b.0), known.end_us));
            return;
        }
        self.late_before(gap_us, known.start_us);
        self.reach(gap_us, (known.start_us, known.end_us)).known.push(known);
    }

    /// Whether no late reading reaches a session: the maximum had cut it before the first of them.
    fn is_before(&self, max_us: Option<i64>, known: &Known) -> bool {
        let (Some(max_us), Some((first_us, _))) = (max_us, self.late.first()) else { return false };
        known.end_us < *first_us && known.start_us.saturating_add(max_us) <= *first_us
    }

    /// There are no more sessions.
    pub(super) fn end(&mut self, gap_us: i64) {
        self.late_before(gap_us, i64::MAX);
        self.close();
    }

    /// Whether the step cannot revise any of a stretch any more, as far as it is known.
    pub(super) fn is_final(&self, gap_us: i64, stretch: &Stretch) -> bool {
        stretch.is_ended || self.is_over(gap_us, stretch)
    }

    fn is_over(&self, gap_us: i64, stretch: &Stretch) -> bool {
        stretch.bounds.1.saturating_add(gap_us) < self.final_us
    }

    /// Whether the step can still change what comes after the sessions of a stretch, without a
    /// pause between; they were made again. What is open may not be in the table yet.
    pub(super) fn goes_on(&self, gap_us: i64, stretch: &Stretch) -> bool {
        stretch.is_ended || !self.is_over(gap_us, stretch) || stretch.is_prolonged()
    }

    /// The late readings between two times, both included, as in [`OfKey::late`].
    pub(super) fn late_in(&self, (from_us, to_us): Bounds) -> impl Iterator<Item = (i64, i64)> {
        let from = self.late.partition_point(|late| late.0 < from_us);
        self.late[from..].iter().copied().take_while(move |late| late.0 <= to_us)
    }

    /// The sessions were made: ends stretches where they can be.
    pub(super) fn end_early(&mut self, max_us: Option<i64>) {
        for stretch in &mut self.stretches {
            stretch.end_early(max_us, self.final_us);
        }
    }

    /// Whether its first stretch may begin earlier, if there are sessions that end before
    /// `until_us` and did not come. Where one stays anyway, nobody asks.
    pub(super) fn may_begin_before(&self, gap_us: i64, until_us: i64) -> bool {
        let first = self.stretches.first().filter(|first| self.is_final(gap_us, first));
        first.is_some_and(|first| first.since_us < until_us.saturating_add(gap_us))
    }

    /// From when until when readings are those of a stretch, or not more than `gap` outside of what
    /// was known of it.
    pub(super) fn around(&self, gap_us: i64, (from_us, to_us): Bounds) -> Bounds {
        let after_us = self.before.map_or(i64::MIN, |before| before.1.saturating_add(1));
        let until_us = to_us.saturating_add(gap_us).saturating_add(1);
        (from_us.saturating_sub(gap_us).max(after_us), until_us)
    }

    /// The stretch that a session belongs to.
    pub(super) fn stretch_of(&mut self, gap_us: i64, start_us: i64) -> Option<&mut Stretch> {
        let begun = |s: &Stretch| s.bounds.0.saturating_sub(gap_us) <= start_us;
        let after = self.stretches.partition_point(begun);
        let stretch = self.stretches[..after].last_mut()?;
        (start_us <= stretch.bounds.1.saturating_add(gap_us)).then_some(stretch)
    }
}
