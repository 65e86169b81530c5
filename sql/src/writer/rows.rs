//! Which rows go into which file, in which order.
//!
//! The order is total (sort columns, time, then every other column), so that the bytes of a file
//! do not depend on the order in which rows arrived, and with it not on the number of workers.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::datatypes::TimestampMicrosecondType;
use arrow::row::{RowConverter, Rows, SortField};

use super::layout::Layout;
use crate::Result;

/// Microseconds of a day.
const DAY_US: i64 = 86_400_000_000;

/// A row: number of its batch, number in the batch.
pub(super) type RowId = (usize, usize);

/// Days since the Unix epoch and the values of the further partition columns.
pub(super) type PartitionKey = (Option<i32>, Vec<Option<String>>);

type BorrowedKey<'a> = (Option<i32>, Vec<Option<&'a str>>);

/// Bytes that the rows of `batch` need, whatever larger buffers they are slices of.
pub(super) fn bytes(batch: &RecordBatch) -> usize {
    let size = |c: &dyn Array| {
        c.to_data().get_slice_memory_size().unwrap_or_else(|_| c.get_array_memory_size())
    };
    batch.columns().iter().map(|c| size(c.as_ref())).sum()
}

/// The rows of each partition, in file order; partitions in order of their key.
pub(super) fn partitions(
    layout: &Layout,
    batches: &[RecordBatch],
) -> Result<BTreeMap<PartitionKey, Vec<RowId>>> {
    let mut numbers: HashMap<BorrowedKey<'_>, usize> = HashMap::new();
    let mut groups: Vec<Vec<RowId>> = Vec::new();
    for (b, batch) in batches.iter().enumerate() {
        let times = batch.column(layout.time).as_primitive::<TimestampMicrosecondType>();
        let named: Vec<&StringArray> =
            layout.partition.iter().map(|p| batch.column(*p).as_string::<i32>()).collect();
        // Neighbours mostly lie in the same partition: then nothing is allocated or hashed.
        let mut last: Option<(usize, usize)> = None;
        for row in 0..batch.num_rows() {
            let day = |row| times.is_valid(row).then(|| day_of(times.value(row)));
            let like =
                |other: usize| day(row) == day(other) && named.iter().all(|n| same(n, row, other));
            let number = match last.filter(|(other, _)| like(*other)) {
                Some((_, number)) => number,
                None => {
                    let values = named.iter().map(|n| n.is_valid(row).then(|| n.value(row)));
                    let next = groups.len();
                    let number = *numbers.entry((day(row), values.collect())).or_insert(next);
                    if number == next {
                        groups.push(Vec::new());
                    }
                    number
                }
            };
            last = Some((row, number));
            groups[number].push((b, row));
        }
    }
    sort_rows(layout, batches, groups.iter_mut())?;
    let owned = |v: Vec<Option<&str>>| v.into_iter().map(|v| v.map(str::to_owned)).collect();
    let keyed = numbers
        .into_iter()
        .map(|((day, values), number)| ((day, owned(values)), std::mem::take(&mut groups[number])));
    Ok(keyed.collect())
}

/// Whether two rows of a column are equal; null equals null.
fn same(column: &StringArray, a: usize, b: usize) -> bool {
    column.is_valid(a) == column.is_valid(b)
        && (column.is_null(a) || column.value(a) == column.value(b))
}

fn day_of(time_us: i64) -> i32 {
    i32::try_from(time_us.div_euclid(DAY_US)).expect("i64 microseconds are 292,471 years")
}

fn sort_rows<'a>(
    layout: &Layout,
    batches: &[RecordBatch],
    groups: impl Iterator<Item = &'a mut Vec<RowId>>,
) -> Result<()> {
    let mut first: Vec<usize> = layout.sort.clone();
    first.push(layout.time);
    let rest: Vec<usize> =
        (0..layout.stored.fields().len()).filter(|c| !first.contains(c)).collect();
    let keys = comparable(layout, batches, &first)?;
    let mut ties: Option<Vec<Rows>> = None;
    for ids in groups {
        let key = |id: &RowId| keys[id.0].row(id.1);
        ids.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
        if rest.is_empty() || !ids.windows(2).any(|w| key(&w[0]) == key(&w[1])) {
            continue;
        }
        // Rare, and encoding all columns costs as much memory as the rows: only where needed.
        if ties.is_none() {
            ties = Some(comparable(layout, batches, &rest)?);
        }
        let ties = ties.as_ref().expect("just set");
        let all = |id: &RowId| (keys[id.0].row(id.1), ties[id.0].row(id.1));
        ids.sort_unstable_by(|a, b| all(a).cmp(&all(b)));
    }
    Ok(())
}

/// One comparable byte string per row, over `columns`.
fn comparable(layout: &Layout, batches: &[RecordBatch], columns: &[usize]) -> Result<Vec<Rows>> {
    let field = |c: &usize| SortField::new(layout.stored.field(*c).data_type().clone());
    let converter = RowConverter::new(columns.iter().map(field).collect())?;
    let convert = |batch: &RecordBatch| {
        let columns: Vec<_> = columns.iter().map(|c| batch.column(*c).clone()).collect();
        Ok(converter.convert_columns(&columns)?)
    };
    batches.iter().map(convert).collect()
}
