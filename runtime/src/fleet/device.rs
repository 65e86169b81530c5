//! One simulated device: a schedule of what it sends and when, without any clock or socket.
//!
//! Invariant: the steps are a pure function of (seed, index, start, interval). Times only go
//! forward. The connection task carries the steps out; it must not change them.

use std::collections::VecDeque;

use bytes::Bytes;

use super::fault::{Fault, Kind, fault_of};
use super::payload::{self, Damage, Sample};
use super::random::Random;
use super::signal::{Bend, Signal, Values};

/// Samples that an energy meter buffers per message.
pub const METER_SAMPLES: i64 = 5;

const SECOND_US: i64 = 1_000_000;
const MINUTE_US: i64 = 60 * SECOND_US;
/// An episode (silence, stuck values, trouble, lost connection) comes once in this time ...
const EPISODE_PERIOD_US: i64 = 60 * SECOND_US;
/// ... and at the latest this long after the start for the first time, so that a short demo sees
/// all of them.
const EPISODE_START_MAX_US: f64 = 6e6;

/// One message to send.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The payload.
    pub payload: Bytes,
    /// What is wrong with this very message.
    pub fault: Fault,
    /// Valid readings that a correct decoder finds in it.
    pub readings: u32,
    /// Reject rows that it makes.
    pub rejects: u32,
}

/// What a device does next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Sends a message, this long after the start (microseconds).
    Publish {
        /// When, microseconds after the start.
        at_us: i64,
        /// What.
        message: Message,
    },
    /// Disconnects; it connects again for the next message.
    Offline {
        /// When, microseconds after the start.
        at_us: i64,
    },
}

impl Step {
    /// When it is due, microseconds after the start.
    pub fn at_us(&self) -> i64 {
        match self {
            Self::Publish { at_us, .. } | Self::Offline { at_us } => *at_us,
        }
    }
}

/// A device.
#[derive(Clone, Debug)]
pub struct Device {
    name: String,
    topic: String,
    kind: Kind,
    fault: Fault,
    signal: Signal,
    random: Random,
    start_us: i64,
    interval_us: i64,
    /// When the next measurement is due, microseconds after the start.
    next_us: i64,
    seq: u64,
    clock_error_us: i64,
    episode_start_us: i64,
    episode_length_us: i64,
    stuck: Option<Values>,
    was_silent: bool,
    /// Messages kept while offline.
    buffer: Vec<Message>,
    offline: bool,
    /// Steps that are decided already.
    ready: VecDeque<Step>,
}

impl Device {
    /// Device `index` of the fleet of `seed`. `start_us` is the time of the start since the Unix
    /// epoch; `interval_us` the time between two messages.
    pub fn new(seed: u64, index: usize, start_us: i64, interval_us: i64) -> Self {
        let kind = Kind::ALL[index % Kind::ALL.len()];
        let number = index / Kind::ALL.len();
        let fault = fault_of(seed, kind, number);
        let mut random = Random::new(seed, index as u64);
        let name = format!("{}-{number:03}", kind.name());
        let site = ["north", "south", "harbour", "mill"][random.below(4) as usize];
        let topic = match kind {
            Kind::ColdRoom => format!("cold/{site}/{name}/telemetry"),
            Kind::Pump => format!("pumps/{site}/{name}/state"),
            Kind::Meter => format!("energy/{site}/{name}/samples"),
        };
        let clock_error_us = match fault {
            Fault::FastClock => random.between(2.0, 20.0) as i64 * MINUTE_US,
            Fault::SlowClock => random.between(3.0, 30.0) as i64 * -MINUTE_US,
            Fault::FarClock => random.between(1.0, 6.0) as i64 * 24 * 60 * MINUTE_US,
            _ => random.between(-3e5, 3e5) as i64,
        };
        let episode_length_us = match fault {
            Fault::Burst => random.between(6e6, 14e6),
            Fault::Silence => random.between(8e6, 30e6),
            _ => random.between(20e6, 30e6),
        } as i64;
        let signal_random = Random::new(random.next_u64(), index as u64);
        Self {
            topic,
            kind,
            fault,
            signal: Signal::new(kind, signal_random),
            next_us: random.below(interval_us.max(1) as u64) as i64,
            episode_start_us: random.between(1e6, EPISODE_START_MAX_US) as i64,
            episode_length_us,
            random,
            name,
            start_us,
            interval_us: interval_us.max(1),
            seq: 0,
            clock_error_us,
            stuck: None,
            was_silent: false,
            buffer: Vec::new(),
            offline: false,
            ready: VecDeque::new(),
        }
    }

