//! What a source says of its sessions, as messages of its own in the journal: a device connected,
//! its will was sent, a broker has forgotten us. Journaled like readings, so that replay gives the
//! same rows of `system.sessions` and `system.gaps`; no pipeline decodes them. The engine's own
//! alerts come the same way.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int64Builder, RecordBatch, StringBuilder, TimestampMicrosecondBuilder,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::message::{MessageMeta, Messages, MessagesBuilder};
use crate::reject::{Reason, Reject, RejectBuilder};
use crate::system::{LimitRow, engine_alerts, gaps_schema, limit_rows, sessions_schema};

/// "Topic" of a [`SessionEvent`].
const SESSION: &[u8] = b"session";
/// "Topic" of a [`Gap`].
const GAP: &[u8] = b"gap";
/// "Topic" of a [`Blocked`].
const BLOCKED: &[u8] = b"blocked";
/// "Topic" of an [`EngineAlert`].
const ALERT: &[u8] = b"alert";
/// "Topic" of a [`LimitChange`].
const LIMIT: &[u8] = b"limit";
/// "Topic" of an [`Untaken`].
const UNTAKEN: &[u8] = b"untaken";
/// "Topic" of [`NoNewKeys`].
const NO_NEW_KEYS: &[u8] = b"no_new_keys";
/// "Pipeline" of the engine's own alerts.
pub const ENGINE: &str = "tidegate";

/// What happened to a session. The text of `event` is part of the product's interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionEvent {
    /// Name of the source.
    pub source: String,
    /// Client id of the device, or of our own session at a broker.
    pub client_id: String,
    /// User it has proved to be; empty for nobody.
    pub user: String,
    /// `connected`, `disconnected`, `lost`, `timeout`, `taken_over`, `will`, `refused`, `denied`,
    /// `limited`, `expired`, `starting`, `subscribed`, `filter_refused`, ...
    pub event: String,
    /// Why, or the topic of a will; for people.
    pub detail: String,
    /// Network address of the peer.
    pub address: String,
    /// `3.1.1` or `5`.
    pub protocol: String,
    /// Whether the session begins anew: packet identifiers from before mean nothing any more.
    pub fresh: bool,
    /// Of a session that was lost, when the peer was last heard, microseconds since the Unix epoch;
    /// 0 if that is not known.
    pub heard_us: i64,
}

/// A time in which messages may have been lost before they reached us.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gap {
    /// Name of the source.
    pub source: String,
    /// What was subscribed to, filters separated by spaces.
    pub filter: String,
    /// When the peer was last heard, microseconds since the Unix epoch.
    pub from_us: i64,
    /// When messages flow again, microseconds since the Unix epoch.
    pub to_us: i64,
    /// Why, for people.
    pub reason: String,
}

/// A time in which the journal takes nothing from sources, because it has no room. Told again while
/// it lasts, so that a process that is killed leaves none that lasts for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Blocked {
    /// Since when, microseconds since the Unix epoch; the same each time it is told.
    pub from_us: i64,
    /// How long at least, so far as is known; microseconds since the Unix epoch.
    pub to_us: i64,
}

impl Blocked {
    /// Appends it to what is offered to the journal.
    pub fn put(&self, out: &mut MessagesBuilder, received_us: i64) {
        put(out, BLOCKED, self, "", received_us, 0);
    }

    /// The time that message `i` tells of, if it does.
    pub fn of(messages: &Messages, i: usize) -> Option<Self> {
        told(messages, i, BLOCKED)
    }
}

/// A change of one of the engine's own alerts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineAlert {
    /// `disk_full`, `source_down`, ...
    pub rule: String,
    /// `firing` or `resolved`.
    pub status: String,
    /// Since when it fires, microseconds since the Unix epoch.
    pub since_us: i64,
    /// Why, for people.
    pub summary: String,
}

impl EngineAlert {
    /// Appends it to what is offered to the journal.
    pub fn put(&self, out: &mut MessagesBuilder, received_us: i64) {
        put(out, ALERT, self, "", received_us, 0);
    }

    /// The change that message `i` tells of, if it does.
    pub fn of(messages: &Messages, i: usize) -> Option<Self> {
        told(messages, i, ALERT)
    }
}

/// A limit of the engine was reached, or is no longer. The texts of `kind` and `state` are part of
/// the product's interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitChange {
    /// `memory`, `journal`, `disk`, `spill`, `in_flight`, `outbox`, `keys`, `open_files`.
    pub kind: String,
    /// Which one of them: the stage of memory, the step of keys; empty where there is one.
    pub subject: String,
    /// `reached` or `left`.
    pub state: String,
    /// What was measured; bytes, or rows that were refused.
    pub value: Option<u64>,
    /// What it is measured by.
    pub max: Option<u64>,
    /// What is done about it, for people.
    pub action: String,
}

