//! What the outbox knows at one moment, and the file that says so.
//!
//! Invariant: memory holds what the file says, in its order. Of what was given up only the newest
//! [`DEAD_MAX`] notifications are kept to be sent again, within [`DEAD_BYTES_MAX`]; of the others
//! their identifiers.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_operators::Epoch;

use super::record::{self, Outcome};
use super::{COMPACT_BYTES_MIN, Notification, PREFIX};
use crate::fault;
use crate::journal::frame::{self, Kind};
use crate::journal::recover::read_tail;
use crate::journal::segment::{self, FileHeader, Frame};
use crate::journal::{AppendFile, DurableError, Storage};

/// A reason is cut to this many characters.
const REASON_CHARS_MAX: usize = 300;
/// More dead letters than this nobody looks through; and what they may take of memory and disk.
const DEAD_MAX: usize = 10_000;
const DEAD_BYTES_MAX: u64 = 64 << 20;

/// A notification of the file.
pub(super) struct Entry {
    pub(super) epoch: Epoch,
    pub(super) what: What,
}

/// What has become of a notification.
pub(super) enum What {
    /// It is to be delivered.
    Pending(Arc<Notification>),
    /// It was given up, for this reason, and can be sent again.
    Dead(Arc<Notification>, String),
    /// It was delivered, or given up long ago: kept only so that it is not taken again.
    Handled,
}

/// See the head of this module.
pub(super) struct State {
    pub(super) path: PathBuf,
    pub(super) header: FileHeader,
    pub(super) file: Box<dyn AppendFile>,
    pub(super) bytes: u64,
    pub(super) synced_to: u64,
    pub(super) failed: Option<String>,
    /// By order of arrival.
    pub(super) entries: BTreeMap<u64, Entry>,
    pub(super) by_id: HashMap<String, u64>,
    pub(super) next: u64,
    pub(super) pending: usize,
    /// Body and text bytes of what is pending, for the decision to compact.
    pub(super) pending_bytes: u64,
    /// The next size at which it is worth looking whether to compact.
    pub(super) check_at_bytes: u64,
    pub(super) through_epoch: Epoch,
    pub(super) forget_through: Epoch,
    /// Pending ones that no sender has fetched yet, by target, in order.
    pub(super) fresh: BTreeMap<String, Vec<Arc<Notification>>>,
    /// Numbers of those that were given up and can be sent again, in the order of their end.
    pub(super) dead: VecDeque<u64>,
    pub(super) dead_bytes: u64,
    /// Notifications that were given up since the outbox was opened.
    pub(super) given_up: u64,
}

impl State {
    /// A new file, under a temporary name for number 2 and up, so that it appears only when it is
    /// complete.
    pub(super) fn create(
        storage: &dyn Storage,
        dir: &Path,
        sequence: u64,
        through_epoch: Epoch,
    ) -> Result<Self, DurableError> {
        let header = FileHeader {
            sequence,
            salt: segment::new_salt(sequence),
            first_epoch: through_epoch,
            first_offset: 0,
            last_time_us: 0,
        };
        let path = temporary(dir);
        let file = storage.create(&path).map_err(DurableError::io("create", &path))?;
        let mut state = Self::empty(path, header, file);
        state.append(false, |out, header, _| out.extend_from_slice(&header.encode()))?;
        if sequence == 1 {
            state.publish(storage, dir)?;
        }
        Ok(state)
    }

