//! States that readings are too late for, computed again from the stored readings.
//!
//! Which states a key has is said by going through its readings by time, and a late reading can
//! change all that comes after it, until without and with it the same state is open, or none is. So
//! of each part of late readings that are near to each other ([`Part`]):
//! 1. the step's own operator goes through the stored readings of some time around it, once without
//!    the late readings of the group and once with those of the part. There has to be a reading
//!    before the part that ends whatever is open: what comes after it does not depend on what was
//!    before. And at the end both have to have the same state open, begun after the part. If not, a
//!    longer time is tried. Late readings that come after the last reading which ends whatever is
//!    open change what the step can still change. It puts them off ([`super::late`]), and what it
//!    did not is given up;
//! 2. the states without the late readings have to be those that the table has, and no reading of
//!    these days may have been deleted: then the readings are all. If not, the states stay;
//! 3. those with the late readings are written as the next revisions; what is none any more with no
//!    readings. What stays is told ([`super::kept`]).

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use tidegate_operators::intern::KeyInterner;
use tidegate_operators::span::SpanOperator;
use tidegate_operators::spec::{Shape, WindowSpec};
use tidegate_operators::system::keys_json;
use tidegate_operators::{Emit, Epoch, KeyedOperator, Tick};

use super::affected::{Bounds, Slice};
use super::group::{Days, Group, time};
use super::kept::{Kept, Stayed};
use super::late::{Late, LateKeys};
use super::out::Out;
use super::part::{OfKey, Outcome, Part};
use super::revise::{Changes, each_known, each_made};
use crate::fault;

/// Keys with late readings, as JSON.
type Keys = BTreeMap<String, OfKey>;

/// The part at hand of a key.
fn part_of<'k>(keys: &'k mut Keys, key: &str) -> Option<&'k mut Part> {
    keys.get_mut(key).and_then(|of| of.part.as_mut())
}

/// What the readings of a key say beside the operator.
struct Way {
    key: String,
    /// Times and places in the journal of the late readings of the group.
    late: BTreeSet<(i64, i64)>,
    /// The part at hand: its first and last.
    part: Bounds,
    /// See [`Part`].
    reset_us: Option<i64>,
    last_reset_us: Option<i64>,
    newest_us: i64,
    /// The last reading that ends whatever is open.
    ended_us: Option<i64>,
}

impl Way {
    /// Takes a reading, which ends whatever is open or does not; whether it counts without the late
    /// readings of the group, and with those of the part.
    fn take(&mut self, time_us: i64, offset: i64, resets: bool) -> [bool; 2] {
        if self.ended_us.is_some_and(|ended_us| ended_us < time_us) {
            self.last_reset_us = self.ended_us;
        }
        // What begins at its own time is not ended by a reading.
        let is_first = self.newest_us < time_us;
        self.newest_us = self.newest_us.max(time_us);
        if self.late.contains(&(time_us, offset)) {
            return [false, self.part.0 <= time_us && time_us <= self.part.1];
        }
        if resets && is_first {
            self.ended_us = Some(time_us);
            if time_us < self.part.0 {
                self.reset_us = Some(time_us);
            }
        }
        [true; 2]
    }
}

/// Those of the keys.
struct Ways {
    names: Vec<String>,
    interner: KeyInterner,
    ids: Vec<u32>,
    ways: Vec<Way>,
    /// Where they are, by the id of a key.
    places: Vec<Option<usize>>,
}

impl Ways {
    fn new(keys: &Keys, window: &WindowSpec) -> anyhow::Result<Self> {
        let way = |(key, of): (&String, &OfKey)| {
            let part = of.part.as_ref()?;
            Some(Way {
                key: key.clone(),
                late: of.late.clone(),
                part: (part.first_us(), part.last_us()),
                reset_us: None,
                last_reset_us: None,
                newest_us: i64::MIN,
                ended_us: None,
            })
        };
        let fields = window.keys.iter().map(|k| window.input.field(*k));
        let types: Vec<_> = fields.clone().map(|f| f.data_type().clone()).collect();
        Ok(Self {
            names: fields.map(|f| f.name().clone()).collect(),
            interner: KeyInterner::new(&types)?,
            ids: Vec::new(),
            ways: keys.iter().filter_map(way).collect(),
            places: Vec::new(),
        })
    }

