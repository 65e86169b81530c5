//! One connection to a broker.
//!
//! The task waits for the socket, the journal and the clock at once: pings go out on time however
//! long the journal takes, and a full batch only stops the reading. Acknowledgements are bytes of
//! this connection and die with it, so none can reach a later one, where the same packet id may
//! mean another message.

use std::sync::Arc;
use std::time::Duration;

use tidegate_operators::event::{Gap, SessionEvent, Untaken};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::config::RetainedPolicy;
use super::dial;
use super::link::Link;
use super::memory::Memory;
use super::packets::{self, Accepted};
use super::reasons;
use super::subscription::{Answer, Subscription};
use crate::mqtt::batcher::{Acks, Batcher};
use crate::mqtt::buffer::ReadBuffer;
use crate::mqtt::limits::{
    BATCH_BYTES_MAX, BROKER_RECEIVE_MAXIMUM, KEEP_ALIVE, PONG_TIMEOUT, STOP_TIMEOUT, WRITE_TIMEOUT,
};
use crate::mqtt::unreadable::{Skip, Unreadable, unreadable};
use crate::mqtt::wire::{
    Frame, PINGREQ, PUBACK, PUBCOMP, PUBREC, Publish, Version, frame, kind, packet_id, publish,
    put_ack,
};
use crate::mutation::{self, Mutation};
use crate::net::BoxStream;
use crate::source::{Intake, IntakeError, SourceStats, count, now_us, stopped};
use crate::time::{self, sleep_until, timeout};

/// How a connection ended.
pub(super) enum End {
    /// We were told to stop.
    Stopped,
    /// It was lost, or had to be given up; why.
    Lost(String),
    /// The journal has failed.
    Failed(IntakeError),
}

pub(super) struct Session {
    link: Arc<Link>,
    stream: BoxStream,
    version: Version,
    buffer: ReadBuffer,
    batcher: Batcher,
    out: Vec<u8>,
    has_acks: bool,
    keep_alive: Duration,
    next_ping: Instant,
    /// PINGREQ was sent, and nothing was heard since; when to give up.
    silent: Option<Instant>,
    subscription: Subscription,
    skip: Option<Skip>,
}

impl Session {
    /// Connects and shakes hands; also returns what the broker said.
    pub(super) async fn open(
        link: &Arc<Link>,
        intake: &Arc<dyn Intake>,
    ) -> Result<(Self, Accepted), String> {
        let config = &link.config;
        let hello = packets::Connect {
            config,
            client_id: &link.client_id,
            clean: false,
            session_expiry_s: config.session_expiry_s,
            receive_maximum: BROKER_RECEIVE_MAXIMUM,
        };
        let (stream, buffer, accepted) = dial::shake(&link.target, hello).await?;
        if accepted.no_shared && config.share.is_some() {
            return Err(format!("the broker's CONNACK: {}", reasons::reason(0x9E)));
        }
        let keep_alive = match accepted.server_keep_alive_s {
            // A broker may ask to hear us more often; less often we would notice too late.
            Some(seconds) if seconds > 0 => Duration::from_secs(seconds.into()).min(KEEP_ALIVE),
            _ => KEEP_ALIVE,
        };
        let version = config.version();
        let session = Self {
            link: Arc::clone(link),
            stream,
            version,
            buffer,
            batcher: link.batcher(intake),
            out: Vec::new(),
            has_acks: false,
            keep_alive,
            next_ping: time::now() + keep_alive / 2,
            silent: None,
            subscription: Subscription::new(config, link.number),
            skip: None,
        };
        Ok((session, accepted))
    }

    fn stats(&self) -> &SourceStats {
        &self.link.stats
    }

    /// The number of the last batch that is durable.
    pub(super) fn durable(&self) -> u64 {
        self.batcher.durable()
    }

    /// Puts the beginning of the connection before its first message.
    pub(super) fn greet(&mut self, accepted: &Accepted) {
        let config = &self.link.config;
        let mut detail = match accepted.session_present {
            true => "the session goes on".to_owned(),
            false => "a new session".to_owned(),
        };
        if let Some(kept_s) = accepted.session_expiry_s.filter(|s| *s < config.session_expiry_s) {
            let text =
                format!("the broker keeps the session only for {kept_s} s while we are away");
            tracing::warn!("{}: {text}", self.link.source);
            detail = format!("{detail}; {text}");
        }
        if let Some(qos) = accepted.qos_max.filter(|qos| *qos < config.qos) {
            detail = format!("{detail}; the broker has no more than QoS {qos}");
        }
        let event = SessionEvent {
            fresh: !accepted.session_present,
            ..self.link.event("connected", &detail)
        };
        self.tell(&event);
    }

