//! The outbox: notifications that have to leave this machine, kept until their target took them.
//!
//! Invariant: what `enqueue` took is on disk, and is pending after every restart until it was
//! delivered or given up; an identifier is taken once. Delivery is at least once: "delivered" is
//! written but not synced, so a power loss can repeat a delivery under the same identifier. The
//! outbox sends nothing itself (`webhook` does) and never drops silently.

pub(crate) mod examine;
mod letters;
mod record;
mod state;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tidegate_operators::Epoch;
use tokio::sync::Notify;

pub use self::letters::{Letter, Resend, letters, request};
use self::record::Outcome;
use self::state::{State, What, size_bytes, temporary};
use crate::journal::frame::{self, Kind};
use crate::journal::recover::is_unborn;
use crate::journal::segment;
use crate::journal::storage::{DirLock, lock_dir};
use crate::journal::{Disk, DurableError, LOCK, Storage};

/// Files are `outbox-NUMBER.log`; the newest one is the outbox.
const PREFIX: &str = "outbox";
/// With this many pending, more are recorded as dead at once, if nobody says otherwise: a receiver
/// that is down for days must not fill memory. Alerts themselves are in their table whatever
/// happens here.
pub(crate) const PENDING_MAX: usize = 100_000;
/// No receiver takes larger ones; and so many of them fit into a frame.
pub(crate) const ITEM_BYTES_MAX: u64 = 1 << 20;
const FRAME_ITEMS_MAX: usize = 32;
const _: () = assert!(ITEM_BYTES_MAX as usize * FRAME_ITEMS_MAX < frame::BODY_BYTES_MAX);
/// The file is rewritten when it is larger than this and three quarters of it are history.
const COMPACT_BYTES_MIN: u64 = 1 << 20;

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

