//! A simulated fleet: devices of three kinds that publish over real MQTT connections, with the
//! faults that real ones have.
//!
//! What the devices send follows from the seed alone ([`device`]); when the bytes reach the other
//! side follows from the network. The fleet knows nothing of pipelines: it is a client like any
//! other, and it counts what it published and what was acknowledged ([`FleetStats`]).

pub mod device;
pub mod fault;
pub mod payload;
pub mod random;
pub mod signal;

mod connection;
mod stats;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use connection::{Session, Shared};
use device::Device;
pub use fault::{Fault, Kind};
pub use stats::{FaultTotals, FleetStats, FleetTotals};

/// Longest time that [`Fleet::stop`] takes, above what a device waits for its acknowledgements.
const STOP_TIME_MAX: Duration = Duration::from_secs(10);

/// How large a fleet, how fast, and where to.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// Number of devices, each with its own connection.
    pub devices: usize,
    /// What the devices do follows from this.
    pub seed: u64,
    /// Time between two messages of a device.
    pub interval: Duration,
    /// The MQTT endpoint.
    pub address: SocketAddr,
    /// Time of the start, microseconds since the Unix epoch (UTC): readings count from it.
    pub start_us: i64,
}

impl FleetOptions {
    /// 500 devices with about one message per second each.
    pub fn new(address: SocketAddr, start_us: i64) -> Self {
        Self { devices: 500, seed: 1, interval: Duration::from_secs(1), address, start_us }
    }
}

/// A running fleet. Dropping it cuts all connections; [`Fleet::stop`] ends it cleanly.
#[derive(Debug)]
pub struct Fleet {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    devices: JoinSet<()>,
}

impl Fleet {
    /// Starts all devices on the current tokio runtime. Connections that fail are tried again, so
    /// the endpoint may come up later.
    pub fn start(options: &FleetOptions) -> Self {
        let shared = Arc::new(Shared {
            address: options.address,
            stats: FleetStats::default(),
            started: Instant::now(),
        });
        let (stop, stopped) = watch::channel(false);
        let interval_us = options.interval.as_micros().clamp(1, i64::MAX as u128) as i64;
        let mut devices = JoinSet::new();
        for index in 0..options.devices {
            let device = Device::new(options.seed, index, options.start_us, interval_us);
            devices.spawn(Session::new(device, Arc::clone(&shared), stopped.clone()).run());
        }
        Self { shared, stop, devices }
    }

    /// The counters.
    pub fn totals(&self) -> FleetTotals {
        self.shared.stats.snapshot()
    }

    /// A function that reads the counters, for views that outlive a borrow of the fleet.
    pub fn totals_reader(&self) -> impl Fn() -> FleetTotals + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.stats.snapshot()
    }

    /// Stops publishing, waits (bounded) for outstanding acknowledgements, disconnects.
    pub async fn stop(mut self) -> FleetTotals {
        // Fails only if no device listens any more, and then there is nothing to stop.
        let _ = self.stop.send(true);
        let all_ended = async { while self.devices.join_next().await.is_some() {} };
        if timeout(STOP_TIME_MAX, all_ended).await.is_err() {
            tracing::warn!("some simulated devices did not end in time and were cut off");
            self.devices.shutdown().await;
        }
        self.shared.stats.snapshot()
    }
}
