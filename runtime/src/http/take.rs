//! What every write does, whatever its API: read the body within bounds, make messages of it, and
//! answer when they are durable. A request is one offer to the journal, so it is taken as a whole
//! or not at all.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::BodyDataStream;
use axum::http::StatusCode;
use futures::StreamExt as _;
use tidegate_operators::{MessageMeta, MessagesBuilder};
use tokio::time::timeout;

use super::budget::Held;
use super::limits::{INLINE_BYTES_MAX, OFFER_BYTES_MAX};
use super::refusal::Refusal;
use super::requests::{Begin, Requests, UnderWay, content_of, id_of};
use super::server::{Route, Shared};
use super::split::{Framing, split};
use super::unpack::{Encoding, unpack};
use crate::source::{IntakeError, count, now_us};

/// What is known of a write besides its body.
#[derive(Clone)]
pub(crate) struct Write {
    pub(crate) route: Arc<Route>,
    /// Who sends it; empty where anyone may.
    pub(crate) user: String,
    pub(crate) address: String,
    pub(crate) topic: String,
    pub(crate) framing: Framing,
    pub(crate) encoding: Encoding,
    /// MQTT 5 properties of each message.
    pub(crate) properties: Vec<u8>,
    /// Idempotency key.
    pub(crate) key: Option<Vec<u8>>,
}

/// How a write ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// So many messages are durable.
    New(u64),
    /// They were before.
    Duplicate,
}

/// Messages on their way to the journal, and what they hold.
struct Offer {
    messages: MessagesBuilder,
    count: u64,
    under_way: Option<UnderWay>,
    received_us: i64,
    _held: Held,
}

/// Takes a write.
pub(crate) async fn take(
    shared: &Shared,
    write: Write,
    body: &mut BodyDataStream,
) -> Result<Taken, Refusal> {
    let mut held = shared.budget.hold();
    let read = read(body, write.route.bounds.body_bytes_max, &mut held);
    let body = timeout(shared.timeouts.body, read)
        .await
        .map_err(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body came too slowly"))??;
    let route = Arc::clone(&write.route);
    let requests = Arc::clone(&shared.requests);
    let small = body.len() <= INLINE_BYTES_MAX && write.encoding == Encoding::Plain;
    let prepared = match small {
        true => prepare(&write, body, held, &requests),
        false => {
            let work = move || prepare(&write, body, held, &requests);
            tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(failed()))
        }
    }?;
    let Some(offer) = prepared else { return Ok(Taken::Duplicate) };
    let messages = offer.count;
    if offer.messages.is_empty() {
        return Ok(Taken::New(0));
    }
    count(&route.stats.received, messages);
    // A task of its own: if the client goes away, the offer still ends in order.
    let mut task = tokio::spawn(offer_to(route, offer));
    match timeout(shared.timeouts.offer, &mut task).await {
        Ok(Ok(Ok(()))) => Ok(Taken::New(messages)),
        Ok(Ok(Err(error))) => Err(of_journal(&error)),
        Ok(Err(_)) => Err(failed()),
        Err(_) => {
            shared.stalled.fetch_add(1, Ordering::Relaxed);
            let stalled = Arc::clone(&shared.stalled);
            tokio::spawn(async move {
                // However it ends: it does not wait any more.
                let _ = task.await;
                stalled.fetch_sub(1, Ordering::Relaxed);
            });
            Err(Refusal::busy(
                "the disk does not keep up, and this request may be taken later: send it again \
                 with the same Idempotency-Key",
            ))
        }
    }
}

async fn offer_to(route: Arc<Route>, mut offer: Offer) -> Result<(), IntakeError> {
    let result = route.intake.offer(std::mem::take(&mut offer.messages)).await;
    match &result {
        Ok(()) => {
            if let Some(under_way) = &offer.under_way {
                under_way.taken(offer.received_us);
            }
            count(&route.stats.acked, offer.count);
        }
        Err(IntakeError::TooLarge { .. }) => {}
        Err(error) => {
            route.failed.send_replace(Some(error.clone()));
        }
    }
    result
}

fn of_journal(error: &IntakeError) -> Refusal {
    match error {
        IntakeError::TooLarge { .. } => Refusal::too_large(format!("{error}: send less at a time")),
        _ => Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "tidegate is shutting down, nothing was acknowledged: send it again",
        ),
    }
}

fn failed() -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "an error of tidegate: see its log")
}

/// The body as it was sent.
async fn read(
    chunks: &mut BodyDataStream,
    bytes_max: usize,
    held: &mut Held,
) -> Result<Vec<u8>, Refusal> {
    let mut out = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|e| Refusal::bad(format!("the body ended early: {e}")))?;
        if out.len() + chunk.len() > bytes_max {
            return Err(Refusal::too_large(format!(
                "the body has more than {bytes_max} bytes: send less at a time, or compress it"
            )));
        }
        held.append(&mut out, &chunk, bytes_max)?;
    }
    Ok(out)
}

/// From a body to an offer; none if its key was taken before.
fn prepare(
    write: &Write,
    body: Vec<u8>,
    mut held: Held,
    requests: &Arc<Requests>,
) -> Result<Option<Offer>, Refusal> {
    let body = unpack(body, write.encoding, write.route.bounds, &mut held)?;
    let received_us = now_us();
    let mut messages = MessagesBuilder::default();
    let mut under_way = None;
    if let Some(key) = &write.key {
        let id = id_of(&write.route.pipeline, &write.user, key);
        match requests.begin(id, content_of(&write.topic, &body)) {
            Begin::New(new) => {
                let event = new.event(&write.route.source, &write.user, &write.address);
                event.put(&mut messages, received_us, 0);
                under_way = Some(new);
            }
            Begin::Duplicate => return Ok(None),
            Begin::OtherContent => {
                return Err(Refusal::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "this Idempotency-Key was used for another body: take a new key for each",
                ));
            }
            Begin::UnderWay => {
                return Err(Refusal::busy("a request with this Idempotency-Key is under way"));
            }
        }
    }
    let count = fill(write, &body, &mut messages, &mut held, received_us)?;
    held.shrink(body.capacity());
    Ok(Some(Offer { messages, count, under_way, received_us, _held: held }))
}

/// Appends the messages of a body; gives their number. First they are counted, so that what they
/// take is known, and refused, before it is taken.
fn fill(
    write: &Write,
    body: &[u8],
    messages: &mut MessagesBuilder,
    held: &mut Held,
    received_us: i64,
) -> Result<u64, Refusal> {
    let (topic, user) = (write.topic.as_bytes(), write.user.as_bytes());
    let of_each = topic.len() + user.len() + write.properties.len();
    let (mut count, mut bytes) = (0, 0);
    split(body, write.framing, |payload| {
        count += 1;
        bytes += of_each + payload.len();
        match bytes + count * size_of::<MessageMeta>() > OFFER_BYTES_MAX {
            true => Err(Refusal::too_large(format!(
                "{count} and more messages have no room in one request: send less at a time"
            ))),
            false => Ok(()),
        }
    })?;
    held.grow(bytes + count * size_of::<MessageMeta>())?;
    messages.reserve(bytes, count);
    let meta = MessageMeta { received_us, ..MessageMeta::default() };
    split(body, write.framing, |payload| {
        messages.push_with(topic, payload, user, &write.properties, meta);
        Ok(())
    })?;
    Ok(count as u64)
}
