//! Readings that come when the state of their windows is gone: the windows are computed again from
//! the stored readings, beside the dataflow.
//!
//! Late readings are rows of `system.late`. Those that were ingested in the same stretch of journal
//! time ([`super::EngineOptions::recompute_every`]) are a group, which is whole when all tables
//! have committed what came in until its end. What a group makes depends on tables alone
//! ([`group`]), so a crash changes nothing, and neither does when tables commit. It is one commit
//! of each table of windows, under an application id of its own, whose number is the end of the
//! group: a group whose number is there is done. Tables behind the windows get what filters and
//! other steps without state make of these revisions, and joins with registries ([`out`]).
//!
//! Of a run over files, the end of the files is the end of a group.
//!
//! One thread does all of it, so that it takes one core at most, and little memory (a
//! session's limit and one slice). Nobody waits for it: not the dataflow, nor the tables, nor a
//! checkpoint. What a stop or a crash leaves undone is still in `system.late`.

mod affected;
mod apart;
mod around;
mod counts;
mod cuts;
mod group;
mod horizon;
mod kept;
mod late;
mod made;
mod number;
mod out;
mod part;
mod revise;
mod sessions;
mod states;
mod stretches;
mod tally;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use futures::FutureExt as _;
use tidegate_operators::Epoch;
use tidegate_operators::spec::{PipelineSpec, TableSpec};
use tidegate_pipelines::graph::{LATE, SYSTEM};
use tidegate_pipelines::recompute::{Recomputation, recomputations};
use tidegate_sql::{Session, Store, TableName, TableWriter};

use self::around::Around;
use self::counts::Counts;
use self::group::{Group, late_of};
pub(super) use self::horizon::Horizon;
use self::kept::Kept;
use self::out::Out;
use self::sessions::Sessions;
use self::states::States;
pub(super) use self::waiting::Waiting;
use super::fence::{CommitRight, Fence};
use super::tables::{TableTroubles, TablesWatched};
use crate::fault;
use crate::stats::Stats;

/// Memory of the queries of a group: sorts spill to disk beyond it.
const MEMORY_BYTES_MAX: usize = 256 << 20;

/// Folder below the data folder into which sorts spill.
const SORTS: &str = "recompute";

/// How often is looked whether a group is whole.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What is told of an error.
const WAIT: &str = "late windows have to wait";

/// The steps whose windows are computed again; others can change them.
#[derive(Clone, Default)]
pub(super) struct Recomputed(Arc<Mutex<Arc<Vec<Recomputation>>>>);

impl Recomputed {
    /// From now on it is the steps of these pipelines.
    pub(super) fn follow(&self, pipelines: &[PipelineSpec]) {
        let steps = pipelines.iter().flat_map(recomputations).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(steps);
    }

    fn now(&self) -> Arc<Vec<Recomputation>> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the work needs of the process.
pub(super) struct Context {
    pub(super) store: Store,
    pub(super) instance: String,
    pub(super) steps: Recomputed,
    pub(super) horizon: Arc<Horizon>,
    pub(super) tables: TablesWatched,
    pub(super) fence: Option<Arc<Fence>>,
    pub(super) stats: Arc<Stats>,
    /// Where sorts that are too large for memory may be.
    pub(super) sorts: PathBuf,
}

impl Context {
    /// Of a run over files, with its folder: nobody else writes to its tables.
    pub(super) fn of_files(
        store: Store,
        instance: String,
        pipelines: &[PipelineSpec],
        (stats, data): (Arc<Stats>, &Path),
    ) -> Self {
        let (steps, tables) = (Recomputed::default(), TablesWatched::default());
        steps.follow(pipelines);
        let (horizon, sorts) = (Arc::new(Horizon::new(Duration::MAX)), sorts(data));
        Self { store, instance, steps, horizon, tables, fence: None, stats, sorts }
    }
}

/// The folder for sorts in a data folder.
pub(super) fn sorts(data: &Path) -> PathBuf {
    data.join(SORTS)
}

/// The thread that works, until dropped or stopped.
pub(super) struct Recomputing {
    /// What could not be computed.
    pub(super) waiting: Waiting,
    stop: Option<Sender<()>>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Recomputing {
    pub(super) fn start(context: Context) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = channel();
        let stopping = Arc::new(AtomicBool::new(false));
        let worker = Worker::new(context, Arc::clone(&stopping))?;
        let waiting = worker.waiting.clone();
        let run = move || worker.run(&runtime, &stopped);
        let thread = std::thread::Builder::new().name("recompute".into()).spawn(run)?;
        Ok(Self { waiting, stop: Some(stop), stopping, thread: Some(thread) })
    }

