//! The encoded bytes of keys by id, in segments that are shared with snapshots: a segment is copied
//! before it changes if a snapshot has it.
//!
//! The lowest free id is given first, so that the keys of a fleet that became smaller lie together,
//! and a segment whose keys are all forgotten is given back.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::slabs::SLAB;

/// Words of the set of ids in use.
const WORDS: usize = SLAB / 64;

/// Bytes of a key of so many bytes: those are in a vector that doubles.
pub(super) fn name_bytes(len: u64) -> u64 {
    const OTHERS: usize = size_of::<(u32, u32)>() + size_of::<u8>() + 1;
    len.saturating_mul(2).saturating_add(OTHERS as u64)
}

/// Bytes of forgotten keys that a segment keeps before it is packed.
const DEAD_BYTES_MIN: usize = 4096;

#[derive(Clone, Debug, Default)]
struct Segment {
    arena: Vec<u8>,
    /// Start and length in the arena.
    places: Vec<(u32, u32)>,
    /// Key groups, below 256.
    groups: Vec<u8>,
    used: [u64; WORDS],
    live: usize,
    /// Bytes of the arena that belong to forgotten keys.
    dead_bytes: usize,
}

impl Segment {
    fn is_used(&self, at: usize) -> bool {
        self.used[at / 64] & (1 << (at % 64)) != 0
    }

    fn bytes(&self, at: usize) -> &[u8] {
        let (start, len) = self.places[at];
        &self.arena[start as usize..][..len as usize]
    }

    fn lowest_free(&self) -> usize {
        let full = self.used.iter().take_while(|word| **word == u64::MAX).count();
        full * 64 + self.used[full].trailing_ones() as usize
    }

    fn put(&mut self, bytes: &[u8], group: u16) -> usize {
        let at = self.lowest_free();
        if self.dead_bytes > 0 && self.arena.len() + bytes.len() > self.arena.capacity() {
            self.pack();
        }
        let place = (self.arena.len() as u32, bytes.len() as u32);
        self.arena.extend_from_slice(bytes);
        if at == self.places.len() {
            self.places.push(place);
            self.groups.push(group as u8);
        } else {
            self.places[at] = place;
            self.groups[at] = group as u8;
        }
        self.used[at / 64] |= 1 << (at % 64);
        self.live += 1;
        at
    }

    fn remove(&mut self, at: usize) {
        self.used[at / 64] &= !(1 << (at % 64));
        self.live -= 1;
        self.dead_bytes += self.places[at].1 as usize;
        if self.dead_bytes > DEAD_BYTES_MIN.max(self.arena.len() / 2) {
            self.pack();
        }
    }

    /// Gives back the bytes of forgotten keys.
    fn pack(&mut self) {
        let mut arena = Vec::with_capacity(self.arena.len() - self.dead_bytes);
        for at in 0..self.places.len() {
            if !self.is_used(at) {
                continue;
            }
            let start = arena.len() as u32;
            arena.extend_from_slice(self.bytes(at));
            self.places[at].0 = start;
        }
        self.arena = arena;
        self.dead_bytes = 0;
    }

    fn size_bytes(&self) -> usize {
        size_of::<Self>()
            + self.arena.capacity()
            + self.places.capacity() * 8
            + self.groups.capacity()
    }
}

/// The segments of an interner or of a snapshot.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    segments: Vec<Arc<Segment>>,
}

impl Names {
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        self.segments[id as usize / SLAB].bytes(id as usize % SLAB)
    }

    pub(super) fn group(&self, id: u32) -> u16 {
        self.segments[id as usize / SLAB].groups[id as usize % SLAB].into()
    }

    /// The ids in use, ascending.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.segments.iter().enumerate().flat_map(|(number, segment)| {
            let used = (0..segment.places.len()).filter(|at| segment.is_used(*at));
            used.map(move |at| (number * SLAB + at) as u32)
        })
    }

    pub(super) fn size_bytes(&self) -> usize {
        let segments: usize = self.segments.iter().map(|segment| segment.size_bytes()).sum();
        segments + self.segments.capacity() * size_of::<usize>()
    }
}

/// Names that can change, and where there is room.
#[derive(Debug, Default)]
pub(super) struct NameStore {
    pub(super) names: Names,
    /// Segments that have a free id.
    room: BTreeSet<u32>,
    pub(super) len: usize,
}

impl NameStore {
    pub(super) fn put(&mut self, bytes: &[u8], group: u16) -> u32 {
        let segments = &mut self.names.segments;
        let number = self.room.first().copied().unwrap_or(segments.len() as u32);
        if number as usize == segments.len() {
            segments.push(Arc::default());
            self.room.insert(number);
        }
        let segment = Arc::make_mut(&mut segments[number as usize]);
        let at = segment.put(bytes, group);
        if segment.live == SLAB {
            self.room.remove(&number);
        }
        self.len += 1;
        number * SLAB as u32 + at as u32
    }

    /// Gives an id back; whether its segment has no key any more.
    pub(super) fn remove(&mut self, id: u32) -> bool {
        let number = id as usize / SLAB;
        let shared = &mut self.names.segments[number];
        self.room.insert(number as u32);
        self.len -= 1;
        if shared.live == 1 {
            *shared = Arc::default();
            return true;
        }
        Arc::make_mut(shared).remove(id as usize % SLAB);
        false
    }
}
