//! The timely workers: each builds the plan's dataflows, takes commands, and steps.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use tidegate_operators::dataflow::Ticks;
use tidegate_operators::spec::PipelineSpec;
use tidegate_operators::{Epoch, Snapshot, TextMax, Tick};
use tidegate_pipelines::Plan;
use tidegate_pipelines::graph::{self, Counter, GraphContext, Target};
use timely::WorkerConfig;
use timely::execute::execute_from;
use timely::worker::Worker;

use super::cluster::{Merge, Place};
use super::feed::{Command, WorkerPort};
use super::flows::{FlowPlan, Flows};
use super::switching::Order;
use crate::stats::Stats;

/// Longest sleep of an idle worker. The feed wakes it; this only bounds the damage of a lost wake.
const PARK_MAX: Duration = Duration::from_secs(1);

/// What workers report to the committer. Channels keep the order in which things happened, so
/// whatever belongs to an epoch arrives before its [`Event::Done`].
#[derive(Debug)]
pub(crate) enum Event {
    /// Rows that left the graph.
    Rows { target: Target, epoch: Epoch, rows: RecordBatch },
    /// State of an operator as of the end of an epoch.
    State { name: String, epoch: Epoch, state: Snapshot },
    /// A checkpoint of this epoch was asked of all operators.
    Checkpoint(Epoch),
    /// Every epoch up to this one is complete on all workers; with its tick.
    Done(Tick),
    /// All state as of the end of this epoch has come, also from other processes.
    Saved(Epoch),
    /// The input has ended for good: what comes after this and before [`Event::Ended`] is complete,
    /// although no tick seals it.
    Flushed,
    /// Other pipelines are to run after an epoch: from the feed, which stands still.
    Switch(Box<Order>),
    /// An operator failed.
    Failed(String),
    /// All workers have ended.
    Ended,
}

/// What every worker is started with.
pub(crate) struct WorkerPlan {
    pub(crate) pipelines: Vec<PipelineSpec>,
    pub(crate) workers: usize,
    /// The first epoch that will be fed.
    pub(crate) first_epoch: Epoch,
    /// Saved state by operator name.
    pub(crate) state: Vec<(String, RecordBatch)>,
    pub(crate) tap_edges: bool,
    /// How much text there may be at an operator at a time.
    pub(crate) text_max: TextMax,
    /// Let the simulation decide who runs when.
    #[cfg(test)]
    pub(super) turns: Option<Turns>,
}

impl WorkerPlan {
    /// All pipelines of a plan, from an epoch on, with the state before it.
    pub(crate) fn live(
        plan: &Plan,
        workers: usize,
        first_epoch: Epoch,
        state: Vec<(String, RecordBatch)>,
    ) -> Self {
        Self { state, ..Self::of(plan.pipelines.clone(), workers, first_epoch) }
    }

    /// These pipelines, from an epoch on, without state.
    pub(crate) fn of(pipelines: Vec<PipelineSpec>, workers: usize, first_epoch: Epoch) -> Self {
        Self {
            pipelines,
            workers,
            first_epoch,
            state: Vec::new(),
            tap_edges: false,
            text_max: TextMax::default(),
            #[cfg(test)]
            turns: None,
        }
    }
}

/// Takes the reports of the workers of a process.
#[derive(Clone)]
pub(crate) struct Reporter {
    events: SyncSender<Event>,
    /// Of the leader of a cluster: what is done when all processes have done it.
    merge: Option<Arc<Merge>>,
}

impl Reporter {
    /// Of a process that answers for itself.
    pub(crate) fn alone(events: SyncSender<Event>) -> Self {
        Self { events, merge: None }
    }

    /// Of the leader of a cluster.
    pub(crate) fn merged(events: SyncSender<Event>, merge: Arc<Merge>) -> Self {
        Self { events, merge: Some(merge) }
    }

    fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }

    fn done(&self, tick: Tick) {
        match &self.merge {
            Some(merge) => merge.done(0, tick),
            None => self.send(Event::Done(tick)),
        }
    }

    fn ended(&self) {
        match &self.merge {
            Some(merge) => merge.ended(),
            None => self.send(Event::Ended),
        }
    }
}

/// Starts the workers of a process that is alone. Returns their command ports once all graphs are
/// built.
pub(crate) fn start(
    plan: WorkerPlan,
    stats: Arc<Stats>,
    events: SyncSender<Event>,
) -> anyhow::Result<(Vec<WorkerPort>, JoinHandle<()>)> {
    start_in(plan, Place::default(), stats, Reporter::alone(events))
}

