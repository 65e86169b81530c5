//! The keys of an endpoint: what becomes of them, and which mistakes are told.
#![allow(clippy::unwrap_used)]

use crate::Plan;
use crate::config::problem::{Problem, Severity};
use crate::plan::{
    AclSpec, CertificateName, ClientCert, EndpointSpec, JwtSpec, SourceKind, TlsSpec, WebSocketSpec,
};

fn text(name: &str, source: &str) -> String {
    format!(
        "name = \"{name}\"\n[reading]\ndevice = \"{{device}}\"\ntime = \"ts\"\n\
         fields = {{ v = \"float64\" }}\n\
         [[table]]\nfrom = \"readings\"\n\
         [source]\ntype = \"endpoint\"\ntopics = [\"{name}/{{device}}\"]\n{source}"
    )
}

fn load(sources: &[&str]) -> Result<Plan, Vec<Problem>> {
    let named = ["a", "b"].iter().zip(sources);
    let files: Vec<_> =
        named.map(|(name, source)| (format!("{name}.toml").into(), text(name, source))).collect();
    crate::load(&files, &|_, name| Ok(format!("value of {name}")))
}

fn spec(sources: &[&str]) -> EndpointSpec {
    let plan = load(sources).unwrap_or_else(|problems| panic!("{problems:?}"));
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    match &plan.sources[0].kind {
        SourceKind::Endpoint(spec) => spec.clone(),
        other => panic!("{other:?}"),
    }
}

const FULL: &str = r##"
listen = "127.0.0.1:1883"
users = { gw = "${env:GW}" }
users_file = "users.txt"
certificate_user = "san"
connections_per_address = 5
connections_per_user = 6
rate_max = 7
[source.tls]
listen = "0.0.0.0:8883"
cert = "c.pem"
key = "k.pem"
client_ca = "ca.pem"
crl = ["one.pem", "two.pem"]
client_cert = "optional"
[source.websocket]
listen = "[::]:443"
path = "/ws"
tls = true
origins = ["https://plant.example"]
[source.jwt]
key_file = "jwt.pem"
algorithms = ["ES256"]
audience = ["plant"]
issuer = ["us"]
user_claim = "device"
[[source.acl]]
user = "dev-*"
client = "%u"
publish = ["plant/%u/#"]
subscribe = ["cmd/%u/+"]
deny_publish = ["plant/%u/secret"]
deny_subscribe = ["test/nosubscribe"]
[[source.acl]]
user = "ops"
subscribe = ["#"]
"##;

