//! One group of late readings: their windows are computed from the stored readings, and written as
//! the next revision.
//!
//! It is a function of what the tables have: of the late readings of the group, of the readings
//! that had come by the last of them, and of the revisions that there are. A window that readings
//! are too late for is not emitted by its step any more, so nobody else writes these revisions; and
//! every reading that comes for it later is a late reading of a later group, so that all that had
//! come by then is in the group or before it.
//!
//! A window is written if the stored readings are exactly all that it is made of: those that its
//! newest revision has (`rows`) and the late ones of the group. That is all of them, since of a
//! window that got the late readings of every group before, the newest revision has them. Of a
//! window without a revision they are the late ones, if its table was there from the first row on;
//! if not, nobody knows. In all other cases (readings were deleted, or came before there was a
//! table of them; the step, the budget of keys or the journal was another one) the window stays as
//! it is, for good ([`super::kept`]): less would be wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use tidegate_operators::intern::KeyInterner;
use tidegate_operators::spec::{Shape, TableSpec};
use tidegate_operators::window::WindowOperator;
use tidegate_operators::{Emit, KeyedOperator, Tick};
use tidegate_pipelines::recompute::Recomputation;
use tidegate_sql::{Session, TableName};

use super::affected::{Affected, Bounds, Finder, Slice};
use super::kept::Kept;
use super::out::Out;
use crate::fault;

/// Distinct keys up to which they are named in the question for readings.
pub(super) const NAMED_MAX: usize = 200;

/// One group at work.
pub(super) struct Group<'a> {
    pub(super) session: &'a Session,
    pub(super) of: &'a Recomputation,
    /// The table of windows.
    pub(super) table: &'a TableSpec,
    /// Whether that has every row that the step made for it.
    pub(super) is_complete: bool,
    /// Ingest times of its late readings: from, until, microseconds.
    pub(super) times_us: Bounds,
    /// Under which the stored readings are committed.
    pub(super) stored_as: &'a str,
    /// Whether it is to be left undone.
    pub(super) stopping: &'a AtomicBool,
}

/// Of which days the stored readings are all that there were, none deleted.
pub(super) struct Days {
    /// The others; none if nothing is known of any.
    changed: Option<BTreeSet<String>>,
}

impl Days {
    /// Whether those in these times, both ends included, are.
    pub(super) fn has_all(&self, (from_us, to_us): Bounds) -> bool {
        let day = |us: i64| {
            let time = chrono::DateTime::from_timestamp_micros(us.max(0)).unwrap_or_default();
            time.format("%Y-%m-%d").to_string()
        };
        let changed = self.changed.as_ref();
        changed.is_some_and(|days| days.range(day(from_us)..=day(to_us)).next().is_none())
    }
}

