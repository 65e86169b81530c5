//! `[source]`: endpoints that several pipelines share are one source, everything else is its own.

mod access;
mod endpoint;
mod file;
mod http;
mod mqtt;

use std::collections::BTreeMap;

use tidegate_operators::topic::TopicTemplate;

use crate::config::problem::{At, Reporter};
use crate::config::references::Resolver;
use crate::config::section::Section;
use crate::plan::{EndpointSpec, HttpSpec, MqttSpec, SourceKind, SourceSpec};
use crate::resolve::registry;

pub(super) use self::file::{delimiter, file_format};

/// Keys of an endpoint that are the same in all pipelines that write them.
const ENDPOINT_KEYS: [&str; 18] = [
    "alerts",
    "tls",
    "websocket",
    "users_file",
    "jwt",
    "certificate_user",
    "connections_per_address",
    "connections_per_user",
    "rate_max",
    "packet_max",
    "connections_max",
    "connect_timeout",
    "session_expiry_max",
    "keep_alive_max",
    "queue_max",
    "retained",
    "subscribe",
    "insecure_listen",
];

/// The sources of a plan as they are found.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    list: Vec<SourceSpec>,
    /// Of each source: the keys that some file wrote, and where.
    written: Vec<BTreeMap<String, At>>,
}

/// The topic templates of a pipeline's source, those that are valid.
pub(crate) fn templates(file: &Section<'_>) -> Vec<(TopicTemplate, At)> {
    let topics: Vec<(TopicTemplate, At)> = written(file)
        .into_iter()
        .filter_map(|(text, at)| Some((TopicTemplate::parse(text).ok()?, at)))
        .collect();
    let Some(source) = file.section("source") else { return topics };
    if topics.is_empty() && matches!(source.component.tag, Some("file" | "http")) {
        let all = TopicTemplate::parse("#").expect("a valid template");
        return vec![(all, source.at)];
    }
    topics
}

/// The topics as they are written, also of a source of unknown type.
fn written<'t>(file: &Section<'t>) -> Vec<(&'t str, At)> {
    if let Some(source) = file.section("source") {
        return source.texts("topics").unwrap_or_default();
    }
    let table = file.entry("source").and_then(|entry| entry.node.table());
    let topics = table.and_then(|table| table.get("topics")).map(|entry| entry.node.list());
    topics.unwrap_or_default().iter().filter_map(|node| Some((node.text()?, node.at))).collect()
}

/// Whether it is not known which topics a pipeline reads: what says it was reported.
pub(crate) fn is_unknown(file: &Section<'_>) -> bool {
    let needs_topics = file.section("source").is_none_or(|source| {
        source.component.key("topics").is_some_and(|key| key.required)
            && source.entry("topics").is_none_or(|topics| topics.node.list().is_empty())
    });
    needs_topics && written(file).is_empty()
}

/// Topics that are no valid templates; they were reported.
pub(crate) fn unreadable<'t>(file: &Section<'t>) -> impl Iterator<Item = &'t str> {
    let topics = written(file).into_iter().map(|(text, _)| text);
    topics.filter(|text| TopicTemplate::parse(text).is_err())
}

