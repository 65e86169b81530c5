//! How much text rows have. A column of text holds 2 GiB at most, so whoever puts rows together has
//! to know before, and what flows from operator to operator is cut into batches that are far from
//! it.

use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::DataType;

/// What a row counts besides its text: of rows without any, steps make texts as well.
pub(crate) const ROW_BYTES: u64 = 64;

/// How much text there may be at an operator at a time. Results do not depend on `turn`; tests
/// lower it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextMax {
    /// Bytes that come in one call of an operator, and in a batch that it emits; a single key, or
    /// a single row, may have more.
    pub turn: u64,
    /// Bytes of text of the rows of one key in an epoch on one input of an operator. Beyond it all
    /// of these are rejects: what an epoch takes from its sources is 64 MiB or so.
    pub key: u64,
}

/// Texts grow when they become JSON, and rows get columns: so the limits are far from 2 GiB.
const MAX: TextMax = TextMax { turn: 256 << 20, key: 1 << 30 };
const _: () = assert!(MAX.turn <= MAX.key && MAX.key < i32::MAX as u64);

impl Default for TextMax {
    fn default() -> Self {
        MAX
    }
}

/// Whether values of a type can be long.
pub(crate) fn has_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Struct(parts) => parts.iter().any(|part| has_text(part.data_type())),
        _ => matches!(data_type, DataType::Utf8 | DataType::Binary | DataType::List(_)),
    }
}

/// Whether there is text in values of a type.
pub(crate) fn holds_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(item) => holds_text(item.data_type()),
        DataType::Struct(parts) => parts.iter().any(|part| holds_text(part.data_type())),
        data_type => has_text(data_type),
    }
}

/// At most the bytes of rows, so that it costs next to nothing: text and [`ROW_BYTES`] each.
pub(crate) fn weight(rows: &RecordBatch) -> u64 {
    fn of(column: &ArrayRef) -> u64 {
        match column.data_type() {
            DataType::Utf8 => span(column.as_string::<i32>().value_offsets()),
            DataType::Binary => span(column.as_binary::<i32>().value_offsets()),
            DataType::List(_) => of(column.as_list::<i32>().values()),
            DataType::Struct(_) => column.as_struct().columns().iter().map(of).sum(),
            _ => 0,
        }
    }
    rows.columns().iter().map(of).sum::<u64>() + ROW_BYTES * rows.num_rows() as u64
}

fn span(offsets: &[i32]) -> u64 {
    match offsets {
        [first, .., last] => u64::from(last.abs_diff(*first)),
        _ => 0,
    }
}

/// The bytes of the text of each row.
pub(crate) fn texts(rows: &RecordBatch) -> Vec<u64> {
    let mut bytes = vec![0; rows.num_rows()];
    rows.columns().iter().for_each(|column| add(column, &mut bytes));
    bytes
}

/// Adds the bytes of the text of each row of a column.
pub(crate) fn add(column: &ArrayRef, bytes: &mut [u64]) {
    let mut add_spans = |offsets: &[i32]| {
        for (row, (bytes, ends)) in bytes.iter_mut().zip(offsets.windows(2)).enumerate() {
            // What stands behind a null is not looked at: it may be anything.
            *bytes += if column.is_null(row) { 0 } else { span(ends) };
        }
    };
    match column.data_type() {
        DataType::Utf8 => add_spans(column.as_string::<i32>().value_offsets()),
        DataType::Binary => add_spans(column.as_binary::<i32>().value_offsets()),
        DataType::List(item) if holds_text(item.data_type()) => {
            let list = column.as_list::<i32>();
            let mut of_values = vec![0; list.values().len()];
            add(list.values(), &mut of_values);
            for (row, (bytes, ends)) in
                bytes.iter_mut().zip(list.value_offsets().windows(2)).enumerate()
            {
                if list.is_valid(row) {
                    *bytes += of_values[ends[0] as usize..ends[1] as usize].iter().sum::<u64>();
                }
            }
        }
        DataType::Struct(parts) if parts.iter().any(|part| holds_text(part.data_type())) => {
            let mut of_parts = vec![0; column.len()];
            column.as_struct().columns().iter().for_each(|part| add(part, &mut of_parts));
            for (row, (bytes, of_parts)) in bytes.iter_mut().zip(of_parts).enumerate() {
                *bytes += if column.is_null(row) { 0 } else { of_parts };
            }
        }
        _ => {}
    }
}

