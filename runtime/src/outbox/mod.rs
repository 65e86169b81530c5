//! The outbox: notifications that have to leave this machine, kept until their target took them.
//!
//! Invariant: what `enqueue` took is on disk, and is pending after every restart until it was
//! delivered or given up; an identifier is taken once. Delivery is at least once: "delivered" is
//! written but not synced, so a power loss can repeat a delivery under the same identifier. The
//! outbox sends nothing itself (`webhook` does) and never drops silently.

mod record;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tidegate_operators::Epoch;
use tokio::sync::Notify;

use self::record::Outcome;
use crate::fault;
use crate::journal::frame::{self, Kind};
use crate::journal::recover::{is_unborn, read_tail};
use crate::journal::segment::{self, FileHeader, Frame};
use crate::journal::storage::{DirLock, lock_dir};
use crate::journal::{AppendFile, Disk, DurableError, LOCK, Storage};

/// Files are `outbox-NUMBER.log`; the newest one is the outbox.
const PREFIX: &str = "outbox";
/// With this many pending, more are recorded as dead at once: a receiver that is down for days must
/// not fill memory. Alerts themselves are in their table whatever happens here.
const PENDING_MAX: usize = 100_000;
/// No receiver takes larger ones; and so many of them fit into a frame.
const ITEM_BYTES_MAX: u64 = 1 << 20;
const FRAME_ITEMS_MAX: usize = 32;
const _: () = assert!(ITEM_BYTES_MAX as usize * FRAME_ITEMS_MAX < frame::BODY_BYTES_MAX);
/// The file is rewritten when it is larger than this and three quarters of it are history.
const COMPACT_BYTES_MIN: u64 = 1 << 20;
/// A reason is cut to this many characters.
const REASON_CHARS_MAX: usize = 300;

/// One notification for one target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Unique over all targets, and deterministic: a replay makes the same one again.
    pub id: String,
    /// Name of the target in the configuration.
    pub target: String,
    /// Notifications with one key are delivered in order.
    pub key: String,
    /// Tick time at which it was made, microseconds since the Unix epoch.
    pub created_us: i64,
    /// JSON.
    pub body: Bytes,
}

/// A notification of the file.
struct Entry {
    epoch: Epoch,
    /// `None`: handled, kept only so that it is not taken again.
    pending: Option<Arc<Notification>>,
}

struct State {
    path: PathBuf,
    header: FileHeader,
    file: Box<dyn AppendFile>,
    bytes: u64,
    synced_to: u64,
    failed: Option<String>,
    /// By order of arrival.
    entries: BTreeMap<u64, Entry>,
    by_id: HashMap<String, u64>,
    next: u64,
    pending: usize,
    /// Body and text bytes of what is pending, for the decision to compact.
    pending_bytes: u64,
    /// The next size at which it is worth looking whether to compact.
    check_at_bytes: u64,
    through_epoch: Epoch,
    forget_through: Epoch,
    /// Pending ones that no sender has fetched yet, by target, in order.
    fresh: BTreeMap<String, Vec<Arc<Notification>>>,
    dead: u64,
}

/// An open outbox.
pub struct Outbox {
    dir: PathBuf,
    storage: Arc<dyn Storage>,
    state: Mutex<State>,
    /// Told when something is fresh.
    pub(crate) news: Notify,
    _lock: DirLock,
}

