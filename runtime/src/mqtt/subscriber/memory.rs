//! What of a session outlives its connections, and the part that outlives the process: when the
//! broker was last heard, what it had granted, which retained messages are known.
//!
//! It lies in two small files per session, replaced as a whole. Without them nothing is lost or
//! counted twice by a resumed session; but a session that the broker forgot while we were down
//! could not be told from a first start, and its gap would go unnoticed.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::retained::RetainedTopics;
use crate::mqtt::limits::{BROKER_PACKET_BYTES_MAX, CONTACT_SAVE_EVERY};
use crate::time;

/// Stands for a quality of service that nobody asks for: the filter is asked for again.
const UNKNOWN: u8 = u8::MAX;

/// What is kept in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    /// Where the session is.
    url: String,
    client_id: String,
    /// When the broker was last heard, microseconds since the Unix epoch.
    last_heard_us: Option<i64>,
    /// Filters that the session has, with the quality of service that was asked for, or
    /// [`UNKNOWN`].
    granted: BTreeMap<String, u8>,
    /// Filters that it should have, and since when it has not, microseconds since the Unix epoch.
    missing: BTreeMap<String, i64>,
}

#[derive(Debug)]
pub(super) struct Memory {
    saved: Saved,
    /// QoS 2: packet ids that the broker has not released, at most 65,535, each with a hash of its
    /// message.
    exactly_once: HashMap<u16, u64>,
    pub(super) retained: RetainedTopics,
    /// Larger packets are skipped; the journal may lower it.
    pub(super) packet_bytes_max: usize,
    files: Option<PathBuf>,
    saving: Option<JoinHandle<io::Result<()>>>,
    next_save: Instant,
    /// `saved` is not in its file yet.
    changed: bool,
    /// Acknowledgements of a lost connection, with [`crate::mutation::Mutation::NoGeneration`].
    pub(super) stale: Vec<u8>,
}

impl Memory {
    /// Reads what an earlier process knew of this session.
    pub(super) async fn open(
        folder: Option<&Path>,
        url: &str,
        client_id: &str,
    ) -> io::Result<Self> {
        let files = folder.map(|f| f.join(file_name(client_id)));
        let (mut saved, mut retained) = (Saved::default(), RetainedTopics::default());
        if let (Some(folder), Some(files)) = (folder, &files) {
            tokio::fs::create_dir_all(folder).await?;
            if let Some(bytes) = read(&files.with_extension("json")).await? {
                // Damaged is as good as absent: see the top of this file.
                saved = serde_json::from_slice(&bytes).unwrap_or_default();
            }
            if let Some(bytes) = read(&files.with_extension("retained")).await? {
                retained = RetainedTopics::from_bytes(&bytes);
            }
        }
        if saved.client_id != client_id {
            saved = Saved { client_id: client_id.to_owned(), ..Saved::default() };
        }
        if saved.url != url {
            // The same broker under another name, or another one. If that has no session of ours,
            // what was published since we were last heard is as lost as if it had forgotten it.
            saved.url = url.to_owned();
            saved.granted.values_mut().for_each(|qos| *qos = UNKNOWN);
            retained = RetainedTopics::default();
        }
        Ok(Self {
            saved,
            exactly_once: HashMap::new(),
            retained,
            packet_bytes_max: BROKER_PACKET_BYTES_MAX,
            files,
            saving: None,
            next_save: time::now() + CONTACT_SAVE_EVERY,
            changed: false,
            stale: Vec::new(),
        })
    }

    pub(super) fn heard(&mut self, now_us: i64) {
        self.saved.last_heard_us = Some(now_us);
        self.changed = true;
    }

    pub(super) fn last_heard_us(&self) -> Option<i64> {
        self.saved.last_heard_us
    }

    /// The broker has no session of ours. Gives when messages began to be missing, if we had one.
    pub(super) fn forget_session(&mut self) -> Option<i64> {
        self.exactly_once.clear();
        self.changed = true;
        let granted = std::mem::take(&mut self.saved.granted);
        let since = self.saved.last_heard_us.filter(|_| !granted.is_empty())?;
        for filter in granted.into_keys() {
            self.saved.missing.entry(filter).or_insert(since);
        }
        Some(since)
    }

    /// Takes a message of QoS 2; whether it is to be journaled. It is not if it is the one that the
    /// broker has not released yet. Another message under that packet id comes from a broker that
    /// was killed and goes on from an older state, without the message that we know.
    pub(super) fn is_first(&mut self, packet_id: u16, topic: &[u8], payload: &[u8]) -> bool {
        let message = xxh3_64_with_seed(payload, xxh3_64(topic));
        self.exactly_once.insert(packet_id, message) != Some(message)
    }

    /// The broker will not send this message again.
    pub(super) fn released(&mut self, packet_id: u16) {
        self.exactly_once.remove(&packet_id);
    }

    pub(super) fn is_granted(&self, filter: &str, qos: u8) -> bool {
        self.saved.granted.get(filter) == Some(&qos)
    }

    /// Filters that the session has and that are not among the wanted ones.
    pub(super) fn unwanted(&mut self, wanted: &[String]) -> Vec<String> {
        self.saved.missing.retain(|filter, _| wanted.contains(filter));
        self.saved.granted.keys().filter(|f| !wanted.contains(f)).cloned().collect()
    }

    pub(super) fn not_granted(&mut self, filter: &str) {
        self.saved.granted.remove(filter);
        self.changed = true;
    }

