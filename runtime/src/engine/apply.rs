//! Change while running: one plan takes the place of another between two epochs.
//!
//! The steps, each with what a crash in it leaves:
//! 1. [`Applier::look`] says what the change is, or why it cannot be. Nothing is touched.
//! 2. A shadow run makes the state of changed operators anew, beside the live run (`shadow.rs`).
//! 3. When it has nearly caught up, the feed cuts a checkpoint at its next tick, e, and stands
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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use tidegate_operators::spec::{PipelineSpec, TableSpec};
use tidegate_operators::{Epoch, Tick};
use tidegate_pipelines::change::{Change, What, adopt_sources};
use tidegate_pipelines::{Plan, graph};

use super::feed::FeedQueue;
use super::flows::FlowPlan;
use super::shadow::{self, Pace, Rebuilt};
use super::sources;
use super::switching::{Order, Ordered, merged};
use super::workers::Event;
use crate::clock::Clock;
use crate::journal::Journal;
use crate::outbox::Outbox;
use crate::webhook::{SenderOptions, Watched, WebhookSender};

/// How long a change may take from the tick at which it is made.
const PATIENCE: Duration = Duration::from_secs(150);

/// What the feed is asked to do, and how far it is.
#[derive(Default)]
pub(super) struct Changes {
    request: Mutex<Option<Request>>,
    fed: Arc<AtomicU64>,
}

impl Changes {
    /// The change to be made at the next tick.
    pub(super) fn take(&self) -> Option<Request> {
        self.request.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// This epoch was fed.
    pub(super) fn fed(&self, epoch: Epoch) {
        self.fed.store(epoch, Ordering::Release);
    }

    fn ask(&self, request: Request) {
        *self.request.lock().unwrap_or_else(PoisonError::into_inner) = Some(request);
    }
}

/// A change that is to be made at the next tick.
pub(super) struct Request {
    pace: Arc<Pace>,
    old: Vec<PipelineSpec>,
    new: Vec<PipelineSpec>,
    gone: BTreeSet<String>,
    tables: Vec<TableSpec>,
    rebuilt: std::sync::mpsc::Receiver<anyhow::Result<Rebuilt>>,
    done: Sender<anyhow::Result<(Epoch, Option<i64>)>>,
}

impl Request {
    /// Says that this epoch will be the last of the old plan; before it is fed.
    pub(super) fn settle(&self, epoch: Epoch) {
        self.pace.stop_at(epoch);
    }

