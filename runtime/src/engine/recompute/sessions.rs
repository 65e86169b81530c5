//! Sessions that readings are too late for, computed again from the stored readings.
//!
//! Definition: a *stretch* of a key is a part of its time that no pause longer than `gap` divides,
//! of the sessions that its table has and of the late readings. What sessions there are in it
//! follows from its readings alone. Of each stretch with late readings of the group:
//! 1. it is found: the sessions of the table and the late readings, in order ([`OfKey`]). What a
//!    maximum had cut before the first of them is as it was, and not looked at any further;
//! 2. if it could still change by other ways, it stays as it is. The step said with each late
//!    reading before which time nothing is revised any more;
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
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, TimestampMicrosecondArray,
    new_null_array,
};
use arrow::compute::{cast, interleave, interleave_record_batch};
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use tidegate_operators::span::SpanOperator;
use tidegate_operators::spec::{IS_FINAL, Shape};
use tidegate_operators::system::keys_json;
use tidegate_operators::{Emit, Epoch, KeyedOperator, Tick};
use tidegate_sql::TableWriter;

use super::affected::{Finder, Slice};
use super::group::{Group, NAMED_MAX, late_of, name, restored, time};
use super::kept::{Kept, Stayed};
use super::stretches::{Known, Made, OfKey, Stretch};
use crate::fault;

/// Keys with late readings, as JSON.
type Keys = BTreeMap<String, OfKey>;

/// The late readings of a group, some keys at a time.
struct LateKeys {
    found: Option<BoxStream<'static, anyhow::Result<RecordBatch>>>,
    /// All but the last are complete.
    keys: Keys,
}

impl LateKeys {
    /// Rows of an earlier form of the step, with windows of fixed length, have other starts.
    async fn of(group: &Group<'_>) -> anyhow::Result<Self> {
        let sql = format!(
            "SELECT keys, window_start, max(window_end), count(*) FROM {} AND time = window_start \
             GROUP BY 1, 2 ORDER BY 1, 2",
            late_of(group.of, group.times_us)
        );
        let found = group.session.sql(&sql).await?.execute_stream().await?;
        let found = found.map_err(anyhow::Error::from).boxed();
        Ok(Self { found: Some(found), keys: Keys::new() })
    }

    async fn next(&mut self) -> anyhow::Result<Option<Keys>> {
        while let Some(found) = &mut self.found
            && self.keys.len() <= NAMED_MAX
        {
            match found.try_next().await? {
                Some(rows) => self.add(&rows)?,
                None => self.found = None,
            }
        }
        let complete = self.keys.len() - usize::from(self.found.is_some());
        let taken = complete.min(NAMED_MAX);
        let taken: Keys = (0..taken).map_while(|_| self.keys.pop_first()).collect();
        Ok((!taken.is_empty()).then_some(taken))
    }

