//! An endpoint's socket as the codec sees it, counted; and the tasks that drive the connections.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::cluster::connect::{OpenUpstream, Upstream};
use crate::telemetry::stats::ClusterStats;

use super::pool::{Http1Connection, Http2Connection};
use super::request_body::RequestBody;

/// HTTP/2 flow control towards endpoints, in bytes: what one response may be ahead of its reader, and all together.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * STREAM_WINDOW_BYTES;

/// What moved on one connection.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes from the endpoint.
    pub received: Cell<u64>,
    /// The request on it asks for an upgrade.
    pub upgrading: Cell<bool>,
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

/// Runs hyper's tasks on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl<F: Future<Output: 'static> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Speaks HTTP/1 on `upstream`.
pub async fn http1(upstream: Upstream, stats: &Arc<ClusterStats>) -> hyper::Result<Http1Connection> {
    let traffic = Rc::new(Traffic::default());
    let stream = Metered { stream: upstream.stream, traffic: traffic.clone(), stats: stats.clone() };
    let (sender, connection) = http1::Builder::new().handshake(TokioIo::new(stream)).await?;
    stats.upstream_cx_http1_total.inc();
    let (upgraded_sender, upgraded) = oneshot::channel();
    tokio::task::spawn_local(drive_http1(connection, upstream.open, traffic.clone(), upgraded_sender));
    Ok(Http1Connection { sender, traffic, upgraded, served: 0 })
}

async fn drive_http1(
    mut connection: http1::Connection<TokioIo<Metered>, RequestBody>,
    open: OpenUpstream,
    traffic: Rc<Traffic>,
    upgraded: oneshot::Sender<UpgradedIo>,
) {
    // The error is told to the request that it concerns; an idle connection's is of no interest.
    let result = poll_fn(|cx| Pin::new(&mut connection).poll(cx)).await;
    if result.is_ok() && traffic.upgrading.get() {
        let parts = connection.into_parts();
        let io = UpgradedIo { stream: parts.io.into_inner(), first: parts.read_buf, open };
        // Nobody takes it when the answer was no 101 after all.
        let _ = upgraded.send(io);
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
        // As with HTTP/1: each request learns of the error itself.
        let _ = connection.await;
        drop(open);
    });
    Ok(Http2Connection::new(sender, traffic))
}
