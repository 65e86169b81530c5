//! How many bytes the partial state of an aggregate takes.
//!
//! Most aggregates have a state of a fixed width, which the types of its columns tell. Of those
//! whose state is a list or a text, ours say in the catalog what it is; of DataFusion's, sketches
//! and extremes of texts have a bound of their own, and what is left keeps something for each
//! reading.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema};
use datafusion_common::ScalarValue;
use datafusion_expr::ColumnarValue;
use datafusion_physical_expr::aggregate::AggregateFunctionExpr;

use super::catalog::{Name, StateSize, state_size};
use super::sketch::{ERROR, Scale};
use crate::bound::Unbounded;

/// Centroids of a t-digest if no number is asked for, each with its weight.
const CENTROIDS: u64 = 100;
/// Bytes of the registers of a HyperLogLog.
const REGISTERS_BYTES: u64 = 1 << 14;
/// Bytes of the offset of a list or text.
const OFFSET_BYTES: u64 = 4;
/// Functions whose state is one of the texts that they saw.
const ONE_TEXT: [&str; 5] = ["min", "max", "first_value", "last_value", "any_value"];

/// Bytes of partial state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PartialBytes {
    /// Of each piece.
    pub(crate) fixed: u64,
    /// For each reading in it.
    pub(crate) reading: u64,
    /// The same, but not more than `sketch_max` in one piece.
    pub(crate) sketch_reading: u64,
    pub(crate) sketch_max: u64,
}

impl PartialBytes {
    /// Of all aggregates of a window, in pieces with a number of rows.
    pub(crate) fn of(aggregates: &[Arc<AggregateFunctionExpr>], text_bytes: usize) -> Self {
        aggregates.iter().map(|a| one(a, text_bytes as u64)).fold(Self::default(), |sum, a| Self {
            fixed: sum.fixed.saturating_add(a.fixed),
            reading: sum.reading.saturating_add(a.reading),
            sketch_reading: sum.sketch_reading.saturating_add(a.sketch_reading),
            sketch_max: sum.sketch_max.saturating_add(a.sketch_max),
        })
    }

    /// Of so many pieces with so many readings in them together.
    ///
    /// # Errors
    /// Something is kept of each reading, and their number has no bound.
    pub(crate) fn total(
        &self,
        pieces: u64,
        readings: Result<u64, Unbounded>,
    ) -> Result<u64, Unbounded> {
        let mut bytes = self.fixed.saturating_mul(pieces);
        let sketches = self.sketch_max.saturating_mul(pieces);
        bytes = bytes.saturating_add(match &readings {
            Ok(readings) => sketches.min(self.sketch_reading.saturating_mul(*readings)),
            Err(_) => sketches,
        });
        match self.reading {
            0 => Ok(bytes),
            each => Ok(bytes.saturating_add(each.saturating_mul(readings?))),
        }
    }
}

/// The first of the aggregates that keeps something of each reading.
pub(crate) fn keeps_readings(aggregates: &[Arc<AggregateFunctionExpr>]) -> Option<&str> {
    aggregates.iter().find(|a| keeps_each_reading(a)).map(|a| a.fun().name())
}

/// Whether an aggregate keeps something of each reading.
pub fn keeps_each_reading(aggregate: &AggregateFunctionExpr) -> bool {
    one(aggregate, 0).reading > 0
}

fn one(aggregate: &AggregateFunctionExpr, text_bytes: u64) -> PartialBytes {
    let name = aggregate.fun().name();
    let fields = aggregate.state_fields().unwrap_or_default();
    let types: Vec<&DataType> = fields.iter().map(|f| f.data_type()).collect();
    match Name::find(name) {
        Some(Name::Quantile) => quantile(aggregate),
        Some(Name::Histogram | Name::Buckets) => {
            let counts = aggregate.expressions().len() as u64;
            PartialBytes { fixed: counts * 8 + OFFSET_BYTES, ..PartialBytes::default() }
        }
        Some(_) => ours(name, &types, text_bytes),
        None => {
            let mut all = PartialBytes::default();
            types.iter().for_each(|t| foreign(aggregate, t, text_bytes, &mut all));
            all
        }
    }
}

