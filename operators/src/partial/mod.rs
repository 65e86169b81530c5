//! What windows of every shape have in common: their aggregates, kept in parts.
//!
//! [`Aggregation`] makes partial states from readings, merges them, and makes the columns of a
//! window from them; [`store`] keeps them. Partial states are Arrow arrays in the form in which
//! DataFusion's accumulators hand them out, so every aggregate that DataFusion has can be
//! checkpointed and merged. No accumulator keeps anything from one call to the next.

mod store;
mod weight;

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::datatypes::{Field, SchemaRef};
use datafusion_expr::{EmitTo, GroupsAccumulator};
use datafusion_physical_expr::aggregate::AggregateFunctionExpr;

use crate::aggregate::{aggregate_inputs, create_groups_accumulator, elements_max};
use crate::expression::{evaluate, expression_failed};
use crate::operator::{Emit, OperatorError};
use crate::spec::{Expr, WindowSpec};
use crate::system::step_rejects;
pub(crate) use store::{Owner, Slot, Store, store_bytes};

/// Partial states that windows are put together from at once, one window at least: the states of
/// windows that overlap are as many times there as they are shared, and all due windows of a fleet
/// may be more than fits into memory.
pub(crate) const GATHERED_MAX: usize = if cfg!(test) { 64 } else { 1 << 18 };

/// Elements of lists that are made at once, one window at least: a column of lists counts them
/// with 31 bits.
const ELEMENTS_MAX: u64 = if cfg!(test) { 1 << 10 } else { 1 << 22 };

/// The aggregates of one window step.
pub(crate) struct Aggregation {
    pipeline: String,
    step: String,
    aggregates: Vec<Arc<AggregateFunctionExpr>>,
    filters: Vec<Option<Expr>>,
    select: Vec<(String, Expr)>,
    /// What `select` sees, see [`WindowSpec::aggregated_schema`].
    aggregated: SchemaRef,
    accumulators: Vec<Box<dyn GroupsAccumulator>>,
    /// Number of state columns of each accumulator.
    widths: Vec<usize>,
    /// Windows whose values are made at once, at most.
    windows_max: usize,
}

/// How many windows of a step have no more than [`ELEMENTS_MAX`] elements in a column.
fn windows_max(spec: &WindowSpec) -> usize {
    let longest_us = spec.shape.longest_us();
    let elements = spec.aggregates.iter().map(|a| elements_max(a, longest_us)).max().unwrap_or(1);
    usize::try_from(ELEMENTS_MAX / elements.max(1)).unwrap_or(usize::MAX).max(1)
}

impl Aggregation {
    /// The aggregates of a step.
    ///
    /// # Errors
    /// A function cannot be computed over the types it was planned for; planning rules that out.
    pub(crate) fn new(spec: &WindowSpec) -> Result<Self, OperatorError> {
        let accumulators: Result<Vec<_>, _> =
            spec.aggregates.iter().map(|a| create_groups_accumulator(a)).collect();
        let widths: Result<Vec<_>, _> =
            spec.aggregates.iter().map(|a| a.state_fields().map(|f| f.len())).collect();
        Ok(Self {
            pipeline: spec.pipeline.clone(),
            step: spec.name.clone(),
            aggregates: spec.aggregates.clone(),
            filters: spec.filters.clone(),
            select: spec.select.clone(),
            aggregated: spec.aggregated_schema(),
            accumulators: accumulators?,
            widths: widths?,
            windows_max: windows_max(spec),
        })
    }

    /// Windows whose values may be asked for at once: one at least.
    pub(crate) fn windows_max(&self) -> usize {
        self.windows_max
    }

    /// The columns of a partial state, for saving.
    pub(crate) fn state_fields(&self) -> Result<Vec<Field>, OperatorError> {
        let mut fields = Vec::new();
        for aggregate in &self.aggregates {
            for field in aggregate.state_fields()? {
                let name = format!("state{}", fields.len());
                fields.push(Field::new(name, field.data_type().clone(), true));
            }
        }
        Ok(fields)
    }

