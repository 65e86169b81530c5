//! One rule at a time: what is told, and when.

use super::*;
use crate::event::SessionEvent;
use crate::message::MessagesBuilder;
use crate::operator::KeyedOperator;
use crate::outage::{OUTAGES_MAX, OutageLog, OutageSpec, outage_changes};

fn told(rows: &[Row]) -> Vec<(i64, i64, &str, i64, i64)> {
    rows.iter().map(|r| (r.start, r.end, r.status.as_str(), r.missed, r.revision)).collect()
}

#[test]
fn silence_is_told_by_ticks_alone_and_ends_with_a_reading() {
    let mut fleet = Fleet::new(spec());
    fleet.epoch(1_000, &[("a", 500, 4.5)], &[]);
    assert_eq!(fleet.epoch(1_030, &[], &[]), [], "the third may still come");
    let rows = fleet.epoch(1_031, &[], &[]);
    assert_eq!(told(&rows), [(500, 530, "silent", 3, 0)], "in the time of the device's own clock");
    assert_eq!(rows[0].x, Some(4.5));
    assert_eq!(fleet.epoch(2_000, &[], &[]), [], "told once");
    assert_eq!(fleet.epoch(2_001, &[("a", 1_501, 5.0)], &[]), []);
    let rows = fleet.epoch(2_001 + DISORDER, &[], &[]);
    assert_eq!(told(&rows), [(500, 1_501, "back", 100, 1)]);
}

#[test]
fn a_buffered_upload_takes_it_back() {
    let mut fleet = Fleet::new(spec());
    fleet.epoch(0, &[("a", 0, 1.0)], &[]);
    assert_eq!(told(&fleet.epoch(500, &[], &[])), [(0, 30, "silent", 3, 0)]);
    let buffered: Vec<Reading> = (1..=50).map(|i| ("a", i * 10, 2.0)).collect();
    let rows = fleet.epoch(505, &buffered, &[]);
    assert_eq!(told(&rows), [(0, 505, "withdrawn", 0, 1)], "as of now, so that somebody is told");
    assert_eq!(fleet.epoch(511, &[], &[]), []);
    // The newest first, and then what is missing: the absence has ended, then was none.
    fleet.epoch(1_000, &[("a", 1_000, 3.0)], &[]);
    let rows = fleet.epoch(1_006, &[], &[]);
    assert_eq!(told(&rows), [(500, 530, "silent", 3, 0), (500, 1_000, "back", 49, 1)]);
    let rows = fleet.epoch(1_007, &[("a", 525, 4.0)], &[]);
    let expected =
        [(500, 525, "withdrawn", 0, 2), (525, 555, "silent", 3, 0), (525, 1_000, "back", 47, 1)];
    assert_eq!(told(&rows), expected);
}

#[test]
fn a_clock_that_jumps_ahead_is_no_silence() {
    let mut fleet = Fleet::new(spec());
    for at in [0, 10, 20, 30] {
        assert_eq!(fleet.epoch(at, &[("a", at, 1.0)], &[]), []);
    }
    // One reading is of a time that is still to come; the device goes on as before.
    assert_eq!(fleet.epoch(35, &[("a", 100, 1.0)], &[]), []);
    for at in [40, 50, 75, 90] {
        assert_eq!(fleet.epoch(at, &[("a", at, 1.0)], &[]), []);
    }
    fleet.restart(2);
    assert_eq!(fleet.epoch(110, &[("a", 110, 1.0)], &[]), []);
    assert_eq!(told(&fleet.epoch(141, &[], &[])), [(110, 140, "silent", 3, 0)], "by ticks");
    // It was silent and comes back with such a clock: that is told.
    assert_eq!(fleet.epoch(200, &[("a", 900, 1.0)], &[]), []);
    assert_eq!(told(&fleet.epoch(206, &[], &[])), [(110, 900, "back", 78, 1)]);
    // What is of the past says itself when it was, whenever it arrives.
    let mut fleet = Fleet::new(spec());
    fleet.epoch(1_000, &[("a", 0, 1.0), ("a", 90, 1.0)], &[]);
    let rows = fleet.epoch(1_006, &[], &[]);
    assert_eq!(told(&rows), [(0, 30, "silent", 3, 0), (0, 90, "back", 8, 1)]);
}