    /// Takes rows of the step by time, with those that end whatever is open; which count without
    /// the late readings of the group, and with those of the parts.
    fn take(
        &mut self,
        window: &WindowSpec,
        rows: &RecordBatch,
        resets: &[bool],
    ) -> anyhow::Result<[BooleanArray; 2]> {
        let keys: Vec<ArrayRef> = window.keys.iter().map(|k| rows.column(*k).clone()).collect();
        self.interner.intern(&keys, rows.num_rows(), &mut self.ids)?;
        let fresh: Vec<u32> = self.interner.fresh().iter().map(|key| key.id).collect();
        let columns = self.interner.keys(&fresh)?;
        let names: Vec<&str> = self.names.iter().map(String::as_str).collect();
        for (row, id) in fresh.iter().enumerate() {
            let key = keys_json(&names, &columns, row);
            let place = self.ways.binary_search_by(|way| way.key.cmp(&key)).ok();
            self.places.resize(self.places.len().max(*id as usize + 1), None);
            self.places[*id as usize] = place;
        }
        let times = rows.column(window.time).as_primitive::<TimestampMicrosecondType>();
        let offsets = rows["journal_offset"].as_primitive::<Int64Type>();
        let mut keep: [Vec<bool>; 2] = [Vec::new(), Vec::new()];
        for (row, id) in self.ids.iter().enumerate() {
            let way = self.places[*id as usize].and_then(|place| self.ways.get_mut(place));
            let of_row = way.map_or([true; 2], |way| {
                way.take(times.value(row), offsets.value(row), resets[row])
            });
            keep.iter_mut().zip(of_row).for_each(|(keep, of_row)| keep.push(of_row));
        }
        Ok(keep.map(BooleanArray::from))
    }

    /// Notes what was said.
    fn tell(self, keys: &mut Keys) {
        for way in self.ways {
            if let Some(part) = part_of(keys, &way.key) {
                (part.reset_us, part.last_reset_us) = (way.reset_us, way.last_reset_us);
                part.newest_us = way.newest_us;
            }
        }
    }
}

/// One group at work on states.
pub(super) struct States<'g> {
    group: &'g Group<'g>,
    max_us: Option<i64>,
}

impl<'g> States<'g> {
    /// None of a step with other windows.
    pub(super) fn new(group: &'g Group<'g>) -> Option<Self> {
        let Shape::State { max_us, .. } = &group.of.window.shape else { return None };
        Some(Self { group, max_us: *max_us })
    }

