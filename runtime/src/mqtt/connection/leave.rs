//! The end of a session's connection: what it received is made durable, its will is published.

use rumqttc_v5::mqttbytes::v5::DisconnectReasonCode as Reason;

use super::greet::publish_now;
use super::session::Session;
use super::{Exit, Goodbye};
use crate::mqtt::broker::Leave;
use crate::mqtt::connect::disconnect;
use crate::mqtt::housekeeping::put_message;
use crate::mqtt::route::now_ms;
use crate::source::{IntakeError, count};

/// What an end means: to the broker, in `system.sessions`, and to the client.
struct Meaning {
    leave: Leave,
    event: &'static str,
    detail: String,
    reason: Option<Reason>,
}

impl Meaning {
    fn of(exit: Exit) -> Result<Self, IntakeError> {
        let lost =
            |event, detail: String, reason| Meaning { leave: Leave::Lost, event, detail, reason };
        Ok(match exit {
            Exit::Failed(error) => return Err(error),
            Exit::Goodbye(Goodbye { reason, session_expiry_s }) => Self {
                // 3.14.4-3: only reason 0 takes the will back.
                leave: match reason {
                    0 => Leave::Normal { session_expiry_s },
                    _ => Leave::WithWill { session_expiry_s },
                },
                event: "disconnected",
                detail: if reason == 0 { String::new() } else { format!("0x{reason:02x}") },
                reason: None,
            },
            Exit::Stopping => Self {
                // The device has done nothing wrong, and meets us again: no will.
                leave: Leave::Normal { session_expiry_s: None },
                event: "disconnected",
                detail: "the endpoint stops".to_owned(),
                reason: Some(Reason::ServerShuttingDown),
            },
            Exit::Taken => Self {
                leave: Leave::TakenOver,
                event: "taken_over",
                detail: String::new(),
                reason: Some(Reason::SessionTakenOver),
            },
            Exit::Gone(text) => lost("lost", text, None),
            Exit::Silent => lost("timeout", String::new(), Some(Reason::KeepAliveTimeout)),
            Exit::Stuck => lost("lost", "does not read".to_owned(), None),
            Exit::Expired => {
                let text = "the token has expired".to_owned();
                lost("lost", text, Some(Reason::MaximumConnectTime))
            }
            Exit::Denied(topic) => lost("lost", format!("may not publish to {topic}"), None),
            Exit::Violated(violation) => {
                lost("lost", format!("protocol error: {violation}"), Some(violation.reason))
            }
        })
    }
}

impl Session {
    /// Ends the session's connection at the journal and at the broker; the last packet.
    pub(super) async fn leave(&mut self, exit: Exit) -> Result<Vec<u8>, IntakeError> {
        let stats = &self.shared.stats;
        let client = &self.hello.client_id;
        match &exit {
            Exit::Violated(violation) => {
                tracing::warn!(client, "protocol error: {violation}");
                count(&stats.protocol_errors, 1);
                stats.note_error(format!("{client}: {violation}"));
            }
            Exit::Denied(topic) => {
                stats.note_error(format!("{client}: may not publish to {topic}"))
            }
            _ => {}
        }
        let stuck = matches!(exit, Exit::Stuck);
        let Meaning { leave, event, detail, reason } = Meaning::of(exit)?;
        tracing::debug!(client, event, detail, "connection ended");
        let acks = self.batcher.finish().await?;
        self.acknowledge(acks);
        let will = self.shared.broker.disconnect(&*self.port, leave, now_ms());
        self.event(event, &detail, false);
        if let Some(will) = will {
            self.event("will", &String::from_utf8_lossy(&will.topic), false);
            let client_id = &self.hello.client_id;
            self.batcher.note(|out| put_message(out, client_id, &will));
            self.batcher.after().push(publish_now(will));
        }
        let acks = self.batcher.finish().await?;
        self.acknowledge(acks);
        if stuck {
            // It would not read that either.
            self.out = super::stream::Outbox::default();
        }
        let version = self.version();
        Ok(reason.map(|reason| disconnect(version, reason)).unwrap_or_default())
    }
}
