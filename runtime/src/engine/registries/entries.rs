//! What registries that are topics said last, learnt from the journal itself.
//!
//! Their messages are in the journal as they were received, and the joins take them from there.
//! This is only for joins that are new: they begin after the journal was cut, and are told what is
//! known, each entry since when it holds. What is told can be older than what the journal has by
//! then, and says so: it counts only where nothing is known (`Change::Recall`).
//!
//! It is noted before each checkpoint, because what the journal had before that may be cut away. A
//! registry that leaves the plan hears no more: its note is put away, and if it comes back, what an
//! endpoint has retained is right where the two differ.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};
use tidegate_operators::decode::topics_match;
use tidegate_operators::properties::{self, Property};
use tidegate_operators::spec::registry_topic;
use tidegate_operators::topic::TopicTemplate;
use tidegate_operators::{Messages, MessagesBuilder};
use tidegate_pipelines::plan::{RegistrySource, RegistryTopic};

use super::check::Checker;
use super::diff::{Known, Row, name_of};
use super::note::Note;
use super::{OFFER_BYTES, messages};
use crate::mqtt::KeptTopics;
use crate::source::SourceStats;

/// The registries of a plan that are topics.
#[derive(Default)]
pub(in crate::engine) struct Entries(Vec<Topic>);

/// One of them.
pub(super) struct Topic {
    /// The source of its pipeline.
    number: u16,
    source: RegistrySource,
    place: RegistryTopic,
    topics: [TopicTemplate; 1],
    pub(super) stats: Arc<SourceStats>,
    said: Mutex<Heard>,
}

struct Heard {
    known: Known,
    notes: Notes,
    checker: Checker,
    /// There is something that was not noted.
    fresh: bool,
}

/// Where what is known of a topic is noted.
pub(super) struct Notes {
    note: Note,
    /// It was put away; used until it is known what was missed.
    left: Option<Note>,
}

impl Notes {
    /// Those of a topic whose note is this one, and what is known.
    ///
    /// # Errors
    /// One cannot be read, although it is there.
    pub(super) fn read(note: Note) -> anyhow::Result<(Self, Known)> {
        if let Some(known) = note.read()? {
            return Ok((Self { note, left: None }, known));
        }
        let left = note.put_away();
        let known = left.read()?;
        Ok((Self { note, left: known.is_some().then_some(left) }, known.unwrap_or_default()))
    }

    fn write(&self, known: &Known) -> anyhow::Result<()> {
        self.left.as_ref().unwrap_or(&self.note).write(known)
    }
}

impl Topic {
    /// `known` is what was noted.
    pub(super) fn new(
        source: &RegistrySource,
        place: &RegistryTopic,
        ((notes, known), checker): ((Notes, Known), Checker),
    ) -> Self {
        let stats = Arc::new(SourceStats::default());
        stats.set_healthy();
        Self {
            number: checker.number,
            source: source.clone(),
            place: place.clone(),
            topics: [place.template.clone()],
            stats,
            said: Mutex::new(Heard { known, notes, checker, fresh: false }),
        }
    }

    /// What it is, for people.
    pub(super) fn name(&self) -> String {
        format!("registry {}.{}", self.source.pipeline, self.source.name)
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, run: &Messages, closed: bool) {
        if run.source != self.number {
            return;
        }
        let is_entry =
            |i: &usize| !run.index[*i].event && topics_match(&self.topics, run.topic(*i));
        let entries: Vec<usize> = (0..run.len()).filter(is_entry).collect();
        if entries.is_empty() {
            return;
        }
        let mut heard = self.lock();
        // What is refused is a row of `system.rejects` and nothing to tell anybody of.
        let accepted = heard.checker.accepted(run);
        for i in entries {
            let Some(from_us) = accepted.get(&i).copied() else { continue };
            let Some((name, row)) = self.row(run, i, run.index[i].received_us) else { continue };
            // Joins do not take it either.
            if !closed || is_known_key(&heard.known, &name, self.source.valid_from.is_some()) {
                self.take(&mut heard, name, row, from_us);
            }
        }
    }