    fn tell(&mut self, event: &SessionEvent) {
        let number = self.link.number;
        self.batcher.note(|out| event.put(out, now_us(), number));
    }

    /// Serves until the connection ends. What was received is durable then, or the journal has
    /// failed, or stopping took too long.
    pub(super) async fn run(
        &mut self,
        memory: &mut Memory,
        stop: &mut watch::Receiver<bool>,
    ) -> End {
        let Err(end) = self.serve(memory, stop).await;
        match end {
            End::Failed(error) => End::Failed(error),
            End::Lost(text) => {
                let heard_us = memory.last_heard_us().unwrap_or_default();
                self.tell(&SessionEvent { heard_us, ..self.link.event("lost", &text) });
                // The acknowledgements of what is still under way belong to a dead connection.
                tokio::select! {
                    biased;
                    finished = self.batcher.finish() => match finished {
                        Ok(never_sent) => {
                            if mutation::on(Mutation::NoGeneration) {
                                memory.stale.extend(never_sent.bytes);
                            }
                            End::Lost(text)
                        }
                        Err(error) => End::Failed(error),
                    },
                    () = stopped(stop) => self.stop().await,
                }
            }
            End::Stopped => {
                self.tell(&self.link.event("disconnected", "Tidegate stops"));
                self.stop().await
            }
        }
    }

    /// Waits for what is under way, acknowledges it and says goodbye.
    async fn stop(&mut self) -> End {
        match timeout(STOP_TIMEOUT, self.batcher.finish()).await {
            Ok(Ok(acks)) => self.acknowledge(acks),
            Ok(Err(error)) => return End::Failed(error),
            Err(_) => tracing::warn!("stopped before the last messages were durable"),
        }
        self.out.extend_from_slice(&[0xE0, 0]);
        // The broker may be gone; it sends again then what was not acknowledged.
        let _ = self.flush().await;
        let _ = timeout(WRITE_TIMEOUT, self.stream.shutdown()).await;
        End::Stopped
    }

    async fn serve(
        &mut self,
        memory: &mut Memory,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<std::convert::Infallible, End> {
        self.subscription.begin(&mut self.out, memory).map_err(End::Lost)?;
        memory.save_soon();
        if self.subscription.is_complete() {
            self.link.well();
        }
        self.receive(memory)?;
        loop {
            self.flush().await?;
            self.batcher.start();
            memory.save_when_due(self.batcher.durable()).await;
            let reading = self.batcher.next_bytes() < BATCH_BYTES_MAX;
            let alarm = self.alarm(memory);
            tokio::select! {
                biased;
                () = stopped(stop) => return Err(End::Stopped),
                acks = self.batcher.done(), if self.batcher.is_pending() => {
                    self.acknowledge(acks.map_err(End::Failed)?);
                }
                read = self.stream.read(self.buffer.spare(memory.packet_bytes_max)),
                    if reading =>
                {
                    match read {
                        Ok(0) => return Err(lost("the broker closed the connection")),
                        Ok(n) => self.buffer.filled(n),
                        Err(error) => return Err(lost(&format!("connection lost: {error}"))),
                    }
                    self.silent = None;
                    self.receive(memory)?;
                }
                () = sleep_until(alarm) => self.give_up_if_silent()?,
            }
            self.tick(memory, reading)?;
        }
    }

    fn alarm(&self, memory: &Memory) -> Instant {
        let all = [Some(self.next_ping), self.silent, self.subscription.alarm()];
        all.into_iter().flatten().fold(memory.next_save(), Instant::min)
    }

    /// Only after looking whether something was to be read: the clock alone may be late.
    fn give_up_if_silent(&self) -> Result<(), End> {
        match self.silent {
            Some(at) if time::now() >= at => {
                Err(lost("the broker is silent: no answer to PINGREQ, the connection is half open"))
            }
            _ => Ok(()),
        }
    }

    /// Does what is due by the clock.
    fn tick(&mut self, memory: &Memory, reading: bool) -> Result<(), End> {
        let now = time::now();
        if now >= self.next_ping {
            self.out.extend_from_slice(&PINGREQ);
            self.next_ping = now + self.keep_alive / 2;
            self.silent = self.silent.or(Some(now + self.keep_alive.min(PONG_TIMEOUT)));
        }
        if !reading {
            // Not heard is not silent: we did not listen.
            self.silent = None;
        }
        self.subscription.tick(&mut self.out, memory, reading).map_err(End::Lost)
    }

    async fn flush(&mut self) -> Result<(), End> {
        if self.out.is_empty() {
            return Ok(());
        }
        let (stream, out) = (&mut self.stream, &self.out);
        let sending = async {
            stream.write_all(out).await?;
            stream.flush().await
        };
        let sent = timeout(WRITE_TIMEOUT, sending).await;
        self.out.clear();
        if std::mem::take(&mut self.has_acks) && matches!(sent, Ok(Ok(()))) {
            crate::fault::point("after_ack");
        }
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(lost(&format!("connection lost: {error}"))),
            Err(_) => Err(lost("the broker does not read")),
        }
    }

