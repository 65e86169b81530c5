//! Rules of what users and client ids may publish and subscribe to.
//!
//! Without rules everything is allowed. With rules only what a rule allows that fits user and
//! client id, and nothing that such a rule denies; whom no rule fits may not even connect. `%u` and
//! `%c` stand for user and client id. A name that would be more than a part of one level, or that
//! begins with `$`, never matches: a device must not choose its rights by its name.

use std::sync::Arc;

use super::filters::{covers, is_filter, matches, without_share};
use crate::source::SourceError;

/// One rule as it is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AclRule {
    /// Users that it fits; `*` stands for any text, `%c` for the client id. Empty: all.
    pub user: String,
    /// Client ids that it fits; `*` stands for any text, `%u` for the user. Empty: all.
    pub client: String,
    /// Filters of topics that may be published to.
    pub publish: Vec<String>,
    /// Filters of topics that may be subscribed to.
    pub subscribe: Vec<String>,
    /// Filters of topics that may not be published to, whatever else is allowed.
    pub deny_publish: Vec<String>,
    /// Filters of topics that may not be subscribed to, whatever else is allowed.
    pub deny_subscribe: Vec<String>,
}

/// Checked rules.
#[derive(Debug)]
pub(crate) struct Rules(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    user: Pattern,
    client: Pattern,
    publish: Vec<Template>,
    subscribe: Vec<Template>,
    deny_publish: Vec<Template>,
    deny_subscribe: Vec<Template>,
}

impl Rules {
    /// Checks the rules.
    ///
    /// # Errors
    /// [`SourceError::Config`] for what is no topic filter.
    pub(crate) fn new(rules: &[AclRule]) -> Result<Self, SourceError> {
        let all = |filters: &[String]| -> Result<Vec<Template>, SourceError> {
            filters.iter().map(|filter| Template::new(filter)).collect()
        };
        let rules = rules.iter().map(|rule| {
            Ok(Rule {
                user: Pattern::new(&rule.user),
                client: Pattern::new(&rule.client),
                publish: all(&rule.publish)?,
                subscribe: all(&rule.subscribe)?,
                deny_publish: all(&rule.deny_publish)?,
                deny_subscribe: all(&rule.deny_subscribe)?,
            })
        });
        rules.collect::<Result<_, SourceError>>().map(Self)
    }

    /// What this user may do under this client id; `None` if no rule fits, or if a rule denies
    /// something that cannot be written for these names.
    pub(crate) fn acl(&self, user: &str, client_id: &str) -> Option<Acl> {
        let names = Names { user, client_id };
        let mut acl = Acl::default();
        let mut fits = false;
        let fitting =
            self.0.iter().filter(|r| r.user.fits(user, names) && r.client.fits(client_id, names));
        for rule in fitting {
            fits = true;
            acl.publish.extend(rule.publish.iter().filter_map(|t| t.fill(names)));
            acl.subscribe.extend(rule.subscribe.iter().filter_map(|t| t.fill(names)));
            for template in &rule.deny_publish {
                acl.deny_publish.push(template.fill(names)?);
            }
            for template in &rule.deny_subscribe {
                acl.deny_subscribe.push(template.fill(names)?);
            }
        }
        fits.then_some(acl)
    }
}

#[derive(Clone, Copy)]
struct Names<'a> {
    user: &'a str,
    client_id: &'a str,
}

/// A filter with `%u` and `%c` in it; shared by all connections where it has none.
#[derive(Debug)]
enum Template {
    Fixed(Arc<str>),
    Named(String),
}

impl Template {
    fn new(text: &str) -> Result<Self, SourceError> {
        // A part of a level, as a name is.
        let example = text.replace("%u", "u").replace("%c", "c");
        if !is_filter(&example) || text.starts_with("$share/") {
            return Err(SourceError::Config(format!("`acl`: `{text}` is no topic filter")));
        }
        Ok(match text.contains("%u") || text.contains("%c") {
            true => Self::Named(text.to_owned()),
            false => Self::Fixed(text.into()),
        })
    }

    fn fill(&self, names: Names<'_>) -> Option<Arc<str>> {
        let text = match self {
            Self::Fixed(text) => return Some(Arc::clone(text)),
            Self::Named(text) => text,
        };
        let mut out = String::with_capacity(text.len() + 32);
        let mut rest = text.as_str();
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            let name = match rest.as_bytes().get(at + 1) {
                Some(b'u') => names.user,
                Some(b'c') => names.client_id,
                _ => {
                    out.push('%');
                    rest = &rest[at + 1..];
                    continue;
                }
            };
            if name.is_empty() || name.starts_with('$') || name.contains(['+', '#', '/', '\0']) {
                return None;
            }
            out.push_str(name);
            rest = &rest[at + 2..];
        }
        out.push_str(rest);
        Some(out.into())
    }
}

