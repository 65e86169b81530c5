//! Sources as they were resolved.

use std::path::PathBuf;

use tidegate_operators::spec::Format;
use tidegate_operators::topic::TopicTemplate;

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
    /// One pipeline of an HTTP listener.
    Http(HttpSpec),
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

/// One pipeline of an HTTP listener. Those with the same `listen` share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSpec {
    /// Address to listen on, `host:port`.
    pub listen: String,
    /// Name of the pipeline, which requests give.
    pub pipeline: String,
    /// How its payloads are written.
    pub format: Format,
    /// The topic of requests that name none.
    pub topic: String,
    /// One of these has to match the topic.
    pub topics: Vec<TopicTemplate>,
    /// Sorted by name.
    pub users: Vec<(String, Secret)>,
    /// Sorted by name.
    pub tokens: Vec<(String, Secret)>,
    /// Longest body as it is sent, bytes.
    pub body_bytes_max: u64,
    /// Longest body after decompression, bytes.
    pub decompressed_bytes_max: u64,
    /// Memory for requests that are not durable yet, bytes; the same for all of one listener.
    pub in_flight_bytes_max: u64,
    /// Most connections at a time; the same for all of one listener.
    pub connections_max: usize,
    /// Other machines may send without a user or token.
    pub insecure_listen: bool,
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
