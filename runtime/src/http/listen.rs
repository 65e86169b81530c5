//! Connections of an HTTP listener: no more than a number of them, and none that only occupies one.
//!
//! The server above knows no time limits, so the stream itself has them: for headers, between
//! requests, and for a client that does not read its answers. While a request is handled, its
//! handler has limits of its own.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::limits::{HEAD_BYTES_MAX, Timeouts};
use crate::open_files::{self, Place};
use crate::source::{SourceStats, count};

/// Pause after the system refused to accept, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener that refuses connections beyond a number.
pub(crate) struct Door {
    pub(crate) listener: TcpListener,
    pub(crate) free: Arc<Semaphore>,
    pub(crate) timeouts: Timeouts,
    pub(crate) stats: Arc<SourceStats>,
    /// Its connections have files of their own, which those of devices leave to it.
    pub(crate) reserved: bool,
}

/// What a connection gives back at its end.
type Permit = (OwnedSemaphorePermit, Option<Place>);

impl Listener for Door {
    type Io = Guarded;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guarded, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => match self.permit() {
                    Ok(permit) => return (self.admit(stream, permit), address),
                    Err(why) => {
                        count(&self.stats.refused, 1);
                        tracing::debug!(%address, "refused: {why}");
                        self.stats.note_error(why);
                    }
                },
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    self.stats.note_error(format!("cannot accept: {error}"));
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Door {
    /// The permit for one more connection, or why there is none.
    fn permit(&self) -> Result<Permit, String> {
        let permit = Arc::clone(&self.free).try_acquire_owned();
        let permit = permit.map_err(|_| "too many connections".to_owned())?;
        if self.reserved {
            return Ok((permit, None));
        }
        let room = open_files::room();
        match room.place() {
            None => Err(room.full()),
            place => Ok((permit, place)),
        }
    }

    fn admit(&self, stream: TcpStream, permit: Permit) -> Guarded {
        // Answers are small and wait for nothing.
        let _ = stream.set_nodelay(true);
        count(&self.stats.connections, 1);
        count(&self.stats.connections_total, 1);
        let until = Instant::now() + self.timeouts.head;
        Guarded {
            stream,
            phase: Phase {
                state: Arc::new(Mutex::new(State::Waiting { until, head: Progress::default() })),
                idle: self.timeouts.idle,
            },
            timeouts: self.timeouts,
            read_timer: Box::pin(sleep_until(until)),
            write_timer: None,
            stats: Arc::clone(&self.stats),
            _permit: permit,
        }
    }
}

/// Where a connection is between requests.
#[derive(Clone, Copy, Debug)]
enum State {
    /// For a request, or for the rest of its headers.
    Waiting { until: Instant, head: Progress },
    /// A request is handled.
    Handling,
}

/// How much of a request's headers has come. The server above may read on before it calls the
/// handler, so what belongs to the body must not be counted.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    bytes: usize,
    /// The line that is being read has no character yet.
    blank: bool,
    /// An empty line after others: the headers are complete.
    complete: bool,
}

impl Progress {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' if self.blank => self.complete = true,
                // Empty lines before a request do not count, and there is none before the first.
                b'\n' => self.blank = self.bytes > 0,
                b'\r' => {}
                _ => (self.blank, self.bytes) = (false, self.bytes + 1),
            }
            if self.complete {
                return;
            }
        }
    }

    fn is_too_long(self) -> bool {
        !self.complete && self.bytes > HEAD_BYTES_MAX
    }
}

/// Tells the stream what its handler does.
#[derive(Clone, Debug)]
pub(crate) struct Phase {
    state: Arc<Mutex<State>>,
    idle: Duration,
}

impl Phase {
    /// A request is handled, as long as this lives.
    pub(crate) fn handling(&self) -> Handling {
        *self.lock() = State::Handling;
        Handling(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Phase::handling`].
pub(crate) struct Handling(Phase);

impl Drop for Handling {
    fn drop(&mut self) {
        let until = Instant::now() + self.0.idle;
        *self.0.lock() = State::Waiting { until, head: Progress::default() };
    }
}

/// What handlers know of their connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    pub(crate) phase: Phase,
}

impl Connected<IncomingStream<'_, Door>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        Self { address: *stream.remote_addr(), phase: stream.io().phase.clone() }
    }
}

/// A connection with time limits.
pub(crate) struct Guarded {
    stream: TcpStream,
    phase: Phase,
    timeouts: Timeouts,
    read_timer: Pin<Box<Sleep>>,
    write_timer: Option<Pin<Box<Sleep>>>,
    stats: Arc<SourceStats>,
    _permit: Permit,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.stats.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Guarded {
    fn broke(&self, what: &'static str) -> io::Error {
        count(&self.stats.protocol_errors, 1);
        self.stats.note_error(what);
        io::Error::new(io::ErrorKind::TimedOut, what)
    }

    /// Notes bytes of headers, whose time runs from the first of them.
    fn got(&self, bytes: &[u8]) {
        if let State::Waiting { until, head } = &mut *self.phase.lock() {
            let before = head.bytes;
            head.add(bytes);
            if before == 0 && head.bytes > 0 {
                *until = Instant::now() + self.timeouts.head;
            }
        }
    }

    fn poll_write_limit(
        &mut self,
        cx: &mut Context<'_>,
        done: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if done.is_ready() {
            self.write_timer = None;
            return done;
        }
        let limit = self.timeouts.write;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(self.broke("a client does not read its answers")))
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let state = *self.phase.lock();
        if let State::Waiting { head, .. } = state
            && head.is_too_long()
        {
            return Poll::Ready(Err(self.broke("headers without an end")));
        }
        let before = buf.filled().len();
        if let Poll::Ready(done) = Pin::new(&mut self.stream).poll_read(cx, buf) {
            self.got(&buf.filled()[before..]);
            return Poll::Ready(done);
        }
        let State::Waiting { until, .. } = state else { return Poll::Pending };
        if self.read_timer.deadline() != until {
            self.read_timer.as_mut().reset(until);
        }
        ready!(self.read_timer.as_mut().poll(cx));
        Poll::Ready(Err(self.broke("a connection without a whole request")))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.poll_write_limit(cx, done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.poll_write_limit(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_headers_is_found_wherever_reads_are_cut() {
        let head = b"\r\n\r\nPOST / HTTP/1.1\r\na: b\n\r\n";
        for cut in 0..head.len() {
            let mut progress = Progress::default();
            progress.add(&head[..cut]);
            assert!(!progress.complete, "{cut}");
            progress.add(&head[cut..]);
            assert!(progress.complete, "{cut}");
            progress.add(&[b'x'; HEAD_BYTES_MAX]);
            assert!(!progress.is_too_long(), "a body");
        }
        let mut endless = Progress::default();
        (0..HEAD_BYTES_MAX).for_each(|_| endless.add(b"x: y\r\n"));
        assert!(endless.is_too_long());
    }
}