impl LimitChange {
    /// Appends it to what is offered to the journal.
    pub fn put(&self, out: &mut MessagesBuilder, received_us: i64) {
        put(out, LIMIT, self, "", received_us, 0);
    }

    /// The change that message `i` tells of, if it does.
    pub fn of(messages: &Messages, i: usize) -> Option<Self> {
        told(messages, i, LIMIT)
    }
}

/// A message that a source did not take because of its packet. It is a row of `system.rejects`,
/// with what is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Untaken {
    /// Its topic, maybe shortened; empty where that is not known.
    pub topic: String,
    /// The sender's client id, empty where unknown.
    pub client_id: String,
    /// The packet is not what the protocol says; else it is larger than allowed.
    pub malformed: bool,
    /// Why, for people.
    pub detail: String,
    /// Some bytes of what follows the topic, maybe none.
    pub start: Vec<u8>,
    /// Length of the whole packet.
    pub packet_bytes: u64,
}

impl Untaken {
    /// Appends it to what is offered to the journal.
    pub fn put(&self, out: &mut MessagesBuilder, received_us: i64) {
        put(out, UNTAKEN, self, "", received_us, 0);
    }

    /// The message that message `i` tells of, if it does.
    pub fn of(messages: &Messages, i: usize) -> Option<Self> {
        told(messages, i, UNTAKEN)
    }

    fn reject(&self, received_us: i64, offset: u64) -> Reject<'_> {
        let reason = if self.malformed { Reason::Malformed } else { Reason::TooLarge };
        Reject {
            received_us,
            // Whose it would have been is decided by its content, which is not known.
            pipeline: "",
            topic: self.topic.as_bytes(),
            client: self.client_id.as_bytes(),
            offset,
            element: None,
            reason,
            detail: &self.detail,
            payload: &self.start,
            reading_us: None,
        }
    }
}

/// Memory is used up: new keys find no place in the epoch that this is in. It holds for that epoch
/// alone and is journaled in each one anew, so a replay, from wherever it begins, refuses the same
/// rows, and nobody has to remember it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NoNewKeys {
    /// Names of operators that let new keys in all the same: they are so young that to them nearly
    /// all keys are new.
    pub but: BTreeSet<String>,
}

impl NoNewKeys {
    /// Appends it to what is written to the journal.
    pub fn put(&self, out: &mut MessagesBuilder, received_us: i64) {
        if self.but.is_empty() {
            let meta = MessageMeta { received_us, event: true, ..MessageMeta::default() };
            out.push(NO_NEW_KEYS, &[], &[], meta);
        } else {
            put(out, NO_NEW_KEYS, self, "", received_us, 0);
        }
    }

    /// The one among messages, if there is one.
    pub fn of(messages: &Messages) -> Option<Self> {
        (0..messages.len()).find_map(|i| told(messages, i, NO_NEW_KEYS))
    }
}

impl SessionEvent {
    /// Appends it to what is offered to the journal. `session` as in [`MessageMeta::session`].
    pub fn put(&self, out: &mut MessagesBuilder, received_us: i64, session: u16) {
        put(out, SESSION, self, &self.client_id, received_us, session);
    }

    /// The event that message `i` is, if it is one.
    pub fn of(messages: &Messages, i: usize) -> Option<Self> {
        told(messages, i, SESSION)
    }
}

/// Whether message `i` tells of the sessions of the source that brought it. All other events are
/// the engine's own, and hold whichever source they stand under.
pub fn is_of_sessions(messages: &Messages, i: usize) -> bool {
    messages.index[i].event && [SESSION, GAP].contains(&messages.topic(i))
}

impl Gap {
    /// Appends it to what is offered to the journal.
    pub fn put(&self, out: &mut MessagesBuilder, received_us: i64) {
        put(out, GAP, self, "", received_us, 0);
    }

    /// The gap that message `i` tells of, if it does.
    pub fn of(messages: &Messages, i: usize) -> Option<Self> {
        told(messages, i, GAP)
    }
}

fn put(
    out: &mut MessagesBuilder,
    topic: &[u8],
    event: &impl Serialize,
    client: &str,
    received_us: i64,
    session: u16,
) {
    // Structs of texts and numbers always serialize.
    let payload = serde_json::to_vec(event).unwrap_or_default();
    let meta = MessageMeta { received_us, event: true, session, ..MessageMeta::default() };
    out.push(topic, &payload, client.as_bytes(), meta);
}

