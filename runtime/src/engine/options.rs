//! How an engine is run, and what it says when it has started and when it has ended.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat};
use serde::Serialize;
use tidegate_operators::Epoch;
use tidegate_operators::spec::PipelineSpec;
use tidegate_pipelines::NotifySpec;

use super::checkpoints::Restored;
use super::cluster::ClusterOptions;
use super::replaying::{Replayed, Replaying};
use super::tables::SPILL_BYTES_MAX;
use super::takeover::TakenOver;
use crate::journal::{Disk, Storage};
use crate::outbox::PENDING_MAX;
use crate::stats::Snapshot;

/// Enough for a few checkpoints and table files of an edge box.
const DISK_RESERVE_BYTES: u64 = 64 << 20;

/// Exit code of a process whose tables another process of its instance has taken over.
pub const FENCED_EXIT_CODE: i32 = 3;

/// Called when another process of the same instance has taken over the tables, with what is to be
/// said about it. Nothing may be acknowledged after that, so it should not return.
pub type OnFenced = Arc<dyn Fn(&str) + Send + Sync>;

/// How an engine is run.
#[derive(Clone)]
pub struct EngineOptions {
    /// Folder of the journal, checkpoints, outbox and, by default, tables.
    pub data: PathBuf,
    /// URL of the tables; default: `tables` below `data`.
    pub tables: Option<String>,
    /// Number of timely workers.
    pub workers: usize,
    /// Time between checkpoints: how much has to be replayed after a crash.
    pub checkpoint_every: Duration,
    /// Late readings of so much journal time are a group whose windows are computed again together.
    pub recompute_every: Duration,
    /// Most bytes of the journal on disk; beyond it sources are slowed down.
    pub journal_bytes_max: u64,
    /// How long the journal keeps what recovery does not need any more, so that operators of
    /// changed pipelines can be rebuilt from it; at most half of `journal_bytes_max`.
    pub journal_keep: Duration,
    /// Most bytes of rows on the local disk that tables cannot take at present.
    pub spill_bytes_max: u64,
    /// Most notifications that wait for their webhooks; beyond it new ones are given up at once.
    pub outbox_max: usize,
    /// Most memory of the process, resident and swapped out, bytes; 0: as much as there is. See
    /// [`crate::memory::Budget`].
    pub memory_bytes_max: u64,
    /// Sources wait while the file system has less than this many bytes free, so that checkpoints,
    /// tables and alerts can still be written.
    pub disk_reserve_bytes: u64,
    /// What is done when another process takes over the tables; the default ends this process with
    /// [`FENCED_EXIT_CODE`]. What was acknowledged is in the journal.
    pub on_fenced: OnFenced,
    /// Tells those who look how far the replay at the start is.
    pub replaying: Arc<Replaying>,
    /// Nothing is taken in: what the journal has is worked through, and these are the webhooks of
    /// the pipelines that come after. See [`super::earlier`].
    pub finishing: Option<Vec<NotifySpec>>,
    /// The pipelines that ran last on the data folder, if they are known: what a checkpoint of an
    /// earlier version of Tidegate is of.
    pub ran: Vec<PipelineSpec>,
    /// The processes whose workers share the work; this one is the leader. `None`: it is alone.
    pub cluster: Option<ClusterOptions>,
    /// What the journal writes to; benches and tests put a slower or a failing one here.
    pub journal_storage: Arc<dyn Storage>,
}

impl EngineOptions {
    /// The defaults for a data folder: as many workers as there are cores.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            data: data.into(),
            tables: None,
            workers,
            checkpoint_every: Duration::from_secs(10),
            recompute_every: Duration::from_secs(60),
            journal_bytes_max: 4 << 30,
            journal_keep: Duration::from_secs(3600),
            spill_bytes_max: SPILL_BYTES_MAX,
            outbox_max: PENDING_MAX,
            memory_bytes_max: 0,
            disk_reserve_bytes: DISK_RESERVE_BYTES,
            on_fenced: Arc::new(|why| {
                eprintln!("error: {why}");
                std::process::exit(FENCED_EXIT_CODE);
            }),
            replaying: Arc::default(),
            finishing: None,
            ran: Vec::new(),
            cluster: None,
            journal_storage: Arc::new(Disk),
        }
    }
}

/// What a finished run did.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Report {
    /// The counters at the end.
    #[serde(flatten)]
    pub stats: Snapshot,
    /// How long it ran, seconds.
    pub seconds: f64,
}

/// What a start found and did, for people.
#[derive(Clone, Debug, Default)]
pub struct Recovery {
    /// Epoch of the checkpoint that was restored; 0 if there was none.
    pub checkpoint: Epoch,
    /// How old that checkpoint was: the clock less its tick, microseconds.
    pub checkpoint_age_us: i64,
    /// Rows of state in it.
    pub state_rows: u64,
    /// What was replayed from the journal; `None` if there was nothing after the checkpoint.
    pub replayed: Option<Replayed>,
    /// The newest epoch that a table had: what the replay makes again of it is not written again.
    pub tables: Epoch,
    /// Notifications that wait in the outbox.
    pub notifications: usize,
    /// How long the start took, seconds.
    pub seconds: f64,
    /// Operators that changed since the checkpoint: they start without state.
    pub changed: Vec<String>,
    /// Operators whose state was made anew from the journal.
    pub rebuilt: Vec<String>,
    /// From when on, microseconds since the Unix epoch; `None`: from the beginning.
    pub rebuilt_since_us: Option<i64>,
    /// Newer checkpoints that could not be used, and why.
    pub damaged: Vec<String>,
}

impl Recovery {
    /// What a checkpoint gave back and what was made anew, at a time in microseconds since the Unix
    /// epoch; with the newest epoch of tables, and the notifications that wait.
    pub(super) fn of(
        restored: &Restored,
        taken: TakenOver,
        (tables, notifications): (Epoch, usize),
        now_us: i64,
    ) -> Self {
        Self {
            tables,
            notifications,
            rebuilt: taken.rebuilt,
            rebuilt_since_us: taken.since_us,
            checkpoint: restored.epoch,
            checkpoint_age_us: now_us.saturating_sub(restored.time_us),
            state_rows: restored.rows,
            changed: restored.changed.clone(),
            damaged: restored.damaged.clone(),
            ..Self::default()
        }
    }

    /// Messages that were replayed from the journal.
    pub fn messages(&self) -> u64 {
        self.replayed.map_or(0, |replayed| replayed.messages)
    }
}

/// A time for people: microseconds since the Unix epoch as RFC 3339, in UTC.
pub fn moment(time_us: i64) -> String {
    DateTime::from_timestamp_micros(time_us)
        .map(|t| t.to_rfc3339_opts(SecondsFormat::Secs, true))
        .unwrap_or_default()
}
