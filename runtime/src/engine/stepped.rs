//! The live engine without threads of its own: the simulation says who runs next.
//!
//! It is put together from the parts of which [`super::Engine::start`] is made; only what their
//! threads would do is done by calls. Not in it is whatever changes a plan (the take-over of a
//! checkpoint of other pipelines, rows that end alerts, changes while running), nor HTTP's keys.
//! Timely's workers do have threads, because their channels want them, but each runs only while the
//! caller waits for it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tidegate_operators::Epoch;
use tidegate_operators::event::NoNewKeys;
use tidegate_pipelines::{Plan, graph};
use tidegate_sql::Store;
use tokio::runtime::Runtime;

use super::checkpoints::{Checkpoints, Restored};
use super::commit::Committer;
use super::feed::{FeedQueue, InFlight};
use super::notifications::Notifications;
use super::patience::Patience;
use super::tables::{Backlog, Table, TableWork};
use super::workers::{self, Event, Turns, WorkerPlan};
use crate::checkpoint::CheckpointStore;
use crate::clock::Clock;
use crate::intake::Intake;
use crate::journal::{self, Feed, FeedSink, Journal, JournalOptions, Storage};
use crate::outbox::Outbox;
use crate::stats::Stats;

/// More than a simulation ever has: nothing may wait for room where one thread does everything.
const QUEUE_MAX: usize = 1 << 16;

/// Tables that are to be as fresh as this commit at checkpoints only.
const HOUR_US: i64 = 3_600_000_000;

/// What an engine is put together from.
pub(crate) struct Setup<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) data: &'a Path,
    pub(crate) store: &'a Store,
    pub(crate) workers: usize,
    pub(crate) journal: JournalOptions,
    /// What the tables' work runs on.
    pub(crate) runtime: Rc<Runtime>,
}

/// Feeds that the journal handed on and the workers have not got yet.
#[derive(Clone, Default)]
struct Fed(Arc<Mutex<VecDeque<Feed>>>);

impl Fed {
    fn pop(&self) -> Option<Feed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

impl FeedSink for Fed {
    fn push(&mut self, feed: Feed) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push_back(feed);
    }
}

/// A worker that waits for its turn.
struct Worker {
    turn: Sender<()>,
    done: Receiver<bool>,
    alive: bool,
}

/// The engine.
pub(crate) struct Stepped {
    journal: Arc<Journal>,
    by_turns: journal::Stepped,
    fed: Fed,
    queue: FeedQueue,
    in_flight: Arc<InFlight>,
    workers: Vec<Worker>,
    timely: Option<JoinHandle<()>>,
    events: Receiver<Event>,
    committer: Committer,
    tables: Vec<TableWork>,
    runtime: Rc<Runtime>,
    stats: Arc<Stats>,
    cut: Arc<AtomicBool>,
    pub(crate) outbox: Arc<Outbox>,
    /// Epoch of the checkpoint that was restored.
    pub(crate) restored: Epoch,
    /// Messages that were replayed.
    pub(crate) replayed: u64,
}

