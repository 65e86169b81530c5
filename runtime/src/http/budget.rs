//! Memory for requests under way: everything that a request holds is counted, and when there is no
//! more room its client is told to come back. Nothing waits for room, so nothing can pile up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that all requests of a listener may hold.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    bytes_max: usize,
}

/// What one request holds; given back when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    budget: Arc<Budget>,
    bytes: usize,
}

/// There is no room at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRoom;

impl Budget {
    pub(crate) fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), bytes_max })
    }

    /// A request that holds nothing yet.
    pub(crate) fn hold(self: &Arc<Self>) -> Held {
        Held { budget: Arc::clone(self), bytes: 0 }
    }

    /// Bytes held now.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether a usual request would find room.
    pub(crate) fn has_room(&self) -> bool {
        self.used() < self.bytes_max
    }
}

impl Held {
    /// Takes room for more bytes.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), NoRoom> {
        let used = &self.budget.used;
        let before = used.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.budget.bytes_max {
            used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(NoRoom);
        }
        self.bytes += bytes;
        Ok(())
    }

    /// Appends to a buffer that this request holds, and counts what the buffer takes, also while
    /// it moves to a larger place. It never becomes larger than `bytes_max`, which the caller has
    /// checked.
    pub(crate) fn append(
        &mut self,
        out: &mut Vec<u8>,
        bytes: &[u8],
        bytes_max: usize,
    ) -> Result<(), NoRoom> {
        let (had, needed) = (out.capacity(), out.len() + bytes.len());
        if needed > had {
            let capacity = (2 * had).min(bytes_max).max(needed);
            self.grow(capacity)?;
            out.reserve_exact(capacity - out.len());
            self.shrink(had);
        }
        out.extend_from_slice(bytes);
        Ok(())
    }

    /// Gives room back for bytes that are dropped before the request ends.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
        self.bytes -= bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn room_comes_back_when_a_request_ends() {
        let budget = Budget::new(100);
        let (mut one, mut two) = (budget.hold(), budget.hold());
        one.grow(60).unwrap();
        assert_eq!(two.grow(41), Err(NoRoom));
        two.grow(40).unwrap();
        assert!(!budget.has_room());
        one.shrink(10);
        assert_eq!(budget.used(), 90);
        drop(one);
        assert_eq!(two.grow(usize::MAX), Err(NoRoom));
        two.grow(60).unwrap();
        drop(two);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn buffers_are_counted_with_the_room_that_they_take() {
        let budget = Budget::new(1_000_000);
        let (mut held, mut out) = (budget.hold(), Vec::new());
        for n in 1..2_000 {
            held.append(&mut out, &[7; 100], 150_000).unwrap_or_else(|_| panic!("{n}"));
            if out.len() == 150_000 {
                break;
            }
            assert_eq!(budget.used(), out.capacity());
        }
        assert_eq!((out.len(), out.capacity()), (150_000, 150_000));
        let small = Budget::new(299);
        let (mut held, mut out) = (small.hold(), Vec::new());
        held.append(&mut out, &[7; 100], 1000).unwrap();
        // Two hundred beside the hundred do not fit.
        assert_eq!(held.append(&mut out, &[7; 1], 1000), Err(NoRoom));
    }
}
