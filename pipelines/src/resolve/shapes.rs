//! Which windows a step has: what its keys say, of which only some go together.

use arrow::datatypes::DataType;
use tidegate_operators::spec::{Expr, Shape};

use super::calendar::{calendar, is_calendar};
use super::edges::Edge;
use super::sql;
use crate::config::problem::Reporter;
use crate::config::section::Section;
use crate::config::units::show_duration;

/// Most windows that one reading may be in: a day that slides by a minute. Each costs an update.
const WINDOWS_PER_READING_MAX: i64 = 1_440;

/// Most panes (see `operators::window`) of one window: partial results that are kept per key and
/// merged whenever a window closes. Only a slide that does not go into the size makes so many.
const PANES_PER_WINDOW_MAX: i64 = 10_000;

/// Kinds of windows: the keys of which at least one names the kind, and those that go with it.
const KINDS: [(&[&str], &[&str]); 5] = [
    (&["every", "size", "slide", "shifts"], &["offset", "zone", "week_start"]),
    (&["gap"], &["max"]),
    (&["count"], &["hop"]),
    (&["while", "begin", "until"], &["abort", "min", "max"]),
    (&["before", "after"], &["at"]),
];

/// Which windows there are. Reports what is missing, too much or out of bounds.
pub(super) fn shape(
    step: &Section<'_>,
    input: &Edge,
    keys: &[usize],
    report: &mut Reporter<'_>,
) -> Option<Shape> {
    let named = |kind: &usize| KINDS[*kind].0.iter().find(|key| step.entry(key).is_some());
    let kinds: Vec<usize> = (0..KINDS.len()).filter(|kind| named(kind).is_some()).collect();
    let &[kind] = &kinds[..] else {
        match kinds.iter().filter_map(named).collect::<Vec<_>>()[..] {
            [first, second, ..] => {
                let hint = "a step has one kind of windows; write two steps for two".to_owned();
                let at = step.entry(second).map_or(step.at, |e| e.key_at);
                report.error(at, format!("`{first}` together with `{second}`"), hint);
            }
            // A key that was meant for one of these was reported.
            _ if step.misspelt().iter().any(|key| KINDS.iter().any(|k| k.0.contains(key))) => {}
            _ => {
                let hint = "for example `every = \"1m\"` or `every = \"day\"`, `gap = \"5m\"` for \
                            sessions, `count = 100`, `while = \"...\"`, or `before = \"5m\"` for \
                            one around each reading";
                report.error(step.at, "how long is the window?", hint.to_owned());
            }
        }
        return None;
    };
    let fit = companions(step, kind, report);
    let shape = match kind {
        0 if is_calendar(step) => Shape::Calendar(calendar(step, input, keys, report)?),
        0 => {
            let (size_us, slide_us, offset_us) = grid(step, report)?;
            only_of_calendars(step, report)?;
            Shape::Grid { size_us, slide_us, offset_us }
        }
        1 => {
            let gap_us = positive(step, "gap", report);
            let max_us = optional(step, "max", report);
            Shape::Session { gap_us: gap_us?, max_us: max_us? }
        }
        2 => count(step, report)?,
        3 => state(step, input, report)?,
        _ => sliding(step, input, report)?,
    };
    fit.then_some(shape)
}

/// Reports keys that have no effect on windows of this kind.
fn companions(step: &Section<'_>, kind: usize, report: &mut Reporter<'_>) -> bool {
    let mut fit = true;
    let mut seen: Vec<&str> = KINDS[kind].1.to_vec();
    for (of, keys) in KINDS {
        for key in keys {
            if seen.contains(key) {
                continue;
            }
            seen.push(key);
            if let Some(entry) = step.entry(key) {
                fit = false;
                let hint = format!("it goes with `{}`", of.join("`, `"));
                report.error(entry.key_at, format!("`{key}` has no effect here"), hint);
            }
        }
    }
    fit
}

/// Reports keys that have no effect on windows of fixed length.
fn only_of_calendars(step: &Section<'_>, report: &mut Reporter<'_>) -> Option<()> {
    let wrong = ["zone", "week_start"].iter().find_map(|key| step.entry(key));
    if let Some(entry) = wrong {
        let hint = "it goes with `shifts`, and `every` as \"day\", \"week\" and longer".to_owned();
        report.error(entry.key_at, format!("`{}` has no effect here", entry.key), hint);
        return None;
    }
    Some(())
}

/// A duration that must be there and longer than nothing.
fn positive(step: &Section<'_>, key: &str, report: &mut Reporter<'_>) -> Option<i64> {
    let us = step.duration_us(key)?;
    if us == 0 {
        report.error(step.at(key), format!("`{key}` must be longer than nothing"), None);
    }
    (us > 0).then_some(us)
}

/// The same, if it is there.
fn optional(step: &Section<'_>, key: &str, report: &mut Reporter<'_>) -> Option<Option<i64>> {
    match step.entry(key) {
        Some(_) => positive(step, key, report).map(Some),
        None => Some(None),
    }
}

