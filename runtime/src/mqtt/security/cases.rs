//! Who is let in and what they may do: one case for each way to try. All of them at the gate,
//! which every listener asks; certificates that TLS itself refuses are in its own tests.
#![allow(clippy::unwrap_used)]

use std::fs;

use serde_json::json;

use super::tokens::tests::signed;
use super::*;
use crate::clock::Clock;
use crate::net::tls::CertificateName;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A moment in 2026, microseconds.
const NOW_US: i64 = 1_790_000_000_000_000;

fn own(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

fn certificate(cn: Option<&str>, sans: &[&str]) -> CertificateName {
    CertificateName { cn: cn.map(str::to_owned), sans: own(sans) }
}

fn token(user: &str, seconds: i64) -> String {
    let claims = json!({ "sub": user, "exp": NOW_US / 1_000_000 + seconds });
    signed(&json!({ "alg": "HS256" }), &claims, SECRET)
}

/// Each device has its branch, named by user and client id; `ops` may look at all but secrets.
fn rules() -> Vec<AclRule> {
    vec![
        AclRule {
            user: "dev-*".to_owned(),
            client: "%u".to_owned(),
            publish: own(&["plant/%u/#", "will/%c"]),
            subscribe: own(&["cmd/%u/+", "test/+"]),
            deny_subscribe: own(&["test/nosubscribe"]),
            ..AclRule::default()
        },
        AclRule {
            user: "ops".to_owned(),
            subscribe: own(&["plant/#", "$SYS/load"]),
            deny_subscribe: own(&["plant/+/secret/#"]),
            ..AclRule::default()
        },
    ]
}

fn config() -> SecurityConfig {
    let users = [("dev-1", "one"), ("dev-2", "two"), ("ops", "three"), ("guest", "four")];
    SecurityConfig {
        users: users.map(|(user, password)| (user.to_owned(), password.to_owned())).into(),
        tokens: Some(TokenConfig {
            secret: Some(SECRET.to_owned()),
            user_claim: "sub".to_owned(),
            ..TokenConfig::default()
        }),
        certificate_user: Some(CertificateUser::CommonName),
        acl: rules(),
        ..SecurityConfig::default()
    }
}

fn gate(config: SecurityConfig) -> std::sync::Arc<Gate> {
    Gate::new(config, Clock::manual(NOW_US)).unwrap()
}

/// A claim of an address that never failed before.
fn claim<'a>(client_id: &'a str, user: Option<&'a str>, password: Option<&'a str>) -> Claim<'a> {
    Claim {
        client_id,
        user,
        password: password.map(str::as_bytes),
        certificate: None,
        address: [192, 0, 2, 1].into(),
    }
}

#[derive(Debug, PartialEq)]
enum Outcome {
    In(String),
    Credentials,
    NotAuthorized,
    TooMany,
}

async fn outcome(gate: &Gate, claim: Claim<'_>) -> Outcome {
    match gate.admit(claim).await {
        Ok(identity) => Outcome::In(identity.user().to_owned()),
        Err(Denied::Credentials(_)) => Outcome::Credentials,
        Err(Denied::NotAuthorized(_)) => Outcome::NotAuthorized,
        Err(Denied::TooMany(_)) => Outcome::TooMany,
    }
}

#[tokio::test]
async fn passwords_and_tokens() {
    let (good, old, other) = (token("dev-1", 60), token("dev-1", -60), token("dev-2", 60));
    let forged = good.replace("eyJhbGciOiJIUzI1NiJ9", "eyJhbGciOiJub25lIn0");
    let (ann, nobody) = (Outcome::In("dev-1".to_owned()), Outcome::Credentials);
    for (what, user, password, wanted) in [
        ("right password", Some("dev-1"), Some("one"), &ann),
        ("wrong password", Some("dev-1"), Some("two"), &nobody),
        ("empty password", Some("dev-1"), Some(""), &nobody),
        ("no password", Some("dev-1"), None, &nobody),
        ("unknown user", Some("dev-9"), Some("one"), &nobody),
        ("user with a zero", Some("dev-1\0"), Some("one"), &nobody),
        ("password without user", None, Some("one"), &nobody),
        ("nothing", None, None, &nobody),
        ("token", None, Some(good.as_str()), &ann),
        ("token with its user", Some("dev-1"), Some(&good), &ann),
        ("token with an empty user", Some(""), Some(&good), &ann),
        ("another user's token", Some("dev-1"), Some(&other), &nobody),
        ("expired token", None, Some(&old), &nobody),
        ("unsigned token", None, Some(&forged), &nobody),
    ] {
        let gate = gate(config());
        assert_eq!(outcome(&gate, claim("dev-1", user, password)).await, *wanted, "{what}");
    }
}

