//! `tidegate doctor`: what is wrong, where, what it means, what to do. Each thing that can be
//! examined is a subcommand; without one, everything that can be found is.

mod parts;
mod process;
mod progress;
mod source;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use tidegate_runtime::doctor::{Report, summary};

use self::process::Process;
use super::failure::Failure;
use super::{Outcome, print};

const HELP: &str = "\
Without a subcommand it examines all that it finds: the data folder and its disk, and of the
pipeline files that are given their settings and their brokers.

Each row is ok, note, warn or FAIL; below it stands what follows from it, and after `->` the command
or the line of a file that mends it. Nothing is changed, no lock is taken: it may run beside the
product.

Examples:
  tidegate doctor                               ./tidegate-data
  tidegate doctor pipelines/ --data /var/lib/tidegate
  tidegate doctor data --data /var/lib/tidegate --json

Exit code: 0 if nothing FAILed, 1 otherwise, 2 for a wrong command line.";

#[derive(Args, Debug)]
#[command(after_help = HELP, args_conflicts_with_subcommands = true)]
pub(super) struct DoctorArgs {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    all: AllArgs,
}

/// What `doctor` itself takes.
#[derive(Args, Debug)]
struct AllArgs {
    /// Pipeline files, or folders of *.toml files
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Folder of the instance [default: that of the settings, else ./tidegate-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Print the findings as one JSON document
    #[arg(long)]
    json: bool,
}

/// Where the settings of a run are.
#[derive(Args, Debug)]
struct SettingsArgs {
    /// Settings of the process, found as `tidegate run` finds them: this file, else tidegate.toml
    /// in the current folder, else in the folder of the (first) pipelines
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Verifies journal, checkpoints, outbox and sessions of a data folder
    Data(DataArgs),
    /// Verifies tables against their logs, and tries out the store that they lie in
    Tables(TablesArgs),
    /// Measures the disk of a folder: syncs, room, kind of file system
    Disk(DiskArgs),
    /// Looks for settings of pipeline files that lose data, with the lines to change
    Config(ConfigArgs),
    /// Tries out the brokers of pipelines, or those at some URLs
    Source(source::SourceArgs),
}

const DATA_HELP: &str = "\
Every frame, seal and segment of the journal, every part of every checkpoint, every entry of the
outbox. Says whether a start can recover, as far as these decide it, and from which epoch; tables
that do not belong to them are refused as well: `tidegate doctor tables`. The torn end of the newest
segment is normal after a crash: nobody was answered for it, and a start cuts it off.

With --salvage it copies what is whole into a new folder, where the product can go on, and lists
what is lost. The old folder stays as it is; no instance may run on it.

Examples:
  tidegate doctor data
  tidegate doctor data pipelines/ --data /var/lib/tidegate     does its state fit these pipelines?
  tidegate doctor data --data /var/lib/tidegate --salvage /var/lib/tidegate.saved";

#[derive(Args, Debug)]
#[command(after_help = DATA_HELP)]
struct DataArgs {
    /// Pipeline files that are to run on it
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Folder of the instance [default: that of the settings, else ./tidegate-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Save what is whole into this folder, which must be empty
    #[arg(long, value_name = "NEW_FOLDER", conflicts_with = "files")]
    salvage: Option<PathBuf>,
    /// Print the findings as one JSON document
    #[arg(long)]
    json: bool,
}

const TABLES_HELP: &str = "\
The store: is a second put of an object refused, does one of many win who put it at the same time,
do reads and listings see what was written (in a folder of its own, which is removed again).
Each table: no version of the log is missing, each is readable, no epoch was committed twice; each
file is there, as long as the log says, with a readable footer, the rows and the bounds of the log.

Examples:
  tidegate doctor tables                                  those of ./tidegate-data
  tidegate doctor tables s3://bucket/plant                with the AWS_* variables that `run` takes
  tidegate doctor tables --data /var/lib/tidegate --json";

#[derive(Args, Debug)]
#[command(after_help = TABLES_HELP)]
struct TablesArgs {
    /// Where they are [default: where the instance of --data put them]
    #[arg(value_name = "URL")]
    url: Option<String>,
    /// Folder of the instance, to see whether they belong to its journal [default: without a URL
    /// that of the settings, else ./tidegate-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Print the findings as one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct DiskArgs {
    /// The folder that is, or will be, the data folder [default: that of the settings, else
    /// ./tidegate-data]
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Print the findings as one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct ConfigArgs {
    /// Pipeline files, or folders of *.toml files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    settings: SettingsArgs,
    /// Print the findings as one JSON document
    #[arg(long)]
    json: bool,
}

pub(super) async fn doctor(args: DoctorArgs) -> Outcome {
    match args.what {
        None => {
            let AllArgs { files, data, settings, json } = args.all;
            let process = settings.process(&files, data)?;
            tell(&parts::all(files, process).await?, json)
        }
        Some(What::Data(args)) => {
            let process = args.settings.process(&args.files, args.data)?;
            let (mut reports, data) = (process.trouble(), process.data.0);
            reports.extend(match args.salvage {
                Some(to) => parts::salvage(data, to).await?,
                None => parts::data(&args.files, data).await?,
            });
            tell(&reports, args.json)
        }
        Some(What::Tables(args)) => {
            let (mut reports, mut data) = (Vec::new(), args.data);
            // A URL alone may be of another machine's instance.
            if args.url.is_none() {
                let process = args.settings.process(&[], data)?;
                (reports, data) = (process.trouble(), Some(process.data.0));
            }
            reports.extend(parts::tables(args.url, data).await);
            tell(&reports, args.json)
        }
        Some(What::Disk(args)) => {
            let process = args.settings.process(&[], args.dir)?;
            let mut reports = process.trouble();
            reports.push(parts::disk(process.data.0, process.room).await?);
            tell(&reports, args.json)
        }
        Some(What::Config(args)) => {
            let mut reports = vec![parts::config(&args.files)?.report];
            reports.extend(args.settings.process(&args.files, None)?.report);
            tell(&reports, args.json)
        }
        Some(What::Source(args)) => tell(&source::source(&args).await?, args.json),
    }
}

impl SettingsArgs {
    /// What a run would take from the file of settings.
    fn process(&self, pipelines: &[PathBuf], data: Option<PathBuf>) -> Result<Process, Failure> {
        Process::of(self.config.as_deref(), pipelines, data)
    }
}

/// Prints the findings; a failure among them is the command's.
fn tell(reports: &[Report], json: bool) -> Result<(), Failure> {
    if json {
        print(&serde_json::to_string_pretty(reports).context("cannot write JSON")?)?;
    } else {
        let tables: Vec<String> = reports.iter().map(Report::table).collect();
        print(&tables.join("\n"))?;
        print(&summary(reports))?;
    }
    if reports.iter().all(Report::passed) { Ok(()) } else { Err(Failure::Reported) }
}
