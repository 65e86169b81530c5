//! The listener and its pipelines. Each pipeline is a source of its own, with its own place in the
//! journal, its own users and its own counters; those with one address share the listener, which
//! the first of them runs.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use tidegate_operators::spec::Format;
use tidegate_operators::topic::TopicTemplate;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::access::Access;
use super::budget::Budget;
use super::handle;
use super::limits::{STOP_TIMEOUT, Timeouts};
use super::listen::{Door, Peer};
use super::requests::Requests;
use super::unpack::Bounds;
use crate::source::{Intake, IntakeError, Source, SourceError, SourceStats, stopped};

/// Settings of one pipeline of a listener.
#[derive(Clone)]
pub(crate) struct HttpConfig {
    /// Name of the pipeline.
    pub(crate) pipeline: String,
    /// How its payloads are written.
    pub(crate) format: Format,
    /// The topic of requests that name none.
    pub(crate) topic: String,
    /// One of these has to match the topic.
    pub(crate) topics: Vec<TopicTemplate>,
    /// User names and passwords.
    pub(crate) users: BTreeMap<String, String>,
    /// Names and tokens. If there are neither users nor tokens, anyone may send.
    pub(crate) tokens: BTreeMap<String, String>,
    /// Longest body as it is sent, bytes.
    pub(crate) body_bytes_max: usize,
    /// Longest body after decompression, bytes.
    pub(crate) decompressed_bytes_max: usize,
    /// Allow anyone to send from other machines.
    pub(crate) insecure_listen: bool,
}

impl fmt::Debug for HttpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpConfig")
            .field("pipeline", &self.pipeline)
            .field("users", &self.users.keys())
            .field("tokens", &self.tokens.keys())
            .finish_non_exhaustive()
    }
}

/// Settings of a listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListenerOptions {
    /// Connections at a time; more are closed at once.
    pub(crate) connections_max: usize,
    /// Memory for requests that are not durable yet, bytes.
    pub(crate) in_flight_bytes_max: usize,
    /// How long anything may take.
    pub(crate) timeouts: Timeouts,
}

/// A pipeline as requests see it.
pub(crate) struct Route {
    pub(crate) source: String,
    pub(crate) pipeline: String,
    pub(crate) format: Format,
    pub(crate) topic: String,
    pub(crate) topics: Vec<TopicTemplate>,
    pub(crate) access: Access,
    pub(crate) bounds: Bounds,
    pub(crate) intake: Arc<dyn Intake>,
    pub(crate) stats: Arc<SourceStats>,
    /// Why the journal takes nothing any more.
    pub(crate) failed: watch::Sender<Option<IntakeError>>,
}

/// What all pipelines of a listener share.
pub(crate) struct Shared {
    address: SocketAddr,
    listener: Mutex<Option<TcpListener>>,
    connections: Arc<Semaphore>,
    routes: Mutex<BTreeMap<String, Arc<Route>>>,
    /// Requests may come when all pipelines have started.
    started: watch::Sender<usize>,
    sources: AtomicUsize,
    pub(crate) timeouts: Timeouts,
    pub(crate) budget: Arc<Budget>,
    pub(crate) requests: Arc<Requests>,
    /// Offers that the disk has kept waiting for longer than clients wait.
    pub(crate) stalled: Arc<AtomicUsize>,
    stopping: AtomicBool,
}

impl Shared {
    /// The pipeline of a name.
    pub(crate) fn route(&self, pipeline: &str) -> Option<Arc<Route>> {
        self.lock().get(pipeline).cloned()
    }

    /// All pipelines.
    pub(crate) fn routes(&self) -> Vec<Arc<Route>> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Route>>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why requests would be refused now, if they would.
    pub(crate) fn unready(&self) -> Option<&'static str> {
        if self.stopping.load(Ordering::Relaxed) {
            return Some("tidegate is shutting down");
        }
        if self.routes().iter().any(|r| r.failed.borrow().is_some()) {
            return Some("the journal takes nothing any more");
        }
        if self.stalled.load(Ordering::Relaxed) > 0 {
            return Some("the disk does not keep up");
        }
        (!self.budget.has_room()).then_some("too many bytes wait for the disk")
    }
}

/// An address that is listened on, whose pipelines are added one by one.
pub(crate) struct HttpListener {
    shared: Arc<Shared>,
}

