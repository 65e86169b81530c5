//! What windows there are, by brute force: each definition as directly as it can be written, over
//! all readings of a key in order.

use crate::spec::Shape;

/// Time and value.
pub(super) type Reading = (i64, i64);

/// A window: its id, its bounds and its readings.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Window {
    pub(super) id: i64,
    pub(super) start_us: i64,
    /// Both are right if they differ: the input ended, or silence went on until the maximum.
    pub(super) end_us: (i64, i64),
    /// Only if silence went on: it is too short as yet.
    pub(super) optional: bool,
    pub(super) readings: Vec<Reading>,
}

fn window(id: i64, start_us: i64, end_us: i64, readings: &[Reading]) -> Window {
    let end_us = (end_us, end_us);
    Window { id, start_us, end_us, optional: false, readings: readings.to_vec() }
}

/// What the expressions of the tests mean: 8 and 9 begin, 0 and 1 (and 9) end, 5 aborts, and 7 to 9
/// are worth a window around them.
pub(super) fn begins(value: i64) -> bool {
    value >= 8
}
pub(super) fn ends(value: i64) -> bool {
    value <= 1 || value == 9
}
pub(super) fn aborts(value: i64) -> bool {
    value == 5
}
pub(super) fn around(value: i64) -> bool {
    value >= 7
}

/// All windows of one key, whose readings are in order.
pub(super) fn windows(shape: &Shape, readings: &[Reading]) -> Vec<Window> {
    match shape {
        Shape::Grid { .. } | Shape::Calendar(_) => unreachable!("has its own tests"),
        Shape::Session { gap_us, max_us } => sessions(*gap_us, *max_us, readings),
        Shape::Count { size, hop } => (0..)
            .map(|k| (k, (k * hop) as usize, (k * hop + size) as usize))
            .take_while(|(_, _, to)| *to <= readings.len())
            .map(|(k, from, to)| (k, &readings[from..to]))
            .map(|(k, part)| window(k, part[0].0, part[part.len() - 1].0, part))
            .collect(),
        Shape::State { until, abort, min_us, max_us, .. } => {
            let states = match until.is_some() {
                true => from_to(abort.is_some(), *max_us, readings),
                false => whiles(abort.is_some(), *max_us, readings),
            };
            let long = |w: &Window, end: i64| {
                end > w.start_us && end.saturating_sub(w.start_us) >= *min_us
            };
            let mut found: Vec<Window> =
                states.into_iter().filter(|w| long(w, w.end_us.1)).collect();
            found.iter_mut().for_each(|w| w.optional = !long(w, w.end_us.0));
            found
        }
        Shape::Sliding { before_us, after_us, at } => {
            let mut found: Vec<Window> = Vec::new();
            for (time, value) in readings {
                let (start, end) = (time - before_us, time + after_us);
                let same = found.last().is_some_and(|w| w.id == start);
                if !same && (at.is_none() || around(*value)) {
                    let inside = readings.iter().filter(|r| start <= r.0 && r.0 <= end);
                    let inside: Vec<Reading> = inside.copied().collect();
                    found.push(window(start, start, end, &inside));
                }
            }
            found
        }
    }
}

fn sessions(gap_us: i64, max_us: Option<i64>, readings: &[Reading]) -> Vec<Window> {
    let mut parts: Vec<Vec<Reading>> = Vec::new();
    for reading in readings {
        match parts.last_mut() {
            Some(part)
                if reading.0 - part[part.len() - 1].0 <= gap_us
                    && max_us.is_none_or(|max| reading.0 - part[0].0 < max) =>
            {
                part.push(*reading);
            }
            _ => parts.push(vec![*reading]),
        }
    }
    let bounds = |p: &Vec<Reading>| window(p[0].0, p[0].0, p[p.len() - 1].0, p);
    parts.iter().map(bounds).collect()
}

/// The first reading from `from` on that begins a window.
fn beginning(abort: bool, from: usize, readings: &[Reading]) -> Option<usize> {
    let begin = |r: &Reading| begins(r.1) && !(abort && aborts(r.1));
    readings[from..].iter().position(begin).map(|at| from + at)
}

fn from_to(abort: bool, max_us: Option<i64>, readings: &[Reading]) -> Vec<Window> {
    let mut found = Vec::new();
    let mut next = beginning(abort, 0, readings);
    while let Some(from) = next {
        let start = readings[from].0;
        let cut = max_us.map_or(i64::MAX, |max| start + max);
        let rest = &readings[from + 1..];
        let stop = rest
            .iter()
            .position(|r| r.0 >= cut || (abort && aborts(r.1)) || (ends(r.1) && r.0 > start));
        next = None;
        match stop.map(|at| from + 1 + at) {
            Some(at) if readings[at].0 >= cut => {
                found.push(window(start, start, cut, &readings[from..at]));
                next = beginning(abort, at, readings);
            }
            Some(at) if abort && aborts(readings[at].1) => {
                next = beginning(abort, at + 1, readings);
            }
            Some(at) => {
                found.push(window(start, start, readings[at].0, &readings[from..=at]));
                next = beginning(abort, at, readings);
            }
            None => found.push(still_open(start, cut, &readings[from..])),
        }
    }
    found
}