impl Stepped {
    /// Opens everything, restores the newest checkpoint and replays the journal.
    pub(crate) fn start(setup: Setup<'_>) -> anyhow::Result<Self> {
        let Setup { plan, storage, data, store, runtime, .. } = setup;
        let stats = Arc::new(Stats::default());
        let in_flight = Arc::new(InFlight::default());
        let checkpoints = CheckpointStore::open_on(Arc::clone(&storage), data.join("checkpoints"))?;
        let mut restored = Restored::read(&checkpoints, &plan.pipelines)?;
        let mut go_on = restored.go_on(checkpoints, Duration::MAX, &stats);
        let Restored { epoch, state, rules, .. } = restored;
        let names: Vec<String> = plan.sources.iter().map(|s| s.name.clone()).collect();
        let (disk, clock) = (Arc::clone(&storage), Clock::system());
        let (journal, replay) = Journal::open_on(disk, setup.journal, clock, &names, epoch + 1)?;
        let journal = Arc::new(journal);
        let outbox = Arc::new(Outbox::open_on(storage, data.join("outbox"))?);
        let cut = Arc::new(AtomicBool::new(false));
        go_on.journal = Some(Arc::clone(&journal));
        let cuts = Arc::clone(&go_on.cuts);
        let shared = (Arc::clone(&stats), Arc::clone(&in_flight));
        let (committer, tables) = open_tables(plan, store, shared, &runtime)?;
        let committer = committer.with_durable(
            Arc::clone(&journal),
            Notifications::new(Arc::clone(&outbox), rules),
            Checkpoints::by_turns(go_on, &plan.pipelines),
            epoch,
        );
        let (events, received) = sync_channel(QUEUE_MAX);
        let (turns, workers) = turns(setup.workers);
        let mut worker_plan = WorkerPlan::live(plan, setup.workers, epoch + 1, state);
        worker_plan.turns = Some(turns);
        let (ports, timely) = workers::start(worker_plan, Arc::clone(&stats), events)?;
        let (open, counted) = (Arc::clone(&in_flight), Arc::clone(&stats));
        let queue = FeedQueue::new(ports, open, counted, Some(cuts), Arc::clone(&cut));
        let fed = Fed::default();
        let by_turns = journal.start_stepped(Box::new(fed.clone()));
        let mut engine = Self {
            journal,
            by_turns,
            fed,
            queue,
            in_flight,
            workers,
            timely: Some(timely),
            events: received,
            committer,
            tables,
            runtime,
            stats,
            cut,
            outbox,
            restored: epoch,
            replayed: 0,
        };
        engine.replay(replay)?;
        Ok(engine)
    }

    fn replay(&mut self, replay: journal::Replay) -> anyhow::Result<()> {
        for feed in replay {
            let feed = feed?;
            if let Feed::Messages(messages) = &feed {
                self.replayed += messages.len() as u64;
            }
            self.make_room()?;
            self.queue.push(feed);
        }
        Ok(())
    }

    /// Where a source puts its messages.
    pub(crate) fn intake(&self, source: usize) -> Arc<dyn Intake> {
        self.journal.intake(source)
    }

    pub(crate) fn workers(&self) -> usize {
        self.workers.len()
    }

    pub(crate) fn tables(&self) -> usize {
        self.tables.len()
    }

    /// Closes epochs to new keys, or opens them.
    pub(crate) fn refuse_new_keys(&self, refuse: bool) {
        self.journal.refuse_new_keys(refuse.then(NoNewKeys::default));
    }

    /// Messages that the journal recognised as repetitions.
    pub(crate) fn repeated(&self) -> u64 {
        self.journal.stats().repeated
    }

    /// One turn of the journal's writer: whether it goes on, and whether it did anything.
    pub(crate) fn write(&mut self) -> Result<(bool, bool), String> {
        self.by_turns.write()
    }

    /// Hands feeds on, at most `max`; whether there were any.
    pub(crate) fn feed(&mut self, max: usize) -> anyhow::Result<bool> {
        let mut any = false;
        for _ in 0..max {
            any |= self.by_turns.feed().map_err(anyhow::Error::msg)?;
            if self.in_flight.is_full() {
                break;
            }
            match self.fed.pop() {
                Some(feed) => self.queue.push(feed),
                None => break,
            }
            any = true;
        }
        Ok(any)
    }