impl Outbox {
    /// Opens or creates the outbox in `dir`.
    ///
    /// # Errors
    /// A directory in use, damage, or the file system's errors.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, DurableError> {
        Self::open_on(Arc::new(Disk), dir)
    }

    /// [`Outbox::open`] on another storage.
    ///
    /// # Errors
    /// As [`Outbox::open`].
    pub fn open_on(
        storage: Arc<dyn Storage>,
        dir: impl Into<PathBuf>,
    ) -> Result<Self, DurableError> {
        let dir = dir.into();
        let lock = lock_dir(&dir).map_err(DurableError::io(LOCK, &dir))?;
        let mut files = segment::list(&dir, PREFIX).map_err(DurableError::io("list", &dir))?;
        if let Some((_, path)) = files.last()
            && is_unborn(path)?
        {
            storage.remove(path).map_err(DurableError::io("remove", path))?;
            files.pop();
        }
        let state = match files.pop() {
            Some((_, path)) => State::load(&*storage, path)?,
            None => State::create(&*storage, &dir, 1, 0, &[])?,
        };
        for (_, old) in files {
            // Its content was taken over before the newer file got its name.
            storage.remove(&old).map_err(DurableError::io("remove", &old))?;
        }
        Ok(Self { dir, storage, state: Mutex::new(state), news: Notify::new(), _lock: lock })
    }

    /// Takes the notifications of `epoch` that are not known yet; they are durable when this
    /// returns their number. Blocks on the disk.
    ///
    /// # Errors
    /// Those of the file system; none of them is taken then. After a failed sync all calls fail.
    pub fn enqueue(&self, epoch: Epoch, list: Vec<Notification>) -> Result<usize, DurableError> {
        let mut state = self.state();
        let mut seen = HashSet::new();
        let new: Vec<Arc<Notification>> = list
            .into_iter()
            .filter(|item| !state.by_id.contains_key(&item.id) && seen.insert(item.id.clone()))
            .map(Arc::new)
            .collect();
        if new.is_empty() {
            return Ok(0);
        }
        if let Some(large) = new.iter().find(|item| size_bytes(item) > ITEM_BYTES_MAX) {
            let bytes = large.body.len();
            let problem = format!("notification {} of {bytes} bytes is too large", large.id);
            return Err(DurableError::Options(problem));
        }
        state.append(true, |out, header, synced_to| {
            for chunk in new.chunks(FRAME_ITEMS_MAX) {
                frame::append(out, header.salt, Kind::Enqueued, epoch, synced_to, |body| {
                    record::put_notifications(body, chunk);
                });
            }
        })?;
        let count = new.len();
        let mut overflow = Vec::new();
        for item in new {
            if state.pending >= PENDING_MAX {
                overflow.push(item.id.clone());
            }
            state.insert(epoch, item);
        }
        for id in overflow {
            state.outcome(Outcome::Dead, &id, "too many notifications are pending")?;
        }
        drop(state);
        self.news.notify_waiters();
        Ok(count)
    }

    /// The target took it. Not synced: see the head of this module.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn delivered(&self, id: &str) -> Result<(), DurableError> {
        let mut state = self.state();
        state.outcome(Outcome::Delivered, id, "")?;
        self.compact_if_due(&mut state)
    }

    /// It failed and will be tried again.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn failed(&self, id: &str, reason: &str) -> Result<(), DurableError> {
        let mut state = self.state();
        state.outcome(Outcome::Failed, id, reason)?;
        self.compact_if_due(&mut state)
    }

    /// It is given up, for this reason.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn dead(&self, id: &str, reason: &str) -> Result<(), DurableError> {
        let mut state = self.state();
        state.outcome(Outcome::Dead, id, reason)?;
        self.compact_if_due(&mut state)
    }

    /// The newest epoch of which something was enqueued; 0 where nothing ever was.
    pub fn through_epoch(&self) -> Epoch {
        self.state().through_epoch
    }

    /// Notifications neither delivered nor given up.
    pub fn pending(&self) -> usize {
        self.state().pending
    }

    /// Notifications given up, over all runs since the last compaction.
    pub fn dead_count(&self) -> u64 {
        self.state().dead
    }

    /// No epoch up to `through` will be replayed again: identifiers of handled notifications from
    /// them need not be remembered. Without this the outbox grows with each notification.
    pub fn forget(&self, through: Epoch) {
        let mut state = self.state();
        state.forget_through = state.forget_through.max(through);
    }

    /// Names of the targets that have something pending which no sender has taken.
    pub(crate) fn fresh_targets(&self) -> Vec<String> {
        self.state().fresh.keys().cloned().collect()
    }

    /// Pending notifications of a target that were not fetched before, in order.
    pub(crate) fn fetch(&self, target: &str) -> Vec<Arc<Notification>> {
        self.state().fresh.remove(target).unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rewrites the file when most of it is history.
    fn compact_if_due(&self, state: &mut State) -> Result<(), DurableError> {
        if state.bytes < state.check_at_bytes {
            return Ok(());
        }
        let forget = state.forget_through;
        let known = state.known_after(forget);
        let known_bytes: usize = known.values().flatten().map(|id| id.len() + 8).sum();
        if state.bytes < 4 * (state.pending_bytes + known_bytes as u64) {
            state.check_at_bytes = state.bytes + state.bytes.max(COMPACT_BYTES_MIN) / 2;
            return Ok(());
        }
        let keep: Vec<_> = state
            .entries
            .values()
            .filter_map(|entry| entry.pending.clone().map(|item| (entry.epoch, item)))
            .collect();
        let sequence = state.header.sequence + 1;
        let mut next =
            State::create(&*self.storage, &self.dir, sequence, state.through_epoch, &keep)?;
        for (epoch, ids) in &known {
            next.append(false, |out, header, synced_to| {
                frame::append(out, header.salt, Kind::Known, *epoch, synced_to, |body| {
                    record::put_ids(body, ids.iter().map(String::as_str));
                });
            })?;
            next.insert_known(*epoch, ids);
        }
        next.forget_through = forget;
        next.dead = state.dead;
        next.publish(&*self.storage, &self.dir)?;
        // What a sender has fetched stays with it; only what it has not is fresh again.
        next.fresh = std::mem::take(&mut state.fresh);
        let old = std::mem::replace(state, next);
        self.storage.remove(&old.path).map_err(DurableError::io("remove", &old.path))
    }
}

