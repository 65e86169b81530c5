//! The journal: the durable sequence of messages and ticks that everything else is a function of.
//!
//! Invariant: what `offer` acknowledged is on disk and comes back in every replay, in the same
//! epoch, at the same offset, with the same ticks. The journal does not look into messages, and it
//! drops nothing: without room it lets sources wait.
//!
//! Files: `frame` and `segment` say what bytes mean, `record` what frames say, `epoch` what
//! may follow what; `recover` opens, `replay` reads, `inbox` queues, `group` encodes,
//! `writer` writes.

pub(crate) mod bytes;
mod epoch;
mod error;
pub(crate) mod examine;
mod files;
mod follow;
pub(crate) mod frame;
#[cfg(test)]
mod fuzz;
mod group;
pub(crate) mod holder;
mod inbox;
mod recognize;
mod record;
pub(crate) mod recover;
mod replay;
mod room;
pub(crate) mod salvage;
pub(crate) mod segment;
pub(crate) mod storage;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tidegate_operators::event::NoNewKeys;
use tidegate_operators::{Epoch, Messages, Tick};

pub use self::error::DurableError;
pub(crate) use self::error::LOCK;
use self::files::Keep;
use self::inbox::{Shared, SourceIntake};
use self::recognize::Recognizer;
pub(crate) use self::record::{get_messages, put_messages};
use self::recover::Recovered;
pub use self::replay::{Extent, Replay};
use self::room::DiskRoom;
use self::storage::DirLock;
pub use self::storage::{AppendFile, Disk, Storage};
use self::writer::Writer;
use crate::clock::{Clock, instant};
use crate::intake::Intake;

/// Smallest budget that leaves room for a group, the reserve and a few segments.
const BUDGET_BYTES_MIN: u64 = 256 << 10;
/// Kept for ticks when the budget is used up: time must go on, or nothing would ever be trimmed. As
/// much again is kept for the head of the next segment, which is no larger.
const RESERVE_BYTES_MAX: u64 = 16 << 20;

/// The newest epoch of the journal in `dir`, which nobody writes; none if there is no journal.
pub(crate) fn newest_epoch(dir: &Path) -> Option<Epoch> {
    segment::newest_epoch(dir, files::PREFIX)
}

/// Whether there is a journal in `dir`, whatever it has.
pub(crate) fn has_segments(dir: &Path) -> Result<bool, DurableError> {
    match segment::list(dir, files::PREFIX) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        listed => Ok(!listed.map_err(DurableError::io("list", dir))?.is_empty()),
    }
}

/// All that the journal in `dir` has, without opening it: for those who look at one that nobody
/// writes. Messages of all sources are left out.
pub(crate) fn ticks_of(dir: &Path) -> Result<Replay, DurableError> {
    let segments = segment::list(dir, files::PREFIX).map_err(DurableError::io("list", dir))?;
    let segments = segments.into_iter().map(|(_, path)| (path, None));
    Ok(Replay::of(segments.collect(), &[], 0).ticks_only())
}

/// Called once, by the writer thread, when the journal cannot be trusted any more.
pub type OnFatal = Arc<dyn Fn(&str) + Send + Sync>;

/// Where the journal is and how large it may become.
#[derive(Clone)]
pub struct JournalOptions {
    /// Its directory; created where missing, used by one process at a time.
    pub dir: PathBuf,
    /// A segment is closed when it is larger than this (or than a quarter of the budget).
    pub segment_bytes: u64,
    /// Beyond this many bytes on disk, offers wait until [`Journal::trim`] makes room.
    pub budget_bytes: u64,
    /// Offers wait while the file system has less than this many bytes free, so that checkpoints,
    /// tables and alerts can still be written.
    pub disk_reserve_bytes: u64,
    /// Epochs that were trimmed stay readable for this long, as long as the journal has no more
    /// than half of its budget; deleted are whole segments.
    pub keep: Duration,
    /// Offers beyond this many bytes wait before they are queued.
    pub queue_bytes_max: u32,
    /// Messages beyond this many bytes do not wait in memory for the dataflow, but are read back
    /// from disk when it takes them.
    pub feed_bytes_max: usize,
    /// How long an epoch with messages stays open.
    pub epoch_interval: Duration,
    /// How long one without messages does.
    pub idle_interval: Duration,
    /// Called with the reason after a failed sync; should end the process.
    pub on_fatal: Option<OnFatal>,
}

