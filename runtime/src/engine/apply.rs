//! Change while running: one plan takes the place of another between two epochs.
//!
//! The steps, each with what a crash in it leaves:
//! 1. [`Applier::look`] says what the change is, or why it cannot be. Nothing is touched.
//! 2. A shadow run makes the state of changed operators anew, beside the live run (`shadow.rs`).
//!    When it has nearly caught up, an ordinary checkpoint shows that tables can be written, and
//!    leaves them little to do ([`Applier::wait_for_checkpoint`]).
//! 3. Then the feed cuts a checkpoint at its next tick, e, and stands
//!    still ([`Request::make`]); sources go on being acknowledged. Until here a crash finds the old
//!    plan.
//! 4. The committer waits until that checkpoint is visible, then writes the one of the new plan
//!    over it (`switching.rs`, `checkpoints/switch.rs`). That rename is the change.
//! 5. The workers get the new dataflows, with the state of that checkpoint, and the feed goes on
//!    with epoch e + 1. A crash from here on finds the new plan: the start restores the same state
//!    and replays the same epochs.
//!
//! Who starts with the old files after the change gets the change back, in the same way.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use tidegate_operators::spec::{PipelineSpec, TableSpec};
use tidegate_operators::{Epoch, Tick};
use tidegate_pipelines::change::{BegunAnew, Change, What, adopt_sources, table_conflicts};
use tidegate_pipelines::{Plan, change, graph};

use super::anew;
use super::cuts::Cuts;
use super::earlier;
use super::feed::FeedQueue;
use super::flows::FlowPlan;
use super::memory::Memory;
use super::notifications::EngineTargets;
use super::registries::{Registries, look_at_columns};
use super::shadow::{self, Pace, Rebuilt};
use super::sources;
use super::switching::{Order, Ordered, merged};
use super::tables::TableTroubles;
use super::workers::Event;
use crate::intake::IntakeError;
use crate::journal::Journal;
use crate::webhook::WebhookSender;

/// How long a change may wait for the tick at which it is to be made.
const PATIENCE: Duration = Duration::from_secs(150);

/// How long a shadow run may come no nearer to the live run.
const NEAR_PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked whether there is a checkpoint.
const LOOK: Duration = Duration::from_millis(5);

/// What is said of a change where there are other processes, which know of one plan only.
const IN_A_CLUSTER: &str = "in a cluster, pipelines change at a start only: stop the leader \
    (Ctrl-C) and start it with the new files";

/// What is said where nothing can be made any more.
const ENDED: &str = "the engine ends; the next start says which plan runs";

/// What is said where the journal does not take what registries say within [`PATIENCE`].
const STUCK: &str = "what registries say could not be journaled in time, the old plan goes on: is \
    the journal or the disk full?";

/// Waits until what registries say is journaled, for at most `patience`.
async fn in_time(
    patience: Duration,
    said: impl Future<Output = Result<(), IntakeError>>,
) -> anyhow::Result<()> {
    let said = tokio::time::timeout(patience, said).await;
    Ok(said.map_err(|_| anyhow::anyhow!(STUCK))??)
}

/// What the feed is asked to do, and how far it is.
pub(super) struct Changes {
    asked: Mutex<Asked>,
    fed: Arc<AtomicU64>,
}

#[derive(Default)]
struct Asked {
    /// The change to be made at the next tick.
    request: Option<Request>,
    /// The shadow run for it.
    pace: Option<Arc<Pace>>,
    /// Nothing is fed any more.
    closed: bool,
}