    fn add(&mut self, rows: &RecordBatch) -> anyhow::Result<()> {
        let keys = cast(rows.column(0), &DataType::Utf8)?;
        let keys = keys.as_string::<i32>();
        let [times, finals] =
            [1, 2].map(|i| rows.column(i).as_primitive::<TimestampMicrosecondType>());
        let counts = rows.column(3).as_primitive::<Int64Type>();
        for row in 0..rows.num_rows() {
            let key = self.keys.entry(keys.value(row).to_owned()).or_default();
            key.late.push((times.value(row), counts.value(row)));
            key.final_us = key.final_us.max(finals.value(row));
        }
        Ok(())
    }
}

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
        (writer, through): (&mut TableWriter, Epoch),
    ) -> anyhow::Result<Option<usize>> {
        let mut late = LateKeys::of(self.group).await?;
        let last_offset = self.group.last_offset().await?;
        let mut stay = 0;
        while let Some(mut keys) = late.next().await? {
            self.find(&mut keys).await?;
            stay += self.keep(&mut keys, kept).await?;
            let Some(batches) = self.make(&mut keys, last_offset).await? else { return Ok(None) };
            for rows in changes(&keys, &batches)? {
                writer.append(self.group.of.unsaid(rows)?, through).await?;
            }
            let stretches =
                keys.iter().flat_map(|(key, of)| of.stretches.iter().map(move |s| (key, s)));
            let part = stretches.filter(|(_, stretch)| !stretch.is_whole());
            let part: Vec<Stayed<'_>> = part.map(|(key, s)| s.stayed(key)).collect();
            stay += part.len();
            kept.add(&part, self.group.times_us.1).await?;
            fault::point("recomputed_slice");
        }
        Ok(Some(stay))
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
        let group = self.group;
        let columns = group.keys(&group.table.schema);
        let named: Vec<String> = columns.iter().map(|k| name(&k.0)).collect();
        let named = named.join(", ");
        let to_us = keys.values().map(|of| of.final_us).max().unwrap_or_default();
        keys.values_mut().for_each(OfKey::begin);
        let sql = format!(
            "SELECT {named}, window_start, max(revision), last_value(rows ORDER BY revision), \
             last_value(window_end ORDER BY revision) FROM {}.{} WHERE {from} AND window_start < \
             {}{} GROUP BY {named}, window_start ORDER BY window_start",
            name(&group.table.namespace),
            name(&format!("{}_revisions", group.table.name)),
            time(to_us),
            group.named(keys.keys().map(String::as_str)),
        );
        let mut found = group.session.sql(&sql).await?.execute_stream().await?;
        while let Some(rows) = found.try_next().await? {
            self.add(&rows, &columns, keys)?;
        }
        keys.values_mut().for_each(|of| of.end(self.gap_us));
        Ok(())
    }

    /// Sessions of the table, by their start.
    fn add(
        &self,
        rows: &RecordBatch,
        columns: &[(String, DataType)],
        keys: &mut Keys,
    ) -> anyhow::Result<()> {
        let table = self.group.table;
        let of_row = rows.columns().iter().zip(columns).map(|(column, (name, _))| {
            restored(column, table.schema.field_with_name(name)?, table)
        });
        let of_row: Vec<ArrayRef> = of_row.collect::<Result<_, _>>()?;
        let names: Vec<&str> = columns.iter().map(|k| k.0.as_str()).collect();
        let time =
            |i: usize| rows.column(names.len() + i).as_primitive::<TimestampMicrosecondType>();
        let number = |i: usize| rows.column(names.len() + i).as_primitive::<Int64Type>();
        for row in 0..rows.num_rows() {
            if let Some(of) = keys.get_mut(&keys_json(&names, &of_row, row)) {
                let known = Known {
                    start_us: time(0).value(row),
                    revision: number(1).value(row),
                    rows: number(2).value(row),
                    end_us: time(3).value(row),
                };
                of.session((self.gap_us, self.max_us), known);
            }
        }
        Ok(())
    }

    /// Step 2: takes out the stretches that stay as they are, whatever is stored, and returns how
    /// many there are.
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
            let stays = |of: &OfKey, s: &Stretch| {
                let near = || before.iter().any(|k| s.is_near(gap_us, *k));
                !self.group.is_complete || !of.is_final(gap_us, s) || near()
            };
            let (stay_now, others): (Vec<Stretch>, Vec<Stretch>) =
                std::mem::take(&mut of.stretches).into_iter().partition(|s| stays(of, s));
            of.stretches = others;
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
        let (group, window) = (self.group, &self.group.of.window);
        let mut slice = Slice::default();
        for (key, of) in keys.iter() {
            for stretch in &of.stretches {
                let around = of.around(self.gap_us, stretch.bounds);
                slice.push(key.clone(), around, stretch.late);
            }
        }
        let mut batches = Vec::new();
        if slice.count() == 0 {
            return Ok(Some(batches));
        }
        let mut operator = SpanOperator::new(window.clone())?;
        let mut finder = Finder::new(&slice, &group.keys(&window.input))?;
        let (mut emit, mut epoch) = (Emit::default(), 0);
        let sql = group.readings(&slice, last_offset, true);
        let mut found = group.session.sql(&sql).await?.execute_stream().await?;
        while let Some(rows) = found.try_next().await? {
            if group.stopping.load(Ordering::Acquire) {
                return Ok(None);
            }
            let rows = group.inside(&rows, &mut finder)?;
            epoch += 1;
            operator.epoch(&rows, Tick { epoch, time_us: 0 }, &mut emit)?;
            self.take(&mut emit, keys, &mut batches)?;
        }
        operator.end(&mut emit)?;
        self.take(&mut emit, keys, &mut batches)?;
        Ok(Some(batches))
    }

    /// Notes the sessions that were made.
    fn take(
        &self,
        emit: &mut Emit,
        keys: &mut Keys,
        batches: &mut Vec<RecordBatch>,
    ) -> anyhow::Result<()> {
        anyhow::ensure!(emit.late.is_empty(), "stored readings do not come by time");
        let columns = self.group.keys(&self.group.of.window.input);
        let names: Vec<&str> = columns.iter().map(|k| k.0.as_str()).collect();
        for rows in std::mem::take(&mut emit.rows) {
            let of_row = &rows.columns()[..names.len()];
            let time =
                |i: usize| rows.column(names.len() + i).as_primitive::<TimestampMicrosecondType>();
            let counts = rows["rows"].as_primitive::<Int64Type>();
            for row in 0..rows.num_rows() {
                let made = Made {
                    start_us: time(0).value(row),
                    end_us: time(1).value(row),
                    rows: counts.value(row),
                    place: (batches.len(), row),
                };
                let of = keys.get_mut(&keys_json(&names, of_row, row));
                let stretch = of.and_then(|of| of.stretch_of(self.gap_us, made.start_us));
                stretch.into_iter().for_each(|stretch| stretch.made.push(made));
            }
            batches.push(rows);
        }
        Ok(())
    }
}

