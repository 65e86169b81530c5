//! Somebody else's broker, from which the product subscribes: one session with packet identifiers,
//! a window of messages in flight, and redelivery with DUP in order.
//!
//! What it counts as safe is what the product has acknowledged: those readings it has forgotten, so
//! they must be in the journal. What it loses with a session was promised to nobody here.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, DuplexStream, split};
use tokio::sync::{Notify, mpsc};

use tokio::time::Instant;

use super::device::AbortOnDrop;
use super::marks::{Marks, Reading};
use super::wire;
use crate::fuzz::Rng;
use crate::time::{self, sleep, timeout};

/// Most messages in flight.
const IN_FLIGHT_MAX: usize = 10;

/// Longest pause between what is published, milliseconds: so long that readings still come when
/// the last things break.
const PAUSE_MS_MAX: usize = 120;

/// A message that was sent so long ago has arrived, unless something broke.
const ARRIVED: Duration = Duration::from_millis(25);

/// Messages that come at once on a new session.
const BACKLOG: u32 = 6;

struct Message {
    mark: String,
    payload: Vec<u8>,
    id: u16,
    /// When it was sent for the first time.
    sent: Option<Instant>,
}

struct State {
    left: u32,
    made: u32,
    queue: VecDeque<Message>,
    in_flight: VecDeque<Message>,
    session: bool,
    base_ms: i64,
    began: Instant,
    rng: Rng,
    lost: u64,
    /// Number of the connection that has the session; those before it are closed.
    connection: u64,
}

/// The broker.
#[derive(Clone)]
pub(crate) struct Broker {
    state: Arc<Mutex<State>>,
    news: Arc<Notify>,
    marks: Marks,
}

