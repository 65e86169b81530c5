//! Which metrics there are: those of [`crate::stats`] by their own table, and those that have a
//! label: sources, tables, webhooks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::text::{Format, Kind, Text};
use crate::engine::{Observer, Replayed, TableState};
use crate::memory::resident_bytes;
use crate::source::SourceStats;
use crate::stats;
use crate::webhook::WebhookStats;

/// Reads one number of something.
type Read<T> = fn(&T) -> f64;
/// Name without `tidegate_`, kind, help, value.
type Row<T> = (&'static str, Kind, &'static str, Read<T>);

fn load(count: &AtomicU64) -> f64 {
    count.load(Relaxed) as f64
}

const SOURCES: &[Row<SourceStats>] = &[
    ("source_healthy", Kind::Gauge, "1 while the source can take messages, else 0.", |s| {
        f64::from(u8::from(s.is_healthy()))
    }),
    ("source_connections", Kind::Gauge, "Connections open now.", |s| load(&s.connections)),
    ("source_connections_opened", Kind::Counter, "Connections ever accepted or made.", |s| {
        load(&s.connections_total)
    }),
    (
        "source_connections_refused",
        Kind::Counter,
        "Connections turned away: limits, credentials, protocol version, client id.",
        |s| load(&s.refused),
    ),
    ("source_messages_received", Kind::Counter, "Messages taken in, durable or not yet.", |s| {
        load(&s.received)
    }),
    (
        "source_messages_acknowledged",
        Kind::Counter,
        "Messages acknowledged to their sender, after they were durable.",
        |s| load(&s.acked),
    ),
    (
        "source_messages_unacknowledged",
        Kind::Counter,
        "Messages of QoS 0 that are durable: their senders wait for no acknowledgement.",
        |s| load(&s.quiet),
    ),
    (
        "source_messages_denied",
        Kind::Counter,
        "Messages not taken because their sender may not publish to their topic (endpoint).",
        |s| load(&s.denied),
    ),
    (
        "source_messages_undelivered",
        Kind::Counter,
        "Messages that did not reach a subscriber: queue full, expired, away, too large, not \
         allowed (endpoint).",
        |s| load(&s.undelivered),
    ),
    (
        "source_protocol_errors",
        Kind::Counter,
        "Connections closed because the other side broke the protocol or a limit.",
        |s| load(&s.protocol_errors),
    ),
    (
        "source_reconnects",
        Kind::Counter,
        "Connections made again after one was lost (subscriber).",
        |s| load(&s.reconnects),
    ),
    (
        "source_sessions_lost",
        Kind::Counter,
        "Sessions that the broker had forgotten: messages may be missing (subscriber).",
        |s| load(&s.gaps),
    ),
    (
        "source_messages_skipped",
        Kind::Counter,
        "Messages that could not be taken (too large; of a broker also malformed).",
        |s| load(&s.skipped),
    ),
    (
        "source_retained_dropped",
        Kind::Counter,
        "Retained messages that were not journaled, as configured (subscriber).",
        |s| load(&s.retained_dropped),
    ),
];

const TABLES: &[Row<TableState>] = &[
    (
        "table_lag_seconds",
        Kind::Gauge,
        "How long the oldest row has been complete that readers cannot see yet; 0 without one.",
        |t| t.lag.as_secs_f64(),
    ),
    (
        "table_committed_epoch",
        Kind::Gauge,
        "The newest epoch that a commit of the table covers.",
        |t| t.committed as f64,
    ),
    ("table_waiting_bytes", Kind::Gauge, "Rows that wait in memory for the table.", |t| {
        t.waiting_bytes as f64
    }),
    ("table_spilled_bytes", Kind::Gauge, "Rows that wait on the local disk for the table.", |t| {
        t.spilled_bytes as f64
    }),
    ("table_reachable", Kind::Gauge, "0 while the table cannot be written, else 1.", |t| {
        f64::from(u8::from(t.trouble.is_none()))
    }),
];

const WEBHOOKS: &[Row<WebhookStats>] = &[
    ("webhook_delivered", Kind::Counter, "Webhooks that the receiver accepted.", |w| w.sent as f64),
    ("webhook_retried", Kind::Counter, "Attempts that failed and were or will be repeated.", |w| {
        w.retried as f64
    }),
    ("webhook_dead", Kind::Counter, "Webhooks that were given up.", |w| w.dead as f64),
    ("webhook_pending", Kind::Gauge, "Webhooks not yet delivered.", |w| w.pending as f64),
];

