//! A run over files: one generation after the other, each with workers of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tidegate_operators::Messages;
use tidegate_operators::spec::PipelineSpec;
use tidegate_pipelines::{fingerprint, graph};
use tidegate_sql::Store;
use tokio::sync::oneshot;

use super::discover::{FileSource, Found};
use super::feeder::Feeder;
use super::ledger::{Ledger, Place, Todo};
use super::progress::Progress;
use crate::checkpoint::CheckpointStore;
use crate::engine::belonging;
use crate::engine::checkpoints::{Checkpoints, Restored};
use crate::engine::commit::Committer;
use crate::engine::feed::{FeedQueue, InFlight};
use crate::engine::recompute;
use crate::engine::tables::{SpillBudget, TableContext};
use crate::engine::workers::{self, Event, WorkerPlan};
use crate::engine::{EVENTS_MAX, spawn_committer};
use crate::journal::storage::{DirLock, lock_dir};
use crate::stats::Stats;

/// Folder of the state of operators, beside the ledger.
const CHECKPOINTS: &str = "checkpoints";

/// A run as the engine sees it.
#[derive(Debug)]
pub(in crate::engine) struct FileRun {
    pub(in crate::engine) progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
}

impl FileRun {
    /// Asks the run to stop: what is complete is committed, the rest is left to the next run.
    pub(in crate::engine) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }
}

/// What a run is started with.
pub(in crate::engine) struct FileOptions {
    /// What registries say before the first file is read.
    pub(in crate::engine) registries: Vec<Messages>,
    /// A text that is another one if they say something else.
    pub(in crate::engine) registries_print: String,
    pub(in crate::engine) pipelines: Vec<PipelineSpec>,
    pub(in crate::engine) workers: usize,
    pub(in crate::engine) store: Store,
    /// Where the tables are, if they are not in the data folder.
    pub(in crate::engine) elsewhere: Option<String>,
    /// The data folder.
    pub(in crate::engine) data: PathBuf,
    pub(in crate::engine) stats: Arc<Stats>,
    /// How many bytes of rows may wait on disk for tables.
    pub(in crate::engine) spill_bytes_max: u64,
}

/// Resolves when a run has ended, and why.
type Finished = oneshot::Receiver<anyhow::Result<()>>;

/// What the thread that reads ended with: where it came to, `None` if it was stopped.
type Fed = oneshot::Receiver<Option<Place>>;

struct Runner {
    options: FileOptions,
    dir: PathBuf,
    _lock: DirLock,
    /// Whether there can be more files later, so that state has to be kept for them.
    grows: bool,
    found: Vec<Found>,
    ledger: Arc<Mutex<Ledger>>,
    progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
}

/// Finds the files, and starts to read those that are to be read.
pub(in crate::engine) async fn start(
    sources: &[FileSource],
    options: FileOptions,
) -> anyhow::Result<(FileRun, Finished)> {
    let mut found = Vec::new();
    let mut key = String::new();
    for source in sources {
        found.extend(source.find()?);
        key.push_str(&format!("{} {}\n", source.source, source.key()?));
    }
    let tables = options.elsewhere.as_deref().map(whole).unwrap_or_default();
    let folder = format!("{key}{tables}");
    let folder = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(folder.as_bytes()));
    let dir = options.data.join("files").join(folder);
    let lock = lock_dir(&dir).with_context(|| format!("cannot use {}", dir.display()))?;
    let mut prints: Vec<String> =
        options.pipelines.iter().map(|p| format!("{:016x}", fingerprint(p))).collect();
    if !options.registries_print.is_empty() {
        // Another registry is another plan: all files are read again with it.
        prints.push(options.registries_print.clone());
    }
    let mut ledger = Ledger::open(&dir, &key, &tables, &prints.join(","), &found)?;
    // Before anything is forgotten: what is refused leaves all as it was.
    belonging::take(&options.store, &graph::tables(&options.pipelines)).await?;
    let grows = sources.iter().any(FileSource::grows);
    let usable = if grows { resume(&dir, &options.pipelines, &mut ledger)? } else { false };
    if !usable {
        ledger.start_over();
        forget_checkpoints(&dir)?;
    }
    let progress = Arc::new(Progress::new());
    let stop = Arc::new(AtomicBool::new(false));
    let run = FileRun { progress: Arc::clone(&progress), stop: Arc::clone(&stop) };
    let ledger = Arc::new(Mutex::new(ledger));
    let runner = Runner { options, dir, _lock: lock, grows, found, ledger, progress, stop };
    // The first one here: what is wrong with tables or files is told before anything else is.
    let first = runner.begin(true).await?;
    let (files, bytes) = runner.ledger().left(&runner.found);
    runner.progress.expect(files, bytes);
    let (sender, finished) = oneshot::channel();
    tokio::spawn(async move {
        let _ = sender.send(runner.all(first).await);
    });
    Ok((run, finished))
}

/// The same name for the same place, wherever the process was started.
fn whole(url: &str) -> String {
    let path = std::fs::canonicalize(url).ok().filter(|_| !url.contains("://"));
    path.map_or_else(|| url.to_owned(), |path| path.display().to_string())
}

/// Whether the state of the newest generation that was read is there, or none was read yet.
fn resume(
    dir: &std::path::Path,
    pipelines: &[PipelineSpec],
    ledger: &mut Ledger,
) -> anyhow::Result<bool> {
    let restored = restore(dir, pipelines)?;
    if restored.epoch == 0 {
        return Ok(ledger.done() == 0);
    }
    ledger.saved(restored.epoch)?;
    Ok(restored.changed.is_empty() && restored.epoch + 1 == ledger.start(ledger.done()).epoch)
}

