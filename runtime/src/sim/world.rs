//! One simulation: the product in the middle, the world around it, and who runs when.
//!
//! Everything happens on one thread, in an order that the seed decides: a little time passes and
//! tasks (connections, devices, the broker) run; the writer, the feed, the workers, the committer
//! and the tables take turns, or do not for a while; something breaks. While the disk syncs, time
//! passes and the world goes on.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate_pipelines::{Plan, SourceKind};
use tidegate_sql::Store;
use tokio::sync::watch;

use super::broker::Broker;
use super::counts::Counts;
use super::device::{self, AbortOnDrop, Device, Dial};
use super::disk::{Crash, SimDisk};
use super::faults::Weather;
use super::inject::{Guard, Injected};
use super::marks::Marks;
use super::memory::Memory;
use super::net::{Links, World, runtime};
use super::objects::SimObjects;
use super::oracle::{self, Received};
use super::plan::plan;
use super::trace::Trace;
use super::watchdog::Watchdog;
use super::{replay, tables};
use crate::engine::stepped::{Setup, Stepped, small_journal};
use crate::fuzz::Rng;
use crate::mqtt::simulated::Listening;
use crate::mqtt::{Subscriber, SubscriberConfig};
use crate::mutation::Mutation;
use crate::outbox::Notification;
use crate::source::{Source, SourceError, SourceStats};

/// Where the simulated clocks begin: 2026-01-01.
const BEGIN_US: i64 = 1_767_225_600_000_000;

/// Devices, readings of each, readings at the broker.
const DEVICES: usize = 3;
const READINGS: u32 = 28;
const BROKER_READINGS: u32 = 150;

/// Everything has to be at rest after this much simulated time, microseconds.
const REST_US_MAX: u64 = 900_000_000;

/// What came of a simulation.
pub(crate) struct Outcome {
    pub(crate) failures: Vec<String>,
    /// Over everything that was written and sent, and how many events those were.
    pub(crate) hash: (u64, u64),
    pub(crate) counts: Counts,
    pub(crate) tail: String,
}

/// Runs the simulation of a seed.
pub(crate) fn run(seed: u64, mutation: Option<Mutation>, print: bool) -> Outcome {
    let trace = Trace::new(print);
    let _watchdog = Watchdog::new(seed, mutation, &trace);
    let mut sim = Sim::new(seed, mutation, trace.clone());
    sim.run();
    let counts = sim.counts();
    drop(sim);
    Outcome { failures: trace.failures(), hash: trace.hash(), counts, tail: trace.tail() }
}

type SubscriberTask = AbortOnDrop<Result<(), SourceError>>;

/// How a process of the product ended.
pub(super) enum End {
    Crash(Crash),
    /// It was stopped and finished.
    Stopped,
}

pub(super) struct Sim {
    pub(super) plan: Plan,
    pub(super) rng: Rng,
    pub(super) trace: Trace,
    pub(super) marks: Marks,
    pub(super) disk: SimDisk,
    pub(super) objects: SimObjects,
    store: Store,
    pub(super) world: Rc<World>,
    pub(super) links: Links,
    pub(super) injected: Rc<Injected>,
    pub(super) broker: Broker,
    pub(super) weather: Weather,
    memory: Memory,
    devices: Vec<Arc<Mutex<Device>>>,
    listening: Arc<Mutex<Option<Listening>>>,
    subscriber: Option<(SubscriberTask, watch::Sender<bool>)>,
    tables_runtime: Rc<tokio::runtime::Runtime>,
    received: Received,
    sending: VecDeque<Arc<Notification>>,
    /// All that was sent and has to be, once everything is at rest.
    to_be_received: Option<Received>,
    /// A replay was compared with the run: what is left is to close its windows.
    is_replayed: bool,
    pub(super) counts: Counts,
    _tasks: Vec<AbortOnDrop<()>>,
    pub(super) data: tempfile::TempDir,
    _guard: Guard,
}

