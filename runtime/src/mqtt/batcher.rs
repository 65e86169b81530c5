//! Collects what a connection receives into batches and keeps their acknowledgements until the
//! journal has synced them.
//!
//! At most one batch is being synced and one being collected, so order is kept without numbers:
//! the acknowledgements of a batch are handed out when its offer returned `Ok`, in the order in
//! which the packets came. They are plain bytes owned by the connection's task, so they can only
//! go out on the connection whose packets they answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::{BoxFuture, FutureExt};
use tidegate_operators::{MessageMeta, MessagesBuilder};

use super::limits::{BATCH_BYTES_MAX, HELD_BYTES_MAX};
use super::route::{After, Router};
use super::wire::{PUBACK, PUBREC, Publish, put_ack};
use crate::fault;
use crate::source::{Intake, IntakeError, SourceStats, count};

/// Acknowledgements that may be sent now.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    /// The packets, encoded.
    pub(crate) bytes: Vec<u8>,
    /// How many of them acknowledge a PUBLISH.
    pub(crate) count: u64,
    /// How many of those are PUBACKs.
    pub(crate) pubacks: u64,
}

struct Pending {
    offer: BoxFuture<'static, Result<(), IntakeError>>,
    acks: Acks,
    /// Messages of QoS 0: nobody waits for an answer.
    quiet: u64,
    bytes: usize,
    routes: bool,
}

pub(crate) struct Batcher {
    intake: Arc<dyn Intake>,
    next: MessagesBuilder,
    next_acks: Acks,
    next_quiet: u64,
    stats: Option<Arc<SourceStats>>,
    /// What is left to do with the batch once it is durable.
    next_after: After,
    router: Option<Arc<Router>>,
    pending: Option<Pending>,
    held: Arc<AtomicUsize>,
    held_mine: usize,
    session: u16,
    started: u64,
    durable: u64,
}

impl Batcher {
    /// `held` sums the bytes of all batchers that share it.
    pub(crate) fn new(intake: Arc<dyn Intake>, held: Arc<AtomicUsize>) -> Self {
        Self {
            intake,
            next: MessagesBuilder::default(),
            next_acks: Acks::default(),
            next_quiet: 0,
            stats: None,
            next_after: After::default(),
            router: None,
            pending: None,
            held,
            held_mine: 0,
            session: 0,
            started: 0,
            durable: 0,
        }
    }

    /// Passes durable batches on to subscribers.
    pub(crate) fn routed(mut self, router: Arc<Router>) -> Self {
        self.router = Some(router);
        self
    }

    /// Says with each message that it came in this session of the source.
    pub(crate) fn in_session(mut self, session: u16) -> Self {
        self.session = session;
        self
    }

    /// Counts the messages of QoS 0 that are durable.
    pub(crate) fn counting(mut self, stats: &Arc<SourceStats>) -> Self {
        self.stats = Some(Arc::clone(stats));
        self
    }

    /// The number of the batch that takes what is pushed now; they count from 1.
    pub(crate) fn number(&self) -> u64 {
        self.started + 1
    }

    /// The number of the last batch that is durable; 0 for none.
    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    /// Puts something of our own (an event) among the messages.
    pub(crate) fn note(&mut self, put: impl FnOnce(&mut MessagesBuilder)) {
        put(&mut self.next);
    }

    /// Takes a message and, above QoS 0, notes its acknowledgement.
    pub(crate) fn push(&mut self, publish: &Publish<'_>, client: &[u8], received_us: i64) {
        self.put(publish, client, publish.meta(received_us));
    }

    /// Acknowledges a message that was taken before, and tells the journal that it came again.
    pub(crate) fn push_known(&mut self, publish: &Publish<'_>, received_us: i64) {
        self.put(publish, b"", MessageMeta { known: true, ..publish.meta(received_us) });
    }

    fn put(&mut self, publish: &Publish<'_>, client: &[u8], meta: MessageMeta) {
        let meta = MessageMeta { session: self.session, ..meta };
        let (topic, payload) = (publish.topic, publish.payload);
        self.next.push_with(topic, payload, client, publish.properties, meta);
        self.next_quiet += u64::from(publish.qos == 0);
        self.pass(publish);
    }

    /// Notes the acknowledgement of a message that is not journaled.
    pub(crate) fn pass(&mut self, publish: &Publish<'_>) {
        match publish.qos {
            0 => {}
            1 => {
                self.next_acks.pubacks += 1;
                self.acknowledge(PUBACK, publish.packet_id);
            }
            _ => self.acknowledge(PUBREC, publish.packet_id),
        }
    }

