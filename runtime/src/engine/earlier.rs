//! The pipelines that ran before, for a start with others after a kill.
//!
//! What a killed process had acknowledged and tables and alerts have only in part belongs to the
//! pipelines that ran: with others, an epoch would be half of the ones and half of the others. So
//! the files that run are kept in the data folder, and a start with changed ones first finishes
//! what the journal has with those that were killed, to the last epoch and a checkpoint, with its
//! doors closed. The change then is one after a clean end.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tidegate_pipelines::Plan;

use super::content;
use super::options::EngineOptions;
use super::sources::{self, Bound};
use crate::checkpoint::CheckpointStore;
use crate::journal;

/// Name of the file in the data folder.
const FILE: &str = "pipelines.json";
/// Version of its format.
const FORMAT: u32 = 1;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    format: u32,
    /// Fingerprint of each pipeline, as in manifests.
    pipelines: BTreeMap<String, String>,
    files: Vec<(PathBuf, String)>,
}

/// Files of pipelines, path and text, that are to be run to the end of the journal before others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// The files as they were.
    pub files: Vec<(PathBuf, String)>,
}

/// The pipelines of a killed process that have to be finished before those of `plan` begin, if
/// there are any: others than these, with epochs after their newest checkpoint.
///
/// # Errors
/// The file that keeps them cannot be read, although it is there.
pub fn earlier(data: &Path, plan: &Plan) -> anyhow::Result<Option<Earlier>> {
    let path = data.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let kept = match serde_json::from_str::<Kept>(&text) {
        Ok(kept) if kept.format == FORMAT => kept,
        // Of another version, or damaged: no more is known than before there was such a file.
        other => {
            let error = other.err().map_or("another format".to_owned(), |e| e.to_string());
            tracing::warn!(path = %path.display(), error, "it is not known what ran before");
            return Ok(None);
        }
    };
    let manifest = CheckpointStore::look_at(data.join("checkpoints")).newest_manifest();
    let through = manifest.as_ref().map_or(0, |manifest| manifest.epoch);
    // A crash in the moment of a change: what was kept is not what the checkpoint is of.
    let ran = manifest.is_none_or(|manifest| manifest.pipelines == kept.pipelines);
    let others = content::fingerprints(&plan.pipelines) != kept.pipelines;
    let is_live = sources::files(plan).is_ok_and(|files| files.is_empty());
    let left = || journal::newest_epoch(&data.join("journal")).is_some_and(|e| e > through);
    Ok((ran && others && is_live && left()).then_some(Earlier { files: kept.files }))
}

/// Before doors are opened: this plan runs from now on; or it only finishes what there is, then
/// no door is opened, and nobody but the webhooks of the next one is told.
pub(super) fn enter(
    options: &EngineOptions,
    plan: &mut Plan,
    bound: &mut Vec<Bound>,
) -> anyhow::Result<()> {
    match &options.finishing {
        Some(notifications) => {
            bound.clear();
            plan.notifications.clone_from(notifications);
            Ok(())
        }
        None => keep(&options.data, plan),
    }
}

/// Keeps the files of the plan that runs from now on.
///
/// # Errors
/// Those of the file system.
pub(super) fn keep(data: &Path, plan: &Plan) -> anyhow::Result<()> {
    let kept = Kept {
        format: FORMAT,
        pipelines: content::fingerprints(&plan.pipelines),
        files: plan.files.clone(),
    };
    let text = serde_json::to_vec(&kept)?;
    let (path, temporary) = (data.join(FILE), data.join(format!("{FILE}.new")));
    if std::fs::read(&path).is_ok_and(|have| have == text) {
        return Ok(());
    }
    let write = || -> std::io::Result<()> {
        // As the files themselves may be: an address can hold a key.
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        std::fs::File::open(data)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
