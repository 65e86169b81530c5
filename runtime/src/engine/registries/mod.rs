//! The edge of registries: files that are read again when they change, URLs that are asked again
//! and again, and what changed in them as messages of the journal.
//!
//! Steps: (0) `fetch`: an answer to a file. (1) `read`: a file to rows, whole or not at all. (2)
//! `diff`: what of them is not as it was said last. (3) offered to the journal, like a reading. (4)
//! `note`: what was said, in a file of its own. A crash before the note lets the same be said
//! again, which changes nothing: who takes it (`operators::registry`) knows what it has. For the
//! same reason everything is said again at each start and before a change of the plan: a join that
//! is new gets what it needs.
//!
//! What is on a topic is brought by a source; here (`entries`) it is only remembered for joins that
//! are new.

mod diff;
mod entries;
mod fetch;
mod note;
mod read;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use tidegate_operators::registry::{put, put_refused};
use tidegate_operators::spec::registry_topic;
use tidegate_operators::{Messages, MessagesBuilder};
use tidegate_pipelines::Plan;
use tidegate_pipelines::plan::{RegistryPlace, RegistrySource};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use self::diff::{Known, Said};
pub(super) use self::entries::Entries;
use self::entries::Topic;
use self::fetch::Fetcher;
use self::note::Note;
use self::read::{Stamp, read_file_of, stamp};
use self::watch::{first, watch_file, watch_url};
use super::sources::Bound;
use crate::clock::Clock;
use crate::intake::{Intake, IntakeError};
use crate::journal::Journal;
use crate::source::SourceStats;

/// Bytes of rows that are offered to the journal at a time.
const OFFER_BYTES: usize = 1 << 20;

/// One registry, and what it said last.
struct Registry {
    source: RegistrySource,
    topic: String,
    note: Note,
    known: Known,
    stats: Arc<SourceStats>,
}

/// Where it is, as it was when it was read last.
enum Origin {
    File(String, Stamp),
    Url(Box<Fetcher>),
}

/// A registry that was read, and what it has to say.
struct Read {
    registry: Registry,
    origin: Origin,
    said: Vec<Said>,
}

/// Registries that were read, before anything is journaled.
pub(super) struct Opened {
    registries: Vec<Read>,
    entries: Arc<Entries>,
    clock: Clock,
}

/// Watched registries.
pub(super) struct Registries {
    watched: Vec<Watched>,
    entries: Arc<Entries>,
    clock: Clock,
}

struct Watched {
    name: String,
    registry: Arc<Mutex<Registry>>,
    stats: Arc<SourceStats>,
    task: JoinHandle<()>,
}

/// Reads all registries for the first time.
///
/// # Errors
/// A file that is not there or cannot be read, a URL of which nothing is known without an answer:
/// rows would find nothing in silence.
pub(super) async fn open(plan: &Plan, data: &Path, clock: Clock) -> anyhow::Result<Opened> {
    let (mut opening, mut topics) = (Vec::new(), Vec::new());
    for source in &plan.registries {
        let RegistryPlace::Topic(place) = &source.place else {
            let read = open_one(source, data, &clock);
            opening.push(async { read.await.with_context(|| what(source)) });
            continue;
        };
        let of = plan.pipelines.iter().find(|p| p.name == source.pipeline);
        let number = of.with_context(|| what(source))?.decode.source;
        // Another topic is another registry: what the old one had would never be removed.
        let topic = place.template.to_string();
        let which = format!(".{:016x}", xxhash_rust::xxh3::xxh3_64(topic.as_bytes()));
        let note = note_of(source, data, &which)?;
        let known = note.read()?.unwrap_or_default();
        topics.push(Topic::new(source, place, number, (note, known)));
    }
    let registries = futures::future::try_join_all(opening).await?;
    Ok(Opened { registries, entries: Arc::new(Entries::new(topics)), clock })
}

/// What a registry said last, on disk; `which` tells it from others of its name.
fn note_of(source: &RegistrySource, data: &Path, which: &str) -> anyhow::Result<Note> {
    let name = format!("{}.{}{which}.ndjson", source.pipeline, source.name);
    Ok(Note::new(folder(data)?.join(name)))
}

fn what(source: &RegistrySource) -> String {
    format!("registry {} of pipeline {}", source.name, source.pipeline)
}

async fn open_one(source: &RegistrySource, data: &Path, clock: &Clock) -> anyhow::Result<Read> {
    let note = note_of(source, data, "")?;
    let known = note.read()?;
    let stats = Arc::new(SourceStats::default());
    stats.set_healthy();
    let (rows, origin) = match &source.place {
        RegistryPlace::File(path) => {
            let stamp = stamp(Path::new(path));
            (Some(read_file_of(source)?), Origin::File(path.clone(), stamp))
        }
        RegistryPlace::Url(spec) => {
            let mut fetcher = Box::new(Fetcher::new(source, spec, &folder(data)?)?);
            let rows = match first(&mut fetcher, known.is_some()).await {
                Ok(rows) => Some(rows),
                Err(why) if known.is_some() => {
                    tracing::error!("{}: what it said last stays: {why}", what(source));
                    stats.set_unhealthy(why);
                    None
                }
                Err(why) => anyhow::bail!("{}: {why}", source.place.shown()),
            };
            (rows, Origin::Url(fetcher))
        }
        RegistryPlace::Topic(_) => anyhow::bail!("its source brings it"),
    };
    let mut said = known.as_ref().map(Known::again).unwrap_or_default();
    // What is there first was so before anybody asked.
    let since_us = known.as_ref().map(|_| clock.now_us());
    let mut known = known.unwrap_or_default();
    if let Some(rows) = rows {
        let changed;
        (known, changed) = known.take(source, &rows, since_us);
        said.extend(changed);
    }
    let topic = registry_topic(&source.pipeline, &source.name);
    let registry = Registry { source: source.clone(), topic, note, known, stats };
    Ok(Read { registry, origin, said })
}