/// A pattern of user names or client ids.
#[derive(Debug)]
struct Pattern(Vec<Piece>);

#[derive(Debug, PartialEq)]
enum Piece {
    Text(String),
    User,
    Client,
    Any,
}

impl Pattern {
    fn new(text: &str) -> Self {
        if text.is_empty() {
            return Self(vec![Piece::Any]);
        }
        let mut pieces = Vec::new();
        let mut chars = text.chars().peekable();
        let mut plain = String::new();
        while let Some(c) = chars.next() {
            let piece = match (c, chars.peek()) {
                ('*', _) => Piece::Any,
                ('%', Some('u')) => Piece::User,
                ('%', Some('c')) => Piece::Client,
                _ => {
                    plain.push(c);
                    continue;
                }
            };
            if piece != Piece::Any {
                chars.next();
            }
            if !plain.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
            }
            pieces.push(piece);
        }
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Self(pieces)
    }

    /// Whether a name fits; names in the pattern are what they are, also with a `*` in them.
    fn fits(&self, name: &str, names: Names<'_>) -> bool {
        let mut bytes: Vec<Option<u8>> = Vec::new();
        for piece in &self.0 {
            let text = match piece {
                Piece::Any => {
                    bytes.push(None);
                    continue;
                }
                Piece::Text(text) => text,
                Piece::User => names.user,
                Piece::Client => names.client_id,
            };
            // Two who are nobody are not the same one.
            if text.is_empty() {
                return false;
            }
            bytes.extend(text.bytes().map(Some));
        }
        glob(&bytes, name.as_bytes())
    }
}

