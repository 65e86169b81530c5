//! Who may connect, as whom, and what they may do.
//!
//! A [`Gate`] judges every CONNECT: password, token or certificate give the user, rules give what
//! user and client id may publish and subscribe to. What it gives back, an [`Identity`], answers
//! for the rest of the connection without asking anybody again. Everything that a stranger can make
//! grow is bounded: guesses, waiting checks of passwords, tables of addresses.

pub(crate) mod acl;
mod counts;
mod failures;
pub(crate) mod filters;
mod gate;
pub mod password;
mod passwords;
mod rate;
mod tokens;

#[cfg(test)]
mod cases;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

pub use acl::AclRule;
pub(crate) use gate::{Claim, Denied, Gate, Identity};
pub(crate) use rate::RateLimit;

/// Which name of a certificate is the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateUser {
    /// The common name.
    CommonName,
    /// The first alternative name (DNS, URI or e-mail).
    AlternativeName,
}

/// How tokens (JWT) in place of passwords are checked.
#[derive(Clone, Default)]
pub struct TokenConfig {
    /// Secret of HS256, HS384, HS512.
    pub secret: Option<String>,
    /// File with the public key of the others, PEM.
    pub key_file: Option<PathBuf>,
    /// Names of the algorithms that are allowed; if empty, the usual one of the key.
    pub algorithms: Vec<String>,
    /// If not empty, the token must be for one of them.
    pub audience: Vec<String>,
    /// If not empty, the token must be from one of them.
    pub issuer: Vec<String>,
    /// Claim that holds the user's name.
    pub user_claim: String,
}

impl fmt::Debug for TokenConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenConfig")
            .field("secret", &self.secret.as_ref().map(|_| "***"))
            .field("key_file", &self.key_file)
            .field("algorithms", &self.algorithms)
            .field("audience", &self.audience)
            .field("issuer", &self.issuer)
            .field("user_claim", &self.user_claim)
            .finish()
    }
}

/// Settings of a [`Gate`].
#[derive(Clone, Default)]
pub struct SecurityConfig {
    /// User names and passwords.
    pub users: BTreeMap<String, String>,
    /// File of user names and hashes of passwords.
    pub users_file: Option<PathBuf>,
    /// Tokens in place of passwords.
    pub tokens: Option<TokenConfig>,
    /// Whether a client's certificate tells its user.
    pub certificate_user: Option<CertificateUser>,
    /// What users may do; if empty, everything.
    pub acl: Vec<AclRule>,
    /// Most connections of one address (IPv6: of one /64 network).
    pub connections_per_address: Option<usize>,
    /// Most connections of one user.
    pub connections_per_user: Option<usize>,
    /// Most messages per second of one connection, in the long run.
    pub rate_max: Option<u32>,
}

impl SecurityConfig {
    /// Whether anyone may connect, because nobody is asked who they are.
    pub fn is_open(&self) -> bool {
        self.users.is_empty()
            && self.users_file.is_none()
            && self.tokens.is_none()
            && self.certificate_user.is_none()
    }
}

impl fmt::Debug for SecurityConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecurityConfig")
            .field("users", &self.users.keys())
            .field("users_file", &self.users_file)
            .field("tokens", &self.tokens)
            .field("certificate_user", &self.certificate_user)
            .field("acl", &self.acl)
            .field("connections_per_address", &self.connections_per_address)
            .field("connections_per_user", &self.connections_per_user)
            .field("rate_max", &self.rate_max)
            .finish()
    }
}
