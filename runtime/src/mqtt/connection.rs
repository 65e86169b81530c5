//! One device: reads packets, offers what was published, acknowledges what is durable, sends what
//! it has subscribed to.
//!
//! The task of a connection owns everything of it. It reads on while a batch is being synced, up
//! to a bound, so that a device hears answers to its pings even when the disk is slow; beyond the
//! bound it stops reading and TCP slows the device down. What is delivered to the device is taken
//! from its queue only as fast as the device reads, so a slow one costs its queue and no more.
//! Whatever ends the connection, messages that were received whole are offered first: a device may
//! publish at QoS 0 and hang up at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;

use super::access::{Access, Peer};
use super::broker::Broker;
use super::buffer::ReadBuffer;
use super::connect::Terms;
use super::limits::{
    HELD_BYTES_MAX, OUT_BYTES_MAX, READ_BYTES_MAX, TAKEN_READ_TIMEOUT, WRITE_TIMEOUT,
};
use super::notices::Notices;
use super::packets::Goodbye;
use super::route::Delivered;
use super::wire::{Violation, frame};
use crate::source::{Intake, IntakeError, SourceStats, count, now_us, stopped};
use crate::time::{self, sleep_until, timeout};

mod greet;
mod leave;
mod publish;
mod session;
mod stream;

pub(crate) use greet::{note_refused, publish_now};
use session::{Flow, Session};
use stream::{Moved, exchange};

/// What all connections of an endpoint share.
pub(crate) struct Shared {
    /// Name of the endpoint, for events.
    pub(crate) name: String,
    pub(crate) access: Access,
    pub(crate) terms: Terms,
    pub(crate) delivered: Delivered,
    pub(crate) connect_timeout: Duration,
    pub(crate) broker: Arc<Broker>,
    pub(crate) notices: Notices,
    pub(crate) held: Arc<AtomicUsize>,
    pub(crate) intake: Arc<dyn Intake>,
    pub(crate) stats: Arc<SourceStats>,
}

/// Why a session's connection ended.
enum Exit {
    /// DISCONNECT.
    Goodbye(Goodbye),
    /// The peer closed without a word, or the network failed.
    Gone(String),
    /// The peer broke a rule.
    Violated(Violation),
    /// It published what it may not, and its version has no words for that.
    Denied(String),
    /// Nothing came for one and a half times the keep-alive.
    Silent,
    /// It has not read for [`WRITE_TIMEOUT`].
    Stuck,
    /// Its proof of who it is has expired.
    Expired,
    /// A newer connection has the client id.
    Taken,
    /// The process is stopping.
    Stopping,
    /// The journal has failed.
    Failed(IntakeError),
}

impl From<Violation> for Exit {
    fn from(violation: Violation) -> Self {
        Self::Violated(violation)
    }
}

/// Runs one accepted connection to its end. With `full`, only says why it is refused.
///
/// # Errors
/// The journal has failed. Faults of the peer are counted and are not errors.
pub(crate) async fn run<S: AsyncRead + AsyncWrite + Unpin + Send>(
    mut stream: S,
    peer: Peer,
    shared: Arc<Shared>,
    full: Option<String>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), IntakeError> {
    let mut buffer = ReadBuffer::new();
    // Boxed, like all that comes only once: the task keeps room for its largest part all its life.
    let greeting = tokio::select! {
        biased;
        () = stopped(&mut stop) => return Ok(()),
        greeting = Box::pin(greet::greet(&mut stream, &mut buffer, &peer, &shared, full)) => {
            greeting
        }
    };
    let session = match greeting {
        Ok(session) => session,
        Err(refusal) => {
            let heard = !buffer.received().is_empty();
            return Box::pin(greet::refuse(stream, refusal, peer.address, heard, &shared)).await;
        }
    };
    let mut connection = Connection { stream, buffer, session };
    let mut exit = match connection.serve(&mut stop).await {
        Ok(never) => match never {},
        Err(exit) => exit,
    };
    if matches!(exit, Exit::Taken) {
        exit = Box::pin(connection.read_the_rest()).await;
    }
    Box::pin(connection.end(exit)).await
}

