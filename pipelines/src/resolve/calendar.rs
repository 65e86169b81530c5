//! Windows by a calendar: `every = "day"` and longer words, and `shifts`.

use arrow::datatypes::DataType;
use tidegate_operators::spec::{CalendarSpec, Period, Shift, ZoneOf};
use tidegate_operators::zone::Zone;

use super::edges::Edge;
use crate::config::keys::WEEKDAYS;
use crate::config::problem::Reporter;
use crate::config::section::Section;
use crate::config::units::time_of_day_us;

/// Most shifts of a day.
const SHIFTS_MAX: usize = 96;

/// A day by the clock, microseconds.
const DAY_US: i64 = 86_400_000_000;

/// Whether the windows of a step go by a calendar.
pub(super) fn is_calendar(step: &Section<'_>) -> bool {
    step.entry("shifts").is_some() || word(step).is_some()
}

fn word<'t>(step: &Section<'t>) -> Option<&'t str> {
    let words = ["day", "week", "month", "quarter", "year"];
    step.entry("every")?.node.text().filter(|text| words.contains(text))
}

/// The column with the zone of each row, if the step names one that is there. Reports what is wrong
/// with it.
pub(super) fn zone_column(
    step: &Section<'_>,
    input: &Edge,
    report: &mut Reporter<'_>,
) -> Option<usize> {
    let zone = step.section("zone")?;
    let index = input.column(zone.text("column")?, zone.at("column"), report)?;
    if *input.schema.field(index).data_type() != DataType::Utf8 {
        let message = format!("`{}` is not text", input.schema.field(index).name());
        let hint = "the column has names of zones such as \"Europe/Berlin\"".to_owned();
        report.error(zone.at("column"), message, hint);
        return None;
    }
    Some(index)
}

/// The calendar of a step whose key has these columns of its input.
pub(super) fn calendar(
    step: &Section<'_>,
    input: &Edge,
    keys: &[usize],
    report: &mut Reporter<'_>,
) -> Option<CalendarSpec> {
    let period = period(step, report);
    let zone = zone(step, input, keys, report);
    let offset_us = step.duration_us("offset")?;
    let shifts = matches!(period, Some(Period::Shifts(_)));
    if let Some(entry) = step.entry("offset").filter(|_| shifts) {
        let hint = "say in `shifts` when each begins".to_owned();
        report.error(entry.key_at, "`offset` has no effect on shifts", hint);
        return None;
    }
    if offset_us >= DAY_US {
        let hint = "it is the time of day at which they start".to_owned();
        report.error(step.at("offset"), "`offset` is a whole day or more", hint);
        return None;
    }
    Some(CalendarSpec { period: period?, zone: zone?, offset_us })
}

fn period(step: &Section<'_>, report: &mut Reporter<'_>) -> Option<Period> {
    let with_shifts = step.entry("shifts").is_some();
    let others = ["every", "size", "slide"].into_iter().skip(usize::from(!with_shifts));
    if let Some(entry) = others.filter_map(|key| step.entry(key)).next() {
        let (with, hint) = match with_shifts {
            true => ("`shifts`", "each window is a shift: they say themselves when it begins; "),
            false => ("a word in `every`", "each window is as long as the calendar says; "),
        };
        let hint = format!("{hint}leave `{}` away, or write two steps", entry.key);
        report.error(entry.key_at, format!("`{}` together with {with}", entry.key), hint);
        return None;
    }
    let week = word(step) == Some("week");
    if let Some(entry) = step.entry("week_start").filter(|_| !week) {
        let hint = "it goes with `every = \"week\"`".to_owned();
        report.error(entry.key_at, "`week_start` has no effect here", hint);
    }
    Some(match word(step) {
        None => return shifts(step, report),
        Some("day") => Period::Day,
        Some("week") => {
            let first = step.text("week_start").unwrap_or_default();
            let start = WEEKDAYS.iter().position(|day| *day == first)?;
            Period::Week { start: u8::try_from(start).ok()? }
        }
        Some("month") => Period::Month,
        Some("quarter") => Period::Quarter,
        Some(_) => Period::Year,
    })
}

fn shifts(step: &Section<'_>, report: &mut Reporter<'_>) -> Option<Period> {
    let entries = step.entries("shifts");
    let timed = entries.iter().filter_map(|e| {
        let from_us = time_of_day_us(e.node.text()?).ok()?;
        Some((Shift { name: e.key.clone(), from_us }, e.node.at))
    });
    let mut shifts: Vec<_> = timed.collect();
    if shifts.len() != entries.len() {
        // Reported when the file was checked.
        return None;
    }
    if shifts.is_empty() || shifts.len() > SHIFTS_MAX {
        let message = format!("a day has 1 to {SHIFTS_MAX} shifts, and not {}", shifts.len());
        let hint = "for example `shifts = { day = \"06:00\", night = \"18:00\" }`".to_owned();
        report.error(step.at("shifts"), message, hint);
        return None;
    }
    shifts.sort_by_key(|(shift, _)| shift.from_us);
    if let Some(same) = shifts.windows(2).find(|pair| pair[0].0.from_us == pair[1].0.from_us) {
        let message = format!("`{}` begins when `{}` does", same[1].0.name, same[0].0.name);
        report.error(same[1].1, message, None);
        return None;
    }
    Some(Period::Shifts(shifts.into_iter().map(|(shift, _)| shift).collect()))
}

fn zone(
    step: &Section<'_>,
    input: &Edge,
    keys: &[usize],
    report: &mut Reporter<'_>,
) -> Option<ZoneOf> {
    let Some(entry) = step.entry("zone") else {
        let hint = "for example `zone = \"Europe/Berlin\"`, or `zone = { column = \"zone\" }` \
                    where each device has its own; `zone = \"UTC\"` is one, too";
        report.error(step.at, "by whose clocks? `zone` is missing", hint.to_owned());
        return None;
    };
    if let Some(name) = entry.node.text() {
        return Zone::parse(name).map(ZoneOf::All);
    }
    // Its problems were reported when the key was put together.
    let name = step.section("zone")?.text("column")?;
    let index = input.schema.index_of(name).ok()?;
    match keys.iter().position(|key| *key == index) {
        Some(position) => Some(ZoneOf::Key(position)),
        None if *input.schema.field(index).data_type() != DataType::Utf8 => None,
        None => {
            let hint = format!("add it: a key has the windows of one zone (`{name}`)");
            report.error(step.at("by"), format!("`{name}` is not in `by`"), hint);
            None
        }
    }
}
