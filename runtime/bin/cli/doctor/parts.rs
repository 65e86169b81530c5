//! The examinations, as the command line asks for them.

use std::path::PathBuf;

use anyhow::Context;
use tidegate_pipelines::Plan;
use tidegate_pipelines::config::references::UNSET;
use tidegate_runtime::doctor::{
    self, DataOptions, FileText, Report, Room, SalvageOptions, TablesOptions, examine_config,
    examine_data, examine_disk, examine_tables,
};

use super::super::args::DATA_DEFAULT;
use super::super::failure::Failure;
use super::super::files;
use super::process::Process;
use super::progress::Line;
use super::source;

/// Everything that there is to examine.
pub(super) async fn all(paths: Vec<PathBuf>, process: Process) -> Result<Vec<Report>, Failure> {
    let mut reports = Vec::new();
    let (mut plan, mut texts) = (None, Vec::new());
    if !paths.is_empty() {
        let looked = config(&paths)?;
        reports.push(looked.report);
        (plan, texts) = (looked.plan, looked.files);
    }
    reports.extend(process.report);
    let (data, asked) = process.data;
    if asked || data.is_dir() {
        let pipelines = plan.as_ref().map(|plan: &Plan| plan.pipelines.clone());
        reports.extend(folder(DataOptions { data: data.clone(), pipelines }).await?);
        if data.is_dir() {
            reports.extend(tables(None, Some(data.clone())).await);
            reports.push(disk(data, process.room).await?);
        }
    } else if reports.is_empty() {
        let text = format!(
            "there is nothing to examine: no folder {DATA_DEFAULT} here; name one with --data, or \
             pipeline files"
        );
        return Err(anyhow::anyhow!(text).into());
    }
    if let Some(plan) = &plan {
        reports.extend(source::of_plan(plan, &texts).await);
    }
    Ok(reports)
}

pub(super) async fn data(paths: &[PathBuf], data: PathBuf) -> Result<Vec<Report>, Failure> {
    let pipelines = match paths.is_empty() {
        true => None,
        false => Some(files::load_to_look_at(paths)?.0.pipelines),
    };
    folder(DataOptions { data, pipelines }).await
}

async fn folder(options: DataOptions) -> Result<Vec<Report>, Failure> {
    blocking(move |line| examine_data(&options, &|what, done, of| line.draw(what, done, of))).await
}

pub(super) async fn salvage(data: PathBuf, to: PathBuf) -> Result<Vec<Report>, Failure> {
    let line = Line::new();
    let draw = |what: &str, done, of| line.draw(what, done, of);
    Ok(doctor::salvage(&SalvageOptions { data, to }, &draw).await?)
}

pub(super) async fn tables(url: Option<String>, data: Option<PathBuf>) -> Vec<Report> {
    let line = Line::new();
    let draw = |what: &str, done, of| line.draw(what, done, of);
    examine_tables(&TablesOptions { url, data }, &draw).await
}

pub(super) async fn disk(dir: PathBuf, room: Room) -> Result<Report, Failure> {
    blocking(move |line| examine_disk(&dir, &room, &|what, done, of| line.draw(what, done, of)))
        .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&Line) -> T + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(move || work(&Line::new())).await;
    Ok(done.context("the examination ended early")?)
}

/// Pipeline files that were looked at.
pub(super) struct Looked {
    pub(super) report: Report,
    pub(super) files: Vec<FileText>,
    /// If they are sound, and nothing is missing that they refer to.
    pub(super) plan: Option<Plan>,
}

/// What the pipeline files say.
pub(super) fn config(paths: &[PathBuf]) -> Result<Looked, Failure> {
    let texts = files::read(paths)?;
    let missing = std::cell::RefCell::new(Vec::new());
    let loaded = tidegate_pipelines::load(&texts, &|kind, name| {
        Ok(files::reference(kind, name).unwrap_or_else(|why| {
            missing.borrow_mut().push(why);
            UNSET.to_owned()
        }))
    });
    let files: Vec<FileText> =
        texts.into_iter().map(|(path, text)| FileText { path, text }).collect();
    let mut missing = missing.into_inner();
    missing.sort();
    missing.dedup();
    let outcome = loaded.as_ref().map_err(Vec::as_slice);
    let report = examine_config(&files, outcome, &missing);
    // Brokers can only be tried with what the references stand for.
    let plan = loaded.ok().filter(|_| missing.is_empty());
    Ok(Looked { report, files, plan })
}