/// What message `i` tells, if it is an event with this "topic".
fn told<E: Default + DeserializeOwned>(messages: &Messages, i: usize, topic: &[u8]) -> Option<E> {
    let is = messages.index[i].event && messages.topic(i) == topic;
    is.then(|| serde_json::from_slice(messages.payload(i)).unwrap_or_default())
}

/// Events as rows.
#[derive(Clone, Debug)]
pub struct EventRows {
    /// Rows of `system.sessions`.
    pub sessions: RecordBatch,
    /// Rows of `system.gaps`.
    pub gaps: RecordBatch,
    /// Rows of `system.alerts`.
    pub alerts: RecordBatch,
    /// Rows of `system.limits`.
    pub limits: RecordBatch,
    /// Rows of `system.rejects`.
    pub rejects: RecordBatch,
}

/// The events among `messages` as rows.
pub fn event_rows(messages: &Messages) -> EventRows {
    let mut alerts: Vec<(i64, EngineAlert)> = Vec::new();
    let mut limits: Vec<LimitRow> = Vec::new();
    let mut rejects = RejectBuilder::default();
    let mut sessions = Rows::<6>::default();
    let mut gaps = Rows::<3>::default();
    let (mut from, mut to) =
        (TimestampMicrosecondBuilder::new(), TimestampMicrosecondBuilder::new());
    for (i, meta) in messages.index.iter().enumerate().filter(|(_, m)| m.event) {
        let offset = messages.first_offset + i as u64;
        if let Some(e) = SessionEvent::of(messages, i) {
            let texts = [e.source, e.client_id, e.user, e.event, e.detail, e.address];
            sessions.push(meta.received_us, offset, texts);
            sessions.last.append_value(e.protocol);
        } else if let Some(gap) = Gap::of(messages, i) {
            gaps.push(meta.received_us, offset, [gap.source, gap.filter, gap.reason]);
            from.append_value(gap.from_us);
            to.append_value(gap.to_us);
        } else if let Some(alert) = EngineAlert::of(messages, i) {
            alerts.push((meta.received_us, alert));
        } else if let Some(change) = LimitChange::of(messages, i) {
            limits.push((meta.received_us, offset, change));
        } else if let Some(untaken) = Untaken::of(messages, i) {
            rejects.push_part(&untaken.reject(meta.received_us, offset), untaken.packet_bytes);
        }
    }
    let mut columns = sessions.finish();
    columns.push(Arc::new(sessions.last.finish()));
    let sessions =
        RecordBatch::try_new(sessions_schema(), columns).expect("columns follow the schema");
    let mut columns = gaps.finish();
    columns.push(Arc::new(from.finish().with_timezone("UTC")));
    columns.push(Arc::new(to.finish().with_timezone("UTC")));
    let gaps = RecordBatch::try_new(gaps_schema(), columns).expect("columns follow the schema");
    let (alerts, limits) = (engine_alerts(&alerts), limit_rows(&limits));
    EventRows { sessions, gaps, alerts, limits, rejects: rejects.finish() }
}

/// Time, offset and some texts; `last` is one text more.
struct Rows<const N: usize> {
    time: TimestampMicrosecondBuilder,
    offset: Int64Builder,
    texts: [StringBuilder; N],
    last: StringBuilder,
}

impl<const N: usize> Default for Rows<N> {
    fn default() -> Self {
        Self {
            time: TimestampMicrosecondBuilder::new(),
            offset: Int64Builder::new(),
            texts: std::array::from_fn(|_| StringBuilder::new()),
            last: StringBuilder::new(),
        }
    }
}

impl<const N: usize> Rows<N> {
    fn push(&mut self, time_us: i64, offset: u64, texts: [String; N]) {
        self.time.append_value(time_us);
        self.offset.append_value(offset as i64);
        for (builder, text) in self.texts.iter_mut().zip(texts) {
            builder.append_value(text);
        }
    }

