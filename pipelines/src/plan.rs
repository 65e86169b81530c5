//! A configuration as it was resolved: everything that runs, and nothing that could be invalid.

mod registry;
mod source;

use std::path::PathBuf;

use serde_json::{Map, Value};
use tidegate_operators::registry::Change;
use tidegate_operators::spec::PipelineSpec;

pub use self::registry::{RegistryPlace, RegistrySource, RegistryTopic, RegistryUrl};
pub use self::source::{
    AclSpec, CertificateName, ClientCert, EndpointSpec, FileFormat, FileSpec, HttpSpec, JwtSpec,
    MqttSpec, Retained, SourceKind, SourceSpec, TlsSpec, WebSocketSpec,
};
use crate::config::problem::Problem;
use crate::config::secret::Secret;

/// All pipelines of one process.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Sources; [`tidegate_operators::spec::DecodeSpec::source`] is an index into them.
    pub sources: Vec<SourceSpec>,
    /// Pipelines, in the order of the files.
    pub pipelines: Vec<PipelineSpec>,
    /// Where the registries of the pipelines come from.
    pub registries: Vec<RegistrySource>,
    /// Whom alerts tell.
    pub notifications: Vec<NotifySpec>,
    /// Tests that the files contain.
    pub tests: Vec<TestSpec>,
    /// What is probably not as meant, but can run.
    pub warnings: Vec<Problem>,
    /// The files that it is made of, as they were read: path and text.
    pub files: Vec<(PathBuf, String)>,
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
    /// Whether it is told of the engine's own alerts.
    pub engine: bool,
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
    /// Its MQTT 5 properties as they are sent.
    pub properties: Vec<u8>,
    /// It is a change of a registry, whose topic and row it has.
    pub change: Option<TestChange>,
    /// It is no message, but this happens.
    pub event: Option<TestEvent>,
}

/// What happens in a test without a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestEvent {
    /// Time goes on.
    Tick,
    /// The source loses its connection.
    SourceAway,
    /// The source has its connection again.
    SourceBack,
    /// The same, and what came since it was away is lost: the broker has forgotten the session.
    SessionLost {
        /// When the connection was lost, microseconds since the Unix epoch.
        since_us: i64,
    },
}

/// What a test does to a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestChange {
    /// What it does.
    pub change: Change,
    /// Since when it holds, microseconds since the Unix epoch; `None`: since ever.
    pub since_us: Option<i64>,
}