    /// Has it end soon; what is not done stays to be done.
    pub(super) fn tell_to_stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Stops, as soon as the batch at hand is done.
    pub(super) fn stop(&mut self) {
        self.tell_to_stop();
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Recomputing {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Works on the late readings of runs over files that ended at these ticks, each of which is a
/// group.
///
/// # Errors
/// Those of the tables.
pub(super) async fn of_files(context: Context, ends_us: &[i64]) -> anyhow::Result<()> {
    let worker = Worker::new(context, Arc::default())?;
    worker.each(&worker.context.steps.now(), ends_us).await
}

/// The work.
struct Worker {
    context: Context,
    session: Session,
    stopping: Arc<AtomicBool>,
    /// By application id, the end of the newest group that is done, whether or not it wrote
    /// anything.
    done: Mutex<BTreeMap<String, i64>>,
    waiting: Waiting,
}

/// What a table is called.
fn full_name(table: &TableSpec) -> String {
    format!("{}.{}", table.namespace, table.name)
}

/// The tables of windows, each with its step.
fn each_table(steps: &[Recomputation]) -> impl Iterator<Item = (&Recomputation, &TableSpec)> {
    steps.iter().flat_map(|step| step.tables.iter().map(move |table| (step, table)))
}

/// The tables that have to have all that came in before a group is whole.
fn awaited(steps: &[Recomputation]) -> Vec<String> {
    let of_steps =
        steps.iter().flat_map(|s| s.tables.iter().chain([&s.stored]).chain(s.histories()));
    of_steps.map(full_name).chain([format!("{SYSTEM}.{LATE}")]).collect()
}

/// What the work on one table comes to, even a panic.
async fn attempt(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let panicked = |_| Err(anyhow::anyhow!("a panic, told before this"));
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(panicked)
}

impl Worker {
    fn new(context: Context, stopping: Arc<AtomicBool>) -> anyhow::Result<Self> {
        // What a kill left there is of no use.
        match std::fs::remove_dir_all(&context.sorts) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context(format!("cannot remove {}", context.sorts.display()));
            }
            _ => {}
        }
        let (store, sorts) = (context.store.clone(), context.sorts.clone());
        let session = Session::spilling_into(store, MEMORY_BYTES_MAX, sorts)?.on_one_core();
        let (done, waiting) = (Mutex::default(), Waiting::default());
        Ok(Self { context, session, stopping, done, waiting })
    }

    fn run(self, runtime: &tokio::runtime::Runtime, stopped: &Receiver<()>) {
        while stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
            runtime.block_on(self.look(Instant::now()));
        }
    }

    /// Works on the groups of each table of windows that end at these times. One in trouble stops
    /// no others: it is told, and the last error is returned.
    async fn each(&self, steps: &[Recomputation], ends_us: &[i64]) -> anyhow::Result<()> {
        let (mut result, mut failing) = (Ok(()), 0);
        for (step, table) in each_table(steps) {
            if let Err(error) = attempt(self.catch_up_all(step, table, ends_us)).await {
                let (table, why) = (full_name(table), format!("{error:#}"));
                tracing::warn!(table, error = why, "{WAIT}");
                result = Err(error.context(format!("windows of {table}")));
                failing += 1;
            }
        }
        Stats::set(&self.context.stats.windows_waiting, failing);
        result
    }

    async fn catch_up_all(
        &self,
        step: &Recomputation,
        table: &TableSpec,
        ends_us: &[i64],
    ) -> anyhow::Result<()> {
        let (Some(last_us), from_us) = (ends_us.last(), self.done_us(table).await?) else {
            return Ok(());
        };
        if ends_us.len() > 1 && self.groups(step, (from_us, *last_us)).await?.is_empty() {
            return Ok(());
        }
        for end_us in ends_us {
            self.catch_up(step, table, *end_us).await?;
        }
        Ok(())
    }

