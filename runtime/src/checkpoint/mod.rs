//! Checkpoints: the state of all stateful operators at one epoch, as files with a manifest.
//!
//! Invariant: a checkpoint exists if and only if its manifest `checkpoint-EPOCH.json` does, and the
//! manifest is renamed into place only after every part is durable. A part is never overwritten
//! once a manifest may name it. Whatever is incomplete or damaged is passed over with a warning, in
//! favour of the newest checkpoint that is whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidegate_operators::Epoch;

use crate::fault;
use crate::journal::storage::{DirLock, lock_dir};
use crate::journal::{Disk, DurableError, Storage};

/// Version of the manifest's format.
const FORMAT: u32 = 1;

/// What is in a checkpoint; the first line of the manifest file, followed by a line with its CRC.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    epoch: Epoch,
    parts: Vec<Part>,
    meta: serde_json::Value,
}

#[derive(Debug, Serialize, Deserialize)]
struct Part {
    name: String,
    file: String,
    bytes: u64,
    crc32: u32,
}

#[derive(Serialize, Deserialize)]
struct Seal {
    crc32: u32,
}

/// A checkpoint that was read and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// State as it was when this epoch was complete.
    pub epoch: Epoch,
    /// Parts by name, in the order in which they were saved.
    pub parts: Vec<(String, Vec<u8>)>,
    /// What the caller wanted to remember: plan fingerprint, offsets, table commits.
    pub meta: serde_json::Value,
}

/// The checkpoints of one instance, in one directory.
pub struct CheckpointStore {
    dir: PathBuf,
    storage: Arc<dyn Storage>,
    /// `None`: only looked at.
    _lock: Option<DirLock>,
}

