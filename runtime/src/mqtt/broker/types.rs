//! What goes into and comes out of the broker core.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::super::wire::Version;

/// Bounds of the broker, and where it keeps what must survive.
#[derive(Clone, Debug)]
pub(crate) struct BrokerOptions {
    /// The file of retained messages and persistent sessions; `None` keeps them in memory only.
    pub(crate) store: Option<PathBuf>,
    /// Messages that wait for one session whose client is away.
    pub(crate) queue_messages_max: usize,
    /// Bytes that wait for one session, its client away or slow.
    pub(crate) queue_bytes_max: usize,
    /// Retained messages.
    pub(crate) retained_max: usize,
    /// Bytes of all retained messages.
    pub(crate) retained_bytes_max: usize,
    /// Sessions; what comes beyond is not kept when its connection ends.
    pub(crate) sessions_max: usize,
    /// Subscriptions of one session.
    pub(crate) subscriptions_max: usize,
    /// Longest time that a session is kept without a connection; `u32::MAX` is for ever.
    pub(crate) session_expiry_max_s: u32,
}

impl Default for BrokerOptions {
    fn default() -> Self {
        Self {
            store: None,
            queue_messages_max: 1000,
            queue_bytes_max: 8 << 20,
            retained_max: 100_000,
            retained_bytes_max: 64 << 20,
            sessions_max: 100_000,
            subscriptions_max: 1000,
            session_expiry_max_s: u32::MAX,
        }
    }
}

/// Whether a topic may be received. Called under the broker's lock: it has to be quick, and must
/// not call the broker.
pub(crate) type MayReceive = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// What a CONNECT says about its session.
#[derive(Clone)]
pub(crate) struct Opening {
    pub(crate) client_id: String,
    /// Another user's session is ended, not resumed. Empty for those without a name.
    pub(crate) user: String,
    pub(crate) version: Version,
    pub(crate) clean_start: bool,
    /// `u32::MAX` is never. Version 3.1.1: 0 with a clean session, else `u32::MAX`.
    pub(crate) session_expiry_s: u32,
    /// The client's Receive Maximum; version 3.1.1: 65,535.
    pub(crate) receive_maximum: u16,
    /// The client's Maximum Packet Size; `u32::MAX` where it has none.
    pub(crate) packet_bytes_max: u32,
    /// The client's Topic Alias Maximum: aliases that we may assign.
    pub(crate) topic_alias_max: u16,
    pub(crate) will: Option<Will>,
    /// Topics that the client may receive; `None` is all.
    pub(crate) may_receive: Option<MayReceive>,
}

/// What to publish if a client goes without saying goodbye.
#[derive(Clone, Debug)]
pub(crate) struct Will {
    pub(crate) publication: Publication,
    pub(crate) delay_s: u32,
}

/// A message to route. Small in itself: the bytes are shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Publication {
    /// A valid topic name.
    pub(crate) topic: Bytes,
    pub(crate) payload: Bytes,
    /// Version 5 properties to pass on: payload format, content type, response topic, correlation
    /// data, user properties. No topic alias, message expiry or subscription identifier.
    pub(crate) properties: Bytes,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    pub(crate) expires_at_ms: Option<u64>,
}

/// One filter of a SUBSCRIBE.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Subscription {
    /// May begin with `$share/{group}/`.
    pub(crate) filter: String,
    /// Highest QoS that the client wants, 0 to 2.
    pub(crate) qos: u8,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    /// 0: send retained messages, 1: only if the subscription is new, 2: never.
    pub(crate) retain_handling: u8,
    /// 1 to 268,435,455.
    pub(crate) identifier: Option<u32>,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// DISCONNECT: the will is forgotten. A version 5 client may change its session's expiry.
    Normal {
        /// The new session expiry, seconds.
        session_expiry_s: Option<u32>,
    },
    /// DISCONNECT with reason 0x04: as said, but the will is published.
    WithWill {
        /// The new session expiry, seconds.
        session_expiry_s: Option<u32>,
    },
    /// Any other end: network, keep-alive, protocol error, shutdown.
    Lost,
    /// A newer connection has the client id.
    TakenOver,
}