#[test]
fn what_is_older_than_can_be_corrected_is_late() {
    let mut fleet = Fleet::new(AbsenceSpec { keep_us: 100, ..spec() });
    fleet.epoch(0, &[("a", 0, 1.0)], &[]);
    fleet.epoch(1_000, &[("a", 1_000, 1.0)], &[]);
    fleet.epoch(1_006, &[], &[]);
    assert_eq!(fleet.epoch(1_007, &[("a", 899, 1.0)], &[]), []);
    assert_eq!(fleet.late, 1);
    let rows = fleet.epoch(1_008, &[("a", 900, 1.0)], &[]);
    assert_eq!((rows.len(), fleet.late), (3, 1), "{rows:?}");
}

#[test]
fn a_source_that_comes_back_gives_everybody_the_whole_limit() {
    let mut fleet = Fleet::new(spec());
    fleet.epoch(0, &[("a", 0, 1.0), ("b", 0, 1.0)], &[]);
    fleet.epoch(10, &[], &[(10, i64::MAX)]);
    let rows = fleet.epoch(50, &[], &[]);
    assert_eq!(told(&rows), [(0, 30, "inhibited", 3, 0); 2]);
    fleet.restart(2);
    assert_eq!(fleet.epoch(500, &[], &[(10, i64::MAX)]), []);
    assert_eq!(fleet.epoch(1_000, &[], &[(10, 1_000)]), []);
    assert_eq!(fleet.epoch(1_020, &[("a", 1_020, 1.0)], &[]), []);
    let rows = fleet.epoch(1_026, &[], &[]);
    assert_eq!(told(&rows), [(0, 1_020, "back", 101, 1)]);
    assert!(rows[0].inhibited, "nobody knows what was sent meanwhile");
    assert_eq!(fleet.epoch(1_030, &[], &[]), []);
    let rows = fleet.epoch(1_031, &[], &[]);
    assert_eq!(told(&rows), [(0, 1_030, "silent", 3, 1)], "the other one is silent indeed");
    assert!(!rows[0].inhibited);
}

#[test]
fn a_source_that_flaps_makes_no_alert_flap() {
    let mut fleet = Fleet::new(spec());
    let mut outages: Vec<(i64, i64)> = Vec::new();
    for turn in 0..500 {
        let at = turn * 50;
        // Twenty without the source, thirty with it; the device sends whenever it can.
        outages.push((at, i64::MAX));
        fleet.epoch(at, &[], &outages);
        fleet.epoch(at + 19, &[], &[]);
        outages.last_mut().unwrap().1 = at + 20;
        fleet.epoch(at + 20, &[], &outages);
        for i in 0..3 {
            fleet.epoch(at + 21 + i * 10, &[("a", at + 21 + i * 10, 1.0)], &[]);
        }
    }
    assert!(fleet.told.is_empty(), "{:?}", fleet.told);
    // One that can send only now and then is not silent either, and one that never does is not
    // told twice.
    fleet.epoch(25_000, &[("a", 25_000, 1.0), ("b", 25_000, 1.0)], &[]);
    for turn in 0..500 {
        let at = 25_000 + turn * 50;
        outages.push((at + 25, i64::MAX));
        fleet.epoch(at + 25, &[], &outages);
        outages.last_mut().unwrap().1 = at + 49;
        fleet.epoch(at + 49, &[("a", at + 49, 1.0)], &outages);
    }
    let silent = fleet.told.iter().filter(|row| row.status == "silent").count();
    let of_b: Vec<&Row> = fleet.told.iter().filter(|row| row.device == "b").collect();
    assert_eq!((silent, of_b.len()), (0, 1));
    assert_eq!(of_b[0].status, "inhibited");
}

#[test]
fn a_cadence_is_learnt_and_follows_the_device() {
    let cadence = Cadence::Learnt { least_us: 5 };
    let mut fleet = Fleet::new(AbsenceSpec { cadence, ..spec() });
    let mut at = 0;
    let mut go = |fleet: &mut Fleet, gap: i64, count: i64| {
        for _ in 0..count {
            at += gap;
            fleet.epoch(at, &[("a", at, 1.0)], &[]);
        }
        at
    };
    let last = go(&mut fleet, 20, GAPS_LEAST as i64);
    assert_eq!(fleet.epoch(last + 15, &[], &[]), [], "one gap too few is known");
    let last = go(&mut fleet, 20, 30);
    let rows = fleet.epoch(last + 61, &[], &[]);
    assert_eq!(told(&rows), [(last, last + 60, "silent", 3, 0)]);
    // A device that is slower now is silent at first, and then is not.
    go(&mut fleet, 100, 10);
    let before = fleet.told.len();
    let last = go(&mut fleet, 100, 20);
    assert_eq!(fleet.told.len(), before, "{:?}", &fleet.told[before..]);
    let rows = fleet.epoch(last + 301, &[], &[]);
    assert_eq!(told(&rows), [(last, last + 300, "silent", 3, 0)]);
}

