//! Carries out the steps of one device over one MQTT 3.1.1 connection, QoS 1.
//!
//! A session loop of its own on rumqttc's packet codec: a client with its event loop, channels and
//! timers per device would cost several times more than the whole rest of the fleet.
//!
//! Invariant: a message leaves `unacked` only when its PUBACK came; whatever is in there when a
//! connection breaks is sent again on the next one.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rumqttc_v4::QoS;
use rumqttc_v4::mqttbytes::v4::{Connect, ConnectReturnCode, Disconnect, Packet, PingReq, Publish};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::device::{Device, Message, Step};
use super::stats::FleetStats;

/// Messages of one device without acknowledgement; small devices have room for few.
const IN_FLIGHT_MAX: usize = 20;
/// Keep-alive announced to the other side, seconds; pings go out at half of it.
const KEEP_ALIVE_S: u16 = 60;
/// Longest wait for a connection and its CONNACK.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest wait for outstanding acknowledgements before a clean disconnect.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(8);
/// First and longest pause between attempts to connect.
const BACKOFF: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Acknowledgements are four bytes; nothing longer is expected from the other side.
const PACKET_BYTES_MAX: usize = 4096;

/// What all devices share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) address: SocketAddr,
    pub(super) stats: FleetStats,
    pub(super) started: Instant,
}

/// Why a connection is no longer driven.
enum End {
    Stopped,
    Offline,
    Lost,
}

/// A message under way.
struct Sent {
    id: u16,
    message: Message,
}

/// One device with its connection state.
pub(super) struct Session {
    device: Device,
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
    next: Step,
    unacked: VecDeque<Sent>,
    last_id: u16,
}

impl Session {
    pub(super) fn new(
        mut device: Device,
        shared: Arc<Shared>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let next = device.next_step();
        Self { device, shared, stop, next, unacked: VecDeque::new(), last_id: 0 }
    }

    /// Runs until the stop signal.
    pub(super) async fn run(mut self) {
        let mut backoff = BACKOFF;
        loop {
            let due = self.due();
            tokio::select! {
                () = stopped(&mut self.stop) => return,
                () = sleep_until(due) => {}
            }
            let link = match timeout(CONNECT_TIME_MAX, Link::open(&self)).await {
                Ok(Ok(link)) => link,
                Ok(Err(_)) | Err(_) => {
                    self.shared.stats.on_connect_error();
                    if self.pause(backoff).await {
                        return;
                    }
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                    continue;
                }
            };
            backoff = BACKOFF;
            self.shared.stats.on_connected();
            let end = self.drive(link).await;
            self.shared.stats.on_disconnected();
            match end {
                End::Stopped => return,
                End::Offline => {}
                End::Lost => {
                    self.shared.stats.on_connect_error();
                    if self.pause(backoff).await {
                        return;
                    }
                }
            }
        }
    }

    /// Waits; true if the stop signal came.
    async fn pause(&mut self, time: Duration) -> bool {
        tokio::select! {
            () = stopped(&mut self.stop) => true,
            () = sleep(time) => false,
        }
    }

    fn due(&self) -> Instant {
        self.shared.started + Duration::from_micros(self.next.at_us().max(0) as u64)
    }

    async fn drive(&mut self, mut link: Link) -> End {
        if self.resend(&mut link).await.is_err() {
            return End::Lost;
        }
        let ping_every = Duration::from_secs(u64::from(KEEP_ALIVE_S) / 2);
        let mut ping_at = Instant::now() + ping_every;
        let mut stop = self.stop.clone();
        loop {
            let due = self.due();
            let room = self.unacked.len() < IN_FLIGHT_MAX;
            tokio::select! {
                biased;
                () = stopped(&mut stop) => {
                    self.part(link).await;
                    return End::Stopped;
                }
                read = link.read() => if read.is_err() || self.take_acks(&mut link).is_err() {
                    return End::Lost;
                },
                () = sleep_until(due), if room => {
                    ping_at = Instant::now() + ping_every;
                    let next = self.device.next_step();
                    match std::mem::replace(&mut self.next, next) {
                        Step::Offline { .. } => {
                            self.part(link).await;
                            return End::Offline;
                        }
                        Step::Publish { message, .. } => {
                            if self.publish(&mut link, message).await.is_err() {
                                return End::Lost;
                            }
                        }
                    }
                },
                () = sleep_until(ping_at) => {
                    ping_at = Instant::now() + ping_every;
                    if link.send(|out| PingReq.write(out)).await.is_err() {
                        return End::Lost;
                    }
                }
            }
        }
    }