    /// Hands the states that have changed to the writer, and those that stay to `kept`, whose
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
            let of_key = |(key, late): (String, Vec<Late>)| (key, OfKey::new(late));
            let mut keys: Keys = found.into_iter().map(of_key).collect();
            loop {
                keys.values_mut().for_each(OfKey::begin);
                keys.retain(|_, of| of.part.is_some());
                if keys.is_empty() {
                    break;
                }
                self.find(&mut keys).await?;
                let Some(batches) = self.make(&mut keys, last_offset).await? else {
                    return Ok(None);
                };
                let days = self.group.days().await?;
                let (changes, stayed) = self.judge(&mut keys, &days);
                for rows in changes.rows(&batches)? {
                    out.append(self.group.of.unsaid(rows)?).await?;
                }
                stay += stayed.len();
                self.keep(&stayed, kept).await?;
                fault::point("recomputed_slice");
            }
        }
        Ok(Some(stay))
    }

    /// What the table has of the times at hand, and what reaches into them.
    async fn find(&self, keys: &mut Keys) -> anyhow::Result<()> {
        let parts = || keys.values().filter_map(|of| of.part.as_ref());
        let from_us = parts().map(|part| part.from_us).min().unwrap_or_default();
        let to_us = parts().map(|part| part.to_us).max().unwrap_or_default();
        let (from, to) = (time(from_us), time(to_us));
        self.find_of(&format!("window_start >= {from} AND window_start < {to}"), keys).await?;
        let named: Vec<String> = keys.keys().cloned().collect();
        let (named, mut starts) = (named.iter().map(String::as_str), BTreeSet::new());
        let reaches = format!("window_start < {from} AND window_end > {from}");
        each_known(self.group, &reaches, named, |key, known| {
            if keys.contains_key(key) {
                starts.insert(known.start_us);
            }
        })
        .await?;
        if starts.is_empty() {
            return Ok(());
        }
        // The newest revision may end before.
        let starts: Vec<String> = starts.into_iter().map(time).collect();
        self.find_of(&format!("window_start IN ({})", starts.join(", ")), keys).await
    }

    /// The states for which a condition holds.
    async fn find_of(&self, condition: &str, keys: &mut Keys) -> anyhow::Result<()> {
        let named: Vec<String> = keys.keys().cloned().collect();
        let named = named.iter().map(String::as_str);
        each_known(self.group, condition, named, |key, known| {
            if let Some(part) = part_of(keys, key) {
                part.know(known);
            }
        })
        .await
    }

    /// The states of the stored readings, without and with the late ones, as rows of the step; none
    /// if it is to stop.
    async fn make(
        &self,
        keys: &mut Keys,
        last_offset: i64,
    ) -> anyhow::Result<Option<Vec<RecordBatch>>> {
        let window = &self.group.of.window;
        let (mut slice, mut batches) = (Slice::default(), Vec::new());
        for (key, of) in keys.iter() {
            if let Some(part) = &of.part {
                let bounds = (part.from_us, part.to_us);
                slice.push_until(key.clone(), bounds, (part.late(), of.last_offset));
            }
        }
        let mut ways = Ways::new(keys, window)?;
        let new = || SpanOperator::new(window.clone());
        let mut operators = [new()?, new()?];
        let (mut emit, mut epoch) = (Emit::default(), 0);
        let is_all = self.group.each_by_time(&slice, last_offset, |rows| {
            let resets = operators[0].resets(&rows)?;
            let keep = ways.take(window, &rows, &resets)?;
            epoch += 1;
            for (which, keep) in keep.iter().enumerate() {
                let rows = filter_record_batch(&rows, keep)?;
                operators[which].epoch(&rows, Tick { epoch, time_us: 0 }, &mut emit)?;
                self.take(&mut emit, which, keys, &mut batches)?;
            }
            Ok(())
        });
        if !is_all.await? {
            return Ok(None);
        }
        for (which, operator) in operators.iter_mut().enumerate() {
            self.end(operator, (epoch + 1, which), keys, &mut batches)?;
        }
        ways.tell(keys);
        Ok(Some(batches))
    }

    /// The last readings count as well; then all is cut that has a maximum.
    fn end(
        &self,
        operator: &mut SpanOperator,
        (epoch, which): (Epoch, usize),
        keys: &mut Keys,
        batches: &mut Vec<RecordBatch>,
    ) -> anyhow::Result<()> {
        let window = &self.group.of.window;
        let (nothing, mut emit) = (RecordBatch::new_empty(window.input.clone()), Emit::default());
        operator.epoch(&nothing, Tick { epoch, time_us: 1 }, &mut emit)?;
        let (columns, open_us) = operator.open()?;
        let names: Vec<&str> =
            window.keys.iter().map(|k| window.input.field(*k).name().as_str()).collect();
        for (row, start_us) in open_us.into_iter().enumerate() {
            let Some(part) = part_of(keys, &keys_json(&names, &columns, row)) else { continue };
            let cut_us = self.max_us.map_or(i64::MAX, |max_us| start_us.saturating_add(max_us));
            part.open_us[which] = Some(start_us).filter(|_| part.to_us < cut_us);
        }
        let tick = Tick { epoch: epoch + 1, time_us: i64::MAX / 2 };
        operator.epoch(&nothing, tick, &mut emit)?;
        self.take(&mut emit, which, keys, batches)
    }

    /// Notes the states that were made.
    fn take(
        &self,
        emit: &mut Emit,
        which: usize,
        keys: &mut Keys,
        batches: &mut Vec<RecordBatch>,
    ) -> anyhow::Result<()> {
        each_made(self.group, emit, batches, |key, made| {
            if let Some(part) = part_of(keys, key) {
                part.made[which].insert(made.start_us, made);
            }
        })
    }

    /// What is to be written, and the parts of which nothing is.
    fn judge(&self, keys: &mut Keys, days: &Days) -> (Changes, Vec<(String, Part)>) {
        let (mut changes, mut stayed) = (Changes::default(), Vec::new());
        for (key, of) in keys {
            match of.judge(days, self.group.is_complete_of(key)) {
                Some((Outcome::Changed, part)) => part.change(&mut changes),
                Some((_, part)) => stayed.push((key.clone(), part)),
                None => {}
            }
        }
        (changes, stayed)
    }

    /// Tells of parts that change nothing, each once.
    async fn keep(&self, parts: &[(String, Part)], kept: &mut Kept<'_>) -> anyhow::Result<()> {
        let stayed = parts.iter().map(|(key, part)| {
            let bounds = (part.first_us(), part.last_us());
            Stayed { key, bounds, late: part.late() }
        });
        let mut stayed: Vec<Stayed<'_>> = stayed.collect();
        let from_us = stayed.iter().map(|s| s.bounds.0).min().unwrap_or_default();
        let to_us = stayed.iter().map(|s| s.bounds.1).max().unwrap_or_default();
        let named: BTreeSet<&str> = stayed.iter().map(|s| s.key).collect();
        let known = kept.known((from_us, to_us + 1), |key| named.contains(key)).await?;
        stayed.retain(|s| !known.get(s.key).is_some_and(|known| known.contains(&s.bounds)));
        kept.add(&stayed, self.group.times_us.1).await
    }
}