#[test]
fn a_key_that_is_gone_for_long_is_forgotten_and_says_so() {
    let mut fleet = Fleet::new(AbsenceSpec { forget_after_us: 1_000, ..spec() });
    fleet.epoch(0, &[("a", 0, 1.0)], &[]);
    fleet.epoch(31, &[], &[]);
    fleet.restart(3);
    assert_eq!(fleet.epoch(999, &[], &[]), []);
    assert_eq!(told(&fleet.epoch(1_000, &[], &[])), [(0, 1_000, "forgotten", 99, 1)]);
    assert!(fleet.workers.iter().all(|worker| worker.interner.is_empty()));
    assert_eq!(fleet.epoch(5_000, &[("a", 5_000, 1.0)], &[]), []);
    assert_eq!(fleet.epoch(5_010, &[], &[]), [], "it is new");
}

#[test]
fn a_reading_that_is_old_is_heard_all_the_same() {
    let mut fleet = Fleet::new(spec());
    // Its clock was far ahead, and was set right.
    fleet.epoch(0, &[("a", 3_000, 1.0)], &[]);
    fleet.epoch(6, &[], &[]);
    for at in 1..200 {
        assert_eq!(fleet.epoch(at * 10, &[("a", at * 10, 1.0)], &[]), [], "at {at}");
        if at % 7 == 0 {
            fleet.restart(1 + at as usize % 3);
        }
    }
    assert_eq!(fleet.epoch(2_020, &[], &[]), []);
    assert_eq!(told(&fleet.epoch(2_021, &[], &[])), [(3_000, 5_020, "silent", 3, 0)]);
}

#[test]
fn batches_are_learnt_as_they_arrive() {
    let mut fleet = Fleet::new(AbsenceSpec { cadence: Cadence::Learnt { least_us: 5 }, ..spec() });
    // Sixty readings ten apart in one message, or in several that come together.
    for minute in 1..40 {
        let at = minute * 600;
        let batch: Vec<Reading> = (0..60).map(|i| ("a", at - 600 + i * 10, 1.0)).collect();
        for (i, some) in batch.chunks(20).enumerate() {
            fleet.epoch(at + i as i64, some, &[]);
        }
        for tick in (10..600).step_by(10) {
            assert_eq!(fleet.epoch(at + tick, &[], &[]), [], "minute {minute}");
        }
        if minute % 9 == 0 {
            fleet.restart(2);
        }
    }
    let last = 39 * 600 + 2;
    assert_eq!(fleet.epoch(last + 3 * 600, &[], &[]), []);
    let rows = fleet.epoch(last + 3 * 600 + 1, &[], &[]);
    let start = 39 * 600 - 10;
    assert_eq!(told(&rows), [(start, start + 3 * 600, "silent", 3, 0)]);
    // A gap within a batch is one by its own clock, as before.
    fleet.epoch(30_000, &[("a", 28_000, 1.0), ("a", 28_010, 1.0), ("a", 28_100, 1.0)], &[]);
    let rows = fleet.epoch(30_006, &[], &[]);
    let of_batch: Vec<_> = rows.iter().filter(|row| row.start >= 28_000).cloned().collect();
    let expected = [(28_010, 28_040, "silent", 3, 0), (28_010, 28_100, "back", 8, 1)];
    assert_eq!(told(&of_batch), expected);
}

#[test]
fn what_an_outage_could_explain_that_is_not_known_yet_waits() {
    // The cable is pulled; it takes 25 until that is noticed.
    let spec = AbsenceSpec { known_after_us: 30, ..spec() };
    let mut fleet = Fleet::new(spec);
    for at in 0..=10 {
        fleet.epoch(at * 10, &[("a", at * 10, 1.0)], &[]);
    }
    for at in 101..135 {
        assert_eq!(fleet.epoch(at, &[], &[]), [], "at {at}");
    }
    assert_eq!(fleet.epoch(135, &[], &[(110, i64::MAX)]), []);
    let rows = fleet.epoch(141, &[], &[]);
    assert_eq!(told(&rows), [(100, 130, "inhibited", 3, 0)]);
    // Who is silent with the source there, is told a little later.
    fleet.epoch(200, &[("a", 200, 1.0)], &[(110, 200)]);
    fleet.epoch(206, &[], &[]);
    assert_eq!(fleet.epoch(240, &[], &[]), []);
    assert_eq!(told(&fleet.epoch(241, &[], &[])), [(200, 230, "silent", 3, 0)]);
}