/// A checkpoint as a doctor finds it.
pub(crate) struct Surveyed {
    pub(crate) epoch: Epoch,
    /// Name of the manifest's file.
    pub(crate) manifest: String,
    /// The checkpoint, or why it is not whole.
    pub(crate) found: Result<Checkpoint, String>,
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
        Ok(Self { dir, storage, _lock: Some(lock) })
    }

    /// The store as a doctor reads it: without its lock, so beside a running instance too.
    pub(crate) fn look_at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), storage: Arc::new(Disk), _lock: None }
    }

    /// Every checkpoint, oldest first. One that is removed meanwhile is left out.
    ///
    /// # Errors
    /// Only where the directory cannot be listed.
    pub(crate) fn survey(&self) -> Result<Vec<Surveyed>, DurableError> {
        let mut all = Vec::new();
        for (epoch, manifest) in self.manifests()? {
            let found = self.load(epoch, &manifest);
            if found.is_ok() || self.dir.join(&manifest).exists() {
                all.push(Surveyed { epoch, manifest, found });
            }
        }
        Ok(all)
    }

    /// Saves a checkpoint; it is durable when this returns. Blocks on the disk.
    ///
    /// # Errors
    /// Those of the file system. The checkpoints before stay as they were.
    pub fn save(
        &self,
        epoch: Epoch,
        parts: &[(String, Vec<u8>)],
        meta: serde_json::Value,
    ) -> Result<(), DurableError> {
        let names = self.names()?;
        // A second attempt at an epoch must not touch the files of the first.
        let prefix = (0..)
            .map(|attempt| format!("state-{epoch:020}-{attempt:04}-"))
            .find(|prefix| !names.iter().any(|name| name.starts_with(prefix.as_str())))
            .expect("there are fewer files than numbers");
        let mut listed = Vec::with_capacity(parts.len());
        for (number, (name, bytes)) in parts.iter().enumerate() {
            let file = format!("{prefix}{number:05}.bin");
            self.write(&self.dir.join(&file), bytes)?;
            fault::point("snapshot_file");
            listed.push(Part {
                name: name.clone(),
                file,
                bytes: bytes.len() as u64,
                crc32: crc32fast::hash(bytes),
            });
        }
        let manifest = Manifest { format: FORMAT, epoch, parts: listed, meta };
        let path = self.dir.join(manifest_name(epoch));
        let mut text = serde_json::to_string(&manifest).map_err(json_error(&path))?;
        let seal = Seal { crc32: crc32fast::hash(text.as_bytes()) };
        text.push('\n');
        text += &serde_json::to_string(&seal).map_err(json_error(&path))?;
        text.push('\n');
        let temporary = self.dir.join(format!("checkpoint-{epoch:020}.tmp"));
        self.write(&temporary, text.as_bytes())?;
        // Parts have to be reachable before the manifest can be.
        self.storage.sync_dir(&self.dir).map_err(DurableError::io("sync", &self.dir))?;
        fault::point("snapshot_manifest");
        self.storage.rename(&temporary, &path).map_err(DurableError::io("rename", &path))?;
        self.storage.sync_dir(&self.dir).map_err(DurableError::io("sync", &self.dir))
    }

    /// The newest checkpoint that is whole, read into memory.
    ///
    /// # Errors
    /// Only where the directory cannot be listed.
    pub fn latest(&self) -> Result<Option<Checkpoint>, DurableError> {
        for (epoch, name) in self.manifests()?.into_iter().rev() {
            match self.load(epoch, &name) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(reason) => {
                    tracing::warn!(epoch, reason, "checkpoint is not whole, trying the one before");
                }
            }
        }
        Ok(None)
    }

    /// Deletes all but the newest `keep` (at least one) whole checkpoints, and files that belong to
    /// none of them. Call it after a save, never beside one.
    ///
    /// # Errors
    /// Those of the file system; what could not be deleted is tried again the next time.
    pub fn prune(&self, keep: usize) -> Result<(), DurableError> {
        let mut kept: Vec<String> = Vec::new();
        let (mut whole, mut kept_files) = (0, Vec::new());
        for (epoch, name) in self.manifests()?.into_iter().rev() {
            if whole >= keep.max(1) {
                break;
            }
            let Ok(manifest) = self.manifest(epoch, &name) else { continue };
            if !manifest.parts.iter().all(|part| self.has(part)) {
                continue;
            }
            whole += 1;
            kept_files.extend(manifest.parts.into_iter().map(|part| part.file));
            kept.push(name);
        }
        if whole == 0 {
            return Ok(());
        }
        kept.extend(kept_files);
        let mut names: Vec<_> = self
            .names()?
            .into_iter()
            .filter(|name| name.starts_with("checkpoint-") || name.starts_with("state-"))
            .filter(|name| !kept.contains(name))
            .collect();
        // "checkpoint-" sorts before "state-": a manifest goes before what it names.
        names.sort_unstable();
        if !names.is_empty() {
            fault::point("before_gc");
        }
        for name in names {
            let path = self.dir.join(name);
            self.storage.remove(&path).map_err(DurableError::io("remove", &path))?;
            fault::point("mid_gc");
        }
        self.storage.sync_dir(&self.dir).map_err(DurableError::io("sync", &self.dir))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), DurableError> {
        let mut file = self.storage.create(path).map_err(DurableError::io("create", path))?;
        file.append(bytes).map_err(DurableError::io("write", path))?;
        file.sync().map_err(DurableError::io("sync", path))
    }

    fn names(&self) -> Result<Vec<String>, DurableError> {
        let list = || -> std::io::Result<Vec<String>> {
            std::fs::read_dir(&self.dir)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        };
        list().map_err(DurableError::io("list", &self.dir))
    }

    fn manifests(&self) -> Result<Vec<(Epoch, String)>, DurableError> {
        let mut found: Vec<_> = self
            .names()?
            .into_iter()
            .filter_map(|name| {
                let number = name.strip_prefix("checkpoint-")?.strip_suffix(".json")?;
                Some((number.parse().ok()?, name))
            })
            .collect();
        found.sort_unstable();
        Ok(found)
    }

    fn manifest(&self, epoch: Epoch, name: &str) -> Result<Manifest, String> {
        let text =
            std::fs::read_to_string(self.dir.join(name)).map_err(|error| error.to_string())?;
        let (line, rest) = text.split_once('\n').ok_or("the manifest is cut off")?;
        let seal: Seal =
            serde_json::from_str(rest).map_err(|_| "the manifest has no valid checksum")?;
        if seal.crc32 != crc32fast::hash(line.as_bytes()) {
            return Err("the checksum of the manifest is wrong".into());
        }
        let manifest: Manifest = serde_json::from_str(line).map_err(|error| error.to_string())?;
        if manifest.format != FORMAT || manifest.epoch != epoch {
            return Err("the manifest is of another format or epoch".into());
        }
        Ok(manifest)
    }

    fn has(&self, part: &Part) -> bool {
        std::fs::metadata(self.dir.join(&part.file)).is_ok_and(|file| file.len() == part.bytes)
    }

    fn load(&self, epoch: Epoch, name: &str) -> Result<Checkpoint, String> {
        let manifest = self.manifest(epoch, name)?;
        let mut parts = Vec::with_capacity(manifest.parts.len());
        for part in manifest.parts {
            let bytes = std::fs::read(self.dir.join(&part.file))
                .map_err(|error| format!("{}: {error}", part.file))?;
            if bytes.len() as u64 != part.bytes || crc32fast::hash(&bytes) != part.crc32 {
                return Err(format!("{}: the content is not what was saved", part.file));
            }
            parts.push((part.name, bytes));
        }
        Ok(Checkpoint { epoch, parts, meta: manifest.meta })
    }
}

