//! The counters of a running engine, shared with every view of it.
//!
//! Each counter is written at one place of the engine and read anywhere. They are for people and
//! tests: nothing in the engine decides by them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Live counters. Sums only grow, except where a counter says that it is a level.
        #[derive(Debug, Default)]
        pub struct Stats {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        /// The counters at one moment. They are read one after the other, so sums that belong
        /// together may differ by what happened in between.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct Snapshot {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Stats {
            /// The counters now.
            pub fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.load(Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Messages that sources delivered.
    messages_received,
    /// Messages that are durable in the journal and were acknowledged to the sender.
    messages_acked,
    /// Messages that were sent again although they were durable already: acknowledged once more,
    /// not journaled again.
    messages_repeated,
    /// Valid readings decoded from messages.
    readings,
    /// Reject rows: messages or elements that are no valid reading, with the reason.
    rejects,
    /// Among them, rows whose keys were beyond `keys_max`.
    keys_refused,
    /// Rows that came too late for a revision of their window.
    late,
    /// Readings that were dropped because they came before.
    duplicates,
    /// Window rows emitted, revisions included.
    windows,
    /// Findings of detectors.
    findings,
    /// Alert rows: every change to firing or resolved.
    alerts,
    /// Webhooks that the receiver accepted.
    webhooks,
    /// Attempts to deliver a webhook that failed; each is tried again until it is too old.
    webhooks_failed,
    /// Level: webhooks that wait for delivery.
    webhooks_pending,
    /// Data files written to tables.
    table_files,
    /// Rows written to tables.
    table_rows,
    /// Bytes of data files written to tables.
    table_bytes,
    /// Level: bytes of rows on the local disk that tables cannot take at present.
    spilled_bytes,
    /// Level: bytes of the journal on disk.
    journal_bytes,
    /// Level: bytes of messages that are only in the journal's files, because the dataflow does not
    /// take them as fast as they come.
    journal_behind_bytes,
    /// Epochs sealed in the journal.
    epochs_sealed,
    /// Epochs whose results are complete.
    epochs_done,
    /// Level: tick time of the newest sealed epoch less that of the newest done, microseconds.
    lag_us,
    /// Level: open connections to Tidegate's own MQTT endpoint.
    connections,
    /// Checkpoints that became visible.
    checkpoints,
    /// Checkpoints that were given up, because the disk was full.
    checkpoints_failed,
    /// Level: bytes of all files of the newest checkpoint.
    checkpoint_bytes,
    /// Level: bytes that were written for the newest checkpoint.
    checkpoint_written_bytes,
    /// Level: work of the checkpoint thread for the newest checkpoint, microseconds.
    checkpoint_us,
    /// Level: time from one checkpoint to the next that was asked for, microseconds.
    checkpoint_interval_us,
    /// Level: tick time now less that of the newest checkpoint, microseconds.
    checkpoint_age_us,
    /// Longest time that a worker was held up to hand over state, microseconds.
    checkpoint_stall_us,
    /// Level: rows of state in the newest checkpoint.
    state_rows,
    /// Messages that were replayed from the journal at the start.
    replayed_messages,
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
}