/// All of it.
pub(super) fn text(
    format: Format,
    (ready, started_s): (bool, f64),
    replayed: Option<Replayed>,
    observer: Option<&Observer>,
) -> String {
    let mut text = Text::new(format);
    process(&mut text, ready, started_s);
    replay(&mut text, &replayed.unwrap_or_default());
    if let Some(observer) = observer {
        engine(&mut text, observer);
    }
    text.finish()
}

fn process(text: &mut Text, ready: bool, started_s: f64) {
    let build = [(vec![("version", env!("CARGO_PKG_VERSION"))], 1.0)];
    text.family("tidegate_build_info", Kind::Gauge, "Which version runs.", build);
    let help = "1 while sources take messages, 0 while it starts or stops.";
    text.one("tidegate_ready", Kind::Gauge, help, f64::from(u8::from(ready)));
    if let Some(bytes) = resident_bytes() {
        let help = "Resident memory of the process.";
        text.one("process_resident_memory_bytes", Kind::Gauge, help, bytes as f64);
    }
    let help = "When the process started, seconds since the Unix epoch.";
    text.one("process_start_time_seconds", Kind::Gauge, help, started_s);
}

fn replay(text: &mut Text, replayed: &Replayed) {
    let of = "of the journal at the start of the process";
    let mut gauge = |name: &str, help: String, value: u64| {
        text.one(&format!("tidegate_replay_{name}"), Kind::Gauge, &help, value as f64);
    };
    gauge("messages", format!("Messages replayed so far {of}."), replayed.messages);
    gauge("messages_expected", format!("Messages to replay {of}."), replayed.messages_all);
    gauge("bytes", format!("Bytes replayed so far {of}."), replayed.bytes);
    gauge("expected_bytes", format!("Bytes to replay {of}."), replayed.bytes_all);
}

fn engine(text: &mut Text, observer: &Observer) {
    let snapshot = observer.snapshot();
    for metric in stats::METRICS {
        let (name, help) = (format!("tidegate_{}", metric.name()), metric.help());
        text.one(&name, metric.kind(), &help, metric.value(&snapshot));
    }
    if let Some(journal) = observer.journal() {
        let on = |on: bool| f64::from(u8::from(on));
        let mut gauge = |name: &str, help: &str, value: f64| {
            text.one(&format!("tidegate_journal_{name}"), Kind::Gauge, help, value);
        };
        gauge("segments", "Segments of the journal on disk.", journal.segments as f64);
        gauge(
            "last_sync_seconds",
            "How long the last sync of the journal took.",
            journal.last_sync_us as f64 / 1e6,
        );
        gauge("sealed_epoch", "The newest epoch that has its tick.", journal.sealed_epoch as f64);
        gauge(
            "full",
            "1 while sources wait because the budget of the journal is used up.",
            on(journal.waiting_for_room),
        );
        gauge(
            "disk_full",
            "1 while the disk of the journal is full, or has only its reserve.",
            on(journal.disk_full.is_some()),
        );
        let help = "Group commits of the journal.";
        text.one("tidegate_journal_syncs", Kind::Counter, help, journal.syncs as f64);
        let help = "Messages made durable in the journal, events of the engine among them.";
        text.one("tidegate_journal_messages", Kind::Counter, help, journal.messages as f64);
    }
    labelled(text, "source", SOURCES, &observer.sources(), |s| s);
    labelled(text, "table", TABLES, &observer.tables(), |t| t);
    let webhooks: Vec<_> = observer.webhooks().into_iter().map(|w| (w.name.clone(), w)).collect();
    labelled(text, "target", WEBHOOKS, &webhooks, |w| w);
}

fn labelled<T, S>(
    text: &mut Text,
    label: &str,
    rows: &[Row<T>],
    of: &[(String, S)],
    as_one: impl Fn(&S) -> &T,
) {
    for (name, kind, help, read) in rows {
        let samples =
            of.iter().map(|(name, one)| (vec![(label, name.as_str())], read(as_one(one))));
        text.family(&format!("tidegate_{name}"), *kind, help, samples);
    }
}
