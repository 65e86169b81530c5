//! Windows around readings that others are too late for, computed again from the stored readings.
//!
//! A late reading is in the windows around the readings that are near enough, and has one of its
//! own. The step still takes it for those that were not final when it came ([`Late::final_us`]).
//! Of the others:
//! 1. around which times they are follows from the late readings of the group;
//! 2. the step's own operator makes the windows around these times, of all stored readings that can
//!    be in one;
//! 3. a window that the table has is written as its next revision if the readings are exactly those
//!    that it has (`rows`) and the late ones. One that it has not is around a late reading: it is
//!    written if no reading of these days was deleted, and the table has all other windows;
//! 4. the others stay ([`super::kept`]).

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::RecordBatch;
use tidegate_operators::span::SpanOperator;
use tidegate_operators::spec::Shape;
use tidegate_operators::{Emit, KeyedOperator, Tick};

use super::affected::{Bounds, Slice};
use super::group::{Days, Group, time};
use super::kept::{Kept, Stayed};
use super::late::{Late, LateKeys};
use super::out::Out;
use super::revise::{Changes, Known, Made, each_known, each_made};
use crate::fault;

/// The late readings of a key, and what windows they are in.
struct OfKey {
    late: Vec<Late>,
    /// Times around which final windows have late readings: first and last, in order.
    around: Vec<Bounds>,
    /// By their starts.
    known: BTreeMap<i64, Known>,
    made: BTreeMap<i64, Made>,
}

impl OfKey {
    /// The late readings that a window which is final did not take.
    fn late_in(&self, (start_us, end_us): Bounds) -> impl Iterator<Item = &Late> {
        let first = self.late.partition_point(|l| l.time_us < start_us);
        let inside = self.late[first..].iter().take_while(move |l| l.time_us <= end_us);
        inside.filter(move |l| end_us < l.final_us)
    }
}

/// Keys with late readings, as JSON.
type Keys = BTreeMap<String, OfKey>;

/// One group at work on windows around readings.
pub(super) struct Around<'g> {
    group: &'g Group<'g>,
    before_us: i64,
    after_us: i64,
    /// There is one around each reading.
    of_all: bool,
}

impl<'g> Around<'g> {
    /// None of a step with other windows.
    pub(super) fn new(group: &'g Group<'g>) -> Option<Self> {
        let Shape::Sliding { before_us, after_us, at } = &group.of.window.shape else {
            return None;
        };
        let (before_us, after_us) = (*before_us, *after_us);
        Some(Self { group, before_us, after_us, of_all: at.is_none() })
    }

    /// Hands the windows that have changed to the writer, and those that stay to `kept`, whose
    /// number is returned; none if it is to stop.
    pub(super) async fn work(
        &self,
        kept: &mut Kept<'_>,
        out: &mut Out<'_>,
    ) -> anyhow::Result<Option<usize>> {
        let mut late = LateKeys::of(self.group).await?;
        let last_offset = self.group.last_offset().await?;
        let mut stay = 0;
        while let Some(found) = late.next().await? {
            let of_key = |(key, late): (String, Vec<Late>)| (key, self.of_key(late));
            let mut keys: Keys = found.into_iter().map(of_key).collect();
            self.find(&mut keys).await?;
            let Some(batches) = self.make(&mut keys, last_offset).await? else { return Ok(None) };
            let days = self.group.days().await?;
            let before = kept.known(self.range_us(&keys), |key| keys.contains_key(key)).await?;
            let (mut changes, none) = (Changes::default(), BTreeSet::new());
            let mut fresh = Vec::new();
            for (key, of) in &keys {
                let before = before.get(key).unwrap_or(&none);
                for (bounds, late) in self.judge(of, &days, before, &mut changes) {
                    stay += 1;
                    if !before.contains(&bounds) {
                        fresh.push(Stayed { key, bounds, late });
                    }
                }
            }
            for rows in changes.rows(&batches)? {
                out.append(self.group.of.unsaid(rows)?).await?;
            }
            kept.add(&fresh, self.group.times_us.1).await?;
            fault::point("recomputed_slice");
        }
        Ok(Some(stay))
    }

    /// Step 1: around which times final windows have late readings.
    fn of_key(&self, late: Vec<Late>) -> OfKey {
        let mut all: Vec<Bounds> = late
            .iter()
            .map(|l| {
                let last_us = l.time_us.saturating_add(self.before_us);
                let final_us = l.final_us.saturating_sub(self.after_us).saturating_sub(1);
                (l.time_us.saturating_sub(self.after_us), last_us.min(final_us))
            })
            .collect();
        all.sort_unstable();
        let mut around: Vec<Bounds> = Vec::new();
        for (from_us, to_us) in all {
            match around.last_mut() {
                Some(last) if from_us <= last.1.saturating_add(1) => last.1 = last.1.max(to_us),
                _ => around.push((from_us, to_us)),
            }
        }
        OfKey { late, around, known: BTreeMap::new(), made: BTreeMap::new() }
    }

