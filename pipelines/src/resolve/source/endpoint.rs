//! `[source] type = "endpoint"`.

use std::net::IpAddr;

use crate::config::problem::Reporter;
use crate::config::references::{Resolver, known_or};
use crate::config::secret::Secret;
use crate::config::section::{Section, expand};
use crate::plan::{EndpointSpec, SourceKind, SourceSpec};

pub(super) fn endpoint(
    source: &Section<'_>,
    filters: Vec<String>,
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Option<SourceSpec> {
    let listen = known_or(source.resolved("listen", resolve, report)?, "localhost:1883");
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
    let local = is_local(host);
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
        kind: SourceKind::Endpoint(EndpointSpec {
            listen,
            filters,
            users,
            packet_bytes_max: source.size_bytes("packet_max")?,
            connections_max: usize::try_from(source.int("connections_max")?).ok()?,
            insecure_listen: open,
        }),
    })
}

/// Whether only this machine reaches an address of this host.
pub(super) fn is_local(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// The host of `host:port`, brackets of IPv6 removed.
pub(super) fn host_of(listen: &str) -> Option<&str> {
    let (host, port) = listen.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let plain = host.parse::<IpAddr>().is_ok() || !host.contains([':', '[', ']', '/', ' ']);
    (plain && !host.is_empty()).then_some(host)
}
