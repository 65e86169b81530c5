//! Devices that publish to the endpoint, keep what is not acknowledged and send it again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, DuplexStream, split};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::marks::{Marks, Reading};
use super::wire;
use crate::fuzz::Rng;
use crate::time::{self, sleep, timeout, timeout_at};

/// Packet identifiers of a small device are used again soon.
const IDS: u16 = 24;

/// Publications under way at a time.
const IN_FLIGHT_MAX: usize = 8;

/// Without an answer for so long, a device takes its connection for dead.
const PATIENCE: Duration = Duration::from_secs(2);

struct Open {
    id: u16,
    mark: String,
    qos: u8,
    payload: Vec<u8>,
    sent: bool,
    /// PUBREC came: only the release is still to be done.
    released: bool,
}

/// What a device keeps whatever happens to its connections.
pub(crate) struct Device {
    pub(crate) name: String,
    v5: bool,
    left: u32,
    made: u32,
    next_id: u16,
    open: VecDeque<Open>,
    /// Its own clock: begins here, and runs as the simulated time does.
    began: Instant,
    base_ms: i64,
    /// Longest pause, milliseconds.
    pause_ms: usize,
    rng: Rng,
    marks: Marks,
}

/// How a device gets a connection; `None` while nobody listens.
pub(crate) type Dial = Arc<dyn Fn(&str) -> Option<DuplexStream> + Send + Sync>;

impl Device {
    pub(crate) fn new(
        number: usize,
        readings: u32,
        base_ms: i64,
        mut rng: Rng,
        marks: Marks,
    ) -> Self {
        Self {
            name: format!("d{number}"),
            v5: rng.one_in(2),
            left: readings,
            made: 0,
            next_id: 1,
            open: VecDeque::new(),
            began: time::now(),
            base_ms,
            pause_ms: 100 + rng.below(500),
            rng,
            marks,
        }
    }

    /// Until the next reading: they come in bursts, for about as long as things break.
    fn pause(&mut self) -> Duration {
        let longest_ms = if self.rng.one_in(2) { self.pause_ms } else { 20 };
        Duration::from_millis(1 + self.rng.below(longest_ms) as u64)
    }

    fn make(&mut self) {
        let id = self.next_id;
        self.next_id = id % IDS + 1;
        if self.open.iter().any(|open| open.id == id) {
            return;
        }
        self.left -= 1;
        self.made += 1;
        let mark = format!("{}-{:05}", self.name, self.made);
        let now_ms = self.base_ms + (time::now() - self.began).as_millis() as i64;
        // Some were kept for a while.
        let late_ms = if self.rng.one_in(12) { self.rng.below(40_000) as i64 } else { 0 };
        let device = self.name.clone();
        let value = self.rng.below(100) as i64;
        let reading = Reading { device, time_ms: now_ms - late_ms, value };
        let payload = self.marks.make(&mark, reading);
        let qos = if self.rng.one_in(4) { 2 } else { 1 };
        self.open.push_back(Open { id, mark, qos, payload, sent: false, released: false });
    }

    /// What is to be sent on a new connection, in order: all that is open, again.
    fn resend(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        for at in 0..self.open.len() {
            out.extend(self.packet(at));
        }
        out
    }

    fn packet(&mut self, at: usize) -> Vec<u8> {
        let open = &mut self.open[at];
        if open.released {
            return wire::ack(wire::PUBREL, open.id);
        }
        if open.sent {
            self.marks.sent_again();
        }
        let topic = format!("t/{}", self.name);
        let how = (open.sent, open.qos, open.id);
        open.sent = true;
        wire::publish(self.v5, how, &topic, &open.payload)
    }

    /// Takes an answer; what to say to it.
    fn answer(&mut self, packet: &wire::Packet) -> Option<Vec<u8>> {
        let at = match packet.kind() {
            wire::PUBACK | wire::PUBREC | wire::PUBCOMP => {
                self.open.iter().position(|open| open.id == packet.id())?
            }
            _ => return None,
        };
        let known = packet.kind() != wire::PUBCOMP;
        let refused = known && packet.body.get(2).is_some_and(|code| *code >= 0x80);
        assert!(!refused, "{} was refused: {:?}", self.name, packet.body);
        match packet.kind() {
            wire::PUBREC => {
                self.open[at].released = true;
                self.marks.acked(&self.open[at].mark);
                Some(wire::ack(wire::PUBREL, self.open[at].id))
            }
            kind => {
                let open = self.open.remove(at)?;
                if kind == wire::PUBACK {
                    self.marks.acked(&open.mark);
                }
                None
            }
        }
    }
}

/// A device for as long as the simulation runs.
pub(crate) async fn run(device: Arc<Mutex<Device>>, dial: Dial) {
    loop {
        let (name, pause_ms) = {
            let mut device = device.lock().unwrap();
            (device.name.clone(), 20 + device.rng.below(300) as u64)
        };
        sleep(Duration::from_millis(pause_ms)).await;
        if let Some(stream) = dial(&name) {
            serve(&device, stream).await;
        }
    }
}

/// Whether a device has sent everything and was told that it is safe.
pub(crate) fn is_done(device: &Arc<Mutex<Device>>) -> bool {
    let device = device.lock().unwrap();
    device.left == 0 && device.open.is_empty()
}

async fn serve(device: &Arc<Mutex<Device>>, stream: DuplexStream) {
    let (mut from, mut to) = split(stream);
    let hello = {
        let device = device.lock().unwrap();
        wire::connect(device.v5, &device.name)
    };
    if to.write_all(&hello).await.is_err() {
        return;
    }
    match timeout(PATIENCE, wire::read(&mut from)).await {
        Ok(Some(packet)) if packet.kind() == wire::CONNACK && packet.body[1] == 0 => {}
        _ => return,
    }
    let out = device.lock().unwrap().resend();
    if to.write_all(&out).await.is_err() {
        return;
    }
    let (heard, mut hear) = mpsc::unbounded_channel();
    let reader = tokio::spawn(async move {
        while let Some(packet) = wire::read(&mut from).await {
            if heard.send(packet).is_err() {
                return;
            }
        }
    });
    let _reader = AbortOnDrop(reader);
    let mut last = time::now();
    let mut next = time::now();
    loop {
        match timeout_at(next.min(last + PATIENCE), hear.recv()).await {
            Ok(None) => return,
            Ok(Some(packet)) => {
                last = time::now();
                let answer = device.lock().unwrap().answer(&packet);
                if let Some(answer) = answer
                    && to.write_all(&answer).await.is_err()
                {
                    return;
                }
            }
            Err(_) => {
                let out = {
                    let mut device = device.lock().unwrap();
                    if device.open.is_empty() {
                        last = time::now();
                    }
                    if time::now() - last >= PATIENCE {
                        return;
                    }
                    next = time::now() + device.pause();
                    let before = device.open.len();
                    if device.left > 0 && before < IN_FLIGHT_MAX {
                        device.make();
                    }
                    match device.open.len() > before {
                        true => device.packet(before),
                        false => Vec::new(),
                    }
                };
                if to.write_all(&out).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Ends a task with its owner.
pub(crate) struct AbortOnDrop<T>(pub(crate) tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
