//! A join with a registry whose history is what the table of its versions tells. Rows of which the
//! operator's state knows nothing any more, or another one has it, so get what they would get from
//! it, as of whichever time the rows of the table are chosen for.
//!
//! The table is asked for the keys of rows, as these come: a registry may be large.

use std::collections::BTreeMap;

use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take;

use super::Enrich;
use crate::batch::Tick;
use crate::grouped::Grouped;
use crate::key::stable_hashes;
use crate::operator::{Emit, OperatorError};
use crate::registry::{ToldRows, Version, VersionsTold};
use crate::spec::EnrichSpec;

/// Bytes of histories that are remembered, beside those of the keys of one batch.
const BYTES_MAX: usize = if cfg!(test) { 2 * KEY_BYTES } else { 32 << 20 };

/// What a key takes beside itself and its versions, about.
const KEY_BYTES: usize = 64;

/// A key: its stable hash, and it as bytes.
type Key = (u64, Box<[u8]>);

/// The join. For each batch of rows: [`EnrichTold::wants`], [`EnrichTold::tell`] what the table
/// has of that, [`EnrichTold::join`].
pub struct EnrichTold {
    /// Knows of each key that it was told of, even if that was nothing.
    operator: Enrich,
    /// How many bytes that is, about.
    bytes: usize,
    /// The keys that are wanted, and what was told of them.
    wanted: BTreeMap<Key, ToldRows>,
}

impl EnrichTold {
    /// Of a step that does not revise.
    ///
    /// # Errors
    /// See [`Enrich::new`].
    pub fn new(spec: EnrichSpec) -> Result<Self, OperatorError> {
        Ok(Self { operator: Enrich::new(spec)?, bytes: 0, wanted: BTreeMap::new() })
    }

    /// The keys of rows of the input of which it has not been told yet, as columns of the
    /// registry's key, each key once.
    ///
    /// # Errors
    /// The rows are not of the input.
    pub fn wants(&mut self, rows: &RecordBatch) -> Result<Vec<ArrayRef>, OperatorError> {
        let on: Vec<ArrayRef> =
            self.operator.spec.on.iter().map(|c| rows.column(*c).clone()).collect();
        let mut places = self.unknown(&on, rows.num_rows())?;
        if !places.is_empty() && self.bytes > BYTES_MAX {
            (self.operator.state, self.bytes) = (Grouped::new(), 0);
            places = self.unknown(&on, rows.num_rows())?;
        }
        let of = UInt32Array::from_iter_values(places.values().copied());
        self.wanted = places.into_keys().map(|key| (key, ToldRows::default())).collect();
        Ok(on.iter().map(|column| take(column, &of, None)).collect::<Result<_, _>>()?)
    }

    /// The keys that nothing was told of, each with one of its rows. None has a null: no registry
    /// says anything of that.
    fn unknown(&self, on: &[ArrayRef], rows: usize) -> Result<BTreeMap<Key, u32>, OperatorError> {
        let mut hashes = Vec::new();
        stable_hashes(on, rows, &mut hashes);
        let keys = self.operator.keys.encode(on)?;
        let mut unknown = BTreeMap::new();
        for (row, (hash, place)) in hashes.into_iter().zip(0..).enumerate() {
            let key = keys.row(row);
            let is_whole = on.iter().all(|column| column.is_valid(row));
            if is_whole && self.operator.state.get(hash, key.as_ref()).is_none() {
                unknown.insert((hash, key.as_ref().into()), place);
            }
        }
        Ok(unknown)
    }

    /// Takes rows of the table of versions; those of keys that are not wanted do not matter.
    ///
    /// # Errors
    /// They are not of [`RegistrySpec::versions_schema`](crate::spec::RegistrySpec).
    pub fn tell(&mut self, versions: &RecordBatch) -> Result<(), OperatorError> {
        let codecs = (&*self.operator.keys, &*self.operator.values);
        let told = VersionsTold::new(&self.operator.spec.registry, versions, codecs)?;
        for (row, hash) in told.hashes.iter().enumerate() {
            let key = (*hash, told.keys.row(row).as_ref().into());
            if let Some(of) = self.wanted.get_mut(&key) {
                of.add(told.row(row));
            }
        }
        Ok(())
    }

    /// The rows with what was told of their keys, and how many the step does not let pass.
    ///
    /// # Errors
    /// The rows are not of the input.
    pub fn join(&mut self, rows: &RecordBatch) -> Result<(Vec<RecordBatch>, usize), OperatorError> {
        for ((hash, key), told) in std::mem::take(&mut self.wanted) {
            let history = told.history();
            let versions = history.0.len() * size_of::<Version>() + history.bytes(key.len());
            self.bytes += KEY_BYTES + key.len() + versions;
            self.operator.state.put(hash, &key).history = history;
        }
        let mut emit = Emit::default();
        let joined = self.operator.join(rows, Tick { epoch: 0, time_us: 0 })?;
        self.operator.give(joined, false, &mut emit)?;
        Ok((emit.rows, emit.rejects.iter().map(RecordBatch::num_rows).sum()))
    }
}
