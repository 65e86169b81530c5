//! One group of late readings: their windows are computed from the stored readings, and written as
//! the next revision.
//!
//! It is a function of what the tables have: of the late readings of the group, of the readings
//! that had come by the last of them, and of the revisions that there are. A window that readings
//! are too late for is not emitted by its step any more, so nobody else writes these revisions; and
//! every reading that comes for it later is a late reading of a later group, so that all that had
//! come by then is in the group or before it.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Int64Type, SchemaRef};
use futures::TryStreamExt as _;
use tidegate_operators::intern::KeyInterner;
use tidegate_operators::spec::TableSpec;
use tidegate_operators::window::WindowOperator;
use tidegate_operators::{Emit, KeyedOperator, Tick};
use tidegate_pipelines::recompute::Recomputation;
use tidegate_sql::Session;

use super::affected::{Affected, Bounds, Finder, Slice};

/// Distinct keys up to which they are named in the question for readings.
const NAMED_MAX: usize = 200;

/// One group at work.
pub(super) struct Group<'a> {
    pub(super) session: &'a Session,
    pub(super) of: &'a Recomputation,
    /// The table of windows.
    pub(super) table: &'a TableSpec,
    /// Ingest times of its late readings: from, until, microseconds.
    pub(super) times_us: Bounds,
}

