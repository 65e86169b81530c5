//! Drops readings that came before: the same device says the same thing again, because a broker, a
//! gateway or the device itself sent it twice.
//!
//! A reading is remembered, by a hash of its key, for `horizon_us` of tick time after it came in:
//! repetitions follow soon after the first copy, whatever time the reading itself bears, so it is
//! the arrival that counts. Per device at most `keys_max` readings are remembered; beyond that the
//! oldest is forgotten early, which is counted. So it is beyond the share that a key group has of
//! `fleet_max`: then the readings of the oldest tick go, of all devices of the group. A device that
//! finds no place among those of its group has its readings rejected. All of it is a bound per
//! device or per key group, so what is dropped depends on the journal alone and not on the number
//! of workers.

mod bound;
mod marks;
mod room;
mod save;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64;

pub use self::marks::parted;
use crate::batch::Tick;
use crate::key::{KEY_GROUPS, key_group, stable_hashes_from};
use crate::operator::{Emit, KeyedOperator, OperatorError};
use crate::snapshot::{GroupSet, Snapshot};
use crate::spec::DedupSpec;
use crate::system::{DuplicateRow, FORGOTTEN, REPEATED, duplicates};

/// Two independent hashes of 64 bits: that two readings of one device share both by chance is less
/// likely than a broken memory.
const SEEDS: [u64; 2] = [0x7469_6465, 0x6761_7465];

/// The hash of a reading's key.
type Hash = u128;

/// What is remembered of one device.
#[derive(Clone)]
struct Device {
    name: Arc<str>,
    /// Tick time of arrival and hash, oldest first. Never empty.
    seen: VecDeque<(i64, Hash)>,
}

/// The operator.
pub struct Dedup {
    spec: DedupSpec,
    /// All hashes of all devices; the device is part of what is hashed.
    known: HashTable<Hash>,
    /// By key group, so that a checkpoint shares the groups that do not change.
    devices: Vec<Arc<HashTable<Device>>>,
    /// Key groups that changed since the last cut.
    changed: GroupSet,
    /// By key group: devices by the tick of the oldest reading that is remembered of them, or an
    /// earlier one; each device once.
    oldest: Vec<BTreeMap<i64, Vec<Arc<str>>>>,
    /// By key group: how many readings are remembered.
    sizes: Vec<u32>,
}

/// What an epoch has to say of one device.
#[derive(Default)]
struct Tally {
    time_us: i64,
    readings: i64,
    first_offset: i64,
    last_offset: i64,
}

/// Rows of `system.duplicates` to be: by device, then reason.
type Tallies<'a> = BTreeMap<(&'a str, &'static str), Tally>;

impl Dedup {
    /// Without a memory.
    pub fn new(spec: DedupSpec) -> Self {
        Self {
            spec,
            known: HashTable::new(),
            devices: vec![Arc::default(); usize::from(KEY_GROUPS)],
            changed: GroupSet::default(),
            oldest: vec![BTreeMap::new(); usize::from(KEY_GROUPS)],
            sizes: vec![0; usize::from(KEY_GROUPS)],
        }
    }

    /// Number of readings that are remembered.
    pub fn remembered(&self) -> usize {
        self.known.len()
    }

