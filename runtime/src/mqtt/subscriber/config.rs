//! What a subscriber is told, and what of it cannot work.

use std::fmt;
use std::path::PathBuf;

use tidegate_operators::decode::topics_match;
use tidegate_operators::topic::TopicTemplate;

use crate::mqtt::wire::Version;
use crate::source::SourceError;

/// Most connections of one subscriber: more than the cores of a large machine.
const CONNECTIONS_MAX: u16 = 64;

/// What happens to retained messages, which a broker sends once more on each new subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetainedPolicy {
    /// None is journaled.
    Drop,
    /// One is journaled unless it is the last that is known of its topic.
    #[default]
    State,
    /// All are journaled.
    Process,
}

/// Settings of a [`super::Subscriber`].
#[derive(Clone)]
pub struct SubscriberConfig {
    /// `mqtt://host[:1883]`, `mqtts://host[:8883]` (TLS), or `ws://` and `wss://` with a path.
    pub url: String,
    /// Topic filters to subscribe to, without `$share`.
    pub filters: Vec<String>,
    /// Further ones, for what is retained and has to be complete: never shared, subscribed to
    /// before the others, and every retained message is taken.
    pub entries: Vec<String>,
    /// Highest quality of service to ask for: 0 to 2.
    pub qos: u8,
    /// The name of the session on the broker: stable over restarts, used by nobody else. With
    /// several connections `-1`, `-2`, ... are added.
    pub client_id: String,
    /// MQTT 5; or else 3.1.1.
    pub version5: bool,
    /// User name, if the broker wants one.
    pub user: Option<String>,
    /// Password, if the broker wants one.
    pub password: Option<String>,
    /// PEM file of the certificate authorities to trust instead of those of the system.
    pub ca_file: Option<PathBuf>,
    /// PEM file of our own certificate (and its chain), if the broker wants one.
    pub cert_file: Option<PathBuf>,
    /// PEM file of its key.
    pub key_file: Option<PathBuf>,
    /// MQTT 5: how long the broker keeps the session while we are away, seconds.
    pub session_expiry_s: u32,
    /// Number of connections; more than one needs `share`.
    pub connections: u16,
    /// Name of the group of a shared subscription: each message goes to one of its connections.
    pub share: Option<String>,
    /// What happens to retained messages.
    pub retained: RetainedPolicy,
    /// Folder for what must be known after a restart; without it a session that was lost while we
    /// were down is not noticed.
    pub state: Option<PathBuf>,
}

impl Default for SubscriberConfig {
    fn default() -> Self {
        Self {
            url: "mqtt://localhost:1883".to_owned(),
            filters: Vec::new(),
            entries: Vec::new(),
            qos: 1,
            client_id: "tidegate".to_owned(),
            version5: true,
            user: None,
            password: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            session_expiry_s: 7 * 24 * 3600,
            connections: 1,
            share: None,
            retained: RetainedPolicy::default(),
            state: None,
        }
    }
}

impl fmt::Debug for SubscriberConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `check` refuses credentials in the URL, but this may be printed before.
        let url = self.url.rsplit_once('@').map_or(self.url.as_str(), |(_, host)| host);
        f.debug_struct("SubscriberConfig")
            .field("url", &url)
            .field("filters", &self.filters)
            .field("entries", &self.entries)
            .field("qos", &self.qos)
            .field("client_id", &self.client_id)
            .field("version5", &self.version5)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("ca_file", &self.ca_file)
            .field("cert_file", &self.cert_file)
            .field("session_expiry_s", &self.session_expiry_s)
            .field("connections", &self.connections)
            .field("share", &self.share)
            .field("retained", &self.retained)
            .finish_non_exhaustive()
    }
}

impl SubscriberConfig {
    pub(crate) fn version(&self) -> Version {
        if self.version5 { Version::V5 } else { Version::V3 }
    }

    /// The text for `system.sessions`.
    pub(super) fn protocol(&self) -> &'static str {
        if self.version5 { "5" } else { "3.1.1" }
    }

    /// The client id of connection `number`, which counts from 0.
    pub(super) fn session_name(&self, number: u16) -> String {
        match self.connections {
            1 => self.client_id.clone(),
            _ => format!("{}-{}", self.client_id, number + 1),
        }
    }

    /// The filters as connection `number` sends them.
    pub(super) fn wire_filters(&self, number: u16) -> Vec<String> {
        let put = |filter: &String| match &self.share {
            Some(group) => format!("$share/{group}/{filter}"),
            None => filter.clone(),
        };
        // A shared subscription gets no retained messages, and several would get each of them.
        let entries = self.entries.iter().filter(|_| number == 0).cloned();
        let mut filters = Vec::with_capacity(self.filters.len());
        for filter in entries.chain(self.filters.iter().map(put)) {
            if !filters.contains(&filter) {
                filters.push(filter);
            }
        }
        filters
    }

    /// What happens to a retained message of this topic.
    pub(super) fn policy_of(&self, topic: &[u8]) -> RetainedPolicy {
        let is_entry =
            |filter: &String| TopicTemplate::parse(filter).is_ok_and(|t| topics_match(&[t], topic));
        match self.entries.iter().any(is_entry) {
            true => RetainedPolicy::Process,
            false => self.retained,
        }
    }

    pub(super) fn check(&self) -> Result<(), SourceError> {
        let bad = |text: String| Err(SourceError::Config(text));
        if self.qos > 2 {
            return bad("`qos` must be 0, 1 or 2".to_owned());
        }
        if self.client_id.is_empty() {
            return bad("`client_id` must not be empty: it names the session to resume".to_owned());
        }
        if self.filters.is_empty() {
            return bad("`topics` must name at least one topic".to_owned());
        }
        for filter in self.filters.iter().chain(&self.entries) {
            if !rumqttc_v4::mqttbytes::valid_filter(filter) || filter.contains('\0') {
                return bad(format!("`{filter}` is not a topic filter"));
            }
        }
        if !(1..=CONNECTIONS_MAX).contains(&self.connections) {
            return bad(format!("`connections` must be from 1 to {CONNECTIONS_MAX}"));
        }
        if self.connections > 1 && self.share.is_none() {
            let text = "`connections` above 1 need `share`: else each gets every message";
            return bad(text.to_owned());
        }
        if self.share.as_ref().is_some_and(|g| g.is_empty() || g.contains(['/', '+', '#', '\0'])) {
            return bad("`share` is the name of a group, without `/`, `+` and `#`".to_owned());
        }
        if self.password.is_some() && self.user.is_none() && !self.version5 {
            return bad("MQTT 3.1.1 has no password without a `user`".to_owned());
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return bad("`cert_file` and `key_file` go together".to_owned());
        }
        Ok(())
    }
}
