//! Who may connect to an endpoint, and what they may do.

use std::path::PathBuf;

use crate::config::problem::Reporter;
use crate::config::references::Resolver;
use crate::config::secret::Secret;
use crate::config::section::{Section, expand};
use crate::plan::{AclSpec, CertificateName, JwtSpec};

/// What the keys of an endpoint say about its clients.
pub(super) struct Access {
    pub(super) users: Vec<(String, Secret)>,
    pub(super) users_file: Option<PathBuf>,
    pub(super) jwt: Option<JwtSpec>,
    pub(super) certificate_user: Option<CertificateName>,
    pub(super) acl: Vec<AclSpec>,
}

impl Access {
    pub(super) fn of(
        source: &Section<'_>,
        resolve: Resolver<'_>,
        report: &mut Reporter<'_>,
    ) -> Option<Self> {
        let users = users(source, resolve, report);
        let users_file = source.resolved("users_file", resolve, report).map(PathBuf::from);
        let certificate_user = match source.text("certificate_user") {
            Some("san") => Some(CertificateName::Alternative),
            Some(_) => Some(CertificateName::Common),
            None => None,
        };
        let jwt = source.section("jwt").map(|section| jwt(&section, resolve, report));
        let acl = source.sections("acl").iter().map(|rule| rule_of(rule, report)).collect();
        Some(Self { users: users?, users_file, jwt, certificate_user, acl })
    }

    /// Whether clients send something that others on the network must not read.
    pub(super) fn has_secrets(&self) -> bool {
        !self.users.is_empty() || self.users_file.is_some() || self.jwt.is_some()
    }

    /// Whether clients are asked who they are.
    pub(super) fn asks(&self) -> bool {
        self.has_secrets() || self.certificate_user.is_some()
    }
}

fn users(
    source: &Section<'_>,
    resolve: Resolver<'_>,
    report: &mut Reporter<'_>,
) -> Option<Vec<(String, Secret)>> {
    let mut users: Vec<(String, Secret)> = Vec::new();
    let mut all = true;
    for entry in source.entries("users") {
        let Some(password) = expand(&entry.node, resolve, report) else {
            all = false;
            continue;
        };
        if password.is_empty() {
            report.error(entry.node.at, "this password is empty", None);
        }
        users.push((entry.key.clone(), Secret::new(password)));
    }
    users.sort_by(|a, b| a.0.cmp(&b.0));
    all.then_some(users)
}

fn jwt(section: &Section<'_>, resolve: Resolver<'_>, report: &mut Reporter<'_>) -> JwtSpec {
    let secret = section.resolved("secret", resolve, report).map(Secret::new);
    let key_file = section.resolved("key_file", resolve, report).map(PathBuf::from);
    match (section.entry("secret"), section.entry("key_file")) {
        (None, None) => {
            let hint = "`secret` for HS256, `key_file` for a public key".to_owned();
            report.error(section.at, "nothing to check tokens with", hint);
        }
        (Some(_), Some(entry)) => {
            let hint = "one of them is enough: all tokens have the same kind of key".to_owned();
            report.error(entry.key_at, "`secret` and `key_file` exclude each other", hint);
        }
        _ => {}
    }
    let user_claim = section.text("user_claim").unwrap_or_default().to_owned();
    if user_claim.is_empty() {
        report.error(section.at("user_claim"), "the claim has no name", None);
    }
    JwtSpec {
        secret,
        key_file,
        algorithms: texts(section, "algorithms"),
        audience: texts(section, "audience"),
        issuer: texts(section, "issuer"),
        user_claim,
    }
}

fn rule_of(rule: &Section<'_>, report: &mut Reporter<'_>) -> AclSpec {
    let mut filters = |key: &str| -> Vec<String> {
        let mut good = Vec::new();
        for (text, at) in rule.texts(key).unwrap_or_default() {
            // A name is a part of a level.
            let example = text.replace("%u", "u").replace("%c", "c");
            if text.starts_with("$share/") {
                let hint = "write the filter alone: it counts for shared subscriptions too";
                report.error(at, format!("`{text}` is a subscription"), hint.to_owned());
            } else if is_filter(&example) {
                good.push(text.to_owned());
            } else {
                let hint = "`+` is a whole level, `#` the whole rest: \"plant/+/state/#\"";
                report.error(at, format!("`{text}` is no topic filter"), hint.to_owned());
            }
        }
        good
    };
    AclSpec {
        publish: filters("publish"),
        subscribe: filters("subscribe"),
        deny_publish: filters("deny_publish"),
        deny_subscribe: filters("deny_subscribe"),
        user: rule.text("user").unwrap_or("*").to_owned(),
        client: rule.text("client").unwrap_or("*").to_owned(),
    }
}

/// Whether this is an MQTT topic filter.
fn is_filter(text: &str) -> bool {
    let levels: Vec<&str> = text.split('/').collect();
    let (last, before) = levels.split_last().expect("a split has one part at least");
    let plain = |level: &str| level == "+" || !level.contains(['+', '#', '\0']);
    !text.is_empty() && before.iter().all(|l| plain(l)) && (*last == "#" || plain(last))
}

/// The texts of a list.
pub(super) fn texts(section: &Section<'_>, key: &str) -> Vec<String> {
    let all = section.texts(key).unwrap_or_default();
    all.into_iter().map(|(text, _)| text.to_owned()).collect()
}
