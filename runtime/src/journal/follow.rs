//! Between the journal and the dataflow: hands on what became durable, from memory while the
//! dataflow keeps up, from the segment files when it does not.
//!
//! Invariant: the sink gets every feed once, in journal order, and the writer never waits for it. A
//! slow dataflow (a store that is down, a long burst) lets the backlog grow on disk, up to the
//! journal's budget, while sources go on being acknowledged.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tidegate_operators::Epoch;

use super::error::DurableError;
use super::inbox::Shared;
use super::replay::Replay;
use super::{Feed, FeedSink, OnFatal};
use crate::open_files::is_used_up;

/// Pause after the system refused to open a file because too many are.
const FILE_PAUSE: Duration = Duration::from_millis(100);

struct State {
    /// Feeds of `first` and the epochs that follow it.
    queue: VecDeque<Feed>,
    first: Epoch,
    bytes: usize,
    /// New feeds go to the queue; or else only to disk.
    queueing: bool,
    /// The next epoch that the reader needs, all before it were handed on whole.
    next: Epoch,
    /// The newest epoch that has its tick on disk.
    sealed: Epoch,
    /// Bytes of messages that are only on disk and were not read back yet.
    behind_bytes: usize,
    /// The writer has ended.
    closed: bool,
}

struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    bytes_max: usize,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the writer hands feeds to. Never blocks for long.
pub(crate) struct Follower {
    queue: Arc<Queue>,
    shared: Arc<Shared>,
}

/// Starts the thread that hands on to `sink` everything from epoch `next` on.
pub(crate) fn start(
    sink: Box<dyn FeedSink>,
    shared: Arc<Shared>,
    sources: Vec<String>,
    next: Epoch,
    bounds: (usize, Option<OnFatal>),
) -> std::io::Result<(Follower, JoinHandle<()>)> {
    let (follower, reader) = pair(sink, shared, sources, next, bounds);
    let thread = std::thread::Builder::new().name("feed".into()).spawn(move || reader.run())?;
    Ok((follower, thread))
}

/// Both ends: the one for the writer, and the one that hands on.
pub(crate) fn pair(
    sink: Box<dyn FeedSink>,
    shared: Arc<Shared>,
    sources: Vec<String>,
    next: Epoch,
    (bytes_max, on_fatal): (usize, Option<OnFatal>),
) -> (Follower, Reader) {
    let state = State {
        queue: VecDeque::new(),
        first: next,
        bytes: 0,
        queueing: true,
        next,
        sealed: next.saturating_sub(1),
        behind_bytes: 0,
        closed: false,
    };
    let queue = Arc::new(Queue { state: Mutex::new(state), changed: Condvar::new(), bytes_max });
    let reader =
        Reader { queue: Arc::clone(&queue), shared: Arc::clone(&shared), sources, sink, on_fatal };
    (Follower { queue, shared }, reader)
}

fn size(feed: &Feed) -> usize {
    match feed {
        Feed::Messages(messages) => messages.size_bytes(),
        Feed::Tick(_) => 0,
    }
}

impl Follower {
    /// Takes what has just become durable.
    pub(crate) fn push(&mut self, feed: Feed) {
        let mut state = self.queue.lock();
        let tick = match &feed {
            Feed::Tick(tick) => Some(tick.epoch),
            Feed::Messages(_) => None,
        };
        if state.queueing {
            state.bytes += size(&feed);
            state.queue.push_back(feed);
            if state.bytes > self.queue.bytes_max {
                state.overflow();
            }
        } else {
            state.behind_bytes += size(&feed);
        }
        if let Some(epoch) = tick {
            state.sealed = epoch;
            let near = state.behind_bytes <= self.queue.bytes_max / 2;
            if !state.queueing && near && state.queue.is_empty() {
                (state.queueing, state.first) = (true, epoch + 1);
            }
            state.tell(&self.shared);
        }
        drop(state);
        self.queue.changed.notify_one();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.changed.notify_one();
    }
}

impl State {
    /// Gives up what can be read back: all but the epoch that is being handed on. If that one is
    /// still open it has to stay, and is bounded by the writer.
    fn overflow(&mut self) {
        let Some(tick) = self.queue.iter().position(|feed| matches!(feed, Feed::Tick(_))) else {
            return;
        };
        if self.queue.len() > tick + 1 {
            let dropped: usize = self.queue.drain(tick + 1..).map(|feed| size(&feed)).sum();
            self.bytes -= dropped;
            self.behind_bytes += dropped;
            self.queueing = false;
        }
    }
}

