//! The state of an operator as of a cut, for a checkpoint.
//!
//! Invariant: a [`Snapshot`] is taken on the worker between two epochs and shares the operator's
//! memory (see [`crate::slabs`]), so taking it costs next to nothing and holds up nobody; it is
//! made into rows later, on another thread, in pieces of a few groups, so that neither memory nor
//! the caches that the workers need are filled with all of a large state. The rows of a group are
//! in the order of their keys: the same state has the same bytes, whatever ids its keys have and on
//! however many workers it lies.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
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

impl SavedRows {
    /// Bytes of the rows, without what their buffers have besides.
    pub fn bytes(&self) -> usize {
        let bytes = |column: &ArrayRef| {
            let own = column.to_data().get_slice_memory_size();
            own.unwrap_or_else(|_| column.get_array_memory_size())
        };
        self.rows.columns().iter().map(bytes).sum()
    }
}

/// The pieces of a state, each made when it is asked for: together all groups, each of them in one.
pub type Pieces = Box<dyn Iterator<Item = Result<SavedRows, OperatorError>> + Send>;

/// What makes the rows of a snapshot.
type Make = Box<dyn FnOnce(&GroupSet) -> Result<Pieces, OperatorError> + Send>;

/// Bytes of rows of state that are made together. (In the tests of this crate few, so that they
/// divide.)
const PIECE_BYTES: usize = if cfg!(test) { 1 << 8 } else { 1 << 20 };

/// What a row counts besides its texts.
const ROW_BYTES: usize = if cfg!(test) { 0 } else { 128 };

/// Bytes of pieces that become one part: a column of texts has room for 2 GiB.
const PART_BYTES: usize = if cfg!(test) { 1 << 12 } else { 256 << 20 };

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
        Self::in_pieces(groups, move |groups| Ok(Box::new(std::iter::once(Ok(make(groups)?)))))
    }

    /// A snapshot of these groups in so many pieces that a column can hold its texts. Of `state`,
    /// and of groups, `sizes` are groups of keys with the bytes of text of their rows, and `make`
    /// is to return exactly these groups.
    pub(crate) fn sized<S: Send + 'static>(
        groups: GroupSet,
        state: S,
        sizes: impl FnOnce(&S, &GroupSet) -> Vec<(u16, usize)> + Send + 'static,
        make: impl Fn(&S, &GroupSet) -> Result<SavedRows, OperatorError> + Send + 'static,
    ) -> Self {
        Self::in_pieces(groups, move |groups| {
            let sets = divided(groups, sizes(&state, groups).into_iter())?;
            Ok(Box::new(sets.into_iter().map(move |groups| make(&state, &groups))))
        })
    }

    /// The same in several pieces, which together are these groups, each group in one of them.
    pub fn in_pieces(
        groups: GroupSet,
        make: impl FnOnce(&GroupSet) -> Result<Pieces, OperatorError> + Send + 'static,
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

    /// Makes the rows, piece by piece. Takes as long as it takes: not for a worker's thread.
    ///
    /// # Errors
    /// Arrow's, which are broken invariants, and a group with more text than a column can hold.
    pub fn pieces(self) -> Result<Pieces, OperatorError> {
        (self.make)(&self.groups)
    }

    /// Makes all rows, in parts that are small enough for Arrow.
    ///
    /// # Errors
    /// See [`Snapshot::pieces`].
    pub fn parts(self) -> Result<Vec<SavedRows>, OperatorError> {
        let (mut parts, mut together, mut bytes) = (Vec::new(), Vec::new(), 0);
        for piece in self.pieces()? {
            let piece = piece?;
            let own = piece.bytes();
            if bytes > 0 && bytes + own > PART_BYTES {
                parts.push(joined(&std::mem::take(&mut together))?);
                bytes = 0;
            }
            bytes += own;
            together.push(piece);
        }
        if !together.is_empty() {
            parts.push(joined(&together)?);
        }
        Ok(parts)
    }

    /// All of it as one, where it is small: for tests.
    ///
    /// # Errors
    /// See [`Snapshot::pieces`], and texts of more than 2 GiB in a column.
    pub fn rows(self) -> Result<SavedRows, OperatorError> {
        let pieces: Vec<SavedRows> = self.pieces()?.collect::<Result<_, _>>()?;
        joined(&pieces)
    }
}

/// Pieces that follow each other as one.
fn joined(pieces: &[SavedRows]) -> Result<SavedRows, OperatorError> {
    if let [piece] = pieces {
        return Ok(piece.clone());
    }
    let schema = pieces.first().map_or_else(|| Arc::new(Schema::empty()), |p| p.rows.schema());
    let rows = concat_batches(&schema, pieces.iter().map(|piece| &piece.rows))?;
    Ok(SavedRows { rows, groups: pieces.iter().flat_map(|p| &p.groups).copied().collect() })
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("groups", &self.groups).finish_non_exhaustive()
    }
}

/// Cuts groups into sets of at most [`PIECE_BYTES`] of state, or one group; `of_keys` are the
/// groups of keys and the bytes of their texts. At least one set.
///
/// # Errors
/// One group has more than a column of texts can hold.
pub(crate) fn divided(
    groups: &GroupSet,
    of_keys: impl Iterator<Item = (u16, usize)>,
) -> Result<Vec<GroupSet>, OperatorError> {
    let mut of_groups = vec![(0usize, 0usize); usize::from(KEY_GROUPS)];
    of_keys.for_each(|(group, bytes)| {
        let of_group = &mut of_groups[usize::from(group)];
        *of_group = (of_group.0 + bytes, of_group.1 + 1);
    });
    let (mut sets, mut set, mut bytes) = (Vec::new(), GroupSet::default(), 0);
    for group in groups.iter() {
        let (text, rows) = of_groups[usize::from(group)];
        if text > GROUP_BYTES_MAX {
            return Err(OperatorError::StateTooLarge(text as u64));
        }
        let own = text + rows * ROW_BYTES;
        if bytes > 0 && bytes + own > PIECE_BYTES {
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
        let sizes = [(1, PIECE_BYTES / 2), (5, PIECE_BYTES / 2), (9, 1), (10, 3 * PIECE_BYTES)];
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
