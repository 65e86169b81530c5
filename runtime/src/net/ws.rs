//! WebSocket as a byte stream: what MQTT over WebSocket is (binary messages whose borders mean
//! nothing), over any stream and from either end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::{Sink, Stream as _};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{ClientRequestBuilder, Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config, client_async_with_config};

use super::Stream;

/// The subprotocol that both sides must name (MQTT 5, 6.0.0-3 and 6.0.0-4).
const SUBPROTOCOL: &str = "mqtt";

/// Buffers of a connection that says little; thousands of them cost a few megabytes.
const BUFFER_BYTES: usize = 4 * 1024;

/// Longest message that we send: what is longer goes as several, and the borders mean nothing.
const SEND_BYTES_MAX: usize = 64 * 1024;

/// A message may hold several packets, and clients do put some together.
const MESSAGE_BYTES_MIN: usize = 64 * 1024;

/// What a listener asks of those who connect.
#[derive(Clone, Debug)]
pub(crate) struct WsRules {
    /// The path that must be asked for.
    pub(crate) path: String,
    /// Web pages that may connect, such as `https://plant.example`; `None` lets all. Programs
    /// that are no browsers send no origin and are not asked.
    pub(crate) origins: Option<Vec<String>>,
    /// Longest message.
    pub(crate) message_bytes_max: usize,
    /// Time for the handshake.
    pub(crate) timeout: Duration,
}

/// Answers the handshake of a client.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] after the time of the rules; otherwise what the client did wrong,
/// which it is told as an HTTP answer where it asked in HTTP.
pub(crate) async fn accept<S: Stream>(stream: S, rules: &WsRules) -> io::Result<WsStream<S>> {
    // The answer's type is that of the library.
    #[allow(clippy::result_large_err)]
    let judge = |request: &Request, mut response: Response| match refusal(request, rules) {
        Some((status, text)) => Err(refused(status, text)),
        None => {
            let name = HeaderValue::from_static(SUBPROTOCOL);
            response.headers_mut().insert("Sec-WebSocket-Protocol", name);
            Ok(response)
        }
    };
    let config = Some(config(rules.message_bytes_max));
    let handshake = accept_hdr_async_with_config(stream, judge, config);
    match timeout(rules.timeout, handshake).await {
        Ok(Ok(inner)) => Ok(WsStream::new(inner)),
        Ok(Err(error)) => Err(io_error(error)),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no WebSocket handshake in time")),
    }
}

/// Opens a WebSocket over `stream`. `host` is what the server is called (with a port if it is not
/// the usual one), `path` begins with `/`. The caller limits the time.
///
/// # Errors
/// The server is gone, refuses, or does not know the subprotocol.
pub(crate) async fn connect<S: Stream>(
    stream: S,
    host: &str,
    path: &str,
    message_bytes_max: usize,
) -> io::Result<WsStream<S>> {
    let bad = |error| io::Error::new(io::ErrorKind::InvalidInput, format!("{error}"));
    let uri: Uri = format!("ws://{host}{path}").parse().map_err(bad)?;
    let request = ClientRequestBuilder::new(uri).with_sub_protocol(SUBPROTOCOL);
    let config = Some(config(message_bytes_max));
    let (inner, _) = client_async_with_config(request, stream, config).await.map_err(io_error)?;
    Ok(WsStream::new(inner))
}

fn config(message_bytes_max: usize) -> WebSocketConfig {
    let longest = message_bytes_max.max(MESSAGE_BYTES_MIN);
    WebSocketConfig::default()
        .read_buffer_size(BUFFER_BYTES)
        // Nothing waits for more to be sent together: what is written was put together already.
        .write_buffer_size(0)
        .max_write_buffer_size(4 * SEND_BYTES_MAX)
        .max_message_size(Some(longest))
        .max_frame_size(Some(longest))
}

fn refusal(request: &Request, rules: &WsRules) -> Option<(StatusCode, &'static str)> {
    if request.uri().path() != rules.path {
        return Some((StatusCode::NOT_FOUND, "there is nothing at this path\n"));
    }
    if !offers_mqtt(request.headers()) {
        let text = "Sec-WebSocket-Protocol must name the subprotocol mqtt\n";
        return Some((StatusCode::BAD_REQUEST, text));
    }
    let (Some(origins), Some(origin)) = (&rules.origins, request.headers().get("Origin")) else {
        return None;
    };
    let known = origins.iter().any(|known| known.as_bytes() == origin.as_bytes());
    (!known).then_some((StatusCode::FORBIDDEN, "this web page may not connect\n"))
}

fn offers_mqtt(headers: &HeaderMap) -> bool {
    let named = headers.get_all("Sec-WebSocket-Protocol").iter();
    named
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|name| name.trim() == SUBPROTOCOL))
}

fn refused(status: StatusCode, text: &str) -> ErrorResponse {
    let mut response = ErrorResponse::new(Some(text.to_owned()));
    *response.status_mut() = status;
    response.headers_mut().insert("Connection", HeaderValue::from_static("close"));
    response
}

fn io_error(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::Http(response) => {
            io::Error::other(format!("WebSocket refused: HTTP {}", response.status()))
        }
        other => io::Error::new(io::ErrorKind::InvalidData, format!("WebSocket: {other}")),
    }
}

/// The bytes inside the binary messages of a WebSocket.
pub(crate) struct WsStream<S> {
    inner: WebSocketStream<S>,
    /// What of the last message nobody has read yet.
    unread: Bytes,
    /// Something may wait for the socket to take it.
    unsent: bool,
    /// The other side has said goodbye, or broke a rule.
    ended: bool,
}

impl<S: Stream> WsStream<S> {
    fn new(inner: WebSocketStream<S>) -> Self {
        Self { inner, unread: Bytes::new(), unsent: false, ended: false }
    }

    /// Sends what waits.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unsent {
            ready!(Pin::new(&mut self.inner).poll_flush(cx)).map_err(io_error)?;
            self.unsent = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Waits for bytes; none are the end.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() && !self.ended {
            match ready!(Pin::new(&mut self.inner).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.unread = bytes,
                // Pings are answered below us.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    self.ended = true;
                    let text = "a text message, but MQTT is binary";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
                }
                Some(Ok(Message::Close(_))) => {
                    self.ended = true;
                    // Our answer to it; if the socket is full, the other side is not waiting.
                    let _ = Pin::new(&mut self.inner).poll_flush(cx);
                }
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Err(io_error(error)));
                }
                None => self.ended = true,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Stream> AsyncRead for WsStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Whoever only reads still gets rid of what was written before.
        if let Poll::Ready(Err(error)) = this.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        ready!(this.poll_message(cx))?;
        let n = this.unread.len().min(out.remaining());
        out.put_slice(&this.unread.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl<S: Stream> AsyncWrite for WsStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // At most one message waits here; the rest waits where it comes from.
        ready!(this.poll_send(cx))?;
        ready!(Pin::new(&mut this.inner).poll_ready(cx)).map_err(io_error)?;
        let n = bytes.len().min(SEND_BYTES_MAX);
        if n == 0 {
            return Poll::Ready(Ok(0));
        }
        let message = Message::Binary(Bytes::copy_from_slice(&bytes[..n]));
        Pin::new(&mut this.inner).start_send(message).map_err(io_error)?;
        this.unsent = true;
        match this.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(n)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        // Says goodbye and sends it, but does not wait for the answer.
        Pin::new(&mut this.inner).poll_close(cx).map_err(io_error)
    }
}

#[cfg(test)]
mod tests;
