//! The store of what must survive: one redb file, written by a thread of its own.
//!
//! While one commit is being synced, the changes of all calls collect for the next one, so a
//! commit is shared by all who wait for it. A message that was queued and acknowledged between
//! two commits is never written. Acknowledgements wait a moment for company, because forgetting
//! one costs only a repetition that the protocol allows for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use tokio::sync::{Notify, watch};

use super::changes::{Change, Changes};
use super::records::{FORMAT, Key, Record, read};
use crate::journal::storage::is_full;
use crate::source::SourceError;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const STATE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("state");

/// In [`META`]: the newest epoch of the journal whose alerts were published. It is written with
/// what they have left behind, in one commit; files of before do not have it, nor do programs of
/// before look for it.
const ALERTS_THROUGH: &str = "alerts_through";

/// How long changes that nobody waits for may stay in memory.
const LAZY: Duration = Duration::from_millis(200);

/// How long a full disk is waited for before the next attempt.
const FULL_PAUSE: Duration = Duration::from_millis(500);

/// Pages that redb keeps in memory. Everything is in our own memory anyway.
const CACHE_BYTES: usize = 8 << 20;

#[derive(Debug, Default)]
struct Buffer {
    changes: BTreeMap<Key, Change>,
    wakes: Vec<Arc<Notify>>,
    number: u64,
    alerts_through: Option<u64>,
    urgent: bool,
    closing: bool,
    error: Option<String>,
}

