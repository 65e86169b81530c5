//! Planning of SQL expressions and windows: types, hints, what is refused.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, SchemaRef};
use datafusion::logical_expr::EmitTo;
use tidegate_operators::aggregate::{aggregate_inputs, create_groups_accumulator};
use tidegate_operators::spec::time_type;

use super::*;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("time", time_type(), false),
        Field::new("temperature", DataType::Float64, true),
        Field::new("count_total", DataType::Int64, true),
        Field::new("state", DataType::Utf8, true),
        Field::new("doorOpen", DataType::Boolean, true),
    ]))
}

fn batch() -> RecordBatch {
    let times =
        TimestampMicrosecondArray::from(vec![0, 1_000_000, 2_000_000, 3_000_000, 4_000_000])
            .with_timezone("UTC");
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec!["a", "b", "a", "a", "a"])),
        Arc::new(times),
        Arc::new(Float64Array::from(vec![Some(1.0), Some(50.0), Some(4.0), None, Some(7.0)])),
        Arc::new(Int64Array::from(vec![Some(2), Some(0), Some(3), Some(2), None])),
        Arc::new(StringArray::from(vec![Some("ok"), None, Some("warn"), Some("ok"), Some("ok")])),
        Arc::new(BooleanArray::from(vec![true, false, true, false, true])),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

fn eval(text: &str) -> ArrayRef {
    let expr = plan_scalar(text, &schema(), None).unwrap_or_else(|p| panic!("{text}: {p:?}"));
    expr.evaluate(&batch()).unwrap().into_array(5).unwrap()
}

fn problem(text: &str) -> (String, String) {
    let p = plan_scalar(text, &schema(), None).expect_err(text);
    (p.message, p.hint.unwrap_or_default())
}

#[test]
fn scalars_are_planned_and_typed() {
    let f = eval("temperature * 1.8 + 32");
    assert_eq!(f.as_primitive::<Float64Type>().value(2), 39.2);
    let kind = eval("CASE WHEN temperature > 5 THEN 'hot' WHEN doorOpen THEN upper(state) END");
    let kind: Vec<_> = kind.as_string::<i32>().iter().collect();
    assert_eq!(kind, [Some("OK"), Some("hot"), Some("WARN"), None, Some("hot")]);
    assert_eq!(eval("count_total + 1").data_type(), &DataType::Int64);
    assert_eq!(eval("character_length(state)").data_type(), &DataType::Int64);
    assert_eq!(eval("CAST(state AS VARCHAR) || '!'").data_type(), &DataType::Utf8);
    assert_eq!(eval("date_trunc('minute', time)").data_type(), &time_type());
    let recent = eval("time >= TIMESTAMP '1970-01-01T00:00:02Z'");
    assert_eq!(recent.as_boolean().true_count(), 3);
    assert_eq!(eval("coalesce(temperature, 0.0) BETWEEN 1 AND 4").as_boolean().true_count(), 2);
    assert_eq!(eval("state IN ('ok', 'on')").as_boolean().true_count(), 3);
    assert_eq!(eval("state LIKE 'w%' OR state ~ '^o'").as_boolean().true_count(), 4);
}

#[test]
fn wanted_types_are_given_or_refused() {
    let s = schema();
    let float = plan_scalar("count_total", &s, Some(&DataType::Float64)).unwrap();
    assert_eq!(float.data_type(&s).unwrap(), DataType::Float64);
    plan_scalar("doorOpen AND temperature > 3", &s, Some(&DataType::Boolean)).unwrap();
    plan_scalar("NULL", &s, Some(&DataType::Boolean)).unwrap();
    let p = plan_scalar("temperature + 1", &s, Some(&DataType::Boolean)).unwrap_err();
    assert_eq!(p.message, "must be true or false, but is a number");
    let p = plan_scalar("state", &s, Some(&DataType::Float64)).unwrap_err();
    assert_eq!(p.message, "must be a number, but is text");
    let (message, hint) = problem("time - time");
    assert_eq!(message, "a column cannot be a length of time");
    assert!(hint.contains("date_part"), "{hint}");
    assert_eq!(eval("date_part('epoch', time) + 0").data_type(), &DataType::Float64);
}

