//! `[source] type = "mqtt"`.

use tidegate_operators::topic::filters_meet;

use crate::config::problem::Reporter;
use crate::config::references::{Resolver, known_or};
use crate::config::secret::Secret;
use crate::config::section::Section;
use crate::plan::{MqttSpec, Retained, SourceKind, SourceSpec};

pub(super) fn mqtt(
    file: &Section<'_>,
    source: &Section<'_>,
    (mut filters, entries): (Vec<String>, Vec<String>),
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Option<SourceSpec> {
    let url = source.resolved("url", resolve, report)?;
    let url = known_or(url, "unset.invalid", |host| format!("mqtts://{host}:8883"));
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
    let mut file_of = |key: &str| source.resolved(key, resolve, report).map(Into::into);
    let (ca_file, cert_file, key_file) =
        (file_of("ca_file"), file_of("cert_file"), file_of("key_file"));
    certificates(&url, source, report);
    filters.sort();
    filters.dedup();
    overlaps(&filters, source, report);
    let share = share(source, report);
    let (name, url) = parsed?;
    let session_expiry_s = source.duration_us("session_expiry")? / 1_000_000;
    Some(SourceSpec {
        name,
        kind: SourceKind::Mqtt(MqttSpec {
            url,
            filters,
            entries,
            qos: u8::try_from(source.int("qos")?).ok()?,
            client_id,
            version5: source.text("version") == Some("5"),
            user,
            password,
            ca_file,
            cert_file,
            key_file,
            session_expiry_s: u32::try_from(session_expiry_s).unwrap_or(u32::MAX),
            connections: u16::try_from(source.int("connections")?).ok()?,
            share,
            retained: match source.text("retained") {
                Some("drop") => Retained::Drop,
                Some("process") => Retained::Process,
                _ => Retained::State,
            },
        }),
    })
}

/// Certificates are for TLS, and one of our own has two parts.
fn certificates(url: &str, source: &Section<'_>, report: &mut Reporter<'_>) {
    let tls = url.starts_with("mqtts:") || url.starts_with("wss:");
    for key in ["ca_file", "cert_file", "key_file"] {
        if let (Some(entry), false) = (source.entry(key), tls) {
            let hint = "write `mqtts://` (or `wss://`) in the url".to_owned();
            report.error(entry.key_at, "certificates are for TLS, which this url is not", hint);
        }
    }
    for (one, other) in [("cert_file", "key_file"), ("key_file", "cert_file")] {
        if let (Some(entry), None) = (source.entry(one), source.entry(other)) {
            let message = format!("`{one}` without `{other}`");
            report.error(entry.key_at, message, format!("add `{other}`"));
        }
    }
}

/// The group of a shared subscription, which several connections need.
fn share(source: &Section<'_>, report: &mut Reporter<'_>) -> Option<String> {
    let share = source.text("share").map(str::to_owned);
    if let Some(group) = &share
        && (group.is_empty() || group.contains(['/', '+', '#', '\0']))
    {
        let hint = "a group is a word without `/`, `+` and `#`".to_owned();
        report.error(source.at("share"), format!("`{group}` cannot name a group"), hint);
    }
    if share.is_none() && source.int("connections").is_some_and(|n| n > 1) {
        let hint = "add `share = \"tidegate\"`, and the broker deals them out".to_owned();
        let message = "each of these connections would get every message";
        report.error(source.at("connections"), message, hint);
    }
    share
}

/// A broker may send a message once for each subscription that it matches.
fn overlaps(filters: &[String], source: &Section<'_>, report: &mut Reporter<'_>) {
    for (i, one) in filters.iter().enumerate() {
        for other in &filters[i + 1..] {
            if filters_meet(one, other) {
                let message = format!("some topics match both `{one}` and `{other}`");
                let hint = "brokers may send such a message twice: make them disjoint, or give \
                            `reading.dedup`"
                    .to_owned();
                report.warning(source.at("topics"), message, hint);
            }
        }
    }
}

/// Name and full URL of a broker, port included.
fn broker_url(
    text: &str,
    source: &Section<'_>,
    report: &mut Reporter<'_>,
) -> Option<(String, String)> {
    let at = source.at("url");
    let hint =
        "a broker is `mqtt://host:1883`, `mqtts://host:8883` or `wss://host/mqtt`".to_owned();
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
    let (port, socket) = match parsed.scheme() {
        "mqtt" => (1883, false),
        "mqtts" => (8883, false),
        "ws" => (80, true),
        "wss" => (443, true),
        other => {
            report.error(at, format!("`{other}` is not a scheme of a broker"), hint);
            return None;
        }
    };
    let bare = matches!(parsed.path(), "" | "/") && parsed.query().is_none();
    if (!socket && !bare) || parsed.fragment().is_some() {
        report.error(at, "the URL of a broker ends with its port", hint);
        return None;
    }
    let host = parsed.host_str().expect("checked above");
    let broker = format!("{}://{host}:{}", parsed.scheme(), parsed.port().unwrap_or(port));
    let path = if socket { &parsed[url::Position::BeforePath..] } else { "" };
    Some((format!("broker {broker}"), format!("{broker}{path}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Plan;

    const FILE: &str = r#"
        name = "p"
        [source]
        type = "mqtt"
        url = "mqtts://broker"
        topics = ["plant/{site}/{device}", "other/{device}/#"]
        [reading]
        device = "{device}"
        time = "received"
        [reading.fields]
        t = "float64"
    "#;

    /// The plan, or all problems as text.
    fn load(change: (&str, &str)) -> Result<Plan, String> {
        assert!(FILE.contains(change.0));
        let files = [("p.toml".into(), FILE.replace(change.0, change.1))];
        crate::load(&files, &|_, _| Ok("x".to_owned()))
            .map_err(|all| all.iter().map(|p| format!("{p}\n")).collect())
    }

    fn spec(plan: &Plan) -> &MqttSpec {
        match &plan.sources[0].kind {
            SourceKind::Mqtt(spec) => spec,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_and_keys_reach_the_plan() {
        let plan = load(("", "")).expect("it is good");
        let s = spec(&plan);
        assert_eq!((s.connections, s.share.as_deref(), s.retained), (1, None, Retained::State));
        assert_eq!(s.filters, ["other/+/#", "plant/+/+"]);
        let keys = "type = \"mqtt\"\nconnections = 3\nshare = \"g\"\nretained = \"drop\"\nqos = 2\n\
                    ca_file = \"ca\"\ncert_file = \"c\"\nkey_file = \"k\"";
        let plan = load(("type = \"mqtt\"", keys)).expect("it is good");
        let s = spec(&plan);
        assert_eq!((s.connections, s.share.as_deref(), s.qos), (3, Some("g"), 2));
        assert_eq!(s.retained, Retained::Drop);
        assert!(s.ca_file.is_some() && s.cert_file.is_some() && s.key_file.is_some());
    }

    #[test]
    fn what_cannot_work_is_refused_with_a_reason() {
        let source = |keys: &str| load(("type = \"mqtt\"", &format!("type = \"mqtt\"\n{keys}")));
        for (keys, reason) in [
            ("connections = 2", "every message"),
            ("connections = 0", "integer"),
            ("share = \"a/b\"", "group"),
            ("retained = \"maybe\"", "process"),
            ("qos = 3", "integer"),
            ("cert_file = \"c\"", "without `key_file`"),
            ("key_file = \"c\"", "without `cert_file`"),
        ] {
            let problems = source(keys).expect_err(keys);
            assert!(problems.contains(reason), "{keys}: {problems}");
        }
    }

    #[test]
    fn urls_of_brokers() {
        for (url, whole) in [
            ("mqtt://b", "mqtt://b:1883"),
            ("mqtts://b", "mqtts://b:8883"),
            ("ws://b/mqtt", "ws://b:80/mqtt"),
            ("wss://b:9/a?x=1", "wss://b:9/a?x=1"),
        ] {
            let plan = load(("mqtts://broker", url)).expect(url);
            assert_eq!(spec(&plan).url, whole);
        }
        for url in ["mqtt://b/path", "http://b", "wss://b/#x", "b:1883"] {
            assert!(load(("mqtts://broker", url)).is_err(), "{url}");
        }
    }

    #[test]
    fn topics_that_meet_are_warned_of() {
        let warned = |plan: &Plan| -> Vec<String> {
            let all = plan.warnings.iter().map(ToString::to_string);
            all.filter(|w| w.contains("match both")).collect()
        };
        assert_eq!(warned(&load(("", "")).expect("it is good")), Vec::<String>::new());
        let plan = load(("other/{device}/#", "plant/{device}/x")).expect("a warning only");
        let warnings = warned(&plan);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("plant/+/+") && warnings[0].contains("plant/+/x"));
    }
}
