//! What a run would take from its file of settings, for the examinations.

use std::path::{Path, PathBuf};

use tidegate_runtime::doctor::{FileText, Report, Room, examine_settings};
use tidegate_runtime::engine::EngineOptions;

use super::super::args::DATA_DEFAULT;
use super::super::failure::Failure;
use super::super::settings::written;

/// The settings of a run, as far as they can be examined.
pub(super) struct Process {
    /// The data folder, and whether somebody named it.
    pub(super) data: (PathBuf, bool),
    pub(super) room: Room,
    /// What is said of the file; none without one.
    pub(super) report: Option<Report>,
}

impl Process {
    /// From `--config` and `--data`, the file beside these pipelines, and defaults.
    pub(super) fn of(
        config: Option<&Path>,
        pipelines: &[PathBuf],
        data: Option<PathBuf>,
    ) -> Result<Self, Failure> {
        let written = written(config, pipelines)?;
        let data = data.or_else(|| written.as_ref()?.data());
        let data = (data.clone().unwrap_or_else(|| DATA_DEFAULT.into()), data.is_some());
        let defaults = EngineOptions::new(&data.0);
        let mut room = Room {
            journal_bytes_max: defaults.journal_bytes_max,
            disk_reserve_bytes: defaults.disk_reserve_bytes,
            settings: None,
        };
        let report = written.map(|written| {
            let file = FileText { path: written.path, text: written.text };
            if let Ok(spec) = &written.spec {
                room.journal_bytes_max = spec.journal_bytes_max;
                room.disk_reserve_bytes = spec.disk_reserve_bytes;
            }
            let report = examine_settings(&file, written.spec.as_ref().map_err(Vec::as_slice));
            room.settings = Some(file);
            report
        });
        Ok(Self { data, room, report })
    }

    /// What is wrong with the file, so that its settings could not be taken.
    pub(super) fn trouble(&self) -> Vec<Report> {
        self.report.iter().filter(|report| !report.passed()).cloned().collect()
    }
}
