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
    fleet.epoch(30, &[("a", 64, true, false)]);
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
        operator.epoch(&rows, Tick { epoch: 1, time_us: 0 }, &mut emit).unwrap();
        assert!(emit.rows.is_empty());
        operator.end(&mut emit).unwrap();
        let rows = rows_of(&emit.rows);
        assert_eq!(rows.iter().filter(|row| row.active).count(), count, "{rows:?}");
    }
}
