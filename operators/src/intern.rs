//! Dense ids for keys: per-key state is a vector indexed by id, not a map of structs.
//!
//! A single text column, the usual key of a fleet, takes a fast path over raw bytes; any other key
//! goes through Arrow's row format. Which id a key gets means nothing: a key that was forgotten
//! gives its id back, and the next new key takes the lowest one that is free. How many keys a key
//! group may have is decided here, at the one place where a key can be new: by the rows of that
//! group alone, so that it is the same on any number of workers.

mod grouped;
mod names;

use arrow::array::{Array, ArrayRef, AsArray, StringBuilder};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use arrow::row::{RowConverter, RowParser, SortField};
use hashbrown::HashTable;
use std::sync::{Arc, OnceLock};
use xxhash_rust::xxh3::xxh3_64;

use self::grouped::Grouped;
use self::names::{NameStore, Names};
use crate::bound::{changing_table_bytes, row_bytes};
use crate::key::{KEY_GROUPS, key_group, stable_hashes};
use crate::snapshot::GroupSet;

/// What a row gets instead of an id if its key is new and found no place.
pub const NO_PLACE: u32 = u32::MAX;

/// Entries of the table below which it is not made smaller.
const TABLE_MIN: usize = 1 << 10;

/// Bytes of a key with its id, given the types of its columns and how long texts are.
pub(crate) fn key_bytes<'t>(
    mut types: impl Iterator<Item = &'t DataType> + Clone,
    text_bytes: usize,
) -> u64 {
    let encoded = match (types.clone().count(), types.next()) {
        (1, Some(DataType::Utf8)) => text_bytes as u64,
        (_, first) => row_bytes(first.into_iter().chain(types), text_bytes),
    };
    names::name_bytes(encoded).saturating_add(changing_table_bytes(size_of::<(u64, u32)>()))
}

/// A key that the last batch brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fresh {
    /// Its id.
    pub id: u32,
    /// Its stable hash.
    pub hash: u64,
}

/// Which new keys find a place.
#[derive(Clone, Copy)]
pub(crate) struct Admission<'a> {
    /// Most keys of a key group.
    pub(crate) share: u32,
    /// If new keys find no place whatever the share: which ones are not new although they have no
    /// id, by their stable hashes.
    pub(crate) only: Option<&'a dyn Fn(u64) -> bool>,
}

/// Maps key values to dense ids and back.
pub struct KeyInterner {
    table: HashTable<(u64, u32)>,
    names: NameStore,
    encoding: Encoding,
    types: Vec<DataType>,
    hashes: Vec<u64>,
    /// Keys by key group.
    counts: Vec<u32>,
    fresh: Vec<Fresh>,
}

enum Encoding {
    Text,
    Rows { converter: RowConverter, parser: RowParser },
    Empty,
}

impl Encoding {
    fn new(types: &[DataType]) -> Result<Self, ArrowError> {
        Ok(match types {
            [] => Self::Empty,
            [DataType::Utf8] => Self::Text,
            _ => {
                let fields = types.iter().cloned().map(SortField::new).collect();
                let converter = RowConverter::new(fields)?;
                let parser = converter.parser();
                Self::Rows { converter, parser }
            }
        })
    }

    /// The key columns of encoded keys.
    fn columns<'n>(
        &self,
        keys: impl ExactSizeIterator<Item = &'n [u8]>,
    ) -> Result<Vec<ArrayRef>, ArrowError> {
        match self {
            Self::Empty => Ok(Vec::new()),
            Self::Text => {
                let mut out = StringBuilder::with_capacity(keys.len(), keys.len() * 16);
                for key in keys {
                    match std::str::from_utf8(key) {
                        Ok(text) => out.append_value(text),
                        Err(_) => out.append_null(),
                    }
                }
                Ok(vec![Arc::new(out.finish())])
            }
            Self::Rows { converter, parser } => {
                converter.convert_rows(keys.map(|key| parser.parse(key)))
            }
        }
    }
}

/// The keys of an interner as of a cut.
pub(crate) struct KeyNames {
    names: Names,
    types: Vec<DataType>,
    /// The ids by their groups, once they were asked for.
    grouped: OnceLock<Grouped>,
}

impl KeyNames {
    /// The ids of the keys in these groups, by group, then key.
    pub(crate) fn ids(&self, groups: &GroupSet) -> Vec<u32> {
        let grouped = self.grouped.get_or_init(|| Grouped::of(&self.names));
        let mut sorted = Vec::new();
        groups.iter().for_each(|group| grouped.sort_into(&self.names, group, &mut sorted));
        sorted
    }

