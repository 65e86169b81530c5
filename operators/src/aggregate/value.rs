//! The values that an aggregate over time can hold: numbers, true or false, texts.
//!
//! Every kind has a total order, which decides between readings of one time: the greater value
//! stays. That is a rule about values, so it gives the same answer for any order of arrival.

use std::cmp::Ordering;
use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int64Array, PrimitiveArray, StringArray,
    TimestampMicrosecondArray,
};
use datafusion_common::{Result, internal_datafusion_err};

/// A value that can be kept per reading and compared.
pub(super) trait Value: Clone + Debug + Send + Sync + 'static {
    /// The column it comes in and is saved in.
    type Column: Array + 'static;

    /// The value in a row; none if it is null or no finite number.
    fn get(column: &Self::Column, row: usize) -> Option<Self>;

    /// A total order.
    fn order(&self, other: &Self) -> Ordering;

    /// A column of values.
    fn column(values: impl Iterator<Item = Option<Self>>) -> ArrayRef;

    /// Bytes that it owns beside its own size.
    fn heap_bytes(&self) -> usize {
        0
    }
}

impl Value for f64 {
    type Column = Float64Array;

    fn get(column: &Float64Array, row: usize) -> Option<Self> {
        // Adding zero makes +0.0 of -0.0, so that equal numbers have equal bits.
        let value = column.is_valid(row).then(|| column.value(row) + 0.0);
        value.filter(|v| v.is_finite())
    }

    fn order(&self, other: &Self) -> Ordering {
        self.total_cmp(other)
    }

    fn column(values: impl Iterator<Item = Option<Self>>) -> ArrayRef {
        Arc::new(values.collect::<Float64Array>())
    }
}

impl Value for i64 {
    type Column = Int64Array;

    fn get(column: &Int64Array, row: usize) -> Option<Self> {
        column.is_valid(row).then(|| column.value(row))
    }

    fn order(&self, other: &Self) -> Ordering {
        self.cmp(other)
    }

    fn column(values: impl Iterator<Item = Option<Self>>) -> ArrayRef {
        Arc::new(values.collect::<Int64Array>())
    }
}

/// A point in time, in microseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Time(pub(super) i64);

impl Value for Time {
    type Column = TimestampMicrosecondArray;

    fn get(column: &TimestampMicrosecondArray, row: usize) -> Option<Self> {
        column.is_valid(row).then(|| Self(column.value(row)))
    }

    fn order(&self, other: &Self) -> Ordering {
        self.cmp(other)
    }

    fn column(values: impl Iterator<Item = Option<Self>>) -> ArrayRef {
        let values: PrimitiveArray<_> = values.map(|v| v.map(|t| t.0)).collect();
        Arc::new(TimestampMicrosecondArray::with_timezone(values, "UTC"))
    }
}

impl Value for bool {
    type Column = BooleanArray;

    fn get(column: &BooleanArray, row: usize) -> Option<Self> {
        column.is_valid(row).then(|| column.value(row))
    }

    fn order(&self, other: &Self) -> Ordering {
        self.cmp(other)
    }

    fn column(values: impl Iterator<Item = Option<Self>>) -> ArrayRef {
        Arc::new(values.collect::<BooleanArray>())
    }
}

impl Value for Arc<str> {
    type Column = StringArray;

    fn get(column: &StringArray, row: usize) -> Option<Self> {
        column.is_valid(row).then(|| column.value(row).into())
    }

    fn order(&self, other: &Self) -> Ordering {
        self.as_ref().cmp(other.as_ref())
    }

    fn column(values: impl Iterator<Item = Option<Self>>) -> ArrayRef {
        Arc::new(values.collect::<StringArray>())
    }

    fn heap_bytes(&self) -> usize {
        // The text and the two counters before it.
        self.len() + 2 * size_of::<usize>()
    }
}

/// Which rows of a column have a value: one that is not null, and no number that is not finite.
pub(super) fn presence(values: &ArrayRef) -> impl Fn(usize) -> bool {
    let floats = values.as_any().downcast_ref::<Float64Array>();
    move |row| floats.map_or_else(|| values.is_valid(row), |f| f64::get(f, row).is_some())
}

/// A column as the array type it was planned to be.
pub(super) fn downcast<A: Array + 'static>(column: &ArrayRef) -> Result<&A> {
    column.as_any().downcast_ref().ok_or_else(|| {
        internal_datafusion_err!("a column of an aggregate is of type {}", column.data_type())
    })
}

/// `column[index]` as the array type it was planned to be.
pub(super) fn argument<A: Array + 'static>(columns: &[ArrayRef], index: usize) -> Result<&A> {
    let column = columns.get(index);
    downcast(column.ok_or_else(|| internal_datafusion_err!("an aggregate lacks a column"))?)
}
