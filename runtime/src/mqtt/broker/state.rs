//! The broker's state.

use std::sync::Arc;

use super::store::Ticket;
use super::types::{
    BrokerOptions, Counters, Due, Leave, Opening, Port, Publication, Signal, Subscription,
};
use crate::source::SourceError;

pub(super) struct State;

impl State {
    pub(super) fn open(
        _: BrokerOptions,
        _: Arc<Counters>,
        _now_ms: u64,
    ) -> Result<Self, SourceError> {
        Ok(Self)
    }
    pub(super) fn connect(&mut self, opening: Opening, _now_ms: u64) -> (Port, bool) {
        let session_expiry_s = opening.session_expiry_s;
        let (signal, wake) = (Arc::new(Signal::default()), Arc::default());
        (Port { slot: 0, number: 0, signal, wake, session_expiry_s }, false)
    }
    pub(super) fn subscribe(&mut self, _: &Port, filters: &[Subscription], _: u64) -> Vec<u8> {
        filters.iter().map(|f| f.qos).collect()
    }
    pub(super) fn unsubscribe(&mut self, _: &Port, filters: &[&str]) -> Vec<u8> {
        vec![0; filters.len()]
    }
    pub(super) fn publish(&mut self, _: &str, _: Vec<Publication>, _: u64) -> Ticket {
        Ticket::ready()
    }
    pub(super) fn ticket(&mut self) -> Ticket {
        Ticket::ready()
    }
    pub(super) fn outgoing(&mut self, _: &Port, _: &mut Vec<u8>, _: usize, _: u64) {}
    pub(super) fn puback(&mut self, _: &Port, _: u16) -> bool {
        true
    }
    pub(super) fn pubrec(&mut self, _: &Port, _: u16, _: bool) -> bool {
        true
    }
    pub(super) fn pubcomp(&mut self, _: &Port, _: u16) -> bool {
        true
    }
    pub(super) fn receive_qos2(&mut self, _: &Port, _: u16) -> bool {
        true
    }
    pub(super) fn release_qos2(&mut self, _: &Port, _: u16) -> bool {
        true
    }
    pub(super) fn disconnect(&mut self, _: &Port, _: Leave, _: u64) -> Option<Publication> {
        None
    }
    pub(super) fn due(&mut self, _: u64) -> Due {
        Due::default()
    }
    pub(super) fn store_error(&self) -> Option<String> {
        None
    }
}