pub(super) fn name(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

pub(super) fn text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A time, of the type that the columns have.
pub(super) fn time(us: i64) -> String {
    format!("arrow_cast({us}, 'Timestamp(Microsecond, Some(\"UTC\"))')")
}

/// The late readings of a step, ingested in these times.
pub(super) fn late_of(of: &Recomputation, (from_us, until_us): Bounds) -> String {
    format!(
        "system.late WHERE pipeline = {} AND step = {} AND ingest_time >= {} AND ingest_time < {} \
         AND journal_offset IS NOT NULL",
        text(&of.window.pipeline),
        text(&of.window.name),
        time(from_us),
        time(until_us),
    )
}

impl Group<'_> {
    async fn rows(&self, sql: &str) -> anyhow::Result<Vec<RecordBatch>> {
        Ok(self.session.sql(sql).await?.collect().await?)
    }

    /// The place in the journal of the last of its late readings.
    pub(super) async fn last_offset(&self) -> anyhow::Result<i64> {
        let late = late_of(self.of, self.times_us);
        let last = self.rows(&format!("SELECT max(journal_offset) FROM {late}")).await?;
        let last = last.iter().flat_map(|b| b.column(0).as_primitive::<Int64Type>().iter());
        Ok(last.flatten().max().unwrap_or_default())
    }

    /// What of the stored readings is all that there were, as it is now: what was read before is
    /// not less.
    pub(super) async fn days(&self) -> anyhow::Result<Days> {
        let (of, app_id) = (&self.of.stored, self.stored_as);
        let name = TableName::new(of.namespace.clone(), of.name.clone());
        let snapshot = self.session.table(&name)?.open().await?;
        Ok(Days { changed: snapshot.days_changed(app_id) })
    }

    /// Hands the next revisions of windows of fixed bounds to the writer, and what stays to `kept`,
    /// whose number is returned; none if it is to stop.
    pub(super) async fn work(
        &self,
        kept: &mut Kept<'_>,
        out: &mut Out<'_>,
    ) -> anyhow::Result<Option<usize>> {
        let (mut slices, last_offset) = (self.slices().await?, self.last_offset().await?);
        let mut stay = 0;
        while let Some(mut slice) = slices.next().await? {
            let known = kept.known(slice.range_us(), |key| slice.has(key)).await?;
            stay += slice.without(&known);
            if slice.count() == 0 {
                continue;
            }
            let Some(made) = self.compute(&slice, last_offset).await? else { return Ok(None) };
            for rows in made {
                out.append(rows).await?;
            }
            let stayed = slice.unwritten();
            stay += stayed.len();
            kept.add(&stayed, self.times_us.1).await?;
            fault::point("recomputed_slice");
        }
        Ok(Some(stay))
    }

    /// The windows of its late readings in slices.
    async fn slices(&self) -> anyhow::Result<Slices> {
        let windows = format!(
            "SELECT keys, window_start, window_end, count(*) FROM {} AND time < window_end GROUP \
             BY 1, 2, 3 ORDER BY 2",
            late_of(self.of, self.times_us)
        );
        let found = self.session.sql(&windows).await?.execute_stream().await?;
        let shape = self.of.window.shape.clone();
        let found = Some(found.map_err(anyhow::Error::from).boxed());
        Ok(Slices { found, shape, affected: Affected::default(), before_us: i64::MIN })
    }

    /// The windows of a slice as rows of the table, from the readings up to a place in the journal;
    /// none if it is to stop.
    async fn compute(
        &self,
        slice: &Slice,
        last_offset: i64,
    ) -> anyhow::Result<Option<Vec<RecordBatch>>> {
        let window = &self.of.window;
        let mut operator = WindowOperator::new(window.clone())?;
        let mut finder = Finder::new(slice, &self.keys(&window.input))?;
        let mut emit = Emit::default();
        let mut epoch = 0;
        let sql = self.readings(slice, last_offset, false);
        let is_all = self.each_stored(&sql, &mut finder, |rows| {
            epoch += 1;
            Ok(operator.epoch(&rows, Tick { epoch, time_us: 0 }, &mut emit)?)
        });
        if !is_all.await? {
            return Ok(None);
        }
        operator.end(&mut emit)?;
        let mut revisions = self.revisions(slice).await?;
        let is_complete = self.is_complete;
        let rows = emit.rows.iter().map(|rows| revisions.next(rows, is_complete, &mut finder));
        rows.collect::<anyhow::Result<_>>().map(Some)
    }

    /// Hands over what the step reads in the windows of a slice, by time and then in the order of
    /// the journal; false if it is to stop.
    pub(super) async fn each_by_time(
        &self,
        slice: &Slice,
        last_offset: i64,
        take: impl FnMut(RecordBatch) -> anyhow::Result<()>,
    ) -> anyhow::Result<bool> {
        let mut finder = Finder::new(slice, &self.keys(&self.of.window.input))?;
        self.each_stored(&self.readings(slice, last_offset, true), &mut finder, take).await
    }

    /// The same of a query of [`Group::readings`], or [`Group::stored`].
    pub(super) async fn each_stored(
        &self,
        sql: &str,
        finder: &mut Finder<'_>,
        mut take: impl FnMut(RecordBatch) -> anyhow::Result<()>,
    ) -> anyhow::Result<bool> {
        let mut found = self.session.sql(sql).await?.execute_stream().await?;
        while let Some(rows) = found.try_next().await? {
            if self.stopping.load(Ordering::Acquire) {
                return Ok(false);
            }
            take(self.inside(&rows, finder)?)?;
        }
        Ok(true)
    }

    /// What the step reads, of stored readings, in the windows of a slice.
    fn inside(&self, rows: &RecordBatch, finder: &mut Finder<'_>) -> anyhow::Result<RecordBatch> {
        let window = &self.of.window;
        let rows = self.of.input(as_stored(rows, &self.of.stored)?)?;
        let keys: Vec<ArrayRef> = window.keys.iter().map(|k| rows.column(*k).clone()).collect();
        let at = (rows.column(window.time), &rows["journal_offset"]);
        let keep = finder.in_windows(&keys, at)?;
        Ok(filter_record_batch(&rows, &BooleanArray::from(keep))?)
    }

    /// Names and types of the key columns.
    pub(super) fn keys(&self, schema: &SchemaRef) -> Vec<(String, DataType)> {
        let window = &self.of.window;
        let field = |k: &usize| window.input.field(*k).name();
        let of = |name: &String| {
            let field = schema.field_with_name(name).expect("keys are columns of every edge");
            (name.clone(), field.data_type().clone())
        };
        window.keys.iter().map(field).map(of).collect()
    }

    /// Asks for the readings of a slice in the order of the journal, or by time and then that.
    fn readings(&self, slice: &Slice, last_offset: i64, by_time: bool) -> String {
        let by_time = by_time.then_some(&self.of.stored.time);
        let order: Vec<String> =
            by_time.into_iter().chain(&self.of.order).map(|c| name(c)).collect();
        format!("{} ORDER BY {}", self.stored(slice, last_offset), order.join(", "))
    }

    /// Asks for the readings of a slice.
    pub(super) fn stored(&self, slice: &Slice, last_offset: i64) -> String {
        let stored = &self.of.stored;
        let columns: Vec<String> = stored.schema.fields().iter().map(|f| name(f.name())).collect();
        let (from_us, to_us) = slice.range_us();
        let event = name(&stored.time);
        format!(
            "SELECT {} FROM {}.{} WHERE {event} >= {} AND {event} < {} AND journal_offset <= \
             {last_offset}{}",
            columns.join(", "),
            name(&stored.namespace),
            name(&stored.name),
            time(from_us),
            time(to_us),
            if self.of.is_direct() { self.named(slice.keys()) } else { String::new() },
        )
    }

    /// Conditions that name keys, if they are few, so that files and pages of others are not read.
    /// They need not be exact.
    pub(super) fn named<'k>(&self, keys: impl ExactSizeIterator<Item = &'k str> + Clone) -> String {
        let mut conditions = String::new();
        if keys.len() > NAMED_MAX {
            return conditions;
        }
        for (column, data_type) in self.keys(&self.of.window.input) {
            let value = |key: &str| -> Option<String> {
                let key: serde_json::Value = serde_json::from_str(key).ok()?;
                // Where it is a partition, an empty text is stored as null.
                key.get(&column)?.as_str().filter(|value| !value.is_empty()).map(text)
            };
            let values: Option<Vec<String>> = keys.clone().map(value).collect();
            if let (DataType::Utf8, Some(mut values)) = (data_type, values) {
                values.sort_unstable();
                values.dedup();
                conditions += &format!(" AND {} IN ({})", name(&column), values.join(", "));
            }
        }
        conditions
    }

    /// The newest revisions of the windows of a slice, and how many readings they took.
    async fn revisions(&self, slice: &Slice) -> anyhow::Result<Revisions<'_>> {
        let keys = self.keys(&self.table.schema);
        let mut columns: Vec<String> = keys.iter().map(|k| name(&k.0)).collect();
        columns.push("window_start".to_owned());
        let columns = columns.join(", ");
        let (from_us, to_us) = slice.range_us();
        // What was said of a window last stays true, and all that came since is late.
        let quality = match self.of.window.quality {
            Some(_) => {
                ", coalesce(max(late), 0), last_value(complete ORDER BY revision), \
                 last_value(duplicates ORDER BY revision)"
            }
            None => "",
        };
        let sql = format!(
            "SELECT {columns}, max(revision), max(rows){quality} FROM {}.{} WHERE window_start \
             >= {} AND window_start < {} GROUP BY {columns}",
            name(&self.table.namespace),
            name(&format!("{}_revisions", self.table.name)),
            time(from_us),
            time(to_us),
        );
        let with_quality = self.of.window.quality.is_some();
        let mut revisions = Revisions::new(keys, self.table, with_quality)?;
        let mut found = self.session.sql(&sql).await?.execute_stream().await?;
        while let Some(rows) = found.try_next().await? {
            revisions.add(&rows)?;
        }
        Ok(revisions)
    }
}

