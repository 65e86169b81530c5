//! One implementation of an aggregate for both of DataFusion's forms: many groups, and one.

use std::fmt::Debug;

use arrow::array::{Array, ArrayRef, BooleanArray};
use datafusion_common::{Result, ScalarValue};
use datafusion_expr::{Accumulator, EmitTo, GroupsAccumulator};

/// An aggregate as planned: what it does with its state, which is per group.
///
/// `save` and `finish` may put a state into its normal form, but never change what it means: they
/// can be called again.
pub(super) trait Kind: Debug + Send + Sync + 'static {
    /// What is known of a group; the default is that of no row.
    type State: Default + Debug + Send + Sync;

    /// Adds rows of the arguments `columns` to states, each row with its group.
    fn update(
        &self,
        columns: &[ArrayRef],
        rows: impl Iterator<Item = (usize, usize)>,
        states: &mut [Self::State],
    ) -> Result<()>;

    /// Adds saved states (row `i` to `groups[i]`).
    fn merge(&self, saved: &[ArrayRef], groups: &[usize], states: &mut [Self::State])
    -> Result<()>;

    /// The states as columns, equal states as equal columns.
    fn save(&self, states: &mut [Self::State]) -> Result<Vec<ArrayRef>>;

    /// The results.
    fn finish(&self, states: &mut [Self::State]) -> Result<ArrayRef>;

    /// Bytes that a state owns beside its own size.
    fn heap_bytes(state: &Self::State) -> usize;
}

/// A kind without its type.
pub(super) trait Planned {
    /// For many groups.
    fn groups(self: Box<Self>) -> Box<dyn GroupsAccumulator>;
    /// For one group.
    fn single(self: Box<Self>) -> Box<dyn Accumulator>;
}

impl<K: Kind> Planned for K {
    fn groups(self: Box<Self>) -> Box<dyn GroupsAccumulator> {
        Box::new(Groups { kind: *self, states: Vec::new() })
    }

    fn single(self: Box<Self>) -> Box<dyn Accumulator> {
        Box::new(Single { kind: *self, state: [K::State::default()] })
    }
}

struct Groups<K: Kind> {
    kind: K,
    states: Vec<K::State>,
}

impl<K: Kind> Groups<K> {
    fn grow(&mut self, total: usize) {
        if total > self.states.len() {
            self.states.resize_with(total, K::State::default);
        }
    }
}

fn passes(filter: Option<&BooleanArray>, row: usize) -> bool {
    filter.is_none_or(|f| f.is_valid(row) && f.value(row))
}

impl<K: Kind> GroupsAccumulator for Groups<K> {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.grow(total_num_groups);
        let rows = group_indices.iter().copied().enumerate();
        match opt_filter {
            None => self.kind.update(values, rows, &mut self.states),
            filter => {
                let rows = rows.filter(|(row, _)| passes(filter, *row));
                self.kind.update(values, rows, &mut self.states)
            }
        }
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        self.kind.finish(&mut emit_to.take_needed(&mut self.states))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.kind.save(&mut emit_to.take_needed(&mut self.states))
    }

    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        total_num_groups: usize,
    ) -> Result<()> {
        self.grow(total_num_groups);
        self.kind.merge(values, group_indices, &mut self.states)
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        opt_filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        let count = values.first().map_or(0, |v| v.len());
        let mut states: Vec<K::State> = Vec::new();
        states.resize_with(count, K::State::default);
        let rows = (0..count).filter(|row| passes(opt_filter, *row)).map(|row| (row, row));
        self.kind.update(values, rows, &mut states)?;
        self.kind.save(&mut states)
    }

    fn size(&self) -> usize {
        self.states.capacity() * size_of::<K::State>()
            + self.states.iter().map(K::heap_bytes).sum::<usize>()
    }
}

#[derive(Debug)]
struct Single<K: Kind> {
    kind: K,
    state: [K::State; 1],
}

impl<K: Kind> Accumulator for Single<K> {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let count = values.first().map_or(0, |v| v.len());
        self.kind.update(values, (0..count).map(|row| (row, 0)), &mut self.state)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        ScalarValue::try_from_array(&self.kind.finish(&mut self.state)?, 0)
    }

    fn size(&self) -> usize {
        size_of_val(self) + K::heap_bytes(&self.state[0])
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let columns = self.kind.save(&mut self.state)?;
        columns.iter().map(|column| ScalarValue::try_from_array(column, 0)).collect()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let count = states.first().map_or(0, |s| s.len());
        self.kind.merge(states, &vec![0; count], &mut self.state)
    }
}
