//! What registries that are topics said last, learnt from the journal itself.
//!
//! Their messages are in the journal as they were received, and the joins take them from there.
//! This is only for joins that are new: they begin after the journal was cut, and are told what is
//! known, each entry since when it holds. So what is told can be older than what the journal says
//! by then, and changes nothing.
//!
//! It is noted before each checkpoint, because what the journal had before that may be cut away.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};
use tidegate_operators::decode::topics_match;
use tidegate_operators::properties::{self, Property};
use tidegate_operators::spec::registry_topic;
use tidegate_operators::topic::TopicTemplate;
use tidegate_operators::{Messages, MessagesBuilder};
use tidegate_pipelines::plan::{RegistrySource, RegistryTopic};

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
    note: Note,
    /// There is something that was not noted.
    fresh: bool,
}

impl Topic {
    /// `known` is what was noted; `number` is that of the pipeline's source.
    pub(super) fn new(
        source: &RegistrySource,
        place: &RegistryTopic,
        number: u16,
        (note, known): (Note, Known),
    ) -> Self {
        let stats = Arc::new(SourceStats::default());
        stats.set_healthy();
        Self {
            number,
            source: source.clone(),
            place: place.clone(),
            topics: [place.template.clone()],
            stats,
            said: Mutex::new(Heard { known, note, fresh: false }),
        }
    }

    /// What it is, for people.
    pub(super) fn name(&self) -> String {
        format!("registry {}.{}", self.source.pipeline, self.source.name)
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, run: &Messages) {
        if run.source != self.number {
            return;
        }
        for (i, meta) in run.index.iter().enumerate().filter(|(_, meta)| !meta.event) {
            if !topics_match(&self.topics, run.topic(i)) {
                continue;
            }
            // What cannot be read is a row of `system.rejects` and nothing to tell anybody of.
            let Some((name, row)) = self.row(run, i, meta.received_us) else { continue };
            let mut heard = self.lock();
            let known = heard.known.rows.get(&name);
            let is_new = known.is_none();
            let same = known.is_some_and(|k| k.text == row.text && k.gone == row.gone);
            if same || (is_new && row.gone && self.source.valid_from.is_none()) {
                continue;
            }
            let since_us = if is_new { None } else { row.since_us };
            heard.known.rows.insert(name, Row { since_us, ..row });
            heard.fresh = true;
        }
    }

    /// What an endpoint has retained of keys that nothing is known of. Of others, the journal has
    /// what was received last, and what is retained could be older.
    fn unheard(&self, kept: &KeptTopics, now_us: i64) -> Vec<MessagesBuilder> {
        let run = kept.messages(&self.place.template.filter(), now_us).finish(self.number, 0);
        let (mut offers, mut open) = (Vec::new(), MessagesBuilder::default());
        let known = self.lock();
        for (i, meta) in run.index.iter().enumerate() {
            let row = self.row(&run, i, now_us);
            if row.is_none_or(|(name, _)| known.known.rows.contains_key(&name)) {
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

    /// A message as a row, and what that is known by.
    fn row(&self, run: &Messages, i: usize, received_us: i64) -> Option<(String, Row)> {
        let gone = run.payload(i).is_empty();
        let mut row: Map<String, Value> = match gone {
            true => Map::new(),
            false => serde_json::from_slice(run.payload(i)).ok()?,
        };
        let mut levels = Vec::new();
        let topic = std::str::from_utf8(run.topic(i)).ok()?;
        self.place.template.matches(topic, &mut levels);
        for (column, level) in &self.place.captures {
            let place = self.place.template.names().iter().position(|name| name == level)?;
            row.insert(column.clone(), levels.get(place).copied()?.into());
        }
        if let (true, Some(member)) = (gone, &self.source.valid_from) {
            row.insert(member.clone(), since(run, i, member, received_us));
        }
        let text = Value::Object(row).to_string();
        let name = name_of(&self.source, text.as_bytes())?;
        Some((name, Row { text, since_us: Some(received_us), gone }))
    }
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

    /// Takes note of entries among messages of the journal.
    pub(in crate::engine) fn hear(&self, run: &Messages) {
        self.0.iter().for_each(|topic| topic.hear(run));
    }

    /// Notes what is known: the journal before may be cut away from now on.
    pub(in crate::engine) fn note(&self) {
        for topic in &self.0 {
            let mut heard = topic.lock();
            if !heard.fresh {
                continue;
            }
            match heard.note.write(&heard.known) {
                Ok(()) => {
                    heard.fresh = false;
                    topic.stats.set_healthy();
                }
                Err(error) => topic.stats.set_unhealthy(format!("{error:#}")),
            }
        }
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
            let said = topic.lock().known.again();
            let name = registry_topic(&topic.source.pipeline, &topic.source.name);
            offers.extend(messages(&name, &said, now_us));
        }
        offers
    }
}

#[cfg(test)]
mod tests;
