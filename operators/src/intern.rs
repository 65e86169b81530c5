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

/// Maps key values to dense ids and back.
pub struct KeyInterner {
    table: HashTable<(u64, u32)>,
    arena: Vec<u8>,
    ends: Vec<usize>,
    encoding: Encoding,
}

enum Encoding {
    Text,
    Rows { converter: RowConverter, parser: RowParser },
    Empty,
}

impl KeyInterner {
    /// For keys of the given column types; none at all means one global key.
    pub fn new(types: &[DataType]) -> Result<Self, ArrowError> {
        let encoding = match types {
            [] => Encoding::Empty,
            [DataType::Utf8] => Encoding::Text,
            _ => {
                let fields = types.iter().cloned().map(SortField::new).collect();
                let converter = RowConverter::new(fields)?;
                let parser = converter.parser();
                Encoding::Rows { converter, parser }
            }
        };
        Ok(Self { table: HashTable::new(), arena: Vec::new(), ends: Vec::new(), encoding })
    }

    /// Number of distinct keys seen.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether no key was seen yet.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
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
        let (table, arena, ends) = (&mut self.table, &mut self.arena, &mut self.ends);
        match &mut self.encoding {
            Encoding::Empty => {
                if ends.is_empty() && rows > 0 {
                    ends.push(0);
                }
                ids.resize(rows, 0);
            }
            Encoding::Text => {
                let values = keys[0].as_string::<i32>();
                if values.null_count() == 0 {
                    for i in 0..rows {
                        ids.push(id_of(table, arena, ends, values.value(i).as_bytes()));
                    }
                } else {
                    for i in 0..rows {
                        // A text key never contains the byte 0xff, so null gets it as its name.
                        let bytes: &[u8] =
                            if values.is_null(i) { &[0xff] } else { values.value(i).as_bytes() };
                        ids.push(id_of(table, arena, ends, bytes));
                    }
                }
            }
            Encoding::Rows { converter, .. } => {
                let encoded = converter.convert_columns(keys)?;
                for row in &encoded {
                    ids.push(id_of(table, arena, ends, row.as_ref()));
                }
            }
        }
        Ok(())
    }

    /// The key columns of the given ids, in their order.
    pub fn keys(&self, ids: &[u32]) -> Result<Vec<ArrayRef>, ArrowError> {
        match &self.encoding {
            Encoding::Empty => Ok(Vec::new()),
            Encoding::Text => {
                let mut out = StringBuilder::with_capacity(ids.len(), ids.len() * 16);
                for id in ids {
                    match std::str::from_utf8(self.bytes(*id)) {
                        Ok(text) => out.append_value(text),
                        Err(_) => out.append_null(),
                    }
                }
                Ok(vec![Arc::new(out.finish())])
            }
            Encoding::Rows { converter, parser } => {
                converter.convert_rows(ids.iter().map(|id| parser.parse(self.bytes(*id))))
            }
        }
    }

    /// The encoded bytes of a key. Their order is the order of the key columns (nulls aside), so
    /// that sorting by them is sorting by key.
    pub fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.arena[start..self.ends[id]]
    }

    /// Bytes held, for budgets.
    pub fn size_bytes(&self) -> usize {
        self.arena.capacity() + self.ends.capacity() * 8 + self.table.capacity() * 16
    }
}

fn id_of(
    table: &mut HashTable<(u64, u32)>,
    arena: &mut Vec<u8>,
    ends: &mut Vec<usize>,
    bytes: &[u8],
) -> u32 {
    let hash = xxh3_64(bytes);
    let same = |entry: &(u64, u32)| {
        entry.0 == hash && {
            let id = entry.1 as usize;
            let start = if id == 0 { 0 } else { ends[id - 1] };
            &arena[start..ends[id]] == bytes
        }
    };
    if let Some(entry) = table.find(hash, same) {
        return entry.1;
    }
    let id = ends.len() as u32;
    arena.extend_from_slice(bytes);
    ends.push(arena.len());
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
    }
}
