//! Which devices there are and what is wrong with them. This table is the one place that decides
//! how often a fault occurs in the fleet.

use super::random::Random;

/// A kind of device, each with its own payload shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A temperature sensor in a cold room: one flat JSON object per message.
    ColdRoom,
    /// A pump controller: nested JSON.
    Pump,
    /// An energy meter: five buffered samples per message.
    Meter,
}

impl Kind {
    /// All kinds, in the order in which devices are dealt out.
    pub const ALL: [Self; 3] = [Self::ColdRoom, Self::Pump, Self::Meter];

    /// The name in device ids and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::ColdRoom => "cold",
            Self::Pump => "pump",
            Self::Meter => "meter",
        }
    }

    /// Position in [`Kind::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

/// What is wrong with a device, or with one of its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Its clock is some minutes ahead.
    FastClock,
    /// Its clock is days ahead: the readings must be quarantined.
    FarClock,
    /// Its clock is some minutes behind.
    SlowClock,
    /// It says nothing for a while; of messages: the first one after a silence.
    Silence,
    /// It repeats the same values for a while.
    Stuck,
    /// Single values are far off.
    Spike,
    /// Its values wander away slowly.
    Drift,
    /// It loses its connection, then sends the newest reading and after it the buffer.
    Burst,
    /// It sends messages twice; of messages: the second one.
    Duplicate,
    /// Its payloads are cut, text, empty, of wrong types or incomplete.
    Broken,
    /// The sensor is fine, what it measures is not: a door left open, a worn bearing, an overload.
    Trouble,
}

impl Fault {
    /// All faults, [`Fault::None`] first.
    pub const ALL: [Self; 12] = [
        Self::None,
        Self::FastClock,
        Self::FarClock,
        Self::SlowClock,
        Self::Silence,
        Self::Stuck,
        Self::Spike,
        Self::Drift,
        Self::Burst,
        Self::Duplicate,
        Self::Broken,
        Self::Trouble,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::FastClock => "fast_clock",
            Self::FarClock => "far_clock",
            Self::SlowClock => "slow_clock",
            Self::Silence => "silence",
            Self::Stuck => "stuck",
            Self::Spike => "spike",
            Self::Drift => "drift",
            Self::Burst => "burst",
            Self::Duplicate => "duplicate",
            Self::Broken => "broken",
            Self::Trouble => "trouble",
        }
    }

    /// Position in [`Fault::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

/// Faults are dealt out in rounds of this many devices of a kind; each fault has one of them, the
/// others are healthy. In a fleet of 500 a fault then has four or five devices of each kind.
const ROUND: usize = 36;

/// The fault of device `number` (from 0) of `kind` in the fleet of `seed`.
pub fn fault_of(seed: u64, kind: Kind, number: usize) -> Fault {
    // A shuffled round per seed and kind: who is affected is random, how many are not.
    let mut round = [Fault::None; ROUND];
    round[..Fault::ALL.len()].copy_from_slice(&Fault::ALL);
    let mut random = Random::new(seed, 0xFA_0000 + kind.index() as u64);
    for i in (1..ROUND).rev() {
        round.swap(i, random.below(i as u64 + 1) as usize);
    }
    round[number % ROUND]
}