/// One of ours. Texts come to what the catalog says of numbers.
fn ours(name: &str, types: &[&DataType], text_bytes: u64) -> PartialBytes {
    let items: Vec<&DataType> = types.iter().map(|t| item(t).unwrap_or(t)).collect();
    let texts = items.iter().filter(|t| is_text(t)).count() as u64 * (text_bytes + OFFSET_BYTES);
    let fixed: u64 = types.iter().map(|t| item(t).map_or(width(t), |_| OFFSET_BYTES)).sum();
    match state_size(name) {
        Some(StateSize::PerReading(bytes)) => {
            PartialBytes { fixed, reading: bytes as u64 + texts, ..PartialBytes::default() }
        }
        _ => PartialBytes { fixed: fixed + texts, ..PartialBytes::default() },
    }
}

/// Buckets of two numbers each, of which a reading makes one at most.
fn quantile(aggregate: &AggregateFunctionExpr) -> PartialBytes {
    const BUCKET_BYTES: u64 = 4 + 8;
    let error = match literal(aggregate, 2) {
        Some(ScalarValue::Float64(Some(error))) => error,
        _ => ERROR,
    };
    let buckets = Scale::new(error).buckets_max();
    PartialBytes {
        fixed: 2 * (OFFSET_BYTES + 8),
        reading: 0,
        sketch_reading: BUCKET_BYTES,
        sketch_max: BUCKET_BYTES * buckets,
    }
}

/// A column of the state of a function that is not ours.
fn foreign(
    aggregate: &AggregateFunctionExpr,
    column: &DataType,
    text_bytes: u64,
    all: &mut PartialBytes,
) {
    let name = aggregate.fun().name();
    let is_digest = name.starts_with("approx_percentile") || name == "approx_median";
    let one_text = ONE_TEXT.contains(&name) && !aggregate.is_distinct();
    match item(column) {
        Some(_) if is_digest => {
            let asked = literal(aggregate, 2).and_then(|v| v.to_string().parse::<u64>().ok());
            all.fixed += OFFSET_BYTES;
            all.sketch_reading += 16;
            all.sketch_max += asked.unwrap_or(CENTROIDS).saturating_mul(16);
        }
        Some(item) => {
            all.fixed += OFFSET_BYTES;
            all.reading += if is_text(item) { text_bytes + OFFSET_BYTES } else { width(item) };
        }
        None if !is_text(column) => all.fixed += width(column),
        None if name == "approx_distinct" => all.fixed += REGISTERS_BYTES + OFFSET_BYTES,
        None if one_text || !aggregate.order_bys().is_empty() && name != "string_agg" => {
            all.fixed += text_bytes + OFFSET_BYTES;
        }
        None => {
            all.fixed += OFFSET_BYTES;
            all.reading += text_bytes;
        }
    }
}

/// The value of an argument that does not depend on any row.
pub(super) fn literal(aggregate: &AggregateFunctionExpr, index: usize) -> Option<ScalarValue> {
    let empty = RecordBatch::new_empty(Arc::new(Schema::empty()));
    match aggregate.expressions().get(index)?.evaluate(&empty) {
        Ok(ColumnarValue::Scalar(value)) => Some(value),
        _ => None,
    }
}

fn item(column: &DataType) -> Option<&DataType> {
    match column {
        DataType::List(item) | DataType::LargeList(item) => Some(item.data_type()),
        _ => None,
    }
}

fn is_text(column: &DataType) -> bool {
    matches!(
        column,
        DataType::Utf8
            | DataType::LargeUtf8
            | DataType::Utf8View
            | DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
    )
}

/// Bytes of a value of fixed width, with its bit of validity.
fn width(column: &DataType) -> u64 {
    match column {
        DataType::Struct(fields) => fields.iter().map(|f| width(f.data_type())).sum(),
        fixed => fixed.primitive_width().unwrap_or(1) as u64,
    }
}
