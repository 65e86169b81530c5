//! A vector whose copy costs nothing: per-key state as operators keep it and checkpoints take it.
//!
//! Elements lie in slabs behind reference counts. A clone shares all slabs; whoever changes an
//! element of a shared slab copies that slab first. So a checkpoint takes the state as it is at a
//! cut in time proportional to the number of slabs, and what it took never changes.

use std::ops::{Index, IndexMut};
use std::sync::Arc;

/// Elements of a slab: few enough that the copy of one is no pause anybody notices.
const SLAB: usize = 1 << 10;

/// A vector of state, by key id.
#[derive(Clone, Debug)]
pub struct Slabs<T> {
    slabs: Vec<Arc<Vec<T>>>,
    len: usize,
}

impl<T> Default for Slabs<T> {
    fn default() -> Self {
        Self { slabs: Vec::new(), len: 0 }
    }
}

impl<T: Clone> Slabs<T> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Grows to `len` elements; never shrinks.
    pub fn grow(&mut self, len: usize, mut make: impl FnMut() -> T) {
        while self.len < len {
            if self.len.is_multiple_of(SLAB) {
                self.slabs.push(Arc::new(Vec::with_capacity(SLAB)));
            }
            let Some(last) = self.slabs.last_mut() else { return };
            let room = SLAB - last.len();
            let more = room.min(len - self.len);
            let slab = Arc::make_mut(last);
            slab.reserve_exact(room);
            slab.extend(std::iter::repeat_with(&mut make).take(more));
            self.len += more;
        }
    }

    /// All elements in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.slabs.iter().flat_map(|slab| slab.iter())
    }

    /// The element at `at`, if there is one.
    pub fn get(&self, at: usize) -> Option<&T> {
        self.slabs.get(at / SLAB)?.get(at % SLAB)
    }
}

impl<T> Index<usize> for Slabs<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        &self.slabs[at / SLAB][at % SLAB]
    }
}

impl<T: Clone> IndexMut<usize> for Slabs<T> {
    fn index_mut(&mut self, at: usize) -> &mut T {
        &mut Arc::make_mut(&mut self.slabs[at / SLAB])[at % SLAB]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_copy_keeps_what_it_took(
            steps in prop::collection::vec((0usize..3000, 0u32..1000, prop::bool::ANY), 1..60)
        ) {
            let (mut slabs, mut plain) = (Slabs::<u32>::default(), Vec::<u32>::new());
            let mut taken: Vec<(Slabs<u32>, Vec<u32>)> = Vec::new();
            for (at, value, take) in steps {
                if at >= plain.len() {
                    plain.resize(at + 1, 7);
                    slabs.grow(at + 1, || 7);
                }
                plain[at] = value;
                slabs[at] = value;
                if take {
                    taken.push((slabs.clone(), plain.clone()));
                }
            }
            taken.push((slabs, plain));
            for (slabs, plain) in &taken {
                prop_assert_eq!(slabs.len(), plain.len());
                prop_assert_eq!(slabs.iter().copied().collect::<Vec<_>>(), plain.clone());
                prop_assert_eq!(slabs.get(plain.len()), None);
            }
        }
    }
}
