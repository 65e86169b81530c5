//! What was read before: the files of each generation, in the order in which they were read.
//!
//! The files that a run finds for the first time are a generation. Its epochs follow those of the
//! generation before, and at its end all windows are closed and the operators' state is saved. So a
//! folder that has got more files goes on where it was, and whatever was interrupted is read again
//! as the same epochs, of which the tables take only what they have not. That holds only as long as
//! files stay what they were: one that has changed is refused, unless no table has anything of its
//! generation.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tidegate_operators::Epoch;

use super::discover::Found;

/// Version of the format of the file.
const FORMAT: u32 = 1;

/// Name of the file.
const NAME: &str = "ledger.json";

/// Where in the sequence of epochs and messages something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// The first epoch that is free.
    pub(super) epoch: Epoch,
    /// The first offset that is free.
    pub(super) offset: u64,
    /// The earliest time of the next tick.
    pub(super) time_us: i64,
}

impl Place {
    const START: Self = Self { epoch: 1, offset: 0, time_us: 0 };
}

/// A file as it was when it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    source: u16,
    name: String,
    /// The whole path, whoever reads it.
    place: String,
    bytes: u64,
    modified_us: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Generation {
    files: Vec<Known>,
    /// Where the next one will begin, once all is in the tables.
    closing: Option<Place>,
    /// Where the next one begins; absent until all is in the tables.
    end: Option<Place>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Written {
    format: u32,
    /// Where the tables are.
    tables: String,
    /// Who writes the tables: it tells them which epochs they have.
    identity: String,
    /// What the pipelines compute; state of others is of no use.
    plan: String,
    generations: Vec<Generation>,
}

/// The ledger of one set of sources.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    written: Written,
}

/// A generation that is to be read.
#[derive(Debug)]
pub(super) struct Todo {
    pub(super) number: usize,
    pub(super) files: Vec<Found>,
    pub(super) start: Place,
}

impl Ledger {
    /// Opens the ledger in `dir` of the tables at `tables`, as it was left.
    pub(super) fn open(
        dir: &Path,
        key: &str,
        tables: &str,
        plan: &str,
        found: &[Found],
    ) -> anyhow::Result<Self> {
        let path = dir.join(NAME);
        let mut written = match read(&path)? {
            Some(written) => written,
            None => {
                read_by_others(dir, tables, found)?;
                Written {
                    format: FORMAT,
                    tables: tables.to_owned(),
                    identity: identity(key, found),
                    plan: plan.to_owned(),
                    generations: Vec::new(),
                }
            }
        };
        if written.plan != plan {
            written.plan = plan.to_owned();
            // Nor is one of them about to end: its files are read again, to their ends.
            written.generations.iter_mut().for_each(|g| (g.end, g.closing) = (None, None));
        }
        Ok(Self { path, written })
    }

    /// Adds what is new in `found`, given the newest epoch that a table has. Files of which rows
    /// can be in the tables must be what they were.
    pub(super) fn settle(&mut self, found: &[Found], committed: Epoch) -> anyhow::Result<()> {
        let done = self.done();
        if committed < self.start(done).epoch {
            // Nothing of what comes now was seen by anybody, so it may be put together anew.
            self.written.generations.truncate(done);
        }
        self.unchanged(found)?;
        let known: BTreeSet<(u16, &str)> = self
            .written
            .generations
            .iter()
            .flat_map(|g| &g.files)
            .map(|f| (f.source, f.name.as_str()))
            .collect();
        let new: Vec<Known> = found
            .iter()
            // What is empty may still be written: it is new when there is something in it.
            .filter(|f| f.bytes > 0 && !known.contains(&(f.source, f.name.as_str())))
            .map(Known::of)
            .collect();
        if !new.is_empty() {
            self.written.generations.push(Generation { files: new, closing: None, end: None });
        }
        self.write()
    }

    fn unchanged(&self, found: &[Found]) -> anyhow::Result<()> {
        let there: BTreeMap<(u16, &str), &Found> =
            found.iter().map(|f| ((f.source, f.name.as_str()), f)).collect();
        for known in self.written.generations.iter().flat_map(|g| &g.files) {
            let Some(now) = there.get(&(known.source, known.name.as_str())) else { continue };
            if (now.bytes, now.modified_us) != (known.bytes, known.modified_us) {
                anyhow::bail!(
                    "{} has changed since it was read ({} bytes then, {} now): its rows would be \
                     in the tables twice, or not at all. Put what is new into a file of its own, \
                     or start over with another data folder",
                    now.path.display(),
                    known.bytes,
                    now.bytes
                );
            }
        }
        Ok(())
    }

    /// Who writes the tables.
    pub(super) fn identity(&self) -> &str {
        &self.written.identity
    }

    /// How many generations are in the tables.
    pub(super) fn done(&self) -> usize {
        let whole = self.written.generations.iter().take_while(|g| g.end.is_some());
        whole.count()
    }

    /// Where the generation after the first `done` begins.
    pub(super) fn start(&self, done: usize) -> Place {
        let last = done.checked_sub(1).and_then(|i| self.written.generations[i].end);
        last.unwrap_or(Place::START)
    }

