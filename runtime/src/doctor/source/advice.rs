//! Which lines to change: of the pipeline's file, and of the broker's, by its kind.

use super::super::lines::{FileText, change, has, set};

/// What kind of broker it is, as far as it tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Mosquitto,
    Emqx,
    Unknown,
}

impl Kind {
    /// How its file is called.
    fn file(self) -> &'static str {
        match self {
            Self::Mosquitto => "mosquitto.conf",
            Self::Emqx => "emqx.conf",
            Self::Unknown => "its configuration",
        }
    }
}

/// What is known of the files to change.
pub(super) struct Advice {
    pub(super) kind: Kind,
    /// The pipeline's.
    pub(super) pipeline: Option<FileText>,
    /// The broker's, where somebody has named it.
    pub(super) broker: Option<FileText>,
}

/// A line of a broker's file: key, the whole line, why.
type Line = (&'static str, &'static str, &'static str);

impl Advice {
    /// A line of the pipeline's file.
    pub(super) fn pipeline(&self, section: &str, key: &str, new: &str) -> String {
        match &self.pipeline {
            Some(file) => change(Some(file), section, key, new),
            None => format!("in the pipeline, below [{section}]: {new}"),
        }
    }

    /// Lines of the broker's file, but for those that it has already.
    fn broker(&self, lines: &[Line]) -> Vec<String> {
        let place = |(key, new, why): &Line| {
            let line = match &self.broker {
                Some(file) => set(file, key, new)?,
                None => format!("{}: {new}", self.kind.file()),
            };
            Some(if why.is_empty() { line } else { format!("{line}   ({why})") })
        };
        lines.iter().filter_map(place).collect()
    }

    /// For how long mosquitto keeps a session: without the line, for ever.
    fn expiration(&self) -> Vec<String> {
        let key = "persistent_client_expiration";
        if self.broker.as_ref().is_some_and(|file| !has(file, key)) {
            return Vec::new();
        }
        let new = "persistent_client_expiration 14d";
        self.broker(&[(key, new, "or no such line; longer than any outage")])
    }

    /// It keeps no session.
    pub(super) fn session(&self) -> Vec<String> {
        let mut lines = match self.kind {
            Kind::Mosquitto => self.expiration(),
            Kind::Emqx => self.broker(&[(
                "mqtt.session_expiry_interval",
                "mqtt.session_expiry_interval = 7d",
                "",
            )]),
            Kind::Unknown => vec!["allow persistent sessions for this client".to_owned()],
        };
        lines.push(self.pipeline("source", "session_expiry", "session_expiry = \"7d\""));
        lines
    }

    /// Its queue for a session that is away is too short.
    pub(super) fn queue(&self) -> Vec<String> {
        match self.kind {
            Kind::Mosquitto => self.broker(&[
                ("max_queued_messages", "max_queued_messages 0", "the default 1000 drops the rest"),
                ("max_queued_bytes", "max_queued_bytes 0", "or what the disk can hold"),
            ]),
            Kind::Emqx => {
                self.broker(&[("mqtt.max_mqueue_len", "mqtt.max_mqueue_len = infinity", "")])
            }
            Kind::Unknown => vec![
                "raise the limit of queued messages per session (mosquitto: max_queued_messages \
                 0, EMQX: mqtt.max_mqueue_len, HiveMQ: max-queue-size, RabbitMQ: max-length)"
                    .to_owned(),
            ],
        }
    }

    /// It lets few messages be under way.
    pub(super) fn window(&self) -> Vec<String> {
        match self.kind {
            Kind::Mosquitto => self.broker(&[(
                "max_inflight_messages",
                "max_inflight_messages 0",
                "the default 20 makes every 20 messages wait for a round trip",
            )]),
            Kind::Emqx => self.broker(&[("mqtt.max_inflight", "mqtt.max_inflight = 65535", "")]),
            Kind::Unknown => {
                vec!["raise the limit of unacknowledged messages per session".to_owned()]
            }
        }
    }

    /// What makes queues survive a crash of the broker; nothing if its file says so already.
    pub(super) fn restart(&self) -> Vec<String> {
        match self.kind {
            Kind::Mosquitto => {
                let mut lines = self.broker(&[
                    ("persistence", "persistence true", ""),
                    ("autosave_interval", "autosave_interval 1", "the default is 1800 s"),
                    (
                        "autosave_on_changes",
                        "autosave_on_changes true",
                        "saves at every change: safest, and slow; without it every second",
                    ),
                ]);
                lines.extend(self.expiration());
                lines
            }
            Kind::Emqx => {
                self.broker(&[("durable_sessions.enable", "durable_sessions.enable = true", "")])
            }
            Kind::Unknown => {
                vec!["look that queued messages and sessions are written to disk".to_owned()]
            }
        }
    }

    /// Why there is no connection.
    pub(super) fn reach(&self, text: &str) -> Vec<String> {
        let has = |word: &str| text.to_lowercase().contains(word);
        if has("certificate") || has("unknownissuer") {
            let new = "ca_file = \"...\" names who signed the broker's certificate";
            return vec![self.pipeline("source", "ca_file", new)];
        }
        if has("password") || has("not authorized") {
            let conf = self.broker.as_ref().map(|file| file.path.display().to_string());
            let conf = conf.unwrap_or_else(|| "mosquitto.conf".to_owned());
            return vec![
                self.pipeline("source", "user", "user = \"...\", password = \"${env:NAME}\""),
                format!("or in {conf}: password_file, acl_file"),
            ];
        }
        if has("refused (os error") {
            let text = "nothing listens there: is the broker running, and not only on localhost? \
                        (mosquitto.conf: listener 1883 0.0.0.0)";
            return vec![text.to_owned(), self.pipeline("source", "url", "another address")];
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> Option<FileText> {
        Some(FileText { path: path.into(), text: text.to_owned() })
    }

    #[test]
    fn each_line_has_its_place_and_what_is_right_already_is_not_told() {
        let pipeline = "name = \"p\"\n[source]\ntype = \"mqtt\"\nsession_expiry = \"1h\"\n";
        let conf = "listener 1883\nmax_queued_messages 1000\npersistence true\n\
                    autosave_interval 1\nautosave_on_changes true\n";
        let (pipeline, broker) = (file("p.toml", pipeline), file("/etc/m.conf", conf));
        let mut advice = Advice { kind: Kind::Mosquitto, pipeline, broker };
        let wanted = ["p.toml:4: instead of `session_expiry = \"1h\"`: session_expiry = \"7d\""];
        assert_eq!(advice.session(), wanted);
        let wanted = [
            "/etc/m.conf:2: instead of `max_queued_messages 1000`: max_queued_messages 0   (the \
             default 1000 drops the rest)",
            "/etc/m.conf:5: below this line: max_queued_bytes 0   (or what the disk can hold)",
        ];
        assert_eq!(advice.queue(), wanted);
        assert_eq!(advice.restart(), Vec::<String>::new());
        (advice.pipeline, advice.broker) = (None, None);
        let lines = advice.restart();
        assert_eq!((lines.len(), lines[0].as_str()), (4, "mosquitto.conf: persistence true"));
        let lines = advice.session();
        assert_eq!(lines[1], "in the pipeline, below [source]: session_expiry = \"7d\"");
    }
}
