//! Between sources and the writer: offers waiting to be written, bounded by bytes.
//!
//! Invariant: an offer is answered exactly once, `Ok` only by the writer after its sync. Bytes in
//! the queue and in the write under way never exceed the limit; beyond it `offer` waits.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use async_trait::async_trait;
use tidegate_operators::event::NoNewKeys;
use tidegate_operators::{Epoch, Messages, MessagesBuilder};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::JournalStats;
use super::record::{INDEX_ENTRY_BYTES_MAX, MESSAGES_FIXED_BYTES_MAX};
use crate::fault;
use crate::intake::{Intake, IntakeError};

/// Messages of one `offer` and who waits for them.
pub(crate) struct Offer {
    pub(crate) messages: Messages,
    /// Upper bound of what it takes on disk.
    pub(crate) bytes: u64,
    /// May use what is kept in reserve.
    pub(crate) urgent: bool,
    pub(crate) waiter: Waiter,
}

/// The answer to one offer; room in the queue comes back when this is dropped.
pub(crate) struct Waiter {
    done: oneshot::Sender<Result<(), IntakeError>>,
    _room: OwnedSemaphorePermit,
}

impl Waiter {
    pub(crate) fn answer(self, result: Result<(), IntakeError>) {
        // A caller that went away needs no answer.
        let _ = self.done.send(result);
    }
}

/// What the writer is asked to do.
#[derive(Default)]
pub(crate) struct Inbox {
    pub(crate) offers: VecDeque<Offer>,
    pub(crate) trim_through: Epoch,
    pub(crate) stop: bool,
    /// Offers wait, because memory is short.
    pub(crate) held: bool,
    /// Epochs with messages are closed to new keys.
    pub(crate) no_new_keys: Option<Arc<NoNewKeys>>,
    /// No offer is taken any more.
    closed: bool,
}

/// Shared by the journal, its intakes and the writer thread.
pub(crate) struct Shared {
    inbox: Mutex<Inbox>,
    pub(crate) wake: Condvar,
    room: Arc<Semaphore>,
    room_bytes: u32,
    offer_bytes_max: u64,
    failed: OnceLock<String>,
    pub(crate) stats: Mutex<JournalStats>,
    extent: Mutex<Extent>,
}

/// Where sealed epochs are on disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Extent {
    /// Closed segments, with their last epochs.
    pub(crate) closed: Vec<(PathBuf, Epoch)>,
    /// The segment that is written, and its length when an epoch was sealed last.
    pub(crate) active: (PathBuf, u64),
}

impl Extent {
    /// The segments that hold the sealed epochs from `epoch` on.
    pub(crate) fn segments_from(&self, epoch: Epoch) -> VecDeque<(PathBuf, Option<u64>)> {
        let closed = self.closed.iter().filter(|(_, last)| *last >= epoch);
        let mut all: VecDeque<_> = closed.map(|(path, _)| (path.clone(), None)).collect();
        all.push_back((self.active.0.clone(), Some(self.active.1)));
        all
    }
}

impl Shared {
    pub(crate) fn new(room_bytes: u32, offer_bytes_max: u64) -> Self {
        Self {
            inbox: Mutex::default(),
            wake: Condvar::new(),
            room: Arc::new(Semaphore::new(room_bytes as usize)),
            room_bytes,
            offer_bytes_max,
            failed: OnceLock::new(),
            stats: Mutex::default(),
            extent: Mutex::default(),
        }
    }

    pub(crate) fn extent(&self) -> MutexGuard<'_, Extent> {
        self.extent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn update_stats(&self, change: impl FnOnce(&mut JournalStats)) {
        change(&mut self.stats.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Asks the writer for something.
    pub(crate) fn ask(&self, change: impl FnOnce(&mut Inbox)) {
        change(&mut self.inbox());
        self.wake.notify_one();
    }

    pub(crate) fn failed(&self) -> Option<&str> {
        self.failed.get().map(String::as_str)
    }

    /// The first failure stays.
    pub(crate) fn set_failed(&self, reason: String) {
        let _ = self.failed.set(reason);
    }

    /// Answers everyone who waits, now and from now on, with [`Shared::end`].
    pub(crate) fn close(&self) {
        self.room.close();
        let offers = {
            let mut inbox = self.inbox();
            inbox.closed = true;
            std::mem::take(&mut inbox.offers)
        };
        for offer in offers {
            offer.waiter.answer(Err(self.end()));
        }
    }

    /// Why nothing is taken any more.
    pub(crate) fn end(&self) -> IntakeError {
        self.failed.get().map_or(IntakeError::Closed, |reason| IntakeError::Failed(reason.clone()))
    }

    async fn offer(&self, messages: Messages, urgent: bool) -> Result<(), IntakeError> {
        if messages.is_empty() {
            return Ok(());
        }
        let bytes = bytes_of(messages.data.len(), messages.len());
        if bytes > self.offer_bytes_max {
            return Err(IntakeError::TooLarge { bytes, bytes_max: self.offer_bytes_max });
        }
        // One offer above the whole limit waits until it is alone.
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.room_bytes);
        let permits = if urgent { 0 } else { permits };
        let room =
            self.room.clone().acquire_many_owned(permits).await.map_err(|_closed| self.end())?;
        let (done, answered) = oneshot::channel();
        {
            let mut inbox = self.inbox();
            if inbox.closed {
                return Err(self.end());
            }
            let waiter = Waiter { done, _room: room };
            inbox.offers.push_back(Offer { messages, bytes, urgent, waiter });
        }
        self.wake.notify_one();
        answered.await.unwrap_or_else(|_dropped| Err(self.end()))
    }
}

/// Bytes of a record of so many messages, at most; `data` are those of their texts.
fn bytes_of(data: usize, messages: usize) -> u64 {
    (data + messages * INDEX_ENTRY_BYTES_MAX + MESSAGES_FIXED_BYTES_MAX) as u64
}

/// Messages in as many parts as it takes that each has at most `bytes_max`, but for those that are
/// larger by themselves; nearly always one.
fn parts(messages: Messages, bytes_max: u64) -> Vec<Messages> {
    if bytes_of(messages.data.len(), messages.len()) <= bytes_max {
        return vec![messages];
    }
    let (mut parts, mut part) = (Vec::new(), MessagesBuilder::default());
    let (source, first) = (messages.source, messages.first_offset);
    for (i, meta) in messages.index.iter().enumerate() {
        let texts =
            [messages.topic(i), messages.payload(i), messages.client(i), messages.properties(i)];
        let own = texts.iter().map(|text| text.len()).sum::<usize>();
        if !part.is_empty() && bytes_of(part.data_bytes() + own, part.len() + 1) > bytes_max {
            parts.push(part.finish(source, first));
        }
        let [topic, payload, client, properties] = texts;
        part.push_with(topic, payload, client, properties, *meta);
    }
    parts.push(part.finish(source, first));
    parts
}

/// The journal as one source sees it.
pub(crate) struct SourceIntake {
    pub(crate) shared: Arc<Shared>,
    pub(crate) source: u16,
    /// What it offers may use what is kept in reserve.
    pub(crate) urgent: bool,
}

#[async_trait]
impl Intake for SourceIntake {
    async fn offer(&self, mut messages: MessagesBuilder) -> Result<(), IntakeError> {
        fault::point("after_recv");
        // With a small budget, a batch may be larger than what can be written at once.
        for part in parts(messages.finish(self.source, 0), self.shared.offer_bytes_max) {
            self.shared.offer(part, self.urgent).await?;
        }
        Ok(())
    }
}