    /// The key group of a key.
    pub(crate) fn group(&self, id: u32) -> u16 {
        self.names.group(id)
    }

    /// A key as it is kept.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        self.names.bytes(id)
    }

    /// Of each key of groups its group and the bytes of its rows, given how many there are of it
    /// and how many bytes they have besides the key.
    pub(crate) fn sizes(
        &self,
        groups: &GroupSet,
        of: impl Fn(u32) -> (usize, usize),
    ) -> Vec<(u16, usize)> {
        let size = |id: u32| {
            let (rows, bytes) = of(id);
            (self.names.group(id), rows * self.names.bytes(id).len() + bytes)
        };
        self.names.ids().filter(|id| groups.contains(self.names.group(*id))).map(size).collect()
    }

    /// The key columns of the given ids, in their order.
    pub(crate) fn columns(&self, ids: &[u32]) -> Result<Vec<ArrayRef>, ArrowError> {
        Encoding::new(&self.types)?.columns(ids.iter().map(|id| self.names.bytes(*id)))
    }

    /// The key columns of keys as [`KeyInterner::bytes`] gives them.
    pub(crate) fn columns_of(&self, keys: &[&[u8]]) -> Result<Vec<ArrayRef>, ArrowError> {
        Encoding::new(&self.types)?.columns(keys.iter().copied())
    }
}

impl KeyInterner {
    /// For keys of the given column types; none at all means one global key.
    pub fn new(types: &[DataType]) -> Result<Self, ArrowError> {
        Ok(Self {
            table: HashTable::new(),
            names: NameStore::default(),
            encoding: Encoding::new(types)?,
            types: types.to_vec(),
            hashes: Vec::new(),
            counts: vec![0; usize::from(KEY_GROUPS)],
            fresh: Vec::new(),
        })
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.names.len
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.names.len == 0
    }

    /// The ids of all keys, ascending.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.names.names.ids()
    }

    /// Replaces `ids` by the ids of `rows` keys.
    pub fn intern(
        &mut self,
        keys: &[ArrayRef],
        rows: usize,
        ids: &mut Vec<u32>,
    ) -> Result<(), ArrowError> {
        self.intern_within(u32::MAX, keys, rows, ids)
    }

    /// The same, but a new key whose group has `share` keys gets [`NO_PLACE`].
    pub fn intern_within(
        &mut self,
        share: u32,
        keys: &[ArrayRef],
        rows: usize,
        ids: &mut Vec<u32>,
    ) -> Result<(), ArrowError> {
        self.intern_admitted(Admission { share, only: None }, keys, rows, ids)
    }

    /// The same, but a new key that is not admitted gets [`NO_PLACE`].
    pub(crate) fn intern_admitted(
        &mut self,
        admission: Admission<'_>,
        keys: &[ArrayRef],
        rows: usize,
        ids: &mut Vec<u32>,
    ) -> Result<(), ArrowError> {
        ids.clear();
        ids.reserve(rows);
        self.fresh.clear();
        self.hashes.clear();
        let Self { table, names, hashes, counts, fresh, .. } = self;
        let mut places = Places { admission, keys, rows, table, names, hashes, counts, fresh };
        match &mut self.encoding {
            Encoding::Empty => ids.extend((0..rows).map(|row| places.id_of(row, &[]))),
            Encoding::Text => {
                let values = keys[0].as_string::<i32>();
                if values.null_count() == 0 {
                    for row in 0..rows {
                        ids.push(places.id_of(row, values.value(row).as_bytes()));
                    }
                } else {
                    for row in 0..rows {
                        // A text key never contains the byte 0xff, so null gets it as its name.
                        let null: &[u8] = &[0xff];
                        let valid = values.is_valid(row);
                        let bytes = if valid { values.value(row).as_bytes() } else { null };
                        ids.push(places.id_of(row, bytes));
                    }
                }
            }
            Encoding::Rows { converter, .. } => {
                let encoded = converter.convert_columns(keys)?;
                for (row, key) in encoded.iter().enumerate() {
                    ids.push(places.id_of(row, key.as_ref()));
                }
            }
        }
        Ok(())
    }

    /// The keys that were new in the last batch. They have no state yet, or, where an id is used
    /// again, that of a key which is no more.
    pub fn fresh(&self) -> &[Fresh] {
        &self.fresh
    }

    /// Forgets a key: its id is free. Whether that leaves no key in its slab (see
    /// [`crate::slabs::Slabs::forget`]).
    pub fn forget(&mut self, id: u32) -> bool {
        let names = &self.names.names;
        self.counts[usize::from(names.group(id))] -= 1;
        let found = self.table.find_entry(xxh3_64(names.bytes(id)), |entry| entry.1 == id);
        if let Ok(entry) = found {
            entry.remove();
        }
        if self.table.len() > TABLE_MIN && self.table.len() < self.table.capacity() / 4 {
            self.table.shrink_to(self.table.len() * 2, |entry| entry.0);
        }
        self.names.remove(id)
    }

    /// The key columns of the given ids, in their order.
    pub fn keys(&self, ids: &[u32]) -> Result<Vec<ArrayRef>, ArrowError> {
        self.encoding.columns(ids.iter().map(|id| self.names.names.bytes(*id)))
    }

    /// The encoded bytes of a key. Their order is the order of the key columns (nulls aside), so
    /// that sorting by them is sorting by key.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.names.names.bytes(id)
    }

    /// The key group of a key.
    pub fn group(&self, id: u32) -> u16 {
        self.names.names.group(id)
    }

    /// The stable hashes of keys.
    pub fn hashes_of(&self, ids: &[u32]) -> Result<Vec<u64>, ArrowError> {
        let mut hashes = Vec::new();
        stable_hashes(&self.keys(ids)?, ids.len(), &mut hashes);
        Ok(hashes)
    }

    /// Keys as [`KeyInterner::bytes`] gives them, without taking them in.
    pub(crate) fn encoded(
        &self,
        keys: &[ArrayRef],
        rows: usize,
    ) -> Result<Vec<Box<[u8]>>, ArrowError> {
        let mut own = Self::new(&self.types)?;
        let mut ids = Vec::new();
        own.intern(keys, rows, &mut ids)?;
        Ok(ids.into_iter().map(|id| own.bytes(id).into()).collect())
    }

    /// All keys as of now, without a copy.
    pub(crate) fn snapshot(&self) -> KeyNames {
        let (names, types) = (self.names.names.clone(), self.types.clone());
        KeyNames { names, types, grouped: OnceLock::new() }
    }

    /// Bytes held.
    pub fn size_bytes(&self) -> usize {
        // Of a table, seven of eight places can be used, each with one byte of its own.
        let places = self.table.capacity() * 8 / 7;
        self.names.names.size_bytes() + places * (size_of::<(u64, u32)>() + 1)
    }
}

