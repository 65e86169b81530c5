//! A webhook target: where to, how it is signed, and one attempt to deliver.
//!
//! Invariant: nothing in here that is printed (`Debug`, errors, reasons, logs) contains the secret
//! or any part of the URL but scheme, host and port: paths and queries of webhooks are secrets too.

use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, StatusCode, Url};
use ring::hmac;
use tidegate_pipelines::webhook::{self, is_public};

use super::address::{Guard, Refused};
use crate::outbox::Notification;

/// More of a response is not read: nothing in it is of interest but its end.
const RESPONSE_BYTES_MAX: usize = 64 << 10;
/// How long to wait for a connection, at most.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A webhook target as configured.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookTarget {
    /// Its name in the configuration.
    pub name: String,
    /// `http` or `https`; may contain credentials.
    pub url: String,
    /// Signs deliveries: `whsec_` and base64, or any text.
    pub secret: Option<String>,
    /// For one attempt.
    pub timeout: Duration,
    /// Older notifications are given up.
    pub max_age: Duration,
    /// Whether private, loopback and link-local addresses may be reached.
    pub allow_private: bool,
}

impl fmt::Debug for WebhookTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookTarget")
            .field("name", &self.name)
            .field("url", &Url::parse(&self.url).map_or_else(|_| "?".into(), |url| origin(&url)))
            .field("secret", &self.secret.as_ref().map(|_| "***"))
            .field("timeout", &self.timeout)
            .field("max_age", &self.max_age)
            .field("allow_private", &self.allow_private)
            .finish()
    }
}

/// What is wrong with a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("webhook target {name}: {problem}")]
pub struct WebhookError {
    /// The target's name.
    pub name: String,
    /// Without any secret.
    pub problem: String,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    Delivered,
    /// Try again; not before the time that the target asked for, if it did.
    Retry {
        reason: String,
        after: Option<Duration>,
    },
    /// Never try again.
    Dead {
        reason: String,
    },
}

/// A target that was checked and can be sent to.
pub(super) struct Endpoint {
    pub(super) target: WebhookTarget,
    url: Url,
    key: Option<hmac::Key>,
    client: Client,
    refused: Option<Refused>,
}

impl WebhookTarget {
    /// Checks what can be known without the network.
    ///
    /// # Errors
    /// An invalid URL or secret, or a literal address that is not allowed.
    pub fn check(&self) -> Result<(), WebhookError> {
        let endpoint = Endpoint::new(self.clone())?;
        endpoint.refused.map_or(Ok(()), |refused| Err(self.error(refused)))
    }

    fn error(&self, problem: impl ToString) -> WebhookError {
        WebhookError { name: self.name.clone(), problem: problem.to_string() }
    }
}

impl Endpoint {
    pub(super) fn new(target: WebhookTarget) -> Result<Self, WebhookError> {
        let url = Url::parse(&target.url)
            .map_err(|error| target.error(format!("the URL is not valid: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(target.error("the URL has to begin with https:// or http://"));
        }
        let literal = match url.host() {
            Some(url::Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
            Some(url::Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
            Some(url::Host::Domain(_)) => None,
            None => return Err(target.error("the URL has no host")),
        };
        let refused = literal.filter(|ip| !target.allow_private && !is_public(*ip)).map(Refused);
        let key = target.secret.as_deref().map(signing_key).transpose();
        let key = key.map_err(|problem| target.error(problem))?;
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .dns_resolver(std::sync::Arc::new(Guard { allow_private: target.allow_private }))
            .timeout(target.timeout)
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| target.error(text_of(error)))?;
        Ok(Self { target, url, key, client, refused })
    }

    /// One attempt; `now_us` goes into the signature.
    pub(super) async fn attempt(&self, item: &Notification, now_us: i64) -> Attempt {
        if let Some(refused) = self.refused {
            return Attempt::Dead { reason: refused.to_string() };
        }
        let timestamp = (now_us / 1_000_000).to_string();
        let mut request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &item.id)
            .header("webhook-timestamp", &timestamp);
        if let Some(key) = &self.key {
            let signature = sign(key, &item.id, &timestamp, &item.body);
            request = request.header("webhook-signature", signature);
        }
        match request.body(item.body.clone()).send().await {
            Ok(mut response) => {
                let verdict = judge(response.status(), response.headers(), now_us);
                // Reading to the end lets the connection be used again; the status has decided.
                let mut left = RESPONSE_BYTES_MAX;
                while let Ok(Some(chunk)) = response.chunk().await {
                    let Some(rest) = left.checked_sub(chunk.len()) else { break };
                    left = rest;
                }
                verdict
            }
            Err(error) => match find_refused(&error) {
                Some(refused) => Attempt::Dead { reason: refused.to_string() },
                None if error.is_builder() => Attempt::Dead { reason: text_of(error) },
                None => Attempt::Retry { reason: text_of(error), after: None },
            },
        }
    }
}

fn judge(status: StatusCode, headers: &HeaderMap, now_us: i64) -> Attempt {
    let reason = format!("HTTP {}", status.as_u16());
    let again = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
        || status.is_server_error();
    if status.is_success() {
        Attempt::Delivered
    } else if again {
        let after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        Attempt::Retry { reason, after: after.and_then(|text| retry_after(text, now_us)) }
    } else {
        Attempt::Dead { reason }
    }
}

/// Seconds, or a date.
pub(crate) fn retry_after(text: &str, now_us: i64) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = chrono::DateTime::parse_from_rfc2822(text.trim()).ok()?;
    let left_us = date.timestamp_micros().saturating_sub(now_us);
    Some(Duration::from_micros(u64::try_from(left_us).unwrap_or(0)))
}

fn signing_key(secret: &str) -> Result<hmac::Key, &'static str> {
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &webhook::signing_key(secret)?))
}

