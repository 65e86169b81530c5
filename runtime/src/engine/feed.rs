//! From the journal (or a file) to the workers: deals messages out and bounds what is in flight.
//!
//! Timely has no flow control: whatever is put in, it takes. So the feed stops taking from the
//! journal while the probe is too far behind, in bytes or in epochs. It waits only between epochs:
//! an epoch that was begun is always finished, or it could never complete.

use std::collections::{BTreeSet, VecDeque};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;

use tidegate_operators::event::NoNewKeys;
use tidegate_operators::{Epoch, Messages, Tick};

use super::cuts::Cuts;
use super::flows::FlowPlan;
use super::registries::Entries;
use super::standing::Standing;
use crate::stats::Stats;

/// Bytes of messages that may be in flight before a new epoch has to wait.
pub(crate) const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;

/// Epochs that may be in flight: more only cost memory for progress tracking.
pub(crate) const IN_FLIGHT_EPOCHS_MAX: usize = 256;

/// Small runs of messages are joined up to this size, so that a batch has enough rows to be worth
/// its overhead.
const RUN_BYTES_MIN: usize = 256 << 10;

/// What a worker is told.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    /// Messages of the open epoch.
    Messages(Arc<Messages>),
    /// Save state as of the end of this epoch (comes before its tick).
    Checkpoint {
        epoch: Epoch,
        /// All key groups, not only those that changed.
        whole: bool,
    },
    /// At the end of this epoch, whatever is open is to be emitted (comes before its tick).
    Flush(Epoch),
    /// New keys find no place in this epoch, but at operators of these names (comes before its
    /// tick).
    NoNewKeys(Epoch, Arc<BTreeSet<String>>),
    /// The end of an epoch.
    Tick(Tick),
    /// Other pipelines from the next epoch on; every epoch so far is complete.
    Change(Arc<FlowPlan>),
    /// Nothing more comes; `flush` if the input has ended for good and windows are to be closed.
    End { flush: bool },
}

/// What there is too much of: bytes or epochs, how many of them, and how many may be.
pub(crate) type Full = (&'static str, usize, usize);

/// How far the workers are, shared by the feed and the committer.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    state: Mutex<InFlightState>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct InFlightState {
    epochs: VecDeque<(Epoch, usize)>,
    bytes: usize,
    closed: bool,
    /// How many bytes may be in flight while memory is short.
    tight: Option<usize>,
}

impl InFlightState {
    fn bytes_max(&self) -> usize {
        self.tight.unwrap_or(IN_FLIGHT_BYTES_MAX).min(IN_FLIGHT_BYTES_MAX)
    }

    fn full(&self) -> Option<Full> {
        if self.bytes > self.bytes_max() {
            return Some(("bytes", self.bytes, self.bytes_max()));
        }
        let epochs = self.epochs.len();
        (epochs > IN_FLIGHT_EPOCHS_MAX).then_some(("epochs", epochs, IN_FLIGHT_EPOCHS_MAX))
    }
}

impl InFlight {
    fn lock(&self) -> MutexGuard<'_, InFlightState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until another epoch may begin.
    fn wait(&self) {
        let full = |s: &mut InFlightState| !s.closed && s.full().is_some();
        let _guard =
            self.freed.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner);
    }

    /// What [`InFlight::wait`] would wait for, if it would.
    pub(crate) fn full(&self) -> Option<Full> {
        self.lock().full()
    }

    /// Whether [`InFlight::wait`] would wait.
    #[cfg(test)]
    pub(crate) fn is_full(&self) -> bool {
        self.full().is_some()
    }

    /// Lets only so many bytes be in flight from now on, or as many as usual.
    pub(crate) fn tighten(&self, bytes_max: Option<usize>) {
        self.lock().tight = bytes_max;
        self.freed.notify_all();
    }

    /// Bytes of messages in flight.
    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn sealed(&self, epoch: Epoch, bytes: usize) {
        let mut state = self.lock();
        state.epochs.push_back((epoch, bytes));
        state.bytes += bytes;
    }

    /// Every epoch up to `through` is complete.
    pub(crate) fn done(&self, through: Epoch) {
        let mut state = self.lock();
        while let Some((epoch, bytes)) = state.epochs.front().copied() {
            if epoch > through {
                break;
            }
            state.epochs.pop_front();
            state.bytes -= bytes;
        }
        self.freed.notify_all();
    }

    /// The workers are gone: nobody has to wait any more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.freed.notify_all();
    }
}