#[test]
fn a_source_that_flaps_beyond_what_is_remembered_makes_no_alert_either() {
    let mut fleet = Fleet::new(spec());
    let spec = OutageSpec { stopped_after_us: None, sessions: 1 };
    let mut log = OutageLog::new(spec, true);
    let mut turn = |at: i64, event: &str, readings: &[Reading]| {
        let mut out = MessagesBuilder::default();
        SessionEvent { event: event.into(), ..SessionEvent::default() }.put(&mut out, at, 0);
        let changes = outage_changes(spec, true, &out.finish(0, 0));
        let mut emit = Emit::default();
        log.epoch(&changes, Tick { epoch: 1, time_us: at }, &mut emit).unwrap();
        let mut outages = Outages::default();
        emit.rows.iter().for_each(|rows| outages.take(rows));
        let outages: Vec<(i64, i64)> = outages.iter().map(|o| (o.from_us, o.to_us)).collect();
        fleet.epoch(at, readings, &outages)
    };
    // It sends once, and nothing is heard of it for longer than outages are remembered.
    assert_eq!(turn(0, "connected", &[("a", 0, 1.0)]), []);
    let mut all = Vec::new();
    for i in 1..=2 * OUTAGES_MAX as i64 {
        all.extend(turn(i * 50 - 25, "lost", &[]));
        all.extend(turn(i * 50, "connected", &[]));
    }
    // Its next reading says what the whole time was worth: nothing is known of it.
    let at = OUTAGES_MAX as i64 * 100 + 5;
    all.extend(turn(at, "connected", &[("a", at, 1.0)]));
    all.extend(turn(at + DISORDER + 1, "connected", &[]));
    assert_eq!(told(&all), [(0, 30, "inhibited", 3, 0), (0, at, "back", (at - 1) / 10, 1)]);
    assert!(all.iter().all(|row| row.inhibited));
}

#[test]
fn a_long_stop_lets_nobody_be_forgotten_who_comes_back() {
    let mut fleet = Fleet::new(AbsenceSpec { forget_after_us: 1_000, ..spec() });
    fleet.epoch(0, &[("a", 0, 1.0), ("b", 0, 1.0), ("c", 0, 1.0)], &[]);
    fleet.epoch(10, &[], &[(10, i64::MAX)]);
    fleet.restart(2);
    let rows = fleet.epoch(4_000, &[], &[(10, i64::MAX)]);
    assert_eq!(told(&rows), [(0, 30, "inhibited", 3, 0); 3]);
    assert_eq!(fleet.epoch(4_001, &[("a", 4_001, 1.0)], &[]), [], "held, and heard");
    fleet.epoch(5_000, &[], &[(10, 5_000)]);
    fleet.restart(1);
    fleet.epoch(5_010, &[("b", 5_010, 1.0)], &[(10, 5_000)]);
    fleet.epoch(5_020, &[("a", 5_020, 1.0)], &[]);
    fleet.epoch(5_030, &[("b", 5_030, 1.0)], &[]);
    let rows = fleet.epoch(5_031, &[], &[]);
    let of_c = |rows: &[Row]| -> Vec<Row> {
        rows.iter().filter(|row| row.device == "c").cloned().collect()
    };
    assert_eq!(told(&of_c(&rows)), [(0, 5_030, "silent", 3, 1)]);
    fleet.restart(2);
    assert_eq!(of_c(&fleet.epoch(5_989, &[], &[(10, 5_000)])), []);
    let rows = of_c(&fleet.epoch(5_990, &[], &[]));
    assert_eq!(told(&rows), [(0, 5_990, "forgotten", 598, 2)], "10 before, 990 after");
    let gone = fleet.told.iter().filter(|row| row.status == "forgotten").count();
    assert_eq!(gone, 1, "{:?}", fleet.told);
}

