//! One connection to a broker.
//!
//! The task waits for the socket, the journal and the clock at once: pings go out on time however
//! long the journal takes, and a full batch only stops the reading. Acknowledgements are bytes of
//! this connection and die with it, so none can reach a later one, where the same packet id may
//! mean another message.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::backoff::Backoff;
use super::dial::{Stream, Target};
use super::packets::{self, SUBSCRIBE_ID};
use super::{Memory, SubscriberConfig};
use crate::mqtt::batcher::{Acks, Batcher};
use crate::mqtt::buffer::ReadBuffer;
use crate::mqtt::limits::{
    BATCH_BYTES_MAX, BROKER_PACKET_BYTES_MAX, DIAL_TIMEOUT, KEEP_ALIVE, STOP_TIMEOUT,
    SUBACK_TIMEOUT, WRITE_TIMEOUT,
};
use crate::mqtt::wire::{
    Frame, PINGREQ, PUBCOMP, PUBREC, Version, frame, kind, packet_id, publish, put_ack,
};
use crate::source::{Intake, IntakeError, SourceStats, count, now_us, stopped};

/// How a connection ended.
pub(super) enum End {
    /// We were told to stop.
    Stopped,
    /// It was lost, or had to be given up; why.
    Lost(String),
    /// The journal has failed.
    Failed(IntakeError),
}

/// What to do when about the subscription.
#[derive(Clone, Copy)]
enum Subscription {
    Granted,
    /// SUBSCRIBE was sent; the answer is due.
    Asked(Instant),
    /// Some filter was refused; ask again then.
    Refused(Instant),
}

pub(super) struct Session {
    stream: Box<dyn Stream>,
    version: Version,
    buffer: ReadBuffer,
    batcher: Batcher,
    out: Vec<u8>,
    stats: Arc<SourceStats>,
    keep_alive: Duration,
    last_received: Instant,
    next_ping: Instant,
    subscription: Subscription,
    backoff: Backoff,
}

impl Session {
    /// Connects and shakes hands; also returns whether the broker still had our session.
    pub(super) async fn open(
        target: &Target,
        config: &SubscriberConfig,
        intake: &Arc<dyn Intake>,
        stats: &Arc<SourceStats>,
    ) -> Result<(Self, bool), String> {
        let version = config.version();
        let hello = packets::connect(config)?;
        let mut buffer = ReadBuffer::new();
        let shake = async {
            let error = |error| format!("cannot connect to {target}: {error}");
            let mut stream = target.dial().await.map_err(error)?;
            stream.write_all(&hello).await.map_err(error)?;
            // A TLS stream may hold bytes back.
            stream.flush().await.map_err(error)?;
            loop {
                let received = buffer.received();
                let found = frame(received, BROKER_PACKET_BYTES_MAX).map_err(|v| v.to_string())?;
                if let Some(frame) = found {
                    let accepted = packets::connack(version, &received[..frame.total_len])?;
                    buffer.consume(frame.total_len);
                    return Ok((stream, accepted));
                }
                match stream.read(buffer.spare(BROKER_PACKET_BYTES_MAX)).await {
                    Ok(0) => return Err("the broker closed before its CONNACK".to_owned()),
                    Ok(n) => buffer.filled(n),
                    Err(error) => return Err(format!("before CONNACK: {error}")),
                }
            }
        };
        let shaken = timeout(DIAL_TIMEOUT, shake).await;
        let (stream, accepted) = shaken.map_err(|_| format!("{target} does not answer"))??;
        let keep_alive = match accepted.server_keep_alive_s {
            Some(seconds) if seconds > 0 => Duration::from_secs(u64::from(seconds)),
            _ => KEEP_ALIVE,
        };
        let now = Instant::now();
        let session = Self {
            stream,
            version,
            buffer,
            batcher: Batcher::new(Arc::clone(intake), Arc::default()),
            out: Vec::new(),
            stats: Arc::clone(stats),
            keep_alive,
            last_received: now,
            next_ping: now + keep_alive / 2,
            subscription: Subscription::Granted,
            backoff: Backoff::new(),
        };
        Ok((session, accepted.session_present))
    }