    /// Whether a window of this start is one of those.
    fn is_meant(&self, of: &OfKey, start_us: i64) -> bool {
        let time_us = start_us.saturating_add(self.before_us);
        let after = of.around.partition_point(|a| a.0 <= time_us);
        after > 0 && time_us <= of.around[after - 1].1
    }

    /// From the first start to after the last end.
    fn range_us(&self, keys: &Keys) -> Bounds {
        let all = || keys.values().flat_map(|of| &of.around);
        let from_us = all().map(|a| a.0).min().unwrap_or_default();
        let to_us = all().map(|a| a.1).max().unwrap_or_default();
        (from_us.saturating_sub(self.before_us), to_us.saturating_add(self.after_us) + 1)
    }

    /// What the table has of them.
    async fn find(&self, keys: &mut Keys) -> anyhow::Result<()> {
        let (from_us, to_us) = self.range_us(keys);
        let (from, to) = (time(from_us), time(to_us));
        let condition = format!("window_start >= {from} AND window_start < {to}");
        let named: Vec<String> = keys.keys().cloned().collect();
        let named = named.iter().map(String::as_str);
        each_known(self.group, &condition, named, |key, known| {
            if let Some(of) = keys.get_mut(key)
                && self.is_meant(of, known.start_us)
            {
                of.known.insert(known.start_us, known);
            }
        })
        .await
    }

    /// Step 2: the windows of the stored readings, as rows of the step; none if it is to stop.
    async fn make(
        &self,
        keys: &mut Keys,
        last_offset: i64,
    ) -> anyhow::Result<Option<Vec<RecordBatch>>> {
        let mut slice = Slice::default();
        for (key, of) in keys.iter() {
            for (from_us, to_us) in &of.around {
                let from_us = from_us.saturating_sub(self.before_us);
                let to_us = to_us.saturating_add(self.after_us).saturating_add(1);
                slice.push(key.clone(), (from_us, to_us), 0);
            }
        }
        let mut operator = SpanOperator::new(self.group.of.window.clone())?;
        let (mut emit, mut epoch, mut batches) = (Emit::default(), 0, Vec::new());
        let is_all = self.group.each_by_time(&slice, last_offset, |rows| {
            epoch += 1;
            operator.epoch(&rows, Tick { epoch, time_us: 0 }, &mut emit)?;
            self.take(&mut emit, keys, &mut batches)
        });
        if !is_all.await? {
            return Ok(None);
        }
        operator.end(&mut emit)?;
        self.take(&mut emit, keys, &mut batches)?;
        Ok(Some(batches))
    }

    /// Notes the windows that were made.
    fn take(
        &self,
        emit: &mut Emit,
        keys: &mut Keys,
        batches: &mut Vec<RecordBatch>,
    ) -> anyhow::Result<()> {
        each_made(self.group, emit, batches, |key, made| {
            if let Some(of) = keys.get_mut(key)
                && self.is_meant(of, made.start_us)
            {
                of.made.insert(made.start_us, made);
            }
        })
    }

    /// Steps 3 and 4 for a key: the windows that stay, each with its late readings.
    fn judge(
        &self,
        of: &OfKey,
        days: &Days,
        stayed: &BTreeSet<Bounds>,
        changes: &mut Changes,
    ) -> Vec<(Bounds, i64)> {
        let mut expected: BTreeSet<Bounds> =
            of.known.values().map(|k| (k.start_us, k.end_us)).collect();
        expected.extend(of.made.values().map(|m| (m.start_us, m.end_us)));
        if self.of_all {
            let own = |l: &Late| {
                let end_us = l.time_us.saturating_add(self.after_us);
                (end_us < l.final_us).then(|| (l.time_us.saturating_sub(self.before_us), end_us))
            };
            expected.extend(of.late.iter().filter_map(own));
        }
        let mut stay = Vec::new();
        for bounds in expected {
            let late: i64 = of.late_in(bounds).map(|l| l.count).sum();
            let (known, made) = (of.known.get(&bounds.0), of.made.get(&bounds.0));
            let time_us = bounds.0.saturating_add(self.before_us);
            let is_whole = |made: &&Made| match known.filter(|known| known.rows > 0) {
                Some(known) => made.rows == known.rows + late,
                None => {
                    let is_new = of.late_in(bounds).any(|l| l.time_us == time_us);
                    is_new && self.group.is_complete && days.has_all(bounds)
                }
            };
            match made.filter(|_| !stayed.contains(&bounds)).filter(is_whole) {
                Some(made) => changes.make(made.place, known.map(|known| known.revision)),
                None => stay.push((bounds, late)),
            }
        }
        stay
    }
}
