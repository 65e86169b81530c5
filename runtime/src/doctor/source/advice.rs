//! Which lines to change, by kind of broker.

/// What kind of broker it is, as far as it tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Mosquitto,
    Emqx,
    Unknown,
}

impl Kind {
    /// It keeps no session.
    pub(super) fn session(self) -> Vec<&'static str> {
        match self {
            Self::Mosquitto => vec![
                "mosquitto.conf: persistent_client_expiration 14d   # longer than any outage",
                "in the pipeline: session_expiry = \"7d\"",
            ],
            Self::Emqx => vec!["emqx.conf: mqtt.session_expiry_interval = 7d"],
            Self::Unknown => vec!["allow persistent sessions for this client"],
        }
    }

    /// Its queue for a session that is away is too short.
    pub(super) fn queue(self) -> Vec<&'static str> {
        match self {
            Self::Mosquitto => vec![
                "mosquitto.conf: max_queued_messages 0   # the default 1000 drops the rest",
                "mosquitto.conf: max_queued_bytes 0      # or what the disk can hold",
            ],
            Self::Emqx => vec!["emqx.conf: mqtt.max_mqueue_len = infinity"],
            Self::Unknown => vec![
                "raise the limit of queued messages per session (mosquitto: max_queued_messages \
                 0, EMQX: mqtt.max_mqueue_len, HiveMQ: max-queue-size, RabbitMQ: max-length)",
            ],
        }
    }

    /// It lets few messages be under way.
    pub(super) fn window(self) -> Vec<&'static str> {
        match self {
            Self::Mosquitto => vec![
                "mosquitto.conf: max_inflight_messages 0   # the default 20 makes every 20 \
                 messages wait for a round trip",
            ],
            Self::Emqx => vec!["emqx.conf: mqtt.max_inflight = 65535"],
            Self::Unknown => vec!["raise the limit of unacknowledged messages per session"],
        }
    }

    /// What makes queues survive a crash of the broker.
    pub(super) fn restart(self) -> Vec<&'static str> {
        match self {
            Self::Mosquitto => vec![
                "mosquitto.conf: persistence true",
                "mosquitto.conf: autosave_interval 1        # the default is 1800 s",
                "mosquitto.conf: autosave_on_changes true   # saves at every change: safest, and \
                 slow; without it every second",
                "mosquitto.conf: no persistent_client_expiration, or longer than any outage",
            ],
            Self::Emqx => vec!["emqx.conf: durable_sessions.enable = true"],
            Self::Unknown => vec!["look that queued messages and sessions are written to disk"],
        }
    }
}

/// Why there is no connection.
pub(super) fn reach(text: &str) -> Vec<&'static str> {
    let has = |word: &str| text.to_lowercase().contains(word);
    if has("certificate") || has("unknownissuer") {
        return vec![
            "in the pipeline: ca_file = \"...\" names who signed the broker's certificate",
        ];
    }
    if has("password") || has("not authorized") {
        return vec!["in the pipeline: user, password; in mosquitto.conf: password_file, acl_file"];
    }
    if has("refused (os error") {
        return vec![
            "nothing listens there: is the broker running, and not only on localhost? \
             (mosquitto.conf: listener 1883 0.0.0.0)",
        ];
    }
    Vec::new()
}