#[tokio::test]
async fn certificates() {
    let good = certificate(Some("dev-1"), &["dev-2"]);
    let nameless = certificate(None, &["dev-1"]);
    let odd = certificate(Some("dev-1\n"), &[]);
    let by_san =
        SecurityConfig { certificate_user: Some(CertificateUser::AlternativeName), ..config() };
    let unused = SecurityConfig { certificate_user: None, ..config() };
    let (one, two) = (Outcome::In("dev-1".to_owned()), Outcome::In("dev-2".to_owned()));
    let (nobody, stranger) = (Outcome::Credentials, Outcome::NotAuthorized);
    for (what, config, shown, client, user, password, wanted) in [
        ("common name", config(), Some(&good), "dev-1", None, None, &one),
        ("with its user", config(), Some(&good), "dev-1", Some("dev-1"), None, &one),
        ("with another user", config(), Some(&good), "dev-1", Some("dev-2"), Some("two"), &nobody),
        ("name is not the client id", config(), Some(&good), "dev-2", None, None, &stranger),
        ("alternative name", by_san.clone(), Some(&good), "dev-2", None, None, &two),
        ("no common name", config(), Some(&nameless), "dev-1", None, None, &nobody),
        ("no alternative name", by_san, Some(&odd), "dev-1", None, None, &nobody),
        ("control characters", config(), Some(&odd), "dev-1", None, None, &nobody),
        ("none, but a password", config(), None, "dev-1", Some("dev-1"), Some("one"), &one),
        ("none, and no password", config(), None, "dev-1", None, None, &nobody),
        ("is not asked for", unused, Some(&good), "dev-1", None, None, &nobody),
    ] {
        let claim = Claim { certificate: shown, ..claim(client, user, password) };
        assert_eq!(outcome(&gate(config), claim).await, *wanted, "{what}");
    }
}

#[tokio::test]
async fn client_ids_belong_to_their_user() {
    let bound = gate(config());
    for (client, user, password, wanted) in [
        ("dev-1", "dev-1", "one", Outcome::In("dev-1".to_owned())),
        ("dev-2", "dev-1", "one", Outcome::NotAuthorized),
        ("auto-1", "dev-1", "one", Outcome::NotAuthorized),
        ("dev-1", "dev-2", "two", Outcome::NotAuthorized),
        ("any", "ops", "three", Outcome::In("ops".to_owned())),
        ("guest", "guest", "four", Outcome::NotAuthorized),
    ] {
        let claim = claim(client, Some(user), Some(password));
        assert_eq!(outcome(&bound, claim).await, wanted, "{user} as {client}");
    }
    // Without rules, a live session is still not taken over by another user.
    let free = gate(SecurityConfig { acl: vec![], ..config() });
    let first = free.admit(claim("x", Some("dev-1"), Some("one"))).await.unwrap();
    let second = claim("x", Some("dev-2"), Some("two"));
    assert_eq!(outcome(&free, second).await, Outcome::NotAuthorized);
    // The same user takes over as MQTT says, and the id is free when nobody has it.
    let again = free.admit(claim("x", Some("dev-1"), Some("one"))).await.unwrap();
    drop(first);
    assert_eq!(outcome(&free, second).await, Outcome::NotAuthorized);
    drop(again);
    assert_eq!(outcome(&free, second).await, Outcome::In("dev-2".to_owned()));
}

