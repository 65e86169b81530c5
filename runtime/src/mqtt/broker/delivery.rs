//! From a session's queue to its client, and the acknowledgements on the way back.

use super::add;
use super::changes::Changes;
use super::encode::{Alias, Copy, put_pubrel};
use super::session::{ALIASES_MAX, Flow, Online, Presence, Queued, Release};
use super::state::{State, leave};
use super::types::{Counters, Port};
use crate::mqtt::wire::Version;

impl State {
    pub(super) fn outgoing(
        &mut self,
        port: &Port,
        out: &mut Vec<u8>,
        bytes_max: usize,
        now_ms: u64,
    ) {
        let committed = self.committed();
        if self.session_of(port).is_none() {
            return;
        }
        let Self { sessions, changes, counters, .. } = self;
        let Some(session) = sessions[port.slot as usize].as_mut() else { return };
        let Presence::Online(online) = &mut session.presence else { return };
        let Some(flow) = session.flow.as_deref_mut() else { return };
        let (key, version, start) = (session.key, session.version, out.len());
        let sent_seq = flow.sent_seq;
        let mut sending = Sending {
            flow,
            online,
            changes,
            counters,
            out,
            end: start.saturating_add(bytes_max),
            start,
            key,
            version,
            now_ms,
            committed,
        };
        if sending.everything() == Pause::NoRoom {
            sending.online.tell();
        }
        flow.shrink();
        if flow.sent_seq != sent_seq {
            changes.put_sent(key, flow.sent_seq);
        }
        self.hand_over();
    }

    pub(super) fn puback(&mut self, port: &Port, packet_id: u16) -> bool {
        self.acknowledge(port, packet_id, 1).is_some()
    }

    pub(super) fn pubrec(&mut self, port: &Port, packet_id: u16, failed: bool) -> bool {
        if let Some(queued) = self.acknowledge(port, packet_id, 2) {
            if failed {
                add(&self.counters.dropped_refused, 1);
            } else {
                self.await_release(port, queued.seq);
            }
            return true;
        }
        // Again, because it did not see our answer.
        let Some(session) = self.session_of(port) else { return false };
        let Some(flow) = &mut session.flow else { return false };
        let Some(at) = flow.release_at(packet_id) else { return false };
        flow.releases[at].sent = false;
        if let Some(online) = session.online() {
            online.tell();
        }
        true
    }

    fn await_release(&mut self, port: &Port, seq: u64) {
        let Self { sessions, changes, .. } = self;
        let Some(session) = sessions[port.slot as usize].as_mut() else { return };
        let mut after = 0;
        if changes.applies(session.key) {
            // With the PUBREL gone and this forgotten in a crash, the client would take the
            // repetition for a new message.
            changes.put_release(session.key, seq);
            changes.urgent = true;
            after = changes.next_number();
        }
        let flow = session.flow.get_or_insert_default();
        flow.releases.push_back(Release { seq, after, sent: false });
        if let Some(online) = session.online() {
            online.tell();
        }
        self.hand_over();
    }

    pub(super) fn pubcomp(&mut self, port: &Port, packet_id: u16) -> bool {
        let Some(session) = self.session_of(port) else { return false };
        let key = session.key;
        let Some(flow) = &mut session.flow else { return false };
        let Some(at) = flow.release_at(packet_id) else { return false };
        let Some(release) = flow.releases.remove(at) else { return false };
        if let Some(online) = session.online() {
            online.tell();
        }
        self.changes.remove_release(key, release.seq);
        self.hand_over();
        true
    }

    /// Takes an unacknowledged message out. The caller hands its changes over.
    fn acknowledge(&mut self, port: &Port, packet_id: u16, qos: u8) -> Option<Queued> {
        self.session_of(port)?;
        let Self { sessions, changes, counters, .. } = self;
        let session = sessions[port.slot as usize].as_mut()?;
        let flow = session.flow.as_mut()?;
        let queued = flow.acknowledge(packet_id, qos)?;
        leave(session.key, &queued, changes, counters);
        if flow.messages() > 0
            && let Some(online) = session.online()
        {
            online.tell();
        }
        if qos == 1 {
            self.hand_over();
        }
        Some(queued)
    }

    pub(super) fn knows_qos2(&mut self, port: &Port, packet_id: u16) -> bool {
        let Some(session) = self.session_of(port) else { return false };
        session.received.contains(&packet_id)
    }

    pub(super) fn receive_qos2(&mut self, port: &Port, packet_id: u16) -> bool {
        // A message may become durable after a newer connection took the session over, and the
        // client repeats it there.
        let session = self.session(port.slot).filter(|session| session.born == port.born);
        let Some(session) = session else { return true };
        let key = session.key;
        let new = session.received.insert(packet_id);
        if new {
            self.changes.put_received(key, packet_id);
            self.hand_over();
        }
        new
    }

    pub(super) fn release_qos2(&mut self, port: &Port, packet_id: u16) -> bool {
        let Some(session) = self.session_of(port) else { return false };
        let key = session.key;
        let known = session.received.remove(&packet_id);
        if known {
            self.changes.remove_received(key, packet_id);
            self.hand_over();
        }
        known
    }
}

/// Why sending stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// All is sent, or an acknowledgement or a commit has to come first.
    Idle,
    /// The caller takes no more bytes now.
    NoRoom,
}

