//! The alert machine against hand-made rows: `for`, clear, restart and restore.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion_expr::{col, lit};
use datafusion_physical_expr::planner::logical2physical;
use proptest::prelude::*;

use super::*;
use crate::snapshot::check;
use crate::spec::{KeyLimits, time_type};
use crate::system::alerts_schema;

mod changed;
mod early;
mod forget;
mod moved;

/// Device, time, value, revision.
type Row = (&'static str, i64, Option<f64>, i64);

fn input() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("device", DataType::Utf8, false),
        Field::new("window_end", time_type(), false),
        Field::new("t_avg", DataType::Float64, true),
        Field::new("revision", DataType::Int64, false),
    ]))
}

fn rule(for_us: i64) -> AlertRule {
    AlertRule::new(AlertSpec {
        pipeline: "cold-chain".into(),
        name: "too-warm".into(),
        input: input(),
        keys: vec![0],
        others: Vec::new(),
        time: 1,
        fire: logical2physical(&col("t_avg").gt(lit(8.0)), &input()),
        clear: logical2physical(&col("t_avg").lt(lit(7.0)), &input()),
        for_us,
        severity: "warning".into(),
        summary: "{device} is at {t_avg} °C {not_a_column} {".into(),
        notify: vec!["ops".into()],
        max_age_us: 1_000,
        early: false,
        limits: KeyLimits::default(),
    })
    .unwrap()
}

fn batch(rows: &[Row]) -> RecordBatch {
    let times = rows.iter().map(|r| r.1);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.0))),
        Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC")),
        Arc::new(Float64Array::from_iter(rows.iter().map(|r| r.2))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.3))),
    ];
    RecordBatch::try_new(input(), columns).unwrap()
}

fn feed(rule: &mut AlertRule, rows: &[Row], tick_us: i64) -> Vec<RecordBatch> {
    let mut emit = Emit::default();
    rule.epoch(&batch(rows), Tick { epoch: 1, time_us: tick_us }, &mut emit).unwrap();
    assert!(emit.rejects.is_empty());
    emit.rows
}

fn text<'a>(rows: &'a RecordBatch, column: &str) -> Vec<&'a str> {
    rows.column_by_name(column).unwrap().as_string::<i32>().iter().map(Option::unwrap).collect()
}

/// (device, time, fires, since) of every event.
fn events(out: &[RecordBatch]) -> Vec<(String, i64, bool, i64)> {
    let mut all = Vec::new();
    for rows in out {
        assert_eq!(rows.schema(), alerts_schema());
        let time = |name: &str, row: usize| {
            let column = rows.column_by_name(name).unwrap();
            column.as_primitive::<TimestampMicrosecondType>().value(row)
        };
        for (row, (keys, status)) in text(rows, "keys").iter().zip(text(rows, "status")).enumerate()
        {
            let device = keys.split('"').nth(3).unwrap().to_owned();
            all.push((device, time("time", row), status == "firing", time("since", row)));
        }
    }
    all
}

#[test]
fn whoever_was_told_of_the_beginning_is_told_of_the_end_and_nobody_else() {
    let told = |out: &[RecordBatch]| -> Vec<bool> {
        let columns = out.iter().map(|rows| rows["notify"].as_boolean().clone());
        columns.flat_map(|c| c.values().iter().collect::<Vec<bool>>()).collect()
    };
    let mut one = rule(0);
    assert_eq!(told(&feed(&mut one, &[("a", 0, Some(9.0), 0)], 500)), [true]);
    assert_eq!(told(&feed(&mut one, &[("b", 0, Some(9.0), 0)], 5_000)), [false], "too old");
    let saved = one.save().unwrap();
    let mut one = rule(0);
    one.load(&saved).unwrap();
    assert_eq!(one.save().unwrap(), saved);
    // Revised, long after, it still fires.
    assert!(feed(&mut one, &[("a", 0, Some(9.5), 1)], 9_000).is_empty());
    // The end of the one comes late, that of the other at once.
    assert_eq!(told(&feed(&mut one, &[("a", 10, Some(1.0), 0)], 9_000)), [true]);
    assert_eq!(told(&feed(&mut one, &[("b", 9_000, Some(1.0), 0)], 9_000)), [false]);
    let of_rule = EndedRule { pipeline: "p", rule: "r", severity: "warning" };
    assert_eq!(told(&[end_alerts(of_rule, &saved, 9_000).unwrap()]), [true, false]);
}