#[tokio::test]
async fn topics() {
    let gate = gate(config());
    let dev = gate.admit(claim("dev-1", Some("dev-1"), Some("one"))).await.unwrap();
    let ops = gate.admit(claim("desk", Some("ops"), Some("three"))).await.unwrap();
    assert!(dev.is_limited());
    for (topic, may) in [
        ("plant/dev-1/t", true),
        ("plant/dev-1", true),
        ("plant/dev-2/t", false),
        ("plant", false),
        ("other", false),
        ("will/dev-1", true),
        ("will/dev-2", false),
        ("$SYS/x", false),
        ("cmd/dev-1/x", false),
    ] {
        assert_eq!(dev.may_publish(topic), may, "publish {topic}");
        assert!(!ops.may_publish(topic), "ops publish {topic}");
    }
    for (filter, may) in [
        ("cmd/dev-1/x", true),
        ("cmd/dev-1/+", true),
        ("$share/g/cmd/dev-1/+", true),
        ("cmd/dev-1/#", false),
        ("cmd/dev-2/x", false),
        ("cmd/+/x", false),
        ("$share/g/cmd/+/x", false),
        ("#", false),
        ("+/+/+", false),
        ("$SYS/#", false),
        ("test/a", true),
        ("test/nosubscribe", false),
        ("$share/g/test/nosubscribe", false),
        ("test/+", true),
        ("not/a#/filter", false),
        ("$share//cmd/dev-1/x", false),
    ] {
        assert_eq!(dev.may_subscribe(filter), may, "subscribe {filter}");
    }
    let (dev, rights) = (dev.acl().unwrap(), ops.acl().unwrap());
    assert!(dev.may_receive("test/a") && !dev.may_receive("test/nosubscribe"));
    assert!(ops.may_subscribe("plant/dev-1/t") && ops.may_subscribe("$SYS/load"));
    assert!(ops.may_subscribe("plant/#") && !ops.may_subscribe("plant/dev-1/secret/key"));
    assert!(rights.may_receive("plant/dev-1/t") && rights.may_receive("$SYS/load"));
    for topic in ["plant/dev-1/secret/key", "plant/dev-1/secret", "cmd/dev-1/x", "$SYS/other"] {
        assert!(!rights.may_receive(topic), "{topic}");
    }
}

#[tokio::test]
async fn without_rules_everything_is_allowed_and_without_users_everybody() {
    let free = gate(SecurityConfig { acl: vec![], ..config() });
    let one = free.admit(claim("x", Some("dev-1"), Some("one"))).await.unwrap();
    assert!(!one.is_limited() && one.may_publish("a") && one.may_subscribe("#"));
    let open = gate(SecurityConfig::default());
    // A name that nobody checked is no name.
    let anyone = claim("x", Some("root"), Some("x"));
    assert_eq!(outcome(&open, anyone).await, Outcome::In(String::new()));
    let first = open.admit(anyone).await.unwrap();
    assert_eq!(outcome(&open, anyone).await, Outcome::In(String::new()));
    drop(first);
    // Rules for nobody, who has no name to put in.
    let named = AclRule { publish: own(&["a", "%u/b"]), ..AclRule::default() };
    let ruled = gate(SecurityConfig { acl: vec![named], ..SecurityConfig::default() });
    let identity = ruled.admit(anyone).await.unwrap();
    assert!(identity.may_publish("a") && !identity.may_publish("root/b"));
    assert!(!identity.may_publish("/b") && !identity.may_subscribe("a"));
}

#[tokio::test]
async fn a_token_ends_the_connection_with_it() {
    let gate = gate(config());
    let token = token("dev-1", 60);
    let identity = gate.admit(claim("dev-1", None, Some(&token))).await.unwrap();
    let until_us = identity.valid_until_us().unwrap();
    assert!((NOW_US + 60_000_000..NOW_US + 100_000_000).contains(&until_us));
    drop(identity);
    let identity = gate.admit(claim("dev-1", Some("dev-1"), Some("one"))).await.unwrap();
    assert_eq!(identity.valid_until_us(), None);
}

