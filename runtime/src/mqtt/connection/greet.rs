//! The beginning of a connection: CONNECT, who it is, and the answer. Also its very end.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tidegate_operators::MessagesBuilder;
use tidegate_operators::event::SessionEvent;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Shared;
use super::session::Session;
use super::stream::{Outbox, exchange};
use crate::mqtt::access::{Identity, Peer};
use crate::mqtt::broker::{MayReceive, Opening, Publication, Will};
use crate::mqtt::buffer::ReadBuffer;
use crate::mqtt::connect::{self, Connect, Hello, Refusal, Testament, Why, bad_frame, malformed};
use crate::mqtt::limits::{CONNECT_BYTES_MAX, LINGER, LINGER_MAX, REFUSAL_TIMEOUT, WRITE_TIMEOUT};
use crate::mqtt::notices::Notice;
use crate::mqtt::route::{now_ms, will_properties};
use crate::mqtt::wire::{Frame, frame, kind};
use crate::source::{IntakeError, count, now_us};
use crate::time::{self, timeout, timeout_at};

/// Reads the CONNECT and lets the client in.
pub(super) async fn greet<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut ReadBuffer,
    peer: &Peer,
    shared: &Arc<Shared>,
    full: Option<String>,
) -> Result<Session, Refusal> {
    let frame = read_connect(stream, buffer, shared, full.is_some()).await?;
    let packet = &buffer.received()[..frame.total_len];
    let connect = connect::read(frame, packet)?;
    if let Some(full) = full {
        return Err(Why::Quota(full).refuse(&connect));
    }
    let hello = Hello::of(&connect, &shared.terms)?;
    let identity = shared.access.admit(&connect, &hello.client_id, peer).await?;
    let opening = opening(&connect, &hello, &identity, shared)?;
    let session = Session::open(hello, identity, opening, peer.address, shared);
    buffer.consume(frame.total_len);
    Ok(session)
}

/// Reads until the first packet is complete.
async fn read_connect<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut ReadBuffer,
    shared: &Shared,
    full: bool,
) -> Result<Frame, Refusal> {
    let patience = if full { REFUSAL_TIMEOUT } else { shared.connect_timeout };
    let deadline = time::now() + patience;
    let limit_bytes = CONNECT_BYTES_MAX.min(shared.terms.packet_bytes_max);
    loop {
        if buffer.received().first().is_some_and(|byte1| *byte1 != kind::CONNECT << 4) {
            return Err(malformed("the first packet is not a CONNECT"));
        }
        if let Some(frame) = frame(buffer.received(), limit_bytes).map_err(bad_frame)? {
            return Ok(frame);
        }
        let read = stream.read(buffer.spare(limit_bytes));
        match timeout_at(deadline, read).await {
            Ok(Ok(n)) if n > 0 => buffer.filled(n),
            Ok(_) => return Err(malformed("closed before a CONNECT")),
            Err(_) => return Err(malformed("no CONNECT in time")),
        }
    }
}

/// What the broker is to know.
fn opening(
    connect: &Connect<'_>,
    hello: &Hello,
    identity: &Identity,
    shared: &Shared,
) -> Result<Opening, Refusal> {
    let will = match &connect.will {
        Some(will)
            if !identity.may_publish(will.topic)
                || shared.delivered.is_ours(will.topic.as_bytes()) =>
        {
            let text = format!("the user may not publish the will to `{}`", will.topic);
            return Err(Why::NotAuthorized(text).refuse(connect));
        }
        Some(testament) => Some(will(testament, shared.terms.retained)),
        None => None,
    };
    let wishes = &connect.wishes;
    Ok(Opening {
        client_id: hello.client_id.clone(),
        version: connect.version,
        clean_start: connect.clean,
        session_expiry_s: hello.session_expiry_s,
        receive_maximum: wishes.receive_maximum,
        packet_bytes_max: wishes.packet_bytes_max,
        topic_alias_max: wishes.topic_alias_max,
        will,
        user: identity.user().to_owned(),
        may_receive: identity.acl().map(|acl| {
            let may_receive: MayReceive = Arc::new(move |topic| acl.may_receive(topic));
            may_receive
        }),
    })
}

/// A will for the broker to keep. Its expiry counts from its publication, which nobody knows yet:
/// until then `expires_at_ms` is how long it lasts; see [`publish_now`].
fn will(testament: &Testament<'_>, retained: bool) -> Will {
    let publication = Publication {
        topic: Bytes::copy_from_slice(testament.topic.as_bytes()),
        payload: Bytes::copy_from_slice(testament.payload),
        properties: will_properties(testament.properties),
        qos: testament.qos,
        retain: testament.retain && retained,
        expires_at_ms: testament.expiry_s.map(|s| u64::from(s) * 1000),
    };
    Will { publication, delay_s: testament.delay_s }
}

/// A will whose time has come.
pub(crate) fn publish_now(mut will: Publication) -> Publication {
    will.expires_at_ms = will.expires_at_ms.map(|lasts_ms| now_ms() + lasts_ms);
    will
}

/// Answers who is not let in, and notes it.
pub(super) async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    refusal: Refusal,
    address: SocketAddr,
    heard: bool,
    shared: &Shared,
) -> Result<(), IntakeError> {
    let stats = &shared.stats;
    tracing::info!(%address, "connection refused: {}", refusal.text);
    count(if refusal.malformed { &stats.protocol_errors } else { &stats.refused }, 1);
    stats.note_error(format!("connection refused: {}", refusal.text));
    let mut out = Outbox::default();
    out.append(refusal.reply);
    close(&mut stream, &mut out).await;
    drop(stream);
    // Who only looks whether the port is open, as load balancers do, is no event.
    if !heard {
        return Ok(());
    }
    note_refused(refusal.client_id, refusal.text, address, shared).await
}

/// Writes an event of somebody who was not let in, unless there are too many.
pub(crate) async fn note_refused(
    client_id: String,
    detail: String,
    address: SocketAddr,
    shared: &Shared,
) -> Result<(), IntakeError> {
    if !shared.notices.allow(Notice::Refused, now_ms()) {
        return Ok(());
    }
    let event = SessionEvent {
        source: shared.name.clone(),
        client_id,
        event: Notice::Refused.name().to_owned(),
        detail,
        address: address.to_string(),
        ..SessionEvent::default()
    };
    let mut messages = MessagesBuilder::default();
    event.put(&mut messages, now_us(), 0);
    shared.intake.offer(messages).await
}

/// Sends the last bytes, then reads on for a moment so that they are not lost to a reset.
pub(super) async fn close<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, out: &mut Outbox) {
    let sent = timeout(WRITE_TIMEOUT, async {
        while out.len() > 0 {
            exchange(stream, out, None).await?;
        }
        stream.shutdown().await
    });
    if matches!(sent.await, Ok(Ok(()))) {
        let mut waste = [0; 1024];
        let end = time::now() + LINGER_MAX;
        loop {
            let deadline = end.min(time::now() + LINGER);
            match timeout_at(deadline, stream.read(&mut waste)).await {
                Ok(Ok(n)) if n > 0 && time::now() < end => {}
                _ => break,
            }
        }
    }
}
