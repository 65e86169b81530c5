//! The edge of registries: files that are read again when they change, URLs that are asked again
//! and again, and what changed in them as messages of the journal.
//!
//! Steps: (0) `fetch`: an answer to a file. (1) `read`: a file to rows, whole or not at all. (2)
//! `check` and `diff`: what of them is not as it was said last, and what is of no use. (3) `note`:
//! what may be said from now on, in a file of its own. (4) offered to the journal, like a reading.
//! (5) `note`: what was said. A crash between (3) and (5) lets what holds be said again, which
//! changes nothing where it was said: who takes it (`operators::registry`) knows what it has. For
//! the same reason everything is said again at each start and before a change of the plan: a join
//! that is new gets what it needs.
//!
//! What is on a topic is brought by a source; here (`entries`) it is only remembered for joins that
//! are new.

mod check;
mod columns;
mod diff;
mod entries;
mod fetch;
mod looked;
mod note;
mod read;
mod room;
mod untaken;
mod watch;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use tidegate_operators::registry::{put, put_refused};
use tidegate_operators::spec::registry_topic;
use tidegate_operators::{Messages, MessagesBuilder};
use tidegate_pipelines::Plan;
use tidegate_pipelines::plan::{RegistryPlace, RegistrySource};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use self::check::Checker;
use self::columns::Lacks;
use self::diff::{Known, Said};
pub(super) use self::entries::Entries;
use self::entries::{Notes, Topic};
use self::fetch::Fetcher;
pub(super) use self::looked::look_at_columns;
pub use self::looked::look_at_file;
use self::note::Note;
use self::read::{Stamp, read_file_of, stamp};
use self::room::{PATIENCE, unless_full};
use self::untaken::{tell, untaken};
use self::watch::{first, watch_file, watch_url};
use super::options::EngineOptions;
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
    checker: Checker,
    stats: Arc<SourceStats>,
    /// Its columns are others than when it was read last.
    is_other: bool,
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
    /// What is known from now on, and what there is to say of it; `None`: it could not be read.
    changed: Option<(Known, Vec<Said>)>,
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
    stopped: AtomicBool,
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
/// A file that is not there or cannot be read, one of which nothing is known without a column, a
/// URL of which nothing is known without an answer: rows would find nothing in silence.
pub(super) async fn open(
    plan: &Plan,
    options: &EngineOptions,
    clock: Clock,
) -> anyhow::Result<Opened> {
    let data = &options.data;
    if options.finishing.is_none() {
        put_away(plan, &folder(data)?)?;
    }
    let (mut opening, mut topics) = (Vec::new(), Vec::new());
    for source in &plan.registries {
        let RegistryPlace::Topic(place) = &source.place else {
            let read = open_one(plan, source, data, &clock);
            opening.push(async { read.await.with_context(|| what(source)) });
            continue;
        };
        let known = Notes::read(note_of(source, data)?)?;
        topics.push(Topic::new(source, place, (known, Checker::of(plan, source)?)));
    }
    let registries = futures::future::try_join_all(opening).await?;
    Ok(Opened { registries, entries: Arc::new(Entries::new(topics)), clock })
}

/// Puts the notes of topics away that are no registries of the plan: what is retained there may
/// change from now on, and nobody hears it.
fn put_away(plan: &Plan, folder: &Path) -> anyhow::Result<()> {
    let named = plan.registries.iter().map(|source| folder.join(note_name(source)));
    let named: BTreeSet<PathBuf> = named.collect();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let is_of_topic = stem.split('.').count() == 3;
        let is_note = path.extension().is_some_and(|ending| ending == note::ENDING);
        if is_note && is_of_topic && !named.contains(&path) {
            let away = path.with_extension(note::LEFT);
            std::fs::rename(&path, away)
                .with_context(|| format!("cannot rename {}", path.display()))?;
        }
    }
    Ok(())
}

/// The name of the file of what a registry said last.
fn note_name(source: &RegistrySource) -> String {
    let which = match &source.place {
        // Another topic is another registry: what the old one had would never be removed.
        RegistryPlace::Topic(place) => {
            let topic = place.template.to_string();
            format!(".{:016x}", xxhash_rust::xxh3::xxh3_64(topic.as_bytes()))
        }
        _ => String::new(),
    };
    format!("{}.{}{which}.{}", source.pipeline, source.name, note::ENDING)
}

