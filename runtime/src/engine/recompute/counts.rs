//! Counts that readings are too late for, computed again from the stored readings.
//!
//! Windows are numbered once: what was told of a final window stays one of the readings that it
//! has, and its number. A late reading comes after those that the step took which are not newer,
//! and is in the windows that have the last of these; one that is older than all is in the first
//! window. So a window that it is in has one reading more than its size. If they overlap, some of
//! them can be final, and others not: those have it when they are, which one more row of
//! `system.late` tells. Of each window that it can be in ([`Run`]):
//! 1. it is one that the table has, which begins before the late reading, and ends after it or is
//!    the last one before it;
//! 2. its stored readings are gone through, of which none were deleted. Which of several readings
//!    of one time are in it, their numbers say: the bounds of the windows near leave one for each
//!    ([`super::tally`]), or those of all windows of the days around; or the readings are counted
//!    from the first window on;
//! 3. if it has more late readings than its newest revision, they are made a window by the step's
//!    own aggregation, and written as its next revision. If it is not known which they are, because
//!    some were deleted, it stays ([`super::kept`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::{cast, concat_batches, interleave_record_batch};
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};
use futures::TryStreamExt as _;
use tidegate_operators::span::SpanOperator;
use tidegate_operators::spec::{IS_FINAL, Shape, WindowSpec};
use tidegate_operators::system::keys_json;
use tidegate_operators::{Emit, KeyedOperator, Tick};

use super::affected::{Bounds, Finder, Slice};
use super::group::{Days, Group, late_of, name, time};
use super::kept::{Kept, Stayed};
use super::late::{Late, LateKeys};
use super::number::{Fate, Numbered, OfKey, Reading};
use super::out::Out;
use super::revise::{Place, each_row};
use super::tally::{Step, Tally};
use crate::fault;

/// How far before and after late readings windows are looked for at first, and further on; at last
/// among all that there are.
const AROUND_US: [i64; 2] = [86_400_000_000, 60 * 86_400_000_000];

/// How much earlier the newest revision of a window may be than one before it, or it is looked
/// further.
const REVISED_US: i64 = 32 * 86_400_000_000;

/// Keys with late readings, as JSON.
type Keys = BTreeMap<String, OfKey>;

/// One group at work on counts.
pub(super) struct Counts<'g> {
    group: &'g Group<'g>,
    step: Step,
    /// Readings until this place in the journal are the matter of the group.
    last_offset: i64,
}

/// Rows, and windows that stay with the number of their late readings.
type Judged = (Vec<RecordBatch>, Vec<(Bounds, i64)>);

impl<'g> Counts<'g> {
    /// None of a step with other windows.
    pub(super) async fn new(group: &'g Group<'g>) -> anyhow::Result<Option<Self>> {
        let Shape::Count { size, hop } = group.of.window.shape else { return Ok(None) };
        let last_offset = group.last_offset().await?;
        Ok(Some(Self { group, step: Step { size, hop }, last_offset }))
    }

    /// Hands the windows that have changed to the writer, and those that stay to `kept`, whose
    /// number is returned; none if it is to stop.
    pub(super) async fn work(
        &self,
        kept: &mut Kept<'_>,
        out: &mut Out<'_>,
    ) -> anyhow::Result<Option<usize>> {
        let mut late = LateKeys::of(self.group).await?;
        let mut stay = 0;
        while let Some(found) = late.next().await? {
            let of_key = |(key, late): (String, Vec<Late>)| (key, OfKey::new(late));
            let mut keys: Keys = found.into_iter().map(of_key).collect();
            self.find(&mut keys).await?;
            self.find_late(&mut keys).await?;
            let Some(batches) = self.read(&mut keys).await? else { return Ok(None) };
            let days = self.group.days().await?;
            if !self.number(&mut keys, &days).await? {
                return Ok(None);
            }
            let (from_us, to_us) = self.windows_us(&keys);
            let before = kept.known((from_us, to_us + 1), |key| keys.contains_key(key)).await?;
            let (none, mut fresh) = (BTreeSet::new(), Vec::new());
            for (key, of) in &keys {
                let before = before.get(key).unwrap_or(&none);
                let (rows, stayed) = self.judge((key, of), (&days, before), &batches)?;
                if let Some(first) = rows.first() {
                    let rows = concat_batches(&first.schema(), &rows)?;
                    out.append(self.group.of.unsaid(rows)?).await?;
                }
                stay += stayed.len();
                let told = |(bounds, _): &(Bounds, i64)| !before.contains(bounds);
                let stayed = stayed.into_iter().filter(told);
                fresh.extend(stayed.map(|(bounds, late)| Stayed { key, bounds, late }));
            }
            kept.add(&fresh, self.group.times_us.1).await?;
            fault::point("recomputed_slice");
        }
        Ok(Some(stay))
    }

