//! One device: reads packets, offers what was published, acknowledges what is durable.
//!
//! The task of a connection owns everything of it. It reads on while a batch is being synced, up
//! to a bound, so that a device hears answers to its pings even when the disk is slow; beyond the
//! bound it stops reading and TCP slows the device down. Whatever ends the connection, messages
//! that were received whole are offered first: a device may publish at QoS 0 and hang up at once.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use rumqttc_v4::mqttbytes::v4;
use rumqttc_v5::mqttbytes::v5;
use rumqttc_v5::mqttbytes::v5::DisconnectReasonCode as Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::batcher::{Acks, Batcher};
use super::buffer::ReadBuffer;
use super::connect::{Hello, Refusal, bad_frame, disconnect};
use super::limits::{
    BATCH_BYTES_MAX, CONNECT_BYTES_MAX, CONNECT_TIMEOUT, HELD_BYTES_MAX, LINGER, READ_BYTES_MAX,
    RECEIVE_MAXIMUM, WRITE_TIMEOUT,
};
use super::registry::{Place, Registry};
use super::users::Users;
use super::wire::{
    Frame, PINGRESP, PUBCOMP, PUBREC, Version, Violation, check_topic_limits, frame, kind,
    packet_id, publish, put_ack, violation,
};
use crate::source::{Intake, IntakeError, SourceStats, count, now_us, stopped};

/// What all connections of an endpoint share.
pub(crate) struct Shared {
    pub(crate) users: Users,
    pub(crate) packet_bytes_max: usize,
    pub(crate) registry: Registry,
    pub(crate) held: Arc<AtomicUsize>,
    pub(crate) intake: Arc<dyn Intake>,
    pub(crate) stats: Arc<SourceStats>,
}

/// Why a session ended.
enum Exit {
    /// The peer closed, said goodbye, or the network failed.
    Gone,
    /// The peer broke a rule.
    Violated(Violation),
    /// Nothing came for one and a half times the keep-alive.
    Silent,
    /// A newer connection has the client id.
    Taken,
    /// The process is stopping.
    Stopping,
    /// The journal has failed.
    Failed(IntakeError),
}

/// Runs one accepted connection to its end.
///
/// # Errors
/// The journal has failed. Faults of the peer are counted and are not errors.
pub(crate) async fn run(
    mut stream: TcpStream,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), IntakeError> {
    // Acknowledgements are small and awaited; a failure to set this costs only latency.
    let _ = stream.set_nodelay(true);
    let mut buffer = ReadBuffer::new();
    let greeting = tokio::select! {
        () = stopped(&mut stop) => return Ok(()),
        greeting = greet(&mut stream, &mut buffer, &shared) => greeting,
    };
    let hello = match greeting {
        Ok(hello) => hello,
        Err(refusal) => {
            refuse(&mut stream, &refusal, &shared.stats).await;
            return Ok(());
        }
    };
    tracing::debug!(client = hello.client_id, version = ?hello.version, "connected");
    let place = shared.registry.enter(&hello.client_id);
    let batcher = Batcher::new(Arc::clone(&shared.intake), Arc::clone(&shared.held));
    let out = hello.accept(shared.packet_bytes_max);
    let last_received = Instant::now();
    let exactly_once = HashSet::new();
    let mut connection =
        Connection { stream, buffer, batcher, out, hello, exactly_once, last_received, shared };
    connection.run(place, stop).await
}

/// Reads the CONNECT.
async fn greet(
    stream: &mut TcpStream,
    buffer: &mut ReadBuffer,
    shared: &Shared,
) -> Result<Hello, Refusal> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    let limit_bytes = CONNECT_BYTES_MAX.min(shared.packet_bytes_max);
    let silent = |text: &str| Refusal { reply: vec![], text: text.to_owned(), malformed: true };
    loop {
        if buffer.received().first().is_some_and(|byte1| *byte1 != kind::CONNECT << 4) {
            return Err(silent("the first packet is not a CONNECT"));
        }
        if let Some(frame) = frame(buffer.received(), limit_bytes).map_err(bad_frame)? {
            let hello = Hello::read(frame, &buffer.received()[..frame.total_len], &shared.users)?;
            buffer.consume(frame.total_len);
            return Ok(hello);
        }
        let read = stream.read(buffer.spare(limit_bytes));
        match timeout_at(deadline, read).await {
            Ok(Ok(n)) if n > 0 => buffer.filled(n),
            Ok(_) => return Err(silent("closed before a CONNECT")),
            Err(_) => return Err(silent("no CONNECT in time")),
        }
    }
}

async fn refuse(stream: &mut TcpStream, refusal: &Refusal, stats: &SourceStats) {
    tracing::info!(peer = ?stream.peer_addr().ok(), "connection refused: {}", refusal.text);
    count(if refusal.malformed { &stats.protocol_errors } else { &stats.refused }, 1);
    stats.note_error(format!("connection refused: {}", refusal.text));
    close(stream, &refusal.reply).await;
}