    /// Serves until the connection ends. What was received is durable then, or the journal has
    /// failed, or stopping took too long.
    pub(super) async fn run(
        &mut self,
        config: &SubscriberConfig,
        memory: &mut Memory,
        stop: &mut watch::Receiver<bool>,
    ) -> End {
        let Err(end) = self.serve(config, memory, stop).await;
        match end {
            End::Failed(error) => End::Failed(error),
            End::Lost(text) => {
                // The acknowledgements of what is still under way belong to a dead connection.
                tokio::select! {
                    finished = self.batcher.finish() => match finished {
                        Ok(_never_sent) => End::Lost(text),
                        Err(error) => End::Failed(error),
                    },
                    () = stopped(stop) => self.stop().await,
                }
            }
            End::Stopped => self.stop().await,
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
        config: &SubscriberConfig,
        memory: &mut Memory,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<std::convert::Infallible, End> {
        if memory.subscribed {
            self.stats.set_healthy();
        } else {
            self.ask(config)?;
        }
        self.receive(config, memory)?;
        loop {
            self.flush().await?;
            self.batcher.start();
            let reading = self.batcher.next_bytes() < BATCH_BYTES_MAX;
            let alarm = self.next_alarm();
            tokio::select! {
                biased;
                () = stopped(stop) => return Err(End::Stopped),
                acks = self.batcher.done(), if self.batcher.is_pending() => {
                    self.acknowledge(acks.map_err(End::Failed)?);
                }
                () = sleep_until(alarm) => self.alarm(config, reading)?,
                read = self.stream.read(self.buffer.spare(BROKER_PACKET_BYTES_MAX)),
                    if reading =>
                {
                    match read {
                        Ok(0) => return Err(lost("the broker closed the connection")),
                        Ok(n) => self.buffer.filled(n),
                        Err(error) => return Err(lost(&format!("connection lost: {error}"))),
                    }
                    self.last_received = Instant::now();
                    self.receive(config, memory)?;
                }
            }
            if !reading {
                // Not heard is not silent: we did not listen.
                self.last_received = Instant::now();
                if let Subscription::Asked(due) = &mut self.subscription {
                    *due = self.last_received + SUBACK_TIMEOUT;
                }
            }
        }
    }

    fn next_alarm(&self) -> Instant {
        match self.subscription {
            Subscription::Granted => self.next_ping,
            Subscription::Asked(at) | Subscription::Refused(at) => self.next_ping.min(at),
        }
    }

    /// Does what is due by the clock.
    fn alarm(&mut self, config: &SubscriberConfig, reading: bool) -> Result<(), End> {
        let now = Instant::now();
        if now >= self.next_ping {
            if reading && now - self.last_received > self.keep_alive * 3 / 2 {
                return Err(lost("the broker has been silent for 1.5 times the keep-alive"));
            }
            self.out.extend_from_slice(&PINGREQ);
            self.next_ping = now + self.keep_alive / 2;
        }
        match self.subscription {
            Subscription::Asked(due) if now >= due && reading => {
                Err(lost("the broker does not answer SUBSCRIBE"))
            }
            Subscription::Refused(at) if now >= at => self.ask(config),
            _ => Ok(()),
        }
    }

    fn ask(&mut self, config: &SubscriberConfig) -> Result<(), End> {
        self.out.extend_from_slice(&packets::subscribe(config).map_err(End::Lost)?);
        self.subscription = Subscription::Asked(Instant::now() + SUBACK_TIMEOUT);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), End> {
        if self.out.is_empty() {
            return Ok(());
        }
        let (stream, out) = (&mut self.stream, &self.out);
        let sent = timeout(WRITE_TIMEOUT, async {
            stream.write_all(out).await?;
            stream.flush().await
        });
        let sent = sent.await;
        self.out.clear();
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(lost(&format!("connection lost: {error}"))),
            Err(_) => Err(lost("the broker does not read")),
        }
    }

    fn acknowledge(&mut self, acks: Acks) {
        self.out.extend_from_slice(&acks.bytes);
        count(&self.stats.acked, acks.count);
    }

    /// Handles all complete packets in the buffer.
    fn receive(&mut self, config: &SubscriberConfig, memory: &mut Memory) -> Result<(), End> {
        let received_us = now_us();
        let (mut at, mut messages) = (0, 0);
        let mut result = Ok(());
        while result.is_ok() {
            match frame(&self.buffer.received()[at..], BROKER_PACKET_BYTES_MAX) {
                Ok(Some(frame)) => {
                    result = self.packet(frame, at, received_us, config, memory, &mut messages);
                    at += frame.total_len;
                }
                Ok(None) => break,
                Err(violation) => result = Err(self.violated(&violation.to_string())),
            }
        }
        self.buffer.consume(at);
        if at > 0 {
            memory.last_heard_us = Some(received_us);
        }
        count(&self.stats.received, messages);
        result
    }

    fn packet(
        &mut self,
        frame: Frame,
        at: usize,
        received_us: i64,
        config: &SubscriberConfig,
        memory: &mut Memory,
        messages: &mut u64,
    ) -> Result<(), End> {
        let body = &self.buffer.received()[at + frame.header_len..at + frame.total_len];
        match frame.kind() {
            kind::PUBLISH => match publish(self.version, frame.flags(), body) {
                Ok(publish) => {
                    if publish.qos == 2 && !memory.exactly_once.insert(publish.packet_id) {
                        self.batcher.acknowledge(PUBREC, publish.packet_id);
                    } else {
                        self.batcher.push(&publish, b"", received_us);
                        *messages += 1;
                    }
                    Ok(())
                }
                Err(violation) => Err(self.violated(violation.text)),
            },
            kind::PUBREL => match packet_id(body) {
                Ok(id) => {
                    memory.exactly_once.remove(&id);
                    put_ack(&mut self.out, PUBCOMP, id);
                    Ok(())
                }
                Err(violation) => Err(self.violated(violation.text)),
            },
            kind::SUBACK if packet_id(body) == Ok(SUBSCRIBE_ID) => {
                let granted = packets::suback(config, body);
                self.judge(granted, config, memory);
                Ok(())
            }
            kind::PINGRESP => Ok(()),
            kind::DISCONNECT => {
                let reason = body.first().copied().unwrap_or(0);
                Err(lost(&format!("the broker disconnects us with reason 0x{reason:02x}")))
            }
            kind::CONNACK => Err(self.violated("a second CONNACK")),
            other => Err(self.violated(&format!("an unexpected packet of type {other}"))),
        }
    }

    /// Takes note of what the broker granted.
    fn judge(
        &mut self,
        granted: Result<u8, String>,
        config: &SubscriberConfig,
        memory: &mut Memory,
    ) {
        match granted {
            Ok(qos) => {
                if qos < config.qos {
                    tracing::warn!("the broker grants only QoS {qos}: messages may get lost");
                }
                memory.subscribed = true;
                self.subscription = Subscription::Granted;
                self.stats.set_healthy();
            }
            Err(text) => {
                let pause = self.backoff.next_pause();
                tracing::error!("{text}; asking again in {pause:?}");
                self.stats.set_unhealthy(text);
                self.subscription = Subscription::Refused(Instant::now() + pause);
            }
        }
    }

    fn violated(&self, text: &str) -> End {
        count(&self.stats.protocol_errors, 1);
        lost(&format!("the broker broke the protocol: {text}"))
    }
}

fn lost(text: &str) -> End {
    End::Lost(text.to_owned())
}
