//! What has to be known of forgotten keys: up to where their rows are too old.
//!
//! A key that comes back must be as if it had never been forgotten: what was closed, or evaluated,
//! stays so. Of each key two numbers are kept under its hash, 24 bytes instead of its state, and of
//! each key group at most its share of `keys_max`; of those with the lowest bounds, once there are
//! more, only the highest of these bounds: the floor. For whoever is new or comes back in that
//! group, rows up to the floor are too old. So nothing is emitted again as if for the first time,
//! whatever comes back and whenever.
//!
//! Invariant: what is kept is a function of the sets of keys that were forgotten and came back in
//! each epoch, not of their order. Two keys of one group with the same hash of 64 bits would be
//! taken for one.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, LargeBinaryBuilder, RecordBatch, UInt32Array,
    new_null_array,
};
use arrow::compute::{concat_batches, filter_record_batch, is_null, take_record_batch};
use arrow::datatypes::{DataType, Field};

use crate::bound::tree_bytes;
use crate::intern::{Fresh, KeyInterner, KeyNames};
use crate::key::{KEY_GROUPS, key_group, stable_hashes};
use crate::operator::OperatorError;
use crate::snapshot::SavedRows;

/// The last column of a saved state: what is left of forgotten keys, in one row per key group. The
/// key columns of such a row are those of one of them, to say which group it is.
const FORGOTTEN: &str = "forgotten";

/// Bytes of one forgotten key in a saved state.
const ENTRY_BYTES: usize = 24;

pub(crate) fn forgotten_field() -> Field {
    Field::new(FORGOTTEN, DataType::LargeBinary, true)
}

/// What is left of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remnant {
    /// Up to here its rows are too old; a time or the number of a window.
    pub(crate) bound: i64,
    /// What else its operator has to know.
    pub(crate) extra: i64,
}

#[derive(Clone, Debug)]
struct Group {
    floor: i64,
    keys: BTreeMap<u64, Remnant>,
    /// The least of the encoded keys that were forgotten, for the key columns of the saved row.
    example: Option<Box<[u8]>>,
}

impl Default for Group {
    fn default() -> Self {
        Self { floor: i64::MIN, keys: BTreeMap::new(), example: None }
    }
}

impl Group {
    fn is_empty(&self) -> bool {
        self.floor == i64::MIN && self.keys.is_empty()
    }

    /// Raises the floor if there are more than `most`, so far that a quarter goes.
    fn shrink(&mut self, most: usize) {
        if self.keys.len() <= most {
            return;
        }
        let mut bounds: Vec<i64> = self.keys.values().map(|r| r.bound).collect();
        bounds.sort_unstable();
        self.raise_floor(bounds[self.keys.len() - most * 3 / 4 - 1]);
    }

    /// Raises the floor at least so far.
    fn raise_floor(&mut self, floor: i64) {
        self.floor = self.floor.max(floor);
        let floor = self.floor;
        self.keys.retain(|_, remnant| remnant.bound > floor);
    }

    fn put(&mut self, hash: u64, remnant: Remnant) {
        if remnant.bound > self.floor {
            self.keys.insert(hash, remnant);
        }
    }

    /// Takes note of a key that was put, or was not because of the floor.
    fn note_example(&mut self, key: &[u8]) {
        if !self.is_empty() && self.example.as_ref().is_none_or(|example| key < &**example) {
            self.example = Some(key.into());
        }
    }
}

/// The forgotten keys of one operator, by key group.
#[derive(Clone, Debug)]
pub(crate) struct Remnants {
    groups: Vec<Arc<Group>>,
    most: usize,
    /// What the operator has to know even if all its keys are forgotten; the greatest counts.
    pub(crate) note: i64,
}

impl Remnants {
    /// Keeps at most `most` of a key group.
    pub(crate) fn new(most: u32) -> Self {
        Self {
            groups: vec![Arc::default(); usize::from(KEY_GROUPS)],
            most: most as usize,
            note: i64::MIN,
        }
    }

    /// A copy with this note.
    pub(crate) fn noting(&self, note: i64) -> Self {
        Self { note, ..self.clone() }
    }

