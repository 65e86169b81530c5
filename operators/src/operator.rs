//! The seam between operators and the engine: plain Rust on one side, timely on the other.
//!
//! An operator sees whole epochs in a defined order and knows nothing of workers, frontiers or
//! capabilities; [`crate::dataflow::host`] runs any of them under timely.

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use datafusion_common::DataFusionError;

use crate::batch::Tick;
use crate::snapshot::Snapshot;

/// Why an operator cannot go on. These are broken invariants or exhausted resources, never bad
/// data: bad data becomes rows.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// Arrow refused an operation on columns that were planned to fit.
    #[error("{0}")]
    Arrow(#[from] ArrowError),
    /// An expression or aggregate failed where it cannot be isolated.
    #[error("{0}")]
    DataFusion(#[from] DataFusionError),
    /// A key is new, there is no place for it, and the step is to stop then.
    #[error(
        "there is no place for another key: {key} is new, and `keys_max` is {keys_max}. Raise it, \
         or write `at_keys_max = \"reject\"`, and start again: nothing is lost"
    )]
    KeysMax {
        /// The budget.
        keys_max: u64,
        /// The key as JSON.
        key: String,
    },
    /// Keys are saved by groups, and those of one have more text than a column can hold.
    #[error(
        "the state of the keys of one group (of 256) has {0} bytes of text; a checkpoint can hold \
         2 GiB of it. Fewer or shorter texts per key are kept with other aggregates, a shorter \
         `revise_for` or a smaller `rows_max`"
    )]
    StateTooLarge(u64),
    /// Saved state does not belong to this operator.
    #[error("saved state does not fit: {0}")]
    State(String),
}

/// What an operator emits in one epoch.
#[derive(Debug, Default)]
pub struct Emit {
    /// Rows of its output edge, ordered by time, then key.
    pub rows: Vec<RecordBatch>,
    /// Readings that came too late, or again: rows for `system.late`, or `system.duplicates`.
    pub late: Vec<RecordBatch>,
    /// Rows for `system.rejects`.
    pub rejects: Vec<RecordBatch>,
    /// Not an output but a condition of the epoch, set before its rows are taken: the journal says
    /// that memory is used up, so new keys find no place ([`crate::event::NoNewKeys`]).
    pub closed: bool,
    /// Likewise: this is not all of the epoch. It has so much text that its rows come in several
    /// calls with the same tick, all rows of a key in one of them. So what time does by itself to
    /// keys that have no rows here must wait for the last call: their rows may be in it.
    pub more: bool,
}

/// A stateful operator with one state per key.
pub trait KeyedOperator: 'static {
    /// All rows of one completed epoch in the defined order (maybe none), then its tick. Called for
    /// each epoch, in their order: once, or where an epoch is too large several times with the same
    /// tick, each key's rows in one call, and what comes of it is the same ([`Emit::more`]).
    fn epoch(
        &mut self,
        rows: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError>;

    /// The input has ended (a bounded source): emit what is still open. If more comes after all,
    /// because there are new files, it goes on from the state after this.
    fn end(&mut self, emit: &mut Emit) -> Result<(), OperatorError>;

    /// The state as it is now, of the key groups that changed since the last cut, or of all if
    /// `whole`. Called between epochs; must be cheap however many keys there are. The first columns
    /// of its rows are the key columns, so that rows can be dealt out to other workers.
    fn cut(&mut self, whole: bool) -> Snapshot;

    /// The whole state as rows, for tests: [`KeyedOperator::cut`] in one go.
    ///
    /// # Errors
    /// See [`Snapshot::rows`].
    fn save(&mut self) -> Result<RecordBatch, OperatorError> {
        Ok(self.cut(true).rows()?.rows)
    }

    /// Takes rows that a cut made, those whose keys belong to this worker. Each key comes once.
    fn load(&mut self, state: &RecordBatch) -> Result<(), OperatorError>;
}

/// A stateful operator with two inputs and one state per key: both inputs are dealt out by the same
/// key, and their rows of an epoch come together.
pub trait JoinOperator: 'static {
    /// All rows of one completed epoch of both inputs, each in its defined order (maybe none), then
    /// the tick. Called as [`KeyedOperator::epoch`] is; an input that every worker has all of comes
    /// with the first call of an epoch. Which input comes first in time is not known: an operator
    /// that needs an order between the two defines it by what is in the rows.
    fn epoch(
        &mut self,
        left: &RecordBatch,
        right: &RecordBatch,
        tick: Tick,
        emit: &mut Emit,
    ) -> Result<(), OperatorError>;

    /// See [`KeyedOperator::end`].
    fn end(&mut self, emit: &mut Emit) -> Result<(), OperatorError>;

    /// See [`KeyedOperator::cut`].
    fn cut(&mut self, whole: bool) -> Snapshot;

    /// See [`KeyedOperator::load`].
    fn load(&mut self, state: &RecordBatch) -> Result<(), OperatorError>;
}

/// A stateful operator with two inputs that may be told of rows which are in neither.
pub trait AsideOperator: JoinOperator {
    /// Rows that are in neither, of the call of [`JoinOperator::epoch`] that comes next: called
    /// before it, any number of times. What all workers have is in its order, in one call; what is
    /// dealt out by key is in no defined order.
    fn aside(&mut self, rows: &RecordBatch);
}
