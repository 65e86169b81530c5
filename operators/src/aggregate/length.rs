//! How many elements the value of an aggregate has, where that is a list: what batches of windows
//! are cut by, so that no column has more than Arrow can count or memory holds.

use datafusion_common::ScalarValue;
use datafusion_physical_expr::aggregate::AggregateFunctionExpr;

use super::bound::literal;
use super::catalog::Name;
use super::resample::{POINTS_MAX, interval_us};

/// Most points of a resampling between bounds so far apart; none if the aggregate is none.
pub fn points_max(aggregate: &AggregateFunctionExpr, longest_us: i64) -> Option<u64> {
    Name::find(aggregate.fun().name()).filter(|name| name.resamples())?;
    let step_us = match literal(aggregate, 2)? {
        ScalarValue::IntervalMonthDayNano(Some(i)) => interval_us(i.months, i.days, i.nanoseconds),
        _ => None,
    };
    Some((longest_us.max(0) / step_us?).unsigned_abs().saturating_add(1))
}

/// Most elements of the value of one window.
pub(crate) fn elements_max(aggregate: &AggregateFunctionExpr, longest_us: Option<i64>) -> u64 {
    match Name::find(aggregate.fun().name()) {
        Some(Name::Histogram | Name::Buckets) => aggregate.expressions().len() as u64,
        Some(name) if name.resamples() => {
            let points = longest_us.and_then(|us| points_max(aggregate, us));
            // One more than are shown.
            points.map_or(POINTS_MAX, |points| points.min(POINTS_MAX)) + 1
        }
        _ => 1,
    }
}
