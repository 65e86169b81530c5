//! What reaches to the bounds of a window: the two halves that windows have against the aggregate
//! that SQL has, and both against plain loops.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{Float64Type, TimestampMicrosecondType};
use datafusion_common::config::ConfigOptions;
use datafusion_expr::{ColumnarValue, ScalarFunctionArgs};

use super::super::{POINTS_MAX, Ranged, points_max, ranged};
use super::*;

const STEP_US: i64 = 250_000;

/// What a window makes of a column: the hidden aggregate, dealt out, and then the function.
fn in_window(
    ranged: &Ranged,
    column: &str,
    (readings, parts): (&[Reading], &[usize]),
    range: Option<(i64, i64)>,
) -> Result<ArrayRef, String> {
    let literals = [interval(STEP_US)];
    let part = in_parts(&call_of(Arc::clone(&ranged.part), column, &literals), readings, parts);
    let mut args = vec![ColumnarValue::Array(part), ColumnarValue::Scalar(interval(STEP_US))];
    args.extend(range.iter().flat_map(|r| [r.0, r.1]).map(|us| ColumnarValue::Scalar(time(us))));
    let fields = args.iter().map(|a| Arc::new(Field::new("a", a.data_type(), true))).collect();
    let returned = ranged.finish.return_type(&[]).unwrap();
    let args = ScalarFunctionArgs {
        args,
        arg_fields: fields,
        number_rows: GROUPS,
        return_field: Arc::new(Field::new("r", returned.clone(), true)),
        config_options: Arc::new(ConfigOptions::default()),
    };
    let made = ranged.finish.invoke_with_args(args).map_err(|e| e.to_string())?;
    let made = made.into_array(GROUPS).unwrap();
    assert_eq!(made.data_type(), &returned);
    Ok(made)
}

/// The points of a list.
fn listed(lists: &ArrayRef, group: usize) -> Vec<(i64, Option<f64>)> {
    let list = lists.as_list::<i32>().value(group);
    let times = list.as_struct().column(0).as_primitive::<TimestampMicrosecondType>();
    let values = list.as_struct().column(1).as_primitive::<Float64Type>();
    times.values().iter().copied().zip(values.iter()).collect()
}

