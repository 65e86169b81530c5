//! Connections come and go, sessions begin and end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::session::{DelayedWill, IN_FLIGHT_MAX, IN_FLIGHT_MAX_V5, Online, Presence, Session};
use super::state::{State, Timer, leave};
use super::types::{Due, Leave, Opening, Port, Publication};
use super::{add, sub};
use crate::mqtt::wire::Version;

/// Pause between two tellings that messages are dropped for a session.
const LIMITED_PAUSE_MS: u64 = 60_000;

impl State {
    pub(super) fn connect(&mut self, opening: Opening, now_ms: u64) -> (Port, bool) {
        if let Some(&slot) = self.clients.get(&opening.client_id[..]) {
            let ends = self.part_with_old(slot, &opening, now_ms);
            if ends {
                self.end(slot);
            }
        }
        let present = self.clients.get(&opening.client_id[..]).copied();
        let mut expiry_s = opening.session_expiry_s.min(self.options.session_expiry_max_s);
        if present.is_none() && expiry_s > 0 && self.clients.len() >= self.options.sessions_max {
            add(&self.counters.sessions_refused, 1);
            expiry_s = 0;
        }
        self.last_connection += 1;
        let online = new_online(&opening, self.last_connection);
        let slot = present.unwrap_or_else(|| self.free_slot());
        let port = Port {
            slot,
            number: online.number,
            born: self.session(slot).map_or(online.number, |session| session.born),
            signal: Arc::clone(&online.signal),
            wake: Arc::clone(&online.wake),
            session_expiry_s: expiry_s,
        };
        add(&self.counters.connected, 1);
        let presence = Presence::Online(Box::new(online));
        match self.session(port.slot) {
            Some(session) => {
                session.presence = presence;
                session.version = opening.version;
                session.expiry_s = expiry_s;
                if let Some(flow) = &mut session.flow {
                    flow.restart();
                }
            }
            None => self.begin(port.slot, &opening, expiry_s, presence),
        }
        self.keep(port.slot, 0);
        if let Some(online) = self.session(port.slot).and_then(Session::online_mut) {
            online.tell();
        }
        self.hand_over();
        (port, present.is_some())
    }

    /// Settles what the session's last connection has left; whether the session ends.
    fn part_with_old(&mut self, slot: u32, opening: &Opening, now_ms: u64) -> bool {
        let Some(session) = self.session(slot) else { return false };
        let client_id = session.client_id.to_string();
        let expiry_s = session.expiry_s;
        let unwanted = opening.clean_start || *session.user != opening.user;
        match &mut session.presence {
            Presence::Online(online) => {
                let ends = unwanted || expiry_s == 0;
                // A will without delay is due now; one with delay is cancelled, because the
                // session goes on (3.1.3-9).
                let will = online.will.take().filter(|will| ends || will.delay_s == 0);
                online.signal.take_over(will.map(|will| will.publication));
                self.drop_unacknowledgeable(slot);
                if !ends {
                    sub(&self.counters.connected, 1);
                }
                ends
            }
            Presence::Away { expires_at_ms, will, .. } => {
                let (expires_at_ms, will) = (*expires_at_ms, will.take());
                let ends = unwanted || expires_at_ms <= now_ms;
                self.timers.remove(&(expires_at_ms, slot, Timer::Expiry));
                if expires_at_ms <= now_ms {
                    self.expired.push(client_id.clone());
                }
                if let Some(will) = will {
                    self.timers.remove(&(will.at_ms, slot, Timer::Will));
                    if ends || will.at_ms <= now_ms {
                        self.wills.push((client_id, will.publication));
                    }
                }
                ends
            }
        }
    }

