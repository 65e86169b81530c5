//! What can be written on the command line, with the help that teaches it.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::settings::PlaceArgs;
use super::{cluster, doctor};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tidegate_pipelines::config::process::{JOURNAL_BYTES_MIN, MEMORY_BYTES_MIN};
use tidegate_pipelines::config::units;

/// What `tidegate` alone says.
pub(super) const INTRODUCTION: &str = "\
Tidegate: from MQTT to SQL and alerts in one binary.

It takes messages from devices (as their MQTT endpoint, or as a subscriber of your broker),
writes them to a journal on disk before it acknowledges them, and runs pipelines over them:
windows, anomaly detectors, alerts with webhooks, and tables of Parquet that SQL can query.
A pipeline is one TOML file.

See it work, without a network or any other program:
  tidegate demo                        500 simulated devices, three pipelines; Ctrl-C ends it
  tidegate sql \"SHOW TABLES\"           from a second terminal

Your own pipeline:
  tidegate docs                        every key of a pipeline file
  tidegate check pipeline.toml         all problems at once, each with its line and a hint
  tidegate test pipeline.toml          runs the [[test]] tables of the file
  tidegate doctor source pipeline.toml tries out its broker: would it lose messages?
  tidegate run pipeline.toml           runs it

`tidegate help` lists all commands, `tidegate help COMMAND` explains one.";

/// From MQTT to SQL and alerts in one binary.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, about, disable_help_subcommand = false)]
pub(super) struct Cli {
    /// Log more to standard error (-v: what happens, -vv: details, -vvv: everything)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(super) verbose: u8,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Shows the whole way with simulated devices, example pipelines and a webhook receiver
    Demo(DemoArgs),
    /// Runs pipelines until Ctrl-C (or until their files are read)
    Run(RunArgs),
    /// Gives the workers of this machine to the leader of a cluster
    Worker(cluster::WorkerArgs),
    /// Changes the pipelines of a running instance, the others go on
    Apply(ApplyArgs),
    /// Checks pipeline files and reports all problems at once
    Check(PathArgs),
    /// Shows what the pipelines do: sources, steps, tables, alerts
    Explain(ExplainArgs),
    /// Prints the JSON Schema of a pipeline file, for editors
    Schema(SchemaArgs),
    /// Prints the reference of all keys of pipeline files and of tidegate.toml (Markdown)
    Docs,
    /// Runs the [[test]] tables of pipeline files, in process
    Test(PathArgs),
    /// Asks SQL over the tables of a running or a stopped instance
    Sql(SqlArgs),
    /// Shows webhooks that wait or were given up, and sends them again
    Outbox(OutboxArgs),
    /// Prints a line for the file of users of an MQTT endpoint (`users_file`)
    Password(PasswordArgs),
    /// Examines what Tidegate works with
    Doctor(doctor::DoctorArgs),
}

#[derive(Args, Debug)]
pub(super) struct SchemaArgs {
    /// That of tidegate.toml instead
    #[arg(long)]
    pub(super) process: bool,
}

const DEMO_HELP: &str = "\
Examples:
  tidegate demo                     until Ctrl-C
  tidegate demo --for 30s --json    half a minute, with the totals as JSON on the last line
  tidegate demo --data /tmp/d       keep everything below another folder; run it again to go on

While it runs, from a second terminal:
  tidegate sql \"SELECT * FROM cold_chain.per_5s ORDER BY t_avg DESC LIMIT 10\"
  tidegate sql                      a prompt; \\d lists tables and columns";

#[derive(Args, Debug)]
#[command(after_help = DEMO_HELP)]
pub(super) struct DemoArgs {
    #[command(flatten)]
    pub(super) engine: EngineArgs,
    /// Number of simulated devices, each with its own connection
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = devices)]
    pub(super) devices: usize,
    /// Address of the MQTT endpoint [default: 127.0.0.1:1883, or a free port if that is taken]
    #[arg(long, value_name = "ADDR")]
    pub(super) listen: Option<SocketAddr>,
    /// How much faster than one message per second each device sends
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = speed)]
    pub(super) speed: f64,
    /// What the devices do follows from this number
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) seed: u64,
}