/// The end of one worker's command queue.
pub(crate) struct WorkerPort {
    pub(crate) commands: Sender<Command>,
    pub(crate) thread: Thread,
}

/// A command for workers of another process: for one of them, or for all.
pub(crate) struct Dealt(pub(crate) Option<usize>, pub(crate) Command);

/// The way to the workers of another process.
pub(crate) struct RemotePort {
    /// How many there are.
    pub(crate) workers: usize,
    pub(crate) commands: Sender<Dealt>,
}

/// The ways to all workers. A worker that is gone has reported why, and the engine is about to end:
/// what is sent to it is lost.
#[derive(Default)]
pub(crate) struct Ports {
    pub(crate) local: Vec<WorkerPort>,
    pub(crate) remote: Vec<RemotePort>,
}

impl From<Vec<WorkerPort>> for Ports {
    fn from(local: Vec<WorkerPort>) -> Self {
        Self { local, remote: Vec::new() }
    }
}

impl Ports {
    /// To one of all workers, counted round and round.
    fn send(&self, worker: usize, command: Command) {
        let all = self.local.len() + self.remote.iter().map(|r| r.workers).sum::<usize>();
        let worker = worker % all.max(1);
        let Some(mut place) = worker.checked_sub(self.local.len()) else {
            let port = &self.local[worker];
            let _ = port.commands.send(command);
            port.thread.unpark();
            return;
        };
        for port in &self.remote {
            if place < port.workers {
                let _ = port.commands.send(Dealt(Some(place), command));
                return;
            }
            place -= port.workers;
        }
    }

    fn to_all(&self, command: &Command) {
        for port in &self.local {
            let _ = port.commands.send(command.clone());
            port.thread.unpark();
        }
        for port in &self.remote {
            let _ = port.commands.send(Dealt(None, command.clone()));
        }
    }
}

/// Deals out to the workers.
pub(crate) struct FeedQueue {
    ports: Ports,
    in_flight: Arc<InFlight>,
    stats: Arc<Stats>,
    next_port: usize,
    waiting: Vec<Arc<Messages>>,
    waiting_bytes: usize,
    epoch_bytes: usize,
    epoch_open: bool,
    cut_now: bool,
    /// New keys find no place in the open epoch.
    no_new_keys: Option<NoNewKeys>,
    /// They do in every epoch, whatever the journal says.
    open_to_all: bool,
    /// When state is to be cut; never without it, but for the end.
    cuts: Option<Arc<Cuts>>,
    /// Offset of the next message.
    next_offset: u64,
    /// While it is set, state is cut at every tick.
    last_ticks: Arc<std::sync::atomic::AtomicBool>,
    /// What learns from messages, and notes it before state is cut.
    entries: Option<Arc<Entries>>,
    standing: Option<Standing>,
}

impl FeedQueue {
    pub(crate) fn new(
        ports: impl Into<Ports>,
        in_flight: Arc<InFlight>,
        stats: Arc<Stats>,
        cuts: Option<Arc<Cuts>>,
        last_ticks: Arc<std::sync::atomic::AtomicBool>,
    ) -> Self {
        Self {
            ports: ports.into(),
            in_flight,
            stats,
            next_port: 0,
            waiting: Vec::new(),
            waiting_bytes: 0,
            epoch_bytes: 0,
            epoch_open: false,
            cut_now: false,
            no_new_keys: None,
            open_to_all: false,
            cuts,
            next_offset: 0,
            last_ticks,
            entries: None,
            standing: None,
        }
    }

    /// Has registries, and what knows what the engine has said of itself, hear all messages.
    pub(super) fn heard_by(self, entries: Arc<Entries>, standing: &Standing) -> Self {
        Self { entries: Some(entries), standing: Some(standing.clone()), ..self }
    }

    /// New keys find a place in every epoch: those that were refused when the journal was written
    /// were new to other operators.
    pub(super) fn open_to_all(self) -> Self {
        Self { open_to_all: true, ..self }
    }

