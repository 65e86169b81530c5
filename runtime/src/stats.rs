//! The counters of a running engine, shared with every view of it.
//!
//! Each counter is written at one place of the engine and read anywhere. They are for people and
//! tests: nothing in the engine decides by them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

use crate::metrics::Kind;

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident: $unit:ident $metric:literal,)*) => {
        /// Live counters. Sums only grow, except where a counter says that it is a level.
        #[derive(Debug, Default)]
        pub struct Stats {
            $($(#[doc = $doc])* pub $name: AtomicU64,)*
        }

        /// The counters at one moment. They are read one after the other, so sums that belong
        /// together may differ by what happened in between.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct Snapshot {
            $($(#[doc = $doc])* pub $name: u64,)*
        }

        impl Stats {
            /// The counters now.
            pub fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.load(Relaxed),)* }
            }
        }

        /// All counters as metrics.
        pub(crate) const METRICS: &[Metric] = &[$(Metric {
            name: $metric,
            unit: Unit::$unit,
            doc: concat!($($doc),*),
            read: |snapshot| snapshot.$name,
        },)*];
    };
}

/// What a counter is as a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    /// A sum that only grows.
    Counter,
    /// A level.
    Gauge,
    /// A level that is kept in microseconds and shown in seconds.
    Seconds,
}

/// A counter as a metric.
pub(crate) struct Metric {
    name: &'static str,
    unit: Unit,
    doc: &'static str,
    read: fn(&Snapshot) -> u64,
}

impl Metric {
    /// Its name without `tidegate_`, and without the `_total` of counters.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// What it counts: the documentation of the counter, without what kind and unit say.
    pub(crate) fn help(&self) -> String {
        let text = self.doc.trim();
        let text = text.strip_prefix("Level: ").unwrap_or(text);
        let mut text = text.replace(", microseconds.", ".").replace(", microseconds;", ";");
        let first = text.chars().next().map(|c| c.to_uppercase().to_string());
        text.replace_range(..first.as_ref().map_or(0, String::len), &first.unwrap_or_default());
        text
    }

    pub(crate) fn kind(&self) -> Kind {
        match self.unit {
            Unit::Counter => Kind::Counter,
            Unit::Gauge | Unit::Seconds => Kind::Gauge,
        }
    }

    pub(crate) fn value(&self, snapshot: &Snapshot) -> f64 {
        let value = (self.read)(snapshot) as f64;
        match self.unit {
            Unit::Seconds => value / 1e6,
            Unit::Counter | Unit::Gauge => value,
        }
    }
}

