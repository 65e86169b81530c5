//! What every detection method is, and the table of those that exist.

use arrow::array::ArrayRef;
use arrow::datatypes::Field;

use super::ewma::{self, EwmaZ};
use crate::operator::OperatorError;
use crate::spec::DetectMethod;

/// A reading that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Verdict {
    /// Position in the readings that were judged.
    pub(super) at: usize,
    /// How far off it is, in the method's own measure.
    pub(super) score: f64,
    /// The value that the method expected.
    pub(super) expected: f64,
    /// The deviation that the method thinks normal.
    pub(super) deviation: f64,
}

/// A way to judge readings, with one state per key id.
pub(super) trait Method {
    /// Its name in configurations and findings.
    fn name(&self) -> &'static str;

    /// A key that has no state yet.
    fn start(&mut self, id: u32);

    /// A key is forgotten, with what is held for it; see [`crate::slabs::Slabs::forget`].
    fn forget(&mut self, id: u32, is_last: bool);

    /// Bytes held.
    fn size_bytes(&self) -> usize;

    /// Judges finite values in order, then learns from them. A method may not look ahead.
    fn judge(&mut self, ids: &[u32], values: &[f64], found: &mut Vec<Verdict>);

    /// Columns of the saved state; names are unique within the method.
    fn state_fields(&self) -> Vec<Field>;

    /// The states as they are now, without a copy.
    fn states(&self) -> Box<dyn MethodStates>;

    /// Sets the state of each id from the row of the same position.
    fn load(&mut self, ids: &[u32], columns: &[ArrayRef]) -> Result<(), OperatorError>;
}

/// The states of a method as of a cut.
pub(super) trait MethodStates: Send {
    /// The states of these keys, one column per state field.
    fn columns(&self, ids: &[u32]) -> Vec<ArrayRef>;
}

/// Bytes of the state of one key.
pub(super) fn state_bytes(method: &DetectMethod) -> u64 {
    match method {
        DetectMethod::EwmaZ { .. } => ewma::STATE_BYTES,
    }
}

/// The one table of methods.
pub(super) fn method(method: &DetectMethod) -> Box<dyn Method> {
    match *method {
        DetectMethod::EwmaZ { alpha, warmup, threshold } => {
            Box::new(EwmaZ::new(alpha, warmup, threshold))
        }
    }
}
