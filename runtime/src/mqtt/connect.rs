//! The first packet of a device: who it is, which version it speaks, and our answer.
//!
//! Nothing else is accepted before a CONNECT, and a refusal says why in the words of the version
//! that the device speaks.

use rumqttc_v5::mqttbytes::v5::DisconnectReasonCode as Reason;

use super::limits::CLIENT_ID_BYTES_MAX;
use super::wire::{Frame, Version, Violation, kind};

mod connack;
mod decode;

pub(crate) use connack::Terms;
pub(crate) use decode::{Connect, Testament, Wishes};

/// A client that may come in, and on which terms.
#[derive(Debug)]
pub(crate) struct Hello {
    pub(crate) version: Version,
    pub(crate) client_id: String,
    /// Whether we made the client id up.
    pub(crate) assigned: bool,
    /// In force, seconds; 0 is none.
    pub(crate) keep_alive_s: u16,
    wished_keep_alive_s: u16,
    /// In force, seconds.
    pub(crate) session_expiry_s: u32,
    pub(crate) wishes: Wishes,
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
    /// The client id, if it was said.
    pub(crate) client_id: String,
}

/// Reasons to refuse who speaks correctly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The client id is not acceptable.
    ClientId,
    /// Not who it says it is.
    Credentials,
    /// Known, but not allowed; why.
    NotAuthorized(String),
    /// Extended authentication is not offered.
    Method,
    /// The will's topic is not accepted.
    WillTopic,
    /// A retained will, and nothing is retained here.
    WillRetained,
    /// The client takes no packet as large as our answer.
    PacketMaximum,
    /// Some number is used up; which.
    Quota(String),
}

impl Why {
    /// The return code of 3.1.1 and the reason code of 5.
    fn codes(&self) -> (u8, u8) {
        match self {
            Self::ClientId => (2, 0x85),
            Self::Credentials => (4, 0x86),
            Self::NotAuthorized(_) => (5, 0x87),
            Self::Method => (5, 0x8C),
            Self::WillTopic => (5, 0x90),
            Self::WillRetained => (5, 0x9A),
            Self::PacketMaximum => (3, 0x95),
            Self::Quota(_) => (3, 0x97),
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::ClientId => "the client id is empty or too long",
            Self::Credentials => "bad user name or password",
            Self::Method => "extended authentication is not supported",
            Self::WillTopic => "clients may not publish to the topic of the will",
            Self::WillRetained => "a retained will, and nothing is retained here",
            Self::PacketMaximum => "the client's maximum packet size is too small for an answer",
            Self::NotAuthorized(text) | Self::Quota(text) => text,
        }
    }

    /// The refusal of what `connect` asks for.
    pub(crate) fn refuse(&self, connect: &Connect<'_>) -> Refusal {
        Refusal {
            reply: connack::refuse(connect.version, self.codes()),
            text: self.text().to_owned(),
            malformed: false,
            client_id: connect.client_id.chars().take(CLIENT_ID_BYTES_MAX).collect(),
        }
    }
}

/// Reads the first packet of a connection.
pub(crate) fn read(frame: Frame, packet: &[u8]) -> Result<Connect<'_>, Refusal> {
    if frame.byte1 != kind::CONNECT << 4 {
        return Err(malformed("the first packet is not a CONNECT"));
    }
    let body = &packet[frame.header_len..frame.total_len];
    let (version, rest) = version(body)?;
    if version == Version::V5 && frame.is_padded() {
        return Err(malformed("CONNECT: a length that is longer than need be"));
    }
    decode::decode(version, rest).map_err(|violation| {
        let mut refusal = malformed(&format!("CONNECT: {violation}"));
        // 3.1.1 has no code for it: closing is the answer (4.8).
        if version == Version::V5 {
            refusal.reply = connack::refuse(version, (0, violation.reason as u8));
        }
        refusal
    })
}

