//! Parts of a length of time, which a difference of two times is.

use super::error;
use crate::Session;
use crate::testing::{lines, local};

/// Begin and end of a length of time, and the units in which it can be said.
type Times = (&'static str, &'static str, &'static [&'static str]);

const SHORT: Times = ("2026-01-01T00:00:00.003", "2026-01-01T00:00:20.015", &["ms", "us", "ns"]);
const LONG: Times = ("2026-01-01T00:00:00", "2026-01-03T23:08:09.998877", &["us", "ns"]);
const BACK: Times = ("2026-01-01T01:30:00.5", "2026-01-01T00:00:00", &["ms", "us", "ns"]);
const WHOLE: Times = ("2026-01-01T00:00:00", "2026-01-01T23:00:05", &["s", "ms", "us", "ns"]);

/// What these parts of a length of time are, of constants and of a column.
async fn check((begin, end, units): Times, wanted: &[(&str, &str)]) {
    let (_folder, store) = local();
    for unit in units {
        let typed = |t: &str| format!("arrow_cast('{t}', 'Timestamp({unit}, Some(\"UTC\"))')");
        let (begin, end) = (typed(begin), typed(end));
        let columns = format!("(VALUES ({begin}, {end}), (NULL, NULL)) AS t(b, e)");
        for (part, wanted) in wanted {
            for call in ["date_part('PART', LENGTH)", "extract(PART FROM LENGTH)"] {
                let call = call.replace("PART", part);
                let constant = call.replace("LENGTH", &format!("{end} - {begin}"));
                assert_eq!(lines(&store, &format!("SELECT {constant}")).await, [*wanted], "{call}");
                let of_column = call.replace("LENGTH", "(e - b)");
                let sql = format!("SELECT {of_column} AS p FROM {columns} ORDER BY p NULLS LAST");
                assert_eq!(lines(&store, &sql).await, [*wanted, ""], "{call} in {unit}");
            }
        }
    }
}

#[tokio::test]
async fn seconds_of_a_length_of_time_keep_their_fraction() {
    check(SHORT, &[("epoch", "20.012"), ("EPOCH", "20.012"), ("second", "20.012")]).await;
    check(SHORT, &[("milliseconds", "20012.0"), ("us", "20012000"), ("minute", "0")]).await;
    check(SHORT, &[("nanosecond", "20012000000")]).await;
    let (_folder, store) = local();
    let sums = "SELECT sum(extract(epoch FROM e - b)) FROM (VALUES \
                (TIMESTAMP '2026-01-01T00:00:00Z', TIMESTAMP '2026-01-01T00:00:20.012Z'), \
                (TIMESTAMP '2026-01-01T00:00:00Z', TIMESTAMP '2026-01-01T00:22:07.924Z')) t(b, e)";
    assert_eq!(lines(&store, sums).await, ["1347.936"]);
}

#[tokio::test]
async fn other_parts_are_below_the_next_greater_one() {
    let fields = [("day", "2"), ("hour", "23"), ("minute", "8"), ("second", "9.998877")];
    check(LONG, &fields).await;
    check(LONG, &[("millisecond", "9998.877"), ("epoch", "256089.998877")]).await;
    let back = [("day", "0"), ("hour", "-1"), ("minute", "-30"), ("second", "-0.5")];
    check(BACK, &back).await;
    check(BACK, &[("epoch", "-5400.5"), ("us", "-500000")]).await;
    check(WHOLE, &[("minute", "0"), ("hour", "23"), ("second", "5.0"), ("us", "5000000")]).await;
}

#[tokio::test]
async fn what_is_no_length_of_time_has_the_parts_that_it_had() {
    let (_folder, store) = local();
    for (call, wanted, kind) in [
        ("extract(second FROM TIMESTAMP '2026-01-01T00:00:07.5Z')", "7", "Int32"),
        ("datepart('year', TIMESTAMP '2026-01-01T00:00:07.5Z')", "2026", "Int32"),
        ("date_part('epoch', TIMESTAMP '1970-01-01T00:00:07.5Z')", "7.5", "Float64"),
        ("extract(epoch FROM INTERVAL '1 day 2.5 seconds')", "86402.5", "Float64"),
        ("date_part('month', DATE '2026-02-01')", "2", "Int32"),
    ] {
        let sql = format!("SELECT {call}, arrow_typeof({call})");
        assert_eq!(lines(&store, &sql).await, [format!("{wanted} {kind}")]);
    }
    let session = Session::over(store, 1 << 28).unwrap();
    let asked = "SELECT extract(month FROM now() - TIMESTAMP '2026-01-01T00:00:00Z')";
    let problem = error(&session, asked).await;
    assert!(problem.starts_with("a length of time has no part 'month'; it has epoch"), "{problem}");
}
