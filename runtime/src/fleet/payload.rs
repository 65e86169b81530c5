//! The three payload shapes, whole and broken.

use std::fmt::Write;

use super::random::Random;
use super::signal::Values;

/// Time and values of one sample.
pub type Sample = (i64, Values);

/// How a payload is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// JSON cut in the middle, as by a full buffer.
    Cut,
    /// An error text instead of JSON.
    Text,
    /// Text where a number belongs, in one sample.
    WrongType,
    /// No bytes at all.
    Empty,
    /// A required value is missing, in one sample.
    Missing,
}

impl Damage {
    /// All ways.
    pub const ALL: [Self; 5] = [Self::Cut, Self::Text, Self::WrongType, Self::Empty, Self::Missing];

    /// Picks one.
    pub fn pick(random: &mut Random) -> Self {
        Self::ALL[random.below(Self::ALL.len() as u64) as usize]
    }
}

/// A payload and what a correct decoder makes of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Payload {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Valid readings in it.
    pub readings: u32,
    /// Reject rows that it makes.
    pub rejects: u32,
}

/// Writes the payload of `device`; all samples are of one kind.
pub fn write(device: &str, seq: u64, samples: &[Sample], damage: Option<Damage>) -> Payload {
    let count = samples.len() as u32;
    // Only the last sample is spoiled: the others of an exploded payload must come through.
    let value_damage = damage.filter(|d| matches!(d, Damage::WrongType | Damage::Missing));
    let mut text = render(device, seq, samples, value_damage);
    let (readings, rejects) = match damage {
        None => (count, 0),
        Some(Damage::WrongType | Damage::Missing) => (count - 1, 1),
        Some(Damage::Cut) => {
            text.truncate(text.len() * 2 / 3);
            (0, 1)
        }
        Some(Damage::Text) => {
            text = "ERR 17: sensor bus timeout".to_owned();
            (0, 1)
        }
        Some(Damage::Empty) => {
            text.clear();
            (0, 1)
        }
    };
    Payload { bytes: text.into_bytes(), readings, rejects }
}

fn render(device: &str, seq: u64, samples: &[Sample], damage: Option<Damage>) -> String {
    let Some((last_us, last)) = samples.last().copied() else { return String::new() };
    let mut text = String::with_capacity(64 + samples.len() * 96);
    let ms = last_us / 1_000;
    match last {
        Values::ColdRoom { temperature, humidity, door, battery } => {
            let t = number("temperature", &format!("{temperature:.2}"), damage);
            let _ = write!(
                text,
                "{{\"device\":\"{device}\",\"seq\":{seq},\"ts\":{ms}{t},\
                 \"humidity\":{humidity:.1},\"door\":{door},\"battery\":{battery:.2}}}"
            );
        }
        Values::Pump { flow, inlet, outlet, rpm, motor, vibration } => {
            let v = number("vibration", &format!("{vibration:.2}"), damage);
            let time = rfc3339(last_us);
            let _ = write!(
                text,
                "{{\"meta\":{{\"device\":\"{device}\",\"seq\":{seq},\"time\":\"{time}\"}},\
                 \"hydraulics\":{{\"flow\":{flow:.2},\"pressure\":{{\"inlet\":{inlet:.2},\
                 \"outlet\":{outlet:.2}}}}},\"motor\":{{\"rpm\":{rpm},\
                 \"temperature\":{motor:.1}{v}}}}}"
            );
        }
        Values::Meter { .. } => {
            let _ = write!(text, "{{\"seq\":{seq},\"samples\":[");
            for (i, (time_us, values)) in samples.iter().enumerate() {
                let Values::Meter { power, voltage, current, energy } = *values else { continue };
                let damage = damage.filter(|_| i + 1 == samples.len());
                let p = number("power", &format!("{power:.1}"), damage);
                let comma = if i == 0 { "" } else { "," };
                let seconds = *time_us as f64 / 1e6;
                let _ = write!(
                    text,
                    "{comma}{{\"t\":{seconds:.3}{p},\"voltage\":{voltage:.1},\
                     \"current\":{current:.2},\"energy\":{energy:.3}}}"
                );
            }
            text.push_str("]}");
        }
    }
    text
}

/// `,"name":value`, spoiled as asked.
fn number(name: &str, value: &str, damage: Option<Damage>) -> String {
    match damage {
        Some(Damage::Missing) => String::new(),
        Some(Damage::WrongType) => format!(",\"{name}\":\"n/a\""),
        _ => format!(",\"{name}\":{value}"),
    }
}

fn rfc3339(time_us: i64) -> String {
    chrono::DateTime::from_timestamp_micros(time_us)
        .map(|t| t.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
        .unwrap_or_default()
}