impl Changes {
    /// After the replay, which went up to the epoch `fed`.
    pub(super) fn after(fed: Epoch) -> Self {
        Self { asked: Mutex::default(), fed: Arc::new(AtomicU64::new(fed)) }
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The change to be made at the next tick.
    pub(super) fn take(&self) -> Option<Request> {
        self.lock().request.take()
    }

    /// The newest epoch that was fed, unless nothing is fed any more.
    fn newest(&self) -> anyhow::Result<Epoch> {
        anyhow::ensure!(!self.lock().closed, ENDED);
        Ok(self.fed.load(Ordering::Acquire))
    }

    /// This epoch was fed.
    pub(super) fn fed(&self, epoch: Epoch) {
        self.fed.store(epoch, Ordering::Release);
    }

    /// The end of the feed: whoever asks for a change, or waits for one, is answered at once.
    pub(super) fn close(&self) {
        let Asked { pace, .. } =
            std::mem::replace(&mut *self.lock(), Asked { closed: true, ..Asked::default() });
        if let Some(pace) = pace {
            pace.abandon();
        }
    }

    /// A change is prepared.
    fn begin(&self, pace: &Arc<Pace>) -> anyhow::Result<()> {
        let mut asked = self.lock();
        anyhow::ensure!(!asked.closed, ENDED);
        asked.pace = Some(Arc::clone(pace));
        Ok(())
    }

    /// It is ready to be made.
    fn ask(&self, request: Request) -> anyhow::Result<()> {
        let mut asked = self.lock();
        anyhow::ensure!(!asked.closed, ENDED);
        asked.request = Some(request);
        Ok(())
    }

    /// It is made, or given up.
    fn end(&self) {
        let mut asked = self.lock();
        asked.request = None;
        if let Some(pace) = asked.pace.take() {
            pace.abandon();
        }
    }
}

/// Who decides about a change that was asked for: the feed, by making it, or the one who asked, by
/// giving up. Whoever is first, once and for all: so what was called given up is never made.
#[derive(Debug, Default)]
struct Claim(AtomicBool);

impl Claim {
    /// Whether the caller is the first.
    fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// The last epoch of the old plan, and [`Rebuilt::since_us`].
type Made = (Epoch, Option<i64>);

/// A change that is to be made at the next tick.
pub(super) struct Request {
    claim: Arc<Claim>,
    pace: Arc<Pace>,
    old: Vec<PipelineSpec>,
    new: Vec<PipelineSpec>,
    built: BTreeSet<String>,
    gone: BTreeSet<String>,
    tables: Vec<TableSpec>,
    anew: Vec<BegunAnew>,
    rebuilt: Receiver<anyhow::Result<Rebuilt>>,
    done: Sender<anyhow::Result<Made>>,
}

impl Request {
    /// Says that this epoch will be the last of the old plan; before it is fed.
    pub(super) fn settle(&self, epoch: Epoch) {
        self.pace.stop_at(epoch);
    }

    /// Makes the change after the tick was fed, unless it was given up. Blocks until it is made or
    /// refused.
    pub(super) fn make(self, tick: Tick, queue: &FeedQueue, events: &SyncSender<Event>) {
        if !self.claim.take() {
            return;
        }
        let (reply, answer) = sync_channel(1);
        let order = Order {
            epoch: tick.epoch,
            time_us: tick.time_us,
            old: self.old,
            new: self.new.clone(),
            built: self.built,
            tables: self.tables.clone(),
            anew: self.anew,
            rebuilt: self.rebuilt,
            reply,
            asked_at: Instant::now(),
        };
        let _ = events.send(Event::Switch(Box::new(order)));
        let ordered = answer.recv().unwrap_or_else(|_| Err(anyhow::anyhow!(ENDED)));
        let result = ordered.map(|Ordered { state, since_us }| {
            queue.change(FlowPlan {
                pipelines: self.new,
                gone: self.gone,
                tables: self.tables,
                state,
                first_epoch: tick.epoch + 1,
            });
            (tick.epoch, since_us)
        });
        let _ = self.done.send(result);
    }
}

/// Waits until a change was made, for at most `patience` until it is begun; what was begun is
/// waited for to its end, because then it may be made at any moment.
fn wait_for(
    answer: &Receiver<anyhow::Result<Made>>,
    claim: &Claim,
    patience: Duration,
) -> anyhow::Result<Made> {
    let answered = match answer.recv_timeout(patience) {
        Err(RecvTimeoutError::Timeout) if claim.take() => anyhow::bail!(
            "the engine did not come to a tick in {} s, the old plan goes on: can tables and \
             notifications be written?",
            patience.as_secs()
        ),
        Err(RecvTimeoutError::Timeout) => answer.recv().ok(),
        other => other.ok(),
    };
    answered.context(ENDED)?
}

/// How a change went.
#[derive(Clone, Debug)]
pub struct Applied {
    /// What it was.
    pub change: Change,
    /// The last epoch of the old plan; `None`: there was nothing to change.
    pub epoch: Option<Epoch>,
    /// From when on state was made anew, microseconds since the Unix epoch; `None`: from the
    /// beginning, or there was none to make.
    pub since_us: Option<i64>,
    /// How long it took, seconds.
    pub seconds: f64,
}

/// The plan that runs.
#[derive(Clone)]
struct Running {
    plan: Plan,
    tables: Vec<TableSpec>,
}

/// Changes the plan of a running engine.
pub struct Applier {
    data: PathBuf,
    running: Mutex<Running>,
    /// Held while a change is made, which may take long; [`Applier::look`] does not wait for it.
    making: Mutex<()>,
    changes: Arc<Changes>,
    journal: Arc<Journal>,
    sender: Arc<WebhookSender>,
    engine_targets: EngineTargets,
    registries: Arc<Registries>,
    memory: Memory,
    cuts: Arc<Cuts>,
    troubles: TableTroubles,
    runtime: tokio::runtime::Handle,
    /// Whether no other process has to follow.
    alone: bool,
}

impl Applier {
    pub(super) fn new(
        (data, alone): (&Path, bool),
        plan: Plan,
        changes: Arc<Changes>,
        journal: Arc<Journal>,
        (registries, memory): (Arc<Registries>, Memory),
        (cuts, troubles): (Arc<Cuts>, TableTroubles),
        (sender, engine_targets): (Arc<WebhookSender>, EngineTargets),
    ) -> Self {
        let tables = graph::tables(&plan.pipelines);
        let running = Mutex::new(Running { plan, tables });
        let runtime = tokio::runtime::Handle::current();
        let data = data.to_owned();
        Self {
            data,
            running,
            making: Mutex::default(),
            changes,
            journal,
            registries,
            memory,
            cuts,
            troubles,
            sender,
            engine_targets,
            runtime,
            alone,
        }
    }

