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
// A plan has a handful of sources.
#[allow(clippy::large_enum_variant)]
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
    /// Time to a complete CONNECT, microseconds.
    pub connect_timeout_us: i64,
    /// Longest time that a session is kept without its device, seconds.
    pub session_expiry_max_s: u32,
    /// Longest keep-alive of MQTT 5 devices, seconds; 0 is no bound.
    pub keep_alive_max_s: u16,
    /// Messages that wait for one device.
    pub queue_max: usize,
    /// Filters of messages that are only delivered and neither journaled nor rejected.
    pub deliver: Vec<String>,
    /// The topic below which alerts are published.
    pub alerts: Option<String>,
    /// Keep retained messages.
    pub retained: bool,
    /// Let clients subscribe.
    pub subscribe: bool,
    /// Other machines may connect without a password.
    pub insecure_listen: bool,
    /// TLS besides.
    pub tls: Option<TlsSpec>,
    /// WebSocket besides.
    pub websocket: Option<WebSocketSpec>,
    /// File of users and hashes of passwords.
    pub users_file: Option<PathBuf>,
    /// Tokens in place of passwords.
    pub jwt: Option<JwtSpec>,
    /// The name in a certificate that is the user.
    pub certificate_user: Option<CertificateName>,
    /// Rules; none: everything is allowed.
    pub acl: Vec<AclSpec>,
    /// Most connections of one address.
    pub connections_per_address: Option<usize>,
    /// Most connections of one user.
    pub connections_per_user: Option<usize>,
    /// Most messages per second of one connection.
    pub rate_max: Option<u32>,
}

/// TLS of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSpec {
    /// Address to listen on, if MQTT itself does.
    pub listen: Option<String>,
    /// Certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Signer of the certificates of clients.
    pub client_ca: Option<PathBuf>,
    /// Revoked certificates of clients.
    pub crl: Vec<PathBuf>,
    /// Whether clients show a certificate.
    pub client_cert: ClientCert,
}

/// Whether clients show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCert {
    /// They are not asked.
    None,
    /// They may.
    Optional,
    /// They must.
    Required,
}

/// The name in a certificate that is a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateName {
    /// The common name.
    Common,
    /// The first alternative name.
    Alternative,
}

/// WebSocket of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebSocketSpec {
    /// Address to listen on.
    pub listen: String,
    /// Path of the URL.
    pub path: String,
    /// With the files of [`TlsSpec`].
    pub tls: bool,
    /// Web pages that may connect.
    pub origins: Vec<String>,
}

/// Tokens of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtSpec {
    /// Shared secret.
    pub secret: Option<Secret>,
    /// Public key.
    pub key_file: Option<PathBuf>,
    /// Algorithms that are accepted.
    pub algorithms: Vec<String>,
    /// For whom tokens must be.
    pub audience: Vec<String>,
    /// From whom tokens must be.
    pub issuer: Vec<String>,
    /// Claim with the user's name.
    pub user_claim: String,
}

/// A rule of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AclSpec {
    /// Pattern of users.
    pub user: String,
    /// Pattern of client ids.
    pub client: String,
    /// Filters.
    pub publish: Vec<String>,
    /// Filters.
    pub subscribe: Vec<String>,
    /// Filters.
    pub deny_publish: Vec<String>,
    /// Filters.
    pub deny_subscribe: Vec<String>,
}

/// A subscription at an external broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MqttSpec {
    /// `mqtt://host:port`, `mqtts://host:port`, `ws://host:port/path` or `wss://host:port/path`.
    pub url: String,
    /// MQTT topic filters.
    pub filters: Vec<String>,
    /// Filters of entries of registries, which are retained messages.
    pub entries: Vec<String>,
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