#[test]
fn an_alert_fires_after_a_while_and_is_resolved_with_hysteresis() {
    let mut rule = rule(20);
    let rows = [
        ("a", 0, Some(9.0), 0),
        ("a", 10, Some(7.5), 0), // not fire: pending is over
        ("a", 20, Some(9.0), 0),
        ("a", 30, Some(9.0), 0),
        ("a", 40, Some(8.3333333), 0), // 20 after the first: fires
        ("a", 50, Some(7.5), 0),       // neither: goes on
        ("a", 60, None, 0),            // null is false for both
        ("a", 70, Some(6.0), 0),       // resolved
        ("a", 60, Some(9.0), 0),       // too old
    ];
    let out = feed(&mut rule, &rows, 1_040);
    assert_eq!(events(&out), [("a".to_owned(), 40, true, 20), ("a".to_owned(), 70, false, 20)]);
    assert_eq!(rule.counts(), AlertCounts { evaluated: 8, out_of_order: 1 });
    assert_eq!(
        text(&out[0], "summary"),
        ["a is at 8.333 °C {not_a_column} {", "a is at 6 °C {not_a_column} {"]
    );
    assert_eq!(
        text(&out[0], "row")[1],
        r#"{"device":"a","window_end":"1970-01-01T00:00:00.000070Z","t_avg":6.0,"revision":0}"#
    );
    let ids = text(&out[0], "alert_id");
    assert_eq!(ids[0], ids[1]);
    assert!(ids[0].len() == 32 && ids[0].bytes().all(|b| b.is_ascii_hexdigit()));
    // Too old to wake anyone: the tick is more than 1000 µs ahead of the row.
    let notify = out[0].column_by_name("notify").unwrap().as_boolean().clone();
    assert_eq!(notify, BooleanArray::from(vec![true, true]));
    let old = feed(&mut rule, &[("b", 100, Some(9.0), 0), ("b", 120, Some(9.0), 0)], 1_121);
    assert!(!old[0].column_by_name("notify").unwrap().as_boolean().value(0));
    assert_ne!(text(&old[0], "alert_id")[0], ids[0]);
}

#[test]
fn without_a_while_the_first_row_fires() {
    let mut rule = rule(0);
    let out = feed(&mut rule, &[("b", 5, Some(9.0), 0), ("a", 5, Some(9.0), 0)], 5);
    assert_eq!(events(&out), [("a".to_owned(), 5, true, 5), ("b".to_owned(), 5, true, 5)]);
}

#[test]
fn a_revised_row_corrects_what_was_told() {
    let mut rule = rule(0);
    let fired = feed(&mut rule, &[("a", 5, Some(9.0), 0)], 5);
    let taken_back = feed(&mut rule, &[("a", 5, Some(7.5), 1)], 5);
    let again = feed(&mut rule, &[("a", 5, Some(9.5), 2)], 5);
    // Each has a later time than what it corrects.
    assert_eq!(events(&fired), [("a".to_owned(), 5, true, 5)]);
    assert_eq!(events(&taken_back), [("a".to_owned(), 6, false, 5)]);
    assert_eq!(events(&again), [("a".to_owned(), 7, true, 5)]);
    assert_eq!(text(&again[0], "alert_id"), text(&fired[0], "alert_id"));
    // Rows of equal time that revise nothing just follow each other: hysteresis holds.
    assert!(feed(&mut rule, &[("a", 5, Some(7.5), 0)], 5).is_empty());
}

/// What began too long ago to tell anybody is told when it turns out to go on.
#[test]
fn an_alert_of_a_buffered_upload_that_still_holds_is_told() {
    let mut rule = rule(0);
    let told = |out: &[RecordBatch]| -> Vec<bool> {
        let columns = out.iter().map(|rows| rows["notify"].as_boolean().clone());
        columns.flat_map(|c| c.values().iter().collect::<Vec<bool>>()).collect()
    };
    let buffered = [("a", 0, Some(9.0), 0), ("a", 10, Some(9.0), 0)];
    let first = feed(&mut rule, &buffered, 9_000);
    assert_eq!(told(&first), [false]);
    let live = feed(&mut rule, &[("a", 8_990, Some(7.5), 0)], 9_000);
    assert_eq!((events(&live), told(&live)), (vec![("a".into(), 8_990, true, 0)], vec![true]));
    assert_eq!(text(&live[0], "alert_id"), text(&first[0], "alert_id"));
    assert!(feed(&mut rule, &[("a", 8_995, Some(9.0), 0)], 9_000).is_empty(), "once");
    assert_eq!(told(&feed(&mut rule, &[("a", 9_000, Some(1.0), 0)], 9_000)), [true]);
}

