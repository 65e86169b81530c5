//! The log of outages: what is in it, how long, and that a restart changes nothing.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::batch::Tick;
use crate::message::{MessageMeta, MessagesBuilder};
use crate::operator::{Emit, KeyedOperator};

const SPEC: OutageSpec = OutageSpec { stopped_after_us: Some(5), sessions: 3 };

fn event(event: &str) -> SessionEvent {
    SessionEvent { event: event.into(), ..SessionEvent::default() }
}

fn rows(spec: OutageSpec, events: &[(i64, u16, &str)]) -> RecordBatch {
    let mut out = MessagesBuilder::default();
    out.push(b"t/a", b"{}", b"dev", MessageMeta::default());
    for (at_us, session, what) in events {
        match *what {
            "gap" => {
                Gap { from_us: at_us - 3, to_us: *at_us, ..Gap::default() }.put(&mut out, *at_us)
            }
            "blocked" => {
                // Since a moment that is the same in its ten, until twenty later.
                let (from_us, to_us) = (at_us / 10 * 10, at_us + 20);
                Blocked { from_us, to_us }.put(&mut out, *at_us);
            }
            "broken" => SessionEvent { heard_us: at_us - 20, ..event("lost") }
                .put(&mut out, *at_us, *session),
            "anew" => {
                SessionEvent { fresh: true, ..event("connected") }.put(&mut out, *at_us, *session)
            }
            what => event(what).put(&mut out, *at_us, *session),
        }
    }
    outage_changes(spec, true, &out.finish(0, 0))
}

/// What a reader has after an epoch; `None`: it was told nothing.
fn epoch(log: &mut OutageLog, time_us: i64, rows: &RecordBatch) -> Option<Outages> {
    let mut emit = Emit::default();
    log.epoch(rows, Tick { epoch: 1, time_us }, &mut emit).unwrap();
    let mut outages = Outages::default();
    emit.rows.iter().for_each(|rows| outages.take(rows));
    (!emit.rows.is_empty()).then_some(outages)
}

fn listed(outages: &Outages) -> Vec<(i64, i64, OutageKind)> {
    outages.iter().map(|o| (o.from_us, o.to_us, o.kind)).collect()
}

#[test]
fn a_source_is_away_while_any_of_its_sessions_is() {
    use OutageKind::{Away, Gap, Stopped};
    let mut log = OutageLog::new(SPEC, true);
    let mut told = |at_us: i64, events: &[(i64, u16, &str)]| {
        epoch(&mut log, at_us, &rows(SPEC, events)).map(|o| listed(&o))
    };
    assert_eq!(told(100, &[(99, 0, "connected"), (99, 1, "connected")]), None);
    let lasts = (102, i64::MAX, Away);
    assert_eq!(told(103, &[(102, 0, "lost"), (103, 0, "refused")]), Some(vec![lasts]));
    assert_eq!(told(105, &[(104, 1, "lost"), (105, 0, "connected")]), None);
    let over = (102, 107, Away);
    assert_eq!(told(107, &[(107, 1, "connected")]), Some(vec![over]));
    assert_eq!(told(112, &[]), None, "five later is in time");
    assert_eq!(told(118, &[]), Some(vec![over, (112, 118, Stopped)]));
    let gap = (115, 118, Gap);
    assert_eq!(told(119, &[(118, 0, "gap")]), Some(vec![over, (112, 118, Stopped), gap]));
}

#[test]
fn sessions_of_devices_and_ticks_of_files_mean_nothing() {
    let spec = OutageSpec::default();
    let mut log = OutageLog::new(spec, true);
    assert_eq!(epoch(&mut log, 1, &rows(spec, &[(1, 0, "lost")])), None);
    assert_eq!(epoch(&mut log, i64::MAX, &rows(spec, &[])), None);
}

#[test]
fn only_the_worker_that_keeps_it_speaks() {
    let mut log = OutageLog::new(SPEC, false);
    let nothing = rows(SPEC, &[]);
    assert_eq!([1, 100, 1000].map(|at_us| epoch(&mut log, at_us, &nothing)), [None, None, None]);
}

