//! Which request means what: `/ingest/PIPELINE`, health, and the way to `influx` for the rest.

use std::sync::Arc;

use axum::body::BodyDataStream;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use futures::StreamExt as _;
use serde_json::json;
use tidegate_operators::decode::{Precision, topics_match};
use tidegate_operators::spec::Format;

use super::access::{self, Shown};
use super::influx;
use super::limits::{KEY_BYTES_MAX, READ_ON_BYTES_MAX, READ_ON_TIMEOUT, TOPIC_BYTES_MAX};
use super::listen::Peer;
use super::refusal::{Dialect, Refusal, answer};
use super::server::{Route, Shared};
use super::split::Framing;
use super::take::{Taken, Write, take};
use super::unpack::Encoding;
use crate::source::count;

/// The topic of a request, if it is not the pipeline's own.
const TOPIC: HeaderName = HeaderName::from_static("tidegate-topic");
/// Draft of the IETF: `draft-ietf-httpapi-idempotency-key-header`.
const KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A request without its body.
pub(crate) struct Head {
    pub(crate) method: Method,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: HeaderMap,
    pub(crate) address: String,
}

impl Head {
    /// A parameter of the query; the first of its name.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// What it shows to be let in.
    pub(crate) fn shown(&self) -> Result<Shown, Refusal> {
        access::shown(&self.headers, &self.query)
    }
}

/// Answers one request.
pub(crate) async fn request(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
) -> Response {
    let _handling = peer.phase.handling();
    let (parts, body) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default().as_bytes();
    let head = Head {
        method: parts.method,
        query: url::form_urlencoded::parse(query).into_owned().collect(),
        headers: parts.headers,
        address: peer.address.to_string(),
    };
    let path = parts.uri.path();
    let mut body = body.into_data_stream();
    let response = route(&shared, &head, path, &mut body).await;
    if response.status().is_client_error() {
        read_on(&head, &mut body).await;
    }
    response
}

async fn route(shared: &Shared, head: &Head, path: &str, body: &mut BodyDataStream) -> Response {
    if let Some(pipeline) = path.strip_prefix("/ingest/") {
        let result = ingest(shared, head, pipeline, body).await;
        return result.unwrap_or_else(|refusal| refusal.response(Dialect::Ours));
    }
    match path {
        "/healthz" | "/readyz" => {
            let result = only(head, &[Method::GET, Method::HEAD]);
            let unready = if path == "/readyz" { shared.unready() } else { None };
            match (result, unready) {
                (Err(refusal), _) => refusal.response(Dialect::Ours),
                (Ok(()), None) => answer(StatusCode::OK, &json!({ "status": "ok" })),
                (Ok(()), Some(why)) => {
                    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why).response(Dialect::Ours)
                }
            }
        }
        _ => influx::request(shared, head, path, body).await,
    }
}

/// Reads the rest of a body that was refused, and throws it away: a client that is still sending
/// would see a broken connection instead of the reason. One that waits to be asked is not asked.
async fn read_on(head: &Head, body: &mut BodyDataStream) {
    if head.headers.contains_key(header::EXPECT) {
        return;
    }
    let mut bytes = 0;
    let rest = async {
        while let Some(Ok(chunk)) = body.next().await {
            bytes += chunk.len();
            if bytes > READ_ON_BYTES_MAX {
                break;
            }
        }
    };
    // Whoever is too slow for that does not learn the reason.
    let _ = tokio::time::timeout(READ_ON_TIMEOUT, rest).await;
}

/// Refuses other methods.
pub(crate) fn only(head: &Head, methods: &[Method]) -> Result<(), Refusal> {
    if methods.contains(&head.method) {
        return Ok(());
    }
    let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
    let message = format!("{} is not for this path: use {}", head.method, names.join(" or "));
    Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, message))
}

async fn ingest(
    shared: &Shared,
    head: &Head,
    pipeline: &str,
    body: &mut BodyDataStream,
) -> Result<Response, Refusal> {
    only(head, &[Method::POST])?;
    let route = shared.route(pipeline).ok_or_else(|| {
        let message = format!("there is no pipeline `{pipeline}` at this address");
        Refusal::new(StatusCode::NOT_FOUND, message)
    })?;
    let user = admit(shared, &route, head)?;
    let content_type = head.header(header::CONTENT_TYPE);
    let framing = match route.format {
        Format::Json => Framing::of_json(content_type),
        Format::Influx => Framing::of_influx(content_type),
    };
    let precision = match route.format {
        Format::Json => Precision::default(),
        Format::Influx => precision(head)?,
    };
    let taken = write(shared, route, user, head, framing, precision, body).await?;
    Ok(match taken {
        Taken::New(n) => answer(StatusCode::ACCEPTED, &json!({ "accepted": n })),
        Taken::Duplicate => {
            answer(StatusCode::ACCEPTED, &json!({ "accepted": 0, "duplicate": true }))
        }
    })
}