#[test]
fn parts_of_a_length_of_time_are_exact() {
    let later = "(time + INTERVAL '1 day 2 hours 2.9 seconds')";
    let constant = "(TIMESTAMP '1970-01-02T02:00:02.9Z' - TIMESTAMP '1970-01-01T00:00:00Z')";
    for length in [format!("({later} - time)"), constant.to_owned()] {
        for (part, wanted) in
            [("epoch", 93602.9), ("second", 2.9), ("milliseconds", 2900.0), ("hour", 2.0)]
        {
            for call in
                [format!("date_part('{part}', {length})"), format!("extract({part} FROM {length})")]
            {
                let found = eval(&format!("CAST({call} AS DOUBLE)"));
                assert_eq!(found.as_primitive::<Float64Type>().value(0), wanted, "{call}");
            }
        }
    }
    let (message, _) = problem("date_part('month', time - TIMESTAMP '1970-01-01T00:00:00Z')");
    assert!(message.starts_with("a length of time has no part 'month'"), "{message}");
}

#[test]
fn columns_are_found_without_a_schema() {
    let read = |t: &str| columns_read(t).unwrap();
    assert_eq!(read("a + b * a"), ["a", "b"]);
    assert_eq!(read("count(*)"), Vec::<String>::new());
    assert_eq!(
        read(
            "approx_percentile_cont(0.9) WITHIN GROUP (ORDER BY x) + avg(y) FILTER (WHERE z = 'q')"
        ),
        ["x", "y", "z"]
    );
    assert_eq!(
        read("CASE WHEN doorOpen THEN extract(hour FROM time) ELSE \"Odd Name\" END"),
        ["doorOpen", "time", "Odd Name"]
    );
    assert!(columns_read("a +").is_err());
    assert!(columns_read("(SELECT 1)").is_err());
}

#[test]
fn what_cannot_be_used_is_said() {
    for clock in [
        "now()",
        "random()",
        "uuid()",
        "current_date",
        "current_timestamp",
        "current_time()",
        "CASE WHEN time > now() THEN 1 END",
        "abs(random())",
        "today()",
    ] {
        let (message, hint) = problem(clock);
        assert!(message.contains("same result whenever"), "{clock}: {message}");
        assert!(hint.contains("received_time"), "{hint}");
    }
    assert!(problem("temperature > (SELECT 1)").0.contains("subquery"));
    assert!(problem("EXISTS (SELECT 1)").0.contains("subquery"));
    assert!(problem("state IN (SELECT 'a')").0.contains("subquery"));
    assert!(problem("row_number() OVER (ORDER BY time)").0.contains("OVER"));
    assert!(problem("lag(temperature)").0.contains("OVER"));
    assert!(problem("avg(temperature) > 3").0.contains("`avg` is an aggregate"));
    assert!(problem("$1 + 1").0.contains("no parameters"));
    assert!(problem("temperature AS t").0.contains("AS t"));
    assert!(problem("").0.contains("empty"));
    assert!(problem("temperature > > 3").0.starts_with("not a SQL expression: "));
    assert!(problem("temperature > 3; drop").0.starts_with("not a SQL expression: "));
    assert!(problem("readings.temperature").0.contains("not the name of a column"));
    assert!(problem("state + 1 > doorOpen").0.len() > 10);
}

#[test]
fn names_get_the_nearest_one() {
    let both = |m: &str, h: &str| (m.to_string(), h.to_string());
    assert_eq!(
        problem("temprature > 8"),
        both("there is no column `temprature`", "did you mean `temperature`?")
    );
    assert_eq!(
        problem("dooropen"),
        both("there is no column `dooropen`", "did you mean `doorOpen`?")
    );
    assert_eq!(
        problem("state = \"ok\""),
        both("there is no column `ok`", "text is in single quotes: 'ok'")
    );
    assert_eq!(
        problem("uper(state)"),
        both("there is no function `uper`", "did you mean `upper`?")
    );
    let p =
        plan_window(&items(&[("x", "stdev_pop(temperature)")]), &[], &schema(), ("time", false))
            .unwrap_err();
    assert_eq!(p[0].1.hint.as_deref(), Some("did you mean `stddev_pop`?"));
}

fn items(select: &[(&str, &str)]) -> Vec<(String, String)> {
    select.iter().map(|(n, t)| ((*n).into(), (*t).into())).collect()
}

