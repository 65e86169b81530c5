//! The answer to a CONNECT.

use crate::mqtt::limits::{RECEIVE_MAXIMUM, TOPIC_ALIASES_MAX};
use crate::mqtt::properties::id;
use crate::mqtt::wire::{Version, put_length, put_text};

use super::Hello;

/// What an endpoint offers its clients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Largest packet that we take.
    pub(crate) packet_bytes_max: usize,
    /// Longest that a session is kept without a connection.
    pub(crate) session_expiry_max_s: u32,
    /// Longest keep-alive of a version 5 client; 0 is no bound.
    pub(crate) keep_alive_max_s: u16,
    /// Whether retained messages are kept.
    pub(crate) retained: bool,
    /// Whether clients may subscribe.
    pub(crate) subscribe: bool,
}

/// The CONNACK that lets a client in.
pub(super) fn accept(hello: &Hello, terms: &Terms, session_present: bool) -> Vec<u8> {
    let present = u8::from(session_present);
    if hello.version == Version::V3 {
        return vec![0x20, 2, present, 0];
    }
    let mut properties = Vec::with_capacity(64);
    if hello.session_expiry_s != hello.wishes.session_expiry_s {
        put_u32(&mut properties, id::SESSION_EXPIRY, hello.session_expiry_s);
    }
    put_u16(&mut properties, id::RECEIVE_MAXIMUM, RECEIVE_MAXIMUM);
    if let Ok(bytes) = u32::try_from(terms.packet_bytes_max) {
        put_u32(&mut properties, id::PACKET_MAXIMUM, bytes);
    }
    put_u16(&mut properties, id::TOPIC_ALIAS_MAXIMUM, TOPIC_ALIASES_MAX);
    if hello.assigned {
        properties.push(id::ASSIGNED_CLIENT_ID);
        put_text(&mut properties, &hello.client_id);
    }
    if hello.keep_alive_s != hello.wished_keep_alive_s {
        put_u16(&mut properties, id::SERVER_KEEP_ALIVE, hello.keep_alive_s);
    }
    if !terms.retained {
        properties.extend_from_slice(&[id::RETAIN_AVAILABLE, 0]);
    }
    if !terms.subscribe {
        for id in [id::WILDCARDS_AVAILABLE, id::SUBSCRIPTION_IDS_AVAILABLE, id::SHARED_AVAILABLE] {
            properties.extend_from_slice(&[id, 0]);
        }
    }
    let mut out = vec![0x20];
    let mut length = Vec::with_capacity(2);
    put_length(&mut length, properties.len());
    put_length(&mut out, 2 + length.len() + properties.len());
    out.extend_from_slice(&[present, 0]);
    out.extend_from_slice(&length);
    out.extend_from_slice(&properties);
    out
}

/// The CONNACK that does not; in the form that any client which is not of version 5 knows.
pub(super) fn refuse(version: Version, (v3, v5): (u8, u8)) -> Vec<u8> {
    match version {
        Version::V3 => vec![0x20, 2, 0, v3],
        Version::V5 => vec![0x20, 3, 0, v5, 0],
    }
}

fn put_u16(out: &mut Vec<u8>, id: u8, value: u16) {
    out.push(id);
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_u32(out: &mut Vec<u8>, id: u8, value: u32) {
    out.push(id);
    out.extend_from_slice(&value.to_be_bytes());
}