/// The signature header of Standard Webhooks.
fn sign(key: &hmac::Key, id: &str, timestamp: &str, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(key);
    context.update(format!("{id}.{timestamp}.").as_bytes());
    context.update(body);
    format!("v1,{}", BASE64.encode(context.sign()))
}

fn find_refused(error: &reqwest::Error) -> Option<Refused> {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(refused) = error.downcast_ref::<Refused>() {
            return Some(*refused);
        }
        next = error.source();
    }
    None
}

/// What went wrong, without the URL.
pub(crate) fn text_of(error: reqwest::Error) -> String {
    let error = error.without_url();
    if error.is_timeout() {
        return "no answer in time".into();
    }
    let mut root: &(dyn Error + 'static) = &error;
    while let Some(source) = root.source() {
        root = source;
    }
    root.to_string()
}

/// Scheme, host and port.
fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn target(url: &str, secret: Option<&str>) -> WebhookTarget {
        WebhookTarget {
            name: "ops".into(),
            url: url.into(),
            secret: secret.map(Into::into),
            timeout: Duration::from_secs(1),
            max_age: Duration::from_secs(60),
            allow_private: false,
        }
    }

    #[test]
    fn the_signature_is_that_of_the_standard() {
        // Example of the Standard Webhooks libraries.
        let key = signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed =
            sign(&key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", br#"{"test": 2432232314}"#);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn nothing_secret_is_printed() {
        let url = "https://user:canary1@hooks.example/canary2?token=canary3";
        let bad = [
            format!("{:?}", target(url, Some("canary4"))),
            target("https://canary.example:canary5/", None).check().unwrap_err().to_string(),
            target(url, Some("whsec_!canary6")).check().unwrap_err().to_string(),
            target("ftp://canary7@x/", None).check().unwrap_err().to_string(),
        ];
        for text in &bad {
            assert!(!text.contains("canary"), "{text}");
            assert!(text.contains("ops"), "{text}");
        }
        assert!(bad[0].contains("https://hooks.example"));
    }

    #[test]
    fn literal_private_addresses_are_refused_in_any_spelling() {
        for url in [
            "http://127.0.0.1/",
            "http://[::1]:80/",
            "http://0x7f.1/",
            "http://2130706433/",
            "http://017700000001/",
            "https://169.254.169.254/latest",
            "http://[::ffff:10.0.0.1]/",
        ] {
            let error = target(url, None).check().unwrap_err();
            assert!(error.problem.contains("allow_private"), "{url}: {error}");
            let allowed = WebhookTarget { allow_private: true, ..target(url, None) };
            allowed.check().unwrap();
        }
        target("https://hooks.example/", None).check().unwrap();
    }

    #[test]
    fn answers_are_judged() {
        let none = HeaderMap::new();
        let judge = |code: u16| judge(StatusCode::from_u16(code).unwrap(), &none, 0);
        for code in [200, 201, 204, 299] {
            assert_eq!(judge(code), Attempt::Delivered);
        }
        for code in [408, 429, 500, 503, 599] {
            assert!(matches!(judge(code), Attempt::Retry { after: None, .. }), "{code}");
        }
        for code in [301, 302, 307, 400, 401, 404, 410] {
            assert_eq!(judge(code), Attempt::Dead { reason: format!("HTTP {code}") });
        }
        assert_eq!(retry_after("7", 0), Some(Duration::from_secs(7)));
        let date = "Thu, 01 Jan 1970 00:00:10 GMT";
        assert_eq!(retry_after(date, 4_000_000), Some(Duration::from_secs(6)));
        assert_eq!(retry_after(date, 40_000_000), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", 0), None);
    }
}
