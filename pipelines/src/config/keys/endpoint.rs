//! `[source] type = "endpoint"` in the table of keys.

use super::super::kinds::{Component, Key, Kind};
use super::{TOPICS_DOC, TOPICS_EXAMPLE};

/// Most connections that one endpoint can be told to hold: one process has no more descriptors.
const CONNECTIONS_MAX: i64 = 1_000_000;

/// Most messages that one device can be told to have waiting.
const QUEUE_MAX: i64 = 1_000_000;

/// Highest rate that can be asked for: more than a connection can send.
const RATE_MAX: i64 = 10_000_000;

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
        Key::new("tls", Kind::Section(&TLS), "The same over TLS, besides `listen`.", ""),
        Key::new(
            "websocket",
            Kind::Section(&WEBSOCKET),
            "The same over WebSocket, besides `listen`.",
            "",
        ),
        Key::new(
            "users_file",
            Kind::Address,
            "File with a line `NAME:$argon2id$...` per user, as `tidegate password NAME` prints; \
             read again when it changes.",
            "\"users.txt\"",
        ),
        Key::new("jwt", Kind::Section(&JWT), "Tokens (JWT) in place of passwords.", ""),
        Key::new(
            "certificate_user",
            Kind::OneOf(&["cn", "san"]),
            "The name in a client's certificate that is its user: the common name, or the first \
             alternative name.",
            "\"cn\"",
        ),
        Key::new(
            "acl",
            Kind::Sections(&ACL),
            "Who may publish and subscribe to what. Without: everybody everything. With: only what \
             a rule allows; whom no rule fits may not connect.",
            "",
        ),
        Key::new(
            "connections_per_address",
            Kind::Int(1, CONNECTIONS_MAX),
            "Most connections of one address (IPv6: of one /64 network).",
            "100",
        ),
        Key::new(
            "connections_per_user",
            Kind::Int(1, CONNECTIONS_MAX),
            "Most connections of one user.",
            "10",
        ),
        Key::new(
            "rate_max",
            Kind::Int(1, RATE_MAX),
            "Most messages per second of one connection in the long run. One that sends more is \
             read more slowly; nothing is dropped.",
            "1000",
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
            "Allows an address that other machines can reach though nobody is asked who they are, \
             and passwords that cross the network unencrypted.",
            "false",
        )
        .default("false"),
    ],
};

static TLS: Component = Component {
    id: "source.tls",
    heading: "[source.tls]",
    tag: None,
    doc: "MQTT over TLS 1.2 and 1.3. All files are PEM and are read again when they change.",
    keys: &[
        Key::new(
            "listen",
            Kind::Address,
            "Address to listen on; not needed if only WebSockets use TLS.",
            "\"0.0.0.0:8883\"",
        ),
        Key::new(
            "cert",
            Kind::Address,
            "The certificate, and those between it and its root.",
            "\"server.pem\"",
        )
        .required(),
        Key::new("key", Kind::Address, "Its key.", "\"server.key\"").required(),
        Key::new(
            "client_ca",
            Kind::Address,
            "Who signs the certificates of clients.",
            "\"devices-ca.pem\"",
        ),
        Key::new(
            "crl",
            Kind::Texts,
            "Lists of revoked certificates of clients. Each signer needs one.",
            "[\"revoked.pem\"]",
        ),
        Key::new(
            "client_cert",
            Kind::OneOf(&["none", "optional", "required"]),
            "Whether clients show a certificate.",
            "\"required\"",
        )
        .default("none"),
    ],
};

static WEBSOCKET: Component = Component {
    id: "source.websocket",
    heading: "[source.websocket]",
    tag: None,
    doc: "MQTT over WebSocket.",
    keys: &[
        Key::new("listen", Kind::Address, "Address to listen on.", "\"127.0.0.1:9001\"")
            .default("127.0.0.1:9001"),
        Key::new("path", Kind::Text, "Path of the URL.", "\"/mqtt\"").default("/mqtt"),
        Key::new("tls", Kind::Bool, "Over TLS, with the files of `[source.tls]`.", "true")
            .default("false"),
        Key::new(
            "origins",
            Kind::Texts,
            "Web pages that may connect. If absent: all where clients have to show who they are, \
             else none. Programs that are no browsers are not asked.",
            "[\"https://plant.example\"]",
        ),
    ],
};

static JWT: Component = Component {
    id: "source.jwt",
    heading: "[source.jwt]",
    tag: None,
    doc: "A client sends the token as its password; its user name is empty or that of the token. \
          The token needs `exp`, and the connection ends then.",
    keys: &[
        Key::new(
            "secret",
            Kind::Secret,
            "Secret of HS256, HS384 and HS512, 32 bytes or more.",
            "\"${env:JWT_SECRET}\"",
        ),
        Key::new(
            "key_file",
            Kind::Address,
            "Public key of the other algorithms (PEM); read again when it changes.",
            "\"issuer.pem\"",
        ),
        Key::new(
            "algorithms",
            Kind::Texts,
            "Algorithms that are accepted. If absent: HS256, RS256, ES256 or EdDSA, as the key is.",
            "[\"ES256\"]",
        ),
        Key::new(
            "audience",
            Kind::Texts,
            "The token must be for one of these (`aud`).",
            "[\"plant\"]",
        ),
        Key::new(
            "issuer",
            Kind::Texts,
            "The token must be from one of these (`iss`).",
            "[\"https://login.example\"]",
        ),
        Key::new("user_claim", Kind::Text, "Claim that holds the user's name.", "\"sub\"")
            .default("sub"),
    ],
};

static ACL: Component = Component {
    id: "source.acl",
    heading: "[[source.acl]]",
    tag: None,
    doc: "A rule. All rules that fit a client's user and client id add up, and what one of them \
          denies is denied. In all values `%u` is the user and `%c` the client id; a name with \
          `+`, `#` or `/` in it never matches.",
    keys: &[
        Key::new("user", Kind::Text, "Users that it fits; `*` is any text.", "\"gateway-*\"")
            .default("*"),
        Key::new(
            "client",
            Kind::Text,
            "Client ids that it fits; `*` is any text. `%u` binds the client id to the user.",
            "\"%u\"",
        )
        .default("*"),
        Key::new("publish", Kind::Texts, "Topics that may be published to.", "[\"plant/%u/#\"]"),
        Key::new(
            "subscribe",
            Kind::Texts,
            "Topics that may be subscribed to. A subscription is granted only if one of these \
             covers it wholly.",
            "[\"commands/%u/+\"]",
        ),
        Key::new(
            "deny_publish",
            Kind::Texts,
            "Topics that may not be published to, whatever is allowed.",
            "[\"plant/%u/firmware\"]",
        ),
        Key::new(
            "deny_subscribe",
            Kind::Texts,
            "Topics that may not be subscribed to, whatever is allowed.",
            "[\"plant/+/secret\"]",
        ),
    ],
};
