//! `[source]`: endpoints that several pipelines share are one source, everything else is its own.

use std::collections::BTreeMap;
use std::net::IpAddr;

use tidegate_operators::topic::TopicTemplate;

use crate::config::problem::{At, Reporter};
use crate::config::references::Resolver;
use crate::config::secret::Secret;
use crate::config::section::{Section, expand};
use crate::plan::{SourceKind, SourceSpec};

/// The sources of a plan as they are found.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    list: Vec<SourceSpec>,
    /// Of each source: the keys that some file wrote, and where.
    written: Vec<BTreeMap<String, At>>,
}

/// The topic templates of a pipeline's source, those that are valid.
pub(crate) fn templates(file: &Section<'_>) -> Vec<(TopicTemplate, At)> {
    let Some(source) = file.section("source") else { return Vec::new() };
    let topics: Vec<(TopicTemplate, At)> = source
        .texts("topics")
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(text, at)| Some((TopicTemplate::parse(text).ok()?, at)))
        .collect();
    if topics.is_empty() && source.component.tag == Some("file") {
        let all = TopicTemplate::parse("#").expect("a valid template");
        return vec![(all, source.at)];
    }
    topics
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
        let filters: Vec<String> = topics.iter().map(|(t, _)| t.filter()).collect();
        let spec = match source.component.tag? {
            "endpoint" => endpoint(&source, filters, resolve, report)?,
            "mqtt" => mqtt(file, &source, filters, resolve, report)?,
            _ => from_file(&source, &topics, resolve, report)?,
        };
        let place = match &spec.kind {
            SourceKind::Endpoint { listen: wanted, .. } => self.list.iter().position(
                |s| matches!(&s.kind, SourceKind::Endpoint { listen, .. } if listen == wanted),
            ),
            SourceKind::Mqtt { url, client_id, .. } => {
                self.session_is_free(url, client_id, &source, report);
                None
            }
            SourceKind::File { .. } => None,
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
        for key in ["packet_max", "connections_max", "insecure_listen"] {
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
        let taken = self.list.iter().any(|s| {
            matches!(&s.kind, SourceKind::Mqtt { url: u, client_id: c, .. }
                if u == url && c == client_id)
        });
        if taken {
            let message = format!("another pipeline is `{client_id}` at the same broker");
            report.error(source.at("client_id"), message, "choose another client_id".to_owned());
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
        let SourceKind::Endpoint {
            filters,
            users,
            packet_bytes_max,
            connections_max,
            insecure_listen,
            ..
        } = &mut self.list[index].kind
        else {
            return;
        };
        let SourceKind::Endpoint {
            filters: more_filters,
            users: more_users,
            packet_bytes_max: packet_bytes,
            connections_max: connections,
            insecure_listen: insecure,
            ..
        } = spec.kind
        else {
            return;
        };
        if conflict("packet_max", *packet_bytes_max == packet_bytes) {
            *packet_bytes_max = packet_bytes;
        }
        if conflict("connections_max", *connections_max == connections) {
            *connections_max = connections;
        }
        if conflict("insecure_listen", *insecure_listen == insecure) {
            *insecure_listen = insecure;
        }
        filters.extend(more_filters);
        filters.sort();
        filters.dedup();
        for (name, password) in more_users {
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

fn endpoint(
    source: &Section<'_>,
    filters: Vec<String>,
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Option<SourceSpec> {
    let listen = source.resolved("listen", resolve, report)?;
    let Some(host) = host_of(&listen) else {
        let hint = "an address has a host and a port: \"127.0.0.1:1883\", \"[::]:1883\"".to_owned();
        report.error(source.at("listen"), format!("`{listen}` is no address"), hint);
        return None;
    };
    let mut users: Vec<(String, Secret)> = Vec::new();
    for entry in source.entries("users") {
        let password = expand(&entry.node, resolve, report)?;
        if password.is_empty() {
            report.error(entry.node.at, "this password is empty", None);
        }
        users.push((entry.key.clone(), Secret::new(password)));
    }
    users.sort_by(|a, b| a.0.cmp(&b.0));
    let open = source.bool("insecure_listen");
    let local = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    if !local && !open && users.is_empty() {
        let message = format!("anybody who reaches `{listen}` could send readings");
        let hint = "give `users`, or write `insecure_listen = true`".to_owned();
        report.error(source.at("listen"), message, hint);
    } else if !local && !open {
        let message = format!("passwords for `{listen}` cross the network unencrypted");
        let hint = "put a TLS proxy in front; `insecure_listen = true` silences this".to_owned();
        report.warning(source.at("listen"), message, hint);
    }
    Some(SourceSpec {
        name: format!("endpoint {listen}"),
        kind: SourceKind::Endpoint {
            listen,
            filters,
            users,
            packet_bytes_max: source.size_bytes("packet_max")?,
            connections_max: usize::try_from(source.int("connections_max")?).ok()?,
            insecure_listen: open,
        },
    })
}

/// The host of `host:port`, brackets of IPv6 removed.
fn host_of(listen: &str) -> Option<&str> {
    let (host, port) = listen.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let plain = host.parse::<IpAddr>().is_ok() || !host.contains([':', '[', ']', '/', ' ']);
    (plain && !host.is_empty()).then_some(host)
}

fn mqtt(
    file: &Section<'_>,
    source: &Section<'_>,
    filters: Vec<String>,
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Option<SourceSpec> {
    let url = source.resolved("url", resolve, report)?;
    let parsed = broker_url(&url, source, report);
    let client_id = source.resolved("client_id", resolve, report);
    let client_id =
        client_id.unwrap_or_else(|| format!("tidegate-{}", file.text("name").unwrap_or_default()));
    if client_id.is_empty() {
        let hint = "a session that survives a restart needs a name".to_owned();
        report.error(source.at("client_id"), "the client id is empty", hint);
    }
    let user = source.resolved("user", resolve, report);
    let password = source.resolved("password", resolve, report).map(Secret::new);
    if let (Some(entry), None) = (source.entry("password"), source.entry("user")) {
        report.error(entry.key_at, "a password without a user", "add `user`".to_owned());
    }
    let ca_file = source.resolved("ca_file", resolve, report).map(Into::into);
    if let (Some(entry), false) = (source.entry("ca_file"), url.starts_with("mqtts:")) {
        let hint = "write `mqtts://` in the url".to_owned();
        report.error(entry.key_at, "certificates are for TLS, and this is `mqtt://`", hint);
    }
    let (name, url) = parsed?;
    let session_expiry_s = source.duration_us("session_expiry")? / 1_000_000;
    Some(SourceSpec {
        name,
        kind: SourceKind::Mqtt {
            url,
            filters,
            qos: u8::try_from(source.int("qos")?).ok()?,
            client_id,
            version5: source.text("version") == Some("5"),
            user,
            password,
            ca_file,
            session_expiry_s: u32::try_from(session_expiry_s).unwrap_or(u32::MAX),
        },
    })
}

/// Name and full URL of a broker, port included.
fn broker_url(
    text: &str,
    source: &Section<'_>,
    report: &mut Reporter<'_>,
) -> Option<(String, String)> {
    let at = source.at("url");
    let hint = "a broker is `mqtt://host:1883` or `mqtts://host:8883`".to_owned();
    let parsed = url::Url::parse(text).ok().filter(url::Url::has_host);
    let Some(parsed) = parsed else {
        report.mask(at);
        report.error(at, "this is no URL of a broker", hint);
        return None;
    };
    if parsed.password().is_some() || !parsed.username().is_empty() {
        report.mask(at);
        let hint = "use `user` and `password = \"${env:NAME}\"`".to_owned();
        report.error(at, "a user or password must not be in the URL", hint);
        return None;
    }
    let port = match parsed.scheme() {
        "mqtt" => 1883,
        "mqtts" => 8883,
        other => {
            report.error(at, format!("`{other}` is not a scheme of a broker"), hint);
            return None;
        }
    };
    if !matches!(parsed.path(), "" | "/") || parsed.query().is_some() {
        report.error(at, "the URL of a broker ends with its port", hint);
        return None;
    }
    let host = parsed.host_str().expect("checked above");
    let url = format!("{}://{host}:{}", parsed.scheme(), parsed.port().unwrap_or(port));
    Some((format!("broker {url}"), url))
}

fn from_file(
    source: &Section<'_>,
    topics: &[(TopicTemplate, At)],
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Option<SourceSpec> {
    let path = source.resolved("path", resolve, report)?;
    let topic = source.text("topic").unwrap_or(&path).to_owned();
    let mut captures = Vec::new();
    if !topics.iter().any(|(t, _)| t.matches(&topic, &mut captures)) {
        let message = format!("no topic template matches `{topic}`, so nothing would be read");
        let hint = "change `topic` or `topics`".to_owned();
        report.error(source.at("topics"), message, hint);
    }
    Some(SourceSpec {
        name: format!("file {path}"),
        kind: SourceKind::File { path: path.into(), topic },
    })
}