/// Cuts rows of these lengths into runs of at most `bytes_max`, or one row.
pub(crate) fn runs(lengths: impl Iterator<Item = u64>, bytes_max: u64) -> Vec<Range<usize>> {
    let (mut runs, mut from, mut bytes, mut end) = (Vec::new(), 0, 0, 0);
    for length in lengths {
        if end > from && bytes + length > bytes_max {
            runs.push(from..end);
            (from, bytes) = (end, 0);
        }
        bytes += length;
        end += 1;
    }
    if end > from {
        runs.push(from..end);
    }
    runs
}

/// The rows in batches of at most `bytes_max`, or one row; nothing is copied.
pub fn parted(rows: RecordBatch, bytes_max: u64) -> Vec<RecordBatch> {
    if weight(&rows) <= bytes_max {
        return vec![rows];
    }
    let lengths = texts(&rows).into_iter().map(|text| text + ROW_BYTES);
    let parts = runs(lengths, bytes_max).into_iter();
    parts.map(|part| rows.slice(part.start, part.len())).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use arrow::array::{ListBuilder, StringArray, StringBuilder, StructArray};
    use arrow::compute::concat_batches;
    use arrow::datatypes::Field;

    use super::*;

    fn rows(column: &ArrayRef) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable([("a", Arc::clone(column), true)]).unwrap()
    }

    #[test]
    fn text_in_lists_counts_and_what_is_behind_a_null_does_not() {
        let mut lists = ListBuilder::new(StringBuilder::new());
        lists.append_value([Some("abc"), None, Some("de")]);
        lists.append_null();
        lists.append_value([Some("f")]);
        let list: ArrayRef = Arc::new(lists.finish());
        let texts_of: ArrayRef = Arc::new(StringArray::from(vec![Some("xyz"), None, Some("")]));
        let hidden = arrow::compute::nullif(&texts_of, &vec![true, false, false].into()).unwrap();
        let part = |name, column: &ArrayRef| {
            (Arc::new(Field::new(name, column.data_type().clone(), true)), Arc::clone(column))
        };
        let parts = StructArray::from(vec![part("a", &list), part("b", &texts_of)]);
        let parts: ArrayRef = Arc::new(parts);
        let partly = arrow::compute::nullif(&parts, &vec![true, false, false].into()).unwrap();
        for (column, expected) in [
            (&list, [5, 0, 1]),
            (&texts_of, [3, 0, 0]),
            (&hidden, [0; 3]),
            (&parts, [8, 0, 1]),
            (&partly, [0, 0, 1]),
        ] {
            assert_eq!(texts(&rows(column)), expected);
            assert_eq!(texts(&rows(&column.slice(1, 2))), expected[1..], "of a slice");
            assert!(weight(&rows(column)) >= expected.iter().sum::<u64>() + 3 * ROW_BYTES);
        }
    }

    #[test]
    fn parts_are_no_larger_than_they_may_or_one_row() {
        let lengths = [10usize, 200, 30, 30, 400, 1];
        let column: ArrayRef =
            Arc::new(StringArray::from_iter_values(lengths.map(|length| "x".repeat(length))));
        let all = rows(&column);
        let parts = parted(all.clone(), 300);
        let counts: Vec<usize> = parts.iter().map(RecordBatch::num_rows).collect();
        // 74, 264 | 94, 94 | 464 | 65
        assert_eq!(counts, [1, 1, 2, 1, 1]);
        assert_eq!(concat_batches(&all.schema(), &parts).unwrap(), all);
        assert_eq!(parted(all.clone(), weight(&all)), [all]);
        assert!(runs(std::iter::empty(), 5).is_empty());
    }
}
