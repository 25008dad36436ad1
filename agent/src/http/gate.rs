//! The client's socket as a codec or a tunnel sees it: counted, and watched for a client that takes nothing.
//!
//! Before: the accepted socket. After: the server of HTTP/2, or a tunnel. The server of HTTP/1 has the socket
//! itself, and counts in the same [`Wire`].

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

/// What moves on one connection.
#[derive(Default)]
pub struct Wire {
    /// Bytes from the client.
    pub received: Cell<u64>,
    /// Bytes to the client.
    pub sent: Cell<u64>,
    /// The framing of a request's body broke.
    pub broken: Cell<bool>,
    /// The client has taken nothing since.
    blocked_since: Cell<Option<Instant>>,
    blocked: Notify,
}

impl Wire {
    /// Whether a chunked body broke its framing.
    pub fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// Resolves when the client has taken nothing for as long as `limit` says of what was there for it.
    pub async fn blocks(&self, limit: impl Fn() -> Option<std::time::Duration>) {
        loop {
            match self.blocked_since.get().zip(limit()) {
                None => self.blocked.notified().await,
                Some((since, limit)) if since.elapsed() >= limit => return,
                Some((since, limit)) => tokio::time::sleep_until(since + limit).await,
            }
        }
    }

    /// Whether the client could take no more.
    pub fn is_blocked(&self) -> bool {
        self.blocked_since.get().is_some()
    }

    /// Since when, if so.
    pub fn blocked_since(&self) -> Option<Instant> {
        self.blocked_since.get()
    }

    /// The client took something.
    pub fn flows(&self) {
        self.blocked_since.set(None);
    }

    /// The client takes nothing more for now.
    pub fn block(&self) {
        if !self.is_blocked() {
            self.blocked_since.set(Some(Instant::now()));
            self.blocked.notify_one();
        }
    }
}

/// See the module.
pub struct Gate<S> {
    stream: S,
    wire: Rc<Wire>,
    /// Read already.
    first: BytesMut,
}

impl<S> Gate<S> {
    /// Of `stream`, from which `first` was read, and counted, already.
    pub fn new(stream: S, first: BytesMut, wire: Rc<Wire>) -> Self {
        Self { stream, wire, first }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gate<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let passing = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first[..passing]);
            self.first.advance(passing);
            if self.first.is_empty() {
                self.first = BytesMut::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        self.wire.received.set(self.wire.received.get() + read as u64);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Gate<S> {
    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match polled {
            Poll::Ready(Ok(sent)) => {
                self.wire.sent.set(self.wire.sent.get() + sent as u64);
                self.wire.flows();
            }
            Poll::Pending => self.wire.block(),
            Poll::Ready(Err(_)) => {}
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gate<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(polled)
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