    /// What a change to this plan would be, and from when on state would be made anew
    /// ([`Applied::since_us`]).
    ///
    /// # Errors
    /// All reasons why it cannot be made.
    pub fn look(&self, plan: Plan) -> Result<(Change, Option<i64>), Vec<String>> {
        let running = self.running();
        let (plan, change) = self.looked(&running, plan)?;
        let (_, since_us) = anew::look(&self.journal, &running.tables, &plan, &change)?;
        Ok((change, since_us))
    }

    fn running(&self) -> Running {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn looked(&self, running: &Running, plan: Plan) -> Result<(Plan, Change), Vec<String>> {
        let (plan, change) = looked(running, plan)?;
        let lacking = look_at_columns(&running.plan, &plan);
        if !lacking.is_empty() {
            return Err(lacking);
        }
        match self.alone || change.is_nothing() {
            true => Ok((plan, change)),
            false => Err(vec![IN_A_CLUSTER.to_owned()]),
        }
    }

    /// Makes the change. Blocks until it is made; call it from a thread of its own.
    ///
    /// # Errors
    /// All reasons why it cannot be made; everything goes on as it was.
    pub fn apply(&self, plan: Plan) -> Result<Applied, Vec<String>> {
        let started = Instant::now();
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = self.running();
        let (plan, change) = self.looked(&running, plan)?;
        let (anew, _) = anew::look(&self.journal, &running.tables, &plan, &change)?;
        let mut applied = Applied { change, epoch: None, since_us: None, seconds: 0.0 };
        // Before anything can be for them; also where no pipeline changes. If the change fails they
        // are there for the next attempt, with nothing to do.
        let told = self.sender.follow(sources::webhooks(&plan));
        told.map_err(|error| vec![error.to_string()])?;
        if !applied.change.is_nothing() {
            let change = &applied.change;
            let make = || self.make(&mut running, &plan, (change, anew));
            let made = self.memory.begin(&change.rebuilt(), make);
            let (epoch, since_us) = made.map_err(|error| vec![format!("{error:#}")])?;
            (applied.epoch, applied.since_us) = (Some(epoch), since_us);
        }
        self.engine_targets.set(&plan.notifications);
        if let Err(error) = earlier::keep(&self.data, &plan, applied.epoch) {
            // The change is made. A start with other files after a kill will not know this plan.
            tracing::error!(%error, "the pipelines that run are not kept in the data folder");
        }
        // Files whose header follows the change are read by the new names.
        let followed = self.runtime.block_on(self.registries.follow(&running.plan, &plan));
        if let Err(error) = followed {
            tracing::error!(%error, "registries are read as before until the next start");
        }
        running.plan = plan;
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = running;
        applied.seconds = started.elapsed().as_secs_f64();
        Ok(applied)
    }

    fn make(
        &self,
        running: &mut Running,
        plan: &Plan,
        (change, anew): (&Change, Vec<BegunAnew>),
    ) -> anyhow::Result<Made> {
        let touched = |what: &[What]| -> BTreeSet<String> {
            let names = change.touched().filter(|p| what.contains(&p.what));
            names.map(|p| p.name.clone()).collect()
        };
        let tables = merged(&running.tables, graph::tables(&plan.pipelines));
        let pace = Arc::new(Pace::behind(Arc::clone(&self.changes.fed)));
        let changed = touched(&[What::Changed, What::Added]);
        let mut pipelines = change::waiting_as_before(&running.plan.pipelines, &plan.pipelines);
        pipelines.retain(|p| changed.contains(&p.name));
        self.refuse_troubles()?;
        if !change.rebuilt().is_empty() {
            // What is rebuilt finds what registries say in the part of the journal that it reads.
            let intake = self.journal.intake(0);
            self.runtime.block_on(in_time(PATIENCE, self.registries.again(&intake)))?;
        }
        self.changes.begin(&pace)?;
        let rebuilt = self.shadow(plan, pipelines, change.rebuilt(), &pace)?;
        if let Err(why) = self.come_near(&pace) {
            self.changes.end();
            return Err(why);
        }
        let (done, answer) = channel();
        let claim = Arc::new(Claim::default());
        let asked = self.changes.ask(Request {
            claim: Arc::clone(&claim),
            pace,
            old: running.plan.pipelines.clone(),
            new: plan.pipelines.clone(),
            built: changed,
            gone: touched(&[What::Changed, What::Removed]),
            tables: tables.clone(),
            anew,
            rebuilt,
            done,
        });
        let made = asked.and_then(|()| wait_for(&answer, &claim, PATIENCE));
        self.changes.end();
        if made.is_ok() {
            running.tables = tables;
        }
        made
    }

    /// Refuses a change while a table cannot be written: it would have to wait for it.
    fn refuse_troubles(&self) -> anyhow::Result<()> {
        match self.troubles.now().into_iter().next() {
            None => Ok(()),
            Some((table, _, why)) => anyhow::bail!(
                "table {table} cannot be written, and a change needs all of them: {why}; the old \
                 plan goes on"
            ),
        }
    }

    /// Waits for whatever can be waited for while all goes on.
    fn come_near(&self, pace: &Pace) -> anyhow::Result<()> {
        pace.wait_until_near(NEAR_PATIENCE)?;
        self.wait_for_checkpoint(PATIENCE)
    }

    /// Has a checkpoint made now, and waits until it is visible: tables have been written then,
    /// and will have little to write while the feed stands still.
    fn wait_for_checkpoint(&self, patience: Duration) -> anyhow::Result<()> {
        let (after, started) = (self.changes.newest()?, Instant::now());
        while self.cuts.saved() <= after {
            self.cuts.hasten(after);
            self.refuse_troubles()?;
            self.changes.newest()?;
            anyhow::ensure!(
                started.elapsed() < patience,
                "no checkpoint could be written in {} s, the old plan goes on: are the tables \
                 reachable, is there room on the disk?",
                patience.as_secs()
            );
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Starts the shadow run; where its result will be.
    fn shadow(
        &self,
        plan: &Plan,
        pipelines: Vec<PipelineSpec>,
        wanted: BTreeSet<String>,
        pace: &Arc<Pace>,
    ) -> anyhow::Result<Receiver<anyhow::Result<Rebuilt>>> {
        let (result, rebuilt) = channel();
        let (journal, pace) = (Arc::clone(&self.journal), Arc::clone(pace));
        let names: Vec<String> = plan.sources.iter().map(|s| s.name.clone()).collect();
        std::thread::Builder::new().name("shadow".into()).spawn(move || {
            let made = match wanted.is_empty() {
                true => Ok(Rebuilt::default()),
                false => shadow::rebuild(&journal, &names, pipelines, &wanted, &pace),
            };
            let _ = result.send(made);
            pace.come_near();
        })?;
        Ok(rebuilt)
    }
}

/// The plan as it is to run, and what the change is.
fn looked(running: &Running, mut plan: Plan) -> Result<(Plan, Change), Vec<String>> {
    let mut problems = adopt_sources(&running.plan, &mut plan);
    problems.extend(table_conflicts(&running.tables, &plan.pipelines));
    if !problems.is_empty() {
        return Err(problems);
    }
    let change = Change::between(&running.plan.pipelines, &plan.pipelines);
    Ok((plan, change))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::engine::feed::InFlight;

    const TICK: Tick = Tick { epoch: 7, time_us: 7 };

    /// A request, and where its answer comes.
    fn request(claim: &Arc<Claim>, pace: &Arc<Pace>) -> (Request, Receiver<anyhow::Result<Made>>) {
        let (done, answer) = channel();
        let (_, rebuilt) = channel();
        let request = Request {
            claim: Arc::clone(claim),
            pace: Arc::clone(pace),
            old: Vec::new(),
            new: Vec::new(),
            built: BTreeSet::new(),
            gone: BTreeSet::new(),
            tables: Vec::new(),
            anew: Vec::new(),
            rebuilt,
            done,
        };
        (request, answer)
    }

    fn queue() -> FeedQueue {
        FeedQueue::new(vec![], Arc::new(InFlight::default()), Arc::default(), None, Arc::default())
    }

    #[test]
    fn what_was_given_up_is_not_made_afterwards() {
        let (claim, pace) = (Arc::default(), Arc::new(Pace::to(0)));
        let (request, answer) = request(&claim, &pace);
        // The feed has taken it, and then waits for room before the tick.
        let error = wait_for(&answer, &claim, Duration::from_millis(1)).unwrap_err();
        assert!(error.to_string().contains("the old plan goes on"), "{error}");
        // Whoever would take an order is gone, so that one would be answered at once.
        request.make(TICK, &queue(), &sync_channel(1).0);
        assert!(answer.try_recv().is_err(), "nothing was ordered");
    }

    #[tokio::test]
    async fn a_journal_that_takes_nothing_ends_a_change_and_not_the_process() {
        let stuck = in_time(Duration::from_millis(1), std::future::pending()).await;
        assert_eq!(stuck.unwrap_err().to_string(), STUCK);
        in_time(PATIENCE, std::future::ready(Ok(()))).await.unwrap();
        let closed = in_time(PATIENCE, std::future::ready(Err(IntakeError::Closed))).await;
        assert!(closed.unwrap_err().to_string().contains("closed"));
    }

    #[test]
    fn what_was_begun_is_waited_for() {
        let (claim, pace) = (Arc::default(), Arc::new(Pace::to(0)));
        let (request, answer) = request(&claim, &pace);
        let (events, ordered) = sync_channel(1);
        let feed = std::thread::spawn(move || request.make(TICK, &queue(), &events));
        let Event::Switch(order) = ordered.recv().unwrap() else { panic!("another event") };
        let waiting = std::thread::spawn(move || wait_for(&answer, &claim, Duration::ZERO));
        std::thread::sleep(Duration::from_millis(50));
        order.reply.send(Ok(Ordered { state: Vec::new(), since_us: Some(3) })).unwrap();
        assert_eq!(waiting.join().unwrap().unwrap(), (7, Some(3)));
        feed.join().unwrap();
    }

    #[test]
    fn at_the_end_of_the_feed_nobody_waits() {
        let changes = Changes::after(5);
        assert_eq!(changes.fed.load(Ordering::Acquire), 5);
        let (claim, pace) = (Arc::default(), Arc::new(Pace::behind(Arc::clone(&changes.fed))));
        changes.begin(&pace).unwrap();
        let (asked, answer) = request(&claim, &pace);
        changes.ask(asked).unwrap();
        changes.close();
        let error = wait_for(&answer, &claim, PATIENCE).unwrap_err().to_string();
        assert_eq!(error, ENDED);
        assert!(pace.is_abandoned());
        assert!(changes.begin(&pace).is_err() && changes.take().is_none());
        assert!(changes.ask(request(&claim, &pace).0).is_err());
    }
}