/// What is learnt of it can be longer than the time after which others are forgotten.
#[test]
fn who_is_slow_is_told_silent_before_it_is_forgotten() {
    let cadence = Cadence::Learnt { least_us: 5 };
    let mut fleet = Fleet::new(AbsenceSpec { cadence, forget_after_us: 1_000, ..spec() });
    for turn in 0..20 {
        fleet.epoch(turn * 600, &[("a", turn * 600, 1.0)], &[]);
    }
    let last = 19 * 600;
    fleet.restart(2);
    assert_eq!(fleet.epoch(last + 1_800, &[], &[]), []);
    let rows = fleet.epoch(last + 1_801, &[], &[]);
    assert_eq!(told(&rows), [(last, last + 1_800, "silent", 3, 0)]);
    assert_eq!(fleet.epoch(last + 3_600, &[], &[]), [], "as long again");
    let rows = fleet.epoch(last + 3_601, &[], &[]);
    assert_eq!(told(&rows), [(last, last + 3_601, "forgotten", 6, 1)]);
}

/// A quick device, and a short stop: it takes longer to come back than three readings take.
#[test]
fn the_way_back_after_an_outage_is_no_silence() {
    let mut fleet = Fleet::new(AbsenceSpec { known_after_us: 100, ..spec() });
    fleet.epoch(0, &[("a", 0, 1.0)], &[]);
    fleet.epoch(65, &[], &[(5, 65)]);
    fleet.epoch(105, &[("a", 105, 1.0)], &[]);
    let rows = fleet.epoch(111, &[], &[]);
    assert_eq!(told(&rows), [(0, 30, "inhibited", 3, 0), (0, 105, "back", 10, 1)]);
    // Between two outages, too; before the first one, nothing but the device explains it.
    fleet.epoch(115, &[], &[(5, 65), (110, 115)]);
    fleet.epoch(155, &[], &[(5, 65), (110, 115), (150, 155)]);
    fleet.epoch(160, &[("a", 160, 1.0)], &[]);
    let rows = fleet.epoch(166, &[], &[]);
    assert_eq!(told(&rows), [(105, 135, "inhibited", 3, 0), (105, 160, "back", 5, 1)]);
    fleet.epoch(220, &[("a", 220, 1.0)], &[(150, 155), (200, 210)]);
    let rows = fleet.epoch(226, &[], &[]);
    assert_eq!(told(&rows), [(160, 190, "silent", 3, 0), (160, 220, "back", 5, 1)]);
}

#[test]
fn of_files_only_the_devices_own_times_count() {
    let mut fleet = Fleet::new(AbsenceSpec { live: false, ..spec() });
    fleet.epoch(0, &[("a", 0, 1.0), ("a", 10, 1.0), ("a", 90, 1.0), ("a", 100, 1.0)], &[]);
    assert_eq!(told(&fleet.told), [(10, 40, "silent", 3, 0), (10, 90, "back", 7, 1)]);
    assert_eq!(fleet.epoch(2_000_000, &[], &[]), []);
}

#[test]
fn of_files_a_reading_waits_for_those_of_its_device_alone() {
    let mut fleet = Fleet::new(AbsenceSpec { live: false, ..spec() });
    fleet.epoch(0, &[("a", 0, 1.0), ("a", 33, 1.0)], &[]);
    fleet.epoch(1_000, &[], &[]);
    fleet.epoch(2_000, &[("a", 29, 1.0), ("a", 60, 1.0)], &[]);
    assert!(fleet.told.is_empty(), "{:?}", fleet.told);
}

#[test]
fn what_can_be_corrected_is_bounded() {
    let mut fleet = Fleet::new(AbsenceSpec { keep_us: i64::MAX, ..spec() });
    for i in 0..1_000 {
        fleet.epoch(i * 50, &[("a", i * 50, 1.0)], &[]);
    }
    assert_eq!(fleet.workers[0].keys[0].absences.len(), ABSENCES_MAX);
}

#[test]
fn what_falls_into_an_absence_that_is_final_is_late() {
    let mut fleet = Fleet::new(AbsenceSpec { keep_us: i64::MAX, ..spec() });
    let last = ABSENCES_MAX as i64 + 2;
    for i in 0..=last {
        fleet.epoch(i * 50, &[("a", i * 50, 1.0)], &[]);
    }
    fleet.epoch(last * 50 + DISORDER, &[], &[]);
    fleet.restart(2);
    for (at, late) in [(25, 1), (75, 2), (125, 2)] {
        let rows = fleet.epoch(last * 50 + 6 + at, &[("a", at, 1.0)], &[]);
        assert_eq!((rows.is_empty(), fleet.late), (at < 100, late), "at {at}");
    }
}
