//! What is remembered as rows, one per device: its name, and of each reading when it came in and
//! the hash of its key, oldest first.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, Int64Builder, LargeBinaryBuilder, LargeListBuilder, RecordBatch, StringArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use xxhash_rust::xxh3::xxh3_64;

use super::{Dedup, Device, Hash, table_hash};
use crate::operator::OperatorError;

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

impl Dedup {
    pub(super) fn save_state(&self) -> Result<RecordBatch, OperatorError> {
        let mut devices: Vec<&Device> = self.devices.iter().collect();
        devices.sort_by(|a, b| a.name.cmp(&b.name));
        let mut times = LargeListBuilder::new(Int64Builder::new());
        let mut hashes = LargeBinaryBuilder::new();
        let mut bytes = Vec::new();
        for device in &devices {
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
        let mut arrivals = Vec::new();
        for row in 0..state.num_rows() {
            let name: Arc<str> = names.value(row).into();
            let times = times.value(row);
            let times = times.as_primitive::<Int64Type>().values().iter().copied();
            let (hashes, _) = hashes.value(row).as_chunks::<HASH_BYTES>();
            let seen: Vec<(i64, Hash)> =
                times.zip(hashes.iter().map(|h| Hash::from_le_bytes(*h))).collect();
            let mut last_us = None;
            for (seen_us, hash) in &seen {
                self.known.insert_unique(table_hash(*hash), *hash, |h| table_hash(*h));
                if last_us.replace(*seen_us) != Some(*seen_us) {
                    arrivals.push((*seen_us, Arc::clone(&name)));
                }
            }
            if !seen.is_empty() {
                let named = xxh3_64(name.as_bytes());
                let device = Device { name, seen: seen.into() };
                self.devices.insert_unique(named, device, |d| xxh3_64(d.name.as_bytes()));
            }
        }
        arrivals.extend(self.arrivals.drain(..));
        arrivals.sort();
        self.arrivals = arrivals.into();
        Ok(())
    }
}
