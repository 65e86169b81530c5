//! What the fleet published and what was acknowledged, by kind and fault, so that the totals of a
//! run can be checked against what came out at the other end.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

use super::device::Message;
use super::fault::{Fault, Kind};

const FAULTS: usize = Fault::ALL.len();
const KINDS: usize = Kind::ALL.len();

/// Live counters of a fleet.
#[derive(Debug, Default)]
pub struct FleetStats {
    published: [[AtomicU64; FAULTS]; KINDS],
    acked: [[AtomicU64; FAULTS]; KINDS],
    readings: AtomicU64,
    rejects: AtomicU64,
    resent: AtomicU64,
    connected: AtomicU64,
    connects: AtomicU64,
    connect_errors: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FleetTotals {
    /// Messages handed to a connection, each counted once however often it was sent again.
    pub published: u64,
    /// Of these, messages that the other side acknowledged.
    pub acked: u64,
    /// Messages sent again because the connection was lost before their acknowledgement. Each of
    /// them may have been taken twice.
    pub resent: u64,
    /// Valid readings in the acknowledged messages.
    pub readings: u64,
    /// Reject rows that the acknowledged messages make.
    pub rejects: u64,
    /// Open connections.
    pub connected: u64,
    /// Connections made so far.
    pub connects: u64,
    /// Connections that failed to open or were lost.
    pub connect_errors: u64,
    /// By kind and fault; only what occurred.
    pub by_fault: Vec<FaultTotals>,
}

/// One kind and fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FaultTotals {
    /// Name of the kind.
    pub kind: &'static str,
    /// Name of the fault.
    pub fault: &'static str,
    /// Messages published.
    pub published: u64,
    /// Messages acknowledged.
    pub acked: u64,
}

impl FleetStats {
    /// The counters now.
    pub fn snapshot(&self) -> FleetTotals {
        let mut totals = FleetTotals {
            readings: self.readings.load(Relaxed),
            rejects: self.rejects.load(Relaxed),
            resent: self.resent.load(Relaxed),
            connected: self.connected.load(Relaxed),
            connects: self.connects.load(Relaxed),
            connect_errors: self.connect_errors.load(Relaxed),
            ..FleetTotals::default()
        };
        for kind in Kind::ALL {
            for fault in Fault::ALL {
                // Acknowledged first: the sum must never show more acks than messages.
                let acked = self.acked[kind.index()][fault.index()].load(Relaxed);
                let published = self.published[kind.index()][fault.index()].load(Relaxed);
                if published == 0 {
                    continue;
                }
                totals.published += published;
                totals.acked += acked;
                let (kind, fault) = (kind.name(), fault.name());
                totals.by_fault.push(FaultTotals { kind, fault, published, acked });
            }
        }
        totals
    }

    pub(super) fn on_published(&self, kind: Kind, fault: Fault) {
        self.published[kind.index()][fault.index()].fetch_add(1, Relaxed);
    }

    pub(super) fn on_acked(&self, kind: Kind, message: &Message) {
        self.acked[kind.index()][message.fault.index()].fetch_add(1, Relaxed);
        self.readings.fetch_add(u64::from(message.readings), Relaxed);
        self.rejects.fetch_add(u64::from(message.rejects), Relaxed);
    }

    pub(super) fn on_resent(&self, count: u64) {
        self.resent.fetch_add(count, Relaxed);
    }

    pub(super) fn on_connect_error(&self) {
        self.connect_errors.fetch_add(1, Relaxed);
    }

    pub(super) fn on_connected(&self) {
        self.connects.fetch_add(1, Relaxed);
        self.connected.fetch_add(1, Relaxed);
    }

    pub(super) fn on_disconnected(&self) {
        self.connected.fetch_sub(1, Relaxed);
    }
}