impl HttpListener {
    /// Opens the port; nobody is let in before all pipelines have started.
    ///
    /// # Errors
    /// [`SourceError::Io`] if the port cannot be opened.
    pub(crate) async fn bind(
        listen: SocketAddr,
        options: ListenerOptions,
        requests: Arc<Requests>,
    ) -> Result<Self, SourceError> {
        let io = |error| SourceError::Io { what: format!("cannot listen on {listen}"), error };
        let listener = TcpListener::bind(listen).await.map_err(io)?;
        let address = listener.local_addr().map_err(io)?;
        let shared = Shared {
            address,
            listener: Mutex::new(Some(listener)),
            connections: Arc::new(Semaphore::new(options.connections_max)),
            routes: Mutex::default(),
            started: watch::Sender::new(0),
            sources: AtomicUsize::new(0),
            timeouts: options.timeouts,
            budget: Budget::new(options.in_flight_bytes_max),
            requests,
            stalled: Arc::default(),
            stopping: AtomicBool::new(false),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The address that is listened on, with its real port.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.shared.address
    }

    /// Adds a pipeline.
    ///
    /// # Errors
    /// [`SourceError::Config`] if anyone on the network could send to it, which nobody allowed.
    pub(crate) fn add(&self, config: HttpConfig) -> Result<HttpSource, SourceError> {
        let access = Access::new(&config.users, &config.tokens)?;
        let address = self.shared.address;
        if access.is_open() && !config.insecure_listen && !address.ip().is_loopback() {
            return Err(SourceError::Config(format!(
                "`listen = \"{address}\"` can be reached from other machines and there are no \
                 `tokens` or `users`: name some, listen on 127.0.0.1, or set \
                 `insecure_listen = true`"
            )));
        }
        self.shared.sources.fetch_add(1, Ordering::Relaxed);
        let name = format!("http {address} {}", config.pipeline);
        Ok(HttpSource { name, config, access, shared: Arc::clone(&self.shared) })
    }
}

/// One pipeline of an HTTP listener.
pub(crate) struct HttpSource {
    name: String,
    config: HttpConfig,
    access: Access,
    shared: Arc<Shared>,
}

impl Source for HttpSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn start(
        self: Box<Self>,
        intake: Arc<dyn Intake>,
        stop: watch::Receiver<bool>,
        stats: Arc<SourceStats>,
    ) -> JoinHandle<Result<(), SourceError>> {
        let Self { name, config, access, shared } = *self;
        let (failed, failure) = watch::channel(None);
        let route = Route {
            source: name.clone(),
            pipeline: config.pipeline.clone(),
            format: config.format,
            topic: config.topic,
            topics: config.topics,
            access,
            bounds: Bounds {
                body_bytes_max: config.body_bytes_max,
                decompressed_bytes_max: config.decompressed_bytes_max,
            },
            intake,
            stats: Arc::clone(&stats),
            failed,
        };
        shared.lock().insert(config.pipeline, Arc::new(route));
        shared.started.send_modify(|n| *n += 1);
        let listener = shared.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        tokio::spawn(async move {
            stats.set_healthy();
            tracing::info!("{name} is ready");
            let result = match listener {
                Some(listener) => serve(listener, shared, stop, failure, &stats).await,
                None => wait(stop, failure).await,
            };
            stats.set_unhealthy(match &result {
                Ok(()) => "stopped".to_owned(),
                Err(error) => error.to_string(),
            });
            result
        })
    }
}

/// Until the order to stop, or until the journal fails.
async fn wait(
    mut stop: watch::Receiver<bool>,
    mut failure: watch::Receiver<Option<IntakeError>>,
) -> Result<(), SourceError> {
    tokio::select! {
        () = stopped(&mut stop) => Ok(()),
        Ok(failed) = failure.wait_for(Option::is_some) => {
            Err(failed.clone().unwrap_or(IntakeError::Closed).into())
        }
    }
}

/// Runs the listener for all of its pipelines.
async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
    failure: watch::Receiver<Option<IntakeError>>,
    stats: &Arc<SourceStats>,
) -> Result<(), SourceError> {
    let sources = shared.sources.load(Ordering::Relaxed);
    // The sender lives in `shared`, so this ends when the last pipeline has started.
    let _ = shared.started.subscribe().wait_for(|n| *n >= sources).await;
    let door = Door {
        listener,
        free: Arc::clone(&shared.connections),
        timeouts: shared.timeouts,
        stats: Arc::clone(stats),
        reserved: false,
    };
    let app = Router::new().fallback(handle::request).with_state(Arc::clone(&shared));
    let (close, closing) = watch::channel(false);
    let order = async move {
        let mut closing = closing;
        stopped(&mut closing).await;
    };
    let service = app.into_make_service_with_connect_info::<Peer>();
    let mut server =
        tokio::spawn(async move { axum::serve(door, service).with_graceful_shutdown(order).await });
    let result = wait(stop, failure).await;
    shared.stopping.store(true, Ordering::Relaxed);
    let _ = close.send(true);
    if timeout(STOP_TIMEOUT, &mut server).await.is_err() {
        tracing::warn!("requests that are not durable yet were left without an answer");
        server.abort();
    }
    result
}
