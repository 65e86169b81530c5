//! Tests of the broker core. What it sends is read with the codecs of a client library.
#![allow(clippy::unwrap_used)]

mod delivery;
mod durable;
mod model;
mod retaining;
mod routing;
mod sessions;
mod subscribing;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rumqttc_v4::mqttbytes::v4;
use rumqttc_v5::mqttbytes::v5;

use super::super::wire::Version;
use super::*;

/// A PUBLISH or PUBREL as a client sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Got {
    /// Empty for a PUBREL.
    topic: String,
    payload: String,
    qos: u8,
    retain: bool,
    dup: bool,
    id: u16,
    ids: Vec<usize>,
    expiry_s: Option<u32>,
    alias: Option<u16>,
    user: Vec<(String, String)>,
    release: bool,
}

impl Got {
    /// Topic, payload and QoS in one word.
    fn text(&self) -> String {
        match self.release {
            true => format!("release {}", self.id),
            false => format!("{}={} q{}", self.topic, self.payload, self.qos),
        }
    }
}

fn read_v3(bytes: &mut BytesMut) -> Got {
    let max = bytes.len();
    match v4::Packet::read(bytes, max).unwrap() {
        v4::Packet::Publish(p) => Got {
            topic: String::from_utf8(p.topic.to_vec()).unwrap(),
            payload: String::from_utf8(p.payload.to_vec()).unwrap(),
            qos: p.qos as u8,
            retain: p.retain,
            dup: p.dup,
            id: p.pkid,
            ..Got::default()
        },
        v4::Packet::PubRel(p) => Got { id: p.pkid, release: true, ..Got::default() },
        packet => panic!("unexpected {packet:?}"),
    }
}

fn read_v5(bytes: &mut BytesMut) -> Got {
    match v5::Packet::read(bytes, None).unwrap() {
        v5::Packet::Publish(p) => {
            let more = p.properties.unwrap_or_default();
            Got {
                topic: String::from_utf8(p.topic.to_vec()).unwrap(),
                payload: String::from_utf8(p.payload.to_vec()).unwrap(),
                qos: p.qos as u8,
                retain: p.retain,
                dup: p.dup,
                id: p.pkid,
                ids: more.subscription_identifiers,
                expiry_s: more.message_expiry_interval,
                alias: more.topic_alias,
                user: more.user_properties,
                release: false,
            }
        }
        v5::Packet::PubRel(p) => Got { id: p.pkid, release: true, ..Got::default() },
        packet => panic!("unexpected {packet:?}"),
    }
}

fn read_all(version: Version, bytes: &[u8]) -> Vec<Got> {
    let (mut bytes, mut all) = (BytesMut::from(bytes), Vec::new());
    while !bytes.is_empty() {
        all.push(match version {
            Version::V3 => read_v3(&mut bytes),
            Version::V5 => read_v5(&mut bytes),
        });
    }
    all
}

fn memory() -> Arc<Broker> {
    Broker::open(BrokerOptions::default(), 0).unwrap()
}

/// A version 5 session that is kept for ever.
fn opening(client_id: &str) -> Opening {
    Opening {
        client_id: client_id.to_owned(),
        user: String::new(),
        version: Version::V5,
        clean_start: false,
        session_expiry_s: u32::MAX,
        receive_maximum: u16::MAX,
        packet_bytes_max: u32::MAX,
        topic_alias_max: 0,
        will: None,
        may_receive: None,
    }
}

fn filter(filter: &str, qos: u8) -> Subscription {
    Subscription { filter: filter.to_owned(), qos, ..Subscription::default() }
}

fn publication(topic: &str, payload: &str, qos: u8) -> Publication {
    Publication {
        topic: Bytes::copy_from_slice(topic.as_bytes()),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        qos,
        ..Publication::default()
    }
}

fn retained(topic: &str, payload: &str, qos: u8) -> Publication {
    Publication { retain: true, ..publication(topic, payload, qos) }
}

const LOST: Leave = Leave::Lost;
const BYE: Leave = Leave::Normal { session_expiry_s: None };

/// A connected client.
struct Client {
    broker: Arc<Broker>,
    port: Port,
    version: Version,
    present: bool,
}

impl Client {
    fn open(broker: &Arc<Broker>, opening: Opening, now_ms: u64) -> Self {
        let version = opening.version;
        let (port, present) = broker.connect(opening, now_ms);
        Self { broker: Arc::clone(broker), port, version, present }
    }

    /// A kept version 5 session, subscribed to some filters with QoS 2.
    fn with(broker: &Arc<Broker>, client_id: &str, filters: &[&str]) -> Self {
        let client = Self::open(broker, opening(client_id), 0);
        for one in filters {
            assert_eq!(client.subscribe(filter(one, 2)), 2);
        }
        client
    }

    fn subscribe(&self, one: Subscription) -> u8 {
        self.broker.subscribe(&self.port, &[one], 0)[0]
    }

    fn got_at(&self, now_ms: u64) -> Vec<Got> {
        let mut out = Vec::new();
        self.broker.outgoing(&self.port, &mut out, usize::MAX, now_ms);
        read_all(self.version, &out)
    }

    fn got(&self) -> Vec<Got> {
        self.got_at(0)
    }

    fn texts(&self) -> Vec<String> {
        self.got().iter().map(Got::text).collect()
    }

    fn leave(self, how: Leave, now_ms: u64) -> Option<Publication> {
        self.broker.disconnect(self.port, how, now_ms)
    }
}

/// Publishes as somebody else.
fn publish(broker: &Broker, publication: Publication) {
    let _ = broker.publish("publisher", vec![publication], 0);
}

/// Fails rather than hangs if nobody tells.
async fn told(client: &Client) {
    let patience = std::time::Duration::from_secs(60);
    tokio::time::timeout(patience, client.port.wake.notified()).await.expect("nobody told");
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