    fn acknowledge(&mut self, acks: Acks) {
        self.has_acks |= acks.count > 0;
        self.out.extend_from_slice(&acks.bytes);
        count(&self.stats().acked, acks.count);
    }

    /// Handles all complete packets in the buffer.
    fn receive(&mut self, memory: &mut Memory) -> Result<(), End> {
        let received_us = now_us();
        let (mut at, mut messages) = (0, 0);
        let result = loop {
            let bytes = &self.buffer.received()[at..];
            if let Some(skip) = &mut self.skip {
                let n = skip.left.min(bytes.len());
                skip.left -= n;
                at += n;
                if skip.left > 0 {
                    break Ok(());
                }
                self.skipped(memory);
                continue;
            }
            match frame(bytes, memory.packet_bytes_max) {
                Ok(Some(frame)) => {
                    let handled = self.packet(frame, at, received_us, memory, &mut messages);
                    at += frame.total_len;
                    if let Err(end) = handled {
                        break Err(end);
                    }
                }
                Ok(None) => break Ok(()),
                Err(_) => match Skip::begin(bytes) {
                    Ok(Some(skip)) => self.skip = Some(skip),
                    Ok(None) => break Ok(()),
                    Err(text) => break Err(self.violated(text)),
                },
            }
        };
        if mutation::on(Mutation::NoGeneration) && messages > 0 {
            self.out.append(&mut memory.stale);
        }
        self.buffer.consume(at);
        memory.heard(received_us);
        count(&self.stats().received, messages);
        result
    }

    fn packet(
        &mut self,
        frame: Frame,
        at: usize,
        received_us: i64,
        memory: &mut Memory,
        messages: &mut u64,
    ) -> Result<(), End> {
        let body = &self.buffer.received()[at + frame.header_len..at + frame.total_len];
        match frame.kind() {
            kind::PUBLISH => match publish(self.version, frame.flags(), body) {
                Ok(publish) => {
                    let config = &self.link.config;
                    let policy = match publish.retain {
                        true => config.policy_of(publish.topic),
                        false => config.retained,
                    };
                    match take(&mut self.batcher, memory, policy, &publish, received_us) {
                        Taken::Journaled => *messages += 1,
                        Taken::KnownRetained => count(&self.stats().retained_dropped, 1),
                        Taken::NotReleased => {}
                    }
                }
                Err(violation) => match unreadable(frame.flags(), body, body.len()) {
                    Ok(Some(packet)) => {
                        let told = packet.told(frame.total_len, true, violation.text);
                        self.pass_over(packet, &told, memory);
                    }
                    _ => return Err(self.violated(violation.text)),
                },
            },
            kind::PUBREL => match packet_id(body) {
                Ok(id) => {
                    // Also for an id that we do not know: the broker goes on only with an answer.
                    memory.released(id);
                    put_ack(&mut self.out, PUBCOMP, id);
                }
                Err(violation) => return Err(self.violated(violation.text)),
            },
            kind::SUBACK => {
                let answer = self.subscription.answered(body, memory, received_us);
                let answer = answer.map_err(|text| self.violated(&text))?;
                self.judge(&answer, memory, received_us);
                memory.save_soon();
            }
            kind::UNSUBACK => self.subscription.unsubscribed(body, memory),
            kind::PINGRESP => {}
            kind::DISCONNECT => {
                let code = body.first().copied().unwrap_or(0);
                let why = reasons::reason(code);
                return Err(lost(&format!("the broker disconnects us: {why} (0x{code:02x})")));
            }
            kind::CONNACK => return Err(self.violated("a second CONNACK")),
            other => return Err(self.violated(&format!("an unexpected packet of type {other}"))),
        }
        Ok(())
    }

