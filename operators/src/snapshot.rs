//! The state of an operator as of a cut, for a checkpoint.
//!
//! Invariant: a [`Snapshot`] is taken on the worker between two epochs and shares the operator's
//! memory (see [`crate::slabs`]), so taking it costs next to nothing and holds up nobody; it is
//! made into rows later, on another thread. The rows of a group are in the order of their
//! keys: the same state has the same bytes, whatever ids its
//! keys have and on however many workers it lies.

use arrow::array::RecordBatch;

use crate::key::{KEY_GROUPS, group_owner};
use crate::operator::OperatorError;

/// A set of key groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupSet([u64; KEY_GROUPS as usize / 64]);

impl GroupSet {
    /// All groups.
    pub const ALL: Self = Self([u64::MAX; KEY_GROUPS as usize / 64]);

    /// Adds a group.
    pub fn insert(&mut self, group: u16) {
        self.0[usize::from(group / 64)] |= 1 << (group % 64);
    }

    /// Whether a group is in it.
    pub fn contains(&self, group: u16) -> bool {
        self.0[usize::from(group / 64)] & (1 << (group % 64)) != 0
    }

    /// The groups that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut both = *self;
        both.0.iter_mut().zip(other.0).for_each(|(word, other)| *word &= other);
        both
    }

    /// The groups of which a worker owns the keys.
    pub fn owned(index: usize, workers: usize) -> Self {
        let mut set = Self::default();
        set.extend((0..KEY_GROUPS).filter(|group| group_owner(*group, workers) == index));
        set
    }

    /// Whether there is no group in it.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The groups in it, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..KEY_GROUPS).filter(|group| self.contains(*group))
    }
}

impl Extend<u16> for GroupSet {
    fn extend<I: IntoIterator<Item = u16>>(&mut self, groups: I) {
        groups.into_iter().for_each(|group| self.insert(group));
    }
}

/// State rows of some key groups.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedRows {
    /// The rows: by group, then key. Their first columns are the key columns.
    pub rows: RecordBatch,
    /// Each group that is covered, ascending, with its number of rows; a group whose keys are all
    /// gone has none.
    pub groups: Vec<(u16, u64)>,
}

/// What makes the rows of a snapshot.
type Make = Box<dyn FnOnce(&GroupSet) -> Result<SavedRows, OperatorError> + Send>;

/// State that was taken and not yet made into rows.
pub struct Snapshot {
    groups: GroupSet,
    make: Make,
}

impl Snapshot {
    /// A snapshot of these groups; `make` is to return exactly them.
    pub fn new(
        groups: GroupSet,
        make: impl FnOnce(&GroupSet) -> Result<SavedRows, OperatorError> + Send + 'static,
    ) -> Self {
        Self { groups, make: Box::new(make) }
    }

    /// Only what of it is in `owned`: a worker must not speak for keys that others have.
    #[must_use]
    pub fn within(mut self, owned: &GroupSet) -> Self {
        self.groups = self.groups.intersection(owned);
        self
    }

    /// The groups that it covers: those that changed, or all.
    pub fn groups(&self) -> &GroupSet {
        &self.groups
    }

    /// Makes the rows. Takes as long as it takes: not for a worker's thread.
    ///
    /// # Errors
    /// Arrow's, which are broken invariants.
    pub fn rows(self) -> Result<SavedRows, OperatorError> {
        (self.make)(&self.groups)
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("groups", &self.groups).finish_non_exhaustive()
    }
}

/// The number of rows of each covered group, given the group of every row in order.
pub(crate) fn counts(covered: &GroupSet, of_rows: impl Iterator<Item = u16>) -> Vec<(u16, u64)> {
    let mut rows = vec![0u64; usize::from(KEY_GROUPS)];
    of_rows.for_each(|group| rows[usize::from(group)] += 1);
    covered.iter().map(|group| (group, rows[usize::from(group)])).collect()
}

#[cfg(test)]
pub(crate) mod check;
