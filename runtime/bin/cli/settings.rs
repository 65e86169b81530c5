//! How a process runs: options of the command line over `tidegate.toml` over defaults.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tidegate_pipelines::Problem;
use tidegate_pipelines::config::process::{PROCESS_FILE_NAME, ProcessSpec, load_process};
use tidegate_runtime::engine::EngineOptions;
use tidegate_runtime::memory::Budget;

use super::args::{DATA_DEFAULT, RunArgs};
use super::failure::Failure;
use super::files;

/// All settings of a run.
pub(super) struct Settings {
    pub(super) options: EngineOptions,
    pub(super) metrics: Option<String>,
    pub(super) watch: bool,
    pub(super) memory: Budget,
}

impl Settings {
    /// Finds and reads the file, if there is one; its problems are printed to standard error.
    pub(super) fn of(args: &RunArgs) -> Result<Self, Failure> {
        let Some(written) = written(args.config.as_deref(), &args.paths.paths)? else {
            return Ok(Self::merged(args, ProcessSpec::default(), Path::new("")));
        };
        let spec = written.spec.map_err(|problems| files::tell(&problems))?;
        eprintln!("settings from {}", written.path.display());
        Ok(Self::merged(args, spec, written.path.parent().unwrap_or(Path::new(""))))
    }

    fn merged(args: &RunArgs, spec: ProcessSpec, folder: &Path) -> Self {
        let beside = |text: String| beside(folder, text);
        let data = args.engine.data.clone().or_else(|| Some(beside(spec.data?).into()));
        let workers = args.engine.workers.or_else(|| NonZeroUsize::new(spec.workers?));
        let defaults = EngineOptions::new(data.unwrap_or_else(|| DATA_DEFAULT.into()));
        let duration = Duration::from_micros;
        let memory = Budget::of(args.memory_max.or(spec.memory_bytes_max));
        let options = EngineOptions {
            tables: args.tables.clone().or_else(|| Some(beside(spec.tables?))),
            workers: workers.map_or(defaults.workers, NonZeroUsize::get),
            checkpoint_every: args
                .checkpoint_every
                .unwrap_or_else(|| duration(spec.checkpoint_every_us)),
            recompute_every: args
                .recompute_every
                .unwrap_or_else(|| duration(spec.recompute_every_us)),
            journal_bytes_max: args.journal_max.unwrap_or(spec.journal_bytes_max),
            journal_keep: args.journal_keep.unwrap_or_else(|| duration(spec.journal_keep_us)),
            disk_reserve_bytes: args.disk_reserve.unwrap_or(spec.disk_reserve_bytes),
            spill_bytes_max: args.spill_max.unwrap_or(spec.spill_bytes_max),
            outbox_max: args.outbox_max.map_or(spec.outbox_max, NonZeroUsize::get),
            memory_bytes_max: memory.bytes_max,
            ..defaults
        };
        let metrics = args.engine.metrics.clone().or(spec.metrics);
        Self { options, metrics, memory, watch: args.watch || spec.watch }
    }
}

/// Where the instance is that a command is about.
#[derive(Args, Debug)]
pub(super) struct PlaceArgs {
    /// Folder of the instance [default: that of the settings, else ./tidegate-data]
    #[arg(long, value_name = "DIR", global = true)]
    data: Option<PathBuf>,
    /// Settings of the process, found as `tidegate run` finds them: this file, else tidegate.toml
    /// in the current folder, else in the folder of the (first) pipelines
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

/// An instance, as the command line or the file of settings names it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its data folder.
    pub(super) data: PathBuf,
    /// Where the file has its tables go; it was not read if the folder was named.
    pub(super) tables: Option<String>,
}