    /// What is to be done with this batch once it is durable.
    pub(crate) fn after(&mut self) -> &mut After {
        &mut self.next_after
    }

    /// A packet of another kind that must wait for everything before it.
    pub(crate) fn reply(&mut self, packet: &[u8]) {
        self.next_acks.bytes.extend_from_slice(packet);
    }

    /// Notes an acknowledgement that must wait for all messages before it.
    pub(crate) fn acknowledge(&mut self, byte1: u8, packet_id: u16) {
        put_ack(&mut self.next_acks.bytes, byte1, packet_id);
        self.next_acks.count += 1;
    }

    /// Bytes collected and not yet offered.
    pub(crate) fn next_bytes(&self) -> usize {
        self.next.data_bytes() + self.next_acks.bytes.len() + self.next_after.bytes()
    }

    /// PUBACKs noted and not yet handed out.
    pub(crate) fn open_pubacks(&self) -> u64 {
        self.next_acks.pubacks + self.pending.as_ref().map_or(0, |p| p.acks.pubacks)
    }

    /// Whether messages for subscribers are not on their way yet.
    pub(crate) fn is_routing(&self) -> bool {
        self.next_after.has_publications() || self.pending.as_ref().is_some_and(|p| p.routes)
    }

    fn is_empty(&self) -> bool {
        self.next.is_empty() && self.next_acks.bytes.is_empty() && self.next_after.is_empty()
    }

    /// Bytes held by all batchers that share the sum.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether the bounds on memory allow to collect more now.
    pub(crate) fn may_collect(&self) -> bool {
        if self.held_bytes() >= HELD_BYTES_MAX {
            return !self.is_pending();
        }
        self.next_bytes() < BATCH_BYTES_MAX
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Offers what was collected unless a batch is under way.
    pub(crate) fn start(&mut self) {
        if self.pending.is_none() && !self.is_empty() {
            let messages = std::mem::take(&mut self.next);
            let after = std::mem::take(&mut self.next_after);
            let bytes = messages.data_bytes() + after.bytes();
            let routes = after.has_publications();
            let intake = Arc::clone(&self.intake);
            let offer = match (messages.is_empty(), self.router.clone()) {
                (true, None) => futures::future::ready(Ok(())).boxed(),
                (false, Some(router)) if !after.is_empty() => async move {
                    intake.offer(messages).await?;
                    router.run(after).await
                }
                .boxed(),
                (true, Some(router)) => async move { router.run(after).await }.boxed(),
                (false, _) => async move { intake.offer(messages).await }.boxed(),
            };
            let acks = std::mem::take(&mut self.next_acks);
            let quiet = std::mem::take(&mut self.next_quiet);
            self.pending = Some(Pending { offer, acks, quiet, bytes, routes });
            self.started += 1;
        }
        self.account();
    }

    /// Waits for the batch under way and hands out its acknowledgements; never ready without one.
    /// Cancel-safe.
    ///
    /// # Errors
    /// The journal has failed; nothing may be acknowledged any more.
    pub(crate) async fn done(&mut self) -> Result<Acks, IntakeError> {
        let Some(pending) = self.pending.as_mut() else { return std::future::pending().await };
        let result = (&mut pending.offer).await;
        let ended = self.pending.take();
        let (acks, quiet) = ended.map(|p| (p.acks, p.quiet)).unwrap_or_default();
        self.account();
        result?;
        if let Some(stats) = &self.stats {
            count(&stats.quiet, quiet);
        }
        if acks.count > 0 {
            fault::point("before_ack");
        }
        self.durable = self.started;
        Ok(acks)
    }

    /// Offers all that is left and waits for it.
    ///
    /// # Errors
    /// As [`Batcher::done`].
    pub(crate) async fn finish(&mut self) -> Result<Acks, IntakeError> {
        let mut all = Acks::default();
        self.start();
        while self.is_pending() {
            let acks = self.done().await?;
            all.bytes.extend_from_slice(&acks.bytes);
            all.count += acks.count;
            all.pubacks += acks.pubacks;
            self.start();
        }
        Ok(all)
    }

    fn account(&mut self) {
        let mine = self.next_bytes() + self.pending.as_ref().map_or(0, |p| p.bytes);
        if mine >= self.held_mine {
            self.held.fetch_add(mine - self.held_mine, Ordering::Relaxed);
        } else {
            self.held.fetch_sub(self.held_mine - mine, Ordering::Relaxed);
        }
        self.held_mine = mine;
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.held.fetch_sub(self.held_mine, Ordering::Relaxed);
    }
}
