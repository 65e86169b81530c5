//! Alerts on windows that are still open, against a plain model: what the final rows say, and then
//! the last early row of each open window as if it were final.

use arrow::array::BooleanArray;

use super::*;

/// A row of a window of key `a`: its number, value, readings, revision, whether it is final.
type Early = (i64, f64, i64, i64, bool);

const SIZE_US: i64 = 100;

fn input() -> SchemaRef {
    let field = |name: &str, data_type: DataType| Field::new(name, data_type, false);
    Arc::new(Schema::new(vec![
        field("device", DataType::Utf8),
        field("window_start", time_type()),
        field("window_end", time_type()),
        field("t_avg", DataType::Float64),
        field("rows", DataType::Int64),
        field("revision", DataType::Int64),
        field("is_final", DataType::Boolean),
    ]))
}

fn rule(for_us: i64, early: bool) -> AlertRule {
    let AlertSpec { pipeline, name, severity, summary, notify, limits, .. } = super::rule(0).spec;
    AlertRule::new(AlertSpec {
        pipeline,
        name,
        input: input(),
        keys: vec![0],
        time: 2,
        fire: logical2physical(&col("t_avg").gt(lit(8.0)), &input()),
        clear: logical2physical(&col("t_avg").lt(lit(7.0)), &input()),
        for_us,
        severity,
        summary,
        notify,
        max_age_us: 1_000_000,
        early,
        limits,
    })
    .unwrap()
}

fn batch(rows: &[Early]) -> RecordBatch {
    let time = |us: &dyn Fn(&Early) -> i64| -> ArrayRef {
        let values = rows.iter().map(us);
        Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
    };
    let number = |n: &dyn Fn(&Early) -> i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(rows.iter().map(n)))
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|_| "a"))),
        time(&|r| r.0 * SIZE_US),
        time(&|r| (r.0 + 1) * SIZE_US),
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|r| r.1))),
        number(&|r| r.2),
        number(&|r| r.3),
        Arc::new(BooleanArray::from_iter(rows.iter().map(|r| Some(r.4)))),
    ];
    RecordBatch::try_new(input(), columns).unwrap()
}

fn feed(rule: &mut AlertRule, rows: &[Early]) -> Vec<(String, i64, bool, i64)> {
    let mut emit = Emit::default();
    rule.epoch(&batch(rows), Tick { epoch: 1, time_us: 0 }, &mut emit).unwrap();
    events(&emit.rows)
}

/// What happens to the windows of a key.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// An open window, counted from the oldest, has this value so far.
    Early(i64, f64),
    /// The oldest one is over.
    Close(f64),
    /// The one that was over last gets a late reading.
    Revise(f64),
    /// An open window is withdrawn.
    Withdraw(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let value = || prop::sample::select(vec![6.0, 7.5, 9.0]);
    let step = prop_oneof![
        4 => (0i64..4, value()).prop_map(|(n, v)| Step::Early(n, v)),
        3 => value().prop_map(Step::Close),
        1 => value().prop_map(Step::Revise),
        1 => (0i64..4).prop_map(Step::Withdraw),
    ];
    prop::collection::vec(step, 1..60)
}

/// The rows that come of it.
fn rows_of(steps: &[Step]) -> Vec<Early> {
    let (mut oldest, mut revisions) = (0, std::collections::BTreeMap::new());
    let mut rows = Vec::new();
    for step in steps {
        let (number, value, count, is_final) = match *step {
            Step::Early(n, value) => (oldest + n, value, 1, false),
            Step::Close(value) => {
                oldest += 1;
                (oldest - 1, value, 1, true)
            }
            Step::Revise(value) if oldest > 0 => (oldest - 1, value, 1, true),
            Step::Withdraw(n) if revisions.contains_key(&(oldest + n)) => {
                (oldest + n, 0.0, 0, false)
            }
            Step::Revise(_) | Step::Withdraw(_) => continue,
        };
        let revision = revisions.entry(number).and_modify(|r| *r += 1).or_insert(0);
        rows.push((number, value, count, *revision, is_final));
    }
    rows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn an_open_window_counts_until_its_final_row_says_otherwise(
        steps in steps(),
        for_us in prop::sample::select(vec![0, 100, 200]),
        restart in prop::option::of(0usize..60),
    ) {
        let rows = rows_of(&steps);
        let mut early = rule(for_us, true);
        let mut finals: Vec<Early> = Vec::new();
        let mut open: std::collections::BTreeMap<i64, Early> = Default::default();
        let mut firing: Option<i64> = None;
        for (i, row) in rows.iter().enumerate() {
            if restart == Some(i) {
                let saved = early.save().unwrap();
                early = rule(for_us, true);
                early.load(&saved).unwrap();
                prop_assert_eq!(early.save().unwrap(), saved);
            }
            for (_, _, fires, since_us) in feed(&mut early, &[*row]) {
                prop_assert_eq!(firing.is_some(), !fires, "no change twice");
                if !fires {
                    prop_assert_eq!(firing, Some(since_us), "the end bears the id that was told");
                }
                firing = fires.then_some(since_us);
            }
            open.remove(&row.0);
            if row.4 {
                finals.push(*row);
            } else if row.2 > 0 {
                open.insert(row.0, *row);
            }
            // The final rows alone, then the open windows.
            let mut plain = rule(for_us, false);
            finals.iter().for_each(|row| drop(feed(&mut plain, &[*row])));
            open.values().for_each(|row| drop(feed(&mut plain, &[(row.0, row.1, 1, 0, true)])));
            let state = plain.states.get(0).map(|s| s.now);
            let is_firing = matches!(state, Some(Phase::Firing { .. }));
            prop_assert_eq!(firing.is_some(), is_firing, "after {:?} of {:?}", row, rows);
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn open_windows_are_cut_on_any_number_of_workers(steps in steps(), for_us in 0i64..200) {
        let epochs: Vec<(i64, RecordBatch)> =
            rows_of(&steps).iter().map(|row| (row.0 * SIZE_US, batch(&[*row]))).collect();
        let make = || Box::new(rule(for_us, true)) as Box<dyn KeyedOperator>;
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
    }
}

/// What was told of an open window has its end in whatever becomes of the rule.
#[test]
fn a_rule_that_goes_ends_what_open_windows_told() {
    let mut one = rule(0, true);
    assert_eq!(feed(&mut one, &[(0, 6.0, 1, 0, true)]), []);
    assert_eq!(feed(&mut one, &[(1, 9.0, 1, 0, false)]), [("a".to_owned(), 200, true, 200)]);
    let saved = one.save().unwrap();
    let of_rule = EndedRule { pipeline: "p", rule: "r", severity: "warning" };
    let ends = events(&[end_alerts(of_rule, &saved, 300).unwrap()]);
    assert_eq!(ends, [("a".to_owned(), 300, false, 200)]);
    // Made anew in silence, nothing is told, and the final row counts alone.
    let mut one = rule(0, true);
    one.load(&untold(&saved).unwrap()).unwrap();
    assert_eq!(feed(&mut one, &[(1, 6.0, 2, 1, true)]), []);
    assert_eq!(feed(&mut one, &[(2, 9.0, 2, 0, false)]), [("a".to_owned(), 300, true, 300)]);
    assert_eq!(feed(&mut one, &[(2, 6.0, 2, 1, true)]), [("a".to_owned(), 301, false, 300)]);
}