counters! {
    /// Messages that sources delivered.
    messages_received: Counter "messages_received",
    /// Messages that are durable in the journal and were acknowledged to the sender.
    messages_acked: Counter "messages_acknowledged",
    /// Messages of QoS 0 that are durable in the journal: their senders wait for no
    /// acknowledgement.
    messages_quiet: Counter "messages_unacknowledged",
    /// Messages that were not taken: their senders may not publish to their topics, or they were
    /// too large or malformed.
    messages_dropped: Counter "messages_dropped",
    /// Messages that were sent again although they were durable already: acknowledged once more,
    /// not journaled again.
    messages_repeated: Counter "messages_repeated",
    /// Valid readings decoded from messages.
    readings: Counter "readings",
    /// Reject rows: messages or elements that are no valid reading, with the reason.
    rejects: Counter "rejects",
    /// Reject rows whose keys were beyond `keys_max`.
    keys_refused: Counter "keys_refused",
    /// Reject rows whose keys were new while memory was used up.
    memory_refused: Counter "memory_refused",
    /// Level: most bytes of memory that the process may have; 0 without a budget.
    memory_max_bytes: Gauge "memory_max_bytes",
    /// Level: how far memory is used up: 0 there is room, 1 it is short, 2 rows of new keys are
    /// refused, 3 sources wait as well.
    memory_stage: Gauge "memory_stage",
    /// Rows that say that a device's clock is off by more than `clock_skew_max`.
    clocks_off: Counter "clocks_off",
    /// Rows that came too late for a revision of their window.
    late: Counter "late_rows",
    /// Readings that were dropped because they came before.
    duplicates: Counter "duplicate_readings",
    /// Window rows emitted, revisions and early ones included.
    windows: Counter "window_rows",
    /// Window rows that were computed again from stored readings, because of late ones.
    windows_recomputed: Counter "windows_recomputed",
    /// Windows that late readings had no effect on, because not all of their readings are stored,
    /// or the step can still change them: each once.
    windows_kept: Counter "windows_kept",
    /// Level: tables whose late windows could not be computed again at the last try.
    windows_waiting: Gauge "windows_waiting_tables",
    /// Findings of detectors.
    findings: Counter "findings",
    /// Alert rows: every change to firing or resolved, also because a rule was changed.
    alerts: Counter "alert_changes",
    /// Webhooks that the receiver accepted.
    webhooks: Counter "webhooks_delivered",
    /// Attempts to deliver a webhook that failed; each is tried again until it is too old.
    webhooks_failed: Counter "webhooks_failed",
    /// Level: webhooks that wait for delivery.
    webhooks_pending: Gauge "webhooks_pending",
    /// Level: most webhooks that may wait for delivery.
    outbox_max: Gauge "outbox_max",
    /// Webhooks that were given up at once because `outbox_max` of them were waiting; they can be
    /// sent again.
    outbox_overflowed: Counter "outbox_overflowed",
    /// Data files written to tables.
    table_files: Counter "table_files_written",
    /// Rows written to tables.
    table_rows: Counter "table_rows_written",
    /// Bytes of data files written to tables.
    table_bytes: Counter "table_bytes_written",
    /// Level: bytes of rows on the local disk that tables cannot take at present.
    spilled_bytes: Gauge "spilled_bytes",
    /// Level: bytes of the journal on disk.
    journal_bytes: Gauge "journal_bytes",
    /// Level: bytes of messages that are only in the journal's files, because the dataflow does not
    /// take them as fast as they come.
    journal_behind_bytes: Gauge "journal_behind_bytes",
    /// Epochs sealed in the journal.
    epochs_sealed: Counter "epochs_sealed",
    /// Level: the newest epoch whose results are complete.
    epochs_done: Gauge "epoch_done",
    /// Level: tick time of that epoch since the Unix epoch, microseconds.
    done_tick_us: Seconds "epoch_done_tick_seconds",
    /// Level: tick time of the newest sealed epoch less that of the newest done, microseconds.
    lag_us: Seconds "lag_seconds",
    /// Level: open connections of all sources.
    connections: Gauge "connections",
    /// Level: most connections at a time, of all sources: the limit of open files (`ulimit -n`)
    /// leaves room for no more.
    connections_max: Gauge "connections_max",
    /// Checkpoints that became visible.
    checkpoints: Counter "checkpoints",
    /// Checkpoints that were given up, because the disk was full.
    checkpoints_failed: Counter "checkpoints_failed",
    /// Level: bytes of all files of the newest checkpoint.
    checkpoint_bytes: Gauge "checkpoint_bytes",
    /// Level: bytes that were written for the newest checkpoint of this process; 0 before it.
    checkpoint_written_bytes: Gauge "checkpoint_written_bytes",
    /// Level: work of the checkpoint thread for the newest checkpoint of this process,
    /// microseconds; 0 before it.
    checkpoint_us: Seconds "checkpoint_duration_seconds",
    /// Level: time that passed between the beginnings of the newest two checkpoints of this
    /// process, microseconds; 0 before there are two.
    checkpoint_interval_us: Seconds "checkpoint_interval_seconds",
    /// Level: tick time now less that of the newest checkpoint, microseconds.
    checkpoint_age_us: Seconds "checkpoint_age_seconds",
    /// Longest time that a worker was held up to hand over state, microseconds.
    checkpoint_stall_us: Seconds "checkpoint_stall_max_seconds",
    /// Level: rows of state in the newest checkpoint.
    state_rows: Gauge "state_rows",
    /// Messages that were replayed from the journal at the start.
    replayed_messages: Gauge "replayed_messages",
}

impl Stats {
    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Relaxed);
    }

    /// Sets a counter that is a level.
    pub fn set(counter: &AtomicU64, value: u64) {
        counter.store(value, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_snapshot_shows_what_was_counted() {
        let stats = Stats::default();
        Stats::add(&stats.readings, 3);
        Stats::add(&stats.readings, 4);
        Stats::set(&stats.lag_us, 9);
        Stats::set(&stats.lag_us, 5);
        let snapshot = stats.snapshot();
        assert_eq!((snapshot.readings, snapshot.lag_us, snapshot.rejects), (7, 5, 0));
        let json = serde_json::to_value(snapshot).unwrap();
        for name in ["messages_acked", "readings", "rejects", "windows", "findings", "alerts"] {
            assert!(json[name].is_u64(), "{name} is missing in {json}");
        }
    }

    #[test]
    fn every_counter_is_a_metric_of_its_own() {
        let names: std::collections::BTreeSet<_> = METRICS.iter().map(Metric::name).collect();
        let fields = serde_json::to_value(Snapshot::default()).unwrap();
        assert_eq!(names.len(), fields.as_object().unwrap().len());
        for metric in METRICS {
            let (name, help) = (metric.name(), metric.help());
            assert!(help.ends_with('.') && !help.contains("Level"), "{name}: {help}");
            assert!(!help.contains("microseconds"), "{name} is in seconds: {help}");
            assert_eq!(metric.unit == Unit::Seconds, name.ends_with("_seconds"), "{name}");
        }
        let stats = Stats::default();
        Stats::set(&stats.lag_us, 1_500_000);
        let lag = METRICS.iter().find(|m| m.name() == "lag_seconds").unwrap();
        assert_eq!(lag.value(&stats.snapshot()), 1.5);
    }
}
