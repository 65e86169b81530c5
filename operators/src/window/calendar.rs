//! The arithmetic of windows that follow a calendar.
//!
//! Window `n` begins at the first instant at which the clocks of its zone show its beginning, see
//! [`Zone::first_us`], and ends where `n + 1` begins. So windows touch each other and their bounds
//! never go back; one whose time is skipped as a whole has no length, and no reading is in it.

use std::cell::RefCell;

use chrono::{Datelike, NaiveDate};

use crate::spec::{CalendarSpec, Period};
use crate::zone::Zone;

const DAY_US: i64 = 86_400_000_000;

/// The day of 1970-01-05, a Monday, since 1970-01-01.
const MONDAY: i64 = 4;

/// What is further away is in the window that holds this instant (around the years 1070 and 2870):
/// the bounds of windows must stay inside of what zones know.
const KNOWN_US: i64 = 900 * 365 * DAY_US;

/// A window with its bounds; the end is exclusive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch {
    pub(super) number: i64,
    pub(super) start_us: i64,
    pub(super) end_us: i64,
}

/// The windows of a calendar, numbered.
#[derive(Debug)]
pub(super) struct Calendar {
    period: Period,
    offset_us: i64,
    /// Of each zone the window that was found last: the next reading is nearly always in it too.
    recent: RefCell<Vec<Option<Stretch>>>,
}

impl Calendar {
    pub(super) fn new(spec: &CalendarSpec) -> Self {
        let recent = RefCell::new(vec![None; Zone::COUNT]);
        Self { period: spec.period.clone(), offset_us: spec.offset_us, recent }
    }

    /// The window that holds an instant.
    pub(super) fn at(&self, at_us: i64, zone: Zone) -> Stretch {
        let recent = self.recent.borrow()[zone.number()];
        if let Some(recent) = recent.filter(|w| w.start_us <= at_us && at_us < w.end_us) {
            return recent;
        }
        let at_us = at_us.clamp(-KNOWN_US, KNOWN_US);
        let mut number = self.number(zone.local_us(at_us) - self.offset_us);
        let mut end_us = self.start_us(number + 1, zone);
        // Where clocks were put back over a beginning, they show what was before it once more.
        while end_us <= at_us {
            number += 1;
            end_us = self.start_us(number + 1, zone);
        }
        let found = Stretch { number, start_us: self.start_us(number, zone), end_us };
        self.recent.borrow_mut()[zone.number()] = Some(found);
        found
    }

    /// When a window begins.
    pub(super) fn start_us(&self, number: i64, zone: Zone) -> i64 {
        zone.first_us(self.local_start_us(number).saturating_add(self.offset_us))
    }

    /// The shift of a window.
    pub(super) fn shift(&self, number: i64) -> Option<&str> {
        let Period::Shifts(shifts) = &self.period else { return None };
        let shift = &shifts[number.rem_euclid(shifts.len() as i64) as usize];
        Some(&shift.name)
    }

    /// The window that a local time belongs to.
    fn number(&self, local_us: i64) -> i64 {
        let day = local_us.div_euclid(DAY_US);
        match &self.period {
            Period::Day => day,
            Period::Week { start } => (day - MONDAY - i64::from(*start)).div_euclid(7),
            Period::Month => month(day),
            Period::Quarter => month(day).div_euclid(3),
            Period::Year => month(day).div_euclid(12),
            Period::Shifts(shifts) => {
                let time_us = local_us.rem_euclid(DAY_US);
                let begun = shifts.partition_point(|s| s.from_us <= time_us);
                day * shifts.len() as i64 + begun as i64 - 1
            }
        }
    }

    /// The local time at which a window begins.
    fn local_start_us(&self, number: i64) -> i64 {
        let day = match &self.period {
            Period::Day => number,
            Period::Week { start } => {
                number.saturating_mul(7).saturating_add(MONDAY + i64::from(*start))
            }
            Period::Month => first_day(number),
            Period::Quarter => first_day(number.saturating_mul(3)),
            Period::Year => first_day(number.saturating_mul(12)),
            Period::Shifts(shifts) => {
                let count = shifts.len() as i64;
                let from_us = shifts[number.rem_euclid(count) as usize].from_us;
                return number.div_euclid(count).saturating_mul(DAY_US).saturating_add(from_us);
            }
        };
        day.saturating_mul(DAY_US)
    }
}

/// The month of a day, counted from the year 0.
fn month(day: i64) -> i64 {
    // Days come from times within a few thousand years, see `Zone::local_us`.
    let date = i32::try_from(day).ok().and_then(NaiveDate::from_epoch_days).unwrap_or_default();
    i64::from(date.year()) * 12 + i64::from(date.month0())
}

/// The first day of a month that is counted from the year 0.
fn first_day(month: i64) -> i64 {
    const YEARS: i64 = 100_000;
    let month = month.clamp(-YEARS * 12, YEARS * 12);
    let (year, month) = (month.div_euclid(12) as i32, month.rem_euclid(12) as u32 + 1);
    let date = NaiveDate::from_ymd_opt(year, month, 1).unwrap_or_default();
    i64::from(date.to_epoch_days())
}