    /// Writes a notification of an older file.
    pub(super) fn take_over(
        &mut self,
        epoch: Epoch,
        item: &Arc<Notification>,
    ) -> Result<(), DurableError> {
        self.append(false, |out, header, synced_to| {
            frame::append(out, header.salt, Kind::Enqueued, epoch, synced_to, |body| {
                record::put_notifications(body, std::slice::from_ref(item));
            });
        })?;
        self.insert(epoch, item.clone());
        Ok(())
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
            dead: VecDeque::new(),
            dead_bytes: 0,
            given_up: 0,
        }
    }

    /// Gives a complete file its name. Once it has that it is the newest one, and whoever opens the
    /// outbox takes it and no older one, also if an error comes after that ([`State::is_named`]):
    /// then nothing more can be written to it.
    pub(super) fn publish(
        &mut self,
        storage: &dyn Storage,
        dir: &Path,
    ) -> Result<(), DurableError> {
        self.sync()?;
        let path = dir.join(segment::file_name(PREFIX, self.header.sequence));
        storage.rename(&self.path, &path).map_err(DurableError::io("rename", &path))?;
        self.path = path;
        storage.sync_dir(dir).map_err(|error| {
            self.failed = Some(error.to_string());
            DurableError::io("sync", dir)(error)
        })
    }

    /// It is not worth looking again whether to compact before it has grown by half.
    pub(super) fn check_later(&mut self) {
        self.check_at_bytes = self.bytes + self.bytes.max(COMPACT_BYTES_MIN) / 2;
    }

    /// Whether it has the name under which it is found.
    pub(super) fn is_named(&self) -> bool {
        self.path.extension().is_some_and(|extension| extension != "tmp")
    }

    pub(super) fn load(storage: &dyn Storage, path: PathBuf) -> Result<Self, DurableError> {
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
                let (outcome, id, reason) = record::get_outcome(&frame.body)?;
                self.apply_outcome(outcome, &id, &reason);
            }
            Kind::Again => {
                let (id, at_us) = record::get_again(&frame.body)?;
                self.apply_again(&id, at_us);
            }
            Kind::Known => self.insert_known(frame.epoch, &record::get_ids(&frame.body)?),
            _ => return None,
        }
        Some(())
    }

    pub(super) fn insert(&mut self, epoch: Epoch, item: Arc<Notification>) {
        if self.by_id.contains_key(&item.id) {
            return;
        }
        self.by_id.insert(item.id.clone(), self.next);
        self.expect(&item);
        self.entries.insert(self.next, Entry { epoch, what: What::Pending(item) });
        self.next += 1;
        self.through_epoch = self.through_epoch.max(epoch);
    }

    pub(super) fn insert_known(&mut self, epoch: Epoch, ids: &[String]) {
        for id in ids {
            self.by_id.insert(id.clone(), self.next);
            self.entries.insert(self.next, Entry { epoch, what: What::Handled });
            self.next += 1;
        }
        self.through_epoch = self.through_epoch.max(epoch);
    }

    /// Identifiers of handled notifications that a replay could make again.
    pub(super) fn known_after(&self, forget: Epoch) -> BTreeMap<Epoch, Vec<String>> {
        let mut known: BTreeMap<Epoch, Vec<String>> = BTreeMap::new();
        for (id, number) in &self.by_id {
            let entry = &self.entries[number];
            if matches!(entry.what, What::Handled) && entry.epoch > forget {
                known.entry(entry.epoch).or_default().push(id.clone());
            }
        }
        known.values_mut().for_each(|ids| ids.sort_unstable());
        known
    }

    /// What became of an attempt, or of a notification.
    pub(super) fn outcome(
        &mut self,
        outcome: Outcome,
        id: &str,
        reason: &str,
    ) -> Result<(), DurableError> {
        self.note(outcome, id, reason)?;
        if outcome == Outcome::Dead {
            tracing::error!(id, reason, "a notification is given up");
            self.given_up += 1;
        }
        Ok(())
    }

    pub(super) fn note(
        &mut self,
        outcome: Outcome,
        id: &str,
        reason: &str,
    ) -> Result<(), DurableError> {
        let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
        self.append(false, |out, header, synced_to| {
            frame::append(out, header.salt, Kind::Outcome, header.first_epoch, synced_to, |body| {
                record::put_outcome(body, outcome, id, &reason);
            });
        })?;
        self.apply_outcome(outcome, id, &reason);
        Ok(())
    }

    fn apply_outcome(&mut self, outcome: Outcome, id: &str, reason: &str) {
        let Some(number) = self.by_id.get(id).copied() else { return };
        let Some(entry) = self.entries.get_mut(&number) else { return };
        if outcome == Outcome::Failed || !matches!(entry.what, What::Pending(_)) {
            return;
        }
        let What::Pending(item) = std::mem::replace(&mut entry.what, What::Handled) else { return };
        if outcome == Outcome::Dead {
            entry.what = What::Dead(item.clone(), reason.to_owned());
            self.dead.push_back(number);
            self.dead_bytes += size_bytes(&item);
        }
        self.pending -= 1;
        self.pending_bytes -= size_bytes(&item);
        if let Some(fresh) = self.fresh.get_mut(&item.target) {
            fresh.retain(|have| have.id != id);
            if fresh.is_empty() {
                self.fresh.remove(&item.target);
            }
        }
        while self.dead.len() > DEAD_MAX || self.dead_bytes > DEAD_BYTES_MAX {
            let Some(oldest) = self.dead.pop_front() else { break };
            self.bury(oldest);
        }
    }

    /// A dead letter is not kept any more.
    fn bury(&mut self, number: u64) {
        let Some(entry) = self.entries.get_mut(&number) else { return };
        if let What::Dead(item, _) = std::mem::replace(&mut entry.what, What::Handled) {
            self.dead_bytes -= size_bytes(&item);
        }
    }

    /// Those that can be sent again, in the order of their end.
    pub(super) fn dead_ids(&self) -> Vec<String> {
        let entries = self.dead.iter().filter_map(|number| self.entries.get(number));
        let dead = entries.filter_map(|entry| match &entry.what {
            What::Dead(item, _) => Some(item.id.clone()),
            What::Pending(_) | What::Handled => None,
        });
        dead.collect()
    }

    /// A dead letter is to be delivered after all; false if `id` is none. Its age counts from now.
    pub(super) fn again(&mut self, id: &str, now_us: i64) -> Result<bool, DurableError> {
        let entry = self.by_id.get(id).and_then(|number| self.entries.get(number));
        if !entry.is_some_and(|entry| matches!(entry.what, What::Dead(..))) {
            return Ok(false);
        }
        self.append(false, |out, header, synced_to| {
            frame::append(out, header.salt, Kind::Again, header.first_epoch, synced_to, |body| {
                record::put_again(body, id, now_us);
            });
        })?;
        self.apply_again(id, now_us);
        Ok(true)
    }

    fn apply_again(&mut self, id: &str, at_us: i64) {
        let Some(number) = self.by_id.get(id).copied() else { return };
        let Some(entry) = self.entries.get_mut(&number) else { return };
        let What::Dead(item, _) = &entry.what else { return };
        let bytes = size_bytes(item);
        let item = Arc::new(Notification { created_us: at_us, ..Notification::clone(item) });
        entry.what = What::Pending(item.clone());
        self.dead.retain(|dead| *dead != number);
        self.dead_bytes -= bytes;
        self.expect(&item);
    }

    /// It is to be delivered, and no sender has it.
    fn expect(&mut self, item: &Arc<Notification>) {
        self.fresh.entry(item.target.clone()).or_default().push(item.clone());
        self.pending += 1;
        self.pending_bytes += size_bytes(item);
    }

    /// Appends what `write` makes, all or nothing.
    pub(super) fn append(
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

/// The name of a file before it is complete.
pub(super) fn temporary(dir: &Path) -> PathBuf {
    dir.join(format!("{PREFIX}.tmp"))
}

pub(super) fn size_bytes(item: &Notification) -> u64 {
    (item.id.len() + item.target.len() + item.key.len() + item.body.len() + 64) as u64
}