/// The unit of timestamps that the query says.
pub(crate) fn precision(head: &Head) -> Result<Precision, Refusal> {
    let text = head.query("precision").unwrap_or_default();
    Precision::parse(text).ok_or_else(|| {
        Refusal::bad(format!("precision `{text}` is not known: use ns, us, ms, s, m or h"))
    })
}

/// Who sends a request to this pipeline.
pub(crate) fn admit(shared: &Shared, route: &Route, head: &Head) -> Result<String, Refusal> {
    let result = head.shown().and_then(|shown| {
        if let Some(user) = route.access.allow(&shown) {
            return Ok(user);
        }
        if shown == Shown::Nothing {
            let message = "a user or token is needed: `Authorization: Bearer ...` or `Basic ...`";
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, message));
        }
        let others = shared.routes();
        let mut others = others.iter().filter(|r| !r.access.is_open());
        Err(match others.any(|r| r.access.allow(&shown).is_some()) {
            true => {
                let message = format!("this is for another pipeline than `{}`", route.pipeline);
                Refusal::new(StatusCode::FORBIDDEN, message)
            }
            false => Refusal::new(StatusCode::UNAUTHORIZED, "unknown user, password or token"),
        })
    });
    if result.is_err() {
        count(&route.stats.refused, 1);
    }
    result
}

/// Takes a write, and counts it if it is refused.
pub(crate) async fn write(
    shared: &Shared,
    route: Arc<Route>,
    user: String,
    head: &Head,
    framing: Result<Framing, Refusal>,
    precision: Precision,
    body: &mut BodyDataStream,
) -> Result<Taken, Refusal> {
    let stats = Arc::clone(&route.stats);
    let result = async {
        let write = Write {
            framing: framing?,
            encoding: Encoding::parse(head.header(header::CONTENT_ENCODING))?,
            topic: topic(&route, head)?,
            key: key(head)?,
            properties: precision.properties(),
            address: head.address.clone(),
            user,
            route,
        };
        announced(head, &write)?;
        if let Some(why) = shared.unready() {
            return Err(Refusal::busy(format!("{why}: send it again later")));
        }
        take(shared, write, body).await
    }
    .await;
    if let Err(refusal) = &result {
        count(&stats.refused, 1);
        stats.note_error(format!("{}: {}", refusal.status, refusal.message));
        tracing::debug!(address = head.address, status = %refusal.status, "{}", refusal.message);
    }
    result
}

/// A body that says itself that it is too long is not read at all.
fn announced(head: &Head, write: &Write) -> Result<(), Refusal> {
    let bytes_max = write.route.bounds.body_bytes_max;
    let length = head.headers.get(header::CONTENT_LENGTH).map(HeaderValue::to_str);
    match length.and_then(|l| l.ok()?.parse::<usize>().ok()) {
        Some(length) if length > bytes_max => Err(Refusal::too_large(format!(
            "the body has {length} bytes, at most {bytes_max} are taken: send less at a time, or \
             compress it"
        ))),
        _ => Ok(()),
    }
}

fn topic(route: &Route, head: &Head) -> Result<String, Refusal> {
    let topic = match head.headers.get(TOPIC) {
        Some(value) => std::str::from_utf8(value.as_bytes())
            .map_err(|_| Refusal::bad("the header Tidegate-Topic is not UTF-8"))?,
        None => head.query("topic").unwrap_or(&route.topic),
    };
    if topic.is_empty() || topic.len() > TOPIC_BYTES_MAX || topic.contains(['+', '#', '\0']) {
        let rules = format!("1 to {TOPIC_BYTES_MAX} bytes without `+` and `#`");
        return Err(Refusal::bad(format!("a topic has {rules}")));
    }
    if !topics_match(&route.topics, topic.as_bytes()) {
        let templates: Vec<String> = route.topics.iter().map(ToString::to_string).collect();
        return Err(Refusal::bad(format!(
            "pipeline `{}` does not take the topic `{topic}`: add ?topic=..., or the header \
             Tidegate-Topic, with one like {}",
            route.pipeline,
            templates.join(", ")
        )));
    }
    Ok(topic.to_owned())
}

fn key(head: &Head) -> Result<Option<Vec<u8>>, Refusal> {
    let Some(key) = head.headers.get(KEY).map(HeaderValue::as_bytes) else { return Ok(None) };
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        let message = format!("an Idempotency-Key has 1 to {KEY_BYTES_MAX} bytes");
        return Err(Refusal::bad(message));
    }
    Ok(Some(key.to_vec()))
}
