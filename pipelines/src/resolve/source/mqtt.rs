//! `[source] type = "mqtt"`.

use crate::config::problem::Reporter;
use crate::config::references::{Resolver, known_or};
use crate::config::secret::Secret;
use crate::config::section::Section;
use crate::plan::{MqttSpec, SourceKind, SourceSpec};

pub(super) fn mqtt(
    file: &Section<'_>,
    source: &Section<'_>,
    filters: Vec<String>,
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Option<SourceSpec> {
    let url = source.resolved("url", resolve, report)?;
    let url = known_or(url, "mqtts://unset.invalid:8883");
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
        kind: SourceKind::Mqtt(MqttSpec {
            url,
            filters,
            qos: u8::try_from(source.int("qos")?).ok()?,
            client_id,
            version5: source.text("version") == Some("5"),
            user,
            password,
            ca_file,
            session_expiry_s: u32::try_from(session_expiry_s).unwrap_or(u32::MAX),
        }),
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
