//! Where a registry comes from.

use tidegate_operators::topic::TopicTemplate;

use super::FileFormat;
use crate::config::secret::Secret;

/// A registry as the edge sees it: rows that come, stay and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistrySource {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Its name.
    pub name: String,
    /// Where the columns of the key are in a row, each with the column's name.
    pub key: Vec<(String, Vec<String>)>,
    /// Where the other columns are in a row, each with the column's name; those that may be in no
    /// row at all are not among them.
    pub columns: Vec<(String, Vec<String>)>,
    /// The member that says since when a row holds.
    pub valid_from: Option<String>,
    /// Where it is.
    pub place: RegistryPlace,
    /// How it is written; `None`: its name tells, or whoever sends it.
    pub format: Option<FileFormat>,
    /// What is between the cells of `csv`; `None`: its name tells, or whoever sends it.
    pub delimiter: Option<u8>,
}

/// Where a registry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryPlace {
    /// In a file of this path.
    File(String),
    /// At a URL.
    Url(RegistryUrl),
    /// On a topic of the pipeline's source.
    Topic(RegistryTopic),
}

/// A topic on which each message is an entry of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryTopic {
    /// The topic.
    pub template: TopicTemplate,
    /// Columns that are levels of it, each with the name of the level.
    pub captures: Vec<(String, String)>,
}

/// A URL that is asked for a registry again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryUrl {
    /// `http` or `https`; may contain a key.
    pub url: Secret,
    /// Headers of each request, sorted by name.
    pub headers: Vec<(String, Secret)>,
    /// How often it is asked, microseconds.
    pub refresh_us: i64,
    /// How long an answer may take, microseconds.
    pub timeout_us: i64,
    /// Longest answer, bytes as they are sent.
    pub body_bytes_max: u64,
}

impl RegistrySource {
    /// Whether rows come, stay and go as those of another one, whatever columns they have beside
    /// the key.
    pub fn is_as(&self, other: &Self) -> bool {
        let Self { pipeline, name, key, columns: _, valid_from, place, format, delimiter } = self;
        (pipeline, name, key, valid_from, place, format, delimiter)
            == (
                &other.pipeline,
                &other.name,
                &other.key,
                &other.valid_from,
                &other.place,
                &other.format,
                &other.delimiter,
            )
    }
}

impl RegistryPlace {
    /// What it is, for people: a path, a topic, or of a URL the part that is no secret.
    pub fn shown(&self) -> String {
        match self {
            Self::File(path) => path.clone(),
            Self::Topic(topic) => format!("topic {}", topic.template),
            Self::Url(url) => match url::Url::parse(url.url.expose()) {
                Ok(url) => url.origin().ascii_serialization(),
                Err(_) => "a URL".to_owned(),
            },
        }
    }
}
