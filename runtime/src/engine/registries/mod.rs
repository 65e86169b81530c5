//! The edge of registries: files that are read again when they change, and what changed in them as
//! messages of the journal.
//!
//! Steps: (1) `read`: a file to rows, whole or not at all. (2) `diff`: what of them is not as it
//! was said last. (3) offered to the journal, like a reading. (4) `note`: what was said, in a file
//! of its own. A crash before the note lets the same be said again, which changes nothing: who
//! takes it (`operators::registry`) knows what it has. For the same reason everything is said again
//! at each start and before a change of the plan: a join that is new gets what it needs.

mod diff;
mod note;
mod read;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tidegate_operators::registry::{put, put_refused};
use tidegate_operators::spec::registry_topic;
use tidegate_operators::{Messages, MessagesBuilder};
use tidegate_pipelines::plan::RegistrySource;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use self::diff::{Known, Said};
use self::note::Note;
use self::read::{Stamp, read, stamp};
use crate::clock::Clock;
use crate::intake::{Intake, IntakeError};
use crate::source::SourceStats;

/// How often a file is looked at. One that was just written is read when it rested as long.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Bytes of rows that are offered to the journal at a time.
const OFFER_BYTES: usize = 1 << 20;

/// One registry, and what it said last.
struct Registry {
    source: RegistrySource,
    topic: String,
    note: Note,
    known: Known,
    /// The file as it was when it was read last.
    stamp: Stamp,
    stats: Arc<SourceStats>,
}

/// Registries whose files were read, before anything is journaled.
pub(super) struct Opened {
    registries: Vec<(Registry, Vec<Said>)>,
    clock: Clock,
}

/// Watched registries.
pub(super) struct Registries {
    watched: Vec<Watched>,
    clock: Clock,
}

struct Watched {
    name: String,
    registry: Arc<Mutex<Registry>>,
    stats: Arc<SourceStats>,
    task: JoinHandle<()>,
}

/// Reads the files for the first time.
///
/// # Errors
/// A file that is not there or cannot be read: without it, rows would find nothing in silence.
pub(super) fn open(
    sources: &[RegistrySource],
    data: &Path,
    clock: Clock,
) -> anyhow::Result<Opened> {
    let mut registries = Vec::new();
    for source in sources {
        let one = open_one(source, data, &clock);
        let what = || format!("registry {} of pipeline {}", source.name, source.pipeline);
        registries.push(one.with_context(what)?);
    }
    Ok(Opened { registries, clock })
}

fn open_one(
    source: &RegistrySource,
    data: &Path,
    clock: &Clock,
) -> anyhow::Result<(Registry, Vec<Said>)> {
    let folder = data.join("registries");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let note = Note::new(folder.join(format!("{}.{}.ndjson", source.pipeline, source.name)));
    let known = note.read()?;
    let path = PathBuf::from(&source.file.path);
    let stamp = stamp(&path);
    let rows = read(source)?;
    let again = known.as_ref().map(Known::again).unwrap_or_default();
    // What is there first was so before anybody asked.
    let since_us = known.as_ref().map(|_| clock.now_us());
    let (known, said) = known.unwrap_or_default().take(source, &rows, since_us);
    let stats = Arc::new(SourceStats::default());
    stats.set_healthy();
    let topic = registry_topic(&source.pipeline, &source.name);
    let registry = Registry { source: source.clone(), topic, note, known, stamp, stats };
    Ok((registry, again.into_iter().chain(said).collect()))
}

/// What registries say at the beginning of a run over files, as messages, and a text that differs
/// if any of it does.
///
/// # Errors
/// As [`open`].
pub(super) fn for_files(sources: &[RegistrySource]) -> anyhow::Result<(Vec<Messages>, String)> {
    let mut all = Vec::new();
    let mut print = String::new();
    for source in sources {
        let what = || format!("registry {} of pipeline {}", source.name, source.pipeline);
        let rows = read(source).with_context(what)?;
        let (_, said) = Known::default().take(source, &rows, None);
        let topic = registry_topic(&source.pipeline, &source.name);
        for mut messages in messages(&topic, &said, 0) {
            let messages = messages.finish(0, 0);
            print.push_str(&format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&messages.data)));
            all.push(messages);
        }
    }
    Ok((all, print))
}

