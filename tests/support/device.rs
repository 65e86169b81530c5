//! A device with an MQTT 3.1.1 client of its own, written from the specification: it shares no
//! code with what it tests, and it can do what client libraries hide, such as sending a message
//! again with its old packet identifier.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::PATIENCE;

/// Messages that are sent before the first acknowledgement is awaited.
const IN_FLIGHT: usize = 64;

const CONNECT: u8 = 0x10;
const PUBLISH: u8 = 0x30;
const PUBACK: u8 = 0x40;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;
const DUPLICATE: u8 = 0x08;
const QOS_1: u8 = 0x02;
const RETAIN: u8 = 0x01;

/// One connection.
pub(crate) struct Device {
    stream: TcpStream,
    next_id: u16,
}

impl Device {
    /// Connects with a clean session.
    pub(crate) fn connect(to: SocketAddr, client_id: &str) -> io::Result<Self> {
        Self::open(to, client_id, true).map(|(device, _)| device)
    }

    /// Connects to a session that stays; whether it was there.
    pub(crate) fn resume(to: SocketAddr, client_id: &str) -> io::Result<(Self, bool)> {
        Self::open(to, client_id, false)
    }

    fn open(to: SocketAddr, client_id: &str, clean: bool) -> io::Result<(Self, bool)> {
        let stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut device = Self { stream, next_id: 1 };
        // Protocol level 4, keep-alive of 600 s.
        let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 4, u8::from(clean) << 1, 2, 88];
        push_text(&mut body, client_id);
        device.write_packet(CONNECT, &body)?;
        let (_, answer) = device.read_packet()?;
        match answer[..] {
            [present, 0] => Ok((device, present == 1)),
            _ => Err(io::Error::other(format!("CONNECT was refused: {answer:?}"))),
        }
    }

    /// Sends at QoS 1 and gives the packet identifier; the acknowledgement is not awaited.
    pub(crate) fn send(&mut self, topic: &str, payload: &str) -> io::Result<u16> {
        let id = self.next_id;
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        self.send_as(id, false, topic, payload)?;
        Ok(id)
    }

    /// Sends at QoS 1 under a given packet identifier.
    pub(crate) fn send_as(
        &mut self,
        id: u16,
        again: bool,
        topic: &str,
        payload: &str,
    ) -> io::Result<()> {
        let mut body = Vec::with_capacity(topic.len() + payload.len() + 4);
        push_text(&mut body, topic);
        body.extend_from_slice(&id.to_be_bytes());
        body.extend_from_slice(payload.as_bytes());
        let flags = QOS_1 | if again { DUPLICATE } else { 0 };
        self.write_packet(PUBLISH | flags, &body)
    }

    /// Publishes retained messages at QoS 1 and returns when all of them are acknowledged.
    pub(crate) fn retain_all<'a>(
        &mut self,
        messages: impl IntoIterator<Item = (&'a str, String)>,
    ) -> io::Result<()> {
        for (topic, payload) in messages {
            let id = self.next_id;
            self.next_id = self.next_id.checked_add(1).unwrap_or(1);
            let mut body = Vec::new();
            push_text(&mut body, topic);
            body.extend_from_slice(&id.to_be_bytes());
            body.extend_from_slice(payload.as_bytes());
            self.write_packet(PUBLISH | QOS_1 | RETAIN, &body)?;
            self.acknowledged()?;
        }
        Ok(())
    }

    /// Sends at QoS 0.
    pub(crate) fn send_unacknowledged(&mut self, topic: &str, payload: &str) -> io::Result<()> {
        let mut body = Vec::new();
        push_text(&mut body, topic);
        body.extend_from_slice(payload.as_bytes());
        self.write_packet(PUBLISH, &body)
    }

    /// Waits for the next PUBACK and gives its packet identifier.
    pub(crate) fn acknowledged(&mut self) -> io::Result<u16> {
        let (kind, body) = self.read_packet()?;
        match (kind, &body[..]) {
            (PUBACK, [high, low]) => Ok(u16::from_be_bytes([*high, *low])),
            _ => Err(io::Error::other(format!("not a PUBACK: {kind:#x} {body:?}"))),
        }
    }

    /// Subscribes at QoS 0 and waits for the SUBACK.
    pub(crate) fn subscribe(&mut self, filter: &str) -> io::Result<()> {
        self.subscribe_at(filter, 0)
    }

    /// Subscribes at QoS 0 or 1 and waits for the SUBACK.
    pub(crate) fn subscribe_at(&mut self, filter: &str, qos: u8) -> io::Result<()> {
        let mut body = vec![0, 1];
        push_text(&mut body, filter);
        body.push(qos);
        self.write_packet(SUBSCRIBE, &body)?;
        match self.read_packet()? {
            (SUBACK, body) if body == [0, 1, qos] => Ok(()),
            other => Err(io::Error::other(format!("not a SUBACK that grants: {other:?}"))),
        }
    }

    /// Topic and payload of the next message that is delivered at QoS 1; it is acknowledged.
    pub(crate) fn take(&mut self) -> io::Result<(String, Vec<u8>)> {
        let (first, body) = self.read_packet()?;
        if first & !(RETAIN | DUPLICATE) != PUBLISH | QOS_1 {
            return Err(io::Error::other(format!("not a PUBLISH at QoS 1: {first:#x} {body:?}")));
        }
        let topic_len = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let (topic, rest) = body[2..].split_at(topic_len);
        let (id, payload) = rest.split_at(2);
        self.write_packet(PUBACK, id)?;
        let topic = String::from_utf8(topic.to_vec()).map_err(io::Error::other)?;
        Ok((topic, payload.to_vec()))
    }

    /// Topic, payload and RETAIN flag of the next message that is delivered at QoS 0.
    pub(crate) fn delivered(&mut self) -> io::Result<(String, Vec<u8>, bool)> {
        let (first, body) = self.read_packet()?;
        if first & !1 != PUBLISH {
            return Err(io::Error::other(format!("not a PUBLISH at QoS 0: {first:#x} {body:?}")));
        }
        let topic_len = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let (topic, payload) = body[2..].split_at(topic_len);
        let topic = String::from_utf8(topic.to_vec()).map_err(io::Error::other)?;
        Ok((topic, payload.to_vec(), first & 1 != 0))
    }

    /// Publishes everything at QoS 1 and returns when all of it is acknowledged, in order.
    pub(crate) fn publish_all<'a>(
        &mut self,
        messages: impl IntoIterator<Item = (&'a str, String)>,
    ) -> io::Result<usize> {
        let mut waiting = std::collections::VecDeque::new();
        let mut acknowledged = 0;
        for (topic, payload) in messages {
            waiting.push_back(self.send(topic, &payload)?);
            if waiting.len() == IN_FLIGHT {
                acknowledged += self.take_ack(&mut waiting)?;
            }
        }
        while !waiting.is_empty() {
            acknowledged += self.take_ack(&mut waiting)?;
        }
        Ok(acknowledged)
    }

    fn take_ack(&mut self, waiting: &mut std::collections::VecDeque<u16>) -> io::Result<usize> {
        let id = self.acknowledged()?;
        // MQTT 3.1.1, 4.6: a receiver acknowledges in the order in which it received.
        assert_eq!(Some(id), waiting.pop_front(), "acknowledged out of order");
        Ok(1)
    }

    fn write_packet(&mut self, first: u8, body: &[u8]) -> io::Result<()> {
        let mut packet = vec![first];
        let mut rest = body.len();
        loop {
            let more = rest >= 128;
            packet.push((rest % 128) as u8 | if more { 128 } else { 0 });
            rest /= 128;
            if !more {
                break;
            }
        }
        packet.extend_from_slice(body);
        self.stream.write_all(&packet)
    }

    /// First byte (with flags) and body of the next packet.
    fn read_packet(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let first = self.read_byte()?;
        let (mut length, mut shift) = (0usize, 0);
        loop {
            let byte = self.read_byte()?;
            length |= usize::from(byte & 127) << shift;
            shift += 7;
            if byte < 128 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((first, body))
    }

    fn read_byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.stream.read_exact(&mut byte)?;
        Ok(byte[0])
    }
}

fn push_text(body: &mut Vec<u8>, text: &str) {
    body.extend_from_slice(&(text.len() as u16).to_be_bytes());
    body.extend_from_slice(text.as_bytes());
}
