//! The packets that set a session up, for both versions: CONNECT, SUBSCRIBE and UNSUBSCRIBE out,
//! CONNACK and SUBACK in. Written and read by the codec crates.

use bytes::BytesMut;
use rumqttc_v4::mqttbytes::QoS;
use rumqttc_v4::mqttbytes::v4;
use rumqttc_v5::mqttbytes::v5;

use super::config::SubscriberConfig;
use super::reasons;
use crate::mqtt::limits::KEEP_ALIVE;
use crate::mqtt::wire::Version;

/// A CONNACK that accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) session_present: bool,
    /// The rest is of MQTT 5: what the broker demands or cannot do. Keep-alive, seconds.
    pub(crate) server_keep_alive_s: Option<u16>,
    /// How long it keeps the session instead of what we asked for, seconds.
    pub(crate) session_expiry_s: Option<u32>,
    pub(crate) qos_max: Option<u8>,
    pub(crate) receive_max: Option<u16>,
    pub(crate) packet_bytes_max: Option<u32>,
    pub(crate) no_shared: bool,
    pub(crate) no_wildcards: bool,
    pub(crate) no_retained: bool,
}

/// A CONNECT: whose session, and how it is resumed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connect<'a> {
    /// Version and credentials.
    pub(crate) config: &'a SubscriberConfig,
    pub(crate) client_id: &'a str,
    pub(crate) clean: bool,
    pub(crate) session_expiry_s: u32,
    pub(crate) receive_maximum: u16,
}

impl Connect<'_> {
    pub(crate) fn encode(self) -> Result<BytesMut, String> {
        let mut out = BytesMut::new();
        let config = self.config;
        let (client_id, keep_alive) = (self.client_id.to_owned(), KEEP_ALIVE.as_secs() as u16);
        let (user, password) = (config.user.clone(), config.password.clone());
        let written = match config.version() {
            Version::V3 => {
                let auth = match (user, password) {
                    (None, _) => v4::ConnectAuth::None,
                    (Some(username), None) => v4::ConnectAuth::Username { username },
                    (Some(username), Some(password)) => {
                        v4::ConnectAuth::UsernamePassword { username, password: password.into() }
                    }
                };
                let clean_session = self.clean;
                v4::Connect { keep_alive, client_id, clean_session, last_will: None, auth }
                    .write(&mut out)
                    .map_err(|error| error.to_string())
            }
            Version::V5 => {
                let auth = match (user, password) {
                    (None, None) => v5::ConnectAuth::None,
                    (None, Some(password)) => {
                        v5::ConnectAuth::Password { password: password.into() }
                    }
                    (Some(username), None) => v5::ConnectAuth::Username { username },
                    (Some(username), Some(password)) => {
                        v5::ConnectAuth::UsernamePassword { username, password: password.into() }
                    }
                };
                let mut properties = v5::ConnectProperties::new();
                properties.session_expiry_interval = Some(self.session_expiry_s);
                properties.receive_maximum = Some(self.receive_maximum);
                // No Maximum Packet Size: a broker drops what is larger without a word
                // (3.1.2.11.4). No Topic Alias Maximum: a broker uses no aliases then.
                let properties = Some(properties);
                v5::Connect { keep_alive, client_id, clean_start: self.clean, properties }
                    .write(&None, &auth, &mut out)
                    .map_err(|error| error.to_string())
            }
        };
        written.map_err(|error| format!("cannot encode CONNECT: {error}"))?;
        Ok(out)
    }
}

fn quality(qos: u8) -> QoS {
    match qos {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    }
}