impl Broker {
    pub(crate) fn new(readings: u32, base_ms: i64, rng: Rng, marks: Marks) -> Self {
        let state = State {
            left: readings,
            made: 0,
            queue: VecDeque::new(),
            in_flight: VecDeque::new(),
            session: false,
            base_ms,
            began: time::now(),
            rng,
            lost: 0,
            connection: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), news: Arc::default(), marks }
    }

    /// Somebody publishes now and then, for as long as the simulation runs.
    pub(crate) async fn publishers(self) {
        loop {
            let pause_ms = {
                let mut state = self.state.lock().unwrap();
                if state.left > 0 && state.session {
                    // Often several at once, so that the window of messages in flight is used.
                    let burst = if state.rng.one_in(3) { 1 + state.rng.below(6) } else { 1 };
                    for _ in 0..burst.min(state.left as usize) {
                        state.make(&self.marks);
                    }
                    self.news.notify_one();
                }
                2 + state.rng.below(PAUSE_MS_MAX) as u64
            };
            sleep(Duration::from_millis(pause_ms)).await;
        }
    }

    /// The broker restarts: without its session, all that waits for us is gone and identifiers
    /// begin anew.
    pub(crate) fn restart(&self, lose_session: bool) {
        let mut state = self.state.lock().unwrap();
        state.connection += 1;
        if lose_session {
            state.lost += (state.queue.len() + state.in_flight.len()) as u64;
            state.queue.clear();
            state.in_flight.clear();
            state.session = false;
        }
    }

    /// Whether a restart now would meet messages that have arrived and are not durable there: those
    /// whose acknowledgements wait.
    pub(crate) fn is_awaited(&self) -> bool {
        let state = self.state.lock().unwrap();
        let arrived = |m: &&Message| m.sent.is_some_and(|at| time::now() >= at + ARRIVED);
        let awaited = state.in_flight.iter().filter(arrived);
        awaited.filter(|m| !self.marks.is_durable(&m.mark)).count() > 1 || state.left == 0
    }

    pub(crate) fn lost(&self) -> u64 {
        self.state.lock().unwrap().lost
    }

    pub(crate) fn is_done(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.left == 0 && state.queue.is_empty() && state.in_flight.is_empty()
    }

    /// Serves one connection to its end.
    pub(crate) async fn serve(self, stream: DuplexStream) {
        let (mut from, mut to) = split(stream);
        match timeout(Duration::from_secs(5), wire::read(&mut from)).await {
            Ok(Some(packet)) if packet.kind() == wire::CONNECT => {}
            _ => return,
        }
        let (out, connection) = {
            let mut state = self.state.lock().unwrap();
            state.connection += 1;
            (state.welcome(&self.marks), state.connection)
        };
        if to.write_all(&out).await.is_err() {
            return;
        }
        let (heard, mut hear) = mpsc::unbounded_channel();
        let _reader = AbortOnDrop(tokio::spawn(async move {
            while let Some(packet) = wire::read(&mut from).await {
                if heard.send(packet).is_err() {
                    return;
                }
            }
        }));
        loop {
            let packet = tokio::select! {
                biased;
                packet = hear.recv() => match packet {
                    Some(packet) => Some(packet),
                    None => return,
                },
                () = self.news.notified() => None,
            };
            if self.state.lock().unwrap().connection != connection {
                self.news.notify_one();
                return;
            }
            let out = packet.map_or_else(Vec::new, |packet| self.answer(&packet));
            let more = self.state.lock().unwrap().send();
            if to.write_all(&[out, more].concat()).await.is_err() {
                return;
            }
        }
    }

    fn answer(&self, packet: &wire::Packet) -> Vec<u8> {
        match packet.kind() {
            wire::SUBSCRIBE => {
                let mut state = self.state.lock().unwrap();
                if !std::mem::replace(&mut state.session, true) {
                    // Others have waited for us to come back.
                    let waiting = state.left.min(BACKLOG);
                    (0..waiting).for_each(|_| state.make(&self.marks));
                }
                let [high, low] = packet.id().to_be_bytes();
                wire::packet(0x90, &[high, low, 0, 1])
            }
            wire::PINGREQ => vec![0xD0, 0],
            wire::PUBACK => {
                let mut state = self.state.lock().unwrap();
                let at = state.in_flight.iter().position(|m| m.id == packet.id());
                if let Some(message) = at.and_then(|at| state.in_flight.remove(at)) {
                    drop(state);
                    self.marks.acked(&message.mark);
                }
                Vec::new()
            }
            _ => Vec::new(),
        }
    }
}

impl State {
    fn make(&mut self, marks: &Marks) {
        let now_ms = self.base_ms + (time::now() - self.began).as_millis() as i64;
        self.left -= 1;
        self.made += 1;
        let mark = format!("b-{:05}", self.made);
        let device = format!("b{}", self.rng.below(3));
        let value = self.rng.below(100) as i64;
        let payload = marks.make(&mark, Reading { device, time_ms: now_ms, value });
        self.queue.push_back(Message { mark, payload, id: 0, sent: None });
    }

    /// CONNACK, and all that is in flight once more.
    fn welcome(&mut self, marks: &Marks) -> Vec<u8> {
        let present = u8::from(self.session);
        let mut out = wire::packet(0x20, &[present, 0, 0]);
        for message in &mut self.in_flight {
            marks.sent_again();
            out.extend(message.packet(true));
        }
        out.extend(self.send());
        out
    }

    /// The lowest identifier that is free, as many brokers do it.
    fn free_id(&self) -> u16 {
        let is_free = |id: &u16| self.in_flight.iter().all(|message| message.id != *id);
        (1..=u16::MAX).find(is_free).expect("the window is small")
    }

    /// What fits into the window.
    fn send(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while self.session && self.in_flight.len() < IN_FLIGHT_MAX {
            let Some(mut message) = self.queue.pop_front() else { break };
            message.id = self.free_id();
            out.extend(message.packet(false));
            message.sent = Some(time::now());
            self.in_flight.push_back(message);
        }
        out
    }
}

impl Message {
    fn packet(&self, dup: bool) -> Vec<u8> {
        wire::publish(true, (dup, 1, self.id), "b/x", &self.payload)
    }
}
