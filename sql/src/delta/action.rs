//! The actions of a commit, and a commit as bytes: one JSON object per line, each line ended.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result};

/// A file that becomes visible.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Add {
    /// Path below the table's folder, URI-encoded.
    pub path: String,
    /// Values of the partition columns as text; null stays null.
    pub partition_values: BTreeMap<String, Option<String>>,
    /// Bytes.
    pub size: i64,
    /// Milliseconds since the Unix epoch.
    pub modification_time: i64,
    /// False if the commit only rearranges rows.
    pub data_change: bool,
    /// JSON text of the statistics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<String>,
    /// Present on tables that we cannot read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_vector: Option<Value>,
}

/// A file that is no longer visible.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Remove {
    pub(crate) path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deletion_timestamp: Option<i64>,
    pub(crate) data_change: bool,
}

/// How far an application has written: the heart of writing each epoch once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Txn {
    pub(crate) app_id: String,
    pub(crate) version: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_updated: Option<i64>,
}

/// What a reader and a writer must understand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Protocol {
    pub(crate) min_reader_version: i32,
    pub(crate) min_writer_version: i32,
}

/// File format of a table; always Parquet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct FileFormat {
    pub(crate) provider: String,
    #[serde(default)]
    pub(crate) options: Option<BTreeMap<String, Option<String>>>,
}

/// Schema and settings of a table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Metadata {
    pub(crate) id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    pub(crate) format: FileFormat,
    pub(crate) schema_string: String,
    pub(crate) partition_columns: Vec<String>,
    #[serde(default)]
    pub(crate) configuration: Option<BTreeMap<String, Option<String>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created_time: Option<i64>,
}

impl Metadata {
    pub(crate) fn setting(&self, key: &str) -> Option<&str> {
        self.configuration.as_ref()?.get(key)?.as_deref()
    }
}

/// One line of a commit: exactly one of these is set, or none for an action that we skip.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Action {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) commit_info: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) protocol: Option<Protocol>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) meta_data: Option<Metadata>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) txn: Option<Txn>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) add: Option<Add>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remove: Option<Remove>,
}

/// Bytes of a commit or of the JSON form of a checkpoint.
pub(crate) fn encode(actions: &[Action]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for action in actions {
        serde_json::to_writer(&mut bytes, action).expect("actions are plain JSON");
        bytes.push(b'\n');
    }
    bytes
}

/// The actions of a commit. An empty commit is an error: nobody writes one, a power loss does.
pub(crate) fn decode(path: &str, bytes: &[u8]) -> Result<Vec<Action>> {
    let mut actions = Vec::new();
    for (n, line) in bytes.split(|b| *b == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let action = serde_json::from_slice(line)
            .map_err(|e| Error::log(path, format!("line {} is not a Delta action: {e}", n + 1)))?;
        actions.push(action);
    }
    if actions.is_empty() {
        return Err(Error::log(path, "is empty: the commit is torn"));
    }
    Ok(actions)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_commit_survives_its_bytes() {
        let add = Add {
            path: "day=2026-01-01/part%2520.parquet".into(),
            partition_values: [("day".into(), Some("2026-01-01".into())), ("s".into(), None)]
                .into(),
            size: 3,
            modification_time: 4,
            data_change: true,
            stats: Some("{\"numRecords\":1}".into()),
            deletion_vector: None,
        };
        let txn = Txn { app_id: "a/b".into(), version: 9, last_updated: None };
        let actions = [
            Action { txn: Some(txn), ..Action::default() },
            Action { add: Some(add), ..Action::default() },
        ];
        assert_eq!(decode("x", &encode(&actions)).unwrap(), actions);
    }

    #[test]
    fn torn_commits_are_errors_and_unknown_actions_are_not() {
        assert!(decode("x", b"").is_err());
        assert!(decode("x", b"{\"txn\":{\"appId\":\"a\",\"ver").is_err());
        let actions = decode("x", b"{\"cdc\":{\"path\":\"p\"}}\n").unwrap();
        assert_eq!(actions, [Action::default()]);
    }
}
