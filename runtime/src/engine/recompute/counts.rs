//! Counts that readings are too late for, computed again from the stored readings.
//!
//! Windows are numbered once: what was told of a final window stays one of the readings that it
//! has, and its number. A late reading comes after those that the step took which are not newer,
//! and is in the windows that have the last of these; one that is older than all is in the first
//! window. So a window that it is in has one reading more than its size. Of each such window
//! ([`Window`]):
//! 1. it is one that the table has, which begins before the late reading, and ends after it or is
//!    the last one before it;
//! 2. its stored readings are gone through, of which none were deleted: those that were not late
//!    have to be as many as its size, or the others are known to be those of its neighbours. With
//!    the late ones of earlier groups they have to be as many as the table says (`rows`);
//! 3. with the late ones of this group they are made a window by the step's own aggregation, and
//!    written as its next revision. If not, it stays ([`super::kept`]).

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

use super::affected::{Bounds, Slice};
use super::group::{Days, Group, late_of, name, time};
use super::kept::{Kept, Stayed};
use super::late::{Late, LateKeys};
use super::number::{Numbered, OfKey, Reading};
use super::out::Out;
use super::revise::{Place, each_row};
use crate::fault;

/// How far before and after late readings windows are looked for at first, and further on; at last
/// among all that there are.
const AROUND_US: [i64; 2] = [86_400_000_000, 60 * 86_400_000_000];

/// How much earlier the newest revision of a window may be than one before it.
const REVISED_US: i64 = 32 * 86_400_000_000;

/// Keys with late readings, as JSON.
type Keys = BTreeMap<String, OfKey>;

/// One group at work on counts.
pub(super) struct Counts<'g> {
    group: &'g Group<'g>,
    size: i64,
    hop: i64,
}

/// Rows, and windows that stay with the number of their late readings.
type Judged = (Vec<RecordBatch>, Vec<(Bounds, i64)>);

impl<'g> Counts<'g> {
    /// None of a step with other windows.
    pub(super) fn new(group: &'g Group<'g>) -> Option<Self> {
        let Shape::Count { size, hop } = group.of.window.shape else { return None };
        Some(Self { group, size, hop })
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
            let of_key = |(key, late): (String, Vec<Late>)| (key, OfKey::new(late));
            let mut keys: Keys = found.into_iter().map(of_key).collect();
            self.find(&mut keys).await?;
            self.find_late(&mut keys).await?;
            let Some(batches) = self.read(&mut keys, last_offset).await? else { return Ok(None) };
            let days = self.group.days().await?;
            let (from_us, to_us) = self.windows_us(&keys);
            let before = kept.known((from_us, to_us + 1), |key| keys.contains_key(key)).await?;
            let (none, mut fresh) = (BTreeSet::new(), Vec::new());
            for (key, of) in &keys {
                let before = before.get(key).unwrap_or(&none);
                let (rows, stayed) = self.judge(of, (&days, before), &batches)?;
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
            self.find_in((from_us, to_us), keys).await?;
            // The window after a long silence tells which readings are in the one before it.
            let is_all = (from_us == 0 || keys.values().all(OfKey::has_before))
                && (to_us == final_us || keys.values().all(OfKey::has_after));
            if is_all {
                break;
            }
        }
        keys.values_mut().for_each(|of| of.choose(self.size == self.hop));
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

    async fn find_in(&self, (from_us, to_us): Bounds, keys: &mut Keys) -> anyhow::Result<()> {
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
        let sql = format!(
            "SELECT {keys_asked}{1}, {2}, window_number, {3}, max(revision) FROM {4}.{5} WHERE \
             window_end >= {6} AND window_start < {7}{is_final}{8} GROUP BY {0}",
            named.join(", "),
            newest("window_start"),
            newest("window_end"),
            newest("rows"),
            name(&table.namespace),
            name(&format!("{}_revisions", table.name)),
            // A revision may be of another time than the one before.
            time(from_us.saturating_sub(REVISED_US).max(0)),
            time(to_us),
            self.group.named(keys.keys().map(String::as_str)),
        );
        each_row(self.group, &sql, |key, row| {
            if let Some(of) = keys.get_mut(key)
                && from_us <= row.time(1)
            {
                of.know(Numbered {
                    start_us: row.time(0),
                    end_us: row.time(1),
                    number: row.number(2),
                    rows: row.number(3),
                    revision: row.number(4),
                });
            }
        })
        .await
    }

    /// Which of the readings in the windows were late, in this group or before.
    async fn find_late(&self, keys: &mut Keys) -> anyhow::Result<()> {
        let (from_us, to_us) = self.windows_us(keys);
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
                if let Some(of) = keys.get_mut(names.value(row)) {
                    of.was_late((times.value(row), offsets.value(row)));
                }
            }
        }
        Ok(())
    }

    /// The stored readings in the windows, as rows of the step; none if it is to stop.
    async fn read(
        &self,
        keys: &mut Keys,
        last_offset: i64,
    ) -> anyhow::Result<Option<Vec<RecordBatch>>> {
        let (group, window) = (self.group, &self.group.of.window);
        let (mut slice, mut batches) = (Slice::default(), Vec::new());
        for (key, of) in keys.iter() {
            for (from_us, to_us) in of.ranges() {
                slice.push(key.clone(), (from_us, to_us.saturating_add(1)), 0);
            }
        }
        if slice.count() == 0 {
            return Ok(Some(batches));
        }
        let columns = group.keys(&window.input);
        let names: Vec<&str> = columns.iter().map(|k| k.0.as_str()).collect();
        let is_all = group.each_by_time(&slice, last_offset, |rows| {
            let of_row: Vec<ArrayRef> =
                window.keys.iter().map(|k| rows.column(*k).clone()).collect();
            let times = rows.column(window.time).as_primitive::<TimestampMicrosecondType>();
            let offsets = rows["journal_offset"].as_primitive::<Int64Type>();
            for row in 0..rows.num_rows() {
                let place = (batches.len(), row);
                let at = (times.value(row), offsets.value(row));
                if let Some(of) = keys.get_mut(&keys_json(&names, &of_row, row)) {
                    of.read(at, place);
                }
            }
            batches.push(rows);
            Ok(())
        });
        Ok(is_all.await?.then_some(batches))
    }

    /// Steps 2 and 3 for a key: rows, and what stays, with the number of late readings.
    fn judge(
        &self,
        of: &OfKey,
        (days, stayed): (&Days, &BTreeSet<Bounds>),
        batches: &[RecordBatch],
    ) -> anyhow::Result<Judged> {
        let (mut rows, mut stay) = (Vec::new(), Vec::new());
        for window in of.chosen() {
            let bounds = (window.known.start_us, window.known.end_us);
            let Some(members) = window.members(self.size) else {
                stay.push((bounds, window.late()));
                continue;
            };
            let late = members.iter().filter(|r| r.is_new).count() as i64;
            if late == 0 {
                continue;
            }
            let is_whole = !stayed.contains(&bounds)
                && days.has_all((bounds.0.min(members[0].at.0), bounds.1))
                && members.len() as i64 == window.known.rows + late;
            match is_whole {
                true => rows.push(self.window(&window.known, members, batches)?),
                false => stay.push((bounds, late)),
            }
        }
        stay.extend(of.nowhere(self.size).map(|(us, count)| ((us, us), count)));
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
