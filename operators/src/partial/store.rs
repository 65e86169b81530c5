//! Where partial aggregates lie: in chunks of Arrow arrays.
//!
//! A chunk holds the accumulator states of many pieces (panes of a grid, parts of a span), one row
//! each, and is never changed: a piece that grows gets a new row in a newer chunk and its old row
//! dies. Chunks are merged by size so
//! that their number stays small; merging copies rows and never does arithmetic, so when it
//! happens cannot be seen in any result.

use arrow::array::{Array, ArrayRef, UInt32Array};
use arrow::compute::{concat, interleave, take};
use arrow::error::ArrowError;

use super::weight;
use crate::text;

/// Chunks of one size class that are merged into one of the next.
const MERGE_WIDTH: usize = 8;

/// Dead rows that there may be in addition to half as many as live, before all chunks are merged.
const DEAD_ROWS_MIN: usize = 1 << 10;
/// The same of bytes of lists and texts: rows that are dead can be far larger than those that live.
const DEAD_BYTES_MIN: u64 = 1 << 16;

/// Bytes of so many pieces with so many bytes of partial state: there is half as much garbage.
pub(crate) fn store_bytes(pieces: u64, partial_bytes: u64) -> u64 {
    let owners = pieces.saturating_mul(size_of::<Owner>() as u64);
    (owners.saturating_add(partial_bytes) / 2).saturating_mul(3)
}

/// Where the state of a piece lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) chunk: u32,
    pub(crate) row: u32,
}

/// Who owns a row, as its owner likes to say it: key id and number of the piece, for example.
pub(crate) type Owner = (u32, i64);

struct Chunk {
    columns: Vec<ArrayRef>,
    owners: Vec<Owner>,
    live: usize,
    /// Bytes of lists and texts, and of those in rows that live.
    bytes: u64,
    live_bytes: u64,
    level: u8,
}

impl Chunk {
    fn new(mut columns: Vec<ArrayRef>, owners: Vec<Owner>, level: u8) -> Self {
        let bytes = weight::of_rows(&columns, 0..owners.len());
        if bytes > 0 {
            // Lists get room for as many items as there were of rows that are not there any more.
            columns.iter_mut().for_each(|column| column.shrink_to_fit());
        }
        Self { live: owners.len(), columns, owners, bytes, live_bytes: bytes, level }
    }

    fn is_half_garbage(&self) -> bool {
        self.bytes > self.live_bytes + self.live_bytes / 2
    }
}

/// All chunks of one operator.
#[derive(Default)]
pub(crate) struct Store {
    chunks: Vec<Option<Chunk>>,
    free: Vec<u32>,
}

impl Store {
    /// Adds a chunk whose row `i` belongs to `owners[i]`; returns its number.
    pub(crate) fn add(&mut self, columns: Vec<ArrayRef>, owners: Vec<Owner>) -> u32 {
        self.put(Chunk::new(columns, owners, 0))
    }

    /// The same for the rows of a checkpoint: many, so they are not to be merged with the small
    /// chunks of epochs again and again.
    pub(crate) fn add_large(&mut self, columns: Vec<ArrayRef>, owners: Vec<Owner>) -> u32 {
        let level = level_of(owners.len());
        self.put(Chunk::new(columns, owners, level))
    }

    /// What [`Store::gather`] needs, as it is now: shares all columns and copies no row.
    pub(crate) fn snapshot(&self) -> Self {
        let columns_only =
            |chunk: &Chunk| Chunk { columns: chunk.columns.clone(), owners: Vec::new(), ..*chunk };
        let chunks = self.chunks.iter().map(|chunk| chunk.as_ref().map(columns_only));
        Self { chunks: chunks.collect(), free: Vec::new() }
    }

    /// The bytes of text of a row.
    pub(crate) fn texts(&self) -> impl Fn(Slot) -> u64 {
        let texts = |chunk: &Chunk| {
            let mut bytes = vec![0; chunk.columns.first().map_or(0, |column| column.len())];
            chunk.columns.iter().for_each(|column| text::add(column, &mut bytes));
            bytes
        };
        let of_chunk = |chunk: &Option<Chunk>| chunk.as_ref().map(texts).unwrap_or_default();
        let holds_text = |column: &ArrayRef| text::holds_text(column.data_type());
        let of_rows: Vec<Vec<u64>> =
            match self.chunks.iter().flatten().flat_map(|chunk| &chunk.columns).any(holds_text) {
                true => self.chunks.iter().map(of_chunk).collect(),
                false => Vec::new(),
            };
        move |slot| of_rows.get(slot.chunk as usize).map_or(0, |rows| rows[slot.row as usize])
    }