fn restore(dir: &std::path::Path, pipelines: &[PipelineSpec]) -> anyhow::Result<Restored> {
    Restored::read(&CheckpointStore::open(dir.join(CHECKPOINTS))?, pipelines)
}

fn forget_checkpoints(dir: &std::path::Path) -> anyhow::Result<()> {
    let checkpoints = dir.join(CHECKPOINTS);
    match std::fs::remove_dir_all(&checkpoints) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", checkpoints.display()))
        }
        _ => Ok(()),
    }
}

impl Runner {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the generations to the last one.
    async fn all(self, first: Option<(usize, Finished, Fed)>) -> anyhow::Result<()> {
        let mut running = first;
        while let Some((number, finished, fed)) = running {
            finished.await.context("the commit thread is gone")??;
            let Some(end) = fed.await.context("the thread that reads is gone")? else {
                return Ok(());
            };
            self.ledger().finish(number, end)?;
            running = self.begin(false).await?;
        }
        self.recompute().await?;
        self.progress.complete();
        Ok(())
    }

    /// Windows that readings were too late for are computed again.
    async fn recompute(&self) -> anyhow::Result<()> {
        let (ends, instance) = {
            let ledger = self.ledger();
            (ledger.ends(), ledger.identity().to_owned())
        };
        let ends: Vec<i64> = ends.iter().map(|end| end.time_us).collect();
        let options = &self.options;
        let (store, stats) = (options.store.clone(), Arc::clone(&options.stats));
        let of = (stats, self.dir.as_path());
        let context = recompute::Context::of_files(store, instance, &options.pipelines, of);
        recompute::of_files(context, &ends).await.context("cannot compute late windows again")
    }

    /// Starts the next generation, if there is one; it may be the first of this process.
    async fn begin(&self, is_first: bool) -> anyhow::Result<Option<(usize, Finished, Fed)>> {
        let in_flight = Arc::new(InFlight::default());
        let identity = self.ledger().identity().to_owned();
        let context = TableContext::new(
            Arc::clone(&self.options.stats),
            Arc::default(),
            &self.dir,
            SpillBudget::new(self.options.spill_bytes_max),
        )?;
        let context = context.with_from_first(self.ledger().done() == 0);
        let mut committer = Committer::open(
            &self.options.store,
            &graph::tables(&self.options.pipelines),
            &identity,
            context,
            Arc::clone(&in_flight),
        )
        .await?;
        if is_first && committer.found() == 0 && self.ledger().done() > 0 {
            // Somebody has removed the tables: nothing can come twice. Of files that gave no row it
            // looks the same, so that is asked once, or they would be read for ever.
            self.ledger().start_over();
            forget_checkpoints(&self.dir)?;
        }
        self.ledger().settle(&self.found, committer.found())?;
        let Some(todo) = self.ledger().next(&self.found)? else { return Ok(None) };
        let mut state = Vec::new();
        if self.grows {
            if todo.number > 0 {
                state = restore(&self.dir, &self.options.pipelines)?.state;
            }
            let store = CheckpointStore::open(self.dir.join(CHECKPOINTS))?;
            // Every generation saves all of its state once, at its end.
            let stats = &self.options.stats;
            let options = Restored::default().go_on(store, Duration::MAX, stats);
            let checkpoints = Checkpoints::start(options, &self.options.pipelines)?;
            committer = committer.with_checkpoints(checkpoints);
        }
        let (events, received) = sync_channel(EVENTS_MAX);
        let (pipelines, workers) = (self.options.pipelines.clone(), self.options.workers);
        let plan = WorkerPlan { state, ..WorkerPlan::of(pipelines, workers, todo.start.epoch) };
        let stats = Arc::clone(&self.options.stats);
        let (ports, _) = workers::start(plan, Arc::clone(&stats), events.clone())?;
        let finished = spawn_committer(committer, received)?;
        let never = Arc::new(AtomicBool::new(false));
        let queue = FeedQueue::new(ports, in_flight, stats, None, never);
        let number = todo.number;
        Ok(Some((number, finished, self.feed(todo, queue, events)?)))
    }

    /// Starts the thread that reads.
    fn feed(
        &self,
        todo: Todo,
        mut queue: FeedQueue,
        events: SyncSender<Event>,
    ) -> anyhow::Result<Fed> {
        let (sender, fed) = oneshot::channel();
        let (progress, stop) = (Arc::clone(&self.progress), Arc::clone(&self.stop));
        let (ledger, grows) = (Arc::clone(&self.ledger), self.grows);
        // Later generations go on with the state that has them.
        let first = (todo.number == 0).then(|| self.options.registries.clone());
        std::thread::Builder::new().name("files".into()).spawn(move || {
            let mut feeder = Feeder::new(&mut queue, &progress, &stop, todo.start);
            feeder.registries(first.unwrap_or_default());
            let closing = |end| {
                let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
                ledger.closing(todo.number, end)
            };
            let read = || feeder.read_all(&todo.files, grows, closing);
            // A thread that is gone in silence would look like the end of the files.
            let why = match catch_unwind(AssertUnwindSafe(read)) {
                Ok(Ok(end)) => {
                    let _ = sender.send(end);
                    return;
                }
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => format!("cannot read {}: it is damaged", progress.current()),
            };
            let _ = events.send(Event::Failed(why));
        })?;
        Ok(fed)
    }
}
