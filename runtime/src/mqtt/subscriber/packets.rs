//! The packets that set a session up, for both versions: CONNECT and SUBSCRIBE out, CONNACK and
//! SUBACK in. Written and read by the codec crates.

use bytes::BytesMut;
use rumqttc_v4::mqttbytes::QoS;
use rumqttc_v4::mqttbytes::v4;
use rumqttc_v5::mqttbytes::v5;

use super::SubscriberConfig;
use crate::mqtt::limits::{KEEP_ALIVE, RECEIVE_MAXIMUM};
use crate::mqtt::wire::Version;

/// The packet id of every SUBSCRIBE; there is only one under way at a time.
pub(super) const SUBSCRIBE_ID: u16 = 1;

/// A CONNACK that accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Accepted {
    pub(super) session_present: bool,
    /// MQTT 5: the keep-alive that the broker demands instead of ours, seconds.
    pub(super) server_keep_alive_s: Option<u16>,
}

/// CONNECT that resumes the session of our client id.
pub(super) fn connect(config: &SubscriberConfig) -> Result<BytesMut, String> {
    let mut out = BytesMut::new();
    let (client_id, keep_alive) = (config.client_id.clone(), KEEP_ALIVE.as_secs() as u16);
    let password = config.password.clone();
    let written = match config.version() {
        Version::V3 => {
            let auth = match (config.user.clone(), password) {
                (None, _) => v4::ConnectAuth::None,
                (Some(username), None) => v4::ConnectAuth::Username { username },
                (Some(username), Some(password)) => {
                    v4::ConnectAuth::UsernamePassword { username, password: password.into() }
                }
            };
            v4::Connect { keep_alive, client_id, clean_session: false, last_will: None, auth }
                .write(&mut out)
                .map_err(|error| error.to_string())
        }
        Version::V5 => {
            let auth = match (config.user.clone(), password) {
                (None, None) => v5::ConnectAuth::None,
                (None, Some(password)) => v5::ConnectAuth::Password { password: password.into() },
                (Some(username), None) => v5::ConnectAuth::Username { username },
                (Some(username), Some(password)) => {
                    v5::ConnectAuth::UsernamePassword { username, password: password.into() }
                }
            };
            let mut properties = v5::ConnectProperties::new();
            properties.session_expiry_interval = Some(config.session_expiry_s);
            properties.receive_maximum = Some(RECEIVE_MAXIMUM);
            // No Maximum Packet Size: a broker drops what is larger without a word (3.1.2.11.4).
            let properties = Some(properties);
            v5::Connect { keep_alive, client_id, clean_start: false, properties }
                .write(&None, &auth, &mut out)
                .map_err(|error| error.to_string())
        }
    };
    written.map_err(|error| format!("cannot encode CONNECT: {error}"))?;
    Ok(out)
}

/// SUBSCRIBE to all filters.
pub(super) fn subscribe(config: &SubscriberConfig) -> Result<BytesMut, String> {
    let mut out = BytesMut::new();
    let qos = if config.qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
    let written = match config.version() {
        Version::V3 => {
            let filter = |path: &String| v4::SubscribeFilter { path: path.clone(), qos };
            let mut packet = v4::Subscribe::new_many(config.filters.iter().map(filter));
            packet.pkid = SUBSCRIBE_ID;
            packet.write(&mut out).map_err(|error| error.to_string())
        }
        Version::V5 => {
            let filter = |path: &String| v5::SubscribeFilter {
                path: path.clone(),
                qos,
                nolocal: false,
                preserve_retain: true,
                // Subscribing again must not bring all retained messages again.
                retain_forward_rule: v5::RetainForwardRule::OnNewSubscribe,
            };
            let mut packet = v5::Subscribe::new_many(config.filters.iter().map(filter), None);
            packet.pkid = SUBSCRIBE_ID;
            packet.write(&mut out).map_err(|error| error.to_string())
        }
    };
    written.map_err(|error| format!("cannot encode SUBSCRIBE: {error}"))?;
    Ok(out)
}

/// Reads a CONNACK.
pub(super) fn connack(version: Version, packet: &[u8]) -> Result<Accepted, String> {
    let mut bytes = BytesMut::from(packet);
    match version {
        Version::V3 => match v4::Packet::read(&mut bytes, packet.len()) {
            Ok(v4::Packet::ConnAck(ack)) if ack.code == v4::ConnectReturnCode::Success => {
                Ok(Accepted { session_present: ack.session_present, server_keep_alive_s: None })
            }
            Ok(v4::Packet::ConnAck(ack)) => Err(format!("the broker refuses: {:?}", ack.code)),
            Ok(_) => Err("the broker's first packet is not a CONNACK".to_owned()),
            Err(error) => Err(format!("CONNACK: {error}")),
        },
        Version::V5 => match v5::Packet::read(&mut bytes, None) {
            Ok(v5::Packet::ConnAck(ack)) if ack.code == v5::ConnectReturnCode::Success => {
                let server_keep_alive_s = ack.properties.and_then(|p| p.server_keep_alive);
                Ok(Accepted { session_present: ack.session_present, server_keep_alive_s })
            }
            Ok(v5::Packet::ConnAck(ack)) => {
                let reason = ack.properties.and_then(|p| p.reason_string).unwrap_or_default();
                Err(format!("the broker refuses: {:?} {reason}", ack.code))
            }
            Ok(_) => Err("the broker's first packet is not a CONNACK".to_owned()),
            Err(error) => Err(format!("CONNACK: {error}")),
        },
    }
}

/// Reads a SUBACK: `Ok` with the lowest granted QoS, or the filters that were refused.
pub(super) fn suback(config: &SubscriberConfig, body: &[u8]) -> Result<u8, String> {
    // Packet id, in version 5 properties, then one code per filter: the codes are the end.
    let codes = match body.len().checked_sub(config.filters.len()) {
        Some(at) if at >= 2 => &body[at..],
        _ => return Err("SUBACK has fewer codes than there are filters".to_owned()),
    };
    let refused: Vec<String> = (config.filters.iter().zip(codes))
        .filter(|(_, code)| **code > 2)
        .map(|(filter, code)| format!("`{filter}` (0x{code:02x})"))
        .collect();
    if refused.is_empty() {
        return Ok(codes.iter().copied().min().unwrap_or(0));
    }
    Err(format!("the broker refuses the subscription to {}", refused.join(", ")))
}