impl Sim {
    fn new(seed: u64, mutation: Option<Mutation>, trace: Trace) -> Self {
        let mut rng = Rng::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (injected, guard) = Injected::install(rng.next(), BEGIN_US, mutation);
        let data = folder();
        let marks = Marks::new(trace.clone());
        let disk = SimDisk::new(data.path(), Rng::new(rng.next()), trace.clone(), marks.clone());
        let objects = SimObjects::new(Rng::new(rng.next()), disk.clone(), trace.clone());
        let store = Store::from_objects(Arc::new(objects.clone()), "sim://tables").without_pauses();
        let world = Rc::new(World::new(Rc::clone(&injected), disk.clone(), trace.clone()));
        let links = Links::new(Rng::new(rng.next()), trace.clone());
        let begin_ms = BEGIN_US / 1000;
        let broker = Broker::new(BROKER_READINGS, begin_ms, Rng::new(rng.next()), marks.clone());
        let listening: Arc<Mutex<Option<Listening>>> = Arc::default();
        let enter = world.runtime.enter();
        let mut tasks = vec![AbortOnDrop(tokio::spawn(broker.clone().publishers()))];
        let dial = dial(&links, &listening);
        let mut devices = Vec::new();
        for number in 0..DEVICES {
            let rng = Rng::new(rng.next());
            let device = Device::new(number, READINGS, begin_ms, rng, marks.clone());
            let device = Arc::new(Mutex::new(device));
            let task = tokio::spawn(device::run(Arc::clone(&device), Arc::clone(&dial)));
            tasks.push(AbortOnDrop(task));
            devices.push(device);
        }
        drop(enter);
        inject(&injected, &world, &links, &broker);
        let weather = Weather::new(&mut rng);
        Self {
            plan: plan(),
            weather,
            memory: Memory::new(seed),
            rng,
            trace,
            marks,
            disk,
            objects,
            store,
            world,
            links,
            injected,
            broker,
            devices,
            listening,
            subscriber: None,
            tables_runtime: Rc::new(runtime()),
            received: Received::new(),
            sending: VecDeque::new(),
            to_be_received: None,
            is_replayed: false,
            counts: Counts::default(),
            _tasks: tasks,
            data,
            _guard: guard,
        }
    }

    fn counts(&self) -> Counts {
        let resent = self.marks.known().resent;
        Counts {
            resent,
            lost_at_broker: self.broker.lost(),
            failed_requests: self.objects.failed(),
            webhooks: self.received.len() as u64,
            memory_full: self.memory.times,
            seconds: self.world.now_us() / 1_000_000,
            ..self.counts.clone()
        }
    }

    fn run(&mut self) {
        while !self.trace.has_failed() {
            match self.life() {
                End::Crash(how) => {
                    self.trace.line(format_args!("the process dies: {how:?}"));
                    match how {
                        Crash::Kill => self.counts.kills += 1,
                        Crash::PowerLoss => self.counts.power_losses += 1,
                    }
                    self.bury();
                    self.disk.restart(how);
                    self.objects.restart();
                    if let Err(why) = tables::check_whole(&self.objects) {
                        self.trace.failure(format!("a reader would see a torn table: {why}"));
                    }
                }
                End::Stopped if self.is_replayed => break,
                End::Stopped => {
                    self.counts.stops += 1;
                    let received = self.to_be_received.take();
                    self.bury();
                    if let Some(received) = received {
                        replay::check(self, &received);
                        self.is_replayed = true;
                    }
                }
            }
        }
        if !self.trace.has_failed() {
            self.judge();
        }
    }

    /// Compares what came of it with what must hold.
    fn judge(&mut self) {
        let tables = tables::check_whole(&self.objects).and_then(|()| tables::all(&self.objects));
        match tables {
            Ok(tables) => {
                self.counts.refused = oracle::refused(&tables).len() as u64;
                oracle::check(&tables, &self.marks, &self.received, &self.trace);
            }
            Err(why) => self.trace.failure(format!("a reader would see a torn table: {why}")),
        }
    }

    /// A process is gone: so are its tasks and connections.
    fn bury(&mut self) {
        self.listening.lock().unwrap().take();
        self.subscriber = None;
        self.sending.clear();
        self.world.turn();
    }

    pub(super) fn is_all_sent(&self) -> bool {
        self.weather.is_over() && self.devices.iter().all(device::is_done) && self.broker.is_done()
    }

