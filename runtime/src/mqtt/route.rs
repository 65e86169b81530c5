//! What happens to a batch once it is durable: its messages go to subscribers, its QoS 2 packet
//! ids are remembered, and only then its acknowledgements go out.
//!
//! The order is the point. A subscriber never sees what a crash could still take back, and a
//! packet id is never remembered for a message that the journal does not have.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use tidegate_operators::decode::topics_match;
use tidegate_operators::topic::TopicTemplate;

use super::broker::{Broker, Port, Publication};
use super::properties::{self, Allowed};
use super::wire::Publish;
use crate::source::{IntakeError, now_us};

/// What a batch leaves to do.
#[derive(Default)]
pub(crate) struct After {
    publications: Vec<Publication>,
    publications_bytes: usize,
    /// QoS 2 packet ids, and whose they are.
    received: Vec<u16>,
    port: Option<Arc<Port>>,
    /// An answer of this batch promises what the broker's store must hold first.
    promised: bool,
}

impl After {
    /// Copies a message for its subscribers.
    pub(crate) fn publish(&mut self, publish: &Publish<'_>, now_ms: u64) {
        self.push(publication(publish, now_ms));
    }

    /// Takes a message for its subscribers.
    pub(crate) fn push(&mut self, publication: Publication) {
        self.publications_bytes += size_of::<Publication>()
            + publication.topic.len()
            + publication.payload.len()
            + publication.properties.len();
        self.publications.push(publication);
    }

    /// Has a QoS 2 packet id remembered.
    pub(crate) fn receive(&mut self, port: &Arc<Port>, packet_id: u16) {
        self.port.get_or_insert_with(|| Arc::clone(port));
        self.received.push(packet_id);
        self.promised = true;
    }

    /// Has the answers of this batch wait for the broker's store.
    pub(crate) fn promise(&mut self) {
        self.promised = true;
    }

    pub(crate) fn has_publications(&self) -> bool {
        !self.publications.is_empty()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.publications.is_empty() && !self.promised
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.publications_bytes
    }
}

/// Which messages are only delivered: commands and the like, that are no readings.
#[derive(Debug, Default)]
pub(crate) struct Delivered {
    only: Vec<TopicTemplate>,
    readings: Vec<TopicTemplate>,
    /// The topic below which only we publish.
    ours: Option<String>,
}

impl Delivered {
    /// From filters that were checked.
    pub(crate) fn new(only: &[String], readings: &[String], ours: Option<&str>) -> Self {
        let parse = |filters: &[String]| -> Vec<TopicTemplate> {
            filters.iter().filter_map(|f| TopicTemplate::parse(f).ok()).collect()
        };
        let ours = ours.map(|topic| format!("{topic}/"));
        Self { only: parse(only), readings: parse(readings), ours }
    }

    /// Whether only we publish to this topic: a forged alert would look like one.
    pub(crate) fn is_ours(&self, topic: &[u8]) -> bool {
        self.ours.as_ref().is_some_and(|ours| topic.starts_with(ours.as_bytes()))
    }

    /// Whether a message of this topic is delivered and not journaled.
    pub(crate) fn only(&self, topic: &[u8]) -> bool {
        !self.only.is_empty()
            && topics_match(&self.only, topic)
            && !topics_match(&self.readings, topic)
    }
}

/// The way from one publisher to the subscribers.
pub(crate) struct Router {
    pub(crate) broker: Arc<Broker>,
    /// Client id of the publisher.
    pub(crate) from: String,
}

impl Router {
    /// Does what a durable batch has left to do.
    ///
    /// # Errors
    /// The broker's store has failed.
    pub(crate) async fn run(&self, after: After) -> Result<(), IntakeError> {
        let failed = |error: crate::source::SourceError| IntakeError::Failed(error.to_string());
        if let Some(port) = &after.port {
            for id in after.received {
                self.broker.receive_qos2(port, id);
            }
        }
        if !after.publications.is_empty() {
            let ticket = self.broker.publish(&self.from, after.publications, now_ms());
            ticket.done().await.map_err(failed)?;
        }
        if after.promised {
            self.broker.ticket().done().await.map_err(failed)?;
        }
        Ok(())
    }
}

/// The broker's time.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(now_us() / 1000).unwrap_or(0)
}

/// A message for its subscribers: one allocation.
fn publication(publish: &Publish<'_>, now_ms: u64) -> Publication {
    let (topic_len, payload_len) = (publish.topic.len(), publish.payload.len());
    let mut bytes = BytesMut::with_capacity(topic_len + payload_len + publish.properties.len());
    bytes.put_slice(publish.topic);
    bytes.put_slice(publish.payload);
    forward(publish.properties, properties::PUBLISH, &mut bytes);
    let mut rest = bytes.freeze();
    let topic = rest.split_to(topic_len);
    let payload = rest.split_to(payload_len);
    Publication {
        topic,
        payload,
        properties: rest,
        qos: publish.qos,
        retain: publish.retain,
        expires_at_ms: publish.expiry_s.map(|s| now_ms + u64::from(s) * 1000),
    }
}

/// The properties of a will that go to its subscribers.
pub(crate) fn will_properties(bytes: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    forward(bytes, properties::WILL, &mut out);
    out.freeze()
}

/// Copies the properties that subscribers get as they were sent (3.3.2-4 to 3.3.2-20).
fn forward(bytes: &[u8], allowed: Allowed, out: &mut BytesMut) {
    use properties::id::{
        CONTENT_TYPE, CORRELATION_DATA, PAYLOAD_FORMAT, RESPONSE_TOPIC, USER_PROPERTY,
    };
    let passed = [PAYLOAD_FORMAT, CONTENT_TYPE, RESPONSE_TOPIC, CORRELATION_DATA, USER_PROPERTY];
    properties::copy(bytes, allowed, |id| passed.contains(&id), |part| out.put_slice(part));
}
