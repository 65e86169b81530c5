//! `[source] type = "http"` in the table of keys.

use super::super::kinds::{Component, Key, Kind};
use super::{TOPICS_DOC, TOPICS_EXAMPLE};

/// Most connections that one listener can be told to hold: one process has no more descriptors.
const CONNECTIONS_MAX: i64 = 1_000_000;

pub(super) static HTTP: Component = Component {
    id: "source.http",
    heading: "[source]",
    tag: Some("http"),
    doc: "Takes `POST /ingest/PIPELINE` with JSON, or with `format = \"influx\"` what clients of \
          InfluxDB write (`/write?db=PIPELINE`, `/api/v2/write?bucket=PIPELINE`). The answer comes \
          when everything is on disk. Pipelines with the same `listen` share it; users and tokens \
          are those of the pipeline.",
    keys: &[
        Key::new("listen", Kind::Address, "Address to listen on.", "\"127.0.0.1:8080\"")
            .default("127.0.0.1:8080"),
        Key::new("topics", Kind::Topics, TOPICS_DOC, TOPICS_EXAMPLE),
        Key::new(
            "topic",
            Kind::Text,
            "The topic of requests that name none with `?topic=` or the header `Tidegate-Topic`; \
             if absent, the pipeline's name.",
            "\"plant/oslo/gateway\"",
        ),
        Key::new(
            "users",
            Kind::Secrets,
            "User names with their passwords (Basic; `u` and `p` of InfluxDB's version 1).",
            "{ gateway = \"${env:GATEWAY_PASSWORD}\" }",
        ),
        Key::new(
            "tokens",
            Kind::Secrets,
            "Names with a token each (`Authorization: Bearer` or `Token`). If there is any user \
             or token, every request needs one.",
            "{ gateway = \"${env:GATEWAY_TOKEN}\" }",
        ),
        Key::new("body_max", Kind::Size, "Longest body as it is sent.", "\"8MiB\"").default("8MiB"),
        Key::new(
            "decompressed_max",
            Kind::Size,
            "Longest body after gzip or zstd; beyond `body_max` also at most 16 times as long as \
             it was sent.",
            "\"32MiB\"",
        )
        .default("32MiB"),
        Key::new(
            "in_flight_max",
            Kind::Size,
            "Memory for requests that are not on disk yet, of all pipelines of this listener; \
             beyond it clients are told to come back (429).",
            "\"128MiB\"",
        )
        .default("128MiB"),
        Key::new(
            "connections_max",
            Kind::Int(1, CONNECTIONS_MAX),
            "Most connections at a time, of all pipelines of this listener.",
            "1000",
        )
        .default("1000"),
        Key::new(
            "insecure_listen",
            Kind::Bool,
            "Allows an address that other machines can reach without `users` or `tokens`.",
            "false",
        )
        .default("false"),
    ],
};
