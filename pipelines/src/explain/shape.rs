//! The windows of a step in words: which there are, when they are emitted, what is kept of them.

use std::fmt::Write as _;

use tidegate_operators::aggregate::{POINTS_MAX, StateSize, points_max, state_size};
use tidegate_operators::spec::{
    CalendarSpec, Clock, Period, QualitySpec, Shape, Shift, WindowSpec, ZoneOf,
};

use crate::bounds::counted;
use crate::config::keys::WEEKDAYS;
use crate::config::units::{show_duration, show_time_of_day};
use crate::fingerprint::shown;

/// How long the lists of windows can be, if gaps are filled.
pub(super) fn lists(w: &WindowSpec) -> Option<String> {
    let of = |us| w.aggregates.iter().filter_map(|a| points_max(a, us)).max();
    // None of them is such a list.
    of(i64::MAX)?;
    Some(match w.shape.longest_us().and_then(of) {
        Some(points) => format!("at most {} points in a window", counted(points)),
        None => format!(
            "at most {} points in a window; one that comes to more has none and is a row of \
             system.rejects",
            counted(POINTS_MAX)
        ),
    })
}

/// Which windows there are.
pub(crate) fn bounds(shape: &Shape) -> String {
    match shape {
        Shape::Grid { size_us, slide_us, offset_us } => {
            let mut text = format!("every {}", show_duration(*slide_us));
            if slide_us != size_us {
                text = format!("{} long, {text}", show_duration(*size_us));
            }
            if *offset_us != 0 {
                let _ = write!(text, ", shifted by {}", show_duration(*offset_us));
            }
            text
        }
        Shape::Calendar(calendar) => calendar_bounds(calendar),
        Shape::Session { gap_us, max_us } => {
            format!("without a pause over {}{}", show_duration(*gap_us), cut(*max_us))
        }
        Shape::Count { size, hop } if size == hop => format!("every {size} readings"),
        Shape::Count { size, hop } => format!("{size} readings, every {hop}"),
        Shape::State { begin, until, abort, min_us, max_us } => {
            let mut text = match until {
                Some(until) => format!("from {} until {}", shown(begin), shown(until)),
                None => format!("while {}", shown(begin)),
            };
            if let Some(abort) = abort {
                let _ = write!(text, ", none if {}", shown(abort));
            }
            if *min_us > 0 {
                let _ = write!(text, ", at least {} long", show_duration(*min_us));
            }
            text + &cut(*max_us)
        }
        Shape::Sliding { before_us, after_us, at } => {
            let which = match at {
                Some(at) => format!("each reading with {}", shown(at)),
                None => "each reading".to_owned(),
            };
            let sides = (show_duration(*before_us), show_duration(*after_us));
            format!("around {which}, from {} before to {} after it", sides.0, sides.1)
        }
    }
}

/// What the columns of their quality say.
pub(super) fn quality(quality: &QualitySpec) -> String {
    let expected = match quality.every_us {
        Some(us) => format!("a reading every {} is expected", show_duration(us)),
        None => "nothing says how many readings to expect".to_owned(),
    };
    let lost = match quality.keeps {
        true => "a gap of the source, or, while it lasts, an outage",
        false => "a gap or an outage of the source, or a stop of Tidegate",
    };
    let repeated = match quality.repeated {
        true => "; what came again and was dropped is counted",
        false => "",
    };
    format!("{expected}; {lost} makes them incomplete{repeated}")
}

fn calendar_bounds(calendar: &CalendarSpec) -> String {
    let mut text = match &calendar.period {
        Period::Day => "every day".to_owned(),
        Period::Week { start } => {
            let first = WEEKDAYS.get(usize::from(*start)).copied().unwrap_or_default();
            format!("every week from {first}")
        }
        Period::Month => "every month".to_owned(),
        Period::Quarter => "every quarter of a year".to_owned(),
        Period::Year => "every year".to_owned(),
        Period::Shifts(shifts) => {
            let shown = |s: &Shift| format!("{} from {}", s.name, show_time_of_day(s.from_us));
            let shown: Vec<String> = shifts.iter().map(shown).collect();
            format!("shifts: {}", shown.join(", "))
        }
    };
    if calendar.offset_us > 0 {
        let _ = write!(text, ", {} after midnight", show_duration(calendar.offset_us));
    }
    match calendar.zone {
        ZoneOf::All(zone) => text + ", by the clocks of " + zone.name(),
        ZoneOf::Key(_) => text + ", by the clocks of the key's own zone",
    }
}

fn cut(max_us: Option<i64>) -> String {
    max_us.map_or_else(String::new, |us| format!(", cut at {}", show_duration(us)))
}

/// When a window is emitted.
pub(super) fn closes(w: &WindowSpec) -> String {
    let whose = match w.clock {
        Clock::Device => "its key's newest reading",
        Clock::Fleet => "the newest reading of all",
    };
    let (disorder, idle) = (show_duration(w.disorder_us), show_duration(w.idle_close_us));
    let what = match &w.shape {
        Shape::Session { .. } => "the end of the pause, or the cut",
        Shape::Count { .. } => "its last reading",
        Shape::State { max_us: None, .. } => "the reading that ends it",
        Shape::State { max_us: Some(_), .. } => "the reading that ends it, or the cut",
        Shape::Grid { .. } | Shape::Calendar(_) | Shape::Sliding { .. } => "its end",
    };
    format!(
        "when {whose} is {disorder} past {what}; the clock of a key that is silent for {idle} goes \
         on with the time of arrival"
    )
}

/// What is kept per key, given how long windows are revised.
pub(super) fn state(w: &WindowSpec, keep_us: i64) -> String {
    let aggregates = match w.aggregates.len() {
        1 => "one aggregate".to_owned(),
        n => format!("{n} aggregates"),
    };
    let tail = show_duration(w.disorder_us.saturating_add(keep_us));
    let state = match &w.shape {
        Shape::Grid { size_us, slide_us, .. } => {
            // Open windows, those within the disorder, and those that can still be revised.
            let span_us = size_us.saturating_add(w.disorder_us).saturating_add(keep_us);
            let windows = span_us / slide_us + i64::from(span_us % slide_us != 0) + 1;
            format!("per key at most about {windows} windows of {aggregates}")
        }
        Shape::Calendar(calendar) => {
            // Such a day can be an hour shorter, and one window more is open.
            let tail_us = w.disorder_us.saturating_add(keep_us);
            let windows = tail_us / calendar.period.shortest_us() + 3;
            format!("per key at most about {windows} windows of {aggregates}")
        }
        Shape::Session { max_us: None, .. } => {
            format!("per key the sessions of {tail}, {aggregates} each")
        }
        Shape::Session { .. } | Shape::State { .. } => {
            format!("per key one window of {aggregates}, and the readings of {tail}")
        }
        Shape::Count { size, hop } => {
            let open = size / hop + i64::from(size % hop != 0);
            format!("per key {open} open windows of {aggregates}, and the readings of {tail}")
        }
        Shape::Sliding { before_us, after_us, .. } => {
            let span_us = before_us.saturating_add(*after_us).saturating_add(w.disorder_us);
            let span = show_duration(span_us.saturating_add(keep_us));
            format!("per key the readings of {span}, {aggregates} each")
        }
    };
    let sizes = w.aggregates.iter().filter_map(|a| state_size(a.fun().name()));
    let per_reading: usize = sizes
        .map(|size| match size {
            StateSize::PerReading(bytes) => bytes,
            StateSize::Bounded(_) => 0,
        })
        .sum();
    match per_reading {
        0 => state,
        bytes => format!("{state}, and {bytes} bytes for each reading in them"),
    }
}
