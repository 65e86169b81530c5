//! The pipelines that ran before, for a start with others after a kill.
//!
//! What a killed process had acknowledged and tables and alerts have only in part belongs to the
//! pipelines that ran: with others, an epoch would be half of the ones and half of the others. So
//! the files that run are kept in the data folder, and a start with changed ones first finishes
//! what the journal has with those that were killed, to the last epoch and a checkpoint, with its
//! doors closed. The change then is one after a clean end. Another place of a source is such a
//! change too: sources are named by their addresses, and what came from the old one is nobody's in
//! the new plan. Where it is not known what ran, such messages refuse the start
//! ([`refuse_orphans`]): the next checkpoint would let them go, although they were acknowledged.
//!
//! It must not keep anybody from repairing what cannot run: where finishing fails, or has died
//! [`ATTEMPTS_MAX`] times, the change is made as of the last checkpoint, as it is where nobody
//! knows what ran.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tidegate_operators::Epoch;
use tidegate_pipelines::Plan;
use tidegate_pipelines::plan::SourceSpec;

use super::content;
use super::options::EngineOptions;
use super::patience::Patience;
use super::shadow;
use super::sources::{self, Bound};
use crate::checkpoint::CheckpointStore;
use crate::journal::{self, DurableError, Journal, holder};

/// Name of the file in the data folder.
pub(crate) const FILE: &str = "pipelines.json";
/// Version of its format.
const FORMAT: u32 = 1;
/// What stands before the checksum of all before it, at the end of the file.
const SEAL: &str = ",\"crc32\":";
/// How often it is tried to finish what ran, before that is given up: who was killed for its memory
/// would be again.
const ATTEMPTS_MAX: u32 = 3;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    format: u32,
    /// Fingerprint of each pipeline, as in manifests.
    pipelines: BTreeMap<String, String>,
    /// Name of the source of each pipeline; `None`: written by a version that did not keep it.
    #[serde(default)]
    sources: Option<BTreeMap<String, String>>,
    /// The checkpoint from which they began; 0: there was none.
    began: Epoch,
    /// How often it was begun to finish them.
    attempts: u32,
    /// Path and text.
    files: Vec<(String, String)>,
}

impl Kept {
    /// Whether this plan is another one: other pipelines, or from other places.
    fn differs(&self, plan: &Plan) -> bool {
        let moved = self.sources.as_ref().is_some_and(|sources| *sources != sources_of(plan));
        moved || content::fingerprints(&plan.pipelines) != self.pipelines
    }

    /// Whether all places from which messages came are still read.
    fn is_read_by(&self, plan: &Plan) -> bool {
        let has = |name: &String| plan.sources.iter().any(|source| source.name == *name);
        self.sources.as_ref().is_some_and(|sources| sources.values().all(has))
    }
}

/// Name of the source of each pipeline.
fn sources_of(plan: &Plan) -> BTreeMap<String, String> {
    let source = |number: u16| plan.sources.get(usize::from(number));
    let of = plan.pipelines.iter().filter_map(|p| Some((p, source(p.decode.source)?)));
    of.map(|(pipeline, source)| (pipeline.name.clone(), source.name.clone())).collect()
}

/// Pipelines that are to be run to the end of the journal before others.
#[derive(Clone, Debug, PartialEq)]
pub struct Earlier {
    kept: Kept,
    data: PathBuf,
}

impl Earlier {
    /// The files as they were: path and text.
    pub fn files(&self) -> Vec<(PathBuf, String)> {
        self.kept.files.iter().map(|(path, text)| (path.into(), text.clone())).collect()
    }

    /// This plan, made of [`Earlier::files`], as it ran: with sources of the names that they had,
    /// since an address may come from the environment. `None` if it is another one: another version
    /// may understand the same text in another way.
    pub fn as_it_ran(&self, mut plan: Plan) -> Option<Plan> {
        if content::fingerprints(&plan.pipelines) != self.kept.pipelines {
            return None;
        }
        let Some(names) = &self.kept.sources else { return Some(plan) };
        let mut sources: Vec<SourceSpec> = Vec::new();
        for pipeline in &mut plan.pipelines {
            let name = names.get(&pipeline.name)?;
            let known = sources.iter().position(|source| source.name == *name);
            let number = match known {
                Some(number) => number,
                None => {
                    let now = plan.sources.get(usize::from(pipeline.decode.source))?;
                    sources.push(SourceSpec { name: name.clone(), kind: now.kind.clone() });
                    sources.len() - 1
                }
            };
            pipeline.decode.source = u16::try_from(number).ok()?;
        }
        plan.sources = sources;
        Some(plan)
    }