impl PlaceArgs {
    /// What is named, else what a run of these pipelines would take from its file of settings, else
    /// the usual folder.
    pub(super) fn find(&self, pipelines: &[PathBuf]) -> Result<Place, Failure> {
        if let Some(data) = &self.data {
            return Ok(Place { data: data.clone(), tables: None });
        }
        let written = written(self.config.as_deref(), pipelines)?;
        let (folder, spec) = match written {
            Some(Written { spec: Err(problems), .. }) => return Err(files::tell(&problems)),
            Some(Written { spec: Ok(spec), path, .. }) => (path, spec),
            None => (PathBuf::new(), ProcessSpec::default()),
        };
        let folder = folder.parent().unwrap_or(Path::new(""));
        let data =
            spec.data.map_or_else(|| DATA_DEFAULT.into(), |data| beside(folder, data).into());
        Ok(Place { data, tables: spec.tables.map(|tables| beside(folder, tables)) })
    }
}

/// What a place in a file of this folder is: a URL, or a path, of which an absolute one stays what
/// it is.
fn beside(folder: &Path, text: String) -> String {
    match text.contains("://") {
        true => text,
        false => folder.join(text).display().to_string(),
    }
}

/// A file of settings.
pub(super) struct Written {
    pub(super) path: PathBuf,
    pub(super) text: String,
    /// What it says, or its problems.
    pub(super) spec: Result<ProcessSpec, Vec<Problem>>,
}

impl Written {
    fn read(path: PathBuf) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let spec = load_process(path.clone(), text.clone(), &files::reference);
        Ok(Self { path, text, spec })
    }

    /// The data folder that it names.
    pub(super) fn data(&self) -> Option<PathBuf> {
        let data = self.spec.as_ref().ok()?.data.clone()?;
        Some(beside(self.path.parent().unwrap_or(Path::new("")), data).into())
    }
}

/// The file that a run of these pipelines would read, if there is one.
pub(super) fn written(
    named: Option<&Path>,
    pipelines: &[PathBuf],
) -> anyhow::Result<Option<Written>> {
    find(named, pipelines)?.map(Written::read).transpose()
}

/// The file that counts: the one that is named, else one that lies where it may.
fn find(named: Option<&Path>, pipelines: &[PathBuf]) -> anyhow::Result<Option<PathBuf>> {
    if let Some(path) = named {
        anyhow::ensure!(path.is_file(), "there is no file {}", path.display());
        return Ok(Some(path.to_owned()));
    }
    let beside = pipelines.first().and_then(|path| match path.is_dir() {
        true => Some(path.as_path()),
        false => path.parent(),
    });
    let folders = [Some(Path::new("")), beside];
    let mut files = folders.into_iter().flatten().map(|folder| folder.join(PROCESS_FILE_NAME));
    Ok(files.find(|file| file.is_file()))
}

fn load(path: &Path) -> Result<ProcessSpec, Failure> {
    Written::read(path.to_owned())?.spec.map_err(|problems| files::tell(&problems))
}

/// Checks files of settings, if these paths are nothing else; true if they are.
pub(super) fn check_alone(paths: &[PathBuf]) -> Result<bool, Failure> {
    let is_settings = |path: &PathBuf| path.file_name().is_some_and(|n| n == PROCESS_FILE_NAME);
    if !paths.iter().all(is_settings) {
        return Ok(false);
    }
    paths.iter().try_for_each(|path| load(path).map(drop))?;
    Ok(true)
}

