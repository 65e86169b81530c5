//! The endpoint without sockets: the simulation brings the byte streams.

use std::sync::Arc;

use tokio::io::DuplexStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::access::{Access, Peer};
use super::broker::{Broker, BrokerOptions};
use super::connection::{self, Shared};
use super::endpoint::EndpointConfig;
use super::notices::Notices;
use super::route::{Delivered, now_ms};
use super::security::{Gate, SecurityConfig};
use crate::clock::Clock;
use crate::source::{Intake, IntakeError, SourceStats};

/// An endpoint for anyone; its connections end when it is dropped.
pub(crate) struct Listening {
    shared: Arc<Shared>,
    /// One for each connection: a common one would wake them in an order that is chance.
    stops: Vec<watch::Sender<bool>>,
    connections: JoinSet<Result<(), IntakeError>>,
    accepted: u16,
}

impl Listening {
    pub(crate) fn new(intake: Arc<dyn Intake>) -> Self {
        let security = SecurityConfig::default();
        let gate = Gate::new(security, Clock::system()).expect("nothing is configured");
        let config = EndpointConfig::new(([127, 0, 0, 1], 1883).into());
        let broker = Broker::open(BrokerOptions::default(), now_ms()).expect("it has no file");
        let shared = Shared {
            name: "endpoint".to_owned(),
            access: Access { gate },
            terms: config.terms(),
            delivered: Delivered::new(&[], &[], None),
            connect_timeout: config.connect_timeout,
            broker,
            notices: Notices::default(),
            held: Arc::default(),
            intake,
            stats: Arc::new(SourceStats::default()),
        };
        let connections = JoinSet::new();
        Self { shared: Arc::new(shared), stops: Vec::new(), connections, accepted: 0 }
    }

    /// Takes a connection.
    pub(crate) fn accept(&mut self, stream: DuplexStream) {
        self.accepted = self.accepted.wrapping_add(1);
        let peer = Peer { address: ([127, 0, 0, 1], self.accepted).into(), certificate: None };
        let (stop, stopped) = watch::channel(false);
        self.stops.retain(|stop| stop.receiver_count() > 0);
        self.stops.push(stop);
        let shared = Arc::clone(&self.shared);
        self.connections.spawn(connection::run(stream, peer, shared, None, stopped));
    }

    /// Asks all connections to end; whether they have.
    pub(crate) fn stop(&mut self) -> bool {
        for stop in &self.stops {
            let _ = stop.send(true);
        }
        while self.connections.try_join_next().is_some() {}
        self.connections.is_empty()
    }
}
