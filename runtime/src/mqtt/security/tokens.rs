//! JSON Web Tokens in place of passwords.
//!
//! The library checks the signature, with the algorithms of our key only (never what a token asks
//! for). The claims are checked here, strictly: `exp` must be there, and a claim that cannot be
//! read is a refusal and not an absence.

use std::path::Path;

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde_json::{Map, Value};

use super::TokenConfig;
use super::password::NAME_BYTES_MAX;
use crate::net::watched::{Watched, read};
use crate::source::SourceError;

/// Difference of clocks that is forgiven, seconds.
const LEEWAY_S: i64 = 30;

/// Shortest secret: RFC 7518, 3.2 asks for as many bits as the hash has.
const SECRET_BYTES_MIN: usize = 32;

/// Longest key file.
const KEY_BYTES_MAX: u64 = 64 * 1024;

/// Checks tokens.
pub(super) struct Tokens {
    key: Watched<(DecodingKey, Validation)>,
    config: TokenConfig,
}

/// What a good token says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) user: String,
    /// When it ends, microseconds since 1970.
    pub(super) until_us: i64,
}

impl Tokens {
    /// Reads the key.
    ///
    /// # Errors
    /// [`SourceError`] for a key that cannot be used, and for algorithms that are not its own.
    pub(super) fn new(config: TokenConfig) -> Result<Self, SourceError> {
        if config.user_claim.is_empty() {
            return Err(SourceError::Config("`jwt.user_claim` is empty".to_owned()));
        }
        let (paths, from) = (config.key_file.iter().cloned().collect(), config.clone());
        let key = Watched::new(paths, move || load(&from))?;
        Ok(Self { key, config })
    }

    /// Whether a password looks like a token: three parts, the first one a JSON object.
    pub(super) fn is_token(password: &[u8]) -> bool {
        password.starts_with(b"eyJ") && password.iter().filter(|b| **b == b'.').count() == 2
    }

    /// Checks a token.
    pub(super) fn check(&self, token: &[u8], now_us: i64) -> Result<Token, String> {
        let token = str::from_utf8(token).map_err(|_| "the token is no text".to_owned())?;
        let key = self.key.get();
        let decoded = decode::<Map<String, Value>>(token, &key.0, &key.1);
        let claims = decoded.map_err(|error| format!("the token is not good: {error}"))?.claims;
        self.judge(&claims, now_us / 1_000_000)
    }

    fn judge(&self, claims: &Map<String, Value>, now_s: i64) -> Result<Token, String> {
        let bad = |text: &str| Err(text.to_owned());
        let Some(until_s) = claims.get("exp").and_then(seconds) else {
            return bad("the token has no `exp`");
        };
        let until_s = until_s.saturating_add(LEEWAY_S);
        if until_s <= now_s {
            return bad("the token has expired");
        }
        match claims.get("nbf").map(seconds) {
            None => {}
            Some(Some(from_s)) if from_s <= now_s.saturating_add(LEEWAY_S) => {}
            Some(Some(_)) => return bad("the token is not valid yet"),
            Some(None) => return bad("the token's `nbf` is no time"),
        }
        if !self.config.issuer.is_empty() {
            let issuer = claims.get("iss").and_then(Value::as_str);
            if !issuer.is_some_and(|issuer| self.config.issuer.iter().any(|known| known == issuer))
            {
                return bad("the token is from somebody else (`iss`)");
            }
        }
        let wanted = &self.config.audience;
        match claims.get("aud") {
            None if wanted.is_empty() => {}
            Some(audience) if is_for(audience, wanted) => {}
            _ => return bad("the token is for somebody else (`aud`)"),
        }
        let user = claims.get(&self.config.user_claim).and_then(Value::as_str);
        let fits = |user: &&str| {
            !user.is_empty() && user.len() <= NAME_BYTES_MAX && !user.contains(char::is_control)
        };
        let Some(user) = user.filter(fits) else {
            return Err(format!("the token names no user (`{}`)", self.config.user_claim));
        };
        Ok(Token { user: user.to_owned(), until_us: until_s.saturating_mul(1_000_000) })
    }
}

/// A time of a claim; fractions of a second are cut off.
fn seconds(value: &Value) -> Option<i64> {
    let whole = value.as_i64();
    whole.or_else(|| value.as_f64().filter(|s| s.is_finite()).map(|s| s as i64))
}

fn is_for(audience: &Value, wanted: &[String]) -> bool {
    let known = |name: &Value| name.as_str().is_some_and(|name| wanted.iter().any(|w| w == name));
    match audience {
        Value::Array(names) => names.iter().any(known),
        name => known(name),
    }
}

fn load(config: &TokenConfig) -> Result<(DecodingKey, Validation), SourceError> {
    let bad = |text: String| SourceError::Config(text);
    let (key, possible) = match (&config.secret, &config.key_file) {
        (Some(secret), None) if secret.len() < SECRET_BYTES_MIN => {
            let text = format!("`jwt.secret` must have {SECRET_BYTES_MIN} bytes or more");
            return Err(bad(text));
        }
        (Some(secret), None) => (DecodingKey::from_secret(secret.as_bytes()), SECRET_ALGORITHMS),
        (None, Some(path)) => public_key(path)?,
        _ => return Err(bad("`jwt` needs either `secret` or `key_file`".to_owned())),
    };
    let mut algorithms = Vec::new();
    for name in &config.algorithms {
        match possible.iter().find(|(known, _)| known == name) {
            Some((_, algorithm)) => algorithms.push(*algorithm),
            None => {
                let names: Vec<&str> = possible.iter().map(|(name, _)| *name).collect();
                let names = names.join(", ");
                return Err(bad(format!("`jwt`: {name} is not of this key, which does {names}")));
            }
        }
    }
    if algorithms.is_empty() {
        algorithms.push(possible[0].1);
    }
    let mut validation = Validation::new(algorithms[0]);
    validation.algorithms = algorithms;
    // The claims are ours to judge.
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    Ok((key, validation))
}

type Names = &'static [(&'static str, Algorithm)];

/// The usual one of each kind of key is first.
const SECRET_ALGORITHMS: Names =
    &[("HS256", Algorithm::HS256), ("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)];
const RSA_ALGORITHMS: Names = &[
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
];
const CURVE_ALGORITHMS: Names = &[("ES256", Algorithm::ES256), ("ES384", Algorithm::ES384)];
const EDWARDS_ALGORITHMS: Names = &[("EdDSA", Algorithm::EdDSA)];

fn public_key(path: &Path) -> Result<(DecodingKey, Names), SourceError> {
    let pem = read("jwt.key_file", path, KEY_BYTES_MAX)?;
    let bad =
        |text: &str| SourceError::Config(format!("`jwt.key_file` {}: {text}", path.display()));
    if String::from_utf8_lossy(&pem).contains("PRIVATE KEY") {
        return Err(bad("a private key; tokens are checked with the public one, keep this away"));
    }
    let rsa = DecodingKey::from_rsa_pem(&pem).map(|key| (key, RSA_ALGORITHMS));
    let curve = || DecodingKey::from_ec_pem(&pem).map(|key| (key, CURVE_ALGORITHMS));
    let edwards = || DecodingKey::from_ed_pem(&pem).map(|key| (key, EDWARDS_ALGORITHMS));
    rsa.or_else(|_| curve()).or_else(|_| edwards()).map_err(|_| bad("no public key (PEM) in it"))
}

#[cfg(test)]
pub(super) mod tests;
