//! What is remembered as rows, one per device, by key group and name: its name, and of each
//! reading when it came in and
//! the hash of its key, oldest first.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, Int64Builder, LargeBinaryBuilder, LargeListBuilder, RecordBatch, StringArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use hashbrown::HashTable;

use super::{Dedup, Device, Hash, name_hash, table_hash};
use crate::key::key_group;
use crate::operator::OperatorError;
use crate::snapshot::{GroupSet, SavedRows, Snapshot};

/// Bytes of a hash.
const HASH_BYTES: usize = size_of::<Hash>();

fn schema() -> Schema {
    let times = Arc::new(Field::new_list_field(DataType::Int64, true));
    Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("seen_us", DataType::LargeList(times), false),
        Field::new("hashes", DataType::LargeBinary, false),
    ])
}

fn rows(devices: &[&Device]) -> Result<RecordBatch, OperatorError> {
    let mut times = LargeListBuilder::new(Int64Builder::new());
    let mut hashes = LargeBinaryBuilder::new();
    let mut bytes = Vec::new();
    for device in devices {
        bytes.clear();
        for (seen_us, hash) in &device.seen {
            times.values().append_value(*seen_us);
            bytes.extend_from_slice(&hash.to_le_bytes());
        }
        times.append(true);
        hashes.append_value(&bytes);
    }
    let names = StringArray::from_iter_values(devices.iter().map(|d| &d.name));
    let columns: Vec<ArrayRef> =
        vec![Arc::new(names), Arc::new(times.finish()), Arc::new(hashes.finish())];
    Ok(RecordBatch::try_new(Arc::new(schema()), columns)?)
}

impl Dedup {
    pub(super) fn cut_state(&self, groups: GroupSet) -> Snapshot {
        type Tables = Vec<Arc<HashTable<Device>>>;
        let sizes = |tables: &Tables, groups: &GroupSet| {
            let of_group =
                |group: u16| tables[usize::from(group)].iter().map(move |d| (group, d.name.len()));
            groups.iter().flat_map(of_group).collect()
        };
        Snapshot::sized(groups, self.devices.clone(), sizes, move |tables, groups| {
            let mut counts = Vec::new();
            let mut devices: Vec<&Device> = Vec::new();
            for group in groups.iter() {
                let from = devices.len();
                devices.extend(tables[usize::from(group)].iter());
                devices[from..].sort_by(|a, b| a.name.cmp(&b.name));
                counts.push((group, (devices.len() - from) as u64));
            }
            Ok(SavedRows { rows: rows(&devices)?, groups: counts })
        })
    }

    pub(super) fn load_state(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        let types = |s: &Schema| -> Vec<DataType> {
            s.fields().iter().map(|f| f.data_type().clone()).collect()
        };
        if types(state.schema_ref()) != types(&schema()) {
            let text = "it is not a memory of readings".to_owned();
            return Err(OperatorError::State(text));
        }
        let names = state.column(0).as_string::<i32>();
        let times = state.column(1).as_list::<i64>();
        let hashes = state.column(2).as_binary::<i64>();
        for row in 0..state.num_rows() {
            let name: Arc<str> = names.value(row).into();
            let times = times.value(row);
            let times = times.as_primitive::<Int64Type>().values().iter().copied();
            let (hashes, _) = hashes.value(row).as_chunks::<HASH_BYTES>();
            let seen: Vec<(i64, Hash)> =
                times.zip(hashes.iter().map(|h| Hash::from_le_bytes(*h))).collect();
            let named = name_hash(&name);
            let group = usize::from(key_group(named));
            for (_, hash) in &seen {
                self.known.insert_unique(table_hash(*hash), *hash, |h| table_hash(*h));
            }
            if let Some((oldest_us, _)) = seen.first() {
                self.oldest[group].entry(*oldest_us).or_default().push(Arc::clone(&name));
            }
            if !seen.is_empty() {
                self.sizes[group] += seen.len() as u32;
                let device = Device { name, seen: seen.into() };
                let devices = Arc::make_mut(&mut self.devices[group]);
                devices.insert_unique(named, device, |d| name_hash(&d.name));
            }
        }
        Ok(())
    }
}
