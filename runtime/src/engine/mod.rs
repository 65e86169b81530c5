//! The running process: sources -> journal -> workers -> commit, started and stopped in order.
//!
//! Start: tables and outbox say what they have, the newest checkpoint gives the operators their
//! state, the journal is replayed from the epoch after it, and only then do sources open their
//! doors. Stop: sources first, then the journal seals its last epoch, the workers finish it and
//! save their state, tables are committed, and the last checkpoint is written.

mod access;
mod alarms;
mod anew;
mod apply;
mod belonging;
mod blocked;
pub(crate) mod checkpoints;
pub mod cluster;
mod commit;
mod conditions;
mod content;
mod cuts;
pub(crate) mod earlier;
mod feed;
mod fence;
mod files;
mod flows;
pub(crate) mod folder;
mod limits;
mod live_feed;
mod memory;
pub(crate) mod notifications;
mod observer;
mod opening;
mod options;
mod patience;
mod recompute;
mod registries;
mod replaying;
mod shadow;
mod sources;
mod standing;
mod start;
#[cfg(test)]
pub(crate) mod stepped;
mod switching;
mod tables;
mod takeover;
pub mod trial;
mod workers;

pub use self::anew::look_at as begun_anew;
pub use self::apply::{Applied, Applier};
pub use self::earlier::{Earlier, earlier, is_running, ran_last};
pub use self::files::{Progress, Reading};
pub(crate) use self::folder::{INSTANCE, name_anew, named};
pub use self::observer::Observer;
pub use self::options::{EngineOptions, FENCED_EXIT_CODE, OnFenced, Recovery, Report, moment};
pub use self::registries::look_at_file as look_at_registry;
pub use self::replaying::{Replayed, Replaying};
pub use self::tables::TableState;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use tidegate_pipelines::Plan;
use tidegate_pipelines::plan::RegistryPlace;
use tidegate_sql::Store;
use tokio::sync::oneshot;

use self::alarms::{Alarms, Rule};
use self::commit::Committer;
use self::fence::{Fence, Watching};
use self::files::{FileOptions, FileRun, FileSource};
use self::folder::{create_dir, instance_id, note_tables, refuse_second};
use self::recompute::Recomputing;
use self::registries::Registries;
use self::sources::Sources;
pub use self::sources::subscriber_config;
use self::workers::Event;
use crate::fault;
use crate::journal::Journal;
use crate::stats::Stats;
use crate::webhook::WebhookSender;

/// Rows and reports on their way to the committer. A full queue holds the workers back.
const EVENTS_MAX: usize = 1024;

/// How long a clean shutdown waits for webhooks that are on their way. What is left stays in the
/// outbox.
const SEND_AT_END_MAX: Duration = Duration::from_secs(3);

/// A running plan.
pub struct Engine {
    stats: Arc<Stats>,
    live: Option<Live>,
    files: Option<FileRun>,
    finished: oneshot::Receiver<anyhow::Result<()>>,
    recovery: Recovery,
    started: Instant,
    ended: bool,
}

/// What a plan with live sources has beyond workers and tables.
struct Live {
    applier: Arc<Applier>,
    journal: Arc<Journal>,
    sources: Sources,
    registries: Arc<Registries>,
    sender: Arc<WebhookSender>,
    observed: Arc<observer::Live>,
    fence: Arc<Fence>,
    _watching: Watching,
    alarms: Alarms,
    late: Option<Recomputing>,
    last_ticks: Arc<AtomicBool>,
    end: std::sync::mpsc::Sender<()>,
}

impl Engine {
    /// Starts a plan.
    ///
    /// # Errors
    /// Anything that keeps it from running: folders, ports, tables of another shape, damage.
    pub async fn start(mut plan: Plan, mut options: EngineOptions) -> anyhow::Result<Self> {
        anyhow::ensure!(options.workers > 0, "at least one worker is needed");
        if options.finishing.is_some() {
            // What is on a topic is in the journal; nobody else is asked.
            plan.registries.retain(|r| matches!(r.place, RegistryPlace::Topic(_)));
            // The rows are the same on one process, and followers know of one plan only.
            options.cluster = None;
        }
        fault::reach_tables();
        create_dir(&options.data)?;
        let instance = instance_id(&options.data)?;
        let tables_url = match &options.tables {
            Some(url) => url.clone(),
            None => options.data.join("tables").display().to_string(),
        };
        let store = folder::open_tables(&tables_url)?;
        let (data, elsewhere) = (options.data.clone(), options.tables.is_some());
        let files = sources::files(&plan)?;
        anyhow::ensure!(
            files.is_empty() || options.cluster.is_none(),
            "a run over files is of one process: only live sources can have a cluster"
        );
        let engine = if files.is_empty() {
            refuse_second(&data)?;
            let claimed = OnceLock::new();
            match Self::start_live(plan, options, (store.clone(), instance), &claimed).await {
                Ok(engine) => engine,
                Err(error) => {
                    // Whoever comes next need not wait for a start that came to nothing.
                    if let Some(fence) = claimed.get() {
                        fence.give_up().await;
                    }
                    return Err(error);
                }
            }
        } else {
            Self::start_files(plan, options, store.clone(), &files).await?
        };
        // Only now: a start that was refused must not move the tables of the one that runs.
        note_tables(&data, elsewhere.then_some(&store))
            .with_context(|| format!("cannot write into {}", data.display()))?;
        Ok(engine)
    }

