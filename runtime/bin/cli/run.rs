//! `tidegate run`: pipelines from files, until they are done or someone ends them.

use std::sync::Arc;

use tidegate_runtime::open_files;
use tidegate_runtime::screen::Screen;
use tidegate_runtime::summary::Summary;

use super::args::RunArgs;
use super::settings::Settings;
use super::stop::Stop;
use super::{Outcome, cluster, files, finish, start};

pub(super) async fn run(args: RunArgs, screen: &Arc<Screen>) -> Outcome {
    let plan = files::load(&args.paths.paths)?;
    let mut stop = Stop::new(args.engine.time)?;
    let names: Vec<String> = plan.pipelines.iter().map(|p| p.name.clone()).collect();
    let Settings { mut options, metrics, watch, memory } = Settings::of(&args)?;
    options.cluster = args.cluster.options()?;
    let (data, tables) = (options.data.clone(), options.tables.clone());
    let cluster = options.cluster.clone();
    let starting = start::start(plan, options, metrics.as_deref(), screen);
    let started = match &cluster {
        None => Some(starting.await?),
        Some(cluster) => cluster::unless_stopped(starting, &mut stop, &cluster.give_up).await?,
    };
    let Some(mut started) = started else {
        eprintln!("stopped while it waited for the cluster");
        return Ok(());
    };
    let engine = &mut started.engine;
    stop.restart(args.engine.time);
    screen.print(&format!("running {} on {}", names.join(", "), data.display()));
    // Nothing comes in faster than files are read.
    if engine.recovery().is_some() {
        eprintln!("memory: {memory}");
        eprintln!("connections: {}", open_files::room());
    }
    // To standard error, also for programs that wait for it: standard output is for results.
    let doors = engine.doors().into_iter();
    let doors: Vec<String> = doors.map(|(what, at)| format!("{what} listening on {at}")).collect();
    match doors.is_empty() {
        true => eprintln!("ready"),
        false => eprintln!("ready: {}", doors.join(", ")),
    }
    let applier = engine.applier();
    let _control = applier.as_ref().and_then(|a| super::apply::listen(&data, a, screen));
    if let Some(applier) = applier.filter(|_| watch) {
        super::apply::watch(&args.paths.paths, &applier, screen);
    }
    let stats = engine.stats();
    let progress = engine.progress();
    if progress.as_ref().is_some_and(|p| p.files() == 0) {
        screen.print("all files were read before: there is nothing new");
    }
    let mut summary = Summary::new("tidegate run", stats, None).of_files(progress.clone());
    let watched = finish::watch(engine, &mut summary, screen, &mut stop).await;
    stop.next_signal_exits();
    // Also after a failure: whatever can be committed still is.
    let stopped = started.shutdown().await;
    watched?;
    stopped?;
    if progress.is_some_and(|p| !p.is_complete()) {
        screen.print("stopped before the end of the files: the same command goes on");
    }
    let hint = match tables {
        Some(url) => format!("query the tables with: tidegate sql --tables {url}"),
        None => format!("query the tables with: tidegate sql --data {}", data.display()),
    };
    finish::totals(screen, &summary.picture(), args.engine.json, &hint);
    Ok(())
}
