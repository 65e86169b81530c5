//! A disk that forgets what was not synced.
//!
//! The files lie in a real folder, so that whatever only reads them needs no seam. Beside it, this
//! knows of each file what is durable, and of each folder which names are. A crash chooses, by the
//! seed, what survives of the rest: none, all, a torn end, or sectors with holes between them; of
//! names any prefix of what was done to them (file systems with a journal keep that order, and the
//! product counts on it when it trims).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::inject;
use super::marks::Marks;
use super::trace::Trace;
use crate::fuzz::Rng;
use crate::journal::{AppendFile, Storage};
use crate::mutation::{self, Mutation};

/// What survives on its own in a power loss.
const SECTOR_BYTES: usize = 512;

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The system goes on: what was written is there.
    Kill,
    /// Only what was synced is sure.
    PowerLoss,
}

#[derive(Clone, Default)]
struct File {
    data: Vec<u8>,
    synced: Vec<u8>,
}

enum NameChange {
    Set(PathBuf, u64),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf, u64),
}

#[derive(Default)]
struct State {
    files: BTreeMap<u64, File>,
    next_file: u64,
    names: BTreeMap<PathBuf, u64>,
    durable: BTreeMap<PathBuf, u64>,
    /// Not synced, by folder.
    changes: BTreeMap<PathBuf, Vec<NameChange>>,
    rng: Option<Rng>,
    /// Operations until the process dies.
    dies_after: Option<u64>,
    crashed: bool,
    full_until_us: u64,
    now_us: u64,
    failing_syncs: u64,
    /// Longest time of a sync, microseconds.
    sync_us_max: u64,
    operations: u64,
    /// Journal segments that were removed, as they were.
    archive: BTreeMap<PathBuf, Vec<u8>>,
}

/// The disk.
#[derive(Clone)]
pub(crate) struct SimDisk {
    root: PathBuf,
    state: Arc<Mutex<State>>,
    trace: Trace,
    marks: Marks,
}

fn crashed() -> io::Error {
    io::Error::other("the simulated process is dead")
}

impl SimDisk {
    pub(crate) fn new(root: &Path, rng: Rng, trace: Trace, marks: Marks) -> Self {
        let state = State { rng: Some(rng), sync_us_max: 8_000, ..State::default() };
        Self { root: root.to_owned(), state: Arc::new(Mutex::new(state)), trace, marks }
    }

    /// One of its own, of which nobody wants to know what happens.
    pub(crate) fn quiet(root: &Path, rng: Rng) -> Self {
        let trace = Trace::default();
        Self::new(root, rng, trace.clone(), Marks::new(trace))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn shown<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }

    /// Lets the process die at this many operations from now.
    pub(crate) fn die_after(&self, operations: u64) {
        self.lock().dies_after = Some(operations);
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.lock().crashed
    }

    /// The process is dead now.
    pub(crate) fn kill(&self) {
        self.lock().crashed = true;
    }

    /// The disk is full until then.
    pub(crate) fn set_full_until(&self, until_us: u64) {
        self.lock().full_until_us = until_us;
    }

    /// Tells the time.
    pub(crate) fn at(&self, now_us: u64) {
        self.lock().now_us = now_us;
    }

    pub(crate) fn fail_next_sync(&self) {
        self.lock().failing_syncs = 1;
    }

    pub(crate) fn set_sync_us_max(&self, sync_us_max: u64) {
        self.lock().sync_us_max = sync_us_max;
    }

    /// Nothing goes wrong any more.
    pub(crate) fn calm(&self) {
        let mut state = self.lock();
        (state.dies_after, state.full_until_us, state.failing_syncs) = (None, 0, 0);
    }

    /// Counts one operation of anything durable; an error if the process dies at it, with chance
    /// for what still gets done of it.
    pub(crate) fn operation(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.operation().map(drop)
    }

    /// The journal as it ever was: the segments that are there, and those that were removed.
    pub(crate) fn whole_journal(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let state = self.lock();
        let mut all = state.archive.clone();
        for (path, file) in &state.names {
            if is_segment(path) {
                all.insert(path.clone(), state.files[file].data.clone());
            }
        }
        all
    }