/// SUBSCRIBE to some filters. What is retained for those among `afresh` is to come in any case, for
/// the others only where the session has no such subscription; 3.1.1 cannot tell them apart.
pub(crate) fn subscribe(
    version: Version,
    id: u16,
    filters: &[String],
    (qos, afresh): (u8, &[String]),
) -> Result<BytesMut, String> {
    let mut out = BytesMut::new();
    let qos = quality(qos);
    let written = match version {
        Version::V3 => {
            let filter = |path: &String| v4::SubscribeFilter { path: path.clone(), qos };
            let mut packet = v4::Subscribe::new_many(filters.iter().map(filter));
            packet.pkid = id;
            packet.write(&mut out).map_err(|error| error.to_string())
        }
        Version::V5 => {
            let filter = |path: &String| v5::SubscribeFilter {
                path: path.clone(),
                qos,
                nolocal: false,
                // RETAIN then says "sent because you subscribed", as in 3.1.1, and not "was
                // published as retained": only the former may be left out as known.
                preserve_retain: false,
                // Subscribing again must not bring all retained messages again.
                retain_forward_rule: match afresh.contains(path) {
                    true => v5::RetainForwardRule::OnEverySubscribe,
                    false => v5::RetainForwardRule::OnNewSubscribe,
                },
            };
            let mut packet = v5::Subscribe::new_many(filters.iter().map(filter), None);
            packet.pkid = id;
            packet.write(&mut out).map_err(|error| error.to_string())
        }
    };
    written.map_err(|error| format!("cannot encode SUBSCRIBE: {error}"))?;
    Ok(out)
}

/// UNSUBSCRIBE from some filters.
pub(crate) fn unsubscribe(
    version: Version,
    id: u16,
    filters: &[String],
) -> Result<BytesMut, String> {
    let mut out = BytesMut::new();
    let written = match version {
        Version::V3 => v4::Unsubscribe { pkid: id, topics: filters.to_vec() }
            .write(&mut out)
            .map_err(|error| error.to_string()),
        Version::V5 => v5::Unsubscribe { pkid: id, filters: filters.to_vec(), properties: None }
            .write(&mut out)
            .map_err(|error| error.to_string()),
    };
    written.map_err(|error| format!("cannot encode UNSUBSCRIBE: {error}"))?;
    Ok(out)
}

/// Reads a CONNACK.
pub(crate) fn connack(version: Version, packet: &[u8]) -> Result<Accepted, String> {
    // Flags and code lie at the same place in both versions, whatever the codec knows of the code.
    if let [0x20, _, _, code, ..] = *packet
        && code != 0
    {
        let mut text = reasons::connect(version, code).to_owned();
        if let (Version::V5, Ok(v5::Packet::ConnAck(ack))) =
            (version, v5::Packet::read(&mut BytesMut::from(packet), None))
            && let Some(more) = ack.properties.and_then(|p| p.reason_string)
        {
            text = format!("{text} ({})", shortened(&more));
        }
        return Err(format!("the broker refuses: {text} (0x{code:02x})"));
    }
    let mut bytes = BytesMut::from(packet);
    let not_one = || Err("the broker's first packet is not a CONNACK".to_owned());
    match version {
        Version::V3 => match v4::Packet::read(&mut bytes, packet.len()) {
            Ok(v4::Packet::ConnAck(ack)) => {
                Ok(Accepted { session_present: ack.session_present, ..Accepted::default() })
            }
            Ok(_) => not_one(),
            Err(error) => Err(format!("CONNACK: {error}")),
        },
        Version::V5 => match v5::Packet::read(&mut bytes, None) {
            Ok(v5::Packet::ConnAck(ack)) => {
                let session_present = ack.session_present;
                let Some(p) = ack.properties else {
                    return Ok(Accepted { session_present, ..Accepted::default() });
                };
                Ok(Accepted {
                    session_present,
                    server_keep_alive_s: p.server_keep_alive,
                    session_expiry_s: p.session_expiry_interval,
                    qos_max: p.max_qos,
                    receive_max: p.receive_max,
                    packet_bytes_max: p.max_packet_size,
                    no_shared: p.shared_subscription_available == Some(0),
                    no_wildcards: p.wildcard_subscription_available == Some(0),
                    no_retained: p.retain_available == Some(0),
                })
            }
            Ok(_) => not_one(),
            Err(error) => Err(format!("CONNACK: {error}")),
        },
    }
}

/// The codes of a SUBACK, one per filter, in the order of the filters.
pub(crate) fn suback(body: &[u8], filters: usize) -> Result<&[u8], String> {
    // Packet id, in version 5 properties, then the codes: they are the end.
    match body.len().checked_sub(filters) {
        Some(at) if at >= 2 => Ok(&body[at..]),
        _ => Err("SUBACK has fewer codes than there are filters".to_owned()),
    }
}

/// The start of a text from outside, for our log.
pub(crate) fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 200;
    text.chars().take(CHARS_MAX).collect()
}
