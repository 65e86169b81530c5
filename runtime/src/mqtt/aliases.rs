//! The topic aliases that a client has set on its connection.

use rumqttc_v5::mqttbytes::v5::DisconnectReasonCode as Reason;

use super::limits::TOPIC_ALIASES_MAX;
use super::wire::{Violation, violation};

/// At most [`TOPIC_ALIASES_MAX`] topics, each within its limits; nothing while none is set.
#[derive(Debug, Default)]
pub(crate) struct Aliases(Vec<Box<[u8]>>);

impl Aliases {
    /// Sets `alias` if there is a topic, or else looks it up. `alias` is not 0.
    pub(crate) fn resolve<'a>(
        &'a mut self,
        alias: u16,
        topic: &'a [u8],
    ) -> Result<&'a [u8], Violation> {
        if alias > TOPIC_ALIASES_MAX {
            return violation(Reason::TopicAliasInvalid, "a topic alias above the maximum");
        }
        let i = usize::from(alias) - 1;
        if topic.is_empty() {
            return match self.0.get(i) {
                Some(known) if !known.is_empty() => Ok(known),
                // 3.3.4: this one is a protocol error.
                _ => violation(Reason::ProtocolError, "a topic alias that was not set"),
            };
        }
        if self.0.len() <= i {
            self.0.resize(i + 1, Box::default());
        }
        if *self.0[i] != *topic {
            self.0[i] = topic.into();
        }
        Ok(topic)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_alias_is_the_topic_that_it_was_last_sent_with() {
        let mut aliases = Aliases::default();
        let unset = Reason::ProtocolError;
        assert_eq!(aliases.resolve(2, b"").unwrap_err().reason, unset);
        assert_eq!(aliases.resolve(2, b"a").unwrap(), b"a");
        assert_eq!(aliases.resolve(2, b"").unwrap(), b"a");
        assert_eq!(aliases.resolve(2, b"b").unwrap(), b"b");
        assert_eq!(aliases.resolve(2, b"").unwrap(), b"b");
        assert_eq!(aliases.resolve(1, b"").unwrap_err().reason, unset);
        let above = aliases.resolve(TOPIC_ALIASES_MAX + 1, b"a").unwrap_err();
        assert_eq!(above.reason, Reason::TopicAliasInvalid);
    }
}