/// Step 4: the next revisions.
fn changes(keys: &Keys, batches: &[RecordBatch]) -> anyhow::Result<Vec<RecordBatch>> {
    let (mut places, mut revisions) = (Vec::new(), Vec::new());
    let mut gone: Vec<((usize, usize), Known)> = Vec::new();
    for of in keys.values() {
        for stretch in of.stretches.iter().filter(|s| s.is_whole()) {
            let mut before: BTreeMap<i64, Known> =
                stretch.known.iter().map(|k| (k.start_us, *k)).collect();
            for made in &stretch.made {
                let known = before.remove(&made.start_us);
                // Of the readings in a stretch, those from one time to another.
                if known.is_some_and(|k| (k.end_us, k.rows) == (made.end_us, made.rows)) {
                    continue;
                }
                let revision = known.map(|k| k.revision).or(of.gone.get(&made.start_us).copied());
                places.push(made.place);
                revisions.push(revision.map_or(0, |revision| revision + 1));
            }
            // A stretch has late readings, so it has sessions.
            let place = stretch.made.first().map(|m| m.place);
            gone.extend(before.into_values().filter_map(|known| Some((place?, known))));
        }
    }
    let mut changes = Vec::new();
    if !places.is_empty() {
        let all: Vec<&RecordBatch> = batches.iter().collect();
        let rows = interleave_record_batch(&all, &places)?;
        let mut columns = rows.columns().to_vec();
        columns[rows.schema().index_of("revision")?] = Arc::new(Int64Array::from(revisions));
        changes.push(RecordBatch::try_new(rows.schema(), columns)?);
    }
    if !gone.is_empty() {
        changes.push(withdrawn(batches, &gone)?);
    }
    Ok(changes)
}

/// Sessions that are none any more, each with a row of its key.
fn withdrawn(
    batches: &[RecordBatch],
    gone: &[((usize, usize), Known)],
) -> anyhow::Result<RecordBatch> {
    let schema = batches[0].schema();
    let places: Vec<(usize, usize)> = gone.iter().map(|g| g.0).collect();
    let times = |f: &dyn Fn(&Known) -> i64| -> ArrayRef {
        let times = TimestampMicrosecondArray::from_iter_values(gone.iter().map(|g| f(&g.1)));
        Arc::new(times.with_timezone("UTC"))
    };
    let numbers = |f: &dyn Fn(&Known) -> i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(gone.iter().map(|g| f(&g.1))))
    };
    let key_columns = schema.index_of("window_start")?;
    let mut columns = Vec::with_capacity(schema.fields().len());
    for (i, field) in schema.fields().iter().enumerate() {
        columns.push(match field.name().as_str() {
            _ if i < key_columns => {
                let all: Vec<&dyn Array> = batches.iter().map(|b| b.column(i).as_ref()).collect();
                interleave(&all, &places)?
            }
            _ if i == key_columns => times(&|k| k.start_us),
            _ if i == key_columns + 1 => times(&|k| k.end_us),
            "rows" => numbers(&|_| 0),
            IS_FINAL => Arc::new(BooleanArray::from(vec![true; gone.len()])),
            "revision" => numbers(&|k| k.revision + 1),
            _ => new_null_array(field.data_type(), gone.len()),
        });
    }
    Ok(RecordBatch::try_new(schema, columns)?)
}
