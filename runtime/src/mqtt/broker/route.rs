//! Subscribing, and the way of a message from its publisher into queues.

use std::sync::Arc;

use bytes::Bytes;

use super::add;
use super::filter::{is_valid_filter, split_shared};
use super::message::{Ids, Message, OVERHEAD_BYTES};
use super::session::Queued;
use super::state::State;
use super::store::Ticket;
use super::sub;
use super::subscriptions::{Entry, Matches, Options};
use super::types::{Port, Publication, Subscription};
use crate::mqtt::wire::Version;

impl State {
    pub(super) fn subscribe(
        &mut self,
        port: &Port,
        filters: &[Subscription],
        now_ms: u64,
    ) -> Vec<u8> {
        let codes = filters.iter().map(|one| self.subscribe_one(port, one, now_ms)).collect();
        self.hand_over();
        codes
    }

    fn subscribe_one(&mut self, port: &Port, wanted: &Subscription, now_ms: u64) -> u8 {
        let subscriptions_max = self.options.subscriptions_max;
        let Some(session) = self.session_of(port) else { return 0x80 };
        let refuse = |code| if session.version == Version::V3 { 0x80 } else { code };
        let Some((group, filter)) = split_shared(&wanted.filter) else { return refuse(0x8F) };
        if !is_valid_filter(&wanted.filter) || wanted.qos > 2 {
            return refuse(0x8F);
        }
        let known = session.filters.iter().any(|known| **known == wanted.filter);
        if !known && session.filters.len() >= subscriptions_max {
            return refuse(0x97);
        }
        if !known {
            session.filters.push(wanted.filter.as_str().into());
        }
        let key = session.key;
        let options = Options::of(wanted);
        let entry =
            Entry { slot: port.slot, identifier: wanted.identifier.unwrap_or_default(), options };
        self.tree.insert(group, filter, entry);
        self.changes.put_filter(key, &wanted.filter, entry);
        if !known {
            add(&self.counters.subscriptions, 1);
        }
        // Shared subscriptions get no retained messages (3.8.4).
        if group.is_none() && (wanted.retain_handling == 0 || wanted.retain_handling == 1 && !known)
        {
            self.send_retained(port.slot, filter, entry, now_ms);
        }
        options.qos()
    }

    fn send_retained(&mut self, slot: u32, filter: &str, entry: Entry, now_ms: u64) {
        let mut found = Vec::new();
        self.retained.matching(filter, |message| {
            if !message.is_expired(now_ms) {
                found.push(Arc::clone(message));
            }
        });
        for message in found {
            let queued = Queued {
                qos: entry.options.qos().min(message.qos),
                // The bytes are in memory anyway, so that a queue has room for all retained.
                cost: (OVERHEAD_BYTES / 2) as u32,
                ..new_queued(message, ids_of(&[entry]))
            };
            self.enqueue(slot, Queued { retain: true, ..queued });
        }
    }

    pub(super) fn retained_on(&self, filter: &str, now_ms: u64) -> Vec<Publication> {
        let mut found = Vec::new();
        self.retained.matching(filter, |message| {
            if !message.is_expired(now_ms) {
                found.push(Publication {
                    topic: Bytes::copy_from_slice(message.topic()),
                    payload: Bytes::copy_from_slice(message.payload()),
                    properties: Bytes::copy_from_slice(message.properties()),
                    qos: message.qos,
                    retain: true,
                    expires_at_ms: message.expires_at_ms,
                });
            }
        });
        found
    }

    pub(super) fn subscriptions(&mut self, port: &Port) -> Vec<String> {
        let Some(session) = self.session_of(port) else { return Vec::new() };
        session.filters.iter().map(|filter| filter.to_string()).collect()
    }

    pub(super) fn unsubscribe(&mut self, port: &Port, filters: &[&str]) -> Vec<u8> {
        let codes = filters.iter().map(|filter| self.unsubscribe_one(port, filter)).collect();
        self.hand_over();
        codes
    }

    fn unsubscribe_one(&mut self, port: &Port, filter: &str) -> u8 {
        let Some(session) = self.session_of(port) else { return 0x80 };
        let Some(at) = session.filters.iter().position(|known| **known == *filter) else {
            return if is_valid_filter(filter) { 0x11 } else { 0x8F };
        };
        session.filters.swap_remove(at);
        let key = session.key;
        if let Some((group, filter)) = split_shared(filter) {
            self.tree.remove(group, filter, port.slot);
        }
        self.changes.remove_filter(key, filter);
        sub(&self.counters.subscriptions, 1);
        0
    }