/// The same for one of several processes.
pub(crate) fn start_in(
    plan: WorkerPlan,
    place: Place,
    stats: Arc<Stats>,
    reporter: Reporter,
) -> anyhow::Result<(Vec<WorkerPort>, JoinHandle<()>)> {
    let workers = plan.workers;
    // Of all workers, those of this process begin with this one.
    let (first, peers) = (place.process * workers, place.processes() * workers);
    let mut plan = plan;
    // Each worker gives its share back when it is built: the rows may be as large as all state.
    let state = Arc::new(std::mem::take(&mut plan.state));
    let states = Mutex::new(vec![Some(state); workers]);
    let plan = Arc::new(plan);
    let (ready, is_ready) = channel::<(usize, Result<WorkerPort, String>)>();
    let ready = Mutex::new(ready);
    let thread = {
        let reporter = reporter.clone();
        std::thread::Builder::new().name("timely".into()).spawn(move || {
            // An idle worker sleeps: an edge box has better uses for its cores than spinning.
            let config = WorkerConfig::default().idle_spin(Duration::ZERO);
            let body_reporter = reporter.clone();
            let body = move |worker: &mut Worker| {
                let ready = ready.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let index = worker.index() - first;
                let mut states = states.lock().unwrap_or_else(PoisonError::into_inner);
                let state = states[index].take().unwrap_or_default();
                drop(states);
                let places = (index, peers);
                let body = || run(worker, (&plan, state), places, &stats, &body_reporter, &ready);
                // A worker that is gone in silence would leave the others waiting for ever.
                if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
                    let why = format!("worker {index} panicked: {}", text_of(panic.as_ref()));
                    let _ = ready.send((index, Err(why.clone())));
                    body_reporter.send(Event::Failed(why));
                }
            };
            let made = place.allocators(workers);
            match made.and_then(|(made, others)| execute_from(made, others, config, body)) {
                Ok(guards) => drop(guards.join()),
                Err(error) => reporter.send(Event::Failed(error)),
            }
            reporter.ended();
        })?
    };
    let mut ports: Vec<Option<WorkerPort>> = (0..workers).map(|_| None).collect();
    for _ in 0..workers {
        let (index, port) = is_ready.recv()?;
        ports[index] = Some(port.map_err(anyhow::Error::msg)?);
    }
    Ok((ports.into_iter().flatten().collect(), thread))
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

fn run(
    worker: &mut Worker,
    (plan, state): (&WorkerPlan, Arc<Vec<(String, RecordBatch)>>),
    (index, peers): (usize, usize),
    stats: &Arc<Stats>,
    reporter: &Reporter,
    ready: &Sender<(usize, Result<WorkerPort, String>)>,
) {
    let of_all = worker.index();
    let context = |ticks: Ticks, state: &[(String, RecordBatch)]| {
        context((of_all, peers), plan, state, (stats, &reporter.events), ticks)
    };
    let first = FlowPlan {
        pipelines: plan.pipelines.clone(),
        tables: graph::tables(&plan.pipelines),
        first_epoch: plan.first_epoch,
        ..FlowPlan::default()
    };
    let mut flows = Flows::default();
    if let Err(error) = flows.install(worker, &first, |ticks| context(ticks, &state)) {
        let _ = ready.send((index, Err(error.to_string())));
        return;
    }
    drop(state);
    let (commands, queue) = channel();
    let thread: Thread = std::thread::current();
    let _ = ready.send((index, Ok(WorkerPort { commands, thread })));
    let done = plan.first_epoch.saturating_sub(1);
    let mut feeder = Feeder { flows, ticks: Ticks::default(), queue, done };
    let report = (index == 0).then_some(reporter);
    #[cfg(test)]
    if let Some(turns) = &plan.turns {
        return stepped(worker, &mut feeder, report, turns);
    }
    loop {
        let (busy, change) = feeder.take_commands(report);
        if let Some(change) = change
            && let Err(error) =
                feeder.flows.install(worker, &change, |ticks| context(ticks, &change.state))
        {
            reporter.send(Event::Failed(error.to_string()));
        }
        let alive = worker.step_or_park(Some(if busy { Duration::ZERO } else { PARK_MAX }));
        feeder.report(report);
        if !alive {
            return;
        }
    }
}

/// When each worker may take its turn: the simulation lets one run at a time.
#[cfg(test)]
pub(super) struct Turns {
    /// By worker: the order to step, and the report that it is done and whether it goes on.
    pub(super) workers: Vec<Mutex<(Receiver<()>, Sender<bool>)>>,
}

/// The loop of a worker of the simulation: a turn when it is told to.
#[cfg(test)]
fn stepped(worker: &mut Worker, feeder: &mut Feeder, report: Option<&Reporter>, turns: &Turns) {
    let turns = turns.workers[worker.index()].lock().unwrap_or_else(PoisonError::into_inner);
    while turns.0.recv().is_ok() {
        feeder.take_commands(report);
        let alive = worker.step();
        feeder.report(report);
        if turns.1.send(alive).is_err() || !alive {
            break;
        }
    }
    // The process that is simulated is gone.
    feeder.flows.end(false);
}