impl JournalOptions {
    /// The defaults for a journal in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_bytes: 64 << 20,
            budget_bytes: 4 << 30,
            keep: Duration::ZERO,
            disk_reserve_bytes: 0,
            queue_bytes_max: 32 << 20,
            feed_bytes_max: 32 << 20,
            epoch_interval: Duration::from_millis(50),
            idle_interval: Duration::from_secs(1),
            on_fatal: None,
        }
    }

    fn check(&self) -> Result<(), DurableError> {
        if self.budget_bytes < BUDGET_BYTES_MIN {
            let (have, want) = (self.budget_bytes, BUDGET_BYTES_MIN);
            let problem = format!("the journal's budget of {have} bytes is below {want} bytes");
            return Err(DurableError::Options(problem));
        }
        if self.queue_bytes_max == 0 || self.segment_bytes == 0 {
            return Err(DurableError::Options("queue and segments need a size above 0".into()));
        }
        Ok(())
    }

    /// Half of the budget is left to what recovery needs.
    fn keep(&self) -> Keep {
        let age_us = i64::try_from(self.keep.as_micros()).unwrap_or(i64::MAX);
        Keep { age_us, bytes_max: self.budget_bytes / 2 }
    }

    fn reserve_bytes(&self) -> u64 {
        (self.budget_bytes / 16).min(RESERVE_BYTES_MAX)
    }

    /// Only whole segments can be trimmed, so a small budget needs small segments.
    fn segment_bytes_effective(&self) -> u64 {
        self.segment_bytes.min(self.budget_bytes / 4)
    }

    /// Larger offers could never be written.
    fn offer_bytes_max(&self) -> u64 {
        (frame::BODY_BYTES_MAX as u64).min(self.budget_bytes / 2)
    }
}

impl fmt::Debug for JournalOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalOptions")
            .field("dir", &self.dir)
            .field("segment_bytes", &self.segment_bytes)
            .field("budget_bytes", &self.budget_bytes)
            .finish_non_exhaustive()
    }
}

/// What the journal hands to the dataflow, live and in replay.
#[derive(Clone, Debug)]
pub enum Feed {
    /// Messages of the epoch that the next tick seals.
    Messages(Arc<Messages>),
    /// The end of an epoch.
    Tick(Tick),
}

/// Takes what became durable.
pub trait FeedSink: Send + 'static {
    /// Called by the feed thread after the sync, in journal order. May block: what follows waits
    /// in memory and then on disk. After the dataflow ended it returns at once.
    fn push(&mut self, feed: Feed);
}

/// How the journal is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalStats {
    /// Bytes of all segments.
    pub bytes_on_disk: u64,
    /// Number of segments.
    pub segments: usize,
    /// Group commits since the start.
    pub syncs: u64,
    /// How long the last sync took, microseconds.
    pub last_sync_us: u64,
    /// The newest epoch that has its tick.
    pub sealed_epoch: Epoch,
    /// Its tick time, microseconds since the Unix epoch; 0 before the first.
    pub sealed_time_us: i64,
    /// Messages made durable since the start.
    pub messages: u64,
    /// Messages that were not written because the journal had them: their sender had missed the
    /// acknowledgement.
    pub repeated: u64,
    /// Whether offers wait because the disk budget is used up.
    pub waiting_for_room: bool,
    /// Whether offers wait because memory is short.
    pub waiting_for_memory: bool,
    /// Bytes of messages in memory that the dataflow had not taken when a tick last came or went.
    pub queued_bytes: u64,
    /// Why the disk is full, or has only its reserve, if that is so.
    pub disk_full: Option<String>,
    /// Bytes of messages that the dataflow has not taken yet and that are only on disk.
    pub behind_bytes: u64,
    /// Why nothing can be written at present, or any more.
    pub unhealthy: Option<String>,
}

