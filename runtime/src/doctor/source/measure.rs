//! Times and rates: a round trip through the broker, a flood, the broker's clock.

use std::time::Duration;

use tidegate_operators::topic::filters_meet;
use tokio::time::Instant;

use super::advice::Kind;
use super::client::{Client, Event};
use super::queue::{number, payload};
use super::{Examination, PATIENCE, SILENCE, texts};

/// Messages that are sent one by one.
const ROUND_TRIPS: u32 = 200;

/// Most messages of the flood, and its longest time.
const FLOOD_MESSAGES: u32 = 20_000;
const FLOOD_TIME: Duration = Duration::from_secs(2);
/// Messages of the flood that may be on their way.
const FLOOD_IN_FLIGHT: u32 = 500;

/// How long to wait for what the broker says of itself.
const SYSTEM_WAIT: Duration = Duration::from_millis(700);

/// Topics by which brokers tell who they are and what time it is.
const SYSTEM_TOPICS: [&str; 3] =
    ["$SYS/broker/version", "$SYS/brokers/+/version", "$SYS/brokers/+/datetime"];

impl Examination<'_> {
    /// Who it is, and its clock.
    pub(super) async fn look_at_system(&mut self, mut client: Client) -> Result<Kind, String> {
        for topic in SYSTEM_TOPICS {
            // Refused, or nothing there: then it is not told.
            client.subscribe(topic, 0).await?;
        }
        let (mut kind, mut version, mut clock) = (Kind::Unknown, None, None);
        let until = Instant::now() + SYSTEM_WAIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match client.next(left).await? {
                Some(Event::Message(message)) => {
                    let text = String::from_utf8_lossy(&message.payload).into_owned();
                    let short: String = text.chars().take(60).collect();
                    if message.topic.ends_with("/datetime") {
                        // A retained one tells when it was published, not what time it is now.
                        clock = clock.or(difference_ms(&text).filter(|_| !message.retain));
                    } else if short.to_lowercase().contains("mosquitto") {
                        (kind, version) = (Kind::Mosquitto, Some(short));
                    } else {
                        let emqx = message.topic.starts_with("$SYS/brokers/");
                        kind = if emqx { Kind::Emqx } else { kind };
                        version = version.or(Some(short));
                    }
                }
                Some(_) => {}
                None => break,
            }
        }
        client.leave().await;
        let name = version.unwrap_or_else(|| "the broker does not say what it is".to_owned());
        self.report.note("broker", &name);
        match clock {
            Some(ms) if ms.abs() < 2_000 => {
                self.report.ok("clock", &format!("differs from ours by {ms} ms"));
            }
            Some(ms) => {
                let lines = ["let both machines follow a time server"];
                self.report.warn("clock", &format!("differs from ours by {ms} ms"), &lines);
            }
            None => self.report.note("clock", "not known: the broker does not tell the time"),
        }
        Ok(kind)
    }

    pub(super) async fn measure(&mut self) -> Result<(), String> {
        let (mut receiver, _) = self.connect(&self.receiver.clone(), true).await?;
        receiver.subscribe(&format!("{}/measure", self.topic), 1).await?;
        let (mut sender, _) = self.connect(&self.sender.clone(), true).await?;
        self.round_trips(&mut receiver, &mut sender).await?;
        self.flood(&mut receiver, &mut sender).await?;
        self.overlap(&mut receiver, &mut sender).await?;
        receiver.leave().await;
        sender.leave().await;
        Ok(())
    }

    async fn round_trips(
        &mut self,
        receiver: &mut Client,
        sender: &mut Client,
    ) -> Result<(), String> {
        let topic = format!("{}/measure", self.topic);
        let mut times = Vec::new();
        for i in 0..ROUND_TRIPS {
            let begin = Instant::now();
            sender.put_publish((i + 1) as u16, &topic, &payload(i));
            sender.flush().await?;
            loop {
                match receiver.next(PATIENCE).await? {
                    Some(Event::Message(message)) => {
                        receiver.put_ack(&message);
                        receiver.flush().await?;
                        if number(&message) == Some(i) {
                            break;
                        }
                    }
                    Some(_) => {}
                    None => return Err("a test message did not come back".to_owned()),
                }
            }
            times.push(begin.elapsed());
            while !matches!(sender.next(PATIENCE).await?, Some(Event::Acknowledged(..)) | None) {}
        }
        times.sort();
        let ms = |share: usize| times[times.len() * share / 100].as_secs_f64() * 1000.0;
        let text =
            format!("publish to receipt at QoS 1: p50 {:.1} ms, p99 {:.1} ms", ms(50), ms(99));
        self.report.note("latency", &text);
        Ok(())
    }

    async fn flood(&mut self, receiver: &mut Client, sender: &mut Client) -> Result<(), String> {
        let topic = format!("{}/measure", self.topic);
        let begin = Instant::now();
        let (mut sent, mut acknowledged, mut came) = (0, 0, 0);
        loop {
            let more = sent < FLOOD_MESSAGES && begin.elapsed() < FLOOD_TIME;
            while more && sent - acknowledged.min(came) < FLOOD_IN_FLIGHT {
                sender.put_publish((sent % 50_000 + 1) as u16, &topic, &payload(sent));
                sent += 1;
                if sent >= FLOOD_MESSAGES {
                    break;
                }
            }
            sender.flush().await?;
            if !more && came >= sent {
                break;
            }
            let event = tokio::select! {
                event = sender.next(SILENCE) => event?,
                event = receiver.next(SILENCE) => event?,
            };
            let Some(event) = event else { break };
            let mut events = vec![event];
            while let Some(event) = receiver.parse()? {
                events.push(event);
            }
            while let Some(event) = sender.parse()? {
                events.push(event);
            }
            for event in events {
                match event {
                    Event::Message(message) => {
                        came += 1;
                        receiver.put_ack(&message);
                    }
                    Event::Acknowledged(..) => acknowledged += 1,
                    Event::Subscribed(_) => {}
                }
            }
            receiver.flush().await?;
        }
        let rate = f64::from(came) / begin.elapsed().as_secs_f64();
        let text = format!("{rate:.0} messages/s at QoS 1, one sender and one receiver");
        match came >= sent {
            true => self.report.note("throughput", &text),
            false => {
                let text = format!("{text}; {} of {sent} did not come", sent - came);
                self.report.warn("throughput", &text, &texts(&self.advice.queue()));
            }
        }
        Ok(())
    }

    /// How often a message comes that matches two subscriptions.
    async fn overlap(&mut self, receiver: &mut Client, sender: &mut Client) -> Result<(), String> {
        let topic = format!("{}/overlap/x", self.topic);
        for filter in ["overlap/+", "overlap/x"] {
            receiver.subscribe(&format!("{}/{filter}", self.topic), 1).await?;
        }
        sender.put_publish(1, &topic, b"x");
        sender.flush().await?;
        let mut copies = 0;
        let mut wait = PATIENCE;
        while let Some(event) = receiver.next(wait).await? {
            if let Event::Message(message) = event {
                copies += u32::from(message.topic == topic);
                receiver.put_ack(&message);
                receiver.flush().await?;
                wait = Duration::from_millis(300);
            }
        }
        let filters = &self.config.filters;
        let mut pairs = filters.iter().enumerate().flat_map(|(i, one)| {
            filters[i + 1..].iter().map(move |other| (one.clone(), other.clone()))
        });
        let meeting = pairs.find(|(one, other)| filters_meet(one, other));
        let text = format!("{copies} copies of a message that two filters match");
        match (copies, meeting) {
            (0 | 1, _) => self.report.ok("overlap", "one copy of a message that two filters match"),
            (_, None) => self.report.note("overlap", &format!("{text}: keep `topics` disjoint")),
            (_, Some((one, other))) => {
                let text = format!("{text}, as `{one}` and `{other}` do");
                let new = "`topics` of which no topic matches two";
                let line = self.advice.pipeline("source", "topics", new);
                self.report.fail("overlap", &text, &[&line]);
            }
        }
        Ok(())
    }
}

/// How far a time in RFC 3339 is ahead of ours, milliseconds.
fn difference_ms(text: &str) -> Option<i64> {
    let theirs = chrono::DateTime::parse_from_rfc3339(text.trim()).ok()?;
    Some(theirs.timestamp_millis() - crate::source::now_us() / 1000)
}
