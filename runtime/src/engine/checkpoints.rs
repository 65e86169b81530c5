//! Checkpoints as the committer sees them: it passes on what operators hand over and says when a
//! checkpoint may become visible; the saver does the work on a thread of its own.

mod floor;
mod parts;
mod restore;
mod rules;
mod saver;
mod switch;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use tidegate_operators::spec::PipelineSpec;
use tidegate_operators::{Epoch, Snapshot};

pub(crate) use self::restore::{Restored, changed};
pub(crate) use self::rules::{Rules, add_ended, rule_name};
use self::saver::{Job, Saver};
pub(crate) use self::switch::{Switch, Switched};
use super::cuts::Cuts;
use super::standing::Standing;
use crate::checkpoint::CheckpointStore;
use crate::checkpoint::holdings::Holdings;
use crate::http::Requests;
use crate::journal::Journal;
use crate::stats::Stats;

/// Checkpoints that are kept.
const KEEP: usize = 2;

/// How far tables are, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TablesAt {
    /// Through which epoch each has all of its rows.
    pub(crate) through: BTreeMap<String, Epoch>,
    /// The newest epoch that its log says.
    pub(crate) logged: BTreeMap<String, Epoch>,
}

/// Names with both epochs, in the order of the fields.
impl FromIterator<(String, Epoch, Epoch)> for TablesAt {
    fn from_iter<I: IntoIterator<Item = (String, Epoch, Epoch)>>(tables: I) -> Self {
        let mut at = Self::default();
        for (name, through, logged) in tables {
            at.through.insert(name.clone(), through);
            at.logged.insert(name, logged);
        }
        at
    }
}

/// What checkpoints of a run have in common.
pub(crate) struct CheckpointOptions {
    /// Where they are.
    pub(crate) store: CheckpointStore,
    /// Which run of the instance this is.
    pub(crate) incarnation: u64,
    /// The pipelines that ran before it, if they are known.
    pub(crate) ran: Vec<PipelineSpec>,
    /// Files that hold the state that was restored.
    pub(crate) holdings: Holdings,
    /// Alert rules, as they are since when; and those that ended, by the epoch of their end.
    pub(crate) rules: Rules,
    pub(crate) ended: BTreeMap<Epoch, Rules>,
    pub(crate) cuts: Arc<Cuts>,
    pub(crate) stats: Arc<Stats>,
    /// Idempotency keys, saved beside the state of operators.
    pub(crate) requests: Arc<Requests>,
    /// What the engine says of itself, saved there too.
    pub(crate) standing: Standing,
    pub(crate) journal: Option<Arc<Journal>>,
}

impl CheckpointOptions {
    /// Of a run with a journal.
    pub(crate) fn with(
        self,
        requests: &Arc<Requests>,
        journal: &Arc<Journal>,
        standing: &Standing,
    ) -> Self {
        let (requests, journal) = (Arc::clone(requests), Some(Arc::clone(journal)));
        Self { requests, journal, standing: standing.clone(), ..self }
    }
}

impl CheckpointOptions {
    /// Of this run of the instance.
    pub(crate) fn of_run(self, incarnation: u64) -> Self {
        Self { incarnation, ..self }
    }
}

/// Who does the work.
enum Worker {
    Thread {
        jobs: Sender<Job>,
        thread: JoinHandle<anyhow::Result<()>>,
    },
    /// Whoever asks for it: by turns, in a simulation.
    #[cfg(test)]
    Caller(Box<Saver>),
    Gone,
}

/// The committer's end.
pub(crate) struct Checkpoints {
    worker: Worker,
    asked: BTreeSet<Epoch>,
    written: Arc<AtomicU64>,
}

