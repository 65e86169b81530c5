//! Windows of an hour, or revised for an hour: what a key keeps is far more than an epoch brings.

use super::*;

const HOUR: i64 = 3_600 * SECOND;
/// An epoch has the readings of so long.
const EPOCH_S: i64 = 10;
/// Until an hour is kept of an hour that is over, with as much garbage as there may be.
const SECONDS: i64 = 7_250;

pub(super) fn spans(report: &mut Report) {
    let max_us = Some(HOUR);
    let session = || Shape::Session { gap_us: 60 * SECOND, max_us };
    let begin = x_is(Compare::GtEq, 0.0);
    let state = || Shape::State { begin, until: None, abort: None, min_us: 0, max_us };
    let around = |before_s: i64, after_s: i64| Shape::Sliding {
        before_us: before_s * SECOND,
        after_us: after_s * SECOND,
        at: None,
    };
    let twa = || vec![ours("twa")];
    let mean = || vec![aggregate(avg_udaf(), &["x"])];
    let cases = [
        ("an hour of a session, kept", session(), twa()),
        ("an hour of a state, kept", state(), twa()),
        ("ten minutes before each reading, kept", around(600, 0), twa()),
        ("a minute before each reading", around(60, 10), mean()),
        ("an hour of a session", session(), mean()),
    ];
    for (what, shape, aggregates) in cases {
        let (spec, keys) = (window(shape, (5, 3_600), aggregates), keys(3));
        let bound = spec.state_bound(&LOAD).unwrap();
        let mut measured = Measured::new(|| SpanOperator::new(spec).unwrap());
        for from in (0..SECONDS).step_by(EPOCH_S as usize) {
            let of = |second| (0..keys).map(move |key| (key, START_US + second * SECOND, 1.0));
            let rows: Vec<_> = (from..from + EPOCH_S).flat_map(of).collect();
            measured.rows(START_US + (from + EPOCH_S) * SECOND, &rows);
        }
        report.compare(what, bound.per_key(), keys, &measured);
    }
}
