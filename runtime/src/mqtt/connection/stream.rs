//! Moves bytes both ways at once: a peer that sends much before it reads must not wait for us
//! while we wait for it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::fault;
use crate::time;

/// An empty outbox gives back memory beyond this: most connections say little.
const IDLE_BYTES: usize = 4 * 1024;

/// Bytes already sent are thrown away when there are this many.
const SENT_BYTES_MAX: usize = 64 * 1024;

/// Packets to send.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Append only.
    pub(super) bytes: Vec<u8>,
    sent: usize,
    flushing: bool,
    /// Acknowledgements are among the bytes.
    has_acks: bool,
    /// Since when the peer takes nothing, if it takes nothing.
    pub(super) stalled: Option<Instant>,
}

/// What [`exchange`] did.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// Bytes were received; 0 is the end.
    Read(usize),
    /// Something was sent, or cannot be.
    Wrote,
}

impl Outbox {
    /// Bytes to send.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Appends packets, taking them over if there are no others.
    pub(super) fn append(&mut self, packets: Vec<u8>) {
        if self.bytes.is_empty() {
            self.bytes = packets;
        } else {
            self.bytes.extend_from_slice(&packets);
        }
    }

    /// Appends acknowledgements.
    pub(super) fn append_acks(&mut self, acks: Vec<u8>) {
        self.has_acks |= !acks.is_empty();
        self.append(acks);
    }

    /// Sends what the peer takes. Ready if anything changed.
    fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let mut moved = false;
        while self.len() > 0 {
            match Pin::new(&mut *stream).poll_write(cx, &self.bytes[self.sent..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => {
                    self.sent += n;
                    (self.flushing, moved) = (true, true);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return self.stall(moved),
            }
        }
        self.bytes.clear();
        self.sent = 0;
        if self.bytes.capacity() > IDLE_BYTES {
            self.bytes = Vec::new();
        }
        if self.flushing {
            match Pin::new(stream).poll_flush(cx) {
                Poll::Ready(result) => result?,
                Poll::Pending => return self.stall(moved),
            }
            self.flushing = false;
            if std::mem::take(&mut self.has_acks) {
                fault::point("after_ack");
            }
        }
        self.stalled = None;
        if moved { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn stall(&mut self, moved: bool) -> Poll<io::Result<()>> {
        if self.sent > SENT_BYTES_MAX {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        if moved || self.stalled.is_none() {
            self.stalled = Some(time::now());
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }
}

/// Sends from `out` and, if there is `room`, receives. Cancel-safe.
pub(super) async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    out: &mut Outbox,
    mut room: Option<&mut [u8]>,
) -> io::Result<Moved> {
    poll_fn(|cx| {
        let sent = out.poll_send(stream, cx)?;
        if let Some(room) = room.as_deref_mut() {
            let mut buffer = ReadBuf::new(room);
            if let Poll::Ready(result) = Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
                return Poll::Ready(result.map(|()| Moved::Read(buffer.filled().len())));
            }
        }
        ready!(sent);
        Poll::Ready(Ok(Moved::Wrote))
    })
    .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn both_sides_may_send_more_than_the_pipe_holds_before_they_read() {
        let (mut ours, theirs) = tokio::io::duplex(100);
        let (mut reader, mut writer) = tokio::io::split(theirs);
        let sending = tokio::spawn(async move {
            writer.write_all(&[7; 10_000]).await.unwrap();
            let mut back = vec![0; 10_000];
            reader.read_exact(&mut back).await.unwrap();
            back
        });
        let mut out = Outbox::default();
        out.append(vec![9; 10_000]);
        let (mut room, mut received) = ([0; 64], 0);
        while received < 10_000 || out.len() > 0 {
            match exchange(&mut ours, &mut out, Some(&mut room)).await.unwrap() {
                Moved::Read(n) => received += n,
                Moved::Wrote => {}
            }
        }
        assert_eq!(sending.await.unwrap(), vec![9; 10_000]);
        assert!(out.stalled.is_none() && out.bytes.capacity() <= IDLE_BYTES);
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_noticed() {
        let (mut ours, _theirs) = tokio::io::duplex(10);
        let mut out = Outbox::default();
        out.append(vec![1; 100]);
        assert_eq!(exchange(&mut ours, &mut out, None).await.unwrap(), Moved::Wrote);
        assert!(out.stalled.is_some());
        assert_eq!(out.len(), 90);
    }
}