/// Groups by device (a = 0, b = 1) as the window operator does, in two updates and a merge, and
/// returns the selected columns.
fn run_window(select: &[(&str, &str)]) -> (PlannedWindow, Vec<ArrayRef>) {
    let planned = plan_window(&items(select), &["device".into()], &schema(), ("time", false))
        .unwrap_or_else(|p| panic!("{p:?}"));
    let mut aggregated: Vec<ArrayRef> = Vec::new();
    for (aggregate, filter) in planned.aggregates.iter().zip(&planned.filters) {
        let mut merged = create_groups_accumulator(aggregate).unwrap();
        for part in [batch().slice(0, 2), batch().slice(2, 3)] {
            let groups: Vec<usize> = part
                .column(0)
                .as_string::<i32>()
                .iter()
                .map(|d| usize::from(d == Some("b")))
                .collect();
            let values: Vec<ArrayRef> = aggregate_inputs(aggregate)
                .iter()
                .map(|e| e.evaluate(&part).unwrap().into_array(part.num_rows()).unwrap())
                .collect();
            let keep = filter
                .as_ref()
                .map(|f| f.evaluate(&part).unwrap().into_array(part.num_rows()).unwrap());
            let mut partial = create_groups_accumulator(aggregate).unwrap();
            partial
                .update_batch(&values, &groups, keep.as_ref().map(|k| k.as_boolean()), 2)
                .unwrap();
            merged.merge_batch(&partial.state(EmitTo::All).unwrap(), &[0, 1], 2).unwrap();
        }
        aggregated.push(merged.evaluate(EmitTo::All).unwrap());
    }
    let spec = tidegate_operators::spec::WindowSpec {
        pipeline: "p".into(),
        name: "w".into(),
        input: schema(),
        keys: vec![0],
        time: 1,
        shape: tidegate_operators::spec::Shape::Grid {
            size_us: 60_000_000,
            slide_us: 60_000_000,
            offset_us: 0,
        },
        aggregates: planned.aggregates.clone(),
        filters: planned.filters.clone(),
        select: planned.select.clone(),
        disorder_us: 0,
        idle_close_us: 0,
        clock: Default::default(),
        late: tidegate_operators::spec::LatePolicy::Table,
        puts_off: false,
        early_us: None,
        quality: None,
        limits: Default::default(),
    };
    let bound = |v| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from(vec![v; 2]).with_timezone("UTC"))
    };
    let mut columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from(vec!["a", "b"]))];
    columns.extend([bound(0), bound(60_000_000)]);
    columns.extend(aggregated);
    let rows = RecordBatch::try_new(spec.aggregated_schema(), columns).unwrap();
    let rows = concat_batches(&spec.aggregated_schema(), [&rows]).unwrap();
    let out = planned
        .select
        .iter()
        .map(|(_, e)| e.evaluate(&rows).unwrap().into_array(2).unwrap())
        .collect();
    assert_eq!(spec.schema().fields().len(), 3 + planned.select.len() + 2);
    (planned, out)
}

fn number(text: &str) -> Vec<Option<f64>> {
    let (_, out) = run_window(&[("x", text)]);
    match out[0].data_type() {
        DataType::Int64 => {
            out[0].as_primitive::<Int64Type>().iter().map(|v| v.map(|v| v as f64)).collect()
        }
        DataType::Float64 => out[0].as_primitive::<Float64Type>().iter().collect(),
        other => panic!("{text}: {other}"),
    }
}

#[test]
fn every_common_aggregate_works_in_a_window() {
    let sd = 6.0_f64.sqrt();
    for (text, a, b) in [
        ("count(*)", 4.0, 1.0),
        ("count(temperature)", 3.0, 1.0),
        ("avg(temperature)", 4.0, 50.0),
        ("avg(count_total)", 7.0 / 3.0, 0.0),
        ("min(temperature)", 1.0, 50.0),
        ("max(temperature)", 7.0, 50.0),
        ("sum(count_total)", 7.0, 0.0),
        ("sum(temperature + 1)", 15.0, 51.0),
        ("stddev_pop(temperature)", sd, 0.0),
        ("median(temperature)", 4.0, 50.0),
        ("approx_percentile_cont(temperature, 0.95)", 7.0, 50.0),
        ("approx_percentile_cont(0.95) WITHIN GROUP (ORDER BY temperature)", 7.0, 50.0),
        ("first_value(temperature)", 1.0, 50.0),
        ("last_value(temperature)", 7.0, 50.0),
        ("count(DISTINCT count_total)", 2.0, 1.0),
        ("count(DISTINCT state)", 2.0, 0.0),
        ("sum(DISTINCT count_total + 0.5)", 6.0, 0.5),
        ("max(DISTINCT temperature)", 7.0, 50.0),
        ("approx_distinct(state)", 2.0, 0.0),
        ("max(temperature) - min(temperature)", 6.0, 0.0),
        ("100.0 * count(temperature) / count(*)", 75.0, 100.0),
        ("CASE WHEN avg(temperature) > 10 THEN 1 ELSE 0 END", 0.0, 1.0),
        ("date_part('epoch', window_end) - date_part('epoch', window_start)", 60.0, 60.0),
        ("sum(CASE WHEN doorOpen THEN 1 ELSE 0 END)", 3.0, 0.0),
    ] {
        let got = number(text);
        for (got, want) in got.iter().zip([a, b]) {
            assert!((got.unwrap() - want).abs() < 1e-9, "{text}: {got:?} {want}");
        }
    }
    assert_eq!(number("avg(temperature) FILTER (WHERE state = 'ok')"), [Some(4.0), None]);
    let (_, out) = run_window(&[("s", "max(state)"), ("d", "upper(device)"), ("t", "max(time)")]);
    assert_eq!(out[0].as_string::<i32>().value(0), "warn");
    assert_eq!(out[1].as_string::<i32>().value(1), "B");
    assert_eq!(out[2].data_type(), &time_type());
}