/// The folder of what registries said.
fn folder(data: &Path) -> anyhow::Result<PathBuf> {
    let folder = data.join("registries");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// What registries say at the beginning of a run over files, as messages, and a text that differs
/// if any of it does.
///
/// # Errors
/// As [`open`].
pub(super) async fn for_files(
    sources: &[RegistrySource],
    data: &Path,
) -> anyhow::Result<(Vec<Messages>, String)> {
    let mut all = Vec::new();
    let mut print = String::new();
    for source in sources {
        let rows = match &source.place {
            RegistryPlace::Topic(_) => anyhow::bail!("{}: files have no topics", what(source)),
            RegistryPlace::File(_) => read_file_of(source).with_context(|| what(source))?,
            RegistryPlace::Url(spec) => {
                let mut fetcher = Fetcher::new(source, spec, &folder(data)?)?;
                let rows = first(&mut fetcher, false).await.map_err(anyhow::Error::msg);
                rows.with_context(|| source.place.shown()).with_context(|| what(source))?
            }
        };
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
    /// What has to hear the journal from its replay on.
    pub(super) fn entries(&self) -> Arc<Entries> {
        Arc::clone(&self.entries)
    }

    /// Journals what registries say, and watches them from now on. Nothing else may be let in
    /// before: the first reading finds the registry complete.
    ///
    /// # Errors
    /// The journal's, or that of noting what was said.
    pub(super) async fn start(self, intake: &Arc<dyn Intake>) -> anyhow::Result<Registries> {
        let mut watched = Vec::new();
        for Read { registry, origin, said } in self.registries {
            registry.say(&said, intake, &self.clock).await?;
            registry.note.write(&registry.known)?;
            let name = format!("registry {}.{}", registry.source.pipeline, registry.source.name);
            let stats = Arc::clone(&registry.stats);
            let registry = Arc::new(Mutex::new(registry));
            let (shared, to) = (Arc::clone(&registry), (Arc::clone(intake), self.clock.clone()));
            let task = match origin {
                Origin::File(path, stamp) => tokio::spawn(watch_file(shared, path, stamp, to)),
                Origin::Url(fetcher) => tokio::spawn(watch_url(shared, *fetcher, to)),
            };
            watched.push(Watched { name, registry, stats, task });
        }
        for messages in self.entries.again(self.clock.now_us()) {
            intake.offer(messages).await?;
        }
        Ok(Registries { watched, entries: self.entries, clock: self.clock })
    }
}

impl Registries {
    /// Journals what endpoints have retained from before a registry on them was in the plan.
    /// Nobody may be let in before.
    ///
    /// # Errors
    /// The journal's.
    pub(super) async fn take_kept(
        self,
        bound: &[Bound],
        journal: &Journal,
    ) -> Result<Self, IntakeError> {
        let kept = |number: u16| bound.get(usize::from(number)).and_then(Bound::kept);
        for (number, offer) in self.entries.unheard(kept, self.clock.now_us()) {
            journal.intake(number).offer(offer).await?;
        }
        Ok(self)
    }

    /// What is wrong with them at present.
    pub(super) fn problems(&self) -> Vec<String> {
        let problem = |w: &Watched| Some(format!("{}: {}", w.name, w.stats.problem()?));
        let topic = |t: &Topic| Some(format!("{}: {}", t.name(), t.stats.problem()?));
        let topics = self.entries.topics().iter().filter_map(topic);
        self.watched.iter().filter_map(problem).chain(topics).collect()
    }

    /// Looks at none any more.
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
        for messages in self.entries.again(self.clock.now_us()) {
            intake.offer(messages).await?;
        }
        Ok(())
    }
}

impl Drop for Registries {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Registry {
    /// Takes all its rows, and says what changed.
    ///
    /// # Errors
    /// The journal's.
    async fn hear(
        &mut self,
        rows: &[Messages],
        intake: &Arc<dyn Intake>,
        clock: &Clock,
    ) -> Result<(), IntakeError> {
        let since_us = Some(clock.now_us());
        let (known, said) = self.known.clone().take(&self.source, rows, since_us);
        if known == self.known && self.stats.is_healthy() {
            return Ok(());
        }
        self.say(&said, intake, clock).await?;
        self.known = known;
        match self.note.write(&self.known) {
            Ok(()) => self.stats.set_healthy(),
            Err(error) => self.stats.set_unhealthy(format!("{error:#}")),
        }
        Ok(())
    }

    /// It cannot be read: everything stays as it was.
    fn failed(&self, why: &str) {
        if self.stats.is_healthy() {
            tracing::error!("{}: what it said last stays: {why}", what(&self.source));
        }
        self.stats.set_unhealthy(why);
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
