//! The definition of each pattern, as plainly as it can be written.

use super::{DEVICES, Sent};
use crate::spec::Pattern;

/// Device, time of the first reading, of the completion, and of the end, if there was one.
pub(super) type Found = (String, i64, i64, Option<i64>);

/// A reading of one device: time, whether it can be first and last.
type One = (i64, bool, bool);

/// All matches of all devices. Times of a device are distinct.
pub(super) fn plain(pattern: Pattern, sent: &[Sent]) -> Vec<Found> {
    let mut all = Vec::new();
    for (number, device) in DEVICES.iter().enumerate() {
        let own = sent.iter().filter(|s| s.0 == number);
        let mut own: Vec<One> = own.map(|s| (s.1, s.2, s.3)).collect();
        own.sort_unstable();
        let found = match pattern {
            Pattern::Then { within_us } => then(&own, within_us),
            Pattern::Without { within_us } => without(&own, within_us),
            Pattern::Among { times, of } => among(&own, times as usize, of as usize),
            Pattern::Times { times, within_us } => within(&own, times as usize, within_us),
        };
        all.extend(found.into_iter().map(|(s, c, o)| ((*device).to_owned(), s, c, o)));
    }
    all
}

fn then(own: &[One], within: i64) -> Vec<(i64, i64, Option<i64>)> {
    let mut found: Vec<(i64, i64, Option<i64>)> = Vec::new();
    for (i, last) in own.iter().enumerate().filter(|(_, r)| r.2) {
        // Readings since the last one that could be second, that one included.
        let since = own[..i].iter().rposition(|r| r.2).unwrap_or(0);
        let Some(first) = own[since..i].iter().rfind(|r| r.1) else { continue };
        if last.0 - first.0 <= within {
            found.push((first.0, last.0, None));
        }
    }
    let completed: Vec<i64> = found.iter().map(|f| f.1).collect();
    for one in &mut found {
        let not = own.iter().find(|r| r.0 > one.1 && !r.2).map(|r| r.0);
        let next = completed.iter().copied().find(|c| *c > one.1);
        one.2 = not.into_iter().chain(next).min();
    }
    found
}

fn without(own: &[One], within: i64) -> Vec<(i64, i64, Option<i64>)> {
    let mut found = Vec::new();
    let mut from = i64::MIN;
    while let Some(first) = own.iter().find(|r| r.1 && r.0 >= from) {
        let next = own.iter().find(|r| r.2 && r.0 > first.0).map(|r| r.0);
        let deadline = first.0 + within;
        if next.is_none_or(|next| next > deadline) {
            found.push((first.0, deadline, next));
        }
        match next {
            Some(next) => from = next,
            None => break,
        }
    }
    found
}

fn among(own: &[One], times: usize, of: usize) -> Vec<(i64, i64, Option<i64>)> {
    let mut found: Vec<(i64, i64, Option<i64>)> = Vec::new();
    let mut active = false;
    for i in 0..own.len() {
        let recent = &own[(i + 1).saturating_sub(of)..=i];
        let hits: Vec<i64> = recent.iter().filter(|r| r.2).map(|r| r.0).collect();
        let now = hits.len() >= times;
        if now && !active {
            found.push((hits[hits.len() - times], own[i].0, None));
        } else if !now && active {
            found.last_mut().unwrap().2 = Some(own[i].0);
        }
        active = now;
    }
    found
}

fn within(own: &[One], times: usize, within: i64) -> Vec<(i64, i64, Option<i64>)> {
    let mut found: Vec<(i64, i64, Option<i64>)> = Vec::new();
    let mut active = false;
    let end = own.last().map_or(0, |r| r.0 + within + 1);
    for at in 0..=end {
        let inside = own.iter().filter(|r| r.2 && at - within < r.0 && r.0 <= at);
        let hits: Vec<i64> = inside.map(|r| r.0).collect();
        let now = hits.len() >= times;
        if now && !active {
            found.push((hits[hits.len() - times], at, None));
        } else if !now && active {
            found.last_mut().unwrap().2 = Some(at);
        }
        active = now;
    }
    found
}
