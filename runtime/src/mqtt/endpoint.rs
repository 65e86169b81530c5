//! The endpoint that devices connect to: listens, accepts up to a limit, stops cleanly.
//!
//! It owns the connections' tasks: none outlives it. A fault of one device ends that connection
//! and nothing else; a failed journal ends the endpoint.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::access::{Access, Peer};
use super::alerts::AlertTopics;
use super::broker::{Broker, BrokerOptions};
use super::connect::Terms;
use super::connection::{self, Shared};
use super::housekeeping;
use super::kept::KeptTopics;
use super::limits::{CONNECT_TIMEOUT, REFUSALS_MAX, STOP_TIMEOUT};
use super::listeners::{Layers, Listeners, TlsListener, WebSocketListener};
use super::notices::Notices;
use super::route::{Delivered, now_ms};
use super::security::{Gate, SecurityConfig};
use crate::clock::Clock;
use crate::open_files;
use crate::source::{Intake, IntakeError, Source, SourceError, SourceStats, count, stopped};

/// Pause after the system refused to accept, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Settings of an [`Endpoint`].
#[derive(Clone)]
pub struct EndpointConfig {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The same over TLS, besides.
    pub tls: Option<TlsListener>,
    /// The same over WebSocket, besides.
    pub websocket: Option<WebSocketListener>,
    /// User names and passwords, besides those of `security`.
    pub users: BTreeMap<String, String>,
    /// Who may connect and what they may do; by default and without users, anyone everything.
    pub security: SecurityConfig,
    /// Largest packet, bytes, header included. A larger one closes its connection.
    pub packet_bytes_max: usize,
    /// Connections at a time; more are refused.
    pub connections_max: usize,
    /// Time from the connection to a complete CONNECT.
    pub connect_timeout: Duration,
    /// The file of retained messages and of sessions that outlive their connection; without, a
    /// restart forgets them.
    pub store: Option<PathBuf>,
    /// Longest time that a session is kept without a connection, seconds; `u32::MAX` is for ever.
    pub session_expiry_max_s: u32,
    /// Longest keep-alive of a version 5 client, seconds; 0 is no bound.
    pub keep_alive_max_s: u16,
    /// Messages that wait for one session.
    pub queue_max: usize,
    /// Filters of what pipelines read.
    pub readings: Vec<String>,
    /// Filters of what is only delivered to subscribers, unless a pipeline reads it.
    pub deliver: Vec<String>,
    /// The topic below which alerts are published.
    pub alerts: Option<String>,
    /// Keep retained messages.
    pub retained: bool,
    /// Let clients subscribe.
    pub subscribe: bool,
    /// Allow anyone to connect from other machines. Without it, an address beyond loopback needs
    /// users.
    pub insecure_listen: bool,
}

impl fmt::Debug for EndpointConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointConfig")
            .field("listen", &self.listen)
            .field("tls", &self.tls)
            .field("websocket", &self.websocket)
            .field("users", &self.users.keys())
            .field("security", &self.security)
            .field("packet_bytes_max", &self.packet_bytes_max)
            .field("connections_max", &self.connections_max)
            .field("connect_timeout", &self.connect_timeout)
            .field("store", &self.store)
            .field("session_expiry_max_s", &self.session_expiry_max_s)
            .field("keep_alive_max_s", &self.keep_alive_max_s)
            .field("queue_max", &self.queue_max)
            .field("deliver", &self.deliver)
            .field("alerts", &self.alerts)
            .field("retained", &self.retained)
            .field("subscribe", &self.subscribe)
            .field("insecure_listen", &self.insecure_listen)
            .finish()
    }
}

impl EndpointConfig {
    /// An endpoint for anyone, with the defaults of all else.
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            tls: None,
            websocket: None,
            users: BTreeMap::new(),
            security: SecurityConfig::default(),
            packet_bytes_max: 256 * 1024,
            connections_max: 20_000,
            connect_timeout: CONNECT_TIMEOUT,
            store: None,
            session_expiry_max_s: 7 * 24 * 3600,
            keep_alive_max_s: 60,
            queue_max: 1000,
            readings: Vec::new(),
            deliver: Vec::new(),
            alerts: None,
            retained: true,
            subscribe: true,
            insecure_listen: false,
        }
    }

    pub(crate) fn terms(&self) -> Terms {
        Terms {
            packet_bytes_max: self.packet_bytes_max,
            session_expiry_max_s: self.session_expiry_max_s,
            keep_alive_max_s: self.keep_alive_max_s,
            retained: self.retained,
            subscribe: self.subscribe,
        }
    }
}

/// An MQTT 3.1.1 and 5 endpoint for devices.
pub struct Endpoint {
    name: String,
    listeners: Listeners,
    access: Access,
    broker: Arc<Broker>,
    terms: Terms,
    connect_timeout: Duration,
    connections_max: usize,
    delivered: Delivered,
    alerts: Option<String>,
}

