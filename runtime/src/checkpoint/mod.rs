//! Checkpoints: the state of all stateful operators at one epoch, as files with a manifest.
//!
//! Invariants: a checkpoint exists if and only if its manifest `checkpoint-EPOCH-N.json` does, and
//! the manifest gets its name only after every part that it names is durable ([`publish`]). No file
//! is ever written over: parts have numbers that are never used twice, and a manifest's name is
//! given only where there is none of that name. A part is deleted only when no kept manifest
//! names it ([`prune`]); a manifest goes before its parts. Whatever is damaged is passed over with
//! a warning, in favour of the newest checkpoint that is whole; a start gives its manifest another
//! name ([`recover`]), so that it never counts as one of those that are kept: only a start reads
//! all of a checkpoint.
//!
//! [`publish`]: CheckpointStore::publish
//! [`prune`]: CheckpointStore::prune
//! [`recover`]: CheckpointStore::recover

pub mod holdings;
pub mod manifest;
pub mod part;
mod writing;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidegate_operators::{Epoch, SavedRows};

use self::manifest::{Manifest, PartRef, Unusable};
use crate::fault;
use crate::journal::storage::{DirLock, lock_dir};
use crate::journal::{Disk, DurableError, Storage};

/// A checkpoint that was read and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// What it says of itself.
    pub manifest: Manifest,
    /// State by operator, one entry for each piece of a part, without groups that newer parts have;
    /// each group is in one. Pieces are as they were read: whoever needs them as one copies them.
    pub state: Vec<(String, SavedRows)>,
    /// Newer checkpoints that were passed over, and why.
    pub damaged: Vec<String>,
}

/// The checkpoints of one instance, in one directory.
pub struct CheckpointStore {
    dir: PathBuf,
    storage: Arc<dyn Storage>,
    next_part: AtomicU64,
    /// `None`: only looked at.
    _lock: Option<DirLock>,
}

/// A manifest that is durable and has no name yet.
pub(crate) struct Prepared {
    epoch: Epoch,
    temporary: PathBuf,
}

/// A checkpoint as a doctor finds it.
pub(crate) struct Surveyed {
    pub(crate) epoch: Epoch,
    /// Name of the manifest's file.
    pub(crate) manifest: String,
    /// The checkpoint, or why it is not whole.
    pub(crate) found: Result<Checkpoint, Unusable>,
}

