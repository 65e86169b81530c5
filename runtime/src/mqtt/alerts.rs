//! Alerts as retained topics of the endpoint: whoever subscribes sees what fires now, and then each
//! change.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use bytes::Bytes;
use serde_json::{Map, Value};
use tidegate_operators::system::row_json;

use super::broker::{Broker, Publication};
use super::route::now_ms;

/// How long an alert that is resolved can still be seen by who subscribes later.
const RESOLVED_KEPT_MS: u64 = 24 * 3600 * 1000;

/// Publishes alerts on one endpoint.
#[derive(Clone)]
pub struct AlertTopics {
    pub(crate) broker: Arc<Broker>,
    /// The topic above all of them.
    pub(crate) prefix: String,
}

impl AlertTopics {
    /// Publishes rows of `system.alerts`, each retained, to `PREFIX/PIPELINE/RULE/KEYS`. An epoch
    /// that is replayed publishes its changes again: they end in the same state.
    pub fn publish(&self, alerts: &RecordBatch) {
        let publications: Vec<Publication> =
            (0..alerts.num_rows()).map(|row| self.publication(alerts, row)).collect();
        // Retained on disk soon: until then a replay publishes them again.
        drop(self.broker.publish("", publications, now_ms()));
    }

    fn publication(&self, alerts: &RecordBatch, row: usize) -> Publication {
        let text = |name: &str| {
            let column = alerts.column_by_name(name).filter(|c| c.is_valid(row));
            column.map_or("", |c| c.as_string::<i32>().value(row))
        };
        let mut topic =
            format!("{}/{}/{}", self.prefix, level(text("pipeline")), level(text("rule")));
        let keys: Map<String, Value> = serde_json::from_str(text("keys")).unwrap_or_default();
        for key in keys.values() {
            topic.push('/');
            topic.push_str(&level(key.as_str().unwrap_or(&key.to_string())));
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

/// The row as JSON, what is JSON in it as such.
fn payload(alerts: &RecordBatch, row: usize) -> String {
    let text = row_json(alerts, row);
    let Ok(Value::Object(mut object)) = serde_json::from_str(&text) else { return text };
    for name in ["keys", "row"] {
        if let Some(value) = object.get_mut(name)
            && let Some(parsed) = value.as_str().and_then(|text| serde_json::from_str(text).ok())
        {
            *value = parsed;
        }
    }
    Value::Object(object).to_string()
}

/// A text as one level of a topic.
fn level(text: &str) -> String {
    text.replace(['/', '+', '#', '\0'], "_")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow::array::{ArrayRef, StringArray};

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
                ("keys", column(r#"{"site":"a#","device":7}"#)),
                ("status", column(status)),
            ])
            .unwrap()
        };
        let firing = topics.publication(&rows("firing"), 0);
        assert_eq!(&firing.topic[..], b"tidegate/alerts/cold-chain/too_warm/a_/7");
        assert!(firing.retain && firing.expires_at_ms.is_none());
        let json: Value = serde_json::from_slice(&firing.payload).unwrap();
        assert_eq!((&json["status"], &json["keys"]["device"]), (&"firing".into(), &7.into()));
        assert!(topics.publication(&rows("resolved"), 0).expires_at_ms.is_some());
    }
}
