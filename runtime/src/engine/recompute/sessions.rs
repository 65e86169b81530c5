//! Sessions that readings are too late for, computed again from the stored readings.
//!
//! Definition: a *stretch* of a key is a part of its time that no pause longer than `gap` divides,
//! of the sessions that its table has and of the late readings. What sessions there are in it
//! follows from its readings alone. Of each stretch with late readings of the group:
//! 1. it is found: the sessions of the table and the late readings, in order ([`OfKey`]). What a
//!    maximum had cut before the first of them is as it was, and not looked at any further;
//! 2. it must not change by other ways. The step said with each late reading before which time
//!    nothing is revised any more, and put off those that touch what is not older
//!    ([`super::late`]). Where a maximum cuts, a stretch that goes on ends for this purpose where a
//!    session begins that is as it was; if there is none, the cuts stay ([`super::cuts`]);
//! 3. the step's own operator makes the sessions of its stored readings, and of those that are not
//!    more than `gap` outside. If these are exactly the readings of its sessions (`rows`) and the
//!    late ones, they are all: it is whole. If not, it stays ([`super::kept`]): some were deleted,
//!    or belong to a session that is still open;
//! 4. sessions that are not as the table has them are written as the next revision; what is none
//!    any more with no readings.
//!
//! Only of a table that was there from the first row on is known that there are no other sessions.
//! Stored readings come by time, so that of each key one session is in memory.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::RecordBatch;
use tidegate_operators::span::SpanOperator;
use tidegate_operators::spec::Shape;
use tidegate_operators::{Emit, KeyedOperator, Tick};

use super::affected::{Bounds, Slice};
use super::cuts::{self, Piece};
use super::group::{Group, time};
use super::kept::{Kept, Stayed};
use super::late::{Late, LateKeys};
use super::out::Out;
use super::revise::{Changes, Known, each_known, each_made};
use super::stretches::{OfKey, Stretch};
use crate::fault;

/// Keys with late readings, as JSON.
type Keys = BTreeMap<String, OfKey>;

/// One group at work on sessions.
pub(super) struct Sessions<'g> {
    group: &'g Group<'g>,
    gap_us: i64,
    max_us: Option<i64>,
}

impl<'g> Sessions<'g> {
    /// None of a step with other windows.
    pub(super) fn new(group: &'g Group<'g>) -> Option<Self> {
        let Shape::Session { gap_us, max_us } = group.of.window.shape else { return None };
        Some(Self { group, gap_us, max_us })
    }

