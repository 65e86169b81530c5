//! The first packet of a device: who it is, which version it speaks, and our answer.
//!
//! Nothing else is accepted before a CONNECT, and a refusal says why in the words of the version
//! that the device speaks.

use bytes::{Bytes, BytesMut};
use rumqttc_v4::mqttbytes::v4;
use rumqttc_v5::mqttbytes::v5;
use rumqttc_v5::mqttbytes::v5::DisconnectReasonCode as Reason;

use super::limits::{CLIENT_ID_BYTES_MAX, CONNECT_BYTES_MAX, RECEIVE_MAXIMUM};
use super::users::Users;
use super::wire::{Frame, Version, Violation, kind};

/// A CONNECT that was accepted.
#[derive(Debug)]
pub(crate) struct Hello {
    pub(crate) version: Version,
    pub(crate) client_id: String,
    /// Whether we made the client id up.
    assigned: bool,
    /// Seconds; 0 is none.
    pub(crate) keep_alive_s: u16,
}

/// Why a connection goes no further.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// The packet to send, empty where nothing can be said.
    pub(crate) reply: Vec<u8>,
    /// For our log; never holds credentials.
    pub(crate) text: String,
    /// Whether the other side broke the protocol (or else is only not welcome).
    pub(crate) malformed: bool,
}

/// What both versions say in a CONNECT.
struct Connect {
    client_id: String,
    clean: bool,
    keep_alive_s: u16,
    user: Option<String>,
    password: Option<Bytes>,
    extended_authentication: bool,
}

/// Reasons to refuse, with the return code of 3.1.1 and the reason code of 5.
#[derive(Clone, Copy)]
enum Why {
    ClientId,
    Credentials,
    Method,
}

impl Why {
    fn codes(self) -> (u8, u8, &'static str) {
        match self {
            Self::ClientId => (2, 0x85, "the client id is empty or too long"),
            Self::Credentials => (4, 0x86, "bad user name or password"),
            Self::Method => (5, 0x8C, "extended authentication is not supported"),
        }
    }

    fn refusal(self, version: Version) -> Refusal {
        let (v3, v5, text) = self.codes();
        let reply = match version {
            Version::V3 => vec![0x20, 2, 0, v3],
            Version::V5 => vec![0x20, 3, 0, v5, 0],
        };
        Refusal { reply, text: text.to_owned(), malformed: false }
    }
}

impl Hello {
    /// Judges the first packet of a connection.
    pub(crate) fn read(frame: Frame, packet: &[u8], users: &Users) -> Result<Self, Refusal> {
        if frame.kind() != kind::CONNECT {
            return Err(malformed("the first packet is not a CONNECT"));
        }
        let version = version(&packet[frame.header_len..frame.total_len])?;
        let connect = match version {
            Version::V3 => read_v3(packet)?,
            Version::V5 => read_v5(packet)?,
        };
        if connect.extended_authentication {
            return Err(Why::Method.refusal(version));
        }
        if !users.allow(connect.user.as_deref(), connect.password.as_deref()) {
            return Err(Why::Credentials.refusal(version));
        }
        let assigned = connect.client_id.is_empty();
        // Version 3.1.1 allows an empty client id only where no session is wanted (3.1.3-8).
        let anonymous_session = assigned && version == Version::V3 && !connect.clean;
        if anonymous_session || connect.client_id.len() > CLIENT_ID_BYTES_MAX {
            return Err(Why::ClientId.refusal(version));
        }
        let client_id = if assigned { new_client_id()? } else { connect.client_id };
        Ok(Self { version, client_id, assigned, keep_alive_s: connect.keep_alive_s })
    }

    /// The CONNACK. Sessions are not kept yet, so it never says that one is present.
    pub(crate) fn accept(&self, packet_bytes_max: usize) -> Vec<u8> {
        if self.version == Version::V3 {
            return vec![0x20, 2, 0, 0];
        }
        let properties = v5::ConnAckProperties {
            session_expiry_interval: Some(0),
            receive_max: Some(RECEIVE_MAXIMUM),
            max_packet_size: u32::try_from(packet_bytes_max).ok(),
            assigned_client_identifier: self.assigned.then(|| self.client_id.clone()),
            topic_alias_max: Some(0),
            // Nothing is delivered yet, so there is nothing to subscribe to.
            wildcard_subscription_available: None,
            subscription_identifiers_available: Some(0),
            shared_subscription_available: Some(0),
            max_qos: None,
            retain_available: None,
            reason_string: None,
            user_properties: Vec::new(),
            server_keep_alive: None,
            response_information: None,
            server_reference: None,
            authentication_method: None,
            authentication_data: None,
        };
        let code = v5::ConnectReturnCode::Success;
        let packet = v5::ConnAck { session_present: false, code, properties: Some(properties) };
        let mut out = BytesMut::new();
        packet.write(&mut out).expect("a CONNACK of ours is far below the protocol's limits");
        out.to_vec()
    }
}