    /// Says that nothing counts as read.
    pub(super) fn start_over(&mut self) {
        self.written.generations.iter_mut().for_each(|g| g.end = None);
    }

    /// Says where a generation will end, before anything of its end can be in the tables.
    pub(super) fn closing(&mut self, number: usize, end: Place) -> anyhow::Result<()> {
        self.written.generations[number].closing = Some(end);
        self.write()
    }

    /// A checkpoint of this epoch is there, and it was written when the tables had everything.
    pub(super) fn saved(&mut self, epoch: Epoch) -> anyhow::Result<()> {
        let number = self.done();
        let next = self.written.generations.get_mut(number);
        match next.and_then(|g| g.closing).filter(|closing| closing.epoch == epoch + 1) {
            Some(end) => self.finish(number, end),
            None => Ok(()),
        }
    }

    /// Says that a generation is in the tables.
    pub(super) fn finish(&mut self, number: usize, end: Place) -> anyhow::Result<()> {
        self.written.generations[number].end = Some(end);
        self.write()
    }

    /// Where the generations that were read ended, in order.
    pub(super) fn ends(&self) -> Vec<Place> {
        self.written.generations.iter().filter_map(|generation| generation.end).collect()
    }

    /// The next generation to read, if there is one. All of its files must be there.
    pub(super) fn next(&self, found: &[Found]) -> anyhow::Result<Option<Todo>> {
        let number = self.done();
        let Some(generation) = self.written.generations.get(number) else { return Ok(None) };
        let there: BTreeMap<(u16, &str), &Found> =
            found.iter().map(|f| ((f.source, f.name.as_str()), f)).collect();
        let file = |known: &Known| -> anyhow::Result<Found> {
            let found = there.get(&(known.source, known.name.as_str())).copied().cloned();
            found.with_context(|| {
                format!(
                    "{} is not there any more, and it has to be read (again): its rows may be in \
                     the tables in part, or the pipelines have changed. Put it back, or start \
                     over with another data folder",
                    known.name
                )
            })
        };
        let files = generation.files.iter().map(file).collect::<anyhow::Result<_>>()?;
        Ok(Some(Todo { number, files, start: self.start(number) }))
    }

    /// Number and bytes of the files that are to be read, as far as they are there.
    pub(super) fn left(&self, found: &[Found]) -> (u64, u64) {
        let left: BTreeSet<(u16, &str)> = self.written.generations[self.done()..]
            .iter()
            .flat_map(|g| &g.files)
            .map(|f| (f.source, f.name.as_str()))
            .collect();
        let files = found.iter().filter(|f| left.contains(&(f.source, f.name.as_str())));
        files.fold((0, 0), |(count, bytes), file| (count + 1, bytes + file.bytes))
    }

    fn write(&self) -> anyhow::Result<()> {
        let why = || format!("cannot write {}", self.path.display());
        let text = serde_json::to_vec(&self.written).with_context(why)?;
        let temporary = self.path.with_extension("tmp");
        let file = std::fs::File::create(&temporary).with_context(why)?;
        std::io::Write::write_all(&mut &file, &text).with_context(why)?;
        file.sync_all().with_context(why)?;
        std::fs::rename(&temporary, &self.path).with_context(why)
    }
}

impl Known {
    fn of(found: &Found) -> Self {
        Self {
            source: found.source,
            name: found.name.clone(),
            place: found.place.clone(),
            bytes: found.bytes,
            modified_us: found.modified_us,
        }
    }
}

/// What is written in a ledger, if there is one.
fn read(path: &Path) -> anyhow::Result<Option<Written>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    let why = || format!("{} is damaged: start over with another data folder", path.display());
    let written: Written = serde_json::from_slice(&bytes).with_context(why)?;
    let format = written.format;
    anyhow::ensure!(format == FORMAT, "{} has the unknown format {format}", path.display());
    Ok(Some(written))
}

/// Refuses files that are in the same tables already, read by another set of sources or with other
/// settings: these rows have other epochs, so the tables would take them again.
fn read_by_others(dir: &Path, tables: &str, found: &[Found]) -> anyhow::Result<()> {
    let Some(parent) = dir.parent() else { return Ok(()) };
    let Ok(entries) = std::fs::read_dir(parent) else { return Ok(()) };
    let places: BTreeSet<&str> = found.iter().map(|f| f.place.as_str()).collect();
    for entry in entries {
        let path = entry?.path().join(NAME);
        let Some(other) = read(&path)?.filter(|other| other.tables == tables) else { continue };
        let mut known = other.generations.iter().flat_map(|g| &g.files);
        if let Some(file) = known.find(|f| places.contains(f.place.as_str())) {
            anyhow::bail!(
                "{} was read into these tables before, with other settings of its source or \
                 beside other files, so its rows would be there twice. Run it as before, or start \
                 over with another data folder",
                file.place
            );
        }
    }
    Ok(())
}

/// What the tables know the writer by: the same files give the same, also from another folder of
/// data.
fn identity(key: &str, found: &[Found]) -> String {
    let mut text = key.to_owned();
    for file in found {
        text.push_str(&format!(
            "{}:{}:{}:{};",
            file.source, file.name, file.bytes, file.modified_us
        ));
    }
    format!("file-{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
}
