//! What an endpoint has retained, for registries: a registry that is new in the plan finds what was
//! published before.

use std::sync::Arc;

use tidegate_operators::{MessageMeta, MessagesBuilder};

use super::broker::Broker;
use super::route::now_ms;

/// The retained messages of one endpoint.
#[derive(Clone)]
pub(crate) struct KeptTopics(pub(super) Arc<Broker>);

impl KeptTopics {
    /// All that match a valid filter, as messages that are received at this time.
    pub(crate) fn messages(&self, filter: &str, received_us: i64) -> MessagesBuilder {
        let mut messages = MessagesBuilder::default();
        for kept in self.0.retained(filter, now_ms()) {
            let meta = MessageMeta { received_us, retain: true, ..MessageMeta::default() };
            messages.push_with(&kept.topic, &kept.payload, b"", &kept.properties, meta);
        }
        messages
    }
}
