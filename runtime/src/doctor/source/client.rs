//! A small MQTT client that does one thing at a time.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::PATIENCE;
use crate::mqtt::SubscriberConfig;
use crate::mqtt::buffer::ReadBuffer;
use crate::mqtt::limits::{BROKER_PACKET_BYTES_MAX, BROKER_RECEIVE_MAXIMUM, WRITE_TIMEOUT};
use crate::mqtt::subscriber::dial::{self, Target};
use crate::mqtt::subscriber::packets::{self, Accepted};
use crate::mqtt::subscriber::reasons;
use crate::mqtt::wire::{PUBACK, Version, frame, kind, packet_id, publish, put_ack};
use crate::net::BoxStream;

/// Packet id of a SUBSCRIBE.
const SUBSCRIBE_ID: u16 = 60_000;

/// Most messages that are kept while something else is waited for.
const EARLY_MAX: usize = 10_000;

pub(super) struct Client {
    stream: BoxStream,
    buffer: ReadBuffer,
    version: Version,
    out: Vec<u8>,
    /// Messages that came while something else was waited for.
    early: VecDeque<Message>,
}

/// What the broker sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Message(Message),
    /// PUBACK with its reason code.
    Acknowledged(u16, u8),
    Subscribed(u8),
}

/// A PUBLISH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    /// 0 at QoS 0.
    pub(super) id: u16,
    pub(super) duplicate: bool,
    pub(super) retain: bool,
}

impl Client {
    pub(super) async fn connect(
        target: &Target,
        config: &SubscriberConfig,
        client_id: &str,
        clean: bool,
        session_expiry_s: u32,
    ) -> Result<(Self, Accepted), String> {
        let receive_maximum = BROKER_RECEIVE_MAXIMUM;
        let hello =
            packets::Connect { config, client_id, clean, session_expiry_s, receive_maximum };
        let (stream, buffer, accepted) = dial::shake(target, hello).await?;
        let client = Self {
            stream,
            buffer,
            version: config.version(),
            out: Vec::new(),
            early: VecDeque::new(),
        };
        Ok((client, accepted))
    }

    /// Puts a PUBLISH at QoS 1 among what is sent next.
    pub(super) fn put_publish(&mut self, id: u16, topic: &str, payload: &[u8]) {
        let properties = usize::from(self.version == Version::V5);
        let mut left = 2 + topic.len() + 2 + properties + payload.len();
        self.out.push(0x32);
        while left >= 0x80 {
            self.out.push((left & 0x7F) as u8 | 0x80);
            left >>= 7;
        }
        self.out.push(left as u8);
        self.out.extend_from_slice(&(topic.len() as u16).to_be_bytes());
        self.out.extend_from_slice(topic.as_bytes());
        self.out.extend_from_slice(&id.to_be_bytes());
        self.out.extend_from_slice(&[0][..properties]);
        self.out.extend_from_slice(payload);
    }

    /// Puts the acknowledgement of a message among what is sent next.
    pub(super) fn put_ack(&mut self, message: &Message) {
        if message.id != 0 {
            put_ack(&mut self.out, PUBACK, message.id);
        }
    }

    pub(super) async fn flush(&mut self) -> Result<(), String> {
        let out = std::mem::take(&mut self.out);
        let sent = timeout(WRITE_TIMEOUT, async {
            self.stream.write_all(&out).await?;
            self.stream.flush().await
        });
        match sent.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("the connection was lost: {error}")),
            Err(_) => Err("the broker does not read".to_owned()),
        }
    }

    /// The next thing that the broker sends, or `None` if nothing came for so long.
    pub(super) async fn next(&mut self, wait: Duration) -> Result<Option<Event>, String> {
        match self.early.pop_front() {
            Some(message) => Ok(Some(Event::Message(message))),
            None => self.next_new(wait).await,
        }
    }

    async fn next_new(&mut self, wait: Duration) -> Result<Option<Event>, String> {
        let until = Instant::now() + wait;
        loop {
            if let Some(event) = self.parse_new()? {
                return Ok(Some(event));
            }
            let read = self.stream.read(self.buffer.spare(BROKER_PACKET_BYTES_MAX));
            match timeout_at(until, read).await {
                Err(_) => return Ok(None),
                Ok(Ok(0)) => return Err("the broker closed the connection".to_owned()),
                Ok(Ok(n)) => self.buffer.filled(n),
                Ok(Err(error)) => return Err(format!("the connection was lost: {error}")),
            }
        }
    }

    /// The next event that is in the buffer; what is of no interest is left out.
    pub(super) fn parse(&mut self) -> Result<Option<Event>, String> {
        match self.early.pop_front() {
            Some(message) => Ok(Some(Event::Message(message))),
            None => self.parse_new(),
        }
    }

    fn parse_new(&mut self) -> Result<Option<Event>, String> {
        loop {
            let received = self.buffer.received();
            let found = frame(received, BROKER_PACKET_BYTES_MAX).map_err(|v| v.to_string())?;
            let Some(found) = found else { return Ok(None) };
            let body = &received[found.header_len..found.total_len];
            let id = || packet_id(body).map_err(|v| v.to_string());
            let event = match found.kind() {
                kind::PUBLISH => {
                    let publish =
                        publish(self.version, found.flags(), body).map_err(|v| v.to_string())?;
                    Some(Event::Message(Message {
                        topic: String::from_utf8_lossy(publish.topic).into_owned(),
                        payload: publish.payload.to_vec(),
                        id: publish.packet_id,
                        duplicate: publish.duplicate,
                        retain: publish.retain,
                    }))
                }
                kind::SUBACK if id()? == SUBSCRIBE_ID => {
                    Some(Event::Subscribed(packets::suback(body, 1)?[0]))
                }
                kind::DISCONNECT => {
                    let code = body.first().copied().unwrap_or(0);
                    return Err(format!("the broker leaves: {}", reasons::reason(code)));
                }
                byte if byte == PUBACK >> 4 => {
                    Some(Event::Acknowledged(id()?, body.get(2).copied().unwrap_or(0)))
                }
                _ => None,
            };
            self.buffer.consume(found.total_len);
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// Subscribes to one filter; gives the code of the answer.
    pub(super) async fn subscribe(&mut self, filter: &str, qos: u8) -> Result<u8, String> {
        let filters = [filter.to_owned()];
        let packet = packets::subscribe(self.version, SUBSCRIBE_ID, &filters, (qos, &[]))?;
        self.out.extend_from_slice(&packet);
        self.flush().await?;
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            match self.next_new(PATIENCE).await? {
                Some(Event::Subscribed(code)) => return Ok(code),
                Some(Event::Message(message)) if self.early.len() < EARLY_MAX => {
                    self.early.push_back(message);
                }
                _ => {}
            }
        }
        Err("the broker does not answer SUBSCRIBE".to_owned())
    }

    /// How many retained messages come within this time; a hundred are enough to know.
    pub(super) async fn count_retained(&mut self, wait: Duration) -> Result<u32, String> {
        let until = Instant::now() + wait;
        let mut count = 0;
        while count < 100 {
            let left = until.saturating_duration_since(Instant::now());
            match self.next(left).await? {
                Some(Event::Message(message)) => count += u32::from(message.retain),
                Some(_) => {}
                None => break,
            }
        }
        Ok(count)
    }

    /// Says goodbye.
    pub(super) async fn leave(mut self) {
        self.out.extend_from_slice(&[0xE0, 0]);
        // It may be gone already.
        let _ = self.flush().await;
        let _ = timeout(PATIENCE, self.stream.shutdown()).await;
    }
}