struct Sending<'a> {
    flow: &'a mut Flow,
    online: &'a mut Online,
    changes: &'a mut Changes,
    counters: &'a Counters,
    out: &'a mut Vec<u8>,
    start: usize,
    end: usize,
    key: u64,
    version: Version,
    now_ms: u64,
    committed: u64,
}

/// What became of one message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    Yes,
    Denied,
    TooLarge,
    NoRoom,
}

impl Sending<'_> {
    fn everything(&mut self) -> Pause {
        for step in [Self::releases, Self::again, Self::waiting] {
            if step(self) == Pause::NoRoom {
                return Pause::NoRoom;
            }
        }
        Pause::Idle
    }

    /// PUBRELs, in the order in which the PUBRECs came (4.6.0-4).
    fn releases(&mut self) -> Pause {
        for i in 0..self.flow.releases.len() {
            let release = self.flow.releases[i];
            if release.sent {
                continue;
            }
            if release.after > self.committed {
                self.changes.wake(&self.online.wake);
                return Pause::Idle;
            }
            if !self.has_room(4) {
                return Pause::NoRoom;
            }
            put_pubrel(self.out, super::session::packet_id(release.seq));
            self.flow.releases[i].sent = true;
        }
        Pause::Idle
    }

    /// What an earlier connection has sent and not seen acknowledged (4.4.0-1).
    fn again(&mut self) -> Pause {
        while self.flow.flown < self.flow.flying.len() && self.has_quota() {
            let queued = self.flow.flying[self.flow.flown].clone();
            match self.send(&queued) {
                Sent::Yes => self.flow.flown += 1,
                Sent::TooLarge | Sent::Denied => {
                    self.flow.flying.remove(self.flow.flown);
                    self.forget(&queued);
                }
                Sent::NoRoom => return Pause::NoRoom,
            }
        }
        Pause::Idle
    }

    fn waiting(&mut self) -> Pause {
        while self.flow.flown == self.flow.flying.len() {
            let Some(queued) = self.flow.waiting.pop_front() else { break };
            if queued.message.is_expired(self.now_ms) {
                self.forget(&queued);
                add(&self.counters.dropped_expired, 1);
                continue;
            }
            if queued.qos > 0 && !(self.has_quota() && self.flow.may_use(queued.seq)) {
                self.flow.waiting.push_front(queued);
                break;
            }
            if queued.after > self.committed {
                self.changes.wake(&self.online.wake);
                self.flow.waiting.push_front(queued);
                break;
            }
            match self.send(&queued) {
                Sent::TooLarge | Sent::Denied => self.forget(&queued),
                Sent::NoRoom => {
                    self.flow.waiting.push_front(queued);
                    return Pause::NoRoom;
                }
                Sent::Yes => {
                    add(&self.counters.delivered, 1);
                    if queued.qos == 0 {
                        self.forget(&queued);
                        continue;
                    }
                    self.flow.sent_seq = queued.seq;
                    self.flow.flown += 1;
                    self.flow.flying.push_back(queued);
                }
            }
        }
        Pause::Idle
    }

    /// Whether one more message above QoS 0 may be unacknowledged.
    fn has_quota(&self) -> bool {
        let open = self.flow.flown + self.flow.releases.len();
        open < usize::from(self.online.in_flight_max)
    }

    /// One packet goes out in any case.
    fn has_room(&self, bytes: usize) -> bool {
        self.out.len() == self.start || self.out.len() + bytes <= self.end
    }

    fn send(&mut self, queued: &Queued) -> Sent {
        if !self.may_receive(queued.message.topic()) {
            add(&self.counters.dropped_denied, 1);
            return Sent::Denied;
        }
        let alias = self.alias(queued.message.topic());
        let mut copy = Copy {
            version: self.version,
            qos: queued.qos,
            retain: queued.retain,
            duplicate: queued.duplicate,
            packet_id: queued.packet_id(),
            ids: queued.ids.as_slice(),
            alias,
        };
        let packet_bytes_max = self.online.packet_bytes_max as usize;
        let mut size = copy.size(&queued.message);
        if size.total > packet_bytes_max && matches!(alias, Alias::New(_)) {
            copy.alias = Alias::None;
            size = copy.size(&queued.message);
        }
        if size.total > packet_bytes_max {
            // As if it had been delivered (3.1.2-25).
            add(&self.counters.dropped_too_large, 1);
            return Sent::TooLarge;
        }
        if !self.has_room(size.total) {
            return Sent::NoRoom;
        }
        copy.put(&queued.message, size, self.now_ms, self.out);
        if let Alias::New(alias) = copy.alias {
            self.online.aliases.insert(queued.message.topic().into(), alias);
        }
        Sent::Yes
    }

    fn alias(&self, topic: &[u8]) -> Alias {
        let max = self.online.alias_max.min(ALIASES_MAX);
        if max == 0 || self.version == Version::V3 {
            return Alias::None;
        }
        let aliases = &self.online.aliases;
        match aliases.get(topic) {
            Some(&alias) => Alias::Known(alias),
            None if aliases.len() < usize::from(max) => Alias::New(aliases.len() as u16 + 1),
            None => Alias::None,
        }
    }

    fn may_receive(&self, topic: &[u8]) -> bool {
        let Some(may) = &self.online.may_receive else { return true };
        std::str::from_utf8(topic).is_ok_and(|topic| may(topic))
    }

    fn forget(&mut self, queued: &Queued) {
        self.flow.bytes -= queued.cost as usize;
        leave(self.key, queued, self.changes, self.counters);
    }
}