impl Hello {
    /// Judges a CONNECT by everything but its credentials.
    pub(crate) fn of(connect: &Connect<'_>, terms: &Terms) -> Result<Self, Refusal> {
        let refuse = |why: Why| Err(why.refuse(connect));
        if connect.wishes.authentication {
            return refuse(Why::Method);
        }
        let assigned = connect.client_id.is_empty();
        // Version 3.1.1 allows an empty client id only where no session is wanted (3.1.3-8).
        let anonymous_session = assigned && connect.version == Version::V3 && !connect.clean;
        if anonymous_session || connect.client_id.len() > CLIENT_ID_BYTES_MAX {
            return refuse(Why::ClientId);
        }
        if let Some(will) = &connect.will {
            if !may_be_published(will.topic.as_bytes()) {
                return refuse(Why::WillTopic);
            }
            if will.retain && !terms.retained && connect.version == Version::V5 {
                return refuse(Why::WillRetained);
            }
        }
        let wished = connect.keep_alive_s;
        let too_long = terms.keep_alive_max_s > 0 && wished > terms.keep_alive_max_s;
        let keep_alive_s = match connect.version {
            // 3.1.1 has no words to ask for another one.
            Version::V5 if too_long => terms.keep_alive_max_s,
            Version::V3 | Version::V5 => wished,
        };
        let hello = Self {
            version: connect.version,
            client_id: if assigned { new_client_id()? } else { connect.client_id.to_owned() },
            assigned,
            keep_alive_s,
            wished_keep_alive_s: wished,
            session_expiry_s: connect.wishes.session_expiry_s.min(terms.session_expiry_max_s),
            wishes: connect.wishes,
        };
        if hello.accept(terms, false).len() > connect.wishes.packet_bytes_max as usize {
            return refuse(Why::PacketMaximum);
        }
        Ok(hello)
    }

    /// The CONNACK.
    pub(crate) fn accept(&self, terms: &Terms, session_present: bool) -> Vec<u8> {
        connack::accept(self, terms, session_present)
    }
}

/// Whether clients may publish to a topic that starts like this: what starts with `$SYS/` is for
/// servers, and `$share/` is no topic.
pub(crate) fn may_be_published(topic: &[u8]) -> bool {
    let below =
        |name: &[u8]| topic == name || topic.strip_prefix(name).is_some_and(|rest| rest[0] == b'/');
    topic.first() != Some(&b'$') || !(below(b"$SYS") || below(b"$share"))
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

/// The refusal of what cannot be answered.
pub(crate) fn malformed(text: &str) -> Refusal {
    let (reply, client_id) = (Vec::new(), String::new());
    Refusal { reply, text: text.to_owned(), malformed: true, client_id }
}

/// The version, and what follows the protocol level.
fn version(body: &[u8]) -> Result<(Version, &[u8]), Refusal> {
    match body {
        [0, 4, b'M', b'Q', b'T', b'T', 4, rest @ ..] => Ok((Version::V3, rest)),
        [0, 4, b'M', b'Q', b'T', b'T', 5, rest @ ..] => Ok((Version::V5, rest)),
        [0, 4, b'M', b'Q', b'T', b'T', level, ..]
        | [0, 6, b'M', b'Q', b'I', b's', b'd', b'p', level, ..] => {
            // The form of 5 for those who came after it, that of 3.1.1 for all others.
            let form = if *level > 5 { Version::V5 } else { Version::V3 };
            let text = format!("protocol level {level} is not supported, only 3.1.1 (4) and 5");
            let reply = connack::refuse(form, (1, 0x84));
            Err(Refusal { reply, malformed: false, ..malformed(&text) })
        }
        _ => Err(malformed("the first packet is not an MQTT CONNECT")),
    }
}

fn new_client_id() -> Result<String, Refusal> {
    let mut random = [0; 8];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random)
        .map_err(|_| malformed("the system has no random numbers"))?;
    Ok(format!("auto-{:016x}", u64::from_be_bytes(random)))
}
