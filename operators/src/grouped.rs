//! State per key in tables by key group: what operators keep whose keys come and go.
//!
//! Keys are the bytes of Arrow's row format, so that any key columns will do and comparing them is
//! comparing bytes. A clone of the tables shares them: whoever changes a group that a checkpoint
//! has copies it first. (Keys that never go are better off with [`crate::intern`].)

use std::ops::Range;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use arrow::row::{RowConverter, RowParser, Rows, SortField};
use hashbrown::HashTable;

use crate::bound::{shared_bytes, table_bytes};
use crate::key::{KEY_GROUPS, key_group};
use crate::snapshot::GroupSet;

/// Columns to bytes, a row at a time, and back.
#[derive(Debug)]
pub(crate) struct RowCodec {
    converter: RowConverter,
    parser: RowParser,
    types: Vec<DataType>,
}

impl RowCodec {
    pub(crate) fn new(types: &[DataType]) -> Result<Self, ArrowError> {
        let fields = types.iter().cloned().map(SortField::new).collect();
        let converter = RowConverter::new(fields)?;
        let parser = converter.parser();
        Ok(Self { converter, parser, types: types.to_vec() })
    }

    /// Types of the columns.
    pub(crate) fn types(&self) -> &[DataType] {
        &self.types
    }

    pub(crate) fn encode(&self, columns: &[ArrayRef]) -> Result<Rows, ArrowError> {
        self.converter.convert_columns(columns)
    }

    /// The bytes of a row of nulls.
    pub(crate) fn nulls(&self) -> Result<Arc<[u8]>, ArrowError> {
        let columns: Vec<ArrayRef> =
            self.types.iter().map(|t| arrow::array::new_null_array(t, 1)).collect();
        Ok(self.encode(&columns)?.row(0).as_ref().into())
    }

    /// The columns of rows that [`RowCodec::encode`] made.
    pub(crate) fn decode<'a>(
        &self,
        rows: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Vec<ArrayRef>, ArrowError> {
        self.converter.convert_rows(rows.into_iter().map(|row| self.parser.parse(row)))
    }
}

/// Bytes of rows that become one batch: a column of texts has room for 2 GiB. (In the tests of this
/// crate few, so that they cut.)
pub(crate) const BATCH_BYTES: usize = if cfg!(test) { 1 << 10 } else { 64 << 20 };

/// Most bytes of the rows that a step makes of one key in an epoch, where they can be many times
/// what came in: far more than what a file has in an epoch, and so little that the next step can
/// take them as one batch.
pub(crate) const EPOCH_BYTES_MAX: usize = 256 << 20;

/// Reason of a row that is beyond that.
pub(crate) const REASON_BYTES_MAX: &str = "bytes_max";

/// Cuts rows of these lengths into runs of at most [`BATCH_BYTES`], or one row.
pub(crate) fn runs(lengths: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    crate::text::runs(lengths.map(|length| length as u64), BATCH_BYTES as u64)
}

/// A key with its state.
#[derive(Clone, Debug)]
pub(crate) struct Keyed<S> {
    hash: u64,
    /// The key columns as bytes.
    pub(crate) key: Arc<[u8]>,
    /// What is known of it.
    pub(crate) state: S,
}

/// Bytes of a key and its state in a table, without what the state holds elsewhere.
pub(crate) fn entry_bytes<S>(encoded_key_bytes: u64) -> u64 {
    table_bytes(size_of::<Keyed<S>>()).saturating_add(shared_bytes(encoded_key_bytes))
}

/// Tables of keyed state, one per key group.
#[derive(Clone, Debug)]
pub(crate) struct Tables<S>(Vec<Arc<HashTable<Keyed<S>>>>);

impl<S> Tables<S> {
    /// Of groups the bytes of the rows of their keys, given how long a key is and its state.
    pub(crate) fn sizes(
        &self,
        groups: &GroupSet,
        of: impl Fn(usize, &S) -> usize,
    ) -> Vec<(u16, usize)> {
        let of_group = |group: u16| {
            let keys = self.0[usize::from(group)].iter();
            (group, keys.map(|k| of(k.key.len(), &k.state)).sum())
        };
        groups.iter().map(of_group).collect()
    }

    /// The keys of a group in the order of their bytes.
    pub(crate) fn sorted(&self, group: u16) -> Vec<&Keyed<S>> {
        let mut all: Vec<&Keyed<S>> = self.0[usize::from(group)].iter().collect();
        all.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        all
    }
}

/// Keyed state, and which groups changed since it was taken last.
#[derive(Debug)]
pub(crate) struct Grouped<S> {
    tables: Tables<S>,
    changed: GroupSet,
}

impl<S: Clone + Default> Grouped<S> {
    pub(crate) fn new() -> Self {
        let tables = (0..KEY_GROUPS).map(|_| Arc::default()).collect();
        Self { tables: Tables(tables), changed: GroupSet::default() }
    }

    /// The state of a key; `hash` is its stable hash.
    pub(crate) fn get(&self, hash: u64, key: &[u8]) -> Option<&S> {
        let table = &self.tables.0[usize::from(key_group(hash))];
        table.find(hash, |k| *k.key == *key).map(|k| &k.state)
    }

    /// The state of a key, to be changed; made if it is not there.
    pub(crate) fn entry(&mut self, hash: u64, key: &[u8]) -> &mut S {
        self.changed.insert(key_group(hash));
        self.put(hash, key)
    }

    /// [`Grouped::entry`] of what was loaded, which is no change.
    pub(crate) fn put(&mut self, hash: u64, key: &[u8]) -> &mut S {
        let table = Arc::make_mut(&mut self.tables.0[usize::from(key_group(hash))]);
        let entry = table.entry(hash, |k| *k.key == *key, |k| k.hash);
        let new = || Keyed { hash, key: key.into(), state: S::default() };
        &mut entry.or_insert_with(new).into_mut().state
    }

    /// Forgets a key.
    pub(crate) fn remove(&mut self, hash: u64, key: &[u8]) {
        self.changed.insert(key_group(hash));
        let table = Arc::make_mut(&mut self.tables.0[usize::from(key_group(hash))]);
        if let Ok(entry) = table.find_entry(hash, |k| *k.key == *key) {
            entry.remove();
        }
    }

    /// The tables as they are now, and the groups that a cut has to cover.
    pub(crate) fn cut(&mut self, whole: bool) -> (Tables<S>, GroupSet) {
        let changed = std::mem::take(&mut self.changed);
        (self.tables.clone(), if whole { GroupSet::ALL } else { changed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_no_longer_than_a_batch_or_one_row() {
        let half = BATCH_BYTES / 2;
        let lengths = [half, half, 1, 3 * BATCH_BYTES, 0, half];
        assert_eq!(runs(lengths.into_iter()), [0..2, 2..3, 3..4, 4..6]);
        assert!(runs(std::iter::empty()).is_empty());
    }
}
