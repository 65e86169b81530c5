//! Keys that are put away and come back: as if they had never been away.

use super::*;

/// What the tick adds, in minutes, and the rows.
type Steps = Vec<(i64, Vec<Row>)>;

fn steps() -> impl Strategy<Value = Steps> {
    let value = prop::option::weighted(0.9, 6.0..10.0_f64);
    let row = (prop::sample::select(vec!["a", "b", "c"]), 0..40_i64, value, 0..2_i64);
    prop::collection::vec((1..90_i64, prop::collection::vec(row, 0..4)), 1..30)
}

/// Events of each epoch, and how many keys there are at the end.
fn outcome(
    steps: &Steps,
    for_us: i64,
    keep_all: bool,
    restart: Option<usize>,
) -> (Vec<Vec<RecordBatch>>, AlertCounts, usize) {
    let make = || {
        let mut rule = rule(for_us);
        rule.keep_all = keep_all;
        rule
    };
    let (mut rule, mut out, mut time_us, mut counts) = (make(), Vec::new(), 0, [0; 2]);
    let mut take = |rule: &AlertRule| {
        counts[0] += rule.counts().evaluated;
        counts[1] += rule.counts().out_of_order;
        AlertCounts { evaluated: counts[0], out_of_order: counts[1] }
    };
    for (i, (minutes, rows)) in steps.iter().enumerate() {
        if restart == Some(i) {
            let saved = rule.save().unwrap();
            take(&rule);
            rule = make();
            let middle = saved.num_rows() / 2;
            rule.load(&saved.slice(middle, saved.num_rows() - middle)).unwrap();
            rule.load(&saved.slice(0, middle)).unwrap();
        }
        time_us += minutes * 60_000_000;
        out.push(feed(&mut rule, rows, time_us));
    }
    (out, take(&rule), rule.interner.len())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn putting_away_shows_in_no_event(
        steps in steps(), for_us in 0..30_i64, restart in prop::option::of(0usize..30),
    ) {
        let (with, counts, _) = outcome(&steps, for_us, false, restart);
        let (without, same, _) = outcome(&steps, for_us, true, None);
        prop_assert_eq!(with, without);
        prop_assert_eq!(counts, same);
    }
}

#[test]
fn who_is_normal_is_put_away_and_an_open_alert_stays() {
    let warm = |device, time| (device, time, Some(9.0), 0);
    let steps = vec![(1, vec![warm("a", 5), ("b", 5, Some(6.0), 0)]), (61, vec![])];
    assert_eq!(outcome(&steps, 0, false, None).2, 1);
    assert_eq!(outcome(&steps, 30, false, None).2, 1, "pending");
    assert_eq!(outcome(&steps, 0, true, None).2, 2);
}

#[test]
fn cuts_with_keys_that_were_put_away_add_up_on_any_number_of_workers() {
    let devices: Vec<String> = (0..40).map(|i| format!("d{i}")).collect();
    let row = |i: i64, n: i64| {
        let device: &'static str = devices[((i * 7 + n) % 40) as usize].clone().leak();
        (device, i * 10 - n, Some(6.0 + ((i + n) % 4) as f64), 0)
    };
    let epochs: Vec<(i64, RecordBatch)> = (0..14)
        .map(|i| (i * 1_900_000_000, batch(&(0..6).map(|n| row(i, n)).collect::<Vec<_>>())))
        .collect();
    let make = || Box::new(rule(5)) as Box<dyn KeyedOperator>;
    check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
}
