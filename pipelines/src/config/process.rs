//! `tidegate.toml`: the settings of the process, as written and as resolved.

use std::path::PathBuf;

use super::keys::PROCESS_FILE;
use super::problem::{At, Problem, Reporter};
use super::references::Resolver;
use super::section::Section;
use super::{check, tree};

/// Name of the file.
pub const PROCESS_FILE_NAME: &str = "tidegate.toml";

/// Smallest journal that works: room for a group, the reserve and a few segments.
pub const JOURNAL_BYTES_MIN: u64 = 256 << 10;

/// The least budget of memory, other than none: the process itself takes up to 150 MiB of it, and
/// at three quarters rows of new keys are refused.
pub const MEMORY_BYTES_MIN: u64 = 256 << 20;

/// The settings. What is `None` was not written and has no default here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSpec {
    /// The data folder as written.
    pub data: Option<String>,
    /// Folder or URL of the tables as written.
    pub tables: Option<String>,
    /// Dataflow workers.
    pub workers: Option<usize>,
    /// Time between checkpoints, microseconds.
    pub checkpoint_every_us: u64,
    /// Journal time of a group of late readings, microseconds.
    pub recompute_every_us: u64,
    /// How long the journal keeps what recovery does not need, microseconds.
    pub journal_keep_us: u64,
    /// Most bytes of the journal.
    pub journal_bytes_max: u64,
    /// Bytes that stay free on the disk.
    pub disk_reserve_bytes: u64,
    /// Most bytes of rows that wait on disk for tables.
    pub spill_bytes_max: u64,
    /// Most notifications that wait for their webhooks.
    pub outbox_max: usize,
    /// Most memory of the process, resident and swapped out, bytes; 0: as much as there is.
    pub memory_bytes_max: Option<u64>,
    /// Address of the metrics.
    pub metrics: Option<String>,
    /// Whether changed pipeline files are applied.
    pub watch: bool,
}

impl Default for ProcessSpec {
    /// What an empty file says.
    fn default() -> Self {
        let files = [(PathBuf::new(), "[process]".to_owned())];
        // An empty table has no problem; its test would notice.
        read(&files, &|_, _| Err(String::new())).unwrap_or_else(|_| unreachable!("it is empty"))
    }
}

/// Reads a file of settings (path for messages, and text).
///
/// # Errors
/// All problems, in the order of the lines.
pub fn load_process(
    path: PathBuf,
    text: String,
    resolve: Resolver<'_>,
) -> Result<ProcessSpec, Vec<Problem>> {
    read(&[(path, text)], resolve)
}

fn read(files: &[(PathBuf, String)], resolve: Resolver<'_>) -> Result<ProcessSpec, Vec<Problem>> {
    let mut report = Reporter::new(files);
    let start = At { file: 0, start: 0, end: 0 };
    let spec = tree::parse(0, &mut report).and_then(|tree| {
        check::component(&PROCESS_FILE, &tree, start, &mut report);
        let section = Section::new(&PROCESS_FILE, &tree, start).section("process")?;
        Some(resolved(&section, resolve, &mut report))
    });
    match spec {
        Some(spec) if !report.failed() => Ok(spec),
        _ => Err(report.finish()),
    }
}