impl Endpoint {
    /// Starts to listen; nothing is accepted before [`Source::start`].
    ///
    /// # Errors
    /// [`SourceError::Config`] for an address beyond loopback without users, and for limits with
    /// which nothing could be received; [`SourceError::Io`] if the address cannot be bound.
    pub async fn bind(config: EndpointConfig) -> Result<Self, SourceError> {
        if config.packet_bytes_max < 64 || config.packet_bytes_max > 256 * 1024 * 1024 {
            return Err(SourceError::Config("`packet_max` must be 64B to 256MiB".to_owned()));
        }
        if config.connections_max == 0 {
            return Err(SourceError::Config("`connections_max` must be at least 1".to_owned()));
        }
        let mut security = config.security.clone();
        security.users.extend(config.users.clone());
        let gate = Gate::new(security, Clock::system())?;
        let listeners = Listeners::bind(&config).await?;
        let name = format!("endpoint {}", listeners.addresses()?[0].1);
        if let Some(folder) = config.store.as_deref().and_then(Path::parent) {
            let what = format!("cannot create {}", folder.display());
            std::fs::create_dir_all(folder).map_err(|error| SourceError::Io { what, error })?;
        }
        let broker = BrokerOptions {
            store: config.store.clone(),
            queue_messages_max: config.queue_max,
            session_expiry_max_s: config.session_expiry_max_s,
            ..BrokerOptions::default()
        };
        Ok(Self {
            name,
            listeners,
            access: Access { gate },
            broker: Broker::open(broker, now_ms())?,
            terms: config.terms(),
            connect_timeout: config.connect_timeout,
            connections_max: config.connections_max,
            delivered: Delivered::new(&config.deliver, &config.readings, config.alerts.as_deref()),
            alerts: config.alerts,
        })
    }

    /// Where alerts are published, if they are.
    pub fn alert_topics(&self) -> Option<AlertTopics> {
        let prefix = self.alerts.clone()?;
        Some(AlertTopics { broker: Arc::clone(&self.broker), prefix })
    }

    /// What it has retained.
    pub(crate) fn kept(&self) -> KeptTopics {
        KeptTopics(Arc::clone(&self.broker))
    }

    /// The address that is listened on without TLS, with its real port.
    ///
    /// # Errors
    /// [`SourceError::Io`] if the system does not tell.
    pub fn local_addr(&self) -> Result<SocketAddr, SourceError> {
        Ok(self.listeners.addresses()?[0].1)
    }

    /// All addresses that are listened on, with their real ports, by protocol: `mqtt`, `mqtts`,
    /// `ws`, `wss`.
    ///
    /// # Errors
    /// [`SourceError::Io`] if the system does not tell.
    pub fn addresses(&self) -> Result<Vec<(&'static str, SocketAddr)>, SourceError> {
        self.listeners.addresses()
    }

    /// What its connections share, and the doors that they come through.
    pub(crate) fn open(
        self,
        intake: Arc<dyn Intake>,
        stats: Arc<SourceStats>,
    ) -> (Arc<Shared>, Listeners) {
        let shared = Shared {
            name: self.name,
            access: self.access,
            terms: self.terms,
            delivered: self.delivered,
            connect_timeout: self.connect_timeout,
            broker: self.broker,
            notices: Notices::default(),
            held: Arc::default(),
            intake,
            stats,
        };
        (Arc::new(shared), self.listeners)
    }
}

impl Source for Endpoint {
    fn name(&self) -> &str {
        &self.name
    }

    fn start(
        self: Box<Self>,
        intake: Arc<dyn Intake>,
        stop: watch::Receiver<bool>,
        stats: Arc<SourceStats>,
    ) -> JoinHandle<Result<(), SourceError>> {
        let connections_max = self.connections_max;
        let (shared, listeners) = self.open(intake, stats);
        let name = shared.name.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(housekeeping::run(Arc::clone(&shared), stop.clone()));
        let acceptor = Acceptor {
            shared,
            tasks,
            connections_max,
            refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
            stop,
        };
        tokio::spawn(async move {
            tracing::info!("{name} is ready");
            acceptor.run(listeners).await
        })
    }
}

struct Acceptor {
    shared: Arc<Shared>,
    tasks: JoinSet<Result<(), IntakeError>>,
    connections_max: usize,
    /// Room for connections that are only told why they are refused.
    refusals: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

impl Acceptor {
    async fn run(mut self, mut listeners: Listeners) -> Result<(), SourceError> {
        self.shared.stats.set_healthy();
        let result = self.accept(&mut listeners).await;
        drop(listeners);
        self.shared.stats.set_unhealthy(match &result {
            Ok(()) => "stopped".to_owned(),
            Err(error) => error.to_string(),
        });
        result?;
        // Every connection has seen the order to stop and ends by itself.
        let drain = async {
            while let Some(ended) = self.tasks.join_next().await {
                self.ended(ended)?;
            }
            Ok(())
        };
        match timeout(STOP_TIMEOUT, drain).await {
            Ok(result) => result,
            Err(_) => {
                tracing::warn!("connections whose messages are not durable yet were closed");
                Ok(())
            }
        }
    }

