//! A local webhook receiver: verifies signatures as the Standard Webhooks specification says,
//! counts, and hands one calm line per arrival to a printer. For the demo and for tests.
//!
//! It remembers ids to tell a repeated delivery from a new one: delivery is at least once, and a
//! receiver is expected to do exactly this.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How far the timestamp of a webhook may be from the receiver's clock, seconds. The
/// specification leaves the tolerance open; five minutes is what its libraries use.
const TIMESTAMP_TOLERANCE_S: u64 = 300;
/// Ids that are remembered; the oldest are forgotten, so that memory is bounded.
const IDS_MAX: usize = 100_000;

/// Takes one line of text, without a line end.
pub type Printer = Arc<dyn Fn(&str) + Send + Sync>;

/// What arrived so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReceiverTotals {
    /// Webhooks accepted, repeated ones not counted.
    pub received: u64,
    /// Webhooks whose id was seen before.
    pub duplicates: u64,
    /// Requests refused: signature, timestamp or body wrong.
    pub refused: u64,
}

#[derive(Debug, Default)]
struct Seen {
    ids: HashSet<String>,
    order: VecDeque<String>,
}

impl Seen {
    /// Whether `id` is new.
    fn insert(&mut self, id: &str) -> bool {
        if !self.ids.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > IDS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

struct Shared {
    key: hmac::Key,
    printer: Printer,
    seen: Mutex<Seen>,
    received: AtomicU64,
    duplicates: AtomicU64,
    refused: AtomicU64,
}

/// A running receiver; it ends when dropped.
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<()>,
}

impl Receiver {
    /// Listens on a free port of 127.0.0.1. `secret` is `whsec_` and base64, or plain text.
    pub async fn start(secret: &str, printer: Printer) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            key: key_of(secret)?,
            printer,
            seen: Mutex::default(),
            received: AtomicU64::new(0),
            duplicates: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let app = Router::new().route("/", post(receive)).with_state(Arc::clone(&shared));
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(async move {
            let ended = async { drop(stopped.await) };
            if let Err(e) = axum::serve(listener, app).with_graceful_shutdown(ended).await {
                tracing::error!("the webhook receiver ended: {e}");
            }
        });
        Ok(Self { address, shared, stop: Some(stop), server })
    }

    /// Where to send webhooks.
    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// What arrived so far.
    pub fn totals(&self) -> ReceiverTotals {
        ReceiverTotals {
            received: self.shared.received.load(Relaxed),
            duplicates: self.shared.duplicates.load(Relaxed),
            refused: self.shared.refused.load(Relaxed),
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // Fails only if the server has ended already.
            let _ = stop.send(());
        }
        self.server.abort();
    }
}

async fn receive(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, String) {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    match accept(&shared.key, &headers, &body, now_s) {
        Ok((id, event)) => {
            let new = shared.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(&id);
            if new {
                shared.received.fetch_add(1, Relaxed);
                let time = chrono::Local::now().format("%H:%M:%S");
                (shared.printer)(&format!("{time} {}", describe(&event)));
            } else {
                shared.duplicates.fetch_add(1, Relaxed);
            }
            (StatusCode::NO_CONTENT, String::new())
        }
        Err(refusal) => {
            shared.refused.fetch_add(1, Relaxed);
            tracing::warn!("webhook refused: {refusal}");
            (StatusCode::BAD_REQUEST, refusal)
        }
    }
}

/// The key of a secret: `whsec_` and base64 as in the specification, else its bytes.
fn key_of(secret: &str) -> anyhow::Result<hmac::Key> {
    let bytes = match secret.strip_prefix("whsec_") {
        Some(encoded) => STANDARD
            .decode(encoded)
            .map_err(|e| anyhow::anyhow!("the secret after `whsec_` is not base64: {e}"))?,
        None => secret.as_bytes().to_vec(),
    };
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

/// Verifies one request; gives its id and its body, or why it is refused.
fn accept(
    key: &hmac::Key,
    headers: &HeaderMap,
    body: &[u8],
    now_s: u64,
) -> Result<(String, Value), String> {
    let header = |name: &str| {
        headers
            .get(name)
            .and_then(|v| v.to_str().ok())
            .ok_or_else(|| format!("header `{name}` is missing"))
    };
    let id = header("webhook-id")?;
    let timestamp = header("webhook-timestamp")?;
    let sent_s: u64 = timestamp.parse().map_err(|_| "webhook-timestamp is no number")?;
    if sent_s.abs_diff(now_s) > TIMESTAMP_TOLERANCE_S {
        return Err("webhook-timestamp is too far from now".to_owned());
    }
    let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
    // Several signatures, separated by spaces: senders may rotate keys.
    let valid = header("webhook-signature")?.split(' ').any(|signature| {
        signature
            .strip_prefix("v1,")
            .and_then(|encoded| STANDARD.decode(encoded).ok())
            .is_some_and(|tag| hmac::verify(key, &signed, &tag).is_ok())
    });
    if !valid {
        return Err("no signature matches".to_owned());
    }
    let event = serde_json::from_slice(body).map_err(|e| format!("the body is no JSON: {e}"))?;
    Ok((id.to_owned(), event))
}

/// One line about an alert: `webhook firing too-warm device=cold-017: what happened`.
fn describe(event: &Value) -> String {
    let data = if event["data"].is_object() { &event["data"] } else { event };
    let text = |name: &str| data[name].as_str().unwrap_or("?");
    let mut line = format!("webhook {} {}", text("status"), text("rule"));
    // Keys are an object, or the text of one, as in `system.alerts`.
    let parsed = data["keys"].as_str().and_then(|t| serde_json::from_str::<Value>(t).ok());
    if let Some(keys) = parsed.as_ref().unwrap_or(&data["keys"]).as_object() {
        for (name, value) in keys {
            match value.as_str() {
                Some(value) => line.push_str(&format!(" {name}={value}")),
                None => line.push_str(&format!(" {name}={value}")),
            }
        }
    }
    if let Some(summary) = data["summary"].as_str() {
        line.push_str(": ");
        line.push_str(summary);
    }
    // What a sender wrote must not move the cursor or clear the screen.
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests;