impl State {
    /// A new file, under a temporary name for number 2 and up, so that it appears only when it is
    /// complete.
    fn create(
        storage: &dyn Storage,
        dir: &Path,
        sequence: u64,
        through_epoch: Epoch,
        pending: &[(Epoch, Arc<Notification>)],
    ) -> Result<Self, DurableError> {
        let header = FileHeader {
            sequence,
            salt: segment::new_salt(sequence),
            first_epoch: through_epoch,
            first_offset: 0,
            last_time_us: 0,
        };
        let path = dir.join(format!("{PREFIX}.tmp"));
        let file = storage.create(&path).map_err(DurableError::io("create", &path))?;
        let mut state = Self::empty(path, header, file);
        state.append(false, |out, header, _| out.extend_from_slice(&header.encode()))?;
        for (epoch, item) in pending {
            state.append(false, |out, header, synced_to| {
                frame::append(out, header.salt, Kind::Enqueued, *epoch, synced_to, |body| {
                    record::put_notifications(body, std::slice::from_ref(item));
                });
            })?;
            state.insert(*epoch, item.clone());
        }
        if sequence == 1 {
            state.publish(storage, dir)?;
        }
        Ok(state)
    }

    fn empty(path: PathBuf, header: FileHeader, file: Box<dyn AppendFile>) -> Self {
        Self {
            path,
            header,
            file,
            bytes: 0,
            synced_to: 0,
            failed: None,
            entries: BTreeMap::new(),
            by_id: HashMap::new(),
            next: 0,
            pending: 0,
            pending_bytes: 0,
            check_at_bytes: COMPACT_BYTES_MIN,
            through_epoch: header.first_epoch,
            forget_through: 0,
            fresh: BTreeMap::new(),
            dead: 0,
        }
    }

    /// Gives a complete file its name.
    fn publish(&mut self, storage: &dyn Storage, dir: &Path) -> Result<(), DurableError> {
        self.sync()?;
        let path = dir.join(segment::file_name(PREFIX, self.header.sequence));
        storage.rename(&self.path, &path).map_err(DurableError::io("rename", &path))?;
        storage.sync_dir(dir).map_err(DurableError::io("sync", dir))?;
        self.path = path;
        Ok(())
    }

    fn load(storage: &dyn Storage, path: PathBuf) -> Result<Self, DurableError> {
        let mut frames = Vec::new();
        let tail = read_tail(&path, |_, frame| {
            frames.push(frame.clone());
            Ok(())
        })?;
        let mut file =
            storage.open(&path, tail.good_bytes).map_err(DurableError::io("open", &path))?;
        file.truncate(tail.good_bytes).map_err(DurableError::io("cut", &path))?;
        let mut state = Self::empty(path, tail.header, file);
        state.bytes = tail.good_bytes;
        state.sync()?;
        for frame in frames {
            state.apply(&frame).ok_or_else(|| {
                DurableError::damaged(&state.path, frame.offset, "the record is not valid")
            })?;
        }
        Ok(state)
    }

