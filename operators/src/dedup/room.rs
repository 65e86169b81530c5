//! What is forgotten, and who finds no place: by time, by the share of a key group.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::RecordBatch;

use super::{Dedup, Device, forget, name_hash};
use crate::batch::Tick;
use crate::key::{KEY_GROUPS, key_group};
use crate::keys::KeyedStep;
use crate::operator::{Emit, OperatorError};
use crate::spec::share_of;
use crate::system::{DuplicateRow, FORGOTTEN, duplicates};

/// How the step is called in messages.
const NAME: &str = "reading.dedup";

/// Instead of offsets in the journal, where they are not known.
const UNKNOWN: i64 = -1;

impl Dedup {
    /// Whose devices these are, for rejects.
    pub(super) fn step(&self) -> KeyedStep<'_> {
        KeyedStep { pipeline: &self.spec.pipeline, name: NAME, limits: self.spec.limits }
    }

    /// Whether a device is known, or can be: while new ones are not `closed` out.
    pub(super) fn has_place(&self, device: &str, closed: bool) -> bool {
        let named = name_hash(device);
        let devices = &self.devices[usize::from(key_group(named))];
        (!closed && devices.len() < self.spec.limits.share() as usize)
            || devices.find(named, |d| &*d.name == device).is_some()
    }

    /// Rejects the rows whose devices found no place.
    pub(super) fn refuse(
        &self,
        rows: &RecordBatch,
        refused: &[usize],
        emit: &mut Emit,
    ) -> Result<(), OperatorError> {
        self.step().refuse(&[self.spec.device], rows, refused, emit)
    }

    /// Forgets what came in `horizon_us` before `now_us` or earlier.
    pub(super) fn forget_old(&mut self, now_us: i64) {
        let until_us = now_us.saturating_sub(self.spec.horizon_us);
        for group in 0..usize::from(KEY_GROUPS) {
            self.forget_until(group, until_us, |_, _| {});
        }
    }

    /// Forgets the readings of the oldest ticks where a group has more than its share.
    pub(super) fn make_room(&mut self, tick: Tick, emit: &mut Emit) {
        let share = share_of(self.spec.fleet_max);
        let mut forgotten: BTreeMap<Arc<str>, i64> = BTreeMap::new();
        for group in 0..usize::from(KEY_GROUPS) {
            while self.sizes[group] > share {
                let Some(oldest_us) = self.oldest[group].keys().next().copied() else { break };
                self.forget_until(group, oldest_us, |device, readings| {
                    *forgotten.entry(Arc::clone(device)).or_default() += readings;
                });
            }
        }
        let told = forgotten.iter().filter(|(_, readings)| **readings > 0);
        let told = told.map(|(device, readings)| DuplicateRow {
            time_us: tick.time_us,
            device,
            reason: FORGOTTEN,
            readings: *readings,
            offsets: (UNKNOWN, UNKNOWN),
        });
        emit.late.push(duplicates(&self.spec.pipeline, told));
    }

    /// Forgets what of a group came in at `until_us` or earlier; tells how much of each device.
    fn forget_until(&mut self, group: usize, until_us: i64, mut told: impl FnMut(&Arc<str>, i64)) {
        let Self { known, devices, changed, oldest, sizes, .. } = self;
        let oldest = &mut oldest[group];
        while let Some(entry) = oldest.first_entry().filter(|e| *e.key() <= until_us) {
            changed.insert(group as u16);
            let devices = Arc::make_mut(&mut devices[group]);
            for name in entry.remove() {
                let Ok(mut device) = devices.find_entry(name_hash(&name), |d| d.name == name)
                else {
                    continue;
                };
                let seen = &mut device.get_mut().seen;
                let old = seen.partition_point(|(seen_us, _)| *seen_us <= until_us);
                seen.drain(..old).for_each(|(_, hash)| forget(known, hash));
                sizes[group] -= old as u32;
                told(&name, old as i64);
                match seen.front() {
                    Some((next_us, _)) => oldest.entry(*next_us).or_default().push(name),
                    None => drop(device.remove()),
                }
            }
            if devices.len() < devices.capacity() / 4 {
                devices.shrink_to(devices.len() * 2, |d| name_hash(&d.name));
            }
        }
        if known.len() < known.capacity() / 4 {
            known.shrink_to(known.len() * 2, |hash| super::table_hash(*hash));
        }
    }

    /// Bytes held.
    pub fn size_bytes(&self) -> usize {
        // Of a table, seven of eight places can be used, each with one byte of its own.
        let table = |capacity: usize, entry: usize| capacity * 8 / 7 * (entry + 1);
        let devices = self.devices.iter().map(|devices| {
            let seen = devices
                .iter()
                .map(|d| d.seen.capacity() * size_of::<(i64, super::Hash)>() + d.name.len() + 16);
            seen.sum::<usize>() + table(devices.capacity(), size_of::<Device>())
        });
        let lists = self.oldest.iter().flat_map(BTreeMap::values);
        let lists = lists.map(|list| list.capacity() * size_of::<Arc<str>>() + 64);
        table(self.known.capacity(), size_of::<super::Hash>())
            + devices.sum::<usize>()
            + lists.sum::<usize>()
    }
}
