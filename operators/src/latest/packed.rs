//! The values of one reading as bytes: a column each, in Arrow's row format, absent where null.
//!
//! Only in memory: what is saved has the columns' own types.

use std::sync::Arc;

/// Length of a value that is absent.
const ABSENT: u32 = u32::MAX;

/// Bytes of a length.
const LENGTH_BYTES: usize = size_of::<u32>();

/// A value that is kept does not keep more than this of its reading.
const SHARED_BYTES_MAX: usize = 256;

/// The values of one reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packed(Arc<[u8]>);

impl Packed {
    /// Packs values in the order of their columns; `room` is for their bytes.
    pub(super) fn new<'v>(
        values: impl Iterator<Item = Option<&'v [u8]>>,
        room: &mut Vec<u8>,
    ) -> Self {
        room.clear();
        for value in values {
            let length = value.map_or(ABSENT, |v| v.len() as u32);
            room.extend_from_slice(&length.to_le_bytes());
            room.extend_from_slice(value.unwrap_or_default());
        }
        Self(room.as_slice().into())
    }

    /// The values, in the order of their columns.
    pub(super) fn values(&self) -> impl Iterator<Item = Option<&[u8]>> {
        let mut rest: &[u8] = &self.0;
        std::iter::from_fn(move || {
            let (length, after) = rest.split_first_chunk::<LENGTH_BYTES>()?;
            let length = u32::from_le_bytes(*length);
            let value = (length != ABSENT).then(|| after.split_at(length as usize));
            rest = value.map_or(after, |v| v.1);
            Some(value.map(|v| v.0))
        })
    }

    /// What holds this column's value, if it is there: all of it where that is small, so that it is
    /// shared, else only this value.
    pub(super) fn only(&self, column: usize, room: &mut Vec<u8>) -> Option<Self> {
        let wanted = self.value(column)?;
        if self.0.len() <= SHARED_BYTES_MAX {
            return Some(self.clone());
        }
        let only = self.values().enumerate().map(|(c, _)| (c == column).then_some(wanted));
        Some(Self::new(only, room))
    }

    /// Its length.
    pub(super) fn bytes(&self) -> usize {
        self.0.len()
    }

    /// The value of a column.
    pub(super) fn value(&self, column: usize) -> Option<&[u8]> {
        self.values().nth(column).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn values_come_back(
            values in prop::collection::vec(
                prop::option::of(prop::collection::vec(any::<u8>(), 0..9)), 0..6
            )
        ) {
            let values: Vec<Option<&[u8]>> = values.iter().map(Option::as_deref).collect();
            let packed = Packed::new(values.iter().copied(), &mut vec![7]);
            prop_assert_eq!(&packed.values().collect::<Vec<_>>(), &values);
            for (column, value) in values.iter().enumerate() {
                prop_assert_eq!(packed.value(column), *value);
            }
        }
    }
}
