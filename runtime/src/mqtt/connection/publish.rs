//! PUBLISH from a client: the one packet that makes up nearly all traffic.

use rumqttc_v5::mqttbytes::v5::DisconnectReasonCode as Reason;

use super::Exit;
use super::session::Session;
use crate::mqtt::connect::may_be_published;
use crate::mqtt::limits::RECEIVE_MAXIMUM;
use crate::mqtt::packets::put_ack_with;
use crate::mqtt::properties;
use crate::mqtt::route::now_ms;
use crate::mqtt::wire::{
    PUBACK, PUBREC, Publish, Version, Violation, check_topic_limits, publish_with_alias, violation,
};
use crate::source::count;

impl Session {
    pub(super) fn publish(
        &mut self,
        flags: u8,
        body: &[u8],
        received_us: i64,
        messages: &mut u64,
    ) -> Result<(), Exit> {
        let publish = publish_with_alias(self.version(), flags, body)?;
        if publish.alias == 0 && publish.properties.is_empty() {
            return self.take(publish, received_us, messages);
        }
        if publish.has_subscription_id {
            violation(Reason::ProtocolError, "PUBLISH with a subscription identifier")?;
        }
        properties::check_limits(publish.properties, publish.user_properties)?;
        if publish.alias == 0 {
            return self.take(publish, received_us, messages);
        }
        // The alias means something on this connection only: what goes on has the topic.
        check_topic_limits(publish.topic)?;
        let mut rest = Vec::with_capacity(publish.properties.len());
        let not_alias = |id| id != properties::id::TOPIC_ALIAS;
        let put = |part: &[u8]| rest.extend_from_slice(part);
        properties::copy(publish.properties, properties::PUBLISH, not_alias, put);
        let mut aliases = std::mem::take(&mut self.aliases);
        let result = match aliases.resolve(publish.alias, publish.topic) {
            Ok(topic) => {
                let publish = Publish { topic, properties: &rest, ..publish };
                self.take(publish, received_us, messages)
            }
            Err(violation) => Err(violation.into()),
        };
        self.aliases = aliases;
        result
    }

    /// Takes a message whose topic is known.
    fn take(
        &mut self,
        publish: Publish<'_>,
        received_us: i64,
        messages: &mut u64,
    ) -> Result<(), Exit> {
        check_topic_limits(publish.topic)?;
        let terms = self.shared.terms;
        if publish.retain && !terms.retained && self.version() == Version::V5 {
            violation(Reason::RetainNotSupported, "a retained message; none are kept here")?;
        }
        if publish.qos == 2 && self.knows(publish.packet_id) {
            // Had before, and not released: the answer was lost, or is on its way.
            self.batcher.acknowledge(PUBREC, publish.packet_id);
            return Ok(self.check_receive_maximum()?);
        }
        if !may_be_published(publish.topic) || self.shared.delivered.is_ours(publish.topic) {
            return self.deny(&publish, 0x90);
        }
        if self.identity.is_limited() {
            // A topic was checked to be text.
            let topic = std::str::from_utf8(publish.topic);
            if !topic.is_ok_and(|topic| self.identity.may_publish(topic)) {
                return self.deny(&publish, 0x87);
            }
        }
        if publish.qos == 2 {
            self.exactly_once.insert(publish.packet_id, self.batcher.number());
            if self.persistent {
                self.batcher.after().receive(&self.port, publish.packet_id);
            }
        }
        if (publish.retain && terms.retained) || self.shared.broker.may_match(publish.topic) {
            self.batcher.after().publish(&publish, now_ms());
        }
        if self.shared.delivered.only(publish.topic) {
            self.batcher.pass(&publish);
        } else {
            self.batcher.push(&publish, self.hello.client_id.as_bytes(), received_us);
        }
        *messages += 1;
        Ok(self.check_receive_maximum()?)
    }

    /// Whether a QoS 2 message of this packet id was received and not released.
    fn knows(&mut self, packet_id: u16) -> bool {
        if self.exactly_once.contains_key(&packet_id) {
            return true;
        }
        let known = self.resumed && self.shared.broker.knows_qos2(&self.port, packet_id);
        if known {
            self.exactly_once.insert(packet_id, 0);
        }
        known
    }

    /// Answers a message that the client may not publish. It is not journaled.
    fn deny(&mut self, publish: &Publish<'_>, reason: u8) -> Result<(), Exit> {
        let topic = String::from_utf8_lossy(publish.topic).into_owned();
        count(&self.shared.stats.denied, 1);
        self.note_denied(&format!("publish {topic}"));
        match (self.version(), publish.qos) {
            // Nobody waits for an answer.
            (_, 0) => Ok(()),
            (Version::V5, qos) => {
                let byte1 = if qos == 1 { PUBACK } else { PUBREC };
                let mut packet = Vec::with_capacity(8);
                put_ack_with(&mut packet, Version::V5, byte1, publish.packet_id, reason);
                self.batcher.reply(&packet);
                Ok(())
            }
            // 3.1.1 can only say yes, which would promise that the message is kept, or close
            // (3.3.5-2).
            (Version::V3, _) => Err(Exit::Denied(topic)),
        }
    }

    fn check_receive_maximum(&self) -> Result<(), Violation> {
        let open = self.batcher.open_pubacks() + self.exactly_once.len() as u64;
        let most = match self.version() {
            Version::V5 => u64::from(RECEIVE_MAXIMUM),
            Version::V3 => return Ok(()),
        };
        if open > most {
            return violation(
                Reason::ReceiveMaximumExceeded,
                "more unacknowledged messages than the announced Receive Maximum",
            );
        }
        Ok(())
    }
}
