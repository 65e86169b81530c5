//! `[source] type = "endpoint"`.

use std::net::IpAddr;
use std::path::PathBuf;

use super::access::{Access, texts};
use tidegate_operators::topic::TopicTemplate;

use crate::config::problem::{At, Reporter};
use crate::config::references::{Resolver, known_or};
use crate::config::section::Section;
use crate::plan::{ClientCert, EndpointSpec, SourceKind, SourceSpec, TlsSpec, WebSocketSpec};

pub(super) fn endpoint(
    source: &Section<'_>,
    filters: Vec<String>,
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Option<SourceSpec> {
    let listen = address(source, "listen", 1883, resolve, report);
    let access = Access::of(source, resolve, report);
    let tls = source.section("tls").map(|section| tls(&section, resolve, report));
    let websocket =
        source.section("websocket").map(|section| websocket(&section, source, resolve, report));
    let (Some(listen), Some(access)) = (listen, access) else { return None };
    let (tls, websocket) = (transpose(tls)?, transpose(websocket)?);
    let insecure_listen = source.bool("insecure_listen");
    if !insecure_listen {
        let certified = tls.as_ref().is_some_and(|t| t.client_cert == ClientCert::Required);
        let mut check = |at: At, listen: &str, encrypted: bool| {
            exposed(at, listen, encrypted, encrypted && certified, &access, report);
        };
        check(source.at("listen"), &listen, false);
        if let (Some(section), Some(spec)) = (source.section("tls"), &tls)
            && let Some(listen) = &spec.listen
        {
            check(section.at("listen"), listen, true);
        }
        if let (Some(section), Some(spec)) = (source.section("websocket"), &websocket) {
            check(section.at("listen"), &spec.listen, spec.tls);
        }
    }
    if let Some(entry) = source.entry("certificate_user")
        && tls.as_ref().is_none_or(|tls| tls.client_cert == ClientCert::None)
    {
        let hint = "add `tls = { .., client_ca = \"ca.pem\", client_cert = \"required\" }`";
        report.error(entry.key_at, "no client shows a certificate", hint.to_owned());
    }
    let number = |key: &str| source.int(key).and_then(|n| usize::try_from(n).ok());
    Some(SourceSpec {
        name: format!("endpoint {listen}"),
        kind: SourceKind::Endpoint(EndpointSpec {
            listen,
            filters,
            users: access.users,
            packet_bytes_max: source.size_bytes("packet_max")?,
            connections_max: number("connections_max")?,
            connect_timeout_us: source.duration_us("connect_timeout")?,
            session_expiry_max_s: u32::try_from(seconds(source, "session_expiry_max")?)
                .unwrap_or(u32::MAX),
            keep_alive_max_s: u16::try_from(seconds(source, "keep_alive_max")?).unwrap_or(u16::MAX),
            queue_max: number("queue_max")?,
            deliver: delivered(source, report),
            alerts: alerts(source, report),
            retained: source.bool("retained"),
            subscribe: source.bool("subscribe"),
            insecure_listen,
            tls,
            websocket,
            users_file: access.users_file,
            jwt: access.jwt,
            certificate_user: access.certificate_user,
            acl: access.acl,
            connections_per_address: number("connections_per_address"),
            connections_per_user: number("connections_per_user"),
            rate_max: source.int("rate_max").and_then(|n| u32::try_from(n).ok()),
        }),
    })
}

/// Filters that are no readings.
fn delivered(source: &Section<'_>, report: &mut Reporter<'_>) -> Vec<String> {
    let mut filters = Vec::new();
    for (text, at) in source.texts("deliver").unwrap_or_default() {
        match TopicTemplate::parse(text) {
            Ok(template) if template.names().is_empty() => filters.push(text.to_owned()),
            _ => {
                let hint = "as in MQTT, with `+` and `#`: \"cmd/#\"".to_owned();
                report.error(at, format!("`{text}` is not a topic filter"), hint);
            }
        }
    }
    filters
}

/// The topic above all alerts.
fn alerts(source: &Section<'_>, report: &mut Reporter<'_>) -> Option<String> {
    let prefix = source.text("alerts")?;
    if prefix.is_empty() || prefix.contains(['+', '#', '\0']) || prefix.starts_with('$') {
        let hint = "a topic without wildcards: \"tidegate/alerts\"".to_owned();
        report.error(source.at("alerts"), format!("`{prefix}` is no topic to publish to"), hint);
    }
    Some(prefix.trim_end_matches('/').to_owned())
}

/// `None` if it is there but cannot be used.
fn transpose<T>(part: Option<Option<T>>) -> Option<Option<T>> {
    match part {
        Some(None) => None,
        Some(part) => Some(part),
        None => Some(None),
    }
}

/// What an address that other machines reach needs.
fn exposed(
    at: At,
    listen: &str,
    encrypted: bool,
    certified: bool,
    access: &Access,
    report: &mut Reporter<'_>,
) {
    let host = host_of(listen).unwrap_or_default();
    if is_local(host) {
        return;
    }
    if !certified && !access.asks() {
        let message = format!("anybody who reaches `{listen}` could send readings");
        let hint = "give `users`, `users_file`, `jwt` or certificates (`tls.client_cert = \
                    \"required\"`), or write `insecure_listen = true`";
        report.error(at, message, hint.to_owned());
    } else if !encrypted && access.has_secrets() {
        let message = format!("passwords for `{listen}` cross the network unencrypted");
        let hint = "listen there with `tls`, or put a TLS proxy in front; `insecure_listen = \
                    true` silences this";
        report.warning(at, message, hint.to_owned());
    }
}

fn tls(section: &Section<'_>, resolve: Resolver<'_>, report: &mut Reporter<'_>) -> Option<TlsSpec> {
    let listen = match section.entry("listen") {
        Some(_) => Some(address(section, "listen", 8883, resolve, report)?),
        None => None,
    };
    let mut path = |key| section.resolved(key, resolve, report).map(PathBuf::from);
    let (cert, key, client_ca) = (path("cert"), path("key"), path("client_ca"));
    let client_cert = match section.text("client_cert") {
        Some("required") => ClientCert::Required,
        Some("optional") => ClientCert::Optional,
        _ => ClientCert::None,
    };
    match (section.entry("client_ca"), client_cert) {
        (None, ClientCert::Optional | ClientCert::Required) => {
            let hint = "add `client_ca`, the certificate of whoever signs those of the clients";
            let at = section.at("client_cert");
            report.error(at, "certificates of clients cannot be checked", hint.to_owned());
        }
        (Some(entry), ClientCert::None) => {
            let hint = "add `client_cert = \"required\"` or `\"optional\"`".to_owned();
            report.error(entry.key_at, "clients are not asked for a certificate", hint);
        }
        _ => {}
    }
    if let (Some(entry), ClientCert::None) = (section.entry("crl"), client_cert) {
        let hint = "add `client_ca` and `client_cert`".to_owned();
        report.error(entry.key_at, "a list of revoked certificates, but none is asked for", hint);
    }
    let crl = texts(section, "crl").into_iter().map(PathBuf::from).collect();
    Some(TlsSpec { listen, cert: cert?, key: key?, client_ca, crl, client_cert })
}

fn websocket(
    section: &Section<'_>,
    source: &Section<'_>,
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Option<WebSocketSpec> {
    let listen = address(section, "listen", 9001, resolve, report)?;
    let path = section.text("path")?.to_owned();
    if !path.starts_with('/') || path.contains(['?', '#', ' ']) {
        let hint = "a path begins with `/`: \"/mqtt\"".to_owned();
        report.error(section.at("path"), format!("`{path}` is no path"), hint);
    }
    let tls = section.bool("tls");
    if let (true, None, Some(entry)) = (tls, source.entry("tls"), section.entry("tls")) {
        let hint = "add `[source.tls]` with `cert` and `key`".to_owned();
        report.error(entry.key_at, "there is no certificate", hint);
    }
    Some(WebSocketSpec { listen, path, tls, origins: texts(section, "origins") })
}

/// An address to listen on.
fn address(
    section: &Section<'_>,
    key: &str,
    port: u16,
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Option<String> {
    let listen = section.resolved(key, resolve, report)?;
    let listen = known_or(listen, "localhost", |host| format!("{host}:{port}"));
    if host_of(&listen).is_none() {
        let hint = "an address has a host and a port: \"127.0.0.1:1883\", \"[::]:1883\"".to_owned();
        report.error(section.at(key), format!("`{listen}` is no address"), hint);
        return None;
    }
    Some(listen)
}

/// A duration, whole seconds.
fn seconds(source: &Section<'_>, key: &str) -> Option<i64> {
    Some(source.duration_us(key)? / 1_000_000)
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

#[cfg(test)]
mod tests;