const RUN_HELP: &str = "\
Examples:
  tidegate run pipelines/                        all *.toml files of a folder
  tidegate run cold.toml pumps.toml --for 1h     ends by itself
  tidegate run cold.toml --tables s3://bucket/plant
  tidegate run pipelines/ --config /etc/tidegate.toml

Settings can stand in a file: --config FILE, else tidegate.toml in the current folder, else in the
folder of the (first) pipelines. Options of the command line win over it.

Ctrl-C (or SIGTERM) ends cleanly: what was acknowledged is processed and committed first.
A second Ctrl-C ends at once; nothing is lost then either: the next start replays the journal.";

#[derive(Args, Debug)]
#[command(after_help = RUN_HELP)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) paths: PathArgs,
    #[command(flatten)]
    pub(super) engine: EngineArgs,
    /// Settings of the process; see `tidegate docs`
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Where tables go: a folder or s3://bucket/prefix [default: DATA/tables]
    #[arg(long, value_name = "URL")]
    pub(super) tables: Option<String>,
    /// Time between checkpoints: about as much is replayed after a crash [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) checkpoint_every: Option<Duration>,
    /// Windows that readings are too late for are computed again from stored readings, those of so
    /// much time of arrival at once [default: 1m]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) recompute_every: Option<Duration>,
    /// How long the journal keeps what no recovery needs, for the operators of changed pipelines;
    /// never more than half of its budget [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(super) journal_keep: Option<Duration>,
    /// Most bytes of the journal on disk; beyond it sources are slowed down [default: 4GiB]
    #[arg(long, value_name = "SIZE", value_parser = journal_max)]
    pub(super) journal_max: Option<u64>,
    /// Acknowledge nothing while the disk has less free than this: checkpoints, tables and alerts
    /// need room to be written [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = units::size_bytes)]
    pub(super) disk_reserve: Option<u64>,
    /// Most rows on the local disk that wait for tables, such as while the object store is away;
    /// beyond it everything waits [default: 4GiB]
    #[arg(long, value_name = "SIZE", value_parser = units::size_bytes)]
    pub(super) spill_max: Option<u64>,
    /// Most notifications that wait for their webhooks; beyond it new ones are given up at once,
    /// and can be sent again [default: 100000]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(super) outbox_max: Option<NonZeroUsize>,
    /// Most memory, resident and swapped out; at it rows of new keys are refused, near it sources
    /// are slowed down;
    /// 0: no budget [default: three quarters of what the control group or the machine has]
    #[arg(long, value_name = "SIZE", value_parser = memory_max)]
    pub(super) memory_max: Option<u64>,
    /// Apply the files whenever they change; a bad one is told, and what runs goes on
    #[arg(long)]
    pub(super) watch: bool,
    #[command(flatten)]
    pub(super) cluster: cluster::LeaderArgs,
}

const APPLY_HELP: &str = "\
The files stand for everything that is to run: a pipeline that is not among them is removed. Other
pipelines are not touched. Operators that did not change keep their state, also under another name;
changed ones are made anew from what the journal still has; open alerts of changed or removed rules
end as resolved, with the reason rule_changed. If it cannot be done, everything goes on as it was.

Examples:
  tidegate apply pipelines/ --dry-run         what would be kept, rebuilt, new, gone
  tidegate apply pipelines/
  tidegate apply a.toml b.toml --data /var/lib/tidegate

Sources are opened and closed at a start only. Exit code: 0 done, 1 refused, with all reasons.";

#[derive(Args, Debug)]
#[command(after_help = APPLY_HELP)]
pub(super) struct ApplyArgs {
    #[command(flatten)]
    pub(super) paths: PathArgs,
    #[command(flatten)]
    pub(super) place: PlaceArgs,
    /// Only say what would be done
    #[arg(long)]
    pub(super) dry_run: bool,
}

