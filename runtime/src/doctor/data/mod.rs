//! `tidegate doctor data`: journal, checkpoints, outbox and sessions of a data folder, also while
//! an instance works on it.
//!
//! The order matters beside a running instance: the journal is listed before the checkpoints are,
//! and only the newer of those decide what may be trimmed.

mod checkpoints;
mod journal;
mod kept;
mod outbox;
mod sessions;
#[cfg(test)]
mod tests;

pub(super) use journal::lost_text;
pub(super) use sessions::{Unsound, look_at_copy as look_at_sessions};

use std::path::{Path, PathBuf};

use tidegate_operators::Epoch;
use tidegate_operators::spec::PipelineSpec;

use super::OnProgress;
use super::report::{Report, Verdicts};
use crate::clock::Clock;
use crate::engine::earlier;
use crate::engine::folder::INSTANCE;
use crate::journal::holder;

const VERDICTS: Verdicts =
    ["whole", "whole; see the warnings", "damaged: what follows from it stands above"];

/// What every data folder has some of, from its first start on.
const PARTS: [&str; 8] =
    [INSTANCE, "journal", "checkpoints", "outbox", "sessions", "files", "tables", earlier::FILE];

/// What is examined, and with what it has to fit.
#[derive(Clone, Debug, Default)]
pub struct DataOptions {
    /// The data folder.
    pub data: PathBuf,
    /// The pipelines that are to run on it, if they are known.
    pub pipelines: Option<Vec<PipelineSpec>>,
}

/// Where the parts of one examination look.
struct Scene<'a> {
    data: &'a Path,
    pipelines: Option<&'a [PipelineSpec]>,
    running: Option<u32>,
    clock: Clock,
    progress: OnProgress<'a>,
}

impl Scene<'_> {
    /// The command that saves what can be saved.
    fn salvage(&self) -> String {
        let data = self.data.display();
        let salvage = format!("tidegate doctor data --data {data} --salvage NEW_FOLDER");
        match self.running {
            Some(_) => format!("stop the instance, then: {salvage}"),
            None => salvage,
        }
    }

    fn subject(&self, part: &str) -> String {
        let path = self.data.join(part);
        match self.running {
            Some(0) | None => format!("{part} in {}", path.display()),
            Some(process) => format!("{part} in {} (in use by process {process})", path.display()),
        }
    }
}

/// Examines a data folder. Blocks on the disk.
pub fn examine(options: &DataOptions, progress: OnProgress<'_>) -> Vec<Report> {
    let data = options.data.as_path();
    let scene = Scene {
        data,
        pipelines: options.pipelines.as_deref(),
        running: holder::running(data).map(|(_, process)| process),
        clock: Clock::system(),
        progress,
    };
    if !data.is_dir() {
        let mut report = Report::new(&data.display().to_string(), VERDICTS);
        let change = ["say where it is: --data DIR"];
        report.fail("folder", "there is no such folder", &change);
        return vec![report];
    }
    if !is_data_folder(data) {
        let mut report = Report::new(&data.display().to_string(), VERDICTS);
        let text = "this is no data folder: it has files, but nothing that Tidegate writes";
        report.fail("folder", text, &["say where it is: --data DIR"]);
        return vec![report];
    }
    let read = journal::read(&scene);
    let (newest, checkpoints) = checkpoints::examine(&scene);
    let others = [outbox::examine(&scene), sessions::examine(&scene)];
    let told = others.iter().flatten().map(|(_, told)| *told).max().unwrap_or(0);
    let mut reports = vec![journal::judge(&scene, read, Known { newest, told }), checkpoints];
    reports.extend(others.into_iter().flatten().map(|(report, _)| report));
    reports.extend(kept::examine(&scene));
    reports
}

/// Whether a folder is empty, or has anything that Tidegate writes. One that cannot be listed is
/// told by its parts.
fn is_data_folder(data: &Path) -> bool {
    let is_empty = std::fs::read_dir(data).map_or(true, |mut list| list.next().is_none());
    is_empty || PARTS.iter().any(|part| data.join(part).exists())
}

/// What the journal has to go on from.
#[derive(Clone, Copy)]
struct Known {
    newest: Newest,
    /// The newest epoch whose alerts anybody may have.
    told: Epoch,
}

/// The newest whole checkpoint: how far state is saved; 0 if there is none.
type Newest = Epoch;