/// The keys of a batch on their way to ids.
struct Places<'a> {
    admission: Admission<'a>,
    keys: &'a [ArrayRef],
    rows: usize,
    table: &'a mut HashTable<(u64, u32)>,
    names: &'a mut NameStore,
    /// The stable hashes of all rows, once one of them is new.
    hashes: &'a mut Vec<u64>,
    counts: &'a mut [u32],
    fresh: &'a mut Vec<Fresh>,
}

impl Places<'_> {
    fn id_of(&mut self, row: usize, bytes: &[u8]) -> u32 {
        let hash = xxh3_64(bytes);
        let names = &self.names.names;
        let same = |entry: &(u64, u32)| entry.0 == hash && names.bytes(entry.1) == bytes;
        match self.table.find(hash, same) {
            Some(entry) => entry.1,
            None => self.new_id(row, bytes, hash),
        }
    }

    #[cold]
    fn new_id(&mut self, row: usize, bytes: &[u8], table_hash: u64) -> u32 {
        if self.hashes.is_empty() {
            stable_hashes(self.keys, self.rows, self.hashes);
        }
        let hash = self.hashes[row];
        let count = &mut self.counts[usize::from(key_group(hash))];
        let Admission { share, only } = self.admission;
        if *count >= share || only.is_some_and(|is_known| !is_known(hash)) {
            return NO_PLACE;
        }
        *count += 1;
        let id = self.names.put(bytes, key_group(hash));
        self.table.insert_unique(table_hash, (table_hash, id), |entry| entry.0);
        self.fresh.push(Fresh { id, hash });
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, StringArray};

    #[test]
    fn ids_are_dense_and_come_back_as_keys() {
        let text: ArrayRef =
            Arc::new(StringArray::from(vec![Some("b"), None, Some("a"), Some("b")]));
        let mut one = KeyInterner::new(&[DataType::Utf8]).expect("text key");
        let mut ids = Vec::new();
        one.intern(std::slice::from_ref(&text), 4, &mut ids).expect("interned");
        assert_eq!(ids, [0, 1, 2, 0]);
        assert_eq!(&one.keys(&ids).expect("keys")[0], &text);

        let number: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(1), None, Some(1)]));
        let types = [DataType::Utf8, DataType::Int64];
        let mut two = KeyInterner::new(&types).expect("two columns");
        let keys = [text, number];
        two.intern(&keys, 4, &mut ids).expect("interned");
        assert_eq!(ids, [0, 1, 2, 0]);
        assert_eq!(two.keys(&ids).expect("keys"), keys);
        let mut hashes = Vec::new();
        stable_hashes(&keys, 4, &mut hashes);
        for (id, hash) in ids.iter().zip(hashes) {
            assert_eq!(two.group(*id), key_group(hash));
        }
    }

    #[test]
    fn a_snapshot_keeps_its_keys_across_segments() {
        let key = |i: usize| format!("device-{i}");
        let mut interner = KeyInterner::new(&[DataType::Utf8]).expect("text key");
        let (mut ids, mut names) = (Vec::new(), Vec::new());
        for part in 0..5 {
            let keys = (part * 9000..(part + 1) * 9000).map(key);
            let keys: ArrayRef = Arc::new(StringArray::from_iter_values(keys));
            interner.intern(&[keys], 9000, &mut ids).expect("interned");
            names.push(interner.snapshot());
        }
        for (part, names) in names.iter().enumerate() {
            let ids = names.ids(&GroupSet::ALL);
            assert_eq!(ids.len(), (part + 1) * 9000);
            let columns = names.columns(&ids).expect("keys");
            for (id, text) in ids.iter().zip(columns[0].as_string::<i32>()) {
                assert_eq!(text, Some(key(*id as usize).as_str()));
            }
            assert!(ids.is_sorted_by_key(|id| (names.group(*id), key(*id as usize))));
        }
    }

    #[test]
    fn forgotten_keys_give_back_ids_room_and_their_place_in_the_group() {
        let keys = |from: usize, count: usize| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(
                (from..from + count).map(|i| format!("key-{i}")),
            ))
        };
        let mut interner = KeyInterner::new(&[DataType::Utf8]).expect("text key");
        let mut ids = Vec::new();
        let (mut sizes, mut kept) = (Vec::new(), Vec::new());
        for wave in 0..8 {
            interner.intern(&[keys(wave * 20_000, 20_000)], 20_000, &mut ids).expect("interned");
            assert_eq!(interner.fresh().len(), 20_000);
            let last = interner.snapshot();
            sizes.push(interner.size_bytes());
            // One key of each wave stays.
            kept.push(ids[7]);
            for id in ids.iter().filter(|id| **id != ids[7]) {
                interner.forget(*id);
            }
            assert_eq!(interner.len(), wave + 1);
            assert_eq!(last.ids(&GroupSet::ALL).len(), 20_000 + wave);
        }
        assert!(kept.iter().all(|id| *id < 30_000), "ids are used again: {kept:?}");
        assert!(sizes[7] < sizes[0] * 11 / 10, "{sizes:?}");
        assert!(interner.size_bytes() < sizes[0] / 4, "{} of {}", interner.size_bytes(), sizes[0]);
        let mut alive: Vec<u32> = interner.ids().collect();
        alive.sort_unstable();
        kept.sort_unstable();
        assert_eq!(alive, kept);
        let names = interner.keys(&kept).expect("keys");
        interner.intern(&names, kept.len(), &mut ids).expect("interned");
        assert_eq!((ids, interner.fresh()), (kept, &[][..]));
    }

    #[test]
    fn a_group_takes_its_share_and_again_when_a_key_is_forgotten() {
        let keys: Vec<String> = (0..40_000).map(|i| format!("key-{i}")).collect();
        let column: ArrayRef = Arc::new(StringArray::from(keys));
        let mut interner = KeyInterner::new(&[DataType::Utf8]).expect("text key");
        let mut ids = Vec::new();
        for _ in 0..2 {
            let columns = std::slice::from_ref(&column);
            interner.intern_within(100, columns, 40_000, &mut ids).expect("interned");
            assert_eq!(interner.len(), 100 * usize::from(KEY_GROUPS));
            assert_eq!(ids.iter().filter(|id| **id == NO_PLACE).count(), 40_000 - 25_600);
        }
        let gone = ids.iter().copied().find(|id| *id != NO_PLACE).expect("most have a place");
        let group = interner.group(gone);
        interner.forget(gone);
        interner.intern_within(100, &[column], 40_000, &mut ids).expect("interned");
        let fresh: Vec<u16> = interner.fresh().iter().map(|f| key_group(f.hash)).collect();
        assert_eq!(fresh, [group]);
    }
}
