//! Which filters to ask the broker for, and what became of it.
//!
//! Asked for is only what the session does not have: a broker may send its retained messages again
//! for each SUBSCRIBE. Entries of registries are asked for on each connection, just because it
//! does: what a broker dropped of them while we were away (at QoS 0, or because its queue was full)
//! it still has as the last of its topic. A refused filter is asked for again with growing pauses
//! while the others go on.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::backoff::Backoff;
use super::config::SubscriberConfig;
use super::memory::Memory;
use super::packets;
use super::reasons;
use crate::mqtt::limits::{SUBACK_TIMEOUT, SUBSCRIBE_FILTERS_MAX};
use crate::mqtt::wire::{Version, packet_id};
use crate::time;

pub(super) struct Subscription {
    version: Version,
    wanted: Vec<String>,
    /// Those among them that are entries of registries.
    entries: Vec<String>,
    /// The entries were not asked for on this connection yet.
    fresh: bool,
    qos: u8,
    next_id: u16,
    /// SUBSCRIBEs that were not answered yet.
    asked: BTreeMap<u16, Vec<String>>,
    /// UNSUBSCRIBEs likewise.
    left: BTreeMap<u16, Vec<String>>,
    /// When the answer is due.
    due: Option<Instant>,
    /// When to ask again for what was refused.
    retry: Option<Instant>,
    refused: Vec<String>,
    backoff: Backoff,
}

/// What an answer says.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// Filters that are granted now.
    pub(super) granted: Vec<String>,
    /// The lowest quality of service among them.
    pub(super) qos_min: Option<u8>,
    /// Filters that were missing, by the time since which they were, microseconds.
    pub(super) ended: BTreeMap<i64, Vec<String>>,
    /// Filters that are refused, with the reasons.
    pub(super) refused: Vec<String>,
}

impl Subscription {
    /// That of connection `number` of a subscriber.
    pub(super) fn new(config: &SubscriberConfig, number: u16) -> Self {
        Self {
            version: config.version(),
            wanted: config.wire_filters(number),
            entries: if number == 0 { config.entries.clone() } else { Vec::new() },
            fresh: true,
            qos: config.qos,
            next_id: 1,
            asked: BTreeMap::new(),
            left: BTreeMap::new(),
            due: None,
            retry: None,
            refused: Vec::new(),
            backoff: Backoff::new(),
        }
    }

    /// Appends what has to be sent when a connection begins: nothing if the session has just what
    /// is wanted and no registry is among it.
    pub(super) fn begin(&mut self, out: &mut Vec<u8>, memory: &mut Memory) -> Result<(), String> {
        let unwanted = memory.unwanted(&self.wanted);
        for some in unwanted.chunks(SUBSCRIBE_FILTERS_MAX) {
            let id = self.id();
            out.extend_from_slice(&packets::unsubscribe(self.version, id, some)?);
            self.left.insert(id, some.to_vec());
        }
        self.ask(out, memory)
    }

    /// Asks for all that the session lacks, and once for all entries.
    fn ask(&mut self, out: &mut Vec<u8>, memory: &Memory) -> Result<(), String> {
        self.retry = None;
        self.refused.clear();
        let fresh = std::mem::take(&mut self.fresh);
        let lacks =
            |f: &&String| !memory.is_granted(f, self.qos) || (fresh && self.entries.contains(*f));
        let wanted: Vec<String> = self.wanted.iter().filter(lacks).cloned().collect();
        for some in wanted.chunks(SUBSCRIBE_FILTERS_MAX) {
            let (id, how) = (self.id(), (self.qos, self.entries.as_slice()));
            out.extend_from_slice(&packets::subscribe(self.version, id, some, how)?);
            self.asked.insert(id, some.to_vec());
            self.due = Some(time::now() + SUBACK_TIMEOUT);
        }
        Ok(())
    }

    fn id(&mut self) -> u16 {
        let id = self.next_id;
        self.next_id = id.checked_add(1).unwrap_or(1);
        id
    }

    /// When [`Subscription::tick`] has something to do.
    pub(super) fn alarm(&self) -> Option<Instant> {
        self.due.or(self.retry)
    }

    /// Does what is due; `reading` is whether an answer could have been heard.
    pub(super) fn tick(
        &mut self,
        out: &mut Vec<u8>,
        memory: &Memory,
        reading: bool,
    ) -> Result<(), String> {
        let now = time::now();
        if !reading {
            self.due = self.due.map(|_| now + SUBACK_TIMEOUT);
        }
        if self.due.is_some_and(|due| now >= due) {
            return Err("the broker does not answer SUBSCRIBE".to_owned());
        }
        match self.retry {
            Some(at) if now >= at => self.ask(out, memory),
            _ => Ok(()),
        }
    }

    /// The session has all that is wanted.
    pub(super) fn is_complete(&self) -> bool {
        self.asked.is_empty() && self.refused.is_empty()
    }

    /// The session has some of it.
    pub(super) fn has_any(&self, memory: &Memory) -> bool {
        self.wanted.iter().any(|filter| memory.is_granted(filter, self.qos))
    }

    /// Why it has not.
    pub(super) fn problem(&self) -> String {
        format!("the broker refuses the subscription to {}", self.refused.join(", "))
    }

    /// Takes note of an UNSUBACK.
    pub(super) fn unsubscribed(&mut self, body: &[u8], memory: &mut Memory) {
        let id = packet_id(body).unwrap_or(0);
        for filter in self.left.remove(&id).unwrap_or_default() {
            memory.not_granted(&filter);
        }
    }

    /// Takes note of a SUBACK.
    pub(super) fn answered(
        &mut self,
        body: &[u8],
        memory: &mut Memory,
        now_us: i64,
    ) -> Result<Answer, String> {
        let id = packet_id(body).unwrap_or(0);
        let mut answer = Answer::default();
        // The answer to something that was not asked changes nothing.
        let Some(filters) = self.asked.remove(&id) else { return Ok(answer) };
        let codes = packets::suback(body, filters.len())?;
        for (filter, &code) in filters.into_iter().zip(codes) {
            if code > 2 {
                let why = reasons::subscribe(self.version, code);
                answer.refused.push(format!("`{filter}` (0x{code:02x}: {why})"));
                memory.refuse(&filter, now_us);
                continue;
            }
            answer.qos_min = Some(answer.qos_min.unwrap_or(2).min(code));
            if let Some(since) = memory.grant(&filter, self.qos) {
                answer.ended.entry(since).or_default().push(filter.clone());
            }
            answer.granted.push(filter);
        }
        self.refused.extend_from_slice(&answer.refused);
        if self.asked.is_empty() {
            self.due = None;
            if !self.refused.is_empty() {
                self.retry = Some(time::now() + self.backoff.next_pause());
            }
        }
        Ok(answer)
    }
}
