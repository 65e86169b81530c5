//! `[source] type = "endpoint"` in the table of keys.

use super::super::kinds::{Component, Key, Kind};
use super::{TOPICS_DOC, TOPICS_EXAMPLE};

/// Most connections that one endpoint can be told to hold: one process has no more descriptors.
const CONNECTIONS_MAX: i64 = 1_000_000;

/// Most messages that one device can be told to have waiting.
const QUEUE_MAX: i64 = 1_000_000;

pub(super) static ENDPOINT: Component = Component {
    id: "source.endpoint",
    heading: "[source]",
    tag: Some("endpoint"),
    doc: "Tidegate itself is the MQTT endpoint that devices connect to (3.1.1 and 5, QoS 0, 1 and 2). \
          Pipelines with the same `listen` share it.",
    keys: &[
        Key::new("listen", Kind::Address, "Address to listen on.", "\"127.0.0.1:1883\"")
            .default("127.0.0.1:1883"),
        Key::new("topics", Kind::Topics, TOPICS_DOC, TOPICS_EXAMPLE).required(),
        Key::new(
            "users",
            Kind::Secrets,
            "User names with their passwords. If there are any, every CONNECT needs one of them.",
            "{ \"gateway-1\" = \"${env:GATEWAY_PASSWORD}\" }",
        ),
        Key::new(
            "packet_max",
            Kind::Size,
            "Longest MQTT packet; a longer one ends its connection.",
            "\"256KiB\"",
        )
        .default("256KiB"),
        Key::new(
            "connections_max",
            Kind::Int(1, CONNECTIONS_MAX),
            "Most connections at a time.",
            "20000",
        )
        .default("20000"),
        Key::new(
            "connect_timeout",
            Kind::Duration,
            "Time from the connection to a complete CONNECT.",
            "\"10s\"",
        )
        .default("10s"),
        Key::new(
            "session_expiry_max",
            Kind::Duration,
            "How long at most a session with its subscriptions and waiting messages is kept while \
             its device is away.",
            "\"7d\"",
        )
        .default("7d"),
        Key::new(
            "keep_alive_max",
            Kind::Duration,
            "Longest keep-alive of MQTT 5 devices; one that asks for more is told this one. A lost \
             device is noticed after one and a half times its keep-alive. `\"0s\"` is no bound.",
            "\"60s\"",
        )
        .default("60s"),
        Key::new(
            "queue_max",
            Kind::Int(1, QUEUE_MAX),
            "Messages that wait for one device; more are dropped for it and counted.",
            "1000",
        )
        .default("1000"),
        Key::new(
            "retained",
            Kind::Bool,
            "Keeps the last retained message of each topic for those who subscribe later.",
            "true",
        )
        .default("true"),
        Key::new("subscribe", Kind::Bool, "Lets clients subscribe.", "true").default("true"),
        Key::new(
            "insecure_listen",
            Kind::Bool,
            "Allows an address that other machines can reach without `users`.",
            "false",
        )
        .default("false"),
    ],
};
