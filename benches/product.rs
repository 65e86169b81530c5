//! The product at work on a file of readings, in this process or in one of its own.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use tidegate_runtime::engine::{Engine, EngineOptions};
use tidegate_runtime::memory::allocator;

use crate::workload::generate::Workload;

/// The first `lines` lines of `workload`, generated below `folder` if they are not there yet. The
/// name of the file tells what it holds.
pub(crate) fn readings(folder: &Path, workload: Workload, lines: u64) -> Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    let Workload { devices, .. } = workload;
    let data = folder.join(format!("readings-{devices}-{lines}.ndjson"));
    if !data.exists() {
        // Renamed when complete, so that an interrupted run leaves no half file behind.
        let partial = data.with_extension("partial");
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&partial)?);
        workload.write(lines, &mut out)?;
        std::fs::rename(partial, &data)?;
    }
    Ok(data)
}

/// Runs this bench in a process of its own, because peak memory belongs to a process; the last line
/// that it prints.
pub(crate) fn in_child(arguments: &[&str]) -> Result<String> {
    let mut child = Command::new(std::env::current_exe()?);
    let output = child.envs(allocator::SETTINGS).args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} failed: {said}", arguments.join(" "));
    eprint!("{said}");
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().last().unwrap_or_default().to_owned())
}

/// Runs a pipeline to the end of its file.
pub(crate) fn run(pipeline: &str, data_dir: &Path, workers: usize) -> Result<()> {
    let files = [(PathBuf::from("bench.toml"), pipeline.to_owned())];
    let none = |kind: &str, name: &str| Err(format!("no {kind}:{name} in a bench"));
    let plan = tidegate_pipelines::load(&files, &none)
        .map_err(|problems| anyhow!(problems.iter().map(|p| p.to_string()).collect::<String>()))?;
    let options = EngineOptions { workers, ..EngineOptions::new(data_dir) };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut engine = Engine::start(plan, options).await?;
        // All files read; a shutdown before would stop in the middle.
        engine.ended().await?;
        engine.shutdown().await.map(drop)
    })
}

/// An empty folder.
pub(crate) fn empty(folder: PathBuf) -> Result<PathBuf> {
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// The most memory that this process ever held, in units of a million bytes.
pub(crate) fn peak_mb() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024 / 1_000_000)
}