    /// The broker granted a filter; since when it was missing, if it was.
    pub(super) fn grant(&mut self, filter: &str, qos: u8) -> Option<i64> {
        self.saved.granted.insert(filter.to_owned(), qos);
        self.changed = true;
        self.saved.missing.remove(filter)
    }

    /// The broker refused a filter.
    pub(super) fn refuse(&mut self, filter: &str, now_us: i64) {
        self.saved.granted.remove(filter);
        self.changed = true;
        self.saved.missing.entry(filter.to_owned()).or_insert(now_us);
    }

    /// What the last batches held is not in the journal after all and will come again.
    pub(super) fn forget_after(&mut self, durable: u64) {
        // Those that were durable are recognised by the journal if they come again.
        self.exactly_once.clear();
        self.retained.forget_after(durable);
    }

    /// Writes at the next opportunity.
    pub(super) fn save_soon(&mut self) {
        self.next_save = time::now();
    }

    pub(super) fn next_save(&self) -> Instant {
        self.next_save
    }

    /// Writes if it is time and the last write has ended. `durable` as in [`RetainedTopics`].
    pub(super) async fn save_when_due(&mut self, durable: u64) {
        let now = time::now();
        if now < self.next_save {
            return;
        }
        if self.saving.as_ref().is_some_and(|s| !s.is_finished()) {
            self.next_save = now + Duration::from_millis(100);
            return;
        }
        self.next_save = now + CONTACT_SAVE_EVERY;
        self.start_saving(durable).await;
    }

    /// Writes now and waits for it.
    pub(super) async fn save(&mut self, durable: u64) {
        self.start_saving(durable).await;
        self.saved_or_told().await;
    }

    async fn start_saving(&mut self, durable: u64) {
        self.saved_or_told().await;
        let Some(files) = self.files.clone() else { return };
        let retained = self.retained.take_changes(durable);
        if !std::mem::take(&mut self.changed) && retained.is_none() {
            return;
        }
        // Texts and numbers always serialize.
        let session = serde_json::to_vec(&self.saved).unwrap_or_default();
        self.saving = Some(tokio::task::spawn_blocking(move || {
            replace(&files.with_extension("json"), &session)?;
            match retained {
                Some(bytes) => replace(&files.with_extension("retained"), &bytes),
                None => Ok(()),
            }
        }));
    }

    async fn saved_or_told(&mut self) {
        let Some(saving) = self.saving.take() else { return };
        if let Ok(Err(error)) = saving.await {
            // The messages are safe without it.
            tracing::warn!("cannot note the state of the session at the broker: {error}");
        }
    }
}

/// The client id, as far as it can be in the name of a file; the rest as numbers.
fn file_name(client_id: &str) -> String {
    let mut name = String::new();
    for byte in client_id.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            other => name.push_str(&format!("%{other:02x}")),
        }
    }
    // File systems end at 255 bytes; so long a name is compared in the file itself.
    name.truncate(200);
    name
}

async fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match tokio::fs::read(path).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a file as a whole: after a crash it is the old or the new one.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    std::fs::write(&new, bytes)?;
    std::fs::File::open(&new)?.sync_data()?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_restart_knows_the_last_contact() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Some(folder.path());
        let mut memory = Memory::open(folder, "mqtt://a", "x/y").await.unwrap();
        assert_eq!(memory.last_heard_us(), None);
        assert_eq!(memory.forget_session(), None, "a first session is no gap");
        memory.heard(7);
        assert_eq!(memory.grant("t/#", 1), None);
        assert!(memory.retained.is_new(b"t", b"1", 1));
        memory.save(1).await;
        let mut memory = Memory::open(folder, "mqtt://a", "x/y").await.unwrap();
        assert!(memory.is_granted("t/#", 1) && !memory.is_granted("t/#", 2));
        assert!(!memory.retained.is_new(b"t", b"1", 1));
        assert_eq!(memory.forget_session(), Some(7));
        memory.save(1).await;
        let mut memory = Memory::open(folder, "mqtt://a", "x/y").await.unwrap();
        assert_eq!(memory.forget_session(), None, "the same gap is told once");
        assert_eq!(memory.grant("t/#", 1), Some(7), "and ends with the subscription");
        let other = Memory::open(folder, "mqtt://a", "x%2fy").await.unwrap();
        assert_eq!(other.last_heard_us(), None);
    }

    /// Nobody knows whether it is the same one: its session decides.
    #[tokio::test]
    async fn at_another_address_a_lost_session_is_a_gap_too() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Some(folder.path());
        let mut memory = Memory::open(folder, "mqtt://a", "x").await.unwrap();
        memory.heard(7);
        memory.grant("t/#", 1);
        assert!(memory.retained.is_new(b"t", b"1", 1));
        memory.save(1).await;
        let wanted = ["other".to_owned()];
        let mut goes_on = Memory::open(folder, "mqtt://b", "x").await.unwrap();
        assert!(!goes_on.is_granted("t/#", 1), "it is asked for again");
        assert_eq!(goes_on.unwanted(&wanted), ["t/#"]);
        assert!(goes_on.retained.is_new(b"t", b"1", 1));
        assert_eq!(goes_on.grant("t/#", 1), None, "nothing was missing");
        assert!(goes_on.is_granted("t/#", 1));
        let mut lost = Memory::open(folder, "mqtt://b", "x").await.unwrap();
        assert_eq!(lost.forget_session(), Some(7));
        assert_eq!(lost.grant("t/#", 1), Some(7));
    }

    #[test]
    fn names_of_files_hold_nothing_strange() {
        assert_eq!(file_name("a-B_9"), "a-B_9");
        assert_eq!(file_name("../é"), "%2e%2e%2f%c3%a9");
    }
}