    /// Keys that are about to be forgotten, with what is left of each. Called once per epoch.
    pub(crate) fn keep(
        &mut self,
        interner: &KeyInterner,
        forgotten: &[(u32, Remnant)],
    ) -> Result<(), OperatorError> {
        let ids: Vec<u32> = forgotten.iter().map(|f| f.0).collect();
        let hashes = interner.hashes_of(&ids)?;
        for ((id, remnant), hash) in forgotten.iter().zip(&hashes) {
            let group = Arc::make_mut(&mut self.groups[usize::from(key_group(*hash))]);
            group.put(*hash, *remnant);
            group.note_example(interner.bytes(*id));
        }
        for hash in hashes {
            let group = &mut self.groups[usize::from(key_group(hash))];
            if group.keys.len() > self.most {
                Arc::make_mut(group).shrink(self.most);
            }
        }
        Ok(())
    }

    /// Whether something is left of the key of this stable hash: it is not new.
    pub(crate) fn has(&self, hash: u64) -> bool {
        self.groups[usize::from(key_group(hash))].keys.contains_key(&hash)
    }

    /// Takes what is left of a key that comes back; of one that is new or below the floor, the
    /// floor, if there is one.
    pub(crate) fn take(&mut self, key: Fresh) -> Option<Remnant> {
        let group = &mut self.groups[usize::from(key_group(key.hash))];
        if group.keys.contains_key(&key.hash) {
            let group = Arc::make_mut(group);
            let remnant = group.keys.remove(&key.hash);
            if group.is_empty() {
                group.example = None;
            }
            return remnant;
        }
        (group.floor > i64::MIN).then_some(Remnant { bound: group.floor, extra: i64::MIN })
    }

    /// Puts a row for each group with forgotten keys among the rows of a saved state, whose last
    /// column is [`FORGOTTEN`] and null.
    pub(crate) fn save(
        &self,
        names: &KeyNames,
        saved: SavedRows,
    ) -> Result<SavedRows, OperatorError> {
        let groups = saved.groups.iter().map(|g| &self.groups[usize::from(g.0)]);
        let filled: Vec<&Arc<Group>> = groups.filter(|g| !g.is_empty()).collect();
        if filled.is_empty() {
            return Ok(saved);
        }
        let examples: Vec<&[u8]> =
            filled.iter().map(|g| g.example.as_deref().unwrap_or_default()).collect();
        let mut columns = names.columns_of(&examples)?;
        let schema = saved.rows.schema();
        for field in &schema.fields()[columns.len()..schema.fields().len() - 1] {
            columns.push(new_null_array(field.data_type(), filled.len()));
        }
        columns.push(encode(&filled, self.note));
        let rows = RecordBatch::try_new(schema, columns)?;
        let all = concat_batches(saved.rows.schema_ref(), [&saved.rows, &rows])?;
        let (mut order, mut of_keys) = (Vec::with_capacity(all.num_rows()), 0..);
        let mut of_groups = saved.rows.num_rows() as u32..;
        let mut counts = Vec::with_capacity(saved.groups.len());
        for (group, rows) in saved.groups {
            let more = !self.groups[usize::from(group)].is_empty();
            order.extend(of_groups.by_ref().take(usize::from(more)));
            order.extend(of_keys.by_ref().take(rows as usize));
            counts.push((group, rows + u64::from(more)));
        }
        let rows = take_record_batch(&all, &UInt32Array::from(order))?;
        Ok(SavedRows { rows, groups: counts })
    }

    /// Takes the rows that [`Remnants::save`] put among those of a saved state, and gives the
    /// others. `keys` is the number of key columns.
    pub(crate) fn load(
        &mut self,
        state: &RecordBatch,
        keys: usize,
        interner: &KeyInterner,
    ) -> Result<RecordBatch, OperatorError> {
        let bad = || OperatorError::State("what is left of forgotten keys is damaged".into());
        let saved =
            state.columns().last().and_then(|c| c.as_binary_opt::<i64>()).ok_or_else(bad)?;
        if saved.null_count() == saved.len() {
            return Ok(state.clone());
        }
        let of_keys = is_null(saved)?;
        let of_groups: BooleanArray = of_keys.iter().map(|key| key.map(|key| !key)).collect();
        let rows = filter_record_batch(state, &of_groups)?;
        let examples = interner.encoded(&rows.columns()[..keys], rows.num_rows())?;
        let mut hashes = Vec::new();
        stable_hashes(&rows.columns()[..keys], rows.num_rows(), &mut hashes);
        let saved = rows.column(rows.num_columns() - 1).as_binary::<i64>();
        for (row, (example, hash)) in examples.into_iter().zip(hashes).enumerate() {
            let group = Arc::make_mut(&mut self.groups[usize::from(key_group(hash))]);
            let note = decode(saved.value(row), group).ok_or_else(bad)?;
            self.note = self.note.max(note);
            group.example = Some(example);
        }
        Ok(filter_record_batch(state, &of_keys)?)
    }