    pub(super) fn free_slot(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.sessions.push(None);
            u32::try_from(self.sessions.len() - 1).expect("sessions are bounded far below")
        })
    }

    fn begin(&mut self, slot: u32, opening: &Opening, expiry_s: u32, presence: Presence) {
        let client_id: Arc<str> = opening.client_id.as_str().into();
        let session = Session {
            client_id: Arc::clone(&client_id),
            user: opening.user.as_str().into(),
            key: 0,
            born: self.last_connection,
            version: opening.version,
            expiry_s,
            presence,
            filters: Vec::new(),
            flow: None,
            received: BTreeSet::new(),
        };
        self.sessions[slot as usize] = Some(session);
        self.clients.insert(client_id, slot);
        add(&self.counters.sessions, 1);
    }

    /// Stores that a session exists, if it is to outlive its connection.
    pub(super) fn keep(&mut self, slot: u32, left_at_ms: u64) {
        let Self { changes, last_key, sessions, .. } = self;
        let Some(session) = sessions[slot as usize].as_mut() else { return };
        if session.key == 0 && session.expiry_s > 0 && changes.enabled {
            *last_key += 1;
            session.key = *last_key;
        }
        changes.put_session(session, left_at_ms);
    }

    pub(super) fn disconnect(
        &mut self,
        port: &Port,
        how: Leave,
        now_ms: u64,
    ) -> Option<Publication> {
        let max = self.options.session_expiry_max_s;
        let Some(session) = self.session_of(port) else { return port.signal.take_will() };
        let will = session.online_mut().and_then(|online| online.will.take());
        let (will, expiry_s) = match how {
            Leave::Normal { session_expiry_s } => (None, session_expiry_s),
            Leave::WithWill { session_expiry_s } => (will, session_expiry_s),
            Leave::Lost | Leave::TakenOver => (will, None),
        };
        // A session that was to end with its connection cannot be kept after all (3.14.2-2).
        if let Some(expiry_s) = expiry_s.filter(|_| session.expiry_s > 0) {
            session.expiry_s = expiry_s.min(max);
        }
        let expiry_s = session.expiry_s;
        let publication = if expiry_s == 0 {
            self.end(port.slot);
            will.map(|will| will.publication)
        } else {
            let delay_s = will.as_ref().map_or(0, |will| will.delay_s.min(expiry_s));
            let publication = will.map(|will| will.publication);
            let (now, later) = match delay_s {
                0 => (publication, None),
                _ => (None, publication),
            };
            let delayed = later.map(|publication| {
                let at_ms = now_ms + u64::from(delay_s) * 1000;
                Box::new(DelayedWill { at_ms, publication })
            });
            self.leave_behind(port.slot, expires_at_ms(expiry_s, now_ms), delayed, now_ms);
            now
        };
        self.hand_over();
        publication
    }

    /// Leaves a session without a connection.
    pub(super) fn leave_behind(
        &mut self,
        slot: u32,
        expires_at_ms: u64,
        will: Option<Box<DelayedWill>>,
        now_ms: u64,
    ) {
        if let Some(will) = &will {
            self.timers.insert((will.at_ms, slot, Timer::Will));
        }
        self.away_timer(slot, expires_at_ms);
        self.drop_unacknowledgeable(slot);
        let Some(session) = self.session(slot) else { return };
        session.presence = Presence::Away { left_at_ms: now_ms, expires_at_ms, will };
        session.filters.shrink_to_fit();
        sub(&self.counters.connected, 1);
        self.keep(slot, now_ms.max(1));
    }

    pub(super) fn away_timer(&mut self, slot: u32, expires_at_ms: u64) {
        if expires_at_ms != u64::MAX {
            self.timers.insert((expires_at_ms, slot, Timer::Expiry));
        }
    }

    /// Messages with QoS 0 are not kept for a client that is gone.
    fn drop_unacknowledgeable(&mut self, slot: u32) {
        let Self { sessions, changes, counters, .. } = self;
        let Some(session) = sessions[slot as usize].as_mut() else { return };
        let Some(flow) = &mut session.flow else { return };
        flow.waiting.retain(|queued| {
            if queued.qos == 0 {
                flow.bytes -= queued.cost as usize;
                leave(session.key, queued, changes, counters);
                add(&counters.dropped_offline, 1);
            }
            queued.qos > 0
        });
        flow.shrink();
    }

    pub(super) fn due(&mut self, now_ms: u64) -> Due {
        let wills = std::mem::take(&mut self.wills);
        let expired = std::mem::take(&mut self.expired);
        let mut due = Due { wills, expired, ..Due::default() };
        while let Some(&(at_ms, slot, timer)) = self.timers.first() {
            if at_ms > now_ms {
                break;
            }
            self.timers.pop_first();
            let Some(session) = self.session(slot) else { continue };
            let client_id = session.client_id.to_string();
            if let Presence::Away { will, .. } = &mut session.presence
                && let Some(will) = will.take()
            {
                // A will comes at the latest when its session ends (3.1.2-8).
                self.timers.remove(&(will.at_ms, slot, Timer::Will));
                due.wills.push((client_id.clone(), will.publication));
            }
            if timer == Timer::Expiry {
                self.end(slot);
                due.expired.push(client_id);
            }
        }
        while let Some(topic) = self.retained.expire(now_ms) {
            self.changes.remove_retained(&topic);
        }
        self.count_retained();
        due.limited = self.limited(now_ms);
        let timer = self.timers.first().map(|(at_ms, ..)| *at_ms);
        due.next_ms = [timer, self.retained.next_ms()].into_iter().flatten().min();
        self.hand_over();
        due
    }

    fn limited(&mut self, now_ms: u64) -> Vec<(String, u64)> {
        let mut told = Vec::new();
        self.limited.retain(|client_id, limited| {
            if limited.told_ms.is_some_and(|at_ms| now_ms < at_ms + LIMITED_PAUSE_MS) {
                return true;
            }
            if limited.dropped == 0 {
                return false;
            }
            told.push((client_id.to_string(), limited.dropped));
            (limited.dropped, limited.told_ms) = (0, Some(now_ms));
            true
        });
        told
    }
}

/// When a session ends that is left now.
pub(super) fn expires_at_ms(expiry_s: u32, now_ms: u64) -> u64 {
    match expiry_s {
        u32::MAX => u64::MAX,
        expiry_s => now_ms + u64::from(expiry_s) * 1000,
    }
}

fn new_online(opening: &Opening, number: u64) -> Online {
    let in_flight_max = match opening.version {
        Version::V3 => IN_FLIGHT_MAX,
        Version::V5 => IN_FLIGHT_MAX_V5,
    };
    Online {
        number,
        signal: Arc::default(),
        wake: Arc::default(),
        in_flight_max: in_flight_max.min(opening.receive_maximum.max(1)),
        packet_bytes_max: opening.packet_bytes_max,
        alias_max: opening.topic_alias_max,
        aliases: BTreeMap::new(),
        will: opening.will.clone().map(Box::new),
        may_receive: opening.may_receive.clone(),
    }
}