/// Sends the last bytes, then reads on for a moment so that they are not lost to a reset.
async fn close(stream: &mut TcpStream, last: &[u8]) {
    let sent = timeout(WRITE_TIMEOUT, async {
        stream.write_all(last).await?;
        stream.shutdown().await
    });
    if matches!(sent.await, Ok(Ok(()))) {
        let mut waste = [0; 4096];
        let drain = async { while matches!(stream.read(&mut waste).await, Ok(n) if n > 0) {} };
        // Either way the stream is closed next.
        let _ = timeout(LINGER, drain).await;
    }
}

struct Connection {
    stream: TcpStream,
    buffer: ReadBuffer,
    batcher: Batcher,
    /// Packets to send.
    out: Vec<u8>,
    hello: Hello,
    /// QoS 2: packet ids received and not released by PUBREL. At most 65,535.
    exactly_once: HashSet<u16>,
    last_received: Instant,
    shared: Arc<Shared>,
}

impl Connection {
    async fn run(
        &mut self,
        mut place: Place,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), IntakeError> {
        let exit = match self.serve(&mut place, &mut stop).await {
            Ok(never) => match never {},
            Err(exit) => exit,
        };
        // A device that comes back need not wait for what follows.
        drop(place);
        self.end(exit).await
    }

    /// Serves until something ends the session.
    async fn serve(
        &mut self,
        place: &mut Place,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<std::convert::Infallible, Exit> {
        // The device may have sent more together with its CONNECT.
        self.receive()?;
        let patience = Duration::from_millis(u64::from(self.hello.keep_alive_s) * 1500);
        let alarm = sleep_until(self.last_received + patience);
        tokio::pin!(alarm);
        loop {
            self.flush().await?;
            self.batcher.start();
            let reading = self.may_read();
            let watching = reading && !patience.is_zero();
            tokio::select! {
                biased;
                () = stopped(stop) => return Err(Exit::Stopping),
                _ = &mut place.taken => return Err(Exit::Taken),
                acks = self.batcher.done(), if self.batcher.is_pending() => {
                    self.acknowledge(acks.map_err(Exit::Failed)?);
                }
                read = self.stream.read(self.buffer.spare(self.shared.read_bytes_max())),
                    if reading =>
                {
                    match read {
                        Ok(n) if n > 0 => self.buffer.filled(n),
                        _ => return Err(Exit::Gone),
                    }
                    self.last_received = Instant::now();
                    self.receive()?;
                }
                () = &mut alarm, if watching => {
                    let due = self.last_received + patience;
                    if due <= Instant::now() {
                        return Err(Exit::Silent);
                    }
                    alarm.as_mut().reset(due);
                }
            }
            if !reading {
                // Not heard is not silent: we did not listen.
                self.last_received = Instant::now();
            }
        }
    }

    /// Whether the bounds on memory allow to read now.
    fn may_read(&self) -> bool {
        if self.batcher.held_bytes() >= HELD_BYTES_MAX {
            return !self.batcher.is_pending();
        }
        self.batcher.next_bytes() < BATCH_BYTES_MAX
    }

    async fn flush(&mut self) -> Result<(), Exit> {
        if self.out.is_empty() {
            return Ok(());
        }
        let sent = timeout(WRITE_TIMEOUT, self.stream.write_all(&self.out)).await;
        self.out.clear();
        match sent {
            Ok(Ok(())) => Ok(()),
            _ => Err(Exit::Gone),
        }
    }

    fn acknowledge(&mut self, acks: Acks) {
        if self.out.is_empty() {
            self.out = acks.bytes;
        } else {
            self.out.extend_from_slice(&acks.bytes);
        }
        count(&self.shared.stats.acked, acks.count);
    }

    /// Handles all complete packets in the buffer.
    fn receive(&mut self) -> Result<(), Exit> {
        let received_us = now_us();
        let (mut at, mut messages) = (0, 0);
        let mut result = Ok(());
        while result.is_ok() {
            match frame(&self.buffer.received()[at..], self.shared.packet_bytes_max) {
                Ok(Some(frame)) => {
                    result = self.packet(frame, at, received_us, &mut messages);
                    at += frame.total_len;
                }
                Ok(None) => break,
                Err(violation) => result = Err(Exit::Violated(violation)),
            }
        }
        self.buffer.consume(at);
        count(&self.shared.stats.received, messages);
        result
    }

    /// Handles the packet at `at` in the buffer.
    fn packet(
        &mut self,
        frame: Frame,
        at: usize,
        received_us: i64,
        messages: &mut u64,
    ) -> Result<(), Exit> {
        let packet = &self.buffer.received()[at..at + frame.total_len];
        let body = &packet[frame.header_len..];
        let version = self.hello.version;
        match (frame.kind(), frame.flags()) {
            (kind::PUBLISH, flags) => {
                let publish = publish(version, flags, body).map_err(Exit::Violated)?;
                check_topic_limits(publish.topic).map_err(Exit::Violated)?;
                if publish.qos == 2 && !self.exactly_once.insert(publish.packet_id) {
                    // Had before, and not released: the answer was lost, or is on its way.
                    self.batcher.acknowledge(PUBREC, publish.packet_id);
                } else {
                    self.batcher.push(&publish, self.hello.client_id.as_bytes(), received_us);
                    *messages += 1;
                }
                self.check_receive_maximum().map_err(Exit::Violated)
            }
            (kind::PUBREL, 2) => {
                let id = packet_id(body).map_err(Exit::Violated)?;
                self.exactly_once.remove(&id);
                put_ack(&mut self.out, PUBCOMP, id);
                Ok(())
            }
            (kind::PINGREQ, 0) if body.is_empty() => {
                self.out.extend_from_slice(&PINGRESP);
                Ok(())
            }
            (kind::SUBSCRIBE | kind::UNSUBSCRIBE, 2) => {
                let reply = answer_subscription(version, packet).map_err(Exit::Violated)?;
                self.out.extend_from_slice(&reply);
                Ok(())
            }
            (kind::DISCONNECT, 0) => Err(Exit::Gone),
            (kind::CONNECT, _) => Err(protocol_error("a second CONNECT")),
            (kind::PUBREL | kind::PINGREQ | kind::SUBSCRIBE | kind::UNSUBSCRIBE, _)
            | (kind::DISCONNECT, _) => Err(Exit::Violated(Violation {
                reason: Reason::MalformedPacket,
                text: "reserved flags of a packet are wrong",
            })),
            _ => Err(protocol_error("a packet of a type that is not expected from a client")),
        }
    }

    fn check_receive_maximum(&self) -> Result<(), Violation> {
        let open = self.batcher.unacknowledged();
        if self.hello.version == Version::V5 && open > u64::from(RECEIVE_MAXIMUM) {
            return violation(
                Reason::ReceiveMaximumExceeded,
                "more unacknowledged messages than the announced Receive Maximum",
            );
        }
        Ok(())
    }

    /// Takes leave: what was received is made durable and acknowledged first.
    async fn end(&mut self, exit: Exit) -> Result<(), IntakeError> {
        if let Exit::Failed(error) = exit {
            return Err(error);
        }
        let acks = self.batcher.finish().await?;
        self.acknowledge(acks);
        let (client, stats) = (&self.hello.client_id, &self.shared.stats);
        let reason = match exit {
            Exit::Gone => None,
            Exit::Stopping => Some(Reason::ServerShuttingDown),
            Exit::Taken => {
                tracing::info!(client, "a newer connection took over this client id");
                Some(Reason::SessionTakenOver)
            }
            Exit::Silent => {
                tracing::info!(client, "silent for 1.5 times its keep-alive: closed");
                Some(Reason::KeepAliveTimeout)
            }
            Exit::Violated(violation) => {
                tracing::warn!(client, "protocol error: {violation}");
                count(&stats.protocol_errors, 1);
                stats.note_error(format!("{client}: {violation}"));
                Some(violation.reason)
            }
            Exit::Failed(error) => return Err(error),
        };
        if let Some(reason) = reason {
            self.out.extend_from_slice(&disconnect(self.hello.version, reason));
        }
        close(&mut self.stream, &self.out).await;
        Ok(())
    }
}

impl Shared {
    /// Bound of a connection's read buffer: the largest packet, or a good read.
    fn read_bytes_max(&self) -> usize {
        match self.held.load(Ordering::Relaxed) < HELD_BYTES_MAX {
            true => self.packet_bytes_max.max(READ_BYTES_MAX),
            false => self.packet_bytes_max,
        }
    }
}

fn protocol_error(text: &'static str) -> Exit {
    Exit::Violated(Violation { reason: Reason::ProtocolError, text })
}

/// SUBACK that refuses every filter (nothing is delivered yet), or UNSUBACK.
fn answer_subscription(version: Version, packet: &[u8]) -> Result<Vec<u8>, Violation> {
    let broken = || Violation {
        reason: Reason::MalformedPacket,
        text: "SUBSCRIBE or UNSUBSCRIBE cannot be read",
    };
    let mut bytes = BytesMut::from(packet);
    let mut out = Vec::new();
    let (byte1, id, codes) = match version {
        Version::V3 => match v4::Packet::read(&mut bytes, packet.len()).map_err(|_| broken())? {
            v4::Packet::Subscribe(s) => (0x90, s.pkid, vec![0x80; s.filters.len()]),
            v4::Packet::Unsubscribe(u) => (0xB0, u.pkid, Vec::new()),
            _ => return Err(broken()),
        },
        Version::V5 => match v5::Packet::read(&mut bytes, None).map_err(|_| broken())? {
            v5::Packet::Subscribe(s) => (0x90, s.pkid, vec![0x87; s.filters.len()]),
            // 0x11: no subscription existed.
            v5::Packet::Unsubscribe(u) => (0xB0, u.pkid, vec![0x11; u.filters.len()]),
            _ => return Err(broken()),
        },
    };
    out.push(byte1);
    let properties: &[u8] = if version == Version::V5 { &[0] } else { &[] };
    put_length(&mut out, 2 + properties.len() + codes.len());
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(properties);
    out.extend_from_slice(&codes);
    Ok(out)
}

/// Appends a remaining length.
fn put_length(out: &mut Vec<u8>, mut len: usize) {
    while len >= 0x80 {
        out.push((len & 0x7F) as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
}

#[cfg(test)]
mod tests;