/// Also if it only holds between the thresholds; what is over by then is told to nobody.
#[test]
fn a_rule_that_is_made_anew_in_silence_tells_with_its_next_row_what_holds() {
    for (next, tells) in [(9.0, true), (7.5, true), (6.0, false)] {
        let mut old = rule(0);
        feed(&mut old, &[("a", 0, Some(9.0), 0), ("a", 10, Some(7.5), 0)], 20);
        let saved = untold(&old.save().unwrap()).unwrap();
        let of_rule = EndedRule { pipeline: "p", rule: "r", severity: "warning" };
        assert_eq!(end_alerts(of_rule, &saved, 20).unwrap().num_rows(), 0, "nobody was told");
        let mut new = rule(0);
        new.load(&saved).unwrap();
        let out = feed(&mut new, &[("a", 20, Some(next), 0)], 20);
        let told: Vec<_> = tells.then(|| ("a".to_owned(), 20, true, 0)).into_iter().collect();
        assert_eq!(events(&out), told, "{next}");
        assert!(out.iter().all(|rows| rows["notify"].as_boolean().value(0)));
    }
}

/// The rule as a plain loop over one device's rows.
fn oracle(device: &str, rows: &[Row], for_us: i64) -> Vec<(String, i64, bool, i64)> {
    let mut all = Vec::new();
    let (mut since, mut firing, mut last, mut told) = (None, false, i64::MIN, i64::MIN);
    let mut tell = |time: i64, fires: bool, since: i64| {
        told = time.max(told.saturating_add(1));
        all.push((device.to_owned(), told, fires, since));
    };
    for (_, time, value, _) in rows.iter().filter(|r| r.0 == device) {
        if *time < last {
            continue;
        }
        last = *time;
        let fire = value.is_some_and(|v| v > 8.0);
        let clear = value.is_some_and(|v| v < 7.0);
        if firing {
            if clear {
                tell(*time, false, since.take().unwrap());
                firing = false;
            }
        } else if fire {
            let start = *since.get_or_insert(*time);
            if time - start >= for_us {
                firing = true;
                tell(*time, true, start);
            }
        } else {
            since = None;
        }
    }
    all
}

fn any_rows() -> impl Strategy<Value = Vec<Row>> {
    let value = prop::option::weighted(0.9, 6.0..10.0_f64);
    let row = (prop::sample::select(vec!["a", "b"]), -3..12_i64, value);
    prop::collection::vec(row, 0..80).prop_map(|rows| {
        let mut now = 0;
        let step = |(device, ahead, value): (&'static str, i64, Option<f64>)| {
            now = (now + ahead).max(0);
            (device, now, value, 0)
        };
        rows.into_iter().map(step).collect()
    })
}