    /// Hands the sessions that have changed to the writer, and those that stay to `kept`, whose
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
            let of_key = |(key, late): (String, Vec<Late>)| (key, OfKey::new(&late));
            let mut keys: Keys = found.into_iter().map(of_key).collect();
            self.find(&mut keys).await?;
            stay += self.keep(&mut keys, kept).await?;
            let Some(batches) = self.make(&mut keys, last_offset).await? else { return Ok(None) };
            self.write(&changes(self.gap_us, &keys), &batches, out).await?;
            let Some(part) = self.cut(&keys, last_offset, out).await? else { return Ok(None) };
            stay += part.len();
            let is_new = |part: &Stayed<'_>| !keys[part.key].kept.contains(&part.bounds);
            let fresh: Vec<Stayed<'_>> = part.into_iter().filter(is_new).collect();
            kept.add(&fresh, self.group.times_us.1).await?;
            fault::point("recomputed_slice");
        }
        Ok(Some(stay))
    }

    async fn write(
        &self,
        changes: &Changes,
        batches: &[RecordBatch],
        out: &mut Out<'_>,
    ) -> anyhow::Result<()> {
        for rows in changes.rows(batches)? {
            out.append(self.group.of.unsaid(rows)?).await?;
        }
        Ok(())
    }

    /// The stretches that are not made again: of those that go on, cuts stay, and the sessions with
    /// late readings are written. What stays as it is is returned; none if it is to stop.
    async fn cut<'k>(
        &self,
        keys: &'k Keys,
        last_offset: i64,
        out: &mut Out<'_>,
    ) -> anyhow::Result<Option<Vec<Stayed<'k>>>> {
        let (mut stayed, mut pieces) = (Vec::new(), Vec::new());
        for (key, of) in keys {
            for stretch in of.stretches.iter().filter(|s| !is_whole(self.gap_us, of, s)) {
                match self.max_us.filter(|_| of.goes_on(self.gap_us, stretch)) {
                    Some(max_us) => {
                        let of_stretch = cuts::pieces(of, stretch, (self.gap_us, max_us));
                        pieces.extend(of_stretch.into_iter().map(|piece| (key.as_str(), piece)));
                    }
                    None => stayed.push(stretch.stayed(key)),
                }
            }
        }
        let mut made_of: BTreeMap<&str, (Vec<&Piece>, i64)> = BTreeMap::new();
        for (key, piece) in &pieces {
            let of = &keys[*key];
            let is_near = |k: &Bounds| k.0 <= piece.bounds.1 && piece.bounds.0 <= k.1;
            match piece.is_final && !of.kept.iter().any(is_near) {
                true => {
                    let made = made_of.entry(key).or_insert_with(|| (Vec::new(), of.last_offset));
                    made.0.push(piece);
                }
                false => stayed.push(piece.stayed(key)),
            }
        }
        let mut batches = Vec::new();
        let made = cuts::make(self.group, &made_of, last_offset, &mut batches).await?;
        let Some(made) = made else { return Ok(None) };
        let mut changes = Changes::default();
        for (key, (pieces, _)) in &made_of {
            let made = made.get(*key).map(Vec::as_slice).unwrap_or_default();
            for piece in pieces {
                match made.iter().find(|made| piece.is(made)) {
                    Some(made) => changes.make(made.place, piece.revision(&keys[*key])),
                    None => stayed.push(piece.stayed(key)),
                }
            }
        }
        self.write(&changes, &batches, out).await?;
        Ok(Some(stayed))
    }

    /// Step 1: the stretches with late readings.
    async fn find(&self, keys: &mut Keys) -> anyhow::Result<()> {
        let first_us = keys.values().filter_map(|of| of.late.first()).map(|l| l.0).min();
        let near_us = first_us.unwrap_or_default().saturating_sub(self.gap_us);
        // A session with a maximum can become shorter, one without cannot, and is a stretch.
        let Some(max_us) = self.max_us else {
            return self.find_of(&format!("window_end >= {}", time(near_us)), keys).await;
        };
        // What begins more than twice the maximum before is neither reached nor near what is; what
        // there is before that makes the stretch longer.
        let mut ago_us = max_us.saturating_mul(4);
        loop {
            let from_us = near_us.saturating_sub(ago_us);
            self.find_of(&format!("window_start >= {}", time(from_us)), keys).await?;
            let until_us = from_us.saturating_add(max_us);
            let more = keys.values().any(|of| of.may_begin_before(self.gap_us, until_us));
            if !more || from_us <= 0 {
                return Ok(());
            }
            ago_us = ago_us.saturating_mul(2);
        }
    }

    /// The stretches, made of the late readings and of the sessions for which a condition holds.
    async fn find_of(&self, from: &str, keys: &mut Keys) -> anyhow::Result<()> {
        let to_us = keys.values().map(|of| of.final_us).max().unwrap_or_default();
        keys.values_mut().for_each(OfKey::begin);
        let condition = format!("{from} AND window_start < {}", time(to_us));
        let named: Vec<String> = keys.keys().cloned().collect();
        let named = named.iter().map(String::as_str);
        each_known(self.group, &condition, named, |key, known| {
            if let Some(of) = keys.get_mut(key) {
                of.session((self.gap_us, self.max_us), known);
            }
        })
        .await?;
        keys.values_mut().for_each(|of| of.end(self.gap_us));
        Ok(())
    }

    /// Step 2: takes out the stretches that stay as they are, whatever is stored, and returns how
    /// many there are. Where a maximum cuts, a part of one may have stayed before.
    async fn keep(&self, keys: &mut Keys, kept: &mut Kept<'_>) -> anyhow::Result<usize> {
        let gap_us = self.gap_us;
        let all = || keys.values().flat_map(|of| &of.stretches);
        let from_us = all().map(|s| s.since_us).min().unwrap_or_default().saturating_sub(gap_us);
        let to_us = all().map(|s| s.bounds.1).max().unwrap_or_default().saturating_add(gap_us);
        let known = kept.known((from_us, to_us), |key| keys.contains_key(key)).await?;
        let none = BTreeSet::new();
        let (mut stay, mut fresh) = (0, Vec::new());
        for (key, of) in keys {
            let before = known.get(key).unwrap_or(&none);
            let mut stretches = std::mem::take(&mut of.stretches);
            for stretch in &mut stretches {
                stretch.has_kept = before.iter().any(|k| stretch.is_near(gap_us, *k));
            }
            let may_be_done = |of: &OfKey, s: &Stretch| {
                self.max_us.is_some() || (of.is_final(gap_us, s) && !s.has_kept)
            };
            let stays = |s: &Stretch| !self.group.is_complete || !may_be_done(of, s);
            let (stay_now, others): (Vec<Stretch>, Vec<Stretch>) =
                stretches.into_iter().partition(stays);
            (of.stretches, of.kept) = (others, before.clone());
            for stretch in stay_now {
                stay += 1;
                if !before.contains(&stretch.bounds) {
                    fresh.push((key.as_str(), stretch));
                }
            }
        }
        let fresh: Vec<Stayed<'_>> = fresh.iter().map(|(key, s)| s.stayed(key)).collect();
        kept.add(&fresh, self.group.times_us.1).await?;
        Ok(stay)
    }

    /// Step 3: the sessions of the stored readings, as rows of the step; none if it is to stop.
    async fn make(
        &self,
        keys: &mut Keys,
        last_offset: i64,
    ) -> anyhow::Result<Option<Vec<RecordBatch>>> {
        let mut slice = Slice::default();
        for (key, of) in keys.iter() {
            for stretch in &of.stretches {
                let around = of.around(self.gap_us, stretch.bounds);
                slice.push_until(key.clone(), around, (stretch.late, of.last_offset));
            }
        }
        let mut batches = Vec::new();
        if slice.count() == 0 {
            return Ok(Some(batches));
        }
        let mut operator = SpanOperator::new(self.group.of.window.clone())?;
        let (mut emit, mut epoch) = (Emit::default(), 0);
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
        keys.values_mut().for_each(|of| of.end_early(self.max_us));
        Ok(Some(batches))
    }

    /// Notes the sessions that were made.
    fn take(
        &self,
        emit: &mut Emit,
        keys: &mut Keys,
        batches: &mut Vec<RecordBatch>,
    ) -> anyhow::Result<()> {
        each_made(self.group, emit, batches, |key, made| {
            let of = keys.get_mut(key);
            let stretch = of.and_then(|of| of.stretch_of(self.gap_us, made.start_us));
            stretch.into_iter().for_each(|stretch| stretch.made.push(made));
        })
    }
}

/// Whether a stretch is all that it is made of, and nothing else can change it.
fn is_whole(gap_us: i64, of: &OfKey, stretch: &Stretch) -> bool {
    of.is_final(gap_us, stretch) && stretch.is_whole() && !stretch.has_kept
}

/// Step 4: the next revisions.
fn changes(gap_us: i64, keys: &Keys) -> Changes {
    let mut changes = Changes::default();
    for of in keys.values() {
        for stretch in of.stretches.iter().filter(|s| is_whole(gap_us, of, s)) {
            let mut before: BTreeMap<i64, Known> =
                stretch.known.iter().map(|k| (k.start_us, *k)).collect();
            for made in &stretch.made {
                let known = before.remove(&made.start_us);
                // Of the readings in a stretch, those from one time to another.
                if known.is_some_and(|known| made.is_as(&known)) {
                    continue;
                }
                let revision = known.map(|k| k.revision).or(of.gone.get(&made.start_us).copied());
                changes.make(made.place, revision);
            }
            // A stretch has late readings, so it has sessions.
            if let Some(made) = stretch.made.first() {
                before.into_values().for_each(|known| changes.withdraw(made.place, known));
            }
        }
    }
    changes
}