    /// Bytes held.
    pub(crate) fn size_bytes(&self) -> usize {
        let chunks = self.chunks.iter().flatten().map(|chunk| {
            let columns = chunk.columns.iter().map(|c| c.get_array_memory_size());
            columns.sum::<usize>() + chunk.owners.capacity() * size_of::<Owner>()
        });
        chunks.sum::<usize>() + self.chunks.capacity() * size_of::<Option<Chunk>>()
    }

    fn put(&mut self, chunk: Chunk) -> u32 {
        match self.free.pop() {
            Some(number) => {
                self.chunks[number as usize] = Some(chunk);
                number
            }
            None => {
                self.chunks.push(Some(chunk));
                self.chunks.len() as u32 - 1
            }
        }
    }

    fn chunk(&self, number: u32) -> &Chunk {
        self.chunks[number as usize].as_ref().expect("a slot names a chunk that lives")
    }

    /// A row is no longer needed.
    pub(crate) fn release(&mut self, slot: Slot) {
        let chunk = self.chunks[slot.chunk as usize].as_mut().expect("a slot names a live chunk");
        chunk.live -= 1;
        if chunk.bytes > 0 {
            let row = slot.row as usize;
            chunk.live_bytes -= weight::of_rows(&chunk.columns, row..row + 1);
        }
        if chunk.live == 0 {
            self.chunks[slot.chunk as usize] = None;
            self.free.push(slot.chunk);
        }
    }

    /// The state columns of the given slots, in their order.
    pub(crate) fn gather(&self, slots: &[Slot]) -> Result<Vec<ArrayRef>, ArrowError> {
        let Some(first) = slots.first() else { return Ok(Vec::new()) };
        if slots.iter().all(|s| s.chunk == first.chunk) {
            let rows = UInt32Array::from_iter_values(slots.iter().map(|s| s.row));
            let chunk = self.chunk(first.chunk);
            return chunk.columns.iter().map(|c| take(c, &rows, None)).collect();
        }
        let mut local = vec![u32::MAX; self.chunks.len()];
        let mut used = Vec::new();
        let mut indices = Vec::with_capacity(slots.len());
        for slot in slots {
            let position = &mut local[slot.chunk as usize];
            if *position == u32::MAX {
                *position = used.len() as u32;
                used.push(slot.chunk);
            }
            indices.push((*position as usize, slot.row as usize));
        }
        (0..self.chunk(first.chunk).columns.len())
            .map(|c| {
                let arrays: Vec<&dyn Array> =
                    used.iter().map(|n| self.chunk(*n).columns[c].as_ref()).collect();
                interleave(&arrays, &indices)
            })
            .collect()
    }

    /// Merges chunks of one size class where there are many, and all of them where a third of the
    /// rows are dead. `is_live` tells whether the row at a slot is still its owner's; `moved` is
    /// told the old and the new slot of each row that moves.
    pub(crate) fn compact(
        &mut self,
        is_live: impl Fn(Owner, Slot) -> bool,
        mut moved: impl FnMut(Owner, Slot, Slot),
    ) -> Result<(), ArrowError> {
        let mut level = 0;
        loop {
            let numbers = self.numbers(|chunk| chunk.level == level);
            if numbers.len() < MERGE_WIDTH {
                break;
            }
            level += 1;
            self.merge(&numbers, level, &is_live, &mut moved)?;
        }
        let chunks = || self.chunks.iter().flatten();
        let (rows, live) = (
            chunks().map(|chunk| chunk.owners.len()).sum::<usize>(),
            chunks().map(|chunk| chunk.live).sum::<usize>(),
        );
        if rows > live + live / 2 + DEAD_ROWS_MIN {
            self.merge(&self.numbers(|_| true), level_of(live), &is_live, &mut moved)?;
        }
        let chunks = || self.chunks.iter().flatten();
        let (bytes, live_bytes) = (
            chunks().map(|chunk| chunk.bytes).sum::<u64>(),
            chunks().map(|chunk| chunk.live_bytes).sum::<u64>(),
        );
        if bytes > live_bytes + live_bytes / 2 + DEAD_BYTES_MIN {
            // Each by itself: what is dead and large was made lately, and is in few of them.
            for number in self.numbers(Chunk::is_half_garbage) {
                let level = self.chunk(number).level;
                self.merge(&[number], level, &is_live, &mut moved)?;
            }
        }
        Ok(())
    }