/// Final phases of all keys, whatever their ids.
fn phases(rule: &AlertRule) -> Vec<(Vec<u8>, Phase)> {
    let of = |id: u32| (rule.interner.bytes(id).to_vec(), rule.states[id as usize].now);
    let mut all: Vec<_> = rule.interner.ids().map(of).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

proptest! {
    #[test]
    fn equals_the_oracle(rows in any_rows(), for_us in 0..30_i64, size in 1..10_usize) {
        let mut rule = rule(for_us);
        let mut got = Vec::new();
        for part in rows.chunks(size) {
            got.extend(feed(&mut rule, part, 0));
        }
        let mut got = events(&got);
        let mut want = oracle("a", &rows, for_us);
        want.extend(oracle("b", &rows, for_us));
        got.sort();
        want.sort();
        prop_assert_eq!(got, want);
    }

    /// The state after revisions is the state of a run that saw only the last revisions.
    #[test]
    fn revisions_leave_no_trace_in_the_state(
        rows in prop::collection::vec((6.0..10.0_f64, 6.0..10.0_f64, any::<bool>()), 1..40),
        for_us in 0..30_i64,
    ) {
        let (mut revised, mut straight) = (rule(for_us), rule(for_us));
        for (i, (first, second, again)) in rows.into_iter().enumerate() {
            let time = i as i64 * 7;
            feed(&mut revised, &[("a", time, Some(first), 0)], 0);
            if again {
                feed(&mut revised, &[("a", time, Some(second), 1)], 0);
            }
            let last = if again { second } else { first };
            feed(&mut straight, &[("a", time, Some(last), 0)], 0);
        }
        prop_assert_eq!(phases(&revised), phases(&straight));
    }

    #[test]
    fn a_resumed_run_equals_a_straight_one(
        rows in any_rows(),
        for_us in 0..30_i64,
        cut in 0..15_usize,
    ) {
        let (mut straight, mut resumed) = (rule(for_us), rule(for_us));
        for (i, part) in rows.chunks(6).enumerate() {
            if i == cut {
                let saved = resumed.save().unwrap();
                resumed = rule(for_us);
                // Dealt out in two parts, in another order.
                let middle = saved.num_rows() / 2;
                resumed.load(&saved.slice(middle, saved.num_rows() - middle)).unwrap();
                resumed.load(&saved.slice(0, middle)).unwrap();
            }
            prop_assert_eq!(feed(&mut straight, part, 50), feed(&mut resumed, part, 50));
        }
    }
}

/// Start, end, mean, rows, revision.
type Span = (i64, i64, f64, i64, i64);

/// Rows of one device's windows whose bounds come from the data.
fn spans(rows: &[Span]) -> RecordBatch {
    let times = |f: &dyn Fn(&Span) -> i64| -> ArrayRef {
        let values = rows.iter().map(f);
        Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone("UTC"))
    };
    let number = |f: &dyn Fn(&Span) -> i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(rows.iter().map(f)))
    };
    let mut fields: Vec<Arc<Field>> = input().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("window_start", time_type(), false)));
    fields.push(Arc::new(Field::new("rows", DataType::Int64, false)));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec!["a"; rows.len()])),
        times(&|r| r.1),
        Arc::new(Float64Array::from_iter(rows.iter().map(|r| (r.3 > 0).then_some(r.2)))),
        number(&|r| r.4),
        times(&|r| r.0),
        number(&|r| r.3),
    ];
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

/// A window that is revised to end earlier fires since another moment; its end is told of the alert
/// that was told.
#[test]
fn the_end_bears_the_id_that_was_told() {
    let mut rule = rule(0);
    let mut feed = |rows: &[Span]| {
        let mut emit = Emit::default();
        rule.epoch(&spans(rows), Tick { epoch: 1, time_us: 100 }, &mut emit).unwrap();
        events(&emit.rows).into_iter().map(|e| (e.2, e.3)).collect::<Vec<_>>()
    };
    assert_eq!(feed(&[(0, 12, 9.0, 3, 0)]), [(true, 12)]);
    assert_eq!(feed(&[(0, 8, 9.0, 2, 1)]), []);
    assert_eq!(feed(&[(0, 8, 6.0, 2, 2)]), [(false, 12)]);
}

#[test]
fn windows_that_move_or_are_withdrawn_take_their_effect_with_them() {
    let mut rule = rule(0);
    let mut feed = |rows: &[Span]| {
        let mut emit = Emit::default();
        let tick = Tick { epoch: 1, time_us: 100 };
        rule.epoch(&spans(rows), tick, &mut emit).unwrap();
        let told = events(&emit.rows).into_iter().map(|e| (e.1, e.2));
        told.collect::<Vec<_>>()
    };
    assert_eq!(feed(&[(0, 10, 6.0, 3, 0), (20, 60, 9.0, 3, 0)]), [(60, true)]);
    // It ends earlier than before, which is not out of order.
    assert_eq!(feed(&[(20, 30, 6.0, 1, 1)]), [(61, false)]);
    assert_eq!(feed(&[(40, 60, 9.0, 2, 0)]), [(62, true)]);
    assert_eq!(feed(&[(40, 60, 0.0, 0, 1)]), [(63, false)], "withdrawn");
    assert_eq!(feed(&[(40, 60, 0.0, 0, 2), (0, 10, 0.0, 0, 1)]), [], "of no effect any more");
    assert_eq!(feed(&[(32, 50, 9.0, 2, 0)]), [(64, true)], "after the row before it");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn cuts_add_up_on_any_number_of_workers(rows in any_rows(), for_us in 0..30_i64) {
        let parts = rows.chunks(5).enumerate();
        let epochs: Vec<(i64, RecordBatch)> =
            parts.map(|(i, part)| (i as i64 * 10, batch(part))).collect();
        let make = || Box::new(rule(for_us)) as Box<dyn KeyedOperator>;
        check::Subject { make: &make, input_keys: &[0], epochs: &epochs }.check();
    }
}
