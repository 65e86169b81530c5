//! Time zones of the IANA database, as windows need them: what the clocks on the wall show, and
//! when they first show it.
//!
//! Definition: the local time of an instant t is t plus the zone's offset at t. A local time that
//! the clocks show twice, because they are put back, begins the first time; one that they skip
//! begins at the instant at which they are put forward past it. So of any two local times the later
//! one never begins earlier, whatever a zone did in its history.

use chrono::offset::LocalResult;
use chrono::{DateTime, NaiveDateTime, Offset, TimeZone};
use chrono_tz::{TZ_VARIANTS, Tz};

/// Times further away than this (around the years 970 and 2970) are taken for these: zones say
/// nothing of them, and arithmetic with them cannot overflow.
const FAR_US: i64 = 1_000 * 365 * 86_400_000_000;

/// No zone was ever further from UTC.
const OFFSET_US_MAX: i64 = 26 * 3_600_000_000;

/// A time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zone(Tz);

impl Default for Zone {
    fn default() -> Self {
        Self::UTC
    }
}

impl Zone {
    /// Coordinated Universal Time.
    pub const UTC: Self = Self(Tz::UTC);

    /// The zone of a name such as `Europe/Berlin`, if there is one.
    pub fn parse(name: &str) -> Option<Self> {
        name.parse().ok().map(Self)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    /// The names of all zones.
    pub fn names() -> impl Iterator<Item = &'static str> + Clone {
        TZ_VARIANTS.iter().map(|zone| zone.name())
    }

    /// A number below [`Zone::COUNT`] for each zone.
    pub(crate) fn number(self) -> usize {
        self.0 as usize
    }

    /// How many zones there are.
    pub(crate) const COUNT: usize = TZ_VARIANTS.len();

    /// What the clocks on the wall show at an instant; microseconds since 1970-01-01T00:00 on them.
    pub fn local_us(self, at_us: i64) -> i64 {
        let offset = self.0.offset_from_utc_datetime(&naive(at_us)).fix();
        clamped(at_us) + i64::from(offset.local_minus_utc()) * 1_000_000
    }

    /// The first instant at which the clocks show this local time or a later one, microseconds
    /// since the Unix epoch.
    pub fn first_us(self, local_us: i64) -> i64 {
        let local_us = clamped(local_us);
        match self.0.offset_from_local_datetime(&naive(local_us)) {
            LocalResult::Single(offset) => shifted(local_us, &offset),
            LocalResult::Ambiguous(a, b) => shifted(local_us, &a).min(shifted(local_us, &b)),
            LocalResult::None => self.end_of_gap_us(local_us),
        }
    }

    /// The instant at which the clocks are put forward past a local time that they never show.
    fn end_of_gap_us(self, local_us: i64) -> i64 {
        // Before it they show less, from it on more.
        let (mut before, mut after) = (local_us - OFFSET_US_MAX, local_us + OFFSET_US_MAX);
        while after - before > 1 {
            let middle = before + (after - before) / 2;
            match self.local_us(middle) < local_us {
                true => before = middle,
                false => after = middle,
            }
        }
        after
    }
}

fn clamped(us: i64) -> i64 {
    us.clamp(-FAR_US, FAR_US)
}

fn naive(us: i64) -> NaiveDateTime {
    // What is clamped is inside the range of the type.
    DateTime::from_timestamp_micros(clamped(us)).unwrap_or_default().naive_utc()
}

fn shifted(local_us: i64, offset: &impl Offset) -> i64 {
    local_us - i64::from(offset.fix().local_minus_utc()) * 1_000_000
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn us(text: &str) -> i64 {
        DateTime::parse_from_rfc3339(text).expect("a time").timestamp_micros()
    }

    fn first(zone: &str, local: &str) -> String {
        let zone = Zone::parse(zone).expect("a zone");
        let first_us = zone.first_us(us(&format!("{local}Z")));
        DateTime::from_timestamp_micros(first_us).expect("in range").to_rfc3339()
    }

    #[test]
    fn what_is_skipped_begins_after_the_gap_and_what_is_shown_twice_at_first() {
        let cases = [
            ("Europe/Berlin", "2026-03-29T00:00:00", "2026-03-28T23:00:00+00:00"),
            ("Europe/Berlin", "2026-03-29T02:30:00", "2026-03-29T01:00:00+00:00"),
            ("Europe/Berlin", "2026-10-25T02:30:00", "2026-10-25T00:30:00+00:00"),
            ("Africa/Cairo", "2026-04-24T00:00:00", "2026-04-23T22:00:00+00:00"),
            ("America/Sao_Paulo", "2018-11-04T00:00:00", "2018-11-04T03:00:00+00:00"),
            ("Australia/Lord_Howe", "2026-10-04T02:10:00", "2026-10-03T15:30:00+00:00"),
            // Midnight came twice, a day was left out, and a minute past midnight it was yesterday.
            ("America/Havana", "2026-11-01T00:00:00", "2026-11-01T04:00:00+00:00"),
            ("Pacific/Apia", "2011-12-30T12:00:00", "2011-12-30T10:00:00+00:00"),
            ("America/St_Johns", "2010-11-07T00:00:00", "2010-11-07T02:30:00+00:00"),
        ];
        for (zone, local, expected) in cases {
            assert_eq!(first(zone, local), expected, "{zone} {local}");
        }
    }

    #[test]
    fn times_beyond_all_calendars_are_the_last_that_are_known() {
        let zone = Zone::parse("Europe/Berlin").expect("a zone");
        for far in [i64::MIN, i64::MAX] {
            assert!(zone.local_us(far).abs() <= FAR_US + OFFSET_US_MAX);
            assert!(zone.first_us(far).abs() <= FAR_US + OFFSET_US_MAX);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// Over all zones, at any minute of sixty years: from then on the clocks show that or more,
        /// until they are put back; just before they show less; and nothing earlier shows as much.
        #[test]
        fn the_first_instant_is_the_first(
            zone in prop::sample::select(&TZ_VARIANTS[..]), minute in 0i64..60 * 366 * 1_440,
        ) {
            let (zone, local_us) = (Zone(zone), minute * 60_000_000);
            let first = zone.first_us(local_us);
            prop_assert!(zone.local_us(first) >= local_us);
            for back in 0..2 * 27 * 4 {
                let before = zone.local_us(first - 1 - back * 900_000_000);
                prop_assert!(before < local_us, "{} quarters of an hour before", back);
            }
        }
    }
}
