//! What the sensors measure: daily curves, machine cycles and noise, bent by the device's fault.

use super::fault::Kind;
use super::random::Random;

const DAY_US: i64 = 86_400_000_000;

/// How the fault of the device bends one measurement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bend {
    /// The value is far off, in this direction; 0 for none.
    pub spike: f64,
    /// How far the sensor has wandered off, 0 to 1.
    pub drift: f64,
    /// How bad the trouble of the plant is, 0 to 1.
    pub trouble: f64,
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Values {
    /// Of a cold room.
    ColdRoom {
        /// Air temperature, °C.
        temperature: f64,
        /// Relative humidity, %.
        humidity: f64,
        /// Whether the door is open.
        door: bool,
        /// Battery, V.
        battery: f64,
    },
    /// Of a pump.
    Pump {
        /// Flow, m³/h.
        flow: f64,
        /// Pressure before the pump, bar.
        inlet: f64,
        /// Pressure behind the pump, bar.
        outlet: f64,
        /// Turns per minute.
        rpm: i64,
        /// Motor temperature, °C.
        motor: f64,
        /// Vibration velocity, mm/s.
        vibration: f64,
    },
    /// Of an energy meter.
    Meter {
        /// Active power, W.
        power: f64,
        /// Voltage, V.
        voltage: f64,
        /// Current, A.
        current: f64,
        /// Counter, Wh.
        energy: f64,
    },
}

/// The plant behind one sensor.
#[derive(Clone, Debug)]
pub struct Signal {
    kind: Kind,
    /// The usual level of this device: °C, m³/h or W.
    level: f64,
    /// Length and shift of its machine cycle (compressor, tank, heater), microseconds.
    cycle_us: i64,
    shift_us: i64,
    energy_wh: f64,
    random: Random,
}

impl Signal {
    /// A plant of `kind`.
    pub fn new(kind: Kind, mut random: Random) -> Self {
        let level = match kind {
            Kind::ColdRoom => random.between(2.5, 4.5),
            Kind::Pump => random.between(18.0, 42.0),
            Kind::Meter => random.between(1_200.0, 3_800.0),
        };
        let cycle_us = random.between(60e6, 150e6) as i64;
        let shift_us = random.between(0.0, 150e6) as i64;
        let energy_wh = random.between(1e5, 9e6).round();
        Self { kind, level, cycle_us, shift_us, energy_wh, random }
    }

    /// Measures at `time_us` (since the Unix epoch); the last measurement of this device was
    /// `step_us` before.
    pub fn measure(&mut self, time_us: i64, step_us: i64, bend: Bend) -> Values {
        let daily = daily_curve(time_us);
        let cycle =
            ((time_us + self.shift_us).rem_euclid(self.cycle_us)) as f64 / self.cycle_us as f64;
        match self.kind {
            Kind::ColdRoom => self.cold_room(daily, cycle, bend),
            Kind::Pump => self.pump(daily, cycle, bend),
            Kind::Meter => self.meter(daily, cycle, step_us, bend),
        }
    }

    fn cold_room(&mut self, daily: f64, cycle: f64, bend: Bend) -> Values {
        // The compressor cools for the first third of its cycle, then the room warms slowly.
        let saw = if cycle < 0.3 { 1.0 - cycle / 0.3 } else { (cycle - 0.3) / 0.7 };
        let temperature = self.level
            + 0.5 * daily
            + 0.9 * (saw - 0.5)
            + 2.0 * bend.drift
            + 9.0 * bend.trouble
            + 25.0 * bend.spike
            + 0.08 * self.random.noise();
        Values::ColdRoom {
            temperature,
            humidity: 68.0 - 6.0 * saw + 14.0 * bend.trouble + 0.4 * self.random.noise(),
            door: bend.trouble > 0.0 || self.random.one_in(40),
            battery: 3.58 + 0.01 * self.random.noise(),
        }
    }

    fn pump(&mut self, daily: f64, cycle: f64, bend: Bend) -> Values {
        let demand = 0.75 + 0.2 * daily + 0.05 * (cycle * std::f64::consts::TAU).sin();
        let rpm = 1_450.0 * (0.9 + 0.1 * demand);
        Values::Pump {
            flow: (self.level * demand * (1.0 - 0.4 * bend.trouble - 0.3 * bend.drift)
                + 60.0 * bend.spike
                + 0.15 * self.random.noise())
            .max(0.0),
            inlet: 1.2 + 0.02 * self.random.noise(),
            outlet: 4.6 - 0.8 * demand - 0.9 * bend.trouble + 0.03 * self.random.noise(),
            rpm: (rpm + 2.0 * self.random.noise()).round() as i64,
            motor: 58.0 + 6.0 * demand + 24.0 * bend.trouble + 0.3 * self.random.noise(),
            vibration: (2.1 + 0.6 * bend.drift + 7.5 * bend.trouble + 0.1 * self.random.noise())
                .max(0.1),
        }
    }

    fn meter(&mut self, daily: f64, cycle: f64, step_us: i64, bend: Bend) -> Values {
        let heater = if cycle < 0.25 { 150.0 * (cycle / 0.25) } else { 50.0 * (1.0 - cycle) };
        let power = self.level * (1.0 + 0.35 * daily)
            + heater
            + 400.0 * bend.drift
            + 6_500.0 * bend.trouble
            + 9_000.0 * bend.spike
            + 12.0 * self.random.noise();
        let power = power.max(20.0);
        let voltage = 231.0 - 22.0 * bend.trouble + 0.5 * self.random.noise();
        self.energy_wh += power * step_us as f64 / 3.6e9;
        Values::Meter { power, voltage, current: power / voltage, energy: self.energy_wh }
    }
}

/// -1 (about four in the morning) to 1 (about four in the afternoon), UTC.
fn daily_curve(time_us: i64) -> f64 {
    let of_day = time_us.rem_euclid(DAY_US) as f64 / DAY_US as f64;
    ((of_day - 10.0 / 24.0) * std::f64::consts::TAU).sin()
}