/// The windows of the late readings of a group, slice by slice.
struct Slices {
    /// Those that are not in slices yet, in the order of their starts; none at the end.
    found: Option<BoxStream<'static, anyhow::Result<RecordBatch>>>,
    shape: Shape,
    affected: Affected,
    /// What begins before is all there, microseconds.
    before_us: i64,
}

impl Slices {
    async fn next(&mut self) -> anyhow::Result<Option<Slice>> {
        loop {
            if let Some(slice) = self.affected.slice(&self.shape, self.before_us) {
                return Ok(Some(slice));
            }
            let Some(found) = &mut self.found else { return Ok(None) };
            self.before_us = match found.try_next().await? {
                Some(rows) => self.affected.add(&rows, &self.shape)?.max(self.before_us),
                None => i64::MAX,
            };
            if self.before_us == i64::MAX {
                self.found = None;
            }
        }
    }
}

/// Rows of a table as the edge has them: files may hold them in another form. Whatever the edge
/// requires can be null, in rows from before that.
pub(super) fn as_stored(rows: &RecordBatch, table: &TableSpec) -> anyhow::Result<RecordBatch> {
    let fields = table.schema.fields();
    let columns = rows.columns().iter().zip(fields).map(|(column, f)| restored(column, f, table));
    let columns: Vec<ArrayRef> = columns.collect::<Result<_, _>>()?;
    let fields: Vec<Field> =
        fields.iter().map(|f| f.as_ref().clone().with_nullable(true)).collect();
    let schema = Schema::new_with_metadata(fields, table.schema.metadata().clone());
    Ok(RecordBatch::try_new(Arc::new(schema), columns)?)
}

