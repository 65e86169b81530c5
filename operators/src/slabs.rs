//! A vector whose copy costs nothing: per-key state as operators keep it and checkpoints take it.
//!
//! Elements lie in slabs behind reference counts. A clone shares all slabs; whoever changes an
//! element of a shared slab copies that slab first. So a checkpoint takes the state as it is at a
//! cut in time proportional to the number of slabs, and what it took never changes.

use std::ops::{Index, IndexMut};
use std::sync::Arc;

/// Elements of a slab: few enough that the copy of one is no pause anybody notices.
pub(crate) const SLAB: usize = 1 << 10;

/// A vector of state, by key id.
#[derive(Clone, Debug)]
pub struct Slabs<T> {
    slabs: Vec<Arc<Vec<T>>>,
}

impl<T> Default for Slabs<T> {
    fn default() -> Self {
        Self { slabs: Vec::new() }
    }
}

impl<T: Clone + Default> Slabs<T> {
    /// Puts an element where there was none, or one that is not needed any more.
    pub fn put(&mut self, at: usize, value: T) {
        let (number, at) = (at / SLAB, at % SLAB);
        if self.slabs.len() <= number {
            self.slabs.resize_with(number + 1, Arc::default);
        }
        let slab = Arc::make_mut(&mut self.slabs[number]);
        if slab.len() <= at {
            slab.resize_with(at + 1, T::default);
        }
        slab[at] = value;
    }

    /// Forgets what an element holds; the whole slab if no other element of it is needed
    /// (`is_last`).
    pub fn forget(&mut self, at: usize, is_last: bool) {
        if is_last {
            self.slabs[at / SLAB] = Arc::default();
        } else {
            self[at] = T::default();
        }
    }

    /// The element at `at`, if there is one.
    pub fn get(&self, at: usize) -> Option<&T> {
        self.slabs.get(at / SLAB)?.get(at % SLAB)
    }

    /// Bytes held, without what elements hold elsewhere.
    pub fn size_bytes(&self) -> usize {
        let slabs = self.slabs.iter().map(|slab| slab.capacity() * size_of::<T>() + 40);
        slabs.sum::<usize>() + self.slabs.capacity() * size_of::<usize>()
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
    use std::collections::BTreeMap;

    type Plain = BTreeMap<usize, u32>;

    proptest! {
        #[test]
        fn a_copy_keeps_what_it_took(
            steps in prop::collection::vec(
                (0usize..3000, 0u32..1000, 0u8..3, prop::bool::ANY), 1..60
            )
        ) {
            let (mut slabs, mut plain) = (Slabs::<u32>::default(), Plain::new());
            let mut taken: Vec<(Slabs<u32>, Plain)> = Vec::new();
            for (at, value, what, take) in steps {
                if what > 0 || !plain.contains_key(&at) {
                    plain.insert(at, value);
                    slabs.put(at, value);
                } else {
                    plain.remove(&at);
                    let slab = at / SLAB * SLAB;
                    slabs.forget(at, plain.range(slab..slab + SLAB).next().is_none());
                }
                if take {
                    taken.push((slabs.clone(), plain.clone()));
                }
            }
            taken.push((slabs, plain));
            for (slabs, plain) in &taken {
                for (at, value) in plain {
                    prop_assert_eq!(slabs.get(*at), Some(value));
                    prop_assert_eq!(&slabs[*at], value);
                }
                for at in (0..3000).filter(|at| !plain.contains_key(at)) {
                    prop_assert_eq!(slabs.get(at).copied().unwrap_or_default(), 0);
                }
            }
        }
    }
}