    /// Its name, also its MQTT client id.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The topic that it publishes to.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What is wrong with it.
    pub fn fault(&self) -> Fault {
        self.fault
    }

    /// The next step. Never ends.
    pub fn next_step(&mut self) -> Step {
        loop {
            if let Some(step) = self.ready.pop_front() {
                return step;
            }
            self.advance();
        }
    }

    /// Lets one interval pass.
    fn advance(&mut self) {
        let at_us = self.next_us;
        self.next_us += self.interval_us;
        let episode = self.in_episode(at_us);
        match self.fault {
            Fault::Silence if episode => self.was_silent = true,
            Fault::Burst => self.advance_burst(at_us, episode),
            _ => {
                let message = self.measure(at_us, episode);
                let again = (self.fault == Fault::Duplicate && self.random.one_in(4))
                    .then(|| Message { fault: Fault::Duplicate, ..message.clone() });
                self.ready.push_back(Step::Publish { at_us, message });
                if let Some(message) = again {
                    self.ready.push_back(Step::Publish { at_us: at_us + 30_000, message });
                }
            }
        }
    }

    fn advance_burst(&mut self, at_us: i64, episode: bool) {
        let message = self.measure(at_us, false);
        if episode {
            if !self.offline {
                self.offline = true;
                self.ready.push_back(Step::Offline { at_us });
            }
            self.buffer.push(Message { fault: Fault::Burst, ..message });
            return;
        }
        self.offline = false;
        // The newest first, then the past in order: what many gateways do, and what makes the
        // buffered readings late.
        self.ready.push_back(Step::Publish { at_us, message });
        self.ready.extend(self.buffer.drain(..).map(|message| Step::Publish { at_us, message }));
    }

    fn in_episode(&self, at_us: i64) -> bool {
        let since_us = at_us - self.episode_start_us;
        since_us >= 0 && since_us % EPISODE_PERIOD_US < self.episode_length_us
    }

    fn measure(&mut self, at_us: i64, episode: bool) -> Message {
        let mut shown = match self.fault {
            Fault::FastClock | Fault::FarClock | Fault::SlowClock | Fault::Drift => self.fault,
            Fault::Stuck | Fault::Trouble if episode => self.fault,
            Fault::Silence if std::mem::take(&mut self.was_silent) => Fault::Silence,
            _ => Fault::None,
        };
        let spike_at = (self.fault == Fault::Spike && self.random.one_in(8)).then(|| {
            shown = Fault::Spike;
            self.random.below(METER_SAMPLES as u64) as i64
        });
        let damage = (self.fault == Fault::Broken && self.random.one_in(3)).then(|| {
            shown = Fault::Broken;
            Damage::pick(&mut self.random)
        });
        let samples = self.samples(at_us, episode, spike_at);
        self.seq += 1;
        let mut payload = payload::write(&self.name, self.seq, &samples, damage);
        if self.fault == Fault::FarClock {
            payload.rejects += std::mem::take(&mut payload.readings);
        }
        Message {
            payload: payload.bytes.into(),
            fault: shown,
            readings: payload.readings,
            rejects: payload.rejects,
        }
    }

    fn samples(&mut self, at_us: i64, episode: bool, spike_at: Option<i64>) -> Vec<Sample> {
        let count = if self.kind == Kind::Meter { METER_SAMPLES } else { 1 };
        let step_us = self.interval_us / count;
        let mut samples = Vec::with_capacity(count as usize);
        for i in 0..count {
            let measured_us = at_us - (count - 1 - i) * step_us;
            let time_us = self.start_us + measured_us;
            let spiked = spike_at.is_some_and(|at| count == 1 || at == i);
            let bend = Bend {
                spike: if spiked { 1.0 } else { 0.0 },
                drift: match self.fault {
                    Fault::Drift => (measured_us as f64 / 90e6).clamp(0.0, 1.0),
                    _ => 0.0,
                },
                trouble: if self.fault == Fault::Trouble && episode { 1.0 } else { 0.0 },
            };
            let fresh = self.signal.measure(time_us, step_us, bend);
            let values = match (self.fault == Fault::Stuck && episode, self.stuck) {
                (true, Some(values)) => values,
                (stuck, _) => {
                    self.stuck = stuck.then_some(fresh);
                    fresh
                }
            };
            samples.push((time_us + self.clock_error_us, values));
        }
        samples
    }
}
