//! The server, and what it answers.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::families;
use super::text::Format;
use crate::clock::Clock;
use crate::engine::{Observer, Replaying};
use crate::http::{Door, Peer, Timeouts};
use crate::source::{SourceHealth, SourceStats};

/// Connections at a time: a few scrapers, probes and people.
const CONNECTIONS_MAX: usize = 64;

/// Where the process is.
enum Phase {
    Starting,
    Running(Observer),
    Stopping(Observer),
}

struct Shared {
    replaying: Arc<Replaying>,
    /// When the process started, seconds since the Unix epoch.
    started_s: f64,
    phase: Mutex<Phase>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The server; it ends when this is dropped.
pub struct MetricsServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl MetricsServer {
    /// Opens the port and answers from now on. `replaying` is that of the start to come.
    ///
    /// # Errors
    /// When `listen` is no address that can be listened on.
    pub async fn start(listen: &str, replaying: Arc<Replaying>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("cannot listen on {listen} (for metrics)"))?;
        let address = listener.local_addr()?;
        let door = Door {
            listener,
            free: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            timeouts: Timeouts::default(),
            stats: Arc::new(SourceStats::default()),
            reserved: true,
        };
        let started_s = Clock::system().now_us() as f64 / 1e6;
        let shared = Arc::new(Shared { replaying, started_s, phase: Mutex::new(Phase::Starting) });
        let app = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let service = app.into_make_service_with_connect_info::<Peer>();
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(door, service).await {
                tracing::error!(%error, "there are no metrics any more");
            }
        });
        Ok(Self { address, shared, task })
    }

    /// The address that is listened on, with its real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The engine has started.
    pub fn watch(&self, engine: Observer) {
        *self.shared.lock() = Phase::Running(engine);
    }

    /// The engine is about to stop: it is not ready any more.
    pub fn stopping(&self) {
        let mut phase = self.shared.lock();
        *phase = match std::mem::replace(&mut *phase, Phase::Starting) {
            Phase::Running(engine) | Phase::Stopping(engine) => Phase::Stopping(engine),
            Phase::Starting => Phase::Starting,
        };
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
) -> Response {
    let _handling = peer.phase.handling();
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let allow = [(header::ALLOW, "GET, HEAD")];
        return (StatusCode::METHOD_NOT_ALLOWED, allow, "only GET and HEAD\n").into_response();
    }
    let (status, body) = match request.uri().path() {
        "/metrics" => {
            let accept = request.headers().get(header::ACCEPT).and_then(|a| a.to_str().ok());
            let format = Format::accepted(accept.unwrap_or_default());
            let text = metrics(&shared, format);
            return ([(header::CONTENT_TYPE, format.content_type())], text).into_response();
        }
        "/health" => health(&shared),
        "/ready" => ready(&shared),
        _ => (StatusCode::NOT_FOUND, json!({ "paths": ["/metrics", "/health", "/ready"] })),
    };
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (status, kind, format!("{body}\n")).into_response()
}

fn metrics(shared: &Shared, format: Format) -> String {
    let (ready, observer) = match &*shared.lock() {
        Phase::Starting => (false, None),
        Phase::Running(observer) => (true, Some(observer.clone())),
        Phase::Stopping(observer) => (false, Some(observer.clone())),
    };
    families::text(format, (ready, shared.started_s), shared.replaying.now(), observer.as_ref())
}

/// How a source is, and since when.
fn source(of: SourceHealth) -> Value {
    let mut said = json!({ "name": of.name, "healthy": of.is_healthy });
    let since = of.since_us.and_then(DateTime::from_timestamp_micros);
    if let Some(since) = since {
        said["since"] = json!(since.to_rfc3339_opts(SecondsFormat::Secs, true));
    }
    if let Some(why) = of.why {
        said["why"] = json!(why);
    }
    said
}

/// Green while it starts: who would end a process that replays would make it begin again.
fn health(shared: &Shared) -> (StatusCode, Value) {
    let (status, observer) = match &*shared.lock() {
        Phase::Starting => ("starting", None),
        Phase::Running(observer) => ("ok", Some(observer.clone())),
        Phase::Stopping(observer) => ("stopping", Some(observer.clone())),
    };
    let problems = observer.map(|observer| observer.problems()).unwrap_or_default();
    let reasons: Vec<Value> =
        problems.iter().map(|(what, why)| json!({ "what": what, "why": why })).collect();
    if let ("starting", Some(why)) = (status, shared.replaying.waits_for()) {
        let reasons = [json!({ "what": "waits", "why": why })];
        return (StatusCode::OK, json!({ "status": status, "reasons": reasons }));
    }
    match reasons.is_empty() {
        true => (StatusCode::OK, json!({ "status": status, "reasons": [] })),
        false => {
            let body = json!({ "status": "failing", "reasons": reasons });
            (StatusCode::SERVICE_UNAVAILABLE, body)
        }
    }
}

/// Whatever the sources do: a broker that is away is no reason to take devices away from an
/// endpoint beside it, and another process would not reach it either. How they are is in the body.
fn ready(shared: &Shared) -> (StatusCode, Value) {
    match &*shared.lock() {
        Phase::Running(observer) => {
            let sources: Vec<Value> = observer.source_health().into_iter().map(source).collect();
            (StatusCode::OK, json!({ "status": "ready", "sources": sources }))
        }
        Phase::Stopping(_) => (StatusCode::SERVICE_UNAVAILABLE, json!({ "status": "stopping" })),
        Phase::Starting => {
            let mut body = json!({ "status": "starting" });
            if let Some(now) = shared.replaying.now() {
                body["replay"] = json!({
                    "messages": now.messages, "messages_expected": now.messages_all,
                    "bytes": now.bytes, "bytes_expected": now.bytes_all,
                });
            }
            if let Some(why) = shared.replaying.waits_for() {
                body["waits"] = json!(why);
            }
            (StatusCode::SERVICE_UNAVAILABLE, body)
        }
    }
}
