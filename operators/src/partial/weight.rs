//! How many bytes rows have of what is not the same in each of them: of lists and texts.

use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray, GenericListArray, OffsetSizeTrait};
use arrow::datatypes::DataType;

/// Bytes of the lists and texts of some rows.
pub(super) fn of_rows(columns: &[ArrayRef], rows: Range<usize>) -> u64 {
    columns.iter().map(|column| of(column, &rows)).sum()
}

fn of(column: &ArrayRef, rows: &Range<usize>) -> u64 {
    match column.data_type() {
        DataType::Utf8 => span(column.as_string::<i32>().value_offsets(), rows).len() as u64,
        DataType::LargeUtf8 => span(column.as_string::<i64>().value_offsets(), rows).len() as u64,
        DataType::Binary => span(column.as_binary::<i32>().value_offsets(), rows).len() as u64,
        DataType::LargeBinary => span(column.as_binary::<i64>().value_offsets(), rows).len() as u64,
        DataType::List(_) => items(column.as_list::<i32>(), rows),
        DataType::LargeList(_) => items(column.as_list::<i64>(), rows),
        DataType::Struct(_) => of_rows(column.as_struct().columns(), rows.clone()),
        _ => 0,
    }
}

fn items<O: OffsetSizeTrait>(lists: &GenericListArray<O>, rows: &Range<usize>) -> u64 {
    let items = span(lists.value_offsets(), rows);
    items.len() as u64 * width(lists.values().data_type()) + of(lists.values(), &items)
}

/// Where the bytes or items of some rows are, given where those of each row begin.
fn span<O: OffsetSizeTrait>(offsets: &[O], rows: &Range<usize>) -> Range<usize> {
    offsets[rows.start].as_usize()..offsets[rows.end].as_usize()
}

/// Bytes that each item has, whatever is in it.
fn width(item: &DataType) -> u64 {
    match item {
        DataType::Struct(fields) => fields.iter().map(|field| width(field.data_type())).sum(),
        DataType::Utf8 | DataType::Binary | DataType::List(_) => size_of::<i32>() as u64,
        DataType::LargeUtf8 | DataType::LargeBinary | DataType::LargeList(_) => {
            size_of::<i64>() as u64
        }
        item => item.primitive_width().unwrap_or(1) as u64,
    }
}
