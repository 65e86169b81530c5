//! The broker core: subscriptions, retained messages and sessions, as a state machine.
//!
//! It has no clock and does no I/O: times come in as `now_ms`, packets to send go out as bytes,
//! and changes that must survive go to the [`store`], which has a thread of its own. All state is
//! behind one lock that is never held while anything waits. A subscriber that is slow or gone
//! costs at most its queue's bound and holds nobody back.

mod changes;
mod connect;
mod delivery;
mod encode;
mod filter;
mod interest;
mod message;
mod records;
mod restore;
mod retained;
mod route;
mod session;
mod state;
mod store;
mod subscriptions;
mod types;

use std::borrow::Borrow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::source::SourceError;
use interest::Interest;
use state::State;

pub(crate) use filter::{is_valid_filter, shared_group};
pub(crate) use store::{Ticket, alerts_through};
pub(crate) use types::{
    BrokerOptions, Counters, Due, Leave, MayReceive, Opening, Port, Publication, Subscription, Will,
};

/// See the module.
pub(crate) struct Broker {
    state: Mutex<State>,
    counters: Arc<Counters>,
    interest: Arc<Interest>,
}

impl Broker {
    /// Opens the store and restores what it holds; sessions that have expired are dropped.
    ///
    /// # Errors
    /// The store cannot be opened or is damaged.
    pub(crate) fn open(options: BrokerOptions, now_ms: u64) -> Result<Arc<Self>, SourceError> {
        let counters = Arc::new(Counters::default());
        let state = State::open(options, Arc::clone(&counters), now_ms)?;
        let interest = state.interest();
        Ok(Arc::new(Self { state: Mutex::new(state), counters, interest }))
    }

    /// Opens or resumes a session, and takes the client id over from an older connection. Returns
    /// whether a session was present. Unacknowledged packets go out with the next `outgoing`.
    pub(crate) fn connect(&self, opening: Opening, now_ms: u64) -> (Port, bool) {
        self.lock().connect(opening, now_ms)
    }

    /// Subscribes and queues retained messages; the codes of the SUBACK. Filters that the client
    /// may not have are not to be passed in here.
    pub(crate) fn subscribe(&self, port: &Port, filters: &[Subscription], now_ms: u64) -> Vec<u8> {
        self.lock().subscribe(port, filters, now_ms)
    }

    /// The filters of a session, groups included.
    pub(crate) fn subscriptions(&self, port: &Port) -> Vec<String> {
        self.lock().subscriptions(port)
    }

    /// Unsubscribes; the codes of a version 5 UNSUBACK.
    pub(crate) fn unsubscribe(&self, port: &Port, filters: &[&str]) -> Vec<u8> {
        self.lock().unsubscribe(port, filters)
    }

    /// Routes publications that are durable in the journal. `from` is the publisher's client id.
    /// The ticket resolves when all that must survive of them is on disk.
    pub(crate) fn publish(
        &self,
        from: &str,
        publications: Vec<Publication>,
        now_ms: u64,
    ) -> Ticket {
        self.lock().publish(from, publications, now_ms)
    }

    /// Publishes all alerts of an epoch of the journal, unless those of this one or a later one
    /// were. That they were is in the store together with what they have left behind there: a
    /// crash leaves both or neither, and what comes again after it is all of an epoch.
    pub(crate) fn publish_alerts(&self, epoch: u64, publications: Vec<Publication>, now_ms: u64) {
        self.lock().publish_alerts(epoch, publications, now_ms);
    }

    /// The newest epoch whose alerts were published.
    pub(crate) fn alerts_through(&self) -> u64 {
        self.lock().alerts.0
    }

    /// Whether all alerts that were published are on disk.
    pub(crate) fn has_written_alerts(&self) -> bool {
        let state = self.lock();
        state.committed() >= state.alerts.1
    }

    /// What is retained on topics that match a valid filter, as it was published.
    pub(crate) fn retained(&self, filter: &str, now_ms: u64) -> Vec<Publication> {
        self.lock().retained_on(filter, now_ms)
    }

    /// Whether anybody might subscribe to this topic; if not, only a retained message needs
    /// `publish`. Takes no lock.
    pub(crate) fn may_match(&self, topic: &[u8]) -> bool {
        self.interest.may_match(topic)
    }

    /// A ticket for all changes so far: await it before answers that promise them (SUBACK, PUBREC
    /// and PUBCOMP of a persistent session).
    pub(crate) fn ticket(&self) -> Ticket {
        self.lock().ticket()
    }

    /// Appends PUBLISH and PUBREL packets that may go out now: at most `bytes_max` bytes, but
    /// one packet in any case. If more could go, `port.wake` is told again.
    pub(crate) fn outgoing(&self, port: &Port, out: &mut Vec<u8>, bytes_max: usize, now_ms: u64) {
        self.lock().outgoing(port, out, bytes_max, now_ms);
    }

    /// A PUBACK came; whether it answers a PUBLISH of ours.
    pub(crate) fn puback(&self, port: &Port, packet_id: u16) -> bool {
        self.lock().puback(port, packet_id)
    }

    /// A PUBREC came, `failed` with a reason code of 0x80 or above. `outgoing` sends the PUBREL.
    /// False if the packet id is unknown: version 5 then wants a PUBREL with reason 0x92.
    pub(crate) fn pubrec(&self, port: &Port, packet_id: u16, failed: bool) -> bool {
        self.lock().pubrec(port, packet_id, failed)
    }

    /// A PUBCOMP came; whether it answers a PUBREL of ours.
    pub(crate) fn pubcomp(&self, port: &Port, packet_id: u16) -> bool {
        self.lock().pubcomp(port, packet_id)
    }

    /// Whether a PUBLISH with QoS 2 is a repetition.
    pub(crate) fn knows_qos2(&self, port: &Port, packet_id: u16) -> bool {
        self.lock().knows_qos2(port, packet_id)
    }

    /// A message with QoS 2 is durable in the journal; false if it was so before. Not to be
    /// called sooner: a crash in between would swallow its repetition. After the `ticket` for
    /// this, a crash does not make the message new again; send PUBREC then.
    pub(crate) fn receive_qos2(&self, port: &Port, packet_id: u16) -> bool {
        self.lock().receive_qos2(port, packet_id)
    }

    /// A PUBREL came; whether its packet id was known.
    pub(crate) fn release_qos2(&self, port: &Port, packet_id: u16) -> bool {
        self.lock().release_qos2(port, packet_id)
    }

    /// The connection is over. Returns the will if it is to be published at once.
    pub(crate) fn disconnect(
        &self,
        port: impl Borrow<Port>,
        how: Leave,
        now_ms: u64,
    ) -> Option<Publication> {
        self.lock().disconnect(port.borrow(), how, now_ms)
    }

    /// What time has brought: delayed wills, expired sessions.
    pub(crate) fn due(&self, now_ms: u64) -> Due {
        self.lock().due(now_ms)
    }

    /// Why the store has stopped writing, if it has. Nothing is durable from then on.
    pub(crate) fn store_error(&self) -> Option<String> {
        self.lock().store_error()
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds to a counter.
fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// Takes from a counter.
fn sub(counter: &AtomicU64, n: u64) {
    counter.fetch_sub(n, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;
