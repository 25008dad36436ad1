//! One client connection that speaks HTTP: the codec, its idle time, its end.
//!
//! Before: the pipeline, which knows the filter chain. After: `service` for each request; and when the codec is
//! done, a tunnel, a polite close, or nothing. The pipeline gets a [`ConnectionEnd`] for its record.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use http::StatusCode;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::listener::filter::Detected;
use crate::place::Behalf;
use crate::snapshot::Snapshot;
use crate::telemetry::ResponseFlags;
use crate::telemetry::record::ConnectionInfo;
use crate::worker::Worker;

use super::downstream::Downstream;
use super::gate::{Gate, Wire};
use super::head::HeadLimits;
use super::refusal::Refusal;
use super::service;
use super::tunnel::Tunnel;
use super::upstream_io::LocalExecutor;
use super::{CodecType, ConnectionContext, ConnectionEnd, HttpConnectionManager};

/// How an HTTP/2 client begins (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a closed connection's remaining bytes are read away, so that the last response is not lost to a reset:
/// Envoy's default `delayed_close_timeout`.
const LINGER: Duration = Duration::from_secs(1);

/// HTTP/2 flow control towards clients, in bytes.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 8 * STREAM_WINDOW_BYTES;
/// Requests at once on one HTTP/2 connection: Envoy's default is 1024 here.
const MAX_CONCURRENT_STREAMS: u32 = 1024;
/// Room above the configured limit, so that the agent's own check answers and records what is too large.
const HEADER_LIST_SLACK: u32 = 64 * 1024;

/// What a connection's requests share.
pub struct Connection {
    /// Who and where.
    pub info: Arc<ConnectionInfo>,
    /// The configuration that it began with.
    pub snapshot: Arc<Snapshot>,
    /// How HTTP is spoken.
    pub manager: Arc<HttpConnectionManager>,
    /// On whose behalf the agent connects to endpoints.
    pub behalf: Behalf,
    /// Whose thread this is.
    pub worker: Rc<Worker>,
    /// The gate's side.
    pub wire: Rc<Wire>,
    requests: Cell<u64>,
    active: Cell<u32>,
    idle_since: Cell<Instant>,
    flags: Cell<ResponseFlags>,
    details: RefCell<Option<String>>,
    tunnel: RefCell<Option<Tunnel>>,
    lingers: Cell<bool>,
    cut_off: Cell<bool>,
    closing: Cell<bool>,
    stalled: Cell<bool>,
    patience: Cell<Option<Duration>>,
}

impl Connection {
    fn new(context: ConnectionContext, manager: Arc<HttpConnectionManager>, worker: Rc<Worker>) -> Self {
        let patience = Cell::new(manager.stream_idle_timeout);
        Self {
            info: Arc::new(context.info),
            behalf: context.behalf,
            snapshot: context.snapshot,
            manager,
            worker,
            wire: Rc::default(),
            requests: Cell::new(0),
            active: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            flags: Cell::new(ResponseFlags::NONE),
            details: RefCell::new(None),
            tunnel: RefCell::new(None),
            lingers: Cell::new(false),
            cut_off: Cell::new(false),
            closing: Cell::new(false),
            stalled: Cell::new(false),
            patience,
        }
    }

    /// A request began.
    pub fn begin_request(&self) {
        self.requests.set(self.requests.get() + 1);
        self.active.set(self.active.get() + 1);
    }

    /// A request ended, now.
    pub fn end_request(&self, now: Instant) {
        self.active.set(self.active.get() - 1);
        self.idle_since.set(now);
        self.wire.resume();
    }

    /// A request was refused.
    pub fn note_refusal(&self, refusal: &Refusal) {
        let stats = &self.manager.stats;
        if refusal.status == StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE {
            stats.downstream_rq_too_large.inc();
        }
        if refusal.flags.contains(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR) {
            self.note(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, refusal.details);
        }
    }

    fn note(&self, flags: ResponseFlags, details: impl Into<String>) {
        let mut all = self.flags.get();
        if flags.contains(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR) && !all.contains(flags) {
            self.manager.stats.downstream_cx_protocol_error.inc();
        }
        all.insert(flags);
        self.flags.set(all);
        self.details.borrow_mut().get_or_insert_with(|| details.into());
    }

    /// The connection is given to `tunnel` when the codec is done with it.
    pub fn prepare_tunnel(&self, tunnel: Tunnel) {
        self.manager.stats.downstream_cx_upgrades_total.inc();
        self.wire.stay_open(true);
        *self.tunnel.borrow_mut() = Some(tunnel);
    }

    /// The client may still be sending when the connection is closed.
    pub fn linger(&self) {
        self.lingers.set(true);
    }

    /// A response was cut off whose end is the connection's.
    pub fn cut_off(&self) {
        self.cut_off.set(true);
    }

    /// Whether the agent is closing everything.
    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// How long the client may take nothing of a response, by the route of the request. Of several at once the most
    /// patient counts.
    pub fn wait_for_reader(&self, limit: Option<Duration>) {
        let others = if self.active.get() > 1 { self.patience.get() } else { limit };
        self.patience.set(limit.zip(others).map(|(one, other)| one.max(other)));
    }

