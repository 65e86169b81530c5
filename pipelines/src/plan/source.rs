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
    /// Files, read once.
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
    /// Other machines may connect without a password.
    pub insecure_listen: bool,
}

/// A subscription at an external broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MqttSpec {
    /// `mqtt://host:port`, `mqtts://host:port`, `ws://host:port/path` or `wss://host:port/path`.
    pub url: String,
    /// MQTT topic filters.
    pub filters: Vec<String>,
    /// 0 to 2.
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
    /// Our own certificate, PEM.
    pub cert_file: Option<PathBuf>,
    /// Its key, PEM.
    pub key_file: Option<PathBuf>,
    /// How long the broker keeps the session, seconds.
    pub session_expiry_s: u32,
    /// Number of connections, each with a session of its own.
    pub connections: u16,
    /// Name of the group of a shared subscription.
    pub share: Option<String>,
    /// What happens to retained messages.
    pub retained: Retained,
}

/// What happens to the retained messages that a broker sends after each new subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retained {
    /// None is taken.
    Drop,
    /// One is taken unless it is the last that is known of its topic.
    #[default]
    State,
    /// All are taken, each time.
    Process,
}

/// Files, read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSpec {
    /// A file, a folder, or a pattern.
    pub path: String,
    /// What `topic` says, with placeholders; the path of the file if absent.
    pub topic: Option<String>,
    /// How the files are written; by their names if absent.
    pub format: Option<FileFormat>,
    /// Names of the columns of CSV files without a line of names.
    pub columns: Option<Vec<String>>,
    /// Between the cells of CSV files; by their names if absent.
    pub delimiter: Option<u8>,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFormat {
    /// JSON documents, one per line.
    Ndjson,
    /// Comma-separated values.
    Csv,
    /// Apache Parquet.
    Parquet,
}
