//! Helpers of the tests: an intake whose syncs the test controls, and a scripted MQTT peer that
//! deals in raw bytes.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tidegate_operators::event::{Gap, SessionEvent, Untaken};
use tidegate_operators::{Messages, MessagesBuilder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::wire::frame;
use crate::source::{Intake, IntakeError};

/// Longest wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long "nothing happens" is watched.
const QUIET: Duration = Duration::from_millis(150);

/// Records offers at once; each resolves when the test allows one more. Offers of nothing but
/// session events, and of messages that are known, resolve at once.
pub(super) struct TestIntake {
    arrived: Mutex<Vec<Messages>>,
    gate: Semaphore,
    failing: AtomicBool,
}

impl TestIntake {
    /// Every offer waits for [`TestIntake::allow`].
    pub(super) fn closed() -> Arc<Self> {
        let (arrived, failing) = (Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { arrived, gate: Semaphore::new(0), failing })
    }

    /// Every offer is durable at once.
    pub(super) fn open() -> Arc<Self> {
        let intake = Self::closed();
        intake.allow(1 << 20);
        intake
    }

    /// Lets `n` offers resolve.
    pub(super) fn allow(&self, n: usize) {
        self.gate.add_permits(n);
    }

    /// Lets all offers fail, those that wait and those to come.
    pub(super) fn fail(&self) {
        self.failing.store(true, Ordering::SeqCst);
        self.allow(1 << 20);
    }

    /// "topic payload" of all messages that have arrived and are not known.
    pub(super) fn texts(&self) -> Vec<String> {
        let arrived = self.arrived.lock().unwrap();
        let all = arrived.iter().flat_map(|m| (0..m.len()).map(move |i| (m, i)));
        all.filter(|(m, i)| !m.index[*i].event && !m.index[*i].known)
            .map(|(m, i)| {
                let (topic, payload) = (m.topic(i), m.payload(i));
                format!("{} {}", String::from_utf8_lossy(topic), String::from_utf8_lossy(payload))
            })
            .collect()
    }

    /// All offers so far that have messages.
    pub(super) fn offers(&self) -> Vec<Messages> {
        let arrived = self.arrived.lock().unwrap();
        arrived.iter().filter(|m| has_messages(m)).cloned().collect()
    }

    /// Position and meta data of the message with this payload.
    pub(super) fn find(&self, payload: &str) -> (Messages, usize) {
        let offers = self.offers();
        let all = offers.iter().flat_map(|m| (0..m.len()).map(move |i| (m, i)));
        let found = all.filter(|(m, i)| m.payload(*i) == payload.as_bytes()).last();
        let (messages, i) = found.expect("no such message");
        (messages.clone(), i)
    }

    /// All session events that have arrived, without those that tell of the start.
    pub(super) fn session_events(&self) -> Vec<SessionEvent> {
        self.all_session_events().into_iter().filter(|e| e.event != "starting").collect()
    }

    /// All of them.
    pub(super) fn all_session_events(&self) -> Vec<SessionEvent> {
        let arrived = self.arrived.lock().unwrap();
        let all = arrived.iter().flat_map(|m| (0..m.len()).map(move |i| (m, i)));
        all.filter_map(|(m, i)| SessionEvent::of(m, i)).collect()
    }

    /// Messages that were not taken because of their packets.
    pub(super) fn untaken(&self) -> Vec<Untaken> {
        let arrived = self.arrived.lock().unwrap();
        let all = arrived.iter().flat_map(|m| (0..m.len()).map(move |i| (m, i)));
        all.filter_map(|(m, i)| Untaken::of(m, i)).collect()
    }

    /// The same, as "event client detail".
    pub(super) fn events(&self) -> Vec<String> {
        let events = self.session_events().into_iter();
        events
            .map(|e| format!("{} {} {}", e.event, e.client_id, e.detail).trim_end().to_owned())
            .collect()
    }

    /// Waits for an event, written as in [`TestIntake::events`].
    pub(super) async fn wait_for_event(&self, event: &str) {
        eventually(|| self.events().iter().any(|e| e == event)).await;
    }

    /// Rows of gaps, as (filter, from, to).
    pub(super) fn gaps(&self) -> Vec<(String, i64, i64)> {
        let arrived = self.arrived.lock().unwrap();
        let all = arrived.iter().flat_map(|m| (0..m.len()).map(move |i| (m, i)));
        all.filter(|(m, i)| m.index[*i].event && m.topic(*i) == b"gap")
            .map(|(m, i)| {
                let gap: Gap = serde_json::from_slice(m.payload(i)).unwrap();
                (gap.filter, gap.from_us, gap.to_us)
            })
            .collect()
    }

    /// Waits until `n` messages have arrived.
    pub(super) async fn wait_for(&self, n: usize) {
        eventually(|| self.texts().len() >= n).await;
    }
}

#[async_trait]
impl Intake for TestIntake {
    async fn offer(&self, mut messages: MessagesBuilder) -> Result<(), IntakeError> {
        let messages = messages.finish(0, 0);
        let waits = has_messages(&messages);
        self.arrived.lock().unwrap().push(messages);
        if !waits {
            return Ok(());
        }
        self.gate.acquire().await.unwrap().forget();
        match self.failing.load(Ordering::SeqCst) {
            true => Err(IntakeError::Failed("the test says so".to_owned())),
            false => Ok(()),
        }
    }
}

fn has_messages(messages: &Messages) -> bool {
    messages.index.iter().any(|m| !m.event && !m.known)
}

/// Waits until `condition` holds.
pub(super) async fn eventually(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect("the condition never held");
}

/// The other end of a connection.
pub(super) struct Peer {
    pub(super) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Peer {
    pub(super) fn new(stream: TcpStream) -> Self {
        // Else many small packets wait for the other side's delayed acknowledgements.
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    /// The stream, and what was read from it and not looked at.
    pub(super) fn into_parts(self) -> (TcpStream, Vec<u8>) {
        (self.stream, self.buffer)
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next packet, or `None` if the connection was closed.
    pub(super) async fn packet(&mut self) -> Option<Vec<u8>> {
        timeout(PATIENCE, self.read_packet()).await.expect("no packet came")
    }

    async fn read_packet(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(frame) = frame(&self.buffer, 1 << 24).unwrap() {
                return Some(self.buffer.drain(..frame.total_len).collect());
            }
            let mut chunk = [0; 8192];
            match self.stream.read(&mut chunk).await {
                Ok(n) if n > 0 => self.buffer.extend_from_slice(&chunk[..n]),
                _ => return None,
            }
        }
    }

    /// The next packet must be this one.
    pub(super) async fn expect(&mut self, packet: &[u8]) {
        let got = self.packet().await;
        assert_eq!(got.as_deref(), Some(packet));
    }

    /// The connection must be closed without another packet.
    pub(super) async fn expect_closed(&mut self) {
        assert_eq!(self.packet().await, None);
    }

    /// No packet comes and the connection stays.
    pub(super) async fn expect_quiet(&mut self) {
        if let Ok(packet) = timeout(QUIET, self.read_packet()).await {
            panic!("expected silence, got {packet:02x?}");
        }
    }
}

/// A whole packet around `body`.
pub(super) fn packet(byte1: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![byte1];
    let mut len = body.len();
    while len >= 0x80 {
        out.push((len & 0x7F) as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(body);
    out
}

/// A length-prefixed text.
pub(super) fn text(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u16).to_be_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out
}

/// A PUBLISH; at QoS 0 `id` is left out. Level 5 gets empty properties.
pub(super) fn publish(level: u8, qos: u8, id: u16, topic: &str, payload: &str) -> Vec<u8> {
    let mut body = text(topic);
    if qos > 0 {
        body.extend_from_slice(&id.to_be_bytes());
    }
    if level == 5 {
        body.push(0);
    }
    body.extend_from_slice(payload.as_bytes());
    packet(0x30 | qos << 1, &body)
}