/// What time has brought; see `Broker::due`.
#[derive(Debug, Default)]
pub(crate) struct Due {
    /// Wills to publish now, with the client id of their sessions.
    pub(crate) wills: Vec<(String, Publication)>,
    /// Client ids whose sessions have expired.
    pub(crate) expired: Vec<String>,
    /// Client ids and how many messages were dropped for them since this was last told (at most
    /// once a minute for each).
    pub(crate) limited: Vec<(String, u64)>,
    /// When something more is due. An earlier time may come up with any call to the broker, so
    /// ask about once a second.
    pub(crate) next_ms: Option<u64>,
}

/// What a connection and the broker tell each other without a lock on the broker.
#[derive(Debug, Default)]
pub(super) struct Signal {
    pub(super) taken: AtomicBool,
    pub(super) taken_wake: Notify,
    /// A will to publish that a newer connection has found.
    pub(super) will: Mutex<Option<Publication>>,
}

impl Signal {
    pub(super) fn take_over(&self, will: Option<Publication>) {
        *self.will.lock().unwrap_or_else(PoisonError::into_inner) = will;
        self.taken.store(true, Ordering::Release);
        self.taken_wake.notify_waiters();
    }

    pub(super) fn take_will(&self) -> Option<Publication> {
        self.will.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A connection's handle on its session. Once a newer connection has taken the session over,
/// calls with the older handle do nothing.
#[derive(Debug)]
pub(crate) struct Port {
    pub(super) slot: u32,
    /// Of this connection; never used twice.
    pub(super) number: u64,
    /// Of the session.
    pub(super) born: u64,
    pub(super) signal: Arc<Signal>,
    /// Told when there may be something to send: call `Broker::outgoing`.
    pub(crate) wake: Arc<Notify>,
    /// The session expiry that was granted, seconds.
    pub(crate) session_expiry_s: u32,
}

impl Port {
    /// Whether a newer connection has the client id.
    pub(crate) fn is_taken(&self) -> bool {
        self.signal.taken.load(Ordering::Acquire)
    }

    /// Resolves when a newer connection has the client id. Cancel-safe.
    pub(crate) async fn taken(&self) {
        let mut told = std::pin::pin!(self.signal.taken_wake.notified());
        told.as_mut().enable();
        if !self.is_taken() {
            told.await;
        }
    }
}

/// What the broker counts; read it at any time.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Sessions, connected or not.
    pub(crate) sessions: AtomicU64,
    /// Sessions with a connection.
    pub(crate) connected: AtomicU64,
    pub(crate) subscriptions: AtomicU64,
    pub(crate) retained: AtomicU64,
    pub(crate) retained_bytes: AtomicU64,
    /// Messages that wait in sessions, those sent and not acknowledged among them.
    pub(crate) queued_messages: AtomicU64,
    /// What they are reckoned to cost.
    pub(crate) queued_bytes: AtomicU64,
    /// Messages written to clients; repetitions do not count.
    pub(crate) delivered: AtomicU64,
    /// Not queued: the queue of the session was full.
    pub(crate) dropped_full: AtomicU64,
    /// Expired before they could be sent.
    pub(crate) dropped_expired: AtomicU64,
    /// Larger than the client's Maximum Packet Size.
    pub(crate) dropped_too_large: AtomicU64,
    /// QoS 0 for a client that was away, or went away.
    pub(crate) dropped_offline: AtomicU64,
    /// Left in the queue of a session that ended.
    pub(crate) dropped_ended: AtomicU64,
    /// The client may not receive their topics.
    pub(crate) dropped_denied: AtomicU64,
    /// Refused by the client with a reason code.
    pub(crate) dropped_refused: AtomicU64,
    /// Retained messages not kept because the store of retained messages was full.
    pub(crate) retained_refused: AtomicU64,
    /// Sessions not kept beyond their connection because there were too many.
    pub(crate) sessions_refused: AtomicU64,
}
