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
        others: Vec::new(),
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

/// What an open window said does not stand if its final row says nothing.
#[test]
fn a_row_that_cannot_be_evaluated_takes_back_what_an_open_window_said() {
    let ratio = lit(10i64) / (col("rows") - lit(3i64));
    let spec = AlertSpec {
        fire: logical2physical(&ratio.clone().gt(lit(4i64)), &input()),
        clear: logical2physical(&ratio.lt_eq(lit(4i64)), &input()),
        ..rule(0, true).spec
    };
    let mut one = AlertRule::new(spec).unwrap();
    let mut feed = |row: Early| {
        let mut emit = Emit::default();
        one.epoch(&batch(&[row]), Tick { epoch: 1, time_us: 0 }, &mut emit).unwrap();
        let rejects: usize = emit.rejects.iter().map(RecordBatch::num_rows).sum();
        let reasons: Vec<Option<String>> = emit.rows.iter().map(reason).collect();
        (events(&emit.rows), reasons, rejects)
    };
    let a = |time_us, fires, since_us| vec![("a".to_owned(), time_us, fires, since_us)];
    let withdrawn = || vec![Some("withdrawn".to_owned())];
    assert_eq!(feed((1, 0.0, 5, 0, false)), (a(200, true, 200), vec![None], 0));
    assert_eq!(feed((1, 0.0, 3, 1, true)), (a(201, false, 200), withdrawn(), 1));
    // So it is with an open row, but that comes again: its final row tells what is wrong.
    assert_eq!(feed((2, 0.0, 5, 0, false)), (a(300, true, 300), vec![None], 0));
    assert_eq!(feed((2, 0.0, 3, 1, false)), (a(301, false, 300), withdrawn(), 0));
    assert_eq!(feed((2, 0.0, 3, 2, true)), (vec![], vec![], 1));
    // What a final row said stands, as without early results.
    assert_eq!(feed((3, 0.0, 5, 0, true)), (a(400, true, 400), vec![None], 0));
    assert_eq!(feed((3, 0.0, 3, 1, true)), (vec![], vec![], 1));
    assert_eq!(feed((4, 0.0, 9, 0, true)), (a(500, false, 400), vec![None], 0));
}

fn reason(events: &RecordBatch) -> Option<String> {
    let reasons = events["reason"].as_string::<i32>();
    reasons.is_valid(0).then(|| reasons.value(0).to_owned())
}

/// A row of window 0 of a device of the site `s`: device, value, revision, whether it is final.
type OfSite = (&'static str, f64, i64, bool);

/// A rule per site over windows per device.
fn per_site() -> AlertRule {
    let mut fields: Vec<_> = input().fields().iter().cloned().collect();
    fields.insert(0, Arc::new(Field::new("site", DataType::Utf8, false)));
    let input: SchemaRef = Arc::new(Schema::new(fields));
    let spec = AlertSpec {
        keys: vec![0],
        others: vec![1],
        time: 3,
        fire: logical2physical(&col("t_avg").gt(lit(8.0)), &input),
        clear: logical2physical(&col("t_avg").lt(lit(7.0)), &input),
        input,
        ..rule(0, true).spec
    };
    AlertRule::new(spec).unwrap()
}

fn feed_site(rule: &mut AlertRule, rows: &[OfSite]) -> Vec<(String, i64, bool, i64)> {
    let early: Vec<Early> = rows.iter().map(|r| (0, r.1, 1, r.2, r.3)).collect();
    let mut columns = batch(&early).columns().to_vec();
    columns[0] = Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.0)));
    let sites = StringArray::from_iter_values(rows.iter().map(|_| "s"));
    columns.insert(0, Arc::new(sites));
    let rows = RecordBatch::try_new(Arc::clone(&rule.spec.input), columns).unwrap();
    let mut emit = Emit::default();
    rule.epoch(&rows, Tick { epoch: 1, time_us: 0 }, &mut emit).unwrap();
    events(&emit.rows)
}

/// Where several devices have one alert, a window of one is not that of another.
#[test]
fn windows_of_several_keys_with_one_alert_do_not_replace_each_other() {
    let s = |time_us, fires, since_us| vec![("s".to_owned(), time_us, fires, since_us)];
    let mut one = per_site();
    assert_eq!(
        feed_site(&mut one, &[("d1", 9.0, 0, true), ("d2", 7.5, 0, true)]),
        s(100, true, 100)
    );
    // The older one is corrected to where it neither fires nor clears; the other one fires now.
    assert_eq!(feed_site(&mut one, &[("d2", 9.0, 1, true)]), []);
    assert_eq!(feed_site(&mut one, &[("d1", 7.5, 1, true)]), []);
    assert_eq!(feed_site(&mut one, &[("d2", 7.5, 2, true)]), s(101, false, 100));
    // Likewise of open ones.
    let mut one = per_site();
    assert_eq!(feed_site(&mut one, &[("d1", 9.0, 0, false)]), s(100, true, 100));
    assert_eq!(feed_site(&mut one, &[("d2", 7.5, 0, false)]), []);
    assert_eq!(feed_site(&mut one, &[("d2", 7.5, 1, true)]), []);
    assert_eq!(feed_site(&mut one, &[("d1", 7.5, 1, true)]), s(101, false, 100));
}
