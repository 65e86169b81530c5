//! Outgoing packets, encoded for the version of the connection.

use super::super::wire::Version;
use super::message::Message;

/// How one copy of a message goes out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy<'a> {
    pub(super) version: Version,
    pub(super) qos: u8,
    pub(super) retain: bool,
    pub(super) duplicate: bool,
    pub(super) packet_id: u16,
    /// Subscription identifiers.
    pub(super) ids: &'a [u32],
    pub(super) alias: Alias,
}

/// Whether a topic alias stands for the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alias {
    None,
    /// Topic and alias go out, so that the client learns it.
    New(u16),
    /// The alias goes out alone.
    Known(u16),
}

/// Bytes of a PUBLISH, and of its properties.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) total: usize,
    body: usize,
    properties: usize,
}

impl Copy<'_> {
    pub(super) fn size(&self, message: &Message) -> Size {
        let topic = match self.alias {
            Alias::Known(_) => 0,
            _ => message.topic().len(),
        };
        let packet_id = if self.qos > 0 { 2 } else { 0 };
        let mut body = 2 + topic + packet_id + message.payload().len();
        let mut properties = 0;
        if self.version == Version::V5 {
            let alias = if self.alias == Alias::None { 0 } else { 3 };
            let expiry = if message.expires_at_ms.is_some() { 5 } else { 0 };
            let ids: usize = self.ids.iter().map(|id| 1 + var_int_len(*id as usize)).sum();
            properties = alias + expiry + ids + message.properties().len();
            body += var_int_len(properties) + properties;
        }
        Size { total: 1 + var_int_len(body) + body, body, properties }
    }

    /// Appends the packet.
    pub(super) fn put(&self, message: &Message, size: Size, now_ms: u64, out: &mut Vec<u8>) {
        out.reserve(size.total);
        let flags = u8::from(self.duplicate) << 3 | self.qos << 1 | u8::from(self.retain);
        out.push(0x30 | flags);
        put_var_int(out, size.body);
        let topic = match self.alias {
            Alias::Known(_) => &[],
            _ => message.topic(),
        };
        let len = u16::try_from(topic.len()).expect("a topic is below 64 KiB");
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(topic);
        if self.qos > 0 {
            out.extend_from_slice(&self.packet_id.to_be_bytes());
        }
        if self.version == Version::V5 {
            put_var_int(out, size.properties);
            self.put_properties(message, now_ms, out);
        }
        out.extend_from_slice(message.payload());
    }

    fn put_properties(&self, message: &Message, now_ms: u64, out: &mut Vec<u8>) {
        if let Alias::New(alias) | Alias::Known(alias) = self.alias {
            out.push(35);
            out.extend_from_slice(&alias.to_be_bytes());
        }
        if let Some(at) = message.expires_at_ms {
            // What is left of it (3.3.2-6), a begun second counted whole.
            let left_s = at.saturating_sub(now_ms).div_ceil(1000);
            out.push(2);
            out.extend_from_slice(&u32::try_from(left_s).unwrap_or(u32::MAX).to_be_bytes());
        }
        for &id in self.ids {
            out.push(11);
            put_var_int(out, id as usize);
        }
        out.extend_from_slice(message.properties());
    }
}

/// Appends a PUBREL with success; both versions have this form.
pub(super) fn put_pubrel(out: &mut Vec<u8>, packet_id: u16) {
    let [high, low] = packet_id.to_be_bytes();
    out.extend_from_slice(&[0x62, 2, high, low]);
}

fn var_int_len(n: usize) -> usize {
    match n {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

fn put_var_int(out: &mut Vec<u8>, mut n: usize) {
    while n >= 0x80 {
        out.push((n & 0x7F) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}