/// A column as the edge has it. An empty text is stored as null, where it is a partition.
pub(super) fn restored(
    column: &ArrayRef,
    field: &Field,
    table: &TableSpec,
) -> Result<ArrayRef, ArrowError> {
    let column = cast(column, field.data_type())?;
    if field.is_nullable() || column.null_count() == 0 || !table.partition.contains(field.name()) {
        return Ok(column);
    }
    let texts = cast(&column, &DataType::Utf8)?;
    let texts = texts.as_string::<i32>().iter().map(Option::unwrap_or_default);
    cast(&StringArray::from_iter_values(texts), field.data_type())
}

/// What the table has of a window.
#[derive(Clone, Copy)]
struct Known {
    /// Its newest revision.
    revision: i64,
    /// The most readings that a revision has.
    rows: i64,
    /// How many of them came late, if that is told.
    late: i64,
    /// What was said last, if anything was.
    complete: Option<bool>,
    duplicates: Option<i64>,
}

/// What the table has of each window, by key columns and start.
struct Revisions<'t> {
    table: &'t TableSpec,
    /// The key columns, then the start.
    by: Vec<Field>,
    interner: KeyInterner,
    /// Windows say how good they are.
    with_quality: bool,
    known: BTreeMap<u32, Known>,
}

impl<'t> Revisions<'t> {
    fn new(
        keys: Vec<(String, DataType)>,
        table: &'t TableSpec,
        with_quality: bool,
    ) -> anyhow::Result<Self> {
        let names = keys.iter().map(|k| k.0.as_str()).chain(["window_start"]);
        let by: Result<Vec<Field>, ArrowError> =
            names.map(|name| table.schema.field_with_name(name).cloned()).collect();
        let by = by?;
        let types: Vec<DataType> = by.iter().map(|f| f.data_type().clone()).collect();
        let interner = KeyInterner::new(&types)?;
        Ok(Self { table, by, interner, with_quality, known: BTreeMap::new() })
    }