    /// Partial states of `total` groups: `earlier` (states, and how many: those of the first
    /// groups), then the readings `rows`, each in the group that `of_row` names. What cannot be
    /// computed of a reading is null, and a reject.
    ///
    /// DataFusion's accumulators take it that each group that they are told of has had a row: where
    /// no state and no value is null, all groups count as having a value. So the states are merged
    /// into as many groups as there are of them, and every further group must have a row.
    pub(crate) fn update(
        &mut self,
        earlier: (&[ArrayRef], usize),
        rows: &RecordBatch,
        of_row: &[usize],
        total: usize,
        emit: &mut Emit,
    ) -> Result<Vec<ArrayRef>, OperatorError> {
        let (state, known) = earlier;
        let groups: Vec<usize> = (0..known).collect();
        let mut failed = Vec::new();
        let mut columns = Vec::with_capacity(self.widths.iter().sum());
        let mut from = 0;
        for (i, accumulator) in self.accumulators.iter_mut().enumerate() {
            let to = from + self.widths[i];
            if known > 0 {
                accumulator.merge_batch(&state[from..to], &groups, known)?;
            }
            from = to;
            let mut computed = |e: &Expr| -> Result<ArrayRef, OperatorError> {
                let (values, errors) = evaluate(e, rows)?;
                failed.extend(errors.into_iter().map(expression_failed));
                Ok(values)
            };
            let inputs = aggregate_inputs(&self.aggregates[i]);
            let values = inputs.iter().map(&mut computed).collect::<Result<Vec<_>, _>>()?;
            let filter = self.filters[i].as_ref().map(&mut computed).transpose()?;
            let filter: Option<&BooleanArray> = filter.as_ref().map(|f| f.as_boolean());
            accumulator.update_batch(&values, of_row, filter, total)?;
            columns.extend(accumulator.state(EmitTo::All)?);
        }
        if !failed.is_empty() {
            failed.sort_by_key(|f| f.row);
            failed.dedup_by_key(|f| f.row);
            emit.rejects.extend(step_rejects(&self.pipeline, &self.step, rows, &failed)?);
        }
        Ok(columns)
    }

    /// Partial states of `total` groups, each merged from the states of its group in their order:
    /// one at least.
    pub(crate) fn merged(
        &mut self,
        state: &[ArrayRef],
        groups: &[usize],
        total: usize,
    ) -> Result<Vec<ArrayRef>, OperatorError> {
        let mut merged = Vec::with_capacity(state.len());
        let mut from = 0;
        for (accumulator, width) in self.accumulators.iter_mut().zip(&self.widths) {
            accumulator.merge_batch(&state[from..from + width], groups, total)?;
            merged.extend(accumulator.state(EmitTo::All)?);
            from += width;
        }
        Ok(merged)
    }

    /// The values of `total` groups, put together from partial states in their order; `groups`
    /// tells the group of each, and every group has one.
    pub(crate) fn values(
        &mut self,
        state: &[ArrayRef],
        groups: &[usize],
        total: usize,
    ) -> Result<Vec<ArrayRef>, OperatorError> {
        let mut values = Vec::with_capacity(self.accumulators.len());
        let mut from = 0;
        for (accumulator, width) in self.accumulators.iter_mut().zip(&self.widths) {
            accumulator.merge_batch(&state[from..from + width], groups, total)?;
            values.push(accumulator.evaluate(EmitTo::All)?);
            from += width;
        }
        Ok(values)
    }

    /// The first columns of window rows: keys and bounds as given, then what `select` makes of them
    /// and of the aggregates' values. What cannot be computed is null, and a reject if the row is
    /// final: a window that is still open comes again.
    pub(crate) fn selected(
        &self,
        keys_and_bounds: Vec<ArrayRef>,
        values: Vec<ArrayRef>,
        is_final: impl Fn(usize) -> bool,
        emit: &mut Emit,
    ) -> Result<Vec<ArrayRef>, OperatorError> {
        let mut columns = keys_and_bounds.clone();
        let input = keys_and_bounds.into_iter().chain(values).collect();
        let aggregated = RecordBatch::try_new(Arc::clone(&self.aggregated), input)?;
        let mut failed = Vec::new();
        for (name, e) in &self.select {
            let (values, errors) = evaluate(e, &aggregated)?;
            columns.push(values);
            let errors = errors.into_iter().filter(|(row, _)| is_final(*row));
            let errors = errors.map(|(row, text)| (row, format!("`{name}`: {text}")));
            failed.extend(errors.map(expression_failed));
        }
        if !failed.is_empty() {
            emit.rejects.extend(step_rejects(&self.pipeline, &self.step, &aggregated, &failed)?);
        }
        Ok(columns)
    }
}