    async fn start_files(
        plan: Plan,
        options: EngineOptions,
        store: Store,
        sources: &[FileSource],
    ) -> anyhow::Result<Self> {
        let stats = Arc::new(Stats::default());
        let (registries, registries_print) = registries::for_files(&plan, &options.data).await?;
        let file_options = FileOptions {
            registries,
            registries_print,
            pipelines: plan.pipelines,
            workers: options.workers,
            store,
            elsewhere: options.tables,
            data: options.data,
            stats: Arc::clone(&stats),
            spill_bytes_max: options.spill_bytes_max,
        };
        let (run, finished) = files::start(sources, file_options).await?;
        Ok(Self { files: Some(run), ..Self::new(stats, finished) })
    }

    fn new(stats: Arc<Stats>, finished: oneshot::Receiver<anyhow::Result<()>>) -> Self {
        Self {
            stats,
            live: None,
            files: None,
            finished,
            recovery: Recovery::default(),
            started: Instant::now(),
            ended: false,
        }
    }

    /// The live counters.
    pub fn stats(&self) -> Arc<Stats> {
        self.refresh();
        Arc::clone(&self.stats)
    }

    /// Brings counters up to date that other parts keep.
    pub fn refresh(&self) {
        self.observer().refresh();
    }

    /// What anybody may look at while it runs, without holding it up.
    pub fn observer(&self) -> Observer {
        let live = self.live.as_ref().map(|live| Arc::clone(&live.observed));
        Observer { stats: Arc::clone(&self.stats), live }
    }

    /// What changes the plan while it runs; `None` for files.
    pub fn applier(&self) -> Option<Arc<Applier>> {
        self.live.as_ref().map(|live| Arc::clone(&live.applier))
    }

    /// What the start found and did; `None` for files.
    pub fn recovery(&self) -> Option<&Recovery> {
        self.live.as_ref().map(|_| &self.recovery)
    }

    /// Where Tidegate's own endpoint listens, if the plan has one.
    pub fn endpoint_addr(&self) -> Option<SocketAddr> {
        self.live.as_ref().and_then(|l| l.sources.endpoint_addr())
    }

    /// All addresses that are listened on, each with what is spoken there: `endpoint` (MQTT),
    /// `mqtts`, `ws`, `wss`, `http`.
    pub fn doors(&self) -> Vec<(&'static str, SocketAddr)> {
        self.live.as_ref().map(|l| l.sources.doors()).unwrap_or_default()
    }

    /// How far a run over files is; `None` for live sources.
    pub fn progress(&self) -> Option<Arc<Progress>> {
        self.files.as_ref().map(|run| Arc::clone(&run.progress))
    }

    /// What is wrong at present, if anything is, for people. A full journal is not: it is what
    /// slows sources down.
    pub fn unhealthy(&self) -> Option<String> {
        let mut problems = self.observer().problems().into_iter();
        problems.find(|(what, _)| *what != Rule::JournalFull.name()).map(|(_, why)| why)
    }

    /// Resolves when the engine ends by itself: all files read, or a fatal error.
    ///
    /// # Errors
    /// The fatal error.
    pub async fn ended(&mut self) -> anyhow::Result<()> {
        if self.ended {
            return Ok(());
        }
        let result = (&mut self.finished).await.context("the commit thread is gone");
        self.ended = true;
        result?
    }

    /// Stops the sources, finishes every epoch, commits tables and the last checkpoint.
    ///
    /// # Errors
    /// What kept it from finishing; nothing that was acknowledged is lost by that.
    pub async fn shutdown(mut self) -> anyhow::Result<Report> {
        let observer = self.observer();
        if let Some(mut live) = self.live.take() {
            live.sources.stop().await?;
            live.registries.stop();
            observer.refresh();
            live.last_ticks.store(true, Ordering::Release);
            let _ = live.end.send(());
            live.late.iter().for_each(Recomputing::tell_to_stop);
            let journal = Arc::clone(&live.journal);
            tokio::task::spawn_blocking(move || journal.shutdown()).await?;
            // The feed dies with the journal's writer, and with it the workers' last command. An
            // error is told at the end: whoever starts next in this process needs the folder free.
            let ended = self.ended().await;
            if let Some(mut late) = live.late.take() {
                tokio::task::spawn_blocking(move || late.stop()).await?;
            }
            match ended {
                Ok(()) => live.fence.note_ended().await,
                Err(_) => live.fence.give_up().await,
            }
            live.send_rest().await;
            observer.refresh();
            live.sender.shutdown(Duration::from_secs(1)).await;
            live.alarms.stop().await;
            ended?;
        } else {
            if let Some(files) = &self.files {
                files.stop();
            }
            self.ended().await?;
        }
        Ok(Report { stats: self.stats.snapshot(), seconds: self.started.elapsed().as_secs_f64() })
    }
}

impl Live {
    /// Gives webhooks that are on their way a little time.
    async fn send_rest(&self) {
        let until = Instant::now() + SEND_AT_END_MAX;
        while self.sender.stats().iter().any(|w| w.pending > 0) && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn spawn_committer(
    committer: Committer,
    received: std::sync::mpsc::Receiver<Event>,
) -> anyhow::Result<oneshot::Receiver<anyhow::Result<()>>> {
    let (sender, finished) = oneshot::channel();
    std::thread::Builder::new().name("commit".into()).spawn(move || {
        let _ = sender.send(committer.run(received));
    })?;
    Ok(finished)
}

#[cfg(test)]
mod tests;