    /// Messages of the open epoch.
    pub(crate) fn messages(&mut self, messages: Arc<Messages>) {
        self.begin_epoch();
        self.next_offset = messages.first_offset + messages.len() as u64;
        if !self.open_to_all
            && let Some(mark) = NoNewKeys::of(&messages)
        {
            self.no_new_keys = Some(mark);
        }
        let closed = self.no_new_keys.is_some();
        self.entries.iter().for_each(|entries| entries.hear(&messages, closed));
        self.standing.iter().for_each(|standing| standing.hear(&messages));
        let bytes = messages.size_bytes();
        self.epoch_bytes += bytes;
        if self.waiting.last().is_some_and(|last| !follows(last, &messages)) {
            self.send_waiting();
        }
        self.waiting.push(messages);
        self.waiting_bytes += bytes;
        if self.waiting_bytes >= RUN_BYTES_MIN {
            self.send_waiting();
        }
    }

    /// State is to be cut at the next tick, whenever it was cut last.
    pub(crate) fn cut_now(&mut self) {
        self.cut_now = true;
    }

    /// Other pipelines run from the next epoch on; all epochs so far are complete.
    pub(crate) fn change(&self, plan: FlowPlan) {
        self.to_all(&Command::Change(Arc::new(plan)));
    }

    /// The end of the open epoch.
    pub(crate) fn tick(&mut self, tick: Tick) {
        self.begin_epoch();
        self.send_waiting();
        let last = self.last_ticks.load(std::sync::atomic::Ordering::Acquire)
            || std::mem::take(&mut self.cut_now);
        let due = match &self.cuts {
            Some(cuts) => cuts.due(tick, self.next_offset, last),
            None => last.then_some(true),
        };
        if let Some(whole) = due {
            // With a checkpoint the journal before it goes, and what is not noted with it. Who asks
            // for this very one waits for it, and the next one notes it.
            let noted = self.entries.as_ref().is_none_or(|entries| entries.note());
            if noted || last {
                self.to_all(&Command::Checkpoint { epoch: tick.epoch, whole });
            } else {
                self.cuts.iter().for_each(|cuts| cuts.give_up(tick.epoch));
            }
        }
        self.seal(tick);
    }

    /// An epoch without messages at whose end all windows are closed, as if the input had ended;
    /// `save` asks for the state after that.
    pub(crate) fn flush(&mut self, tick: Tick, save: bool) {
        self.begin_epoch();
        self.to_all(&Command::Flush(tick.epoch));
        if save {
            self.to_all(&Command::Checkpoint { epoch: tick.epoch, whole: true });
        }
        self.seal(tick);
    }

    fn seal(&mut self, tick: Tick) {
        if let Some(NoNewKeys { but }) = self.no_new_keys.take() {
            self.to_all(&Command::NoNewKeys(tick.epoch, Arc::new(but)));
        }
        self.in_flight.sealed(tick.epoch, self.epoch_bytes);
        self.epoch_bytes = 0;
        self.epoch_open = false;
        Stats::add(&self.stats.epochs_sealed, 1);
        self.to_all(&Command::Tick(tick));
    }

    /// Nothing more comes.
    pub(crate) fn end(&mut self, flush: bool) {
        self.to_all(&Command::End { flush });
    }

    fn begin_epoch(&mut self) {
        if !self.epoch_open {
            self.in_flight.wait();
            self.epoch_open = true;
        }
    }

    fn send_waiting(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let runs = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let run = match <[_; 1]>::try_from(runs) {
            Ok([one]) => one,
            Err(runs) => Arc::new(Messages::join(&runs)),
        };
        self.ports.send(self.next_port, Command::Messages(run));
        self.next_port += 1;
    }

    fn to_all(&self, command: &Command) {
        self.ports.to_all(command);
    }
}

/// Whether `next` continues the run `last`.
fn follows(last: &Messages, next: &Messages) -> bool {
    last.source == next.source && last.first_offset + last.len() as u64 == next.first_offset
}

