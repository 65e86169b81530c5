//! What is not heard while nothing can be heard is no silence.

use super::*;
use crate::outage::testing::outage_rows;

/// One operator, restarted before each epoch or not.
struct Watched {
    operator: LatestOperator,
    spec: LatestSpec,
    restarted: bool,
    log: Vec<(i64, i64)>,
    late: usize,
}

impl Watched {
    fn new(spec: LatestSpec, restarted: bool) -> Self {
        let operator = LatestOperator::new(spec.clone()).unwrap();
        Self { operator, spec, restarted, log: Vec::new(), late: 0 }
    }

    /// An epoch with the log if it has changed, or there was a restart.
    fn at(&mut self, time_us: i64, readings: &[Reading], log: &[(i64, i64)]) -> Vec<Row> {
        let mut told = log != self.log;
        self.log = log.to_vec();
        if self.restarted {
            let saved = self.operator.cut(true).rows().unwrap().rows;
            self.operator = LatestOperator::new(self.spec.clone()).unwrap();
            self.operator.load(&saved).unwrap();
            told = true;
        }
        let log = outage_rows(if told { log } else { &[] });
        let mut emit = Emit::default();
        let tick = Tick { epoch: time_us as u64 + 1, time_us };
        self.operator.epoch(&batch(readings), &log, tick, &mut emit).unwrap();
        self.late += late_rows(std::slice::from_ref(&emit));
        rows(&emit)
    }
}

fn row(time_us: i64, number: i64) -> Row {
    ("d1".to_owned(), time_us, Some(number), None)
}

#[test]
fn what_waits_is_not_told_by_the_silence_of_an_outage() {
    for restarted in [false, true] {
        let spec = LatestSpec { idle_close_us: 100, ..spec(50) };
        let mut one = Watched::new(spec, restarted);
        let reading = |time_us, number| (1, time_us, Some(number), None);
        one.at(0, &[reading(0, 1)], &[]);
        let away = [(50, i64::MAX)];
        assert_eq!(one.at(60, &[], &away), []);
        assert_eq!(one.at(900, &[], &away), [], "the source is away");
        let back = [(50, 1_000)];
        assert_eq!(one.at(1_000, &[], &back), []);
        assert_eq!(one.at(1_099, &[], &back), [], "the whole time anew");
        // What the broker kept.
        assert_eq!(one.at(1_099, &[reading(0, 2), reading(40, 3)], &back), []);
        assert_eq!(one.at(1_198, &[], &back), []);
        assert_eq!(one.at(1_199, &[], &back), [row(0, 2), row(40, 3)]);
        assert_eq!(one.late, 0);
    }
}

#[test]
fn a_key_is_not_forgotten_in_an_outage() {
    for restarted in [false, true] {
        let spec = LatestSpec { idle_close_us: 100, forget_after_us: 500, ..spec(50) };
        let mut one = Watched::new(spec, restarted);
        one.at(0, &[(1, 0, Some(1), Some(9))], &[]);
        let text = Some("t9".to_owned());
        let known = |time_us, number| ("d1".to_owned(), time_us, Some(number), text.clone());
        assert_eq!(one.at(100, &[], &[]), [known(0, 1)]);
        let away = [(400, i64::MAX)];
        one.at(410, &[], &away);
        one.at(5_000, &[], &away);
        let back = [(400, 6_000)];
        one.at(6_000, &[], &back);
        // Four hundred before, less than a hundred after it.
        one.at(6_090, &[(1, 6_000, Some(2), None)], &back);
        assert_eq!(one.at(6_190, &[], &back), [known(6_000, 2)]);
        assert_eq!(one.at(6_589, &[], &back), []);
        assert_eq!(one.operator.interner.len(), 1);
        one.at(6_590, &[], &back);
        assert_eq!(one.operator.interner.len(), 0);
    }
}