impl CheckpointStore {
    /// Opens or creates the store in `dir`.
    ///
    /// # Errors
    /// When another process uses the directory, or those of the file system.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, DurableError> {
        Self::open_on(Arc::new(Disk), dir)
    }

    /// [`CheckpointStore::open`] on another storage.
    ///
    /// # Errors
    /// As [`CheckpointStore::open`].
    pub fn open_on(
        storage: Arc<dyn Storage>,
        dir: impl Into<PathBuf>,
    ) -> Result<Self, DurableError> {
        let dir = dir.into();
        let lock = lock_dir(&dir).map_err(DurableError::io(crate::journal::LOCK, &dir))?;
        let store = Self { dir, storage, next_part: AtomicU64::new(1), _lock: Some(lock) };
        let newest = store.names()?.iter().filter_map(|name| part_number(name)).max();
        store.next_part.store(newest.unwrap_or(0) + 1, Ordering::Relaxed);
        Ok(store)
    }

    /// The store as a doctor reads it: without its lock, so beside a running instance too.
    pub(crate) fn look_at(dir: impl Into<PathBuf>) -> Self {
        let next_part = AtomicU64::new(u64::MAX);
        Self { dir: dir.into(), storage: Arc::new(Disk), next_part, _lock: None }
    }

    /// Every checkpoint, oldest first. One that is removed meanwhile is left out.
    ///
    /// # Errors
    /// Only where the directory cannot be listed.
    pub(crate) fn survey(&self) -> Result<Vec<Surveyed>, DurableError> {
        let mut all = Vec::new();
        for (epoch, manifest) in self.manifests()? {
            let checkpoint =
                |(manifest, state)| Checkpoint { manifest, state, damaged: Vec::new() };
            let found = self.load(epoch, &manifest).map(checkpoint);
            if found.is_ok() || self.dir.join(&manifest).exists() {
                all.push(Surveyed { epoch, manifest, found });
            }
        }
        Ok(all)
    }

    /// Makes a checkpoint of parts that were written: from now on it is the newest. The checkpoints
    /// before stay as they are. Blocks on the disk.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn publish(&self, manifest: &Manifest) -> Result<(), DurableError> {
        self.place(self.prepare(manifest)?)
    }

    /// The first half of [`CheckpointStore::publish`]: all that may fail and change nothing.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn prepare(&self, manifest: &Manifest) -> Result<Prepared, DurableError> {
        let temporary = self.dir.join(format!("checkpoint-{:020}.tmp", manifest.epoch));
        let text = manifest::encode(manifest)
            .map_err(|error| DurableError::io("encode", &temporary)(error.into()))?;
        // After a crash in the middle of a rename it may be a second name of what was published:
        // that must not be written over.
        match self.storage.remove(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(DurableError::io("remove", &temporary)(error));
            }
            _ => {}
        }
        let text = text.as_bytes();
        let write = DurableError::io("write", &temporary);
        self.create(&temporary, |file| file.append(text).map_err(write))?;
        fault::point("snapshot_manifest");
        // Parts have to be reachable before the manifest can be.
        self.storage.sync_dir(&self.dir).map_err(DurableError::io("sync", &self.dir))?;
        Ok(Prepared { epoch: manifest.epoch, temporary })
    }

    /// The second half: after an error nobody knows whether it is the newest checkpoint, before the
    /// next start.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn place(&self, prepared: Prepared) -> Result<(), DurableError> {
        for attempt in 0.. {
            let path = self.dir.join(manifest_name(prepared.epoch, attempt));
            match self.storage.rename_new(&prepared.temporary, &path) {
                Ok(()) => break,
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(DurableError::io("rename", &path)(error)),
            }
        }
        self.storage.sync_dir(&self.dir).map_err(DurableError::io("sync", &self.dir))
    }

    /// Writes a checkpoint of another store into this one.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn copy(&self, checkpoint: &Checkpoint) -> Result<(), DurableError> {
        let mut manifest = checkpoint.manifest.clone();
        let mut parts = Vec::with_capacity(manifest.parts.len());
        let mut rest = checkpoint.state.iter().peekable();
        while let Some((operator, _)) = rest.peek().copied() {
            // Pieces of one part, or of several whose groups follow each other.
            let mut last = None;
            let pieces = std::iter::from_fn(|| {
                let (_, saved) = rest.next_if(|(name, saved)| {
                    let follows = last.is_none() || saved.groups.first().map(|g| g.0) > last;
                    name == operator && follows
                })?;
                last = saved.groups.last().map(|g| g.0);
                Some(saved.clone())
            });
            parts.extend(self.write_pieces(operator, pieces)?);
        }
        manifest.parts = parts;
        self.publish(&manifest)
    }

    /// The newest checkpoint that is whole, read into memory.
    ///
    /// # Errors
    /// Where the directory cannot be listed, and for a checkpoint of another version's format: it
    /// may be newer than all that can be read, so passing it over would be no recovery.
    pub fn latest(&self) -> Result<Option<Checkpoint>, DurableError> {
        Ok(self.newest_whole()?.0)
    }

    /// [`CheckpointStore::latest`] at a start: newer ones, which are damaged, are set aside, for
    /// the doctor. Where none is whole they stay, because all of them say how far state was.
    ///
    /// # Errors
    /// As [`CheckpointStore::latest`], and those of the file system.
    pub fn recover(&self) -> Result<Option<Checkpoint>, DurableError> {
        let (found, damaged) = self.newest_whole()?;
        if found.is_none() || damaged.is_empty() {
            return Ok(found);
        }
        for name in damaged {
            let path = self.dir.join(&name);
            let aside = self.dir.join(format!("{ASIDE}{name}"));
            self.storage.rename(&path, &aside).map_err(DurableError::io("rename", &path))?;
        }
        self.storage.sync_dir(&self.dir).map_err(DurableError::io("sync", &self.dir))?;
        Ok(found)
    }

    /// Whether all files of a checkpoint that are there can be opened: if one cannot (there are too
    /// many open files, or it is somebody else's), that says nothing of what is in it.
    fn opens(&self, epoch: Epoch, name: &str) -> bool {
        let opens = |file: &str| match std::fs::File::open(self.dir.join(file)) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        let parts = self.manifest(epoch, name).map(|manifest| manifest.parts).unwrap_or_default();
        opens(name) && parts.iter().all(|part| opens(&part.file))
    }

    /// The newest checkpoint that is whole, and the names of newer ones, which are damaged.
    fn newest_whole(&self) -> Result<(Option<Checkpoint>, Vec<String>), DurableError> {
        let (mut damaged, mut names) = (Vec::new(), Vec::new());
        for (epoch, name) in self.manifests()?.into_iter().rev() {
            match self.load(epoch, &name) {
                Ok((manifest, state)) => {
                    return Ok((Some(Checkpoint { manifest, state, damaged }), names));
                }
                Err(Unusable::OtherFormat(format)) => return Err(self.other_format(&name, format)),
                Err(Unusable::Damaged(reason)) => {
                    tracing::warn!(epoch, reason, "checkpoint is not whole, trying the one before");
                    damaged.push(format!("{name}: {reason}"));
                    if self.opens(epoch, &name) {
                        names.push(name);
                    }
                }
            }
        }
        Ok((None, names))
    }

    /// Names of manifests that starts have set aside, oldest first, with their epochs.
    ///
    /// # Errors
    /// Where the directory cannot be listed.
    pub(crate) fn aside(&self) -> Result<Vec<(Epoch, String)>, DurableError> {
        let epoch = |name: &String| manifest_epoch(name.strip_prefix(ASIDE)?);
        let names = self.names()?.into_iter();
        let mut found: Vec<_> = names.filter_map(|name| Some((epoch(&name)?, name))).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// The newest manifest that can be read, without the state that it names.
    pub(crate) fn newest_manifest(&self) -> Option<Manifest> {
        let manifests = self.manifests().ok()?.into_iter().rev();
        let mut read = manifests.filter_map(|(epoch, name)| self.manifest(epoch, &name).ok());
        read.next()
    }

    /// The newest epoch of which there is a checkpoint, whole or not; 0 without one.
    ///
    /// # Errors
    /// Where the directory cannot be listed.
    pub(crate) fn newest_epoch(&self) -> Result<Epoch, DurableError> {
        let all = self.manifests()?.into_iter().chain(self.aside()?);
        Ok(all.map(|(epoch, _)| epoch).max().unwrap_or(0))
    }

    fn other_format(&self, name: &str, format: u32) -> DurableError {
        let reason = format!(
            "{name} is of format {format}, this version reads format {}. Go on with the version \
             that wrote it. To start without state, from what the journal has: move this folder \
             away, and then let `tidegate doctor data --data {} --salvage NEW_FOLDER` make a \
             folder that begins where the journal does",
            manifest::FORMAT,
            self.dir.parent().unwrap_or(&self.dir).display()
        );
        DurableError::Mismatch { path: self.dir.clone(), reason }
    }

    /// Deletes all but the newest `keep` (at least one) whole checkpoints, and files that belong to
    /// none of them nor to `also`, the parts of checkpoints that are being made; of manifests that
    /// were set aside the newest `keep` stay. Returns the epoch of the oldest that is kept.
    ///
    /// # Errors
    /// Those of the file system; what could not be deleted is tried again the next time.
    pub fn prune(
        &self,
        keep: usize,
        also: &BTreeSet<String>,
    ) -> Result<Option<Epoch>, DurableError> {
        let mut kept: BTreeSet<String> = also.clone();
        let mut oldest = None;
        let mut whole = 0;
        for (epoch, name) in self.manifests()?.into_iter().rev() {
            if whole >= keep.max(1) {
                break;
            }
            match self.manifest(epoch, &name) {
                Ok(manifest) if manifest.parts.iter().all(|part| self.has(part)) => {
                    whole += 1;
                    kept.extend(manifest.parts.into_iter().map(|part| part.file));
                    kept.insert(name);
                    oldest = Some(epoch);
                }
                // Whoever can read it shall find it whole.
                Err(Unusable::OtherFormat(format)) => return Err(self.other_format(&name, format)),
                _ => {}
            }
        }
        if whole == 0 {
            return Ok(None);
        }
        let of_ours =
            |name: &String| name.starts_with("checkpoint-") || part_number(name).is_some();
        let mut names = self.names()?;
        names.retain(|name| of_ours(name) && !kept.contains(name));
        names.extend(self.aside()?.into_iter().rev().skip(keep.max(1)).map(|(_, name)| name));
        // "checkpoint-" sorts before "part-": a manifest goes before what it names.
        names.sort_unstable();
        if names.is_empty() {
            return Ok(oldest);
        }
        fault::point("before_gc");
        for name in names {
            let path = self.dir.join(name);
            self.storage.remove(&path).map_err(DurableError::io("remove", &path))?;
            fault::point("mid_gc");
        }
        self.storage.sync_dir(&self.dir).map_err(DurableError::io("sync", &self.dir))?;
        Ok(oldest)
    }

    /// Removes files of a checkpoint that is not made after all; those that cannot be removed now
    /// go with the next [`CheckpointStore::prune`].
    pub(crate) fn discard<'a>(&self, parts: impl Iterator<Item = &'a PartRef>) {
        for part in parts {
            let path = self.dir.join(&part.file);
            if let Err(error) = self.storage.remove(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove a file");
            }
        }
    }

    /// Writes a whole file, or leaves none: half of one on a full disk would keep it full.
    fn names(&self) -> Result<Vec<String>, DurableError> {
        let list = || -> std::io::Result<Vec<String>> {
            std::fs::read_dir(&self.dir)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        };
        list().map_err(DurableError::io("list", &self.dir))
    }

    /// Manifests, oldest first.
    fn manifests(&self) -> Result<Vec<(Epoch, String)>, DurableError> {
        let mut found: Vec<_> = self
            .names()?
            .into_iter()
            .filter_map(|name| Some((manifest_epoch(&name)?, name)))
            .collect();
        found.sort_unstable();
        Ok(found)
    }

    fn manifest(&self, epoch: Epoch, name: &str) -> Result<Manifest, Unusable> {
        let text = std::fs::read_to_string(self.dir.join(name))
            .map_err(|error| Unusable::Damaged(error.to_string()))?;
        let manifest = manifest::decode(&text)?;
        if manifest.epoch != epoch {
            return Err("the manifest is of another epoch than its name says".into());
        }
        Ok(manifest)
    }

    fn has(&self, part: &PartRef) -> bool {
        std::fs::metadata(self.dir.join(&part.file)).is_ok_and(|file| file.len() == part.bytes)
    }

    fn load(
        &self,
        epoch: Epoch,
        name: &str,
    ) -> Result<(Manifest, Vec<(String, SavedRows)>), Unusable> {
        let manifest = self.manifest(epoch, name)?;
        let mut state = Vec::with_capacity(manifest.parts.len());
        for part in &manifest.parts {
            let pieces = self.pieces(part);
            let pieces =
                pieces.map_err(|error| Unusable::Damaged(format!("{}: {error}", part.file)))?;
            state.extend(pieces.into_iter().map(|piece| (part.operator.clone(), piece)));
        }
        Ok((manifest, state))
    }

    fn pieces(&self, part: &PartRef) -> Result<Vec<SavedRows>, String> {
        let bytes = std::fs::read(self.dir.join(&part.file)).map_err(|error| error.to_string())?;
        if bytes.len() as u64 != part.bytes || crc32fast::hash(&bytes) != part.crc32 {
            return Err("the content is not what was saved".into());
        }
        let read = part::decode(&bytes)?;
        if read.operator != part.operator {
            return Err(format!("it is the state of {}", read.operator));
        }
        Ok(part::only(&read.pieces, &part.group_set()))
    }
}

