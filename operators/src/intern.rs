//! Dense ids for keys: per-key state is a vector indexed by id, not a map of structs.
//!
//! A single text column, the usual key of a fleet, takes a fast path over raw bytes; any other key
//! goes through Arrow's row format. Ids are given in order of first appearance and never reused.

use arrow::array::{Array, ArrayRef, AsArray, StringBuilder};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use arrow::row::{RowConverter, RowParser, SortField};
use hashbrown::HashTable;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

use crate::key::{key_group, stable_hashes};
use crate::snapshot::GroupSet;

/// Keys of a segment of names.
const SEGMENT: usize = 1 << 14;

/// Maps key values to dense ids and back.
pub struct KeyInterner {
    table: HashTable<(u64, u32)>,
    names: Names,
    encoding: Encoding,
    types: Vec<DataType>,
    hashes: Vec<u64>,
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

    fn columns(&self, names: &Names, ids: &[u32]) -> Result<Vec<ArrayRef>, ArrowError> {
        match self {
            Self::Empty => Ok(Vec::new()),
            Self::Text => {
                let mut out = StringBuilder::with_capacity(ids.len(), ids.len() * 16);
                for id in ids {
                    match std::str::from_utf8(names.bytes(*id)) {
                        Ok(text) => out.append_value(text),
                        Err(_) => out.append_null(),
                    }
                }
                Ok(vec![Arc::new(out.finish())])
            }
            Self::Rows { converter, parser } => {
                converter.convert_rows(ids.iter().map(|id| parser.parse(names.bytes(*id))))
            }
        }
    }
}

/// The encoded bytes of keys by id, in segments that are shared with snapshots: full ones never
/// change, and the last is copied before it grows if a snapshot has it.
#[derive(Clone, Debug, Default)]
struct Names {
    segments: Vec<Arc<Segment>>,
    len: usize,
}

#[derive(Clone, Debug, Default)]
struct Segment {
    arena: Vec<u8>,
    ends: Vec<usize>,
    /// Key groups, below 256; known once the batch that brought the key was interned.
    groups: Vec<u8>,
}

impl Names {
    fn bytes(&self, id: u32) -> &[u8] {
        let segment = &self.segments[id as usize / SEGMENT];
        let at = id as usize % SEGMENT;
        let start = if at == 0 { 0 } else { segment.ends[at - 1] };
        &segment.arena[start..segment.ends[at]]
    }

    fn group(&self, id: u32) -> u16 {
        let groups = &self.segments[id as usize / SEGMENT].groups;
        groups[id as usize % SEGMENT].into()
    }

    fn push(&mut self, bytes: &[u8]) -> u32 {
        if self.len.is_multiple_of(SEGMENT) {
            self.segments.push(Arc::default());
        }
        let last = self.segments.last_mut().expect("there is one after the push above");
        let segment = Arc::make_mut(last);
        segment.arena.extend_from_slice(bytes);
        segment.ends.push(segment.arena.len());
        segment.groups.push(0);
        self.len += 1;
        (self.len - 1) as u32
    }

    fn set_group(&mut self, id: u32, group: u16) {
        let segment = Arc::make_mut(&mut self.segments[id as usize / SEGMENT]);
        segment.groups[id as usize % SEGMENT] = group as u8;
    }

    fn size_bytes(&self) -> usize {
        let size = |s: &Arc<Segment>| {
            s.arena.capacity() + s.ends.capacity() * size_of::<usize>() + s.groups.capacity()
        };
        self.segments.iter().map(size).sum()
    }
}

/// The keys of an interner as of a cut.
pub(crate) struct KeyNames {
    names: Names,
    types: Vec<DataType>,
}

impl KeyNames {
    /// The ids of the keys in these groups, by group, then key.
    pub(crate) fn ids(&self, groups: &GroupSet) -> Vec<u32> {
        let ids = 0..self.names.len as u32;
        let mut ids: Vec<u32> = ids.filter(|id| groups.contains(self.names.group(*id))).collect();
        ids.sort_unstable_by(|a, b| {
            let groups = self.names.group(*a).cmp(&self.names.group(*b));
            groups.then_with(|| self.names.bytes(*a).cmp(self.names.bytes(*b)))
        });
        ids
    }

