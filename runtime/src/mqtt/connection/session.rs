//! What a connection's packets mean: no I/O, so it is the same for every kind of stream.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rumqttc_v5::mqttbytes::v5::DisconnectReasonCode as Reason;
use tidegate_operators::event::{SessionEvent, Untaken};
use tokio::time::Instant;

use super::stream::Outbox;
use super::{Exit, Shared};
use crate::mqtt::access::Identity;
use crate::mqtt::aliases::Aliases;
use crate::mqtt::batcher::{Acks, Batcher};
use crate::mqtt::broker::{Opening, Port, Subscription};
use crate::mqtt::connect::Hello;
use crate::mqtt::limits::OUT_BYTES_MAX;
use crate::mqtt::notices::Notice;
use crate::mqtt::packets::{self, Limit, codes_packet, put_ack_with};
use crate::mqtt::route::{Router, now_ms};
use crate::mqtt::security::RateLimit;
use crate::mqtt::unreadable::too_large;
use crate::mqtt::wire::{Frame, PINGRESP, PUBCOMP, PUBREL, Version, Violation, kind, violation};
use crate::source::{count, now_us};
use crate::time;

/// A SUBACK code: "not accepted, and we do not say why"; 3.1.1 has no other. What was refused, to
/// whom, is in `system.sessions`.
const REFUSED: u8 = 0x80;

/// What became of a packet.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Done,
    /// It must wait for what came before it to be durable; nothing was done.
    Wait,
}

/// A client that was let in.
pub(super) struct Session {
    pub(super) hello: Hello,
    pub(super) address: SocketAddr,
    pub(super) identity: Identity,
    pub(super) out: Outbox,
    pub(super) batcher: Batcher,
    pub(super) port: Arc<Port>,
    pub(super) aliases: Aliases,
    /// QoS 2: packet ids received on this connection and not released by PUBREL, each with the
    /// number of its batch. At most 65,535.
    pub(super) exactly_once: HashMap<u16, u64>,
    /// The session has a past: the broker may know packet ids from earlier connections.
    pub(super) resumed: bool,
    /// The session outlives its connection.
    pub(super) persistent: bool,
    /// A packet waits for those before it to be durable.
    pub(super) waiting: bool,
    /// A SUBACK is on its way; retained messages come after it.
    pub(super) granting: bool,
    /// There may be something to deliver.
    pub(super) wants_delivery: bool,
    /// One and a half times the keep-alive; zero is for ever.
    pub(super) patience: Duration,
    pub(super) last_received: Instant,
    /// Messages per second, if they are limited, and until when to read nothing.
    pub(super) rate: Option<RateLimit>,
    pub(super) paused_until: Option<Instant>,
    /// When the proof of who the client is expires.
    pub(super) valid_until: Option<Instant>,
    pub(super) shared: Arc<Shared>,
}

impl Session {
    /// Opens the session at the broker. Its first event precedes its first message.
    pub(super) fn open(
        mut hello: Hello,
        identity: Identity,
        opening: Opening,
        address: SocketAddr,
        shared: &Arc<Shared>,
    ) -> Self {
        let (port, present) = shared.broker.connect(opening, now_ms());
        hello.session_expiry_s = port.session_expiry_s;
        let router = Router { broker: Arc::clone(&shared.broker), from: hello.client_id.clone() };
        let batcher = Batcher::new(Arc::clone(&shared.intake), Arc::clone(&shared.held))
            .routed(Arc::new(router))
            .counting(&shared.stats);
        let mut out = Outbox::default();
        out.append(hello.accept(&shared.terms, present));
        let patience = Duration::from_millis(u64::from(hello.keep_alive_s) * 1500);
        let now = time::now();
        let valid_until = identity.valid_until_us().map(|until_us| {
            now + Duration::from_micros(u64::try_from(until_us - now_us()).unwrap_or(0))
        });
        let mut session = Self {
            rate: identity.rate(),
            paused_until: None,
            valid_until,
            hello,
            address,
            identity,
            out,
            batcher,
            persistent: port.session_expiry_s > 0,
            port: Arc::new(port),
            aliases: Aliases::default(),
            exactly_once: HashMap::new(),
            resumed: present,
            waiting: false,
            granting: false,
            wants_delivery: present,
            patience,
            last_received: now,
            shared: Arc::clone(shared),
        };
        session.event("connected", "");
        session.give_up_what_is_not_allowed();
        tracing::debug!(client = session.hello.client_id, present, "connected");
        session
    }

    /// Rules may have changed since a resumed session has subscribed.
    fn give_up_what_is_not_allowed(&mut self) {
        if !self.resumed || !self.identity.is_limited() {
            return;
        }
        for filter in self.shared.broker.subscriptions(&self.port) {
            if !self.identity.may_subscribe(&filter) {
                self.shared.broker.unsubscribe(&self.port, &[&filter]);
                self.note_denied(&format!("subscribe {filter}"));
            }
        }
    }