    /// Step 1: the windows that the table has around the late readings.
    async fn find(&self, keys: &mut Keys) -> anyhow::Result<()> {
        for around_us in AROUND_US.into_iter().chain([i64::MAX]) {
            let (first_us, last_us) = self.range_us(keys);
            keys.values_mut().for_each(OfKey::begin);
            let from_us = first_us.saturating_sub(around_us).max(0);
            let final_us = keys.values().map(|of| of.final_us).max().unwrap_or_default();
            let to_us = last_us.saturating_add(around_us).min(final_us);
            // A revision may be of another time than the one before.
            let (least, until) = (time(from_us.saturating_sub(REVISED_US).max(0)), time(to_us));
            let at = format!("window_end >= {least} AND window_start < {until}");
            self.find_in(&at, from_us, keys).await?;
            // The window after a long silence tells which readings are in the one before it.
            let is_all = (from_us == 0 || keys.values().all(OfKey::has_before))
                && (to_us == final_us || keys.values().all(OfKey::has_after));
            if is_all && keys.values().all(|of| of.is_in_order(self.step, REVISED_US)) {
                break;
            }
        }
        keys.values_mut().for_each(OfKey::choose);
        Ok(())
    }

    /// From the first to the last late reading.
    fn range_us(&self, keys: &Keys) -> Bounds {
        let ranges = || keys.values().map(OfKey::range_us);
        let from_us = ranges().map(|r| r.0).min().unwrap_or_default();
        (from_us, ranges().map(|r| r.1).max().unwrap_or_default())
    }

    /// From the beginning to the end of the windows that they may be in.
    fn windows_us(&self, keys: &Keys) -> Bounds {
        let (from_us, to_us) = self.range_us(keys);
        let ranges = || keys.values().filter_map(OfKey::windows_us);
        let first_us = ranges().map(|r| r.0).min().unwrap_or(from_us);
        (first_us.min(from_us), ranges().map(|r| r.1).max().unwrap_or(to_us).max(to_us))
    }

    async fn find_in(&self, at: &str, from_us: i64, keys: &mut Keys) -> anyhow::Result<()> {
        let table = self.group.table;
        let columns = self.group.keys(&table.schema);
        // There may be no key.
        let mut named: Vec<String> = columns.iter().map(|k| name(&k.0)).collect();
        let keys_asked = named.iter().map(|name| format!("{name}, ")).collect::<String>();
        named.push("window_number".to_owned());
        let is_final = match table.schema.field_with_name(IS_FINAL) {
            Ok(_) => format!(" AND {IS_FINAL} IS NOT FALSE"),
            Err(_) => String::new(),
        };
        let newest = |column: &str| format!("last_value({column} ORDER BY revision)");
        // Without late readings.
        let own = |column: &str| {
            let newest = newest(column);
            format!("coalesce({newest} FILTER (WHERE rows = {}), {newest})", self.step.size)
        };
        let sql = format!(
            "SELECT {keys_asked}{}, {}, {}, {}, window_number, {}, max(revision), count(*) FILTER \
             (WHERE rows = {}) FROM {}.{} WHERE {at}{is_final}{} GROUP BY {}",
            newest("window_start"),
            newest("window_end"),
            own("window_start"),
            own("window_end"),
            newest("rows"),
            self.step.size,
            name(&table.namespace),
            name(&format!("{}_revisions", table.name)),
            self.group.named(keys.keys().map(String::as_str)),
            named.join(", "),
        );
        each_row(self.group, &sql, |key, row| {
            if let Some(of) = keys.get_mut(key)
                && from_us <= row.time(1)
            {
                of.know(Numbered {
                    start_us: row.time(0),
                    end_us: row.time(1),
                    own_us: (row.time(2), row.time(3)),
                    number: row.number(4),
                    rows: row.number(5),
                    revision: row.number(6),
                    is_own: row.number(7) > 0,
                });
            }
        })
        .await
    }