impl Buffer {
    fn merge(&mut self, key: Key, change: Change) {
        let before = self.changes.get(&key);
        let unwritten = matches!(before, Some(Change::Put { fresh: true, .. }));
        match change {
            Change::Remove if unwritten => {
                self.changes.remove(&key);
            }
            Change::Put { value, fresh } => {
                let fresh = if before.is_some() { unwritten } else { fresh };
                self.changes.insert(key, Change::Put { value, fresh });
            }
            Change::Remove => {
                self.changes.insert(key, Change::Remove);
            }
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    buffer: Mutex<Buffer>,
    arrived: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The store; dropping it writes what is left.
#[derive(Debug)]
pub(super) struct Store {
    shared: Arc<Shared>,
    committed: watch::Receiver<u64>,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    /// Opens or creates the file and reads all that it holds, and how far alerts were published.
    pub(super) fn open(path: &Path) -> Result<(Self, (Vec<Record>, u64)), SourceError> {
        let database = open_database(path)?;
        let records = load(&database).map_err(|error| damaged(path, &error))?;
        let through = alerts_through(&database).map_err(|error| damaged(path, &error.to_string()));
        let through = through?;
        let shared = Arc::new(Shared::default());
        let (done, committed) = watch::channel(0);
        let database = Some(database);
        let writer = Writer { database, shared: Arc::clone(&shared), done, path: path.into() };
        let thread = std::thread::Builder::new()
            .name("mqtt-store".to_owned())
            .spawn(move || writer.run())
            .map_err(|error| SourceError::Io { what: "start a thread".to_owned(), error })?;
        Ok((Self { shared, committed, thread: Some(thread) }, (records, through)))
    }

    /// Hands changes over; they are then empty.
    pub(super) fn push(&self, changes: &mut Changes) {
        if changes.is_empty() && !changes.urgent {
            return;
        }
        changes.number += 1;
        let mut buffer = self.shared.lock();
        if buffer.error.is_some() {
            // Nobody will take them any more.
            changes.list.clear();
            changes.wakes.clear();
            changes.alerts_through = None;
            return;
        }
        // The thread is asleep only without changes, or while none of them is urgent.
        let tell = changes.urgent || buffer.changes.is_empty();
        for (key, change) in changes.list.drain(..) {
            buffer.merge(key, change);
        }
        buffer.wakes.append(&mut changes.wakes);
        buffer.alerts_through = changes.alerts_through.take().or(buffer.alerts_through);
        buffer.number = changes.number;
        buffer.urgent |= changes.urgent;
        changes.urgent = false;
        if tell {
            self.shared.arrived.notify_one();
        }
    }

    /// All changes up to this number are on disk.
    pub(super) fn committed(&self) -> u64 {
        *self.committed.borrow()
    }

    pub(super) fn error(&self) -> Option<String> {
        self.shared.lock().error.clone()
    }

    pub(super) fn ticket(&self, number: u64) -> Ticket {
        let wait = Wait { committed: self.committed.clone(), shared: Arc::clone(&self.shared) };
        Ticket { number, wait: Some(wait) }
    }
}

#[cfg(test)]
impl Store {
    /// Ends as a crash would: what is not committed yet is lost.
    pub(super) fn crash(self) {
        let mut buffer = self.shared.lock();
        buffer.error = Some("crashed".to_owned());
        buffer.changes.clear();
        buffer.alerts_through = None;
        drop(buffer);
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.arrived.notify_one();
        if let Some(thread) = self.thread.take() {
            // It tells its errors through the tickets.
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Wait {
    committed: watch::Receiver<u64>,
    shared: Arc<Shared>,
}

/// Resolves when the changes that it covers are on disk.
#[derive(Debug)]
#[must_use]
pub(crate) struct Ticket {
    number: u64,
    wait: Option<Wait>,
}

impl Ticket {
    /// A ticket for nothing.
    pub(super) fn ready() -> Self {
        Self { number: 0, wait: None }
    }

    /// Whether it has resolved.
    #[cfg(test)]
    pub(crate) fn is_ready(&self) -> bool {
        self.wait.as_ref().is_none_or(|wait| *wait.committed.borrow() >= self.number)
    }

    /// Waits. Cancel-safe.
    ///
    /// # Errors
    /// The store has failed.
    pub(crate) async fn done(self) -> Result<(), SourceError> {
        let Some(mut wait) = self.wait else { return Ok(()) };
        if wait.committed.wait_for(|committed| *committed >= self.number).await.is_ok() {
            return Ok(());
        }
        let error = wait.shared.lock().error.clone();
        Err(SourceError::Config(error.unwrap_or_else(|| "the broker has ended".to_owned())))
    }
}

struct Writer {
    /// After a failure it has to be opened again.
    database: Option<Database>,
    shared: Arc<Shared>,
    done: watch::Sender<u64>,
    path: PathBuf,
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut buffer = self.shared.lock();
        if buffer.error.is_none() && !buffer.closing {
            // It panicked. Without this, changes would pile up for nobody.
            buffer.error = Some(format!("{}: its writer has failed", self.path.display()));
        }
    }
}

impl Writer {
    fn run(mut self) {
        loop {
            let mut batch = self.next_batch();
            let changes = std::mem::take(&mut batch.changes);
            let changes = changes.into_iter().map(|(key, change)| (key, change.into_bytes()));
            if let Err(error) = self.write(&changes.collect(), batch.alerts_through) {
                let text = format!("{}: cannot write: {error}", self.path.display());
                tracing::error!("the broker's store has failed: {text}");
                self.shared.lock().error = Some(text);
                batch.wakes.iter().for_each(|wake| wake.notify_one());
                return;
            }
            self.done.send_replace(batch.number);
            batch.wakes.iter().for_each(|wake| wake.notify_one());
            if batch.closing {
                return;
            }
        }
    }

    /// Writes changes. On a full disk it waits for room, and so do those who wait for the commit.
    fn write(&mut self, changes: &Written, alerts_through: Option<u64>) -> Result<(), redb::Error> {
        let path = self.path.display().to_string();
        let mut waits = false;
        loop {
            let error = match self.attempt(changes, alerts_through) {
                Ok(()) if waits => {
                    break tracing::info!(path, "the broker's store is written again");
                }
                Ok(()) => break,
                Err(error) => error,
            };
            let buffer = self.shared.lock();
            match &error {
                redb::Error::Io(why) if is_full(why) && !buffer.closing => {
                    if !waits {
                        tracing::error!(path, %error, "the disk is full, the broker's store waits");
                    }
                    waits = true;
                }
                _ => return Err(error),
            }
            let arrived = &self.shared.arrived;
            drop(arrived.wait_timeout_while(buffer, FULL_PAUSE, |buffer| !buffer.closing));
        }
        Ok(())
    }

    fn attempt(&mut self, changes: &Written, alerts: Option<u64>) -> Result<(), redb::Error> {
        let database = match self.database.take() {
            Some(database) => database,
            None => builder().create(&self.path)?,
        };
        // It may be in the file already, if only the answer failed: it is the same once more.
        write(&database, changes, alerts)?;
        self.database = Some(database);
        Ok(())
    }

    /// Waits until there is something to write.
    fn next_batch(&self) -> Buffer {
        let mut buffer = self.shared.lock();
        while !buffer.urgent && !buffer.closing {
            let arrived = &self.shared.arrived;
            if buffer.changes.is_empty() {
                buffer = arrived.wait(buffer).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let waited = arrived.wait_timeout_while(buffer, LAZY, |b| !b.urgent && !b.closing);
            buffer = waited.unwrap_or_else(PoisonError::into_inner).0;
            break;
        }
        let Buffer { number, closing, .. } = *buffer;
        std::mem::replace(&mut *buffer, Buffer { number, closing, ..Buffer::default() })
    }
}

/// Values by their keys; `None`: there is none any more.
type Written = BTreeMap<Key, Option<Vec<u8>>>;

fn write(
    database: &Database,
    changes: &Written,
    alerts_through: Option<u64>,
) -> Result<(), redb::Error> {
    if changes.is_empty() && alerts_through.is_none() {
        return Ok(());
    }
    let transaction = database.begin_write()?;
    if let Some(epoch) = alerts_through {
        transaction.open_table(META)?.insert(ALERTS_THROUGH, epoch)?;
    }
    let mut table = transaction.open_table(STATE)?;
    for (key, change) in changes {
        match change {
            Some(value) => table.insert(&key[..], &value[..])?,
            None => table.remove(&key[..])?,
        };
    }
    drop(table);
    transaction.commit()?;
    Ok(())
}

fn builder() -> redb::Builder {
    let mut builder = redb::Builder::new();
    // The file is checked as a whole, because reading a damaged one later may panic.
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

fn open_database(path: &Path) -> Result<Database, SourceError> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|error| SourceError::Io {
            what: format!("create the directory {}", parent.display()),
            error,
        })?;
    }
    match builder().create(path) {
        Ok(database) => Ok(database),
        Err(DatabaseError::DatabaseAlreadyOpen) => Err(SourceError::Config(format!(
            "{}: another process uses this file; only one broker can",
            path.display()
        ))),
        Err(error) => Err(damaged(path, &error.to_string())),
    }
}

/// Reads all records of a file, or prepares a new one.
fn load(database: &Database) -> Result<Vec<Record>, String> {
    match read_all(database).map_err(|error| error.to_string())? {
        Some((FORMAT, records)) => records,
        Some((format, _)) => Err(format!("its format is {format}, this program knows {FORMAT}")),
        None => create(database).map_err(|error| error.to_string()),
    }
}

type Loaded = (u64, Result<Vec<Record>, String>);

fn read_all(database: &Database) -> Result<Option<Loaded>, redb::Error> {
    let transaction = database.begin_read()?;
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(format) = meta.get("format")?.map(|format| format.value()) else {
        return Ok(Some((0, Ok(Vec::new()))));
    };
    if format != FORMAT {
        return Ok(Some((format, Ok(Vec::new()))));
    }
    let mut records = Vec::new();
    for row in transaction.open_table(STATE)?.iter()? {
        let (key, value) = row?;
        match read(key.value(), value.value()) {
            Some(record) => records.push(record),
            None => return Ok(Some((format, Err("a record makes no sense".to_owned())))),
        }
    }
    Ok(Some((format, Ok(records))))
}

/// The newest epoch whose alerts were published; 0 where none were.
pub(crate) fn alerts_through(database: &Database) -> Result<u64, redb::Error> {
    let transaction = database.begin_read()?;
    match transaction.open_table(META) {
        Ok(meta) => Ok(meta.get(ALERTS_THROUGH)?.map_or(0, |epoch| epoch.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

fn create(database: &Database) -> Result<Vec<Record>, redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert("format", FORMAT)?;
    transaction.open_table(STATE)?;
    transaction.commit()?;
    Ok(Vec::new())
}

fn damaged(path: &Path, error: &str) -> SourceError {
    SourceError::Config(format!(
        "{}: the broker's store cannot be read: {error}. Restore it, or move it away to start \
         without retained messages and sessions",
        path.display()
    ))
}
