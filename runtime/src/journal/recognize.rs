//! Recognises messages that were journaled before: a sender that has missed our acknowledgement
//! sends again, with the DUP flag, the old packet identifier and the same content.
//!
//! Invariant: a message is dropped only if its source has taken it before (QoS 2, not released), or
//! if it says that it may be a repetition, and the newest record of its session with its packet
//! identifier has the same content and is not known to be acknowledged. A sender uses an identifier
//! anew only after it has processed the acknowledgement of its last use; acknowledgements go out in
//! order, so everything up to that last use is acknowledged, too, and cannot be sent again. (MQTT
//! 3.1.1 and 5, 2.2.1 and 4.6.)
//!
//! What is sent again is under way again: of a broker it is newer then than what came before it. So
//! one that died and goes on from an older state is understood, although it uses identifiers anew
//! of which it has forgotten that they are in use. (Devices forget nothing; they may have few
//! identifiers and equal contents, and with them the older order loses less.)
//!
//! What is remembered is rebuilt from the last segment, which begins with a copy of it. Repetitions
//! are not in the journal: after a restart only those are newer that a copy has as such. All bounds
//! forget oldest first; what is forgotten is counted twice when it is sent again, never lost.

use std::collections::{HashMap, VecDeque};

use tidegate_operators::event::SessionEvent;
use tidegate_operators::{MessageMeta, Messages};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::bytes::{Reader, put_bytes, put_varint};

/// Records of one session: there are no more packet identifiers.
const SESSION_RECORDS_MAX: usize = 65_535;
/// And no fewer than what a small device may have in flight, however many sessions there are.
const SESSION_RECORDS_MIN: usize = 16;
/// Records in all, 8 bytes each.
const RECORDS_MAX: usize = 2 << 20;
/// Sessions in all.
const SESSIONS_MAX: usize = 1 << 16;
/// Records without a repetition after which the index of a session is given up.
const INDEX_IDLE_RECORDS: u64 = 4 * SESSION_RECORDS_MAX as u64;

/// 48 bits of content hash above 16 bits of packet identifier.
type Record = u64;

/// In the place of a record that was sent again since; no message has the identifier 0.
const MOVED: Record = 0;

fn record(packet_id: u16, topic: &[u8], payload: &[u8]) -> Record {
    xxh3_64_with_seed(payload, xxh3_64(topic)) << 16 | u64::from(packet_id)
}

/// What was journaled last of each session.
#[derive(Debug)]
pub(crate) struct Recognizer {
    sources: Vec<String>,
    sessions: HashMap<Key, Session>,
    records: usize,
    records_max: usize,
    sessions_max: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// Index into the names of sources.
    source: usize,
    session: u16,
    client: Box<[u8]>,
}

#[derive(Debug, Default)]
struct Session {
    /// About the journal offset of the newest record: the oldest session is forgotten first.
    last_offset: u64,
    recent: VecDeque<Record>,
    /// Number of the first record of `recent` among all records of the session.
    first: u64,
    index: Option<Index>,
}

/// Where each packet identifier was used last; only while a session repeats messages.
#[derive(Debug, Default)]
struct Index {
    used: HashMap<u16, (u64, Record)>,
    /// Records before this number are known to be acknowledged.
    floor: u64,
    /// Number of the record when a repetition came last.
    asked: u64,
}

impl Index {
    fn add(&mut self, number: u64, record: Record) {
        if let Some((last, _)) = self.used.insert(record as u16, (number, record)) {
            self.floor = self.floor.max(last + 1);
        }
    }
}

impl Session {
    fn next(&self) -> u64 {
        self.first + self.recent.len() as u64
    }

    fn push(&mut self, record: Record, offset: u64) {
        self.last_offset = offset;
        let number = self.next();
        if let Some(index) = &mut self.index {
            index.add(number, record);
            if number - index.asked > INDEX_IDLE_RECORDS {
                self.index = None;
            }
        }
        self.recent.push_back(record);
    }

    /// Forgets the oldest records beyond `max`; how many.
    fn forget(&mut self, max: usize) -> usize {
        let surplus = self.recent.len().saturating_sub(max);
        self.recent.drain(..surplus);
        self.first += surplus as u64;
        surplus
    }

