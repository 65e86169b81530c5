//! Who may send to a pipeline: users with passwords, and tokens.
//!
//! As over MQTT: secrets are kept as hashes under a key of this process and compared in constant
//! time, and every try costs the same, so answers tell nothing about how near a guess was.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::{hmac, rand};

use super::refusal::Refusal;
use crate::source::SourceError;

/// What a request shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    Nothing,
    Password { user: String, password: String },
    Token(String),
}

/// Users and tokens of one pipeline.
pub(crate) struct Access {
    key: hmac::Key,
    users: Vec<(String, hmac::Tag)>,
    tokens: Vec<(String, hmac::Tag)>,
}

impl Access {
    pub(crate) fn new(
        users: &BTreeMap<String, String>,
        tokens: &BTreeMap<String, String>,
    ) -> Result<Self, SourceError> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &rand::SystemRandom::new())
            .map_err(|_| SourceError::Config("the system has no random numbers".to_owned()))?;
        let tags = |secrets: &BTreeMap<String, String>| {
            let tag = |secret: &String| hmac::sign(&key, secret.as_bytes());
            secrets.iter().map(|(name, secret)| (name.clone(), tag(secret))).collect()
        };
        let (users, tokens) = (tags(users), tags(tokens));
        Ok(Self { key, users, tokens })
    }

    /// Whether anyone may send.
    pub(crate) fn is_open(&self) -> bool {
        self.users.is_empty() && self.tokens.is_empty()
    }

    /// The name of who shows this, if it is good enough; empty for anyone where the pipeline is
    /// open.
    pub(crate) fn allow(&self, shown: &Shown) -> Option<String> {
        if self.is_open() {
            // Nobody's word is taken for a name that was not proved.
            return Some(String::new());
        }
        match shown {
            Shown::Nothing => None,
            Shown::Password { user, password } => {
                self.find(&self.users, password, |name| name == user)
            }
            // Clients of InfluxDB 1 behind the API of version 2 send `user:password` as a token.
            Shown::Token(token) => self.find(&self.tokens, token, |_| true).or_else(|| {
                let (user, password) = token.split_once(':')?;
                self.find(&self.users, password, |name| name == user)
            }),
        }
    }

    /// Compares with all of them, whatever matches, so that the time tells nothing.
    fn find(
        &self,
        list: &[(String, hmac::Tag)],
        secret: &str,
        is_named: impl Fn(&str) -> bool,
    ) -> Option<String> {
        let mut found = None;
        for (name, tag) in list {
            let same = hmac::verify(&self.key, secret.as_bytes(), tag.as_ref()).is_ok();
            if same & is_named(name) && found.is_none() {
                found = Some(name.clone());
            }
        }
        found
    }
}

/// What a request shows: the `Authorization` header, or `u` and `p` of InfluxDB 1.
pub(crate) fn shown(headers: &HeaderMap, query: &[(String, String)]) -> Result<Shown, Refusal> {
    let broken = || {
        let ways = "`Basic`, `Bearer` or `Token` and a value";
        Refusal::new(StatusCode::UNAUTHORIZED, format!("`Authorization` has to be {ways}"))
    };
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let text = value.to_str().map_err(|_| broken())?;
        let (scheme, value) = text.trim().split_once(' ').ok_or_else(broken)?;
        return match scheme.to_ascii_lowercase().as_str() {
            "bearer" | "token" => Ok(Shown::Token(value.trim().to_owned())),
            "basic" => {
                let bytes = STANDARD.decode(value.trim()).map_err(|_| broken())?;
                let text = String::from_utf8(bytes).map_err(|_| broken())?;
                let (user, password) = text.split_once(':').ok_or_else(broken)?;
                Ok(Shown::Password { user: user.to_owned(), password: password.to_owned() })
            }
            _ => Err(broken()),
        };
    }
    let of = |name: &str| query.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    match (of("u"), of("p")) {
        (Some(user), Some(password)) => Ok(Shown::Password { user, password }),
        _ => Ok(Shown::Nothing),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn access(users: &[(&str, &str)], tokens: &[(&str, &str)]) -> Access {
        let map = |list: &[(&str, &str)]| {
            list.iter().map(|(n, s)| ((*n).to_owned(), (*s).to_owned())).collect()
        };
        Access::new(&map(users), &map(tokens)).unwrap()
    }

    fn header(text: &str) -> Result<Shown, Refusal> {
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, text.parse().unwrap())]);
        shown(&headers, &[])
    }

    #[test]
    fn only_the_right_secret_of_the_right_name_is_good() {
        let access = access(&[("ann", "one"), ("bob", "two")], &[("gw", "three")]);
        let allow = |text: &str| header(text).ok().and_then(|shown| access.allow(&shown));
        let basic = |text: &str| allow(&format!("Basic {}", STANDARD.encode(text)));
        assert_eq!(basic("ann:one"), Some("ann".into()));
        assert_eq!(allow("Bearer three"), Some("gw".into()));
        assert_eq!(allow("token three"), Some("gw".into()));
        assert_eq!(allow("Token bob:two"), Some("bob".into()));
        for wrong in ["ann:two", "ann:", "ann", ":one", "gw:three", "carl:one"] {
            assert_eq!(basic(wrong), None, "{wrong}");
        }
        for wrong in ["Bearer", "Bearer ", "Bearer thre", "Bearer one", "Digest three", "three"] {
            assert_eq!(allow(wrong), None, "{wrong}");
        }
        assert_eq!(access.allow(&Shown::Nothing), None);
        let query = [("u".to_owned(), "bob".to_owned()), ("p".to_owned(), "two".to_owned())];
        let by_query = shown(&HeaderMap::new(), &query).unwrap();
        assert_eq!(access.allow(&by_query), Some("bob".into()));
    }

    #[test]
    fn an_open_pipeline_takes_nobody_for_somebody() {
        let access = access(&[], &[]);
        assert_eq!(access.allow(&Shown::Nothing), Some(String::new()));
        assert_eq!(access.allow(&Shown::Token("x".into())), Some(String::new()));
    }
}
