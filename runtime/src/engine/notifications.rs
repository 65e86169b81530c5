//! From alert rows to webhooks: what is sent, to whom, under which id.
//!
//! The id is that of the alert, its status and the time of the event, so it is the same after a
//! restart, in a replay and at every retry: a receiver can recognise a request that it has seen.
//! The time is in it because an alert that was said to be over may fire again when a late reading
//! revises its row, and then be over again: each of these events is told. (Events of a key have
//! different times.)

mod body;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::TimestampMicrosecondType;
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat};
use tidegate_operators::Epoch;
use tidegate_operators::event::ENGINE;
use tidegate_pipelines::plan::NotifySpec;

use self::body::{Body, Data};
use super::checkpoints::{Rules, add_ended, rule_name};
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
    rules: Rules,
    /// Rules that ended, as they were: by the epoch of the rows that end their alerts.
    ended: BTreeMap<Epoch, Rules>,
    /// Names of the targets that have a sender; `None`: all.
    known: Option<BTreeSet<String>>,
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
    pub(crate) fn new(outbox: Arc<Outbox>, rules: Rules) -> Self {
        let (topics, engine) = (Vec::new(), EngineTargets::default());
        let (ended, known) = (BTreeMap::new(), None);
        Self { outbox, rules, ended, known, topics, engine, stopping: Arc::default() }
    }

    /// There are these webhooks; those that want it are told of the engine's own alerts too. While
    /// the disk is full, notifications wait until `stopping` is set.
    pub(crate) fn with_engine(self, notify: &[NotifySpec], stopping: Arc<AtomicBool>) -> Self {
        self.engine.set(notify);
        let known = notify.iter().map(|n| target_name(&n.pipeline, &n.name)).collect();
        Self { stopping, known: Some(known), ..self }
    }

    /// Who is told of the engine's own alerts, to be changed while it runs.
    pub(crate) fn engine_targets(&self) -> EngineTargets {
        self.engine.clone()
    }

    /// These are the rules from now on. Webhooks that they do not name any more stay known: their
    /// senders go on until the process ends.
    pub(crate) fn follow(&mut self, rules: Rules) {
        if let Some(known) = &mut self.known {
            known.extend(rules.values().flat_map(|rule| rule.targets.iter().cloned()));
        }
        self.rules = rules;
    }

    /// Rows that end alerts because their rule has changed are told as these rules did, by the
    /// epoch of the rows.
    pub(crate) fn end(&mut self, rules: BTreeMap<Epoch, Rules>) {
        add_ended(&mut self.ended, rules);
    }

    /// The epoch to which each of these alert rows belongs: its own, or the first of its rule.
    pub(crate) fn epochs_of(&self, epoch: Epoch, rows: &RecordBatch) -> anyhow::Result<Vec<Epoch>> {
        let (pipelines, rules) = (texts(rows, "pipeline")?, texts(rows, "rule")?);
        let since = |row: usize| {
            let name = rule_name(pipelines.value(row), rules.value(row));
            self.rules.get(&name).map_or(epoch, |rule| rule.since_epoch.max(epoch))
        };
        Ok((0..rows.num_rows()).map(since).collect())
    }

    /// Also publishes alerts on these endpoints.
    pub(crate) fn with_topics(self, topics: Vec<AlertTopics>) -> Self {
        Self { topics, ..self }
    }

    /// Publishes the alerts of a complete epoch, where they were not published before.
    pub(crate) fn publish<'a>(&self, epoch: Epoch, alerts: impl Iterator<Item = &'a RecordBatch>) {
        if !self.topics.is_empty() {
            let alerts: Vec<_> = alerts.collect();
            self.topics.iter().for_each(|topics| topics.publish(epoch, &alerts));
        }
    }

    /// Waits until all alerts that were published are on disk: a replay that begins after them
    /// would not publish them again.
    ///
    /// # Errors
    /// That of a store that has failed. It ends the process: without checkpoints the journals of
    /// all sources would fill up, and the next start publishes what is missing.
    pub(crate) fn wait_until_published(&self) -> anyhow::Result<()> {
        let mut topics = self.topics.iter();
        topics.try_for_each(AlertTopics::wait_until_written).map_err(|error| {
            anyhow::anyhow!("alerts of an endpoint cannot be kept, the next start does it: {error}")
        })
    }

    /// The newest epoch whose alerts anybody may have got.
    pub(crate) fn told_through(&self) -> Epoch {
        let published = self.topics.iter().map(AlertTopics::through_epoch);
        published.max().unwrap_or_default().max(self.outbox.through_epoch())
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
                self.push(rows, row, (epoch, tick_us), &mut notifications)?;
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

    /// The targets of a rule, and since when it is the one that it is; of one that ended with the
    /// epoch `ended`: as it was.
    fn told(&self, name: &str, ended: Option<Epoch>) -> (Vec<String>, Epoch) {
        let was = ended.and_then(|epoch| self.ended.get(&epoch)?.get(name));
        let Some(rule) = was.or_else(|| self.rules.get(name)) else { return (Vec::new(), 0) };
        let (there, gone): (Vec<_>, Vec<_>) =
            rule.targets.iter().cloned().partition(|name| self.is_known(name));
        for target in gone {
            tracing::warn!(
                target,
                rule = name,
                "nobody is told: the webhook is not there any more"
            );
        }
        (there, rule.since_epoch)
    }

    fn is_known(&self, target: &str) -> bool {
        self.known.as_ref().is_none_or(|known| known.contains(target))
    }

    fn push(
        &self,
        rows: &RecordBatch,
        row: usize,
        (epoch, tick_us): (Epoch, i64),
        into: &mut Vec<(i64, Notification)>,
    ) -> anyhow::Result<()> {
        let column = |name: &str| column(rows, name);
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
        let row_json = text("row")?;
        let body = Body {
            r#type: format!("alert.{status}"),
            timestamp: rfc3339(time_us),
            data: Data {
                alert_id: alert_id.clone(),
                pipeline: pipeline.clone(),
                rule: rule.clone(),
                status: status.clone(),
                severity: text("severity")?,
                summary: text("summary")?,
                since: rfc3339(time("since")?),
                keys: body::as_json(text("keys")?)?,
                row: body::as_json(row_json)?,
                cut: false,
            },
        };
        let body = Bytes::from(body.encode()?);
        let ends = column("reason").is_ok_and(|reason| reason.is_valid(row));
        let (names, since_epoch) = match pipeline == ENGINE {
            true => (self.engine.names(), 0),
            false => self.told(&rule_name(&pipeline, &rule), ends.then_some(epoch)),
        };
        // A rule that was changed tells the same alert once more, after it was said to be over.
        let again = if since_epoch > 0 { format!("-{since_epoch}") } else { String::new() };
        for name in &names {
            let notification = Notification {
                id: format!("{alert_id}-{status}.{time_us}-{:08x}{again}", crc(name)),
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

fn crc(name: &str) -> u32 {
    crc32fast::hash(name.as_bytes())
}

fn column<'a>(rows: &'a RecordBatch, name: &str) -> anyhow::Result<&'a ArrayRef> {
    rows.column_by_name(name).ok_or_else(|| anyhow::anyhow!("alert rows have no column {name}"))
}

fn texts<'a>(rows: &'a RecordBatch, name: &str) -> anyhow::Result<&'a StringArray> {
    Ok(column(rows, name)?.as_string::<i32>())
}

fn rfc3339(time_us: i64) -> String {
    DateTime::from_timestamp_micros(time_us)
        .map(|t| t.to_rfc3339_opts(SecondsFormat::Micros, true))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
