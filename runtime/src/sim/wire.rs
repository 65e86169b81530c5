//! As much MQTT as the simulated devices and the simulated broker speak, written for them alone:
//! what checks the product shares no code with it.

use tokio::io::{AsyncRead, AsyncReadExt};

pub(crate) const CONNECT: u8 = 1;
pub(crate) const CONNACK: u8 = 2;
pub(crate) const PUBLISH: u8 = 3;
pub(crate) const PUBACK: u8 = 4;
pub(crate) const PUBREC: u8 = 5;
pub(crate) const PUBREL: u8 = 6;
pub(crate) const PUBCOMP: u8 = 7;
pub(crate) const SUBSCRIBE: u8 = 8;
pub(crate) const PINGREQ: u8 = 12;

/// A packet: its first byte and its body.
pub(crate) struct Packet {
    pub(crate) first: u8,
    pub(crate) body: Vec<u8>,
}

impl Packet {
    pub(crate) fn kind(&self) -> u8 {
        self.first >> 4
    }

    /// The number at the start of the body.
    pub(crate) fn id(&self) -> u16 {
        u16::from_be_bytes([self.body[0], self.body[1]])
    }
}

/// Reads the next packet; `None` when the connection ends.
pub(crate) async fn read(from: &mut (impl AsyncRead + Unpin)) -> Option<Packet> {
    let first = from.read_u8().await.ok()?;
    let (mut len, mut shift) = (0, 0);
    loop {
        let byte = from.read_u8().await.ok()?;
        len |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            break;
        }
    }
    let mut body = vec![0; len];
    from.read_exact(&mut body).await.ok()?;
    Some(Packet { first, body })
}

pub(crate) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut len = body.len();
    while len >= 0x80 {
        out.push((len & 0x7f) as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(body);
    out
}

fn text(text: &str) -> Vec<u8> {
    let mut out = (text.len() as u16).to_be_bytes().to_vec();
    out.extend_from_slice(text.as_bytes());
    out
}

/// A CONNECT that wants its old session.
pub(crate) fn connect(v5: bool, client: &str) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend_from_slice(&[if v5 { 5 } else { 4 }, 0, 0, 60]);
    if v5 {
        // Session expiry: an hour.
        body.extend_from_slice(&[5, 0x11, 0, 0, 0x0e, 0x10]);
    }
    body.extend(text(client));
    packet(CONNECT << 4, &body)
}

pub(crate) fn publish(
    v5: bool,
    (dup, qos, id): (bool, u8, u16),
    topic: &str,
    payload: &[u8],
) -> Vec<u8> {
    let mut body = text(topic);
    body.extend_from_slice(&id.to_be_bytes());
    if v5 {
        body.push(0);
    }
    body.extend_from_slice(payload);
    packet(PUBLISH << 4 | u8::from(dup) << 3 | qos << 1, &body)
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
pub(crate) fn ack(kind: u8, id: u16) -> Vec<u8> {
    let flags = if kind == PUBREL { 2 } else { 0 };
    packet(kind << 4 | flags, &id.to_be_bytes())
}