/// The last packet to a client that broke a rule, or that we have to leave.
pub(crate) fn disconnect(version: Version, reason: Reason) -> Vec<u8> {
    match version {
        // Version 3.1.1 has no DISCONNECT from the server: closing is the message.
        Version::V3 => Vec::new(),
        Version::V5 => vec![0xE0, 1, reason as u8],
    }
}

/// The refusal of a first packet whose frame is already wrong.
pub(crate) fn bad_frame(violation: Violation) -> Refusal {
    malformed(violation.text)
}

fn malformed(text: &str) -> Refusal {
    Refusal { reply: Vec::new(), text: text.to_owned(), malformed: true }
}

fn version(body: &[u8]) -> Result<Version, Refusal> {
    match body {
        [0, 4, b'M', b'Q', b'T', b'T', 4, ..] => Ok(Version::V3),
        [0, 4, b'M', b'Q', b'T', b'T', 5, ..] => Ok(Version::V5),
        [0, 4, b'M', b'Q', b'T', b'T', level, ..]
        | [0, 6, b'M', b'Q', b'I', b's', b'd', b'p', level, ..] => {
            Err(Refusal {
                // The form of 3.1 and 3.1.1, which any client that is not of version 5 knows.
                reply: vec![0x20, 2, 0, 1],
                text: format!("protocol level {level} is not supported, only 3.1.1 (4) and 5"),
                malformed: false,
            })
        }
        _ => Err(malformed("the first packet is not an MQTT CONNECT")),
    }
}

fn read_v3(packet: &[u8]) -> Result<Connect, Refusal> {
    let read = v4::Packet::read(&mut BytesMut::from(packet), CONNECT_BYTES_MAX);
    let connect = match read {
        Ok(v4::Packet::Connect(connect)) => connect,
        Ok(_) => return Err(malformed("the first packet is not a CONNECT")),
        Err(error) => return Err(malformed(&format!("CONNECT: {error}"))),
    };
    let (user, password) = match connect.auth {
        v4::ConnectAuth::None => (None, None),
        v4::ConnectAuth::Username { username } => (Some(username), None),
        v4::ConnectAuth::UsernamePassword { username, password } => {
            (Some(username), Some(password))
        }
    };
    Ok(Connect {
        client_id: connect.client_id,
        clean: connect.clean_session,
        keep_alive_s: connect.keep_alive,
        user,
        password,
        extended_authentication: false,
    })
}

fn read_v5(packet: &[u8]) -> Result<Connect, Refusal> {
    let read = v5::Packet::read(&mut BytesMut::from(packet), None);
    let (connect, auth) = match read {
        Ok(v5::Packet::Connect(connect, _will, auth)) => (connect, auth),
        Ok(_) => return Err(malformed("the first packet is not a CONNECT")),
        Err(error) => {
            let mut refusal = malformed(&format!("CONNECT: {error}"));
            refusal.reply = vec![0x20, 3, 0, Reason::MalformedPacket as u8, 0];
            return Err(refusal);
        }
    };
    let (user, password) = match auth {
        v5::ConnectAuth::None => (None, None),
        v5::ConnectAuth::Username { username } => (Some(username), None),
        v5::ConnectAuth::Password { password } => (None, Some(password)),
        v5::ConnectAuth::UsernamePassword { username, password } => {
            (Some(username), Some(password))
        }
    };
    Ok(Connect {
        client_id: connect.client_id,
        clean: connect.clean_start,
        keep_alive_s: connect.keep_alive,
        user,
        password,
        extended_authentication: connect
            .properties
            .is_some_and(|properties| properties.authentication_method.is_some()),
    })
}

fn new_client_id() -> Result<String, Refusal> {
    let mut random = [0; 8];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random)
        .map_err(|_| malformed("the system has no random numbers"))?;
    Ok(format!("auto-{:016x}", u64::from_be_bytes(random)))
}
