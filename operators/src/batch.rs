//! What flows along an edge of the graph: Arrow batches at epochs.

use arrow::array::RecordBatch;

/// The timely timestamp: a run of group commits that the journal sealed together. Epochs start at
/// 1; 0 means "before anything".
pub type Epoch = u64;

/// The end of an epoch as the journal recorded it: the only clock that operators ever see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// The epoch that this tick seals.
    pub epoch: Epoch,
    /// Ingest time at the seal, microseconds since the Unix epoch (UTC); never goes back.
    pub time_us: i64,
}

/// Rows of one edge in one epoch.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Journal offset of the first message that led to these rows. Batches of one epoch that come
    /// straight from messages are put into order by it, whichever worker decoded them.
    pub sequence: u64,
    /// The rows; every batch of an edge has the edge's one schema.
    pub rows: RecordBatch,
}