    /// Number of the record, if it is the newest with its packet identifier.
    fn newest(&mut self, record: Record) -> Option<u64> {
        let (first, next) = (self.first, self.next());
        let recent = &self.recent;
        let index = self.index.get_or_insert_with(|| {
            let mut index = Index::default();
            let records = recent.iter().zip(first..).filter(|(record, _)| **record != MOVED);
            records.for_each(|(record, number)| index.add(number, *record));
            index
        });
        index.asked = next;
        let (number, known) = index.used.get(&(record as u16))?;
        (*known == record && *number >= first).then_some(*number)
    }

    fn knows(&mut self, record: Record) -> bool {
        let (first, newest) = (self.first, self.newest(record));
        let recent = &self.recent;
        let (Some(number), Some(index)) = (newest, &mut self.index) else { return false };
        let mut oldest = index.floor.max(first);
        while recent.get((oldest - first) as usize) == Some(&MOVED) {
            oldest += 1;
        }
        index.floor = oldest;
        // The oldest that may be open is also where the identifiers of a sender that counts in a
        // circle begin again. With equal contents it may be a new message: better twice than never.
        let same_content = || recent.iter().filter(|r| **r >> 16 == record >> 16).count() > 1;
        number >= oldest && !(number == oldest && same_content())
    }

    /// Makes a record that is known the newest; how many there are more.
    fn again(&mut self, record: Record) -> usize {
        let number = self.next();
        let used = self.index.as_mut().and_then(|index| index.used.get_mut(&(record as u16)));
        let Some((last, _)) = used else { return 0 };
        if *last + 1 == number {
            return 0;
        }
        if let Some(place) = self.recent.get_mut((*last - self.first) as usize) {
            *place = MOVED;
        }
        *last = number;
        self.recent.push_back(record);
        1
    }
}

impl Recognizer {
    /// Remembers nothing yet; takes at most a sixteenth of `budget_bytes`.
    pub(crate) fn new(budget_bytes: u64) -> Self {
        let records_max = (budget_bytes / 16 / 8).min(RECORDS_MAX as u64) as usize;
        Self {
            sources: Vec::new(),
            sessions: HashMap::new(),
            records: 0,
            records_max,
            sessions_max: (records_max / SESSION_RECORDS_MIN).clamp(1, SESSIONS_MAX),
        }
    }

    /// Drops repetitions from what is about to be journaled at about `offset`, and remembers the
    /// rest; how many were dropped. `sources` are the names that numbers stand for.
    pub(crate) fn filter(
        &mut self,
        messages: &mut Messages,
        sources: &[String],
        offset: u64,
    ) -> u64 {
        let mut known: Vec<usize> = Vec::new();
        let all = &*messages;
        self.each(all, sources, |session, meta, record, i| {
            // The source may know better.
            if meta.known || (meta.duplicate && session.knows(record)) {
                known.push(i);
                if meta.known && session.newest(record).is_none() {
                    return 0;
                }
                // What a broker sends bears no client id.
                return if all.client(i).is_empty() { session.again(record) } else { 0 };
            }
            session.push(record, offset + i as u64);
            1
        });
        let dropped = known.len() as u64;
        if dropped > 0 {
            let mut known = known.into_iter().peekable();
            let mut i = 0;
            messages.index.retain(|_| {
                let drop = known.next_if_eq(&i).is_some();
                i += 1;
                !drop
            });
        }
        dropped
    }

    /// Remembers what was read from the journal.
    pub(crate) fn replay(&mut self, messages: &Messages, sources: &[String]) {
        let first = messages.first_offset;
        self.each(messages, sources, |session, _, record, i| {
            session.push(record, first + i as u64);
            1
        });
    }

    /// Calls `take` with session, meta data, record and position of each message that has a packet
    /// identifier; it returns how many records it added.
    fn each(
        &mut self,
        messages: &Messages,
        sources: &[String],
        mut take: impl FnMut(&mut Session, &MessageMeta, Record, usize) -> usize,
    ) {
        let Some(name) = sources.get(usize::from(messages.source)) else { return };
        let source = self.source(name);
        let mut i = 0;
        while i < messages.len() {
            let meta = &messages.index[i];
            if meta.event {
                self.event(source, messages, i);
                i += 1;
                continue;
            }
            if meta.packet_id == 0 {
                i += 1;
                continue;
            }
            // Runs of one session are the rule: one look-up for each.
            let (client, session) = (messages.client(i), meta.session);
            let key = Key { source, session, client: client.into() };
            let cap = self.session_records_max();
            let entry = self.sessions.entry(key).or_default();
            let mut added = 0;
            while i < messages.len() {
                let meta = &messages.index[i];
                let same = meta.session == session && messages.client(i) == client;
                if !same || meta.event || meta.packet_id == 0 {
                    break;
                }
                let record = record(meta.packet_id, messages.topic(i), messages.payload(i));
                added += take(entry, meta, record, i);
                i += 1;
            }
            self.records = self.records + added - entry.forget(cap);
            self.bound();
        }
    }