    fn add(&mut self, rows: &RecordBatch) -> anyhow::Result<()> {
        let columns = rows.columns().iter().zip(&self.by);
        let columns = columns.map(|(column, field)| restored(column, field, self.table));
        let columns: Vec<ArrayRef> = columns.collect::<Result<_, _>>()?;
        let mut ids = Vec::new();
        self.interner.intern(&columns, rows.num_rows(), &mut ids)?;
        let [revisions, counts] = [0, 1].map(|i| {
            rows.column(columns.len() + i).as_primitive::<Int64Type>().values().iter().copied()
        });
        let more = rows.columns().get(columns.len() + 2..).unwrap_or_default();
        let quality = |row: usize| match more {
            [late, complete, duplicates] => {
                let complete = complete.as_boolean();
                let [late, duplicates] = [late, duplicates].map(|c| c.as_primitive::<Int64Type>());
                let complete = complete.is_valid(row).then(|| complete.value(row));
                let duplicates = duplicates.is_valid(row).then(|| duplicates.value(row));
                (late.value(row), complete, duplicates)
            }
            _ => (0, None, None),
        };
        let known = revisions.zip(counts).enumerate().map(|(row, (revision, rows))| {
            let (late, complete, duplicates) = quality(row);
            Known { revision, rows, late, complete, duplicates }
        });
        self.known.extend(ids.into_iter().zip(known));
        Ok(())
    }

    /// Those of the rows that are windows of the slice and have all that the window took before,
    /// and the late readings; each with its next revision.
    fn next(
        &mut self,
        rows: &RecordBatch,
        is_complete: bool,
        finder: &mut Finder<'_>,
    ) -> anyhow::Result<RecordBatch> {
        let place = |name| rows.schema().index_of(name);
        let [start, end] = [place("window_start")?, place("window_end")?];
        let (count, revision) = (place("rows")?, place("revision")?);
        let keys = &rows.columns()[..self.by.len() - 1];
        let windows = finder.find(keys, [rows.column(start), rows.column(end)])?;
        let mut columns = keys.to_vec();
        columns.push(rows.column(start).clone());
        let mut ids = Vec::new();
        self.interner.intern(&columns, rows.num_rows(), &mut ids)?;
        let known: Vec<Option<&Known>> = ids.iter().map(|id| self.known.get(id)).collect();
        let counts = rows.column(count).as_primitive::<Int64Type>().values();
        let mut keep = Vec::with_capacity(rows.num_rows());
        for ((known, window), count) in known.iter().zip(windows).zip(counts) {
            let before = known.map_or(is_complete.then_some(0), |known| Some(known.rows));
            let whole = window.filter(|w| before.is_some_and(|rows| *count == rows + w.late));
            whole.inspect(|window| window.set_written());
            keep.push(whole.is_some());
        }
        let keep = BooleanArray::from(keep);
        // Those that are new have no revision yet.
        let next = known.iter().map(|known| known.map_or(0, |known| known.revision + 1));
        let mut columns = rows.columns().to_vec();
        columns[revision] = Arc::new(Int64Array::from_iter_values(next));
        if let (Ok(late), Ok(duplicates), Ok(complete)) =
            (place("late"), place("duplicates"), place("complete"))
            && self.with_quality
        {
            let late_of = |(known, rows): (&Option<&Known>, &i64)| {
                known.map_or(*rows, |known| rows - known.rows + known.late)
            };
            let all_late = known.iter().zip(counts).map(late_of);
            columns[late] = Arc::new(Int64Array::from_iter_values(all_late));
            let said = known.iter().map(|known| known.and_then(|known| known.complete));
            columns[complete] = Arc::new(BooleanArray::from_iter(said));
            let said = known.iter().map(|known| known.and_then(|known| known.duplicates));
            columns[duplicates] = Arc::new(Int64Array::from_iter(said));
        }
        let rows = RecordBatch::try_new(rows.schema(), columns)?;
        Ok(filter_record_batch(&rows, &keep)?)
    }
}
