//! A session: who is connected to it, and what is on its way to the client.
//!
//! Most sessions are idle, so what only busy ones need is allocated when they need it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use tokio::sync::Notify;

use super::super::wire::Version;
use super::message::{Ids, Message};
use super::types::{MayReceive, Publication, Signal, Will};

/// Unacknowledged messages that we send a client which announces no smaller Receive Maximum.
pub(super) const IN_FLIGHT_MAX: u16 = 100;

/// The same for version 5, where the client says how much it can take.
pub(super) const IN_FLIGHT_MAX_V5: u16 = 1000;

/// Topic aliases that we assign on one connection: the first topics are most likely to repeat.
pub(super) const ALIASES_MAX: u16 = 64;

pub(super) struct Session {
    pub(super) client_id: Arc<str>,
    /// Whose it is: nobody else may resume it.
    pub(super) user: Box<str>,
    /// Names it in the store; 0 while it is not stored.
    pub(super) key: u64,
    /// The number of its first connection; 0 if that was before the last start.
    pub(super) born: u64,
    pub(super) version: Version,
    pub(super) expiry_s: u32,
    pub(super) presence: Presence,
    /// Its filters, groups included.
    pub(super) filters: Vec<Box<str>>,
    pub(super) flow: Option<Box<Flow>>,
    /// QoS 2: packet ids received and not released.
    pub(super) received: BTreeSet<u16>,
}

pub(super) enum Presence {
    Online(Box<Online>),
    Away {
        /// When it was left, and when it ends, `u64::MAX` is never.
        left_at_ms: u64,
        expires_at_ms: u64,
        will: Option<Box<DelayedWill>>,
    },
}

#[derive(Debug)]
pub(super) struct DelayedWill {
    pub(super) at_ms: u64,
    pub(super) publication: Publication,
}

/// A connection.
pub(super) struct Online {
    pub(super) number: u64,
    pub(super) signal: Arc<Signal>,
    pub(super) wake: Arc<Notify>,
    pub(super) in_flight_max: u16,
    pub(super) packet_bytes_max: u32,
    pub(super) alias_max: u16,
    pub(super) aliases: BTreeMap<Box<[u8]>, u16>,
    pub(super) will: Option<Box<Will>>,
    pub(super) may_receive: Option<MayReceive>,
}

impl Online {
    /// Tells the connection that there may be something to send.
    pub(super) fn tell(&self) {
        self.wake.notify_one();
    }
}

/// A message on its way to one client.
#[derive(Clone, Debug)]
pub(super) struct Queued {
    pub(super) message: Arc<Message>,
    /// Number in the session, above QoS 0; gives the packet id.
    pub(super) seq: u64,
    /// The change of the store that has to be durable before it may go out.
    pub(super) after: u64,
    pub(super) ids: Ids,
    pub(super) cost: u32,
    pub(super) qos: u8,
    pub(super) retain: bool,
    /// It may have gone out before.
    pub(super) duplicate: bool,
}

impl Queued {
    pub(super) fn packet_id(&self) -> u16 {
        packet_id(self.seq)
    }
}

/// A QoS 2 message that the client has, before its PUBCOMP.
#[derive(Clone, Copy, Debug)]
pub(super) struct Release {
    pub(super) seq: u64,
    pub(super) after: u64,
    /// The PUBREL went out on this connection.
    pub(super) sent: bool,
}

/// Packet ids follow from the number of a message, so that they survive a crash without being
/// written each time.
pub(super) fn packet_id(seq: u64) -> u16 {
    // The first is 1, as every other server has it.
    ((seq + u64::from(u16::MAX) - 1) % u64::from(u16::MAX)) as u16 + 1
}

/// What is on its way to the client, in order.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// Not sent yet.
    pub(super) waiting: VecDeque<Queued>,
    /// Sent and not acknowledged, on this connection or an earlier one.
    pub(super) flying: VecDeque<Queued>,
    /// How many at the front of `flying` went out on this connection.
    pub(super) flown: usize,
    pub(super) releases: VecDeque<Release>,
    /// The number of the last message, and of the last that was sent.
    pub(super) last_seq: u64,
    pub(super) sent_seq: u64,
    /// No number in flight is below.
    oldest_seq: u64,
    /// Cost of all that is waiting or flying.
    pub(super) bytes: usize,
}

impl Flow {
    pub(super) fn messages(&self) -> usize {
        self.waiting.len() + self.flying.len()
    }

    /// Another connection takes over: all that is unacknowledged goes out again, in order.
    pub(super) fn restart(&mut self) {
        self.flown = 0;
        self.flying.iter_mut().for_each(|queued| queued.duplicate = true);
        self.releases.iter_mut().for_each(|release| release.sent = false);
    }

    /// Whether nothing in flight has the packet id of `seq`. A client that leaves one message
    /// unacknowledged for 65,534 later ones has to reconnect to go on.
    pub(super) fn may_use(&mut self, seq: u64) -> bool {
        let span = u64::from(u16::MAX);
        if seq - self.oldest_seq >= span {
            let flying = self.flying.iter().map(|queued| queued.seq);
            let oldest = flying.chain(self.releases.iter().map(|release| release.seq)).min();
            self.oldest_seq = oldest.unwrap_or(seq);
        }
        seq - self.oldest_seq < span
    }

    /// Takes an unacknowledged message out.
    pub(super) fn acknowledge(&mut self, packet_id: u16, qos: u8) -> Option<Queued> {
        let answers = |queued: &Queued| queued.packet_id() == packet_id && queued.qos == qos;
        let at = self.flying.iter().position(answers)?;
        if at < self.flown {
            self.flown -= 1;
        }
        let queued = self.flying.remove(at)?;
        self.bytes -= queued.cost as usize;
        Some(queued)
    }

    pub(super) fn release_at(&self, packet_id: u16) -> Option<usize> {
        self.releases.iter().position(|release| self::packet_id(release.seq) == packet_id)
    }
}

impl Session {
    pub(super) fn online(&self) -> Option<&Online> {
        match &self.presence {
            Presence::Online(online) => Some(online),
            Presence::Away { .. } => None,
        }
    }

    pub(super) fn online_mut(&mut self) -> Option<&mut Online> {
        match &mut self.presence {
            Presence::Online(online) => Some(online),
            Presence::Away { .. } => None,
        }
    }

    pub(super) fn is_full(&self, cost: usize, messages_max: usize, bytes_max: usize) -> bool {
        let Some(flow) = &self.flow else { return cost > bytes_max };
        // While the client is there, messages may come in faster than it acknowledges, and a
        // batch of a publisher is thousands: bytes are bound enough, each message counts 128.
        let many = self.online().is_none() && flow.messages() >= messages_max;
        many || flow.bytes + cost > bytes_max
    }
}