#[test]
fn aggregates_over_time_take_the_time_of_the_reading() {
    for (text, a, b) in [
        ("first(temperature)", Some(1.0), Some(50.0)),
        ("last(temperature)", Some(7.0), Some(50.0)),
        ("last(temperature, time)", Some(7.0), Some(50.0)),
        ("last(temperature, time - INTERVAL '1 hour')", Some(7.0), Some(50.0)),
        ("delta(temperature)", Some(6.0), None),
        ("twa(temperature)", Some(2.5), Some(50.0)),
        ("time_weighted_avg(temperature)", Some(2.5), Some(50.0)),
        ("twa(temperature) FILTER (WHERE temperature < 5)", Some(1.0), None),
        ("twa(temperature, time, TIMESTAMP '1970-01-01T00:00:08Z')", Some(4.75), Some(50.0)),
        ("twa_linear(temperature)", Some(4.0), Some(50.0)),
        ("integral(temperature)", Some(10.0), Some(0.0)),
        ("integral_linear(temperature) / 2", Some(8.0), Some(0.0)),
        ("increase(count_total)", Some(3.0), None),
        ("rate(count_total)", Some(1.0), None),
        ("duration_in(doorOpen)", Some(3.0), Some(0.0)),
        ("duration_in(temperature > 2)", Some(2.0), Some(0.0)),
        ("changes(doorOpen)", Some(2.0), Some(0.0)),
        ("changes(state)", Some(2.0), Some(0.0)),
        ("filled_slots(temperature, INTERVAL '3 seconds')", Some(2.0), Some(1.0)),
        ("quantile(temperature, 1)", Some(7.0), Some(50.0)),
        ("quantile(temperature, 0, 0.001)", Some(1.0), Some(50.0)),
        ("histogram(temperature, 3, 5)[2]", Some(1.0), Some(0.0)),
        ("resample(temperature, INTERVAL '1 second')[2]['value']", Some(1.0), None),
        ("date_part('epoch', first(time))", Some(0.0), Some(1.0)),
        // The window of `run_window` ends after a minute.
        ("twa(temperature, window_end)", Some(6.7), Some(50.0)),
        ("integral_linear(temperature, window_end)", Some(408.0), Some(2950.0)),
        ("duration_in(doorOpen, window_end - INTERVAL '10 seconds')", Some(49.0), Some(0.0)),
    ] {
        assert_eq!(number(text), [a, b], "{text}");
    }
    let (planned, out) = run_window(&[
        ("state", "last(state)"),
        ("counts", "array_to_string(histogram(temperature, 3, 5), ' ')"),
        ("again", "last(state, time)"),
    ]);
    assert_eq!(out[0].as_string::<i32>().value(0), "ok");
    assert_eq!(out[1].as_string::<i32>().value(0), "1 1 1");
    assert_eq!(planned.aggregates.len(), 2);
}

#[test]
fn aggregates_over_time_say_what_they_take() {
    for (text, part) in [
        ("twa(state)", "`twa` takes (value, time [, until]), but was given (Utf8"),
        ("twa()", "`twa` takes"),
        ("duration_in(temperature)", "`duration_in` takes (condition"),
        ("filled_slots(temperature)", "`filled_slots` takes"),
        ("filled_slots(temperature, INTERVAL '1 month')", "without months"),
        ("filled_slots(temperature, INTERVAL '0 seconds')", "without months"),
        ("quantile(temperature, 95)", "from 0 to 1"),
        ("quantile(temperature, temperature)", "must be a number"),
        ("quantile(temperature, 0.5, 0.5)", "relative error"),
        ("histogram(temperature, 5, 3)", "ascend"),
        ("histogram(temperature)", "`histogram` takes"),
        ("twa(DISTINCT temperature)", "no DISTINCT"),
        ("rate(count_total, window_end)", "`rate` takes (counter, time), but"),
        ("twa(temperature, greatest(window_end, time))", "many values in a window"),
        ("buckets(temperature)", "`buckets` takes"),
        ("expected_ratio(temperature)", "`expected_ratio` takes"),
        ("expected_ratio(temperature, INTERVAL '0 seconds')", "without months"),
        ("resample(temperature, INTERVAL '1 month')", "without months"),
        ("resample(temperature, INTERVAL '1 second', window_start)", "`resample` takes"),
        (
            "resample(temperature, INTERVAL '1 second', window_start, greatest(time, window_end))",
            "many values in a window",
        ),
        ("max(make_array(temperature))", "cannot be of lists"),
        ("count(DISTINCT make_array(temperature))", "cannot be of lists"),
        ("first(named_struct('a', temperature))", "`first` takes"),
    ] {
        let found =
            plan_window(&items(&[("x", text)]), &[], &schema(), ("time", false)).expect_err(text);
        assert!(found[0].1.message.contains(part), "{text}: {found:?}");
    }
    assert!(problem("twa(temperature) > 3").0.contains("`twa` is an aggregate"));
}