    fn numbers(&self, which: impl Fn(&Chunk) -> bool) -> Vec<u32> {
        let numbers = 0..self.chunks.len() as u32;
        numbers.filter(|n| self.chunks[*n as usize].as_ref().is_some_and(&which)).collect()
    }

    fn merge(
        &mut self,
        numbers: &[u32],
        level: u8,
        is_live: impl Fn(Owner, Slot) -> bool,
        mut moved: impl FnMut(Owner, Slot, Slot),
    ) -> Result<(), ArrowError> {
        let mut parts: Vec<Vec<ArrayRef>> = Vec::new();
        let mut owners = Vec::new();
        let mut old = Vec::new();
        for number in numbers {
            let chunk = self.chunk(*number);
            let mut rows = Vec::with_capacity(chunk.live);
            for (row, owner) in chunk.owners.iter().enumerate() {
                let slot = Slot { chunk: *number, row: row as u32 };
                if is_live(*owner, slot) {
                    rows.push(slot.row);
                    owners.push(*owner);
                    old.push(slot);
                }
            }
            let rows = UInt32Array::from(rows);
            let part: Result<_, _> = chunk.columns.iter().map(|c| take(c, &rows, None)).collect();
            parts.push(part?);
        }
        let columns: Result<Vec<ArrayRef>, ArrowError> = (0..parts[0].len())
            .map(|c| {
                let arrays: Vec<&dyn Array> = parts.iter().map(|p| p[c].as_ref()).collect();
                concat(&arrays)
            })
            .collect();
        drop(parts);
        for number in numbers {
            self.chunks[*number as usize] = None;
        }
        owners.shrink_to_fit();
        let merged = Chunk::new(columns?, owners, level);
        let owners = merged.owners.clone();
        if !owners.is_empty() {
            let chunk = self.put(merged);
            for (row, (owner, old)) in owners.into_iter().zip(old).enumerate() {
                moved(owner, old, Slot { chunk, row: row as u32 });
            }
        }
        // Only now, or the new slot of one row could be the old one of another.
        self.free.extend(numbers);
        Ok(())
    }
}

/// The size class of a chunk of so many rows.
fn level_of(rows: usize) -> u8 {
    (rows.max(1).ilog2() / MERGE_WIDTH.ilog2()) as u8
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use arrow::array::{AsArray, ListArray};
    use arrow::datatypes::Int64Type;

    use super::*;

    /// Pieces with lists of so many numbers each.
    fn lists(counts: &[usize]) -> Vec<ArrayRef> {
        let lists = counts.iter().map(|count| Some((0..*count as i64).map(Some)));
        vec![Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists))]
    }

    #[test]
    fn a_large_piece_that_is_made_anew_leaves_little_garbage_beside_small_ones_that_stay() {
        const LARGE: usize = 40_000;
        let mut store = Store::default();
        // The large piece is the first one.
        let mut slots: Vec<Slot> = Vec::new();
        for round in 0..100 {
            slots.first().into_iter().for_each(|slot| store.release(*slot));
            let chunk = store.add(lists(&[LARGE + round, 1]), vec![(0, 0), (round as u32 + 1, 0)]);
            slots.resize(round + 2, Slot { chunk, row: 1 });
            slots[0] = Slot { chunk, row: 0 };
            let all = std::cell::RefCell::new(&mut slots);
            store
                .compact(
                    |(number, _), slot| all.borrow()[number as usize] == slot,
                    |(number, _), _, new| all.borrow_mut()[number as usize] = new,
                )
                .unwrap();
            // Half as much garbage as there is state, and what chunks are beside that.
            let (bytes, live) = (store.size_bytes(), 8 * (LARGE + 2 * round));
            assert!(bytes < live + live / 2 + 100_000, "{bytes} of {live}");
        }
        let numbers = store.gather(&slots).unwrap();
        let lengths = numbers[0].as_list::<i32>().offsets().lengths();
        assert_eq!(lengths.sum::<usize>(), LARGE + 99 + 100);
    }
}
