//! What is not heard while nothing can be heard is no silence.

use super::*;
use crate::outage::testing::outage_rows;

/// One operator, restarted before each epoch or not.
struct Watched {
    join: IntervalJoin,
    case: Case,
    restarted: bool,
    log: Vec<(i64, i64)>,
    late: usize,
}

impl Watched {
    fn new(case: Case, restarted: bool) -> Self {
        let join = IntervalJoin::new(spec(case)).unwrap();
        Self { join, case, restarted, log: Vec::new(), late: 0 }
    }

    /// An epoch with the log if it has changed, or there was a restart.
    fn at(&mut self, time_us: i64, came: &[In], log: &[(i64, i64)]) -> Vec<Row> {
        let mut told = log != self.log;
        self.log = log.to_vec();
        if self.restarted {
            let saved = self.join.cut(true).rows().unwrap().rows;
            self.join = IntervalJoin::new(spec(self.case)).unwrap();
            self.join.load(&saved).unwrap();
            told = true;
        }
        self.join.aside(&outage_rows(if told { log } else { &[] }));
        let side = |right: bool| {
            let own: Vec<In> = came.iter().filter(|r| r.0 == right).copied().collect();
            let mut columns = batch(&own).columns().to_vec();
            columns.remove(1);
            RecordBatch::try_new(edge(), columns).unwrap()
        };
        let mut emit = Emit::default();
        let tick = Tick { epoch: time_us as u64 + 1, time_us };
        self.join.epoch(&side(false), &side(true), tick, &mut emit).unwrap();
        self.late += late_rows(&emit);
        rows(&emit)
    }
}

/// Tidegate does not run while a badge is shown; the broker keeps it.
#[test]
fn a_stop_is_no_silence() {
    let case = Case { before_us: 10, after_us: 5, disorder_us: 2, idle_close_us: 30, ..plain() };
    for restarted in [false, true] {
        for outer in [false, true] {
            let mut one = Watched::new(Case { outer, ..case }, restarted);
            assert_eq!(one.at(25, &[(false, 1, 25, 7)], &[]), []);
            let log = [(26, 86)];
            assert_eq!(one.at(86, &[], &log), []);
            assert_eq!(one.at(87, &[(true, 1, 29, 1)], &log), []);
            assert_eq!(one.at(116, &[], &log), []);
            assert_eq!(one.at(117, &[], &log), [(1, 25, 7, Some((29, 1)))]);
            assert_eq!(one.late, 0);
        }
    }
}

#[test]
fn while_the_source_is_away_nobody_is_silent_or_forgotten() {
    let case = Case { before_us: 10, after_us: 5, idle_close_us: 30, ..plain() };
    for restarted in [false, true] {
        let mut one = Watched::new(case, restarted);
        one.at(0, &[(true, 1, 0, 1), (false, 1, 4, 7)], &[]);
        one.at(1, &[(true, 2, 0, 1)], &[]);
        let away = [(20, i64::MAX)];
        one.at(20, &[], &away);
        assert_eq!(one.at(5_000, &[], &away), []);
        let back = [(20, 6_000)];
        assert_eq!(one.at(6_000, &[], &back), []);
        assert_eq!(one.at(6_029, &[], &back), [], "the whole time anew");
        assert_eq!(one.at(6_030, &[], &back), [(1, 4, 7, Some((0, 1)))]);
        // Twenty before and 480 after; of the other one, one less before.
        one.at(6_479, &[], &back);
        assert_eq!(one.join.sides.interner.len(), 2);
        one.at(6_480, &[], &back);
        assert_eq!(one.join.sides.interner.len(), 1);
        one.at(6_481, &[], &back);
        assert_eq!(one.join.sides.interner.len(), 0);
    }
}