fn still_open(start: i64, cut: i64, readings: &[Reading]) -> Window {
    let last = readings[readings.len() - 1].0;
    Window { end_us: (last, cut), ..window(start, start, last, readings) }
}

fn whiles(abort: bool, max_us: Option<i64>, readings: &[Reading]) -> Vec<Window> {
    let mut found = Vec::new();
    let mut next = beginning(abort, 0, readings);
    while let Some(from) = next {
        let start = readings[from].0;
        let cut = max_us.map_or(i64::MAX, |max| start + max);
        let rest = &readings[from + 1..];
        let stop = rest.iter().position(|r| r.0 >= cut || !begins(r.1));
        next = None;
        match stop.map(|at| from + 1 + at) {
            Some(at) if readings[at].0 >= cut => {
                found.push(window(start, start, cut, &readings[from..at]));
                next = beginning(abort, at, readings);
            }
            Some(at) => {
                if !(abort && aborts(readings[at].1)) {
                    found.push(window(start, start, readings[at].0, &readings[from..at]));
                }
                next = beginning(abort, at, readings);
            }
            None => found.push(still_open(start, cut, &readings[from..])),
        }
    }
    found
}

/// Where a window begins that is open at `final_us`, of readings that are older, in order.
fn open_us(shape: &Shape, older: &[Reading], final_us: i64) -> Option<i64> {
    match shape {
        Shape::Session { gap_us, max_us } => {
            let last = sessions(*gap_us, *max_us, older).pop()?;
            let is_open = final_us <= last.end_us.0 + gap_us
                && max_us.is_none_or(|max_us| final_us < last.start_us + max_us);
            is_open.then_some(last.start_us)
        }
        Shape::State { until, abort, max_us, .. } => {
            let last = match until.is_some() {
                true => from_to(abort.is_some(), *max_us, older).pop()?,
                false => whiles(abort.is_some(), *max_us, older).pop()?,
            };
            let is_open = last.end_us.0 < last.end_us.1 && final_us < last.end_us.1;
            is_open.then_some(last.start_us)
        }
        _ => None,
    }
}

/// Whether a reading is taken that is older than `final_us`: by what the key's readings that were
/// taken and are older say, in order, and the times of those that were not.
pub(super) fn takes(
    shape: &Shape,
    older: &[Reading],
    late: &[i64],
    final_us: i64,
    (time, value): Reading,
) -> bool {
    let open = open_us(shape, older, final_us);
    let is_closed = |w: &&Window| Some(w.start_us) != open;
    let is_in = open.is_some_and(|start| start <= time);
    match shape {
        Shape::Session { gap_us, max_us } => {
            let before = sessions(*gap_us, *max_us, older).into_iter();
            let before = before.filter(|w| Some(w.start_us) != open).map(|w| w.end_us.0);
            let alone = before.chain(late.iter().copied()).all(|last| last + gap_us < time);
            let is_open = open.is_some_and(|start| start <= time + gap_us);
            let stays_open = is_open || final_us <= time + gap_us;
            let is_whole = max_us.is_none_or(|max_us| final_us < time + max_us);
            is_in || (alone && stays_open && is_whole)
        }
        Shape::State { until, abort, .. } => {
            let windows = windows(shape, older);
            let cuts = windows.iter().filter(is_closed).map(|w| w.end_us.1);
            let before = older.iter().map(|r| r.0).chain(late.iter().copied()).chain(cuts);
            let ends = match until.is_some() {
                true => ends(value),
                false => !begins(value),
            };
            let is_aborted = abort.is_some() && aborts(value);
            let goes_on = !ends && !is_aborted;
            before.max().is_none_or(|last| last < time) || (is_in && goes_on)
        }
        Shape::Count { size, hop } => {
            let complete = older.len() as i64;
            let first_open = (0..).find(|k| k * hop + size > complete).unwrap_or(0);
            // Whole blocks of readings that are in the same windows.
            let block = (1..=*size).rev().find(|b| size % b == 0 && hop % b == 0).unwrap_or(1);
            let closed = (complete / block * block).max(complete.min(first_open * hop));
            let before = older.iter().filter(|r| r.0 <= time).count() as i64;
            before >= closed && late.iter().all(|late| *late <= time)
        }
        _ => false,
    }
}
