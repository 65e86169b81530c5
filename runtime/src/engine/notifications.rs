//! From alert rows to webhooks: what is sent, to whom, under which id.
//!
//! The id is that of the alert and its status, so it is the same after a restart, in a replay and
//! at every retry: a receiver can recognise a request that it has seen.

mod body;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat};
use serde_json::{Value, json};
use tidegate_operators::Epoch;
use tidegate_operators::event::ENGINE;
use tidegate_operators::spec::PipelineSpec;
use tidegate_pipelines::plan::NotifySpec;

use crate::fault;
use crate::journal::DurableError;
use crate::journal::storage::is_full;
use crate::mqtt::AlertTopics;
use crate::outbox::{Notification, Outbox};

/// Pause before a full disk is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(200);

/// Puts alert rows into the outbox.
pub(crate) struct Notifications {
    outbox: Arc<Outbox>,
    /// (pipeline, rule) to the names of its targets.
    targets: BTreeMap<(String, String), Vec<String>>,
    /// Endpoints on which alerts are topics, besides.
    topics: Vec<AlertTopics>,
    engine: EngineTargets,
    /// Set when the process is to end: then nothing waits for room on the disk any more.
    stopping: Arc<AtomicBool>,
}

/// Names of the targets that are told of the engine's own alerts. Shared with whoever changes the
/// plan, because a webhook alone is no change that an epoch has to wait for.
#[derive(Clone, Debug, Default)]
pub(crate) struct EngineTargets(Arc<Mutex<Vec<String>>>);

impl EngineTargets {
    /// From now on it is those of `notify` that want it.
    pub(crate) fn set(&self, notify: &[NotifySpec]) {
        let wanting = notify.iter().filter(|n| n.engine);
        let names = wanting.map(|n| target_name(&n.pipeline, &n.name)).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }

    fn names(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The name under which the outbox knows a target.
pub(crate) fn target_name(pipeline: &str, notify: &str) -> String {
    format!("{pipeline}/{notify}")
}

impl Notifications {
    pub(crate) fn new(outbox: Arc<Outbox>, pipelines: &[PipelineSpec]) -> Self {
        let mut targets = BTreeMap::new();
        for pipeline in pipelines {
            for (_, alert) in &pipeline.alerts {
                let names = alert.notify.iter().map(|n| target_name(&pipeline.name, n)).collect();
                targets.insert((pipeline.name.clone(), alert.name.clone()), names);
            }
        }
        let (topics, engine) = (Vec::new(), EngineTargets::default());
        Self { outbox, targets, topics, engine, stopping: Arc::default() }
    }

    /// Also tells these webhooks, if they want it, of the engine's own alerts. While the disk is
    /// full, notifications wait until `stopping` is set.
    pub(crate) fn with_engine(self, notify: &[NotifySpec], stopping: Arc<AtomicBool>) -> Self {
        self.engine.set(notify);
        Self { stopping, ..self }
    }

    /// Who is told of the engine's own alerts, to be changed while it runs.
    pub(crate) fn engine_targets(&self) -> EngineTargets {
        self.engine.clone()
    }

    /// Other pipelines run from now on.
    pub(crate) fn follow(&mut self, pipelines: &[PipelineSpec]) {
        // Rules that are gone still have to tell that they are.
        let new = Self::new(Arc::clone(&self.outbox), pipelines);
        self.targets.extend(new.targets);
    }

    /// Also publishes alerts on these endpoints.
    pub(crate) fn with_topics(self, topics: Vec<AlertTopics>) -> Self {
        Self { topics, ..self }
    }

    /// Publishes the alerts of a complete epoch.
    pub(crate) fn publish<'a>(&self, alerts: impl Iterator<Item = &'a RecordBatch>) {
        if !self.topics.is_empty() {
            alerts.for_each(|rows| self.topics.iter().for_each(|topics| topics.publish(rows)));
        }
    }

    /// Epochs up to this one will not be replayed again.
    pub(crate) fn forget(&self, through: Epoch) {
        self.outbox.forget(through);
    }

    /// Makes the notifications of an epoch durable. Those that were enqueued before (this is a
    /// replay) are passed over.
    pub(crate) fn enqueue<'a>(
        &mut self,
        epoch: Epoch,
        tick_us: i64,
        alerts: impl Iterator<Item = &'a RecordBatch>,
    ) -> anyhow::Result<()> {
        if !self.outbox.may_lack(epoch) {
            return Ok(());
        }
        let mut notifications = Vec::new();
        for rows in alerts {
            for row in 0..rows.num_rows() {
                self.push(rows, row, tick_us, &mut notifications)?;
            }
        }
        if !notifications.is_empty() {
            // Rows of several workers: their order must not show.
            notifications.sort_by(|a, b| (a.0, &a.1.id).cmp(&(b.0, &b.1.id)));
            let notifications: Vec<_> = notifications.into_iter().map(|n| n.1).collect();
            self.enqueue_when_there_is_room(epoch, &notifications)?;
            fault::point("alert_enqueued");
        }
        Ok(())
    }