    async fn accept(&mut self, listeners: &mut Listeners) -> Result<(), SourceError> {
        loop {
            let mut stop = self.stop.clone();
            tokio::select! {
                () = stopped(&mut stop) => return Ok(()),
                Some(ended) = self.tasks.join_next() => self.ended(ended)?,
                accepted = listeners.accept() => match accepted {
                    Ok((stream, address, layers)) => self.admit(stream, address, &layers),
                    Err(error) => {
                        tracing::warn!("cannot accept a connection: {error}");
                        self.shared.stats.note_error(format!("cannot accept: {error}"));
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }

    fn admit(&mut self, stream: TcpStream, address: SocketAddr, layers: &Arc<Layers>) {
        // Acknowledgements are small and awaited; a failure to set this costs only latency.
        let _ = stream.set_nodelay(true);
        let stats = &self.shared.stats;
        let (shared, stop) = (Arc::clone(&self.shared), self.stop.clone());
        let knock = shared.access.gate.knock(address.ip());
        let place = open_files::room().place();
        let full = match (&knock, &place) {
            _ if stats.connections.load(Ordering::Relaxed) >= self.connections_max as u64 => {
                format!("more than {} connections", self.connections_max)
            }
            (None, _) => format!("{} has too many connections", address.ip()),
            (_, None) => open_files::room().full(),
            (Some(_), Some(_)) => {
                count(&stats.connections, 1);
                count(&stats.connections_total, 1);
                let open = (Open(Arc::clone(stats)), knock, place);
                let layers = Arc::clone(layers);
                self.tasks.spawn(async move {
                    let _open = open;
                    connect(stream, address, &layers, shared, stop).await
                });
                return;
            }
        };
        let place = place.or_else(|| open_files::room().refusal());
        match (Arc::clone(&self.refusals).try_acquire_owned(), place) {
            // Who wants a handshake first would cost too much only to be refused.
            (Ok(room), Some(place)) if layers.is_plain() => {
                let peer = Peer { address, certificate: None };
                let run = connection::run(stream, peer, shared, Some(full), stop);
                self.tasks.spawn(async move {
                    let _room = (room, place);
                    run.await
                });
            }
            _ => {
                count(&stats.refused, 1);
                stats.note_error(full);
            }
        }
    }

    fn ended(
        &self,
        ended: Result<Result<(), IntakeError>, tokio::task::JoinError>,
    ) -> Result<(), SourceError> {
        match ended {
            // Of this connection alone; nothing of it was acknowledged.
            Ok(Err(error @ IntakeError::TooLarge { .. })) => {
                tracing::warn!("a connection was closed: {error}");
                self.shared.stats.note_error(error.to_string());
                Ok(())
            }
            Ok(result) => Ok(result?),
            Err(error) => {
                // A bug of ours: the connection is gone, nothing of it was acknowledged wrongly.
                tracing::error!("a connection's task failed: {error}");
                self.shared.stats.note_error(format!("a connection's task failed: {error}"));
                Ok(())
            }
        }
    }
}

/// Brings a connection up to MQTT and runs it to its end.
async fn connect(
    stream: TcpStream,
    address: SocketAddr,
    layers: &Layers,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), IntakeError> {
    if layers.is_plain() {
        // Nothing between: most connections, and the fastest ones.
        let peer = Peer { address, certificate: None };
        return connection::run(stream, peer, shared, None, stop).await;
    }
    // Boxed, like all that comes only once: a task keeps room for its largest part.
    let opened = tokio::select! {
        () = stopped(&mut stop) => return Ok(()),
        opened = Box::pin(layers.open(stream)) => opened,
    };
    match opened {
        Ok((stream, certificate)) => {
            connection::run(stream, Peer { address, certificate }, shared, None, stop).await
        }
        Err(error) => {
            let text = format!("{} handshake: {error}", layers.name);
            tracing::info!(%address, "connection refused: {text}");
            count(&shared.stats.refused, 1);
            shared.stats.note_error(text.clone());
            // Who only looks whether the port is open, as load balancers do, is no event.
            if error.kind() == std::io::ErrorKind::UnexpectedEof {
                return Ok(());
            }
            connection::note_refused(String::new(), text, address, &shared).await
        }
    }
}

/// Counts one open connection until it is dropped, whatever ends its task.
struct Open(Arc<SourceStats>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