fn name(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

fn text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A time, of the type that the columns have.
fn time(us: i64) -> String {
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

    /// The windows of its late readings in slices, and the place in the journal of the last of
    /// these readings.
    pub(super) async fn slices(&self) -> anyhow::Result<(Vec<Slice>, i64)> {
        let late = late_of(self.of, self.times_us);
        let last = self.rows(&format!("SELECT max(journal_offset) FROM {late}")).await?;
        let last = last.iter().flat_map(|b| b.column(0).as_primitive::<Int64Type>().iter());
        let Some(last) = last.flatten().max() else { return Ok((Vec::new(), 0)) };
        let windows = format!("SELECT DISTINCT keys, window_start, window_end FROM {late}");
        let mut affected = Affected::default();
        let mut found = self.session.sql(&windows).await?.execute_stream().await?;
        while let Some(rows) = found.try_next().await? {
            affected.add(&rows, &self.of.window.shape)?;
        }
        Ok((affected.slices(), last))
    }

    /// The windows of a slice as rows of the table, from the readings up to a place in the journal.
    pub(super) async fn compute(
        &self,
        slice: &Slice,
        last_offset: i64,
    ) -> anyhow::Result<Vec<RecordBatch>> {
        let window = &self.of.window;
        let mut operator = WindowOperator::new(window.clone())?;
        let mut finder = Finder::new(slice, &self.keys(&window.input))?;
        let mut emit = Emit::default();
        let sql = self.readings(slice, last_offset);
        let mut found = self.session.sql(&sql).await?.execute_stream().await?;
        let mut epoch = 0;
        while let Some(rows) = found.try_next().await? {
            let rows = self.of.input(as_schema(&rows, &self.of.stored.schema)?)?;
            let keys: Vec<ArrayRef> = window.keys.iter().map(|k| rows.column(*k).clone()).collect();
            let keep = finder.in_windows(&keys, rows.column(window.time))?;
            let rows = filter_record_batch(&rows, &BooleanArray::from(keep))?;
            epoch += 1;
            operator.epoch(&rows, Tick { epoch, time_us: 0 }, &mut emit)?;
        }
        operator.end(&mut emit)?;
        let mut revisions = self.revisions(slice).await?;
        emit.rows.iter().map(|rows| revisions.next(rows, &mut finder)).collect()
    }

    /// Names and types of the key columns.
    fn keys(&self, schema: &SchemaRef) -> Vec<(String, DataType)> {
        let window = &self.of.window;
        let field = |k: &usize| window.input.field(*k).name();
        let of = |name: &String| {
            let field = schema.field_with_name(name).expect("keys are columns of every edge");
            (name.clone(), field.data_type().clone())
        };
        window.keys.iter().map(field).map(of).collect()
    }

    /// Asks for the readings of a slice in the order of the journal.
    fn readings(&self, slice: &Slice, last_offset: i64) -> String {
        let stored = &self.of.stored;
        let columns: Vec<String> = stored.schema.fields().iter().map(|f| name(f.name())).collect();
        let order: Vec<String> = self.of.order.iter().map(|column| name(column)).collect();
        let (from_us, to_us) = slice.range_us();
        let event = name(&stored.time);
        format!(
            "SELECT {} FROM {}.{} WHERE {event} >= {} AND {event} < {} AND journal_offset <= \
             {last_offset}{} ORDER BY {}",
            columns.join(", "),
            name(&stored.namespace),
            name(&stored.name),
            time(from_us),
            time(to_us),
            self.named(slice),
            order.join(", "),
        )
    }

    /// Conditions that name the keys of a slice, if they are few, so that files and pages of others
    /// are not read. They need not be exact.
    fn named(&self, slice: &Slice) -> String {
        let mut conditions = String::new();
        if !self.of.is_direct() || slice.keys().len() > NAMED_MAX {
            return conditions;
        }
        for (column, data_type) in self.keys(&self.of.window.input) {
            let value = |key: &str| -> Option<String> {
                let key: serde_json::Value = serde_json::from_str(key).ok()?;
                key.get(&column)?.as_str().map(text)
            };
            let values: Option<Vec<String>> = slice.keys().map(value).collect();
            if let (DataType::Utf8, Some(mut values)) = (data_type, values) {
                values.sort_unstable();
                values.dedup();
                conditions += &format!(" AND {} IN ({})", name(&column), values.join(", "));
            }
        }
        conditions
    }

    /// The newest revisions of the windows of a slice.
    async fn revisions(&self, slice: &Slice) -> anyhow::Result<Revisions> {
        let keys = self.keys(&self.table.schema);
        let mut columns: Vec<String> = keys.iter().map(|k| name(&k.0)).collect();
        columns.push("window_start".to_owned());
        let columns = columns.join(", ");
        let (from_us, to_us) = slice.range_us();
        let sql = format!(
            "SELECT {columns}, max(revision) FROM {}.{} WHERE window_start >= {} AND window_start \
             < {} GROUP BY {columns}",
            name(&self.table.namespace),
            name(&format!("{}_revisions", self.table.name)),
            time(from_us),
            time(to_us),
        );
        let mut types: Vec<DataType> = keys.iter().map(|k| k.1.clone()).collect();
        let time = self.table.schema.field_with_name("window_start")?.data_type().clone();
        types.push(time);
        let mut revisions = Revisions::new(types, &self.table.schema)?;
        let mut found = self.session.sql(&sql).await?.execute_stream().await?;
        while let Some(rows) = found.try_next().await? {
            revisions.add(&rows)?;
        }
        Ok(revisions)
    }
}

/// Columns as the edge has them: files may hold them in another form.
fn as_schema(rows: &RecordBatch, schema: &SchemaRef) -> anyhow::Result<RecordBatch> {
    let columns = rows.columns().iter().zip(schema.fields());
    let columns: Result<Vec<ArrayRef>, _> =
        columns.map(|(column, field)| cast(column, field.data_type())).collect();
    Ok(RecordBatch::try_new(Arc::clone(schema), columns?)?)
}

/// The newest revision of each window, by key columns and start.
struct Revisions {
    types: Vec<DataType>,
    interner: KeyInterner,
    newest: BTreeMap<u32, i64>,
    /// Place of the start, and of the revision, among the columns of a row.
    places: (usize, usize),
}

impl Revisions {
    fn new(types: Vec<DataType>, schema: &SchemaRef) -> anyhow::Result<Self> {
        let interner = KeyInterner::new(&types)?;
        let places = (schema.index_of("window_start")?, schema.index_of("revision")?);
        Ok(Self { types, interner, newest: BTreeMap::new(), places })
    }

    fn add(&mut self, rows: &RecordBatch) -> anyhow::Result<()> {
        let count = self.types.len();
        let columns = rows.columns()[..count].iter().zip(&self.types);
        let columns: Vec<ArrayRef> =
            columns.map(|(column, kind)| cast(column, kind)).collect::<Result<_, _>>()?;
        let mut ids = Vec::new();
        self.interner.intern(&columns, rows.num_rows(), &mut ids)?;
        let revisions = rows.column(count).as_primitive::<Int64Type>();
        self.newest.extend(ids.into_iter().zip(revisions.values().iter().copied()));
        Ok(())
    }

    /// Those of the rows that are windows of the slice, each with its next revision.
    fn next(&mut self, rows: &RecordBatch, finder: &mut Finder<'_>) -> anyhow::Result<RecordBatch> {
        let keys = &rows.columns()[..self.types.len() - 1];
        let (start, revision) = self.places;
        let keep = finder.are_windows(keys, rows.column(start))?;
        let rows = filter_record_batch(rows, &BooleanArray::from(keep))?;
        let mut columns = rows.columns()[..self.types.len() - 1].to_vec();
        columns.push(rows.column(start).clone());
        // Those that are new have no revision yet.
        let mut ids = Vec::new();
        self.interner.intern(&columns, rows.num_rows(), &mut ids)?;
        let next = ids.iter().map(|id| self.newest.get(id).map_or(0, |newest| newest + 1));
        let mut columns = rows.columns().to_vec();
        columns[revision] = Arc::new(Int64Array::from_iter_values(next));
        Ok(RecordBatch::try_new(rows.schema(), columns)?)
    }
}
