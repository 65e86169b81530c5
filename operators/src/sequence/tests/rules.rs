//! One rule at a time: what is told, and when.

use super::*;

fn told(rows: &[Row]) -> Vec<(i64, i64, bool, i64)> {
    rows.iter().map(|r| (r.start, r.end, r.active, r.revision)).collect()
}

#[test]
fn what_does_not_come_is_told_without_a_message() {
    let mut fleet = Fleet::new(spec(Pattern::Without { within_us: 100 }));
    fleet.epoch(1_000, &[("a", 500, true, false)]);
    assert_eq!(fleet.epoch(1_105, &[]), [], "it may be on its way");
    fleet.restart(3);
    let rows = fleet.epoch(1_106, &[]);
    assert_eq!(told(&rows), [(500, 600, true, 0)], "in the time of the device's own clock");
    assert_eq!(rows[0].values, Some((500.0, 500.0)));
    assert_eq!(fleet.epoch(2_000, &[("a", 1_400, true, false)]), [], "nothing new");
    assert_eq!(fleet.epoch(2_010, &[("a", 1_450, false, true)]), []);
    assert_eq!(told(&fleet.epoch(2_030, &[])), [(500, 1_450, false, 1)]);
}

#[test]
fn what_comes_late_takes_it_back() {
    let mut fleet = Fleet::new(spec(Pattern::Without { within_us: 100 }));
    fleet.epoch(0, &[("a", 0, true, false)]);
    assert_eq!(told(&fleet.epoch(200, &[])), [(0, 100, true, 0)]);
    let rows = fleet.epoch(210, &[("a", 100, false, true)]);
    assert_eq!(told(&rows), [(0, 100, false, 1)]);
    assert_eq!((rows[0].rows, rows[0].matched, rows[0].values), (0, 0, None));
}

#[test]
fn what_is_final_is_late() {
    let spec = SequenceSpec { keep_us: 50, ..spec(Pattern::Then { within_us: 1_000 }) };
    let mut fleet = Fleet::new(spec);
    fleet.epoch(0, &[("a", 0, true, false), ("a", 105, false, true)]);
    assert_eq!(told(&fleet.epoch(20, &[])), [(0, 105, true, 0)], "after `idle_close`");
    fleet.epoch(30, &[("a", 49, true, false)]);
    assert_eq!((fleet.late, fleet.told.len()), (1, 1));
    let rows = fleet.epoch(31, &[("a", 80, true, false)]);
    assert_eq!(told(&rows), [(0, 105, false, 1), (80, 105, true, 0)]);
    assert_eq!((rows[0].rows, rows[1].values), (0, Some((80.0, 105.0))));
}

#[test]
fn a_key_that_is_gone_for_long_is_forgotten_and_its_match_is_over() {
    let spec = SequenceSpec { forget_after_us: 1_000, ..spec(Pattern::Among { times: 2, of: 3 }) };
    let mut fleet = Fleet::new(spec);
    fleet.epoch(0, &[("a", 0, false, true), ("a", 1, false, true)]);
    assert_eq!(told(&fleet.epoch(20, &[])), [(0, 1, true, 0)]);
    assert_eq!(told(&fleet.epoch(1_000, &[])), [(0, 1_001, false, 1)]);
    assert!(fleet.workers[0].interner.is_empty());
}

#[test]
fn what_is_kept_is_bounded() {
    let spec = SequenceSpec { keep_us: i64::MAX, ..spec(Pattern::Then { within_us: 10 }) };
    let mut fleet = Fleet::new(spec);
    for part in 0..4 {
        let from = part * 30_000;
        let readings: Vec<Reading> = (from..from + 30_000).map(|t| ("a", t, true, true)).collect();
        fleet.epoch(part, &readings);
    }
    fleet.epoch(100, &[]);
    assert!(fleet.workers[0].keys[0].entries.len() <= ENTRIES_MAX);
    let last = fleet.told.last().unwrap();
    assert_eq!((last.start, last.completed), (119_998, 119_999));
}

#[test]
fn at_the_end_what_waits_comes_and_nothing_is_missed() {
    for (pattern, count) in
        [(Pattern::Then { within_us: 10 }, 1), (Pattern::Without { within_us: 10 }, 0)]
    {
        let mut operator = SequenceOperator::new(spec(pattern)).unwrap();
        let rows = batch(&[("a", 0, true, false), ("a", 3, false, true), ("a", 4, true, false)]);
        let mut emit = Emit::default();
        let tick = Tick { epoch: 1, time_us: 0 };
        operator.epoch(&rows, &outage_rows(&[]), tick, &mut emit).unwrap();
        assert!(emit.rows.is_empty());
        operator.end(&mut emit).unwrap();
        let rows = rows_of(&emit.rows);
        assert_eq!(rows.iter().filter(|row| row.active).count(), count, "{rows:?}");
    }
}