    /// Changes what is left of each key, and raises the floors that there are at least so far.
    pub(crate) fn raise(&mut self, floor: i64, mut raise: impl FnMut(u64, &mut Remnant)) {
        for group in self.groups.iter_mut().filter(|group| !group.is_empty()) {
            let group = Arc::make_mut(group);
            group.keys.iter_mut().for_each(|(hash, remnant)| raise(*hash, remnant));
            if group.floor > i64::MIN {
                group.raise_floor(floor);
            }
        }
    }

    /// Takes over what is left of those keys of another operator of which nothing is left here and
    /// `take` gives something, and its floors as `floor` makes them.
    pub(crate) fn take_over(
        &mut self,
        other: &Self,
        floor: impl Fn(i64) -> i64,
        take: impl Fn(u64, Remnant) -> Option<Remnant>,
    ) {
        for (group, of) in self.groups.iter_mut().zip(&other.groups) {
            let Some(example) = &of.example else { continue };
            let group = Arc::make_mut(group);
            for (hash, remnant) in &of.keys {
                match take(*hash, *remnant) {
                    Some(remnant) if !group.keys.contains_key(hash) => group.put(*hash, remnant),
                    _ => {}
                }
            }
            if of.floor > i64::MIN {
                group.raise_floor(floor(of.floor));
            }
            group.note_example(example);
            group.shrink(self.most);
        }
    }

    /// Takes keys, by their hashes and as they are encoded, of which this is left.
    pub(crate) fn put<'k>(&mut self, keys: impl Iterator<Item = (u64, &'k [u8], Remnant)>) {
        for (hash, key, remnant) in keys {
            let group = Arc::make_mut(&mut self.groups[usize::from(key_group(hash))]);
            group.put(hash, remnant);
            group.note_example(key);
        }
        for group in self.groups.iter_mut().filter(|group| group.keys.len() > self.most) {
            Arc::make_mut(group).shrink(self.most);
        }
    }

    /// What is left of the keys, by their hashes.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, Remnant)> + '_ {
        self.groups.iter().flat_map(|group| group.keys.iter().map(|(hash, r)| (*hash, *r)))
    }

    /// Bytes held; of a tree, about half of each node is used.
    pub(crate) fn size_bytes(&self) -> usize {
        let keys: usize = self.groups.iter().map(|g| g.keys.len()).sum();
        keys * REMNANT_BYTES as usize + self.groups.len() * size_of::<Group>()
    }
}

/// Bytes of a forgotten key: hashes come in no order, so nodes are about half full at worst.
pub(crate) const REMNANT_BYTES: u64 = tree_bytes(ENTRY_BYTES);

fn encode(groups: &[&Arc<Group>], note: i64) -> ArrayRef {
    let mut out = LargeBinaryBuilder::new();
    let mut bytes = Vec::new();
    for group in groups {
        bytes.clear();
        bytes.extend_from_slice(&group.floor.to_le_bytes());
        bytes.extend_from_slice(&note.to_le_bytes());
        for (hash, remnant) in &group.keys {
            bytes.extend_from_slice(&hash.to_le_bytes());
            bytes.extend_from_slice(&remnant.bound.to_le_bytes());
            bytes.extend_from_slice(&remnant.extra.to_le_bytes());
        }
        out.append_value(&bytes);
    }
    Arc::new(out.finish())
}

/// Reads what [`encode`] wrote into the group, and gives the note.
fn decode(bytes: &[u8], group: &mut Group) -> Option<i64> {
    let (floor, rest) = bytes.split_first_chunk::<8>()?;
    let (note, rest) = rest.split_first_chunk::<8>()?;
    let (entries, rest) = rest.as_chunks::<ENTRY_BYTES>();
    let entry = |bytes: &[u8; ENTRY_BYTES]| {
        let (numbers, _) = bytes.as_chunks::<8>();
        let [bound, extra] = [1, 2].map(|i| i64::from_le_bytes(numbers[i]));
        (u64::from_le_bytes(numbers[0]), Remnant { bound, extra })
    };
    let [floor, note] = [floor, note].map(|bytes| i64::from_le_bytes(*bytes));
    group.floor = floor;
    group.keys.extend(entries.iter().map(entry));
    rest.is_empty().then_some(note)
}
