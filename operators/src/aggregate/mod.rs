//! Aggregate functions as windows use them: every one, with or without a grouped form of its own;
//! and those for time series, which DataFusion lacks.
//!
//! What holds for all aggregates for time series: the result depends on the readings alone, to the
//! last bit, and neither on the order in which they came nor on how they were dealt out to epochs,
//! workers or files. Nulls, NaN and infinities are skipped. Of several values of one time, the
//! greatest counts (true over false, texts by their bytes): a rule about values, because order of
//! arrival is known to no table.

mod bound;
mod catalog;
mod distribution;
mod edge;
mod groups;
mod length;
mod measure;
mod ranged;
mod ratio;
mod resample;
mod series;
mod sketch;
#[cfg(test)]
mod tests;
mod udaf;
mod until;
mod value;

use std::sync::Arc;

use datafusion_common::Result;
use datafusion_expr::GroupsAccumulator;
use datafusion_physical_expr::GroupsAccumulatorAdapter;
use datafusion_physical_expr::aggregate::AggregateFunctionExpr;

use crate::spec::Expr;

pub use bound::keeps_each_reading;
pub(crate) use bound::{PartialBytes, keeps_readings};
pub use catalog::{Function, StateSize, functions, state_size};
pub(crate) use length::elements_max;
pub use length::points_max;
pub use ranged::{Ranged, ranged};
pub use resample::POINTS_MAX;
pub use udaf::{takes_time, time_series};
pub use until::{Held, held};

/// State of one aggregate call for many groups. Functions that have only a one-group form get it
/// wrapped, one per group: slower, equal in result.
///
/// # Errors
/// The function cannot be computed over the types it was planned for.
pub fn create_groups_accumulator(
    aggregate: &AggregateFunctionExpr,
) -> Result<Box<dyn GroupsAccumulator>> {
    if aggregate.groups_accumulator_supported() {
        return aggregate.create_groups_accumulator();
    }
    aggregate.create_accumulator()?;
    let aggregate = Arc::new(aggregate.clone());
    Ok(Box::new(GroupsAccumulatorAdapter::new(move || aggregate.create_accumulator())))
}

/// The expressions whose values go into `update_batch`, in the order it expects: the arguments,
/// then what `WITHIN GROUP (ORDER BY ...)` names.
pub fn aggregate_inputs(aggregate: &AggregateFunctionExpr) -> Vec<Expr> {
    let mut inputs = aggregate.expressions();
    inputs.extend(aggregate.order_bys().iter().map(|o| Arc::clone(&o.expr)));
    inputs
}
