//! `[source] type = "mqtt"` in the table of keys.

use super::super::kinds::{Component, Key, Kind};
use super::{TOPICS_DOC, TOPICS_EXAMPLE};

pub(super) static MQTT: Component = Component {
    id: "source.mqtt",
    heading: "[source]",
    tag: Some("mqtt"),
    doc: "Subscribes to an external broker with a persistent session.",
    keys: &[
        Key::new(
            "url",
            Kind::Address,
            "The broker: `mqtt://host:1883`, `mqtts://host:8883` for TLS, or over WebSocket \
             `ws://host:80/mqtt`, `wss://host:443/mqtt`.",
            "\"mqtt://localhost:1883\"",
        )
        .required(),
        Key::new("topics", Kind::Topics, TOPICS_DOC, TOPICS_EXAMPLE).required(),
        Key::new(
            "qos",
            Kind::Int(0, 2),
            "Quality of service of the subscription. With 0 the broker may lose messages; 1 is \
             enough for none lost and none twice, 2 costs the broker one more exchange.",
            "1",
        )
        .default("1"),
        Key::new("version", Kind::OneOf(&["3.1.1", "5"]), "Version of the protocol.", "\"5\"")
            .default("5"),
        Key::new(
            "client_id",
            Kind::Address,
            "Name of the session at the broker; it must be unique there and stay the same. \
             If absent: `tidegate-` and the pipeline's name. With several `connections` it is \
             followed by `-1`, `-2`, ...",
            "\"tidegate-cold-chain\"",
        ),
        Key::new("user", Kind::Address, "User name.", "\"tidegate\""),
        Key::new("password", Kind::Secret, "Password.", "\"${env:BROKER_PASSWORD}\""),
        Key::new(
            "ca_file",
            Kind::Address,
            "File with the certificates to trust for `mqtts` and `wss` (PEM), instead of the \
             system's.",
            "\"ca.pem\"",
        ),
        Key::new(
            "cert_file",
            Kind::Address,
            "File with our own certificate (PEM), if the broker asks for one.",
            "\"tidegate.pem\"",
        ),
        Key::new("key_file", Kind::Address, "File with its key (PEM).", "\"tidegate.key\""),
        Key::new(
            "session_expiry",
            Kind::Duration,
            "How long the broker shall keep the session while Tidegate is away (version 5).",
            "\"7d\"",
        )
        .default("7d"),
        Key::new(
            "share",
            Kind::Text,
            "Name of a group: subscribes to `$share/GROUP/...`, and the broker deals the messages \
             out among all subscribers of the group.",
            "\"tidegate\"",
        ),
        Key::new(
            "connections",
            Kind::Int(1, 64),
            "Number of connections, each a session of its own. More than one needs `share`. \
             Before you lower it, let the broker's queues of the others run empty.",
            "1",
        )
        .default("1"),
        Key::new(
            "retained",
            Kind::OneOf(&["state", "drop", "process"]),
            "What happens to retained messages, which a broker sends again after each new \
             subscription: `state` takes one unless it is the last that is known of its topic, \
             `drop` takes none, `process` takes all.",
            "\"state\"",
        )
        .default("state"),
    ],
};
