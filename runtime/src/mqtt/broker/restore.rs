//! The broker's state after a start, from what the store holds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::connect::expires_at_ms;
use super::filter::split_shared;
use super::message::Message;
use super::records::Record;
use super::session::{Presence, Queued, Release, Session};
use super::state::State;
use super::subscriptions::Entry;
use super::{add, types};
use crate::mqtt::wire::Version;

impl State {
    pub(super) fn restore(&mut self, records: Vec<Record>, now_ms: u64) {
        let mut messages = HashMap::new();
        // Slots by the session's key in the store.
        let mut slots = HashMap::new();
        let mut sent = BTreeMap::new();
        let (mut rest, mut retained) = (Vec::new(), Vec::new());
        for record in records {
            match record {
                Record::Message(message) => {
                    self.last_message = self.last_message.max(message.id);
                    messages.insert(message.id, message);
                }
                Record::Session { key, client_id, user, expiry_s, left_at_ms } => {
                    let names = (client_id, user);
                    let slot = self.restore_session(key, names, expiry_s, left_at_ms, now_ms);
                    slots.insert(key, slot);
                    self.last_key = self.last_key.max(key);
                }
                Record::Sent { key, seq } => {
                    sent.insert(key, seq);
                }
                Record::Retained(message) => retained.push(message),
                record => rest.push(record),
            }
        }
        for record in rest {
            self.restore_part(record, &slots, &messages, &sent);
        }
        for (key, seq) in sent {
            self.restore_sent(key, seq, &slots);
        }
        self.restore_retained(retained, now_ms);
        self.drop_expired(now_ms);
        for (id, message) in messages {
            // Only the map holds it: no queue refers to it.
            if Arc::strong_count(&message) == 1 {
                self.changes.remove_message(id);
            }
        }
    }

    fn restore_session(
        &mut self,
        key: u64,
        (client_id, user): (String, String),
        expiry_s: u32,
        left_at_ms: u64,
        now_ms: u64,
    ) -> u32 {
        // A connection that was open is lost since the process has ended; nobody knows when.
        let left_at_ms = if left_at_ms == 0 { now_ms } else { left_at_ms };
        let expires_at_ms = expires_at_ms(expiry_s, left_at_ms);
        let client_id: Arc<str> = client_id.into();
        let session = Session {
            client_id: Arc::clone(&client_id),
            user: user.into(),
            key,
            born: 0,
            // Until its client says.
            version: Version::V5,
            expiry_s,
            presence: Presence::Away { left_at_ms, expires_at_ms, will: None },
            filters: Vec::new(),
            flow: None,
            received: BTreeSet::new(),
        };
        let slot = self.free_slot();
        self.sessions[slot as usize] = Some(session);
        self.clients.insert(client_id, slot);
        add(&self.counters.sessions, 1);
        self.away_timer(slot, expires_at_ms);
        self.keep(slot, left_at_ms);
        slot
    }

    fn restore_part(
        &mut self,
        record: Record,
        slots: &HashMap<u64, u32>,
        messages: &HashMap<u64, Arc<Message>>,
        sent: &BTreeMap<u64, u64>,
    ) {
        match record {
            Record::Filter { key, filter, identifier, options } => {
                let Some(&slot) = slots.get(&key) else { return };
                let Some((group, plain)) = split_shared(&filter) else { return };
                self.tree.insert(group, plain, Entry { slot, identifier, options });
                add(&self.counters.subscriptions, 1);
                let Some(session) = self.session(slot) else { return };
                session.filters.push(filter.as_str().into());
            }
            Record::Queued { key, seq, message, qos, retain, cost, ids } => {
                let (Some(&slot), Some(message)) = (slots.get(&key), messages.get(&message)) else {
                    return;
                };
                message.store_ref();
                let message = Arc::clone(message);
                let duplicate = sent.get(&key).is_some_and(|sent| seq <= *sent);
                let queued = Queued { message, seq, after: 0, ids, cost, qos, retain, duplicate };
                self.restore_queued(slot, queued);
            }
            Record::Release { key, seq } => {
                let Some(session) = slots.get(&key).and_then(|slot| self.session(*slot)) else {
                    return;
                };
                let flow = session.flow.get_or_insert_default();
                flow.last_seq = flow.last_seq.max(seq);
                flow.releases.push_back(Release { seq, after: 0, sent: false });
            }
            Record::Received { key, packet_id } => {
                let Some(session) = slots.get(&key).and_then(|slot| self.session(*slot)) else {
                    return;
                };
                session.received.insert(packet_id);
            }
            _ => {}
        }
    }

    /// Records come in the order of their numbers, so those that were sent come first.
    fn restore_queued(&mut self, slot: u32, queued: Queued) {
        add(&self.counters.queued_messages, 1);
        add(&self.counters.queued_bytes, u64::from(queued.cost));
        let Some(session) = self.session(slot) else { return };
        let flow = session.flow.get_or_insert_default();
        flow.bytes += queued.cost as usize;
        flow.last_seq = flow.last_seq.max(queued.seq);
        let list = if queued.duplicate { &mut flow.flying } else { &mut flow.waiting };
        list.push_back(queued);
    }

    fn restore_sent(&mut self, key: u64, seq: u64, slots: &HashMap<u64, u32>) {
        let Some(session) = slots.get(&key).and_then(|slot| self.session(*slot)) else { return };
        let flow = session.flow.get_or_insert_default();
        flow.sent_seq = seq;
        flow.last_seq = flow.last_seq.max(seq);
    }

    fn restore_retained(&mut self, retained: Vec<Message>, now_ms: u64) {
        let types::BrokerOptions { retained_max, retained_bytes_max, .. } = self.options;
        for mut message in retained {
            self.last_message += 1;
            message.id = self.last_message;
            let message = Arc::new(message);
            let topic = Arc::clone(&message);
            let kept = !message.is_expired(now_ms)
                && self.retained.put(message, retained_max, retained_bytes_max);
            if !kept {
                self.changes.remove_retained(topic.topic());
            }
        }
        self.count_retained();
    }

    fn drop_expired(&mut self, now_ms: u64) {
        for slot in 0..self.sessions.len() as u32 {
            let Some(session) = self.session(slot) else { continue };
            let Presence::Away { expires_at_ms, .. } = session.presence else { continue };
            if expires_at_ms <= now_ms {
                let client_id = session.client_id.to_string();
                self.expired.push(client_id);
                self.end(slot);
            }
        }
    }
}
