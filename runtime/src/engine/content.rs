//! What pipelines and operators are, as checkpoints write it: numbers as text.

use std::collections::BTreeMap;

use tidegate_operators::spec::PipelineSpec;
use tidegate_pipelines::{content_ids, content_ids_before, fingerprint};

/// At the end of the name of the operator that knows which entries of a registry were refused.
const REFUSED: &str = "/refused";

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

/// The content ids in a manifest (`saved`), as this version makes them: where an earlier one wrote
/// another for an operator that is in one of these pipelines, what it is there.
pub(super) fn saved<'p>(
    saved: &BTreeMap<String, String>,
    pipelines: impl IntoIterator<Item = &'p PipelineSpec>,
) -> BTreeMap<String, u64> {
    let mut ids = numbers(saved);
    for pipeline in pipelines {
        let now = content_ids(pipeline);
        let before: BTreeMap<u64, u64> = content_ids_before(pipeline)
            .into_iter()
            .filter_map(|(name, before)| Some((before, *now.get(&name)?)))
            .collect();
        let own = format!("{}/", pipeline.name);
        for (_, id) in ids.iter_mut().filter(|(name, _)| name.starts_with(&own)) {
            *id = before.get(id).copied().unwrap_or(*id);
        }
        // Which entries of a registry were refused was not remembered: nothing is the state of it.
        for (name, id) in &now {
            if let Some(registry) = name.strip_suffix(REFUSED)
                && ids.get(registry) == now.get(registry)
            {
                ids.entry(name.clone()).or_insert(*id);
            }
        }
    }
    ids
}

/// What [`operators`] made, as numbers again.
pub(super) fn numbers(ids: &BTreeMap<String, String>) -> BTreeMap<String, u64> {
    let number =
        |(name, id): (&String, &String)| Some((name.clone(), u64::from_str_radix(id, 16).ok()?));
    ids.iter().filter_map(number).collect()
}