fn manifest_name(epoch: Epoch) -> String {
    format!("checkpoint-{epoch:020}.json")
}

fn json_error(path: &Path) -> impl FnOnce(serde_json::Error) -> DurableError {
    let of_file = DurableError::io("encode", path);
    move |error| of_file(error.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parts(tag: &str) -> Vec<(String, Vec<u8>)> {
        vec![
            ("pipeline/step/0".into(), format!("state of {tag}").into_bytes()),
            ("empty".into(), vec![]),
        ]
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
            let meta = serde_json::json!({ "plan": "p", "epoch": epoch });
            store.save(epoch, &parts(&epoch.to_string()), meta).unwrap();
        }
        let latest = store.latest().unwrap().unwrap();
        assert_eq!((latest.epoch, &latest.parts), (12, &parts("12")));
        assert_eq!(latest.meta["epoch"], 12);
        std::fs::write(dir.path().join("state-00000000000000000099-0000-00000.bin"), "orphan")
            .unwrap();
        store.prune(2).unwrap();
        assert_eq!(files(dir.path()).len(), 2 * 3);
        assert_eq!(store.latest().unwrap().unwrap(), latest);
        assert!(matches!(CheckpointStore::open(dir.path()), Err(DurableError::InUse { .. })));
    }

    #[test]
    fn the_same_epoch_can_be_saved_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = CheckpointStore::open(dir.path()).unwrap();
        store.save(5, &parts("first"), serde_json::Value::Null).unwrap();
        store.save(5, &parts("second"), serde_json::Value::Null).unwrap();
        assert_eq!(store.latest().unwrap().unwrap().parts, parts("second"));
        store.prune(2).unwrap();
        assert_eq!(files(dir.path()).len(), 3);
    }

    #[test]
    fn damage_anywhere_falls_back_to_the_checkpoint_before() {
        let dir = tempfile::tempdir().unwrap();
        {
            let store = CheckpointStore::open(dir.path()).unwrap();
            store.save(1, &parts("old"), serde_json::Value::Null).unwrap();
            store.save(2, &parts("new"), serde_json::json!({"a": [1, 2]})).unwrap();
        }
        let store = CheckpointStore::open(dir.path()).unwrap();
        let mut tried = 0;
        for path in files(dir.path()) {
            if !path.to_string_lossy().contains("0000002") {
                continue;
            }
            let whole = std::fs::read(&path).unwrap();
            for at in 0..whole.len() {
                let mut torn = whole.clone();
                torn[at] ^= 0x10;
                for content in [&torn[..], &whole[..at]] {
                    std::fs::write(&path, content).unwrap();
                    let got = store.latest().unwrap().unwrap();
                    if got.epoch == 2 {
                        // Only white space or the line end after the seal can go unnoticed.
                        assert_eq!(got.parts, parts("new"));
                        assert!(at + 1 == whole.len(), "{path:?} at {at}");
                    } else {
                        assert_eq!((got.epoch, got.parts), (1, parts("old")));
                    }
                }
            }
            std::fs::remove_file(&path).unwrap();
            assert_eq!(store.latest().unwrap().unwrap().epoch, 1);
            std::fs::write(&path, &whole).unwrap();
            tried += 1;
        }
        assert_eq!(tried, 3);
        assert_eq!(store.latest().unwrap().unwrap().epoch, 2);
    }
}