    /// Notes that it is begun to finish them; false if that has come to nothing often enough.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn begin(&self) -> anyhow::Result<bool> {
        if self.kept.attempts >= ATTEMPTS_MAX {
            return Ok(false);
        }
        let kept = Kept { attempts: self.kept.attempts + 1, ..self.kept.clone() };
        write(&self.data, &kept).map(|()| true)
    }
}

/// The pipelines that ran last on a data folder, if it is known.
///
/// # Errors
/// The file that keeps them cannot be read, although it is there.
pub fn ran_last(data: &Path) -> anyhow::Result<Option<Earlier>> {
    let data = data.to_owned();
    Ok(read(&data)?.map(|kept| Earlier { kept, data }))
}

/// Whether a process runs on this data folder.
pub fn is_running(data: &Path) -> bool {
    holder::running(data).is_some()
}

/// From when on a start makes state of changed operators anew, microseconds since the Unix epoch;
/// `None`: from the beginning. For a data folder on which nobody runs.
///
/// # Errors
/// Its journal cannot be read.
pub(super) fn rebuilt_since(data: &Path) -> anyhow::Result<Option<i64>> {
    shadow::since_us(|| journal::ticks_of(&data.join("journal")))
}

/// The pipelines of a killed process that have to be finished before those of `plan` begin, if
/// there are any: others than these, with epochs after their newest checkpoint.
///
/// # Errors
/// The file that keeps them cannot be read, although it is there.
pub fn earlier(data: &Path, plan: &Plan) -> anyhow::Result<Option<Earlier>> {
    // A start beside a running instance is refused later, with its reason.
    let Some(kept) = read(data)?.filter(|_| holder::running(data).is_none()) else {
        return Ok(None);
    };
    let manifest = CheckpointStore::look_at(data.join("checkpoints")).newest_manifest();
    let through = manifest.as_ref().map_or(0, |manifest| manifest.epoch);
    // If it is of others and newer than their beginning, the process died in the moment of a
    // change, and what was kept is not what ran last.
    let ran = manifest.is_none_or(|manifest| {
        manifest.pipelines == kept.pipelines || manifest.epoch == kept.began
    });
    let others = kept.differs(plan);
    let is_live = sources::files(plan).is_ok_and(|files| files.is_empty());
    let left = || journal::newest_epoch(&data.join("journal")).is_some_and(|e| e > through);
    let data = data.to_owned();
    Ok((ran && others && is_live && left()).then_some(Earlier { kept, data }))
}

/// Refuses a plan that reads no more from where messages came which no checkpoint has: nobody would
/// work them through. `since` is the newest epoch of which there is a checkpoint, also a damaged
/// one: what is older was worked through once, by the pipelines of its time.
///
/// # Errors
/// How many messages there are, and from where; or what keeps the journal from being read.
pub(super) fn refuse_orphans(
    data: &Path,
    plan: &Plan,
    journal: &Journal,
    since: Epoch,
) -> anyhow::Result<()> {
    // They were looked at when these pipelines began.
    if read(data)?.is_some_and(|kept| kept.is_read_by(plan)) {
        return Ok(());
    }
    let names: Vec<String> = plan.sources.iter().map(|source| source.name.clone()).collect();
    let mut replay = journal.read(&names, since + 1);
    for feed in replay.by_ref() {
        feed?;
    }
    let orphans = replay.orphans_by_source();
    if orphans.is_empty() {
        return Ok(());
    }
    let from: Vec<String> =
        orphans.iter().map(|(name, count)| format!("{count} from `{name}`")).collect();
    let reason = format!(
        "acknowledged messages would be lost: {}. They came in before the process was killed, \
         after its last checkpoint, and these pipelines do not read from there. Start once with \
         the pipelines and addresses as they were and stop it with Ctrl-C, then start with these",
        from.join(", ")
    );
    Err(DurableError::Mismatch { path: data.join("journal"), reason }.into())
}

