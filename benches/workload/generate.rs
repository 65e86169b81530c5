//! The readings of the common workload: the same bytes for the same arguments, everywhere.
//!
//! Line `i` has the nominal time `BASE_MS + i * span / lines`. A fifth of the readings are up to
//! 5 s older than that, 0.1 % repeat the line before, 0.1 % are malformed, 2 % have a status other
//! than `ok`, 0.02 % are 10 degrees too warm. The order of the draws is part of the format.

use std::fmt::Write as _;
use std::io::{self, Write};

const BASE_MS: u64 = 1_760_000_000_000;

/// What to generate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    /// Lines, also those that are malformed or repeated.
    pub(crate) lines: u64,
    /// Devices that they are from.
    pub(crate) devices: u64,
    /// Event time that they cover, milliseconds.
    pub(crate) span_ms: u64,
}

impl Workload {
    /// The standard set: ten million lines of 10,000 devices over 1,000 s.
    pub(crate) const STANDARD: Self =
        Self { lines: 10_000_000, devices: 10_000, span_ms: 1_000_000 };

    /// Writes the first `count` lines.
    pub(crate) fn write(self, count: u64, out: &mut impl Write) -> io::Result<()> {
        let mut draws = Draws(42);
        let mut line = String::new();
        for i in 0..count.min(self.lines) {
            let fate = draws.next() % 1_000_000;
            if fate < 1_000 && !line.is_empty() {
                out.write_all(line.as_bytes())?;
                continue;
            }
            let device = self.reading(i, &mut draws, &mut line);
            if fate < 2_000 {
                spoil(device, &mut draws, &mut line);
                out.write_all(line.as_bytes())?;
                line.clear();
            } else {
                out.write_all(line.as_bytes())?;
            }
        }
        out.flush()
    }

    /// Puts reading `i` into `line`; its device.
    fn reading(self, i: u64, draws: &mut Draws, line: &mut String) -> u64 {
        let device = draws.next() % self.devices;
        let elapsed_ms = i * self.span_ms / self.lines;
        let old = draws.next().is_multiple_of(5);
        let age_ms = if old { draws.next() % 5_000 } else { 0 };
        let ts = BASE_MS + elapsed_ms - age_ms;
        let wave = (elapsed_ms as f64 / 400_000.0 + device as f64).sin();
        let mut temperature =
            18.0 + (device % 100) as f64 * 0.1 + 3.0 * wave + 0.5 * draws.normal();
        if draws.next().is_multiple_of(5_000) {
            temperature += 10.0;
        }
        let humidity = 40.0 + 20.0 * draws.unit();
        let vibration = 0.010 + 0.01 * draws.unit();
        let status = match draws.next() % 1_000 {
            0..980 => "ok",
            980..995 => "warn",
            _ => "fault",
        };
        line.clear();
        writeln!(
            line,
            "{{\"device\":\"d-{device:06}\",\"ts\":{ts},\"temperature\":{temperature:.2},\
             \"humidity\":{humidity:.1},\"vibration\":{vibration:.3},\"status\":\"{status}\"}}"
        )
        .expect("writing to a string does not fail");
        device
    }
}

/// Makes the line malformed in one of three ways.
fn spoil(device: u64, draws: &mut Draws, line: &mut String) {
    match draws.next() % 3 {
        0 => {
            let length = 1 + draws.next() as usize % (line.len() - 3);
            line.truncate(length);
            line.push('\n');
        }
        1 => *line = format!("ERR sensor {device} timeout\n"),
        _ => {
            const KEY: &str = "\"humidity\":";
            let start = line.find(KEY).expect("every reading has it") + KEY.len();
            let length = line[start..].find(',').expect("vibration follows");
            line.replace_range(start..start + length, "");
        }
    }
}

/// SplitMix64.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// About normal with variance 1: the sum of twelve uniform draws.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.unit()).sum::<f64>() - 6.0
    }
}