    /// Takes note of an entry; `from_us` is since when it holds, if it says so itself.
    fn take(&self, heard: &mut Heard, name: String, row: Row, from_us: Option<i64>) {
        let own_times = self.source.valid_from.is_some();
        let known = heard.known.rows.get(&name).filter(|known| known.gone == row.gone);
        let since_us = match known {
            Some(known) if known.text == row.text => return,
            _ if own_times => from_us,
            // Written in another way, so it holds since it did.
            Some(known) if says_the_same(&known.text, &row.text) => known.since_us,
            None if !heard.known.rows.contains_key(&name) => {
                if row.gone {
                    return;
                }
                None
            }
            _ => row.since_us,
        };
        let is_new = !heard.known.rows.contains_key(&name);
        let most = heard.checker.versions_max;
        if own_times && is_new && !make_room(&mut heard.known, (&name, from_us), most) {
            return;
        }
        heard.known.rows.insert(name, Row { since_us, ..row });
        heard.fresh = true;
    }

    /// What an endpoint has retained of keys that nothing is known of. Of others, the journal has
    /// what was received last, and what is retained could be older; unless it is known only from
    /// before the registry left the plan.
    fn unheard(&self, kept: &KeptTopics, now_us: i64) -> Vec<MessagesBuilder> {
        let run = kept.messages(&self.place.template.filter(), now_us).finish(self.number, 0);
        self.unheard_of(&run, now_us)
    }

    fn unheard_of(&self, run: &Messages, now_us: i64) -> Vec<MessagesBuilder> {
        let (mut offers, mut open) = (Vec::new(), MessagesBuilder::default());
        let heard = self.lock();
        for (i, meta) in run.index.iter().enumerate() {
            let Some((name, row)) = self.row(run, i, now_us) else { continue };
            let left = heard.notes.left.is_some();
            let is_known = |k: &Row| !left || (k.text == row.text && !k.gone);
            if heard.known.rows.get(&name).is_some_and(is_known) {
                continue;
            }
            open.push_with(run.topic(i), run.payload(i), b"", run.properties(i), *meta);
            if open.data_bytes() >= OFFER_BYTES {
                offers.push(std::mem::take(&mut open));
            }
        }
        offers.extend((!open.is_empty()).then_some(open));
        offers
    }

    /// Nothing is missing any more of what is known.
    fn settle(&self) -> anyhow::Result<()> {
        let mut heard = self.lock();
        let Some(left) = heard.notes.left.take() else { return Ok(()) };
        heard.notes.write(&heard.known)?;
        left.remove()
    }

    /// A message as a row, and what that is known by. The row is as it was received, with what its
    /// topic says behind it: the last of several members of a name counts.
    fn row(&self, run: &Messages, i: usize, received_us: i64) -> Option<(String, Row)> {
        let payload = std::str::from_utf8(run.payload(i)).ok()?;
        let gone = payload.is_empty();
        let own: Map<String, Value> = match gone {
            true => Map::new(),
            false => serde_json::from_str(payload).ok()?,
        };
        let (mut more, mut levels) = (Map::new(), Vec::new());
        let topic = std::str::from_utf8(run.topic(i)).ok()?;
        self.place.template.matches(topic, &mut levels);
        for (column, level) in &self.place.captures {
            let place = self.place.template.names().iter().position(|name| name == level)?;
            more.insert(column.clone(), levels.get(place).copied()?.into());
        }
        if let (true, Some(member)) = (gone, &self.source.valid_from) {
            more.insert(member.clone(), since(run, i, member, received_us));
        }
        let text = match payload.trim().strip_suffix('}') {
            None => Value::Object(more).to_string(),
            Some(_) if more.is_empty() => payload.trim().to_owned(),
            Some(open) => {
                let comma = if own.is_empty() { "" } else { "," };
                format!("{open}{comma}{}", &Value::Object(more).to_string()[1..])
            }
        };
        let name = name_of(&self.source, text.as_bytes())?;
        Some((name, Row { text, since_us: Some(received_us), gone }))
    }
}

/// Whether two rows have the same values.
fn says_the_same(one: &str, other: &str) -> bool {
    let read = |text: &str| serde_json::from_str::<Value>(text).ok();
    read(one) == read(other)
}

/// What the names of all versions of a key begin with; `name` is that of one of them.
fn prefix_of(name: &str) -> String {
    let Ok(Value::Array(mut key)) = serde_json::from_str(name) else { return name.to_owned() };
    key.pop();
    let mut prefix = Value::Array(key).to_string();
    prefix.pop();
    prefix.push(',');
    prefix
}