fn resolved(
    section: &Section<'_>,
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> ProcessSpec {
    let mut place = |name: &str| {
        let text = section.resolved(name, resolve, report)?;
        if text.trim().is_empty() {
            report.error(section.at(name), format!("`{name}` is empty"), None);
        }
        Some(text)
    };
    let (data, tables, metrics) = (place("data"), place("tables"), place("metrics"));
    let port = |address: &str| address.rsplit_once(':')?.1.parse::<u16>().ok();
    if metrics.as_deref().is_some_and(|address| port(address).is_none()) {
        let hint = "an address has a port: \"127.0.0.1:9464\"".to_owned();
        report.error(section.at("metrics"), "this is no address to listen on", hint);
    }
    let mut duration_us = |name: &str, least_us: i64| {
        let us = section.duration_us(name).unwrap_or(0);
        if us < least_us {
            let hint = "it must be longer than nothing".to_owned();
            report.error(section.at(name), format!("`{name}` is too short"), hint);
        }
        us.max(0).unsigned_abs()
    };
    let checkpoint_every_us = duration_us("checkpoint_every", 1);
    let recompute_every_us = duration_us("recompute_every", 1);
    let journal_keep_us = duration_us("journal_keep", 0);
    let size = |name: &str| section.size_bytes(name).unwrap_or(0);
    let journal_bytes_max = size("journal_max");
    if journal_bytes_max < JOURNAL_BYTES_MIN {
        let hint = format!("at least \"{}KiB\" are needed", JOURNAL_BYTES_MIN >> 10);
        report.error(section.at("journal_max"), "so small a journal cannot work", hint);
    }
    let memory_bytes_max = section.size_bytes("memory_max");
    if memory_bytes_max.is_some_and(|bytes| (1..MEMORY_BYTES_MIN).contains(&bytes)) {
        let hint = format!("at least \"{}MiB\" are needed", MEMORY_BYTES_MIN >> 20);
        report.error(section.at("memory_max"), "nothing fits into so little memory", hint);
    }
    ProcessSpec {
        data,
        tables,
        workers: section.int("workers").and_then(|n| usize::try_from(n).ok()),
        checkpoint_every_us,
        recompute_every_us,
        journal_keep_us,
        journal_bytes_max,
        disk_reserve_bytes: size("disk_reserve"),
        spill_bytes_max: size("spill_max"),
        outbox_max: section.int("outbox_max").and_then(|n| usize::try_from(n).ok()).unwrap_or(0),
        memory_bytes_max,
        metrics,
        watch: section.bool("watch"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<ProcessSpec, Vec<Problem>> {
        let resolve = |kind: &str, name: &str| match (kind, name) {
            ("env", "DIR") => Ok("/srv".to_owned()),
            _ => Err(format!("{kind} {name} is not set")),
        };
        load_process("t/tidegate.toml".into(), text.to_owned(), &resolve)
    }

    #[test]
    fn everything_that_is_written_is_taken_and_the_rest_has_defaults() {
        let spec = load(
            "[process]\ndata = \"${env:DIR}/d\"\ntables = \"s3://b/p\"\nworkers = 3\n\
             checkpoint_every = \"1m30s\"\nrecompute_every = \"5m\"\n\
             journal_keep = \"0s\"\njournal_max = \"1GiB\"\n\
             disk_reserve = \"1MB\"\nspill_max = \"2GiB\"\n\
             outbox_max = 500\n\
             memory_max = \"3GiB\"\nmetrics = \"localhost:9464\"\n\
             watch = true\n",
        );
        let wanted = ProcessSpec {
            data: Some("/srv/d".into()),
            tables: Some("s3://b/p".into()),
            workers: Some(3),
            checkpoint_every_us: 90_000_000,
            recompute_every_us: 300_000_000,
            journal_keep_us: 0,
            journal_bytes_max: 1 << 30,
            disk_reserve_bytes: 1_000_000,
            spill_bytes_max: 2 << 30,
            outbox_max: 500,
            memory_bytes_max: Some(3 << 30),
            metrics: Some("localhost:9464".into()),
            watch: true,
        };
        assert_eq!(spec, Ok(wanted));
        let default = ProcessSpec::default();
        assert_eq!(load("[process]\n"), Ok(default.clone()));
        assert_eq!((default.checkpoint_every_us, default.journal_bytes_max), (10_000_000, 4 << 30));
    }

    #[test]
    fn all_problems_come_at_once_each_with_its_line() {
        let problems = load(
            "name = \"x\"\n[process]\ncheckpoint_evry = \"1s\"\nworkers = 0\nspill_max = 5\n\
             checkpoint_every = \"0s\"\njournal_max = \"1KiB\"\nmetrics = \"here\"\n\
             data = \"${env:NONE}\"\ntables = \"\"\nwatch = \"yes\"\nmemory_max = \"100MiB\"\n",
        );
        let problems = problems.expect_err("there are many");
        let lines: Vec<usize> = problems.iter().map(|p| p.line).collect();
        assert_eq!(lines, [1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], "{problems:#?}");
        let hint = problems[1].hint.clone().unwrap_or_default();
        assert!(hint.contains("`checkpoint_every`"), "{hint}");
        assert!(problems[0].message.contains("unknown key `name` in tidegate.toml"));
        let nothing = load("").expect_err("there is no table");
        assert!(nothing[0].message.contains("`process` is missing"), "{nothing:?}");
    }
}