/// A broker kept what came while Tidegate did not run, and the first tick comes before it.
#[test]
fn what_was_queued_during_a_stop_is_not_late() {
    let spec = SequenceSpec { keep_us: 10, ..spec(Pattern::Then { within_us: 50 }) };
    let mut fleet = Fleet::new(spec);
    fleet.epoch(100, &[("a", 100, true, false)]);
    fleet.restart(1);
    assert_eq!(fleet.epoch_of(1_000, &[], &[(100, 1_000)]), []);
    let rows = fleet.epoch(1_001, &[("a", 110, false, true), ("a", 200, true, false)]);
    assert_eq!((told(&rows), fleet.late), (vec![(100, 110, true, 0)], 0));
    let rows = fleet.epoch(1_002, &[("a", 230, false, true)]);
    assert_eq!(told(&rows), [(100, 200, false, 1)]);
    assert_eq!((told(&fleet.epoch(1_100, &[])), fleet.late), (vec![(200, 230, true, 0)], 0));
}

/// The device, not the source, was cut off for long: what it buffered takes the match back.
#[test]
fn silence_makes_nothing_late() {
    let spec = SequenceSpec { keep_us: 10, ..spec(Pattern::Without { within_us: 300 }) };
    let mut fleet = Fleet::new(spec);
    fleet.epoch(0, &[("a", 0, true, false)]);
    assert_eq!(told(&fleet.epoch(900, &[])), [(0, 300, true, 0)]);
    let rows = fleet.epoch(901, &[("a", 20, false, true)]);
    assert_eq!((told(&rows), fleet.late), (vec![(0, 300, false, 1)], 0));
}

#[test]
fn silence_during_an_outage_is_none() {
    let mut fleet = Fleet::new(spec(Pattern::Without { within_us: 100 }));
    fleet.epoch(0, &[("a", 0, true, false), ("b", 0, true, false), ("c", 0, true, false)]);
    fleet.epoch_of(50, &[], &[(50, i64::MAX)]);
    assert_eq!(fleet.epoch(400, &[]), [], "the broker is away");
    fleet.restart(2);
    assert_eq!(fleet.epoch_of(500, &[], &[(50, 500)]), [], "it is back");
    let queued = [("b", 90, false, false), ("b", 110, false, true), ("c", 480, true, false)];
    let rows = fleet.epoch(501, &queued);
    assert_eq!(told(&rows), [(0, 100, true, 0)], "what was queued says so of b");
    assert_eq!(told(&fleet.epoch(530, &[])), [(0, 110, false, 1)]);
    assert_eq!(fleet.epoch(605, &[]), [], "the whole time anew");
    let rows = fleet.epoch(606, &[]);
    assert_eq!((told(&rows), rows[0].device.as_str()), (vec![(0, 100, true, 0)], "a"));
    let rows = fleet.epoch(700, &[]);
    assert_eq!((told(&rows), rows[0].device.as_str()), (vec![(480, 580, true, 0)], "c"));
    // What came first after the outage does not change what was told since.
    fleet.epoch(710, &[("a", 690, false, false)]);
    let rows = fleet.epoch(711, &[("a", 695, false, true)]);
    assert_eq!(rows, [], "it waits for others");
    assert_eq!(told(&fleet.epoch(740, &[])), [(0, 695, false, 1)]);
}

/// The messages of an outage are lost, and the next one comes after the time by its own clock.
#[test]
fn what_was_lost_in_an_outage_is_not_missed() {
    let mut fleet = Fleet::new(spec(Pattern::Without { within_us: 100 }));
    fleet.epoch(0, &[("a", 0, true, false)]);
    fleet.epoch_of(50, &[], &[(50, 500)]);
    fleet.epoch(501, &[("a", 500, true, false)]);
    fleet.restart(1);
    assert_eq!(fleet.epoch_of(530, &[("a", 525, false, false)], &[(50, 500)]), []);
    assert_eq!(told(&fleet.epoch(700, &[])), [(500, 600, true, 0)], "but from then on");
    assert_eq!(fleet.stands().len(), 1);
}

#[test]
fn a_clock_that_stands_is_bounded() {
    let mut fleet = Fleet::new(spec(Pattern::Among { times: 2, of: 3 }));
    for epoch in 0..4 {
        let readings: Vec<Reading> = (0..30_000).map(|_| ("a", 7, false, epoch > 1)).collect();
        fleet.epoch(epoch, &readings);
        assert!(fleet.workers[0].keys[0].entries.len() <= ENTRIES_MAX, "epoch {epoch}");
    }
    fleet.restart(1);
    fleet.epoch(100, &[("a", 30, false, true), ("a", 31, false, true)]);
    fleet.epoch(200, &[]);
    assert_eq!(fleet.late, 0);
    assert!(fleet.stands().last().is_some_and(|found| found.3.is_none()));
}

#[test]
fn a_key_is_not_forgotten_before_what_it_waits_for_is_told() {
    let spec = SequenceSpec { forget_after_us: 50, ..spec(Pattern::Without { within_us: 1_000 }) };
    let mut fleet = Fleet::new(spec);
    fleet.epoch(0, &[("a", 0, true, false)]);
    fleet.epoch(900, &[]);
    assert_eq!(told(&fleet.epoch(1_006, &[])), [(0, 1_000, true, 0)]);
}

