//! Alerts as retained topics of the endpoint: whoever subscribes sees what fires now, and then each
//! change.
//!
//! Invariant: the alerts of an epoch reach the sessions' queues once, whatever is replayed. Only
//! where a crash came before the endpoint's store had them do they come again, all of that epoch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::Field;
use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tidegate_operators::Epoch;
use tidegate_operators::system::json_value;

use super::broker::{Broker, Publication};
use super::route::now_ms;

/// How long an alert that is resolved can still be seen by who subscribes later.
const RESOLVED_KEPT_MS: u64 = 24 * 3600 * 1000;

/// How often it is looked whether the store has written.
const WRITE_PAUSE: Duration = Duration::from_millis(1);

/// Publishes alerts on one endpoint.
#[derive(Clone)]
pub struct AlertTopics {
    pub(crate) broker: Arc<Broker>,
    /// The topic above all of them.
    pub(crate) prefix: String,
}

impl AlertTopics {
    /// Publishes all rows of `system.alerts` of a complete epoch that are to be told, each
    /// retained, to `PREFIX/PIPELINE/RULE/KEYS`; nothing if they were published before.
    pub(crate) fn publish(&self, epoch: Epoch, alerts: &[&RecordBatch]) {
        if epoch <= self.broker.alerts_through() {
            return;
        }
        let mut publications = Vec::new();
        for rows in alerts {
            let told = (0..rows.num_rows()).filter(|row| is_told(rows, *row));
            publications.extend(told.map(|row| self.publication(rows, row)));
        }
        if !publications.is_empty() {
            self.broker.publish_alerts(epoch, publications, now_ms());
        }
    }

    /// The newest epoch whose alerts were published.
    pub(crate) fn through_epoch(&self) -> Epoch {
        self.broker.alerts_through()
    }

    /// Waits until all that was published is on disk.
    ///
    /// # Errors
    /// The endpoint's store has failed, and so will have it never.
    pub(crate) fn wait_until_written(&self) -> Result<(), String> {
        while !self.broker.has_written_alerts() {
            if let Some(error) = self.broker.store_error() {
                return Err(error);
            }
            crate::time::block(WRITE_PAUSE);
        }
        Ok(())
    }

    fn publication(&self, alerts: &RecordBatch, row: usize) -> Publication {
        let text = |name: &str| {
            let column = alerts.column_by_name(name).filter(|c| c.is_valid(row));
            column.map_or("", |c| c.as_string::<i32>().value(row))
        };
        let mut topic =
            format!("{}/{}/{}", self.prefix, level(text("pipeline")), level(text("rule")));
        // One knows their order, the other the digits of numbers.
        let keys: Map<String, Value> = serde_json::from_str(text("keys")).unwrap_or_default();
        let written: HashMap<String, &RawValue> =
            serde_json::from_str(text("keys")).unwrap_or_default();
        for (name, key) in &keys {
            let written = written.get(name).map_or("", |value| value.get());
            topic.push('/');
            topic.push_str(&level(key.as_str().unwrap_or(written)));
        }
        let resolved = text("status") != "firing";
        Publication {
            topic: Bytes::from(topic),
            payload: Bytes::from(payload(alerts, row)),
            properties: Bytes::new(),
            qos: 1,
            retain: true,
            expires_at_ms: resolved.then(|| now_ms() + RESOLVED_KEPT_MS),
        }
    }
}

/// Whether anybody is to be told: not of what began longer ago than its rule's `max_age`.
fn is_told(alerts: &RecordBatch, row: usize) -> bool {
    let notify = alerts.column_by_name("notify").and_then(|notify| notify.as_boolean_opt());
    notify.is_some_and(|notify| notify.is_valid(row) && notify.value(row))
}

/// The row as JSON, what is JSON in it as such, as it is written.
fn payload(alerts: &RecordBatch, row: usize) -> String {
    let member = |(field, column): (&Arc<Field>, &ArrayRef)| {
        let name = Value::from(field.name().as_str());
        let value = json_value(column, row);
        let json = value.as_str().filter(|_| ["keys", "row"].contains(&field.name().as_str()));
        match json.and_then(|text| serde_json::from_str::<&RawValue>(text).ok()) {
            Some(json) => format!("{name}:{json}"),
            None => format!("{name}:{value}"),
        }
    };
    let schema = alerts.schema();
    let members: Vec<String> = schema.fields().iter().zip(alerts.columns()).map(member).collect();
    format!("{{{}}}", members.join(","))
}

/// A text as one level of a topic.
fn level(text: &str) -> String {
    text.replace(['/', '+', '#', '\0'], "_")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::array::{BooleanArray, StringArray};

    use super::*;
    use crate::mqtt::broker::BrokerOptions;

    #[test]
    fn an_alert_has_a_topic_of_its_own() {
        let broker = Broker::open(BrokerOptions::default(), 0).unwrap();
        let topics = AlertTopics { broker, prefix: "tidegate/alerts".into() };
        let column = |text: &str| Arc::new(StringArray::from(vec![text])) as ArrayRef;
        let rows = |status: &str| {
            RecordBatch::try_from_iter([
                ("pipeline", column("cold-chain")),
                ("rule", column("too/warm")),
                ("keys", column(r#"{"site":"a#","device":7,"x":9.779166666666667}"#)),
                ("row", column(r#"{"t_avg":9.779166666666667}"#)),
                ("status", column(status)),
            ])
            .unwrap()
        };
        let firing = topics.publication(&rows("firing"), 0);
        assert_eq!(
            &firing.topic[..],
            b"tidegate/alerts/cold-chain/too_warm/a_/7/9.779166666666667"
        );
        assert!(firing.retain && firing.expires_at_ms.is_none());
        let json: Value = serde_json::from_slice(&firing.payload).unwrap();
        assert_eq!((&json["status"], &json["keys"]["device"]), (&"firing".into(), &7.into()));
        let text = std::str::from_utf8(&firing.payload).unwrap();
        assert!(text.contains(r#""row":{"t_avg":9.779166666666667}"#), "the same digits: {text}");
        assert!(topics.publication(&rows("resolved"), 0).expires_at_ms.is_some());
    }

    #[test]
    fn who_is_not_to_be_told_is_not_told_by_topics_either() {
        let broker = Broker::open(BrokerOptions::default(), 0).unwrap();
        let topics = AlertTopics { broker: Arc::clone(&broker), prefix: "alerts".into() };
        let rows = |rules: Vec<&str>, notify: Vec<bool>| {
            RecordBatch::try_from_iter([
                ("rule", Arc::new(StringArray::from(rules)) as ArrayRef),
                ("notify", Arc::new(BooleanArray::from(notify))),
            ])
            .unwrap()
        };
        topics.publish(4, &[&rows(vec!["old", "new"], vec![false, true])]);
        assert_eq!(topics.through_epoch(), 4);
        // What has nobody to be told of says nothing of its epoch either.
        topics.publish(5, &[&rows(vec!["older"], vec![false])]);
        assert_eq!(topics.through_epoch(), 4);
        topics.publish(4, &[&rows(vec!["again"], vec![true])]);
        let kept = broker.retained("#", 0);
        let kept: Vec<&[u8]> = kept.iter().map(|kept| &kept.topic[..]).collect();
        assert_eq!(kept, [b"alerts//new"]);
        topics.wait_until_written().unwrap();
    }
}
