//! What pipelines and operators are, as checkpoints write it: numbers as text.

use std::collections::BTreeMap;

use tidegate_operators::spec::PipelineSpec;
use tidegate_pipelines::{content_ids, fingerprint};

fn hex(number: u64) -> String {
    format!("{number:016x}")
}

/// The fingerprint of each pipeline.
pub(super) fn fingerprints(pipelines: &[PipelineSpec]) -> BTreeMap<String, String> {
    pipelines.iter().map(|p| (p.name.clone(), hex(fingerprint(p)))).collect()
}

/// The content id of each operator that has state.
pub(super) fn operators(pipelines: &[PipelineSpec]) -> BTreeMap<String, String> {
    let ids = pipelines.iter().flat_map(content_ids);
    ids.map(|(name, id)| (name, hex(id))).collect()
}

/// What [`operators`] made, as numbers again.
pub(super) fn numbers(ids: &BTreeMap<String, String>) -> BTreeMap<String, u64> {
    let number =
        |(name, id): (&String, &String)| Some((name.clone(), u64::from_str_radix(id, 16).ok()?));
    ids.iter().filter_map(number).collect()
}
