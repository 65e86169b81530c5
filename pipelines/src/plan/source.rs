//! Sources as they were resolved.

use std::path::PathBuf;

use crate::config::secret::Secret;

/// One source of messages, which several pipelines may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSpec {
    /// What it is, for people and metrics: without secrets.
    pub name: String,
    /// How to get messages.
    pub kind: SourceKind,
}

/// How a source gets messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// Tidegate's own MQTT endpoint.
    Endpoint(EndpointSpec),
    /// A subscription at an external broker.
    Mqtt(MqttSpec),
    /// A newline-delimited file, read once.
    File(FileSpec),
}

/// Tidegate's own MQTT endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSpec {
    /// Address to listen on, `host:port`.
    pub listen: String,
    /// MQTT topic filters of all pipelines that read it; what no filter matches is read by
    /// nobody.
    pub filters: Vec<String>,
    /// If there are any, CONNECT needs one of them. Sorted by name.
    pub users: Vec<(String, Secret)>,
    /// Longest packet, bytes.
    pub packet_bytes_max: u64,
    /// Most connections at a time.
    pub connections_max: usize,
    /// Time to a complete CONNECT, microseconds.
    pub connect_timeout_us: i64,
    /// Longest time that a session is kept without its device, seconds.
    pub session_expiry_max_s: u32,
    /// Longest keep-alive of MQTT 5 devices, seconds; 0 is no bound.
    pub keep_alive_max_s: u16,
    /// Messages that wait for one device.
    pub queue_max: usize,
    /// Keep retained messages.
    pub retained: bool,
    /// Let clients subscribe.
    pub subscribe: bool,
    /// Other machines may connect without a password.
    pub insecure_listen: bool,
}

/// A subscription at an external broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MqttSpec {
    /// `mqtt://host:port` or `mqtts://host:port`.
    pub url: String,
    /// MQTT topic filters.
    pub filters: Vec<String>,
    /// 0 or 1.
    pub qos: u8,
    /// Name of the session.
    pub client_id: String,
    /// Version 5 of the protocol, else 3.1.1.
    pub version5: bool,
    /// User name.
    pub user: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// Certificates to trust, PEM.
    pub ca_file: Option<PathBuf>,
    /// How long the broker keeps the session, seconds.
    pub session_expiry_s: u32,
}

/// A newline-delimited file, read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSpec {
    /// The file.
    pub path: PathBuf,
    /// What `topic` says.
    pub topic: String,
}