    /// Works on the groups that have become whole, and on what waits and is due ([`waiting`]).
    async fn look(&self, now: Instant) {
        let (begun, steps) = (Instant::now(), self.context.steps.now());
        let whole = self.context.horizon.whole(self.committed(&steps));
        let late_us = whole.filter(|whole| whole.late).map(|whole| whole.end_us);
        self.waiting.retain(|name| each_table(&steps).any(|(_, table)| full_name(table) == name));
        for (step, table) in each_table(&steps) {
            let name = full_name(table);
            let Some(end_us) = self.waiting.due(&name, late_us, now) else { continue };
            let work = attempt(async {
                self.begin(step, table).await?;
                match end_us {
                    Some(end_us) => self.catch_up(step, table, end_us).await,
                    None => Ok(()),
                }
            });
            match work.await {
                Ok(()) if self.stopping.load(Ordering::Acquire) => return,
                Ok(()) => {
                    if let Some(failures) = self.waiting.works(&name) {
                        tracing::info!(table = name, failures, "late windows do not wait any more");
                    }
                }
                Err(error) => {
                    let (why, now) = (format!("{error:#}"), now + begun.elapsed());
                    if let Some(failures) = self.waiting.failed(&name, (end_us, &why), now) {
                        tracing::warn!(table = name, error = why, failures, "{WAIT}");
                    }
                }
            }
        }
        Stats::set(&self.context.stats.windows_waiting, self.waiting.now().len() as u64);
        // What waits knows up to which end.
        if let Some(whole) = whole {
            self.context.horizon.done(whole.end_us);
        }
    }

    /// Has a table know where the journal began, if another one wrote late readings before: the
    /// next process does not see it.
    async fn begin(&self, step: &Recomputation, table: &TableSpec) -> anyhow::Result<()> {
        let Some(first_us) = self.context.horizon.first_us() else { return Ok(()) };
        let app = self.app_id(table);
        if self.done().contains_key(&app) {
            return Ok(());
        }
        let first = first_us.unsigned_abs();
        let mut writer = TableWriter::open(&self.context.store, table, app.clone()).await?;
        let others = self.groups(step, (0, first_us)).await?;
        if !others.is_empty() && writer.committed_epoch() < first {
            let Some(_right) = self.right().await? else { return Ok(()) };
            writer.mark(first).await?;
        }
        self.done().insert(app, first_us);
        Ok(())
    }

    /// The newest epoch that all tables have which are read.
    fn committed(&self, steps: &[Recomputation]) -> Epoch {
        let states = self.context.tables.now(&TableTroubles::default());
        let names = awaited(steps);
        let committed = states.iter().filter(|(name, _)| names.contains(name));
        committed.map(|(_, state)| state.committed).min().unwrap_or_default()
    }

    /// Works on the groups of a table of windows that end at `end_us` or before.
    async fn catch_up(
        &self,
        step: &Recomputation,
        table: &TableSpec,
        end_us: i64,
    ) -> anyhow::Result<()> {
        let from_us = self.done_us(table).await?;
        let every_us = self.context.horizon.every_us();
        for group_us in self.groups(step, (from_us, end_us)).await? {
            let until_us = group_us.saturating_add(every_us).min(end_us);
            if !self.group(step, table, (group_us.max(from_us), until_us)).await? {
                break;
            }
        }
        Ok(())
    }

    /// Works on one group; whether it is done.
    async fn group(
        &self,
        step: &Recomputation,
        table: &TableSpec,
        times_us: (i64, i64),
    ) -> anyhow::Result<bool> {
        let (app, store) = (self.app_id(table), &self.context.store);
        let is_complete = self.is_complete(table).await?;
        let group = Group {
            session: &self.session,
            of: step,
            table,
            is_complete,
            times_us,
            stored_as: &self.step_app_id(&step.stored),
            stopping: &self.stopping,
        };
        let place = (store, &self.session);
        let mut kept = Kept::new(place, (step, table), format!("{app}/kept"));
        let mut out = Out::open(self, (step, table), times_us.1).await?;
        let stay = if let Some(sessions) = Sessions::new(&group) {
            sessions.work(&mut kept, &mut out).await?
        } else if let Some(around) = Around::new(&group) {
            around.work(&mut kept, &mut out).await?
        } else if let Some(states) = States::new(&group) {
            states.work(&mut kept, &mut out).await?
        } else if let Some(counts) = Counts::new(&group).await? {
            counts.work(&mut kept, &mut out).await?
        } else {
            group.work(&mut kept, &mut out).await?
        };
        let Some(stay) = stay else { return Ok(false) };
        self.commit(&mut kept, &mut out).await?;
        Self::tell_kept(step, table, stay);
        // What wrote nothing is not in the table.
        self.done().insert(app, times_us.1);
        Ok(true)
    }