    fn setup(&mut self) -> anyhow::Result<Stepped> {
        let segment_bytes = 2_000 + self.rng.below(12_000) as u64;
        let workers = 1 + self.rng.below(3);
        self.trace.line(format_args!("a process with {workers} workers starts"));
        Stepped::start(Setup {
            plan: &self.plan,
            storage: Arc::new(self.disk.clone()),
            data: self.data.path(),
            store: &self.store,
            workers,
            journal: small_journal(self.data.path(), segment_bytes, 4 << 20),
            runtime: Rc::clone(&self.tables_runtime),
        })
    }

    /// One process from its start to its end.
    fn life(&mut self) -> End {
        let mut engine = match self.setup() {
            Ok(engine) => engine,
            Err(error) => return self.cannot_go_on("start", &error),
        };
        self.trace.line(format_args!(
            "restored epoch {}, replayed {} messages",
            engine.restored, engine.replayed
        ));
        self.counts.restored += u64::from(engine.restored > 0);
        self.counts.replayed += engine.replayed;
        self.open_doors(&engine);
        let end = self.live(&mut engine);
        self.counts.recognised += engine.repeated();
        match end {
            Some(end) => end,
            None => self.stop(engine),
        }
    }

    /// Sources begin.
    fn open_doors(&mut self, engine: &Stepped) {
        let _enter = self.world.runtime.enter();
        for (number, source) in self.plan.sources.iter().enumerate() {
            let intake = engine.intake(number);
            match source.kind {
                SourceKind::Endpoint(_) => {
                    *self.listening.lock().unwrap() = Some(Listening::new(intake));
                }
                _ => {
                    let config = SubscriberConfig {
                        url: "mqtt://broker".to_owned(),
                        filters: vec!["b/+".to_owned()],
                        client_id: "sim".to_owned(),
                        ..SubscriberConfig::default()
                    };
                    let subscriber = Box::new(Subscriber::new(config).unwrap());
                    let (stop, stopped) = watch::channel(false);
                    let stats = Arc::new(SourceStats::default());
                    let task = subscriber.start(intake, stopped, stats);
                    self.subscriber = Some((AbortOnDrop(task), stop));
                }
            }
        }
    }

    /// Runs until the process dies (how), or is to be stopped (`None`).
    fn live(&mut self, engine: &mut Stepped) -> Option<End> {
        loop {
            self.world.pass(Duration::from_micros(self.rng.below(9_000) as u64));
            if let Err(error) = self.turns(engine) {
                return Some(self.cannot_go_on("run", &error));
            }
            if self.disk.is_dead() {
                return Some(self.cannot_go_on("run", &anyhow::anyhow!("dead")));
            }
            if self.trace.has_failed() {
                return Some(End::Crash(Crash::Kill));
            }
            if self.storm() {
                return None;
            }
            if self.is_all_sent() && self.sending.is_empty() && engine.is_at_rest() {
                return None;
            }
            if self.world.now_us() > REST_US_MAX {
                self.trace.failure("it never came to rest".to_owned());
            }
        }
    }

    /// Each part of the engine takes its turn, or not.
    fn turns(&mut self, engine: &mut Stepped) -> anyhow::Result<()> {
        engine.refuse_new_keys(self.memory.is_full(self.world.now_us()));
        if self.weather.runs(&mut self.rng, 0) {
            engine.write().map_err(anyhow::Error::msg)?;
        }
        if self.weather.runs(&mut self.rng, 1) {
            let cut = self.rng.one_in(self.weather.cuts_one_in());
            engine.cut(cut);
            let fed = engine.feed(1 + self.rng.below(4))?;
            self.counts.checkpoints_asked += u64::from(cut && fed);
        }
        for worker in 0..engine.workers() {
            if self.weather.runs(&mut self.rng, 2 + worker) {
                engine.work(worker)?;
            }
        }
        if self.weather.runs(&mut self.rng, 5) {
            for _ in 0..self.rng.below(8) {
                if !engine.commit()? {
                    break;
                }
            }
        }
        for table in 0..engine.tables() {
            if self.weather.runs(&mut self.rng, 6 + table) {
                engine.table(table)?;
            }
        }
        self.send_webhooks(engine)
    }