/// What is said, in offers that the journal takes.
fn messages(topic: &str, said: &[Said], now_us: i64) -> Vec<MessagesBuilder> {
    let mut offers = Vec::new();
    let mut open = MessagesBuilder::default();
    for one in said {
        match one {
            Said::Change { change, row, since_us } => {
                put(&mut open, topic, *change, row.as_bytes(), *since_us, now_us);
            }
            Said::Refused { row, why } => put_refused(&mut open, topic, row, why, now_us),
        }
        if open.data_bytes() >= OFFER_BYTES {
            offers.push(std::mem::take(&mut open));
        }
    }
    if !open.is_empty() {
        offers.push(open);
    }
    offers
}

impl Opened {
    /// Journals what the files say, and watches them from now on. Nothing else may be let in
    /// before: the first reading finds the registry complete.
    ///
    /// # Errors
    /// The journal's, or that of noting what was said.
    pub(super) async fn start(self, intake: &Arc<dyn Intake>) -> anyhow::Result<Registries> {
        let mut watched = Vec::new();
        for (registry, said) in self.registries {
            registry.say(&said, intake, &self.clock).await?;
            registry.note.write(&registry.known)?;
            let name = format!("registry {}.{}", registry.source.pipeline, registry.source.name);
            let stats = Arc::clone(&registry.stats);
            let registry = Arc::new(Mutex::new(registry));
            let (shared, to) = (Arc::clone(&registry), Arc::clone(intake));
            let task = tokio::spawn(watch(shared, to, self.clock.clone()));
            watched.push(Watched { name, registry, stats, task });
        }
        Ok(Registries { watched, clock: self.clock })
    }
}

impl Registries {
    /// What is wrong with files at present.
    pub(super) fn problems(&self) -> Vec<String> {
        let problem = |w: &Watched| Some(format!("{}: {}", w.name, w.stats.problem()?));
        self.watched.iter().filter_map(problem).collect()
    }

    /// Looks at no file any more.
    pub(super) fn stop(&self) {
        self.watched.iter().for_each(|w| w.task.abort());
    }

    /// Says everything again, so that a join that begins now has it.
    ///
    /// # Errors
    /// The journal's.
    pub(super) async fn again(&self, intake: &Arc<dyn Intake>) -> Result<(), IntakeError> {
        for watched in &self.watched {
            let registry = watched.registry.lock().await;
            registry.say(&registry.known.again(), intake, &self.clock).await?;
        }
        Ok(())
    }
}

impl Drop for Registries {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn watch(registry: Arc<Mutex<Registry>>, intake: Arc<dyn Intake>, clock: Clock) {
    let mut turns = tokio::time::interval(LOOK_EVERY);
    let mut before = None;
    loop {
        turns.tick().await;
        let mut registry = registry.lock().await;
        let now = stamp(Path::new(&registry.source.file.path));
        // A file that changes still is not complete.
        let rests = before.replace(now) == Some(now);
        if !rests || (now == registry.stamp && registry.stats.is_healthy()) {
            continue;
        }
        if registry.look(now, &intake, &clock).await.is_err() {
            // The journal ends, and so does the process.
            return;
        }
    }
}

impl Registry {
    /// Reads the file, and says what changed. What cannot be read leaves everything as it was.
    async fn look(
        &mut self,
        now: Stamp,
        intake: &Arc<dyn Intake>,
        clock: &Clock,
    ) -> Result<(), IntakeError> {
        let source = self.source.clone();
        let rows = tokio::task::spawn_blocking(move || read(&source)).await;
        let rows = match rows.map_err(anyhow::Error::from).and_then(|rows| rows) {
            // Written while it was read: there is another look.
            Ok(_) if stamp(Path::new(&self.source.file.path)) != now => return Ok(()),
            Ok(rows) => rows,
            Err(error) => {
                if self.stats.is_healthy() {
                    let name = &self.source.name;
                    tracing::error!("registry {name}: what it said last stays: {error:#}");
                }
                self.stats.set_unhealthy(format!("{error:#}"));
                return Ok(());
            }
        };
        let since_us = Some(clock.now_us());
        let (known, said) = self.known.clone().take(&self.source, &rows, since_us);
        self.say(&said, intake, clock).await?;
        (self.known, self.stamp) = (known, now);
        match self.note.write(&self.known) {
            Ok(()) => self.stats.set_healthy(),
            Err(error) => self.stats.set_unhealthy(format!("{error:#}")),
        }
        Ok(())
    }

    async fn say(
        &self,
        said: &[Said],
        intake: &Arc<dyn Intake>,
        clock: &Clock,
    ) -> Result<(), IntakeError> {
        for messages in messages(&self.topic, said, clock.now_us()) {
            intake.offer(messages).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