/// Before the name of a manifest that was set aside.
const ASIDE: &str = "damaged-";

fn manifest_name(epoch: Epoch, attempt: u32) -> String {
    format!("checkpoint-{epoch:020}-{attempt:04}.json")
}

fn manifest_epoch(name: &str) -> Option<Epoch> {
    let name = name.strip_prefix("checkpoint-")?.strip_suffix(".json")?;
    // Format 1 had no attempts in its names.
    name.split('-').next()?.parse().ok()
}

fn part_name(number: u64) -> String {
    format!("part-{number:020}.tgs")
}

fn part_number(name: &str) -> Option<u64> {
    name.strip_prefix("part-")?.strip_suffix(".tgs")?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::part::tests::saved;
    use super::*;
    use crate::journal::AppendFile;
    use crate::journal::storage::testing::Appending;

    /// A checkpoint of one operator whose groups 1 and 2 have rows of this tag.
    fn save(store: &CheckpointStore, epoch: Epoch, tag: &str) {
        let parts = vec![store.write_part("p/step", &saved(&[(1, 2), (2, 1)], tag)).unwrap()];
        let manifest = Manifest { format: manifest::FORMAT, epoch, parts, ..Manifest::default() };
        store.publish(&manifest).unwrap();
    }

    fn state(tag: &str) -> Vec<(String, SavedRows)> {
        vec![("p/step".into(), saved(&[(1, 2), (2, 1)], tag))]
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        let mut files: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| !path.ends_with("lock"))
            .collect();
        files.sort();
        files
    }

    #[test]
    fn the_newest_comes_back_and_old_ones_are_pruned() {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(dir.path()).unwrap();
        assert_eq!(store.latest().unwrap(), None);
        for epoch in [3, 9, 12] {
            save(&store, epoch, &epoch.to_string());
        }
        let latest = store.latest().unwrap().unwrap();
        assert_eq!((latest.manifest.epoch, &latest.state), (12, &state("12")));
        let making = store.write_part("p/step", &saved(&[(1, 1)], "later")).unwrap();
        std::fs::write(dir.path().join(part_name(99)), "orphan").unwrap();
        let oldest = store.prune(2, &BTreeSet::from([making.file.clone()])).unwrap();
        assert_eq!(oldest, Some(9));
        assert_eq!(files(dir.path()).len(), 2 * 2 + 1);
        assert_eq!(store.latest().unwrap().unwrap(), latest);
        store.prune(2, &BTreeSet::new()).unwrap();
        assert_eq!(files(dir.path()).len(), 2 * 2);
        assert!(matches!(CheckpointStore::open(dir.path()), Err(DurableError::InUse { .. })));
    }

    /// Groups that did not change stay in the file of the checkpoint before, which pruning keeps.
    #[test]
    fn a_checkpoint_can_lean_on_the_files_of_older_ones() {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(dir.path()).unwrap();
        let mut holdings = holdings::Holdings::default();
        for (epoch, groups) in [(1, &[(1, 2), (2, 1), (7, 3)][..]), (2, &[(2, 4)]), (3, &[(7, 0)])]
        {
            let tag = format!("e{epoch}");
            holdings.apply(store.write_part("p/step", &saved(groups, &tag)).unwrap());
            let manifest = Manifest {
                format: manifest::FORMAT,
                epoch,
                parts: holdings.parts(),
                ..Manifest::default()
            };
            store.publish(&manifest).unwrap();
            store.prune(1, &BTreeSet::new()).unwrap();
        }
        drop(store);
        let store = CheckpointStore::open(dir.path()).unwrap();
        let latest = store.latest().unwrap().unwrap();
        let rows: Vec<_> = latest.state.into_iter().map(|s| s.1).collect();
        let empty = saved(&[(7, 0)], "e3");
        assert_eq!(rows, [saved(&[(1, 2)], "e1"), saved(&[(2, 4)], "e2"), empty]);
        // A number is never given twice.
        assert_eq!(store.write_part("p/step", &saved(&[], "")).unwrap().file, part_name(4));
    }

    /// Pieces are read as they were written, and a copy has as few files.
    #[test]
    fn pieces_come_back_one_by_one_and_a_copy_has_them_in_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(dir.path().join("from")).unwrap();
        let pieces = |tag: &str| {
            [[(1, 2), (2, 1)], [(3, 1), (4, 0)], [(7, 3), (9, 1)]].map(|groups| saved(&groups, tag))
        };
        let mut parts = Vec::new();
        for operator in ["p/a", "p/b"] {
            parts.extend(store.write_pieces(operator, pieces(operator).into_iter()).unwrap());
            // A newer part has a group anew: what is around it stays in two views of one piece.
            parts.push(store.write_part(operator, &saved(&[(2, 5)], "new")).unwrap());
        }
        let mut holdings = holdings::Holdings::default();
        parts.into_iter().for_each(|part| holdings.apply(part));
        let parts = holdings.parts();
        let manifest =
            Manifest { format: manifest::FORMAT, epoch: 3, parts, ..Manifest::default() };
        store.publish(&manifest).unwrap();
        let found = store.latest().unwrap().unwrap();
        let groups = |name: &str| -> Vec<Vec<(u16, u64)>> {
            let own = found.state.iter().filter(|(operator, _)| operator == name);
            own.map(|(_, piece)| piece.groups.clone()).collect()
        };
        let one = vec![vec![(1, 2)], vec![(3, 1), (4, 0)], vec![(7, 3), (9, 1)], vec![(2, 5)]];
        assert_eq!((groups("p/a"), groups("p/b")), (one.clone(), one));
        let to = CheckpointStore::open(dir.path().join("to")).unwrap();
        to.copy(&found).unwrap();
        let copied = to.latest().unwrap().unwrap();
        assert_eq!(copied.state, found.state);
        assert_eq!(copied.manifest.parts.len(), 4);
    }

    #[test]
    fn the_same_epoch_can_be_saved_again_and_nothing_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(dir.path()).unwrap();
        save(&store, 5, "first");
        let before: Vec<_> =
            files(dir.path()).iter().map(|f| (f.clone(), std::fs::read(f).unwrap())).collect();
        save(&store, 5, "second");
        for (file, content) in before {
            assert_eq!(std::fs::read(&file).unwrap(), content, "{file:?}");
        }
        assert_eq!(store.latest().unwrap().unwrap().state, state("second"));
        store.prune(1, &BTreeSet::new()).unwrap();
        assert_eq!(files(dir.path()).len(), 2);
        assert_eq!(store.latest().unwrap().unwrap().state, state("second"));
    }

    #[test]
    fn damage_anywhere_falls_back_to_the_checkpoint_before_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(dir.path()).unwrap();
        save(&store, 1, "old");
        let old = files(dir.path());
        save(&store, 2, "new");
        let mut tried = 0;
        for path in files(dir.path()).into_iter().filter(|path| !old.contains(path)) {
            let whole = std::fs::read(&path).unwrap();
            for at in 0..whole.len() {
                let mut torn = whole.clone();
                torn[at] ^= 0x10;
                for content in [&torn[..], &whole[..at]] {
                    std::fs::write(&path, content).unwrap();
                    let got = store.latest().unwrap().unwrap();
                    if got.manifest.epoch == 2 {
                        // Only white space or the line end after the seal can go unnoticed.
                        assert_eq!(got.state, state("new"));
                        assert!(at + 1 == whole.len(), "{path:?} at {at}");
                    } else {
                        assert_eq!((got.manifest.epoch, got.state), (1, state("old")));
                        assert_eq!(got.damaged.len(), 1);
                    }
                }
            }
            std::fs::remove_file(&path).unwrap();
            assert_eq!(store.latest().unwrap().unwrap().manifest.epoch, 1);
            std::fs::write(&path, &whole).unwrap();
            tried += 1;
        }
        assert_eq!(tried, 2);
        assert_eq!(store.latest().unwrap().unwrap().manifest.epoch, 2);
    }

    /// Its parts have their lengths, and their manifest is sound: nothing but reading them tells.
    #[test]
    fn a_damaged_checkpoint_is_set_aside_and_the_whole_one_is_kept_beside_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(dir.path()).unwrap();
        let epochs = || store.manifests().unwrap().iter().map(|m| m.0).collect::<Vec<_>>();
        save(&store, 1, "whole");
        save(&store, 2, "damaged");
        let newest = dir.path().join(part_name(2));
        let mut torn = std::fs::read(&newest).unwrap();
        let middle = torn.len() / 2;
        torn[middle] ^= 1;
        std::fs::write(&newest, torn).unwrap();
        let found = store.recover().unwrap().unwrap();
        assert_eq!((found.manifest.epoch, found.damaged.len()), (1, 1));
        save(&store, 3, "next");
        assert_eq!(store.prune(2, &BTreeSet::new()).unwrap(), Some(1));
        assert_eq!(epochs(), [1, 3]);
        let aside = store.aside().unwrap();
        assert_eq!(aside, [(2, format!("{ASIDE}{}", manifest_name(2, 0)))]);
        // The next one may be damaged as well.
        std::fs::write(dir.path().join(part_name(3)), "").unwrap();
        assert_eq!(store.recover().unwrap().unwrap().state, state("whole"));
        assert_eq!(store.newest_epoch().unwrap(), 3, "state was that far");
        // None is whole: they stay where they are.
        std::fs::write(dir.path().join(part_name(1)), "").unwrap();
        assert_eq!((store.recover().unwrap(), epochs()), (None, vec![1]));
        // Only the newest of those set aside are kept.
        for epoch in [4, 5] {
            save(&store, epoch, "later");
        }
        std::fs::write(dir.path().join(part_name(5)), "").unwrap();
        store.recover().unwrap();
        store.prune(2, &BTreeSet::new()).unwrap();
        assert_eq!(store.aside().unwrap().iter().map(|a| a.0).collect::<Vec<_>>(), [3, 5]);
    }

    /// As with too many open files; what cannot be opened here names itself.
    #[test]
    fn a_checkpoint_that_cannot_be_opened_now_is_passed_over_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(dir.path()).unwrap();
        save(&store, 1, "older");
        save(&store, 2, "newer");
        let (part, elsewhere) = (dir.path().join(part_name(2)), dir.path().join("elsewhere"));
        std::fs::rename(&part, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&part, &part).unwrap();
        assert_eq!(store.recover().unwrap().unwrap().state, state("older"));
        assert_eq!(store.aside().unwrap(), []);
        std::fs::rename(&elsewhere, &part).unwrap();
        assert_eq!(store.recover().unwrap().unwrap().state, state("newer"));
    }

    /// A crash in the middle of a rename leaves two names of one file.
    #[test]
    fn a_temporary_that_is_a_second_name_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(dir.path()).unwrap();
        save(&store, 7, "old");
        let published = dir.path().join(manifest_name(7, 0));
        let text = std::fs::read(&published).unwrap();
        let temporary = dir.path().join("checkpoint-00000000000000000007.tmp");
        std::fs::hard_link(&published, &temporary).unwrap();
        save(&store, 7, "new");
        assert_eq!(std::fs::read(&published).unwrap(), text);
        assert_eq!(store.latest().unwrap().unwrap().state, state("new"));
        assert!(!temporary.exists());
    }

    #[test]
    fn half_of_a_file_does_not_stay_on_a_disk_that_is_full() {
        let dir = tempfile::tempdir().unwrap();
        // The second half of each write finds no room.
        let half = Appending(|file: &mut dyn AppendFile, bytes: &[u8]| {
            file.append(&bytes[..bytes.len() / 2])?;
            Err(std::io::ErrorKind::StorageFull.into())
        });
        let store = CheckpointStore::open_on(Arc::new(half), dir.path()).unwrap();
        let error = store.write_part("p/step", &saved(&[(1, 2)], "x")).unwrap_err();
        assert!(matches!(error, DurableError::Io { action: "write", .. }), "{error}");
        let manifest = Manifest { format: manifest::FORMAT, epoch: 3, ..Manifest::default() };
        assert!(store.publish(&manifest).is_err());
        assert_eq!(files(dir.path()), [] as [PathBuf; 0]);
    }

    #[test]
    fn another_format_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(dir.path()).unwrap();
        let line = r#"{"format":1,"epoch":7,"parts":[],"meta":null}"#;
        let seal = format!("{{\"crc32\":{}}}", crc32fast::hash(line.as_bytes()));
        let old = dir.path().join("checkpoint-00000000000000000007.json");
        std::fs::write(&old, format!("{line}\n{seal}\n")).unwrap();
        for error in [store.latest().unwrap_err(), store.prune(1, &BTreeSet::new()).unwrap_err()] {
            let text = error.to_string();
            assert!(text.contains("of format 1, this version reads format 5"), "{text}");
            let data = dir.path().parent().unwrap().display();
            let help = format!("`tidegate doctor data --data {data} --salvage NEW_FOLDER`");
            assert!(text.contains(&help), "{text}");
        }
        assert!(old.exists());
    }
}
