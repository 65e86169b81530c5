//! The definition of each pattern, as plainly as it can be written.

use super::{DEVICES, Sent};
use crate::spec::Pattern;

/// Device, time of the first reading, of the completion, and of the end, if there was one.
pub(super) type Found = (String, i64, i64, Option<i64>);

/// A reading of one device: time, whether it can be first and last.
type One = (i64, bool, bool);

/// A match of one device.
type Of = (i64, i64, Option<i64>);

/// All matches of all devices. Readings of one time are in the order of what they say; one that
/// came twice counts twice.
pub(super) fn plain(pattern: Pattern, sent: &[Sent]) -> Vec<Found> {
    let mut all = Vec::new();
    for (number, device) in DEVICES.iter().enumerate() {
        let own = sent.iter().filter(|s| s.0 == number);
        let mut own: Vec<One> = own.map(|s| (s.1, s.2, s.3)).collect();
        if matches!(pattern, Pattern::Among { .. } | Pattern::Times { .. }) {
            // There is but one condition.
            own.iter_mut().for_each(|r| r.1 = r.2);
        }
        own.sort_unstable();
        let found = match pattern {
            Pattern::Then { within_us } => then(&own, within_us),
            Pattern::Without { within_us } => without(&own, within_us, &[]),
            Pattern::Among { times, of } => among(&own, times as usize, of as usize),
            Pattern::Times { times, within_us } => within(&own, times as usize, within_us),
        };
        all.extend(found.into_iter().map(|(s, c, o)| ((*device).to_owned(), s, c, o)));
    }
    all
}

fn then(own: &[One], within: i64) -> Vec<Of> {
    // Places of the first and the second reading of each match.
    let mut found: Vec<(usize, usize)> = Vec::new();
    for i in (0..own.len()).filter(|i| own[*i].2) {
        let Some(first) = own[..i].iter().rposition(|r| r.1) else { continue };
        let taken = own[first + 1..i].iter().any(|r| r.2 && r.0 > own[first].0);
        let after = own[i].0 - own[first].0;
        if !taken && after > 0 && after <= within {
            found.push((first, i));
        }
    }
    let over = |i: usize| {
        let ends = |j: &usize| !own[*j].2 || found.iter().any(|f| f.1 == *j);
        (i + 1..own.len()).find(ends).map(|j| own[j].0)
    };
    found.iter().map(|(first, i)| (own[*first].0, own[*i].0, over(*i))).collect()
}

/// `unheard`: times of readings before which messages may have been lost.
pub(super) fn without(own: &[One], within: i64, unheard: &[i64]) -> Vec<Of> {
    let mut found = Vec::new();
    let mut from = i64::MIN;
    while let Some(first) = own.iter().find(|r| r.1 && r.0 >= from) {
        let next = own.iter().find(|r| r.2 && r.0 > first.0).map(|r| r.0);
        let deadline = first.0 + within;
        let after = own.iter().map(|r| r.0).find(|at| *at > deadline);
        if next.is_some_and(|next| next <= deadline) {
            from = next.unwrap();
            continue;
        }
        if let Some(after) = after.filter(|after| unheard.contains(after)) {
            // It may have come in that time.
            from = after;
            continue;
        }
        found.push((first.0, deadline, next));
        match next {
            Some(next) => from = next,
            None => break,
        }
    }
    found
}

fn among(own: &[One], times: usize, of: usize) -> Vec<Of> {
    let mut found: Vec<Of> = Vec::new();
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

fn within(own: &[One], times: usize, within: i64) -> Vec<Of> {
    let mut found: Vec<Of> = Vec::new();
    let mut active = false;
    for i in 0..=own.len() {
        let hits = |of: &[One], at: i64| -> Vec<i64> {
            let inside = of.iter().filter(|r| r.2 && at - within < r.0 && r.0 <= at);
            inside.map(|r| r.0).collect()
        };
        // Time passes without a reading.
        let until = own.get(i).map_or(i64::MAX, |r| r.0);
        let last = i.checked_sub(1).map_or(0, |i| own[i].0);
        let mut passed = (last + 1..until.min(last + within + 1)).filter(|_| active);
        if let Some(at) = passed.find(|at| hits(&own[..i], *at).len() < times) {
            found.last_mut().unwrap().2 = Some(at);
            active = false;
        }
        let Some(reading) = own.get(i) else { break };
        let hits = hits(&own[..=i], reading.0);
        let now = hits.len() >= times;
        if now && !active {
            found.push((hits[hits.len() - times], reading.0, None));
        } else if !now && active {
            found.last_mut().unwrap().2 = Some(reading.0);
        }
        active = now;
    }
    found
}
