//! The state of an operator as of a cut, for a checkpoint.
//!
//! Invariant: a [`Snapshot`] is taken on the worker between two epochs and shares the operator's
//! memory (see [`crate::slabs`]), so taking it costs next to nothing and holds up nobody; it is
//! made into rows later, on another thread. The rows of a group are in the order of their
//! keys: the same state has the same bytes, whatever ids its
//! keys have and on however many workers it lies.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::Schema;

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
type Make = Box<dyn FnOnce(&GroupSet) -> Result<Vec<SavedRows>, OperatorError> + Send>;

/// Bytes of rows of state that become one batch: a column of texts has room for 2 GiB. (In the
/// tests of this crate few, so that they divide.)
const PART_BYTES: usize = if cfg!(test) { 1 << 8 } else { 256 << 20 };

/// Bytes of text of the rows of one group, which are in one batch: what a column can hold.
const GROUP_BYTES_MAX: usize = i32::MAX as usize;

/// State that was taken and not yet made into rows.
pub struct Snapshot {
    groups: GroupSet,
    make: Make,
}

impl Snapshot {
    /// A snapshot of these groups without texts that could be long; `make` is to return exactly
    /// them.
    pub fn new(
        groups: GroupSet,
        make: impl FnOnce(&GroupSet) -> Result<SavedRows, OperatorError> + Send + 'static,
    ) -> Self {
        Self::in_parts(groups, move |groups| Ok(vec![make(groups)?]))
    }

    /// A snapshot of these groups in so many parts that a column can hold its texts. Of `state`,
    /// and of groups, `sizes` are groups of keys with the bytes of text of their rows, and `make`
    /// is to return exactly these groups.
    pub(crate) fn sized<S: Send + 'static>(
        groups: GroupSet,
        state: S,
        sizes: impl FnOnce(&S, &GroupSet) -> Vec<(u16, usize)> + Send + 'static,
        make: impl Fn(&S, &GroupSet) -> Result<SavedRows, OperatorError> + Send + 'static,
    ) -> Self {
        Self::in_parts(groups, move |groups| {
            let parts = divided(groups, sizes(&state, groups).into_iter())?;
            parts.iter().map(|groups| make(&state, groups)).collect()
        })
    }

    /// The same in several parts, which together are these groups, each group in one of them.
    pub fn in_parts(
        groups: GroupSet,
        make: impl FnOnce(&GroupSet) -> Result<Vec<SavedRows>, OperatorError> + Send + 'static,
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

    /// Makes the rows, in parts of groups that are small enough for Arrow. Takes as long as it
    /// takes: not for a worker's thread.
    ///
    /// # Errors
    /// Arrow's, which are broken invariants.
    pub fn parts(self) -> Result<Vec<SavedRows>, OperatorError> {
        (self.make)(&self.groups)
    }

    /// All of it as one, where it is small: for tests.
    ///
    /// # Errors
    /// See [`Snapshot::parts`], and texts of more than 2 GiB in a column.
    pub fn rows(self) -> Result<SavedRows, OperatorError> {
        let mut parts = self.parts()?;
        if parts.len() == 1 {
            return Ok(parts.swap_remove(0));
        }
        let schema = parts.first().map_or_else(|| Arc::new(Schema::empty()), |p| p.rows.schema());
        let rows = concat_batches(&schema, parts.iter().map(|p| &p.rows))?;
        Ok(SavedRows { rows, groups: parts.into_iter().flat_map(|p| p.groups).collect() })
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("groups", &self.groups).finish_non_exhaustive()
    }
}

/// Cuts groups into sets of at most [`PART_BYTES`] of state, or one group; `of_keys` are the groups
/// of keys and their bytes. At least one set.
///
/// # Errors
/// One group has more than a column of texts can hold.
pub(crate) fn divided(
    groups: &GroupSet,
    of_keys: impl Iterator<Item = (u16, usize)>,
) -> Result<Vec<GroupSet>, OperatorError> {
    let mut of_groups = vec![0usize; usize::from(KEY_GROUPS)];
    of_keys.for_each(|(group, bytes)| of_groups[usize::from(group)] += bytes);
    let (mut sets, mut set, mut bytes) = (Vec::new(), GroupSet::default(), 0);
    for group in groups.iter() {
        let own = of_groups[usize::from(group)];
        if own > GROUP_BYTES_MAX {
            return Err(OperatorError::StateTooLarge(own as u64));
        }
        if bytes > 0 && bytes + own > PART_BYTES {
            sets.push(std::mem::take(&mut set));
            bytes = 0;
        }
        set.insert(group);
        bytes += own;
    }
    sets.push(set);
    Ok(sets)
}

/// The number of rows of each covered group, given the group of every row in order.
pub(crate) fn counts(covered: &GroupSet, of_rows: impl Iterator<Item = u16>) -> Vec<(u16, u64)> {
    let mut rows = vec![0u64; usize::from(KEY_GROUPS)];
    of_rows.for_each(|group| rows[usize::from(group)] += 1);
    covered.iter().map(|group| (group, rows[usize::from(group)])).collect()
}

#[cfg(test)]
pub(crate) mod check;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_divided_by_their_bytes() {
        let mut groups = GroupSet::default();
        groups.extend([1, 5, 9, 10, 200]);
        let sizes = [(1, PART_BYTES / 2), (5, PART_BYTES / 2), (9, 1), (10, 3 * PART_BYTES)];
        let sets = divided(&groups, sizes.into_iter()).expect("no group is too large");
        let sets: Vec<Vec<u16>> = sets.iter().map(|set| set.iter().collect()).collect();
        assert_eq!(sets, [vec![1, 5], vec![9], vec![10], vec![200]]);
        let none = divided(&GroupSet::default(), [].into_iter()).expect("there is none");
        assert_eq!(none, [GroupSet::default()]);
        let too_large = divided(&groups, [(5, GROUP_BYTES_MAX), (5, 1)].into_iter());
        let error = too_large.expect_err("no column can hold it").to_string();
        assert!(error.contains("has 2147483648 bytes of text"), "{error}");
    }
}
