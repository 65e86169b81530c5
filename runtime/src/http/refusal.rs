//! Why a request is not taken, in the words of the API that it was made to.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::json;

use super::budget::NoRoom;
use super::limits::RETRY_AFTER_S;

/// Whose errors a client understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `{"error": ...}`.
    Ours,
    /// InfluxDB 1: the same, and a header.
    Influx1,
    /// InfluxDB 2: `{"code": ..., "message": ...}`.
    Influx2,
}

/// A request that is not taken: nothing of it is in the journal, unless the text says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// What is wrong and what to do, for people.
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    pub(crate) fn busy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, message)
    }

    /// The answer.
    pub(crate) fn response(&self, dialect: Dialect) -> Response {
        let body = match dialect {
            Dialect::Ours | Dialect::Influx1 => json!({ "error": self.message }),
            Dialect::Influx2 => json!({ "code": self.code(), "message": self.message }),
        };
        let mut response = answer(self.status, &body);
        let headers = response.headers_mut();
        match self.status {
            StatusCode::UNAUTHORIZED => {
                let ways = HeaderValue::from_static("Basic realm=\"tidegate\", Bearer");
                headers.insert(header::WWW_AUTHENTICATE, ways);
            }
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
            }
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, zstd"));
            }
            _ => {}
        }
        if dialect == Dialect::Influx1
            && let Ok(text) = HeaderValue::from_str(&self.message)
        {
            headers.insert("x-influxdb-error", text);
        }
        response
    }

    /// As InfluxDB 2 names kinds of errors.
    fn code(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "unauthorized",
            StatusCode::FORBIDDEN => "forbidden",
            StatusCode::NOT_FOUND => "not found",
            StatusCode::METHOD_NOT_ALLOWED => "method not allowed",
            StatusCode::PAYLOAD_TOO_LARGE => "request too large",
            StatusCode::TOO_MANY_REQUESTS => "too many requests",
            StatusCode::SERVICE_UNAVAILABLE => "unavailable",
            StatusCode::INTERNAL_SERVER_ERROR => "internal error",
            _ => "invalid",
        }
    }
}

impl From<NoRoom> for Refusal {
    fn from(_: NoRoom) -> Self {
        Self::busy("too many bytes wait for the disk: send it again later")
    }
}

/// A JSON answer.
pub(crate) fn answer(status: StatusCode, body: &serde_json::Value) -> Response {
    let mut response = Response::new(Body::from(format!("{body}\n")));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}