#[tokio::test]
async fn connections_are_counted_by_user_and_by_address() {
    let config = SecurityConfig {
        connections_per_user: Some(2),
        connections_per_address: Some(3),
        rate_max: Some(5),
        acl: vec![],
        ..config()
    };
    let gate = gate(config);
    let one = |client| claim(client, Some("dev-1"), Some("one"));
    let first = gate.admit(one("a")).await.unwrap();
    let _second = gate.admit(one("b")).await.unwrap();
    assert_eq!(outcome(&gate, one("c")).await, Outcome::TooMany);
    let other = claim("c", Some("dev-2"), Some("two"));
    assert_eq!(outcome(&gate, other).await, Outcome::In("dev-2".to_owned()));
    assert!(first.rate().is_some());
    drop(first);
    assert_eq!(outcome(&gate, one("c")).await, Outcome::In("dev-1".to_owned()));
    let (here, there) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
    let mut knocks: Vec<_> = (0..3).map(|_| gate.knock(here).unwrap()).collect();
    assert!(gate.knock(here).is_none() && gate.knock(there).is_some());
    knocks.pop();
    assert!(gate.knock(here).is_some());
}

#[tokio::test]
async fn guessing_is_slowed_down_for_the_address_that_guesses() {
    let gate = gate(config());
    let good = claim("dev-1", Some("dev-1"), Some("one"));
    for i in 0..20 {
        let guess = i.to_string();
        // Rules do not count: who they are was shown.
        assert_eq!(
            outcome(&gate, claim("no", Some("dev-1"), Some("one"))).await,
            Outcome::NotAuthorized
        );
        if i < 10 {
            let guess = claim("dev-1", Some("dev-1"), Some(&guess));
            assert_eq!(outcome(&gate, guess).await, Outcome::Credentials);
        }
    }
    // Many at once, before one of them is answered: the clock of this gate stands still.
    let guesses = (0..20).map(|_| outcome(&gate, claim("dev-1", Some("dev-1"), Some("?"))));
    let all = futures::future::join_all(guesses).await;
    assert!(all.contains(&Outcome::TooMany));
    assert_eq!(outcome(&gate, good).await, Outcome::TooMany);
    let elsewhere = Claim { address: [192, 0, 2, 2].into(), ..good };
    assert_eq!(outcome(&gate, elsewhere).await, Outcome::In("dev-1".to_owned()));
}

#[tokio::test]
async fn users_of_the_file_and_of_the_configuration_are_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users");
    let params = argon2::Params::new(8, 1, 1, None).unwrap();
    let line = |name: &str, text: &str| {
        format!("{name}:{}\n", password::hash(text.as_bytes(), params.clone()).unwrap())
    };
    fs::write(&path, line("dev-3", "file") + &line("dev-1", "file")).unwrap();
    let gate = gate(SecurityConfig { users_file: Some(path), ..config() });
    for (user, text, wanted) in [
        ("dev-3", "file", Outcome::In("dev-3".to_owned())),
        ("dev-3", "one", Outcome::Credentials),
        ("dev-1", "one", Outcome::In("dev-1".to_owned())),
        // The configuration wins: what the file says of its users does not count.
        ("dev-1", "file", Outcome::Credentials),
        ("dev-9", "file", Outcome::Credentials),
    ] {
        assert_eq!(outcome(&gate, claim(user, Some(user), Some(text))).await, wanted, "{user}");
    }
}

#[tokio::test]
async fn reasons_hold_no_credentials() {
    let gate = gate(config());
    let token = token("dev-2", -60);
    for password in ["hunter2-hunter2", token.as_str()] {
        let denied = gate.admit(claim("dev-1", Some("dev-1"), Some(password))).await.err().unwrap();
        assert!(!format!("{denied} {denied:?}").contains(password));
    }
    let secrets = format!("{:?}", config());
    assert!(!secrets.contains(SECRET) && !secrets.contains("three"));
}