    /// Puts a durable file into the folder, which is empty otherwise.
    pub(crate) fn put(&self, path: &Path, data: Vec<u8>) {
        let mut state = self.lock();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, &data).unwrap();
        let number = state.next_file;
        state.next_file += 1;
        state.files.insert(number, File { synced: data.clone(), data });
        state.names.insert(path.to_owned(), number);
        state.durable.insert(path.to_owned(), number);
    }

    /// What is there after the end of the process, written into the folder.
    pub(crate) fn restart(&self, how: Crash) {
        let mut state = self.lock();
        if how == Crash::PowerLoss {
            state.lose_power();
        }
        (state.crashed, state.dies_after, state.failing_syncs) = (false, None, 0);
        let names: BTreeSet<&Path> = state.names.keys().map(PathBuf::as_path).collect();
        remove_others(&self.root, &names);
        for (path, file) in &state.names {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, &state.files[file].data).unwrap();
            let shown = self.shown(path);
            self.trace.bytes(format_args!("found {shown}"), &state.files[file].data);
            if is_segment(path) {
                self.marks.durable(&state.files[file].synced);
            }
        }
    }
}

fn is_segment(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("journal-"))
}

/// Removes all files but these and the locks.
fn remove_others(folder: &Path, names: &BTreeSet<&Path>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            remove_others(&path, names);
        } else if !names.contains(path.as_path()) && !path.ends_with("lock") {
            std::fs::remove_file(&path).unwrap();
        }
    }
}

impl State {
    fn rng(&mut self) -> &mut Rng {
        self.rng.as_mut().unwrap()
    }

    /// `Ok(true)`: do it. `Err`: dead.
    fn operation(&mut self) -> io::Result<()> {
        if self.crashed {
            return Err(crashed());
        }
        self.operations += 1;
        if let Some(left) = &mut self.dies_after {
            if *left == 0 {
                self.crashed = true;
                return Err(crashed());
            }
            *left -= 1;
        }
        Ok(())
    }

    fn room(&mut self) -> io::Result<()> {
        match self.now_us < self.full_until_us {
            true => Err(ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }

    /// The present name of a file; an open file may have been renamed or removed.
    fn name_of(&self, number: u64) -> Option<&Path> {
        self.names.iter().find(|name| *name.1 == number).map(|name| name.0.as_path())
    }

    fn change(&mut self, folder: &Path, change: NameChange) {
        change.apply(&mut self.names);
        self.changes.entry(folder.to_owned()).or_default().push(change);
    }

    fn lose_power(&mut self) {
        for (_, changes) in std::mem::take(&mut self.changes) {
            let kept = self.rng().below(changes.len() + 1);
            changes[..kept].iter().for_each(|change| change.apply(&mut self.durable));
        }
        self.names.clone_from(&self.durable);
        let used: BTreeSet<u64> = self.names.values().copied().collect();
        self.files.retain(|number, _| used.contains(number));
        let mut rng = self.rng.take().unwrap();
        for file in self.files.values_mut() {
            file.data = survivors(file, &mut rng);
            file.synced.clone_from(&file.data);
        }
        self.rng = Some(rng);
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Self::Set(path, file) => {
                names.insert(path.clone(), *file);
            }
            Self::Remove(path) => {
                names.remove(path);
            }
            Self::Rename(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
        }
    }
}

/// What is left of a file.
fn survivors(file: &File, rng: &mut Rng) -> Vec<u8> {
    let same = file.data.iter().zip(&file.synced).take_while(|(a, b)| a == b).count();
    if same == file.data.len() && same == file.synced.len() {
        return file.data.clone();
    }
    match rng.below(5) {
        0 | 1 => file.synced.clone(),
        2 => file.data.clone(),
        // The length is there, some of the sectors are not.
        3 => {
            let mut data = file.data.clone();
            for start in (same..data.len()).step_by(SECTOR_BYTES) {
                let end = (start + SECTOR_BYTES).min(data.len());
                if rng.one_in(2) {
                    let before = file.synced.iter().copied().skip(start);
                    let before = before.chain(std::iter::repeat(0));
                    data[start..end].iter_mut().zip(before).for_each(|(byte, old)| *byte = old);
                }
            }
            data
        }
        // Torn. What is synced stays whole.
        _ => {
            let floor = same.max(file.synced.len().min(file.data.len()));
            match floor > same {
                true => file.synced.clone(),
                false => file.data[..same + rng.below(file.data.len() - same + 1)].to_vec(),
            }
        }
    }
}

impl Storage for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        let mut state = self.lock();
        state.operation()?;
        state.room()?;
        self.trace.line(format_args!("create {}", self.shown(path)));
        std::fs::write(path, b"")?;
        let number = match state.names.get(path) {
            Some(number) => {
                let number = *number;
                state.files.get_mut(&number).unwrap().data.clear();
                number
            }
            None => {
                let number = state.next_file;
                state.next_file += 1;
                state.files.insert(number, File::default());
                let folder = path.parent().unwrap();
                state.change(folder, NameChange::Set(path.to_owned(), number));
                number
            }
        };
        Ok(Box::new(SimFile { disk: self.clone(), path: path.to_owned(), number }))
    }

