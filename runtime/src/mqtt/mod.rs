//! MQTT in, two ways behind one contract: [`Endpoint`], to which devices connect directly, and
//! [`Subscriber`], which takes messages from somebody else's broker.
//!
//! Both parse with the same few functions ([`wire`]), collect what one read brought into one batch
//! ([`batcher`]), and acknowledge a batch with one write after the journal has synced it. A packet
//! id is acknowledged only on the connection that it came from, because batch, acknowledgements
//! and socket belong to one task; an acknowledgement cannot outlive its connection.
//!
//! # Where the endpoint deviates from the standard, on purpose
//! - Subscribers get a message when it is durable, not before: nobody is shown what a crash could
//!   take back. On one connection a SUBSCRIBE waits for the publications before it.
//! - 3.1.1 clients that publish at QoS 1 or 2 where they may not are disconnected (3.3.5-2 leaves
//!   the choice): an acknowledgement would promise that the message is kept.
//! - A filter that is refused has SUBACK code 0x80 in version 5 too: nobody learns which topics
//!   exist, and interoperability suites expect it.
//! - Clients may not publish below `$SYS/` and `$share/`.
//! - Sessions end after a time of ours, and their queues are bounded; both are told as events.
//! - When the endpoint itself stops, no wills are published: the devices are back in a moment.
//! - No extended authentication, no response information, no reason strings; payloads that say
//!   they are UTF-8 are passed on unchecked.
//! - A client whose maximum packet size cannot hold our CONNACK is refused (0x95).
//! - The bounds of [`limits`] hold for all that is valid otherwise.
//! - 3.1.1 clients may pad the remaining length; version 5 forbids it (1.5.5-1).

mod access;
mod alerts;
mod aliases;
mod batcher;
mod broker;
pub(crate) mod buffer;
mod connect;
mod connection;
mod endpoint;
#[cfg(test)]
mod fuzz;
mod housekeeping;
mod kept;
pub mod limits;
mod listeners;
mod notices;
mod packets;
mod properties;
mod route;
pub mod security;
#[cfg(test)]
pub(crate) mod simulated;
pub(crate) mod subscriber;
#[cfg(test)]
mod testing;
mod unreadable;
mod users;
pub(crate) mod wire;

pub use crate::net::tls::{ClientCertificates, ServerTlsConfig};
pub use alerts::AlertTopics;
pub(crate) use broker::alerts_through;
pub use endpoint::{Endpoint, EndpointConfig};
pub(crate) use kept::KeptTopics;
pub use listeners::{TlsListener, WebSocketListener};
pub use subscriber::{RetainedPolicy, Subscriber, SubscriberConfig};
