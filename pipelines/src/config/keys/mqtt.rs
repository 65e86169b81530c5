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
            "The broker: `mqtt://host:1883`, or `mqtts://host:8883` for TLS.",
            "\"mqtt://localhost:1883\"",
        )
        .required(),
        Key::new("topics", Kind::Topics, TOPICS_DOC, TOPICS_EXAMPLE).required(),
        Key::new(
            "qos",
            Kind::Int(0, 1),
            "Quality of service of the subscription. With 0 the broker may lose messages.",
            "1",
        )
        .default("1"),
        Key::new("version", Kind::OneOf(&["3.1.1", "5"]), "Version of the protocol.", "\"5\"")
            .default("5"),
        Key::new(
            "client_id",
            Kind::Address,
            "Name of the session at the broker; it must be unique there and stay the same. \
             If absent: `tidegate-` and the pipeline's name.",
            "\"tidegate-cold-chain\"",
        ),
        Key::new("user", Kind::Address, "User name.", "\"tidegate\""),
        Key::new("password", Kind::Secret, "Password.", "\"${env:BROKER_PASSWORD}\""),
        Key::new(
            "ca_file",
            Kind::Address,
            "File with the certificates to trust for `mqtts` (PEM), instead of the system's.",
            "\"ca.pem\"",
        ),
        Key::new(
            "session_expiry",
            Kind::Duration,
            "How long the broker shall keep the session while Tidegate is away (version 5).",
            "\"7d\"",
        )
        .default("7d"),
    ],
};
