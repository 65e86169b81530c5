//! `tidegate doctor`: what is wrong, where, what it means, what to do. Each thing that can be
//! examined is a subcommand; without one, everything that can be found is.

mod parts;
mod progress;
mod source;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use tidegate_runtime::doctor::Report;

use super::args::DATA_DEFAULT;
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
    /// Folder of the instance
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print the findings as one JSON document
    #[arg(long)]
    json: bool,
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
outbox. Says whether a start can recover, and from which epoch. The torn end of the newest segment
is normal after a crash: nobody was answered for it, and a start cuts it off.

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
    /// Folder of the instance
    #[arg(long, value_name = "DIR", default_value = DATA_DEFAULT)]
    data: PathBuf,
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
    /// Folder of the instance, to see whether they belong to its journal
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print the findings as one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct DiskArgs {
    /// The folder that is, or will be, the data folder
    #[arg(value_name = "DIR", default_value = DATA_DEFAULT)]
    dir: PathBuf,
    /// Print the findings as one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct ConfigArgs {
    /// Pipeline files, or folders of *.toml files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print the findings as one JSON document
    #[arg(long)]
    json: bool,
}

pub(super) async fn doctor(args: DoctorArgs) -> Outcome {
    match args.what {
        None => tell(&parts::all(args.all.files, args.all.data).await?, args.all.json),
        Some(What::Data(DataArgs { salvage: Some(to), data, json, .. })) => {
            tell(&parts::salvage(data, to).await?, json)
        }
        Some(What::Data(args)) => tell(&parts::data(&args.files, args.data).await?, args.json),
        Some(What::Tables(args)) => tell(&parts::tables(args.url, args.data).await, args.json),
        Some(What::Disk(args)) => tell(&[parts::disk(args.dir).await?], args.json),
        Some(What::Config(args)) => tell(&[parts::config(&args.files)?.0], args.json),
        Some(What::Source(args)) => tell(&source::source(&args).await?, args.json),
    }
}

/// Prints the findings; a failure among them is the command's.
fn tell(reports: &[Report], json: bool) -> Result<(), Failure> {
    if json {
        print(&serde_json::to_string_pretty(reports).context("cannot write JSON")?)?;
    } else {
        let tables: Vec<String> = reports.iter().map(Report::table).collect();
        print(&tables.join("\n"))?;
    }
    if reports.iter().all(Report::passed) { Ok(()) } else { Err(Failure::Reported) }
}