/// The levels that those name.
pub(crate) fn unreadable_captures(file: &Section<'_>) -> Vec<String> {
    let name = |level: &str| -> String {
        level.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    unreadable(file)
        .flat_map(|text| text.split('{').skip(1).map(name).collect::<Vec<_>>())
        .collect()
}

impl Sources {
    /// Adds the source of a file, or finds the one that it shares; its number.
    pub(crate) fn add(
        &mut self,
        file: &Section<'_>,
        resolve: Resolver<'_>,
        report: &mut Reporter<'_>,
    ) -> Option<u16> {
        let source = file.section("source")?;
        let topics = templates(file);
        if source.entry("topics").is_some_and(|e| e.node.list().is_empty()) {
            let hint = "`[\"#\"]` takes all messages".to_owned();
            report.error(source.at("topics"), "there is no topic in the list", hint);
        }
        let mut filters: Vec<String> = topics.iter().map(|(t, _)| t.filter()).collect();
        let entries = registry::filters(file);
        let spec = match source.component.tag? {
            "endpoint" => {
                filters.extend(entries);
                endpoint::endpoint(&source, filters, resolve, report)?
            }
            "http" => http::http(file, &source, &topics, resolve, report)?,
            "mqtt" => mqtt::mqtt(file, &source, (filters, entries), resolve, report)?,
            _ => file::file(&source, &topics, resolve, report)?,
        };
        let place = match &spec.kind {
            SourceKind::Endpoint(EndpointSpec { listen: wanted, .. }) => self
                .list
                .iter()
                .position(|s| matches!(&s.kind, SourceKind::Endpoint(e) if e.listen == *wanted)),
            SourceKind::Mqtt(MqttSpec { url, client_id, .. }) => {
                self.session_is_free(url, client_id, &source, report);
                None
            }
            SourceKind::Http(http) => {
                self.listener_agrees(http, &source, report);
                None
            }
            SourceKind::File(_) => None,
        };
        let index = match place {
            Some(index) => {
                self.merge(index, spec, &source, report);
                index
            }
            None => {
                self.list.push(spec);
                self.written.push(BTreeMap::new());
                self.list.len() - 1
            }
        };
        for key in ENDPOINT_KEYS {
            if let Some(entry) = source.knows(key).then(|| source.entry(key)).flatten() {
                self.written[index].insert(key.to_owned(), entry.node.at);
            }
        }
        u16::try_from(index).ok()
    }

    /// All sources.
    pub(crate) fn finish(self) -> Vec<SourceSpec> {
        self.list
    }

    /// One session name at one broker is one connection: two would throw each other out.
    fn session_is_free(
        &self,
        url: &str,
        client_id: &str,
        source: &Section<'_>,
        report: &mut Reporter<'_>,
    ) {
        let taken = self.list.iter().any(
            |s| matches!(&s.kind, SourceKind::Mqtt(m) if m.url == url && m.client_id == client_id),
        );
        if taken {
            let message = format!("another pipeline is `{client_id}` at the same broker");
            report.error(source.at("client_id"), message, "choose another client_id".to_owned());
        }
    }

    /// What is one for a whole HTTP listener has to be the same in all of its pipelines.
    fn listener_agrees(&self, http: &HttpSpec, source: &Section<'_>, report: &mut Reporter<'_>) {
        let others = self.list.iter().filter_map(|s| match &s.kind {
            SourceKind::Http(other) if other.listen == http.listen => Some(other),
            _ => None,
        });
        for other in others {
            for (key, same) in [
                ("connections_max", other.connections_max == http.connections_max),
                ("in_flight_max", other.in_flight_bytes_max == http.in_flight_bytes_max),
            ] {
                if !same {
                    let message = format!(
                        "`{key}` differs from pipeline `{}` of this listener",
                        other.pipeline
                    );
                    report.error(source.at(key), message, "write the same in both".to_owned());
                    return;
                }
            }
        }
    }

    /// Joins an endpoint with one of the same address: filters and users add up, and what only one
    /// file says goes for all.
    fn merge(
        &mut self,
        index: usize,
        spec: SourceSpec,
        source: &Section<'_>,
        report: &mut Reporter<'_>,
    ) {
        let written = &self.written[index];
        let mut conflict = |key: &str, same: bool| -> bool {
            let here = source.entry(key).is_some();
            if let (Some(first), true, false) = (written.get(key), here, same) {
                let (file, line) = report.place(*first);
                let place = format!("{}:{line}", file.display());
                let message = format!("`{key}` differs from another pipeline of this endpoint");
                report.error(source.at(key), message, format!("the other one is at {place}"));
            }
            here
        };
        let SourceKind::Endpoint(one) = &mut self.list[index].kind else { return };
        let SourceKind::Endpoint(more) = spec.kind else { return };
        macro_rules! join {
            ($($key:literal $field:ident),* $(,)?) => {
                $(if conflict($key, one.$field == more.$field) {
                    one.$field = more.$field;
                })*
            };
        }
        join!(
            "packet_max" packet_bytes_max,
            "connections_max" connections_max,
            "insecure_listen" insecure_listen,
            "tls" tls,
            "websocket" websocket,
            "users_file" users_file,
            "jwt" jwt,
            "certificate_user" certificate_user,
            "connections_per_address" connections_per_address,
            "connections_per_user" connections_per_user,
            "rate_max" rate_max,
            "connect_timeout" connect_timeout_us,
            "session_expiry_max" session_expiry_max_s,
            "keep_alive_max" keep_alive_max_s,
            "queue_max" queue_max,
            "alerts" alerts,
            "retained" retained,
            "subscribe" subscribe,
        );
        for rule in more.acl {
            if !one.acl.contains(&rule) {
                one.acl.push(rule);
            }
        }
        unite(&mut one.deliver, more.deliver);
        unite(&mut one.filters, more.filters);
        let users = &mut one.users;
        for (name, password) in more.users {
            match users.iter().find(|(known, _)| *known == name) {
                Some((_, known)) if *known != password => {
                    let message = format!("user `{name}` has another password in another pipeline");
                    report.error(source.at("users"), message, None);
                }
                Some(_) => {}
                None => users.push((name, password)),
            }
        }
        users.sort_by(|a, b| a.0.cmp(&b.0));
    }
}

/// Adds what is not there yet, in order.
fn unite(filters: &mut Vec<String>, more: Vec<String>) {
    filters.extend(more);
    filters.sort();
    filters.dedup();
}