    /// Which of the readings in the windows were late, in this group or before.
    async fn find_late(&self, keys: &mut Keys) -> anyhow::Result<()> {
        let range_us = self.windows_us(keys);
        self.each_late(range_us, |key, at| {
            if let Some(of) = keys.get_mut(key) {
                of.was_late(at);
            }
        })
        .await
    }

    /// Hands over the key, the time and the place in the journal of what was late, in this group or
    /// before, of these times, both included.
    async fn each_late(
        &self,
        (from_us, to_us): Bounds,
        mut take: impl FnMut(&str, (i64, i64)),
    ) -> anyhow::Result<()> {
        let sql = format!(
            "SELECT keys, window_start, journal_offset FROM {} AND time = window_start AND time >= \
             {} AND time <= {}",
            late_of(self.group.of, (0, self.group.times_us.1)),
            time(from_us),
            time(to_us),
        );
        let mut found = self.group.session.sql(&sql).await?.execute_stream().await?;
        while let Some(rows) = found.try_next().await? {
            let names = cast(rows.column(0), &DataType::Utf8)?;
            let names = names.as_string::<i32>();
            let times = rows.column(1).as_primitive::<TimestampMicrosecondType>();
            let offsets = rows.column(2).as_primitive::<Int64Type>();
            for row in 0..rows.num_rows() {
                take(names.value(row), (times.value(row), offsets.value(row)));
            }
        }
        Ok(())
    }

    /// The stored readings in the windows, as rows of the step; none if it is to stop.
    async fn read(&self, keys: &mut Keys) -> anyhow::Result<Option<Vec<RecordBatch>>> {
        let (mut slice, mut batches) = (Slice::default(), Vec::new());
        for (key, of) in keys.iter() {
            for (from_us, to_us) in of.runs().iter().map(|run| run.range_us) {
                slice.push(key.clone(), (from_us, to_us.saturating_add(1)), 0);
            }
        }
        if slice.count() == 0 {
            return Ok(Some(batches));
        }
        let is_all = self.group.each_by_time(&slice, self.last_offset, |rows| {
            self.each_reading(&rows, |key, at, row| {
                if let Some(of) = keys.get_mut(key) {
                    of.read(at, (batches.len(), row));
                }
            });
            batches.push(rows);
            Ok(())
        });
        Ok(is_all.await?.then_some(batches))
    }

    /// Hands over the key, the time, the place in the journal and the row of readings.
    fn each_reading(&self, rows: &RecordBatch, mut take: impl FnMut(&str, (i64, i64), usize)) {
        let window = &self.group.of.window;
        let columns = self.group.keys(&window.input);
        let names: Vec<&str> = columns.iter().map(|k| k.0.as_str()).collect();
        let of_row: Vec<ArrayRef> = window.keys.iter().map(|k| rows.column(*k).clone()).collect();
        let times = rows.column(window.time).as_primitive::<TimestampMicrosecondType>();
        let offsets = rows["journal_offset"].as_primitive::<Int64Type>();
        for row in 0..rows.num_rows() {
            let at = (times.value(row), offsets.value(row));
            take(&keys_json(&names, &of_row, row), at, row);
        }
    }

