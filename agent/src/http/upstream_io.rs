//! An endpoint's socket as hyper and the tunnels see it, counted; and the tasks that drive HTTP/2 connections.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::cluster::connect::{OpenUpstream, Upstream};
use crate::telemetry::stats::ClusterStats;

use super::pool::Http2Connection;

/// HTTP/2 flow control towards endpoints, in bytes: what one response may be ahead of its reader, and all together.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * STREAM_WINDOW_BYTES;

/// What moved on one connection.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes from the endpoint.
    pub received: Cell<u64>,
}

/// A counted socket.
#[derive(Debug)]
pub struct Metered {
    stream: TcpStream,
    traffic: Rc<Traffic>,
    stats: Arc<ClusterStats>,
}

impl AsyncRead for Metered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let read = (buf.filled().len() - before) as u64;
        if read > 0 {
            self.traffic.received.set(self.traffic.received.get() + read);
            self.stats.upstream_cx_rx_bytes_total.add(read);
        }
        polled
    }
}

impl Metered {
    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(sent)) = polled {
            self.stats.upstream_cx_tx_bytes_total.add(sent as u64);
        }
        polled
    }
}

impl AsyncWrite for Metered {
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

/// What an HTTP/1 connection becomes after a 101.
pub struct UpgradedIo {
    /// The socket.
    pub stream: Metered,
    /// What the endpoint sent right behind the response's head.
    pub first: Bytes,
    /// Counts the connection as open.
    pub open: OpenUpstream,
}

impl UpgradedIo {
    /// Of a socket, from which `first` was read already.
    pub fn new(stream: TcpStream, stats: Arc<ClusterStats>, first: Bytes, open: OpenUpstream) -> Self {
        Self { stream: Metered { stream, traffic: Rc::default(), stats }, first, open }
    }
}

/// Runs hyper's tasks on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Speaks HTTP/2 on `upstream`.
pub async fn http2(upstream: Upstream, stats: &Arc<ClusterStats>) -> hyper::Result<Http2Connection> {
    let traffic = Rc::new(Traffic::default());
    let stream = Metered { stream: upstream.stream, traffic: traffic.clone(), stats: stats.clone() };
    let (sender, connection) = http2::Builder::new(LocalExecutor)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .handshake(TokioIo::new(stream))
        .await?;
    stats.upstream_cx_http2_total.inc();
    let open = upstream.open;
    tokio::task::spawn_local(async move {
        // Each request learns of the error itself; an idle connection's is of no interest.
        let _ = connection.await;
        drop(open);
    });
    Ok(Http2Connection::new(sender, traffic))
}