    fn apply(&mut self, frame: &Frame) -> Option<()> {
        match frame.kind {
            Kind::Enqueued => {
                for item in record::get_notifications(&frame.body)? {
                    self.insert(frame.epoch, Arc::new(item));
                }
            }
            Kind::Outcome => {
                let (outcome, id, _) = record::get_outcome(&frame.body)?;
                self.apply_outcome(outcome, &id);
            }
            Kind::Known => self.insert_known(frame.epoch, &record::get_ids(&frame.body)?),
            _ => return None,
        }
        Some(())
    }

    fn insert(&mut self, epoch: Epoch, item: Arc<Notification>) {
        if self.by_id.contains_key(&item.id) {
            return;
        }
        self.by_id.insert(item.id.clone(), self.next);
        self.fresh.entry(item.target.clone()).or_default().push(item.clone());
        self.pending += 1;
        self.pending_bytes += size_bytes(&item);
        self.entries.insert(self.next, Entry { epoch, pending: Some(item) });
        self.next += 1;
        self.through_epoch = self.through_epoch.max(epoch);
    }

    fn insert_known(&mut self, epoch: Epoch, ids: &[String]) {
        for id in ids {
            self.by_id.insert(id.clone(), self.next);
            self.entries.insert(self.next, Entry { epoch, pending: None });
            self.next += 1;
        }
        self.through_epoch = self.through_epoch.max(epoch);
    }

    /// Identifiers of handled notifications that a replay could make again.
    fn known_after(&self, forget: Epoch) -> BTreeMap<Epoch, Vec<String>> {
        let mut known: BTreeMap<Epoch, Vec<String>> = BTreeMap::new();
        for (id, number) in &self.by_id {
            let entry = &self.entries[number];
            if entry.pending.is_none() && entry.epoch > forget {
                known.entry(entry.epoch).or_default().push(id.clone());
            }
        }
        known.values_mut().for_each(|ids| ids.sort_unstable());
        known
    }

    fn outcome(&mut self, outcome: Outcome, id: &str, reason: &str) -> Result<(), DurableError> {
        let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
        self.append(false, |out, header, synced_to| {
            frame::append(out, header.salt, Kind::Outcome, header.first_epoch, synced_to, |body| {
                record::put_outcome(body, outcome, id, &reason);
            });
        })?;
        if outcome == Outcome::Dead {
            tracing::error!(id, reason, "a notification is given up");
        }
        self.apply_outcome(outcome, id);
        Ok(())
    }

    fn apply_outcome(&mut self, outcome: Outcome, id: &str) {
        if outcome == Outcome::Failed {
            return;
        }
        let entry = self.by_id.get(id).and_then(|number| self.entries.get_mut(number));
        if let Some(item) = entry.and_then(|entry| entry.pending.take()) {
            self.pending -= 1;
            self.pending_bytes -= size_bytes(&item);
            self.dead += u64::from(outcome == Outcome::Dead);
            if let Some(fresh) = self.fresh.get_mut(&item.target) {
                fresh.retain(|have| have.id != id);
                if fresh.is_empty() {
                    self.fresh.remove(&item.target);
                }
            }
        }
    }

    /// Appends what `write` makes, all or nothing.
    fn append(
        &mut self,
        sync: bool,
        write: impl FnOnce(&mut Vec<u8>, &FileHeader, u64),
    ) -> Result<(), DurableError> {
        if let Some(reason) = &self.failed {
            return Err(DurableError::Failed { path: self.path.clone(), reason: reason.clone() });
        }
        let mut out = Vec::new();
        write(&mut out, &self.header, self.synced_to);
        if let Err(error) = self.file.append(&out) {
            if let Err(error) = self.file.truncate(self.bytes) {
                self.failed = Some(error.to_string());
            }
            return Err(DurableError::io("write", &self.path)(error));
        }
        self.bytes += out.len() as u64;
        if !sync {
            return Ok(());
        }
        fault::point("outbox_append");
        self.sync()
    }

    fn sync(&mut self) -> Result<(), DurableError> {
        if let Err(error) = self.file.sync() {
            self.failed = Some(error.to_string());
            return Err(DurableError::io("sync", &self.path)(error));
        }
        self.synced_to = self.bytes;
        Ok(())
    }
}

fn size_bytes(item: &Notification) -> u64 {
    (item.id.len() + item.target.len() + item.key.len() + item.body.len() + 64) as u64
}

#[cfg(test)]
mod tests;