#[test]
fn equal_calls_are_computed_once() {
    let (planned, _) = run_window(&[
        ("a", "avg(temperature)"),
        ("b", "max(temperature) - avg(temperature)"),
        ("c", "AVG( temperature ) * 2"),
        ("d", "avg(temperature) FILTER (WHERE doorOpen)"),
    ]);
    assert_eq!(planned.aggregates.len(), 3);
    assert_eq!(planned.filters.iter().filter(|f| f.is_some()).count(), 1);
}

#[test]
fn problems_of_a_window_belong_to_names() {
    let select = items(&[
        ("good", "avg(temperature)"),
        ("bare", "temperature"),
        ("mixed", "avg(temperature) + count_total"),
        ("typo", "avg(temperatur)"),
        ("nested", "max(avg(temperature))"),
        ("ordered", "first_value(temperature ORDER BY time)"),
        ("over", "avg(temperature) OVER ()"),
        ("clock", "max(now())"),
        ("text", "avg(state)"),
        ("bound", "max(window_end)"),
    ]);
    let keys = ["device".into(), "sate".into()];
    let found = plan_window(&select, &keys, &schema(), ("time", false)).unwrap_err();
    let names: Vec<&str> = found.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(
        names,
        ["sate", "bare", "mixed", "typo", "nested", "ordered", "over", "clock", "text", "bound"]
    );
    let texts: Vec<&str> = found.iter().map(|(_, p)| p.message.as_str()).collect();
    assert!(texts[0].contains("to group by"));
    assert!(texts[1].contains("many values in a window") && texts[2].contains("`count_total`"));
    assert!(texts[4].contains("inside an aggregate"));
    assert!(texts[5].contains("ORDER BY"));
    // What does it instead.
    let hint = found[5].1.hint.as_deref().unwrap_or_default();
    assert!(
        hint.contains("[[table]]: SQL over it takes `first_value(... ORDER BY ...)`"),
        "{hint}"
    );
    assert_eq!(texts[8], "Function 'avg' requires Float64, but received String");
    assert!(texts[9].contains("outside"));
    let bound = Arc::new(Schema::new(vec![Field::new("window_start", time_type(), false)]));
    let select = items(&[("n", "count(*)")]);
    let reserved = plan_window(&select, &["window_start".into()], &bound, ("window_start", false));
    assert_eq!(reserved.unwrap_err()[0].0, "window_start");
}

#[test]
fn habits_of_other_languages_get_a_hint() {
    assert_eq!(problem("doorOpen && doorOpen").1, "write AND");
    assert_eq!(problem("temperature > 3 || state = 'x'").1, "write OR");
    assert_eq!(problem("(temperature > 3) || (state = 'x')").1, "write OR");
    assert_eq!(eval("state == 'ok' AND temperature != 4").as_boolean().true_count(), 2);
    assert_eq!(problem("temperature >").1, "the expression ends too early");
}

#[test]
fn columns_that_a_key_adds_to_windows_are_named_with_it() {
    let column = |name: &str, is| Field::new(name, is, true);
    let fields = vec![column("window_start", time_type()), column("n", DataType::Int64)];
    let windows = Arc::new(Schema::new(fields));
    for (text, wanted) in [
        ("complete AND n > 2", "`quality = true` in the step of the windows adds it"),
        ("is_final", "`early = \"10s\"` in the step of the windows adds it"),
    ] {
        let problem = plan_scalar(text, &windows, None).unwrap_err();
        assert_eq!(problem.hint.as_deref(), Some(wanted));
    }
    let readings = problem("complete AND n > 2").1;
    assert!(!readings.contains("quality"), "{readings}");
}
