//! A configuration as it was resolved: everything that runs, and nothing that could be invalid.

use std::path::PathBuf;

use serde_json::{Map, Value};
use tidegate_operators::spec::PipelineSpec;

use crate::config::problem::Problem;
use crate::config::secret::Secret;

/// All pipelines of one process.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Sources; [`tidegate_operators::spec::DecodeSpec::source`] is an index into them.
    pub sources: Vec<SourceSpec>,
    /// Pipelines, in the order of the files.
    pub pipelines: Vec<PipelineSpec>,
    /// Whom alerts tell.
    pub notifications: Vec<NotifySpec>,
    /// Tests that the files contain.
    pub tests: Vec<TestSpec>,
    /// What is probably not as meant, but can run.
    pub warnings: Vec<Problem>,
}

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
    Endpoint {
        /// Address to listen on, `host:port`.
        listen: String,
        /// MQTT topic filters of all pipelines that read it; what no filter matches is read by
        /// nobody.
        filters: Vec<String>,
        /// If there are any, CONNECT needs one of them. Sorted by name.
        users: Vec<(String, Secret)>,
        /// Longest packet, bytes.
        packet_bytes_max: u64,
        /// Most connections at a time.
        connections_max: usize,
        /// Other machines may connect without a password.
        insecure_listen: bool,
    },
    /// A subscription at an external broker.
    Mqtt {
        /// `mqtt://host:port` or `mqtts://host:port`.
        url: String,
        /// MQTT topic filters.
        filters: Vec<String>,
        /// 0 or 1.
        qos: u8,
        /// Name of the session.
        client_id: String,
        /// Version 5 of the protocol, else 3.1.1.
        version5: bool,
        /// User name.
        user: Option<String>,
        /// Password.
        password: Option<Secret>,
        /// Certificates to trust, PEM.
        ca_file: Option<PathBuf>,
        /// How long the broker keeps the session, seconds.
        session_expiry_s: u32,
    },
    /// A newline-delimited file, read once.
    File {
        /// The file.
        path: PathBuf,
        /// What `topic` says.
        topic: String,
    },
}

/// A webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotifySpec {
    /// Name of the pipeline whose alerts can use it.
    pub pipeline: String,
    /// Its name there.
    pub name: String,
    /// Where to; may contain a key.
    pub url: Secret,
    /// Key of the signature.
    pub secret: Option<Secret>,
    /// How long one try may take, microseconds.
    pub timeout_us: i64,
    /// After this long it is given up, microseconds.
    pub max_age_us: i64,
    /// Whether addresses of this machine and of private networks are allowed.
    pub allow_private: bool,
}

/// One `[[test]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct TestSpec {
    /// Its name.
    pub name: String,
    /// Index of its pipeline in the plan.
    pub pipeline: usize,
    /// The messages, in the order in which they are received.
    pub inputs: Vec<TestInput>,
    /// Edges, or `rejects`, `late`, `findings`, `alerts`, with their rows, each with the columns to
    /// compare.
    pub expect: Vec<(String, Vec<Map<String, Value>>)>,
    /// The same with their number of rows.
    pub count: Vec<(String, u64)>,
    /// Where it is written.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
}

/// One message of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestInput {
    /// Its topic.
    pub topic: String,
    /// When it is received, microseconds since the Unix epoch.
    pub at_us: i64,
    /// Its payload.
    pub payload: Vec<u8>,
}