    /// The key group of a key.
    pub(crate) fn group(&self, id: u32) -> u16 {
        self.names.group(id)
    }

    /// The key columns of the given ids, in their order.
    pub(crate) fn columns(&self, ids: &[u32]) -> Result<Vec<ArrayRef>, ArrowError> {
        Encoding::new(&self.types)?.columns(&self.names, ids)
    }
}

impl KeyInterner {
    /// For keys of the given column types; none at all means one global key.
    pub fn new(types: &[DataType]) -> Result<Self, ArrowError> {
        Ok(Self {
            table: HashTable::new(),
            names: Names::default(),
            encoding: Encoding::new(types)?,
            types: types.to_vec(),
            hashes: Vec::new(),
        })
    }

    /// Number of distinct keys seen.
    pub fn len(&self) -> usize {
        self.names.len
    }

    /// Whether no key was seen yet.
    pub fn is_empty(&self) -> bool {
        self.names.len == 0
    }

    /// Replaces `ids` by the ids of `rows` keys.
    pub fn intern(
        &mut self,
        keys: &[ArrayRef],
        rows: usize,
        ids: &mut Vec<u32>,
    ) -> Result<(), ArrowError> {
        ids.clear();
        ids.reserve(rows);
        let known = self.len();
        let (table, names) = (&mut self.table, &mut self.names);
        match &mut self.encoding {
            Encoding::Empty => {
                if names.len == 0 && rows > 0 {
                    names.push(&[]);
                }
                ids.resize(rows, 0);
            }
            Encoding::Text => {
                let values = keys[0].as_string::<i32>();
                if values.null_count() == 0 {
                    for i in 0..rows {
                        ids.push(id_of(table, names, values.value(i).as_bytes()));
                    }
                } else {
                    for i in 0..rows {
                        // A text key never contains the byte 0xff, so null gets it as its name.
                        let bytes: &[u8] =
                            if values.is_null(i) { &[0xff] } else { values.value(i).as_bytes() };
                        ids.push(id_of(table, names, bytes));
                    }
                }
            }
            Encoding::Rows { converter, .. } => {
                let encoded = converter.convert_columns(keys)?;
                for row in &encoded {
                    ids.push(id_of(table, names, row.as_ref()));
                }
            }
        }
        if self.len() > known {
            self.set_groups(keys, rows, known, ids);
        }
        Ok(())
    }

    /// Notes the key groups of the keys from id `known` on, which this batch brought.
    fn set_groups(&mut self, keys: &[ArrayRef], rows: usize, known: usize, ids: &[u32]) {
        stable_hashes(keys, rows, &mut self.hashes);
        let mut next = known as u32;
        for (id, hash) in ids.iter().zip(&self.hashes) {
            // Ids are given in order of first appearance.
            if *id == next {
                self.names.set_group(next, key_group(*hash));
                next += 1;
            }
        }
    }

    /// The key columns of the given ids, in their order.
    pub fn keys(&self, ids: &[u32]) -> Result<Vec<ArrayRef>, ArrowError> {
        self.encoding.columns(&self.names, ids)
    }

    /// The encoded bytes of a key. Their order is the order of the key columns (nulls aside), so
    /// that sorting by them is sorting by key.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.names.bytes(id)
    }

    /// The key group of a key.
    pub fn group(&self, id: u32) -> u16 {
        self.names.group(id)
    }

    /// All keys as of now, without a copy.
    pub(crate) fn snapshot(&self) -> KeyNames {
        KeyNames { names: self.names.clone(), types: self.types.clone() }
    }

    /// Bytes held, for budgets.
    pub fn size_bytes(&self) -> usize {
        self.names.size_bytes() + self.table.capacity() * 16
    }
}

fn id_of(table: &mut HashTable<(u64, u32)>, names: &mut Names, bytes: &[u8]) -> u32 {
    let hash = xxh3_64(bytes);
    let same = |entry: &(u64, u32)| entry.0 == hash && names.bytes(entry.1) == bytes;
    if let Some(entry) = table.find(hash, same) {
        return entry.1;
    }
    let id = names.push(bytes);
    table.insert_unique(hash, (hash, id), |entry| entry.0);
    id
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
}
