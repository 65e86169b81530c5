//! The properties of MQTT 5, read in place: which there are, of what type, where each may stand
//! and how often.
//!
//! One table says all of it, so that no packet's decoder can forget a rule. Nothing is copied.

use rumqttc_v5::mqttbytes::v5::DisconnectReasonCode as Reason;

use super::limits::{PROPERTIES_BYTES_MAX, USER_PROPERTIES_MAX};
use super::wire::{Violation, check_text, short, strict_var_int, string, violation};

/// Identifiers, section 2.2.2.2 of the standard.
pub(crate) mod id {
    pub(crate) const PAYLOAD_FORMAT: u8 = 1;
    pub(crate) const MESSAGE_EXPIRY: u8 = 2;
    pub(crate) const CONTENT_TYPE: u8 = 3;
    pub(crate) const RESPONSE_TOPIC: u8 = 8;
    pub(crate) const CORRELATION_DATA: u8 = 9;
    pub(crate) const SUBSCRIPTION_ID: u8 = 11;
    pub(crate) const SESSION_EXPIRY: u8 = 17;
    pub(crate) const ASSIGNED_CLIENT_ID: u8 = 18;
    pub(crate) const SERVER_KEEP_ALIVE: u8 = 19;
    pub(crate) const AUTHENTICATION_METHOD: u8 = 21;
    pub(crate) const AUTHENTICATION_DATA: u8 = 22;
    pub(crate) const REQUEST_PROBLEM: u8 = 23;
    pub(crate) const WILL_DELAY: u8 = 24;
    pub(crate) const REQUEST_RESPONSE: u8 = 25;
    pub(crate) const REASON_STRING: u8 = 31;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 33;
    pub(crate) const TOPIC_ALIAS_MAXIMUM: u8 = 34;
    pub(crate) const TOPIC_ALIAS: u8 = 35;
    pub(crate) const RETAIN_AVAILABLE: u8 = 37;
    pub(crate) const USER_PROPERTY: u8 = 38;
    pub(crate) const PACKET_MAXIMUM: u8 = 39;
    pub(crate) const WILDCARDS_AVAILABLE: u8 = 40;
    pub(crate) const SUBSCRIPTION_IDS_AVAILABLE: u8 = 41;
    pub(crate) const SHARED_AVAILABLE: u8 = 42;
}

/// What a property holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// One, two or four bytes, or a variable byte integer.
    Number(u32),
    Text(&'a [u8]),
    Binary(&'a [u8]),
    Pair(&'a [u8], &'a [u8]),
}

impl<'a> Value<'a> {
    pub(crate) fn number(self) -> u32 {
        if let Value::Number(n) = self { n } else { 0 }
    }

    pub(crate) fn bytes(self) -> &'a [u8] {
        match self {
            Value::Text(bytes) | Value::Binary(bytes) => bytes,
            Value::Number(_) | Value::Pair(..) => &[],
        }
    }
}

/// A set of property identifiers, as bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowed(u64);

impl Allowed {
    const fn of(ids: &[u8]) -> Self {
        let (mut bits, mut i) = (1 << id::USER_PROPERTY, 0);
        while i < ids.len() {
            bits |= 1 << ids[i];
            i += 1;
        }
        Self(bits)
    }

    fn has(self, id: u8) -> bool {
        id < 64 && self.0 & (1 << id) != 0
    }
}

pub(crate) const CONNECT: Allowed = Allowed::of(&[
    id::SESSION_EXPIRY,
    id::RECEIVE_MAXIMUM,
    id::PACKET_MAXIMUM,
    id::TOPIC_ALIAS_MAXIMUM,
    id::REQUEST_RESPONSE,
    id::REQUEST_PROBLEM,
    id::AUTHENTICATION_METHOD,
    id::AUTHENTICATION_DATA,
]);
pub(crate) const WILL: Allowed = Allowed::of(&[
    id::WILL_DELAY,
    id::PAYLOAD_FORMAT,
    id::MESSAGE_EXPIRY,
    id::CONTENT_TYPE,
    id::RESPONSE_TOPIC,
    id::CORRELATION_DATA,
]);
pub(crate) const PUBLISH: Allowed = Allowed::of(&[
    id::PAYLOAD_FORMAT,
    id::MESSAGE_EXPIRY,
    id::TOPIC_ALIAS,
    id::CONTENT_TYPE,
    id::RESPONSE_TOPIC,
    id::CORRELATION_DATA,
    id::SUBSCRIPTION_ID,
]);
pub(crate) const ACK: Allowed = Allowed::of(&[id::REASON_STRING]);
pub(crate) const SUBSCRIBE: Allowed = Allowed::of(&[id::SUBSCRIPTION_ID]);
pub(crate) const UNSUBSCRIBE: Allowed = Allowed::of(&[]);
/// From a client: a server reference is for servers only.
pub(crate) const DISCONNECT: Allowed = Allowed::of(&[id::SESSION_EXPIRY, id::REASON_STRING]);

/// The properties of one packet, one after the other. All but user properties, and subscription
/// identifiers of a PUBLISH, may come once only.
pub(crate) struct Properties<'a> {
    rest: &'a [u8],
    allowed: Allowed,
    seen: u64,
    user_properties: usize,
}