struct Feeder {
    flows: Flows,
    /// Those that are not complete in all dataflows.
    ticks: Ticks,
    queue: Receiver<Command>,
    done: Epoch,
}

impl Feeder {
    /// Takes commands up to the next tick or change; true if there were any, and the change.
    fn take_commands(&mut self, report: Option<&Reporter>) -> (bool, Option<Arc<FlowPlan>>) {
        let mut busy = false;
        loop {
            let command = match self.queue.try_recv() {
                Ok(command) => command,
                Err(TryRecvError::Empty) => return (busy, None),
                // The engine is gone without a word: end without closing windows.
                Err(TryRecvError::Disconnected) => {
                    self.flows.end(false);
                    return (busy, None);
                }
            };
            busy = true;
            match command {
                Command::Messages(run) => {
                    self.flows.messages(&run);
                    return (true, None);
                }
                Command::Checkpoint { epoch, whole } => {
                    self.flows.checkpoint_at(epoch, whole);
                    if let Some(report) = report {
                        report.send(Event::Checkpoint(epoch));
                    }
                }
                Command::Flush(epoch) => self.flows.flush_at(epoch),
                Command::NoNewKeys(epoch, but) => self.flows.close_at(epoch, &but),
                Command::Tick(tick) => {
                    self.ticks.note(tick);
                    self.flows.tick(tick);
                    return (true, None);
                }
                Command::Change(change) => return (true, Some(change)),
                Command::End { flush } => {
                    if flush && let Some(report) = report {
                        report.send(Event::Flushed);
                    }
                    self.flows.end(flush);
                    return (true, None);
                }
            }
        }
    }

    /// Notices how far the dataflows are and tells it.
    fn report(&mut self, report: Option<&Reporter>) {
        let frontier = self.flows.frontier();
        let mut last = None;
        while let Some(tick) = self.ticks.next(self.done + 1, frontier) {
            self.done = tick.epoch;
            match report {
                // When the journal began: that does not go under in what is told of later epochs.
                Some(report) if tick.epoch == 1 => report.done(tick),
                _ => last = Some(tick),
            }
        }
        if let Some(tick) = last {
            self.ticks.forget_before(tick.epoch);
            self.flows.forget_before(tick.epoch);
            if let Some(report) = report {
                report.done(tick);
            }
        }
    }
}

fn context(
    worker: (usize, usize),
    plan: &WorkerPlan,
    state: &[(String, RecordBatch)],
    (stats, events): (&Arc<Stats>, &SyncSender<Event>),
    ticks: Ticks,
) -> GraphContext {
    let rows = events.clone();
    let states = events.clone();
    let failures = events.clone();
    let failed = Cell::new(false);
    let stalled = Cell::new((0, 0u64));
    let stall_stats = Arc::clone(stats);
    let stats = Arc::clone(stats);
    let saved = Rc::new(RefCell::new(state.to_vec()));
    GraphContext {
        ticks,
        deliver: Rc::new(move |target, epoch, batch| {
            let _ = rows.send(Event::Rows { target: target.clone(), epoch, rows: batch });
        }),
        count: Rc::new(move |counter, count| {
            let counter = match counter {
                Counter::Readings => &stats.readings,
                Counter::Rejects => &stats.rejects,
                Counter::Late => &stats.late,
                Counter::Duplicates => &stats.duplicates,
                Counter::Windows => &stats.windows,
                Counter::Findings => &stats.findings,
                Counter::Alerts => &stats.alerts,
                Counter::KeysRefused => &stats.keys_refused,
                Counter::MemoryRefused => &stats.memory_refused,
                Counter::ClocksOff => &stats.clocks_off,
            };
            Stats::add(counter, count);
        }),
        save: Rc::new(move |name, epoch, take| {
            let started = Instant::now();
            let state = take();
            // Operators of one worker are held up one after the other.
            let (of, sum_us) = stalled.get();
            let before_us = if of == epoch { sum_us } else { 0 };
            let stall_us = before_us + started.elapsed().as_micros() as u64;
            stalled.set((epoch, stall_us));
            stall_stats.checkpoint_stall_us.fetch_max(stall_us, Ordering::Relaxed);
            let _ = states.send(Event::State { name: name.to_owned(), epoch, state });
        }),
        fail: Rc::new(move |name, error| {
            if !failed.replace(true) {
                let _ = failures.send(Event::Failed(format!("{name}: {error}")));
            }
        }),
        state: Rc::new(move |name| {
            let saved = saved.borrow();
            saved.iter().filter(|s| s.0 == name).map(|s| s.1.clone()).collect()
        }),
        worker,
        tap_edges: plan.tap_edges,
        text_max: plan.text_max,
    }
}
