//! What a broker says in numbers, in words that tell what to do.

use crate::mqtt::wire::Version;

/// The answer to a CONNECT that was refused.
pub(crate) fn connect(version: Version, code: u8) -> &'static str {
    match (version, code) {
        (Version::V3, 1) => "it does not speak MQTT 3.1.1",
        (Version::V3, 2) => "it does not accept this client_id",
        (Version::V3, 3) => "it is not ready (server unavailable)",
        (Version::V3, 4) => "bad user name or password",
        (Version::V3, 5) => "not authorized: check `user`, `password` and the broker's rules",
        // The answer of a broker that knows no version 5, in the words of 3.1.1.
        (Version::V5, 1) => reason(0x84),
        (Version::V5, code) => reason(code),
        (Version::V3, _) => "a return code that MQTT 3.1.1 does not know",
    }
}

/// A reason code of MQTT 5, in any packet.
pub(crate) fn reason(code: u8) -> &'static str {
    match code {
        0x00 => "normal end",
        0x80 => "unspecified error",
        0x81 => "malformed packet",
        0x82 => "protocol error",
        0x83 => "a rule of this broker",
        0x84 => "it does not speak MQTT 5: set `version = \"3.1.1\"`",
        0x85 => "it does not accept this client_id",
        0x86 => "bad user name or password",
        0x87 => "not authorized: check `user`, `password` and the broker's rules",
        0x88 => "server unavailable",
        0x89 => "server busy",
        0x8A => "banned",
        0x8B => "the broker is shutting down",
        0x8C => "bad authentication method",
        0x8D => "it heard nothing from us during the keep-alive",
        0x8E => "another client has connected with the same client_id",
        0x8F => "it does not accept this topic filter",
        0x93 => "receive maximum exceeded",
        0x95 => "packet too large",
        0x96 => "message rate too high",
        0x97 => "quota exceeded",
        0x98 => "by its administrator",
        0x9C | 0x9D => "use another server",
        0x9E => "it has no shared subscriptions: remove `share`",
        0x9F => "connection rate exceeded",
        0xA0 => "maximum connect time",
        0xA1 => "it has no subscription identifiers",
        0xA2 => "it has no wildcard subscriptions",
        _ => "no reason that MQTT knows",
    }
}

/// The answer to one filter of a SUBSCRIBE that was refused.
pub(crate) fn subscribe(version: Version, code: u8) -> &'static str {
    match version {
        Version::V3 => "not allowed, or not understood; 3.1.1 says no more",
        Version::V5 => reason(code),
    }
}