/// An open outbox.
pub struct Outbox {
    dir: PathBuf,
    storage: Arc<dyn Storage>,
    state: Mutex<State>,
    pending_max: usize,
    /// How many were given up because of that since it was opened.
    overflowed: AtomicU64,
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
        // Of a compaction that was under way.
        remove_temporary(&*storage, &dir)?;
        let mut files = segment::list(&dir, PREFIX).map_err(DurableError::io("list", &dir))?;
        if let Some((_, path)) = files.last()
            && is_unborn(path)?
        {
            storage.remove(path).map_err(DurableError::io("remove", path))?;
            files.pop();
        }
        let state = match files.pop() {
            Some((_, path)) => {
                let state = State::load(&*storage, path)?;
                // Whoever made it may have died before its name was durable.
                storage.sync_dir(&dir).map_err(DurableError::io("sync", &dir))?;
                state
            }
            None => State::create(&*storage, &dir, 1, 0)?,
        };
        for (_, old) in files {
            // Its content was taken over before the newer file got its name.
            storage.remove(&old).map_err(DurableError::io("remove", &old))?;
        }
        let (state, overflowed) = (Mutex::new(state), AtomicU64::new(0));
        let (pending_max, news) = (PENDING_MAX, Notify::new());
        Ok(Self { dir, storage, state, pending_max, overflowed, news, _lock: lock })
    }

    /// The same, in which so many notifications may be pending. What is pending already stays, and
    /// so does what is to be sent again.
    #[must_use]
    pub fn limited(self, pending_max: usize) -> Self {
        Self { pending_max, ..self }
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
            if state.pending >= self.pending_max {
                overflow.push(item.id.clone());
            }
            state.insert(epoch, item);
        }
        let reason = format!("{} notifications were pending (outbox_max)", self.pending_max);
        for id in overflow {
            state.outcome(Outcome::Dead, &id, &reason)?;
            self.overflowed.fetch_add(1, Ordering::Relaxed);
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

    /// Whether notifications of `epoch` may be missing. Also of the newest one that is here: a
    /// crash may have cut it in its middle.
    pub fn may_lack(&self, epoch: Epoch) -> bool {
        epoch >= self.through_epoch()
    }

    /// Notifications neither delivered nor given up.
    pub fn pending(&self) -> usize {
        self.state().pending
    }

    /// How many may be pending.
    pub fn pending_max(&self) -> usize {
        self.pending_max
    }

    /// Notifications that were given up at once because so many were pending, since the outbox was
    /// opened.
    pub fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }

    /// Notifications that were given up and can be sent again.
    pub fn dead_count(&self) -> usize {
        self.state().dead.len()
    }

    /// Notifications that were given up since the outbox was opened: unlike
    /// [`Outbox::dead_count`] it has no bound.
    pub fn given_up(&self) -> u64 {
        self.state().given_up
    }

    /// Does what `tidegate outbox resend` has asked for since the last call, and says how many
    /// notifications are pending again. Their ages count from `now_us`.
    ///
    /// # Errors
    /// Those of the file system; what was not done is done at the next call.
    pub fn take_requests(&self, now_us: i64) -> Result<usize, DurableError> {
        let mut count = 0;
        let taken = letters::requests(&self.dir)?
            .into_iter()
            .try_for_each(|path| self.take_request(&path, now_us, &mut count));
        // Also before an error is told: nobody asks again for what was done.
        if count > 0 {
            self.news.notify_waiters();
        }
        taken.map(|()| count)
    }

    fn take_request(
        &self,
        path: &Path,
        now_us: i64,
        count: &mut usize,
    ) -> Result<(), DurableError> {
        let wish = letters::wish(path)?;
        let mut state = self.state();
        let ids = match wish {
            Resend::All => state.dead_ids(),
            Resend::One(id) => vec![id],
        };
        for id in ids {
            *count += usize::from(state.again(&id, now_us)?);
        }
        drop(state);
        match self.storage.remove(path) {
            // Somebody was faster, and it is done.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(DurableError::io("remove", path)),
        }
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

    /// The sender of a target has ended: what it had fetched and not dealt with is there to be
    /// fetched by the next one.
    pub(crate) fn release(&self, target: &str) {
        let mut state = self.state();
        let pending = state.entries.values().filter_map(|entry| match &entry.what {
            What::Pending(item) if item.target == target => Some(Arc::clone(item)),
            _ => None,
        });
        let pending: Vec<_> = pending.collect();
        if !pending.is_empty() {
            state.fresh.insert(target.to_owned(), pending);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rewrites the file when most of it is history.
    fn compact_if_due(&self, state: &mut State) -> Result<(), DurableError> {
        if state.bytes < state.check_at_bytes {
            return Ok(());
        }
        let known = state.known_after(state.forget_through);
        let known_bytes: usize = known.values().flatten().map(|id| id.len() + 8).sum();
        let kept_bytes = state.pending_bytes + state.dead_bytes + known_bytes as u64;
        if state.bytes < 4 * kept_bytes {
            state.check_later();
            return Ok(());
        }
        let mut next = match self.compacted(state, &known) {
            Ok(next) => next,
            Err(error) => return self.bear(state, &error),
        };
        let published = next.publish(&*self.storage, &self.dir);
        if let (Err(error), false) = (&published, next.is_named()) {
            drop(next);
            return self.bear(state, error);
        }
        // What a sender has fetched stays with it; only what it has not is fresh again.
        next.fresh = std::mem::take(&mut state.fresh);
        next.given_up = state.given_up;
        let old = std::mem::replace(state, next);
        // After a failed sync the old one stays: it may be the one that is left by a power loss.
        published?;
        self.storage.remove(&old.path).map_err(DurableError::io("remove", &old.path))
    }

    /// Nothing is wrong with the file that there is, which has what just became of a notification:
    /// it grows on. What was written of another one takes room, on a disk that is full perhaps, and
    /// to try again at once would write as much again.
    fn bear(&self, state: &mut State, error: &DurableError) -> Result<(), DurableError> {
        tracing::error!(%error, "the outbox could not be made smaller; later it is tried again");
        state.check_later();
        remove_temporary(&*self.storage, &self.dir)
    }

    /// The next file, which has no name yet: what is pending or can be sent again, and identifiers
    /// that are still to be known.
    fn compacted(
        &self,
        state: &State,
        known: &BTreeMap<Epoch, Vec<String>>,
    ) -> Result<State, DurableError> {
        let sequence = state.header.sequence + 1;
        let mut next = State::create(&*self.storage, &self.dir, sequence, state.through_epoch)?;
        for entry in state.entries.values() {
            match &entry.what {
                What::Pending(item) => next.take_over(entry.epoch, item)?,
                What::Dead(item, reason) => {
                    next.take_over(entry.epoch, item)?;
                    next.note(Outcome::Dead, &item.id, reason)?;
                }
                What::Handled => {}
            }
        }
        for (epoch, ids) in known {
            next.append(false, |out, header, synced_to| {
                frame::append(out, header.salt, Kind::Known, *epoch, synced_to, |body| {
                    record::put_ids(body, ids.iter().map(String::as_str));
                });
            })?;
            next.insert_known(*epoch, ids);
        }
        next.forget_through = state.forget_through;
        Ok(next)
    }
}

/// Removes a file that never got its name.
fn remove_temporary(storage: &dyn Storage, dir: &Path) -> Result<(), DurableError> {
    let path = temporary(dir);
    match path.try_exists() {
        Ok(true) => storage.remove(&path).map_err(DurableError::io("remove", &path)),
        Ok(false) => Ok(()),
        Err(error) => Err(DurableError::io("look at", &path)(error)),
    }
}

#[cfg(test)]
mod tests;
