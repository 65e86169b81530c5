//! Who may connect: user names and what their passwords hash to under a key of this process.
//!
//! Comparing keyed hashes takes the same time for every password, and unknown users cost the same
//! as known ones, so answers tell nothing about how near a guess was. Passwords are not kept.

use std::collections::BTreeMap;

use ring::{digest, hmac, rand};

use crate::source::SourceError;

pub(crate) struct Users {
    key: hmac::Key,
    tags: BTreeMap<String, hmac::Tag>,
    nobody: hmac::Tag,
}

impl Users {
    pub(crate) fn new(users: &BTreeMap<String, String>) -> Result<Self, SourceError> {
        let random = rand::SystemRandom::new();
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &random)
            .map_err(|_| SourceError::Config("the system has no random numbers".to_owned()))?;
        let tag = |password: &str| hmac::sign(&key, password.as_bytes());
        let tags = users.iter().map(|(user, password)| (user.clone(), tag(password))).collect();
        let mut noise = [0; digest::SHA256_OUTPUT_LEN];
        rand::SecureRandom::fill(&random, &mut noise)
            .map_err(|_| SourceError::Config("the system has no random numbers".to_owned()))?;
        let nobody = hmac::sign(&key, &noise);
        Ok(Self { key, tags, nobody })
    }

    /// Whether anyone may connect, because no user is configured.
    pub(crate) fn is_open(&self) -> bool {
        self.tags.is_empty()
    }

    /// Whether there is such a user.
    pub(crate) fn knows(&self, user: &str) -> bool {
        self.tags.contains_key(user)
    }

    /// Whether these credentials are good enough.
    pub(crate) fn allow(&self, user: Option<&str>, password: Option<&[u8]>) -> bool {
        if self.is_open() {
            return true;
        }
        let tag = user.and_then(|user| self.tags.get(user)).unwrap_or(&self.nobody);
        hmac::verify(&self.key, password.unwrap_or_default(), tag.as_ref()).is_ok()
            && password.is_some()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_right_password_of_a_known_user_is_good() {
        let users = BTreeMap::from([
            ("gw".to_owned(), "s3cret".to_owned()),
            ("blank".to_owned(), String::new()),
        ]);
        let users = Users::new(&users).unwrap();
        assert!(users.allow(Some("gw"), Some(b"s3cret")));
        assert!(users.allow(Some("blank"), Some(b"")));
        for (user, password) in [
            (Some("gw"), Some(&b"s3cre"[..])),
            (Some("gw"), None),
            (Some("blank"), None),
            (Some("who"), Some(b"s3cret")),
            (None, Some(b"s3cret")),
            (None, None),
        ] {
            assert!(!users.allow(user, password), "{user:?} {password:?}");
        }
        assert!(Users::new(&BTreeMap::new()).unwrap().allow(None, None));
    }
}