    /// Asks for a checkpoint at the next tick that is fed, and those after it, until told to stop.
    pub(crate) fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Release);
    }

    /// Lets one worker take a turn.
    pub(crate) fn work(&mut self, worker: usize) -> anyhow::Result<()> {
        let worker = &mut self.workers[worker];
        if worker.alive {
            worker.turn.send(())?;
            // A worker that panicked has said why in its events.
            worker.alive = worker.done.recv().unwrap_or(false);
        }
        Ok(())
    }

    /// Lets the committer take the next report of the workers; whether there was one.
    pub(crate) fn commit(&mut self) -> anyhow::Result<bool> {
        match self.events.try_recv() {
            Ok(event) => self.committer.event(event).map(|()| true),
            Err(_) => Ok(false),
        }
    }

    /// Lets one table do one job; whether there was one.
    pub(crate) fn table(&mut self, table: usize) -> anyhow::Result<bool> {
        self.tables[table].step(&self.runtime, &self.stats)
    }

    /// Lets whoever has to make room for another epoch work.
    fn make_room(&mut self) -> anyhow::Result<()> {
        while self.in_flight.is_full() {
            self.settle()?;
        }
        Ok(())
    }

    /// Lets workers, committer and tables do what there is to do now, once around.
    pub(crate) fn settle(&mut self) -> anyhow::Result<bool> {
        let mut any = false;
        for worker in 0..self.workers.len() {
            self.work(worker)?;
        }
        while self.commit()? {
            any = true;
        }
        for table in 0..self.tables.len() {
            any |= self.table(table)?;
        }
        Ok(any)
    }

    /// Whether every sealed epoch is through, its rows are with the tables, no checkpoint waits.
    pub(crate) fn is_at_rest(&self) -> bool {
        let done = self.stats.snapshot().epochs_done;
        done >= self.journal.stats().sealed_epoch && self.committer.is_at_rest()
    }

    /// The end of a run, all sources having stopped: everything offered is sealed and committed.
    /// With `flush` windows are closed as if their readings had ended.
    pub(crate) fn shutdown(mut self, flush: bool) -> anyhow::Result<()> {
        self.cut(!flush);
        self.journal.ask_to_stop();
        while self.write().map_err(anyhow::Error::msg)?.0 {}
        loop {
            self.make_room()?;
            if !self.feed(16)? {
                break;
            }
        }
        self.queue.end(flush);
        while self.workers.iter().any(|worker| worker.alive) {
            self.settle()?;
        }
        while self.commit()? {}
        self.committer.commit_rest()?;
        // A store that stays away keeps the end from being reached, as it does in the product.
        let mut failed = 0;
        while failed < 100 {
            let mut any = false;
            for table in 0..self.tables.len() {
                any |= self.table(table)?;
            }
            if !any {
                return self.committer.finish();
            }
            failed += usize::from(self.tables.iter().any(TableWork::is_stuck));
        }
        anyhow::bail!("the tables cannot be written")
    }
}

impl Drop for Stepped {
    fn drop(&mut self) {
        // The workers end by themselves when nobody gives them turns.
        self.workers.clear();
        self.in_flight.close();
        if let Some(timely) = self.timely.take() {
            // Their last reports have nowhere to go.
            drop(std::mem::replace(&mut self.events, sync_channel(0).1));
            let _ = timely.join();
        }
    }
}

/// The committer, and the work of its tables.
fn open_tables(
    plan: &Plan,
    store: &Store,
    shared: (Arc<Stats>, Arc<InFlight>),
    runtime: &Runtime,
) -> anyhow::Result<(Committer, Vec<TableWork>)> {
    let mut tables = Vec::new();
    let mut specs = graph::tables(&plan.pipelines);
    // The real clock must not decide: a table commits at every turn, or only at checkpoints.
    for spec in specs.iter_mut().filter(|spec| spec.freshness_us < HOUR_US) {
        spec.freshness_us = 0;
    }
    let start = |name, writer, freshness| {
        let (table, work) = Table::new(name, writer, freshness, Backlog::in_memory());
        tables.push(work);
        Ok(table)
    };
    let committer = runtime.block_on(Committer::open_with(
        store,
        &specs,
        ("simulated", true, &Patience::default()),
        shared,
        start,
    ))?;
    Ok((committer, tables))
}

fn turns(workers: usize) -> (Turns, Vec<Worker>) {
    let mut turns = Vec::new();
    let mut waiting = Vec::new();
    for _ in 0..workers {
        let (turn, take) = channel();
        let (say, done) = channel();
        turns.push(Mutex::new((take, say)));
        waiting.push(Worker { turn, done, alive: true });
    }
    (Turns { workers: turns }, waiting)
}

/// The journal's options in a data folder, small enough that a simulation sees segments come and
/// go.
pub(crate) fn small_journal(data: &Path, segment_bytes: u64, budget_bytes: u64) -> JournalOptions {
    JournalOptions {
        segment_bytes,
        budget_bytes,
        epoch_interval: Duration::from_millis(50),
        idle_interval: Duration::from_millis(500),
        ..JournalOptions::new(PathBuf::from(data).join("journal"))
    }
}
