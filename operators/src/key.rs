//! The stable hash of key columns: which worker owns a key.
//!
//! The same key has the same hash in every process, on every machine and in every version that can
//! read the same checkpoint, so nothing here may depend on a library's in-memory layout or seed.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{
    DataType, Date32Type, Float64Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType,
    UInt64Type,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

const NULL_SEED: u64 = 0x6e75_6c6c;

/// Whether values of this type can be part of a key.
pub fn is_key_type(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Utf8
            | DataType::Boolean
            | DataType::Int32
            | DataType::Int64
            | DataType::UInt64
            | DataType::Float64
            | DataType::Date32
            | DataType::Timestamp(TimeUnit::Microsecond, _)
    )
}

/// Hashes `rows` rows of `columns` into `hashes` (XXH3-64, chained column by column).
///
/// # Panics
/// If a column's type is not [`is_key_type`], which planning rules out.
pub fn stable_hashes(columns: &[ArrayRef], rows: usize, hashes: &mut Vec<u64>) {
    stable_hashes_from(columns, rows, 0, hashes);
}

/// The same, started with `seed`: hashes of two seeds have nothing to do with each other.
///
/// # Panics
/// As [`stable_hashes`].
pub fn stable_hashes_from(columns: &[ArrayRef], rows: usize, seed: u64, hashes: &mut Vec<u64>) {
    hashes.clear();
    hashes.resize(rows, seed);
    for column in columns {
        hash_column(column, hashes);
    }
}

fn hash_column(column: &ArrayRef, hashes: &mut [u64]) {
    macro_rules! fixed {
        ($kind:ty) => {{
            let values = column.as_primitive::<$kind>();
            for (i, h) in hashes.iter_mut().enumerate() {
                *h = if values.is_null(i) {
                    xxh3_64_with_seed(&[], *h ^ NULL_SEED)
                } else {
                    xxh3_64_with_seed(&values.value(i).to_le_bytes(), *h)
                };
            }
        }};
    }
    match column.data_type() {
        DataType::Utf8 => {
            let values = column.as_string::<i32>();
            for (i, h) in hashes.iter_mut().enumerate() {
                *h = if values.is_null(i) {
                    xxh3_64_with_seed(&[], *h ^ NULL_SEED)
                } else {
                    xxh3_64_with_seed(values.value(i).as_bytes(), *h)
                };
            }
        }
        DataType::Boolean => {
            let values = column.as_boolean();
            for (i, h) in hashes.iter_mut().enumerate() {
                *h = if values.is_null(i) {
                    xxh3_64_with_seed(&[], *h ^ NULL_SEED)
                } else {
                    xxh3_64_with_seed(&[u8::from(values.value(i))], *h)
                };
            }
        }
        DataType::Int32 => fixed!(Int32Type),
        DataType::Int64 => fixed!(Int64Type),
        DataType::UInt64 => fixed!(UInt64Type),
        DataType::Float64 => fixed!(Float64Type),
        DataType::Date32 => fixed!(Date32Type),
        DataType::Timestamp(TimeUnit::Microsecond, _) => fixed!(TimestampMicrosecondType),
        other => panic!("{other} cannot be a key; the planner checks this"),
    }
}

/// The worker that owns a key.
pub fn owner(hash: u64, workers: usize) -> usize {
    (hash % workers as u64) as usize
}
