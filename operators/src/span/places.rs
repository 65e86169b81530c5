//! Where the partial aggregates of entries and panes lie, by number.
//!
//! The store moves rows when it merges chunks. Whoever owns a row knows it by a number that stays;
//! only this table, dense and apart from the keys, is told where the row lies now.

use crate::partial::{Owner, Slot};
use crate::slabs::Slabs;

/// Bytes of a row: where it lies, and, if it is free, its number in a vector that doubles.
pub(super) const PLACE_BYTES: u64 = (size_of::<Slot>() + 2 * size_of::<u32>()) as u64;

/// Nowhere yet, or no more.
const NOWHERE: Slot = Slot { chunk: u32::MAX, row: u32::MAX };

/// The rows' owners, as the store wants them.
pub(super) fn owners(places: &[u32]) -> Vec<Owner> {
    places.iter().map(|place| (*place, 0)).collect()
}

/// Where each row lies.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    slots: Slabs<Slot>,
    free: Vec<u32>,
    /// Numbers given out so far, also those that are free again.
    count: u32,
}

impl Places {
    /// A number for a row that is still to be made.
    pub(super) fn take(&mut self) -> u32 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.count += 1;
            self.count - 1
        });
        self.slots.put(place as usize, NOWHERE);
        place
    }

    /// The row lies here now.
    pub(super) fn set(&mut self, place: u32, slot: Slot) {
        self.slots[place as usize] = slot;
    }

    /// The rows lie in this chunk, in this order.
    pub(super) fn settle(&mut self, places: &[u32], chunk: u32) {
        for (place, row) in places.iter().zip(0..) {
            self.set(*place, Slot { chunk, row });
        }
    }

    /// The row is no longer needed; where it lay.
    pub(super) fn release(&mut self, place: u32) -> Slot {
        self.free.push(place);
        std::mem::replace(&mut self.slots[place as usize], NOWHERE)
    }

    /// Where a row lies.
    pub(super) fn slot(&self, place: u32) -> Slot {
        self.slots[place as usize]
    }

    /// Where the rows lie.
    pub(super) fn slots(&self, places: &[u32]) -> Vec<Slot> {
        places.iter().map(|place| self.slot(*place)).collect()
    }

    /// As it is now, for a cut: numbers are only looked up in it.
    pub(super) fn snapshot(&self) -> Self {
        Self { slots: self.slots.clone(), free: Vec::new(), count: self.count }
    }
}