    /// Whether the connection is given up because the client does not read.
    pub fn is_stalled(&self) -> bool {
        self.stalled.get()
    }

    /// Resolves when there is no point in waiting for the client any longer.
    async fn abandoned(&self) {
        let silent = async {
            self.idle().await;
            // The codec has been told to end; an HTTP/2 client has to agree, and may never do so.
            loop {
                tokio::time::sleep(LINGER).await;
                if self.active.get() == 0 && !self.wire.is_blocked() {
                    return;
                }
            }
        };
        tokio::select! {
            () = self.wire.blocks(|| self.patience.get()) => {
                self.stalled.set(true);
                self.note(ResponseFlags::STREAM_IDLE_TIMEOUT, "stream_idle_timeout");
            }
            () = silent => {}
        }
    }

    /// Resolves when no request was in flight for the idle timeout.
    async fn idle(&self) {
        let Some(timeout) = self.manager.idle_timeout else { return std::future::pending().await };
        loop {
            let deadline = match self.active.get() {
                0 => self.idle_since.get() + timeout,
                _ => Instant::now() + timeout,
            };
            if deadline <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }

    /// Answers whoever takes too long with a request's head. Never resolves.
    async fn watch_heads(&self) {
        let Some(limit) = self.manager.request_headers_timeout else { return std::future::pending().await };
        self.wire.head_takes(limit).await;
        self.manager.stats.downstream_rq_header_timeout.inc();
        let text = "request header timeout";
        self.wire.refuse(Refusal::request(StatusCode::REQUEST_TIMEOUT, "request_header_timeout", text).closing());
        std::future::pending().await
    }

    fn end(&self) -> ConnectionEnd {
        ConnectionEnd {
            flags: self.flags.get(),
            details: self.details.borrow_mut().take(),
            requests: self.requests.get(),
            bytes_received: self.wire.received.get(),
            bytes_sent: self.wire.sent.get(),
        }
    }
}

/// Serves a client's connection until it ends.
pub async fn serve(
    stream: TcpStream,
    context: ConnectionContext,
    manager: Arc<HttpConnectionManager>,
    worker: Rc<Worker>,
) -> ConnectionEnd {
    let detected = context.detected;
    let drain = worker.shared.drain.clone();
    let connection = Rc::new(Connection::new(context, manager, worker));
    let served = async {
        let mut stream = stream;
        let Some((codec, first)) = codec(&connection, &mut stream, detected).await else { return };
        match codec {
            Codec::Http1 => serve_http1(&connection, stream, first).await,
            Codec::Http2 => serve_http2(&connection, stream, first).await,
        }
    };
    tokio::select! {
        () = served => {}
        () = forced(&drain, &connection) => {}
    }
    connection.end()
}

async fn forced(drain: &crate::drain::Drain, connection: &Connection) {
    drain.closing().await;
    connection.closing.set(true);
    connection.note(ResponseFlags::LOCAL_RESET, "drain_timeout");
}

/// Which codec a connection gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Codec {
    Http1,
    Http2,
}

/// The codec, and what had to be read to know; `None` when the client left.
async fn codec(
    connection: &Connection,
    stream: &mut TcpStream,
    detected: Option<Detected>,
) -> Option<(Codec, BytesMut)> {
    let known = match (connection.manager.codec_type, detected) {
        (CodecType::Http1, _) => Some(Codec::Http1),
        (CodecType::Http2, _) | (CodecType::Auto, Some(Detected::H2c)) => Some(Codec::Http2),
        (CodecType::Auto, Some(Detected::Http10 | Detected::Http11)) => Some(Codec::Http1),
        (CodecType::Auto, Some(Detected::Tls) | None) => None,
    };
    let mut first = BytesMut::new();
    if let Some(codec) = known {
        return Some((codec, first));
    }
    loop {
        if first.starts_with(PREFACE) {
            break;
        }
        if !first.is_empty() && !PREFACE.starts_with(&first[..first.len().min(PREFACE.len())]) {
            break;
        }
        let read = tokio::select! {
            read = stream.read_buf(&mut first) => read,
            () = connection.idle() => return None,
            // Whatever it is going to be, it is no HTTP/2: the other codec tells the client that it is slow.
            () = head_limit(connection) => break,
            () = connection.worker.shared.drain.draining() => return None,
        };
        match read {
            Ok(0) | Err(_) => return None,
            Ok(read) => connection.wire.received.set(connection.wire.received.get() + read as u64),
        }
    }
    let codec = if first.starts_with(PREFACE) { Codec::Http2 } else { Codec::Http1 };
    Some((codec, first))
}

async fn head_limit(connection: &Connection) {
    match connection.manager.request_headers_timeout {
        Some(limit) => tokio::time::sleep_until(connection.idle_since.get() + limit).await,
        None => std::future::pending().await,
    }
}

