//! The command line. Each command has a file with its body; this one only knows their names.
//!
//! Exit codes: 0 done, 1 the thing asked for failed, 2 the command line was wrong, 3 another
//! process of the same instance has taken over its tables, 4 another process of its cluster is
//! gone.

mod apply;
mod args;
mod check;
pub(crate) mod cluster;
mod control;
mod demo;
mod doctor;
mod failure;
mod files;
mod finish;
mod logging;
mod outbox;
mod password;
mod run;
mod settings;
mod sql;
mod start;
mod stop;
mod test;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use tidegate_runtime::screen::Screen;

use args::{Cli, Command};
use failure::Failure;

/// What a command gives back: success, or why not.
type Outcome = Result<(), Failure>;

/// Runs the command that the process was started with.
pub(crate) fn main() -> ExitCode {
    // Wrong usage ends here, with code 2 and clap's message.
    let cli = Cli::parse();
    let screen = Arc::new(Screen::stdout());
    logging::start(cli.verbose, &screen);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return Failure::from(anyhow::Error::from(e)).report(),
    };
    let outcome = match cli.command {
        None => print(args::INTRODUCTION),
        Some(Command::Schema(args)) => print(&match args.process {
            true => format!("{:#}", tidegate_pipelines::process_schema()),
            false => format!("{:#}", tidegate_pipelines::schema()),
        }),
        Some(Command::Docs) => print(&tidegate_pipelines::docs_markdown()),
        Some(Command::Outbox(args)) => outbox::outbox(args),
        Some(Command::Password(args)) => password::password(&args),
        Some(Command::Apply(args)) => apply::apply(&args),
        Some(Command::Check(args)) => check::check(&args),
        Some(Command::Explain(args)) => check::explain(&args),
        Some(Command::Test(args)) => test::test(&args),
        Some(Command::Demo(args)) => runtime.block_on(demo::demo(args, &screen)),
        Some(Command::Run(args)) => runtime.block_on(run::run(args, &screen)),
        Some(Command::Doctor(args)) => runtime.block_on(doctor::doctor(args)),
        Some(Command::Worker(args)) => cluster::worker(&args),
        Some(Command::Sql(args)) => runtime.block_on(sql::sql(args)),
    };
    // A blocked read of standard input or a slow store must not hold the process.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Prints a text with a line end. A closed pipe (as with `| head`) is no failure.
fn print(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.trim_end().as_bytes()).and_then(|()| out.write_all(b"\n"));
    match written {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::from(e).context("cannot write to standard output").into())
        }
        _ => Ok(()),
    }
}