    /// Judges how many messages have come.
    pub(super) fn meter(&mut self, messages: u64) {
        if let Some(rate) = &mut self.rate
            && messages > 0
        {
            let now = time::now();
            let pause = rate.take(messages, now.into_std());
            self.paused_until = (!pause.is_zero()).then(|| now + pause);
        }
    }

    pub(super) fn version(&self) -> Version {
        self.hello.version
    }

    /// Puts a session event into the batch.
    pub(super) fn event(&mut self, event: &str, detail: &str) {
        let protocol = if self.version() == Version::V3 { "3.1.1" } else { "5" };
        let event = SessionEvent {
            source: self.shared.name.clone(),
            client_id: self.hello.client_id.clone(),
            user: self.identity.user().to_owned(),
            event: event.to_owned(),
            detail: detail.to_owned(),
            address: self.address.to_string(),
            protocol: protocol.to_owned(),
            // What was acknowledged before is recognised whatever the session: we know it.
            fresh: false,
            heard_us: 0,
        };
        self.batcher.note(|out| event.put(out, now_us(), 0));
    }

    /// Counts, and notes as far as there are not too many, what the client may not do.
    pub(super) fn note_denied(&mut self, what: &str) {
        if self.shared.notices.allow(Notice::Denied, now_ms()) {
            self.event(Notice::Denied.name(), what);
        }
    }

    /// Notes, as far as there are not too many, a message that is larger than allowed: it ends the
    /// connection, as nothing that comes after it could be understood. `bytes` are its first.
    pub(super) fn note_too_large(&mut self, bytes: &[u8], violation: &Violation) {
        let max = self.shared.terms.packet_bytes_max;
        let is = violation.reason == Reason::PacketTooLarge;
        let Some(told) = is.then(|| too_large(bytes, max)).flatten() else { return };
        count(&self.shared.stats.skipped, 1);
        if self.shared.notices.allow(Notice::TooLarge, now_ms()) {
            let told = Untaken { client_id: self.hello.client_id.clone(), ..told };
            self.batcher.note(|out| told.put(out, now_us()));
        }
    }

    /// Takes over acknowledgements that may be sent.
    pub(super) fn acknowledge(&mut self, acks: Acks) {
        count(&self.shared.stats.acked, acks.count);
        self.out.append_acks(acks.bytes);
        self.granting = false;
    }

    /// Whether the packet that waits may be handled now.
    pub(super) fn waits_no_more(&mut self) -> bool {
        let go = self.waiting && !self.batcher.is_pending();
        self.waiting &= !go;
        go
    }

    /// Takes from the session's queue what there is room for.
    pub(super) fn deliver(&mut self) {
        let len = self.out.len();
        if self.wants_delivery && !self.granting && len < OUT_BYTES_MAX {
            self.wants_delivery = false;
            let bytes_max = OUT_BYTES_MAX - len;
            self.shared.broker.outgoing(&self.port, &mut self.out.bytes, bytes_max, now_ms());
        }
    }

    /// Handles one packet.
    pub(super) fn packet(
        &mut self,
        frame: Frame,
        packet: &[u8],
        received_us: i64,
        messages: &mut u64,
    ) -> Result<Flow, Exit> {
        let body = &packet[frame.header_len..];
        if self.version() == Version::V5 && frame.is_padded() {
            violation(Reason::MalformedPacket, "a length that is longer than need be")?;
        }
        match (frame.kind(), frame.flags()) {
            (kind::PUBLISH, flags) => self.publish(flags, body, received_us, messages)?,
            (kind @ (kind::PUBACK | kind::PUBREC | kind::PUBCOMP), 0) => self.answer(kind, body)?,
            (kind::PUBREL, 2) => return self.release(body),
            (kind::SUBSCRIBE | kind::UNSUBSCRIBE, 2) if self.batcher.is_routing() => {
                // A retained message from before it must be found by it.
                self.waiting = true;
                return Ok(Flow::Wait);
            }
            (kind::SUBSCRIBE, 2) => self.subscribe(body)?,
            (kind::UNSUBSCRIBE, 2) => self.unsubscribe(body)?,
            (kind::PINGREQ, 0) if body.is_empty() => {
                self.out.bytes.extend_from_slice(&PINGRESP);
            }
            (kind::DISCONNECT, 0) => return Err(self.goodbye(body)),
            (kind::CONNECT, 0) => violation(Reason::ProtocolError, "a second CONNECT")?,
            (kind::AUTH, 0) if self.version() == Version::V5 => {
                violation(Reason::ProtocolError, "AUTH, and no method was agreed on")?;
            }
            (
                0 | kind::CONNACK | kind::SUBACK | kind::UNSUBACK | kind::PINGRESP | kind::AUTH,
                _,
            ) => {
                violation(Reason::ProtocolError, "a packet that clients do not send")?;
            }
            _ => violation(Reason::MalformedPacket, "a packet's flags or length are wrong")?,
        }
        Ok(Flow::Done)
    }