    pub(super) fn publish(
        &mut self,
        from: &str,
        publications: Vec<Publication>,
        now_ms: u64,
    ) -> Ticket {
        let from = self.clients.get(from).copied();
        for publication in &publications {
            self.route(from, publication, now_ms);
        }
        self.count_retained();
        if self.changes.is_empty() {
            return Ticket::ready();
        }
        self.hand_over_for_ticket()
    }

    /// See [`super::Broker::publish_alerts`].
    pub(super) fn publish_alerts(
        &mut self,
        epoch: u64,
        publications: Vec<Publication>,
        now_ms: u64,
    ) {
        if epoch <= self.alerts.0 {
            return;
        }
        self.changes.alerts_through = self.changes.enabled.then_some(epoch);
        drop(self.publish("", publications, now_ms));
        self.alerts = (epoch, self.changes.number);
    }

    fn route(&mut self, from: Option<u32>, publication: &Publication, now_ms: u64) {
        let mut matches = std::mem::take(&mut self.matches);
        self.tree.matching(&publication.topic, &mut matches);
        let keep = publication.retain && !publication.payload.is_empty();
        if publication.retain && !keep && self.retained.remove(&publication.topic) {
            // An empty message deletes (3.3.1-6, 3.3.1-7).
            self.changes.remove_retained(&publication.topic);
        }
        if keep || !matches.entries.is_empty() || !matches.nodes.is_empty() {
            let message = self.new_message(publication);
            if keep && !message.is_expired(now_ms) {
                self.retain(&message);
            }
            self.deliver(from, &message, &mut matches);
        }
        self.matches = matches;
    }

    fn retain(&mut self, message: &Arc<Message>) {
        let (count_max, bytes_max) = (self.options.retained_max, self.options.retained_bytes_max);
        if self.retained.put(Arc::clone(message), count_max, bytes_max) {
            self.changes.put_retained(message);
        } else {
            self.changes.remove_retained(message.topic());
            add(&self.counters.retained_refused, 1);
        }
    }

    /// Queues a message for each session that matches, once, however many of its filters do.
    fn deliver(&mut self, from: Option<u32>, message: &Arc<Message>, matches: &mut Matches) {
        // A client may not want what it has published itself (3.8.3-3).
        matches.entries.retain(|e| !(e.options.no_local() && from == Some(e.slot)));
        matches.entries.sort_unstable_by_key(|e| e.slot);
        for entries in matches.entries.chunk_by(|a, b| a.slot == b.slot) {
            let qos = entries.iter().map(|e| e.options.qos()).max().unwrap_or_default();
            let retain = entries.iter().any(|e| e.options.retain_as_published());
            let queued = Queued {
                qos: qos.min(message.qos),
                retain: retain && message.retain,
                ..new_queued(Arc::clone(message), ids_of(entries))
            };
            self.enqueue(entries[0].slot, queued);
        }
        for &node in &matches.nodes {
            self.deliver_to_groups(node, message);
        }
    }

    fn deliver_to_groups(&mut self, node: u32, message: &Arc<Message>) {
        let (messages_max, bytes_max) =
            (self.options.queue_messages_max, self.options.queue_bytes_max);
        let mut chosen = Vec::new();
        for group in self.tree.groups(node) {
            let sessions = &self.sessions;
            let rank = |entry: &Entry| {
                let session = sessions[entry.slot as usize].as_ref()?;
                let full = session.is_full(message.cost(), messages_max, bytes_max);
                match (session.online().is_some(), full) {
                    (true, false) => Some(0),
                    (false, _) if entry.options.qos().min(message.qos) == 0 => Some(4),
                    (false, false) => Some(1),
                    (true, true) => Some(2),
                    (false, true) => Some(3),
                }
            };
            chosen.extend(group.choose(rank));
        }
        for entry in chosen {
            let queued = Queued {
                qos: entry.options.qos().min(message.qos),
                retain: entry.options.retain_as_published() && message.retain,
                ..new_queued(Arc::clone(message), ids_of(&[entry]))
            };
            self.enqueue(entry.slot, queued);
        }
    }
}

fn new_queued(message: Arc<Message>, ids: Ids) -> Queued {
    let cost = u32::try_from(message.cost()).unwrap_or(u32::MAX);
    Queued { message, seq: 0, after: 0, ids, cost, qos: 0, retain: false, duplicate: false }
}

fn ids_of(entries: &[Entry]) -> Ids {
    match entries {
        [Entry { identifier: 0, .. }] => Ids::None,
        [entry] => Ids::One(entry.identifier),
        entries => {
            let mut ids: Vec<u32> =
                entries.iter().map(|e| e.identifier).filter(|id| *id != 0).collect();
            ids.sort_unstable();
            ids.dedup();
            Ids::new(&ids)
        }
    }
}
