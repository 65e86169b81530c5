//! What the broker does for a session that is away: does its queue hold everything, how many
//! messages may be under way, and does it send again what was not acknowledged as it should.

use std::collections::BTreeSet;
use std::time::Duration;

use super::client::{Client, Event, Message};
use super::{Examination, PATIENCE, SILENCE, texts};
use crate::doctor::counted;

/// Unacknowledged publishes of the test itself.
const IN_FLIGHT: u32 = 100;

/// Fewer messages under way than this wait for round trips noticeably.
const WINDOW_GOOD: usize = 500;

/// How long nothing must come for "the window is full".
const PAUSE: Duration = Duration::from_millis(700);

/// Payload of a test message; about what a reading is.
pub(super) fn payload(number: u32) -> Vec<u8> {
    format!("{number:0>100}").into_bytes()
}

pub(super) fn number(message: &Message) -> Option<u32> {
    std::str::from_utf8(&message.payload).ok()?.parse().ok()
}

impl Examination<'_> {
    pub(super) async fn queue(&mut self) -> Result<(), String> {
        let (mut sender, _) = self.connect(&self.sender.clone(), true).await?;
        let sent = self.options.messages;
        let topic = format!("{}/queue", self.topic);
        let refused = publish_all(&mut sender, &topic, sent).await?;
        sender.leave().await;
        if refused > 0 {
            let text = format!("the broker refused {refused} of {sent} test messages");
            let lines = ["choose a topic that this user may publish to: --topic"];
            self.report.fail("queue", &text, &lines);
            return Ok(());
        }
        // First without acknowledgements: how many come at a time?
        let (mut receiver, present) = self.connect(&self.receiver.clone(), false).await?;
        let mut window = Vec::new();
        while let Some(event) = receiver.next(PAUSE).await? {
            if let Event::Message(message) = event {
                window.push(message);
            }
        }
        // Lost, not left: all of it must come again.
        drop(receiver);
        let (mut receiver, _) = self.connect(&self.receiver.clone(), false).await?;
        let mut again = Vec::new();
        let mut seen = BTreeSet::new();
        while let Some(event) = receiver.next(SILENCE).await? {
            let Event::Message(message) = event else { continue };
            seen.extend(number(&message));
            receiver.put_ack(&message);
            if again.len() < window.len() {
                again.push(message);
            }
            // One write for all that came with one read.
            while let Some(event) = receiver.parse()? {
                if let Event::Message(message) = event {
                    seen.extend(number(&message));
                    receiver.put_ack(&message);
                    if again.len() < window.len() {
                        again.push(message);
                    }
                }
            }
            receiver.flush().await?;
            if seen.len() >= sent as usize {
                break;
            }
        }
        receiver.leave().await;
        self.judge_queue(sent, seen.len(), present);
        self.judge_window(window.len(), sent);
        self.judge_redelivery(&window, &again);
        Ok(())
    }

    fn judge_queue(&mut self, sent: u32, came: usize, present: bool) {
        if came == sent as usize {
            let text = format!("{sent} of {sent} messages for a session that was away came");
            self.report.ok("queue", &text);
            return;
        }
        let text = match present {
            true => format!(
                "the broker acknowledged {sent} messages for a session that was away and delivered \
                 {came}"
            ),
            false => "the session was gone when we came back".to_owned(),
        };
        self.report.fail("queue", &text, &texts(&self.advice.queue()));
    }

    fn judge_window(&mut self, window: usize, sent: u32) {
        let full = window >= sent as usize;
        if window >= WINDOW_GOOD || full {
            let more = if full { " or more" } else { "" };
            let text = format!("{window}{more} messages under way without acknowledgement");
            self.report.ok("window", &text);
        } else {
            let messages = counted(window as u64, "message");
            let text = format!("only {messages} under way without acknowledgement");
            self.report.warn("window", &text, &texts(&self.advice.window()));
        }
    }

    /// Recognition of redelivered messages needs what the standard demands: the same packet id,
    /// with DUP.
    fn judge_redelivery(&mut self, first: &[Message], again: &[Message]) {
        let pairs = first.iter().zip(again);
        let good =
            pairs.filter(|(a, b)| b.duplicate && a.id == b.id && a.payload == b.payload).count();
        if good == first.len() && !first.is_empty() {
            self.report.ok("redelivery", "with the same packet ids and DUP: recognised exactly");
        } else {
            let text = format!(
                "{} of {} messages came again with another packet id, in another order or without \
                 DUP: they would count twice",
                first.len() - good,
                first.len()
            );
            let new = "dedup = { key = [\"device\", \"time\"] }   (or a key of the message itself)";
            let line = self.advice.pipeline("reading", "dedup", new);
            self.report.warn("redelivery", &text, &[&line]);
        }
    }
}

/// Publishes numbered messages at QoS 1 and waits for all acknowledgements; gives how many of
/// them say no.
pub(super) async fn publish_all(
    sender: &mut Client,
    topic: &str,
    count: u32,
) -> Result<u32, String> {
    let (mut sent, mut acknowledged, mut refused) = (0, 0, 0);
    while acknowledged < count {
        while sent < count && sent - acknowledged < IN_FLIGHT {
            sender.put_publish((sent % 50_000 + 1) as u16, topic, &payload(sent));
            sent += 1;
        }
        sender.flush().await?;
        match sender.next(PATIENCE).await? {
            Some(Event::Acknowledged(_, code)) => {
                acknowledged += 1;
                refused += u32::from(code >= 0x80);
            }
            Some(_) => {}
            None => return Err("the broker does not acknowledge test messages".to_owned()),
        }
    }
    Ok(refused)
}
