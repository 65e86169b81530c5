//! CONNECT of both versions, read in place.

use rumqttc_v5::mqttbytes::v5::DisconnectReasonCode as Reason;

use crate::mqtt::properties::{self, Properties, Value, id};
use crate::mqtt::wire::{
    Version, Violation, check_text, check_topic, check_topic_limits, short, string, violation,
};

/// What a CONNECT says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Connect<'a> {
    pub(crate) version: Version,
    /// Clean session, or clean start.
    pub(crate) clean: bool,
    pub(crate) keep_alive_s: u16,
    pub(crate) client_id: &'a str,
    pub(crate) user: Option<&'a str>,
    pub(crate) password: Option<&'a [u8]>,
    pub(crate) will: Option<Testament<'a>>,
    pub(crate) wishes: Wishes,
}

/// The properties of a CONNECT, with the values that hold where they are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wishes {
    pub(crate) session_expiry_s: u32,
    pub(crate) receive_maximum: u16,
    pub(crate) packet_bytes_max: u32,
    pub(crate) topic_alias_max: u16,
    /// An authentication method was named.
    pub(crate) authentication: bool,
}

/// The will as it was sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Testament<'a> {
    pub(crate) topic: &'a str,
    pub(crate) payload: &'a [u8],
    pub(crate) properties: &'a [u8],
    pub(crate) delay_s: u32,
    pub(crate) expiry_s: Option<u32>,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
}

/// The connect flags.
#[derive(Clone, Copy)]
struct Flags(u8);

impl Flags {
    fn has(self, bit: u8) -> bool {
        self.0 & (1 << bit) != 0
    }

    fn will_qos(self) -> u8 {
        (self.0 >> 3) & 3
    }

    fn check(self, version: Version) -> Result<(), Violation> {
        let (will, retain, password, user) = (self.has(2), self.has(5), self.has(6), self.has(7));
        if self.has(0) {
            return violation(Reason::MalformedPacket, "CONNECT with the reserved flag");
        }
        if self.will_qos() == 3 || (!will && (retain || self.will_qos() > 0)) {
            return violation(Reason::MalformedPacket, "CONNECT with will flags that do not fit");
        }
        if version == Version::V3 && password && !user {
            return violation(Reason::MalformedPacket, "CONNECT with a password and no user name");
        }
        Ok(())
    }
}

/// Decodes what follows the protocol level.
pub(super) fn decode(version: Version, body: &[u8]) -> Result<Connect<'_>, Violation> {
    let Some((&[flags, high, low], rest)) = body.split_first_chunk() else { return short() };
    let flags = Flags(flags);
    flags.check(version)?;
    let (wishes, rest) = match version {
        // A session of 3.1.1 that is not clean never ends by itself.
        Version::V3 => (Wishes::of_old_client(flags.has(1)), rest),
        Version::V5 => {
            let (bytes, rest) = properties::split(rest)?;
            (Wishes::read(bytes)?, rest)
        }
    };
    let (client_id, mut rest) = text(rest)?;
    let will = match flags.has(2) {
        true => Some(will(version, flags, &mut rest)?),
        false => None,
    };
    let user = match flags.has(7) {
        true => Some(take(&mut rest, text)?),
        false => None,
    };
    let password = match flags.has(6) {
        true => Some(take(&mut rest, string)?),
        false => None,
    };
    if !rest.is_empty() {
        return violation(Reason::MalformedPacket, "CONNECT with bytes behind its end");
    }
    let keep_alive_s = u16::from_be_bytes([high, low]);
    let clean = flags.has(1);
    Ok(Connect { version, clean, keep_alive_s, client_id, user, password, will, wishes })
}

impl Wishes {
    fn of_old_client(clean: bool) -> Self {
        Self {
            session_expiry_s: if clean { 0 } else { u32::MAX },
            receive_maximum: u16::MAX,
            packet_bytes_max: u32::MAX,
            topic_alias_max: 0,
            authentication: false,
        }
    }

    fn read(bytes: &[u8]) -> Result<Self, Violation> {
        let mut wishes = Self::of_old_client(true);
        let mut properties = Properties::new(bytes, properties::CONNECT);
        while let Some((id, value)) = properties.next()? {
            let number = value.number();
            match id {
                id::SESSION_EXPIRY => wishes.session_expiry_s = number,
                id::RECEIVE_MAXIMUM => wishes.receive_maximum = number as u16,
                id::PACKET_MAXIMUM => wishes.packet_bytes_max = number,
                id::TOPIC_ALIAS_MAXIMUM => wishes.topic_alias_max = number as u16,
                id::AUTHENTICATION_METHOD => wishes.authentication = true,
                _ => {}
            }
        }
        properties::check_limits(bytes, properties.user_properties())?;
        if properties.has_seen(id::AUTHENTICATION_DATA) && !wishes.authentication {
            return violation(Reason::ProtocolError, "authentication data without a method");
        }
        Ok(wishes)
    }
}

fn will<'a>(
    version: Version,
    flags: Flags,
    rest: &mut &'a [u8],
) -> Result<Testament<'a>, Violation> {
    let (mut bytes, mut delay_s, mut expiry_s) = (&[][..], 0, None);
    if version == Version::V5 {
        bytes = take(rest, properties::split)?;
        let mut properties = Properties::new(bytes, properties::WILL);
        while let Some((id, value)) = properties.next()? {
            match (id, value) {
                (id::WILL_DELAY, Value::Number(n)) => delay_s = n,
                (id::MESSAGE_EXPIRY, Value::Number(n)) => expiry_s = Some(n),
                _ => {}
            }
        }
        properties::check_limits(bytes, properties.user_properties())?;
    }
    let topic = take(rest, text)?;
    check_topic(topic.as_bytes())?;
    check_topic_limits(topic.as_bytes())?;
    let payload = take(rest, string)?;
    let (qos, retain) = (flags.will_qos(), flags.has(5));
    Ok(Testament { topic, payload, properties: bytes, delay_s, expiry_s, qos, retain })
}

/// Reads one part off the front of `rest`.
fn take<'a, T>(
    rest: &mut &'a [u8],
    read: impl Fn(&'a [u8]) -> Result<(T, &'a [u8]), Violation>,
) -> Result<T, Violation> {
    let (part, behind) = read(rest)?;
    *rest = behind;
    Ok(part)
}

fn text(bytes: &[u8]) -> Result<(&str, &[u8]), Violation> {
    let (text, rest) = string(bytes)?;
    check_text(text)?;
    match std::str::from_utf8(text) {
        Ok(text) => Ok((text, rest)),
        Err(_) => short(),
    }
}