impl crate::journal::FeedSink for FeedQueue {
    fn push(&mut self, feed: crate::journal::Feed) {
        match feed {
            crate::journal::Feed::Messages(messages) => self.messages(messages),
            crate::journal::Feed::Tick(tick) => self.tick(tick),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use tidegate_operators::{MessageMeta, MessagesBuilder};

    use super::*;

    #[test]
    fn what_is_too_much_is_told() {
        let in_flight = InFlight::default();
        in_flight.sealed(1, IN_FLIGHT_BYTES_MAX);
        assert_eq!(in_flight.full(), None, "as much as may be");
        in_flight.sealed(2, 1);
        let full = Some(("bytes", IN_FLIGHT_BYTES_MAX + 1, IN_FLIGHT_BYTES_MAX));
        assert_eq!(in_flight.full(), full);
        in_flight.tighten(Some(7));
        assert_eq!(in_flight.full().map(|full| full.2), Some(7));
        in_flight.tighten(None);
        in_flight.done(1);
        assert_eq!(in_flight.full(), None);
        (3..=IN_FLIGHT_EPOCHS_MAX as Epoch + 2).for_each(|epoch| in_flight.sealed(epoch, 0));
        let (epochs, max) = (IN_FLIGHT_EPOCHS_MAX + 1, IN_FLIGHT_EPOCHS_MAX);
        assert_eq!(in_flight.full(), Some(("epochs", epochs, max)));
    }

    #[test]
    fn every_worker_gets_its_turn_wherever_it_is() {
        let thread = std::thread::current;
        let (local, at_local) = channel();
        let (first, at_first) = channel();
        let (second, at_second) = channel();
        let ports = Ports {
            local: vec![WorkerPort { commands: local, thread: thread() }],
            remote: vec![
                RemotePort { workers: 2, commands: first },
                RemotePort { workers: 1, commands: second },
            ],
        };
        for worker in 0..8 {
            ports.send(worker, Command::Flush(worker as Epoch));
        }
        ports.to_all(&Command::Flush(9));
        drop(ports);
        let text = |dealt: Dealt| match dealt {
            Dealt(worker, Command::Flush(n)) => format!("{worker:?} {n}"),
            Dealt(_, other) => panic!("{other:?}"),
        };
        let told: Vec<String> = at_local.iter().map(|c| text(Dealt(None, c))).collect();
        assert_eq!(told, ["None 0", "None 4", "None 9"]);
        let told: Vec<String> = at_first.iter().map(text).collect();
        assert_eq!(told, ["Some(0) 1", "Some(1) 2", "Some(0) 5", "Some(1) 6", "None 9"]);
        let told: Vec<String> = at_second.iter().map(text).collect();
        assert_eq!(told, ["Some(0) 3", "Some(0) 7", "None 9"]);
    }

    #[test]
    fn closed_epochs_are_told_with_who_is_excepted_and_not_to_a_shadow() {
        let young = NoNewKeys { but: ["p/young".to_owned()].into() };
        let told = |is_shadow: bool| -> Vec<(Epoch, BTreeSet<String>)> {
            let (local, at_local) = channel();
            let ports = vec![WorkerPort { commands: local, thread: std::thread::current() }];
            let in_flight = Arc::new(InFlight::default());
            let queue = FeedQueue::new(ports, in_flight, Arc::default(), None, Arc::default());
            let mut queue = if is_shadow { queue.open_to_all() } else { queue };
            let marks = [None, Some(NoNewKeys::default()), Some(young.clone()), None];
            for (epoch, mark) in (1..).zip(marks) {
                let mut run = MessagesBuilder::default();
                run.push(b"t", b"{}", b"c", MessageMeta::default());
                queue.messages(Arc::new(run.finish(0, epoch * 10)));
                mark.iter().for_each(|mark| mark.put(&mut run, 0));
                queue.messages(Arc::new(run.finish(0, epoch * 10 + 1)));
                queue.tick(Tick { epoch, time_us: 0 });
            }
            drop(queue);
            let closed = at_local.iter().filter_map(|command| match command {
                Command::NoNewKeys(epoch, but) => Some((epoch, but.as_ref().clone())),
                _ => None,
            });
            closed.collect()
        };
        assert_eq!(told(false), [(2, BTreeSet::new()), (3, young.but.clone())]);
        assert!(told(true).is_empty());
    }
}
