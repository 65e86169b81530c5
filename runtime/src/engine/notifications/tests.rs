//! Who is told what, under which identifier, before and after a rule has changed.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow::array::{Int64Array, TimestampMicrosecondArray, new_null_array};
use arrow::datatypes::DataType;
use tidegate_operators::alert::{EndedRule, STATE_COLUMNS, end_alerts};

use super::*;
use crate::checkpoint::manifest::Rule;

/// One row of the rule `r` of the pipeline `p`: the end of an alert because of a change, or another
/// event of the same alert.
fn row(status: &str, ends: bool) -> RecordBatch {
    let device: ArrayRef = Arc::new(StringArray::from(vec!["d1"]));
    let mut columns = vec![("device", device)];
    for name in STATE_COLUMNS {
        let value = match name {
            "before" | "now" => 2,
            "before_since_us" | "now_since_us" => 5,
            _ => 7,
        };
        columns.push((name, Arc::new(Int64Array::from(vec![value])) as ArrayRef));
    }
    columns.push(("forgotten", new_null_array(&DataType::LargeBinary, 1)));
    let state = RecordBatch::try_from_iter(columns);
    let rule = EndedRule { pipeline: "p", rule: "r", severity: "critical" };
    let rows = end_alerts(rule, &state.unwrap(), 9).unwrap();
    let mut columns = rows.columns().to_vec();
    let at = |name: &str| rows.schema().index_of(name).unwrap();
    columns[at("status")] = Arc::new(StringArray::from(vec![status]));
    if !ends {
        columns[at("reason")] = new_null_array(&DataType::Utf8, 1);
    }
    RecordBatch::try_new(rows.schema(), columns).unwrap()
}

fn rules(target: &str, since_epoch: Epoch) -> Rules {
    let targets = vec![target.to_owned()];
    Rules::from([("p/alert/r".to_owned(), Rule { severity: "x".into(), targets, since_epoch })])
}

/// What waits for a target: identifiers.
fn told(outbox: &Outbox, target: &str) -> Vec<String> {
    outbox.fetch(target).iter().map(|item| item.id.clone()).collect()
}

#[test]
fn an_alert_that_is_told_again_by_a_changed_rule_is_another_notification() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Arc::new(Outbox::open(dir.path()).unwrap());
    let mut notifications = Notifications::new(Arc::clone(&outbox), rules("p/old", 0));
    notifications.enqueue(3, 3, [row("firing", false)].iter()).unwrap();
    let before = told(&outbox, "p/old");
    // With epoch 5 the rule is another one, which also tells somebody else.
    notifications.follow(rules("p/new", 5));
    notifications.end(BTreeMap::from([(5, rules("p/old", 0))]));
    notifications.enqueue(5, 5, [row("resolved", true)].iter()).unwrap();
    let ended = told(&outbox, "p/old");
    assert_eq!(ended, [before[0].replace("firing", "resolved")], "who was told, of the same alert");
    assert!(told(&outbox, "p/new").is_empty(), "who was told nothing");
    notifications.enqueue(6, 6, [row("firing", false)].iter()).unwrap();
    notifications.enqueue(7, 7, [row("resolved", false)].iter()).unwrap();
    let after = told(&outbox, "p/new");
    assert_eq!(after.len(), 2);
    assert!(after.iter().all(|id| id.ends_with("-5")), "{after:?}");
    // A change that keeps the target.
    notifications.follow(rules("p/new", 9));
    notifications.enqueue(9, 9, [row("firing", false)].iter()).unwrap();
    let first = after[0].strip_suffix("-5").unwrap();
    assert_eq!(told(&outbox, "p/new"), [format!("{first}-9")]);
    // A replay gives the same ones.
    notifications.enqueue(9, 9, [row("firing", false)].iter()).unwrap();
    assert!(told(&outbox, "p/new").is_empty());
}

/// An alert was over, a late reading fires it again, and the next row ends it again: its second end
/// is no repetition of the first, or its receivers would take it to fire for ever.
#[test]
fn each_event_of_an_alert_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Arc::new(Outbox::open(dir.path()).unwrap());
    let mut notifications = Notifications::new(Arc::clone(&outbox), rules("p/t", 0));
    for epoch in 1..=6 {
        let status = if epoch % 2 == 1 { "firing" } else { "resolved" };
        let rows = row(status, false);
        let mut columns = rows.columns().to_vec();
        let at = rows.schema().index_of("time").unwrap();
        let times = TimestampMicrosecondArray::from(vec![10 + epoch as i64]);
        columns[at] = Arc::new(times.with_timezone("UTC"));
        let rows = RecordBatch::try_new(rows.schema(), columns).unwrap();
        // Told before the next one: a receiver remembers it, and so does the outbox.
        for _ in 0..2 {
            notifications.enqueue(epoch, 7, [rows.clone()].iter()).unwrap();
        }
        let waiting = outbox.fetch("p/t");
        assert_eq!(waiting.len(), 1, "event {epoch}");
        outbox.delivered(&waiting[0].id).unwrap();
        outbox.release("p/t");
    }
}

#[test]
fn webhooks_that_are_not_there_get_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Arc::new(Outbox::open(dir.path()).unwrap());
    let notifications = Notifications::new(Arc::clone(&outbox), rules("p/gone", 0));
    let mut notifications = notifications.with_engine(&[], Arc::default());
    notifications.enqueue(3, 3, [row("firing", false)].iter()).unwrap();
    assert_eq!(outbox.pending(), 0);
    notifications.follow(rules("p/came", 4));
    notifications.follow(Rules::new());
    notifications.end(BTreeMap::from([(5, rules("p/came", 4))]));
    notifications.enqueue(5, 5, [row("resolved", true)].iter()).unwrap();
    assert_eq!(told(&outbox, "p/came").len(), 1, "its sender runs until the end");
}

#[test]
fn rows_before_a_rule_is_what_it_is_belong_to_its_first_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let outbox = Arc::new(Outbox::open(dir.path()).unwrap());
    let notifications = Notifications::new(outbox, rules("p/t", 9));
    let rows = row("firing", false);
    assert_eq!(notifications.epochs_of(4, &rows).unwrap(), [9]);
    assert_eq!(notifications.epochs_of(12, &rows).unwrap(), [12]);
}
