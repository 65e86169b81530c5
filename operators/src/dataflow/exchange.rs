//! Exchange: every row goes to the worker that owns its key.

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use timely::communication::Push;
use timely::dataflow::channels::Message;
use timely::dataflow::channels::pact::DistributorPact;
use timely::dataflow::channels::pushers::exchange::Distributor;
use timely::progress::Stamp;

use crate::batch::Batch;
use crate::key::{owner, stable_hashes};

/// Splits batches by the stable hash of their key columns. The order of rows is kept.
pub struct ByKey {
    /// `None`: everybody gets every row.
    keys: Option<Vec<usize>>,
    hashes: Vec<u64>,
    rows_of: Vec<Vec<u32>>,
}

/// A parallelization contract that moves rows to the owners of the given key columns; no key
/// columns at all moves every row to the first worker.
pub fn by_key(keys: Vec<usize>) -> DistributorPact<Box<dyn FnOnce(usize) -> ByKey>> {
    distributed(Some(keys))
}

/// A parallelization contract that copies every row to every worker.
pub fn to_all() -> DistributorPact<Box<dyn FnOnce(usize) -> ByKey>> {
    distributed(None)
}

fn distributed(keys: Option<Vec<usize>>) -> DistributorPact<Box<dyn FnOnce(usize) -> ByKey>> {
    DistributorPact(Box::new(move |peers| ByKey {
        keys,
        hashes: Vec::new(),
        rows_of: vec![Vec::new(); peers],
    }))
}

impl ByKey {
    fn assign(&mut self, keys: &[usize], rows: &RecordBatch) {
        for rows in &mut self.rows_of {
            rows.clear();
        }
        let columns: Vec<ArrayRef> = keys.iter().map(|k| rows.column(*k).clone()).collect();
        stable_hashes(&columns, rows.num_rows(), &mut self.hashes);
        let workers = self.rows_of.len();
        for (row, hash) in self.hashes.iter().enumerate() {
            self.rows_of[owner(*hash, workers)].push(row as u32);
        }
    }
}

impl Distributor<Batch> for ByKey {
    fn partition<T: Clone, P: Push<Message<T, Batch>>>(
        &mut self,
        container: &mut Batch,
        stamp: &Stamp<T>,
        pushers: &mut [P],
    ) {
        let batch = std::mem::take(container);
        let Some(keys) = self.keys.take() else {
            for pusher in pushers {
                Message::push_at(&mut batch.clone(), stamp.clone(), pusher);
            }
            return;
        };
        self.assign(&keys, &batch.rows);
        self.keys = Some(keys);
        for (rows, pusher) in self.rows_of.iter().zip(pushers) {
            if rows.is_empty() {
                continue;
            }
            let part = if rows.len() == batch.rows.num_rows() {
                batch.rows.clone()
            } else {
                take_record_batch(&batch.rows, &UInt32Array::from(rows.clone()))
                    .expect("row numbers come from the batch itself")
            };
            let mut part = Batch { sequence: batch.sequence, rows: part };
            Message::push_at(&mut part, stamp.clone(), pusher);
        }
    }

    fn flush<T: Clone, P: Push<Message<T, Batch>>>(&mut self, _: &Stamp<T>, _: &mut [P]) {}
}
