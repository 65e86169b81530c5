//! Requests that were taken, by their idempotency keys: the same key again is answered without
//! taking anything again.
//!
//! A key is the first entry of the offer that it came with, as a session event, so it is durable
//! exactly if the messages are. The window of known keys is made from what the journal hands on,
//! live and in replay, and each checkpoint holds a copy; so it is whole after a crash, too.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{AsArray, BinaryArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;
use ring::digest;
use tidegate_operators::Messages;
use tidegate_operators::event::SessionEvent;

use super::limits::{KEYS_AGE_US, KEYS_MAX};

/// Name of the window in checkpoints; no pipeline can have it.
pub(crate) const PART: &str = ":requests";
/// What the session event of a request is called.
const EVENT: &str = "request";

/// Who sent which key to which pipeline, as a hash that nobody can aim at.
pub(crate) type Id = [u8; 16];

/// What the request said, as a hash.
pub(crate) type Content = [u8; 8];

/// The window of known keys, shared by all HTTP sources and the engine.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<Id, Content>,
    /// In order of arrival, with the time, microseconds.
    order: VecDeque<(Id, i64)>,
    under_way: HashSet<Id>,
}

/// What is known of a key when its request begins.
#[derive(Debug)]
pub(crate) enum Begin {
    /// It is new. As long as this lives, others with the key are [`Begin::UnderWay`].
    New(UnderWay),
    /// Taken before.
    Duplicate,
    /// Taken before, with another content.
    OtherContent,
    /// Another request with this key waits for the disk.
    UnderWay,
}

/// A key whose request has not been answered.
#[derive(Debug)]
pub(crate) struct UnderWay {
    requests: Arc<Requests>,
    id: Id,
    content: Content,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.requests.lock().under_way.remove(&self.id);
    }
}

impl UnderWay {
    /// The event that makes the key durable; it has to be in the offer of the messages.
    pub(crate) fn event(&self, source: &str, user: &str, address: &str) -> SessionEvent {
        SessionEvent {
            source: source.to_owned(),
            client_id: user.to_owned(),
            user: user.to_owned(),
            event: EVENT.to_owned(),
            detail: format!("key={} content={}", hex(&self.id), hex(&self.content)),
            address: address.to_owned(),
            protocol: "http".to_owned(),
            fresh: false,
            heard_us: 0,
        }
    }

    /// The offer is durable. (The journal says so as well, but perhaps after the next request.)
    pub(crate) fn taken(&self, time_us: i64) {
        self.requests.lock().add(self.id, self.content, time_us);
    }
}

/// The id of a key.
pub(crate) fn id_of(pipeline: &str, user: &str, key: &[u8]) -> Id {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [pipeline.as_bytes(), user.as_bytes(), key] {
        context.update(&(part.len() as u64).to_le_bytes());
        context.update(part);
    }
    first(context.finish().as_ref())
}

/// The hash of what a request says.
pub(crate) fn content_of(topic: &str, body: &[u8]) -> Content {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&(topic.len() as u64).to_le_bytes());
    context.update(topic.as_bytes());
    context.update(body);
    first(context.finish().as_ref())
}

fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().expect("a SHA-256 has 32 bytes")
}

impl State {
    fn add(&mut self, id: Id, content: Content, time_us: i64) {
        if self.known.insert(id, content).is_none() {
            self.order.push_back((id, time_us));
        }
        while let Some((oldest, at)) = self.order.front().copied()
            && (self.order.len() > KEYS_MAX || at < time_us - KEYS_AGE_US)
        {
            self.order.pop_front();
            self.known.remove(&oldest);
        }
    }
}

impl Requests {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a request with this key is to be taken.
    pub(crate) fn begin(self: &Arc<Self>, id: Id, content: Content) -> Begin {
        let mut state = self.lock();
        match state.known.get(&id) {
            Some(known) if *known == content => return Begin::Duplicate,
            Some(_) => return Begin::OtherContent,
            None => {}
        }
        if !state.under_way.insert(id) {
            return Begin::UnderWay;
        }
        drop(state);
        Begin::New(UnderWay { requests: Arc::clone(self), id, content })
    }

    /// Learns the keys among messages that are durable.
    pub(crate) fn note(&self, messages: &Messages) {
        for (i, meta) in messages.index.iter().enumerate().filter(|(_, meta)| meta.event) {
            let event = SessionEvent::of(messages, i).filter(|e| e.event == EVENT);
            if let Some((id, content)) = event.and_then(|e| parse(&e.detail)) {
                self.lock().add(id, content, meta.received_us);
            }
        }
    }