    /// Which numbers the readings have: from the windows near, from those of the days around, from
    /// the first window on. False if it is to stop.
    async fn number(&self, keys: &mut Keys, days: &Days) -> anyhow::Result<bool> {
        keys.values_mut().for_each(|of| of.number(self.step));
        for is_from_first in [false, true] {
            if is_from_first && keys.values().any(|of| of.to_count().is_some()) {
                self.find_in("window_number = 0", i64::MIN, keys).await?;
            }
            let to_count = |(key, of): (&String, &OfKey)| {
                let tally = of.to_count().filter(|tally| days.has_all(tally.range_us()))?;
                Some((key.clone(), tally))
            };
            let mut tallies: BTreeMap<String, Tally> = keys.iter().filter_map(to_count).collect();
            if tallies.is_empty() {
                continue;
            }
            if !self.count(&mut tallies).await? {
                return Ok(false);
            }
            // Some can have been deleted before they were counted.
            let days = self.group.days().await?;
            for (key, tally) in tallies.iter().filter(|(_, tally)| days.has_all(tally.range_us())) {
                if let Some(of) = keys.get_mut(key) {
                    of.counted(tally, self.step);
                }
            }
        }
        Ok(true)
    }

    /// Counts the readings that were not late; false if it is to stop.
    async fn count(&self, tallies: &mut BTreeMap<String, Tally>) -> anyhow::Result<bool> {
        let mut slice = Slice::default();
        for (key, tally) in tallies.iter() {
            let (from_us, to_us) = tally.range_us();
            slice.push(key.clone(), (from_us, to_us.saturating_add(1)), 0);
        }
        let range_us = slice.range_us();
        let stored = self.group.stored(&slice, self.last_offset);
        let mut finder = Finder::new(&slice, &self.group.keys(&self.group.of.window.input))?;
        let is_all = self.group.each_stored(&stored, &mut finder, |rows| {
            self.each_reading(&rows, |key, at, _| {
                if let Some(tally) = tallies.get_mut(key) {
                    tally.add(at.0, 1);
                }
            });
            Ok(())
        });
        if !is_all.await? {
            return Ok(false);
        }
        self.each_late(range_us, |key, at| {
            if let Some(tally) = tallies.get_mut(key) {
                tally.add(at.0, -1);
            }
        })
        .await?;
        Ok(true)
    }

    /// Step 3 for a key: rows, and what stays, with the number of late readings.
    fn judge(
        &self,
        (key, of): (&str, &OfKey),
        (days, stayed): (&Days, &BTreeSet<Bounds>),
        batches: &[RecordBatch],
    ) -> anyhow::Result<Judged> {
        let (mut rows, mut stay) = (Vec::new(), Vec::new());
        for (run, fate) in of.fates(self.step) {
            match fate {
                Fate::Stays(bounds, late) => stay.push((bounds, late)),
                Fate::Comes(known, members, late) => {
                    let bounds = (known.start_us, known.end_us);
                    let is_whole = !stayed.contains(&bounds) && days.has_all(run.range_us);
                    match is_whole {
                        true => rows.push(self.window(known, members, batches)?),
                        false => stay.push((bounds, late)),
                    }
                }
            }
        }
        let nowhere = of.nowhere(self.step, self.group.is_complete_of(key));
        stay.extend(nowhere.into_iter().map(|(us, count)| ((us, us), count)));
        Ok((rows, stay))
    }

    /// The row of a window of these readings.
    fn window(
        &self,
        known: &Numbered,
        members: &[Reading],
        batches: &[RecordBatch],
    ) -> anyhow::Result<RecordBatch> {
        let window = &self.group.of.window;
        let size = members.len() as i64;
        let spec = WindowSpec { shape: Shape::Count { size, hop: size }, ..window.clone() };
        let all: Vec<&RecordBatch> = batches.iter().collect();
        let places: Vec<Place> = members.iter().map(|r| r.place).collect();
        let (mut operator, mut emit) = (SpanOperator::new(spec)?, Emit::default());
        let readings = interleave_record_batch(&all, &places)?;
        operator.epoch(&readings, Tick { epoch: 1, time_us: 0 }, &mut emit)?;
        operator.end(&mut emit)?;
        let [rows] = &emit.rows[..] else { anyhow::bail!("{} windows of one", emit.rows.len()) };
        anyhow::ensure!(rows.num_rows() == 1, "{} windows of one", rows.num_rows());
        let mut columns = rows.columns().to_vec();
        for (column, value) in [("window_number", known.number), ("revision", known.revision + 1)] {
            columns[rows.schema().index_of(column)?] = Arc::new(Int64Array::from(vec![value]));
        }
        Ok(RecordBatch::try_new(rows.schema(), columns)?)
    }
}