/// Every multiple is looked at, and every point for each.
fn expected(points: &[(i64, f64)], straight: bool, (from, to): (i64, i64)) -> Vec<Option<f64>> {
    let times = (-100..100).map(|n| n * STEP_US).filter(|t| (from..to).contains(t));
    let value = |t: i64| {
        let before = points.iter().rev().find(|p| p.0 <= t)?;
        let after = points.iter().find(|p| p.0 > t);
        match (straight, after) {
            (false, _) => Some(before.1),
            (true, None) => (before.0 == t).then_some(before.1),
            (true, Some(after)) => {
                let share = (t - before.0) as f64 / (after.0 - before.0) as f64;
                Some(before.1 + (after.1 - before.1) * share)
            }
        }
    };
    if points.is_empty() { Vec::new() } else { times.map(value).collect() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn windows_and_sql_fill_the_same_gaps(
        readings in readings(),
        parts in prop::collection::vec(0usize..5, 1..20),
        range in (-1_500_000i64..4_000_000, 0i64..3_000_000).prop_map(|(f, l)| (f, f + l)),
    ) {
        for name in ["resample", "resample_linear"] {
            let ranged = ranged(name, false).unwrap();
            let of_window = |range| in_window(&ranged, "v", (&readings, &parts), range).unwrap();
            let known = call(name, "v", &[interval(STEP_US)]);
            prop_assert_eq!(shown(&of_window(None)), shown(&at_once(&known, &readings)));
            let cut = [interval(STEP_US), time(range.0), time(range.1)];
            let cut = at_once(&call(name, "v", &cut), &readings);
            prop_assert_eq!(shown(&of_window(Some(range))), shown(&cut));
            for group in 0..GROUPS {
                let points = points(&readings, group);
                let expected = expected(&points, name == "resample_linear", range);
                let found = listed(&cut, group);
                prop_assert_eq!(found.iter().map(|p| p.1).collect::<Vec<_>>(), expected);
                let steps = found.windows(2).all(|p| p[1].0 - p[0].0 == STEP_US);
                prop_assert!(steps && found.iter().all(|p| (range.0..range.1).contains(&p.0)));
            }
        }
    }

    #[test]
    fn windows_and_sql_expect_the_same_readings(
        readings in readings(),
        parts in prop::collection::vec(0usize..5, 1..20),
        range in (-1_500_000i64..4_000_000, 0i64..3_000_000).prop_map(|(f, l)| (f, f + l)),
        with_last in any::<bool>(),
    ) {
        let ranged = ranged("expected_ratio", with_last).unwrap();
        let to = range.1 + if with_last { STEP_US } else { 0 };
        for column in ["v", "s"] {
            let args = [interval(STEP_US), time(range.0), time(to)];
            let asked = at_once(&call("expected_ratio", column, &args), &readings);
            let made = in_window(&ranged, column, (&readings, &parts), Some(range)).unwrap();
            prop_assert_eq!(shown(&made), shown(&asked));
            let whole = ((to - range.0) / STEP_US).max(1) as f64;
            for group in 0..GROUPS {
                let of_group = readings.iter().filter(|r| r.0 == group);
                let is_there = |v: &Option<f64>| v.is_some_and(|v| column == "s" || v.is_finite());
                let expected = (of_group.clone().count() > 0)
                    .then(|| of_group.filter(|r| is_there(&r.2)).count() as f64 / whole);
                let found = asked.as_primitive::<Float64Type>();
                prop_assert_eq!(found.is_valid(group).then(|| found.value(group)), expected);
            }
        }
    }
}

#[test]
fn a_window_with_too_many_points_is_an_error_of_its_row() {
    let ranged = ranged("resample", false).unwrap();
    let most = POINTS_MAX as i64;
    let with = |length: i64, range| {
        let ends = [(0, 0, Some(1.0)), (0, length * STEP_US, Some(2.0))];
        in_window(&ranged, "v", (&ends, &[0]), range)
    };
    assert_eq!(listed(&with(most - 1, None).unwrap(), 0).len(), most as usize);
    assert!(with(most, None).unwrap_err().contains("take a longer interval"));
    let all = Some((0, most * STEP_US));
    assert_eq!(listed(&with(1, all).unwrap(), 0).len(), most as usize);
    let more = Some((0, most * STEP_US + 1));
    assert!(with(1, more).unwrap_err().contains("take a longer interval"));
    // Where nothing came there is no list that could be too long.
    assert_eq!(listed(&with(1, more.map(|_| (0, 1))).unwrap(), 1), []);
}

#[test]
fn how_long_a_list_can_be_is_known_before() {
    let aggregate = call("resample", "v", &[interval(1_000_000)]);
    assert_eq!(points_max(&aggregate, 60_000_000), Some(61));
    assert_eq!(points_max(&call("twa", "v", &[]), 60_000_000), None);
    let elements = |a: &AggregateFunctionExpr, us| super::super::elements_max(a, us);
    assert_eq!(elements(&aggregate, Some(60_000_000)), 62);
    assert_eq!(elements(&aggregate, None), POINTS_MAX + 1);
    let bounds = [1.0, 2.0].map(ScalarValue::from);
    assert_eq!(elements(&call("buckets", "v", &bounds), None), 3);
    assert_eq!(elements(&call("twa", "v", &[]), None), 1);
}

#[test]
fn buckets_are_the_histogram_with_its_bounds() {
    let readings = one(&[(0.0, 1.0), (1.0, 2.0), (2.0, 2.5), (3.0, 9.0)]);
    let bounds = [2.0, 5.0].map(ScalarValue::from);
    let lists = at_once(&call("buckets", "v", &bounds), &readings);
    let list = lists.as_list::<i32>().value(0);
    let up_to = list.as_struct().column(0).as_primitive::<Float64Type>().iter();
    let counts = list.as_struct().column(1).as_primitive::<Int64Type>().iter();
    let found: Vec<(Option<f64>, Option<i64>)> = up_to.zip(counts).collect();
    assert_eq!(found, [(Some(2.0), Some(2)), (Some(5.0), Some(1)), (None, Some(1))]);
}
