//! Windows that follow the calendar and the clocks of a place.

use crate::zone::Zone;

/// What follows each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Period {
    /// Days.
    Day,
    /// Weeks.
    Week {
        /// The first day of a week, in days after Monday.
        start: u8,
    },
    /// Months.
    Month,
    /// Quarters of a year.
    Quarter,
    /// Years.
    Year,
    /// Shifts: each lasts until the next begins. In the order of their times, at least one.
    Shifts(Vec<Shift>),
}

/// A shift of every day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shift {
    /// Its name.
    pub name: String,
    /// When it begins, on the clocks of the place; microseconds since midnight.
    pub from_us: i64,
}

/// Whose clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneOf {
    /// The same for all keys.
    All(Zone),
    /// Each key's own: the name of the zone is this column of the key (the first is 0).
    Key(usize),
}

impl Period {
    /// About how long the longest of its windows is, microseconds.
    pub fn longest_us(&self) -> i64 {
        const HOUR_US: i64 = 3_600_000_000;
        let days = match self {
            Self::Day | Self::Shifts(_) => 1,
            Self::Week { .. } => 7,
            Self::Month => 31,
            Self::Quarter => 92,
            Self::Year => 366,
        };
        // And the hour that clocks are set back.
        (days * 24 + 1) * HOUR_US
    }

    /// About how long the shortest of its windows is, microseconds.
    pub fn shortest_us(&self) -> i64 {
        const DAY_US: i64 = 86_400_000_000;
        match self {
            Self::Day => DAY_US,
            Self::Week { .. } => 7 * DAY_US,
            Self::Month => 28 * DAY_US,
            Self::Quarter => 90 * DAY_US,
            Self::Year => 365 * DAY_US,
            Self::Shifts(shifts) => {
                let next = shifts.iter().cycle().skip(1);
                let lengths = shifts.iter().zip(next).map(|(shift, next)| {
                    // One alone lasts all day.
                    match (next.from_us - shift.from_us).rem_euclid(DAY_US) {
                        0 => DAY_US,
                        us => us,
                    }
                });
                lengths.min().unwrap_or(DAY_US)
            }
        }
    }
}

/// Windows of a calendar. They follow each other without a gap: one begins at the first instant at
/// which the clocks show its beginning or a later time (see [`Zone::first_us`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CalendarSpec {
    /// What follows each other.
    pub period: Period,
    /// Whose clocks.
    pub zone: ZoneOf,
    /// How much later than midnight, on the clocks, a period begins; less than a day; microseconds.
    /// None of shifts.
    pub offset_us: i64,
}
