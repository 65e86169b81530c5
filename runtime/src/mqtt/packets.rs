//! The packets of a client that come after its CONNECT and are not PUBLISH, read in place, and our
//! answers to them.

use rumqttc_v5::mqttbytes::v5::DisconnectReasonCode as Reason;

use super::broker::{Subscription, is_valid_filter, shared_group};
use super::limits::{FILTERS_MAX, TOPIC_BYTES_MAX, TOPIC_LEVELS_MAX};
use super::properties::{self, Properties};
use super::wire::{
    Version, Violation, check_text, kind, packet_id, put_ack, put_length, short, string, violation,
};

/// A SUBSCRIBE.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Subscribe {
    pub(crate) packet_id: u16,
    /// In the order of the packet, with [`Limit`]s for those beyond our bounds.
    pub(crate) filters: Vec<Result<Subscription, Limit>>,
}

/// A filter that is valid MQTT but more than we allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit;

/// Decodes the body of a SUBSCRIBE.
pub(crate) fn subscribe(version: Version, body: &[u8]) -> Result<Subscribe, Violation> {
    let packet_id = packet_id(body)?;
    let (mut rest, mut identifier) = (&body[2..], None);
    if version == Version::V5 {
        let (bytes, behind) = properties::split(rest)?;
        rest = behind;
        let mut properties = Properties::new(bytes, properties::SUBSCRIBE);
        while let Some((id, value)) = properties.next()? {
            if id == properties::id::SUBSCRIPTION_ID && identifier.replace(value.number()).is_some()
            {
                return violation(Reason::ProtocolError, "two subscription identifiers");
            }
        }
        properties::check_limits(bytes, properties.user_properties())?;
    }
    let mut filters = Vec::new();
    while !rest.is_empty() {
        let (filter, behind) = filter(rest)?;
        let Some((&options, behind)) = behind.split_first() else { return short() };
        rest = behind;
        let subscription = options_of(version, filter, options, identifier)?;
        filters.push(subscription);
        check_count(filters.len())?;
    }
    if filters.is_empty() {
        return violation(Reason::ProtocolError, "SUBSCRIBE without a filter");
    }
    Ok(Subscribe { packet_id, filters })
}

/// Reads one filter's options.
fn options_of(
    version: Version,
    filter: &str,
    options: u8,
    identifier: Option<u32>,
) -> Result<Result<Subscription, Limit>, Violation> {
    let reserved = if version == Version::V3 { 0xFC } else { 0xC0 };
    if options & reserved != 0 {
        return violation(Reason::MalformedPacket, "SUBSCRIBE with reserved bits");
    }
    let (qos, retain_handling) = (options & 3, options >> 4 & 3);
    if qos == 3 {
        return violation(Reason::MalformedPacket, "SUBSCRIBE with QoS 3");
    }
    if retain_handling == 3 {
        return violation(Reason::ProtocolError, "SUBSCRIBE with retain handling 3");
    }
    let no_local = options & 4 != 0;
    if no_local && shared_group(filter).is_some() {
        return violation(Reason::ProtocolError, "a shared subscription with No Local");
    }
    if filter.len() > TOPIC_BYTES_MAX || filter.split('/').count() > TOPIC_LEVELS_MAX {
        return Ok(Err(Limit));
    }
    if !is_valid_filter(filter) {
        return violation(Reason::MalformedPacket, "what is no topic filter");
    }
    Ok(Ok(Subscription {
        filter: filter.to_owned(),
        qos,
        no_local,
        retain_as_published: options & 8 != 0,
        retain_handling,
        identifier,
    }))
}

/// Decodes the body of an UNSUBSCRIBE: its packet id and filters.
pub(crate) fn unsubscribe(version: Version, body: &[u8]) -> Result<(u16, Vec<&str>), Violation> {
    let packet_id = packet_id(body)?;
    let mut rest = &body[2..];
    if version == Version::V5 {
        let (bytes, behind) = properties::split(rest)?;
        properties::check(bytes, properties::UNSUBSCRIBE)?;
        rest = behind;
    }
    let mut filters = Vec::new();
    while !rest.is_empty() {
        let (filter, behind) = filter(rest)?;
        rest = behind;
        filters.push(filter);
        check_count(filters.len())?;
    }
    if filters.is_empty() {
        return violation(Reason::ProtocolError, "UNSUBSCRIBE without a filter");
    }
    Ok((packet_id, filters))
}