impl Checkpoints {
    /// Starts the saver on a thread of its own.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn start(
        options: CheckpointOptions,
        pipelines: &[PipelineSpec],
    ) -> std::io::Result<Self> {
        let (jobs, queue) = channel();
        let written = Arc::new(AtomicU64::new(0));
        let mut saver = Saver::new(options, pipelines, Arc::clone(&written));
        let thread = std::thread::Builder::new()
            .name("checkpoint".into())
            .spawn(move || queue.into_iter().try_for_each(|job| saver.take(job)))?;
        Ok(Self { worker: Worker::Thread { jobs, thread }, asked: BTreeSet::new(), written })
    }

    /// Without a thread: what is asked for is done when the call returns.
    #[cfg(test)]
    pub(crate) fn by_turns(options: CheckpointOptions, pipelines: &[PipelineSpec]) -> Self {
        let written = Arc::new(AtomicU64::new(0));
        let saver = Saver::new(options, pipelines, Arc::clone(&written));
        Self { worker: Worker::Caller(Box::new(saver)), asked: BTreeSet::new(), written }
    }

    /// A checkpoint of this epoch was asked of the operators.
    pub(crate) fn ask(&mut self, epoch: Epoch) {
        self.asked.insert(epoch);
    }

    /// An operator handed over its state.
    pub(crate) fn add(
        &mut self,
        name: String,
        epoch: Epoch,
        state: Snapshot,
    ) -> anyhow::Result<()> {
        self.send(Job::State { name, epoch, state })
    }

    /// The newest checkpoint that has all of its parts, given that every epoch up to `done` is
    /// complete on all workers.
    pub(crate) fn complete_through(&self, done: Epoch) -> Option<Epoch> {
        self.asked.range(..=done).next_back().copied()
    }

    /// Has the checkpoint of `epoch` made visible: all tables have at least what `tables` says.
    /// Older ones that wait become part of it.
    pub(crate) fn write(&mut self, epoch: Epoch, tables: TablesAt) -> anyhow::Result<()> {
        self.asked = self.asked.split_off(&(epoch + 1));
        self.send(Job::Publish { epoch, tables })
    }

    /// The newest epoch whose checkpoint this run has made visible; 0 before the first.
    pub(crate) fn written(&self) -> Epoch {
        self.written.load(Ordering::Acquire)
    }

    /// Other pipelines take the place of those that run, as of the newest checkpoint. Waits until
    /// that is durable.
    ///
    /// # Errors
    /// The inner one: why everything stays as it was. The outer one: the change may be durable or
    /// not, and the process has to end.
    pub(crate) fn switch(&mut self, switch: Switch) -> anyhow::Result<anyhow::Result<Switched>> {
        let (reply, answer) = channel();
        self.send(Job::Switch(Box::new(switch), reply))?;
        if let Ok(answer) = answer.recv() {
            return Ok(answer);
        }
        self.finish()?;
        anyhow::bail!("the thread that writes checkpoints is gone")
    }

    /// Whether the thread is still at work. It ends before its time only by an error; nothing else
    /// would say so, because no cut is asked for while the one that it has left is under way.
    ///
    /// # Errors
    /// Why it has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        match &self.worker {
            Worker::Thread { thread, .. } if thread.is_finished() => Err(self.ended()),
            _ => Ok(()),
        }
    }

    /// Why the thread has ended before its time: it knows.
    fn ended(&mut self) -> anyhow::Error {
        let why = self.finish().err();
        why.unwrap_or_else(|| anyhow::anyhow!("no checkpoints are written any more"))
    }

    /// Waits until everything is written that was asked for.
    pub(crate) fn finish(&mut self) -> anyhow::Result<()> {
        let Worker::Thread { jobs, thread } = std::mem::replace(&mut self.worker, Worker::Gone)
        else {
            return Ok(());
        };
        drop(jobs);
        match thread.join() {
            Ok(result) => result,
            Err(_) => anyhow::bail!("the thread that writes checkpoints is gone"),
        }
    }

    fn send(&mut self, job: Job) -> anyhow::Result<()> {
        match &mut self.worker {
            #[cfg(test)]
            Worker::Caller(saver) => return saver.take(job),
            Worker::Thread { jobs, .. } if jobs.send(job).is_ok() => return Ok(()),
            Worker::Thread { .. } | Worker::Gone => {}
        }
        Err(self.ended())
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        // The folder must be free when the engine is gone, however it ended.
        let _ = self.finish();
    }
}

#[cfg(test)]
mod tests;