fn own(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

#[test]
fn every_key_arrives() {
    let spec = spec(&[FULL]);
    let tls = TlsSpec {
        listen: Some("0.0.0.0:8883".to_owned()),
        cert: "c.pem".into(),
        key: "k.pem".into(),
        client_ca: Some("ca.pem".into()),
        crl: vec!["one.pem".into(), "two.pem".into()],
        client_cert: ClientCert::Optional,
    };
    assert_eq!(spec.tls, Some(tls));
    let websocket = WebSocketSpec {
        listen: "[::]:443".to_owned(),
        path: "/ws".to_owned(),
        tls: true,
        origins: own(&["https://plant.example"]),
    };
    assert_eq!(spec.websocket, Some(websocket));
    let jwt = JwtSpec {
        secret: None,
        key_file: Some("jwt.pem".into()),
        algorithms: own(&["ES256"]),
        audience: own(&["plant"]),
        issuer: own(&["us"]),
        user_claim: "device".to_owned(),
    };
    assert_eq!(spec.jwt, Some(jwt));
    let first = AclSpec {
        user: "dev-*".to_owned(),
        client: "%u".to_owned(),
        publish: own(&["plant/%u/#"]),
        subscribe: own(&["cmd/%u/+"]),
        deny_publish: own(&["plant/%u/secret"]),
        deny_subscribe: own(&["test/nosubscribe"]),
    };
    assert_eq!(spec.acl[0], first);
    assert_eq!((spec.acl[1].client.as_str(), spec.acl.len()), ("*", 2));
    assert_eq!(spec.users[0].1.expose(), "value of GW");
    assert_eq!(spec.users_file, Some("users.txt".into()));
    assert_eq!(spec.certificate_user, Some(CertificateName::Alternative));
    let limits = (spec.connections_per_address, spec.connections_per_user, spec.rate_max);
    assert_eq!(limits, (Some(5), Some(6), Some(7)));
}

#[test]
fn by_default_there_is_one_door_and_no_rule() {
    let spec = spec(&[""]);
    assert_eq!((spec.tls, spec.websocket, spec.jwt, spec.users_file), (None, None, None, None));
    assert!(spec.acl.is_empty() && spec.certificate_user.is_none());
    let limits = (spec.connections_per_address, spec.connections_per_user, spec.rate_max);
    assert_eq!(limits, (None, None, None));
}

/// Messages, errors before warnings.
fn told(sources: &[&str]) -> Vec<(Severity, String)> {
    let problems = match load(sources) {
        Ok(plan) => plan.warnings,
        Err(problems) => problems,
    };
    problems.into_iter().map(|p| (p.severity, p.message)).collect()
}

const CERTIFICATES: &str =
    "cert = \"c\"\nkey = \"k\"\nclient_ca = \"ca\"\nclient_cert = \"required\"\n";

#[test]
fn doors_that_others_reach_are_judged_each_by_itself() {
    let far = "0.0.0.0:1";
    let users = "users = { gw = \"${env:GW}\" }\n";
    let tls = |more: &str| format!("[source.tls]\nlisten = \"{far}\"\n{more}");
    let plain_files = "cert = \"c\"\nkey = \"k\"\n";
    let websocket = |more: &str| format!("[source.websocket]\nlisten = \"{far}\"\n{more}");
    let anybody = format!("anybody who reaches `{far}` could send readings");
    let open = format!("passwords for `{far}` cross the network unencrypted");
    for (what, source, wanted) in [
        ("plain", format!("listen = \"{far}\""), Some(&anybody)),
        ("plain, users", format!("listen = \"{far}\"\n{users}"), Some(&open)),
        ("plain, consent", format!("listen = \"{far}\"\ninsecure_listen = true"), None),
        ("TLS", tls(plain_files), Some(&anybody)),
        ("TLS, users", format!("{users}{}", tls(plain_files)), None),
        ("TLS, users_file", format!("users_file = \"u\"\n{}", tls(plain_files)), None),
        ("TLS, certificates", tls(CERTIFICATES), None),
        ("ws", websocket(""), Some(&anybody)),
        ("ws, users", format!("{users}{}", websocket("")), Some(&open)),
        (
            "wss, users",
            format!("{users}{}[source.tls]\n{plain_files}", websocket("tls = true\n")),
            None,
        ),
        (
            "ws, certificates",
            format!("{}[source.tls]\n{CERTIFICATES}", websocket("")),
            Some(&anybody),
        ),
    ] {
        let told = told(&[&source]);
        let messages: Vec<&String> = told.iter().map(|(_, message)| message).collect();
        assert_eq!(messages, wanted.into_iter().collect::<Vec<_>>(), "{what}");
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let source = r##"
        certificate_user = "cn"
        acl = [{ publish = ["a+", "b/#/c"], subscribe = ["$share/g/a"], deny_subscribe = [""] }]
        tls = { cert = "c", key = "k", client_ca = "ca", crl = ["r"] }
        websocket = { path = "mqtt", listen = "here" }
        jwt = { secret = "${env:S}", key_file = "k", user_claim = "" }
    "##;
    let mut messages: Vec<String> = told(&[source]).into_iter().map(|(_, m)| m).collect();
    messages.sort();
    for wanted in [
        "`$share/g/a` is a subscription",
        "`` is no topic filter",
        "`a+` is no topic filter",
        "`b/#/c` is no topic filter",
        "`here` is no address",
        "`secret` and `key_file` exclude each other",
        "clients are not asked for a certificate",
        "a list of revoked certificates, but none is asked for",
        "the claim has no name",
    ] {
        assert!(messages.iter().any(|m| m == wanted), "{wanted}: {messages:#?}");
    }
    let more = r#"
        certificate_user = "cn"
        tls = { cert = "c", key = "k", client_cert = "required" }
        jwt = {}
    "#;
    let messages: Vec<String> = told(&[more]).into_iter().map(|(_, m)| m).collect();
    assert_eq!(messages.len(), 2, "{messages:?}");
    let alone = told(&["certificate_user = \"cn\"\nwebsocket = { tls = true, path = \"x\" }"]);
    let messages: Vec<&str> = alone.iter().map(|(_, m)| m.as_str()).collect();
    for wanted in ["there is no certificate", "no client shows a certificate", "`x` is no path"] {
        assert!(messages.contains(&wanted), "{wanted}: {messages:?}");
    }
}

#[test]
fn pipelines_of_one_endpoint_add_up_and_must_not_differ() {
    let tls = "[source.tls]\ncert = \"c\"\nkey = \"k\"\n";
    let rule = "[[source.acl]]\npublish = [\"x\"]\n";
    let both = spec(&[&format!("rate_max = 7\n{tls}{rule}"), &format!("{rule}{rule}")]);
    assert!(both.tls.is_some());
    // The same rule twice is one rule.
    assert_eq!((both.rate_max, both.acl.len()), (Some(7), 1));
    let both = spec(&["", &format!("rate_max = 7\n{tls}{rule}")]);
    assert!(both.tls.is_some());
    assert_eq!((both.rate_max, both.acl.len()), (Some(7), 1));
    let other = tls.replace("\"k\"", "\"l\"");
    let told = told(&[tls, &format!("rate_max = 8\n{other}")]);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].1.contains("`tls` differs"), "{told:?}");
}
