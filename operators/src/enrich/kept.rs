//! The rows of a key that can be revised.
//!
//! They are let go by their ends: what ended so long before the newest end is not revised any more.
//! Of what was let go, or withdrawn, stays how often it had come again because of the registry: if
//! it comes once more, its revision is still greater than any that was told.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Said;

/// A row that can be revised.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kept {
    /// As of when the registry is asked, microseconds.
    pub(super) time_us: i64,
    /// The row as it came, as bytes.
    pub(super) row: Arc<[u8]>,
    /// What it was joined with when it was emitted last.
    pub(super) said: Said,
    /// How often it was emitted again because of the registry: what comes from upstream is so much
    /// higher in its revisions.
    pub(super) again: i64,
}

/// Which row: when it ends, and what identifies it as bytes.
pub(super) type RowKey = (i64, Arc<[u8]>);

/// What is left of rows that are not kept any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gone {
    /// The greatest `time_us` of one that had come again.
    pub(super) time_us: i64,
    /// How often one of them had come again, at most.
    pub(super) again: i64,
}

/// Rows of one key.
#[derive(Clone, Debug, Default)]
pub(super) struct KeptRows {
    rows: BTreeMap<RowKey, Kept>,
    /// The end under which a row is kept, where ends move.
    ends: BTreeMap<Arc<[u8]>, i64>,
    /// The greatest end of a row since there was none.
    pub(super) clock_us: i64,
    /// Tick time of the last row that was kept.
    pub(super) touched_us: i64,
    pub(super) gone: Option<Gone>,
}

impl KeptRows {
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&RowKey, &Kept)> {
        self.rows.iter()
    }

    /// The rows, to be joined with something else.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Kept> {
        self.rows.values_mut()
    }

    /// Takes a row in place of the one that it revises, and says how often that had come again
    /// because of the registry. `moves`: its end can be another now. One that was `withdrawn` is
    /// not kept.
    pub(super) fn take(&mut self, key: RowKey, row: Kept, moves: bool, withdrawn: bool) -> i64 {
        let is_first = self.rows.is_empty();
        let known = self.known(&key, moves);
        // Its time can only have become less: readings come between others, and none goes.
        let gone = || self.gone.filter(|gone| row.time_us <= gone.time_us);
        let again = match &known {
            Some(known) => known.again,
            None => gone().map_or(0, |gone| gone.again),
        };
        if withdrawn {
            self.note_gone(known.map_or(row.time_us, |known| known.time_us), again);
            return again;
        }
        self.clock_us = if is_first { key.0 } else { self.clock_us.max(key.0) };
        self.put(key, Kept { again, ..row }, moves);
        again
    }

    /// Takes out the row that has the same name.
    fn known(&mut self, key: &RowKey, moves: bool) -> Option<Kept> {
        match moves {
            false => self.rows.remove(key),
            true => {
                let end_us = self.ends.remove(&key.1)?;
                self.rows.remove(&(end_us, Arc::clone(&key.1)))
            }
        }
    }

    /// Keeps a row.
    pub(super) fn put(&mut self, key: RowKey, row: Kept, moves: bool) {
        if moves {
            self.ends.insert(Arc::clone(&key.1), key.0);
        }
        self.rows.insert(key, row);
    }

    /// Lets go of what ended earlier.
    pub(super) fn let_go(&mut self, from_us: i64) {
        while let Some(first) = self.rows.first_entry().filter(|e| e.key().0 < from_us) {
            let ((_, id), kept) = first.remove_entry();
            self.ends.remove(&id);
            self.note_gone(kept.time_us, kept.again);
        }
    }

    /// A row that came again so often is not kept any more.
    fn note_gone(&mut self, time_us: i64, again: i64) {
        if again > 0 {
            let gone = self.gone.get_or_insert(Gone { time_us, again });
            gone.time_us = gone.time_us.max(time_us);
            gone.again = gone.again.max(again);
        }
    }
}