#[test]
fn what_is_remembered_is_bounded_and_what_lasts_stays() {
    let mut log = OutageLog::new(SPEC, true);
    epoch(&mut log, 0, &rows(SPEC, &[(0, 0, "lost")]));
    let mut last = None;
    for turn in 1..1000 {
        last = epoch(&mut log, turn, &rows(SPEC, &[(turn, 0, "gap")])).or(last);
    }
    let last = listed(&last.unwrap());
    assert_eq!(last.len(), OUTAGES_MAX);
    assert!(last.contains(&(0, i64::MAX, OutageKind::Away)));
    assert_eq!(last.last().unwrap().1, 999);
    // What is forgotten of them is not taken for quiet.
    assert_eq!((last[0].0, last[0].1), (-2, 1000 - OUTAGES_MAX as i64 + 1));
}

/// A broker that keeps messages gives them after an outage, but not after a gap.
#[test]
fn what_a_gap_lost_stays_lost_when_it_becomes_one_with_another_outage() {
    let spec = OutageSpec { stopped_after_us: Some(1000), ..SPEC };
    for first in ["blocked", "gap"] {
        let second = if first == "gap" { "blocked" } else { "gap" };
        let mut log = OutageLog::new(spec, true);
        let mut last = epoch(&mut log, 20, &rows(spec, &[(10, 0, first), (40, 0, second)]));
        for turn in 5..300 {
            let at_us = turn * 10;
            last = epoch(&mut log, at_us, &rows(spec, &[(at_us, 0, "blocked")])).or(last);
        }
        let last = listed(&last.unwrap());
        assert_eq!(last.len(), OUTAGES_MAX);
        assert_eq!(last[0].2, OutageKind::Gap, "{first} came first");
        assert!(last[0].0 <= 10 && last[0].1 >= 40, "{last:?}");
        assert!(last[1..].iter().all(|o| o.2 == OutageKind::Blocked));
    }
}

#[test]
fn a_start_is_an_outage_until_it_is_connected() {
    use OutageKind::Away;
    let mut log = OutageLog::new(SPEC, true);
    let mut told = |at_us: i64, events: &[(i64, u16, &str)]| {
        epoch(&mut log, at_us, &rows(SPEC, events)).map(|o| listed(&o))
    };
    told(100, &[(99, 0, "connected")]);
    // Killed, and started again at once: nobody listened since the tick before.
    let starts = [(104, 0, "starting"), (104, 1, "starting")];
    assert_eq!(told(104, &starts), Some(vec![(100, i64::MAX, Away)]));
    assert_eq!(told(106, &[(105, 1, "connected")]), None);
    assert_eq!(told(107, &[(107, 0, "connected")]), Some(vec![(100, 107, Away)]));
}

#[test]
fn a_broken_connection_is_lost_since_it_was_heard_last() {
    use OutageKind::Away;
    let mut log = OutageLog::new(SPEC, true);
    let mut told = |at_us: i64, events: &[(i64, u16, &str)]| {
        epoch(&mut log, at_us, &rows(SPEC, events)).map(|o| listed(&o))
    };
    assert_eq!(told(90, &[(90, 0, "lost")]), Some(vec![(90, i64::MAX, Away)]));
    assert_eq!(told(94, &[(94, 1, "broken")]), Some(vec![(74, i64::MAX, Away)]));
    assert_eq!(told(95, &[(95, 2, "broken")]), None);
    assert_eq!(told(96, &[(96, 0, "filter_refused")]), None, "the other filters flow");
}

/// What was lost is known before it is said that nothing lasts any more.
#[test]
fn a_session_that_begins_anew_is_back_when_it_has_subscribed() {
    use OutageKind::{Away, Gap};
    let mut log = OutageLog::new(SPEC, true);
    let mut told = |at_us: i64, events: &[(i64, u16, &str)]| {
        epoch(&mut log, at_us, &rows(SPEC, events)).map(|o| listed(&o))
    };
    assert_eq!(told(90, &[(90, 0, "lost")]), Some(vec![(90, i64::MAX, Away)]));
    assert_eq!(told(94, &[(94, 0, "anew")]), None);
    let gap = (92, 95, Gap);
    assert_eq!(told(95, &[(95, 0, "gap")]), Some(vec![(90, i64::MAX, Away), gap]));
    assert_eq!(told(96, &[(96, 0, "subscribed")]), Some(vec![(90, 96, Away), gap]));
}