/// What is kept. Of another version, or damaged: no more is known than before there was such a
/// file.
fn read(data: &Path) -> anyhow::Result<Option<Kept>> {
    let path = data.join(FILE);
    let Some(bytes) = bytes_of(&path)? else { return Ok(None) };
    Ok(match parse(&bytes) {
        Ok(kept) => Some(kept),
        Err(error) => {
            tracing::warn!(path = %path.display(), error, "it is not known what ran before");
            None
        }
    })
}

fn bytes_of(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        bytes => bytes.map(Some).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// What is wrong with the file that keeps what ran; `Ok(None)`: there is none.
pub(crate) fn damage(data: &Path) -> Result<Option<()>, String> {
    let bytes = bytes_of(&data.join(FILE)).map_err(|error| format!("{error:#}"))?;
    bytes.map(|bytes| parse(&bytes).map(drop)).transpose()
}

fn parse(bytes: &[u8]) -> Result<Kept, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let kept: Kept = serde_json::from_str(&unsealed(text)?).map_err(|error| error.to_string())?;
    if kept.format == FORMAT { Ok(kept) } else { Err("another format".to_owned()) }
}

/// This JSON object with a checksum as its last member.
fn sealed(json: &str) -> String {
    let body = json.strip_suffix('}').unwrap_or(json);
    format!("{body}{SEAL}{}}}", crc32fast::hash(body.as_bytes()))
}

/// The object without its checksum, if that is right. Files of earlier versions have none; what
/// only looks like one is left to the parser, which knows no such member.
fn unsealed(text: &str) -> Result<Cow<'_, str>, String> {
    let found = text.rsplit_once(SEAL);
    let number = |end: &str| end.strip_suffix('}')?.parse::<u32>().ok();
    let Some((body, crc)) = found.and_then(|(body, end)| Some((body, number(end)?))) else {
        return Ok(text.into());
    };
    match crc32fast::hash(body.as_bytes()) == crc {
        true => Ok(format!("{body}}}").into()),
        false => Err("it is not as it was written: its checksum is another one".to_owned()),
    }
}

/// Before doors are opened: this plan runs from now on, after the checkpoint of `epoch`; or it only
/// finishes what there is, then no door is opened, and nobody but the webhooks of the next one is
/// told. Waits for room on the disk.
pub(super) async fn enter(
    options: &EngineOptions,
    plan: &mut Plan,
    bound: &mut Vec<Bound>,
    epoch: Epoch,
) -> anyhow::Result<()> {
    match &options.finishing {
        Some(notifications) => {
            bound.clear();
            plan.notifications.clone_from(notifications);
            Ok(())
        }
        None => {
            let keep = || std::future::ready(keep(&options.data, plan, Some(epoch)));
            Patience::telling(&options.replaying).until(keep).await
        }
    }
}

/// Keeps the files of the plan that runs from now on, after the checkpoint of the epoch `began`;
/// `None`: after the same as the one before.
///
/// # Errors
/// Those of the file system.
pub(super) fn keep(data: &Path, plan: &Plan, began: Option<Epoch>) -> anyhow::Result<()> {
    let before = read(data)?;
    let text = |(path, text): &(PathBuf, String)| (path.display().to_string(), text.clone());
    let kept = Kept {
        format: FORMAT,
        pipelines: content::fingerprints(&plan.pipelines),
        sources: Some(sources_of(plan)),
        began: began.or(before.as_ref().map(|kept| kept.began)).unwrap_or_default(),
        attempts: 0,
        files: plan.files.iter().map(text).collect(),
    };
    if before.as_ref() == Some(&kept) { Ok(()) } else { write(data, &kept) }
}

fn write(data: &Path, kept: &Kept) -> anyhow::Result<()> {
    let text = sealed(&serde_json::to_string(kept)?);
    let (path, temporary) = (data.join(FILE), data.join(format!("{FILE}.new")));
    let write = || -> std::io::Result<()> {
        // As the files themselves may be: an address can hold a key.
        let mut options = std::fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        std::fs::File::open(data)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests;