/// Splits a length-prefixed run of properties from what follows it.
pub(crate) fn split(bytes: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    let Some((len, len_len)) = strict_var_int(bytes)? else { return short() };
    match bytes[len_len..].split_at_checked(len) {
        Some(parts) => Ok(parts),
        None => short(),
    }
}

impl<'a> Properties<'a> {
    pub(crate) fn new(bytes: &'a [u8], allowed: Allowed) -> Self {
        Self { rest: bytes, allowed, seen: 0, user_properties: 0 }
    }

    /// What was not read yet.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// User properties read so far.
    pub(crate) fn user_properties(&self) -> usize {
        self.user_properties
    }

    /// The next one, or `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u8, Value<'a>)>, Violation> {
        let Some((&id, rest)) = self.rest.split_first() else { return Ok(None) };
        let (value, rest) = value(id, rest)?;
        if !self.allowed.has(id) {
            return violation(Reason::ProtocolError, "a property that this packet may not have");
        }
        if id == id::USER_PROPERTY {
            self.user_properties += 1;
        } else if id != id::SUBSCRIPTION_ID && self.seen & (1 << id) != 0 {
            return violation(Reason::ProtocolError, "a property comes twice");
        }
        self.seen |= 1 << id;
        self.rest = rest;
        check_value(id, value)?;
        Ok(Some((id, value)))
    }

    /// Whether a property was read already.
    pub(crate) fn has_seen(&self, id: u8) -> bool {
        self.seen & (1 << id) != 0
    }
}

/// Checks properties of which nothing is used.
pub(crate) fn check(bytes: &[u8], allowed: Allowed) -> Result<(), Violation> {
    let mut properties = Properties::new(bytes, allowed);
    while properties.next()?.is_some() {}
    Ok(())
}

/// Hands out the properties that `keep` wants, encoded. Stops where they are not valid.
pub(crate) fn copy(
    bytes: &[u8],
    allowed: Allowed,
    keep: impl Fn(u8) -> bool,
    mut put: impl FnMut(&[u8]),
) {
    let mut properties = Properties::new(bytes, allowed);
    let mut at = 0;
    while let Ok(Some((id, _))) = properties.next() {
        let end = bytes.len() - properties.rest().len();
        if keep(id) {
            put(&bytes[at..end]);
        }
        at = end;
    }
}

/// Bounds of our own on what is valid MQTT.
pub(crate) fn check_limits(bytes: &[u8], user_properties: usize) -> Result<(), Violation> {
    if bytes.len() > PROPERTIES_BYTES_MAX || user_properties > USER_PROPERTIES_MAX {
        return violation(Reason::QuotaExceeded, "more properties than allowed");
    }
    Ok(())
}

/// The value behind identifier `id`, and what follows.
fn value(id: u8, bytes: &[u8]) -> Result<(Value<'_>, &[u8]), Violation> {
    Ok(match id {
        1 | 23 | 25 | 36 | 37 | 40 | 41 | 42 => number(bytes, 1)?,
        19 | 33 | 34 | 35 => number(bytes, 2)?,
        2 | 17 | 24 | 39 => number(bytes, 4)?,
        11 => match strict_var_int(bytes)? {
            Some((value, len)) => (Value::Number(value as u32), &bytes[len..]),
            None => return short(),
        },
        3 | 8 | 18 | 21 | 26 | 28 | 31 => {
            let (text, rest) = string(bytes)?;
            check_text(text)?;
            (Value::Text(text), rest)
        }
        9 | 22 => {
            let (data, rest) = string(bytes)?;
            (Value::Binary(data), rest)
        }
        38 => {
            let (name, rest) = string(bytes)?;
            let (text, rest) = string(rest)?;
            check_text(name)?;
            check_text(text)?;
            (Value::Pair(name, text), rest)
        }
        _ => return violation(Reason::MalformedPacket, "an unknown property"),
    })
}

fn number(bytes: &[u8], len: usize) -> Result<(Value<'_>, &[u8]), Violation> {
    let Some((number, rest)) = bytes.split_at_checked(len) else { return short() };
    let value = number.iter().fold(0, |sum, &byte| sum << 8 | u32::from(byte));
    Ok((Value::Number(value), rest))
}

/// Values that the standard forbids.
fn check_value(id: u8, value: Value<'_>) -> Result<(), Violation> {
    let number = value.number();
    match id {
        id::PAYLOAD_FORMAT | id::REQUEST_PROBLEM | id::REQUEST_RESPONSE if number > 1 => {
            violation(Reason::ProtocolError, "a property that is neither 0 nor 1")
        }
        id::RECEIVE_MAXIMUM | id::PACKET_MAXIMUM | id::SUBSCRIPTION_ID if number == 0 => {
            violation(Reason::ProtocolError, "a property that may not be 0")
        }
        id::TOPIC_ALIAS if number == 0 => violation(Reason::TopicAliasInvalid, "topic alias 0"),
        id::RESPONSE_TOPIC if value.bytes().iter().any(|b| matches!(b, b'+' | b'#')) => {
            violation(Reason::ProtocolError, "a response topic with a wildcard")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
