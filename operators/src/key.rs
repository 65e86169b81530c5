//! The stable hash of key columns, and from it the key group: which worker owns a key.
//!
//! The same key has the same hash and the same group in every process, on every machine and in
//! every version that can read the same checkpoint, so nothing here may depend on a library's
//! in-memory layout or seed. Groups are the unit in which state is saved and dealt to workers: a
//! worker owns whole groups, so a checkpoint fits any number of workers up to [`KEY_GROUPS`].

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

/// Number of key groups. Part of every saved state: a change needs a new format.
pub const KEY_GROUPS: u16 = 256;

/// The key group of a key's hash, below [`KEY_GROUPS`].
pub fn key_group(hash: u64) -> u16 {
    // Bits that hash tables do not look at (they take the lowest and the highest), or a table of
    // one group's keys would degrade.
    ((hash >> 32) as u16) % KEY_GROUPS
}

/// The worker that owns a key group.
pub fn group_owner(group: u16, workers: usize) -> usize {
    usize::from(group) % workers
}

/// The worker that owns a key.
pub fn owner(hash: u64, workers: usize) -> usize {
    group_owner(key_group(hash), workers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::StringArray;
    use std::sync::Arc;

    /// Saved state depends on it: these numbers must never change.
    #[test]
    fn groups_are_the_same_in_every_version() {
        let keys: ArrayRef = Arc::new(StringArray::from(vec![Some("sensor-1"), None, Some("")]));
        let mut hashes = Vec::new();
        stable_hashes(&[keys], 3, &mut hashes);
        let groups: Vec<u16> = hashes.iter().map(|h| key_group(*h)).collect();
        assert_eq!(groups, [160, 180, 5]);
        assert_eq!((key_group(0), key_group(u64::MAX)), (0, KEY_GROUPS - 1));
    }

    #[test]
    fn every_worker_owns_about_as_many_groups() {
        for workers in [1, 2, 3, 7, 256] {
            let mut owned = vec![0; workers];
            (0..KEY_GROUPS).for_each(|g| owned[group_owner(g, workers)] += 1);
            let (least, most) = (owned.iter().min(), owned.iter().max());
            assert!(least.zip(most).is_some_and(|(a, b)| *a > 0 && b - a <= 1), "{owned:?}");
        }
    }
}