    async fn publish(&mut self, link: &mut Link, message: Message) -> io::Result<()> {
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        let publish = self.packet(self.last_id, &message, false);
        // Counted and kept before it is sent: a write that fails may have reached the other side.
        self.shared.stats.on_published(self.device.kind(), message.fault);
        self.unacked.push_back(Sent { id: self.last_id, message });
        link.send(|out| publish.write(out)).await
    }

    fn packet(&self, id: u16, message: &Message, dup: bool) -> Publish {
        let topic = self.device.topic();
        let mut publish = Publish::from_bytes(topic, QoS::AtLeastOnce, message.payload.clone());
        publish.pkid = id;
        publish.dup = dup;
        publish
    }

    async fn resend(&mut self, link: &mut Link) -> io::Result<()> {
        self.shared.stats.on_resent(self.unacked.len() as u64);
        for sent in &self.unacked {
            let publish = self.packet(sent.id, &sent.message, link.session_present);
            link.send(|out| publish.write(out)).await?;
        }
        Ok(())
    }

    fn take_acks(&mut self, link: &mut Link) -> io::Result<()> {
        while let Some(packet) = link.packet()? {
            let Packet::PubAck(ack) = packet else { continue };
            if let Some(i) = self.unacked.iter().position(|s| s.id == ack.pkid)
                && let Some(sent) = self.unacked.remove(i)
            {
                self.shared.stats.on_acked(self.device.kind(), &sent.message);
            }
        }
        Ok(())
    }

    /// Waits for outstanding acknowledgements (bounded), then disconnects cleanly.
    async fn part(&mut self, mut link: Link) {
        let drain = async {
            while !self.unacked.is_empty() {
                link.read().await?;
                self.take_acks(&mut link)?;
            }
            link.send(|out| Disconnect.write(out)).await?;
            link.writer.shutdown().await
        };
        match timeout(DRAIN_TIME_MAX, drain).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => self.shared.stats.on_connect_error(),
        }
    }
}

/// Resolves at the stop signal, or when the fleet is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// An open connection.
struct Link {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    input: BytesMut,
    output: BytesMut,
    session_present: bool,
}

impl Link {
    async fn open(session: &Session) -> io::Result<Self> {
        let stream = TcpStream::connect(session.shared.address).await?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        let (input, output) = (BytesMut::new(), BytesMut::new());
        let mut link = Self { reader, writer, input, output, session_present: false };
        let mut connect = Connect::new(session.device.name());
        connect.keep_alive = KEEP_ALIVE_S;
        connect.clean_session = false;
        link.send(|out| connect.write(out)).await?;
        loop {
            match link.packet()? {
                Some(Packet::ConnAck(ack)) if ack.code == ConnectReturnCode::Success => {
                    link.session_present = ack.session_present;
                    return Ok(link);
                }
                Some(other) => return Err(io::Error::other(format!("refused: {other:?}"))),
                None => link.read().await?,
            }
        }
    }

    async fn send<E: std::fmt::Display>(
        &mut self,
        write: impl FnOnce(&mut BytesMut) -> Result<usize, E>,
    ) -> io::Result<()> {
        self.output.clear();
        write(&mut self.output).map_err(|e| io::Error::other(e.to_string()))?;
        self.writer.write_all(&self.output).await
    }

    /// Reads some bytes; cancel-safe. An end of the stream is an error.
    async fn read(&mut self) -> io::Result<()> {
        self.input.reserve(64);
        match self.reader.read_buf(&mut self.input).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// The next whole packet that was read, if any.
    fn packet(&mut self) -> io::Result<Option<Packet>> {
        use rumqttc_v4::mqttbytes::Error;
        if self.input.is_empty() {
            return Ok(None);
        }
        match Packet::read(&mut self.input, PACKET_BYTES_MAX) {
            Ok(packet) => Ok(Some(packet)),
            Err(Error::InsufficientBytes(_)) => Ok(None),
            Err(e) => Err(io::Error::other(e.to_string())),
        }
    }
}