    /// A full disk is waited for: alerts that are not durable are told to nobody, and sources wait
    /// as well.
    fn enqueue_when_there_is_room(
        &self,
        epoch: Epoch,
        list: &[Notification],
    ) -> anyhow::Result<()> {
        let mut told = false;
        loop {
            match self.outbox.enqueue(epoch, list.to_vec()) {
                Ok(_) => return Ok(()),
                Err(DurableError::Io { source, .. })
                    if is_full(&source) && !self.stopping.load(Ordering::Acquire) =>
                {
                    if !std::mem::replace(&mut told, true) {
                        tracing::error!(error = %source, "no room for notifications, they wait");
                    }
                    crate::time::block(FULL_PAUSE);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn push(
        &self,
        rows: &RecordBatch,
        row: usize,
        tick_us: i64,
        into: &mut Vec<(i64, Notification)>,
    ) -> anyhow::Result<()> {
        let column = |name: &str| {
            rows.column_by_name(name)
                .ok_or_else(|| anyhow::anyhow!("alert rows have no column {name}"))
        };
        let notify = column("notify")?.as_boolean();
        if notify.is_null(row) || !notify.value(row) {
            return Ok(());
        }
        let text = |name: &str| -> anyhow::Result<String> {
            Ok(column(name)?.as_string::<i32>().value(row).to_owned())
        };
        let time = |name: &str| -> anyhow::Result<i64> {
            Ok(column(name)?.as_primitive::<TimestampMicrosecondType>().value(row))
        };
        let (pipeline, rule, status) = (text("pipeline")?, text("rule")?, text("status")?);
        let alert_id = text("alert_id")?;
        let time_us = time("time")?;
        let json_of = |text: String| serde_json::from_str(&text).unwrap_or(Value::String(text));
        let body = json!({
            "type": format!("alert.{status}"),
            "timestamp": rfc3339(time_us),
            "data": {
                "alert_id": alert_id,
                "pipeline": pipeline,
                "rule": rule,
                "status": status,
                "severity": text("severity")?,
                "summary": text("summary")?,
                "since": rfc3339(time("since")?),
                "keys": json_of(text("keys")?),
                "row": json_of(text("row")?),
            },
        });
        let body = Bytes::from(body::encode(body)?);
        let names = match pipeline == ENGINE {
            true => self.engine.names(),
            false => self.targets.get(&(pipeline, rule)).cloned().unwrap_or_default(),
        };
        for name in &names {
            let notification = Notification {
                id: format!("{alert_id}-{status}-{:08x}", crc32fast::hash(name.as_bytes())),
                target: name.clone(),
                body: body.clone(),
                created_us: tick_us,
                key: alert_id.clone(),
            };
            into.push((time_us, notification));
        }
        Ok(())
    }
}

fn rfc3339(time_us: i64) -> String {
    DateTime::from_timestamp_micros(time_us)
        .map(|t| t.to_rfc3339_opts(SecondsFormat::Micros, true))
        .unwrap_or_default()
}
