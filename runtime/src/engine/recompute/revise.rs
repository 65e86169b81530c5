//! Windows whose bounds come from the readings: what the table has of them, what the operator makes
//! of stored readings, and the rows that lead from the one to the other.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, TimestampMicrosecondArray,
    new_null_array,
};
use arrow::compute::{interleave, interleave_record_batch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use futures::TryStreamExt as _;
use tidegate_operators::Emit;
use tidegate_operators::spec::IS_FINAL;
use tidegate_operators::system::keys_json;

use super::group::{Group, name, restored};

/// A window that the table has, as its newest final revision says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) start_us: i64,
    pub(super) end_us: i64,
    /// 0: it is none, any more or yet.
    pub(super) rows: i64,
    /// The newest one.
    pub(super) revision: i64,
}

/// A window that the stored readings make.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    pub(super) start_us: i64,
    pub(super) end_us: i64,
    pub(super) rows: i64,
    /// Which row of which batch it is.
    pub(super) place: Place,
}

/// A row of a batch: which batch, and which of its rows.
pub(super) type Place = (usize, usize);

impl Made {
    /// Whether it is between the same bounds, of as many readings.
    pub(super) fn is_as(&self, known: &Known) -> bool {
        (self.start_us, self.end_us, self.rows) == (known.start_us, known.end_us, known.rows)
    }
}

/// Hands over the windows that the table has of some keys, each with its key, by their starts.
pub(super) async fn each_known(
    group: &Group<'_>,
    condition: &str,
    named: impl ExactSizeIterator<Item = &str> + Clone,
    mut take: impl FnMut(&str, Known),
) -> anyhow::Result<()> {
    let (table, keys) = (group.table, group.keys(&group.table.schema));
    // There may be no key.
    let mut columns: Vec<String> = keys.iter().map(|k| name(&k.0)).collect();
    columns.push("window_start".to_owned());
    let columns = columns.join(", ");
    // What was told early is no window yet, but has taken its revisions.
    let is_final = match table.schema.field_with_name(IS_FINAL) {
        // Of `IS NOT FALSE` DataFusion says here that it can be null, and then that it cannot.
        Ok(_) => format!(" FILTER (WHERE {IS_FINAL} OR {IS_FINAL} IS NULL)"),
        Err(_) => String::new(),
    };
    let sql = format!(
        "SELECT {columns}, max(revision), \
         coalesce(last_value(rows ORDER BY revision){is_final}, 0), \
         coalesce(last_value(window_end ORDER BY revision){is_final}, window_start) \
         FROM {}.{} WHERE {condition}{} GROUP BY {columns} ORDER BY window_start",
        name(&table.namespace),
        name(&format!("{}_revisions", table.name)),
        group.named(named),
    );
    each_row(group, &sql, |key, row| {
        let known = Known {
            start_us: row.time(0),
            revision: row.number(1),
            rows: row.number(2),
            end_us: row.time(3),
        };
        take(key, known);
    })
    .await
}

/// A row that a query of the table of windows has found, without the columns of its key.
pub(super) struct Row<'r> {
    columns: &'r [ArrayRef],
    row: usize,
}

impl Row<'_> {
    /// Microseconds.
    pub(super) fn time(&self, column: usize) -> i64 {
        self.columns[column].as_primitive::<TimestampMicrosecondType>().value(self.row)
    }

    pub(super) fn number(&self, column: usize) -> i64 {
        self.columns[column].as_primitive::<Int64Type>().value(self.row)
    }
}

/// Hands over what a query of the table of windows finds, each row with its key; the query asks for
/// the columns of the key first.
pub(super) async fn each_row(
    group: &Group<'_>,
    sql: &str,
    mut take: impl FnMut(&str, Row<'_>),
) -> anyhow::Result<()> {
    let (table, keys) = (group.table, group.keys(&group.table.schema));
    let names: Vec<&str> = keys.iter().map(|k| k.0.as_str()).collect();
    let mut found = group.session.sql(sql).await?.execute_stream().await?;
    while let Some(rows) = found.try_next().await? {
        let (of_row, columns) = rows.columns().split_at(names.len());
        let of_row = of_row
            .iter()
            .zip(&names)
            .map(|(column, name)| restored(column, table.schema.field_with_name(name)?, table));
        let of_row: Vec<ArrayRef> = of_row.collect::<Result<_, _>>()?;
        for row in 0..rows.num_rows() {
            take(&keys_json(&names, &of_row, row), Row { columns, row });
        }
    }
    Ok(())
}

/// Moves the windows that an operator has made to `batches`, and hands each over with its key.
pub(super) fn each_made(
    group: &Group<'_>,
    emit: &mut Emit,
    batches: &mut Vec<RecordBatch>,
    mut take: impl FnMut(&str, Made),
) -> anyhow::Result<()> {
    anyhow::ensure!(emit.late.is_empty(), "stored readings do not come by time");
    let columns = group.keys(&group.of.window.input);
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
            take(&keys_json(&names, of_row, row), made);
        }
        batches.push(rows);
    }
    Ok(())
}

/// What is to be written of some keys.
#[derive(Default)]
pub(super) struct Changes {
    /// Windows as they were made, with their next revision.
    made: Vec<(Place, i64)>,
    /// Windows that are none any more, each with a row of its key.
    gone: Vec<(Place, Known)>,
}

impl Changes {
    /// A window is as it was made, after this revision if there was one.
    pub(super) fn make(&mut self, place: Place, before: Option<i64>) {
        self.made.push((place, before.map_or(0, |revision| revision + 1)));
    }

    /// A window is none any more; `place` is a row of its key.
    pub(super) fn withdraw(&mut self, place: Place, known: Known) {
        self.gone.push((place, known));
    }

    /// The rows.
    pub(super) fn rows(&self, batches: &[RecordBatch]) -> anyhow::Result<Vec<RecordBatch>> {
        let mut changes = Vec::new();
        if !self.made.is_empty() {
            let all: Vec<&RecordBatch> = batches.iter().collect();
            let places: Vec<Place> = self.made.iter().map(|m| m.0).collect();
            let rows = interleave_record_batch(&all, &places)?;
            let revisions = self.made.iter().map(|m| m.1);
            let mut columns = rows.columns().to_vec();
            columns[rows.schema().index_of("revision")?] =
                Arc::new(Int64Array::from_iter_values(revisions));
            changes.push(RecordBatch::try_new(rows.schema(), columns)?);
        }
        if !self.gone.is_empty() {
            changes.push(withdrawn(batches, &self.gone)?);
        }
        Ok(changes)
    }
}

fn withdrawn(batches: &[RecordBatch], gone: &[(Place, Known)]) -> anyhow::Result<RecordBatch> {
    let schema = batches[0].schema();
    let places: Vec<Place> = gone.iter().map(|g| g.0).collect();
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