/// Checks the file of settings that a run of these pipelines would read, if there is one.
pub(super) fn check(pipelines: &[PathBuf]) -> Result<Option<ProcessSpec>, Failure> {
    find(None, pipelines)?.map(|path| load(&path)).transpose()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::super::args::{Cli, Command};
    use super::*;

    fn run(line: &str) -> RunArgs {
        let Some(Command::Run(args)) = Cli::try_parse_from(line.split(' ')).unwrap().command else {
            unreachable!("run was asked for")
        };
        args
    }

    #[test]
    fn options_win_over_the_file_and_its_paths_are_beside_it() {
        let spec = ProcessSpec {
            data: Some("d".into()),
            tables: Some("/abs".into()),
            workers: Some(7),
            metrics: Some("127.0.0.1:1".into()),
            spill_bytes_max: 5 << 20,
            memory_bytes_max: Some(0),
            ..ProcessSpec::default()
        };
        let all = Settings::merged(&run("tidegate run p"), spec.clone(), Path::new("conf"));
        assert_eq!(all.options.data, PathBuf::from("conf/d"));
        assert_eq!(all.options.tables.as_deref(), Some("/abs"));
        assert_eq!((all.options.workers, all.options.spill_bytes_max), (7, 5 << 20));
        assert_eq!(all.options.memory_bytes_max, 0);
        assert_eq!(all.metrics.as_deref(), Some("127.0.0.1:1"));
        let line = "tidegate run p --data x --tables s3://b --workers 2 --metrics [::1]:2 \
                    --memory-max 900MiB --spill-max 1MiB --journal-max 8MiB --checkpoint-every 3s";
        let all = Settings::merged(&run(line), spec, Path::new("conf"));
        assert_eq!(all.options.data, PathBuf::from("x"));
        assert_eq!(all.options.tables.as_deref(), Some("s3://b"));
        assert_eq!((all.options.workers, all.options.spill_bytes_max), (2, 1 << 20));
        assert_eq!(all.options.checkpoint_every, Duration::from_secs(3));
        assert_eq!(all.options.journal_bytes_max, 8 << 20);
        assert_eq!(all.options.memory_bytes_max, 900 << 20);
        assert_eq!(all.metrics.as_deref(), Some("[::1]:2"));
    }

    #[test]
    fn without_a_file_the_defaults_are_those_of_the_engine() {
        let none = Settings::merged(&run("tidegate run p"), ProcessSpec::default(), Path::new(""));
        let engine = EngineOptions::new(DATA_DEFAULT);
        let numbers = |o: &EngineOptions| {
            let times = (o.checkpoint_every, o.recompute_every, o.journal_keep);
            let disk = (o.journal_bytes_max, o.disk_reserve_bytes, o.spill_bytes_max);
            (o.data.clone(), times, disk, o.outbox_max)
        };
        assert_eq!(numbers(&none.options), numbers(&engine));
        assert!(!none.watch && none.metrics.is_none());
    }

    #[test]
    fn commands_about_an_instance_find_it_where_a_run_would() {
        let folder = tempfile::tempdir().unwrap();
        let (pipelines, file) = ([folder.path().to_owned()], folder.path().join("other.toml"));
        let place = |data: Option<&str>, config: Option<&PathBuf>| {
            let args = PlaceArgs { data: data.map(Into::into), config: config.cloned() };
            args.find(&pipelines)
        };
        let at =
            |data: PathBuf, tables: Option<&str>| Place { data, tables: tables.map(str::to_owned) };
        assert_eq!(place(None, None).unwrap(), at(DATA_DEFAULT.into(), None));
        let text = "[process]\ndata = \"dd\"\ntables = \"s3://b/t\"\n";
        std::fs::write(folder.path().join(PROCESS_FILE_NAME), text).unwrap();
        assert_eq!(place(None, None).unwrap(), at(folder.path().join("dd"), Some("s3://b/t")));
        assert_eq!(place(Some("x"), None).unwrap(), at("x".into(), None));
        std::fs::write(&file, "[process]\ndata = \"/abs\"\n").unwrap();
        assert_eq!(place(None, Some(&file)).unwrap(), at("/abs".into(), None));
        std::fs::write(&file, "[process]\ndatta = \"x\"\n").unwrap();
        assert!(place(None, Some(&file)).is_err() && place(Some("x"), Some(&file)).is_ok());
    }

    #[test]
    fn it_is_found_beside_the_pipelines_and_one_that_is_named_must_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let paths = [folder.path().join("p.toml")];
        let file = folder.path().join(PROCESS_FILE_NAME);
        assert_eq!(find(None, &paths).unwrap(), None);
        std::fs::write(&file, "[process]\n").unwrap();
        assert_eq!(find(None, &paths).unwrap(), Some(file.clone()));
        assert_eq!(find(None, &[folder.path().to_owned()]).unwrap(), Some(file));
        assert!(find(Some(&folder.path().join("other.toml")), &paths).is_err());
    }
}