fn count(step: &Section<'_>, report: &mut Reporter<'_>) -> Option<Shape> {
    let size = step.int("count")?;
    let hop = step.int("hop").unwrap_or(size);
    if hop > size {
        let message = format!("`hop` {hop} is more than `count` {size}");
        let hint = "readings between windows would be lost".to_owned();
        report.error(step.at("hop"), message, hint);
        return None;
    }
    if hop < 1 || size < 1 {
        // Reported when the file was checked.
        return None;
    }
    if size / hop > WINDOWS_PER_READING_MAX {
        let message = format!("every reading would be in {} windows", size / hop);
        let hint = format!("{WINDOWS_PER_READING_MAX} is the most; make `hop` larger");
        report.error(step.at("hop"), message, hint);
        return None;
    }
    let pieces = size / common_divisor(size, hop);
    if pieces > PANES_PER_WINDOW_MAX {
        let message = format!("every window would be put together from {pieces} pieces");
        let hint = format!(
            "{PANES_PER_WINDOW_MAX} is the most; choose a `hop` that goes into `count` evenly"
        );
        report.error(step.at("hop"), message, hint);
        return None;
    }
    Some(Shape::Count { size, hop })
}

fn state(step: &Section<'_>, input: &Edge, report: &mut Reporter<'_>) -> Option<Shape> {
    let condition = |key: &str, report: &mut Reporter<'_>| -> Option<Option<Expr>> {
        let Some(text) = step.text(key) else { return Some(None) };
        let want = Some(&DataType::Boolean);
        sql(text, step.at(key), &input.schema, want, report).map(Some)
    };
    let [whole, begin, until, abort] =
        ["while", "begin", "until", "abort"].map(|key| condition(key, report));
    let (min_us, max_us) = (step.duration_us("min")?, optional(step, "max", report));
    let problem = match ["while", "begin", "until"].map(|key| step.entry(key).is_some()) {
        [true, false, false] | [false, true, true] => None,
        [true, _, _] => Some("`while` together with `begin` or `until`"),
        [false, true, false] => Some("`begin` without `until`"),
        [false, false, _] => Some("`until` without `begin`"),
    };
    if let Some(message) = problem {
        let hint = "write `while`, or `begin` and `until`".to_owned();
        report.error(step.at("until"), message, hint);
        return None;
    }
    let (begin, until, max_us) = (whole?.or(begin?)?, until?, max_us?);
    if max_us.is_some_and(|max_us| min_us > max_us) {
        let hint = "no window could be as long".to_owned();
        report.error(step.at("min"), "`min` is longer than `max`", hint);
        return None;
    }
    Some(Shape::State { begin, until, abort: abort?, min_us, max_us })
}

fn sliding(step: &Section<'_>, input: &Edge, report: &mut Reporter<'_>) -> Option<Shape> {
    let side = |key: &str| match step.entry(key) {
        Some(_) => step.duration_us(key),
        None => Some(0),
    };
    let (before_us, after_us) = (side("before")?, side("after")?);
    let at = match step.text("at") {
        Some(text) => {
            let want = Some(&DataType::Boolean);
            Some(sql(text, step.at("at"), &input.schema, want, report)?)
        }
        None => None,
    };
    if before_us == 0 && after_us == 0 {
        report.error(step.at("before"), "a window must be longer than nothing", None);
        return None;
    }
    Some(Shape::Sliding { before_us, after_us, at })
}

/// Windows of fixed bounds: size, slide and offset, microseconds.
fn grid(step: &Section<'_>, report: &mut Reporter<'_>) -> Option<(i64, i64, i64)> {
    let [every, size, slide] = ["every", "size", "slide"].map(|key| step.entry(key));
    let (key, size_us, slide_us) = match (every, size, slide) {
        (Some(_), None, None) => {
            let us = step.duration_us("every")?;
            ("every", us, us)
        }
        (None, Some(_), Some(_)) => {
            ("slide", step.duration_us("size")?, step.duration_us("slide")?)
        }
        (None, Some(entry), None) => {
            let hint = "add `slide`, or write `every` if windows shall not overlap".to_owned();
            report.error(entry.key_at, "`size` without `slide`", hint);
            return None;
        }
        (None, None, Some(entry)) => {
            report.error(entry.key_at, "`slide` without `size`", "add `size`".to_owned());
            return None;
        }
        (None, None, None) => return None,
        (Some(entry), _, _) => {
            let hint = "`every` is for windows that follow each other".to_owned();
            report.error(entry.key_at, "`every` together with `size` or `slide`", hint);
            return None;
        }
    };
    if size_us == 0 || slide_us == 0 {
        report.error(step.at(key), "a window must be longer than nothing", None);
        return None;
    }
    if slide_us > size_us {
        let message = format!(
            "`slide` {} is longer than `size` {}: readings between windows would be lost",
            show_duration(slide_us),
            show_duration(size_us)
        );
        report.error(step.at("slide"), message, None);
        return None;
    }
    if size_us / slide_us > WINDOWS_PER_READING_MAX {
        let message = format!("every reading would be in {} windows", size_us / slide_us);
        let hint = format!("{WINDOWS_PER_READING_MAX} is the most; make `slide` longer");
        report.error(step.at("slide"), message, hint);
        return None;
    }
    let panes = size_us / common_divisor(size_us, slide_us);
    if panes > PANES_PER_WINDOW_MAX {
        let message = format!("every window would be put together from {panes} pieces");
        let hint = format!(
            "{PANES_PER_WINDOW_MAX} is the most; choose a `slide` that goes into `size` evenly, \
             or round both"
        );
        report.error(step.at("slide"), message, hint);
        return None;
    }
    let offset_us = step.duration_us("offset")?;
    if offset_us >= slide_us {
        let hint = format!("windows start every {}", show_duration(slide_us));
        report.error(step.at("offset"), "`offset` is a whole distance or more", hint);
        return None;
    }
    Some((size_us, slide_us, offset_us))
}

fn common_divisor(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}
