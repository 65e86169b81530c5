//! One rule at a time: what is told, and when.

use super::*;

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
fn of_files_only_the_devices_own_times_count() {
    let mut fleet = Fleet::new(AbsenceSpec { live: false, ..spec() });
    fleet.epoch(0, &[("a", 0, 1.0), ("a", 10, 1.0), ("a", 90, 1.0), ("a", 100, 1.0)], &[]);
    assert_eq!(told(&fleet.told), [(10, 40, "silent", 3, 0), (10, 90, "back", 7, 1)]);
    assert_eq!(fleet.epoch(2_000_000, &[], &[]), []);
}

#[test]
fn what_can_be_corrected_is_bounded() {
    let mut fleet = Fleet::new(AbsenceSpec { keep_us: i64::MAX, ..spec() });
    for i in 0..1_000 {
        fleet.epoch(i * 50, &[("a", i * 50, 1.0)], &[]);
    }
    assert_eq!(fleet.workers[0].keys[0].absences.len(), ABSENCES_MAX);
}