/// Matches with `None` as any number of bytes. Goes back to the last `None` only, which is enough.
fn glob(pattern: &[Option<u8>], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut retry = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(None) => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(Some(byte)) if *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match &mut retry {
                Some((after, from)) => {
                    *from += 1;
                    (p, t) = (*after, *from);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(Option::is_none)
}

/// What one connection may do.
#[derive(Debug, Default)]
pub(crate) struct Acl {
    publish: Vec<Arc<str>>,
    subscribe: Vec<Arc<str>>,
    deny_publish: Vec<Arc<str>>,
    deny_subscribe: Vec<Arc<str>>,
}

impl Acl {
    pub(crate) fn may_publish(&self, topic: &str) -> bool {
        allowed(&self.publish, &self.deny_publish, topic)
    }

    /// Whether a message of this topic may be delivered.
    pub(crate) fn may_receive(&self, topic: &str) -> bool {
        allowed(&self.subscribe, &self.deny_subscribe, topic)
    }

    /// Whether a subscription is granted: it may be wider than what is denied, because
    /// [`Acl::may_receive`] is asked for each message.
    pub(crate) fn may_subscribe(&self, subscription: &str) -> bool {
        let denied = |filter: &str| self.deny_subscribe.iter().any(|deny| covers(deny, filter));
        without_share(subscription).is_some_and(|f| self.is_covered(f) && !denied(f))
    }

    fn is_covered(&self, filter: &str) -> bool {
        self.subscribe.iter().any(|allow| covers(allow, filter))
    }
}

fn allowed(allow: &[Arc<str>], deny: &[Arc<str>], topic: &str) -> bool {
    allow.iter().any(|f| matches(f, topic)) && !deny.iter().any(|f| matches(f, topic))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rule(user: &str, client: &str, publish: &[&str], subscribe: &[&str]) -> AclRule {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        AclRule {
            user: user.to_owned(),
            client: client.to_owned(),
            publish: own(publish),
            subscribe: own(subscribe),
            ..AclRule::default()
        }
    }

    fn acl(rules: &[AclRule], user: &str, client: &str) -> Option<Acl> {
        Rules::new(rules).unwrap().acl(user, client)
    }

    #[test]
    fn names_are_put_in_and_never_widen_a_rule() {
        let rules = [rule("", "", &["dev/%u/%c/#", "50%/x"], &["cmd/gw-%u/+"])];
        let good = acl(&rules, "ann", "c1").unwrap();
        assert!(good.may_publish("dev/ann/c1/t") && good.may_publish("50%/x"));
        assert!(good.may_subscribe("cmd/gw-ann/+") && good.may_subscribe("cmd/gw-ann/x"));
        assert!(!good.may_publish("dev/bob/c1/t") && !good.may_subscribe("cmd/gw-bob/x"));
        for bad in ["+", "#", "a/b", "", "$SYS", "a\0"] {
            let acl = acl(&rules, bad, "c1").unwrap();
            for topic in ["dev/ann/c1/t", "dev/a/b/c1/t", "dev//c1/t", "dev/+/c1/t"] {
                assert!(!acl.may_publish(topic), "{bad:?} {topic}");
            }
            assert!(!acl.may_subscribe("cmd/+/x") && !acl.may_subscribe("cmd/gw-a/b/x"));
            assert!(acl.may_publish("50%/x"));
        }
    }

    #[test]
    fn rules_fit_by_pattern_and_the_client_id_can_be_bound_to_the_user() {
        let bound = [rule("", "%u", &["a"], &[])];
        assert!(acl(&bound, "ann", "ann").is_some());
        assert!(acl(&bound, "ann", "bob").is_none() && acl(&bound, "a*", "ann").is_none());
        assert!(acl(&bound, "", "").is_none());
        let prefixed = [rule("gw-*", "%u-*-x", &["a"], &[])];
        assert!(acl(&prefixed, "gw-1", "gw-1--x").is_some());
        for (user, client) in [("gw-1", "gw-1-x"), ("gw", "gw-1-x"), ("gw-1", "gw-2-1-x")] {
            assert!(acl(&prefixed, user, client).is_none(), "{user} {client}");
        }
        let several = [rule("ann", "", &["a"], &[]), rule("*", "", &["b"], &[])];
        let both = acl(&several, "ann", "x").unwrap();
        assert!(both.may_publish("a") && both.may_publish("b"));
        assert!(!acl(&several, "bob", "x").unwrap().may_publish("a"));
    }

    #[test]
    fn globs_match_as_a_backtracking_oracle_does() {
        fn oracle(p: &[Option<u8>], t: &[u8]) -> bool {
            match p.split_first() {
                None => t.is_empty(),
                Some((None, rest)) => (0..=t.len()).any(|n| oracle(rest, &t[n..])),
                Some((Some(b), rest)) => t.first() == Some(b) && oracle(rest, &t[1..]),
            }
        }
        let numbers = |len: u32, base: u32| (0..base.pow(len)).map(move |n| (n, len, base));
        let digits = |(mut n, len, base): (u32, u32, u32)| {
            let mut out = Vec::new();
            for _ in 0..len {
                out.push(n % base);
                n /= base;
            }
            out
        };
        for pattern in (0..=5).flat_map(|len| numbers(len, 3)) {
            let pattern: Vec<Option<u8>> = digits(pattern)
                .into_iter()
                .map(|d| [None, Some(b'a'), Some(b'b')][d as usize])
                .collect();
            for text in (0..=5).flat_map(|len| numbers(len, 2)) {
                let text: Vec<u8> = digits(text).into_iter().map(|d| b"ab"[d as usize]).collect();
                assert_eq!(glob(&pattern, &text), oracle(&pattern, &text), "{pattern:?} {text:?}");
            }
        }
    }

    #[test]
    fn what_is_denied_is_denied() {
        let deny = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let rules = [AclRule {
            deny_publish: deny(&["a/secret"]),
            deny_subscribe: deny(&["test/nosubscribe", "own/%u"]),
            ..rule("", "", &["a/#"], &["#"])
        }];
        let acl1 = acl(&rules, "ann", "x").unwrap();
        assert!(acl1.may_publish("a/b") && !acl1.may_publish("a/secret"));
        for subscription in ["test/nosubscribe", "$share/g/test/nosubscribe", "own/ann"] {
            assert!(!acl1.may_subscribe(subscription), "{subscription}");
        }
        for subscription in ["#", "test/+", "$share/g/+/+", "own/#"] {
            assert!(acl1.may_subscribe(subscription), "{subscription}");
        }
        assert!(acl1.may_subscribe("test/other") && !acl1.may_subscribe("$SYS/#"));
        assert!(acl1.may_receive("x/y") && !acl1.may_receive("own/ann"));
        assert!(!acl1.may_receive("test/nosubscribe") && !acl1.may_receive("$SYS/x"));
        // Who cannot be denied by name is not let in.
        assert!(acl(&rules, "a/b", "x").is_none());
    }

    #[test]
    fn broken_filters_are_refused() {
        for bad in ["a+", "", "#/%u", "$share/g/a", "%u#"] {
            let error = Rules::new(&[rule("", "", &[], &[bad])]).unwrap_err();
            assert!(error.to_string().contains("acl"), "{error}");
        }
    }
}