impl State {
    /// Says how much waits here. At the end of an epoch, when it came and when it went: sources
    /// that wait for memory must not wait for what has gone.
    fn tell(&self, shared: &Shared) {
        let (behind, queued) = (self.behind_bytes as u64, self.bytes as u64);
        shared.update_stats(|stats| {
            (stats.behind_bytes, stats.queued_bytes) = (behind, queued);
        });
    }

    /// Where to go on; `None` if there is nothing at present.
    fn next_feed(&mut self, shared: &Shared) -> Option<From> {
        if self.first <= self.next
            && let Some(feed) = self.queue.pop_front()
        {
            self.bytes -= size(&feed);
            if let Feed::Tick(tick) = &feed {
                self.next = tick.epoch + 1;
                self.first = self.next;
                self.tell(shared);
            }
            return Some(From::Memory(feed));
        }
        let through = match self.queueing || !self.queue.is_empty() {
            true => self.sealed.min(self.first.saturating_sub(1)),
            false => self.sealed,
        };
        if self.closed {
            // The backlog is on disk: the next start replays it.
            return Some(From::Nowhere);
        }
        (self.next <= through).then_some(From::Disk(self.next, through))
    }
}

/// What hands on to the sink.
pub(crate) struct Reader {
    queue: Arc<Queue>,
    shared: Arc<Shared>,
    sources: Vec<String>,
    sink: Box<dyn FeedSink>,
    on_fatal: Option<OnFatal>,
}

/// Where the next feeds are.
enum From {
    Memory(Feed),
    /// On disk, up to this epoch (inclusive).
    Disk(Epoch, Epoch),
    Nowhere,
}

impl Reader {
    fn run(mut self) {
        loop {
            match self.wait() {
                From::Memory(feed) => self.sink.push(feed),
                From::Disk(from, through) => {
                    if let Err(error) = self.read_back(from, through) {
                        // What was acknowledged is on disk: a restart finds it, or says the same.
                        let reason = format!("reading the journal back: {error}");
                        tracing::error!("{reason}");
                        self.shared.update_stats(|stats| stats.unhealthy = Some(reason.clone()));
                        self.shared.set_failed(reason.clone());
                        self.shared.ask(|inbox| inbox.stop = true);
                        if let Some(on_fatal) = &self.on_fatal {
                            on_fatal(&reason);
                        }
                        return;
                    }
                }
                From::Nowhere => return,
            }
        }
    }

    fn wait(&self) -> From {
        let mut state = self.queue.lock();
        loop {
            if let Some(next) = state.next_feed(&self.shared) {
                return next;
            }
            state = self.queue.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn read_back(&mut self, from: Epoch, through: Epoch) -> Result<(), DurableError> {
        let segments = self.shared.extent().segments_from(from);
        let mut whole = true;
        for feed in Replay::of(segments, &self.sources, from) {
            let feed = match feed {
                // Between epochs, since each segment begins with one: the next turn goes on here.
                Err(DurableError::Io { source, .. }) if whole && is_used_up(&source) => {
                    tracing::warn!(error = %source, "the journal is read back later");
                    crate::time::block(FILE_PAUSE);
                    return Ok(());
                }
                feed => feed?,
            };
            let (bytes, tick) = match &feed {
                Feed::Messages(messages) => (messages.size_bytes(), None),
                Feed::Tick(tick) => (0, Some(tick.epoch)),
            };
            whole = tick.is_some();
            self.sink.push(feed);
            let mut state = self.queue.lock();
            state.behind_bytes = state.behind_bytes.saturating_sub(bytes);
            if let Some(epoch) = tick {
                state.next = epoch + 1;
                state.tell(&self.shared);
                if epoch >= through || state.closed {
                    break;
                }
            }
        }
        let mut state = self.queue.lock();
        if state.next > state.sealed {
            state.behind_bytes = 0;
            state.tell(&self.shared);
        }
        Ok(())
    }
}

/// Handing on by turns, for the simulation.
#[cfg(test)]
impl Reader {
    /// Hands on what comes next; whether there was something.
    pub(crate) fn step(&mut self) -> Result<bool, DurableError> {
        let next = self.queue.lock().next_feed(&self.shared);
        match next {
            Some(From::Memory(feed)) => self.sink.push(feed),
            Some(From::Disk(from, through)) => self.read_back(from, through)?,
            Some(From::Nowhere) | None => return Ok(false),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
