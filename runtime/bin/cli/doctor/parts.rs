//! The examinations, as the command line asks for them.

use std::path::PathBuf;

use anyhow::Context;
use tidegate_pipelines::Plan;
use tidegate_pipelines::config::references::UNSET;
use tidegate_runtime::doctor::{
    self, DataOptions, FileText, Report, SalvageOptions, TablesOptions, examine_config,
    examine_data, examine_disk, examine_tables,
};
use tidegate_runtime::engine::EngineOptions;

use super::super::args::DATA_DEFAULT;
use super::super::failure::Failure;
use super::super::files;
use super::progress::Line;
use super::source;

/// Everything that there is to examine.
pub(super) async fn all(
    paths: Vec<PathBuf>,
    data: Option<PathBuf>,
) -> Result<Vec<Report>, Failure> {
    let mut reports = Vec::new();
    let mut plan = None;
    if !paths.is_empty() {
        let (report, loaded) = config(&paths)?;
        reports.push(report);
        plan = loaded;
    }
    let asked = data.is_some();
    let data = data.unwrap_or_else(|| DATA_DEFAULT.into());
    if asked || data.is_dir() {
        let pipelines = plan.as_ref().map(|plan: &Plan| plan.pipelines.clone());
        reports.extend(folder(DataOptions { data: data.clone(), pipelines }).await?);
        if data.is_dir() {
            reports.extend(tables(None, Some(data.clone())).await);
            reports.push(disk(data).await?);
        }
    } else if paths.is_empty() {
        let text = format!(
            "there is nothing to examine: no folder {DATA_DEFAULT} here; name one with --data, or \
             pipeline files"
        );
        return Err(anyhow::anyhow!(text).into());
    }
    if let Some(plan) = &plan {
        reports.extend(source::of_plan(plan).await);
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
    // A URL alone may be of another machine's instance.
    let data = data.or_else(|| url.is_none().then(|| DATA_DEFAULT.into()));
    examine_tables(&TablesOptions { url, data }, &draw).await
}

pub(super) async fn disk(dir: PathBuf) -> Result<Report, Failure> {
    let budget = EngineOptions::new(&dir).journal_bytes_max;
    blocking(move |line| examine_disk(&dir, budget, &|what, done, of| line.draw(what, done, of)))
        .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce(&Line) -> T + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(move || work(&Line::new())).await;
    Ok(done.context("the examination ended early")?)
}

/// What the pipeline files say, and the plan if they are sound.
pub(super) fn config(paths: &[PathBuf]) -> Result<(Report, Option<Plan>), Failure> {
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
    Ok((report, plan))
}