    /// The sender and its receiver, which now and then does not answer.
    fn send_webhooks(&mut self, engine: &Stepped) -> anyhow::Result<()> {
        for target in engine.outbox.fresh_targets() {
            self.sending.extend(engine.outbox.fetch(&target));
        }
        if self.rng.one_in(3)
            && let Some(item) = self.sending.pop_front()
        {
            if self.rng.one_in(4) {
                engine.outbox.failed(&item.id, "503")?;
                self.sending.push_back(item);
                return Ok(());
            }
            self.trace.bytes(format_args!("webhook {}", item.id), &item.body);
            let known = self.received.entry(item.id.clone()).or_insert(item.body.to_vec());
            if known[..] != item.body[..] {
                self.trace.failure(format!("{} was sent with other content", item.id));
            }
            if self.disk.is_dead() {
                return Ok(());
            }
            engine.outbox.delivered(&item.id)?;
        }
        Ok(())
    }

    /// A part has given up: allowed only if something was broken on purpose.
    fn cannot_go_on(&mut self, what: &str, error: &anyhow::Error) -> End {
        let dead = self.disk.is_dead();
        if !dead && !self.weather.is_excuse() {
            self.trace.failure(format!("the process cannot {what}: {error:#}"));
        }
        if !dead {
            self.trace.line(format_args!("the process ends: {}", self.shown(&error.to_string())));
            self.counts.gave_up += 1;
            // Whoever starts it again waits a moment.
            self.bury();
            self.world.pass(Duration::from_millis(300));
            self.weather.after_giving_up(&self.disk, &self.objects);
        }
        let power = self.weather.failed_sync() || self.rng.one_in(2);
        self.weather.new_process();
        End::Crash(if power { Crash::PowerLoss } else { Crash::Kill })
    }

    /// Texts without the folder, which differs from run to run.
    fn shown(&self, text: &str) -> String {
        text.replace(&self.data.path().display().to_string(), "")
    }

    /// A clean end: sources first, then the rest, as the product does it.
    fn stop(&mut self, mut engine: Stepped) -> End {
        self.trace.line(format_args!("the process is stopped"));
        if let Some((_, stop)) = &self.subscriber {
            let _ = stop.send(true);
        }
        for _ in 0..3_000 {
            self.world.pass(Duration::from_millis(5));
            if let Err(why) = engine.write() {
                return self.cannot_go_on("stop", &anyhow::Error::msg(why));
            }
            let closed = self.listening.lock().unwrap().as_mut().is_none_or(Listening::stop);
            let ended = self.subscriber.as_ref().is_none_or(|(task, _)| task.0.is_finished());
            if closed && ended {
                break;
            }
        }
        let (at_rest, flush) = (self.is_all_sent(), self.is_replayed);
        let outbox = Arc::clone(&engine.outbox);
        match engine.shutdown(flush) {
            Ok(()) if !self.disk.is_dead() => {
                if flush {
                    self.received.extend(replay::pending(&outbox));
                } else if at_rest {
                    let mut all = self.received.clone();
                    all.extend(self.sending.drain(..).map(|n| (n.id.clone(), n.body.to_vec())));
                    all.extend(replay::pending(&outbox));
                    self.to_be_received = Some(all);
                }
                End::Stopped
            }
            Ok(()) => self.cannot_go_on("stop", &anyhow::anyhow!("dead")),
            Err(error) => self.cannot_go_on("stop", &error),
        }
    }
}

/// A folder in memory where there is one.
pub(super) fn folder() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

/// Lets the world go on while the product waits, and the product reach the broker.
fn inject(injected: &Injected, world: &Rc<World>, links: &Links, broker: &Broker) {
    let passing = Rc::downgrade(world);
    injected.on_wait(Rc::new(move |time| {
        if let Some(world) = passing.upgrade() {
            world.pass(time);
        }
    }));
    let (links, broker) = (links.clone(), broker.clone());
    injected.on_dial(Rc::new(move |_host| {
        let (near, far) = links.connect("broker");
        tokio::spawn(broker.clone().serve(far));
        Ok(Box::new(near))
    }));
}

/// How devices reach the endpoint.
fn dial(links: &Links, listening: &Arc<Mutex<Option<Listening>>>) -> Dial {
    let (links, listening) = (links.clone(), Arc::clone(listening));
    Arc::new(move |name| {
        let mut listening = listening.lock().unwrap();
        let endpoint = listening.as_mut()?;
        let (near, far) = links.connect(name);
        endpoint.accept(far);
        Some(near)
    })
}