    fn open(&self, path: &Path, _len: u64) -> io::Result<Box<dyn AppendFile>> {
        let mut state = self.lock();
        state.operation()?;
        let number = *state.names.get(path).ok_or(ErrorKind::NotFound)?;
        Ok(Box::new(SimFile { disk: self.clone(), path: path.to_owned(), number }))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.operation()?;
        self.trace.line(format_args!("sync folder {}", self.shown(dir)));
        if mutation::on(Mutation::NoFolderSync) {
            return Ok(());
        }
        let changes = state.changes.remove(dir).unwrap_or_default();
        changes.iter().for_each(|change| change.apply(&mut state.durable));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.operation()?;
        self.trace.line(format_args!("rename to {}", self.shown(to)));
        let number = *state.names.get(from).ok_or(ErrorKind::NotFound)?;
        std::fs::rename(from, to)?;
        let change = NameChange::Rename(from.to_owned(), to.to_owned(), number);
        state.change(to.parent().unwrap(), change);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.operation()?;
        self.trace.line(format_args!("remove {}", self.shown(path)));
        let number = *state.names.get(path).ok_or(ErrorKind::NotFound)?;
        if is_segment(path) {
            let data = state.files[&number].data.clone();
            state.archive.insert(path.to_owned(), data);
        }
        std::fs::remove_file(path)?;
        state.change(path.parent().unwrap(), NameChange::Remove(path.to_owned()));
        Ok(())
    }
}

struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    number: u64,
}

impl SimFile {
    fn write(&self, state: &mut State, bytes: &[u8]) -> io::Result<()> {
        state.files.get_mut(&self.number).unwrap().data.extend_from_slice(bytes);
        let Some(path) = state.name_of(self.number) else { return Ok(()) };
        let mut file = std::fs::OpenOptions::new().append(true).open(path)?;
        file.write_all(bytes)
    }
}

impl AppendFile for SimFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        let alive = !state.crashed;
        if let Err(error) = state.operation().and_then(|()| state.room()) {
            // It ends in the middle of the write.
            if alive {
                let part = state.rng().below(bytes.len() + 1);
                self.write(&mut state, &bytes[..part])?;
            }
            return Err(error);
        }
        let shown = self.disk.shown(&self.path);
        self.disk.trace.bytes(format_args!("append {shown}"), bytes);
        self.write(&mut state, bytes)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.operation()?;
        let data = &mut state.files.get_mut(&self.number).unwrap().data;
        data.resize(len as usize, 0);
        let Some(path) = state.name_of(self.number) else { return Ok(()) };
        std::fs::OpenOptions::new().write(true).open(path)?.set_len(len)
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.operation()?;
        let (data, longest_us) = (state.files[&self.number].data.clone(), state.sync_us_max);
        let shown = self.disk.shown(&self.path);
        if is_segment(&self.path) && longest_us > 0 {
            let took_us = state.rng().below(longest_us as usize + 1) as u64;
            drop(state);
            self.disk.trace.line(format_args!("sync {shown} for {took_us} us"));
            // The rest of the world does not wait.
            inject::wait(Duration::from_micros(took_us));
            state = self.disk.lock();
            if state.crashed {
                return Err(crashed());
            }
        }
        if state.failing_syncs > 0 {
            state.failing_syncs -= 1;
            self.disk.trace.line(format_args!("sync {shown} fails"));
            return Err(io::Error::other("simulated EIO"));
        }
        if mutation::on(Mutation::NoSync) {
            return Ok(());
        }
        let file = state.files.get_mut(&self.number).unwrap();
        if is_segment(&self.path) {
            let from = file.synced.len().min(data.len());
            self.disk.marks.durable(&data[from..]);
        }
        file.synced = data;
        Ok(())
    }
}

#[test]
fn a_power_loss_while_the_journal_is_created_leaves_nothing_that_looks_like_damage() {
    use crate::clock::Clock;
    use crate::journal::{Journal, JournalOptions};
    let mut died = 0;
    for seed in 0..400 {
        let dir = super::world::folder();
        let mut rng = Rng::new(seed);
        let operations = rng.below(10) as u64;
        let disk = SimDisk::quiet(dir.path(), rng);
        let open = || {
            let options = JournalOptions::new(dir.path().join("journal"));
            Journal::open_on(Arc::new(disk.clone()), options, Clock::manual(1), &[], 1)
        };
        disk.die_after(operations);
        died += u64::from(open().is_err());
        disk.restart(Crash::PowerLoss);
        open().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    assert!(died > 100, "it died in {died} of 400 only");
}