#[test]
fn no_room_in_the_journal_is_an_outage_of_every_live_source() {
    let mut out = MessagesBuilder::default();
    Blocked { from_us: 3, to_us: 20 }.put(&mut out, 4);
    SessionEvent { ..event("lost") }.put(&mut out, 4, 0);
    let foreign = outage_changes(SPEC, false, &out.finish(0, 0));
    let mut log = OutageLog::new(SPEC, true);
    let kind = OutageKind::Blocked;
    assert_eq!(epoch(&mut log, 4, &foreign).map(|o| listed(&o)), Some(vec![(3, 20, kind)]));
    // It goes on, and is over sooner than was thought.
    for to_us in [25, 24] {
        let mut out = MessagesBuilder::default();
        Blocked { from_us: 3, to_us }.put(&mut out, 4);
        let again = outage_changes(SPEC, false, &out.finish(0, 0));
        assert_eq!(epoch(&mut log, 5, &again).map(|o| listed(&o)), Some(vec![(3, to_us, kind)]));
    }
    let files = OutageSpec::default();
    assert_eq!(rows(files, &[(1, 0, "blocked")]).num_rows(), 0);
}

#[test]
fn sessions_that_are_configured_no_more_are_not_waited_for() {
    let mut log = OutageLog::new(SPEC, true);
    epoch(&mut log, 2, &rows(SPEC, &[(1, 1, "lost"), (2, 2, "lost")])).unwrap();
    let saved = log.save().unwrap();
    for (sessions, lasts) in [(2, true), (1, false)] {
        let spec = OutageSpec { sessions, ..SPEC };
        let mut log = OutageLog::new(spec, true);
        log.load(&saved).unwrap();
        let told = listed(&epoch(&mut log, 4, &rows(spec, &[(3, 2, "lost")])).unwrap());
        assert_eq!(told, [(1, if lasts { i64::MAX } else { 2 }, OutageKind::Away)]);
    }
}

#[test]
fn quiet_time_is_counted_in_stretches() {
    let of = |list: &[(i64, i64)]| {
        let outage = |o: &(i64, i64)| Outage { from_us: o.0, to_us: o.1, kind: OutageKind::Away };
        Outages(list.iter().map(outage).collect())
    };
    assert_eq!(of(&[]).quiet_for(7, 10), Some(17));
    let two = of(&[(0, 5), (10, 20), (15, 30), (40, 50)]);
    assert_eq!(two.quiet_for(0, 5), Some(10), "between two of them");
    assert_eq!(two.quiet_for(0, 6), Some(31));
    assert_eq!(two.quiet_for(12, 11), Some(51));
    assert_eq!(two.quiet_for(60, 1), Some(61));
    let lasting = of(&[(10, i64::MAX)]);
    assert_eq!((lasting.quiet_for(0, 10), lasting.quiet_for(0, 11)), (Some(10), None));
}

proptest! {
    /// Started again anywhere, a log goes on as if it had not been: its readers are told all of it
    /// once more, and from then on the same.
    #[test]
    fn a_restart_changes_nothing(
        turns in prop::collection::vec((1i64..9, 0u16..3, 0usize..8), 1..40),
        restart in 0usize..40,
    ) {
        let whats = [
            "lost", "connected", "gap", "limited", "disconnected", "starting", "blocked", "broken",
        ];
        let (mut straight, mut other) = (OutageLog::new(SPEC, true), OutageLog::new(SPEC, true));
        let (mut at_us, mut one, mut two) = (0, Outages::default(), Outages::default());
        for (turn, (pause_us, session, what)) in turns.into_iter().enumerate() {
            at_us += pause_us;
            if turn == restart {
                let saved = other.save().unwrap();
                other = OutageLog::new(SPEC, true);
                other.load(&saved).unwrap();
                prop_assert_eq!(other.save().unwrap(), saved);
                two = Outages::default();
            }
            let rows = rows(SPEC, &[(at_us, session, whats[what])]);
            one = epoch(&mut straight, at_us, &rows).unwrap_or(one);
            two = epoch(&mut other, at_us, &rows).unwrap_or(two);
            prop_assert_eq!(&one, &two);
        }
    }
}