    /// Makes the change after the tick was fed. Blocks until it is made or given up.
    pub(super) fn make(self, tick: Tick, queue: &FeedQueue, events: &SyncSender<Event>) {
        let (reply, answer) = sync_channel(1);
        let order = Order {
            epoch: tick.epoch,
            time_us: tick.time_us,
            old: self.old,
            new: self.new.clone(),
            tables: self.tables.clone(),
            rebuilt: self.rebuilt,
            reply,
            asked_at: Instant::now(),
        };
        let _ = events.send(Event::Switch(Box::new(order)));
        let ordered =
            answer.recv().unwrap_or_else(|_| Err(anyhow::anyhow!("the engine has ended")));
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
struct Running {
    plan: Plan,
    tables: Vec<TableSpec>,
    /// Senders of webhooks that came with a change.
    senders: Vec<WebhookSender>,
}

/// Changes the plan of a running engine.
pub struct Applier {
    running: Mutex<Running>,
    changes: Arc<Changes>,
    journal: Arc<Journal>,
    outbox: Arc<Outbox>,
    webhooks: Watched,
    clock: Clock,
    runtime: tokio::runtime::Handle,
}

impl Applier {
    pub(super) fn new(
        plan: Plan,
        changes: Arc<Changes>,
        (journal, outbox, webhooks): (Arc<Journal>, Arc<Outbox>, Watched),
        clock: Clock,
    ) -> Self {
        let tables = graph::tables(&plan.pipelines);
        let running = Mutex::new(Running { plan, tables, senders: Vec::new() });
        let runtime = tokio::runtime::Handle::current();
        Self { running, changes, journal, outbox, webhooks, clock, runtime }
    }

    /// What a change to this plan would be.
    ///
    /// # Errors
    /// All reasons why it cannot be made.
    pub fn look(&self, plan: Plan) -> Result<Change, Vec<String>> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        looked(&running, plan).map(|(_, change)| change)
    }

    /// Makes the change. Blocks until it is made; call it from a thread of its own.
    ///
    /// # Errors
    /// All reasons why it cannot be made; everything goes on as it was.
    pub fn apply(&self, plan: Plan) -> Result<Applied, Vec<String>> {
        let started = Instant::now();
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let (plan, change) = looked(&running, plan)?;
        let mut applied = Applied { change, epoch: None, since_us: None, seconds: 0.0 };
        if !applied.change.is_nothing() {
            let made = self.make(&mut running, &plan, &applied.change);
            let (epoch, since_us) = made.map_err(|error| vec![format!("{error:#}")])?;
            (applied.epoch, applied.since_us) = (Some(epoch), since_us);
        }
        running.plan = plan;
        applied.seconds = started.elapsed().as_secs_f64();
        Ok(applied)
    }

    fn make(
        &self,
        running: &mut Running,
        plan: &Plan,
        change: &Change,
    ) -> anyhow::Result<(Epoch, Option<i64>)> {
        self.start_senders(running, plan)?;
        let touched = |what: &[What]| -> BTreeSet<String> {
            let names = change.touched().filter(|p| what.contains(&p.what));
            names.map(|p| p.name.clone()).collect()
        };
        let tables = merged(&running.tables, graph::tables(&plan.pipelines));
        let pace = Arc::new(Pace::behind(Arc::clone(&self.changes.fed)));
        let changed = touched(&[What::Changed, What::Added]);
        let pipelines: Vec<PipelineSpec> =
            plan.pipelines.iter().filter(|p| changed.contains(&p.name)).cloned().collect();
        let rebuilt = self.shadow(plan, pipelines, change.rebuilt(), &pace)?;
        let (done, answer) = channel();
        while !pace.is_near() {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.changes.ask(Request {
            pace: Arc::clone(&pace),
            old: running.plan.pipelines.clone(),
            new: plan.pipelines.clone(),
            gone: touched(&[What::Changed, What::Removed]),
            tables: tables.clone(),
            rebuilt,
            done,
        });
        let made = answer.recv_timeout(PATIENCE).context("the engine did not come to a tick");
        let made = made.and_then(|made| made);
        match &made {
            Ok(_) => running.tables = tables,
            Err(_) => {
                drop(self.changes.take());
                pace.abandon();
            }
        }
        made
    }

    /// Starts the shadow run; where its result will be.
    fn shadow(
        &self,
        plan: &Plan,
        pipelines: Vec<PipelineSpec>,
        wanted: BTreeSet<String>,
        pace: &Arc<Pace>,
    ) -> anyhow::Result<std::sync::mpsc::Receiver<anyhow::Result<Rebuilt>>> {
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

    /// Webhooks that are new, before anything can be for them.
    fn start_senders(&self, running: &mut Running, plan: &Plan) -> anyhow::Result<()> {
        let known: BTreeSet<String> =
            sources::webhooks(&running.plan).into_iter().map(|w| w.name).collect();
        let mut new = sources::webhooks(plan);
        new.retain(|webhook| !known.contains(&webhook.name));
        if new.is_empty() {
            return Ok(());
        }
        let _inside = self.runtime.enter();
        let (outbox, clock) = (Arc::clone(&self.outbox), self.clock.clone());
        let sender = WebhookSender::start_more(outbox, new, SenderOptions::default(), clock)?;
        self.webhooks.add(&sender);
        running.senders.push(sender);
        Ok(())
    }

    /// The senders that came with changes, for the end.
    pub(super) fn senders(&self) -> Vec<WebhookSender> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut running.senders)
    }
}

/// The plan as it is to run, and what the change is.
fn looked(running: &Running, mut plan: Plan) -> Result<(Plan, Change), Vec<String>> {
    let mut problems = adopt_sources(&running.plan, &mut plan);
    for spec in graph::tables(&plan.pipelines) {
        let same = |o: &&TableSpec| (&o.namespace, &o.name) == (&spec.namespace, &spec.name);
        if let Some(open) = running.tables.iter().find(same) {
            problems.extend(conflict(open, &spec));
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let change = Change::between(&running.plan.pipelines, &plan.pipelines);
    Ok((plan, change))
}

/// Why a table cannot go on as another one, if it cannot: columns may come and go, nothing else.
fn conflict(open: &TableSpec, new: &TableSpec) -> Option<String> {
    let name = format!("{}.{}", new.namespace, new.name);
    let hint = "give the new table another name";
    if open.partition != new.partition {
        return Some(format!("table {name}: its partition columns cannot change; {hint}"));
    }
    for field in new.schema.fields() {
        let Ok(before) = open.schema.field_with_name(field.name()) else { continue };
        if before.data_type() != field.data_type() {
            let (was, is) = (before.data_type(), field.data_type());
            let column = field.name();
            return Some(format!("table {name}: column `{column}` is {was}, not {is}; {hint}"));
        }
    }
    None
}