    /// A session that begins anew has used no identifier. What a broker sends bears no client id,
    /// but what we say of our session there does.
    fn event(&mut self, source: usize, messages: &Messages, i: usize) {
        if SessionEvent::of(messages, i).is_some_and(|event| event.fresh) {
            let session = messages.index[i].session;
            for client in [messages.client(i), b""] {
                let key = Key { source, session, client: client.into() };
                self.records -= self.sessions.remove(&key).map_or(0, |s| s.recent.len());
            }
        }
    }

    fn source(&mut self, name: &str) -> usize {
        self.sources.iter().position(|s| s == name).unwrap_or_else(|| {
            self.sources.push(name.to_owned());
            self.sources.len() - 1
        })
    }

    fn session_records_max(&self) -> usize {
        (self.records_max / self.sessions.len().max(1))
            .clamp(SESSION_RECORDS_MIN, SESSION_RECORDS_MAX)
    }

    fn bound(&mut self) {
        if self.sessions.len() > self.sessions_max {
            // A quarter at a time, so that it is rarely done.
            let mut offsets: Vec<u64> = self.sessions.values().map(|s| s.last_offset).collect();
            offsets.sort_unstable();
            let oldest = offsets[offsets.len() / 4];
            self.sessions.retain(|_, s| s.last_offset > oldest);
            self.records = self.sessions.values().map(|s| s.recent.len()).sum();
        }
        if self.records > self.records_max {
            let max = (self.session_records_max() / 4 * 3).max(1);
            let forgotten: usize = self.sessions.values_mut().map(|s| s.forget(max)).sum();
            self.records -= forgotten;
        }
    }

    /// Appends a copy.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.sources.len() as u64);
        self.sources.iter().for_each(|name| put_bytes(out, name.as_bytes()));
        let mut sessions: Vec<_> = self.sessions.iter().collect();
        sessions.sort_unstable_by_key(|(key, _)| (key.source, key.session, &key.client));
        put_varint(out, sessions.len() as u64);
        for (key, session) in sessions {
            put_varint(out, key.source as u64);
            put_varint(out, key.session.into());
            put_bytes(out, &key.client);
            put_varint(out, session.last_offset);
            let records = session.recent.iter().filter(|r| **r != MOVED);
            put_varint(out, records.clone().count() as u64);
            records.for_each(|r| out.extend_from_slice(&r.to_le_bytes()));
        }
    }

    /// Takes a copy over; `None` where the bytes are not one.
    pub(crate) fn get(&mut self, body: &[u8]) -> Option<()> {
        let mut reader = Reader::new(body);
        let names = usize::try_from(reader.varint()?).ok()?;
        let mut sources = Vec::new();
        for _ in 0..names {
            sources.push(reader.text()?);
        }
        let count = reader.varint()?;
        let (mut sessions, mut records) = (HashMap::new(), 0);
        for _ in 0..count {
            let source = usize::try_from(reader.varint()?).ok().filter(|s| *s < sources.len())?;
            let session = u16::try_from(reader.varint()?).ok()?;
            let client = reader.bytes()?.into();
            let last_offset = reader.varint()?;
            let len = usize::try_from(reader.varint()?).ok()?;
            let mut recent = VecDeque::with_capacity(len.min(reader.remaining() / 8));
            for _ in 0..len {
                recent.push_back(reader.u64_le()?);
            }
            records += recent.len();
            let session = (
                Key { source, session, client },
                Session { last_offset, recent, ..Session::default() },
            );
            sessions.extend([session]);
        }
        if reader.remaining() != 0 {
            return None;
        }
        (self.sources, self.sessions, self.records) = (sources, sessions, records);
        self.bound();
        Some(())
    }
}

#[cfg(test)]
mod tests;