    /// The window, for a checkpoint; none if it is empty. It may hold keys that came after the
    /// checkpoint's epoch: they are durable, too.
    pub(crate) fn save(&self) -> Option<(String, RecordBatch)> {
        let state = self.lock();
        if state.order.is_empty() {
            return None;
        }
        let ids = BinaryArray::from_iter_values(state.order.iter().map(|(id, _)| id));
        let contents = BinaryArray::from_iter_values(
            state.order.iter().map(|(id, _)| state.known.get(id).copied().unwrap_or_default()),
        );
        let times = Int64Array::from_iter_values(state.order.iter().map(|(_, time)| *time));
        let batch = RecordBatch::try_from_iter([
            ("id", Arc::new(ids) as _),
            ("content", Arc::new(contents) as _),
            ("time", Arc::new(times) as _),
        ]);
        Some((PART.to_owned(), batch.expect("columns of one length")))
    }

    /// Takes the window out of what a checkpoint had.
    pub(crate) fn restore(&self, parts: &mut Vec<(String, RecordBatch)>) {
        for (_, batch) in parts.extract_if(.., |(name, _)| name == PART) {
            let ids = batch["id"].as_binary::<i32>();
            let contents = batch["content"].as_binary::<i32>();
            let times = batch["time"].as_primitive::<Int64Type>();
            let mut state = self.lock();
            for row in 0..batch.num_rows() {
                if let (Ok(id), Ok(content)) =
                    (ids.value(row).try_into(), contents.value(row).try_into())
                {
                    state.add(id, content, times.value(row));
                }
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn parse(detail: &str) -> Option<(Id, Content)> {
    let (id, content) = detail.strip_prefix("key=")?.split_once(" content=")?;
    Some((unhex(id)?, unhex(content)?))
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    let mut out = [0; N];
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use tidegate_operators::MessagesBuilder;

    use super::*;

    fn new(requests: &Arc<Requests>, id: Id) -> UnderWay {
        match requests.begin(id, [1; 8]) {
            Begin::New(under_way) => under_way,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_key_is_known_from_the_journal_and_from_checkpoints() {
        let requests = Arc::new(Requests::default());
        let id = id_of("p", "u", b"k");
        assert_ne!(id, id_of("p", "uk", b""));
        let under_way = new(&requests, id);
        assert!(matches!(requests.begin(id, [1; 8]), Begin::UnderWay));
        let mut offer = MessagesBuilder::default();
        under_way.event("s", "u", "127.0.0.1").put(&mut offer, 5, 0);
        drop(under_way);
        // It was never said to be taken: the next one is new.
        drop(new(&requests, id));

        let messages = offer.finish(0, 0);
        requests.note(&messages);
        assert!(matches!(requests.begin(id, [1; 8]), Begin::Duplicate));
        assert!(matches!(requests.begin(id, [2; 8]), Begin::OtherContent));

        let batch = requests.save();
        let mut parts = vec![(
            "p/step".to_owned(),
            RecordBatch::new_empty(Arc::new(arrow::datatypes::Schema::empty())),
        )];
        parts.extend(batch);
        let later = Arc::new(Requests::default());
        later.restore(&mut parts);
        assert_eq!(parts.len(), 1, "the rest is for others");
        assert!(matches!(later.begin(id, [1; 8]), Begin::Duplicate));
    }

    #[test]
    fn the_window_is_bounded_by_number_and_age() {
        let requests = Arc::new(Requests::default());
        let id = |n: usize| id_of("p", "", &n.to_le_bytes());
        for n in 0..KEYS_MAX + 2 {
            new(&requests, id(n)).taken(n as i64);
        }
        assert_eq!(requests.lock().known.len(), KEYS_MAX);
        assert!(matches!(requests.begin(id(1), [1; 8]), Begin::New(_)));
        assert!(matches!(requests.begin(id(2), [1; 8]), Begin::Duplicate));
        new(&requests, id(KEYS_MAX + 2)).taken(KEYS_AGE_US + KEYS_MAX as i64);
        let state = requests.lock();
        assert_eq!((state.known.len(), state.order.len(), state.under_way.len()), (3, 3, 0));
    }
}