/// An open journal.
pub struct Journal {
    shared: Arc<Shared>,
    sources: usize,
    /// Until [`Journal::start`].
    writer: Mutex<Option<Writer>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    _lock: DirLock,
}

impl Journal {
    /// Opens the journal of the running plan's sources and finds what has to be replayed: all
    /// epochs from `from_epoch` (1 or 0 for everything) to the end. Messages that were durable but
    /// not yet sealed are sealed now, and are part of the replay.
    ///
    /// # Errors
    /// A directory in use, damage, epochs that are missing, or the file system's errors.
    pub fn open(
        options: JournalOptions,
        clock: Clock,
        source_names: &[String],
        from_epoch: Epoch,
    ) -> Result<(Self, Replay), DurableError> {
        Self::open_on(Arc::new(Disk), options, clock, source_names, from_epoch)
    }

    /// [`Journal::open`] on another storage.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn open_on(
        storage: Arc<dyn Storage>,
        options: JournalOptions,
        clock: Clock,
        source_names: &[String],
        from_epoch: Epoch,
    ) -> Result<(Self, Replay), DurableError> {
        options.check()?;
        let lock = storage::lock_dir(&options.dir).map_err(DurableError::io(LOCK, &options.dir))?;
        let recognizer = Recognizer::new(options.budget_bytes);
        let Recovered { mut files, position, recognizer } =
            recover::recover(&options.dir, storage, &clock, source_names, from_epoch, recognizer)?;
        files.keep = options.keep();
        let replay = Replay::new(&files, source_names, from_epoch, position.next_offset);
        let shared = Arc::new(Shared::new(options.queue_bytes_max, options.offer_bytes_max()));
        shared.update_stats(|stats| {
            stats.bytes_on_disk = files.bytes();
            stats.segments = files.sealed.len() + 1;
            stats.sealed_epoch = position.epoch - 1;
            stats.sealed_time_us = position.last_time_us;
        });
        let writer = Writer {
            shared: shared.clone(),
            // Opening has sealed what was left open.
            sealed_bytes: files.active.bytes,
            files,
            position,
            recognizer,
            options,
            clock,
            sources: source_names.to_vec(),
            sealed_at: instant(),
            gather_until: instant(),
            trimmed_through: 0,
            disk: DiskRoom::default(),
            hurries: false,
            empty_ticks: 0,
            no_new_keys: None,
        };
        let journal = Self {
            shared,
            sources: source_names.len(),
            writer: Mutex::new(Some(writer)),
            threads: Mutex::default(),
            _lock: lock,
        };
        Ok((journal, replay))
    }

    /// Starts writing: offers made so far and from now on go to disk and then to `sink`. Call it
    /// when the replay was handed on. A second call does nothing.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(&self, sink: Box<dyn FeedSink>) -> std::io::Result<()> {
        let Some(mut writer) = lock(&self.writer).take() else { return Ok(()) };
        writer.sealed_at = instant();
        let (shared, sources) = (self.shared.clone(), writer.sources.clone());
        let (next, bytes_max) = (writer.position.epoch, writer.options.feed_bytes_max);
        let bounds = (bytes_max, writer.options.on_fatal.clone());
        let (follower, feed) = follow::start(sink, shared, sources, next, bounds)?;
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || writer.run(follower))?;
        *lock(&self.threads) = vec![thread, feed];
        Ok(())
    }

    /// [`Journal::shutdown`] without waiting for threads that there are not.
    #[cfg(test)]
    pub(crate) fn ask_to_stop(&self) {
        self.shared.ask(|inbox| inbox.stop = true);
    }

    /// [`Journal::start`] without threads: what they would do is done by turns.
    #[cfg(test)]
    pub(crate) fn start_stepped(&self, sink: Box<dyn FeedSink>) -> Stepped {
        let mut writer = lock(&self.writer).take().expect("it is started once");
        writer.sealed_at = instant();
        writer.begin();
        let (shared, sources) = (self.shared.clone(), writer.sources.clone());
        let (next, bytes_max) = (writer.position.epoch, writer.options.feed_bytes_max);
        let (follower, reader) = follow::pair(sink, shared, sources, next, (bytes_max, None));
        Stepped { writer, follower, reader }
    }

    /// Where the source with this number in the plan puts its messages.
    ///
    /// # Panics
    /// If the journal was opened with fewer sources.
    pub fn intake(&self, source: usize) -> Arc<dyn Intake> {
        assert!(source < self.sources, "source {source} of {} sources", self.sources);
        Arc::new(SourceIntake { shared: self.shared.clone(), source: source as u16, urgent: false })
    }

    /// Where the engine puts what it has to say itself: a few small messages, which may use what
    /// budget and disk keep in reserve.
    pub(crate) fn urgent_intake(&self) -> Arc<dyn Intake> {
        Arc::new(SourceIntake { shared: self.shared.clone(), source: 0, urgent: true })
    }

    /// The sealed epochs from `from` on that are still on disk, beside the writer; `sources` are
    /// the names behind the numbers of sources. A segment that is trimmed before it is read is an
    /// error.
    pub(crate) fn read(&self, sources: &[String], from: Epoch) -> Replay {
        if let Some(writer) = &*lock(&self.writer) {
            return Replay::new(&writer.files, sources, from, 0);
        }
        Replay::of(self.shared.extent().segments_from(from), sources, from)
    }

    /// Says that no epoch up to `through` is needed again. Segments without later epochs are
    /// deleted soon, by the writer.
    pub fn trim(&self, through: Epoch) {
        self.shared.ask(|inbox| inbox.trim_through = inbox.trim_through.max(through));
    }

    /// Has offers wait, or go on: what was taken has to go through the dataflow first. What the
    /// engine itself has to say goes on.
    pub(crate) fn hold(&self, held: bool) {
        if self.shared.inbox().held != held {
            self.shared.ask(|inbox| inbox.held = held);
        }
    }

    /// Closes epochs with messages to new keys from the open one on, or opens those after it again.
    /// It is in the journal, so a replay refuses the same.
    pub(crate) fn refuse_new_keys(&self, refuse: Option<NoNewKeys>) {
        self.shared.inbox().no_new_keys = refuse.map(Arc::new);
    }

    /// Name of the segment file in which the epoch after `epoch` begins or will begin.
    pub fn segment_after(&self, epoch: Epoch) -> Option<String> {
        let (path, _) = self.shared.extent().segments_from(epoch + 1).pop_front()?;
        Some(path.file_name()?.to_string_lossy().into_owned())
    }

    /// How the journal is doing.
    pub fn stats(&self) -> JournalStats {
        lock(&self.shared.stats).clone()
    }

    /// Why the journal failed for good, if it did.
    pub fn failed(&self) -> Option<&str> {
        self.shared.failed()
    }

    /// Writes and seals what was offered and fits, hands it on, and ends; offers after that get
    /// [`crate::intake::IntakeError::Closed`]. What the sink has not taken and is only on disk is
    /// left to the next start. Blocks until the writer and the feed are done, so the sink must go
    /// on taking or be closed first.
    pub fn shutdown(&self) {
        self.shared.ask(|inbox| inbox.stop = true);
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            // A panic there was reported by the hook, and waiters were told.
            let _ = thread.join();
        }
        self.shared.close();
    }
}

/// The writer and the feed of a journal without threads.
#[cfg(test)]
pub(crate) struct Stepped {
    writer: Writer,
    follower: follow::Follower,
    reader: follow::Reader,
}

#[cfg(test)]
impl Stepped {
    /// One turn of the writer: whether it goes on, and whether it did anything.
    pub(crate) fn write(&mut self) -> Result<(bool, bool), String> {
        self.writer.step(&mut self.follower)
    }

    /// Hands the next feed (or what is read back) on; whether there was one.
    pub(crate) fn feed(&mut self) -> Result<bool, String> {
        self.reader.step().map_err(|error| error.to_string())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shutdown();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