    fn finish(&mut self) -> Vec<ArrayRef> {
        let mut columns: Vec<ArrayRef> =
            vec![Arc::new(self.time.finish().with_timezone("UTC")), Arc::new(self.offset.finish())];
        columns.extend(self.texts.iter_mut().map(|t| Arc::new(t.finish()) as ArrayRef));
        columns
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::{Int64Type, TimestampMicrosecondType};

    use super::*;

    #[test]
    fn what_was_not_taken_becomes_a_reject() {
        let untaken = Untaken {
            topic: "a/b".into(),
            client_id: "dev".into(),
            detail: "larger".into(),
            start: vec![1, 2],
            packet_bytes: 900,
            ..Untaken::default()
        };
        let mut out = MessagesBuilder::default();
        untaken.put(&mut out, 13);
        Untaken { malformed: true, ..untaken.clone() }.put(&mut out, 14);
        // A device may call its topic as it likes.
        out.push(UNTAKEN, b"{}", b"dev", MessageMeta::default());
        let messages = out.finish(0, 100);
        assert_eq!((Untaken::of(&messages, 0), Untaken::of(&messages, 2)), (Some(untaken), None));
        let rejects = event_rows(&messages).rejects;
        let text = |name: &str, row| rejects[name].as_string::<i32>().value(row).to_owned();
        assert_eq!([text("reason", 0), text("reason", 1)], ["too_large", "malformed"]);
        assert_eq!([text("topic", 0), text("client_id", 0)], ["a/b", "dev"]);
        assert_eq!(rejects["payload"].as_binary::<i32>().value(0), [1, 2]);
        assert_eq!(rejects["payload_bytes"].as_primitive::<Int64Type>().values(), &[900, 900]);
        assert_eq!(rejects["journal_offset"].as_primitive::<Int64Type>().values(), &[100, 101]);
    }

    #[test]
    fn events_become_rows_and_messages_do_not() {
        let mut out = MessagesBuilder::default();
        out.push(b"session", b"{}", b"dev", MessageMeta::default());
        let event = SessionEvent {
            source: "endpoint".into(),
            client_id: "dev".into(),
            event: "will".into(),
            detail: "a/b".into(),
            protocol: "5".into(),
            ..SessionEvent::default()
        };
        event.put(&mut out, 7, 0);
        let gap = Gap { filter: "a/#".into(), from_us: 3, to_us: 9, ..Gap::default() };
        gap.put(&mut out, 9);
        let alert = EngineAlert {
            rule: "disk_full".into(),
            status: "firing".into(),
            since_us: 5,
            summary: "no room".into(),
        };
        alert.put(&mut out, 10);
        EngineAlert { status: "resolved".into(), ..alert }.put(&mut out, 11);
        let limit = LimitChange {
            kind: "memory".into(),
            subject: "full".into(),
            state: "reached".into(),
            value: Some(9),
            max: None,
            action: "why".into(),
        };
        limit.put(&mut out, 12);
        let messages = out.finish(0, 100);
        assert_eq!(NoNewKeys::of(&messages), None);
        // A device may call its topic as it likes.
        out.push(NO_NEW_KEYS, b"", b"dev", MessageMeta::default());
        assert_eq!(NoNewKeys::of(&out.finish(0, 0)), None);
        let young = NoNewKeys { but: ["p/step".into(), "p/alert/x".into()].into() };
        for mark in [NoNewKeys::default(), young] {
            mark.put(&mut out, 13);
            assert_eq!(NoNewKeys::of(&out.finish(0, 0)), Some(mark));
        }
        // As they were before operators could be excepted.
        out.push(NO_NEW_KEYS, b"", b"", MessageMeta { event: true, ..MessageMeta::default() });
        assert_eq!(NoNewKeys::of(&out.finish(0, 0)), Some(NoNewKeys::default()));
        assert_eq!(SessionEvent::of(&messages, 0), None);
        assert_eq!(SessionEvent::of(&messages, 1), Some(event));
        let of_sessions: Vec<usize> =
            (0..messages.len()).filter(|i| is_of_sessions(&messages, *i)).collect();
        assert_eq!(of_sessions, [1, 2], "neither what a device sent nor what the engine says");
        let EventRows { sessions, gaps, alerts, limits, rejects } = event_rows(&messages);
        assert_eq!(rejects.num_rows(), 0);
        let text = |name: &str, row| alerts[name].as_string::<i32>().value(row).to_owned();
        assert_eq!(alerts.num_rows(), 2);
        assert_eq!(text("pipeline", 0), ENGINE);
        assert_eq!([text("status", 0), text("status", 1)], ["firing", "resolved"]);
        assert_eq!(text("alert_id", 0), text("alert_id", 1), "one alert has one id");
        assert_eq!((sessions.num_rows(), gaps.num_rows()), (1, 1));
        assert_eq!(sessions["journal_offset"].as_primitive::<Int64Type>().value(0), 101);
        assert_eq!(sessions["event"].as_string::<i32>().value(0), "will");
        assert_eq!(sessions["protocol"].as_string::<i32>().value(0), "5");
        assert_eq!(gaps["gap_to"].as_primitive::<TimestampMicrosecondType>().value(0), 9);
        assert_eq!(gaps["filter"].as_string::<i32>().value(0), "a/#");
        assert_eq!(limits["journal_offset"].as_primitive::<Int64Type>().values(), &[105]);
        assert_eq!(limits["subject"].as_string::<i32>().value(0), "full");
        let number = |name: &str| limits[name].as_primitive::<Int64Type>().iter().next();
        assert_eq!([number("value"), number("max")], [Some(Some(9)), Some(None)]);
    }
}