/// Where an instance keeps everything if nobody says otherwise.
pub(super) const DATA_DEFAULT: &str = "./tidegate-data";

/// What `demo` and `run` share.
#[derive(Args, Debug)]
pub(super) struct EngineArgs {
    /// Folder for journal, checkpoints and tables [default: ./tidegate-data]
    #[arg(long, value_name = "DIR")]
    pub(super) data: Option<PathBuf>,
    /// Dataflow workers [default: the number of cores]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub(super) workers: Option<NonZeroUsize>,
    /// End after this time, such as 30s or 10m
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub(super) time: Option<Duration>,
    /// Answer HTTP on this address: /metrics (Prometheus, OpenMetrics), /health, /ready
    #[arg(long, value_name = "ADDR")]
    pub(super) metrics: Option<String>,
    /// Print the totals as one JSON object on the last line of standard output
    #[arg(long)]
    pub(super) json: bool,
}

impl EngineArgs {
    /// The data folder.
    pub(super) fn data(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(|| DATA_DEFAULT.into())
    }

    /// The number of workers to use.
    pub(super) fn workers(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.workers.map_or_else(cores, NonZeroUsize::get)
    }
}

#[derive(Args, Debug)]
pub(super) struct PathArgs {
    /// Pipeline files, or folders of *.toml files
    #[arg(required = true, value_name = "PATH")]
    pub(super) paths: Vec<PathBuf>,
}

const EXPLAIN_HELP: &str = "\
Examples:
  tidegate explain pipelines/ --dot | dot -Tsvg > plan.svg
  tidegate explain new/ --against pipelines/         what a change keeps, rebuilds, ends
  tidegate explain new/ --against tidegate-data      the same, against what runs there, or ran last
  tidegate explain new/ --against pipelines/ --data tidegate-data";

#[derive(Args, Debug)]
#[command(after_help = EXPLAIN_HELP)]
pub(super) struct ExplainArgs {
    #[command(flatten)]
    pub(super) paths: PathArgs,
    /// Print a graph in the DOT language instead of text
    #[arg(long)]
    pub(super) dot: bool,
    /// Say instead what becomes of the state if these files (or what runs on this data folder) are
    /// replaced
    #[arg(long, value_name = "OLD", num_args = 1.., conflicts_with = "dot")]
    pub(super) against: Vec<PathBuf>,
    /// With --against files: the data folder, to say from when on its journal has readings
    #[arg(long, value_name = "DIR", requires = "against")]
    pub(super) data: Option<PathBuf>,
}

const SQL_HELP: &str = "\
Without a query it opens a prompt with history; there, \\d lists tables and columns.

Examples:
  tidegate sql \"SHOW TABLES\"
  tidegate sql \"SELECT rule, status, count(*) FROM system.alerts GROUP BY ALL\"
  tidegate sql -o csv \"SELECT * FROM cold_chain.per_5s\" > windows.csv
  tidegate sql --tables s3://bucket/plant \"SELECT count(*) FROM system.rejects\"";

#[derive(Args, Debug)]
#[command(after_help = SQL_HELP)]
pub(super) struct SqlArgs {
    #[command(flatten)]
    pub(super) place: PlaceArgs,
    /// Where its tables are, if elsewhere: a folder or s3://bucket/prefix
    #[arg(long, value_name = "URL")]
    pub(super) tables: Option<String>,
    /// How rows are printed
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,
    /// Stop a statement that takes longer; 0: never. Time in which rows wait for whoever reads
    /// them (a pager) does not count [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = timeout)]
    pub(super) timeout: Option<Duration>,
    /// Most memory for sorts, joins and aggregates; what does not fit goes to disk where that can
    /// be, and else the statement is stopped [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = query_memory)]
    pub(super) memory_max: Option<usize>,
    /// The query; none opens a prompt
    #[arg(value_name = "QUERY")]
    pub(super) query: Option<String>,
}

