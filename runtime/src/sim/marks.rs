//! What the outside world knows of each reading: what was sent, what was acknowledged, what is on
//! disk. Readings carry a mark in their payload by which they are found wherever they lie.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use super::trace::Trace;

/// Begins the mark in a payload.
const BEGIN: &[u8] = b"\"id\":\"";

/// A reading as its device made it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Reading {
    pub(crate) device: String,
    pub(crate) time_ms: i64,
    pub(crate) value: i64,
}

#[derive(Default)]
pub(crate) struct Known {
    pub(crate) sent: BTreeMap<String, Reading>,
    pub(crate) acked: BTreeSet<String>,
    durable: BTreeSet<String>,
    /// How often something was sent again.
    pub(crate) resent: u64,
}

/// Shared by devices, broker and disk.
#[derive(Clone)]
pub(crate) struct Marks(Arc<Mutex<Known>>, Trace);

impl Marks {
    pub(crate) fn new(trace: Trace) -> Self {
        Self(Arc::default(), trace)
    }

    pub(crate) fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap()
    }

    /// A new reading, and the payload that it is sent as.
    pub(crate) fn make(&self, id: &str, reading: Reading) -> Vec<u8> {
        let Reading { device, time_ms, value } = &reading;
        let payload = format!(r#"{{"id":"{id}","device":"{device}","ts":{time_ms},"v":{value}}}"#);
        self.known().sent.insert(id.to_owned(), reading);
        payload.into_bytes()
    }

    pub(crate) fn sent_again(&self) {
        self.known().resent += 1;
    }

    /// These bytes are on disk, synced.
    pub(crate) fn durable(&self, bytes: &[u8]) {
        let mut known = self.known();
        for at in memchr::memmem::find_iter(bytes, BEGIN) {
            let rest = &bytes[at + BEGIN.len()..];
            let end = rest.iter().position(|b| *b == b'"').unwrap_or(0);
            known.durable.insert(String::from_utf8_lossy(&rest[..end]).into_owned());
        }
    }

    /// Whether this reading is on disk.
    pub(crate) fn is_durable(&self, id: &str) -> bool {
        self.known().durable.contains(id)
    }

    /// Whoever sent this reading was told that it is safe.
    pub(crate) fn acked(&self, id: &str) {
        self.1.line(format_args!("acknowledged {id}"));
        let mut known = self.known();
        known.acked.insert(id.to_owned());
        if !known.durable.contains(id) {
            drop(known);
            self.1.failure(format!("{id} was acknowledged and is not on disk"));
        }
    }
}