    /// Takes note of what the broker granted.
    fn judge(&mut self, answer: &Answer, memory: &Memory, now_us: i64) {
        for (&from_us, filters) in &answer.ended {
            let gap = Gap {
                source: self.link.source.clone(),
                filter: filters.join(" "),
                from_us,
                to_us: now_us,
                reason: "no subscription: the broker had no session of ours any more, or refused"
                    .into(),
            };
            self.batcher.note(|out| gap.put(out, now_us));
        }
        if let Some(qos) = answer.qos_min {
            let mut detail = answer.granted.join(" ");
            if qos < self.link.config.qos {
                let text = format!("the broker grants only QoS {qos}");
                tracing::warn!("{}: {text}: messages may get lost", self.link.source);
                detail = format!("{detail} ({text})");
            }
            self.tell(&self.link.event("subscribed", &packets::shortened(&detail)));
        }
        if !answer.refused.is_empty() {
            let text = self.subscription.problem();
            self.link.refused(&text);
            // Without any filter nothing is heard: as good as no session.
            let event = match self.subscription.has_any(memory) {
                true => "filter_refused",
                false => "refused",
            };
            self.tell(&self.link.event(event, &packets::shortened(&text)));
        } else if self.subscription.is_complete() {
            self.link.well();
        }
    }

    /// The packet that is too large has ended.
    fn skipped(&mut self, memory: &mut Memory) {
        let Some(Skip { total, packet, .. }) = self.skip.take() else { return };
        let why = format!("larger than {} bytes", memory.packet_bytes_max);
        let told = packet.told(total, false, &why);
        self.pass_over(packet, &told, memory);
    }

    /// Acknowledges what cannot be journaled, after events that say so.
    fn pass_over(&mut self, packet: Unreadable, told: &Untaken, memory: &mut Memory) {
        if let Some((PUBREC, id)) = packet.ack
            && !memory.is_first(id, b"", b"")
        {
            self.batcher.acknowledge(PUBREC, id);
            return;
        }
        count(&self.stats().skipped, 1);
        let Untaken { packet_bytes: bytes, detail: why, topic, .. } = told;
        let text = format!("a packet of {bytes} bytes to `{topic}` is not taken: {why}");
        tracing::error!("{}: {text}", self.link.source);
        self.stats().note_error(text.clone());
        self.tell(&self.link.event("skipped", &text));
        self.batcher.note(|out| told.put(out, now_us()));
        if let Some((byte1, id)) = packet.ack {
            self.batcher.acknowledge(byte1, id);
        }
    }

    fn violated(&self, text: &str) -> End {
        count(&self.stats().protocol_errors, 1);
        lost(&format!("the broker broke the protocol: {text}"))
    }
}

/// What became of a message.
enum Taken {
    Journaled,
    /// The policy says that it is known.
    KnownRetained,
    /// QoS 2: it was taken before.
    NotReleased,
}

fn take(
    batcher: &mut Batcher,
    memory: &mut Memory,
    policy: RetainedPolicy,
    publish: &Publish<'_>,
    received_us: i64,
) -> Taken {
    let id = publish.packet_id;
    let (topic, payload, batch) = (publish.topic, publish.payload, batcher.number());
    if publish.qos == 2 && !memory.is_first(id, topic, payload) {
        batcher.push_known(publish, received_us);
        return Taken::NotReleased;
    }
    let wanted = match (policy, publish.retain) {
        (RetainedPolicy::Process, _) | (RetainedPolicy::Drop, false) => true,
        (RetainedPolicy::Drop, true) => false,
        (RetainedPolicy::State, true) => memory.retained.is_new(topic, payload, batch),
        (RetainedPolicy::State, false) => {
            memory.retained.update(topic, payload, batch);
            true
        }
    };
    if wanted {
        batcher.push(publish, b"", received_us);
        return Taken::Journaled;
    }
    if publish.qos > 0 {
        batcher.acknowledge(if publish.qos == 1 { PUBACK } else { PUBREC }, id);
    }
    Taken::KnownRetained
}

fn lost(text: &str) -> End {
    End::Lost(text.to_owned())
}
