//! `[source] type = "endpoint"` in the table of keys.

use super::super::kinds::{Component, Key, Kind};
use super::{TOPICS_DOC, TOPICS_EXAMPLE};

/// Most connections that one endpoint can be told to hold: one process has no more descriptors.
const CONNECTIONS_MAX: i64 = 1_000_000;

pub(super) static ENDPOINT: Component = Component {
    id: "source.endpoint",
    heading: "[source]",
    tag: Some("endpoint"),
    doc: "Tidegate itself is the MQTT endpoint that devices connect to (3.1.1 and 5, QoS 0 and 1). \
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
            "insecure_listen",
            Kind::Bool,
            "Allows an address that other machines can reach without `users`.",
            "false",
        )
        .default("false"),
    ],
};