/// Whether anything is known of the key of a row that is known by `name`.
fn is_known_key(known: &Known, name: &str, own_times: bool) -> bool {
    if known.rows.contains_key(name) || !own_times {
        return known.rows.contains_key(name);
    }
    let prefix = prefix_of(name);
    known.rows.range(prefix.clone()..).next().is_some_and(|(n, _)| n.starts_with(&prefix))
}

/// Forgets the oldest version of a key if there are as many as a join remembers. `name` is what
/// another one is known by that holds since `from_us`; false: that one would be the oldest.
fn make_room(known: &mut Known, (name, from_us): (&str, Option<i64>), versions_max: usize) -> bool {
    let prefix = prefix_of(name);
    let of_key = known.rows.range(prefix.clone()..).take_while(|(n, _)| n.starts_with(&prefix));
    let versions: Vec<(Option<i64>, &String)> = of_key.map(|(n, row)| (row.since_us, n)).collect();
    if versions.len() < versions_max {
        return true;
    }
    let Some((oldest_us, oldest)) = versions.into_iter().min() else { return false };
    if from_us < oldest_us {
        return false;
    }
    let oldest = oldest.clone();
    known.rows.remove(&oldest);
    true
}

/// Since when an entry goes that says itself since when it holds.
fn since(run: &Messages, i: usize, member: &str, received_us: i64) -> Value {
    let mut found = [None];
    properties::find(run.properties(i), &[Property::User(member.to_owned())], &mut found);
    let received = chrono::DateTime::from_timestamp_micros(received_us).unwrap_or_default();
    match found[0].and_then(|text| std::str::from_utf8(text).ok()) {
        Some(text) => text.into(),
        None => received.to_rfc3339_opts(chrono::SecondsFormat::Micros, true).into(),
    }
}

impl Entries {
    pub(super) fn new(topics: Vec<Topic>) -> Self {
        Self(topics)
    }

    pub(super) fn topics(&self) -> &[Topic] {
        &self.0
    }

    /// Takes note of entries among messages of the journal; if their epoch is `closed` to new keys,
    /// only of those whose keys are known.
    pub(in crate::engine) fn hear(&self, run: &Messages, closed: bool) {
        self.0.iter().for_each(|topic| topic.hear(run, closed));
    }

    /// Notes what is known, and whether that could be done: then the journal before may be cut
    /// away.
    pub(in crate::engine) fn note(&self) -> bool {
        let mut all = true;
        for topic in &self.0 {
            let mut heard = topic.lock();
            if !heard.fresh {
                continue;
            }
            match heard.notes.write(&heard.known) {
                Ok(()) => {
                    heard.fresh = false;
                    topic.stats.set_healthy();
                }
                Err(error) => {
                    all = false;
                    topic.stats.set_unhealthy(format!("{error:#}"));
                }
            }
        }
        all
    }

    /// What was missing of what is known was offered.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn settle(&self) -> anyhow::Result<()> {
        self.0.iter().try_for_each(Topic::settle)
    }

    /// What sources have retained from before their registries were in the plan, as offers that the
    /// journal takes, each with the number of its source.
    pub(super) fn unheard<'a>(
        &self,
        kept: impl Fn(u16) -> Option<&'a KeptTopics>,
        now_us: i64,
    ) -> Vec<(usize, MessagesBuilder)> {
        let mut offers = Vec::new();
        for topic in &self.0 {
            let of_topic = kept(topic.number).map(|kept| topic.unheard(kept, now_us));
            let number = usize::from(topic.number);
            offers.extend(of_topic.into_iter().flatten().map(|offer| (number, offer)));
        }
        offers
    }

    /// All that is known, as offers that the journal takes.
    pub(super) fn again(&self, now_us: i64) -> Vec<MessagesBuilder> {
        let mut offers = Vec::new();
        for topic in &self.0 {
            let said = topic.lock().known.recalled();
            let name = registry_topic(&topic.source.pipeline, &topic.source.name);
            offers.extend(messages(&name, &said, now_us));
        }
        offers
    }
}

#[cfg(test)]
mod tests;