/// Each time a key comes back it is listed for its next silence, and not for those of before.
#[test]
fn a_key_is_listed_once() {
    let spec = spec(Pattern::Without { within_us: 10_000_000 });
    let mut fleet = Fleet::new(SequenceSpec { forget_after_us: 1 << 40, ..spec });
    for i in 0..1_000 {
        let at = i * 1_000;
        fleet.epoch(at, &[("a", at, true, false), ("b", at, true, i % 7 == 0)]);
        fleet.epoch(at + 2 * IDLE, &[]);
        assert!(fleet.workers[0].due.len() <= 2, "after {i}: {}", fleet.workers[0].due.len());
    }
}

#[test]
fn a_long_stop_lets_nobody_be_forgotten_who_comes_back() {
    let spec = spec(Pattern::Without { within_us: 500 });
    let mut fleet = Fleet::new(SequenceSpec { forget_after_us: 1_000, ..spec });
    fleet.epoch(0, &[("a", 0, true, false), ("b", 0, true, false), ("c", 0, true, false)]);
    fleet.epoch_of(100, &[], &[(100, i64::MAX)]);
    fleet.restart(2);
    assert_eq!(fleet.epoch_of(4_000, &[], &[(100, i64::MAX)]), [], "held");
    fleet.epoch_of(5_000, &[("a", 5_000, false, true)], &[(100, 5_000)]);
    fleet.restart(1);
    // It was heard of in the time before the outage, and has the rest of its time.
    assert_eq!(fleet.epoch_of(5_200, &[("b", 450, false, true)], &[(100, 5_000)]), []);
    assert_eq!(fleet.known().0, 3);
    let rows = fleet.epoch(5_899, &[]);
    assert_eq!(told(&rows), [(0, 500, true, 0)], "only c did not come back");
    assert_eq!((rows[0].device.as_str(), fleet.known().0), ("c", 3));
    assert_eq!(told(&fleet.epoch(5_900, &[])), [(0, 1_000, false, 1)], "100 before, 900 after");
    assert_eq!(fleet.known().0, 2);
}

/// The connection broke without a word, and the reading that was waited for was lost with it.
#[test]
fn what_an_outage_could_explain_that_is_not_known_yet_waits() {
    let spec = spec(Pattern::Without { within_us: 100 });
    let mut fleet = Fleet::new(SequenceSpec { known_after_us: 30, ..spec });
    fleet.epoch(0, &[("a", 0, true, false)]);
    assert_eq!(fleet.epoch(110, &[]), []);
    fleet.restart(2);
    assert_eq!(fleet.epoch_of(120, &[], &[(95, i64::MAX)]), [], "now it is known");
    assert_eq!(fleet.epoch_of(300, &[], &[(95, 300)]), []);
    assert_eq!(fleet.epoch(301, &[("a", 300, true, false)]), [], "nobody knows");
    assert_eq!(fleet.epoch(301 + 135, &[]), []);
    let rows = fleet.epoch(301 + 136, &[]);
    assert_eq!(told(&rows), [(300, 400, true, 0)], "silent with the source there");
}

/// The same readings after the same outage, however they are cut into epochs, old ones among them.
#[test]
fn the_first_reading_after_an_outage_is_the_first_by_its_time() {
    let late = |first| ("a", 300, first, false);
    let (new, old) = (("a", 500, false, false), ("a", 0, true, false));
    for first in [false, true] {
        for epochs in [
            vec![vec![late(first), new]],
            vec![vec![new], vec![late(first)]],
            vec![vec![old], vec![late(first), new]],
            vec![vec![old, new], vec![old], vec![late(first)], vec![new]],
            vec![vec![("a", -3, false, false)], vec![new], vec![late(first)]],
        ] {
            let mut fleet = Fleet::new(spec(Pattern::Without { within_us: 100 }));
            fleet.epoch(0, &[old]);
            fleet.epoch_of(50, &[], &[(50, 500)]);
            let mut at = 500;
            for readings in &epochs {
                at += 1;
                fleet.epoch(at, readings);
                fleet.restart(1);
                fleet.epoch_of(at, &[], &[(50, 500)]);
            }
            fleet.epoch(1_000, &[]);
            let expected: &[(i64, i64)] = if first { &[(300, 400)] } else { &[] };
            let found: Vec<(i64, i64)> = fleet.stands().iter().map(|f| (f.1, f.2)).collect();
            assert_eq!(found, expected, "{epochs:?}");
        }
    }
}

#[test]
fn a_new_key_has_missed_nothing() {
    let mut fleet = Fleet::new(spec(Pattern::Without { within_us: 100 }));
    fleet.epoch_of(100, &[], &[(10, 50)]);
    fleet.epoch(200, &[("a", 200, true, false)]);
    assert!(fleet.workers[0].keys[0].entries[0].heard);
}