    /// Whether a table of windows has every row that its step made.
    async fn is_complete(&self, table: &TableSpec) -> anyhow::Result<bool> {
        let name = TableName::new(table.namespace.clone(), table.name.clone());
        let snapshot = self.session.table(&name)?.open().await?;
        Ok(snapshot.is_complete_for(&self.step_app_id(table)))
    }

    /// Under which the rows of a table are committed that its step makes.
    fn step_app_id(&self, table: &TableSpec) -> String {
        format!("{}/{}.{}", self.context.instance, table.namespace, table.name)
    }

    /// Tells of windows that stay as they are; some may have been told by a group before.
    fn tell_kept(step: &Recomputation, table: &TableSpec, windows: usize) {
        if windows == 0 {
            return;
        }
        tracing::warn!(
            table = format!("{}.{}", table.namespace, table.name),
            windows,
            "late readings have no effect on windows, which stay as they are: `{}.{}` does not \
             have all readings of these windows (deleted, or from before there was this table), or \
             what the step can still change would be another; system.windows_kept has them",
            step.stored.namespace,
            step.stored.name,
        );
    }

    fn done(&self) -> MutexGuard<'_, BTreeMap<String, i64>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Under which the windows of a table are committed.
    fn app_id(&self, table: &TableSpec) -> String {
        format!("{}/{}.{}/late", self.context.instance, table.namespace, table.name)
    }

    /// The end of the newest group that is done for a table. What came in before the journal began
    /// is the matter of whoever wrote it.
    async fn done_us(&self, table: &TableSpec) -> anyhow::Result<i64> {
        let name = TableName::new(table.namespace.clone(), table.name.clone());
        let snapshot = self.session.table(&name)?.open().await?;
        let app = self.app_id(table);
        let committed = i64::try_from(snapshot.committed(&app)).unwrap_or(i64::MAX);
        let done_us = self.done().get(&app).copied().unwrap_or_default();
        Ok(committed.max(done_us).max(self.context.horizon.first_us().unwrap_or_default()))
    }

    /// When the groups begin that have late readings of a step, in order.
    async fn groups(&self, step: &Recomputation, times_us: (i64, i64)) -> anyhow::Result<Vec<i64>> {
        let every_us = self.context.horizon.every_us();
        let sql = format!(
            "SELECT DISTINCT arrow_cast(ingest_time, 'Int64') / {every_us} AS at FROM {} ORDER BY \
             at",
            late_of(step, times_us)
        );
        let found = self.session.sql(&sql).await?.collect().await?;
        let times = found.iter().flat_map(|rows| {
            rows.column(0).as_primitive::<Int64Type>().values().iter().map(|at| at * every_us)
        });
        Ok(times.collect())
    }

    /// The right to commit; none if another process has taken over, which does it then.
    async fn right(&self) -> anyhow::Result<Option<Option<CommitRight<'_>>>> {
        Ok(match &self.context.fence {
            None => Some(None),
            Some(fence) => fence.guard().await?.map(Some),
        })
    }

    /// Commits a group: first what stays, so that no group after it takes that for whole.
    async fn commit(&self, kept: &mut Kept<'_>, out: &mut Out<'_>) -> anyhow::Result<()> {
        let Some(_right) = self.right().await? else { return Ok(()) };
        let (stats, stay) = (&self.context.stats, kept.commit().await?);
        Stats::add(&stats.windows_kept, stay);
        fault::point("recomputed_kept");
        let (own, behind, apart) = out.commit().await?;
        Stats::add(&stats.windows_kept, apart);
        Stats::add(&stats.windows_recomputed, own.rows);
        for report in behind.iter().chain([&own]) {
            Stats::add(&stats.table_files, report.files as u64);
            Stats::add(&stats.table_rows, report.rows);
            Stats::add(&stats.table_bytes, report.bytes);
        }
        fault::point("recomputed");
        Ok(())
    }
}