    fn goodbye(&self, body: &[u8]) -> Exit {
        match packets::disconnect(self.version(), body) {
            Ok(goodbye) => {
                // A session that was to end with its connection cannot be kept after all.
                let revived = goodbye.session_expiry_s.is_some_and(|s| s > 0);
                if revived && self.hello.wishes.session_expiry_s == 0 {
                    let text = "DISCONNECT with a session expiry after none in CONNECT";
                    return Exit::Violated(Violation { reason: Reason::ProtocolError, text });
                }
                Exit::Goodbye(goodbye)
            }
            Err(violation) => Exit::Violated(violation),
        }
    }

    /// PUBACK, PUBREC or PUBCOMP: what became of a message that we sent.
    fn answer(&mut self, kind: u8, body: &[u8]) -> Result<(), Exit> {
        let (id, reason) = packets::ack(self.version(), kind, body)?;
        let broker = &self.shared.broker;
        match kind {
            // An unknown id is no error: the answer to a message that was sent twice.
            kind::PUBACK => _ = broker.puback(&self.port, id),
            kind::PUBCOMP => _ = broker.pubcomp(&self.port, id),
            _ => {
                let failed = reason >= 0x80;
                if !broker.pubrec(&self.port, id, failed) && !failed {
                    let version = self.version();
                    put_ack_with(&mut self.out.bytes, version, PUBREL, id, 0x92);
                }
            }
        }
        self.wants_delivery = true;
        Ok(())
    }

    /// PUBREL: the client will not send that message again.
    fn release(&mut self, body: &[u8]) -> Result<Flow, Exit> {
        let (id, _) = packets::ack(self.version(), kind::PUBREL, body)?;
        let mine = self.exactly_once.get(&id).copied();
        if mine.is_some_and(|batch| batch > self.batcher.durable()) {
            // Before our PUBREC, so too early; but forgetting must come after remembering.
            self.waiting = true;
            return Ok(Flow::Wait);
        }
        self.exactly_once.remove(&id);
        let known = self.persistent && self.shared.broker.release_qos2(&self.port, id);
        // Sent again after a reconnect it is no error (4.3.3), but some clients take 0x92 for one.
        let reason = if known || mine.is_some() || self.resumed { 0 } else { 0x92 };
        let mut packet = Vec::with_capacity(8);
        put_ack_with(&mut packet, self.version(), PUBCOMP, id, reason);
        if known {
            // If we forgot that it was released, a later message of that id would be lost.
            self.batcher.after().promise();
            self.batcher.reply(&packet);
        } else {
            self.out.bytes.extend_from_slice(&packet);
        }
        Ok(Flow::Done)
    }

    fn subscribe(&mut self, body: &[u8]) -> Result<(), Exit> {
        let asked = packets::subscribe(self.version(), body)?;
        let mut codes = vec![REFUSED; asked.filters.len()];
        let (mut places, mut granted) = (Vec::new(), Vec::new());
        for (i, filter) in asked.filters.into_iter().enumerate() {
            match filter {
                Ok(filter) if self.may_subscribe(&filter) => {
                    places.push(i);
                    granted.push(filter);
                }
                Ok(filter) => self.note_denied(&format!("subscribe {}", filter.filter)),
                Err(Limit) => {
                    codes[i] = 0x97;
                    self.note_denied("subscribe: a filter is longer or deeper than allowed");
                }
            }
        }
        let given = self.shared.broker.subscribe(&self.port, &granted, now_ms());
        for (place, code) in places.into_iter().zip(given) {
            codes[place] = code;
        }
        if self.version() == Version::V3 {
            codes.iter_mut().filter(|code| **code > REFUSED).for_each(|code| *code = REFUSED);
        }
        self.promise(&codes_packet(self.version(), 0x90, asked.packet_id, &codes));
        Ok(())
    }

    fn may_subscribe(&self, filter: &Subscription) -> bool {
        self.shared.terms.subscribe && self.identity.may_subscribe(&filter.filter)
    }

    fn unsubscribe(&mut self, body: &[u8]) -> Result<(), Exit> {
        let version = self.version();
        let (id, filters) = packets::unsubscribe(version, body)?;
        let codes = self.shared.broker.unsubscribe(&self.port, &filters);
        let codes: &[u8] = if version == Version::V5 { &codes } else { &[] };
        self.promise(&codes_packet(version, 0xB0, id, codes));
        Ok(())
    }

    /// Sends an answer that holds beyond this connection, once it does.
    fn promise(&mut self, packet: &[u8]) {
        if packet.len() > self.hello.wishes.packet_bytes_max as usize {
            // 3.1.2-25: as if it had been sent.
            tracing::debug!(client = self.hello.client_id, "an answer is too large for the client");
        } else if self.persistent {
            self.batcher.after().promise();
            self.batcher.reply(packet);
            self.granting = true;
        } else {
            self.out.bytes.extend_from_slice(packet);
        }
    }
}