const OUTBOX_HELP: &str = "\
Both work beside a running instance and on a stopped one: what is to be sent again goes out within
a second, or at the next start, under its old webhook-id. Its age for `max_age` counts from then.

Examples:
  tidegate outbox                    what waits and what was given up
  tidegate outbox resend ID          sends one again that was given up
  tidegate outbox resend --all-dead  sends all of them again";

#[derive(Args, Debug)]
#[command(after_help = OUTBOX_HELP)]
pub(super) struct OutboxArgs {
    #[command(flatten)]
    pub(super) place: PlaceArgs,
    #[command(subcommand)]
    pub(super) command: Option<OutboxCommand>,
}

#[derive(Debug, Subcommand)]
pub(super) enum OutboxCommand {
    /// One line for each notification that waits or was given up
    List,
    /// Sends notifications again that were given up
    Resend(ResendArgs),
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct ResendArgs {
    /// The webhook-ids, as `list` prints them
    #[arg(value_name = "ID")]
    pub(super) ids: Vec<String>,
    /// All that were given up
    #[arg(long)]
    pub(super) all_dead: bool,
}

const PASSWORD_HELP: &str = "\
The password is asked for without showing it, or is the first line of standard input. What is
printed holds no password, only a slow hash of it (argon2id), so the file may be read by others;
but whoever can write it lets people in.

Examples:
  tidegate password gateway-1 >> users.txt
  openssl rand -base64 24 | tee gateway-1.secret | tidegate password gateway-1 >> users.txt

In the pipeline file:
  [source]
  type = \"endpoint\"
  users_file = \"users.txt\"

A running endpoint takes a changed file within a second. To change a password, replace the line;
to lock somebody out, delete it. Connections that are open stay open.";

#[derive(Args, Debug)]
#[command(after_help = PASSWORD_HELP)]
pub(super) struct PasswordArgs {
    /// Name of the user; without it, only the hash is printed
    #[arg(value_name = "NAME")]
    pub(super) name: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Aligned columns, for people
    Table,
    /// Comma-separated, with a header
    Csv,
    /// One JSON object per row and line
    Json,
    /// One Parquet file on standard output
    Parquet,
}

fn at_least_one(text: &str) -> Result<NonZeroUsize, String> {
    let number: usize = text.parse().map_err(|_| "it is no whole number".to_owned())?;
    NonZeroUsize::new(number).ok_or_else(|| "it must be 1 or more".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    match units::duration_us(text)? {
        us if us > 0 => Ok(Duration::from_micros(us.unsigned_abs())),
        _ => Err("it must be longer than nothing".to_owned()),
    }
}

/// 0: no limit.
fn timeout(text: &str) -> Result<Duration, String> {
    if text.trim() == "0" { Ok(Duration::ZERO) } else { duration(text) }
}

/// As in `tidegate.toml`.
fn journal_max(text: &str) -> Result<u64, String> {
    match units::size_bytes(text)? {
        bytes if bytes >= JOURNAL_BYTES_MIN => Ok(bytes),
        _ => Err(format!("at least {}KiB are needed", JOURNAL_BYTES_MIN >> 10)),
    }
}

fn memory_max(text: &str) -> Result<u64, String> {
    match text.trim() {
        "0" => Ok(0),
        text => match units::size_bytes(text)? {
            bytes if bytes >= MEMORY_BYTES_MIN => Ok(bytes),
            _ => Err(format!("at least {}MiB are needed", MEMORY_BYTES_MIN >> 20)),
        },
    }
}

/// With less a sort has no room to merge what it has put on disk.
const QUERY_MEMORY_BYTES_MIN: u64 = 32 << 20;

fn query_memory(text: &str) -> Result<usize, String> {
    match units::size_bytes(text)? {
        bytes if bytes >= QUERY_MEMORY_BYTES_MIN => {
            usize::try_from(bytes).map_err(|_| "it is more than there can be".to_owned())
        }
        _ => Err(format!("at least {}MiB are needed", QUERY_MEMORY_BYTES_MIN >> 20)),
    }
}

/// More devices than this would need more ports and file descriptors than a usual machine gives.
const DEVICES_MAX: usize = 10_000;

fn devices(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=DEVICES_MAX).contains(&count) => Ok(count),
        _ => Err(format!("a number from 1 to {DEVICES_MAX} is needed")),
    }
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if (0.01..=1000.0).contains(&factor) => Ok(factor),
        _ => Err("a number from 0.01 to 1000 is needed".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_parse() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("tidegate").unwrap().command.is_none());
        let cli = parse("tidegate demo --for 1m30s --json --devices 600 --speed 2 -v").unwrap();
        assert_eq!(cli.verbose, 1);
        let Some(Command::Demo(demo)) = cli.command else { unreachable!("demo was asked for") };
        assert_eq!(demo.engine.time, Some(Duration::from_secs(90)));
        assert_eq!((demo.devices, demo.engine.json), (600, true));
        assert_eq!(demo.engine.data(), PathBuf::from("./tidegate-data"));
        let Some(Command::Run(run)) = parse("tidegate run a.toml dir --workers 2").unwrap().command
        else {
            unreachable!("run was asked for")
        };
        assert_eq!((run.paths.paths.len(), run.engine.workers()), (2, 2));
        assert!(parse("tidegate explain --dot a.toml").is_ok());
        assert!(parse("tidegate sql -o parquet SELECT").is_ok());
        assert!(parse("tidegate sql --timeout 1m SELECT").is_ok());
        assert!(parse("tidegate sql --timeout 0 SELECT").is_ok());
        assert!(parse("tidegate sql --memory-max 4GiB SELECT").is_ok());
        assert!(parse("tidegate sql --memory-max 4MiB SELECT").is_err());
        assert!(parse("tidegate outbox").is_ok() && parse("tidegate outbox list").is_ok());
        assert!(parse("tidegate outbox resend a b --data d").is_ok());
        assert!(parse("tidegate outbox resend --all-dead").is_ok());
        let cluster = "--cluster a:1,b:2 --cluster-secret-file s";
        assert!(parse(&format!("tidegate run a.toml {cluster}")).is_ok());
        assert!(parse(&format!("tidegate worker --process 1 {cluster}")).is_ok());
        assert!(parse("tidegate password").is_ok() && parse("tidegate password gw-1").is_ok());
    }

    #[test]
    fn numbers_that_cannot_be_are_told_in_words() {
        for (number, why) in [("0", "it must be 1 or more"), ("two", "it is no whole number")] {
            let line = ["tidegate", "run", "a.toml", "--workers", number];
            assert!(Cli::try_parse_from(line).unwrap_err().to_string().contains(why), "{number}");
        }
    }

    #[test]
    fn wrong_usage_is_code_two() {
        for line in [
            "tidegate run",
            "tidegate run a.toml --workers 0",
            "tidegate run a.toml --journal-max 1KiB",
            "tidegate demo --for 30",
            "tidegate demo --for 0s",
            "tidegate demo --devices 0",
            "tidegate demo --speed nan",
            "tidegate sql -o xml SELECT",
            "tidegate outbox resend",
            "tidegate outbox resend a --all-dead",
            "tidegate run a.toml --cluster a:1,b:2",
            "tidegate run a.toml --cluster-secret-file s",
            "tidegate run a.toml --cluster a:1,b --cluster-secret-file s",
            "tidegate worker --cluster a:1,b:2 --cluster-secret-file s",
            "tidegate worker --cluster a:1,b:2 --process 1",
            "tidegate password a b",
            "tidegate run a.toml --memory-max 100MiB",
            "tidegate dmeo",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
