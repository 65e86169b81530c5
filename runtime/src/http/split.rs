//! A body to messages: a JSON document, the elements of a JSON array, lines, or lines of InfluxDB.
//!
//! Only framing is judged here. What is inside of a message is judged when it is decoded, and is a
//! row of `system.rejects` if it is bad, as with every other source.

use axum::http::StatusCode;
use serde::de::IgnoredAny;
use serde_json::Deserializer;
use tidegate_operators::decode::{Lines, lines};

use super::refusal::Refusal;

/// How the messages of a body are told from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// A JSON array is one message per element, anything else is one message.
    Json,
    /// One message per line.
    Lines,
    /// Whatever it looks like.
    Sniff,
    /// Lines of InfluxDB, which can have line breaks in strings.
    Influx,
}

impl Framing {
    /// What `Content-Type` says, for a pipeline that reads JSON.
    pub(crate) fn of_json(content_type: Option<&str>) -> Result<Self, Refusal> {
        match essence(content_type).as_str() {
            "application/json" | "text/json" => Ok(Self::Json),
            "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/x-jsonlines"
            | "application/jsonlines" => Ok(Self::Lines),
            // What tools send if nobody says anything.
            ""
            | "text/plain"
            | "application/octet-stream"
            | "application/x-www-form-urlencoded" => Ok(Self::Sniff),
            other => Err(unsupported(other, "application/json or application/x-ndjson")),
        }
    }

    /// What `Content-Type` says, for a pipeline that reads lines of InfluxDB. Clients say all kinds
    /// of things, so only what is certainly something else is refused.
    pub(crate) fn of_influx(content_type: Option<&str>) -> Result<Self, Refusal> {
        match essence(content_type).as_str() {
            other @ ("application/json" | "application/x-ndjson" | "multipart/form-data") => {
                Err(unsupported(other, "text/plain with lines of InfluxDB's line protocol"))
            }
            _ => Ok(Self::Influx),
        }
    }
}

fn unsupported(found: &str, wanted: &str) -> Refusal {
    let message = format!("Content-Type `{found}` is not taken by this pipeline: send {wanted}");
    Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
}

/// A media type without its parameters.
fn essence(content_type: Option<&str>) -> String {
    let text = content_type.unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Calls `take` with each message of a body, in order, until it refuses one.
pub(crate) fn split(
    body: &[u8],
    framing: Framing,
    mut take: impl FnMut(&[u8]) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let start = space(body, 0);
    match framing {
        Framing::Influx => {
            lines(body).filter(|l| Lines::is_content(l)).try_for_each(|l| take(trim(l)))
        }
        _ if start == body.len() => Err(Refusal::bad("the body is empty")),
        Framing::Json | Framing::Sniff if body[start] == b'[' => array(body, start, &mut take),
        Framing::Json => take(trim(body)),
        Framing::Sniff if is_one_document(body) => take(trim(body)),
        Framing::Lines | Framing::Sniff => {
            let all = body.split(|b| *b == b'\n').map(trim);
            all.filter(|l| !l.is_empty()).try_for_each(take)
        }
    }
}

/// Calls `take` with each element of a JSON array that is all of the text.
///
/// # Errors
/// Where the text is no whole array, and why.
pub(crate) fn each_element(text: &[u8], mut take: impl FnMut(&[u8])) -> Result<(), String> {
    let mut take = |element: &[u8]| {
        take(element);
        Ok(())
    };
    array(text, space(text, 0), &mut take).map_err(|refusal| refusal.message)
}

/// Whether the body is one JSON document from its first byte to its last, or has a single line.
fn is_one_document(body: &[u8]) -> bool {
    let mut documents = Deserializer::from_slice(body).into_iter::<IgnoredAny>();
    let first = documents.next();
    matches!(first, Some(Ok(_))) && space(body, documents.byte_offset()) == body.len()
}

/// The elements of the array that starts at `start`, which has to be all of the body.
fn array(
    body: &[u8],
    start: usize,
    take: &mut impl FnMut(&[u8]) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let mut at = space(body, start + 1);
    let mut count = 0;
    if body.get(at) == Some(&b']') {
        return end(body, at + 1);
    }
    loop {
        let mut elements = Deserializer::from_slice(&body[at..]).into_iter::<IgnoredAny>();
        match elements.next() {
            Some(Ok(_)) => {}
            Some(Err(e)) => {
                // The error's place is counted from where this element starts.
                let rest = &body[at..];
                let fault = at + offset_of(rest, e.line(), e.column());
                return Err(broken(body, fault, &format!("element {count}: {}", reason(&e))));
            }
            None => return Err(broken(body, body.len(), "the array is not closed")),
        }
        let next = at + elements.byte_offset();
        take(trim(&body[at..next]))?;
        count += 1;
        at = space(body, next);
        match body.get(at) {
            Some(b',') => at = space(body, at + 1),
            Some(b']') => return end(body, at + 1),
            Some(_) => return Err(broken(body, at, "expected a comma or the end of the array")),
            None => return Err(broken(body, at, "the array is not closed")),
        }
    }
}

fn end(body: &[u8], at: usize) -> Result<(), Refusal> {
    let at = space(body, at);
    match at == body.len() {
        true => Ok(()),
        false => Err(broken(body, at, "something follows the array")),
    }
}

/// What serde_json says, without its own idea of the place.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(reason, _)| reason.to_owned())
}

fn offset_of(text: &[u8], line: usize, column: usize) -> usize {
    let before: usize =
        text.split_inclusive(|b| *b == b'\n').take(line.saturating_sub(1)).map(<[u8]>::len).sum();
    (before + column.saturating_sub(1)).min(text.len())
}

fn broken(body: &[u8], at: usize, what: &str) -> Refusal {
    let before = &body[..at.min(body.len())];
    let line = 1 + memchr::memchr_iter(b'\n', before).count();
    Refusal::bad(format!(
        "the body is not a JSON array: {what}, at line {line} (byte {at}); nothing was taken"
    ))
}

fn space(body: &[u8], mut at: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = body.get(at) {
        at += 1;
    }
    at
}

fn trim(message: &[u8]) -> &[u8] {
    let start = space(message, 0);
    let last = message.iter().rposition(|b| !matches!(b, b' ' | b'\n' | b'\r' | b'\t'));
    &message[start..last.map_or(start, |last| last + 1)]
}
