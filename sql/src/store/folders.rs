//! Files and their names in local folders, and when they are durable.
//!
//! A name survives a power loss when its folder was synced after it was made. Invariants:
//! - Nobody goes on from a name whose folder could not be synced: what was made is noted before it
//!   is made, and synced by whoever uses it next ([`Folders::make`]).
//! - After a failed sync nothing more is written ([`Folders::sync`]): the kernel may have dropped
//!   what it could not write, and the next sync would succeed without it. Where no file could be
//!   opened nothing was synced, and it may be tried again.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::rename_new;
#[cfg(not(test))]
use crate::fault;

/// Who is told, once, of a sync that failed.
pub type OnFailedSync = Arc<dyn Fn(&str) + Send + Sync>;

/// The folders of one store.
#[derive(Default)]
pub(super) struct Folders {
    /// Folders that were made, and whose own names may not be durable.
    made: Mutex<BTreeSet<PathBuf>>,
    /// Why nothing is written any more.
    failed: OnceLock<String>,
    on_failed: OnceLock<OnFailedSync>,
    #[cfg(test)]
    pub(super) probe: tests::Probe,
}

impl std::fmt::Debug for Folders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Folders").field("failed", &self.failed).finish_non_exhaustive()
    }
}

impl Folders {
    /// Has `tell` called at the first sync that fails; the first call of this counts.
    pub(super) fn on_failed(&self, tell: OnFailedSync) {
        let _ = self.on_failed.set(tell);
    }

    /// Makes the names in `folder` durable.
    ///
    /// # Errors
    /// It cannot be opened; or its sync failed, or that of another one before.
    pub(super) fn sync(&self, folder: &Path) -> io::Result<()> {
        if let Some(why) = self.failed.get() {
            return Err(io::Error::other(why.clone()));
        }
        #[cfg(test)]
        self.probe.at(folder, tests::Step::Open)?;
        let opened = File::open(folder)?;
        #[cfg(test)]
        let sync = || self.probe.at(folder, tests::Step::Sync).and_then(|()| opened.sync_all());
        #[cfg(not(test))]
        let sync = || fault::io("tables_sync").and_then(|()| opened.sync_all());
        sync().map_err(|error| {
            let why = format!("{}: sync: {error}", folder.display());
            if self.failed.set(why.clone()).is_ok()
                && let Some(tell) = self.on_failed.get()
            {
                tell(&why);
            }
            io::Error::new(error.kind(), why)
        })?;
        #[cfg(test)]
        self.probe.note(|| tests::Did::Sync(folder.to_owned()));
        Ok(())
    }