struct Connection<S> {
    stream: S,
    buffer: ReadBuffer,
    session: Session,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Serves until something ends the connection.
    async fn serve(
        &mut self,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<std::convert::Infallible, Exit> {
        // The device may have sent more together with its CONNECT.
        self.receive()?;
        let mut due = self.session.due();
        let alarm = sleep_until(due);
        tokio::pin!(alarm);
        loop {
            self.session.batcher.start();
            if self.session.waits_no_more() {
                self.receive()?;
                continue;
            }
            let session = &mut self.session;
            session.deliver();
            let reading = session.may_read();
            if !reading {
                // Not heard is not silent: we did not listen.
                session.last_received = time::now();
            }
            if session.due() < due {
                due = session.due();
                alarm.as_mut().reset(due);
            }
            let read_bytes_max = session.shared.read_bytes_max();
            let room = if reading { Some(self.buffer.spare(read_bytes_max)) } else { None };
            tokio::select! {
                biased;
                () = stopped(stop) => return Err(Exit::Stopping),
                () = session.port.taken() => return Err(Exit::Taken),
                acks = session.batcher.done(), if session.batcher.is_pending() => {
                    session.acknowledge(acks.map_err(Exit::Failed)?);
                }
                () = session.port.wake.notified() => session.wants_delivery = true,
                moved = exchange(&mut self.stream, &mut session.out, room) => {
                    match moved {
                        Ok(Moved::Wrote) => {}
                        Ok(Moved::Read(0)) => return Err(Exit::Gone("closed".to_owned())),
                        Ok(Moved::Read(n)) => {
                            self.buffer.filled(n);
                            session.last_received = time::now();
                            self.receive()?;
                        }
                        Err(error) => return Err(Exit::Gone(error.to_string())),
                    }
                }
                () = &mut alarm => {
                    session.alarm(time::now(), reading)?;
                    due = session.due();
                    alarm.as_mut().reset(due);
                }
            }
        }
    }

    /// Handles all complete packets in the buffer, or as many as may be handled now.
    fn receive(&mut self) -> Result<(), Exit> {
        let received_us = now_us();
        let (mut at, mut messages) = (0, 0);
        let mut result = Ok(());
        let session = &mut self.session;
        let packet_bytes_max = session.shared.terms.packet_bytes_max;
        while result.is_ok() {
            let rest = &self.buffer.received()[at..];
            match frame(rest, packet_bytes_max) {
                Ok(Some(frame)) => {
                    let packet = &rest[..frame.total_len];
                    match session.packet(frame, packet, received_us, &mut messages) {
                        Ok(Flow::Done) => {}
                        Ok(Flow::Wait) => break,
                        Err(exit) => result = Err(exit),
                    }
                    at += frame.total_len;
                }
                Ok(None) => break,
                Err(violation) => {
                    session.note_too_large(rest, &violation);
                    result = Err(Exit::Violated(violation));
                }
            }
        }
        self.buffer.consume(at);
        count(&session.shared.stats.received, messages);
        session.meter(messages);
        result
    }

    /// Takes in what the device had sent before it came back on another connection: it may have
    /// published, said goodbye and hung up, all of which is still on its way to us.
    async fn read_the_rest(&mut self) -> Exit {
        let mut left = READ_BYTES_MAX * 4;
        while left > 0 {
            let room = self.buffer.spare(self.session.shared.read_bytes_max());
            match timeout(TAKEN_READ_TIMEOUT, self.stream.read(room)).await {
                Ok(Ok(n)) if n > 0 => {
                    left = left.saturating_sub(n);
                    self.buffer.filled(n);
                    if let Err(exit) = self.receive() {
                        return exit;
                    }
                }
                _ => break,
            }
        }
        Exit::Taken
    }

    /// Takes leave: what was received is made durable and acknowledged first.
    async fn end(mut self, exit: Exit) -> Result<(), IntakeError> {
        let last = self.session.leave(exit).await?;
        self.session.out.append(last);
        greet::close(&mut self.stream, &mut self.session.out).await;
        Ok(())
    }
}

impl Session {
    /// Whether the bounds on memory, and the order of things, allow to read now.
    fn may_read(&self) -> bool {
        let held_back = self.waiting || self.paused_until.is_some();
        if held_back || self.out.len() >= OUT_BYTES_MAX {
            return false;
        }
        self.batcher.may_collect()
    }

    /// When to call [`Session::alarm`] at the latest.
    fn due(&self) -> Instant {
        let stuck = self.out.stalled.map(|since| since + WRITE_TIMEOUT);
        let silent = (!self.patience.is_zero()).then(|| self.last_received + self.patience);
        let never = self.last_received + Duration::from_secs(365 * 24 * 3600);
        let all = [stuck, silent, self.paused_until, self.valid_until];
        all.into_iter().flatten().min().unwrap_or(never)
    }

    /// Does what is due by the clock; above all, judges the silence of the peer.
    fn alarm(&mut self, now: Instant, reading: bool) -> Result<(), Exit> {
        if self.valid_until.is_some_and(|until| until <= now) {
            return Err(Exit::Expired);
        }
        if self.paused_until.is_some_and(|until| until <= now) {
            self.paused_until = None;
        }
        if self.out.stalled.is_some_and(|since| since + WRITE_TIMEOUT <= now) {
            return Err(Exit::Stuck);
        }
        let silent = !self.patience.is_zero() && self.last_received + self.patience <= now;
        if silent && reading { Err(Exit::Silent) } else { Ok(()) }
    }
}

impl Shared {
    /// Bound of a connection's read buffer: the largest packet, or a good read.
    fn read_bytes_max(&self) -> usize {
        match self.held.load(Ordering::Relaxed) < HELD_BYTES_MAX {
            true => self.terms.packet_bytes_max.max(READ_BYTES_MAX),
            false => self.terms.packet_bytes_max,
        }
    }
}

#[cfg(test)]
mod tests;