/// What a registry said last, on disk.
fn note_of(source: &RegistrySource, data: &Path) -> anyhow::Result<Note> {
    Ok(Note::new(folder(data)?.join(note_name(source))))
}

fn what(source: &RegistrySource) -> String {
    format!("registry {} of pipeline {}", source.name, source.pipeline)
}

async fn open_one(
    plan: &Plan,
    source: &RegistrySource,
    data: &Path,
    clock: &Clock,
) -> anyhow::Result<Read> {
    let checker = Checker::of(plan, source)?;
    let note = note_of(source, data)?;
    let known = note.read()?;
    // What is there first was so before anybody asked.
    let since_us = known.as_ref().filter(|known| !known.is_first()).map(|_| clock.now_us());
    let is_known = since_us.is_some();
    let stats = Arc::new(SourceStats::default());
    stats.set_healthy();
    let stays = |why: String| {
        tracing::error!("{}: what it said last stays: {why}", what(source));
        stats.set_unhealthy(why);
    };
    let (rows, origin) = match &source.place {
        RegistryPlace::File(path) => {
            let stamp = stamp(Path::new(path));
            let rows = match read_file_of(source) {
                // It was taken by other pipelines, or by an earlier version that asked for less:
                // whoever starts again, perhaps at night, is not kept from it.
                Err(error) if is_known && error.is::<Lacks>() => {
                    stays(format!("{error:#}"));
                    None
                }
                rows => Some(rows?),
            };
            (rows, Origin::File(path.clone(), stamp))
        }
        RegistryPlace::Url(spec) => {
            let mut fetcher = Box::new(Fetcher::new(source, spec, &folder(data)?)?);
            let rows = match first(&mut fetcher, is_known).await {
                Ok(rows) => Some(rows),
                Err(why) if is_known => {
                    stays(why);
                    None
                }
                Err(why) => anyhow::bail!("{}: {why}", source.place.shown()),
            };
            (rows, Origin::Url(fetcher))
        }
        RegistryPlace::Topic(_) => anyhow::bail!("its source brings it"),
    };
    let topic = registry_topic(&source.pipeline, &source.name);
    let (source, known) = (source.clone(), known.unwrap_or_default());
    let mut registry = Registry { source, topic, note, known, checker, stats, is_other: false };
    // What is wrong with a file is told at each start, and later when it is news.
    let changed = rows.map(|rows| registry.take(&rows, since_us, |_, _| true));
    Ok(Read { registry, origin, changed })
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
pub(super) async fn for_files(plan: &Plan, data: &Path) -> anyhow::Result<(Vec<Messages>, String)> {
    let mut all = Vec::new();
    let mut print = String::new();
    for source in &plan.registries {
        let rows = match &source.place {
            RegistryPlace::Topic(_) => anyhow::bail!("{}: files have no topics", what(source)),
            RegistryPlace::File(_) => read_file_of(source).with_context(|| what(source))?,
            RegistryPlace::Url(spec) => {
                let mut fetcher = Fetcher::new(source, spec, &folder(data)?)?;
                let rows = first(&mut fetcher, false).await.map_err(anyhow::Error::msg);
                rows.with_context(|| source.place.shown()).with_context(|| what(source))?
            }
        };
        let mut checker = Checker::of(plan, source)?;
        let refused = checker.refused(&rows);
        let (known, said) = Known::default().take(source, (&rows, &refused), None);
        tell(source, untaken((source, &mut checker), &known, (&rows, &refused)));
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

    /// Journals what registries say, and what endpoints have retained from before a registry on
    /// them was in the plan, and watches them from now on. Nobody may be let in before: the first
    /// reading finds the registry complete. If the process only finishes what another one took in,
    /// there is nothing to say.
    ///
    /// # Errors
    /// The journal's, among them that it has no room, or that of noting what was said.
    pub(super) async fn begin(
        self,
        journal: &Journal,
        bound: &[Bound],
        options: &EngineOptions,
    ) -> anyhow::Result<Registries> {
        let work = self.say_first(journal, bound, options.finishing.is_some());
        unless_full(journal, &options.replaying, PATIENCE, work).await
    }

    async fn say_first(
        self,
        journal: &Journal,
        bound: &[Bound],
        finishing: bool,
    ) -> anyhow::Result<Registries> {
        let mut begun = Registries {
            watched: Vec::new(),
            entries: self.entries,
            clock: self.clock,
            stopped: AtomicBool::new(false),
        };
        if finishing {
            return Ok(begun);
        }
        let intake = journal.intake(0);
        for read in self.registries {
            begun.watch(read, &intake).await?;
        }
        let now_us = begun.clock.now_us();
        for messages in begun.entries.again(now_us) {
            intake.offer(messages).await?;
        }
        let kept = |number: u16| bound.get(usize::from(number)).and_then(Bound::kept);
        for (number, offer) in begun.entries.unheard(kept, now_us) {
            journal.intake(number).offer(offer).await?;
        }
        begun.entries.settle()?;
        Ok(begun)
    }
}

impl Registries {
    /// Journals what a registry says, and watches it from now on.
    async fn watch(&mut self, read: Read, intake: &Arc<dyn Intake>) -> anyhow::Result<()> {
        let Read { mut registry, origin, changed } = read;
        registry.say(&registry.known.again(), intake, &self.clock).await?;
        if let Some((known, said)) = changed {
            registry.change(known, &said, intake, &self.clock).await?;
        }
        let name = format!("registry {}.{}", registry.source.pipeline, registry.source.name);
        let stats = Arc::clone(&registry.stats);
        let registry = Arc::new(Mutex::new(registry));
        let (shared, to) = (Arc::clone(&registry), (Arc::clone(intake), self.clock.clone()));
        let task = match origin {
            Origin::File(path, stamp) => tokio::spawn(watch_file(shared, path, stamp, to)),
            Origin::Url(fetcher) => tokio::spawn(watch_url(shared, *fetcher, to)),
        };
        self.watched.push(Watched { name, registry, stats, task });
        Ok(())
    }

    /// What is wrong with them at present.
    pub(super) fn problems(&self) -> Vec<String> {
        let stopped = self.stopped.load(Ordering::Acquire);
        let unwatched = |w: &Watched| {
            let ended = !stopped && w.task.is_finished();
            ended.then(|| "nobody looks at it any more".to_owned())
        };
        let problem = |w: &Watched| {
            let why = w.stats.problem().or_else(|| unwatched(w))?;
            Some(format!("{}: {why}", w.name))
        };
        let topic = |t: &Topic| Some(format!("{}: {}", t.name(), t.stats.problem()?));
        let topics = self.entries.topics().iter().filter_map(topic);
        self.watched.iter().filter_map(problem).chain(topics).collect()
    }

    /// Looks at none any more.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
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
    /// What is known after these rows, and what there is to say. Rows that are not taken are told
    /// if `is_news` of what was known before and after.
    fn take(
        &mut self,
        rows: &[Messages],
        since_us: Option<i64>,
        is_news: impl Fn(&Known, &Known) -> bool,
    ) -> (Known, Vec<Said>) {
        let refused = self.checker.refused(rows);
        let (known, said) = self.known.clone().take(&self.source, (rows, &refused), since_us);
        if is_news(&self.known, &known) {
            let checked = (rows, &refused);
            tell(&self.source, untaken((&self.source, &mut self.checker), &known, checked));
        }
        (known, said)
    }

    /// Takes all its rows, and says what changed.
    ///
    /// # Errors
    /// See [`Registry::change`].
    async fn hear(
        &mut self,
        rows: &[Messages],
        intake: &Arc<dyn Intake>,
        clock: &Clock,
    ) -> anyhow::Result<()> {
        let is_news = |before: &Known, now: &Known| !now.odd.is_subset(&before.odd);
        let (known, said) = self.take(rows, Some(clock.now_us()), is_news);
        if known == self.known && self.stats.is_healthy() {
            return Ok(());
        }
        self.change(known, &said, intake, clock).await?;
        self.stats.set_healthy();
        Ok(())
    }

    /// Notes what may be said from now on, says it, and notes that it was said.
    ///
    /// # Errors
    /// The journal's ([`IntakeError`]), or that of noting. What is known is right in any case: the
    /// same can be tried again.
    async fn change(
        &mut self,
        known: Known,
        said: &[Said],
        intake: &Arc<dyn Intake>,
        clock: &Clock,
    ) -> anyhow::Result<()> {
        let before = self.known.before(&self.source, said);
        if before != self.known {
            self.note.write(&before)?;
            self.known = before;
        }
        self.say(said, intake, clock).await?;
        self.known = known;
        self.note.write(&self.known)
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
