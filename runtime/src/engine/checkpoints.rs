//! Collects the state that operators hand in and writes it as a checkpoint.
//!
//! A state is an Arrow batch whose first columns are keys; it is stored as one Arrow IPC stream per
//! operator and worker. At restart every worker gets all of them and keeps the rows of its keys,
//! so the number of workers may change.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use serde_json::{Value, json};
use tidegate_operators::Epoch;
use tidegate_operators::spec::PipelineSpec;
use tidegate_pipelines::fingerprint;

use crate::checkpoint::CheckpointStore;
use crate::http::Requests;

/// Checkpoints that are kept.
const KEEP: usize = 2;

pub(crate) struct Checkpoints {
    store: CheckpointStore,
    meta: Value,
    /// Idempotency keys, saved beside the state of operators.
    requests: Arc<Requests>,
    asked: BTreeMap<Epoch, Vec<(String, Vec<u8>)>>,
}

/// What a checkpoint gives back.
#[derive(Default)]
pub(crate) struct Restored {
    /// The epoch that it is of; 0 if there is none.
    pub(crate) epoch: Epoch,
    /// State by operator name.
    pub(crate) state: Vec<(String, RecordBatch)>,
    /// Pipelines whose state was left out, because they have changed since.
    pub(crate) changed: Vec<String>,
}

impl Checkpoints {
    pub(crate) fn new(store: CheckpointStore, pipelines: &[PipelineSpec]) -> Self {
        let fingerprints: BTreeMap<&str, String> = pipelines
            .iter()
            .map(|p| (p.name.as_str(), format!("{:016x}", fingerprint(p))))
            .collect();
        let meta = json!({ "fingerprints": fingerprints });
        Self { store, meta, requests: Arc::default(), asked: BTreeMap::new() }
    }

    /// Saves these idempotency keys as well.
    pub(crate) fn with_requests(self, requests: &Arc<Requests>) -> Self {
        Self { requests: Arc::clone(requests), ..self }
    }

    /// A checkpoint of this epoch was asked of the operators.
    pub(crate) fn ask(&mut self, epoch: Epoch) {
        self.asked.entry(epoch).or_default();
    }

    /// An operator handed in its state.
    pub(crate) fn add(
        &mut self,
        name: String,
        epoch: Epoch,
        worker: usize,
        state: RecordBatch,
    ) -> anyhow::Result<()> {
        let bytes = encode(&state)?;
        self.asked.entry(epoch).or_default().push((format!("{name}#{worker}"), bytes));
        Ok(())
    }

    /// The newest checkpoint that has all of its parts, given that every epoch up to `done` is
    /// complete on all workers.
    pub(crate) fn complete_through(&self, done: Epoch) -> Option<Epoch> {
        self.asked.range(..=done).next_back().map(|(epoch, _)| *epoch)
    }

    /// Writes the checkpoint of `epoch`; older ones that wait are of no use any more.
    pub(crate) fn write(&mut self, epoch: Epoch) -> anyhow::Result<()> {
        let later = self.asked.split_off(&(epoch + 1));
        let mut waiting = std::mem::replace(&mut self.asked, later);
        let mut parts = waiting.remove(&epoch).unwrap_or_default();
        parts.sort_by(|a, b| a.0.cmp(&b.0));
        if let Some((name, window)) = self.requests.save() {
            parts.push((format!("{name}#0"), encode(&window)?));
        }
        self.store.save(epoch, &parts, self.meta.clone()).context("cannot write a checkpoint")?;
        self.store.prune(KEEP).context("cannot remove old checkpoints")
    }

    /// The newest checkpoint in the store, as far as it fits the plan.
    pub(crate) fn restore(
        store: &CheckpointStore,
        pipelines: &[PipelineSpec],
    ) -> anyhow::Result<Restored> {
        let Some(checkpoint) = store.latest().context("cannot read checkpoints")? else {
            return Ok(Restored::default());
        };
        let changed = changed(&checkpoint.meta, pipelines);
        let mut restored = Restored { epoch: checkpoint.epoch, changed, ..Restored::default() };
        for (part, bytes) in checkpoint.parts {
            let (name, _) = part.rsplit_once('#').context("a checkpoint part without a worker")?;
            let pipeline = name.split('/').next().unwrap_or_default();
            if !restored.changed.iter().any(|c| c == pipeline) {
                restored.state.push((name.to_owned(), decode(&bytes)?));
            }
        }
        Ok(restored)
    }
}

/// Pipelines that changed since a checkpoint with this `meta`.
pub(crate) fn changed(meta: &Value, pipelines: &[PipelineSpec]) -> Vec<String> {
    let saved = &meta["fingerprints"];
    let differs = |p: &&PipelineSpec| {
        let known = saved[&p.name].as_str();
        known.is_some_and(|known| known != format!("{:016x}", fingerprint(p)))
    };
    pipelines.iter().filter(differs).map(|p| p.name.clone()).collect()
}

pub(super) fn encode(state: &RecordBatch) -> anyhow::Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut writer = StreamWriter::try_new(&mut out, state.schema_ref())?;
    writer.write(state)?;
    writer.finish()?;
    drop(writer);
    Ok(out)
}

pub(crate) fn decode(bytes: &[u8]) -> anyhow::Result<RecordBatch> {
    let mut reader = StreamReader::try_new(bytes, None)?;
    Ok(reader.next().context("a checkpoint part without rows")??)
}
