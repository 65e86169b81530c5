//! The broker's state, and what its parts have in common.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::changes::Changes;
use super::interest::Interest;
use super::message::Message;
use super::retained::Retained;
use super::session::{Flow, Presence, Queued, Session};
use super::store::{Store, Ticket};
use super::subscriptions::{Matches, Tree};
use super::types::{BrokerOptions, Counters, Port, Publication};
use super::{add, sub};
use crate::source::SourceError;

/// What a session waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Will,
    Expiry,
}

/// Messages that were dropped for a session since that was last told.
#[derive(Debug, Default)]
pub(super) struct Limited {
    pub(super) dropped: u64,
    pub(super) told_ms: Option<u64>,
}

pub(super) struct State {
    pub(super) options: BrokerOptions,
    pub(super) counters: Arc<Counters>,
    pub(super) tree: Tree,
    pub(super) retained: Retained,
    /// By slot.
    pub(super) sessions: Vec<Option<Session>>,
    pub(super) free: Vec<u32>,
    pub(super) clients: HashMap<Arc<str>, u32>,
    pub(super) timers: BTreeSet<(u64, u32, Timer)>,
    /// Wills that became due when a session ended.
    pub(super) wills: Vec<(String, Publication)>,
    /// Sessions that were found to have expired.
    pub(super) expired: Vec<String>,
    pub(super) limited: HashMap<Arc<str>, Limited>,
    pub(super) changes: Changes,
    pub(super) store: Option<Store>,
    /// Room for the subscribers of a message.
    pub(super) matches: Matches,
    pub(super) last_message: u64,
    pub(super) last_key: u64,
    pub(super) last_connection: u64,
    /// The newest epoch whose alerts were published, and the number of those changes.
    pub(super) alerts: (u64, u64),
}

impl State {
    pub(super) fn interest(&self) -> Arc<Interest> {
        self.tree.interest()
    }

    pub(super) fn open(
        options: BrokerOptions,
        counters: Arc<Counters>,
        now_ms: u64,
    ) -> Result<Self, SourceError> {
        let opened = options.store.as_deref().map(Store::open).transpose()?;
        let (store, found) = opened.unzip();
        let (records, alerts_through) = found.unwrap_or_default();
        let mut state = Self {
            options,
            counters,
            tree: Tree::new(),
            retained: Retained::default(),
            sessions: Vec::new(),
            free: Vec::new(),
            clients: HashMap::new(),
            timers: BTreeSet::new(),
            wills: Vec::new(),
            expired: Vec::new(),
            limited: HashMap::new(),
            changes: Changes { enabled: store.is_some(), ..Changes::default() },
            store,
            matches: Matches::default(),
            last_message: 0,
            last_key: 0,
            last_connection: 0,
            alerts: (alerts_through, 0),
        };
        state.restore(records, now_ms);
        state.hand_over();
        Ok(state)
    }

    pub(super) fn ticket(&mut self) -> Ticket {
        self.changes.urgent = true;
        self.hand_over_for_ticket()
    }

    /// Hands the changes of this call to the store; somebody waits for them.
    pub(super) fn hand_over_for_ticket(&mut self) -> Ticket {
        self.changes.urgent = true;
        self.hand_over();
        match &self.store {
            Some(store) => store.ticket(self.changes.number),
            None => Ticket::ready(),
        }
    }

    /// Hands the changes of this call to the store.
    pub(super) fn hand_over(&mut self) {
        match &self.store {
            Some(store) => store.push(&mut self.changes),
            None => self.changes.urgent = false,
        }
    }

    /// All changes up to this number are on disk.
    pub(super) fn committed(&self) -> u64 {
        self.store.as_ref().map_or(u64::MAX, Store::committed)
    }

    pub(super) fn store_error(&self) -> Option<String> {
        self.store.as_ref().and_then(Store::error)
    }

    pub(super) fn session(&mut self, slot: u32) -> Option<&mut Session> {
        self.sessions.get_mut(slot as usize)?.as_mut()
    }