fn check_count(filters: usize) -> Result<(), Violation> {
    if filters > FILTERS_MAX {
        return violation(Reason::QuotaExceeded, "more filters in a packet than allowed");
    }
    Ok(())
}

/// A filter's text, not empty (4.7.3-1), and what follows.
fn filter(bytes: &[u8]) -> Result<(&str, &[u8]), Violation> {
    let (text, rest) = string(bytes)?;
    check_text(text)?;
    match std::str::from_utf8(text) {
        Ok("") => violation(Reason::MalformedPacket, "an empty topic filter"),
        Ok(text) => Ok((text, rest)),
        Err(_) => short(),
    }
}

/// Decodes the body of a PUBACK, PUBREC, PUBREL or PUBCOMP: packet id and reason code.
pub(crate) fn ack(version: Version, kind: u8, body: &[u8]) -> Result<(u16, u8), Violation> {
    let id = packet_id(body)?;
    let rest = &body[2..];
    let Some((&reason, rest)) = rest.split_first() else { return Ok((id, 0)) };
    if version == Version::V3 {
        return violation(Reason::MalformedPacket, "an acknowledgement with bytes behind its end");
    }
    let known: &[u8] = match kind {
        kind::PUBACK | kind::PUBREC => &[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99],
        _ => &[0, 0x92],
    };
    if !known.contains(&reason) {
        return violation(Reason::ProtocolError, "an acknowledgement with an unknown reason code");
    }
    check_tail(rest, properties::ACK)?;
    Ok((id, reason))
}

/// How a client takes leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Goodbye {
    pub(crate) reason: u8,
    /// MQTT 5: how long to keep the session instead, seconds.
    pub(crate) session_expiry_s: Option<u32>,
}

/// Decodes the body of a DISCONNECT.
pub(crate) fn disconnect(version: Version, body: &[u8]) -> Result<Goodbye, Violation> {
    let mut goodbye = Goodbye::default();
    let Some((&reason, rest)) = body.split_first() else { return Ok(goodbye) };
    if version == Version::V3 {
        return violation(Reason::MalformedPacket, "DISCONNECT with a body");
    }
    // Section 3.14.2.1: those that a client may send.
    if !matches!(reason, 0 | 4 | 0x80..=0x83 | 0x90 | 0x93..=0x99) {
        return violation(Reason::ProtocolError, "DISCONNECT with an unknown reason code");
    }
    goodbye.reason = reason;
    if rest.is_empty() {
        return Ok(goodbye);
    }
    let (bytes, rest) = properties::split(rest)?;
    if !rest.is_empty() {
        return violation(Reason::MalformedPacket, "DISCONNECT with bytes behind its end");
    }
    let mut properties = Properties::new(bytes, properties::DISCONNECT);
    while let Some((id, value)) = properties.next()? {
        if id == properties::id::SESSION_EXPIRY {
            goodbye.session_expiry_s = Some(value.number());
        }
    }
    Ok(goodbye)
}

/// Checks properties at the very end of a packet; they may be left out.
fn check_tail(bytes: &[u8], allowed: properties::Allowed) -> Result<(), Violation> {
    if bytes.is_empty() {
        return Ok(());
    }
    let (bytes, rest) = properties::split(bytes)?;
    if !rest.is_empty() {
        return violation(Reason::MalformedPacket, "a packet with bytes behind its end");
    }
    properties::check(bytes, allowed)
}

/// Appends an acknowledgement with a reason code, which 3.1.1 cannot say.
pub(crate) fn put_ack_with(
    out: &mut Vec<u8>,
    version: Version,
    byte1: u8,
    packet_id: u16,
    reason: u8,
) {
    if version == Version::V3 || reason == 0 {
        return put_ack(out, byte1, packet_id);
    }
    let [high, low] = packet_id.to_be_bytes();
    out.extend_from_slice(&[byte1, 3, high, low, reason]);
}

/// A SUBACK or UNSUBACK.
pub(crate) fn codes_packet(version: Version, byte1: u8, packet_id: u16, codes: &[u8]) -> Vec<u8> {
    let properties: &[u8] = if version == Version::V5 { &[0] } else { &[] };
    let mut out = vec![byte1];
    put_length(&mut out, 2 + properties.len() + codes.len());
    out.extend_from_slice(&packet_id.to_be_bytes());
    out.extend_from_slice(properties);
    out.extend_from_slice(codes);
    out
}

#[cfg(test)]
mod tests;