    /// Makes a new file; its name is durable when its folder is synced.
    ///
    /// # Errors
    /// There is one, or those of the file system.
    pub(super) fn create(&self, path: &Path) -> io::Result<File> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        #[cfg(test)]
        self.probe.note(|| tests::Did::File(path.to_owned()));
        Ok(file)
    }

    /// Makes what is in `file`, which is at `path`, durable.
    ///
    /// # Errors
    /// Those of the file system.
    #[cfg_attr(not(test), expect(unused_variables, reason = "tests note which file it is"))]
    pub(super) fn sync_file(&self, file: &File, path: &Path) -> io::Result<()> {
        file.sync_all()?;
        #[cfg(test)]
        self.probe
            .note(|| tests::Did::Content(path.to_owned(), fs::read(path).unwrap_or_default()));
        Ok(())
    }

    /// Gives a file another name, in its folder, which has to be synced then.
    ///
    /// # Errors
    /// There is one of that name already that `only_new` keeps, or those of the file system.
    pub(super) fn rename(&self, from: &Path, to: &Path, only_new: bool) -> io::Result<()> {
        if only_new { rename_new(from, to) } else { fs::rename(from, to) }?;
        #[cfg(test)]
        self.probe.note(|| tests::Did::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    /// Makes `folder`, and syncs the parent of every folder that was new.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn make(&self, folder: &Path) -> io::Result<()> {
        // In this order: it is noted before it is there.
        if folder.is_dir() && !self.lock().contains(folder) {
            return Ok(());
        }
        let parent = folder.parent().filter(|p| !p.as_os_str().is_empty());
        if let Some(parent) = parent {
            self.make(parent)?;
        }
        self.lock().insert(folder.to_owned());
        match fs::create_dir(folder) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        #[cfg(test)]
        self.probe.note(|| tests::Did::Folder(folder.to_owned()));
        parent.map_or(Ok(()), |parent| self.sync(parent))?;
        self.lock().remove(folder);
        Ok(())
    }

    /// Makes the names in `root` and everywhere below `root/table` durable. A process that died
    /// between placing a file and syncing its folder leaves a name that a power loss can still
    /// take; whoever goes on from what is visible has to make sure of it first. `see` is shown each
    /// file.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn sync_all(
        &self,
        root: &Path,
        table: &Path,
        mut see: impl FnMut(&Path),
    ) -> io::Result<()> {
        let folder = root.join(table);
        if !folder.is_dir() {
            return Ok(());
        }
        for above in folder.ancestors().skip(1).take_while(|above| above.starts_with(root)) {
            self.sync(above)?;
        }
        let mut folders = vec![folder];
        while let Some(folder) = folders.pop() {
            self.sync(&folder)?;
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                match entry.file_type()?.is_dir() {
                    true => folders.push(entry.path()),
                    false => see(&entry.path()),
                }
            }
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<PathBuf>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What can fail of a sync.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Step {
        Open,
        Sync,
    }

    /// Makes syncs fail, and notes those that did not.
    #[derive(Debug, Default)]
    pub(crate) struct Probe {
        failing: Mutex<Vec<(PathBuf, Step)>>,
        synced: Mutex<Vec<PathBuf>>,
        /// `None`: nobody wants to know.
        did: Mutex<Option<Vec<Did>>>,
    }

    /// What was done to a file or folder, as far as it matters after a power loss.
    #[derive(Clone, Debug)]
    pub(crate) enum Did {
        /// Made a folder, or found it.
        Folder(PathBuf),
        /// Made a file, without content.
        File(PathBuf),
        /// Made what is in a file durable, whatever it is called.
        Content(PathBuf, Vec<u8>),
        Rename(PathBuf, PathBuf),
        /// Made the names in a folder durable.
        Sync(PathBuf),
    }

    impl Probe {
        pub(super) fn note(&self, did: impl FnOnce() -> Did) {
            if let Some(all) = &mut *self.did.lock().unwrap() {
                all.push(did());
            }
        }

        /// What was done since this was asked first.
        pub(crate) fn did(&self) -> Vec<Did> {
            self.did.lock().unwrap().get_or_insert_default().clone()
        }

        /// The next `step` of a folder whose path ends so fails.
        pub(crate) fn fail(&self, folder: &str, step: Step) {
            self.failing.lock().unwrap().push((folder.into(), step));
        }

        /// Folders that were synced since this was asked last.
        pub(crate) fn synced(&self) -> Vec<PathBuf> {
            std::mem::take(&mut *self.synced.lock().unwrap())
        }

        pub(super) fn at(&self, folder: &Path, step: Step) -> io::Result<()> {
            let mut failing = self.failing.lock().unwrap();
            if let Some(at) = failing.iter().position(|f| folder.ends_with(&f.0) && f.1 == step) {
                failing.remove(at);
                // EMFILE, EIO.
                return Err(io::Error::from_raw_os_error(if step == Step::Open { 24 } else { 5 }));
            }
            if step == Step::Sync {
                self.synced.lock().unwrap().push(folder.to_owned());
            }
            Ok(())
        }
    }

    #[test]
    fn a_folder_whose_name_could_not_be_synced_is_synced_by_the_next_who_uses_it() {
        let root = tempfile::tempdir().unwrap();
        let (folders, inner) = (Folders::default(), root.path().join("a/b"));
        folders.probe.fail("a", Step::Open);
        assert!(folders.make(&inner).is_err());
        assert!(inner.is_dir());
        folders.probe.synced();
        folders.make(&inner).unwrap();
        assert_eq!(folders.probe.synced(), [root.path().join("a")]);
        folders.make(&inner).unwrap();
        assert!(folders.probe.synced().is_empty(), "it is durable");
    }

    #[test]
    fn after_a_failed_sync_nothing_is_written_any_more() {
        let root = tempfile::tempdir().unwrap();
        let folders = Folders::default();
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        folders.on_failed(Arc::new(move |why| tell.lock().unwrap().push(why.to_owned())));
        folders.probe.fail("", Step::Open);
        assert!(folders.sync(root.path()).is_err());
        folders.sync(root.path()).unwrap();
        folders.probe.fail("", Step::Sync);
        let first = folders.sync(root.path()).unwrap_err().to_string();
        assert_eq!(folders.sync(root.path()).unwrap_err().to_string(), first);
        assert!(folders.make(&root.path().join("a")).is_err());
        assert_eq!(*told.lock().unwrap(), [first]);
    }
}