async fn serve_http1(connection: &Rc<Connection>, stream: TcpStream, first: BytesMut) {
    let manager = &connection.manager;
    manager.stats.downstream_cx_http1_total.inc();
    let limits = HeadLimits {
        max_bytes: manager.max_request_headers_kb as usize * 1024,
        max_headers: manager.max_headers_count as usize,
    };
    let gate = Gate::http1(stream, first, connection.wire.clone(), limits);
    let service = service_fn(|request: http::Request<Incoming>| {
        service::serve(connection.clone(), request.map(Downstream::Hyper))
    });
    let mut codec = http1::Builder::new()
        .max_headers(limits.max_headers)
        .max_buf_size(limits.max_bytes.max(64 * 1024) + 64 * 1024)
        .serve_connection(TokioIo::new(gate), service);
    // hyper calls itself done after a request that asked for an upgrade, granted or not, with bytes still to be written.
    let written_out = || connection.wire.is_shut();
    let result = run(connection, &mut codec, |codec| codec.graceful_shutdown(), written_out).await;
    let parts = codec.into_parts();
    let gate = parts.io.into_inner();
    match result {
        None => {
            let _ = gate.into_parts().0.set_zero_linger();
        }
        Some(Ok(())) => {
            let tunnel = connection.tunnel.borrow_mut().take();
            if let Some(tunnel) = tunnel {
                carry(connection, gate, parts.read_buf.into(), tunnel).await;
            } else if connection.lingers.get() {
                linger(gate).await;
            }
        }
        Some(Err(error)) => {
            note_error(connection, &error);
            if connection.cut_off.get() {
                let _ = gate.into_parts().0.set_zero_linger();
            }
        }
    }
}

async fn serve_http2(connection: &Rc<Connection>, stream: TcpStream, first: BytesMut) {
    let manager = &connection.manager;
    manager.stats.downstream_cx_http2_total.inc();
    let gate = Gate::open(stream, first, connection.wire.clone());
    let shared = connection.clone();
    let service = service_fn(move |request: http::Request<Incoming>| {
        service::serve(shared.clone(), request.map(Downstream::Hyper))
    });
    let mut codec = http2::Builder::new(LocalExecutor)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .max_header_list_size(manager.max_request_headers_kb * 1024 + HEADER_LIST_SLACK)
        .serve_connection(TokioIo::new(gate), service);
    let result = run(connection, &mut codec, |codec| codec.graceful_shutdown(), || true).await;
    if let Some(Err(error)) = result {
        note_error(connection, &error);
    }
}

/// Drives the codec to its end; tells it to come to one when the agent drains or the connection is idle. `None` when the
/// client kept it from coming to one. A codec that ends before it is `done` is driven on.
async fn run<C: Future<Output = hyper::Result<()>> + Unpin>(
    connection: &Connection,
    codec: &mut C,
    finish: impl Fn(Pin<&mut C>),
    done: impl Fn() -> bool,
) -> Option<hyper::Result<()>> {
    let drain = connection.worker.shared.drain.clone();
    let mut end = std::pin::pin!(async {
        tokio::select! {
            () = drain.draining() => {}
            () = connection.idle() => {}
        }
    });
    let mut heads = std::pin::pin!(connection.watch_heads());
    let mut abandoned = std::pin::pin!(connection.abandoned());
    let mut ending = false;
    poll_fn(|cx| {
        if !ending && end.as_mut().poll(cx).is_ready() {
            ending = true;
            finish(Pin::new(codec));
        }
        let _ = heads.as_mut().poll(cx);
        if abandoned.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        let mut result = ready!(Pin::new(&mut *codec).poll(cx));
        if result.is_ok() && !done() {
            result = ready!(Pin::new(&mut *codec).poll(cx));
        }
        Poll::Ready(Some(result))
    })
    .await
}

fn note_error(connection: &Connection, error: &hyper::Error) {
    tracing::debug!(error = error as &dyn std::error::Error, "a client's connection ended with an error");
    let protocol_error = error.is_parse() || is_http2_protocol_error(error);
    if protocol_error {
        connection.note(ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR, format!("codec_error: {error}"));
    } else if error.is_incomplete_message() {
        connection.note(ResponseFlags::DOWNSTREAM_TERMINATION, "downstream_remote_disconnect");
    }
}

fn is_http2_protocol_error(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(|error| error.is_library() && error.reason() != Some(h2::Reason::NO_ERROR))
}

async fn carry(connection: &Connection, gate: Gate<TcpStream>, first: BytesMut, tunnel: Tunnel) {
    let (stream, held) = gate.into_parts();
    let mut first = first;
    first.extend_from_slice(&held);
    connection.wire.stay_open(false);
    let gate = Gate::open(stream, BytesMut::new(), connection.wire.clone());
    tunnel.run(gate, first.freeze()).await;
}

/// Reads away what the client still sends, so that closing does not reset the connection under the last response.
async fn linger(gate: Gate<TcpStream>) {
    let (mut stream, _) = gate.into_parts();
    let mut buffer = [0; 4096];
    let reading = async { while matches!(stream.read(&mut buffer).await, Ok(read) if read > 0) {} };
    let _ = tokio::time::timeout(LINGER, reading).await;
}
