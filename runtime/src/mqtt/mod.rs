//! MQTT in, two ways behind one contract: [`Endpoint`], to which devices connect directly, and
//! [`Subscriber`], which takes messages from somebody else's broker.
//!
//! Both parse with the same few functions ([`wire`]), collect what one read brought into one batch
//! ([`batcher`]), and acknowledge a batch with one write after the journal has synced it. A packet
//! id is acknowledged only on the connection that it came from, because batch, acknowledgements
//! and socket belong to one task; an acknowledgement cannot outlive its connection.

mod access;
mod aliases;
mod batcher;
mod broker;
mod buffer;
mod connect;
mod connection;
mod endpoint;
#[cfg(test)]
mod fuzz;
mod housekeeping;
pub mod limits;
mod listeners;
mod notices;
mod packets;
mod properties;
mod route;
pub mod security;
mod subscriber;
#[cfg(test)]
mod testing;
mod users;
mod wire;

pub use crate::net::tls::{ClientCertificates, ServerTlsConfig};
pub use endpoint::{Endpoint, EndpointConfig};
pub use listeners::{TlsListener, WebSocketListener};
pub use subscriber::{Subscriber, SubscriberConfig};