    /// The session of a connection, unless a newer one has it.
    pub(super) fn session_of(&mut self, port: &Port) -> Option<&mut Session> {
        let session = self.session(port.slot)?;
        let current = session.online().is_some_and(|online| online.number == port.number);
        current.then_some(session)
    }

    pub(super) fn new_message(&mut self, publication: &Publication) -> Arc<Message> {
        self.last_message += 1;
        Arc::new(Message::new(publication, self.last_message))
    }

    /// Puts a message in a session's queue, within its bounds.
    pub(super) fn enqueue(&mut self, slot: u32, mut queued: Queued) {
        let (messages_max, bytes_max) =
            (self.options.queue_messages_max, self.options.queue_bytes_max);
        let Some(session) = self.sessions.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        if queued.qos == 0 && session.online().is_none() {
            add(&self.counters.dropped_offline, 1);
            return;
        }
        if session.is_full(queued.cost as usize, messages_max, bytes_max) {
            add(&self.counters.dropped_full, 1);
            let client_id = Arc::clone(&session.client_id);
            self.limited.entry(client_id).or_default().dropped += 1;
            return;
        }
        let flow = session.flow.get_or_insert_default();
        if queued.qos > 0 {
            flow.last_seq += 1;
            queued.seq = flow.last_seq;
            if queued.qos == 2 && self.changes.applies(session.key) {
                // Sent before it is on disk, it could be sent twice after a crash.
                queued.after = self.changes.next_number();
            }
            self.changes.put_queued(session.key, &queued);
        }
        flow.bytes += queued.cost as usize;
        add(&self.counters.queued_messages, 1);
        add(&self.counters.queued_bytes, u64::from(queued.cost));
        flow.waiting.push_back(queued);
        if let Some(online) = session.online() {
            online.tell();
        }
    }

    /// Ends a session: nothing of it remains.
    pub(super) fn end(&mut self, slot: u32) {
        let Some(session) = self.sessions.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        self.free.push(slot);
        self.clients.remove(&session.client_id);
        sub(&self.counters.sessions, 1);
        match &session.presence {
            Presence::Online(_) => sub(&self.counters.connected, 1),
            Presence::Away { expires_at_ms, will, .. } => {
                self.timers.remove(&(*expires_at_ms, slot, Timer::Expiry));
                if let Some(will) = will {
                    self.timers.remove(&(will.at_ms, slot, Timer::Will));
                }
            }
        }
        for filter in &session.filters {
            self.changes.remove_filter(session.key, filter);
            if let Some((group, filter)) = super::filter::split_shared(filter) {
                self.tree.remove(group, filter, slot);
            }
        }
        sub(&self.counters.subscriptions, session.filters.len() as u64);
        self.forget_flow(&session);
        for packet_id in &session.received {
            self.changes.remove_received(session.key, *packet_id);
        }
        self.changes.remove_session(session.key);
    }

    fn forget_flow(&mut self, session: &Session) {
        let Some(flow) = &session.flow else { return };
        for queued in flow.flying.iter().chain(&flow.waiting) {
            leave(session.key, queued, &mut self.changes, &self.counters);
        }
        for release in &flow.releases {
            self.changes.remove_release(session.key, release.seq);
        }
        add(&self.counters.dropped_ended, flow.messages() as u64);
    }

    pub(super) fn count_retained(&self) {
        let order = std::sync::atomic::Ordering::Relaxed;
        self.counters.retained.store(self.retained.len() as u64, order);
        self.counters.retained_bytes.store(self.retained.bytes() as u64, order);
    }
}

/// Accounts for a message that left a queue.
pub(super) fn leave(key: u64, queued: &Queued, changes: &mut Changes, counters: &Counters) {
    changes.remove_queued(key, queued);
    sub(&counters.queued_messages, 1);
    sub(&counters.queued_bytes, u64::from(queued.cost));
}

impl Flow {
    /// Gives memory back after a burst.
    pub(super) fn shrink(&mut self) {
        const SMALL: usize = 16;
        if self.waiting.is_empty() && self.waiting.capacity() > SMALL {
            self.waiting.shrink_to(0);
        }
        if self.flying.is_empty() && self.flying.capacity() > SMALL {
            self.flying.shrink_to(0);
        }
    }
}