    /// Which rows stay, remembering them, and which are repetitions; none if all stay.
    fn judge(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<Option<[BooleanArray; 2]>, OperatorError> {
        let spec = self.spec.clone();
        let keys: Vec<ArrayRef> = spec.key.iter().map(|k| Arc::clone(rows.column(*k))).collect();
        let hashes = hashes(&keys, rows.num_rows());
        let devices = rows.column(spec.device).as_string::<i32>();
        let times = rows.column(spec.time).as_primitive::<TimestampMicrosecondType>();
        let offsets = rows.column(spec.offset).as_primitive::<Int64Type>();
        let mut tallies = Tallies::new();
        let (mut keep, mut repeated) = (vec![true; rows.num_rows()], vec![false; rows.num_rows()]);
        let mut refused = Vec::new();
        let closed = self.step().is_closed(&[spec.device], emit);
        for (row, hash) in hashes.into_iter().enumerate() {
            if keys.iter().any(|k| k.is_null(row)) {
                continue;
            }
            let known = self.knows(hash);
            if !known && !self.has_place(devices.value(row), closed) {
                keep[row] = false;
                refused.push(row);
                continue;
            }
            (keep[row], repeated[row]) = (!known, known);
            let reason = match known {
                true => REPEATED,
                false if self.remember(devices.value(row), hash, tick.time_us) => FORGOTTEN,
                false => continue,
            };
            let tally = tallies.entry((devices.value(row), reason)).or_default();
            if tally.readings == 0 {
                tally.time_us = times.value(row);
                tally.first_offset = offsets.value(row);
            }
            tally.readings += 1;
            tally.last_offset = offsets.value(row);
        }
        self.refuse(rows, &refused, emit)?;
        let told = tallies.iter().map(|((device, reason), tally)| DuplicateRow {
            time_us: tally.time_us,
            device,
            reason,
            readings: tally.readings,
            offsets: (tally.first_offset, tally.last_offset),
        });
        emit.late.push(duplicates(&spec.pipeline, told));
        Ok(keep.contains(&false).then(|| [keep, repeated].map(BooleanArray::from)))
    }

    fn knows(&self, hash: Hash) -> bool {
        self.known.find(table_hash(hash), |h| *h == hash).is_some()
    }

    /// Remembers a reading that is not known; whether another one had to be forgotten for it.
    fn remember(&mut self, device: &str, hash: Hash, now_us: i64) -> bool {
        self.known.insert_unique(table_hash(hash), hash, |h| table_hash(*h));
        let named = name_hash(device);
        let group = usize::from(key_group(named));
        self.changed.insert(key_group(named));
        self.sizes[group] += 1;
        let devices = Arc::make_mut(&mut self.devices[group]);
        let Some(found) = devices.find_mut(named, |d| &*d.name == device) else {
            let name: Arc<str> = device.into();
            self.oldest[group].entry(now_us).or_default().push(Arc::clone(&name));
            let new = Device { name, seen: [(now_us, hash)].into() };
            devices.insert_unique(named, new, |d| name_hash(&d.name));
            return false;
        };
        found.seen.push_back((now_us, hash));
        if found.seen.len() <= self.spec.keys_max {
            return false;
        }
        if let Some((_, oldest)) = found.seen.pop_front() {
            forget(&mut self.known, oldest);
            self.sizes[group] -= 1;
        }
        true
    }
}

/// The stable hash of a device's name as a key column.
fn name_hash(name: &str) -> u64 {
    xxh3_64(name.as_bytes())
}

fn forget(known: &mut HashTable<Hash>, hash: Hash) {
    if let Ok(entry) = known.find_entry(table_hash(hash), |h| *h == hash) {
        entry.remove();
    }
}

/// The part of a hash that places it in a table.
fn table_hash(hash: Hash) -> u64 {
    hash as u64
}

fn hashes(keys: &[ArrayRef], rows: usize) -> Vec<Hash> {
    let [mut low, mut high] = [Vec::new(), Vec::new()];
    stable_hashes_from(keys, rows, SEEDS[0], &mut low);
    stable_hashes_from(keys, rows, SEEDS[1], &mut high);
    low.into_iter().zip(high).map(|(l, h)| Hash::from(l) | Hash::from(h) << 64).collect()
}

impl KeyedOperator for Dedup {
    fn epoch(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        self.forget_old(tick.time_us);
        if rows.num_rows() > 0 {
            self.take(rows, tick, emit)?;
        }
        if !emit.more {
            self.make_room(tick, emit);
        }
        Ok(())
    }

    fn end(&mut self, _emit: &mut Emit) -> Result<(), OperatorError> {
        Ok(())
    }

    fn cut(&mut self, whole: bool) -> Snapshot {
        let changed = std::mem::take(&mut self.changed);
        self.cut_state(if whole { GroupSet::ALL } else { changed })
    }

    fn load(&mut self, state: &RecordBatch) -> Result<(), OperatorError> {
        self.load_state(state)
    }
}

impl Dedup {
    /// Emits the rows that stay, and those that came before, if somebody wants to know them.
    fn take(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        let judged = self.judge(rows, tick, emit)?;
        let rows = rows.project(&self.spec.output)?;
        let Some([keep, repeated]) = judged else {
            emit.rows.push(if self.spec.marks { marks::marked(&rows, false)? } else { rows });
            return Ok(());
        };
        let kept = filter_record_batch(&rows, &keep)?;
        if !self.spec.marks {
            emit.rows.push(kept);
            return Ok(());
        }
        emit.rows.push(marks::marked(&kept, false)?);
        emit.rows.push(marks::marked(&filter_record_batch(&rows, &repeated)?, true)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
