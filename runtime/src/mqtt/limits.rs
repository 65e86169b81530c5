//! The bounds of MQTT intake, each with its reason.

use std::time::Duration;

use tidegate_operators::outage::LOST_KNOWN_AFTER_US;

/// Time from the TCP connection to a complete CONNECT. Slow links manage in a second or two; more
/// only helps those who occupy connections.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A CONNECT may carry a client id, credentials and a will, but comes from someone unknown yet.
pub const CONNECT_BYTES_MAX: usize = 64 * 1024;

/// How long one write may wait for a peer that does not read.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// After our last packet on a connection that we close: how long to go on reading (and throwing
/// away) while nothing comes, so that the peer sees the reason instead of a connection reset.
pub const LINGER: Duration = Duration::from_millis(500);

/// The same for a peer that goes on sending: it has our last packet still to come, behind others.
pub const LINGER_MAX: Duration = Duration::from_secs(10);

/// How long to wait for what a device had sent on a connection that a newer one of it has replaced.
/// What was sent before is in the socket, or nearly.
pub const TAKEN_READ_TIMEOUT: Duration = Duration::from_millis(20);

/// After the order to stop: how long connections may wait for their offers to become durable.
/// What is not durable by then is not acknowledged, and its sender sends it again.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Read buffer of a connection that says little: thousands of idle devices cost a few megabytes.
pub const READ_BYTES_MIN: usize = 2 * 1024;

/// Read buffer of a busy connection: hundreds of packets for one system call.
pub const READ_BYTES_MAX: usize = 64 * 1024;

/// Bytes that a connection collects while its previous batch is being synced; then it stops
/// reading. At 5 ms for a sync this allows 50 MB/s on one connection.
pub const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Bytes that all connections of one endpoint may hold in batches. Beyond it a connection reads
/// only when it has no batch under way.
pub const HELD_BYTES_MAX: usize = 128 * 1024 * 1024;

/// MQTT 5 "Receive Maximum" that we announce: unacknowledged publishes per connection. Enough for
/// one connection to send a million a second at 5 ms for a sync.
pub const RECEIVE_MAXIMUM: u16 = 8192;

/// Longest topic, bytes. Real ones are below 200.
pub const TOPIC_BYTES_MAX: usize = 1024;

/// Most levels of a topic: bounds the work of matching templates.
pub const TOPIC_LEVELS_MAX: usize = 64;

/// Most bytes of properties in one packet: they are journaled with the message.
pub const PROPERTIES_BYTES_MAX: usize = 16 * 1024;

/// Most user properties in one packet: each becomes an entry of a row.
pub const USER_PROPERTIES_MAX: usize = 64;

/// Topic aliases that a client may set. Each costs us its topic, so this times
/// [`TOPIC_BYTES_MAX`] bounds what one connection can make us keep.
pub const TOPIC_ALIASES_MAX: u16 = 32;

/// Most filters in one SUBSCRIBE or UNSUBSCRIBE.
pub const FILTERS_MAX: usize = 1000;

/// Packets that wait to be written to a client; beyond it nothing more is read from it. What is
/// delivered to it is taken from its queue only as far as this goes.
pub const OUT_BYTES_MAX: usize = 64 * 1024;

/// Connections beyond `connections_max` that are answered why they are refused; more are closed
/// without a word.
pub const REFUSALS_MAX: usize = 64;

/// Time to CONNECT for a connection that will be refused anyway.
pub const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Session events per second that strangers can cause (refused connections, denied topics); more
/// are counted into one event.
pub const NOTICES_PER_SECOND: u32 = 10;

/// How often delayed wills and expired sessions are looked for.
pub const HOUSEKEEPING: Duration = Duration::from_millis(200);

/// Longest client id, bytes; it is stored with every message.
pub const CLIENT_ID_BYTES_MAX: usize = 256;

/// Largest packet taken from a broker. Brokers limit at 1 to 2 MB by default; a smaller limit here
/// would make one large message a poison that reconnects for ever.
pub const BROKER_PACKET_BYTES_MAX: usize = 16 * 1024 * 1024;

/// MQTT 5 "Receive Maximum" that the subscriber announces to its broker: all packet ids. What is
/// under way is bounded by [`BATCH_BYTES_MAX`], since a full batch stops the reading.
pub const BROKER_RECEIVE_MAXIMUM: u16 = u16::MAX;

/// Filters in one SUBSCRIBE. Some brokers in the cloud take no more.
pub const SUBSCRIBE_FILTERS_MAX: usize = 8;

/// Topics whose last retained message is remembered, so that it is not counted again after
/// subscribing anew: 24 bytes each.
pub const RETAINED_TOPICS_MAX: usize = 100_000;

/// How long a broker may take to answer PINGREQ, if the keep-alive is not shorter.
pub const PONG_TIMEOUT: Duration = Duration::from_secs(10);

/// Time from one attempt to connect to a broker to the next, at least.
pub const CONNECT_SPACING: Duration = Duration::from_millis(500);

/// How often the time of the last contact with a broker is written to disk: a gap may seem to
/// begin that much earlier than it did.
pub const CONTACT_SAVE_EVERY: Duration = Duration::from_secs(5);

/// A CONNACK may carry texts for people, but no more.
pub const CONNACK_BYTES_MAX: usize = 64 * 1024;

/// Longest WebSocket message taken from a broker, which may hold several packets. What is larger
/// cannot be passed over as on a plain connection: the library collects a message as a whole.
pub const BROKER_FRAME_BYTES_MAX: usize = 2 * BROKER_PACKET_BYTES_MAX;

/// Time for the TCP and TLS handshakes and the answer to CONNECT.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Time in which a broker has to answer SUBSCRIBE.
pub const SUBACK_TIMEOUT: Duration = Duration::from_secs(20);

/// Keep-alive that the subscriber announces to its broker.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);

// What says of devices that they are silent waits as long as a broken connection may be unknown.
const _: () = assert!(
    KEEP_ALIVE.as_micros() / 2 + PONG_TIMEOUT.as_micros() < LOST_KNOWN_AFTER_US as u128,
    "a lost broker is noticed in time"
);

/// First pause before connecting again.
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// Longest pause before connecting again.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);

const _: () = assert!(READ_BYTES_MIN < READ_BYTES_MAX && READ_BYTES_MAX <= BATCH_BYTES_MAX);
const _: () = assert!(BATCH_BYTES_MAX < HELD_BYTES_MAX);
